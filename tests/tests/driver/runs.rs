//! Runs in which the machine does what it should.

use pilot::payload::{Resources, StageClass};
use pilot::queue::workflow::WorkflowQueue;
use pilot_core::{Conclusion, ExitStatus, Outcome};
use pilot_tests::fake::{Deed, input, output};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_payload_goes_the_whole_way_once() {
    let (conclusion, calls) = one(payload("a"), Play::exits(0, 2500)).await;
    assert_eq!(conclusion, Conclusion::Succeeded);
    assert_eq!(calls, ["0 bind 0 a", "0 launch 0 a", "2500 drain 0 a commit", "2500 clean 0"]);
}

#[tokio::test(start_paused = true)]
async fn an_empty_queue_ends_the_pilot_at_once() {
    let (queue, runtime) = (Arc::new(FakeQueue::new(Vec::new())), Arc::new(FakeRuntime::new()));
    assert!(drive(pilot(2), &queue, &runtime).await.closed());
    assert_eq!(runtime.calls(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_stage_reaches_its_reader_and_goes_when_it_was_read() {
    let deed = |deed: Deed| Some(deed.words());
    let writes = Payload {
        command: deed(Deed::Write { output: "hits".into(), text: "42".into() }),
        outputs: vec![output("hits", StageClass::Memory, &["b"])],
        ..payload("a")
    };
    let reads = Payload {
        command: deed(Deed::Expect { input: "hits".into(), text: "42".into() }),
        inputs: vec![input("hits", "a")],
        ..payload("b")
    };
    let reads = Entry { after: vec![0], ..entry(reads) };
    let queue = Arc::new(WorkflowQueue::new(vec![entry(writes), reads]));
    let runtime = Arc::new(FakeRuntime::new());
    let run = drive(pilot(2), &queue, &runtime).await;
    assert!(run.closed());
    assert_eq!(
        run.shown,
        ["a started, try 1", "a ended: succeeded", "b started, try 1", "b ended: succeeded"]
    );
    runtime.assert_quiet();
    assert_eq!(runtime.stages(), Vec::<String>::new(), "settled with its last reader");
}

#[tokio::test(start_paused = true)]
async fn a_failed_payload_is_tried_again_after_longer_and_longer_pauses() {
    let runtime = Arc::new(FakeRuntime::new());
    runtime.script("a", [Play::exits(1, 0), Play::exits(2, 0), Play::exits(0, 0)]);
    let queue = Arc::new(WorkflowQueue::new(vec![Entry { retries: 3, ..entry(payload("a")) }]));
    let run = drive(pilot(1), &queue, &runtime).await;
    assert!(run.closed());
    let shown = [
        "a started, try 1",
        "a comes back: exit code 1",
        "a started, try 2",
        "a comes back: exit code 2",
        "a started, try 3",
        "a ended: succeeded",
    ];
    assert_eq!(run.shown, shown);
    let calls = runtime.timed_calls();
    let launches: Vec<&String> = calls.iter().filter(|call| call.contains("launch")).collect();
    assert_eq!(launches, ["0 launch 0 a", "500 launch 0 a", "1500 launch 0 a"]);
    let settled = calls.iter().filter(|call| call.contains("settle")).count();
    assert_eq!(settled, 1, "what will be tried again still needs its inputs");
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_payload_that_failed_for_good_is_skipped_and_the_others_go_on() {
    let runtime = Arc::new(FakeRuntime::new());
    runtime.script("a", [Play::exits(1, 10), Play::exits(7, 10)]);
    let mut entries = chain();
    entries[0].retries = 1;
    entries.push(entry(payload("alone")));
    let queue = Arc::new(FakeQueue::new(entries));
    let run = drive(pilot(1), &queue, &runtime).await;
    assert!(run.closed());
    for expected in ["a ended: exit code 7", "b skipped: a", "c skipped: a", "alone ended: succeeded"] {
        assert_eq!(run.shown.iter().filter(|shown| *shown == expected).count(), 1, "{expected}: {run:#?}");
    }
    let mut settled: Vec<String> =
        runtime.calls().into_iter().filter(|call| call.starts_with("settle")).collect();
    settled.sort();
    assert_eq!(settled, ["settle a", "settle alone", "settle b", "settle c"]);
    queue.assert_quiet();
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_payload_for_at_most_once_is_launched_once_however_many_retries_it_has() {
    let runtime = Arc::new(FakeRuntime::new());
    runtime.script("a", [Play::bind_fails(slot_fault("no mounts left")), Play::exits(1, 10)]);
    let once = Entry { at_most_once: true, retries: 9, ..entry(payload("a")) };
    let queue = Arc::new(WorkflowQueue::new(vec![once]));
    let run = drive(pilot(1), &queue, &runtime).await;
    assert!(run.closed());
    // A bind that failed has launched nothing, so it may be tried again.
    assert_eq!(run.shown, ["a comes back: no mounts left", "a started, try 2", "a ended: exit code 1"]);
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn many_payloads_on_few_slots_never_use_more_than_there_is() {
    const COUNT: u64 = 60;
    let runtime = Arc::new(FakeRuntime::new());
    let sized = |index: u64| {
        let name = format!("p{index}");
        runtime.script(&name, [Play::exits(0, 100 + index * 37 % 900)]);
        // From a tenth to all of the pilot's share, each in its own mixture.
        let cpu_millis = 400 * (1 + index * 7 % 10);
        let memory_bytes = (24 << 20) * (1 + index * 3 % 10);
        let resources = Resources { cpu_millis, memory_bytes, disk_bytes: 1 << 20 };
        entry(Payload { resources, ..payload(&name) })
    };
    let queue = Arc::new(FakeQueue::new((0..COUNT).map(sized).collect()));
    let total = Demand { cpu_millis: 4000, memory_bytes: 240 << 20 };
    let run = drive(PilotConfig::new(4, total), &queue, &runtime).await;
    assert!(run.closed());
    assert!(queue.outcomes().iter().all(|(_, outcome)| outcome.is_success()));
    assert_eq!(queue.outcomes().len() as u64, COUNT);
    let peak = runtime.peak();
    assert!(peak.fits(&total), "{peak} of {total}");
    assert!(peak.cpu_millis > 3000, "at its best it used only {peak}");
    queue.assert_quiet();
    runtime.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_obeys_at_the_end_of_its_walltime_is_not_killed() {
    let short = Payload { walltime_ms: Some(5000), ..payload("a") };
    let (conclusion, calls) = one(short, Play::ends_on_term()).await;
    assert_eq!(conclusion.to_string(), "walltime exceeded");
    assert_eq!(
        calls,
        ["0 bind 0 a", "0 launch 0 a", "5000 term 0 1000", "5000 drain 0 a drop", "5000 clean 0"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_outlives_its_walltime_is_told_and_then_killed() {
    // One that does not even end on KILL is given a second for its last words.
    for (play, drain, clean) in [
        (Play::ends_on_kill(), "6000 drain 0 a drop", "6000 clean 0"),
        (Play::never_ends(), "7000 drain 0 a drop", "7000 clean 0"),
    ] {
        let short = Payload { walltime_ms: Some(5000), ..payload("a") };
        let (conclusion, calls) = one(short, play).await;
        assert_eq!(conclusion.to_string(), "walltime exceeded");
        let expected = ["0 bind 0 a", "0 launch 0 a", "5000 term 0 1000", "6000 kill 0", drain, clean];
        assert_eq!(calls, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_payload_without_a_walltime_may_run_for_hours() {
    let (conclusion, _) = one(payload("a"), Play::exits(0, 20 * 3_600_000)).await;
    assert_eq!(conclusion, Conclusion::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn an_outcome_tells_status_and_launch() {
    let runtime = Arc::new(FakeRuntime::new());
    let queue = Arc::new(FakeQueue::new(vec![entry(Payload {
        command: Some(Deed::Missing.words()),
        ..payload("a")
    })]));
    drive(pilot(1), &queue, &runtime).await;
    let [(_, Outcome { conclusion, launched, status, .. })] = queue.outcomes().try_into().expect("one");
    assert_eq!(conclusion, Conclusion::Exited(ExitStatus::Code(127)));
    assert_eq!((launched, status), (true, Some(ExitStatus::Code(127))));
    runtime.assert_quiet();
}
