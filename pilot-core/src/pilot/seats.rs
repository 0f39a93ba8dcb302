//! Slots with their tenants: who goes where, who may start, and what comes of it.

use std::sync::Arc;

use super::waiting::Stage;
use super::{Intake, Output, Outputs, Pilot, SlotStatus};
use crate::claim::{ClaimId, Epoch, Lease, SlotId};
use crate::matchmaking::{Candidate, IdleSlot, Room, assign};
use crate::outcome::StopCause;
use crate::payload::{Demand, Payload};
use crate::slot::{Action, Event, Order, Phase, PhaseName, Slot, Verdict, Why};
use crate::time::Moment;

/// A slot that is due more often than this at one moment has a limit of zero; the rest waits for the next tick.
const MAX_TICKS_AT_ONCE: u32 = 8;

/// A slot and what the pilot must know of whom it works for.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub(super) slot: Slot,
    /// From the claim until the slot is clean.
    pub(super) tenant: Option<Tenant>,
}

/// Whom a slot works for.
#[derive(Clone, Debug)]
pub(super) struct Tenant {
    claim: ClaimId,
    family: Arc<str>,
    demand: Demand,
    /// When the claim was offered.
    since: Moment,
    /// Whether its share is set aside. If not, it is bound ahead and may not start.
    charged: bool,
    launched_at: Option<Moment>,
    /// When it began to drain.
    ended_at: Option<Moment>,
}

impl Seat {
    pub(super) const fn new(slot: Slot) -> Self {
        Self { slot, tenant: None }
    }

    pub(super) fn is_vacant(&self) -> bool {
        matches!(self.slot.name(), PhaseName::Idle | PhaseName::Retired)
    }

    pub(super) fn status(&self) -> SlotStatus {
        SlotStatus {
            slot: self.slot.id(),
            epoch: self.slot.epoch(),
            phase: self.slot.name(),
            claim: self.tenant.as_ref().map(|tenant| tenant.claim),
        }
    }
}

impl Pilot {
    /// The slot in which a claim is not over yet.
    pub(super) fn seat_of(&self, claim: ClaimId) -> Option<usize> {
        self.seats.iter().position(|seat| seat.slot.claim().is_some_and(|held| held.id == claim))
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
        let ours = matches!(event, Event::Claimed(_) | Event::Go | Event::Tick);
        let index = usize::try_from(slot.0).ok().filter(|index| *index < self.seats.len());
        match index {
            Some(index) if !ours => self.apply(now, index, epoch, event, out),
            _ => out.push(Output::Ignored { slot, epoch, event: event.name(), why: Why::NotInThisPhase }),
        }
    }

    pub(super) fn apply_own(&mut self, now: Moment, index: usize, event: Event, out: &mut Outputs) {
        let epoch = self.seats[index].slot.epoch();
        self.apply(now, index, epoch, event, out);
    }

    fn apply(&mut self, now: Moment, index: usize, epoch: Epoch, event: Event, out: &mut Outputs) {
        let seat = &mut self.seats[index];
        let (slot, from, name) = (seat.slot.id(), seat.slot.name(), event.name());
        let lease = seat.slot.claim().and_then(|claim| claim.lease);
        let actions = match seat.slot.handle(now, epoch, event) {
            Verdict::Ignored(why) => return out.push(Output::Ignored { slot, epoch, event: name, why }),
            Verdict::Acted(actions) => actions,
        };
        let (to, epoch) = (seat.slot.name(), seat.slot.epoch());
        // Claimed is the only event that comes to a vacant slot and counts; its tenant was set before.
        let Some(tenant) = &mut seat.tenant else { return };
        let claim = tenant.claim;
        if from != to {
            if to == PhaseName::Draining {
                tenant.ended_at = Some(now);
            }
            out.push(Output::Moved { slot, epoch, claim, from, to, event: name });
        }
        for action in actions {
            self.carry_out(now, index, epoch, action, lease, out);
        }
        if self.seats[index].is_vacant() {
            self.seats[index].tenant = None;
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
        let slot = self.seats[index].slot.id();
        let Some(tenant) = &mut self.seats[index].tenant else { return };
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
                let family = tenant.family.clone();
                self.report(now, claim, lease, outcome, &family, ran_ms, out);
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
                if self.seats[index].slot.deadline().is_none_or(|deadline| !deadline.is_due(now)) {
                    break;
                }
                self.apply_own(now, index, Event::Tick, out);
            }
        }
    }

    /// Processor and memory that are set aside for no one.
    pub(super) fn free(&self) -> Demand {
        let charged =
            self.seats.iter().filter_map(|seat| seat.tenant.as_ref()).filter(|tenant| tenant.charged);
        charged.fold(self.config.total, |free, tenant| free.minus(tenant.demand))
    }

    /// How many are bound, or being bound, although their share is not free.
    pub(super) fn bound_ahead(&self) -> u32 {
        let ahead =
            self.seats.iter().filter(|seat| seat.tenant.as_ref().is_some_and(|tenant| !tenant.charged));
        u32::try_from(ahead.count()).unwrap_or(u32::MAX)
    }

    /// Gives free shares to those that were bound ahead, starts what can start, and gives slots to those that wait.
    pub(super) fn place(&mut self, now: Moment, out: &mut Outputs) {
        let reserved = self.charge_the_bound(now);
        self.assign_waiting(now, reserved, out);
        for index in 0..self.seats.len() {
            let seat = &self.seats[index];
            if seat.slot.name() == PhaseName::Bound
                && seat.tenant.as_ref().is_some_and(|tenant| tenant.charged)
            {
                self.apply_own(now, index, Event::Go, out);
            }
        }
    }

    /// Oldest first. The answer is whether one of them has waited so long that all that is free is kept for it.
    fn charge_the_bound(&mut self, now: Moment) -> bool {
        let pending = |seat: &Seat| matches!(seat.slot.name(), PhaseName::Binding | PhaseName::Bound);
        let mut order: Vec<usize> =
            (0..self.seats.len()).filter(|index| pending(&self.seats[*index])).collect();
        order.sort_by_key(|index| {
            self.seats[*index].tenant.as_ref().map(|tenant| (tenant.since, tenant.claim))
        });
        for index in order {
            let free = self.free();
            let aging_ms = self.config.aging_ms;
            let Some(tenant) = &mut self.seats[index].tenant else { continue };
            if tenant.charged {
                continue;
            }
            if tenant.demand.fits(&free) {
                tenant.charged = true;
            } else if now.ms_since(tenant.since) >= aging_ms {
                return true;
            }
        }
        false
    }

    fn assign_waiting(&mut self, now: Moment, reserved: bool, out: &mut Outputs) {
        if self.intake != Intake::Open || self.waiting.is_empty() {
            return;
        }
        let candidates: Vec<Candidate<'_>> = self
            .waiting
            .iter()
            .filter_map(|waiting| match waiting.stage {
                Stage::Preparing { .. } => None,
                Stage::Ready { bytes_missing } => Some(Candidate {
                    claim: waiting.claim.id,
                    payload: &waiting.claim.payload,
                    waited_ms: now.ms_since(waiting.since),
                    bytes_missing,
                    inputs_missing: self.inputs_missing(&waiting.claim.payload),
                }),
            })
            .collect();
        let idle = self.seats.iter().filter_map(|seat| match seat.slot.phase() {
            Phase::Idle { holds } => Some(IdleSlot { slot: seat.slot.id(), holds: holds.as_ref() }),
            _ => None,
        });
        let slots: Vec<IdleSlot<'_>> = idle.collect();
        let free = if reserved { Demand::default() } else { self.free() };
        let ahead = self.config.bind_ahead.saturating_sub(self.bound_ahead());
        let room = Room { free, ahead, aging_ms: self.config.aging_ms };
        for found in assign(&candidates, &slots, room) {
            let (Some(seat), Some(from)) = (
                self.seats.iter().position(|seat| seat.slot.id() == found.slot),
                self.waiting.iter().position(|waiting| waiting.claim.id == found.claim),
            ) else {
                continue;
            };
            self.seat(now, seat, from, found.charged, out);
        }
    }

    fn inputs_missing(&self, payload: &Payload) -> usize {
        payload.inputs.iter().filter(|key| !self.inputs_here.contains(*key)).count()
    }

    fn seat(&mut self, now: Moment, index: usize, from: usize, charged: bool, out: &mut Outputs) {
        let waiting = self.waiting.remove(from);
        let payload = &waiting.claim.payload;
        self.seats[index].tenant = Some(Tenant {
            claim: waiting.claim.id,
            family: payload.family.clone(),
            demand: payload.demand,
            since: waiting.since,
            charged,
            launched_at: None,
            ended_at: None,
        });
        self.apply_own(now, index, Event::Claimed(waiting.claim), out);
    }
}
