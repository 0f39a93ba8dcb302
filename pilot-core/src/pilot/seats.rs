//! Who goes to which slot, who may start, and what comes of it. It must not know how claims come in and how the pilot ends.

use super::seat::Seat;
use super::seat::Tenant;
use super::together::Left;
use super::waiting::Waiting;
use super::{Intake, Output, Outputs, Pilot};
use crate::claim::{ClaimId, Epoch, Lease, SlotId};
use crate::matchmaking::{Candidate, IdleSlot, Match, Room, assign};
use crate::outcome::StopCause;
use crate::payload::Demand;
use crate::slot::{Action, End, Ending, Event, Order, Phase, PhaseName, Verdict, Why};
use crate::time::Moment;

/// A slot that is due more often than this at one moment has a limit of zero; the rest waits for the next tick.
const MAX_TICKS_AT_ONCE: u32 = 8;

impl Pilot {
    /// The slot in which a claim is not over yet.
    pub(super) fn seat_of(&self, claim: ClaimId) -> Option<usize> {
        let works = |tenant: &Tenant| tenant.claim == claim;
        let index = self.seats.iter().position(|seat| seat.tenant.as_ref().is_some_and(works))?;
        self.seats[index].slot.claim().is_some().then_some(index)
    }

    pub(super) fn index_of(&self, slot: SlotId) -> Option<usize> {
        usize::try_from(slot.0).ok().filter(|index| *index < self.seats.len())
    }

    /// News from outside. What only the pilot may decide is not taken from there.
    pub(super) fn on_slot(
        &mut self,
        now: Moment,
        slot: SlotId,
        epoch: Epoch,
        event: Event,
        out: &mut Outputs,
    ) {
        let ours = matches!(event, Event::Claimed(_) | Event::Adopted(_) | Event::Go | Event::Tick);
        match self.index_of(slot) {
            Some(index) if !ours => self.apply(now, index, epoch, event, out),
            _ => out.push(Output::Ignored { slot, epoch, event: event.name(), why: Why::NotInThisPhase }),
        }
    }

    pub(super) fn apply_own(&mut self, now: Moment, index: usize, event: Event, out: &mut Outputs) {
        let epoch = self.seats[index].slot.epoch();
        self.apply(now, index, epoch, event, out);
    }

    pub(super) fn apply(&mut self, now: Moment, index: usize, epoch: Epoch, event: Event, out: &mut Outputs) {
        self.tally.take(&self.seats[index]);
        self.apply_to_seat(now, index, epoch, event, out);
        let seat = &mut self.seats[index];
        if seat.is_vacant() && seat.tenant.is_some() {
            (seat.tenant, seat.vacant_since) = (None, now);
        }
        self.tally.put(index, seat);
    }

    fn apply_to_seat(&mut self, now: Moment, index: usize, epoch: Epoch, event: Event, out: &mut Outputs) {
        let seat = &mut self.seats[index];
        let (slot, from, name) = (seat.slot.id(), seat.slot.name(), event.name());
        let lease = seat.slot.claim().and_then(|claim| claim.lease);
        let actions = match seat.slot.handle(now, epoch, event) {
            Verdict::Ignored(why) => return out.push(Output::Ignored { slot, epoch, event: name, why }),
            Verdict::Acted(actions) => actions,
        };
        let (to, epoch) = (seat.slot.name(), seat.slot.epoch());
        // Claimed and Adopted are the only events that come to a vacant slot and count; its tenant was set before.
        let Some(tenant) = &mut seat.tenant else { return };
        let claim = tenant.claim;
        if from != to {
            if to == PhaseName::Draining {
                tenant.ended_at = Some(now);
                if !ends_well(seat.slot.phase()) {
                    self.gangs.break_up(claim);
                }
            }
            out.push(Output::Moved { slot, epoch, claim, from, to, event: name });
        }
        for action in actions {
            self.carry_out(now, index, epoch, action, lease, out);
        }
    }

    fn carry_out(
        &mut self,
        now: Moment,
        index: usize,
        epoch: Epoch,
        action: Action,
        lease: Option<Lease>,
        out: &mut Outputs,
    ) {
        let seat = &mut self.seats[index];
        let slot = seat.slot.id();
        let Some(tenant) = &mut seat.tenant else { return };
        let claim = tenant.claim;
        match action {
            Action::Order(order) => {
                if matches!(order, Order::Launch(_)) {
                    tenant.launched_at = Some(now);
                }
                out.push(Output::Slot { slot, epoch, claim, order });
            }
            Action::Renew => out.push(Output::Renew(claim)),
            Action::Release(why) => self.release(claim, why, out),
            Action::Report(outcome) => {
                let ended_at = tenant.ended_at.unwrap_or(now);
                let ran_ms = tenant.launched_at.map(|at| ended_at.ms_since(at));
                // How long an adopted payload ran before is not known, so its end says nothing about the machine.
                if !seat.slot.is_adopted() {
                    let family = tenant.family.clone();
                    self.judge(&family, &outcome, ran_ms);
                }
                self.report(now, claim, lease, outcome, out);
            }
        }
    }

    /// Ends what a slot does, within `at_most_ms` or the payload's own grace period, whichever is shorter.
    pub(super) fn stop_seat(
        &mut self,
        now: Moment,
        index: usize,
        cause: StopCause,
        at_most_ms: u64,
        out: &mut Outputs,
    ) {
        let Some(claim) = self.seats[index].slot.claim() else { return };
        let grace_ms = claim.payload.grace_ms.min(at_most_ms);
        self.apply_own(now, index, Event::Stop { cause, grace_ms }, out);
    }

    pub(super) fn tick_seats(&mut self, now: Moment, out: &mut Outputs) {
        for index in 0..self.seats.len() {
            for _ in 0..MAX_TICKS_AT_ONCE {
                if !self.tally.is_due(index, now) {
                    break;
                }
                self.apply_own(now, index, Event::Tick, out);
            }
        }
    }

    /// Processor and memory that are set aside for no one.
    pub(super) fn free(&self) -> Demand {
        self.tally.free(self.config.total)
    }

    /// How many are bound, or being bound, although their share is not free.
    pub(super) fn bound_ahead(&self) -> u32 {
        u32::try_from(self.tally.ahead).unwrap_or(u32::MAX)
    }

    /// A claim gets a slot; the slot does not know yet.
    pub(super) fn let_in(&mut self, index: usize, tenant: Tenant) {
        let seat = &mut self.seats[index];
        self.tally.take(seat);
        seat.tenant = Some(tenant);
        self.tally.put(index, seat);
    }

    /// Gives free shares to those that were bound ahead, starts what can start, and gives slots to those that wait.
    pub(super) fn place(&mut self, now: Moment, out: &mut Outputs) {
        let reserved = self.charge_the_bound(now);
        self.assign_waiting(now, reserved, out);
        if self.tally.ready == 0 {
            return;
        }
        for index in 0..self.seats.len() {
            if self.may_go(now, &self.seats[index]) {
                self.apply_own(now, index, Event::Go, out);
            }
        }
    }

    fn may_go(&self, now: Moment, seat: &Seat) -> bool {
        let charged = seat.tenant.as_ref().is_some_and(|tenant| tenant.charged);
        let Some(claim) = seat.slot.claim().filter(|_| charged && seat.slot.name() == PhaseName::Bound)
        else {
            return false;
        };
        claim.gang.is_none_or(|gang| self.gang_may_go(now, gang))
    }

    /// Oldest first. The answer is whether one of them has waited so long that all that is free is kept for it.
    fn charge_the_bound(&mut self, now: Moment) -> bool {
        if self.tally.ahead == 0 {
            return false;
        }
        let pending = |index: usize| {
            let seat = &self.seats[index];
            let tenant = seat.tenant.as_ref().filter(|tenant| !tenant.charged)?;
            let binds = matches!(seat.slot.name(), PhaseName::Binding | PhaseName::Bound);
            binds.then_some((tenant.since, tenant.claim, index))
        };
        let mut order: Vec<_> = (0..self.seats.len()).filter_map(pending).collect();
        order.sort_unstable();
        for (since, _, index) in order {
            let Some(tenant) = self.seats[index].tenant.clone() else { continue };
            if tenant.demand.fits(&self.free()) {
                self.let_in(index, Tenant { charged: true, ..tenant });
            } else if now.ms_since(since) >= self.config.aging_ms {
                return true;
            }
        }
        false
    }

    fn assign_waiting(&mut self, now: Moment, reserved: bool, out: &mut Outputs) {
        if self.intake != Intake::Open || self.waiting.is_empty() || self.tally.idle == 0 {
            return;
        }
        let free = if reserved { Demand::default() } else { self.free() };
        match self.assign_gangs(now, free, out) {
            Left::Nothing => {}
            Left::ToAll => self.assign_singles(now, reserved, |_| true, out),
        }
    }

    /// Gives slots to those of the claims that are for themselves that `may` let.
    pub(super) fn assign_singles(
        &mut self,
        now: Moment,
        reserved: bool,
        may: impl Fn(&Waiting) -> bool,
        out: &mut Outputs,
    ) {
        let candidates = self.waiting.iter().filter(|waiting| waiting.claim.gang.is_none() && may(waiting));
        let candidates: Vec<Candidate<'_>> =
            candidates.filter_map(|waiting| waiting.candidate(now)).collect();
        let slots = self.idle_slots();
        let free = if reserved { Demand::default() } else { self.free() };
        let ahead = self.config.bind_ahead.saturating_sub(self.bound_ahead());
        let room = Room { free, ahead, aging_ms: self.config.aging_ms };
        let matches = assign(&candidates, &slots, room);
        self.seat_all(now, matches, out);
    }

    pub(super) fn idle_slots(&self) -> Vec<IdleSlot<'_>> {
        let idle = self.seats.iter().filter_map(|seat| match seat.slot.phase() {
            Phase::Idle { holds } => {
                Some(IdleSlot { slot: seat.slot.id(), holds: holds.as_ref(), since: seat.vacant_since })
            }
            _ => None,
        });
        idle.collect()
    }

    pub(super) fn seat_all(&mut self, now: Moment, matches: Vec<Match>, out: &mut Outputs) {
        for found in matches {
            if let (Some(seat), Some(from)) = (self.index_of(found.slot), self.waiting_at(found.claim)) {
                self.seat(now, seat, from, found.charged, out);
            }
        }
    }

    fn seat(&mut self, now: Moment, index: usize, from: usize, charged: bool, out: &mut Outputs) {
        let waiting = self.waiting.remove(from);
        self.let_in(index, Tenant::new(&waiting.claim, waiting.since, charged));
        self.apply_own(now, index, Event::Claimed(waiting.claim), out);
    }
}

/// Whether a slot that begins to drain does so because its payload has done its work.
fn ends_well(phase: &Phase) -> bool {
    matches!(phase, Phase::Draining { end: End { ending: Ending::Exited(status), .. }, .. } if status.is_success())
}
