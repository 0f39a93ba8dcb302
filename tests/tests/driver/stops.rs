//! Runs that are stopped from outside.

use pilot::ports::StopRequest;
use pilot_core::StopCause;

use super::*;

const TERM: StopRequest = StopRequest::Grace { signal: 15, cause: StopCause::PilotStopping };
const INTERRUPT_AGAIN: StopRequest = StopRequest::Kill { signal: 2, cause: StopCause::PilotStopping };

fn stopped(signal: i32) -> Done {
    Done { why: DoneWhy::Stopped(StopCause::PilotStopping), signal: Some(signal) }
}

/// Presses the button ten seconds into the run; time is paused, so this is a moment and not a wait.
async fn after_ten_seconds(button: &StopButton, request: StopRequest) {
    tokio::time::sleep(Duration::from_secs(10)).await;
    button.press(request).await;
}

#[tokio::test(start_paused = true)]
async fn a_gentle_stop_lets_each_payload_end_within_its_own_grace() {
    let runtime = Arc::new(FakeRuntime::new());
    runtime.script("a", [Play::ends_on_term()]);
    runtime.script("b", [Play::ends_on_kill()]);
    let deaf = Payload { grace_ms: 3000, ..payload("b") };
    let entries = vec![entry(payload("a")), entry(deaf), entry(payload("c"))];
    let queue = Arc::new(FakeQueue::new(entries));
    let run = drive_with(pilot(2), &queue, &runtime, async |button| {
        after_ten_seconds(&button, TERM).await;
    });
    let run = run.await;
    assert_eq!(run.done, stopped(15));
    let calls = about_slots(&runtime);
    let after = [
        "10000 term 0 1000",
        "10000 term 1 3000",
        "10000 drain 0 a drop",
        "10000 clean 0",
        "13000 kill 1",
        "13000 drain 1 b drop",
        "13000 clean 1",
    ];
    assert_eq!(calls[4..], after);
    let conclusions: Vec<String> =
        queue.outcomes().iter().map(|(name, outcome)| format!("{name}: {}", outcome.conclusion)).collect();
    assert_eq!(conclusions, ["a: the pilot stops", "b: the pilot stops"], "c was not touched");
    queue.assert_quiet();
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn no_payload_gets_more_grace_than_the_pilot_gives() {
    let runtime = Arc::new(FakeRuntime::new());
    runtime.script("a", [Play::never_ends()]);
    let patient = Payload { grace_ms: 3_600_000, ..payload("a") };
    let queue = Arc::new(FakeQueue::new(vec![entry(patient)]));
    let run = drive_with(pilot(1), &queue, &runtime, async |button| after_ten_seconds(&button, TERM).await);
    assert_eq!(run.await.done, stopped(15));
    assert_eq!(about_slots(&runtime)[2..4], ["10000 term 0 30000", "40000 kill 0"]);
    queue.assert_quiet();
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_second_stop_kills_at_once() {
    let runtime = Arc::new(FakeRuntime::new());
    runtime.script("a", [Play::never_ends()]);
    let queue = Arc::new(FakeQueue::new(vec![entry(Payload { grace_ms: 20_000, ..payload("a") })]));
    let run = drive_with(pilot(1), &queue, &runtime, async |button| {
        after_ten_seconds(&button, StopRequest::Grace { signal: 2, cause: StopCause::PilotStopping }).await;
        after_ten_seconds(&button, INTERRUPT_AGAIN).await;
    });
    assert_eq!(run.await.done, stopped(2));
    let after = ["10000 term 0 20000", "20000 kill 0", "21000 drain 0 a drop", "21000 clean 0"];
    assert_eq!(about_slots(&runtime)[2..], after);
    queue.assert_quiet();
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_hard_stop_kills_without_asking() {
    let runtime = Arc::new(FakeRuntime::new());
    runtime.script("a", [Play::ends_on_term()]);
    let queue = Arc::new(FakeQueue::new(vec![entry(payload("a"))]));
    let run = drive_with(pilot(1), &queue, &runtime, async |button| {
        after_ten_seconds(&button, INTERRUPT_AGAIN).await;
    });
    assert_eq!(run.await.done, stopped(2));
    assert_eq!(about_slots(&runtime)[2..], ["10000 kill 0", "10000 drain 0 a drop", "10000 clean 0"]);
    queue.assert_quiet();
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_stop_during_a_bind_undoes_it_and_gives_the_claim_back() {
    let runtime = Arc::new(FakeRuntime::new());
    runtime.script("a", [Play::bind_hangs()]);
    let queue = Arc::new(FakeQueue::new(chain()));
    let run = drive_with(pilot(1), &queue, &runtime, async |button| after_ten_seconds(&button, TERM).await);
    assert_eq!(run.await.done, stopped(15));
    assert_eq!(about_slots(&runtime), ["0 bind 0 a", "10000 drain 0 a drop", "10000 clean 0"]);
    assert_eq!(queue.log(), ["release a: the pilot stops"]);
    queue.assert_quiet();
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_ends_well_in_its_grace_was_stopped_all_the_same() {
    let runtime = Arc::new(FakeRuntime::new());
    runtime.script("a", [Play::exits(0, 10_500)]);
    let queue = Arc::new(FakeQueue::new(vec![entry(payload("a"))]));
    let run = drive_with(pilot(1), &queue, &runtime, async |button| after_ten_seconds(&button, TERM).await);
    assert_eq!(run.await.done, stopped(15));
    // What a stopped payload has written may be half of it.
    assert_eq!(about_slots(&runtime)[3..], ["10500 drain 0 a drop", "10500 clean 0"]);
    assert_eq!(queue.log(), ["report a: the pilot stops"]);
    queue.assert_quiet();
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_pilot_that_is_stopped_before_it_begins_ends() {
    let (queue, runtime) = (Arc::new(FakeQueue::new(chain())), Arc::new(FakeRuntime::new()));
    let run = drive_with(pilot(1), &queue, &runtime, async |button| button.press(TERM).await).await;
    assert_eq!(run.done, stopped(15));
    queue.assert_quiet();
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn claims_that_wait_go_back_when_the_pilot_is_stopped() {
    let runtime = Arc::new(FakeRuntime::new());
    runtime.hang_prepare("a");
    let queue = Arc::new(FakeQueue::new(chain()));
    let run = drive_with(pilot(1), &queue, &runtime, async |button| after_ten_seconds(&button, TERM).await);
    assert_eq!(run.await.done, stopped(15));
    assert_eq!(queue.log(), ["release a: the pilot takes no more work"]);
    queue.assert_quiet();
    runtime.assert_quiet();
}
