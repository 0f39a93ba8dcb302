//! The decisions of a pilot: which claim goes to which slot, what a slot does next, when to stop.
//!
//! Events and a [`Moment`] go in, actions come out. This crate must not know how anything is done: it has no I/O,
//! no clock, no randomness, no async, no log and no lock, and its `Cargo.toml` is the proof. Whoever calls it keeps
//! the time, carries out the [`Output`]s and brings back what happened as [`Input`]s.
//!
//! ```text
//!   Input ──> Pilot::handle(now, ..) ──> Output          Pilot: intake, matchmaking, order of stopping
//!               └─ Slot::handle(now, epoch, ..) ──> Verdict     Slot: one payload at a time, from claim to clean
//! ```
#![forbid(unsafe_code)]

pub mod backoff;
pub mod black_hole;
pub mod claim;
pub mod matchmaking;
pub mod outcome;
pub mod payload;
pub mod pilot;
pub mod retry;
pub mod slot;
pub mod time;

pub use backoff::{Backoff, Jitter};
pub use black_hole::BlackHole;
pub use claim::{Claim, ClaimId, Epoch, Gang, GangId, Lease, ReleaseWhy, SlotId};
pub use outcome::{Conclusion, Exit, ExitStatus, Fault, FaultClass, Outcome, RunExit, StopCause, Usage};
pub use payload::{Demand, ImageKey, InputKey, Payload, TrustGroup};
pub use pilot::{DoneWhy, Input, Lifetime, Output, Pilot, PilotConfig, SlotStatus, StopKind};
pub use retry::{Attempts, Decision};
pub use slot::{
    Action, Drained, Ending, Event, EventName, Held, Order, Phase, PhaseName, Signal, Slot, SlotLimits,
    Verdict, Why,
};
pub use time::Moment;
