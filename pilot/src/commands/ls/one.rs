//! `pilot ls RUN/PAYLOAD`: everything about one payload.

use std::path::Path;

use spool::{Detail, PayloadId, SpoolError, State};

use super::{List, Sink};
use crate::commands::grid::painted;
use crate::commands::standing::{moment, outcome, payload_json, tone};
use crate::payload::{Payload, Source, StageClass};
use crate::show;
use crate::ui::{bytes, duration, elapsed, printable};

impl List<'_> {
    /// All lines about it.
    pub(super) fn one(&self, id: PayloadId, out: &mut Sink<'_>) -> Result<bool, SpoolError> {
        let Some(detail) = self.spool.detail(id)? else { return Ok(out(&super::gone(id.run()))) };
        let payload: Option<Payload> = serde_json::from_str(&detail.spec).ok();
        if self.face.json {
            return Ok(out(&format!("{}\n", json(&detail, payload.as_ref()))));
        }
        let row = &detail.row;
        let mut text = format!("{}/{}\n", row.run, printable(&row.name));
        for (name, value) in self.facts(&detail, payload.as_ref()) {
            text.push_str(&format!("  {name:<11}{value}\n"));
        }
        Ok(out(&text))
    }

    fn facts(&self, detail: &Detail, payload: Option<&Payload>) -> Vec<(&'static str, String)> {
        let row = &detail.row;
        let ago = |unix_ms: u64| {
            let age = elapsed(self.now_ms.saturating_sub(unix_ms));
            format!("{} ({age} ago)", moment(unix_ms))
        };
        let mut facts = vec![
            ("state", self.state(detail)),
            ("run", format!("{}, {}", row.run, printable(&row.run_name))),
            ("image", printable(&row.image).into_owned()),
        ];
        if let Some(payload) = payload {
            facts.extend(asked_for(payload));
        }
        facts.push(("tries", tries(detail)));
        if let Some(pilot) = &row.pilot {
            facts.push(("pilot", printable(pilot).into_owned()));
        }
        facts.extend(row.claimed_wall_ms.map(|unix_ms| ("claimed", ago(unix_ms))));
        facts.extend(row.ended_wall_ms.map(|unix_ms| ("ended", ago(unix_ms))));
        facts.extend(used(detail).map(|used| ("used", used)));
        if let Some(payload) = payload {
            for stream in ["stdout", "stderr"] {
                facts.push((stream, log(&log_path(payload, stream))));
            }
        }
        facts
    }

    /// The state, and why.
    fn state(&self, detail: &Detail) -> String {
        let row = &detail.row;
        let state = painted(row.state.name(), tone(row.state), self.face);
        let why = match (&detail.because, outcome(row)) {
            (Some(because), _) if row.state == State::Skipped => {
                format!("{} did not succeed", printable(because))
            }
            (_, words) => printable(&words).into_owned(),
        };
        if why.is_empty() { state } else { format!("{state}: {why}") }
    }
}

/// What the workflow file said of it.
fn asked_for(payload: &Payload) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    let words: Vec<&str> =
        [&payload.command, &payload.args].into_iter().flatten().flatten().map(String::as_str).collect();
    if !words.is_empty() {
        facts.push(("program", printable(&words.join(" ")).into_owned()));
    }
    let resources = &payload.resources;
    let walltime = payload.walltime_ms.map(|ms| format!(", at most {}", duration(ms))).unwrap_or_default();
    let (memory, disk) = (bytes(resources.memory_bytes), bytes(resources.disk_bytes));
    let cpu = resources.cpu_millis as f64 / 1000.0;
    facts.push(("asks for", format!("{cpu} cpu, {memory} of memory, {disk} of disk{walltime}")));
    for input in &payload.inputs {
        let source = match &input.source {
            Source::Host(path) => path.display().to_string(),
            Source::Stage(uri) => uri.to_string(),
            Source::Object(url) => url.to_string(),
        };
        facts.push(("input", format!("{} from {}", input.name, printable(&source))));
    }
    if !payload.gang.is_empty() {
        let mates: Vec<&str> = payload.gang.iter().map(|name| name.as_str()).collect();
        facts.push(("runs with", printable(&mates.join(", ")).into_owned()));
    }
    for output in &payload.outputs {
        let class = match output.class {
            StageClass::File => "a file",
            StageClass::Folder => "a folder",
            StageClass::Memory => "memory",
            StageClass::Value => "a value",
            StageClass::Pipe => "a pipe",
            StageClass::Shared => "shared memory",
        };
        let save = output.save.as_ref().map(|path| format!(", saved to {path}"));
        facts.push(("output", format!("{}, {class}{}", output.name, printable(&save.unwrap_or_default()))));
    }
    facts
}

/// How often it was tried, and how often it may be.
fn tries(detail: &Detail) -> String {
    let mut text = detail.row.attempt.to_string();
    if detail.failed > 0 {
        text.push_str(&format!(", {} failed", detail.failed));
    }
    if detail.disrupted > 0 {
        text.push_str(&format!(", {} disrupted", detail.disrupted));
    }
    match (detail.at_most_once, detail.retries) {
        (true, _) => text.push_str("; may be started once"),
        (false, 0) => {}
        (false, 1) => text.push_str("; may fail once and be run again"),
        (false, retries) => text.push_str(&format!("; may fail {retries} times and be run again")),
    }
    text
}

fn used(detail: &Detail) -> Option<String> {
    let figures = show::figures(&detail.row.outcome.as_ref()?.usage);
    let wall = figures.wall_ms.map(duration);
    let cpu = figures.cpu_ms.map(|ms| format!("cpu {}", duration(ms)));
    let memory = figures.memory_peak_bytes.map(|peak| format!("memory {}", bytes(peak)));
    let known: Vec<String> = [wall, cpu, memory].into_iter().flatten().collect();
    (!known.is_empty()).then(|| known.join(", "))
}

/// Where a payload's stream is kept; the file is made at the first byte.
pub(crate) fn log_path(payload: &Payload, stream: &str) -> std::path::PathBuf {
    payload.logs.join(format!("{}.{stream}", payload.name))
}

fn log(path: &Path) -> String {
    let size = std::fs::metadata(path).map_or_else(|_| "nothing yet".to_owned(), |meta| bytes(meta.len()));
    format!("{} ({size})", printable(&path.display().to_string()))
}

fn json(detail: &Detail, payload: Option<&Payload>) -> serde_json::Value {
    let mut value = payload_json(&detail.row);
    let log = |stream| payload.map(|payload| log_path(payload, stream));
    let more = serde_json::json!({
        "because": detail.because,
        "failed": detail.failed,
        "disrupted": detail.disrupted,
        "retries": detail.retries,
        "at_most_once": detail.at_most_once,
        "trust_group": detail.trust_group,
        "out": detail.out,
        "stdout": log("stdout"),
        "stderr": log("stderr"),
        "usage": detail.row.outcome.as_ref().map(|outcome| outcome.usage),
        "spec": payload,
    });
    if let (Some(value), serde_json::Value::Object(more)) = (value.as_object_mut(), more) {
        value.extend(more);
    }
    value
}
