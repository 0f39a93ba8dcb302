//! Stops, and the end of the pilot.

use super::*;

fn stop(kind: StopKind) -> Input {
    Input::Stop { kind, cause: StopCause::PilotStopping }
}

const STOPPED: Option<DoneWhy> = Some(DoneWhy::Stopped(StopCause::PilotStopping));

#[test]
fn it_is_done_when_the_queue_is_closed_and_every_report_is_through() {
    let mut bench = Bench::new(config(1));
    bench.run(claim(1), 0);
    assert_eq!(done(&bench.give(Input::QueueClosed)), None);
    assert_eq!(done(&bench.end(0, ExitStatus::SUCCESS)), None);
    let outputs = bench.give(Input::ReportDone { claim: ClaimId(1) });
    assert_eq!(done(&outputs), Some(DoneWhy::QueueClosed));
}

#[test]
fn it_is_not_done_while_a_claim_still_waits() {
    let mut bench = Bench::new(config(1));
    bench.give(Input::Offered(vec![claim(1)]));
    assert_eq!(done(&bench.give(Input::QueueClosed)), None);
}

#[test]
fn a_report_that_never_gets_through_does_not_keep_the_pilot_for_ever() {
    let mut bench = Bench::new(config(1));
    bench.run(claim(1), 0);
    bench.give(Input::QueueClosed);
    bench.end(0, ExitStatus::SUCCESS);
    assert_eq!(done(&bench.wait(3_600_000)), Some(DoneWhy::QueueClosed));
}

#[test]
fn it_is_done_after_it_had_nothing_to_do_for_too_long() {
    let mut bench = Bench::new(PilotConfig { idle_ms: Some(10_000), ..config(1) });
    bench.wait(9_000);
    bench.run(claim(1), 0);
    bench.end(0, ExitStatus::SUCCESS);
    bench.give(Input::ReportDone { claim: ClaimId(1) });
    bench.give(Input::QueueEmpty);
    assert_eq!(done(&bench.wait(9_999)), None);
    assert_eq!(done(&bench.wait(1)), Some(DoneWhy::Idle));
}

#[test]
fn a_drain_lets_run_what_runs_and_gives_back_the_rest() {
    let mut bench = Bench::new(config(3));
    bench.run(claim(1), 0);
    bench.offer(claim(2));
    bench.give(Input::Offered(vec![claim(3)]));
    let outputs = bench.give(stop(StopKind::Drain));
    assert_eq!(released(&outputs), [(3, ReleaseWhy::Closed)]);
    assert_eq!(orders(&outputs), [(1, &Order::Drain { commit: false })]);
    let outputs = bench.event(1, Event::Drained(Drained::default()));
    assert_eq!(released(&outputs), [(2, ReleaseWhy::Stopped(StopCause::PilotStopping))]);
    bench.event(1, Event::Cleaned { warm: false });
    assert_eq!(bench.phase(0), PhaseName::Running);
    assert_eq!(reported(&bench.end(0, ExitStatus::SUCCESS)), [(1, Conclusion::Succeeded)]);
    assert_eq!(done(&bench.give(Input::ReportDone { claim: ClaimId(1) })), STOPPED);
}

#[test]
fn a_claim_that_its_user_cancels_is_reported_as_cancelled_wherever_it_is() {
    let cancelled = vec![(1, Conclusion::Stopped(StopCause::Cancelled))];
    let cancel = Input::StopClaim { claim: ClaimId(1), cause: StopCause::Cancelled };
    let offered = Input::Offered(vec![sized(1, 2)]);
    let prepared = Input::Prepared { claim: ClaimId(1), image: "red".into(), bytes_missing: 0 };
    let exited = Event::Exited(ExitStatus::Code(1).into());
    let slot = |event| Input::Slot { slot: SlotId(1), epoch: crate::claim::Epoch(1), event };
    let way = [offered, prepared, slot(Event::Bound), Input::Tick, slot(exited)];
    let mut seen = Vec::new();
    for steps in 1..=way.len() {
        let mut bench = Bench::new(PilotConfig { bind_ahead: 1, ..config(2) });
        bench.run(claim(9), 0);
        for (n, input) in way[..steps].iter().enumerate() {
            if n == 3 {
                bench.end(0, ExitStatus::SUCCESS);
            }
            bench.give(input.clone());
        }
        seen.push(bench.phase(1));
        let mut outputs = bench.give(cancel.clone());
        if bench.phase(1) == PhaseName::Draining {
            outputs.extend(bench.event(1, Event::Exited(ExitStatus::SUCCESS.into())));
            outputs.extend(bench.event(1, Event::Drained(Drained::default())));
        }
        assert_eq!(reported(&outputs), cancelled, "after {steps} steps");
        assert_eq!(released(&outputs), []);
    }
    use PhaseName::{Binding, Bound, Draining, Idle, Running};
    assert_eq!(seen, [Idle, Binding, Bound, Running, Draining]);
}

#[test]
fn a_stop_with_grace_tells_all_to_end_and_kills_them_later() {
    let mut bench = Bench::new(PilotConfig { stop_grace_ms: 2_000, ..config(1) });
    bench.run(claim(1), 0);
    let outputs = bench.give(stop(StopKind::Grace));
    assert_eq!(orders(&outputs), [(0, &Order::Signal(Signal::Term { grace_ms: 2_000 }))]);
    let outputs = bench.wait(2_000);
    assert_eq!(orders(&outputs)[0], (0, &Order::Signal(Signal::Kill)));
}

#[test]
fn a_second_stop_can_only_be_harder() {
    let mut bench = Bench::new(config(1));
    bench.run(claim(1), 0);
    bench.give(stop(StopKind::Grace));
    assert_eq!(orders(&bench.give(stop(StopKind::Drain))), []);
    assert_eq!(orders(&bench.give(stop(StopKind::Grace))), []);
    let outputs = bench.give(stop(StopKind::Kill));
    assert_eq!(orders(&outputs), [(0, &Order::Signal(Signal::Kill)), (0, &Order::Drain { commit: false })]);
    let outputs = bench.event(0, Event::Drained(Drained::default()));
    assert_eq!(reported(&outputs), [(1, Conclusion::Stopped(StopCause::PilotStopping))]);
}

#[test]
fn an_idle_pilot_that_is_told_to_stop_is_done_at_once() {
    assert_eq!(done(&Bench::new(config(1)).give(stop(StopKind::Drain))), STOPPED);
}

#[test]
fn a_pilot_that_is_done_answers_nothing_but_claims_that_come_too_late() {
    let mut bench = Bench::new(config(1));
    bench.give(stop(StopKind::Kill));
    assert_eq!(bench.wait(1_000_000), []);
    assert_eq!(bench.pilot.deadline(), None);
    assert_eq!(released(&bench.give(Input::Offered(vec![claim(1)]))), [(1, ReleaseWhy::Closed)]);
}

#[test]
fn near_the_end_of_its_life_it_takes_no_more_work_then_stops_then_kills() {
    let lifetime = Lifetime { total_ms: 50_000, retire_before_ms: 20_000, stop_before_ms: 4_000 };
    let mut bench = Bench::new(PilotConfig { lifetime: Some(lifetime), ..config(2) });
    bench.run(claim(1), 0);
    bench.give(Input::Offered(vec![claim(2)]));
    assert_eq!(released(&bench.wait(30_000)), [(2, ReleaseWhy::Closed)]);
    assert_eq!(bench.phase(0), PhaseName::Running);
    assert_eq!(bench.pilot.deadline(), Some(Moment(46_000)));
    let outputs = bench.wait(16_000);
    assert_eq!(orders(&outputs), [(0, &Order::Signal(Signal::Term { grace_ms: 2_000 }))]);
    let outputs = bench.end(0, ExitStatus::SUCCESS);
    assert_eq!(reported(&outputs), [(1, Conclusion::Stopped(StopCause::Expired))]);
    assert_eq!(done(&bench.give(Input::ReportDone { claim: ClaimId(1) })), Some(DoneWhy::Lifetime));
}

#[test]
fn at_the_end_of_its_life_it_waits_for_no_one() {
    let lifetime = Lifetime { total_ms: 50_000, retire_before_ms: 0, stop_before_ms: 0 };
    let mut bench = Bench::new(PilotConfig { lifetime: Some(lifetime), ..config(1) });
    bench.run(claim(1), 0);
    let outputs = bench.wait(50_000);
    assert_eq!(orders(&outputs), [(0, &Order::Signal(Signal::Kill)), (0, &Order::Drain { commit: false })]);
}

#[test]
fn it_is_done_when_no_slot_is_left_that_could_be_cleaned() {
    let limits = SlotLimits { clean_attempts: 1, ..SlotLimits::default() };
    let mut bench = Bench::new(PilotConfig { limits, ..config(1) });
    bench.run(claim(1), 0);
    bench.event(0, Event::Exited(ExitStatus::SUCCESS.into()));
    bench.event(0, Event::Drained(Drained::default()));
    bench.event(0, Event::CleanFailed(fault(FaultClass::Slot)));
    assert!(!bench.pilot.is_open());
    assert_eq!(done(&bench.give(Input::ReportDone { claim: ClaimId(1) })), Some(DoneWhy::AllRetired));
}

#[test]
fn a_machine_on_which_everything_fails_at_once_takes_no_more_work() {
    let black_hole = Some(BlackHole { failures: 3, within_ms: 100 });
    let mut bench = Bench::new(PilotConfig { black_hole, ..config(1) });
    for id in 1..=3 {
        assert!(bench.pilot.is_open());
        bench.run(claim(id), 0);
        bench.end(0, ExitStatus::Code(127));
        bench.give(Input::ReportDone { claim: ClaimId(id) });
    }
    assert!(!bench.pilot.is_open());
    assert_eq!(bench.wait(60_000), []);
}

#[test]
fn the_reason_of_a_black_hole_is_told_and_running_payloads_finish_first() {
    let black_hole = Some(BlackHole { failures: 1, within_ms: 100 });
    let mut bench = Bench::new(PilotConfig { black_hole, ..config(2) });
    bench.run(claim(1), 0);
    bench.offer(claim(2));
    bench.event(1, Event::BindFailed(fault(FaultClass::Slot)));
    bench.event(1, Event::Drained(Drained::default()));
    bench.event(1, Event::Cleaned { warm: false });
    bench.give(Input::ReportDone { claim: ClaimId(2) });
    assert_eq!(bench.phase(0), PhaseName::Running);
    bench.wait(1_000);
    bench.end(0, ExitStatus::SUCCESS);
    let why = done(&bench.give(Input::ReportDone { claim: ClaimId(1) }));
    assert!(matches!(why, Some(DoneWhy::BlackHole(reason)) if reason.contains("fault")));
}
