use super::super::tests::row;
use super::{Look, RowState, Saved, Summary, summary};

fn plain(summary_of: &Summary) -> String {
    summary(summary_of, Look::default())
}

#[test]
fn elements_that_ended_alike_share_a_row() {
    let mut rows: Vec<_> = (0..8)
        .map(|i| row(&format!("simulate-{i}"), Some("simulate"), RowState::Done, "done", 1000 + 100 * i))
        .collect();
    rows[3].tries = 2;
    rows.push(row("fit", None, RowState::Done, "done", 250));
    let expected = "\
PAYLOAD      TRIES  OUTCOME             WALL              CPU    MEMORY  IMAGE
simulate[8]    1-2  done     1.35 s / 1.70 s  675 ms / 850 ms  6.64 MiB  oci:images/x
fit              1  done              250 ms           125 ms  1000 KiB  oci:images/x
w: 9 payloads, 9 done in 2.00 s
";
    let summary =
        Summary { workflow: "w".to_owned(), wall_ms: 2000, rows, saved: vec![], ..Summary::default() };
    assert_eq!(plain(&summary), expected.replace("1000 KiB", "0.98 MiB"));
}

#[test]
fn elements_that_failed_are_counted_and_listed_singly() {
    let mut rows: Vec<_> =
        (0..5).map(|i| row(&format!("s-{i}"), Some("s"), RowState::Done, "done", 10)).collect();
    for (i, outcome) in [(1, "exit code 2"), (2, "out of memory"), (4, "out of memory")] {
        rows[i] = row(&format!("s-{i}"), Some("s"), RowState::Failed, outcome, 20);
    }
    let text =
        plain(&Summary { workflow: "w".to_owned(), wall_ms: 50, rows, saved: vec![], ..Summary::default() });
    let names: Vec<&str> = text.lines().map(|line| line.split("  ").next().unwrap_or_default()).collect();
    let expected = [
        "PAYLOAD",
        "s[2 of 5]",
        "s-1",
        "s[2 of 5]",
        "s-1: exit code 2",
        "s-2: out of memory",
        "s-4: out of memory",
        "w: 5 payloads, 2 done, 3 failed in 50 ms",
    ];
    assert_eq!(names, expected);
}

#[test]
fn long_lists_are_cut_and_counted() {
    let rows =
        (0..100).map(|i| row(&format!("s-{i}"), Some("s"), RowState::Failed, "exit code 1", 1)).collect();
    let saved = Saved { stage: String::new(), path: "x".to_owned(), bytes: 1 };
    let text = plain(&Summary {
        workflow: "w".to_owned(),
        wall_ms: 1,
        rows,
        saved: vec![saved; 25],
        ..Summary::default()
    });
    assert_eq!(text.lines().count(), 2 + 21 + 21 + 1);
    assert!(text.contains("... and 80 more failed\n") && text.contains("... and 5 more were saved\n"));
}

#[test]
fn a_narrow_terminal_cuts_the_image_and_a_log_file_does_not() {
    let mut one = row("a", None, RowState::Done, "done", 1);
    one.image = "oci:".to_owned() + &"long/".repeat(30);
    let summary_of = Summary {
        workflow: "w".to_owned(),
        wall_ms: 1,
        rows: vec![one],
        saved: vec![],
        ..Summary::default()
    };
    let narrow = summary(&summary_of, Look { colour: false, width: Some(79) });
    assert!(narrow.lines().all(|line| line.chars().count() <= 79), "{narrow}");
    assert!(narrow.contains('…'));
    assert!(plain(&summary_of).contains(&"long/".repeat(30)));
}

#[test]
fn colours_do_not_move_columns() {
    let rows =
        vec![row("a", None, RowState::Done, "done", 1), row("b", None, RowState::Failed, "exit code 1", 1)];
    let summary_of =
        Summary { workflow: "w".to_owned(), wall_ms: 1, rows, saved: vec![], ..Summary::default() };
    let mut coloured = summary(&summary_of, Look { colour: true, width: None });
    assert!(coloured.contains("\u{1b}[31mexit code 1\u{1b}[0m"));
    for code in ["0", "1", "31", "32"] {
        coloured = coloured.replace(&format!("\u{1b}[{code}m"), "");
    }
    assert_eq!(coloured, plain(&summary_of));
}

#[test]
fn a_workflow_without_rows_has_only_its_last_line() {
    let summary_of = Summary { workflow: "w".to_owned(), ..Summary::default() };
    assert_eq!(plain(&summary_of), "w: 0 payloads, 0 done in 0 ms\n");
}
