//! How runs and payloads stand, in words for people and in JSON for machines.
//!
//! **Must not know:** where it is shown.

use pilot_core::Outcome;
use serde_json::{Value, json};
use spool::{Counts, Row, Run, RunStatus, State};

use crate::commands::grid::{Cell, Column, Tone};
use crate::show;
use crate::ui::{Figures, bytes, duration, elapsed};

/// The table of runs.
pub(crate) const RUN_COLUMNS: &[Column] = &[
    ("RUN", true),
    ("NAME", false),
    ("STATE", false),
    ("DONE", true),
    ("CLAIMED", true),
    ("WAITING", true),
    ("FAILED", true),
    ("NOT RUN", true),
    ("AGE", true),
    ("TOOK", true),
];

/// A run's row in it.
pub(crate) fn run_cells(run: &Run, now_ms: u64) -> Vec<Cell> {
    let counts = &run.counts;
    let status = run.status();
    let took = run.ended_wall_ms.map(|ended| ended.saturating_sub(run.submitted_wall_ms));
    vec![
        run.id.to_string().into(),
        run.name.as_str().into(),
        Cell::new(status.name(), run_tone(status)),
        format!("{}/{}", counts.succeeded, counts.total()).into(),
        Cell::count(counts.claimed, Tone::Plain),
        Cell::count(counts.waiting + counts.ready, Tone::Plain),
        Cell::count(counts.failed + counts.lost, Tone::Bad),
        Cell::count(counts.skipped + counts.cancelled, Tone::Warn),
        elapsed(now_ms.saturating_sub(run.submitted_wall_ms)).into(),
        took.map_or_else(|| "-".to_owned(), duration).into(),
    ]
}

/// The colour of a run's state.
pub(crate) fn run_tone(status: RunStatus) -> Tone {
    match status {
        RunStatus::Queued | RunStatus::Running => Tone::Plain,
        RunStatus::Succeeded => Tone::Good,
        RunStatus::Failed => Tone::Bad,
        RunStatus::Cancelled => Tone::Warn,
    }
}

/// The table of payloads.
pub(crate) const PAYLOAD_COLUMNS: &[Column] = &[
    ("PAYLOAD", false),
    ("STATE", false),
    ("TRIES", true),
    ("PILOT", false),
    ("TIME", true),
    ("CPU", true),
    ("MEMORY", true),
    ("OUTCOME", false),
];

/// A payload's row in it.
pub(crate) fn payload_cells(row: &Row, now_ms: u64) -> Vec<Cell> {
    let figures = row.outcome.as_ref().map(|outcome| show::figures(&outcome.usage)).unwrap_or_default();
    let dash = || "-".to_owned();
    let time = match (row.state, row.claimed_wall_ms) {
        (State::Claimed, Some(since)) => elapsed(now_ms.saturating_sub(since)),
        _ => figures.wall_ms.map_or_else(dash, duration),
    };
    // Of a try that is under way nothing is known yet; that of the last one would mislead.
    let known = row.state != State::Claimed;
    vec![
        row.name.as_str().into(),
        Cell::new(row.state.name(), tone(row.state)),
        u64::from(row.attempt).to_string().into(),
        row.pilot.as_deref().unwrap_or("-").into(),
        time.into(),
        figures.cpu_ms.filter(|_| known).map_or_else(dash, duration).into(),
        figures.memory_peak_bytes.filter(|_| known).map_or_else(dash, bytes).into(),
        outcome(row).into(),
    ]
}

/// The colour of a payload's state.
pub(crate) fn tone(state: State) -> Tone {
    match state {
        State::Waiting | State::Ready | State::Claimed => Tone::Plain,
        State::Succeeded => Tone::Good,
        State::Failed | State::Lost => Tone::Bad,
        State::Skipped | State::Cancelled => Tone::Warn,
    }
}

/// What is to be said beyond the state; often nothing.
pub(crate) fn outcome(row: &Row) -> String {
    let words = row.outcome.as_ref().filter(|outcome| !outcome.is_success()).map(words);
    let last = || words.clone().map(|words| format!("last try: {words}"));
    match row.state {
        State::Claimed if row.cancel_asked => "told to end".to_owned(),
        State::Claimed | State::Waiting => last().unwrap_or_default(),
        State::Ready => match (row.retry_in_ms, last()) {
            (Some(ms), Some(last)) => format!("again in {}; {last}", duration(ms)),
            (Some(ms), None) => format!("again in {}", duration(ms)),
            (None, last) => last.unwrap_or_default(),
        },
        State::Failed | State::Lost => words.unwrap_or_default(),
        State::Cancelled => words.filter(|words| words != State::Cancelled.name()).unwrap_or_default(),
        State::Succeeded | State::Skipped => String::new(),
    }
}

/// How a try ended.
pub(crate) fn words(outcome: &Outcome) -> String {
    show::words(outcome, None)
}

/// `3/11 done, 2 claimed, 5 waiting, 1 failed`.
pub(crate) fn counts_words(counts: &Counts) -> String {
    let mut text = format!("{}/{} done", counts.succeeded, counts.total());
    let rest = [
        (counts.claimed, "claimed"),
        (counts.waiting + counts.ready, "waiting"),
        (counts.failed, "failed"),
        (counts.lost, "lost"),
        (counts.skipped, "skipped"),
        (counts.cancelled, "cancelled"),
    ];
    for (count, word) in rest.into_iter().filter(|(count, _)| *count > 0) {
        text.push_str(&format!(", {count} {word}"));
    }
    text
}

/// `1 payload`, `2 payloads`.
pub(crate) fn payloads(count: u64) -> String {
    if count == 1 { "1 payload".to_owned() } else { format!("{count} payloads") }
}

/// A run as machines read it.
pub(crate) fn run_json(run: &Run) -> Value {
    let counts = State::ALL.map(|state| (state.name().to_owned(), Value::from(run.counts.of(state))));
    json!({
        "kind": "run",
        "run": run.id.0,
        "name": run.name,
        "state": run.status().name(),
        "payloads": run.counts.total(),
        "counts": Value::Object(counts.into_iter().collect()),
        "key": run.key,
        "file": run.origin,
        "out": run.out,
        "home": run.home,
        "submitted_unix_ms": run.submitted_wall_ms,
        "ended_unix_ms": run.ended_wall_ms,
    })
}

/// A payload as machines read it.
pub(crate) fn payload_json(row: &Row) -> Value {
    let figures: Option<Figures> = row.outcome.as_ref().map(|outcome| show::figures(&outcome.usage));
    json!({
        "kind": "payload",
        "run": row.run.0,
        "payload": row.name,
        "array": (row.family != row.name).then_some(&row.family),
        "state": row.state.name(),
        "tries": row.attempt,
        "pilot": row.pilot,
        "cancel_asked": row.cancel_asked,
        "retry_in_ms": row.retry_in_ms,
        "claimed_unix_ms": row.claimed_wall_ms,
        "ended_unix_ms": row.ended_wall_ms,
        "outcome": row.outcome.as_ref().map(words),
        "gang_failed_by": row.outcome.as_ref().and_then(show::culprit),
        "figures": figures,
        "image": row.image,
    })
}

/// The last moment that has a year of four digits; no clock goes further, but a broken one may say so.
const UNIX_MS_MAX: u64 = 253_402_300_799_999;

/// A moment of the wall clock as `2026-11-21 09:10:32 UTC`.
pub(crate) fn moment(unix_ms: u64) -> String {
    let seconds = unix_ms.min(UNIX_MS_MAX) / 1000;
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut days, mut year) = (seconds / 86_400, 1970);
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{:02} {hour:02}:{minute:02}:{second:02} UTC", days + 1)
}

#[cfg(test)]
mod tests {
    use super::moment;

    #[test]
    fn moments_are_written_as_people_read_them() {
        for (unix_ms, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400_000, "2000-02-29 00:00:00 UTC"),
            (951_868_799_999, "2000-02-29 23:59:59 UTC"),
            (1_735_689_599_000, "2024-12-31 23:59:59 UTC"),
            (1_795_252_232_000, "2026-11-21 09:10:32 UTC"),
            (4_107_542_400_000, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(moment(unix_ms), text);
        }
    }
}
