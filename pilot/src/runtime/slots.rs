//! The pilot's end of a slot's control socket, common to all runtimes.
//!
//! A listener lives in the slot's control folder for one epoch. Whoever connects has `HELLO_WAIT` to say Hello with
//! the nonce of that epoch; anyone else is dropped and costs nothing but that connection.
//!
//! **Must not know:** how the slot's container came to be, queues, stages.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use wire::frame::{self, ReceiveError, SendError};
use wire::slot::{CleanReport, FromShim, Held, Nonce, ShimState, ToShim};
use wire::version::{INHERITS, PROTOCOL, RETAINS, REVEALS, Version};

use super::watch;

/// How long a new connection may take to say Hello. A shim says it within a millisecond of connecting.
const HELLO_WAIT: Duration = Duration::from_secs(2);
/// Connections that fail to prove themselves before the bind is given up: a payload of the same uid that found the
/// socket could otherwise keep us busy.
const STRANGERS_MAX: u32 = 64;
/// More stages in memory than any shim has.
const COLLECTED_MAX: usize = 2048;

/// Why a slot's socket did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The socket could not be made.
    #[error("listen for the slot's shim")]
    Listen(#[source] std::io::Error),
    /// Too many connections that could not prove themselves.
    #[error("wait for the slot's shim: {STRANGERS_MAX} connections failed to prove themselves")]
    Strangers,
    /// The shim speaks another protocol.
    #[error("talk to the slot's shim: it speaks protocol {theirs}, this pilot {PROTOCOL}")]
    Protocol {
        /// Its version.
        theirs: wire::version::Version,
    },
    /// A frame could not be sent.
    #[error("talk to the slot's shim")]
    Send(#[from] SendError),
    /// A message of ours breaks its limits.
    #[error("talk to the slot's shim")]
    Encode(#[from] wire::EncodeError),
    /// A frame could not be received.
    #[error("listen to the slot's shim")]
    Receive(#[from] ReceiveError),
    /// A frame was not a message.
    #[error("understand the slot's shim")]
    Decode(#[from] wire::DecodeError),
    /// A launch could not be put in memory.
    #[error("send a long launch")]
    Memory(#[from] wire::LaunchMemoryError),
    /// What it is to keep could not be written down.
    #[error("write down what the slot's shim keeps")]
    Note(#[source] std::io::Error),
    /// There is no connection any more.
    #[error("talk to the slot's shim: the connection is gone")]
    Gone,
    /// The kernel's error while waiting.
    #[error("wait for the slot's shim")]
    Wait(#[source] std::io::Error),
}

/// The socket on which one slot's shim announces itself.
#[derive(Debug)]
pub struct SlotListener {
    socket: AsyncFd<OwnedFd>,
}

/// Listens at `name` in a folder, whose path may be longer than a socket address holds (108 bytes, unix(7)): the address
/// goes through its descriptor. All may connect that reach the folder.
pub(super) fn listen(folder: &Path, name: &str, backlog: i32) -> std::io::Result<OwnedFd> {
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let path = format!("/proc/self/fd/{}/{name}", std::os::fd::AsRawFd::as_raw_fd(&folder));
    rustix::net::bind(&socket, &SocketAddrUnix::new(path.as_str())?)?;
    rustix::fs::chmodat(&folder, name, Mode::from_raw_mode(0o666), rustix::fs::AtFlags::empty())?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

impl SlotListener {
    /// Binds `sock` in the control folder. The folder's own path is what keeps others out, and the nonce is what counts.
    ///
    /// # Errors
    /// When the socket cannot be made; needs a tokio runtime.
    pub fn bind(control: &Path) -> Result<Self, SlotError> {
        let socket = listen(control, "sock", 8)
            .and_then(|fd| watch(fd, Interest::READABLE))
            .map_err(SlotError::Listen)?;
        Ok(Self { socket })
    }

    /// Waits for the shim that knows `nonce`. Give it a deadline from outside.
    ///
    /// # Errors
    /// When too many strangers call or the proven shim speaks another protocol.
    pub async fn accept_proven(&self, nonce: Nonce) -> Result<(Connection, ShimState), SlotError> {
        let caller = self.accept_any(&[nonce]).await?;
        Ok((caller.connection, caller.state))
    }

    /// Waits for a shim that knows one of `nonces`. Give it a deadline from outside.
    ///
    /// # Errors
    /// As [`SlotListener::accept_proven`].
    pub async fn accept_any(&self, nonces: &[Nonce]) -> Result<Caller, SlotError> {
        self.accept_or_keep(nonces, &mut None).await
    }

    /// Waits for the shim that knows `nonce`. When none has come after `wait`, an idle one is taken that has called meanwhile:
    /// whoever is in the slot can call as one, so where something may run its word is worth less than the proof that may follow.
    ///
    /// # Errors
    /// As [`SlotListener::accept_proven`].
    pub async fn accept_before_idle(
        &self,
        nonce: Nonce,
        wait: Duration,
    ) -> Result<Option<Caller>, SlotError> {
        let mut idle = None;
        match tokio::time::timeout(wait, self.accept_or_keep(&[nonce], &mut idle)).await {
            Ok(met) => met.map(Some),
            Err(_late) => Ok(idle),
        }
    }

    /// Keeps the last idle caller that is none of those who are waited for.
    async fn accept_or_keep(&self, nonces: &[Nonce], idle: &mut Option<Caller>) -> Result<Caller, SlotError> {
        let mut strangers = 0;
        while strangers < STRANGERS_MAX {
            let mut connection = self.accept().await?;
            let hello = tokio::time::timeout(HELLO_WAIT, connection.receive()).await;
            match hello {
                Ok(Ok(Some(FromShim::Hello { protocol, nonce, state }))) if nonces.contains(&nonce) => {
                    if !PROTOCOL.understands(protocol) {
                        return Err(SlotError::Protocol { theirs: protocol });
                    }
                    connection.protocol = protocol;
                    return Ok(Caller { connection, nonce, state });
                }
                // It calls again when it is hung up on, and is about to be replaced.
                Ok(Ok(Some(FromShim::Hello { protocol, nonce, state })))
                    if nonce.is_idle() && PROTOCOL.understands(protocol) =>
                {
                    *idle = Some(Caller { connection, nonce, state });
                }
                _ => tracing::warn!("a connection to the slot's socket did not prove itself"),
            }
            // The idle ones count too: each takes its turn.
            strangers += 1;
        }
        Err(SlotError::Strangers)
    }

    async fn accept(&self) -> Result<Connection, SlotError> {
        loop {
            let mut ready = self.socket.readable().await.map_err(SlotError::Wait)?;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let accepted =
                ready.try_io(|socket| rustix::net::accept_with(socket, flags).map_err(std::io::Error::from));
            match accepted {
                Ok(Ok(fd)) => {
                    let socket =
                        watch(fd, Interest::READABLE | Interest::WRITABLE).map_err(SlotError::Wait)?;
                    let protocol = Version { major: 0, minor: 0 };
                    return Ok(Connection { socket: Arc::new(socket), protocol, put_off: Mutex::default() });
                }
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(SlotError::Wait(error)),
                Err(_would_block) => {}
            }
        }
    }
}

/// A shim that proved itself.
#[derive(Debug)]
pub struct Caller {
    /// The line to it.
    pub connection: Connection,
    /// By which of the nonces.
    pub nonce: Nonce,
    /// What it was doing.
    pub state: ShimState,
}

/// A connection to a shim.
#[derive(Debug)]
pub struct Connection {
    socket: Arc<AsyncFd<OwnedFd>>,
    /// The shim's, once it has said Hello.
    protocol: Version,
    /// Heard while something else was waited for.
    put_off: Mutex<VecDeque<FromShim>>,
}

/// Tells a shim something in passing, as long as there is a connection to it.
#[derive(Clone, Debug)]
pub(super) struct Line(Weak<AsyncFd<OwnedFd>>);

impl Line {
    /// Says it now or never.
    pub(super) fn tell(&self, message: &ToShim) {
        let Some(socket) = self.0.upgrade() else { return };
        let sent = wire::encode(message).map(|bytes| frame::send(socket.get_ref().as_fd(), &bytes, &[]));
        if !matches!(sent, Ok(Ok(()))) {
            tracing::debug!(?message, "a shim can't be told");
        }
    }
}

impl Connection {
    /// The process at the other end, as this one counts processes (`SO_PEERCRED`, unix(7)).
    #[must_use]
    pub fn peer(&self) -> Option<u32> {
        let peer = rustix::net::sockopt::socket_peercred(self.socket.get_ref()).ok()?;
        u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
    }

    /// Sends one message and its descriptors.
    ///
    /// # Errors
    /// When the message breaks its limits or the shim is gone.
    pub async fn send(&self, message: &ToShim, fds: &[BorrowedFd<'_>]) -> Result<(), SlotError> {
        let bytes = wire::encode(message)?;
        loop {
            let mut ready = self.socket.writable().await.map_err(SlotError::Wait)?;
            match frame::send(self.socket.get_ref().as_fd(), &bytes, fds) {
                Ok(()) => return Ok(()),
                Err(SendError::Io { source, .. }) if source.kind() == std::io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A way to say something without waiting.
    pub(super) fn line(&self) -> Line {
        Line(Arc::downgrade(&self.socket))
    }

    /// Whether the shim keeps stages in memory beyond a payload's end.
    pub(super) fn retains(&self) -> bool {
        self.protocol.has(RETAINS)
    }

    /// Whether the shim can let a payload inherit inputs that are files.
    pub(super) fn inherits(&self) -> bool {
        self.protocol.has(INHERITS)
    }

    /// Collects what the shim has of outputs in memory. What else it says meanwhile is heard afterwards.
    ///
    /// # Errors
    /// When it is gone or breaks the protocol.
    pub(super) async fn collect(&self) -> Result<Vec<(Held, OwnedFd)>, SlotError> {
        let mut all = Vec::new();
        if !self.retains() {
            return Ok(all);
        }
        self.send(&ToShim::Collect, &[]).await?;
        while let Some((message, fds)) = self.receive_frame().await? {
            match message {
                FromShim::Collected { stages, more } => {
                    all.extend(stages.into_iter().zip(fds));
                    if !more || all.len() > COLLECTED_MAX {
                        return Ok(all);
                    }
                }
                other => self.put_off.lock().unwrap_or_else(PoisonError::into_inner).push_back(other),
            }
        }
        Err(SlotError::Gone)
    }

    /// Asks the shim to make outputs readable, and waits until it has done what it can; one of before can't. What else it says
    /// meanwhile is heard afterwards.
    ///
    /// # Errors
    /// When it is gone or breaks the protocol.
    pub(super) async fn reveal(&self, outputs: Vec<String>) -> Result<(), SlotError> {
        if !self.protocol.has(REVEALS) {
            return Ok(());
        }
        self.send(&ToShim::Reveal { outputs }, &[]).await?;
        while let Some((message, _)) = self.receive_frame().await? {
            match message {
                FromShim::Revealed => return Ok(()),
                other => self.put_off.lock().unwrap_or_else(PoisonError::into_inner).push_back(other),
            }
        }
        Err(SlotError::Gone)
    }

    /// Asks the shim to remove what a payload left, and waits until it has; `None` when it is gone.
    ///
    /// # Errors
    /// When it can't be asked, or does not answer with a message.
    pub async fn clean(&self) -> Result<Option<CleanReport>, SlotError> {
        self.send(&ToShim::Clean, &[]).await?;
        self.cleaned().await
    }

    /// Waits until the shim, which was asked before, has cleaned.
    ///
    /// # Errors
    /// As [`Connection::clean`].
    pub async fn cleaned(&self) -> Result<Option<CleanReport>, SlotError> {
        loop {
            match self.receive().await? {
                Some(FromShim::Cleaned(report)) => return Ok(Some(report)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Asks the shim to remove what a payload left and to end.
    ///
    /// # Errors
    /// As [`Connection::clean`].
    pub async fn retire(&self) -> Result<(), SlotError> {
        match self.clean().await? {
            Some(report) => tracing::debug!(?report, "cleaned"),
            None => return Ok(()),
        }
        self.send(&ToShim::Retire, &[]).await
    }

    /// Receives one message; `None` when the shim has closed its end. Descriptors that nobody asked for are closed unread.
    ///
    /// # Errors
    /// When what arrives is not a message.
    pub async fn receive(&self) -> Result<Option<FromShim>, SlotError> {
        let put_off = self.put_off.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        match put_off {
            Some(message) => Ok(Some(message)),
            None => Ok(self.receive_frame().await?.map(|(message, _)| message)),
        }
    }

    async fn receive_frame(&self) -> Result<Option<(FromShim, Vec<OwnedFd>)>, SlotError> {
        loop {
            let mut ready = self.socket.readable().await.map_err(SlotError::Wait)?;
            match frame::receive(self.socket.get_ref().as_fd()) {
                Ok(None) => return Ok(None),
                Ok(Some(frame)) => return Ok(Some((wire::decode(&frame.bytes)?, frame.fds))),
                Err(error) if error.is_would_block() => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
