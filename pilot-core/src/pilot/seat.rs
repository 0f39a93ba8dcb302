//! A slot with its tenant, and the sums over all of them that most decisions need. It must not know who decides what.

use std::sync::Arc;

use super::SlotStatus;
use crate::claim::{Claim, ClaimId};
use crate::payload::Demand;
use crate::slot::{PhaseName, Slot};
use crate::time::Moment;

/// A slot and what the pilot must know of whom it works for.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub(super) slot: Slot,
    /// From the claim until the slot is clean.
    pub(super) tenant: Option<Tenant>,
    pub(super) vacant_since: Moment,
}

/// Whom a slot works for.
#[derive(Clone, Debug)]
pub(super) struct Tenant {
    pub(super) claim: ClaimId,
    pub(super) family: Arc<str>,
    pub(super) demand: Demand,
    /// When the claim was offered.
    pub(super) since: Moment,
    /// Whether its share is set aside. If not, it is bound ahead and may not start.
    pub(super) charged: bool,
    pub(super) launched_at: Option<Moment>,
    /// When it began to drain.
    pub(super) ended_at: Option<Moment>,
}

impl Seat {
    pub(super) const fn new(slot: Slot) -> Self {
        Self { slot, tenant: None, vacant_since: Moment::START }
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

impl Tenant {
    pub(super) fn new(claim: &Claim, since: Moment, charged: bool) -> Self {
        Self {
            claim: claim.id,
            family: claim.payload.family.clone(),
            demand: claim.payload.demand,
            since,
            charged,
            launched_at: None,
            ended_at: None,
        }
    }
}

/// Sums over all seats, kept up to date by whoever changes one: it is taken out before, and put in again after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Slots that could take a claim.
    pub(super) idle: usize,
    /// Slots with nothing of any payload.
    pub(super) vacant: usize,
    /// Slots that are never used again.
    pub(super) retired: usize,
    /// Slots whose payload could start now.
    pub(super) ready: usize,
    /// Tenants whose share is not set aside.
    pub(super) ahead: usize,
    /// What is set aside. Adopted payloads can be more than there is, so that this may not saturate.
    cpu_millis: u128,
    memory_bytes: u128,
    /// When each seat is due; the end of time for one that waits for no one.
    dues: Vec<Moment>,
}

impl Tally {
    pub(super) fn new(seats: &[Seat]) -> Self {
        let mut tally = Self { dues: vec![Moment(u64::MAX); seats.len()], ..Self::default() };
        for (index, seat) in seats.iter().enumerate() {
            tally.put(index, seat);
        }
        tally
    }

    /// Before a change.
    pub(super) fn take(&mut self, seat: &Seat) {
        let (phase, tenant) = (seat.slot.name(), seat.tenant.as_ref());
        self.idle -= usize::from(phase == PhaseName::Idle);
        self.vacant -= usize::from(seat.is_vacant());
        self.retired -= usize::from(phase == PhaseName::Retired);
        if let Some(tenant) = tenant.filter(|tenant| tenant.charged) {
            self.ready -= usize::from(phase == PhaseName::Bound);
            self.cpu_millis -= u128::from(tenant.demand.cpu_millis);
            self.memory_bytes -= u128::from(tenant.demand.memory_bytes);
        }
        self.ahead -= usize::from(tenant.is_some_and(|tenant| !tenant.charged));
    }

    /// After a change.
    pub(super) fn put(&mut self, index: usize, seat: &Seat) {
        let (phase, tenant) = (seat.slot.name(), seat.tenant.as_ref());
        self.idle += usize::from(phase == PhaseName::Idle);
        self.vacant += usize::from(seat.is_vacant());
        self.retired += usize::from(phase == PhaseName::Retired);
        if let Some(tenant) = tenant.filter(|tenant| tenant.charged) {
            self.ready += usize::from(phase == PhaseName::Bound);
            self.cpu_millis += u128::from(tenant.demand.cpu_millis);
            self.memory_bytes += u128::from(tenant.demand.memory_bytes);
        }
        self.ahead += usize::from(tenant.is_some_and(|tenant| !tenant.charged));
        self.dues[index] = seat.slot.deadline().unwrap_or(Moment(u64::MAX));
    }

    /// What is set aside for no one. Nothing where adopted payloads take more than there is.
    pub(super) fn free(&self, total: Demand) -> Demand {
        let left = |total: u64, used: u128| total.saturating_sub(u64::try_from(used).unwrap_or(u64::MAX));
        Demand {
            cpu_millis: left(total.cpu_millis, self.cpu_millis),
            memory_bytes: left(total.memory_bytes, self.memory_bytes),
        }
    }

    pub(super) fn is_due(&self, index: usize, now: Moment) -> bool {
        self.dues[index] != Moment(u64::MAX) && self.dues[index].is_due(now)
    }

    /// When the first seat is due.
    pub(super) fn due(&self) -> Option<Moment> {
        self.dues.iter().copied().min().filter(|due| *due < Moment(u64::MAX))
    }
}
