//! One pod, many binds. `LATEBIND_SOAK` says how many; by default few enough for every run of the tests.

use std::time::Duration;

use image_store::layout::ImageSpec;
use pilot_tests::images::shell;
use pilot_tests::kube::{Namespace, Shape, push};
use pilot_tests::note;
use serde_json::Value;

use super::basics::flow;

/// Binds when nobody says.
const BINDS: usize = 100;
/// Images, each one more than there are slots, so that the next payload's is in none.
const IMAGES: usize = 4;
/// Payloads of a run.
const BATCH: usize = 20;

#[expect(clippy::disallowed_methods, reason = "the length of a test")]
fn binds() -> usize {
    std::env::var("LATEBIND_SOAK").ok().and_then(|text| text.parse().ok()).unwrap_or(BINDS)
}

/// What was seen of one batch.
struct Seen {
    /// From claim to end of each payload, in milliseconds.
    latencies: Vec<u64>,
    pilot_rss_kib: u64,
}

fn batch(images: &[String], first: usize) -> String {
    let payload = |number: usize| {
        let image = &images[number % images.len()];
        format!("  - {{name: p-{number}, image: {image:?}, command: [/bin/sh, -c, 'echo $NUMBER']}}\n")
    };
    flow(&(first..first + BATCH).map(payload).collect::<Vec<_>>())
}

/// Middle and nine tenths of numbers.
fn quantiles(seen: &[Seen]) -> (u64, u64) {
    let mut all: Vec<u64> = seen.iter().flat_map(|seen| seen.latencies.iter().copied()).collect();
    all.sort_unstable();
    (all[all.len() / 2], all[all.len() * 9 / 10])
}

#[test]
fn slots_that_change_their_image_again_and_again_lose_nothing_and_the_pilot_does_not_grow() {
    let namespace = Namespace::new("soak", &[]);
    let node = namespace.node();
    let image = |number: usize| {
        let spec = ImageSpec { env: vec![format!("NUMBER={number}")], ..shell() };
        push(node, &format!("soak-{number}"), &spec)
    };
    let images: Vec<String> = (0..IMAGES).map(image).collect();
    let pod = namespace.pod(&Shape::default());
    let host = pod.host();
    let (mut seen, mut done) = (Vec::new(), 0);
    while done < binds() {
        let run = pod.submit(&batch(&images, done));
        let ended = pod.wait(&run, Duration::from_secs(300));
        assert_eq!(ended.code, 0, "{}{}\n{}", ended.stdout, ended.stderr, pod.pilot_log());
        let rows = pod.payloads(&run);
        let rows: Vec<&Value> = rows.iter().filter(|row| row["kind"] == "payload").collect();
        assert_eq!(rows.len(), BATCH);
        let lost: Vec<&&Value> =
            rows.iter().filter(|row| row["state"] != "succeeded" || row["tries"] != 1).collect();
        assert!(lost.is_empty(), "{lost:#?}");
        let span =
            |row: &&Value| row["ended_unix_ms"].as_u64()?.checked_sub(row["claimed_unix_ms"].as_u64()?);
        let latencies = rows.iter().filter_map(span).collect();
        seen.push(Seen { latencies, pilot_rss_kib: host.pilot().expect("a pilot").rss_kib });
        let last = done + BATCH - 1;
        assert_eq!(pod.output(&run, &format!("p-{last}")), format!("{}\n", last % IMAGES));
        done += BATCH;
    }
    let restarts: u64 =
        (0..2).filter_map(|slot| pod.container(&format!("slot-{slot}"))["restartCount"].as_u64()).sum();
    let quarter = (seen.len() / 4).max(1);
    let (early, late) = (&seen[..quarter], &seen[seen.len() - quarter..]);
    let rss = |of: &[Seen]| of.iter().map(|seen| seen.pilot_rss_kib).max().unwrap_or(0);
    let mut table = format!("soak: {done} payloads, {restarts} containers\n");
    table.push_str(
        "| quarter | claim to end, median ms | p90 ms | pilot's memory, KiB |\n|---|---|---|---|\n",
    );
    for (name, of) in [("first", early), ("last", late)] {
        let (median, p90) = quantiles(of);
        table.push_str(&format!("| {name} | {median} | {p90} | {} |\n", rss(of)));
    }
    note(&table);
    // Several in a row may meet a slot that is warm by chance.
    assert!(restarts as usize > done / 2, "{table}");
    assert!(rss(late) * 2 < rss(early) * 3, "the pilot grows\n{table}");
    assert!(pod.container("pilot")["restartCount"] == 0, "{}", pod.pilot_log());
}
