use std::io::Write as _;

use super::super::tests::{Sink, story, summary};
use super::super::{Reporter, Size, UiEvent};

/// What a terminal of so many columns shows after these bytes: only what [`super::Screen`] and indicatif write is
/// understood. A line is begun when a character follows the last column, not before.
fn shown_on(columns: usize, bytes: &str) -> Vec<String> {
    let mut lines: Vec<Vec<char>> = vec![Vec::new()];
    let (mut row, mut column) = (0_usize, 0_usize);
    let mut chars = bytes.chars();
    while let Some(c) = chars.next() {
        match c {
            '\r' => column = 0,
            '\n' => row += 1,
            '\u{1b}' => {
                assert_eq!(chars.next(), Some('['));
                let mut number = String::new();
                let last = loop {
                    match chars.next().expect("the sequence ends") {
                        digit if digit.is_ascii_digit() => number.push(digit),
                        other => break other,
                    }
                };
                let n: usize = number.parse().unwrap_or(1);
                match last {
                    'A' => row = row.saturating_sub(n),
                    'B' => row += n,
                    'C' => column = (column + n).min(columns - 1),
                    'D' => column = column.saturating_sub(n),
                    'K' => lines[row].clear(),
                    'm' => {}
                    other => panic!("unknown sequence {other}"),
                }
            }
            c => {
                if column == columns {
                    (row, column) = (row + 1, 0);
                    lines.resize(lines.len().max(row + 1), Vec::new());
                }
                let line = &mut lines[row];
                line.resize(line.len().max(column + 1), ' ');
                line[column] = c;
                column += 1;
            }
        }
        if lines.len() <= row {
            lines.resize(row + 1, Vec::new());
        }
    }
    let mut text: Vec<String> =
        lines.iter().map(|line| line.iter().collect::<String>().trim_end().to_owned()).collect();
    while text.last().is_some_and(String::is_empty) {
        text.pop();
    }
    text
}

fn shown(bytes: &str) -> Vec<String> {
    shown_on(80, bytes)
}

fn reporter(sink: &Sink, columns: u16, rows: u16) -> Reporter {
    Reporter::terminal(sink.boxed(), Box::new(move || Size { columns, rows }), false)
}

fn started(name: &str) -> UiEvent {
    UiEvent::PayloadStarted { name: name.to_owned(), slot: 1, attempt: 1 }
}

#[test]
fn the_live_view_counts_and_shows_what_runs() {
    let sink = Sink::default();
    let mut reporter = reporter(&sink, 80, 24);
    for (at_ms, event) in story().into_iter().take(7) {
        reporter.report(at_ms, &event).expect("memory can be written");
    }
    reporter.tick(3000).expect("memory can be written");
    let expected = [
        "w: 2 payloads",
        "a ! hot\\u{1b}[2J",
        "a: exit code 1 (in 1.50 s, cpu 1.20 s, memory 5.00 MiB), will be tried again",
        "[                        ] 0/2 done, 1 running, 1 waiting, 3 s",
        "  a: slot 1, try 2, 1 s",
    ];
    assert_eq!(shown(&sink.text()), expected);
}

#[test]
fn the_summary_takes_the_place_of_the_live_view() {
    let sink = Sink::default();
    let mut reporter = reporter(&sink, 80, 24);
    for (at_ms, event) in story() {
        reporter.report(at_ms, &event).expect("memory can be written");
    }
    reporter.tick(9000).expect("nothing to draw");
    let screen = shown(&sink.text());
    assert!(!screen.iter().any(|line| line.contains("running")), "{screen:#?}");
    let table = super::table::summary(&summary(), super::Look::default());
    let table: Vec<&str> = table.lines().collect();
    assert_eq!(screen[screen.len() - table.len()..], table);
    assert_eq!(screen[screen.len() - table.len() - 1], "memory limits are not enforced here");
}

#[test]
fn more_running_payloads_than_rows_are_counted() {
    let sink = Sink::default();
    let mut reporter = reporter(&sink, 40, 8);
    let begin = UiEvent::WorkflowStarted { workflow: "w".into(), total: 100 };
    reporter.report(0, &begin).expect("memory can be written");
    for i in 0..50 {
        reporter
            .report(0, &started(&format!("a-payload-with-a-long-name-{i:02}")))
            .expect("memory can be written");
    }
    reporter.tick(1000).expect("memory can be written");
    let screen = shown_on(40, &sink.text());
    assert_eq!(screen.len(), 1 + 1 + 5 + 1, "{screen:#?}");
    assert_eq!(screen.last().map(String::as_str), Some("  ... and 45 more"));
    assert!(screen.iter().all(|line| line.chars().count() < 40), "{screen:#?}");
}

#[test]
fn images_that_are_read_are_shown_until_they_are_ready() {
    let sink = Sink::default();
    let mut reporter = reporter(&sink, 80, 24);
    let image = "oci:x".to_owned();
    let progress =
        UiEvent::IngestProgress { image: image.clone(), done_bytes: 1 << 20, total_bytes: Some(3 << 20) };
    reporter.report(0, &progress).expect("memory can be written");
    assert_eq!(
        shown(&sink.text()).last().map(String::as_str),
        Some("  image oci:x: 1.00 MiB of 3.00 MiB read")
    );
    reporter.report(100, &UiEvent::Prepared { image, bytes: 1 }).expect("memory can be written");
    assert!(!shown(&sink.text()).iter().any(|line| line.contains("oci:x")));
}

#[test]
fn a_flood_of_events_is_drawn_at_a_bounded_rate() {
    let sink = Sink::default();
    let mut reporter = reporter(&sink, 80, 24);
    for i in 0..1000 {
        reporter.report(i / 100, &started(&format!("a-{i}"))).expect("memory can be written");
    }
    assert_eq!(sink.text().matches(" running").count(), 1, "{}", sink.text());
}

#[test]
fn lines_of_others_appear_above_the_live_view() {
    let sink = Sink::default();
    let mut reporter = reporter(&sink, 80, 24);
    reporter.report(0, &started("a")).expect("memory can be written");
    let mut lines = reporter.lines().expect("a terminal has lines");
    lines.write_all(b"a warning\n").expect("memory can be written");
    let screen = shown(&sink.text());
    assert_eq!(screen[0], "a warning");
    assert_eq!(screen[2], "  a: slot 1, 0 s");
    drop(reporter);
    lines.write_all(b"the end\n").expect("memory can be written");
    assert_eq!(shown(&sink.text()), ["a warning", "the end"]);
}

#[test]
fn a_terminal_without_size_is_drawn_without_a_panic() {
    for (columns, rows) in [(0, 0), (1, 1), (5, 2), (30, 3), (u16::MAX, u16::MAX)] {
        let sink = Sink::default();
        let mut reporter = reporter(&sink, columns, rows);
        for (at_ms, event) in story() {
            reporter.report(at_ms * 100, &event).expect("memory can be written");
        }
    }
}

#[test]
fn the_bar_grows_from_nothing_to_full() {
    let arrow = |ended, total| super::arrow(ended, total);
    assert_eq!(arrow(0, 0), " ".repeat(24));
    assert_eq!(arrow(0, 10), " ".repeat(24));
    assert_eq!(arrow(1, 24), format!(">{}", " ".repeat(23)));
    assert_eq!(arrow(12, 24), format!("{}>{}", "=".repeat(11), " ".repeat(12)));
    assert_eq!(arrow(24, 24), "=".repeat(24));
    assert_eq!(arrow(30, 24), "=".repeat(24));
}
