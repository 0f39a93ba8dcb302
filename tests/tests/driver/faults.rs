//! Runs in which runtime or queue fail.

use pilot::payload::{Resources, StageClass};
use pilot::queue::workflow::{Standing, WorkflowQueue};
use pilot_core::StopCause;
use pilot_tests::fake::output;

use super::*;

#[tokio::test(start_paused = true)]
async fn an_image_that_fails_its_preflight_touches_no_slot() {
    let runtime = Arc::new(FakeRuntime::new());
    runtime.fail_prepare("a", Fault::new(FaultClass::Payload, "there is no such image"));
    let queue = Arc::new(FakeQueue::new(chain()));
    let run = drive(pilot(1), &queue, &runtime).await;
    assert!(run.closed());
    assert_eq!(run.shown, ["a ended: there is no such image", "b skipped: a", "c skipped: a"]);
    assert_eq!(about_slots(&runtime), Vec::<String>::new());
    queue.assert_quiet();
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_bind_that_fails_is_undone_and_tried_again() {
    let runtime = Arc::new(FakeRuntime::new());
    runtime.script("a", [Play::bind_fails(slot_fault("no mounts left")), Play::exits(0, 10)]);
    let queue = Arc::new(WorkflowQueue::new(vec![entry(payload("a"))]));
    let run = drive(pilot(1), &queue, &runtime).await;
    assert_eq!(run.shown, ["a comes back: no mounts left", "a started, try 2", "a ended: succeeded"]);
    let calls = about_slots(&runtime);
    assert_eq!(calls[..4], ["0 bind 0 a", "0 drain 0 a drop", "0 clean 0", "500 bind 0 a"]);
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_bind_that_hangs_is_given_up_at_its_deadline() {
    let (conclusion, calls) = one(payload("a"), Play::bind_hangs()).await;
    let Conclusion::Failed(fault) = conclusion else { panic!("{conclusion}") };
    assert_eq!(fault.class, FaultClass::Slot);
    assert_eq!(calls, ["0 bind 0 a", "60000 drain 0 a drop", "60000 clean 0"]);
}

#[tokio::test(start_paused = true)]
async fn each_end_of_a_launch_has_its_conclusion() {
    let broken = slot_fault("the shim is gone");
    let cases = [
        (Play::not_started(broken.clone()), Conclusion::Failed(broken.clone()), false),
        (Play::slot_lost(broken.clone()), Conclusion::Failed(broken), true),
        (Play::out_of_memory(), Conclusion::Stopped(StopCause::MemoryExceeded), true),
    ];
    for (play, expected, launched) in cases {
        let runtime = Arc::new(FakeRuntime::new());
        runtime.script("a", [play]);
        let queue = Arc::new(FakeQueue::new(vec![entry(payload("a"))]));
        drive(pilot(1), &queue, &runtime).await;
        let [(_, outcome)] = queue.outcomes().try_into().expect("one report");
        assert_eq!((outcome.conclusion, outcome.launched), (expected, launched));
        assert_eq!(about_slots(&runtime)[2..], ["0 drain 0 a drop", "0 clean 0"]);
        queue.assert_quiet();
        runtime.assert_quiet();
    }
}

#[tokio::test(start_paused = true)]
async fn outputs_that_can_not_be_committed_make_a_success_a_failure() {
    let fault = Fault::new(FaultClass::Payload, "output \"hits\" was not produced");
    let writes = Payload { outputs: vec![output("hits", StageClass::File, &["b"])], ..payload("a") };
    let (conclusion, calls) = one(writes, Play::exits(0, 10).drain_faults(fault.clone())).await;
    assert_eq!(conclusion, Conclusion::Failed(fault));
    assert_eq!(calls[2..], ["10 drain 0 a commit", "10 clean 0"]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_hangs_is_given_up_and_the_slot_cleaned() {
    let (conclusion, calls) = one(payload("a"), Play::exits(0, 10).drain_hangs()).await;
    let Conclusion::Failed(fault) = conclusion else { panic!("{conclusion}") };
    assert_eq!(fault.class, FaultClass::Slot);
    assert_eq!(calls[2..], ["10 drain 0 a commit", "300010 clean 0"]);
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_is_clean_at_the_third_try_is_used_again() {
    let runtime = Arc::new(FakeRuntime::new());
    runtime.script("a", [Play::exits(0, 0).clean_fails(2)]);
    let queue = Arc::new(FakeQueue::new(vec![entry(payload("a")), entry(payload("b"))]));
    let run = drive(pilot(1), &queue, &runtime).await;
    assert!(run.closed());
    let calls = about_slots(&runtime);
    assert_eq!(calls[3..7], ["0 clean 0", "250 clean 0", "750 clean 0", "750 bind 0 b"]);
    queue.assert_quiet();
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_pilot_whose_slots_are_all_retired_ends() {
    let runtime = Arc::new(FakeRuntime::new());
    runtime.script("a", [Play::exits(0, 0).clean_fails(4)]);
    let queue = Arc::new(FakeQueue::new(vec![entry(payload("a")), entry(payload("b"))]));
    let run = drive(pilot(1), &queue, &runtime).await;
    assert_eq!(run.done, Done { why: DoneWhy::AllRetired, signal: None });
    assert_eq!(run.shown, ["a started, try 1", "a ended: succeeded"], "the payload has done its work");
    queue.assert_quiet();
    runtime.assert_quiet_but(&[0]);
}

#[tokio::test(start_paused = true)]
async fn a_retired_slot_is_left_alone_and_the_others_do_its_work() {
    let runtime = Arc::new(FakeRuntime::new());
    runtime.script("a", [Play::exits(0, 0).clean_fails(4)]);
    let names = ["a", "b", "c", "d"];
    let queue = Arc::new(FakeQueue::new(names.iter().map(|name| entry(payload(name))).collect()));
    let run = drive(pilot(2), &queue, &runtime).await;
    assert!(run.closed());
    assert_eq!(queue.outcomes().iter().filter(|(_, outcome)| outcome.is_success()).count(), names.len());
    queue.assert_quiet();
    runtime.assert_quiet_but(&[0]);
}

#[tokio::test(start_paused = true)]
async fn a_machine_on_which_everything_fails_at_once_takes_no_more_work() {
    let runtime = Arc::new(FakeRuntime::new());
    let entries = (0..30).map(|index| {
        let name = format!("p{index}");
        if index < 10 {
            runtime.script(&name, [Play::bind_fails(slot_fault("no mounts left"))]);
        }
        entry(payload(&name))
    });
    let queue = Arc::new(FakeQueue::new(entries.collect()));
    let run = drive(pilot(1), &queue, &runtime).await;
    let DoneWhy::BlackHole(reason) = &run.done.why else { panic!("{run:?}") };
    assert!(reason.contains("no mounts left"), "{reason}");
    assert_eq!(queue.outcomes().len(), 10, "the other twenty are for another machine");
    queue.assert_quiet();
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_never_fits_fails_with_what_waits_for_it() {
    let runtime = Arc::new(FakeRuntime::new());
    let mut entries = chain();
    let huge = Resources { memory_bytes: 1 << 40, ..payload("a").resources };
    entries[0] = entry(Payload { resources: huge, ..payload("a") });
    entries.push(entry(payload("small")));
    let queue = Arc::new(FakeQueue::new(entries));
    let run = drive(pilot(1), &queue, &runtime).await;
    assert!(run.closed());
    assert!(run.shown.iter().any(|shown| shown.starts_with("a ended: it asks for more")), "{run:#?}");
    for expected in ["b skipped: a", "c skipped: a", "small ended: succeeded"] {
        assert!(run.shown.contains(&expected.to_owned()), "{expected}: {run:#?}");
    }
    queue.assert_quiet();
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_runtime_ends_the_pilot_with_everything_killed() {
    for play in [Play::bind_panics(), Play::launch_panics()] {
        let runtime = Arc::new(FakeRuntime::new());
        runtime.script("a", [Play::ends_on_kill()]);
        runtime.script("b", [play]);
        let queue = Arc::new(FakeQueue::new(["a", "b", "c"].map(|name| entry(payload(name))).into()));
        let run = drive(pilot(2), &queue, &runtime).await;
        assert_eq!(run.done, Done { why: DoneWhy::Stopped(StopCause::PilotStopping), signal: None });
        let calls = about_slots(&runtime);
        for expected in ["0 drain 0 a drop", "0 clean 0", "0 drain 1 b drop", "0 clean 1"] {
            assert!(calls.contains(&expected.to_owned()), "{expected}: {calls:#?}");
        }
        queue.assert_quiet();
        runtime.assert_quiet();
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_one_slot_kills_what_runs_in_the_others() {
    let runtime = Arc::new(FakeRuntime::new());
    runtime.script("a", [Play::ends_on_kill()]);
    runtime.script("b", [Play::exits(0, 5000)]);
    runtime.script("c", [Play::launch_panics()]);
    let queue = Arc::new(FakeQueue::new(["a", "b", "c"].map(|name| entry(payload(name))).into()));
    let run = drive(pilot(2), &queue, &runtime).await;
    assert_eq!(run.done, Done { why: DoneWhy::Stopped(StopCause::PilotStopping), signal: None });
    assert!(about_slots(&runtime).contains(&"5000 kill 0".to_owned()), "{:#?}", about_slots(&runtime));
    queue.assert_quiet();
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_away_is_asked_again() {
    let (queue, runtime) =
        (Arc::new(FakeQueue::new(vec![entry(payload("a"))])), Arc::new(FakeRuntime::new()));
    queue.refuse_claims(3);
    assert!(drive(pilot(1), &queue, &runtime).await.closed());
    assert_eq!(about_slots(&runtime)[0], "3000 bind 0 a");
    queue.assert_quiet();
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_report_that_is_never_answered_does_not_hold_the_slot_nor_the_pilot_for_ever() {
    let (queue, runtime) = (
        Arc::new(FakeQueue::new(["a", "b"].map(|name| entry(payload(name))).into())),
        Arc::new(FakeRuntime::new()),
    );
    queue.lose_reports_of("a");
    assert!(drive(pilot(1), &queue, &runtime).await.closed());
    assert!(about_slots(&runtime).contains(&"0 bind 0 b".to_owned()));
    queue.assert_quiet();
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_payload_is_not_disrupted_for_ever() {
    let runtime = Arc::new(FakeRuntime::new());
    let tries = pilot_core::retry::MAX_DISRUPTIONS as usize + 1;
    runtime.script("a", vec![Play::slot_lost(slot_fault("gone")); tries]);
    let queue = Arc::new(WorkflowQueue::new(vec![entry(payload("a"))]));
    assert!(drive(pilot(1), &queue, &runtime).await.closed());
    assert!(matches!(queue.standing(0), Some((Standing::Failed, 6, Some(_)))), "{:?}", queue.standing(0));
    runtime.assert_quiet();
}
