//! What a person sees of pilots.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use wire::pilot::{EndingCount, ImageRow, PilotRow, SlotPayload, SlotPhase, SlotRow, StageRow};

use super::{Picture, PilotView, Waiting, address, draw, text};
use crate::api::client::Status;

fn slot(slot: u32, phase: SlotPhase, since_ms: u64, payload: Option<(&str, u32)>) -> SlotRow {
    let payload = payload.map(|(name, attempt)| SlotPayload {
        workflow: "zpeak.7".into(),
        name: name.into(),
        image: "docker://registry.example/root:6.32".into(),
        attempt,
        cpu_millis: 500,
        memory_limit_bytes: 512 << 20,
    });
    let memory_bytes = payload.as_ref().filter(|_| phase == SlotPhase::Running).map(|_| 120 << 20);
    SlotRow { slot, epoch: 1, phase, since_ms, payload, memory_bytes }
}

fn status() -> Status {
    let ending = |conclusion: &str, cause: &str, count| EndingCount {
        conclusion: conclusion.into(),
        cause: cause.into(),
        count,
    };
    Status {
        pilot: PilotRow {
            name: "gpu".into(),
            age_ms: 125_000,
            ready: true,
            slots: 4,
            cpu_millis: 4000,
            memory_bytes: 8 << 30,
            claims: 130,
            ended: vec![ending("succeeded", "", 120), ending("stopped", "walltime", 3)],
            retries: 1,
            skipped: 2,
            cold_starts: 13,
            warm_starts: 112,
            adopted: 1,
            images: 1,
            image_bytes: 300 << 20,
            stages: 1,
            stage_bytes: 1 << 20,
        },
        slots: vec![
            slot(0, SlotPhase::Running, 12_300, Some(("fit-3", 1))),
            slot(1, SlotPhase::Running, 700, Some(("simulate-with-a-very-long-name-12", 2))),
            slot(2, SlotPhase::Binding, 3, Some(("fit-4", 1))),
            slot(3, SlotPhase::Idle, 90_000, None),
        ],
        images: vec![ImageRow {
            image: "docker://registry.example/root:6.32".into(),
            brought_bytes: 300 << 20,
            launches: 125,
        }],
        stages: vec![StageRow {
            stage: "stage://zpeak.7/simulate-0/hits".into(),
            bytes: 1 << 20,
            ..StageRow::default()
        }],
    }
}

fn picture() -> Picture {
    Picture {
        spool: "/home/u/.local/state/latebind/spool".into(),
        waiting: Waiting { runs: 2, waiting: 40, ready: 12, claimed: 3, more: false },
        pilots: vec![
            PilotView { name: "gpu".into(), status: Ok(status()), per_second: Some(2.34) },
            PilotView {
                name: "old".into(),
                status: Err("it does not \u{1b}[2Janswer".into()),
                per_second: None,
            },
        ],
    }
}

fn screen(picture: &Picture, columns: u16, rows: u16, scroll: u16) -> (String, u16) {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).expect("terminal");
    let mut furthest = 0;
    terminal.draw(|frame| furthest = draw(frame, picture, scroll, true)).expect("draw");
    let buffer = terminal.backend().buffer();
    let row = |y| (0..columns).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    ((0..rows).map(row).collect::<Vec<_>>().join("\n"), furthest)
}

const GOLDEN: &str = "\
spool /home/u/.local/state/latebind/spool: 2 open runs, 40 payloads waiting, 12 ready, 3 claimed

pilot gpu, up 2m 05s
  3 of 4 slots busy, cpu 1.5 of 4, memory 1.50 GiB of 8.00 GiB asked for
  123 ended (2.3/s): 120 well, 3 not, 1 retried; starts: 112 warm, 13 cold, 1 adopted; 1 images brought 300 MiB; 1 stages hold 1.00 MiB
  SLOT PHASE         TIME  PAYLOAD                       CPU    MEMORY     LIMIT  IMAGE
     0 running       12 s  7/fit-3                       0.5   120 MiB   512 MiB  docker://registry.example/root:6.32
     1 running     700 ms  7/simulate-with-a-very-long…  0.5   120 MiB   512 MiB  docker://registry.example/root:6.32
     2 binding       3 ms  7/fit-4                       0.5         -   512 MiB  docker://registry.example/root:6.32
     3 idle        1m 30s
  LAUNCHES   BROUGHT  IMAGE
       125   300 MiB  docker://registry.example/root:6.32
      BYTES  STAGE
   1.00 MiB  stage://zpeak.7/simulate-0/hits

pilot old: it does not \\u{1b}[2Janswer
";

#[test]
fn a_picture_is_text_of_aligned_columns() {
    assert_eq!(text(&picture(), 200), GOLDEN);
}

#[test]
fn a_terminal_shows_the_same_lines_and_says_which_keys_do_something() {
    let (seen, furthest) = screen(&picture(), 200, 20, 0);
    let expected: Vec<&str> = GOLDEN.lines().collect();
    let seen: Vec<&str> = seen.lines().collect();
    assert_eq!(seen[..expected.len()], expected);
    assert_eq!((seen.last(), furthest), (Some(&"q quit"), 0));
}

#[test]
fn what_does_not_fit_can_be_scrolled_to_and_long_lines_are_cut() {
    let (seen, furthest) = screen(&picture(), 40, 6, 0);
    assert_eq!(furthest, 11);
    let first: String = GOLDEN.chars().take(40).collect();
    assert_eq!(seen.lines().next(), Some(first.as_str()));
    assert!(seen.ends_with("q quit   up, down scroll"), "{seen}");
    let (seen, _) = screen(&picture(), 40, 6, u16::MAX);
    assert!(seen.contains("pilot old: it does not"), "{seen}");
    let longest = text(&picture(), 40).lines().map(|line| line.chars().count()).max();
    assert_eq!(longest, Some(40));
    // A terminal of no size at all.
    screen(&picture(), 1, 1, 3);
}

#[test]
fn rates_come_from_two_pictures_of_one_life() {
    let (before, mut after) = (picture(), picture());
    if let Ok(status) = &mut after.pilots[0].status {
        status.pilot.age_ms += 2000;
        status.pilot.ended[0].count += 5;
    }
    after.compare(&before);
    assert_eq!(after.pilots[0].per_second, Some(2.5));
    // It began anew meanwhile: what is known from before stays out, nothing wraps around.
    let mut again = picture();
    if let Ok(status) = &mut again.pilots[0].status {
        status.pilot.age_ms = 10;
    }
    again.pilots[0].per_second = None;
    again.compare(&Picture {
        pilots: vec![PilotView { per_second: None, ..picture().pilots[0].clone() }],
        ..picture()
    });
    assert_eq!(again.pilots[0].per_second, None);
}

#[test]
fn a_spool_without_pilots_says_what_to_do() {
    let picture = Picture { spool: "/s".into(), ..Picture::default() };
    let expected = "spool /s: 0 open runs, 0 payloads waiting, 0 ready, 0 claimed\nno pilot serves it; start one with `pilot serve`\n";
    assert_eq!(text(&picture, 200), expected);
}

#[test]
fn payloads_are_named_as_the_spool_names_them() {
    assert_eq!(address("zpeak.7", "fit-3"), "7/fit-3");
    assert_eq!(address("z.peak.12", "fit"), "12/fit");
    assert_eq!(address("zpeak", "fit"), "zpeak/fit");
    assert_eq!(address("zpeak.v2", "fit"), "zpeak.v2/fit");
}
