//! Whole runs of the driver and pilot-core with a scripted runtime, a queue with a ledger, and paused time: an hour passes in
//! a moment, and every time that is asserted is exact.

use std::sync::Arc;
use std::time::Duration;

use pilot::driver::{Done, Driver, Progress};
use pilot::payload::Payload;
use pilot::ports::Queue;
use pilot::queue::workflow::Entry;
use pilot_core::{Conclusion, Demand, DoneWhy, Fault, FaultClass, PilotConfig};
use pilot_tests::fake::{FakeCluster, FakeQueue, FakeRuntime, Play, StopButton, entry, payload};

#[path = "driver/faults.rs"]
mod faults;
#[path = "driver/gangs.rs"]
mod gangs;
#[path = "driver/runs.rs"]
mod runs;
#[path = "driver/stops.rs"]
mod stops;

/// No run here takes longer; one that waits for ever fails instead of hanging.
const A_DAY: Duration = Duration::from_secs(24 * 3600);

/// `slots` slots with a processor and 64 MiB each: what the smallest payload asks for.
fn pilot(slots: u32) -> PilotConfig {
    PilotConfig::new(
        slots,
        Demand { cpu_millis: 1000 * u64::from(slots), memory_bytes: (64 << 20) * u64::from(slots) },
    )
}

fn slot_fault(text: &str) -> Fault {
    Fault::new(FaultClass::Slot, text)
}

/// How a run ended and what was shown of it.
#[derive(Debug)]
struct Run {
    done: Done,
    shown: Vec<String>,
}

impl Run {
    fn closed(&self) -> bool {
        self.done == Done { why: DoneWhy::QueueClosed, signal: None }
    }
}

/// Drives a pilot to its end, with a button that stops it.
async fn drive_with<Q: Queue>(
    config: PilotConfig,
    queue: &Arc<Q>,
    runtime: &Arc<FakeRuntime>,
    press: impl AsyncFnOnce(StopButton),
) -> Run {
    let (cluster, button) = FakeCluster::new();
    let driver = Driver::new(config, Arc::clone(queue), Arc::clone(runtime), cluster);
    let mut shown = Vec::new();
    let run = driver.run(|progress| shown.extend(words(&progress)));
    let (done, ()) = tokio::join!(tokio::time::timeout(A_DAY, run), press(button));
    Run { done: done.expect("the pilot comes to its end"), shown }
}

async fn drive<Q: Queue>(config: PilotConfig, queue: &Arc<Q>, runtime: &Arc<FakeRuntime>) -> Run {
    drive_with(config, queue, runtime, async |_button| {}).await
}

fn words(progress: &Progress) -> Option<String> {
    match progress {
        Progress::Started { payload, attempt, .. } => {
            Some(format!("{} started, try {attempt}", payload.name))
        }
        Progress::Ended { payload, outcome, retry, .. } => {
            let what = if *retry { "comes back" } else { "ended" };
            Some(format!("{} {what}: {}", payload.name, outcome.conclusion))
        }
        Progress::Skipped { payload, because } => Some(format!("{} skipped: {}", payload.name, because.name)),
        Progress::Prepared { .. }
        | Progress::Claimed { .. }
        | Progress::Moved { .. }
        | Progress::Stopping
        | Progress::Tick => None,
    }
}

/// One payload `a` with a script, on one slot; queue and slot must be quiet at the end. Gives the conclusion and the calls
/// about the slot, with their times.
async fn one(payload: Payload, play: Play) -> (Conclusion, Vec<String>) {
    let runtime = Arc::new(FakeRuntime::new());
    runtime.script("a", [play]);
    let queue = Arc::new(FakeQueue::new(vec![entry(payload)]));
    let run = drive(pilot(1), &queue, &runtime).await;
    assert!(run.closed(), "{run:?}");
    queue.assert_quiet();
    runtime.assert_quiet();
    let [(_, outcome)] = queue.outcomes().try_into().expect("one report");
    (outcome.conclusion, about_slots(&runtime))
}

/// The calls but `settle`, which has nothing to do with a slot.
fn about_slots(runtime: &FakeRuntime) -> Vec<String> {
    runtime.timed_calls().into_iter().filter(|call| !call.contains("settle")).collect()
}

/// `b` reads what `a` writes, `c` what `b` writes.
fn chain() -> Vec<Entry> {
    let after = |name: &str, before: usize| Entry { after: vec![before], ..entry(payload(name)) };
    vec![entry(payload("a")), after("b", 0), after("c", 1)]
}
