//! One connection: frames in, answers out, and how long it may leave them unread.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use wire::frame::{self, SendError};

use crate::sys;

/// A frame that did not go out yet.
#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    fd: Option<OwnedFd>,
}

#[derive(Debug)]
pub(super) struct Line {
    pub(super) fd: OwnedFd,
    out: VecDeque<Outgoing>,
    /// Descriptors sent since its queue was last seen empty.
    unread_fds: usize,
    /// Since when something is expected of it.
    pub(super) since_ms: Option<u64>,
    pub(super) greeted: bool,
    /// What epoll listens for: reading, writing.
    pub(super) interest: (bool, bool),
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Now,
    /// It is queued.
    Later,
    /// The peer has gone.
    Never,
}

impl Line {
    pub(super) fn new(fd: OwnedFd, now_ms: u64) -> Self {
        Self {
            fd,
            out: VecDeque::new(),
            unread_fds: 0,
            since_ms: Some(now_ms),
            greeted: false,
            interest: (true, false),
        }
    }

    pub(super) fn send(&mut self, bytes: Vec<u8>, fd: Option<OwnedFd>) -> Sent {
        self.out.push_back(Outgoing { bytes, fd });
        self.flush()
    }

    pub(super) fn flush(&mut self) -> Sent {
        while let Some(next) = self.out.front() {
            let fds: Vec<_> = next.fd.iter().map(AsFd::as_fd).collect();
            match frame::send(self.fd.as_fd(), &next.bytes, &fds) {
                Ok(()) => {
                    self.unread_fds += fds.len();
                    self.out.pop_front();
                }
                Err(SendError::Io { source, .. }) if is_full(&source) => return Sent::Later,
                Err(_) => {
                    self.out.clear();
                    return Sent::Never;
                }
            }
        }
        Sent::Now
    }

    pub(super) fn is_clogged(&self) -> bool {
        !self.out.is_empty()
    }

    /// Whether descriptors are on the way to it, as far as is known.
    pub(super) fn owes(&self) -> bool {
        self.unread_fds > 0
    }

    /// Looks whether it has taken everything.
    pub(super) fn look(&mut self) {
        if self.owes() && sys::unread_bytes(self.fd.as_fd()).is_ok_and(|unread| unread == 0) {
            self.unread_fds = 0;
            self.since_ms = None;
        }
    }

    /// Whether it has taken what was sent, as far as the next question is concerned.
    pub(super) fn may_ask(&mut self, fds_max: usize) -> bool {
        if self.is_clogged() {
            return false;
        }
        if self.unread_fds >= fds_max {
            self.look();
        }
        self.unread_fds < fds_max
    }
}

/// Also when too many descriptors of ours are on the way to all peers together (unix(7), ETOOMANYREFS).
fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
        || matches!(error.raw_os_error(), Some(libc::ETOOMANYREFS | libc::ENOBUFS))
}
