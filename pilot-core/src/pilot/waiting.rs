//! Claims without a slot: those that wait for one, and those whose report is on its way.

use std::sync::Arc;

use super::{Intake, Output, Outputs, Pilot, ReleaseWhy, gang};
use crate::claim::{Claim, ClaimId, Lease};
use crate::matchmaking::Candidate;
use crate::outcome::{Conclusion, Fault, FaultClass, Outcome, StopCause};
use crate::payload::ImageKey;
use crate::slot::Event;
use crate::time::Moment;

/// A claim that has no slot yet.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    /// The claim's, where it is found quickly.
    pub(super) id: ClaimId,
    pub(super) claim: Box<Claim>,
    pub(super) since: Moment,
    pub(super) stage: Stage,
}

/// How far its preparation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Preparing { by: Moment },
    Ready { bytes_missing: u64, inputs_missing: usize },
}

/// A claim that ended here but whose report is not through.
#[derive(Clone, Debug)]
pub(super) struct Reporting {
    lease: Option<Lease>,
    by: Moment,
}

impl Waiting {
    /// As matchmaking sees it, once it is prepared.
    pub(super) fn candidate(&self, now: Moment) -> Option<Candidate<'_>> {
        match self.stage {
            Stage::Preparing { .. } => None,
            Stage::Ready { bytes_missing, inputs_missing } => Some(Candidate {
                claim: self.claim.id,
                payload: &self.claim.payload,
                waited_ms: now.ms_since(self.since),
                bytes_missing,
                inputs_missing,
            }),
        }
    }

    /// A claim that is ready has only its lease to look after: what it waits for has deadlines of its own.
    pub(super) fn deadline(&self) -> Moment {
        let lease = self.claim.lease.map(|lease| lease.deadline());
        let by = match self.stage {
            Stage::Preparing { by } => Some(by),
            Stage::Ready { .. } => None,
        };
        lease.into_iter().chain(by).min().unwrap_or(Moment(u64::MAX))
    }
}

impl Reporting {
    pub(super) fn deadline(&self) -> Moment {
        self.lease.map_or(self.by, |lease| lease.deadline().min(self.by))
    }
}

impl Pilot {
    pub(super) fn waiting_at(&self, claim: ClaimId) -> Option<usize> {
        self.waiting.iter().position(|waiting| waiting.id == claim)
    }

    pub(super) fn knows(&self, claim: ClaimId) -> bool {
        self.waiting_at(claim).is_some()
            || self.seat_of(claim).is_some()
            || self.reporting.contains_key(&claim)
            || self.gangs.gang_of(claim).is_some()
            || self.ended.contains(claim)
    }

    pub(super) fn on_prepared(&mut self, claim: ClaimId, image: ImageKey, bytes_missing: u64) {
        let Some(index) = self.waiting_at(claim) else { return };
        let waiting = &mut self.waiting[index];
        if matches!(waiting.stage, Stage::Preparing { .. }) {
            let payload = &mut waiting.claim.payload;
            payload.image = image;
            let inputs_missing = payload.inputs.iter().filter(|key| !self.inputs_here.contains(*key)).count();
            waiting.stage = Stage::Ready { bytes_missing, inputs_missing };
        }
    }

    pub(super) fn on_prepare_failed(&mut self, now: Moment, claim: ClaimId, fault: Fault, out: &mut Outputs) {
        let preparing =
            |waiting: &Waiting| waiting.claim.id == claim && matches!(waiting.stage, Stage::Preparing { .. });
        if let Some(index) = self.waiting.iter().position(preparing) {
            self.end_waiting(now, index, Conclusion::Failed(fault), out);
        }
    }

    pub(super) fn on_lease_renewed(&mut self, now: Moment, claim: ClaimId, lease: Lease, out: &mut Outputs) {
        if let Some(index) = self.waiting_at(claim) {
            self.waiting[index].claim.renew(lease);
            self.note_due(lease.deadline());
        } else if let Some(reporting) = self.reporting.get_mut(&claim) {
            if reporting.lease.is_none_or(|held| held.expires_at < lease.expires_at) {
                reporting.lease = Some(lease);
                self.note_due(lease.deadline());
            }
        } else if let Some(index) = self.seat_of(claim) {
            self.apply_own(now, index, Event::LeaseRenewed(lease), out);
        } else if self.gangs.renew(claim, lease) {
            self.note_due(lease.deadline());
        }
    }

    pub(super) fn on_lease_lost(&mut self, now: Moment, claim: ClaimId, out: &mut Outputs) {
        if let Some(index) = self.waiting_at(claim) {
            self.end_waiting(now, index, Conclusion::Lost, out);
        } else if self.reporting.contains_key(&claim) {
            self.on_report_done(claim);
        } else if let Some(index) = self.seat_of(claim) {
            self.apply_own(now, index, Event::LeaseLost, out);
        } else {
            self.gangs.lose(claim);
        }
    }

    pub(super) fn on_stop_claim(&mut self, now: Moment, claim: ClaimId, cause: StopCause, out: &mut Outputs) {
        if cause == StopCause::Cancelled {
            self.gangs.cancel(claim);
        }
        if let Some(index) = self.waiting_at(claim) {
            if cause.is_own_doing() {
                self.end_waiting(now, index, Conclusion::Stopped(cause), out);
            } else {
                let claim = self.waiting.remove(index).claim.id;
                self.release(claim, ReleaseWhy::Stopped(cause), out);
            }
        } else if let Some(index) = self.seat_of(claim) {
            self.stop_seat(now, index, cause, u64::MAX, out);
        }
    }

    pub(super) fn on_report_done(&mut self, claim: ClaimId) {
        if self.reporting.remove(&claim).is_some() {
            // What a finished payload was waited for may be on offer at once.
            self.on_queue_filled();
        }
    }

    /// Something that waits or is reported is due then, at the earliest.
    pub(super) fn note_due(&mut self, due: Moment) {
        self.due_outside = self.due_outside.min(due);
    }

    /// What is due of all that has no slot. The moment may be that of something that is over already: then nothing is.
    pub(super) fn tick_outside(&mut self, now: Moment, out: &mut Outputs) {
        if !self.due_outside.is_due(now) {
            return;
        }
        self.tick_waiting(now, out);
        self.tick_reporting(now, out);
        self.gangs.tick(now, out);
        let waiting = self.waiting.iter().map(Waiting::deadline);
        let reporting = self.reporting.values().map(Reporting::deadline);
        let outside = waiting.chain(reporting).chain(self.gangs.deadline());
        self.due_outside = outside.min().unwrap_or(Moment(u64::MAX));
    }

    fn tick_waiting(&mut self, now: Moment, out: &mut Outputs) {
        let mut index = 0;
        while let Some(waiting) = self.waiting.get_mut(index) {
            if waiting.claim.is_expired(now) {
                self.end_waiting(now, index, Conclusion::Lost, out);
                continue;
            }
            if matches!(waiting.stage, Stage::Preparing { by } if by.is_due(now)) {
                let message = format!(
                    "prepare {} within {} ms",
                    waiting.claim.payload.image, self.config.prepare_timeout_ms
                );
                let fault = Fault::new(FaultClass::Retry, message);
                self.end_waiting(now, index, Conclusion::Failed(fault), out);
                continue;
            }
            renew_if_due(now, waiting.claim.id, &mut waiting.claim.lease, out);
            index += 1;
        }
    }

    fn tick_reporting(&mut self, now: Moment, out: &mut Outputs) {
        self.reporting.retain(|claim, reporting| {
            let over =
                reporting.by.is_due(now) || reporting.lease.is_some_and(|lease| lease.expires_at.is_due(now));
            if !over {
                renew_if_due(now, *claim, &mut reporting.lease, out);
            }
            !over
        });
    }

    /// What has no slot yet goes back as soon as no more work is taken.
    pub(super) fn turn_away(&mut self, out: &mut Outputs) {
        if self.intake == Intake::Open {
            return;
        }
        for waiting in std::mem::take(&mut self.waiting) {
            self.release(waiting.claim.id, ReleaseWhy::Closed, out);
        }
    }

    pub(super) fn end_waiting(
        &mut self,
        now: Moment,
        index: usize,
        conclusion: Conclusion,
        out: &mut Outputs,
    ) {
        let claim = self.waiting.remove(index).claim;
        let outcome = Outcome::before_launch(conclusion);
        self.judge(&claim.payload.family, &outcome, None);
        self.report(now, claim.id, claim.lease, outcome, out);
    }

    pub(super) fn release(&mut self, claim: ClaimId, why: ReleaseWhy, out: &mut Outputs) {
        if self.gangs.end(claim, None, gang::How::Release(why)) {
            return;
        }
        self.ended.insert(claim);
        out.push(Output::Release { claim, why });
    }

    /// What the end of a payload of `family`, `ran_ms` after its launch, says about this machine.
    pub(super) fn judge(&mut self, family: &Arc<str>, outcome: &Outcome, ran_ms: Option<u64>) {
        if let Some(reason) = self.guard.as_mut().and_then(|guard| guard.note(family, outcome, ran_ms)) {
            self.on_black_hole(reason);
        }
    }

    pub(super) fn report(
        &mut self,
        now: Moment,
        claim: ClaimId,
        lease: Option<Lease>,
        outcome: Outcome,
        out: &mut Outputs,
    ) {
        if self.gangs.gang_of(claim).is_some() {
            let lease = lease.filter(|_| outcome.conclusion != Conclusion::Lost);
            if let Some(lease) = lease {
                self.note_due(lease.deadline());
            }
            self.gangs.end(claim, lease, gang::How::Report(outcome));
            return;
        }
        self.note_reporting(now, claim, lease, &outcome.conclusion);
        out.push(Output::Report { claim, outcome });
    }

    /// What is on its way to the queue from now on.
    pub(super) fn note_reporting(
        &mut self,
        now: Moment,
        claim: ClaimId,
        lease: Option<Lease>,
        conclusion: &Conclusion,
    ) {
        self.ended.insert(claim);
        let by = now.after_ms(self.config.report_timeout_ms);
        // A lease that is lost is not renewed, but the report still has to get through.
        let lease = lease.filter(|_| *conclusion != Conclusion::Lost);
        let reporting = Reporting { lease, by };
        self.note_due(reporting.deadline());
        self.reporting.insert(claim, reporting);
    }
}

pub(super) fn renew_if_due(now: Moment, claim: ClaimId, lease: &mut Option<Lease>, out: &mut Outputs) {
    if let Some(lease) = lease
        && lease.renew_at.is_due(now)
    {
        *lease = lease.asked(now);
        out.push(Output::Renew(claim));
    }
}
