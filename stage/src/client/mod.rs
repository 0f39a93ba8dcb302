//! What a payload links to make and read stages: memory that the pilot pays for, handed on without a copy.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use stage::client::Client;
//!
//! let client = Client::from_env()?; // LATEBIND_STAGE, set by the pilot
//! let masses = client.open("masses")?; // an input of this payload
//! let sum: u64 = masses.bytes()?.iter().map(|byte| u64::from(*byte)).sum();
//! let mut output = client.create("sum", 8)?; // an output of it
//! output.write_at(0, &sum.to_le_bytes())?;
//! output.commit()?;
//! # Ok(()) }
//! ```
//! # Memory
//! What is read is `&[u8]` only after this process has found the seals itself ([`crate::SealedMap`]); the broker's word is
//! not needed. What is written is not a slice: until it is sealed the broker has the same memory, and any process of the
//! slot that has a descriptor of it could change it under a `&mut [u8]`. So an [`Output`] is written by copy
//! ([`Output::write_at`], or [`std::io::Write`]), which costs one pass over the bytes, or in place through a
//! [`Window`], a pointer and a length of which the caller makes what it can justify.
//!
//! # Payloads that run together
//! Pipes and shared memory are no stages: [`read_stream`], [`write_stream`], [`shared_input`] and [`shared_output`] open them
//! without a broker.
//!
//! # Threads
//! A [`Client`] may be shared: one thread may wait for an input while others ask.
//!
//! **Must not know:** how the pilot works, where stages lie. Environment variables alone configure it.

mod input;
mod line;
mod output;
mod passing;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wire::stage::{Answer, Class, Code, INPUTS, Listing, Request, VALUE_BYTES_MAX, WAIT_MS_MAX};

use crate::StageName;

pub use input::{Input, InputError};
pub(crate) use line::dial;
pub use output::{Output, Window};
pub use passing::{Shared, read_stream, shared_input, shared_output, write_stream};
pub use wire::stage::{InputRow, OutputRow};

use line::Line;

/// Names the broker's socket.
pub const SOCKET_VARIABLE: &str = "LATEBIND_STAGE";

/// Why the broker did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// This process is no payload, or its pilot offers no stages.
    #[error("find the stage broker: {SOCKET_VARIABLE} is not set; run under a pilot that offers stages")]
    NotConfigured,
    /// Its socket can't be reached.
    #[error("connect to the stage broker at {}", path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It said no.
    #[error("{text}")]
    Refused {
        /// For programs.
        code: Code,
        /// What failed, on what, what to do next.
        text: String,
    },
    /// A name or value that the broker would not take.
    #[error("{doing}: {why}")]
    Invalid {
        /// What was tried.
        doing: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The connection has ended: the payload's session, or the pilot, has.
    #[error("ask the stage broker: the connection has ended")]
    Ended,
    /// It answered something that makes no sense.
    #[error("ask the stage broker: it broke the protocol ({what})")]
    Protocol {
        /// How.
        what: &'static str,
    },
    /// The kernel refused.
    #[error("{doing}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl ClientError {
    /// Why the broker refused, if it did.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// A connection to the stage broker. What is not committed when it ends is dropped.
#[derive(Debug)]
pub struct Client {
    line: Line,
}

impl Client {
    /// Connects to the broker that the environment names.
    ///
    /// # Errors
    /// When there is none, or it does not answer.
    pub fn from_env() -> Result<Self, ClientError> {
        let path: OsString = std::env::var_os(SOCKET_VARIABLE).ok_or(ClientError::NotConfigured)?;
        Self::connect(Path::new(&path))
    }

    /// Connects to the broker at `path`, which may be longer than a socket's address.
    ///
    /// # Errors
    /// When nobody listens there, or it speaks another protocol.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Ok(Self { line: Line::connect(path)? })
    }

    /// Whose session this is, `<workflow>/<payload>`.
    #[must_use]
    pub fn payload(&self) -> &str {
        self.line.payload()
    }

    /// The inputs and outputs as they stand.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn list(&self) -> Result<Listing, ClientError> {
        match self.line.ask(Request::List)? {
            (Answer::Listed { listing }, None) => Ok(listing),
            _ => Err(UNASKED),
        }
    }

    /// Makes an output of `bytes` bytes, zeros until they are written.
    ///
    /// # Errors
    /// When it is not declared, too large, made already, or memory is short.
    pub fn create(&self, output: &str, bytes: u64) -> Result<Output<'_>, ClientError> {
        self.create_in(output, bytes, false)
    }

    /// As [`create`](Self::create), in huge pages where the node has them; see [`Output::note`].
    ///
    /// # Errors
    /// As there.
    pub fn create_huge(&self, output: &str, bytes: u64) -> Result<Output<'_>, ClientError> {
        self.create_in(output, bytes, true)
    }

    fn create_in(&self, output: &str, bytes: u64, huge_pages: bool) -> Result<Output<'_>, ClientError> {
        let name = name("create output", output)?;
        let request = Request::Create { output: output.to_owned(), bytes, huge_pages };
        match self.line.ask(request)? {
            (Answer::Lent { bytes, note }, Some(fd)) => Ok(Output::new(self, name, fd, bytes, note)),
            _ => Err(UNASKED),
        }
    }

    /// Opens an input that is there.
    ///
    /// # Errors
    /// When it is not declared, not there yet, or was released.
    pub fn open(&self, input: &str) -> Result<Input, ClientError> {
        self.open_within(input, 0)
    }

    /// Waits until an input is there, and opens it. Its producer runs at the same time.
    ///
    /// # Errors
    /// As [`open`](Self::open), when it does not come in time.
    pub fn wait(&self, input: &str, at_most: Duration) -> Result<Input, ClientError> {
        let ms = u64::try_from(at_most.as_millis()).unwrap_or(u64::MAX);
        self.open_within(input, ms.clamp(1, WAIT_MS_MAX))
    }

    fn open_within(&self, input: &str, wait_ms: u64) -> Result<Input, ClientError> {
        let name = name("open input", input)?;
        match self.line.ask(Request::Open { input: input.to_owned(), wait_ms })? {
            (Answer::Opened { class, bytes }, Some(fd)) => Input::new(name, class, bytes, fd),
            (Answer::Value { value }, None) => Ok(Input::of_value(name, value)),
            (Answer::ByPath { bytes }, None) => {
                let path = format!("{INPUTS}/{name}");
                let file = std::fs::File::open(path)
                    .map_err(|source| ClientError::Io { doing: "open an input's file", source })?;
                Input::new(name, Class::File, bytes, file.into())
            }
            _ => Err(UNASKED),
        }
    }

    /// Makes a small output whole.
    ///
    /// # Errors
    /// When it is not declared as a value, larger than 64 KiB, or made already.
    pub fn put(&self, output: &str, value: &[u8]) -> Result<(), ClientError> {
        name("put output", output)?;
        if value.len() > VALUE_BYTES_MAX {
            let why = format!("{} bytes are more than the {VALUE_BYTES_MAX} of a value", value.len());
            return Err(ClientError::Invalid { doing: "put output", why });
        }
        let request = Request::Put { output: output.to_owned(), value: value.to_vec() };
        match self.line.ask(request)? {
            (Answer::Committed { .. }, None) => Ok(()),
            _ => Err(UNASKED),
        }
    }

    /// Bytes and sealing time in microseconds.
    fn commit(&self, output: &StageName, bytes: u64) -> Result<(u64, u64), ClientError> {
        match self.line.ask(Request::Commit { output: output.to_string(), bytes })? {
            (Answer::Committed { bytes, seal_us }, None) => Ok((bytes, seal_us)),
            _ => Err(UNASKED),
        }
    }

    fn abandon(&self, output: &StageName) -> Result<(), ClientError> {
        match self.line.ask(Request::Abandon { output: output.to_string() })? {
            (Answer::Abandoned, None) => Ok(()),
            _ => Err(UNASKED),
        }
    }
}

const UNASKED: ClientError = ClientError::Protocol { what: "an answer to another question" };

fn name(doing: &'static str, name: &str) -> Result<StageName, ClientError> {
    StageName::new(name).map_err(|error| ClientError::Invalid { doing, why: error.to_string() })
}

/// An answer and the descriptor that came with it.
type Answered = (Answer, Option<OwnedFd>);
