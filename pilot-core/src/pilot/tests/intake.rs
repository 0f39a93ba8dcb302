//! Asking, waiting, preparing, giving back.

use super::*;

#[test]
fn a_new_pilot_asks_for_as_many_claims_as_it_has_slots() {
    assert_eq!(asked(&Bench::new(config(3)).give(Input::Tick)), Some(3));
}

#[test]
fn it_asks_once_and_again_only_when_the_answer_is_overdue() {
    let mut bench = Bench::new(config(3));
    bench.give(Input::Tick);
    assert_eq!(asked(&bench.wait(29_999)), None);
    assert_eq!(asked(&bench.wait(1)), Some(3));
}

#[test]
fn claims_that_wait_are_not_asked_for_again() {
    let mut bench = Bench::new(config(3));
    bench.give(Input::Tick);
    assert_eq!(asked(&bench.give(Input::Offered(vec![claim(1), claim(2)]))), Some(1));
}

#[test]
fn claims_to_bind_ahead_are_asked_for_on_top() {
    let mut bench = Bench::new(PilotConfig { bind_ahead: 2, ..config(1) });
    assert_eq!(asked(&bench.give(Input::Tick)), Some(3));
}

#[test]
fn nothing_is_asked_for_while_no_share_is_free() {
    let mut bench = Bench::new(config(2));
    bench.run(sized(1, 2), 0);
    assert_eq!(asked(&bench.wait(50_000)), None);
    let outputs = bench.end(0, ExitStatus::SUCCESS);
    assert_eq!(asked(&outputs), Some(2));
}

#[test]
fn a_queue_that_had_nothing_is_asked_again_after_a_pause() {
    let mut bench = Bench::new(config(1));
    bench.give(Input::Tick);
    assert_eq!(asked(&bench.give(Input::QueueEmpty)), None);
    assert_eq!(bench.pilot.deadline(), Some(Moment(1_000)));
    assert_eq!(asked(&bench.wait(1_000)), Some(1));
}

#[test]
fn a_queue_that_says_it_has_something_is_asked_at_once() {
    let mut bench = Bench::new(config(1));
    bench.give(Input::Tick);
    bench.give(Input::QueueEmpty);
    assert_eq!(asked(&bench.give(Input::QueueFilled)), Some(1));
}

#[test]
fn a_report_that_is_through_may_have_freed_new_work_so_the_queue_is_asked_at_once() {
    let mut bench = Bench::new(config(1));
    bench.run(claim(1), 0);
    bench.end(0, ExitStatus::SUCCESS);
    bench.give(Input::QueueEmpty);
    assert_eq!(asked(&bench.give(Input::ReportDone { claim: ClaimId(1) })), Some(1));
}

#[test]
fn every_claim_is_prepared_before_a_slot_is_touched() {
    let mut bench = Bench::new(config(1));
    let outputs = bench.give(Input::Offered(vec![claim(1)]));
    assert!(matches!(&outputs[..], [Output::Prepare(claim)] if claim.id == ClaimId(1)));
    assert_eq!(bench.phase(0), PhaseName::Idle);
}

#[test]
fn a_bad_image_is_reported_at_once_and_touches_no_slot() {
    let mut bench = Bench::new(config(1));
    bench.give(Input::Offered(vec![claim(1)]));
    let fault = fault(FaultClass::Payload);
    let outputs = bench.give(Input::PrepareFailed { claim: ClaimId(1), fault: fault.clone() });
    assert_eq!(reported(&outputs), [(1, Conclusion::Failed(fault))]);
    assert_eq!(orders(&outputs), []);
}

#[test]
fn a_preflight_that_takes_too_long_is_reported() {
    let mut bench = Bench::new(config(1));
    bench.give(Input::Offered(vec![claim(1)]));
    let outputs = bench.wait(3_600_000);
    assert!(
        matches!(&reported(&outputs)[..], [(1, Conclusion::Failed(fault))] if fault.class == FaultClass::Retry)
    );
}

#[test]
fn a_claim_that_never_fits_goes_back_with_what_there_is() {
    let mut bench = Bench::new(config(2));
    let outputs = bench.give(Input::Offered(vec![sized(1, 3)]));
    let total = Demand { cpu_millis: 2, memory_bytes: 2 };
    assert_eq!(released(&outputs), [(1, ReleaseWhy::NeverFits { total })]);
}

#[test]
fn claims_beyond_the_bound_go_back() {
    let mut bench = Bench::new(PilotConfig { max_waiting: 2, ..config(1) });
    let outputs = bench.give(Input::Offered((1..=4).map(claim).collect()));
    assert_eq!(released(&outputs), [(3, ReleaseWhy::NoRoom), (4, ReleaseWhy::NoRoom)]);
}

#[test]
fn a_claim_that_is_offered_twice_is_taken_once_even_after_its_end() {
    let mut bench = Bench::new(config(2));
    bench.give(Input::Offered(vec![claim(1)]));
    bench.give(Input::Offered(vec![claim(1)]));
    assert_eq!(bench.pilot.waiting().count(), 1);
    bench.give(Input::LeaseLost { claim: ClaimId(1) });
    bench.give(Input::ReportDone { claim: ClaimId(1) });
    bench.give(Input::Offered(vec![claim(1)]));
    assert_eq!(bench.pilot.waiting().count(), 0);
}

#[test]
fn a_waiting_claim_keeps_its_lease_alive() {
    let mut bench = Bench::new(config(1));
    bench.give(Input::Offered(vec![leased(1, 1_000, 3_000)]));
    assert!(bench.wait(1_000).contains(&Output::Renew(ClaimId(1))));
    let lease = Lease { renew_at: Moment(5_000), expires_at: Moment(6_000) };
    bench.give(Input::LeaseRenewed { claim: ClaimId(1), lease });
    assert_eq!(reported(&bench.wait(4_999)), []);
    assert_eq!(reported(&bench.wait(1)), [(1, Conclusion::Lost)]);
}

#[test]
fn a_claim_whose_lease_is_over_on_arrival_is_not_even_prepared() {
    let mut bench = Bench::new(config(1));
    bench.wait(500);
    let outputs = bench.give(Input::Offered(vec![leased(1, 100, 500)]));
    assert_eq!(reported(&outputs), [(1, Conclusion::Lost)]);
    assert!(!outputs.iter().any(|output| matches!(output, Output::Prepare(_))));
}

#[test]
fn a_cancelled_claim_that_waits_is_reported_and_a_preempted_one_goes_back() {
    let mut bench = Bench::new(config(2));
    bench.give(Input::Offered(vec![claim(1), claim(2)]));
    let outputs = bench.give(Input::StopClaim { claim: ClaimId(1), cause: StopCause::Cancelled });
    assert_eq!(reported(&outputs), [(1, Conclusion::Stopped(StopCause::Cancelled))]);
    let outputs = bench.give(Input::StopClaim { claim: ClaimId(2), cause: StopCause::Preempted });
    assert_eq!(released(&outputs), [(2, ReleaseWhy::Stopped(StopCause::Preempted))]);
}

#[test]
fn a_cordoned_pilot_gives_back_what_waits_and_takes_no_more_until_it_is_uncordoned() {
    let mut bench = Bench::new(config(2));
    bench.run(claim(1), 0);
    bench.give(Input::Offered(vec![claim(2)]));
    assert_eq!(released(&bench.give(Input::Cordon)), [(2, ReleaseWhy::Closed)]);
    assert_eq!(released(&bench.give(Input::Offered(vec![claim(3)]))), [(3, ReleaseWhy::Closed)]);
    assert_eq!(asked(&bench.wait(50_000)), None);
    assert_eq!(bench.phase(0), PhaseName::Running);
    assert_eq!(asked(&bench.give(Input::Uncordon)), Some(1));
}
