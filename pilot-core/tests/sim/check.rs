//! The promises of a pilot, looked at from outside after every step.

use std::collections::{BTreeMap, BTreeSet};

use pilot_core::{
    Claim, ClaimId, Conclusion, Demand, Epoch, EventName, ExitStatus, Gang, GangId, Input, Moment, Order,
    Outcome, Output, Phase, PhaseName, Pilot, Slot, SlotId, StopCause, Why,
};

use super::node::TOTAL;
use super::runtime::Ledger;

/// What one pilot has said so far.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    offered: BTreeSet<ClaimId>,
    ended: BTreeSet<ClaimId>,
    binds: BTreeSet<(SlotId, Epoch)>,
    launches: BTreeSet<(SlotId, Epoch)>,
    adopted: BTreeSet<(SlotId, Epoch)>,
    /// By their user, before they had ended.
    cancelled: BTreeSet<ClaimId>,
    done: bool,
    /// Of claims that belong to gangs.
    gangs: BTreeMap<ClaimId, Gang>,
    /// Phases that slots came from and went to.
    pub(crate) edges: BTreeSet<String>,
}

impl Watch {
    /// Before stale news, all that is due is done, so that whatever changes then is the news' doing.
    pub(crate) fn tick_before(&self, pilot: &mut Pilot, now: Moment, input: &Input) -> Vec<Output> {
        if stale(pilot, input).is_none() {
            return Vec::new();
        }
        let mut outputs = pilot.handle(now, Input::Tick);
        for _ in 0..20 {
            if pilot.deadline().is_none_or(|deadline| deadline > now) {
                break;
            }
            outputs.extend(pilot.handle(now, Input::Tick));
        }
        outputs
    }

    /// Hands the input over. Stale news must change nothing.
    pub(crate) fn handle(&mut self, pilot: &mut Pilot, now: Moment, input: Input) -> Vec<Output> {
        if let Input::Offered(claims) = &input {
            self.offered.extend(claims.iter().map(|claim| claim.id));
            claims.iter().for_each(|claim| self.note_gang(claim));
        }
        if let Input::Adopted { slot, epoch, claim, .. } = &input {
            self.offered.insert(claim.id);
            self.note_gang(claim);
            self.adopted.insert((*slot, *epoch));
        }
        if let Input::StopClaim { claim, cause: StopCause::Cancelled } = &input
            && !self.ended.contains(claim)
        {
            self.cancelled.insert(*claim);
        }
        let before = stale(pilot, &input).cloned();
        let outputs = pilot.handle(now, input);
        if let Some(before) = before {
            assert_eq!(pilot.slot(before.id()), Some(&before), "stale news changed a slot");
            let silent = outputs.iter().all(|output| matches!(output, Output::Ignored { .. }));
            assert!(silent, "stale news led to {outputs:?}");
        }
        outputs
    }

    pub(crate) fn check(&mut self, now: Moment, pilot: &Pilot, outputs: &[Output], ledgers: &[Ledger]) {
        for output in outputs {
            self.check_output(now, output);
        }
        self.check_gangs(outputs);
        self.check_slots(pilot, ledgers);
        self.check_room(pilot, outputs);
        if !self.done {
            let held =
                pilot.slots().filter_map(|slot| slot.claim).chain(pilot.waiting().map(|claim| claim.id));
            let mut held: Vec<ClaimId> = held.collect();
            let all = held.len();
            held.sort_unstable();
            held.dedup();
            assert_eq!(held.len(), all, "a claim is in two places");
        }
    }

    fn note_gang(&mut self, claim: &Claim) {
        if let Some(gang) = claim.gang {
            self.gangs.insert(claim.id, gang);
        }
    }

    /// All of a gang is launched at once, and all of it ends at once: released, or reported with all successful or none.
    fn check_gangs(&mut self, outputs: &[Output]) {
        let mut launched: BTreeMap<GangId, u32> = BTreeMap::new();
        let mut released: BTreeMap<GangId, u32> = BTreeMap::new();
        for output in outputs {
            match output {
                Output::Slot { slot, epoch, claim, order: Order::Launch(_) }
                    if !self.adopted.contains(&(*slot, *epoch)) =>
                {
                    let gang = self.gangs.get(claim);
                    gang.into_iter().for_each(|gang| *launched.entry(gang.id).or_default() += 1);
                }
                Output::Release { claim, .. } => {
                    let gang = self.gangs.get(claim);
                    gang.into_iter().for_each(|gang| *released.entry(gang.id).or_default() += 1);
                }
                Output::Report { claim, .. } if !self.done => {
                    assert!(!self.gangs.contains_key(claim), "{claim} of a gang is reported alone");
                }
                Output::ReportTogether(ends) => {
                    let good = ends.iter().filter(|(_, outcome)| outcome.is_success()).count();
                    assert!(good == 0 || good == ends.len(), "a part of a gang succeeded: {ends:?}");
                    let own = ends
                        .iter()
                        .any(|(_, outcome)| !matches!(outcome.conclusion, Conclusion::GangFailed(_)));
                    assert!(own, "nobody is to blame: {ends:?}");
                    let how = if good > 0 { "gang succeeded" } else { "gang failed" };
                    self.edges.insert(how.to_owned());
                }
                _ => {}
            }
        }
        self.edges.extend((!released.is_empty()).then(|| "gang released".to_owned()));
        for gang in self.gangs.values() {
            for counts in [&launched, &released] {
                assert!(
                    counts.get(&gang.id).is_none_or(|count| *count == gang.size),
                    "half of {gang:?}: {outputs:?}"
                );
            }
        }
    }

    /// What is cancelled does not come back, neither at once nor by way of a retry.
    fn check_cancelled(&self, claim: ClaimId, outcome: &Outcome) {
        if self.cancelled.contains(&claim) {
            let status = outcome.status;
            let fine = match &outcome.conclusion {
                Conclusion::Stopped(StopCause::Cancelled) | Conclusion::Lost => true,
                // It had ended well, and its outputs were on their way.
                Conclusion::Succeeded | Conclusion::Failed(_) => status == Some(ExitStatus::SUCCESS),
                Conclusion::Stopped(_) | Conclusion::Exited(_) | Conclusion::GangFailed(_) => false,
            };
            assert!(fine, "{claim} was cancelled, but ended as {outcome:?}");
        }
    }

    fn end(&mut self, claim: ClaimId) {
        assert!(self.offered.contains(&claim), "{claim} was never offered");
        assert!(self.ended.insert(claim), "{claim} ended twice");
    }

    fn check_output(&mut self, now: Moment, output: &Output) {
        match output {
            Output::Report { claim, outcome } => {
                self.check_cancelled(*claim, outcome);
                self.end(*claim);
            }
            Output::ReportTogether(ends) => {
                for (claim, outcome) in ends {
                    self.check_cancelled(*claim, outcome);
                    self.end(*claim);
                }
            }
            Output::Release { claim, .. } => {
                assert!(!self.cancelled.contains(claim), "{claim} was cancelled, but goes back");
                self.end(*claim);
            }
            Output::Slot { slot, epoch, claim, order: Order::Bind(_) } => {
                assert!(self.binds.insert((*slot, *epoch)), "{slot} was bound twice in epoch {epoch}");
                assert!(!self.ended.contains(claim), "{claim} is bound after its end");
            }
            Output::Slot { slot, epoch, claim, order: Order::Launch(launched) } => {
                let adopted = self.adopted.contains(&(*slot, *epoch));
                assert!(adopted || !launched.is_expired(now), "launched after its lease: {launched:?}");
                assert!(self.launches.insert((*slot, *epoch)), "{slot} launched twice in epoch {epoch}");
                assert!(!self.ended.contains(claim), "{claim} is launched after its end");
            }
            Output::Slot { .. } | Output::Prepare(_) | Output::Renew(_) => {}
            Output::Moved { from, to, event: EventName::Adopted, .. } => {
                self.edges.insert(format!("{from} -> {to}, adopted"));
            }
            Output::Moved { from, to, .. } => _ = self.edges.insert(format!("{from} -> {to}")),
            // A slot that there was in an earlier life may be missing in this one.
            Output::Ignored { event: EventName::Adopted, .. } => {}
            Output::Ignored { slot, event, why, .. } => {
                assert_ne!(
                    *why,
                    Why::NotInThisPhase,
                    "{slot} takes {event} for a fault, but no one here lies"
                );
            }
            Output::AskClaims(n) => assert!(*n > 0 && *n <= 8, "asked for {n} claims"),
            Output::Done(_) => {
                assert!(!self.done, "done twice");
                self.done = true;
                assert_eq!(self.offered, self.ended, "claims were forgotten");
            }
        }
    }

    fn check_slots(&self, pilot: &Pilot, ledgers: &[Ledger]) {
        let mut used = Demand::default();
        for (status, ledger) in pilot.slots().zip(ledgers) {
            let Some(slot) = pilot.slot(status.slot) else { continue };
            let rests = matches!(slot.name(), PhaseName::Idle | PhaseName::Retired);
            assert_eq!(slot.deadline().is_none(), rests, "who waits must have a deadline: {slot:?}");
            match slot.phase() {
                Phase::Idle { holds: None } => {
                    assert!(ledger.is_empty() || ledger.is_warm_only(), "traces are left: {ledger:?}");
                }
                Phase::Idle { holds: Some(held) } => {
                    assert!(ledger.is_warm_only(), "{held:?} is not what is there: {ledger:?}");
                }
                Phase::Running { .. } if slot.is_adopted() => {}
                Phase::Running { claim, .. } => used = used.plus(claim.payload.demand),
                Phase::Binding { .. }
                | Phase::Bound { .. }
                | Phase::Draining { .. }
                | Phase::Cleaning { .. }
                | Phase::Retired => {}
            }
        }
        assert!(used.fits(&TOTAL), "more runs than fits: {used}");
    }

    /// What is adopted may be too much, but then nothing is started beside it.
    fn check_room(&self, pilot: &Pilot, outputs: &[Output]) {
        let starts = |output: &Output| match output {
            Output::Slot { slot, epoch, order: Order::Launch(_), .. } => {
                !self.adopted.contains(&(*slot, *epoch))
            }
            _ => false,
        };
        if outputs.iter().any(starts) {
            let slots = pilot.slots().filter(|slot| slot.phase == PhaseName::Running);
            let claims = slots.filter_map(|slot| pilot.slot(slot.slot)?.claim());
            let used = claims.fold(Demand::default(), |used, claim| used.plus(claim.payload.demand));
            assert!(used.fits(&TOTAL), "started where there is no room: {used}");
        }
    }

    /// After a long silence time alone must have ended everything.
    pub(crate) fn assert_at_rest(&self, pilot: &Pilot) {
        for slot in pilot.slots() {
            assert!(matches!(slot.phase, PhaseName::Idle | PhaseName::Retired), "waits for ever: {slot:?}");
        }
    }
}

fn stale<'a>(pilot: &'a Pilot, input: &Input) -> Option<&'a Slot> {
    match input {
        Input::Slot { slot, epoch, .. } => pilot.slot(*slot).filter(|slot| slot.epoch() != *epoch),
        _ => None,
    }
}
