//! The pilot: a set of slots, the claims that wait for one, and the decision when to take work and when to end.
//!
//! It must not know how a queue, an image store or a runtime works, nor what time it is. One call to
//! [`Pilot::handle`] takes one thing that happened and returns all that is to be done about it, in order.
//!
//! ```text
//!   AskClaims ──> Offered ──> Prepare ──> Prepared ──match──> slot ──> Report ──> ReportDone
//!                    │           └─> PrepareFailed ──> Report   └────> Release
//!                    └─> Release (cordoned, too many, never fits)
//!   Adopted (the pilot started again) ──────────────────────> slot
//! ```
//!
//! Intake is open, cordoned (and can be opened again), or ending for a reason; the end comes as [`Output::Done`], once,
//! when every slot is quiet and every report has reached the queue or had its time. After that only claims that come
//! too late are answered: they go back. Slots that are still warm then are the driver's to take down.
//!
//! Claims of a gang wait until all of them are prepared, take their slots at the same moment, are launched at the same moment
//! once all are bound, and are reported at the same moment once all have ended (`gang.rs`).
//!
//! Guarantees: for each claim that was offered or adopted exactly one `Report` or `Release`; nothing is started unless it fits
//! into the pilot's share beside all that runs; a claim is never launched after its lease expired.

use std::collections::{BTreeMap, BTreeSet};

use crate::black_hole::Guard;
pub use crate::claim::ReleaseWhy;
use crate::claim::{Claim, ClaimId, SlotId};
use crate::outcome::StopCause;
use crate::payload::{Demand, InputKey};
use crate::slot::{PhaseName, Slot};
use crate::time::Moment;

mod adoption;
mod config;
mod ended;
mod ending;
mod gang;
mod intake;
mod seat;
mod seats;
mod together;
mod waiting;
mod words;

pub use config::{Lifetime, PilotConfig};
pub use words::{DoneWhy, Input, Output, SlotStatus, StopKind};

use ended::Ended;
use gang::Gangs;
use intake::Asking;
use seat::{Seat, Tally};
use waiting::Waiting;

/// A pilot.
#[derive(Clone, Debug)]
pub struct Pilot {
    config: PilotConfig,
    seats: Vec<Seat>,
    tally: Tally,
    waiting: Vec<Waiting>,
    /// Claims that ended here but whose report is not through: their lease, and until when to wait.
    reporting: BTreeMap<ClaimId, waiting::Reporting>,
    /// When the first of those that wait or are reported is due. It may be too early, never too late.
    due_outside: Moment,
    ended: Ended,
    gangs: Gangs,
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
    /// For good; `stop` is the hardest stop so far, if what runs was stopped at all, and what it tells payloads.
    Ending {
        why: DoneWhy,
        stop: Option<(StopKind, StopCause)>,
    },
    /// Done was said.
    Over,
}

type Outputs = Vec<Output>;

impl Pilot {
    /// A pilot that has just started, at [`Moment::START`]. It does nothing before its first input.
    pub fn new(config: PilotConfig) -> Self {
        let slot = |n| Seat::new(Slot::new(SlotId(n), config.limits));
        let seats: Vec<Seat> = (0..config.slots).map(slot).collect();
        Self {
            tally: Tally::new(&seats),
            seats,
            waiting: Vec::new(),
            reporting: BTreeMap::new(),
            due_outside: Moment(u64::MAX),
            ended: Ended::default(),
            gangs: Gangs::default(),
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
            if let Input::Offered(_) | Input::Adopted { .. } = input {
                self.take(now, input, &mut out);
            }
            return out;
        }
        // Several payloads may be adopted, one after the other: only then it shows what is free.
        let may_ask = !matches!(input, Input::Adopted { .. });
        self.take(now, input, &mut out);
        self.advance(now, may_ask, &mut out);
        debug_assert!(self.upholds(), "the pilot broke a promise: {self:?}");
        out
    }

    fn take(&mut self, now: Moment, input: Input, out: &mut Outputs) {
        match input {
            Input::Offered(claims) => self.on_offered(now, claims, out),
            Input::Prepared { claim, image, bytes_missing } => self.on_prepared(claim, image, bytes_missing),
            Input::PrepareFailed { claim, fault } => self.on_prepare_failed(now, claim, fault, out),
            Input::Adopted { slot, epoch, mut claim, image } => {
                claim.payload.image = image;
                self.on_adopted(now, slot, epoch, claim, out);
            }
            Input::Slot { slot, epoch, event } => self.on_slot(now, slot, epoch, event, out),
            Input::QueueEmpty => self.on_queue_empty(now),
            Input::QueueFilled => self.on_queue_filled(),
            Input::QueueClosed => self.asking = Asking::Closed,
            Input::LeaseRenewed { claim, lease } => self.on_lease_renewed(now, claim, lease, out),
            Input::LeaseLost { claim } => self.on_lease_lost(now, claim, out),
            Input::StopClaim { claim, cause } => self.on_stop_claim(now, claim, cause, out),
            Input::ReportDone { claim } => self.on_report_done(claim),
            Input::InputHere(key) => self.on_input_here(key),
            Input::InputGone(key) => self.on_input_gone(&key),
            Input::Cordon => self.on_cordon(),
            Input::Uncordon => self.on_uncordon(),
            Input::Stop { kind, cause } => self.on_stop(now, kind, cause, out),
            Input::Tick => {}
        }
    }

    /// All that follows from what is known by now: what is due, then who goes where, then whether it is over.
    fn advance(&mut self, now: Moment, may_ask: bool, out: &mut Outputs) {
        self.tick_seats(now, out);
        self.tick_outside(now, out);
        self.tick_life(now, out);
        self.turn_away(out);
        self.settle_gangs(now, may_ask, out);
        self.place(now, out);
        if may_ask {
            self.ask(now, out);
        }
        self.finish(now, out);
    }

    /// When the pilot wants [`Input::Tick`] at the latest. `None`: not before something else happens.
    pub fn deadline(&self) -> Option<Moment> {
        if self.intake == Intake::Over {
            return None;
        }
        let outside = Some(self.due_outside).filter(|due| *due < Moment(u64::MAX));
        let due = self.tally.due().into_iter().chain(outside);
        due.chain(self.ask_deadline()).chain(self.life_deadline()).min()
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
        // What was adopted runs without having been asked whether it fits.
        let started = |seat: &&Seat| seat.slot.name() == PhaseName::Running && !seat.slot.is_adopted();
        let running = self.seats.iter().filter(started);
        let used = running.filter_map(|seat| seat.slot.claim()).map(|claim| claim.payload.demand);
        let used = used.fold(Demand::default(), Demand::plus);
        let ids = |seat: &Seat| seat.slot.claim().map(|claim| claim.id);
        let mut held: Vec<ClaimId> = self.seats.iter().filter_map(ids).collect();
        held.extend(self.waiting.iter().map(|waiting| waiting.claim.id));
        held.extend(self.reporting.keys());
        held.extend(self.gangs.kept());
        held.sort_unstable();
        let distinct = held.windows(2).all(|pair| pair[0] != pair[1]);
        let waiting = self.waiting.iter().map(Waiting::deadline);
        let reporting = self.reporting.values().map(waiting::Reporting::deadline);
        let mut outside = waiting.chain(reporting).chain(self.gangs.deadline());
        distinct
            && self.tally == Tally::new(&self.seats)
            && outside.all(|due| self.due_outside <= due)
            && used.fits(&self.config.total)
            && self.seats.iter().all(|seat| seat.tenant.is_some() != seat.is_vacant())
            && self.waiting.len() <= self.config.max_waiting()
            && self.no_gang_is_launched_in_part()
    }
}

#[cfg(test)]
#[path = "pilot/tests.rs"]
mod tests;
