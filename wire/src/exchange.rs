//! The messages between pilots of one tenant on one node and the exchange in which they share stages.
//!
//! ```text
//!   pilot                                        exchange (in the CSI driver)
//!    |-- Hello(protocol) ---------------------->|   the first frame of each connection
//!    |<------------- Welcome(protocol, domain, ..)|
//!    |-- Ask(id, Offer) [fd] ------------------>|   sealed memory; or a value; or the path of a file or folder on its volume
//!    |<------------------------ Tell(id, Offered)|
//!    |-- Ask(id, Fetch) ----------------------->|
//!    |<------------------- Tell(id, Fetched) [fd]|   sealed memory; or a value; or it has been linked on the pilot's volume
//! ```
//! Each question has an id of the pilot's choice and gets exactly one answer with that id. A question that breaks the protocol
//! is answered `Tell(0, Refused)` and ends the connection. Which tenant a pilot belongs to is known by the socket that it
//! came through, never by what it says.
//!
//! **Must not know:** who is whose tenant, quotas, files.

use serde::{Deserialize, Serialize};

use crate::limits::{Check, Violation, count, long, stage_uri};
use crate::stage::VALUE_BYTES_MAX;
use crate::version::Version;

/// What this build speaks on an exchange's socket.
pub const PROTOCOL: Version = Version { major: 1, minor: 0 };

/// Longest path of a file or folder, relative to the volume's root, in bytes.
pub const PATH_BYTES_MAX: usize = 1024;
/// Most names in a question or answer; all of them fit one frame.
pub const NAMES_MAX: usize = 256;
/// Longest text in a refusal, in bytes; an exchange cuts longer ones.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Longest name of a domain, and of a scope, in bytes.
pub const DOMAIN_BYTES_MAX: usize = 128;

/// What a pilot says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToExchange {
    /// First frame of each connection.
    Hello {
        /// The pilot's protocol.
        protocol: Version,
        /// Among which stages its names are to be looked for: those of one spool, whose runs have names of their own.
        scope: String,
    },
    /// A question.
    Ask {
        /// Chosen by the pilot, for the answer to carry. Zero is the exchange's own.
        id: u32,
        /// What is wanted.
        request: Request,
    },
}

/// What a pilot may want.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Let the tenant's other pilots have a stage. What was offered under its name before is replaced.
    Offer {
        /// Its name, `stage://<workflow>/<payload>/<output>`.
        stage: String,
        /// Where its bytes are.
        content: Content,
    },
    /// Have a stage.
    Fetch {
        /// Its name.
        stage: String,
        /// Where a file or folder is to be linked, relative to the root of the pilot's volume. Nothing may be there; the folder
        /// that it is in must be.
        into: String,
    },
    /// Nobody will want these any more. Unknown ones are no mistake.
    Withdraw {
        /// Their names.
        stages: Vec<String>,
    },
    /// Which of these are there.
    Find {
        /// Their names.
        stages: Vec<String>,
    },
    /// All that are there, in order, a part at a time.
    List {
        /// The last name of the part before; none for the first part.
        after: Option<String>,
    },
}

/// Where the bytes of a stage are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Sealed memory: the descriptor that travels with it.
    Memory,
    /// In here.
    Value {
        /// Its bytes.
        #[serde(with = "crate::limits::blob")]
        value: Vec<u8>,
    },
    /// A read-only file on the volume.
    File {
        /// Its path, relative to the volume's root.
        path: String,
    },
    /// A folder of such on the volume.
    Folder {
        /// Its path, relative to the volume's root.
        path: String,
    },
}

/// What an exchange says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromExchange {
    /// First frame of each connection that is taken.
    Welcome {
        /// The exchange's protocol.
        protocol: Version,
        /// The same for all pilots that can have each other's stages here, and for no others. It can't be guessed.
        domain: String,
        /// How long the exchange has been there, in milliseconds: what others hold they offer again in the first seconds.
        age_ms: u64,
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
    /// To Offer.
    Offered,
    /// To Fetch.
    Fetched {
        /// Its bytes.
        bytes: u64,
        /// Where they are now.
        what: Fetched,
    },
    /// To Withdraw.
    Withdrawn,
    /// To Find and List. To List, fewer than [`NAMES_MAX`] are the last ones.
    Found {
        /// Those that are there.
        stages: Vec<String>,
    },
    /// To anything.
    Refused {
        /// For programs.
        code: Code,
        /// For people: one line, what failed, on what, what to do next.
        text: String,
    },
}

/// How a stage was handed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fetched {
    /// By the descriptor that travels with it: sealed memory, read-only. The pilot looks at its seals itself.
    Memory,
    /// In here.
    Value {
        /// Its bytes.
        #[serde(with = "crate::limits::blob")]
        value: Vec<u8>,
    },
    /// As a file, linked where it was wanted.
    File,
    /// As a folder whose files are linked, where it was wanted.
    Folder,
}

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Code {
    /// The protocol was broken; the connection ends.
    Malformed,
    /// Another major protocol; the connection ends.
    Version,
    /// The tenant has no such stage here.
    NotThere,
    /// It is no stage: it could still change, or leads out of its volume.
    Unfit,
    /// More than the tenant may have.
    OverQuota,
    /// Something is there already.
    Exists,
    /// Too many connections or stages.
    TooMany,
    /// The volume is gone; the connection ends.
    Ended,
    /// The kernel refused.
    Io,
}

impl ToExchange {
    /// How many descriptors travel with it.
    #[must_use]
    pub fn fds(&self) -> usize {
        match self {
            Self::Ask { request: Request::Offer { content: Content::Memory, .. }, .. } => 1,
            Self::Hello { .. } | Self::Ask { .. } => 0,
        }
    }
}

impl FromExchange {
    /// How many descriptors travel with it.
    #[must_use]
    pub fn fds(&self) -> usize {
        match self {
            Self::Tell { answer: Answer::Fetched { what: Fetched::Memory, .. }, .. } => 1,
            Self::Welcome { .. } | Self::Tell { .. } => 0,
        }
    }
}

impl Check for ToExchange {
    fn check(&self) -> Result<(), Violation> {
        let request = match self {
            Self::Hello { scope, .. } => return long("scope", scope.len(), DOMAIN_BYTES_MAX),
            Self::Ask { request, .. } => request,
        };
        match request {
            Request::List { after } => after.as_deref().map_or(Ok(()), stage_uri),
            Request::Offer { stage, content } => {
                stage_uri(stage)?;
                match content {
                    Content::Memory => Ok(()),
                    Content::Value { value } => long("value", value.len(), VALUE_BYTES_MAX),
                    Content::File { path } | Content::Folder { path } => below(path),
                }
            }
            Request::Fetch { stage, into } => {
                stage_uri(stage)?;
                below(into)
            }
            Request::Withdraw { stages } | Request::Find { stages } => names(stages),
        }
    }
}

impl Check for FromExchange {
    fn check(&self) -> Result<(), Violation> {
        match self {
            Self::Welcome { domain, .. } => long("domain", domain.len(), DOMAIN_BYTES_MAX),
            Self::Tell { answer, .. } => match answer {
                Answer::Fetched { what: Fetched::Value { value }, .. } => {
                    long("value", value.len(), VALUE_BYTES_MAX)
                }
                Answer::Found { stages } => names(stages),
                Answer::Refused { text, .. } => long("text", text.len(), TEXT_BYTES_MAX),
                Answer::Offered | Answer::Fetched { .. } | Answer::Withdrawn => Ok(()),
            },
        }
    }
}

fn names(stages: &[String]) -> Result<(), Violation> {
    count("stages", stages.len(), NAMES_MAX)?;
    stages.iter().try_for_each(|stage| stage_uri(stage))
}

/// A path of plain names.
fn below(path: &str) -> Result<(), Violation> {
    long("path", path.len(), PATH_BYTES_MAX)?;
    if path.contains('\0') {
        return Err(Violation::Nul { what: "path" });
    }
    let plain = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if plain { Ok(()) } else { Err(Violation::Path { path: path.chars().take(64).collect() }) }
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;
