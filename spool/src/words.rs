//! The spool's words: numbers of runs and payloads, states, counts.

use std::fmt;
use std::str::FromStr;

/// Number of a run: one submission. Counted from 1, never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u64);

/// A payload's place in the spool; in the order of submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PayloadId(pub i64);

/// The lower half of a payload's number is its index, the upper half its run: what belongs together lies together.
const INDEX_BITS: u32 = 32;

impl RunId {
    /// The largest run that the numbering has room for.
    pub(crate) const MAX: u64 = (1 << (63 - INDEX_BITS)) - 1;

    /// The numbers that the payloads of this run can have.
    pub(crate) fn span(self) -> (i64, i64) {
        let first = PayloadId::new(self, 0).0;
        (first, first | ((1 << INDEX_BITS) - 1))
    }

    pub(crate) fn sql(self) -> i64 {
        // Larger ones are no runs; they find nothing.
        self.0.min(Self::MAX) as i64
    }

    pub(crate) fn from_sql(id: i64) -> Self {
        Self(u64::try_from(id).unwrap_or(0))
    }
}

impl PayloadId {
    pub(crate) fn new(run: RunId, index: u32) -> Self {
        Self(run.sql() << INDEX_BITS | i64::from(index))
    }

    /// The run that it belongs to.
    #[must_use]
    pub fn run(self) -> RunId {
        RunId::from_sql(self.0 >> INDEX_BITS)
    }

    /// Its index within the run.
    #[must_use]
    pub fn index(self) -> u32 {
        (self.0 & ((1 << INDEX_BITS) - 1)) as u32
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Longest part of a run's name that a workflow name keeps: with a dot and the largest number it stays within 64 bytes.
const NAME_KEPT: usize = 50;

/// Name under which a pilot keeps a run's stages: no two runs share one, however often a file is submitted.
#[must_use]
pub fn workflow_of(run_name: &str, run: RunId) -> String {
    let kept: String = run_name.chars().take(NAME_KEPT).collect();
    format!("{kept}.{run}")
}

/// The run of a name that [`workflow_of`] made.
pub(crate) fn run_of_workflow(workflow: &str) -> Option<RunId> {
    workflow.rsplit_once('.')?.1.parse().ok().map(RunId)
}

/// How a payload stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Its producers have not all succeeded yet.
    Waiting,
    /// May be claimed, perhaps only after a pause.
    Ready,
    /// A pilot has it.
    Claimed,
    /// Did what it was to do.
    Succeeded,
    /// Failed, with no retries left.
    Failed,
    /// Never ran: something that comes before it did not succeed.
    Skipped,
    /// Its user does not want it any more.
    Cancelled,
    /// Its pilot was lost, and it may not or shall not run again.
    Lost,
}

impl State {
    /// All, in the order of the counts.
    pub const ALL: [Self; 8] = [
        Self::Waiting,
        Self::Ready,
        Self::Claimed,
        Self::Succeeded,
        Self::Failed,
        Self::Skipped,
        Self::Cancelled,
        Self::Lost,
    ];

    /// Whether it stays so.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Waiting | Self::Ready | Self::Claimed)
    }

    /// The word for it, lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Ready => "ready",
            Self::Claimed => "claimed",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
        }
    }

    /// The codes of the state column that mean this state.
    pub(crate) fn codes(self) -> &'static [Code] {
        match self {
            Self::Waiting => &[Code::Waiting],
            Self::Ready => &[Code::Ready, Code::Delayed],
            Self::Claimed => &[Code::Claimed],
            Self::Succeeded => &[Code::Succeeded],
            Self::Failed => &[Code::Failed],
            Self::Skipped => &[Code::Skipped],
            Self::Cancelled => &[Code::Cancelled],
            Self::Lost => &[Code::Lost],
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Not a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "read state {0:?}: it must be waiting, ready, claimed, succeeded, failed, skipped, cancelled or lost"
)]
pub struct StateError(pub String);

impl FromStr for State {
    type Err = StateError;

    fn from_str(text: &str) -> Result<Self, StateError> {
        let found = Self::ALL.into_iter().find(|state| state.name() == text);
        found.ok_or_else(|| StateError(text.to_owned()))
    }
}

/// The state column. Ready has two: what may be claimed now is found without passing over what may not yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Waiting = 0,
    Ready = 1,
    Claimed = 2,
    Succeeded = 3,
    Failed = 4,
    Skipped = 5,
    Cancelled = 6,
    Lost = 7,
    Delayed = 8,
}

impl Code {
    pub(crate) const ALL: [Self; 9] = [
        Self::Waiting,
        Self::Ready,
        Self::Claimed,
        Self::Succeeded,
        Self::Failed,
        Self::Skipped,
        Self::Cancelled,
        Self::Lost,
        Self::Delayed,
    ];

    pub(crate) fn sql(self) -> i64 {
        self as i64
    }

    pub(crate) fn from_sql(code: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.sql() == code)
    }

    pub(crate) fn state(self) -> State {
        match self {
            Self::Waiting => State::Waiting,
            Self::Ready | Self::Delayed => State::Ready,
            Self::Claimed => State::Claimed,
            Self::Succeeded => State::Succeeded,
            Self::Failed => State::Failed,
            Self::Skipped => State::Skipped,
            Self::Cancelled => State::Cancelled,
            Self::Lost => State::Lost,
        }
    }
}

/// How many payloads of a run stand how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// See [`State::Waiting`].
    pub waiting: u64,
    /// See [`State::Ready`].
    pub ready: u64,
    /// See [`State::Claimed`].
    pub claimed: u64,
    /// See [`State::Succeeded`].
    pub succeeded: u64,
    /// See [`State::Failed`].
    pub failed: u64,
    /// See [`State::Skipped`].
    pub skipped: u64,
    /// See [`State::Cancelled`].
    pub cancelled: u64,
    /// See [`State::Lost`].
    pub lost: u64,
}

impl Counts {
    /// How many stand so.
    #[must_use]
    pub fn of(&self, state: State) -> u64 {
        match state {
            State::Waiting => self.waiting,
            State::Ready => self.ready,
            State::Claimed => self.claimed,
            State::Succeeded => self.succeeded,
            State::Failed => self.failed,
            State::Skipped => self.skipped,
            State::Cancelled => self.cancelled,
            State::Lost => self.lost,
        }
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        State::ALL.into_iter().map(|state| self.of(state)).sum()
    }

    /// Those that have not come to their end.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.waiting + self.ready + self.claimed
    }

    pub(crate) fn slot(&mut self, state: State) -> &mut u64 {
        match state {
            State::Waiting => &mut self.waiting,
            State::Ready => &mut self.ready,
            State::Claimed => &mut self.claimed,
            State::Succeeded => &mut self.succeeded,
            State::Failed => &mut self.failed,
            State::Skipped => &mut self.skipped,
            State::Cancelled => &mut self.cancelled,
            State::Lost => &mut self.lost,
        }
    }
}

/// How a run stands as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RunStatus {
    /// Nothing of it was claimed or ended yet.
    Queued,
    /// Under way.
    Running,
    /// At its end; every payload succeeded.
    Succeeded,
    /// At its end; a payload failed, was skipped or was lost.
    Failed,
    /// At its end; nothing failed by itself, and a payload was cancelled.
    Cancelled,
}

impl RunStatus {
    /// What these counts amount to.
    #[must_use]
    pub fn of(counts: &Counts) -> Self {
        let open = counts.open();
        if open > 0 {
            return if open - counts.claimed == counts.total() { Self::Queued } else { Self::Running };
        }
        match counts {
            _ if counts.failed + counts.lost > 0 => Self::Failed,
            _ if counts.cancelled > 0 => Self::Cancelled,
            _ if counts.skipped > 0 => Self::Failed,
            _ => Self::Succeeded,
        }
    }

    /// The word for it, lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for RunStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which runs to list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunFilter {
    /// Every run.
    #[default]
    All,
    /// Those with a payload that has not come to its end.
    Open,
    /// Those at their end.
    Ended,
}
