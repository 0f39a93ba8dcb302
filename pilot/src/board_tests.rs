//! What a board makes of what it hears.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pilot_core::{
    ClaimId, Conclusion, Epoch, EventName, Fault, FaultClass, Outcome, PhaseName, SlotId, StopCause,
};

use super::{Board, Going, Identity, StagesHeld};
use crate::payload::{Payload, Resources};
use crate::progress::Progress;

fn board() -> Board {
    Board::new(Identity { name: "pilot".into(), slots: 2, cpu_millis: 2000, memory_bytes: 1 << 30 })
}

/// A payload of run 7 that asks for little.
pub(crate) fn payload(name: &str) -> Arc<Payload> {
    Arc::new(Payload {
        workflow: "zpeak.7".parse().expect("workflow"),
        name: name.parse().expect("name"),
        family: name.parse().expect("family"),
        image: "dir:/images/root".into(),
        command: None,
        args: None,
        env: BTreeMap::new(),
        cwd: None,
        user: None,
        needs_image_user: false,
        resources: Resources { cpu_millis: 500, memory_bytes: 64 << 20, disk_bytes: 1 << 20 },
        walltime_ms: None,
        grace_ms: 1000,
        inputs: Vec::new(),
        outputs: Vec::new(),
        writable_root: false,
        host_network: false,
        logs: "/nowhere".into(),
        registry_auth: None,
        gang: Vec::new(),
    })
}

fn moved(from: PhaseName, to: PhaseName, event: EventName, payload: Option<&Arc<Payload>>) -> Progress {
    Progress::Moved {
        slot: SlotId(1),
        epoch: Epoch(4),
        claim: ClaimId(9),
        from,
        to,
        event,
        payload: payload.map(|payload| (Arc::clone(payload), 2)),
    }
}

fn ended(conclusion: Conclusion, retry: bool) -> Progress {
    let outcome = Outcome::before_launch(conclusion);
    Progress::Ended { payload: payload("fit"), attempt: 1, outcome, note: None, retry }
}

#[test]
fn a_payload_is_followed_from_claim_to_clean() {
    use {EventName as E, PhaseName as P};
    let (mut board, fit) = (board(), payload("fit"));
    let at = Duration::from_millis;
    board.take(at(0), &Progress::Claimed { claims: 1 });
    board.take(at(10), &moved(P::Idle, P::Binding, E::Claimed, Some(&fit)));
    board.take(at(14), &moved(P::Binding, P::Bound, E::Bound, Some(&fit)));
    board.take(at(20), &moved(P::Bound, P::Running, E::Go, Some(&fit)));
    assert_eq!(board.slot_running("zpeak.7", "fit"), Some(SlotId(1)));
    assert_eq!(board.slot_running("zpeak.8", "fit"), None);
    board.take(at(3020), &moved(P::Running, P::Draining, E::Exited, Some(&fit)));
    assert_eq!(board.slot_running("zpeak.7", "fit"), None);
    // The claim is over before the slot is clean.
    board.take(at(3021), &moved(P::Draining, P::Cleaning, E::Drained, None));
    assert_eq!(
        board.seats()[1].payload.as_ref().map(|(payload, attempt)| (payload.name.as_str(), *attempt)),
        Some(("fit", 2))
    );
    board.take(at(3025), &moved(P::Cleaning, P::Idle, E::Cleaned, None));
    let seat = &board.seats()[1];
    assert_eq!((seat.epoch, seat.phase, seat.since), (Epoch(4), P::Idle, at(3025)));
    assert!(seat.payload.is_none());
    let durations = board.durations();
    assert_eq!(durations.bind.ranges().find(|(_, count)| *count > 0), Some((0.005, 1)));
    assert_eq!(durations.run.ranges().find(|(_, count)| *count > 0), Some((5.0, 1)));
    assert!((durations.run.sum() - 3.0).abs() < 1e-9);
    assert_eq!((durations.drain.count(), durations.clean.count()), (1, 1));
    let totals = board.totals();
    assert_eq!((totals.claims, totals.cold_starts, totals.warm_starts, totals.adopted), (1, 1, 0, 0));
}

#[test]
fn warm_and_adopted_starts_are_told_apart() {
    use {EventName as E, PhaseName as P};
    let (mut board, fit) = (board(), payload("fit"));
    board.take(Duration::ZERO, &moved(P::Idle, P::Bound, E::Claimed, Some(&fit)));
    board.take(Duration::ZERO, &moved(P::Idle, P::Bound, E::Adopted, Some(&fit)));
    let totals = board.totals();
    assert_eq!((totals.cold_starts, totals.warm_starts, totals.adopted), (0, 1, 1));
}

#[test]
fn endings_are_counted_by_what_they_were() {
    let mut board = board();
    board.take(Duration::ZERO, &ended(Conclusion::Succeeded, false));
    board.take(Duration::ZERO, &ended(Conclusion::Stopped(StopCause::Walltime), false));
    board.take(Duration::ZERO, &ended(Conclusion::Failed(Fault::new(FaultClass::Slot, "no")), true));
    board.take(Duration::ZERO, &ended(Conclusion::Failed(Fault::new(FaultClass::Slot, "no")), true));
    board.take(Duration::ZERO, &ended(Conclusion::Lost, false));
    let ended: Vec<_> = board.totals().ended.iter().map(|(name, count)| (*name, *count)).collect();
    let expected =
        [(("failed", "slot"), 2), (("lost", ""), 1), (("stopped", "walltime"), 1), (("succeeded", ""), 1)];
    assert_eq!(ended, expected);
    assert_eq!(board.totals().retries, 2);
}

#[test]
fn images_and_their_launches_are_counted() {
    let mut board = board();
    let fit = payload("fit");
    board.take(Duration::ZERO, &Progress::Prepared { image: fit.image.clone(), bytes: 100 });
    board.take(Duration::ZERO, &Progress::Prepared { image: "docker://h/other:1".into(), bytes: 5 });
    for attempt in [1, 2] {
        board
            .take(Duration::ZERO, &Progress::Started { payload: Arc::clone(&fit), slot: SlotId(0), attempt });
    }
    assert_eq!((board.totals().images, board.totals().image_bytes), (2, 105));
    let image = board.images()[&fit.image];
    assert_eq!((image.brought_bytes, image.launches), (100, 2));
}

#[test]
fn a_pilot_is_ready_until_it_stops_or_has_no_slot_left() {
    use {EventName as E, PhaseName as P};
    let mut stopped = board();
    assert!(stopped.ready());
    stopped.take(Duration::ZERO, &Progress::Stopping);
    assert!(!stopped.ready());
    let mut retired = Board::new(Identity { slots: 2, ..Identity::default() });
    retired.take(Duration::ZERO, &moved(P::Cleaning, P::Retired, E::CleanFailed, None));
    assert!(retired.ready());
    assert_eq!((retired.slots_in(P::Retired), retired.slots_in(P::Idle)), (1, 1));
    let last = Progress::Moved {
        slot: SlotId(0),
        epoch: Epoch(1),
        claim: ClaimId(1),
        from: P::Cleaning,
        to: P::Retired,
        event: E::CleanFailed,
        payload: None,
    };
    retired.take(Duration::ZERO, &last);
    assert!(!retired.ready());
}

#[test]
fn a_pilot_that_looks_back_takes_no_work_until_it_knows_what_goes_on() {
    let mut board = board();
    board.look_back();
    assert!(board.looks_back() && !board.ready());
    let going =
        |slot, name| Going { slot: SlotId(slot), epoch: Epoch(4), payload: payload(name), attempt: 2 };
    board.on_found(Duration::from_secs(3), [going(1, "fit"), going(9, "none")]);
    assert!(!board.looks_back() && board.ready());
    assert_eq!(board.slot_running("zpeak.7", "fit"), Some(SlotId(1)));
    let seat = &board.seats()[1];
    assert_eq!((seat.epoch, seat.since), (Epoch(4), Duration::from_secs(3)));
    assert_eq!(board.slots_in(PhaseName::Idle), 1);
}

#[test]
fn a_slot_that_does_not_exist_and_time_that_runs_back_change_nothing_else() {
    use {EventName as E, PhaseName as P};
    let mut board = Board::new(Identity { slots: 1, ..Identity::default() });
    board.take(Duration::from_secs(5), &moved(P::Running, P::Draining, E::Exited, None));
    assert_eq!(board.durations().run.count(), 0);
    board.set_stages(StagesHeld { stages: 1, bytes: 7, ..StagesHeld::default() });
    assert_eq!(board.stages().bytes, 7);
}
