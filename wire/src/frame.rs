//! One message is one `sendmsg(2)` on a `SOCK_SEQPACKET` socket, with the descriptors that belong to it.
//!
//! # Guarantees
//! - A frame arrives whole or not at all, and its descriptors arrive with it (unix(7), "Ancillary messages").
//! - Received descriptors are close-on-exec from birth (`MSG_CMSG_CLOEXEC`) and owned at once: an error on the way
//!   closes them.
//! - A frame that was cut, by length or by descriptors, is an error and not a shorter frame.
//!
//! # Why not `sendfd`
//! The crate covers stream and datagram sockets of std and tokio only, hands out `RawFd`, and passes no
//! `MSG_CMSG_CLOEXEC`: between `recvmsg` and a later `fcntl` another thread's fork would leak a payload's
//! descriptors into a sibling. rustix has the call with owned descriptors, so this module needs no unsafe code either.
//!
//! # Caveats
//! Non-blocking sockets give [`std::io::ErrorKind::WouldBlock`] inside the errors; waiting is the caller's business.

use std::cell::RefCell;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Longest frame in bytes: an inline value ([`crate::stage::VALUE_BYTES_MAX`], 64 KiB) and a page for what is said about
/// it. Below the default `net.core.wmem_default` (208 KiB), so that a frame always fits an empty socket buffer.
pub const FRAME_BYTES_MAX: usize = 68 * 1024;

/// Most descriptors in one frame. The kernel allows 253 (`SCM_MAX_FD`); descriptors in flight count against the
/// sender's `RLIMIT_NOFILE`, so a peer that does not read must not be able to hold many.
pub const FRAME_FDS_MAX: usize = 16;

/// A received message and what came with it.
#[derive(Debug)]
pub struct Frame {
    /// The encoded message.
    pub bytes: Vec<u8>,
    /// Its descriptors in the order in which they were sent.
    pub fds: Vec<OwnedFd>,
}

/// Why a frame could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Empty frames cannot be told from the end of the connection.
    #[error("send an empty frame")]
    Empty,
    /// More than [`FRAME_BYTES_MAX`].
    #[error("send a frame of {bytes} bytes: at most {FRAME_BYTES_MAX} fit")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// More than [`FRAME_FDS_MAX`].
    #[error("send a frame with {fds} descriptors: at most {FRAME_FDS_MAX} may travel")]
    TooManyFds {
        /// How many.
        fds: usize,
    },
    /// The peer has gone, or the buffer is full on a non-blocking socket.
    #[error("send a frame of {bytes} bytes")]
    Io {
        /// Its length.
        bytes: usize,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// Why no frame was received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// Longer than [`FRAME_BYTES_MAX`]: the peer breaks the protocol.
    #[error("receive a frame: it is longer than {FRAME_BYTES_MAX} bytes")]
    TooLong,
    /// More descriptors than [`FRAME_FDS_MAX`], or more than our own `RLIMIT_NOFILE` leaves room for.
    #[error("receive a frame: its descriptors were cut off")]
    FdsCut,
    /// The kernel's error; `WouldBlock` on a non-blocking socket.
    #[error("receive a frame")]
    Io(#[from] std::io::Error),
}

impl ReceiveError {
    /// Whether this is only "nothing there yet" on a non-blocking socket.
    #[must_use]
    pub fn is_would_block(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

/// Sends one frame. Never raises SIGPIPE.
///
/// # Errors
/// When the frame breaks a limit or the kernel refuses it.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), SendError> {
    if bytes.is_empty() {
        return Err(SendError::Empty);
    }
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(SendError::TooLong { bytes: bytes.len() });
    }
    if fds.len() > FRAME_FDS_MAX {
        return Err(SendError::TooManyFds { fds: fds.len() });
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(SendError::TooManyFds { fds: fds.len() });
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(SendError::Io { bytes: bytes.len(), source: errno.into() }),
        }
    }
}

/// Receives one frame; `None` when the peer has closed its end.
///
/// # Errors
/// When the frame was cut or the kernel reports an error. Descriptors that arrived are closed.
pub fn receive(socket: BorrowedFd<'_>) -> Result<Option<Frame>, ReceiveError> {
    ROOM.with_borrow_mut(|room| {
        room.resize(FRAME_BYTES_MAX, 0);
        receive_into(socket, room)
    })
}

thread_local! {
    /// Clearing room for the longest frame takes longer than receiving a usual one, so each thread keeps it.
    static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn receive_into(socket: BorrowedFd<'_>, room: &mut [u8]) -> Result<Option<Frame>, ReceiveError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(room)];
        match recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            // A peer that closed before it read all of ours: said once, ahead of what it sent and of the end.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Err(errno) => return Err(ReceiveError::Io(errno.into())),
        }
    };
    // Taken before the flags are judged: whatever arrived is owned here and closed on the way out.
    let fds: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(ReceiveError::TooLong);
    }
    // The buffer's alignment leaves room for one descriptor more than we asked for.
    if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > FRAME_FDS_MAX {
        return Err(ReceiveError::FdsCut);
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let bytes = room.get(..received.bytes).unwrap_or_default().to_vec();
    Ok(Some(Frame { bytes, fds }))
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
