//! Gangs from offer to report: taken in whole, seated whole, launched whole, ended whole.
//!
//! A gang takes its slots only when there is one for each member and its whole share is free: never does one hold a part of
//! what it needs while it waits for the rest, so two of them can't wait for each other. One that has waited long keeps what
//! is idle until it has enough.
//!
//! It must not know how a claim comes to a slot or to its end.

use super::gang::Sentence;
use super::{Intake, Output, Outputs, Pilot, ReleaseWhy};
use crate::claim::{Claim, ClaimId, Gang, GangId, Lease};
use crate::matchmaking::{Candidate, Room, assign};
use crate::outcome::{Conclusion, Fault, FaultClass, Outcome, StopCause};
use crate::payload::Demand;
use crate::slot::PhaseName;
use crate::time::Moment;

/// What gangs have left to those that are for themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// One of them waits for all that is idle.
    Nothing,
    /// Slots that none of them can use now.
    ToAll,
}

/// A gang whose members are all prepared.
struct Ready {
    since: Moment,
    gang: GangId,
    members: Vec<ClaimId>,
    demand: Demand,
}

impl Pilot {
    /// Claims of one gang that came in one offer.
    pub(super) fn take_in_together(&mut self, now: Moment, claims: Vec<Claim>, out: &mut Outputs) {
        // An offer that comes twice.
        if claims.iter().any(|claim| self.knows(claim.id)) {
            return;
        }
        let fault = self.never_fits(&claims);
        let has_room = self.waiting.len() + claims.len() <= self.config.max_waiting();
        let why = match self.intake {
            Intake::Open if has_room || fault.is_some() => None,
            Intake::Open => Some(ReleaseWhy::NoRoom),
            Intake::Cordoned | Intake::Ending { .. } | Intake::Over => Some(ReleaseWhy::Closed),
        };
        if let Some(why) = why {
            return claims.iter().for_each(|claim| self.release(claim.id, why, out));
        }
        claims.iter().for_each(|claim| self.gangs.join(claim));
        let lost = claims.iter().any(|claim| claim.is_expired(now));
        for claim in claims {
            // The others follow the first.
            match &fault {
                Some(fault) => self.fail(now, &claim, Conclusion::Failed(fault.clone()), out),
                None if lost => self.fail(now, &claim, Conclusion::Lost, out),
                None => self.let_wait(now, claim, out),
            }
        }
    }

    fn fail(&mut self, now: Moment, claim: &Claim, conclusion: Conclusion, out: &mut Outputs) {
        let first = claim.gang.and_then(|gang| self.gangs.ring(gang.id)).is_none_or(|ring| !ring.broken);
        let lease = claim.lease.filter(|lease| !lease.expires_at.is_due(now));
        let conclusion = if first { conclusion } else { Conclusion::Stopped(StopCause::GangEnded) };
        self.report(now, claim.id, lease, Outcome::before_launch(conclusion), out);
    }

    /// Slots that may ever be idle again.
    fn usable(&self) -> usize {
        self.seats.len() - self.tally.retired
    }

    /// Why these claims can't run together here, ever.
    fn never_fits(&self, claims: &[Claim]) -> Option<Fault> {
        let size = claims.first()?.gang?.size;
        if usize::try_from(size).is_ok_and(|size| size != claims.len()) {
            let text = format!("the queue offered {} of the {size} payloads of its gang", claims.len());
            return Some(Fault::new(FaultClass::Pilot, text));
        }
        let demand = claims.iter().fold(Demand::default(), |sum, claim| sum.plus(claim.payload.demand));
        (claims.len() > self.usable() || !demand.fits(&self.config.total))
            .then(|| self.too_large(claims.len(), demand))
    }

    fn too_large(&self, size: usize, demand: Demand) -> Fault {
        let (slots, total) = (self.usable(), self.config.total);
        let text = format!(
            "its gang needs {size} slots with {demand} at once, more than the pilot's {slots} with {total}; \
             give the pilot more, or connect fewer payloads by pipe and shared outputs"
        );
        Fault::new(FaultClass::Payload, text)
    }

    /// Seats gangs, oldest first, and before them what is for itself and has waited longer than any of them should.
    pub(super) fn assign_gangs(&mut self, now: Moment, free: Demand, out: &mut Outputs) -> Left {
        if self.gangs.is_empty() {
            return Left::ToAll;
        }
        let ready = self.ready_gangs();
        let Some(first) = ready.first().map(|gang| gang.since) else { return Left::ToAll };
        let aging_ms = self.config.aging_ms;
        let is_older = |since: Moment| since < first && now.ms_since(since) >= aging_ms;
        self.assign_singles(now, free == Demand::default(), |waiting| is_older(waiting.since), out);
        let passed = self.waiting.iter().any(|waiting| {
            waiting.claim.gang.is_none() && is_older(waiting.since) && waiting.candidate(now).is_some()
        });
        for gang in ready {
            let fits = gang.members.len() <= self.tally.idle && gang.demand.fits(&self.free());
            if fits && !passed && gang.demand.fits(&free) {
                self.seat_gang(now, &gang, out);
            } else if now.ms_since(gang.since) >= aging_ms {
                return Left::Nothing;
            }
        }
        if passed { Left::Nothing } else { Left::ToAll }
    }

    fn ready_gangs(&self) -> Vec<Ready> {
        let ready = |gang: GangId| {
            let ring = self.gangs.ring(gang).filter(|ring| !ring.broken)?;
            let mut found =
                Ready { since: Moment(u64::MAX), gang, members: Vec::new(), demand: Demand::default() };
            for member in &ring.members {
                let waiting = &self.waiting[self.waiting_at(member.claim)?];
                waiting.candidate(Moment::START)?;
                found.since = found.since.min(waiting.since);
                found.members.push(member.claim);
                found.demand = found.demand.plus(waiting.claim.payload.demand);
            }
            (found.members.len() == ring.size).then_some(found)
        };
        let mut all: Vec<Ready> = self.gangs.ids().into_iter().filter_map(ready).collect();
        all.sort_by_key(|ready| (ready.since, ready.gang));
        all
    }

    fn seat_gang(&mut self, now: Moment, gang: &Ready, out: &mut Outputs) {
        let waiting = self.waiting.iter().filter(|waiting| gang.members.contains(&waiting.id));
        let candidates: Vec<Candidate<'_>> = waiting.filter_map(|waiting| waiting.candidate(now)).collect();
        let room = Room { free: gang.demand, ahead: 0, aging_ms: u64::MAX };
        let matches = assign(&candidates, &self.idle_slots(), room);
        if matches.len() == gang.members.len() {
            self.seat_all(now, matches, out);
        }
    }

    /// Whether all of a gang is bound, or on its way with it, and none of it would be launched in vain.
    pub(super) fn gang_may_go(&self, now: Moment, gang: Gang) -> bool {
        let Some(ring) = self.gangs.ring(gang.id) else { return false };
        let may_go = |claim: ClaimId| {
            let Some(index) = self.seat_of(claim) else { return false };
            let slot = &self.seats[index].slot;
            matches!(slot.name(), PhaseName::Bound | PhaseName::Running)
                && slot.claim().is_some_and(|claim| !claim.is_expired(now))
        };
        !ring.broken
            && ring.members.len() == ring.size
            && ring.members.iter().all(|member| may_go(member.claim))
    }

    /// Ends what is left of gangs that are broken, and closes those whose members have all ended. Whether all that were adopted
    /// are here is known only when no more come.
    pub(super) fn settle_gangs(&mut self, now: Moment, all_are_here: bool, out: &mut Outputs) {
        for gang in self.gangs.ids() {
            let Some(ring) = self.gangs.ring(gang) else { continue };
            let members: Vec<ClaimId> = ring.members.iter().map(|member| member.claim).collect();
            if members.len() < ring.size && all_are_here {
                self.gangs.break_up_all(gang);
            } else if ring.size > self.usable() && !ring.broken {
                self.fail_where_too_large(now, &members, out);
            }
            if self.gangs.ring(gang).is_some_and(|ring| ring.broken) {
                members.iter().for_each(|claim| self.end_member(now, *claim, out));
            }
            match self.gangs.close(gang) {
                Some(Sentence::Release(ends)) => {
                    ends.into_iter().for_each(|(claim, why)| self.release(claim, why, out));
                }
                Some(Sentence::Report(ends)) => self.report_together(now, ends, out),
                None => {}
            }
        }
    }

    /// Slots were retired since it was taken in.
    fn fail_where_too_large(&mut self, now: Moment, members: &[ClaimId], out: &mut Outputs) {
        let waiting: Option<Vec<usize>> = members.iter().map(|claim| self.waiting_at(*claim)).collect();
        let Some((waiting, first)) = waiting.and_then(|all| Some((all.clone(), *all.first()?))) else {
            return;
        };
        let demands = waiting.iter().map(|index| self.waiting[*index].claim.payload.demand);
        let fault = self.too_large(members.len(), demands.fold(Demand::default(), Demand::plus));
        self.end_waiting(now, first, Conclusion::Failed(fault), out);
    }

    fn end_member(&mut self, now: Moment, claim: ClaimId, out: &mut Outputs) {
        if let Some(index) = self.waiting_at(claim) {
            self.waiting.remove(index);
            self.release(claim, ReleaseWhy::Stopped(StopCause::GangEnded), out);
        } else if let Some(index) = self.seat_of(claim)
            && matches!(
                self.seats[index].slot.name(),
                PhaseName::Binding | PhaseName::Bound | PhaseName::Running
            )
        {
            self.stop_seat(now, index, StopCause::GangEnded, u64::MAX, out);
        }
    }

    fn report_together(
        &mut self,
        now: Moment,
        ends: Vec<(ClaimId, Option<Lease>, Outcome)>,
        out: &mut Outputs,
    ) {
        let note = |(claim, lease, outcome): (ClaimId, _, Outcome)| {
            self.note_reporting(now, claim, lease, &outcome.conclusion);
            (claim, outcome)
        };
        out.push(Output::ReportTogether(ends.into_iter().map(note).collect()));
    }

    /// Whether no member of a gang waits for its launch while another one runs.
    pub(super) fn no_gang_is_launched_in_part(&self) -> bool {
        self.gangs.ids().into_iter().filter_map(|gang| self.gangs.ring(gang)).all(|ring| {
            let phase = |claim: ClaimId| self.seat_of(claim).map(|index| self.seats[index].slot.name());
            let is = |wanted: &[PhaseName]| {
                ring.members
                    .iter()
                    .any(|member| phase(member.claim).is_some_and(|phase| wanted.contains(&phase)))
            };
            let waits = ring.members.iter().any(|member| self.waiting_at(member.claim).is_some());
            !(is(&[PhaseName::Running]) && (waits || is(&[PhaseName::Binding, PhaseName::Bound])))
        })
    }
}
