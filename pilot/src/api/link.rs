//! One end of a connection on a pilot's own socket, and the socket itself.
//!
//! Every wait has an end: a peer that stalls is cut off, and nobody waits with it.
//!
//! **Must not know:** what is said.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use wire::Check;
use wire::frame::{self, ReceiveError, SendError};

use crate::runtime::watch;

/// A peer that reads takes a frame at once.
const SEND_MAX: Duration = Duration::from_secs(5);
/// A pilot that lives accepts at once, unless very many ask.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Between two tries to connect while the pilot's queue of connections is full.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// Why nothing more can be said or heard.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The socket could not be made, or nobody listens there.
    #[error("reach the pilot at {}", path.display())]
    Socket {
        /// Which socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The peer does not read, or did not say anything in time.
    #[error("wait for the other end: it does not answer")]
    Stalled,
    /// The peer has closed its end.
    #[error("wait for the other end: the connection is gone")]
    Gone,
    /// A message of ours breaks its limits.
    #[error("send a message")]
    Encode(#[from] wire::EncodeError),
    /// A frame could not be sent.
    #[error("send a message")]
    Send(#[from] SendError),
    /// A frame could not be received.
    #[error("receive a message")]
    Receive(#[from] ReceiveError),
    /// A frame was not a message.
    #[error("understand a message")]
    Decode(#[from] wire::DecodeError),
    /// A message that has no meaning here.
    #[error("understand a message: it makes no sense here")]
    Unexpected,
    /// The pilot said no, and why.
    #[error("{0}")]
    Refused(String),
    /// The other end speaks another protocol.
    #[error("talk to the other end: it speaks protocol {theirs}, this program {}", wire::pilot::PROTOCOL)]
    Protocol {
        /// Its version.
        theirs: wire::version::Version,
    },
    /// The kernel's error while waiting.
    #[error("wait for the other end")]
    Wait(#[source] std::io::Error),
}

/// Listens for connections.
#[derive(Debug)]
pub(super) struct Door {
    socket: AsyncFd<OwnedFd>,
    folder: OwnedFd,
    name: String,
}

/// The folder of a socket and its name there: a socket's address holds 108 bytes (unix(7)), a path may be longer, so that
/// addresses go through the folder's descriptor.
fn folder_of(path: &Path) -> std::io::Result<(OwnedFd, String)> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or(Errno::INVAL)?.to_owned();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder.unwrap_or(Path::new(".")), flags, Mode::empty())?;
    Ok((folder, name))
}

fn address(folder: &OwnedFd, name: &str) -> std::io::Result<SocketAddrUnix> {
    let path = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
    Ok(SocketAddrUnix::new(path.as_str())?)
}

fn socket() -> std::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

impl Door {
    /// Binds `path`, in place of a socket that a dead pilot left there.
    pub(super) fn bind(path: &Path) -> Result<Self, LinkError> {
        let make = || {
            let (folder, name) = folder_of(path)?;
            let socket = socket()?;
            match rustix::fs::unlinkat(&folder, name.as_str(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
            rustix::net::bind(&socket, &address(&folder, &name)?)?;
            // Who may do something is asked of the kernel at each connection; this only keeps others from waiting here.
            rustix::fs::chmodat(&folder, name.as_str(), Mode::from_raw_mode(0o600), AtFlags::empty())?;
            rustix::net::listen(&socket, BACKLOG)?;
            Ok(Self { socket: watch(socket, Interest::READABLE)?, folder, name })
        };
        make().map_err(|source| LinkError::Socket { path: path.to_path_buf(), source })
    }

    /// The next connection, whoever it is.
    pub(super) async fn accept(&self) -> std::io::Result<Link> {
        loop {
            let mut ready = self.socket.readable().await?;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::accept_with(self.socket.get_ref(), flags) {
                Ok(fd) => return Link::new(fd),
                Err(Errno::AGAIN) => ready.clear_ready(),
                // Gone before it was accepted.
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Whoever finds it later is refused anyway.
        let _ = rustix::fs::unlinkat(&self.folder, self.name.as_str(), AtFlags::empty());
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    socket: AsyncFd<OwnedFd>,
}

impl Link {
    fn new(fd: OwnedFd) -> std::io::Result<Self> {
        Ok(Self { socket: watch(fd, Interest::READABLE | Interest::WRITABLE)? })
    }

    /// Connects to a pilot's socket.
    pub(super) async fn connect(path: &Path) -> Result<Self, LinkError> {
        let failed = |source: std::io::Error| LinkError::Socket { path: path.to_path_buf(), source };
        let (folder, name) = folder_of(path).map_err(failed)?;
        let address = address(&folder, &name).map_err(failed)?;
        let connecting = async {
            loop {
                let socket = socket().map_err(failed)?;
                match rustix::net::connect(&socket, &address) {
                    Ok(()) => return Self::new(socket).map_err(failed),
                    Err(Errno::AGAIN) => tokio::time::sleep(CONNECT_PAUSE).await,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(failed(errno.into())),
                }
            }
        };
        tokio::time::timeout(CONNECT_MAX, connecting).await.map_err(|_| LinkError::Stalled)?
    }

    /// The uid of the process that made the other end (`SO_PEERCRED`, unix(7)).
    pub(super) fn peer_uid(&self) -> std::io::Result<u32> {
        Ok(rustix::net::sockopt::socket_peercred(self.socket.get_ref())?.uid.as_raw())
    }

    /// Sends one message and its descriptors.
    pub(super) async fn send<T: Serialize + Check>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        let bytes = wire::encode(message)?;
        let sending = async {
            loop {
                let mut ready = self.socket.writable().await.map_err(LinkError::Wait)?;
                match frame::send(self.socket.get_ref().as_fd(), &bytes, fds) {
                    Ok(()) => return Ok(()),
                    Err(SendError::Io { source, .. }) if source.kind() == std::io::ErrorKind::WouldBlock => {
                        ready.clear_ready();
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        };
        tokio::time::timeout(SEND_MAX, sending).await.map_err(|_| LinkError::Stalled)?
    }

    /// Sends bytes that need not be a message.
    #[cfg(test)]
    pub(super) fn send_raw(&self, bytes: &[u8]) {
        frame::send(self.socket.get_ref().as_fd(), bytes, &[]).expect("send raw");
    }

    /// Receives one message and its descriptors, however long it takes.
    pub(super) async fn receive<T: DeserializeOwned + Check>(&self) -> Result<(T, Vec<OwnedFd>), LinkError> {
        loop {
            let mut ready = self.socket.readable().await.map_err(LinkError::Wait)?;
            match frame::receive(self.socket.get_ref().as_fd()) {
                Ok(None) => return Err(LinkError::Gone),
                Ok(Some(frame)) => return Ok((wire::decode(&frame.bytes)?, frame.fds)),
                Err(error) if error.is_would_block() => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Receives one message within a time.
    pub(super) async fn receive_within<T: DeserializeOwned + Check>(
        &self,
        longest: Duration,
    ) -> Result<(T, Vec<OwnedFd>), LinkError> {
        tokio::time::timeout(longest, self.receive()).await.map_err(|_| LinkError::Stalled)?
    }
}
