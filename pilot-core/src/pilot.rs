//! The pilot: a set of slots, the claims that wait for one, and the decision when to take work and when to end.
//!
//! It must not know how a queue, an image store or a runtime works, nor what time it is. One call to
//! [`Pilot::handle`] takes one thing that happened and returns all that is to be done about it, in order.
//!
//! ```text
//!   AskClaims ──> Offered ──> Prepare ──> Prepared ──match──> slot ──> Report ──> ReportDone
//!                    │           └─> PrepareFailed ──> Report   └────> Release
//!                    └─> Release (cordoned, too many, never fits)
//! ```
//!
//! Intake is open, cordoned (and can be opened again), or ending for a reason; the end comes as [`Output::Done`], once,
//! when every slot is quiet and every report has reached the queue or had its time. After that only claims that come
//! too late are answered: they go back. Slots that are still warm then are the driver's to take down.
//!
//! Guarantees: for each claim that was offered exactly one `Report` or `Release`; the demands of running payloads never exceed
//! the pilot's share; a claim is never launched after its lease expired.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::black_hole::Guard;
pub use crate::claim::ReleaseWhy;
use crate::claim::{Claim, ClaimId, SlotId};
use crate::payload::{Demand, InputKey};
use crate::slot::{PhaseName, Slot};
use crate::time::Moment;

mod config;
mod ending;
mod intake;
mod seats;
mod waiting;
mod words;

pub use config::{Lifetime, PilotConfig};
pub use words::{DoneWhy, Input, Output, SlotStatus, StopKind};

use intake::Asking;
use seats::Seat;
use waiting::Waiting;

/// A pilot.
#[derive(Clone, Debug)]
pub struct Pilot {
    config: PilotConfig,
    seats: Vec<Seat>,
    waiting: Vec<Waiting>,
    /// Claims that ended here but whose report is not through: their lease, and until when to wait.
    reporting: BTreeMap<ClaimId, waiting::Reporting>,
    /// Claims that ended here, so that an offer that comes twice is known. The oldest are forgotten.
    ended: VecDeque<ClaimId>,
    inputs_here: BTreeSet<InputKey>,
    intake: Intake,
    asking: Asking,
    guard: Option<Guard>,
    /// Since when there is nothing to do at all.
    idle_since: Option<Moment>,
}

/// Whether work is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Intake {
    Open,
    Cordoned,
    /// For good; `stop` is the hardest stop so far, if what runs was stopped at all.
    Ending {
        why: DoneWhy,
        stop: Option<StopKind>,
    },
    /// Done was said.
    Over,
}

type Outputs = Vec<Output>;

impl Pilot {
    /// A pilot that has just started, at [`Moment::START`]. It does nothing before its first input.
    pub fn new(config: PilotConfig) -> Self {
        let slot = |n| Seat::new(Slot::new(SlotId(n), config.limits));
        Self {
            seats: (0..config.slots).map(slot).collect(),
            waiting: Vec::new(),
            reporting: BTreeMap::new(),
            ended: VecDeque::new(),
            inputs_here: BTreeSet::new(),
            intake: Intake::Open,
            asking: Asking::Free,
            guard: config.black_hole.map(Guard::new),
            idle_since: Some(Moment::START),
            config,
        }
    }

    /// Decides on one input, and on all that is due.
    #[must_use]
    pub fn handle(&mut self, now: Moment, input: Input) -> Vec<Output> {
        let mut out = Outputs::new();
        if self.intake == Intake::Over {
            if let Input::Offered(claims) = input {
                self.on_offered(now, claims, &mut out);
            }
            return out;
        }
        self.take(now, input, &mut out);
        self.advance(now, &mut out);
        debug_assert!(self.upholds(), "the pilot broke a promise: {self:?}");
        out
    }

    fn take(&mut self, now: Moment, input: Input, out: &mut Outputs) {
        match input {
            Input::Offered(claims) => self.on_offered(now, claims, out),
            Input::Prepared { claim, image, bytes_missing } => self.on_prepared(claim, image, bytes_missing),
            Input::PrepareFailed { claim, fault } => self.on_prepare_failed(now, claim, fault, out),
            Input::Slot { slot, epoch, event } => self.on_slot(now, slot, epoch, event, out),
            Input::QueueEmpty => self.on_queue_empty(now),
            Input::QueueFilled => self.on_queue_filled(),
            Input::QueueClosed => self.asking = Asking::Closed,
            Input::LeaseRenewed { claim, lease } => self.on_lease_renewed(now, claim, lease, out),
            Input::LeaseLost { claim } => self.on_lease_lost(now, claim, out),
            Input::StopClaim { claim, cause } => self.on_stop_claim(now, claim, cause, out),
            Input::ReportDone { claim } => self.on_report_done(claim),
            Input::InputHere(key) => self.on_input_here(key),
            Input::InputGone(key) => drop(self.inputs_here.remove(&key)),
            Input::Cordon => self.on_cordon(),
            Input::Uncordon => self.on_uncordon(),
            Input::Stop { kind, cause } => self.on_stop(now, kind, cause, out),
            Input::Tick => {}
        }
    }

    /// All that follows from what is known by now: what is due, then who goes where, then whether it is over.
    fn advance(&mut self, now: Moment, out: &mut Outputs) {
        self.tick_seats(now, out);
        self.tick_waiting(now, out);
        self.tick_reporting(now, out);
        self.tick_life(now, out);
        self.turn_away(out);
        self.place(now, out);
        self.ask(now, out);
        self.finish(now, out);
    }

    /// When the pilot wants [`Input::Tick`] at the latest. `None`: not before something else happens.
    pub fn deadline(&self) -> Option<Moment> {
        if self.intake == Intake::Over {
            return None;
        }
        let seats = self.seats.iter().filter_map(|seat| seat.slot.deadline());
        let waiting = self.waiting.iter().map(Waiting::deadline);
        let reporting = self.reporting.values().map(waiting::Reporting::deadline);
        seats.chain(waiting).chain(reporting).chain(self.ask_deadline()).chain(self.life_deadline()).min()
    }

    /// All slots, for status.
    pub fn slots(&self) -> impl Iterator<Item = SlotStatus> + '_ {
        self.seats.iter().map(Seat::status)
    }

    /// One slot in full.
    pub fn slot(&self, slot: SlotId) -> Option<&Slot> {
        self.seats.get(usize::try_from(slot.0).ok()?).map(|seat| &seat.slot)
    }

    /// Claims that wait for a slot, oldest first.
    pub fn waiting(&self) -> impl Iterator<Item = &Claim> {
        self.waiting.iter().map(|waiting| &*waiting.claim)
    }

    /// Whether work is taken.
    pub fn is_open(&self) -> bool {
        self.intake == Intake::Open
    }

    fn upholds(&self) -> bool {
        let running = self.seats.iter().filter(|seat| seat.slot.name() == PhaseName::Running);
        let used = running.filter_map(|seat| seat.slot.claim()).map(|claim| claim.payload.demand);
        let used = used.fold(Demand::default(), Demand::plus);
        let ids = |seat: &Seat| seat.slot.claim().map(|claim| claim.id);
        let mut held: Vec<ClaimId> = self.seats.iter().filter_map(ids).collect();
        held.extend(self.waiting.iter().map(|waiting| waiting.claim.id));
        held.extend(self.reporting.keys());
        held.sort_unstable();
        let distinct = held.windows(2).all(|pair| pair[0] != pair[1]);
        distinct
            && used.fits(&self.config.total)
            && self.seats.iter().all(|seat| seat.tenant.is_some() != seat.is_vacant())
            && self.waiting.len() <= usize::try_from(self.config.max_waiting).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
#[path = "pilot/tests.rs"]
mod tests;
