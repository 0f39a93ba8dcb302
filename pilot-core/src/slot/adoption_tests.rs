//! A payload that was launched by an earlier life of the pilot: whatever comes, it counts as launched.

use super::tests::{claim, fault};
use super::*;
use crate::claim::Lease;
use crate::outcome::{Outcome, Usage};

const NOW: Moment = Moment(1_000);
const EPOCH: Epoch = Epoch(41);

fn adopted(claim: Box<Claim>) -> Slot {
    let mut slot = Slot::new(SlotId(0), SlotLimits::default());
    assert_eq!(slot.handle(NOW, EPOCH, Event::Adopted(claim)), Verdict::Acted(Vec::new()));
    assert_eq!((slot.name(), slot.epoch()), (PhaseName::Bound, EPOCH));
    slot
}

fn give(slot: &mut Slot, event: Event) -> Vec<Action> {
    match slot.handle(NOW, slot.epoch(), event) {
        Verdict::Acted(actions) => actions,
        Verdict::Ignored(why) => panic!("ignored: {why:?}"),
    }
}

fn last_report(slot: &mut Slot) -> Outcome {
    let usage = Usage { wall_us: 5, ..Usage::default() };
    match give(slot, Event::Drained(Drained { usage, fault: None })).into_iter().next() {
        Some(Action::Report(outcome)) => outcome,
        other => panic!("the first action is the report, not {other:?}"),
    }
}

#[test]
fn it_goes_the_ordinary_way_in_its_old_epoch_and_the_next_claim_has_the_next() {
    let mut slot = adopted(claim(1, "red"));
    let orders = give(&mut slot, Event::Go);
    assert!(matches!(&orders[..], [Action::Order(Order::Launch(claim))] if claim.id == ClaimId(1)));
    assert_eq!(slot.deadline(), Some(NOW.after_ms(1_000)), "what is left of its walltime");
    give(&mut slot, Event::Exited(ExitStatus::SUCCESS.into()));
    assert!(last_report(&mut slot).is_success());
    give(&mut slot, Event::Cleaned { warm: true });
    give(&mut slot, Event::Claimed(claim(2, "red")));
    assert_eq!((slot.name(), slot.epoch(), slot.is_adopted()), (PhaseName::Bound, Epoch(42), false));
}

#[test]
fn only_a_slot_that_was_never_used_adopts_and_only_what_has_an_epoch_with_a_next_one() {
    let refused = Verdict::Ignored(Why::NotInThisPhase);
    for epoch in [Epoch(0), Epoch(u64::MAX)] {
        let mut slot = Slot::new(SlotId(0), SlotLimits::default());
        assert_eq!(slot.handle(NOW, epoch, Event::Adopted(claim(1, "red"))), refused);
        assert_eq!(slot, Slot::new(SlotId(0), SlotLimits::default()));
    }
    let mut slot = adopted(claim(1, "red"));
    for epoch in [EPOCH, Epoch(42)] {
        assert_eq!(slot.handle(NOW, epoch, Event::Adopted(claim(1, "red"))), refused);
    }
}

#[test]
fn a_launch_that_failed_only_means_that_the_payload_is_out_of_sight() {
    let mut slot = adopted(claim(1, "red"));
    give(&mut slot, Event::Go);
    give(&mut slot, Event::LaunchFailed(fault()));
    assert!(last_report(&mut slot).launched);
}

#[test]
fn whatever_ends_it_before_it_is_watched_counts_as_after_its_launch() {
    let stop = Event::Stop { cause: StopCause::Preempted, grace_ms: 10 };
    for event in [stop, Event::LeaseLost, Event::SlotLost(fault())] {
        let mut slot = adopted(claim(1, "red"));
        give(&mut slot, event);
        assert!(last_report(&mut slot).launched);
    }
    let mut slot = adopted(claim(1, "red"));
    let due = slot.deadline().unwrap_or(NOW);
    let mut fresh = claim(1, "red");
    fresh.lease = None;
    let mut unleased = adopted(fresh);
    for slot in [&mut slot, &mut unleased] {
        let late = due.after_ms(SlotLimits::default().bound_wait_ms);
        let _ = slot.handle(late, EPOCH, Event::Tick);
        assert!(last_report(slot).launched);
    }
}

#[test]
fn one_whose_lease_is_over_is_watched_and_told_to_end() {
    let mut held = claim(1, "red");
    held.lease = Some(Lease { renew_at: Moment(0), expires_at: Moment(0) });
    let mut slot = adopted(held);
    assert!(matches!(give(&mut slot, Event::Go)[..], [Action::Order(Order::Launch(_))]));
    let term = Order::Signal(Signal::Term { grace_ms: 300 });
    assert_eq!(give(&mut slot, Event::Tick), [Action::Order(term)]);
    give(&mut slot, Event::Exited(ExitStatus::SUCCESS.into()));
    let outcome = last_report(&mut slot);
    assert_eq!((outcome.conclusion, outcome.launched), (crate::outcome::Conclusion::Lost, true));
}
