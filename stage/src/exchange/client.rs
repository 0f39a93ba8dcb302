//! A pilot's side of the exchange. Each call waits for its answer; calls of several threads take turns.
//!
//! **Must not know:** what the stages are for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::net::sockopt;
use wire::exchange::{
    Answer, Code, Content, Fetched as Told, FromExchange, NAMES_MAX, PROTOCOL, Request, ToExchange,
};
use wire::frame;

use crate::client::dial;
use crate::memory::now_us;
use crate::{MapError, MemoryStage, StageUri};

/// How long an answer may take: a folder of a hundred thousand files is linked in some seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a pilot lets others have.
#[derive(Debug)]
pub enum Offered<'stage> {
    /// Sealed memory.
    Memory(&'stage OwnedFd),
    /// A value.
    Value(&'stage [u8]),
    /// A read-only file, by its path below the volume's root.
    File(&'stage str),
    /// A folder of such.
    Folder(&'stage str),
}

/// How a stage came.
#[derive(Debug)]
pub enum Fetched {
    /// Memory, whose seals were found here.
    Memory(MemoryStage),
    /// A value.
    Value(Vec<u8>),
    /// A file of so many bytes, where it was wanted.
    File(u64),
    /// A folder whose files have so many bytes, where it was wanted.
    Folder(u64),
}

/// A call to the exchange that failed.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// It can't be reached.
    #[error("connect to the exchange at {path}")]
    Connect {
        /// Its socket.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection is over: the exchange was stopped, or cut us off.
    #[error("ask the exchange: the connection has ended")]
    Ended,
    /// It said something that is no answer.
    #[error("ask the exchange: it broke the protocol with {what}")]
    Protocol {
        /// What it said.
        what: &'static str,
    },
    /// What came as sealed memory is none.
    #[error("fetch {stage}: what came could still change")]
    Unsealed {
        /// The stage.
        stage: StageUri,
        /// Why it was not taken.
        #[source]
        source: MapError,
    },
    /// It refused; in its words.
    #[error("{text}")]
    Refused {
        /// For programs.
        code: Code,
        /// For people.
        text: String,
    },
}

impl ExchangeError {
    /// Whether another connection may do better.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Ended | Self::Protocol { .. } => true,
            Self::Refused { code, .. } => *code == Code::Ended,
            Self::Unsealed { .. } => false,
        }
    }

    /// Whether there is no such stage, as far as the exchange knows.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { code: Code::NotThere, .. })
    }
}

/// A connection to the exchange.
#[derive(Debug)]
pub struct ExchangeClient {
    line: Mutex<Line>,
    domain: String,
    /// When it was started, by this machine's monotonic clock, in microseconds.
    began_us: u64,
}

#[derive(Debug)]
struct Line {
    socket: OwnedFd,
    last_id: u32,
}

impl ExchangeClient {
    /// Connects, for stages of one scope: those of one spool, whose runs have names of their own.
    ///
    /// # Errors
    /// When nobody listens there, or speaks another protocol.
    pub fn connect(path: &Path, scope: &str) -> Result<Self, ExchangeError> {
        let socket = dial(path);
        let socket = socket.map_err(|source| ExchangeError::Connect { path: path.to_path_buf(), source })?;
        // One that does not answer is as good as none.
        for way in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
            let _ = sockopt::set_socket_timeout(&socket, way, Some(PATIENCE));
        }
        let hello = wire::encode(&ToExchange::Hello { protocol: PROTOCOL, scope: scope.to_owned() });
        let hello = hello.map_err(|_| ExchangeError::Protocol { what: "our own Hello" })?;
        // Who has no room for us says so and ends; then sending fails, and the words are there all the same.
        let _ = frame::send(socket.as_fd(), &hello, &[]);
        match receive(&socket)? {
            (FromExchange::Welcome { protocol, domain, age_ms }, None) if PROTOCOL.understands(protocol) => {
                let began_us = now_us().saturating_sub(age_ms.saturating_mul(1000));
                Ok(Self { line: Mutex::new(Line { socket, last_id: 0 }), domain, began_us })
            }
            (FromExchange::Welcome { .. }, _) => {
                Err(ExchangeError::Protocol { what: "another major version" })
            }
            (FromExchange::Tell { answer: Answer::Refused { code, text }, .. }, _) => {
                Err(ExchangeError::Refused { code, text })
            }
            (FromExchange::Tell { .. }, _) => Err(ExchangeError::Protocol { what: "no Welcome" }),
        }
    }

    /// The same for all pilots that can have each other's stages here, and for no others.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// How long the exchange has been there, in milliseconds. In its first seconds not everybody has offered again what it held
    /// for an earlier one.
    #[must_use]
    pub fn age_ms(&self) -> u64 {
        now_us().saturating_sub(self.began_us) / 1000
    }

    /// Lets others have a stage; what was offered under its name before is replaced.
    ///
    /// # Errors
    /// When it could still change, there is no room, or the connection is over.
    pub fn offer(&self, stage: &StageUri, offered: &Offered<'_>) -> Result<(), ExchangeError> {
        let (content, fd) = match offered {
            Offered::Memory(fd) => (Content::Memory, Some(*fd)),
            Offered::Value(value) => (Content::Value { value: value.to_vec() }, None),
            Offered::File(path) => (Content::File { path: (*path).to_owned() }, None),
            Offered::Folder(path) => (Content::Folder { path: (*path).to_owned() }, None),
        };
        match self.ask(Request::Offer { stage: stage.to_string(), content }, fd)? {
            (Answer::Offered, None) => Ok(()),
            _ => Err(ExchangeError::Protocol { what: "another answer than Offered" }),
        }
    }

    /// Gets a stage. A file or folder is linked to `into`, a path below the root of this pilot's volume where nothing is.
    ///
    /// # Errors
    /// When it is not there ([`ExchangeError::is_missing`]), can't be linked, or the connection is over.
    pub fn fetch(&self, stage: &StageUri, into: &str) -> Result<Fetched, ExchangeError> {
        let asked = Request::Fetch { stage: stage.to_string(), into: into.to_owned() };
        let (Answer::Fetched { bytes, what }, fd) = self.ask(asked, None)? else {
            return Err(ExchangeError::Protocol { what: "another answer than Fetched" });
        };
        match (what, fd) {
            (Told::Memory, Some(fd)) => {
                let found = MemoryStage::found(&stage.output, fd, bytes);
                let unsealed = |source| ExchangeError::Unsealed { stage: stage.clone(), source };
                found.map(Fetched::Memory).map_err(unsealed)
            }
            (Told::Value { value }, None) => Ok(Fetched::Value(value)),
            (Told::File, None) => Ok(Fetched::File(bytes)),
            (Told::Folder, None) => Ok(Fetched::Folder(bytes)),
            _ => Err(ExchangeError::Protocol { what: "a wrong number of descriptors" }),
        }
    }

    /// Nobody will want these any more.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn withdraw(&self, stages: &[StageUri]) -> Result<(), ExchangeError> {
        for part in stages.chunks(NAMES_MAX) {
            let stages = part.iter().map(ToString::to_string).collect();
            match self.ask(Request::Withdraw { stages }, None)? {
                (Answer::Withdrawn, None) => {}
                _ => return Err(ExchangeError::Protocol { what: "another answer than Withdrawn" }),
            }
        }
        Ok(())
    }

    /// Which of these are there. Without any it is seen whether the exchange answers.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn find(&self, stages: &[StageUri]) -> Result<Vec<StageUri>, ExchangeError> {
        let mut there = Vec::new();
        // Also without any: whether it answers.
        for part in stages.chunks(NAMES_MAX).chain(stages.is_empty().then_some(stages)) {
            let stages = part.iter().map(ToString::to_string).collect();
            there.extend(self.names(Request::Find { stages })?);
        }
        Ok(there)
    }

    /// All that are there.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn list(&self) -> Result<Vec<StageUri>, ExchangeError> {
        let mut all: Vec<StageUri> = Vec::new();
        loop {
            let part = self.names(Request::List { after: all.last().map(ToString::to_string) })?;
            let is_last = part.len() < NAMES_MAX;
            // Whoever says the same again would do so for ever.
            if part.first().is_some_and(|first| all.last().is_some_and(|last| first <= last)) {
                return Err(ExchangeError::Protocol { what: "names out of order" });
            }
            all.extend(part);
            if is_last {
                return Ok(all);
            }
        }
    }

    fn names(&self, request: Request) -> Result<Vec<StageUri>, ExchangeError> {
        let (Answer::Found { stages }, None) = self.ask(request, None)? else {
            return Err(ExchangeError::Protocol { what: "another answer than Found" });
        };
        let names: Result<Vec<StageUri>, _> = stages.iter().map(|stage| stage.parse()).collect();
        names.map_err(|_| ExchangeError::Protocol { what: "a name that is none" })
    }

    fn ask(
        &self,
        request: Request,
        fd: Option<&OwnedFd>,
    ) -> Result<(Answer, Option<OwnedFd>), ExchangeError> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        // Zero is the exchange's own.
        line.last_id = line.last_id.checked_add(1).unwrap_or(1);
        let id = line.last_id;
        let question = wire::encode(&ToExchange::Ask { id, request });
        let question = question.map_err(|_| ExchangeError::Protocol { what: "a name or path of our own" })?;
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        // Who cuts us off has said why: that is received before the end.
        let _ = frame::send(line.socket.as_fd(), &question, &fds);
        loop {
            match receive(&line.socket)? {
                (FromExchange::Tell { id: of, answer: Answer::Refused { code, text } }, _)
                    if of == id || of == 0 =>
                {
                    return Err(ExchangeError::Refused { code, text });
                }
                (FromExchange::Tell { id: of, answer }, fd) if of == id => return Ok((answer, fd)),
                // An answer to a question whose asker has gone.
                _ => {}
            }
        }
    }
}

fn receive(socket: &OwnedFd) -> Result<(FromExchange, Option<OwnedFd>), ExchangeError> {
    let frame = frame::receive(socket.as_fd()).map_err(|error| match error {
        frame::ReceiveError::Io(_) => ExchangeError::Ended,
        _ => ExchangeError::Protocol { what: "a frame that was cut" },
    })?;
    let frame = frame.ok_or(ExchangeError::Ended)?;
    let message: FromExchange =
        wire::decode(&frame.bytes).map_err(|_| ExchangeError::Protocol { what: "no message" })?;
    if frame.fds.len() != message.fds() {
        return Err(ExchangeError::Protocol { what: "a wrong number of descriptors" });
    }
    Ok((message, frame.fds.into_iter().next()))
}
