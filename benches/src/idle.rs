//! A serving pilot with nothing to do: processor time and memory, with its slots still warm from earlier payloads.

use std::time::Duration;

use serde_json::Value;

use crate::clock::{now_ns, span_ms};
use crate::ground::Ground;
use crate::results::Section;
use crate::site::{Site, forget_spool};

/// Payloads that it ran before.
const BEFORE: u32 = 100;
/// Threads that only worked for those payloads are gone by then (tokio keeps them for 10 s).
const SETTLE: Duration = Duration::from_secs(12);

/// Looks at idle pilots for `span` each, one without and one with metrics.
///
/// # Errors
/// When one fails.
pub fn measure(ground: &Ground, span: Duration) -> anyhow::Result<Value> {
    let mut section = Section::begin("idle");
    let site = Site::new(ground, "idle")?;
    let file = site.workflow(&ground.image, "/least", BEFORE)?;
    for (name, more) in [("serve", &[][..]), ("serve --metrics", &["--metrics", "127.0.0.1:0"][..])] {
        let path = site.path("spool");
        let spool = path.display().to_string();
        let mut served = site.serve(&spool, more)?;
        served.until_serving()?;
        section.add(name, "rss, fresh [KiB]", served.kib("status", "VmRSS")?);
        site.seconds(&["submit", &file, "--spool", &spool])?;
        served.until_ended(BEFORE)?;
        std::thread::sleep(SETTLE);
        let (began, cpu_ms) = (now_ns(), served.cpu_ms()?);
        std::thread::sleep(span);
        let share = (served.cpu_ms()? - cpu_ms) / span_ms(began, now_ns());
        section.add(name, "share of a processor [%]", share * 100.0);
        for (what, file, key) in [
            ("rss", "status", "VmRSS"),
            ("rss at most", "status", "VmHWM"),
            ("rss anonymous", "status", "RssAnon"),
            ("pss", "smaps_rollup", "Pss"),
        ] {
            section.add(name, &format!("{what}, after {BEFORE} payloads [KiB]"), served.kib(file, key)?);
        }
        served.stop()?;
        forget_spool(&path)?;
    }
    Ok(section.end())
}
