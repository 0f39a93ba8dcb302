//! A workflow that is written here and runs in a pod there: what workstation and pod say to each other, over the standard
//! streams of one program in the pilot's container (`pods/exec`).
//!
//! ```text
//!   workstation                                  pilot attend (in the pod)
//!    |-- Begin(payloads) ------------------------->|
//!    |<------------------------ Welcome(slots) ----|
//!    |-- Input(path) data.. ---------------------->|  0..n: host files that payloads read
//!    |-- Go -------------------------------------->|
//!    |<-- Prepared, Started, Ended, Skipped, Note--|
//!    |<-- File(path) data.. -----------------------|  logs and saved outputs, as payloads end
//!    |-- Stop(kill) ------------------------------>|  Ctrl-C, once or twice
//!    |<------------------------- Done(rows, exit) -|
//! ```
//! When the stream breaks, the pod's side ends everything: nobody would hear how it went.
//!
//! **Must not know:** how a payload runs, how anything is shown.

pub(crate) mod attend;
pub(crate) mod cluster;
pub(crate) mod files;
pub(crate) mod frame;
pub(crate) mod login;
pub(crate) mod session;

use pilot_core::Outcome;
use serde::{Deserialize, Serialize};

use crate::object_access::ObjectAccess;
use crate::payload::Payload;
use crate::ports::StageFigures;
use crate::queue::workflow::Entry;
use crate::ui::RowState;

/// What is spoken; both sides must speak the same.
pub(crate) const PROTOCOL: u32 = 2;
/// Where the pod's side keeps a run, below the pilot's private folder.
pub(crate) const RUN_FOLDER: &str = "run";

/// An entry of the workflow.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SentEntry {
    pub(crate) payload: Payload,
    pub(crate) trust_group: String,
    pub(crate) at_most_once: bool,
    pub(crate) retries: u32,
    pub(crate) after: Vec<usize>,
}

/// What the workstation says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToPod {
    /// First.
    Begin { protocol: u32, entries: Vec<SentEntry>, objects: Option<ObjectAccess> },
    /// A part of an input; data follows a file's.
    Input(Piece),
    /// All inputs are there.
    Go,
    /// End everything: with its grace, or at once.
    Stop { signal: i32, kill: bool },
}

/// A file, a folder or a link: of an input or of a result.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Piece {
    /// Relative to the folder of inputs there, or of results here.
    pub(crate) path: String,
    pub(crate) kind: PieceKind,
}

/// Which.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PieceKind {
    /// So many bytes of data follow.
    File {
        mode: u32,
        bytes: u64,
    },
    Folder,
    Link {
        target: String,
    },
}

/// What the pod says. Payloads are told by their place among the entries.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromPod {
    /// Answer to Begin.
    Welcome {
        slots: u32,
    },
    /// It can't be done, and nothing was begun.
    Refused {
        line: String,
        exit: u8,
    },
    Prepared {
        image: String,
        bytes: u64,
    },
    Started {
        index: usize,
        slot: u32,
        attempt: u32,
    },
    Ended {
        index: usize,
        attempt: u32,
        outcome: Outcome,
        note: Option<String>,
        retry: bool,
    },
    Skipped {
        index: usize,
        because: usize,
    },
    Note {
        text: String,
    },
    /// A log or a saved output; its data follows.
    File(Piece),
    /// Last.
    Done {
        exit: u8,
        rows: Vec<SentRow>,
        stages: StageFigures,
    },
}

/// How an entry ended.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SentRow {
    pub(crate) state: RowState,
    pub(crate) tries: u32,
    pub(crate) outcome: Option<Outcome>,
}

impl From<&Entry> for SentEntry {
    fn from(entry: &Entry) -> Self {
        Self {
            payload: (*entry.payload).clone(),
            trust_group: entry.trust_group.clone(),
            at_most_once: entry.at_most_once,
            retries: entry.retries,
            after: entry.after.clone(),
        }
    }
}

impl From<SentEntry> for Entry {
    fn from(sent: SentEntry) -> Self {
        let SentEntry { payload, trust_group, at_most_once, retries, after } = sent;
        Self { payload: std::sync::Arc::new(payload), trust_group, at_most_once, retries, after }
    }
}
