//! The connection: questions out, each answer to the thread that asked.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use wire::frame;
use wire::stage::{Answer, FromBroker, PROTOCOL, Request, ToBroker};

use super::{Answered, ClientError};

#[derive(Debug)]
pub(super) struct Line {
    socket: OwnedFd,
    payload: String,
    state: Mutex<State>,
    /// An answer came, or the one who receives has stopped.
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    last_id: u32,
    asked: BTreeSet<u32>,
    answers: BTreeMap<u32, Answered>,
    /// One thread receives, for all.
    receiving: bool,
    ended: bool,
}

impl Line {
    pub(super) fn connect(path: &Path) -> Result<Self, ClientError> {
        let socket =
            dial(path).map_err(|source| ClientError::Connect { path: path.to_path_buf(), source })?;
        // A broker that has no room says so and ends; then sending fails, and its words are there all the same.
        let hello = wire::encode(&ToBroker::Hello { protocol: PROTOCOL });
        let hello = hello.map_err(|_| ClientError::Protocol { what: "our own Hello" })?;
        let _ = frame::send(socket.as_fd(), &hello, &[]);
        match receive(&socket)? {
            Some((FromBroker::Welcome { protocol, payload, .. }, None)) => {
                if !PROTOCOL.understands(protocol) {
                    return Err(ClientError::Protocol { what: "another major version" });
                }
                Ok(Self { socket, payload, state: Mutex::default(), moved: Condvar::new() })
            }
            Some((FromBroker::Tell { answer: Answer::Refused { code, text }, .. }, None)) => {
                Err(ClientError::Refused { code, text })
            }
            Some(_) => Err(ClientError::Protocol { what: "no Welcome" }),
            None => Err(ClientError::Ended),
        }
    }

    pub(super) fn payload(&self) -> &str {
        &self.payload
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ask(&self, request: Request) -> Result<Answered, ClientError> {
        let mut state = self.lock();
        if state.ended {
            return Err(ClientError::Ended);
        }
        // Zero is the broker's own.
        state.last_id = state.last_id.checked_add(1).unwrap_or(1);
        let id = state.last_id;
        let question = wire::encode(&ToBroker::Ask { id, request }).map_err(|error| {
            ClientError::Invalid { doing: "ask the stage broker", why: error.to_string() }
        })?;
        state.asked.insert(id);
        drop(state);
        // A broker that cuts us off has said why: that is received before the end.
        let sent = frame::send(self.socket.as_fd(), &question, &[]);
        let answered = self.wait_for(id);
        match (answered, sent) {
            (Ok((Answer::Refused { code, text }, _)), _) => Err(ClientError::Refused { code, text }),
            (Ok(answered), _) => Ok(answered),
            (Err(ClientError::Ended), Err(frame::SendError::Io { source, .. }))
                if source.kind() != io::ErrorKind::BrokenPipe =>
            {
                Err(ClientError::Io { doing: "ask the stage broker", source })
            }
            (Err(error), _) => Err(error),
        }
    }

    fn wait_for(&self, id: u32) -> Result<Answered, ClientError> {
        let mut state = self.lock();
        loop {
            if let Some(answered) = state.answers.remove(&id) {
                return Ok(answered);
            }
            if state.ended {
                state.asked.remove(&id);
                return Err(ClientError::Ended);
            }
            if state.receiving {
                state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.receiving = true;
            drop(state);
            let received = receive(&self.socket);
            state = self.lock();
            state.receiving = false;
            match received {
                Ok(Some((FromBroker::Tell { id: 0, answer: Answer::Refused { code, text } }, _))) => {
                    state.ended = true;
                    self.moved.notify_all();
                    return Err(ClientError::Refused { code, text });
                }
                Ok(Some((FromBroker::Tell { id: of, answer }, fd))) => {
                    // What nobody asked for is dropped, its descriptor with it.
                    if state.asked.remove(&of) {
                        state.answers.insert(of, (answer, fd));
                    }
                }
                Ok(Some((FromBroker::Welcome { .. }, _))) => {}
                Ok(None) => state.ended = true,
                Err(error) => {
                    state.ended = true;
                    self.moved.notify_all();
                    return Err(error);
                }
            }
            self.moved.notify_all();
        }
    }
}

fn receive(socket: &OwnedFd) -> Result<Option<(FromBroker, Option<OwnedFd>)>, ClientError> {
    let frame = frame::receive(socket.as_fd());
    let frame = frame.map_err(|error| match error {
        frame::ReceiveError::Io(source) => ClientError::Io { doing: "hear from the stage broker", source },
        _ => ClientError::Protocol { what: "a frame that was cut" },
    })?;
    let Some(frame) = frame else { return Ok(None) };
    let message: FromBroker =
        wire::decode(&frame.bytes).map_err(|_| ClientError::Protocol { what: "no message" })?;
    if frame.fds.len() != message.fds() {
        return Err(ClientError::Protocol { what: "a wrong number of descriptors" });
    }
    Ok(Some((message, frame.fds.into_iter().next())))
}

/// Connects to a socket, whose path may be longer than an address holds.
pub(crate) fn dial(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    match SocketAddrUnix::new(path) {
        Ok(address) => connect(&socket, &address)?,
        // Longer than sun_path holds: by way of its folder.
        Err(rustix::io::Errno::NAMETOOLONG) => {
            let (folder, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name());
            let folder =
                openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let through = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string());
            let short = name.map(|name| through.join(name)).ok_or(io::ErrorKind::InvalidInput)?;
            connect(&socket, &SocketAddrUnix::new(&short)?)?;
        }
        Err(errno) => return Err(errno.into()),
    }
    Ok(socket)
}
