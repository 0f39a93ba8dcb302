//! What there is to tell, and how machines read it.
//!
//! With `--output json` each event is one line, an object whose field `event` is the variant's name in snake case and
//! whose field `at_ms` is the time since the pilot began, in milliseconds. All other fields are those of the types here,
//! by the same name; an unknown figure is `null`. Fields are only ever added. The last line is `summary`.
//!
//! Must not know: who listens, what led to an event.

use serde::{Deserialize, Serialize};

use crate::ports::StageFigures;

/// Something that a person may want to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum UiEvent {
    /// The workflow was accepted.
    WorkflowStarted {
        /// Its name.
        workflow: String,
        /// How many payloads it has.
        total: u64,
    },
    /// An image is being read into the store.
    IngestProgress {
        /// Reference as in the workflow.
        image: String,
        /// Bytes read.
        done_bytes: u64,
        /// Bytes in all, if known.
        total_bytes: Option<u64>,
    },
    /// An image is ready to be used.
    Prepared {
        /// Reference as in the workflow.
        image: String,
        /// Its size in the store.
        bytes: u64,
    },
    /// A payload's program runs.
    PayloadStarted {
        /// Name, with its index in an array.
        name: String,
        /// In which slot.
        slot: u32,
        /// From 1.
        attempt: u32,
    },
    /// A payload has ended, also when its program never ran.
    PayloadEnded {
        /// Name, with its index in an array.
        name: String,
        /// From 1.
        attempt: u32,
        /// Whether it succeeded.
        ok: bool,
        /// Whether it will be tried again.
        retry: bool,
        /// In words, such as `exit code 1`.
        outcome: String,
        /// The payload of its gang that did not succeed, where that ended it.
        #[serde(skip_serializing_if = "Option::is_none")]
        because: Option<String>,
        /// What it used.
        figures: Figures,
    },
    /// A payload will not be started.
    PayloadSkipped {
        /// Name, with its index in an array.
        name: String,
        /// Why, such as `simulate-3 failed`.
        reason: String,
    },
    /// A line that a payload wrote.
    Output {
        /// Name, with its index in an array.
        name: String,
        /// Where it wrote.
        stream: Stream,
        /// Without the newline.
        line: String,
    },
    /// Something worth knowing.
    Note {
        /// One line.
        text: String,
    },
    /// How it all went. The last event.
    Summary(Summary),
}

/// What a payload used. `None` means that this machine does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// From start to end, in milliseconds.
    pub wall_ms: Option<u64>,
    /// Processor time in milliseconds.
    pub cpu_ms: Option<u64>,
    /// Highest memory use in bytes.
    pub memory_peak_bytes: Option<u64>,
}

/// Where a payload wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

/// How a workflow went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Its name.
    pub workflow: String,
    /// From first to last, in milliseconds.
    pub wall_ms: u64,
    /// One for each payload, in the order of the plan. Elements of an array are folded for people, not for machines.
    pub rows: Vec<SummaryRow>,
    /// Outputs that were saved.
    pub saved: Vec<Saved>,
    /// What its stages came to.
    pub stages: StageFigures,
}

/// How one payload went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SummaryRow {
    /// Name, with its index in an array.
    pub name: String,
    /// Name of the array, if it is an element.
    pub array: Option<String>,
    /// How it ended.
    pub state: RowState,
    /// How often it was started.
    pub tries: u32,
    /// In words, of the last try.
    pub outcome: String,
    /// What the last try used.
    pub figures: Figures,
    /// Reference as in the workflow.
    pub image: String,
    /// Where its output is kept, if it is.
    pub log: Option<String>,
}

/// How a payload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowState {
    /// It succeeded.
    Done,
    /// It failed for good.
    Failed,
    /// It was never started, or was stopped with the workflow.
    NotRun,
}

/// A saved output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Saved {
    /// `stage://<workflow>/<payload>/<output>`.
    pub stage: String,
    /// Where it was saved.
    pub path: String,
    /// Its size.
    pub bytes: u64,
}
