//! What a slot is told and what it says.

use crate::claim::{Claim, Lease, ReleaseWhy};
use crate::outcome::{Exit, Fault, Outcome, StopCause, Usage};

/// What happens to a slot. All but `Claimed`, `Adopted`, `Go`, `Stop` and `Tick` are news from runtime or queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The pilot gives the slot a claim.
    Claimed(Box<Claim>),
    /// The pilot takes over a payload that an earlier life of it has launched here, and that may still run. The epoch that
    /// comes with this is that launch's; only a slot that was never used takes it.
    Adopted(Box<Claim>),
    /// The shim in the payload's image has proved itself.
    Bound,
    /// The bind failed.
    BindFailed(Fault),
    /// The pilot lets the payload start.
    Go,
    /// The payload could not be started; none of its code ran.
    LaunchFailed(Fault),
    /// The payload's first process ended and no other of its processes is left.
    Exited(Exit),
    /// The payload must end.
    Stop {
        /// Why.
        cause: StopCause,
        /// Between TERM and KILL, in milliseconds; 0 kills at once.
        grace_ms: u64,
    },
    /// The queue gives more time.
    LeaseRenewed(Lease),
    /// The queue says that the claim is over.
    LeaseLost,
    /// The container is gone, or its shim does not answer any more.
    SlotLost(Fault),
    /// Nothing of the payload runs, logs and outputs are kept.
    Drained(Drained),
    /// No trace of the payload is left.
    Cleaned {
        /// Whether image and shim are still there for the next payload.
        warm: bool,
    },
    /// Something could not be removed.
    CleanFailed(Fault),
    /// Time went by.
    Tick,
}

/// The answer to [`Order::Drain`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// What the payload used.
    pub usage: Usage,
    /// What is wrong with its outputs, if they were to be committed.
    pub fault: Option<Fault>,
}

/// What must be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// For the runtime.
    Order(Order),
    /// Ask the queue for more time.
    Renew,
    /// The claim is over; tell the queue how it ended.
    Report(Outcome),
    /// The claim is over; the payload never started through no fault of its own.
    Release(ReleaseWhy),
}

/// What a slot asks of the runtime. Every order names all that is needed beside slot and epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Put the claim's image in place of whatever the slot holds, with a shim that proves itself. Answer: `Bound` or `BindFailed`.
    Bind(Box<Claim>),
    /// Start the payload, at most once for this epoch. Answer: `Exited`, `LaunchFailed` or `SlotLost`. In a slot whose payload
    /// was adopted: wait for it. Answer: `Exited`, also when it ended meanwhile, or `SlotLost`.
    Launch(Box<Claim>),
    /// Signal everything of the payload. Answer: `Exited`.
    Signal(Signal),
    /// Make sure that nothing of the payload runs or will run, keep its logs, commit its outputs. Answer: `Drained`.
    Drain {
        /// Whether the payload succeeded so far, so that its outputs count; else they are dropped.
        commit: bool,
    },
    /// Remove every trace. May come again; answer: `Cleaned` or `CleanFailed`.
    Clean,
}

/// What a payload is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// End in good order.
    Term {
        /// When KILL would follow, in milliseconds.
        grace_ms: u64,
    },
    /// End.
    Kill,
}

/// What became of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It counts; do this.
    Acted(Vec<Action>),
    /// It changed nothing.
    Ignored(Why),
}

/// Why an event changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It belongs to another epoch.
    Stale,
    /// It is known already.
    Duplicate,
    /// It was true in this epoch, but what it is about is over.
    Late,
    /// A tick with nothing due.
    Early,
    /// It can't be true yet, or the slot can't take it: whoever sent it has a fault.
    NotInThisPhase,
}
