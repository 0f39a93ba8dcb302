//! The line to the pilot: connect, greet, be welcomed, and do it again when the pilot has gone.
//!
//! ```text
//!   Down --connect, Hello--> Greeting --Welcome--> Up
//!    ^                          |                   |
//!    '------- end of file, deadline, full buffer ---'
//! ```
//! A shim that waits in a pod's slot and belongs to no epoch ([`Nonce::IDLE`]) has all the time there is: its pilot may
//! still be fetched, or come and go. It never gives up.
//!
//! What could not be told while the line was down waits in a bounded outbox. `Launched`, `Exited` and `Cleaned` don't: the
//! state in `Hello` tells them.
//!
//! **Must not know:** what the messages do.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use wire::frame::{FRAME_FDS_MAX, SendError, receive, send};
use wire::slot::{FromShim, Held, Nonce, ShimState, ToShim};
use wire::version::PROTOCOL;

/// Time for the first connection and for each Welcome: longer than a pilot's container takes to start after ours.
const WELCOME_MS_MAX: u64 = 30_000;
const RETRY_MS_MIN: u64 = 20;
/// A pilot that is restarted is back soon; four tries a second cost nothing in ten minutes either.
const RETRY_MS_MAX: u64 = 250;
/// Messages that wait for the pilot; helpers are bounded, so only a pilot that never comes back fills it.
const OUTBOX_MAX: usize = 64;

#[derive(Debug)]
enum State {
    Down { retry_at_ms: u64 },
    Greeting { socket: OwnedFd, by_ms: u64 },
    Up { socket: OwnedFd },
}

/// What came in.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Nothing to act on.
    Nothing,
    /// An order, with its descriptors.
    Order(ToShim, Vec<OwnedFd>),
    /// The peer breaks the protocol, speaks another version or doesn't believe us.
    Cut(&'static str),
}

/// The line.
#[derive(Debug)]
pub(crate) struct Link {
    control: OwnedFd,
    nonce: Nonce,
    state: State,
    retry_ms: u64,
    outbox: VecDeque<FromShim>,
    welcomed: bool,
    grace_ms: u64,
    /// When waiting for the pilot ends; none while it is there.
    orphaned_at_ms: Option<u64>,
    /// Time of the last tick.
    now_ms: u64,
}

impl Link {
    pub(crate) fn new(control: OwnedFd, nonce: Nonce, now_ms: u64) -> Self {
        Self {
            control,
            nonce,
            state: State::Down { retry_at_ms: now_ms },
            retry_ms: RETRY_MS_MIN,
            outbox: VecDeque::new(),
            welcomed: false,
            grace_ms: 0,
            orphaned_at_ms: (!nonce.is_idle()).then_some(now_ms + WELCOME_MS_MAX),
            now_ms,
        }
    }

    /// The control folder, for launch markers.
    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Whether any pilot ever believed us.
    pub(crate) fn was_welcomed(&self) -> bool {
        self.welcomed
    }

    /// Whether the pilot has been away for longer than it allowed.
    pub(crate) fn is_orphaned(&self, now_ms: u64) -> bool {
        self.orphaned_at_ms.is_some_and(|at| now_ms >= at)
    }

    /// Whether there is nobody at the other end.
    pub(crate) fn is_down(&self) -> bool {
        matches!(self.state, State::Down { .. })
    }

    /// What to poll.
    pub(crate) fn socket(&self) -> Option<&OwnedFd> {
        match &self.state {
            State::Down { .. } => None,
            State::Greeting { socket, .. } | State::Up { socket } => Some(socket),
        }
    }

    /// When [`Link::tick`] has something to do.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        let own = match self.state {
            State::Down { retry_at_ms } => Some(retry_at_ms),
            State::Greeting { by_ms, .. } => Some(by_ms),
            State::Up { .. } => None,
        };
        [own, self.orphaned_at_ms].into_iter().flatten().min()
    }

    /// Connects when it is time to, and gives up on a pilot that does not answer.
    pub(crate) fn tick(&mut self, now_ms: u64, state: impl FnOnce() -> ShimState) {
        self.now_ms = now_ms;
        match self.state {
            State::Down { retry_at_ms } if now_ms >= retry_at_ms => {
                let is_in_state = |told: &FromShim| {
                    matches!(
                        told,
                        FromShim::Launched { .. }
                            | FromShim::Exited(_)
                            | FromShim::Cleaned(_)
                            | FromShim::Collected { .. }
                            | FromShim::Revealed
                    )
                };
                self.outbox.retain(|told| !is_in_state(told));
                let hello = FromShim::Hello { protocol: PROTOCOL, nonce: self.nonce, state: state() };
                let greeted = self.connect().ok().filter(|socket| put(socket, &hello, &[]).is_ok());
                if let Some(socket) = greeted {
                    self.state = State::Greeting { socket, by_ms: now_ms + WELCOME_MS_MAX };
                } else {
                    self.state = State::Down { retry_at_ms: now_ms + self.retry_ms };
                    self.retry_ms = (self.retry_ms * 2).min(RETRY_MS_MAX);
                }
            }
            State::Greeting { by_ms, .. } if now_ms >= by_ms => self.hang_up(now_ms),
            State::Down { .. } | State::Greeting { .. } | State::Up { .. } => {}
        }
    }

    /// Through the descriptor, so that no path has to lead there and none can be bent.
    fn connect(&self) -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let path = format!("/proc/self/fd/{}/sock", self.control.as_raw_fd());
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket)
    }

    fn hang_up(&mut self, now_ms: u64) {
        // A pilot that never believed us is not there for us yet.
        self.retry_ms = if self.welcomed { RETRY_MS_MIN } else { (self.retry_ms * 2).min(RETRY_MS_MAX) };
        self.state = State::Down { retry_at_ms: now_ms + self.retry_ms };
        if !self.nonce.is_idle() {
            self.orphaned_at_ms.get_or_insert(now_ms + self.grace_ms);
        }
    }

    /// Tells the pilot, now or when it is back.
    pub(crate) fn tell(&mut self, message: FromShim) {
        if let State::Up { socket } = &self.state {
            match put(socket, &message, &[]) {
                Ok(()) => return,
                // It has not read for hundreds of messages: cut it off, it may come back.
                Err(SendError::Io { source, .. }) if source.kind() == std::io::ErrorKind::WouldBlock => {
                    self.hang_up(self.now_ms);
                }
                // The end of file is met when reading, after the orders that came before it.
                Err(_) => {}
            }
        }
        if self.outbox.len() < OUTBOX_MAX {
            self.outbox.push_back(message);
        }
    }

    /// Answers a pilot that collects. What can't be sent is not waited for: it is made again, and a pilot that went asks anew.
    pub(crate) fn send_all(&mut self, all: &[(Held, BorrowedFd<'_>)]) {
        let State::Up { socket } = &self.state else { return };
        for some in all.chunks(FRAME_FDS_MAX) {
            let stages = some.iter().map(|(held, _)| held.clone()).collect();
            let fds: Vec<BorrowedFd<'_>> = some.iter().map(|(_, fd)| *fd).collect();
            if put(socket, &FromShim::Collected { stages, more: true }, &fds).is_err() {
                break;
            }
        }
        self.tell(FromShim::Collected { stages: Vec::new(), more: false });
    }

    /// Reads one frame; to be called when the socket is readable.
    pub(crate) fn hear(&mut self, now_ms: u64) -> Heard {
        let Some(socket) = self.socket() else { return Heard::Nothing };
        let frame = match receive(socket.as_fd()) {
            Ok(Some(frame)) => frame,
            Err(error) if error.is_would_block() => return Heard::Nothing,
            Err(wire::frame::ReceiveError::TooLong | wire::frame::ReceiveError::FdsCut) => {
                return Heard::Cut("the pilot sent a frame that was cut off");
            }
            Ok(None) | Err(_) => {
                self.hang_up(now_ms);
                let refused = !self.welcomed && !self.nonce.is_idle();
                return if refused {
                    Heard::Cut("the pilot hung up on our greeting")
                } else {
                    Heard::Nothing
                };
            }
        };
        match wire::decode(&frame.bytes) {
            Ok(ToShim::Welcome { protocol, orphan_grace_ms, .. }) => {
                if !PROTOCOL.understands(protocol) {
                    return Heard::Cut("the pilot speaks another version of the protocol");
                }
                self.welcome(u64::from(orphan_grace_ms));
                Heard::Nothing
            }
            Ok(_) if matches!(self.state, State::Greeting { .. }) => {
                Heard::Cut("the pilot gave an order before its welcome")
            }
            Ok(order) => Heard::Order(order, frame.fds),
            Err(_) => Heard::Cut("the pilot sent a frame that is no message"),
        }
    }

    fn welcome(&mut self, grace_ms: u64) {
        let down = State::Down { retry_at_ms: 0 };
        self.state = match std::mem::replace(&mut self.state, down) {
            State::Greeting { socket, .. } => State::Up { socket },
            other => other,
        };
        self.welcomed = true;
        self.grace_ms = grace_ms;
        self.orphaned_at_ms = None;
        self.retry_ms = RETRY_MS_MIN;
        for message in std::mem::take(&mut self.outbox) {
            self.tell(message);
        }
    }
}

fn put(socket: &OwnedFd, message: &FromShim, fds: &[BorrowedFd<'_>]) -> Result<(), SendError> {
    match wire::encode(message) {
        Ok(bytes) => send(socket.as_fd(), &bytes, fds),
        // Our messages are short and keep their limits; an empty one is refused as such.
        Err(_) => Err(SendError::Empty),
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
