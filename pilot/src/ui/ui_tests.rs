use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::ports::StageFigures;

use super::{Figures, Reporter, RowState, Saved, Stream, Summary, SummaryRow, UiEvent};

/// A writer whose bytes a test can read.
#[derive(Clone, Default)]
pub(super) struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()).expect("UTF-8")
    }

    pub(super) fn boxed(&self) -> Box<dyn Write + Send> {
        Box::new(self.clone())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A pipe that nobody reads.
pub(super) struct Broken;

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn row(
    name: &str,
    array: Option<&str>,
    state: RowState,
    outcome: &str,
    wall_ms: u64,
) -> SummaryRow {
    SummaryRow {
        name: name.to_owned(),
        array: array.map(str::to_owned),
        state,
        tries: 1,
        outcome: outcome.to_owned(),
        figures: Figures {
            wall_ms: Some(wall_ms),
            cpu_ms: Some(wall_ms / 2),
            memory_peak_bytes: Some(wall_ms << 12),
        },
        image: "oci:images/x".to_owned(),
        log: None,
    }
}

/// One of each, as a small run would give them.
pub(super) fn story() -> Vec<(u64, UiEvent)> {
    let figures = Figures { wall_ms: Some(1500), cpu_ms: Some(1200), memory_peak_bytes: Some(5 << 20) };
    let image = "oci:x".to_owned();
    let name = "a".to_owned();
    vec![
        (0, UiEvent::WorkflowStarted { workflow: "w".into(), total: 2 }),
        (1, UiEvent::IngestProgress { image: image.clone(), done_bytes: 1024, total_bytes: Some(4096) }),
        (2, UiEvent::Prepared { image, bytes: 4096 }),
        (10, UiEvent::PayloadStarted { name: name.clone(), slot: 0, attempt: 1 }),
        (20, UiEvent::Output { name: name.clone(), stream: Stream::Stderr, line: "hot\u{1b}[2J".into() }),
        (
            1510,
            UiEvent::PayloadEnded {
                name: name.clone(),
                attempt: 1,
                ok: false,
                retry: true,
                outcome: "exit code 1".into(),
                because: None,
                figures,
            },
        ),
        (1520, UiEvent::PayloadStarted { name: name.clone(), slot: 1, attempt: 2 }),
        (
            3020,
            UiEvent::PayloadEnded {
                name,
                attempt: 2,
                ok: false,
                retry: false,
                outcome: "exit code 1".into(),
                because: None,
                figures: Figures::default(),
            },
        ),
        (3021, UiEvent::PayloadSkipped { name: "b".into(), reason: "a failed".into() }),
        (3022, UiEvent::Note { text: "memory limits are not enforced here".into() }),
        (3030, UiEvent::Summary(summary())),
    ]
}

pub(super) fn summary() -> Summary {
    let mut failed = row("a", None, RowState::Failed, "exit code 1", 1500);
    (failed.tries, failed.log) = (2, Some("logs/a.log".to_owned()));
    let mut skipped = row("b", None, RowState::NotRun, "a failed", 0);
    (skipped.tries, skipped.figures) = (0, Figures::default());
    let saved = Saved { stage: "stage://w/a/o".to_owned(), path: "o.svg".to_owned(), bytes: 2048 };
    Summary {
        workflow: "w".to_owned(),
        wall_ms: 3030,
        rows: vec![failed, skipped],
        saved: vec![saved],
        stages: StageFigures {
            made: 2,
            made_bytes: 4096,
            read: 3,
            read_bytes: 6144,
            spilled: 1,
            spilled_bytes: 4096,
            ..StageFigures::default()
        },
    }
}

#[test]
fn plain_lines_tell_each_start_and_end_and_close_with_the_table() {
    let sink = Sink::default();
    let mut reporter = Reporter::plain(sink.boxed(), false);
    for (at_ms, event) in story() {
        reporter.report(at_ms, &event).expect("memory can be written");
    }
    reporter.tick(4000).expect("nothing to do");
    let expected = "\
[   0.000] w: 2 payloads
[   0.002] image oci:x: ready, 4.00 KiB
[   0.010] a: started in slot 0
[   0.020] a ! hot\\u{1b}[2J
[   1.510] a: exit code 1 (in 1.50 s, cpu 1.20 s, memory 5.00 MiB), will be tried again
[   1.520] a: started in slot 1, try 2
[   3.020] a: exit code 1
[   3.021] b: not run, a failed
[   3.022] memory limits are not enforced here
PAYLOAD  TRIES  OUTCOME        WALL     CPU    MEMORY  IMAGE
a            2  exit code 1  1.50 s  750 ms  5.86 MiB  oci:images/x
b            0  a failed          -       -         -  oci:images/x
a: exit code 1 (after 2 tries); its output is in logs/a.log
saved o.svg (2.00 KiB)
stages: 2 made, 4.00 KiB; 3 handed on, 6.00 KiB; 0 B copied; 4.00 KiB spilled
w: 2 payloads, 0 done, 1 failed, 1 not run in 3.03 s
";
    assert_eq!(sink.text(), expected);
}

#[test]
fn colours_are_used_only_when_asked_for() {
    let ended = UiEvent::PayloadEnded {
        name: "a".into(),
        attempt: 1,
        ok: true,
        retry: false,
        outcome: "done".into(),
        because: None,
        figures: Figures::default(),
    };
    for (colour, expected) in
        [(false, "[   1.000] a: done\n"), (true, "[   1.000] a: \u{1b}[32mdone\u{1b}[0m\n")]
    {
        let sink = Sink::default();
        Reporter::plain(sink.boxed(), colour).report(1000, &ended).expect("memory can be written");
        assert_eq!(sink.text(), expected);
    }
}

#[test]
fn json_is_one_object_a_line_with_stable_names() {
    let sink = Sink::default();
    let mut reporter = Reporter::json(sink.boxed());
    assert!(reporter.lines().is_none());
    for (at_ms, event) in story() {
        reporter.report(at_ms, &event).expect("memory can be written");
    }
    let lines: Vec<Value> =
        sink.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let figures = json!({"wall_ms": 1500, "cpu_ms": 1200, "memory_peak_bytes": 5_242_880});
    let unknown = json!({"wall_ms": null, "cpu_ms": null, "memory_peak_bytes": null});
    let expected = [
        json!({"at_ms": 0, "event": "workflow_started", "workflow": "w", "total": 2}),
        json!({"at_ms": 1, "event": "ingest_progress", "image": "oci:x", "done_bytes": 1024, "total_bytes": 4096}),
        json!({"at_ms": 2, "event": "prepared", "image": "oci:x", "bytes": 4096}),
        json!({"at_ms": 10, "event": "payload_started", "name": "a", "slot": 0, "attempt": 1}),
        json!({"at_ms": 20, "event": "output", "name": "a", "stream": "stderr", "line": "hot\u{1b}[2J"}),
        json!({"at_ms": 1510, "event": "payload_ended", "name": "a", "attempt": 1, "ok": false, "retry": true, "outcome": "exit code 1", "figures": figures}),
        json!({"at_ms": 1520, "event": "payload_started", "name": "a", "slot": 1, "attempt": 2}),
        json!({"at_ms": 3020, "event": "payload_ended", "name": "a", "attempt": 2, "ok": false, "retry": false, "outcome": "exit code 1", "figures": unknown}),
        json!({"at_ms": 3021, "event": "payload_skipped", "name": "b", "reason": "a failed"}),
        json!({"at_ms": 3022, "event": "note", "text": "memory limits are not enforced here"}),
    ];
    assert_eq!(lines[..10], expected);
    let last = &lines[10];
    assert_eq!((&last["event"], &last["wall_ms"]), (&json!("summary"), &json!(3030)));
    assert_eq!(last["rows"][0]["state"], "failed");
    assert_eq!(last["rows"][1]["state"], "not_run");
    assert_eq!(last["rows"][0]["log"], "logs/a.log");
    assert_eq!(last["saved"][0], json!({"stage": "stage://w/a/o", "path": "o.svg", "bytes": 2048}));
    assert_eq!(lines.len(), 11);
}

#[test]
fn lines_of_others_come_whole() {
    let sink = Sink::default();
    let reporter = Reporter::plain(sink.boxed(), false);
    let mut lines = reporter.lines().expect("plain has lines");
    lines.write_all(b"one\ntw").expect("memory can be written");
    let mut other = lines.clone();
    other.write_all(b"three\n").expect("memory can be written");
    assert_eq!(sink.text(), "one\nthree\n");
    drop(lines);
    assert_eq!(sink.text(), "one\nthree\ntw\n");
}

#[test]
fn a_closed_pipe_is_an_error_in_every_view() {
    let note = UiEvent::Note { text: "x".into() };
    let size = || super::Size { columns: 80, rows: 24 };
    for mut reporter in [
        Reporter::plain(Box::new(Broken), false),
        Reporter::json(Box::new(Broken)),
        Reporter::terminal(Box::new(Broken), Box::new(size), false),
    ] {
        let error = reporter.report(0, &note).expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "{reporter:?}");
    }
}
