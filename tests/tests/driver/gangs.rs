//! Payloads that run together, as driver and pilot-core bring them to their end.

use pilot_core::ExitStatus;
use pilot_tests::fake::name;

use super::*;

/// `a` and `b`, which run together, and `c` after `a`.
fn pair(change: impl Fn(&mut Entry)) -> Vec<Entry> {
    let gang: Vec<_> = ["a", "b"].map(name).into();
    let member = |text: &str| {
        let mut member = entry(Payload { gang: gang.clone(), ..payload(text) });
        change(&mut member);
        member
    };
    vec![member("a"), member("b"), Entry { after: vec![0], ..entry(payload("c")) }]
}

#[tokio::test(start_paused = true)]
async fn both_are_launched_at_once_and_what_comes_after_waits_for_both() {
    let (queue, runtime) = (Arc::new(FakeQueue::new(pair(|_| {}))), Arc::new(FakeRuntime::new()));
    runtime.script("a", [Play::exits(0, 1000)]);
    runtime.script("b", [Play::exits(0, 5000)]);
    let run = drive(pilot(2), &queue, &runtime).await;
    assert!(run.closed(), "{run:?}");
    queue.assert_quiet();
    runtime.assert_quiet();
    let launches: Vec<String> =
        about_slots(&runtime).into_iter().filter(|call| call.contains("launch")).collect();
    assert_eq!(launches, ["0 launch 0 a", "0 launch 1 b", "5000 launch 0 c"]);
}

#[tokio::test(start_paused = true)]
async fn they_come_back_together_when_one_fails_and_fail_together_in_the_end() {
    let queue = Arc::new(FakeQueue::new(pair(|member| {
        member.retries = u32::from(member.payload.name.as_str() == "b");
    })));
    let runtime = Arc::new(FakeRuntime::new());
    runtime.script("a", [Play::exits(0, 100), Play::exits(0, 100)]);
    runtime.script("b", [Play::exits(3, 2000), Play::exits(3, 2000)]);
    let run = drive(pilot(2), &queue, &runtime).await;
    assert!(run.closed(), "{run:?}");
    queue.assert_quiet();
    runtime.assert_quiet();
    let (bad, other) = (Conclusion::Exited(ExitStatus::Code(3)), Conclusion::GangFailed("b".into()));
    let ends = [
        format!("a comes back: {other}"),
        format!("b comes back: {bad}"),
        format!("a ended: {other}"),
        format!("b ended: {bad}"),
        "c skipped: a".to_owned(),
    ];
    let mut shown: Vec<&String> = run.shown.iter().filter(|line| !line.contains("started")).collect();
    shown.sort_by_key(|line| ends.iter().position(|end| end == *line));
    assert_eq!(shown, ends.iter().collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_gang_that_the_pilot_has_too_few_slots_for_does_not_keep_others_waiting() {
    let mut list = pair(|_| {});
    list.push(entry(payload("d")));
    let (queue, runtime) = (Arc::new(FakeQueue::new(list)), Arc::new(FakeRuntime::new()));
    let run = drive(pilot(1), &queue, &runtime).await;
    assert!(run.closed(), "{run:?}");
    queue.assert_quiet();
    runtime.assert_quiet();
    assert!(run.shown.iter().any(|line| line.starts_with("a ended: its gang needs 2 slots")), "{run:?}");
    assert!(run.shown.contains(&"d ended: succeeded".to_owned()), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_gang_comes_to_its_turn_although_single_payloads_keep_the_slots_busy() {
    let mut list = vec![entry(payload("long"))];
    list.extend(pair(|_| {}));
    list[3].after = vec![1];
    list.extend((0..20).map(|n| entry(payload(&format!("short-{n}")))));
    let (queue, runtime) = (Arc::new(FakeQueue::new(list)), Arc::new(FakeRuntime::new()));
    runtime.script("long", [Play::exits(0, 60_000)]);
    let run = drive(pilot(2), &queue, &runtime).await;
    assert!(run.closed(), "{run:?}");
    queue.assert_quiet();
    let at = |line: &str| run.shown.iter().position(|shown| shown == line);
    assert!(at("a started, try 1") < at("short-0 started, try 1"), "{:?}", run.shown);
}
