//! A large spool is as quick as a small one.

use std::time::Duration;

use spool::{Clock, RunFilter, RunId, Selection, Spool, State, SystemClock};

use crate::common::{TestClock, exit, many, open};

const LEASE: u64 = 60_000;

fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(time).expect("a time")
}

/// Seen with `--nocapture`.
fn figure(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "FIGURE: {text}");
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Medians of a claim, a report, a page of a listing and the runs' list.
fn medians(spool: &mut Spool, run: RunId) -> [Duration; 4] {
    let mut times: [Vec<Duration>; 4] = Default::default();
    for _ in 0..200 {
        let mut last = now();
        let mut lap = |list: &mut Vec<Duration>| {
            let next = now();
            list.push(next - last);
            last = next;
        };
        let offer = spool.claim("p", 1, LEASE).expect("claim").remove(0);
        lap(&mut times[0]);
        spool.report(offer.claim, &exit(0)).expect("report");
        lap(&mut times[1]);
        let rows = spool.payloads(run, &[State::Succeeded], None, 20).expect("payloads");
        lap(&mut times[2]);
        let runs = spool.runs(RunFilter::All, None, 20).expect("runs");
        lap(&mut times[3]);
        assert!(!rows.is_empty() && !runs.is_empty());
    }
    times.map(median)
}

#[test]
fn time_does_not_grow_with_what_lies_in_the_spool() {
    let long = std::env::vars().any(|(name, _)| name == "LATEBIND_LONG");
    let sizes: [usize; 2] = [1_000, if long { 1_000_000 } else { 50_000 }];
    let clock = TestClock::new();
    let figures = sizes.map(|size| {
        let folder = tempfile::tempdir().expect("folder");
        let mut spool = open(folder.path(), &clock);
        // A tenth is done already, in runs of their own, as in a spool that is in use.
        let begun = now();
        for _ in 0..10 {
            spool.submit(&many("w", size / 10)).expect("submit");
        }
        let submitted = now() - begun;
        spool.cancel(&Selection::Run(RunId(1))).expect("cancel");
        let figures = medians(&mut spool, RunId(2));
        figure(&format!(
            "{size} payloads: submitted in {submitted:?}; claim, report, page, runs: {figures:?}"
        ));
        figures
    });
    for (few, many) in figures[0].into_iter().zip(figures[1]) {
        // Twice, and a little for the machine's moods.
        assert!(many < few * 2 + Duration::from_micros(200), "{figures:?}");
    }
}

#[test]
fn ten_thousand_payloads_are_submitted_in_no_time() {
    let folder = tempfile::tempdir().expect("folder");
    let mut spool = open(folder.path(), &TestClock::new());
    // As long as a pilot writes them.
    let mut submission = many("w", 10_000);
    for payload in &mut submission.payloads {
        payload.spec = "x".repeat(1_000);
    }
    let begun = now();
    spool.submit(&submission).expect("submit");
    let took = now() - begun;
    // One after the other, each its own transaction; a pilot does many in one.
    let begun = now();
    for _ in 0..1_000 {
        let claim = spool.claim("p", 1, LEASE).expect("claim")[0].claim;
        spool.report(claim, &exit(0)).expect("report");
    }
    let alone = now() - begun;
    let begun = now();
    for _ in 0..100 {
        let done = spool.transact(|work| {
            for offer in work.claim("p", 20, LEASE)? {
                work.report(offer.claim, &exit(0))?;
            }
            Ok(())
        });
        done.expect("transact");
    }
    let together = now() - begun;
    figure(&format!(
        "10000 submitted in {took:?}; 1000 pairs alone {alone:?}; 2000 pairs by twenty {together:?}"
    ));
    assert!(took < Duration::from_secs(5), "{took:?}, even on a busy machine without optimisation");
}

#[test]
fn the_machines_clocks_run() {
    let clock = SystemClock::new().expect("clock");
    let (before, wall) = (clock.boot_ms(), clock.wall_ms());
    assert!(clock.boot_ms() >= before && before > 0 && wall > 1_600_000_000_000);
    assert_eq!(clock.boot_id().len(), 36);
}
