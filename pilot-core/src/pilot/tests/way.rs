//! From a ready claim to its report.

use super::*;

#[test]
fn the_way_of_a_payload() {
    let mut bench = Bench::new(config(1));
    bench.offer(claim(1));
    assert_eq!(bench.phase(0), PhaseName::Binding);
    let outputs = bench.event(0, Event::Bound);
    assert!(matches!(orders(&outputs)[..], [(0, Order::Launch(_))]));
    let outputs = bench.event(0, Event::Exited(ExitStatus::SUCCESS.into()));
    assert_eq!(orders(&outputs), [(0, &Order::Drain { commit: true })]);
    let outputs = bench.event(0, Event::Drained(Drained::default()));
    assert_eq!(reported(&outputs), [(1, Conclusion::Succeeded)]);
    assert_eq!(orders(&outputs), [(0, &Order::Clean)]);
    bench.event(0, Event::Cleaned { warm: false });
    assert_eq!(bench.phase(0), PhaseName::Idle);
}

#[test]
fn the_bind_carries_the_digest_that_preflight_found() {
    let mut bench = Bench::new(config(1));
    bench.give(Input::Offered(vec![claim(1)]));
    let image = ImageKey::from("sha256:1");
    let outputs = bench.give(Input::Prepared { claim: ClaimId(1), image: image.clone(), bytes_missing: 0 });
    assert!(matches!(&orders(&outputs)[..], [(0, Order::Bind(claim))] if claim.payload.image == image));
}

#[test]
fn a_warm_slot_launches_without_a_bind() {
    let mut bench = Bench::new(config(1));
    bench.run(claim(1), 0);
    bench.event(0, Event::Exited(ExitStatus::SUCCESS.into()));
    bench.event(0, Event::Drained(Drained::default()));
    bench.event(0, Event::Cleaned { warm: true });
    let outputs = bench.offer(claim(2));
    assert!(matches!(&orders(&outputs)[..], [(0, Order::Launch(claim))] if claim.id == ClaimId(2)));
}

#[test]
fn no_one_waits_for_a_busy_slot_that_holds_its_image_while_another_is_idle() {
    let mut bench = Bench::new(config(2));
    bench.run(claim(1), 0);
    bench.offer(claim(2));
    assert_eq!((bench.phase(0), bench.phase(1)), (PhaseName::Running, PhaseName::Binding));
}

#[test]
fn a_payload_goes_where_its_image_and_group_are_and_leaves_the_warmth_of_others_alone() {
    let mut bench = Bench::new(config(3));
    let of = |id, image: &str| {
        let mut claim = claim(id);
        claim.payload.image = image.into();
        claim
    };
    for (id, image) in [(1, "red"), (2, "green")] {
        bench.run(of(id, image), u32::try_from(id - 1).unwrap_or_default());
    }
    for slot in 0..2 {
        bench.event(slot, Event::Exited(ExitStatus::SUCCESS.into()));
        bench.event(slot, Event::Drained(Drained::default()));
        bench.wait(1);
        bench.event(slot, Event::Cleaned { warm: true });
    }
    bench.offer(of(3, "green"));
    assert_eq!(bench.phase(1), PhaseName::Running, "warm");
    bench.offer(of(4, "blue"));
    assert_eq!(bench.phase(2), PhaseName::Binding, "empty");
    bench.offer(of(5, "blue"));
    assert_eq!(bench.phase(0), PhaseName::Binding, "nothing else is left");
}

#[test]
fn payloads_that_run_together_fit_into_the_share_of_the_pilot() {
    let mut bench = Bench::new(config(3));
    bench.run(sized(1, 2), 0);
    bench.offer(sized(2, 2));
    assert_eq!(bench.phase(1), PhaseName::Idle);
    bench.run(sized(3, 1), 1);
    bench.end(0, ExitStatus::SUCCESS);
    assert_eq!(bench.phase(0), PhaseName::Binding);
}

#[test]
fn a_claim_bound_ahead_starts_when_its_share_is_free() {
    let mut bench = Bench::new(PilotConfig { bind_ahead: 1, ..config(2) });
    bench.run(sized(1, 2), 0);
    bench.offer(sized(2, 2));
    bench.event(1, Event::Bound);
    assert_eq!(bench.phase(1), PhaseName::Bound);
    let outputs = bench.end(0, ExitStatus::SUCCESS);
    assert!(orders(&outputs).iter().any(|(slot, order)| *slot == 1 && matches!(order, Order::Launch(_))));
}

#[test]
fn a_claim_bound_ahead_that_waits_too_long_goes_back() {
    let limits = SlotLimits { bound_wait_ms: 1_000, ..SlotLimits::default() };
    let mut bench = Bench::new(PilotConfig { bind_ahead: 1, limits, ..config(2) });
    bench.run(sized(1, 2), 0);
    bench.offer(sized(2, 2));
    bench.event(1, Event::Bound);
    bench.wait(1_000);
    assert_eq!(
        released(&bench.event(1, Event::Drained(Drained::default()))),
        [(2, ReleaseWhy::WaitedTooLong)]
    );
}

#[test]
fn small_claims_do_not_starve_one_that_is_bound_ahead() {
    let mut bench = Bench::new(PilotConfig { bind_ahead: 1, aging_ms: 1_000, ..config(4) });
    bench.run(sized(1, 3), 0);
    bench.offer(sized(2, 4));
    bench.event(1, Event::Bound);
    bench.wait(1_000);
    bench.offer(sized(3, 1));
    assert_eq!(bench.phase(2), PhaseName::Idle);
    bench.end(0, ExitStatus::SUCCESS);
    assert_eq!(bench.phase(1), PhaseName::Running);
}

#[test]
fn what_has_its_inputs_here_goes_first() {
    let mut bench = Bench::new(config(1));
    bench.run(claim(1), 0);
    let mut wants = |id, key: &str| {
        let mut claim = claim(id);
        claim.payload.inputs = [InputKey::from(key)].into();
        bench.offer(claim);
    };
    wants(2, "far");
    wants(3, "near");
    bench.give(Input::InputHere("near".into()));
    bench.end(0, ExitStatus::SUCCESS);
    assert_eq!(bench.pilot.slots().next().and_then(|slot| slot.claim), Some(ClaimId(3)));
}

#[test]
fn a_running_payload_keeps_its_lease_alive_and_a_lost_one_is_reported_lost() {
    let mut bench = Bench::new(config(1));
    bench.run(leased(1, 1_000, 9_000), 0);
    assert!(bench.wait(1_000).contains(&Output::Renew(ClaimId(1))));
    let outputs = bench.give(Input::LeaseLost { claim: ClaimId(1) });
    assert_eq!(orders(&outputs), [(0, &Order::Signal(Signal::Term { grace_ms: 5_000 }))]);
    assert_eq!(reported(&bench.end(0, ExitStatus::SUCCESS)), [(1, Conclusion::Lost)]);
}

#[test]
fn a_report_on_its_way_keeps_its_lease_alive() {
    let mut bench = Bench::new(config(1));
    bench.run(leased(1, 1_000, 3_000), 0);
    bench.end(0, ExitStatus::SUCCESS);
    assert!(bench.wait(1_000).contains(&Output::Renew(ClaimId(1))));
    bench.give(Input::ReportDone { claim: ClaimId(1) });
    assert!(!bench.wait(1_000).contains(&Output::Renew(ClaimId(1))));
}

#[test]
fn a_payload_is_stopped_with_its_own_grace_period() {
    let mut bench = Bench::new(config(1));
    bench.run(claim(1), 0);
    let outputs = bench.give(Input::StopClaim { claim: ClaimId(1), cause: StopCause::Cancelled });
    assert_eq!(orders(&outputs), [(0, &Order::Signal(Signal::Term { grace_ms: 5_000 }))]);
    let outputs = bench.wait(5_000);
    assert_eq!(orders(&outputs), [(0, &Order::Signal(Signal::Kill)), (0, &Order::Drain { commit: false })]);
}

#[test]
fn an_outsider_can_neither_claim_a_slot_nor_start_a_payload_nor_name_a_slot_that_is_not_there() {
    let mut bench = Bench::new(config(1));
    for (slot, event) in [(0, Event::Claimed(Box::new(claim(1)))), (0, Event::Go), (9, Event::Bound)] {
        let ignored = bench.event(slot, event);
        assert!(matches!(ignored[0], Output::Ignored { why: Why::NotInThisPhase, .. }), "{ignored:?}");
        assert_eq!(bench.phase(0), PhaseName::Idle);
    }
}

#[test]
fn the_pilot_wakes_for_whatever_is_due_first() {
    let mut bench = Bench::new(config(2));
    bench.run(claim(1), 0);
    bench.give(Input::QueueEmpty);
    assert_eq!(bench.pilot.deadline(), Some(Moment(1_000)));
    bench.give(Input::QueueClosed);
    assert_eq!(bench.pilot.deadline(), Some(Moment(60_000)));
}
