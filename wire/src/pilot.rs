//! The messages between people's commands and a pilot that serves: `pilot top`, `pilot stage` and `pilot exec`.
//!
//! ```text
//!   command                                pilot
//!    |-- Hello(protocol) ---------------->|   the first frame of each connection, from both
//!    |<---------------- Hello(protocol) --|
//!    |-- Status ------------------------->|   as often as wanted
//!    |<-- Pilot, Slot.., Image.., Stage.. |   one row a frame
//!    |<------------------- End / Refused -|   refused: it can't tell yet
//!    |-- OpenStage -------------------->|   as often as wanted
//!    |<---- StageOpened [fd] / Refused --|
//!    |-- Exec(..) [stdin, stdout, stderr] |   once; the connection then belongs to this command
//!    |<---------------- Started / Refused |
//!    |-- Signal ------------------------->|
//!    |<-------------------- Ended(how) ---|   the last frame
//! ```
//! Whoever may connect is the pilot's business; it asks the kernel who the peer is.

use serde::{Deserialize, Serialize};

use crate::frame::FRAME_FDS_MAX;
use crate::limits::{Check, Violation, c_string, count, range, stage_name};
use crate::slot::{FdRole, WaitStatus, check_process};
use crate::version::Version;

/// What this build speaks on a pilot's own socket.
pub const PROTOCOL: Version = Version { major: 2, minor: 0 };

/// Most rows that answer one [`ToPilot::Status`], `End` not counted. A reader gives up beyond it.
pub const ROWS_MAX: usize = 4096;
/// Longest name, image reference or stage in a row, in bytes; a pilot cuts longer ones.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Most causes that endings are counted by.
const ENDINGS_MAX: usize = 64;

/// What a command says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToPilot {
    /// First frame of each connection.
    Hello {
        /// The command's protocol.
        protocol: Version,
    },
    /// Tell everything once.
    Status,
    /// Run a program beside a payload.
    Exec(PilotExec),
    /// Send one signal to that program.
    Signal {
        /// Signal number, 1 to 64.
        signal: i32,
    },
    /// Give me a stage to read.
    OpenStage {
        /// `stage://<workflow>/<payload>/<output>`.
        stage: String,
    },
}

/// A program to run in the slot of a payload, beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PilotExec {
    /// The payload's workflow as the pilot knows it.
    pub workflow: String,
    /// The payload's name.
    pub payload: String,
    /// Program and arguments.
    pub argv: Vec<Vec<u8>>,
    /// Added to the payload's environment, `NAME=value`.
    pub env: Vec<Vec<u8>>,
    /// Absolute working directory in the slot; the payload's when absent.
    pub cwd: Option<Vec<u8>>,
    /// Stdin, Stdout or Stderr, a role a descriptor.
    pub fds: Vec<FdRole>,
}

/// What a pilot says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromPilot {
    /// First frame of each connection.
    Hello {
        /// The pilot's protocol.
        protocol: Version,
    },
    /// What was asked for can't be done; why, in one line.
    Refused {
        /// For people.
        why: String,
    },
    /// A status begins.
    Pilot(PilotRow),
    /// A slot.
    Slot(SlotRow),
    /// An image that was prepared here.
    Image(ImageRow),
    /// A stage that is held here.
    Stage(StageRow),
    /// The status ends.
    End,
    /// The program was handed to the slot.
    Started,
    /// The program has ended.
    Ended(ExecEnd),
    /// The stage, with one read-only descriptor.
    StageOpened {
        /// Its size.
        bytes: u64,
    },
}

/// How a program beside a payload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecEnd {
    /// It ran, and ended so.
    Ran(WaitStatus),
    /// It was never executed: the errno of the step that failed.
    NotStarted(i32),
    /// The payload ended, and everything beside it was killed.
    PayloadEnded,
}

/// A pilot, its totals since it began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PilotRow {
    /// Its name.
    pub name: String,
    /// Milliseconds since it began.
    pub age_ms: u64,
    /// Whether it takes work.
    pub ready: bool,
    /// How many slots it has.
    pub slots: u32,
    /// Thousandths of a processor that it hands out.
    pub cpu_millis: u64,
    /// Bytes of memory that it hands out.
    pub memory_bytes: u64,
    /// Claims that queues granted.
    pub claims: u64,
    /// How claims ended: what, because of what, how often.
    pub ended: Vec<EndingCount>,
    /// Ended claims whose payload is offered again.
    pub retries: u64,
    /// Payloads that will not run because another failed.
    pub skipped: u64,
    /// Launches in a container that was made for them.
    pub cold_starts: u64,
    /// Launches in a container that an earlier payload left.
    pub warm_starts: u64,
    /// Payloads that were found running.
    pub adopted: u64,
    /// Images prepared.
    pub images: u64,
    /// Bytes brought in for them.
    pub image_bytes: u64,
    /// Stages held.
    pub stages: u64,
    /// Bytes of them.
    pub stage_bytes: u64,
}

/// How often claims ended in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndingCount {
    /// `succeeded`, `exited`, `stopped`, `failed` or `lost`.
    pub conclusion: String,
    /// What stopped it, or who is to blame for a failure.
    pub cause: String,
    /// How often.
    pub count: u64,
}

/// What a slot does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the phases of a slot as ARCHITECTURE.md tells them")]
pub enum SlotPhase {
    #[default]
    Idle,
    Binding,
    Bound,
    Running,
    Draining,
    Cleaning,
    Retired,
}

impl SlotPhase {
    /// As it is written for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Binding => "binding",
            Self::Bound => "bound",
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Cleaning => "cleaning",
            Self::Retired => "retired",
        }
    }
}

/// A slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRow {
    /// Its number, from 0.
    pub slot: u32,
    /// How often it was claimed.
    pub epoch: u64,
    /// What it does.
    pub phase: SlotPhase,
    /// Milliseconds since it began to do that.
    pub since_ms: u64,
    /// Its payload, unless it is idle or retired.
    pub payload: Option<SlotPayload>,
    /// Bytes of memory in use, where the pilot can tell.
    pub memory_bytes: Option<u64>,
}

/// The payload of a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotPayload {
    /// Its workflow; of a spool's payload with the run's number, `zpeak.7`.
    pub workflow: String,
    /// Its name.
    pub name: String,
    /// Image reference as submitted.
    pub image: String,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// Thousandths of a processor that it asked for.
    pub cpu_millis: u64,
    /// Bytes of memory that it asked for.
    pub memory_limit_bytes: u64,
}

/// An image that was prepared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRow {
    /// Reference as submitted.
    pub image: String,
    /// Bytes that were brought in for it.
    pub brought_bytes: u64,
    /// Launches from it.
    pub launches: u64,
}

/// A stage that is held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageRow {
    /// `stage://<workflow>/<payload>/<output>`.
    pub stage: String,
    /// Its size.
    pub bytes: u64,
    /// Where it lies.
    pub place: StagePlace,
}

/// Where a stage lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StagePlace {
    /// In memory.
    #[default]
    Memory,
    /// On the volume, in a file or folder.
    Volume,
    /// In an object store, from where it comes back when it is read.
    Object,
}

impl StagePlace {
    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Volume => "volume",
            Self::Object => "object",
        }
    }
}

/// One line of text for people.
fn text(what: &'static str, text: &str) -> Result<(), Violation> {
    c_string(what, text.as_bytes(), TEXT_BYTES_MAX)
}

impl Check for PilotExec {
    fn check(&self) -> Result<(), Violation> {
        stage_name(&self.workflow)?;
        stage_name(&self.payload)?;
        let cwd: &[u8] = self.cwd.as_deref().unwrap_or(b"/");
        check_process(&self.argv, &self.env, cwd)?;
        count("descriptor roles", self.fds.len(), FRAME_FDS_MAX)?;
        if !self.fds.iter().all(|role| matches!(role, FdRole::Stdin | FdRole::Stdout | FdRole::Stderr)) {
            return Err(Violation::Empty { what: "role of a descriptor other than stdin, stdout or stderr" });
        }
        self.env.iter().try_for_each(|variable| match variable.iter().position(|byte| *byte == b'=') {
            Some(1..) => Ok(()),
            Some(0) | None => Err(Violation::Empty { what: "name of an environment variable" }),
        })
    }
}

impl Check for ToPilot {
    fn check(&self) -> Result<(), Violation> {
        match self {
            Self::Hello { .. } | Self::Status => Ok(()),
            Self::Exec(exec) => exec.check(),
            Self::Signal { signal } => range("signal", i64::from(*signal), 1, 64),
            Self::OpenStage { stage } => text("stage", stage),
        }
    }
}

impl Check for FromPilot {
    fn check(&self) -> Result<(), Violation> {
        match self {
            Self::Refused { why } => text("reason", why),
            Self::Pilot(row) => {
                text("pilot", &row.name)?;
                count("endings", row.ended.len(), ENDINGS_MAX)?;
                row.ended.iter().try_for_each(|ending| {
                    text("conclusion", &ending.conclusion)?;
                    text("cause", &ending.cause)
                })
            }
            Self::Slot(SlotRow { payload: Some(payload), .. }) => {
                text("workflow", &payload.workflow)?;
                text("payload", &payload.name)?;
                text("image", &payload.image)
            }
            Self::Image(row) => text("image", &row.image),
            Self::Stage(row) => text("stage", &row.stage),
            Self::Hello { .. }
            | Self::Slot(_)
            | Self::End
            | Self::Started
            | Self::Ended(_)
            | Self::StageOpened { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "pilot_tests.rs"]
mod tests;
