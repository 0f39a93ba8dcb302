//! The promises of a pilot, looked at from outside after every step.

use std::collections::BTreeSet;

use pilot_core::{
    ClaimId, Demand, Epoch, Input, Moment, Order, Output, Phase, PhaseName, Pilot, Slot, SlotId, Why,
};

use super::runtime::Ledger;

/// What one pilot has said so far.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    offered: BTreeSet<ClaimId>,
    ended: BTreeSet<ClaimId>,
    binds: BTreeSet<(SlotId, Epoch)>,
    launches: BTreeSet<(SlotId, Epoch)>,
    done: bool,
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
        self.check_slots(pilot, ledgers);
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

    fn check_output(&mut self, now: Moment, output: &Output) {
        match output {
            Output::Report { claim, .. } | Output::Release { claim, .. } => {
                assert!(self.offered.contains(claim), "{claim} was never offered");
                assert!(self.ended.insert(*claim), "{claim} ended twice");
            }
            Output::Slot { slot, epoch, claim, order: Order::Bind(_) } => {
                assert!(self.binds.insert((*slot, *epoch)), "{slot} was bound twice in epoch {epoch}");
                assert!(!self.ended.contains(claim), "{claim} is bound after its end");
            }
            Output::Slot { slot, epoch, claim, order: Order::Launch(launched) } => {
                assert!(!launched.is_expired(now), "{claim} is launched after its lease: {launched:?}");
                assert!(self.launches.insert((*slot, *epoch)), "{slot} launched twice in epoch {epoch}");
                assert!(!self.ended.contains(claim), "{claim} is launched after its end");
            }
            Output::Slot { .. } | Output::Prepare(_) | Output::Renew(_) => {}
            Output::Moved { from, to, .. } => _ = self.edges.insert(format!("{from} -> {to}")),
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
                Phase::Running { claim, .. } => used = used.plus(claim.payload.demand),
                Phase::Binding { .. }
                | Phase::Bound { .. }
                | Phase::Draining { .. }
                | Phase::Cleaning { .. }
                | Phase::Retired => {}
            }
        }
        assert!(used.fits(&Demand { cpu_millis: 4_000, memory_bytes: 4_000 }), "more runs than fits: {used}");
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
