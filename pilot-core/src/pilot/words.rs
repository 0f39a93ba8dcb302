//! What a pilot is told and what it says.

use std::sync::Arc;

use crate::claim::{Claim, ClaimId, Epoch, Lease, ReleaseWhy, SlotId};
use crate::outcome::{Fault, Outcome, StopCause};
use crate::payload::{ImageKey, InputKey};
use crate::slot::{Event, EventName, Order, PhaseName, Why};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The answer to AskClaims. None at all is the same as `QueueEmpty`.
    Offered(Vec<Claim>),
    /// Preflight went well.
    Prepared {
        /// For which claim.
        claim: ClaimId,
        /// What must be equal for a warm slot to do.
        image: ImageKey,
        /// What of it this machine lacks.
        bytes_missing: u64,
    },
    /// Preflight went wrong. No slot was touched.
    PrepareFailed {
        /// For which claim.
        claim: ClaimId,
        /// What is wrong.
        fault: Fault,
    },
    /// A payload that an earlier life of this pilot launched in one of its slots, and that may still run there. It comes
    /// before the first [`Input::Tick`], which is when the pilot first asks for work; `Adopted` never asks.
    ///
    /// Taken whether or not work is taken, and charged whether or not its share is free. The answer is `Order::Launch` in this
    /// epoch, which here means: wait for what already runs. A claim that is known is [`Output::Ignored`] as a duplicate, and
    /// nothing else happens to it. A slot that is not there, busy, or was used since the pilot started, is `Ignored` as
    /// [`Why::NotInThisPhase`] and the claim is reported as failed after its launch; whoever found the payload must then end it.
    Adopted {
        /// Where it runs.
        slot: SlotId,
        /// The epoch in which it was launched. Not 0; the slot's next claim has the next one.
        epoch: Epoch,
        /// As it was launched, with the lease in the time of this pilot. `payload.walltime_ms` is what is left.
        claim: Box<Claim>,
        /// As `Prepared` said it.
        image: ImageKey,
    },
    /// News from a slot's runtime.
    Slot {
        /// Which slot.
        slot: SlotId,
        /// The epoch of the order that this is the answer to.
        epoch: Epoch,
        /// What happened.
        event: Event,
    },
    /// The queue has nothing for now.
    QueueEmpty,
    /// The queue has something again: no need to wait for the next poll.
    QueueFilled,
    /// The queue will never have anything again.
    QueueClosed,
    /// The queue gives more time.
    LeaseRenewed {
        /// For which claim.
        claim: ClaimId,
        /// Until when.
        lease: Lease,
    },
    /// The queue says that a claim is over.
    LeaseLost {
        /// Which.
        claim: ClaimId,
    },
    /// One claim must end: its user, the cluster or something more important wants it so.
    StopClaim {
        /// Which.
        claim: ClaimId,
        /// Why.
        cause: StopCause,
    },
    /// The queue has the report, and all that belongs to it.
    ReportDone {
        /// Of which claim.
        claim: ClaimId,
    },
    /// This machine has an input.
    InputHere(InputKey),
    /// This machine has an input no more.
    InputGone(InputKey),
    /// Take no more work; what has no slot yet goes back.
    Cordon,
    /// Take work again.
    Uncordon,
    /// End.
    Stop {
        /// How.
        kind: StopKind,
        /// What the payloads are told.
        cause: StopCause,
    },
    /// Time went by.
    Tick,
}

/// How to end, the gentlest first. A later stop can only be harder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopKind {
    /// What runs may finish, the rest goes back.
    Drain,
    /// TERM everything, KILL after the grace period.
    Grace,
    /// KILL everything.
    Kill,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Ask the queue for so many claims at most. Answer: `Offered`, `QueueEmpty` or `QueueClosed`.
    AskClaims(u32),
    /// Find out what a claim's image is, and how much of it is here. Answer: `Prepared` or `PrepareFailed`.
    Prepare(Box<Claim>),
    /// An order for a slot's runtime. Answers carry the same slot and epoch.
    Slot {
        /// Which slot.
        slot: SlotId,
        /// Which epoch.
        epoch: Epoch,
        /// For which claim.
        claim: ClaimId,
        /// What to do.
        order: Order,
    },
    /// Ask the queue for more time. Answer: `LeaseRenewed` or `LeaseLost`.
    Renew(ClaimId),
    /// A claim is over. Answer: `ReportDone`.
    Report {
        /// Which.
        claim: ClaimId,
        /// How it ended.
        outcome: Outcome,
    },
    /// The claims of a gang are over, all at once; only together they say whether any of them counts. Answer: `ReportDone` for
    /// each.
    ReportTogether(Vec<(ClaimId, Outcome)>),
    /// A claim goes back; its payload never started.
    Release {
        /// Which.
        claim: ClaimId,
        /// Why.
        why: ReleaseWhy,
    },
    /// For logs and status: a slot changed its phase.
    Moved {
        /// Which slot.
        slot: SlotId,
        /// Its epoch after the change.
        epoch: Epoch,
        /// For which claim.
        claim: ClaimId,
        /// From.
        from: PhaseName,
        /// To.
        to: PhaseName,
        /// What changed it.
        event: EventName,
    },
    /// For logs: an event changed nothing. [`Why::NotInThisPhase`] is a fault of whoever sent it.
    Ignored {
        /// Which slot.
        slot: SlotId,
        /// The event's epoch.
        epoch: Epoch,
        /// The event.
        event: EventName,
        /// Why.
        why: Why,
    },
    /// The pilot is done. Nothing comes after this but releases of claims that were on their way.
    Done(DoneWhy),
}

/// Why a pilot ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DoneWhy {
    /// There will be no more work, and all is done.
    QueueClosed,
    /// There was nothing to do for too long.
    Idle,
    /// Its lifetime is over.
    Lifetime,
    /// It was told to.
    Stopped(StopCause),
    /// No slot is left that could be cleaned.
    AllRetired,
    /// Everything fails here; the reason.
    BlackHole(Arc<str>),
}

/// One slot, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotStatus {
    /// Which.
    pub slot: SlotId,
    /// Its epoch.
    pub epoch: Epoch,
    /// What it is doing.
    pub phase: PhaseName,
    /// The claim it works for, until the slot is clean.
    pub claim: Option<ClaimId>,
}
