//! The life of one slot: from a claim to a clean slot, one payload at a time.
//!
//! It must not know what a container, a socket or a queue is, nor which slots there are beside it.
//!
//! ```text
//!                  Claimed (warm), Adopted
//!             ┌──────────────────────────────┐
//!             │                              v
//!        ┌─> Idle ──Claimed──> Binding ──> Bound ──Go──> Running
//!        │                        │          │              │
//!        │                        └──────────┴───> Draining <┘
//!        │                                            │
//!        └──────────── Cleaned ────────────────── Cleaning ──N failures──> Retired
//! ```
//!
//! - Idle -> Binding: a claim came, the epoch rises, the runtime is told to bind.
//! - Idle -> Bound: the slot still holds the claim's image for the claim's trust group, so there is nothing to bind; or the
//!   pilot started again and takes over, in its old epoch, a payload that it left running here.
//! - Binding -> Bound: the shim in the payload's image has proved itself; nothing of the payload runs.
//! - Binding -> Draining: the bind failed or took too long, or the claim was stopped or lost; what exists is undone.
//! - Bound -> Running: the pilot says Go, because the payload's share of the machine is free.
//! - Bound -> Draining: the slot broke, the wait took too long, or the claim was stopped or lost.
//! - Running -> Draining: the payload ended, could not be launched, ran out of time, or was stopped or lost.
//! - Draining -> Cleaning: everything is flushed or has had its time; the claim ends here, with one Report or Release.
//! - Cleaning -> Idle: no trace is left.
//! - Cleaning -> Retired: cleaning failed too often; the slot is never used again.
//!
//! Draining has two steps: `Stopping` waits for a payload that was told to end, `Flushing` for the runtime to make
//! sure of that and to keep logs and outputs. Cleaning has two: `Working`, and `Pausing` before the next try.
//!
//! Guarantees, each an assertion in [`Slot::handle`] and a property in the tests: one claim at a time; exactly one of
//! Report and Release for a claim; at most one Bind in an epoch; an event of another epoch changes nothing; every phase but
//! Idle and Retired has a deadline, so that time alone leads to Idle or Retired.
//!
//! An adopted payload was launched by an earlier life of the pilot. So its claim never goes back as if it had not run, and
//! every report about it says `launched`: even a launch that "failed" only means that the runtime lost sight of it.
//!
//! Assumptions about the runtime: it carries out a slot's orders in their order, and one of an old epoch never reaches
//! what a newer epoch has made.

use crate::backoff::Backoff;
use crate::claim::{Claim, ClaimId, Epoch, SlotId};
use crate::outcome::{ExitStatus, Fault, StopCause};
use crate::payload::{ImageKey, Payload, TrustGroup};
use crate::time::Moment;

mod edges;
mod ends;
mod names;
mod promises;
mod words;
pub use names::{EventName, PhaseName};
pub use words::{Action, Drained, Event, Order, Signal, Verdict, Why};

/// One slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    id: SlotId,
    epoch: Epoch,
    limits: SlotLimits,
    /// The epoch's claim was adopted.
    adopted: bool,
    phase: Phase,
}

/// How long a slot waits for what the payload does not set itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotLimits {
    /// For Go, once bound, in milliseconds.
    pub bound_wait_ms: u64,
    /// For the runtime to flush logs and commit outputs, in milliseconds.
    pub drain_ms: u64,
    /// For one try to clean, in milliseconds.
    pub clean_ms: u64,
    /// After so many failed tries to clean the slot is retired.
    pub clean_attempts: u32,
    /// Between two tries to clean.
    pub clean_pause: Backoff,
}

impl Default for SlotLimits {
    /// A bound payload may wait for another that computes; outputs of many GiB may have to be copied; cleaning kills and
    /// unlinks, which takes milliseconds unless the kernel is stuck.
    fn default() -> Self {
        Self {
            bound_wait_ms: 600_000,
            drain_ms: 300_000,
            clean_ms: 30_000,
            clean_attempts: 4,
            clean_pause: Backoff { base_ms: 250, cap_ms: 10_000 },
        }
    }
}

/// What a slot is doing, with all that is known only then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing of any payload is here.
    Idle {
        /// What may be used again without a bind.
        holds: Option<Held>,
    },
    /// The runtime puts the image in place.
    Binding {
        /// For whom.
        claim: Box<Claim>,
        /// Until when.
        by: Moment,
    },
    /// Ready to launch.
    Bound {
        /// For whom.
        claim: Box<Claim>,
        /// Until when.
        by: Moment,
    },
    /// The payload runs.
    Running {
        /// Whose.
        claim: Box<Claim>,
        /// The end of its walltime.
        by: Moment,
    },
    /// The payload is brought to its end and flushed.
    Draining {
        /// Whose.
        claim: Box<Claim>,
        /// How it comes to its end.
        end: End,
        /// When this step is over at the latest.
        by: Moment,
    },
    /// Every trace is removed. The claim is over.
    Cleaning {
        /// Whose traces.
        claim: ClaimId,
        /// What stays if the runtime says so.
        holds: Option<Held>,
        /// Tries that failed.
        attempts: u32,
        /// Whether a try is under way.
        step: CleanStep,
        /// When this step is over at the latest.
        by: Moment,
    },
    /// Never used again.
    Retired,
}

/// What stays ready in a slot after a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What must be equal for the next payload to find all as it needs it.
    pub image: ImageKey,
    /// Only payloads of this group may use it again.
    pub trust: TrustGroup,
}

impl Held {
    /// Whether a payload can be launched with no bind.
    pub fn suits(&self, payload: &Payload) -> bool {
        payload.reusable && self.image == payload.image && self.trust == payload.trust
    }
}

/// What Draining knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// What ended it; a lost lease overrides all else.
    pub ending: Ending,
    /// The first process's status, once seen.
    pub status: Option<ExitStatus>,
    /// How far the claim had come.
    pub reached: Reached,
    /// What is waited for.
    pub step: DrainStep,
}

/// Why a slot drains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The payload ended by itself.
    Exited(ExitStatus),
    /// It was ended, by the pilot or by the kernel.
    Stopped(StopCause),
    /// The slot could not be bound.
    BindFailed(Fault),
    /// The payload could not be launched; its code never ran.
    LaunchFailed(Fault),
    /// The slot is gone, with whatever ran in it.
    SlotLost(Fault),
    /// Bound, but never told to go.
    WaitedTooLong,
    /// Another may hold the payload.
    LeaseLost,
}

/// How far a claim had come when it began to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// A bind was under way, and may still come true.
    Binding,
    /// Bound, not launched.
    Bound,
    /// Launched: its code may have run.
    Launched,
}

/// Steps of Draining.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainStep {
    /// Told to end; its exit is awaited.
    Stopping,
    /// The runtime makes an end of it and flushes.
    Flushing,
}

/// Steps of Cleaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CleanStep {
    /// A try is under way.
    Working,
    /// The next try comes when the pause is over.
    Pausing,
}

impl Slot {
    /// A slot that was never used.
    pub const fn new(id: SlotId, limits: SlotLimits) -> Self {
        Self { id, epoch: Epoch(0), limits, adopted: false, phase: Phase::Idle { holds: None } }
    }

    /// Decides on one event of the given epoch. Whatever comes in, it returns; what makes no sense is ignored.
    pub fn handle(&mut self, now: Moment, epoch: Epoch, event: Event) -> Verdict {
        let adopts = matches!(event, Event::Adopted(_));
        let event = match event {
            Event::Adopted(_) if !self.may_adopt(epoch) => return Verdict::Ignored(Why::NotInThisPhase),
            Event::LaunchFailed(fault) if self.is_watching() => Event::SlotLost(fault),
            event => event,
        };
        if adopts {
            (self.epoch, self.adopted) = (epoch, true);
        } else if epoch != self.epoch {
            return Verdict::Ignored(Why::Stale);
        }
        let from = self.name();
        let at = edges::At { now, limits: &self.limits, adopted: self.adopted };
        let (phase, verdict) = edges::step(&at, std::mem::replace(&mut self.phase, Phase::Retired), event);
        self.phase = phase;
        if from == PhaseName::Idle && self.name() != PhaseName::Idle && !adopts {
            (self.epoch, self.adopted) = (epoch.next(), false);
        }
        debug_assert!(
            self.upholds(from, &verdict),
            "{} broke a promise: {from} -> {self:?} with {verdict:?}",
            self.id
        );
        verdict
    }

    /// Whether a payload that was launched in `epoch` can be adopted: the slot was never used, a launch was never in epoch 0,
    /// and there are epochs left.
    pub fn may_adopt(&self, epoch: Epoch) -> bool {
        self.epoch == Epoch(0) && self.name() == PhaseName::Idle && epoch > self.epoch && epoch.next() > epoch
    }

    /// Whether an adopted payload was told to be waited for.
    const fn is_watching(&self) -> bool {
        self.adopted && matches!(self.phase, Phase::Running { .. } | Phase::Draining { .. })
    }

    /// Whether the payload of this epoch was adopted.
    pub const fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// When the slot wants a [`Event::Tick`] at the latest. `None` in Idle and Retired, which wait for no one.
    pub fn deadline(&self) -> Option<Moment> {
        match &self.phase {
            Phase::Idle { .. } | Phase::Retired => None,
            Phase::Cleaning { by, .. } => Some(*by),
            Phase::Draining { end: End { ending: Ending::LeaseLost, .. }, by, .. } => Some(*by),
            Phase::Binding { claim, by }
            | Phase::Bound { claim, by }
            | Phase::Running { claim, by }
            | Phase::Draining { claim, by, .. } => {
                Some(claim.lease.map_or(*by, |lease| lease.deadline().min(*by)))
            }
        }
    }

    /// Which one it is.
    pub const fn id(&self) -> SlotId {
        self.id
    }

    /// How often it was claimed.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What it is doing, in full.
    pub const fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The claim that is not over yet.
    pub fn claim(&self) -> Option<&Claim> {
        match &self.phase {
            Phase::Binding { claim, .. }
            | Phase::Bound { claim, .. }
            | Phase::Running { claim, .. }
            | Phase::Draining { claim, .. } => Some(claim),
            Phase::Idle { .. } | Phase::Cleaning { .. } | Phase::Retired => None,
        }
    }
}

#[cfg(test)]
mod adoption_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
