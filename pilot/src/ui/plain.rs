//! Events as single lines, for logs and for whatever is not a terminal.
//!
//! Must not know: where the lines go.

use super::event::{Figures, RowState, Stream, UiEvent};
use super::table::{self, Look, payloads};
use super::words::{bytes, duration, printable};

/// The lines of an event, every one ended; empty for what is only interesting live.
pub(super) fn lines(at_ms: u64, event: &UiEvent, look: Look) -> String {
    match event {
        UiEvent::Summary(summary) => table::summary(summary, look),
        UiEvent::IngestProgress { .. } => String::new(),
        other => format!("[{:>4}.{:03}] {}\n", at_ms / 1000, at_ms % 1000, line(other, look)),
    }
}

/// One event without its time.
pub(super) fn line(event: &UiEvent, look: Look) -> String {
    match event {
        UiEvent::WorkflowStarted { workflow, total } => {
            format!("{}: {}", printable(workflow), payloads(*total))
        }
        UiEvent::Prepared { image, bytes: size } => {
            format!("image {}: ready, {}", printable(image), bytes(*size))
        }
        UiEvent::PayloadStarted { name, slot, attempt } => {
            let again = if *attempt > 1 { format!(", try {attempt}") } else { String::new() };
            format!("{}: started in slot {slot}{again}", printable(name))
        }
        UiEvent::PayloadEnded { name, ok, retry, outcome, figures, .. } => {
            let state = if *ok { RowState::Done } else { RowState::Failed };
            let again = if *retry { ", will be tried again" } else { "" };
            let outcome = look.state(state, &printable(outcome));
            format!("{}: {outcome}{}{again}", printable(name), used(figures))
        }
        UiEvent::PayloadSkipped { name, reason } => {
            let state = look.state(RowState::NotRun, "not run");
            format!("{}: {state}, {}", printable(name), printable(reason))
        }
        UiEvent::Output { name, stream, line } => {
            let mark = match stream {
                Stream::Stdout => '|',
                Stream::Stderr => '!',
            };
            format!("{} {mark} {}", printable(name), printable(line))
        }
        UiEvent::Note { text } => printable(text).into_owned(),
        // Shown live, or as a table.
        UiEvent::IngestProgress { .. } | UiEvent::Summary(_) => String::new(),
    }
}

fn used(figures: &Figures) -> String {
    let Figures { wall_ms, cpu_ms, memory_peak_bytes } = *figures;
    let wall = wall_ms.map(|ms| format!("in {}", duration(ms)));
    let cpu = cpu_ms.map(|ms| format!("cpu {}", duration(ms)));
    let memory = memory_peak_bytes.map(|peak| format!("memory {}", bytes(peak)));
    let known: Vec<String> = [wall, cpu, memory].into_iter().flatten().collect();
    if known.is_empty() { String::new() } else { format!(" ({})", known.join(", ")) }
}
