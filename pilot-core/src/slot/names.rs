//! Phases and events without their data, for logs, metrics and status.

use std::fmt;

use super::{Event, Phase, Slot};

/// A [`Phase`] without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "documented at the variants of the same name in Phase")]
pub enum PhaseName {
    Idle,
    Binding,
    Bound,
    Running,
    Draining,
    Cleaning,
    Retired,
}

/// An [`Event`] without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "documented at the variants of the same name in Event")]
pub enum EventName {
    Claimed,
    Adopted,
    Bound,
    BindFailed,
    Go,
    LaunchFailed,
    Exited,
    Stop,
    LeaseRenewed,
    LeaseLost,
    SlotLost,
    Drained,
    Cleaned,
    CleanFailed,
    Tick,
}

impl PhaseName {
    /// As it is written in logs, metrics and status.
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

    /// Whether the diagram has this edge. Staying is always one.
    pub(super) fn may_become(self, to: Self) -> bool {
        self == to
            || match self {
                Self::Idle => matches!(to, Self::Binding | Self::Bound),
                Self::Binding => matches!(to, Self::Bound | Self::Draining),
                Self::Bound => matches!(to, Self::Running | Self::Draining),
                Self::Running => to == Self::Draining,
                Self::Draining => to == Self::Cleaning,
                Self::Cleaning => matches!(to, Self::Idle | Self::Retired),
                Self::Retired => false,
            }
    }
}

impl Slot {
    /// The phase it is in.
    pub const fn name(&self) -> PhaseName {
        match &self.phase {
            Phase::Idle { .. } => PhaseName::Idle,
            Phase::Binding { .. } => PhaseName::Binding,
            Phase::Bound { .. } => PhaseName::Bound,
            Phase::Running { .. } => PhaseName::Running,
            Phase::Draining { .. } => PhaseName::Draining,
            Phase::Cleaning { .. } => PhaseName::Cleaning,
            Phase::Retired => PhaseName::Retired,
        }
    }
}

impl Event {
    /// Which event it is.
    pub const fn name(&self) -> EventName {
        match self {
            Self::Claimed(_) => EventName::Claimed,
            Self::Adopted(_) => EventName::Adopted,
            Self::Bound => EventName::Bound,
            Self::BindFailed(_) => EventName::BindFailed,
            Self::Go => EventName::Go,
            Self::LaunchFailed(_) => EventName::LaunchFailed,
            Self::Exited(_) => EventName::Exited,
            Self::Stop { .. } => EventName::Stop,
            Self::LeaseRenewed(_) => EventName::LeaseRenewed,
            Self::LeaseLost => EventName::LeaseLost,
            Self::SlotLost(_) => EventName::SlotLost,
            Self::Drained(_) => EventName::Drained,
            Self::Cleaned { .. } => EventName::Cleaned,
            Self::CleanFailed(_) => EventName::CleanFailed,
            Self::Tick => EventName::Tick,
        }
    }
}

impl EventName {
    /// As it is written in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Adopted => "adopted",
            Self::Bound => "bound",
            Self::BindFailed => "bind-failed",
            Self::Go => "go",
            Self::LaunchFailed => "launch-failed",
            Self::Exited => "exited",
            Self::Stop => "stop",
            Self::LeaseRenewed => "lease-renewed",
            Self::LeaseLost => "lease-lost",
            Self::SlotLost => "slot-lost",
            Self::Drained => "drained",
            Self::Cleaned => "cleaned",
            Self::CleanFailed => "clean-failed",
            Self::Tick => "tick",
        }
    }
}

impl fmt::Display for PhaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
