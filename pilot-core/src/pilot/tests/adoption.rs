//! Payloads that an earlier life of the pilot left running.

use super::*;
use crate::claim::Epoch;
use crate::slot::EventName;

fn adopt(claim: Claim, slot: u32, epoch: u64) -> Input {
    let image = claim.payload.image.clone();
    Input::Adopted { slot: SlotId(slot), epoch: Epoch(epoch), claim: Box::new(claim), image }
}

fn ignored(outputs: &[Output]) -> Vec<Why> {
    let why = |output: &Output| match output {
        Output::Ignored { event: EventName::Adopted, why, .. } => Some(*why),
        _ => None,
    };
    outputs.iter().filter_map(why).collect()
}

fn is_refused(outputs: &[Output], id: u64) -> bool {
    let reports = |output: &Output| {
        matches!(output, Output::Report { claim: ClaimId(of), outcome }
            if *of == id && outcome.launched && matches!(outcome.conclusion, Conclusion::Failed(_)))
    };
    ignored(outputs) == [Why::NotInThisPhase] && outputs.iter().filter(|output| reports(output)).count() == 1
}

#[test]
fn what_was_left_running_is_watched_at_once_in_its_old_epoch() {
    let mut bench = Bench::new(config(1));
    let outputs = bench.give(adopt(claim(7), 0, 12));
    let moved = outputs.iter().filter_map(|output| match output {
        Output::Moved { epoch, from, to, .. } => Some((epoch.0, *from, *to)),
        _ => None,
    });
    let moved: Vec<_> = moved.collect();
    let (idle, bound, running) = (PhaseName::Idle, PhaseName::Bound, PhaseName::Running);
    assert_eq!(moved, [(12, idle, bound), (12, bound, running)]);
    assert!(matches!(orders(&outputs)[..], [(0, Order::Launch(_))]));
    assert_eq!(reported(&bench.end(0, ExitStatus::SUCCESS)), [(7, Conclusion::Succeeded)]);
    bench.offer(claim(8));
    assert_eq!(bench.pilot.slot(SlotId(0)).map(Slot::epoch), Some(Epoch(13)));
}

#[test]
fn its_share_is_charged_even_where_it_is_not_free_and_nothing_starts_until_there_is_room() {
    let mut bench = Bench::new(config(3));
    bench.give(adopt(sized(1, 3), 0, 1));
    bench.give(adopt(sized(2, 9), 2, 1));
    assert_eq!(bench.pilot.free(), Demand { cpu_millis: 0, memory_bytes: 1 });
    assert_eq!(asked(&bench.give(Input::Tick)), None);
    bench.offer(claim(3));
    assert_eq!(bench.phase(1), PhaseName::Idle);
    bench.end(0, ExitStatus::SUCCESS);
    assert_eq!(bench.phase(0), PhaseName::Idle);
    bench.end(2, ExitStatus::SUCCESS);
    assert_eq!(bench.pilot.slots().filter_map(|slot| slot.claim).collect::<Vec<_>>(), [ClaimId(3)]);
}

#[test]
fn several_are_adopted_before_the_queue_is_asked_for_what_is_left() {
    let mut bench = Bench::new(config(3));
    for slot in 0..2 {
        assert_eq!(asked(&bench.give(adopt(claim(slot.into()), slot, 1))), None);
    }
    assert_eq!(bench.pilot.deadline(), Some(Moment::START));
    assert_eq!(asked(&bench.give(Input::Tick)), Some(1));
}

#[test]
fn a_cordoned_pilot_adopts_and_one_that_drains_lets_it_run() {
    for input in [Input::Cordon, Input::Stop { kind: StopKind::Drain, cause: StopCause::Evicted }] {
        let mut bench = Bench::new(config(2));
        bench.run(claim(1), 0);
        bench.give(input);
        bench.give(adopt(claim(2), 1, 5));
        assert_eq!(bench.phase(1), PhaseName::Running);
    }
}

#[test]
fn a_stop_reaches_what_is_adopted_after_it() {
    for (kind, order) in [
        (StopKind::Grace, Order::Signal(Signal::Term { grace_ms: 5_000 })),
        (StopKind::Kill, Order::Signal(Signal::Kill)),
    ] {
        let mut bench = Bench::new(config(2));
        bench.run(claim(1), 0);
        bench.give(Input::Stop { kind, cause: StopCause::Evicted });
        let outputs = bench.give(adopt(claim(2), 1, 5));
        assert!(matches!(orders(&outputs)[0], (1, Order::Launch(_))));
        assert_eq!(orders(&outputs)[1], (1, &order));
    }
}

#[test]
fn a_slot_that_can_not_take_it_means_a_report_and_never_a_release() {
    let mut bench = Bench::new(config(2));
    bench.run(claim(1), 0);
    bench.end(0, ExitStatus::SUCCESS);
    bench.give(adopt(claim(2), 1, 3));
    for (id, slot, epoch) in [(3, 0, 9), (4, 1, 3), (5, 2, 1), (6, u32::MAX, 1)] {
        let outputs = bench.give(adopt(claim(id), slot, epoch));
        assert!(is_refused(&outputs, id), "{outputs:?}");
    }
    assert!(is_refused(&Bench::new(config(1)).give(adopt(claim(1), 0, 0)), 1), "no launch has epoch 0");
}

#[test]
fn a_claim_that_is_known_is_not_adopted_and_lives_on() {
    let mut bench = Bench::new(config(3));
    bench.give(Input::Offered(vec![claim(1)]));
    bench.give(adopt(claim(2), 0, 1));
    for id in [1, 2] {
        let outputs = bench.give(adopt(claim(id), 1, 1));
        assert_eq!((ignored(&outputs), reported(&outputs)), (vec![Why::Duplicate], vec![]));
    }
    assert_eq!(bench.pilot.waiting().count(), 1);
    assert_eq!((bench.phase(0), bench.phase(1)), (PhaseName::Running, PhaseName::Idle));
}

#[test]
fn a_pilot_that_is_done_says_so_for_what_it_can_not_adopt_any_more() {
    let mut bench = Bench::new(config(1));
    bench.give(Input::Stop { kind: StopKind::Drain, cause: StopCause::Evicted });
    assert!(is_refused(&bench.give(adopt(claim(1), 0, 1)), 1));
}

#[test]
fn how_an_adopted_payload_ends_says_nothing_about_the_machine() {
    let black_hole = Some(BlackHole { failures: 1, within_ms: 100 });
    let mut bench = Bench::new(PilotConfig { black_hole, ..config(1) });
    bench.give(adopt(claim(1), 0, 1));
    bench.event(0, Event::SlotLost(fault(FaultClass::Slot)));
    bench.event(0, Event::Drained(Drained::default()));
    assert!(bench.pilot.is_open());
}

#[test]
fn a_slot_stays_warm_after_an_adopted_payload_under_the_key_it_was_adopted_with() {
    let mut bench = Bench::new(config(1));
    let claimed = Box::new(claim(1));
    bench.give(Input::Adopted { slot: SlotId(0), epoch: Epoch(4), claim: claimed, image: "sha256:1".into() });
    bench.event(0, Event::Exited(ExitStatus::SUCCESS.into()));
    bench.event(0, Event::Drained(Drained::default()));
    bench.event(0, Event::Cleaned { warm: true });
    bench.give(Input::Offered(vec![claim(2)]));
    let outputs =
        bench.give(Input::Prepared { claim: ClaimId(2), image: "sha256:1".into(), bytes_missing: 0 });
    assert!(matches!(orders(&outputs)[..], [(0, Order::Launch(_))]));
}
