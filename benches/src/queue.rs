//! The spool under many payloads: how long submitting takes, what a serving pilot weighs, and whether its pace changes.

use anyhow::Context;
use serde_json::Value;

use crate::clock::span_ms;
use crate::ground::Ground;
use crate::results::Section;
use crate::site::{Site, forget_spool};

/// Payloads in the queue.
const QUEUED: [u32; 3] = [100, 10_000, 100_000];
/// Written out one by one, as a program would write them.
const LONG: u32 = 10_000;
/// Payloads that pass before the pace is measured: the slots are warm then.
const FIRST: u32 = 20;
/// Payloads over which the pace is measured, where there are as many.
const PACE: u32 = 2000;

/// Measures `turns` turns of each length.
///
/// # Errors
/// When something fails.
pub fn measure(ground: &Ground, turns: u32) -> anyhow::Result<Value> {
    let mut section = Section::begin("queue");
    let site = Site::new(ground, "queue")?;
    let image = ground.image.as_str();
    site.seconds(&["run", &site.workflow(image, "/least", FIRST)?])?;
    let long = site.long_workflow(image, "/least", LONG)?;
    for turn in 0..turns as usize {
        let path = site.path("spool");
        let spool = path.display().to_string();
        let took = site.seconds(&["submit", &long, "--spool", &spool])?;
        section.add("latebind", &format!("submit {LONG}, each written out [s]"), took);
        forget_spool(&path)?;
        for at in 0..QUEUED.len() {
            let queued = QUEUED[(turn + at) % QUEUED.len()];
            let file = site.workflow(image, "/least", queued)?;
            let took = site.seconds(&["submit", &file, "--spool", &spool])?;
            section.add("latebind", &format!("submit {queued}, one array [s]"), took);
            pace(&site, &spool, queued, &mut section).with_context(|| format!("{queued} queued"))?;
            forget_spool(&path)?;
        }
    }
    Ok(section.end())
}

/// Serves for a while.
fn pace(site: &Site, spool: &str, queued: u32, section: &mut Section) -> anyhow::Result<()> {
    let over = PACE.min(queued - FIRST - 1);
    let mut served = site.serve(spool, &[])?;
    let began = served.until_ended(FIRST)?;
    let ended = served.until_ended(over)?;
    section.add(
        "latebind",
        &format!("time a payload, {queued} queued [ms]"),
        span_ms(began, ended) / f64::from(over),
    );
    for (what, file, key) in [("rss", "status", "VmRSS"), ("rss at most", "status", "VmHWM")] {
        section.add("latebind", &format!("{what}, {queued} queued [KiB]"), served.kib(file, key)?);
    }
    served.stop()
}
