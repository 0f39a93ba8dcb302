//! How things end: exit statuses, causes, faults, what a queue is told, and the exit codes of `pilot run`.
//! It must not know where a status or a figure was read, nor where what is said here is kept.
//!
//! What a journal or a spool has to keep is written by serde in kebab-case. Fields that are not known are passed over
//! and figures that are missing are zero, so that pilots of different age can read each other's records.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// How the first process of a payload ended (wait(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitStatus {
    /// It called exit.
    Code(u8),
    /// A signal ended it.
    Signal {
        /// Which.
        signal: i32,
        /// Whether a core was written.
        core: bool,
    },
}

impl ExitStatus {
    /// Code 0.
    pub const SUCCESS: Self = Self::Code(0);

    /// Whether this is code 0.
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Code(0))
    }

    /// As a shell tells it in `$?`: the code, or 128 and the signal's number.
    pub const fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal { signal, .. } if signal > 0 && signal < 128 => 128 + signal as u8,
            Self::Signal { .. } => u8::MAX,
        }
    }
}

/// The end of a payload as the runtime saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exit {
    /// What wait(2) said.
    pub status: ExitStatus,
    /// What the runtime knows beyond that: the kernel killed it for memory, its disk was full.
    pub cause: Option<StopCause>,
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        Self { status, cause: None }
    }
}

/// Why a payload was ended by someone else than itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopCause {
    /// The cluster takes the pilot's place away.
    Evicted,
    /// The user does not want it any more.
    Cancelled,
    /// The pilot's lifetime is over.
    Expired,
    /// Something more important needs the slot.
    Preempted,
    /// It ran longer than it said.
    Walltime,
    /// It used more memory than it said.
    MemoryExceeded,
    /// It wrote more than it may.
    DiskExceeded,
    /// An output grew past what it may have.
    OutputExceeded,
    /// The pilot was told to stop.
    PilotStopping,
    /// Another payload of its gang did not succeed.
    GangEnded,
}

impl StopCause {
    /// Whether the payload has itself, or its user, to thank for it. If not, it may run again elsewhere at no charge.
    pub const fn is_own_doing(self) -> bool {
        match self {
            Self::Cancelled
            | Self::Walltime
            | Self::MemoryExceeded
            | Self::DiskExceeded
            | Self::OutputExceeded => true,
            Self::Evicted | Self::Expired | Self::Preempted | Self::PilotStopping | Self::GangEnded => false,
        }
    }
}

/// Who is to blame for a failure, which is all that decisions branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultClass {
    /// No one: it may go well next time, anywhere.
    Retry,
    /// The payload: it would fail in every slot.
    Payload,
    /// The slot: others may do better.
    Slot,
    /// The pilot or its machine: no slot here will do better.
    Pilot,
}

/// A failure of something that was done for a payload. Adapters turn foreign errors into this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
#[serde(rename_all = "kebab-case")]
pub struct Fault {
    /// Who is to blame.
    pub class: FaultClass,
    /// One line for people; fits after "failed to" or stands alone.
    pub message: Arc<str>,
}

impl Fault {
    /// A fault of a class with its one line.
    pub fn new(class: FaultClass, message: impl Into<Arc<str>>) -> Self {
        Self { class, message: message.into() }
    }
}

/// What a payload used. Zeros and `None`s where it never ran or no one can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Usage {
    /// Wall time from exec to the end of the first process, in microseconds.
    pub wall_us: u64,
    /// Processor time in user mode, in microseconds.
    pub user_us: u64,
    /// Processor time in the kernel, in microseconds.
    pub system_us: u64,
    /// Largest resident set of one process, in KiB.
    pub max_rss_kib: u64,
    /// Highest memory use of the whole slot, in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// Whether that peak was sampled from time to time, not kept by the kernel: the true one may be higher.
    pub memory_peak_sampled: bool,
    /// Processes killed for memory.
    pub oom_kills: Option<u64>,
    /// Processes that outlived the first one and had to be killed.
    pub leftover_processes: u32,
    /// Bytes of committed outputs.
    pub output_bytes: u64,
}

/// How a claim ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Conclusion {
    /// Code 0, and every output is there.
    Succeeded,
    /// It ended by itself, badly.
    Exited(ExitStatus),
    /// It was ended.
    Stopped(StopCause),
    /// Something that had to be done for it failed.
    Failed(Fault),
    /// The lease was lost: another pilot may hold the payload, so whatever happened here does not count.
    Lost,
    /// Another payload of its gang, this one, did not succeed, so that it counts for nothing how far it came itself.
    GangFailed(Arc<str>),
}

/// What a queue is told at the end of a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outcome {
    /// How it ended.
    pub conclusion: Conclusion,
    /// Whether the payload's own code may have run.
    pub launched: bool,
    /// The status of its first process, when one was seen.
    pub status: Option<ExitStatus>,
    /// What it used.
    #[serde(default)]
    pub usage: Usage,
}

impl Outcome {
    /// The end of a claim whose payload never started.
    pub fn before_launch(conclusion: Conclusion) -> Self {
        Self { conclusion, launched: false, status: None, usage: Usage::default() }
    }

    /// Whether the payload did what it was to do.
    pub fn is_success(&self) -> bool {
        self.conclusion == Conclusion::Succeeded
    }
}

/// The exit codes of `pilot run`, worst last. 64, 69 and 70 are those of sysexits(3); 130 and 143 are what a shell
/// shows for SIGINT and SIGTERM.
///
/// | code | when |
/// |---|---|
/// | 0 | every payload succeeded |
/// | 1 | a payload failed, was stopped or was given up |
/// | 64 | the workflow or a setting is wrong; nothing was started |
/// | 69 | this host can't run payloads; `pilot check` says why |
/// | 70 | the pilot itself failed |
/// | 130 | stopped by SIGINT (Ctrl-C) |
/// | 143 | stopped by SIGTERM |
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RunExit {
    /// 0
    Success,
    /// 1
    PayloadFailed,
    /// 64
    BadInput,
    /// 69
    HostUnable,
    /// 70
    OwnFault,
    /// 130
    Interrupted,
    /// 143
    Terminated,
}

impl RunExit {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 7] = [
        Self::Success,
        Self::PayloadFailed,
        Self::BadInput,
        Self::HostUnable,
        Self::OwnFault,
        Self::Interrupted,
        Self::Terminated,
    ];

    /// The process's exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::PayloadFailed => 1,
            Self::BadInput => 64,
            Self::HostUnable => 69,
            Self::OwnFault => 70,
            Self::Interrupted => 130,
            Self::Terminated => 143,
        }
    }

    /// What it means, for `--help` and the README.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Success => "every payload succeeded",
            Self::PayloadFailed => "a payload failed, was stopped or was given up",
            Self::BadInput => "the workflow or a setting is wrong; nothing was started",
            Self::HostUnable => "this host can't run payloads; `pilot check` says why",
            Self::OwnFault => "the pilot itself failed",
            Self::Interrupted => "stopped by SIGINT (Ctrl-C)",
            Self::Terminated => "stopped by SIGTERM",
        }
    }

    /// What one payload's last outcome makes of the run. The run's code is the largest of them (`Ord`).
    pub fn of(outcome: &Outcome) -> Self {
        match &outcome.conclusion {
            Conclusion::Succeeded => Self::Success,
            Conclusion::Failed(fault) => match fault.class {
                FaultClass::Retry | FaultClass::Payload | FaultClass::Slot => Self::PayloadFailed,
                FaultClass::Pilot => Self::OwnFault,
            },
            Conclusion::Exited(_) | Conclusion::Stopped(_) | Conclusion::Lost | Conclusion::GangFailed(_) => {
                Self::PayloadFailed
            }
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal { signal, core: false } => write!(f, "signal {signal}"),
            Self::Signal { signal, core: true } => write!(f, "signal {signal}, core written"),
        }
    }
}

impl fmt::Display for StopCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Evicted => "evicted",
            Self::Cancelled => "cancelled",
            Self::Expired => "the pilot's lifetime is over",
            Self::Preempted => "preempted",
            Self::Walltime => "walltime exceeded",
            Self::MemoryExceeded => "memory exceeded",
            Self::DiskExceeded => "disk exceeded",
            Self::OutputExceeded => "output exceeded",
            Self::PilotStopping => "the pilot stops",
            Self::GangEnded => "its gang ended",
        })
    }
}

impl fmt::Display for Conclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Succeeded => f.write_str("succeeded"),
            Self::Exited(status) => status.fmt(f),
            Self::Stopped(cause) => cause.fmt(f),
            Self::Failed(fault) => fault.fmt(f),
            Self::Lost => f.write_str("lost its lease"),
            Self::GangFailed(culprit) => {
                write!(f, "ended with its gang, because {culprit:?} did not succeed")
            }
        }
    }
}

#[cfg(test)]
#[path = "outcome_tests.rs"]
mod tests;
