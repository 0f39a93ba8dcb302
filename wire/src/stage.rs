//! The messages between a payload's client library and the stage broker.
//!
//! ```text
//!   client                                       broker
//!    |-- Hello(protocol) ---------------------->|   the first frame of each connection
//!    |<---------- Welcome(protocol, payload, ..) |
//!    |-- Ask(id, Create) ---------------------->|
//!    |<---------------------- Tell(id, Lent) [fd]|   writable; the broker has paid for its pages
//!    |-- Ask(id, Commit) ---------------------->|   no writable mapping left
//!    |<------------------- Tell(id, Committed) --|
//!    |-- Ask(id, Open) ------------------------>|
//!    |<-------------------- Tell(id, Opened) [fd]|   read-only; or Value, without a descriptor
//! ```
//! Each question has an id of the client's choice and gets exactly one answer with that id, in any order, so that a
//! client may wait for one stage while it asks for another. A question that breaks the protocol is answered
//! `Tell(0, Refused)` and ends the connection. A client sends no descriptors at all.
//!
//! **Must not know:** who may make or read what; that is the broker's business.

use serde::{Deserialize, Serialize};

use crate::limits::{Check, Violation, count, long, stage_name};
use crate::version::Version;

/// What this build speaks on a broker's socket.
pub const PROTOCOL: Version = Version { major: 1, minor: 0 };

/// Longest inline value, in bytes. Below about this size copying is faster than passing a descriptor.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;
/// Most inputs and most outputs of a payload; all of them fit one frame.
pub const ROWS_MAX: usize = 256;
/// Longest time that a client may ask the broker to wait, in milliseconds: a day.
pub const WAIT_MS_MAX: u64 = 86_400_000;
/// Longest text in a refusal, in bytes; a broker cuts longer ones.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Longest name of a payload as it is shown, `<workflow>/<payload>`.
const PAYLOAD_BYTES_MAX: usize = 2 * 64 + 1;

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToBroker {
    /// First frame of each connection.
    Hello {
        /// The client's protocol.
        protocol: Version,
    },
    /// A question.
    Ask {
        /// Chosen by the client, for the answer to carry. Zero is the broker's own.
        id: u32,
        /// What is wanted.
        request: Request,
    },
}

/// What a client may want.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Make an output of class `mem`: memory that this connection may write.
    Create {
        /// Its name, as the payload declares it.
        output: String,
        /// Its size; pages for all of it are taken now, in the broker's name.
        bytes: u64,
        /// Ask for huge pages. Where there are none the memory comes in small ones, with a word.
        huge_pages: bool,
    },
    /// Make it a stage. This connection must have created it, and nobody may have it mapped for writing.
    Commit {
        /// Its name.
        output: String,
        /// What it is cut to; at most what it was created with.
        bytes: u64,
    },
    /// Give it back, as if it had never been created.
    Abandon {
        /// Its name.
        output: String,
    },
    /// Read an input.
    Open {
        /// Its name, as the payload declares it.
        input: String,
        /// How long to wait for it, where its producer runs at the same time; 0 is not at all.
        wait_ms: u64,
    },
    /// Make an output of class `value`, whole.
    Put {
        /// Its name.
        output: String,
        /// Its bytes.
        #[serde(with = "crate::limits::blob")]
        value: Vec<u8>,
    },
    /// Tell the inputs and outputs as they stand.
    List,
}

/// What a broker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromBroker {
    /// First frame of each connection that is taken.
    Welcome {
        /// The broker's protocol.
        protocol: Version,
        /// Whose session this is, `<workflow>/<payload>`.
        payload: String,
        /// What it may open and create.
        listing: Listing,
    },
    /// The answer to one question; 0 when the connection itself is refused, and then it ends.
    Tell {
        /// The question's.
        id: u32,
        /// What became of it.
        answer: Answer,
    },
}

/// Answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To Create; with one writable descriptor.
    Lent {
        /// Its size. It can't grow.
        bytes: u64,
        /// What was asked for and could not be had, in one line.
        note: Option<String>,
    },
    /// To Commit and Put.
    Committed {
        /// Its size.
        bytes: u64,
        /// How long sealing took, in microseconds: it grows with the size.
        seal_us: u64,
    },
    /// To Abandon.
    Abandoned,
    /// To Open; with one read-only descriptor.
    Opened {
        /// How it is kept immutable: a client checks seals for `Mem` and copies what it can't prove.
        class: Class,
        /// Its size.
        bytes: u64,
    },
    /// To Open, for an inline value.
    Value {
        /// Its bytes.
        #[serde(with = "crate::limits::blob")]
        value: Vec<u8>,
    },
    /// To List.
    Listed {
        /// As it stands.
        listing: Listing,
    },
    /// To anything.
    Refused {
        /// For programs.
        code: Code,
        /// For people: one line, what failed, on what, what to do next.
        text: String,
    },
    /// To Open, for a file that the payload's user owns: it lies at [`INPUTS`]`/NAME`, where its mount keeps it from being
    /// changed. By a descriptor from elsewhere its owner could give itself the right to.
    ByPath {
        /// Its size.
        bytes: u64,
    },
}

/// Where a payload finds its inputs by path.
pub const INPUTS: &str = "/stage/in";
/// Where it writes outputs by path.
pub const OUTPUTS: &str = "/stage/out";

/// How a stage is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// Sealed memory.
    Mem,
    /// A read-only file.
    File,
    /// Bytes that travel inside the frame.
    Value,
}

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Code {
    /// The protocol was broken; the connection ends.
    Malformed,
    /// Another major protocol; the connection ends.
    Version,
    /// The payload does not declare such an input or output.
    Undeclared,
    /// The output is declared with another class.
    WrongClass,
    /// It was created or committed already.
    Exists,
    /// This connection did not create it.
    NotCreated,
    /// Someone has it mapped for writing: unmap it and commit again.
    Busy,
    /// More bytes than declared, created, or possible.
    TooLarge,
    /// Fewer bytes than are to be committed: its producer cut it.
    TooSmall,
    /// Memory for stages is short.
    OverBudget,
    /// The input is not there yet.
    NotThere,
    /// The input was released, or will never be made.
    Gone,
    /// Too many connections or questions at once.
    TooMany,
    /// The payload's session has ended; the connection ends.
    Ended,
    /// The kernel refused.
    Io,
}

/// The inputs and outputs of a payload as they stand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// What it may open.
    pub inputs: Vec<InputRow>,
    /// What it may create.
    pub outputs: Vec<OutputRow>,
}

/// One input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRow {
    /// Its name.
    pub name: String,
    /// Its class and bytes, when it is there.
    pub there: Option<(Class, u64)>,
    /// Whether its producer runs at the same time, so that waiting may help.
    pub live: bool,
}

/// One output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRow {
    /// Its name.
    pub name: String,
    /// `Mem` or `Value`.
    pub class: Class,
    /// The most it may have.
    pub max_bytes: u64,
    /// Its bytes, when it is committed.
    pub committed: Option<u64>,
}

impl FromBroker {
    /// How many descriptors travel with it.
    #[must_use]
    pub fn fds(&self) -> usize {
        match self {
            Self::Tell { answer: Answer::Lent { .. } | Answer::Opened { .. }, .. } => 1,
            Self::Welcome { .. } | Self::Tell { .. } => 0,
        }
    }
}

impl Check for ToBroker {
    fn check(&self) -> Result<(), Violation> {
        let Self::Ask { request, .. } = self else { return Ok(()) };
        match request {
            Request::Create { output, .. }
            | Request::Commit { output, .. }
            | Request::Abandon { output }
            | Request::Put { output, value: _ } => stage_name(output)?,
            Request::Open { input, .. } => stage_name(input)?,
            Request::List => {}
        }
        match request {
            Request::Put { value, .. } => long("value", value.len(), VALUE_BYTES_MAX),
            Request::Open { wait_ms, .. } if *wait_ms > WAIT_MS_MAX => Err(Violation::Range {
                what: "wait_ms",
                value: i64::try_from(*wait_ms).unwrap_or(i64::MAX),
                min: 0,
                max: WAIT_MS_MAX.cast_signed(),
            }),
            _ => Ok(()),
        }
    }
}

impl Check for FromBroker {
    fn check(&self) -> Result<(), Violation> {
        match self {
            Self::Welcome { payload, listing, .. } => {
                long("payload", payload.len(), PAYLOAD_BYTES_MAX)?;
                listing.check()
            }
            Self::Tell { answer, .. } => match answer {
                Answer::Lent { note: Some(text), .. } | Answer::Refused { text, .. } => {
                    long("text", text.len(), TEXT_BYTES_MAX)
                }
                Answer::Value { value } => long("value", value.len(), VALUE_BYTES_MAX),
                Answer::Listed { listing } => listing.check(),
                Answer::Lent { note: None, .. }
                | Answer::Committed { .. }
                | Answer::Abandoned
                | Answer::Opened { .. }
                | Answer::ByPath { .. } => Ok(()),
            },
        }
    }
}

impl Check for Listing {
    fn check(&self) -> Result<(), Violation> {
        count("inputs", self.inputs.len(), ROWS_MAX)?;
        count("outputs", self.outputs.len(), ROWS_MAX)?;
        self.inputs.iter().try_for_each(|row| stage_name(&row.name))?;
        self.outputs.iter().try_for_each(|row| stage_name(&row.name))
    }
}

#[cfg(test)]
#[path = "stage_tests.rs"]
mod tests;
