//! Pilots at one moment, as a picture of lines: live on a terminal, or once as text.
//!
//! Both are made of the same lines, so that what a test reads is what a person sees.
//!
//! Must not know: how pilots are asked, keys, the time.

use std::borrow::Cow;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use wire::pilot::{ImageRow, PilotRow, SlotPhase, SlotRow};

use super::words::{bytes, cut, duration, elapsed, printable};
use crate::api::client::Status;

/// Most images and stages that are shown of one pilot.
const LIST_MAX: usize = 8;
/// Columns of a payload's address.
const ADDRESS: usize = 28;

/// Everything there is to show.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// Folder of the spool.
    pub spool: String,
    /// What waits there.
    pub waiting: Waiting,
    /// Its pilots, by name.
    pub pilots: Vec<PilotView>,
}

/// What a spool holds for its pilots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Runs that are not done.
    pub runs: u64,
    /// Payloads whose inputs are not there yet.
    pub waiting: u64,
    /// Payloads that could be claimed.
    pub ready: u64,
    /// Payloads that pilots have.
    pub claimed: u64,
    /// Whether there are more runs than were counted.
    pub more: bool,
}

/// One pilot.
#[derive(Clone, Debug)]
pub struct PilotView {
    /// Its name.
    pub name: String,
    /// What it says, or why it says nothing.
    pub status: Result<Status, String>,
    /// Claims that ended in a second, since the last picture.
    pub per_second: Option<f64>,
}

impl Picture {
    /// Works out rates from the picture before.
    pub fn compare(&mut self, before: &Picture) {
        for view in &mut self.pilots {
            let earlier = before.pilots.iter().find(|earlier| earlier.name == view.name);
            view.per_second = match (&view.status, earlier) {
                (Ok(now), Some(PilotView { status: Ok(then), per_second, .. })) => {
                    rate(&then.pilot, &now.pilot).or(*per_second)
                }
                _ => None,
            };
        }
    }
}

/// Between two statuses of one pilot; `None` when it began anew or no time went by.
fn rate(then: &PilotRow, now: &PilotRow) -> Option<f64> {
    let time = now.age_ms.checked_sub(then.age_ms).filter(|time| *time > 0)?;
    let count = ended(now).checked_sub(ended(then))?;
    Some(count as f64 * 1000.0 / time as f64)
}

fn ended(row: &PilotRow) -> u64 {
    row.ended.iter().map(|ending| ending.count).sum()
}

/// As text, one line each, at most `columns` wide.
#[must_use]
pub fn text(picture: &Picture, columns: usize) -> String {
    let mut text = String::new();
    for line in lines(picture) {
        let line: String = line.spans.iter().map(|span| span.content.as_ref()).collect();
        text.push_str(&cut(line.trim_end(), columns));
        text.push('\n');
    }
    text
}

/// Draws it, from line `scroll` on, with a line about keys below. Gives how far it can be scrolled.
pub fn draw(frame: &mut Frame<'_>, picture: &Picture, scroll: u16, colour: bool) -> u16 {
    let [body, foot] = Layout::vertical([Constraint::Min(0), Constraint::Length(1)]).areas(frame.area());
    let mut lines = lines(picture);
    if !colour {
        for line in &mut lines {
            for span in &mut line.spans {
                span.style.fg = None;
            }
        }
    }
    let furthest = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_sub(body.height);
    frame.render_widget(Paragraph::new(lines).scroll((scroll.min(furthest), 0)), body);
    let keys = if furthest > 0 { "q quit   up, down scroll" } else { "q quit" };
    frame.render_widget(Paragraph::new(keys).style(Style::new().add_modifier(Modifier::DIM)), foot);
    furthest
}

fn lines(picture: &Picture) -> Vec<Line<'static>> {
    let Waiting { runs, waiting, ready, claimed, more } = picture.waiting;
    let more = if more { "+" } else { "" };
    let head = format!(
        "spool {}: {runs}{more} open runs, {waiting} payloads waiting, {ready} ready, {claimed} claimed",
        printable(&picture.spool)
    );
    let mut lines = vec![bold(head)];
    if picture.pilots.is_empty() {
        lines.push(Line::from("no pilot serves it; start one with `pilot serve`"));
    }
    for view in &picture.pilots {
        lines.push(Line::default());
        match &view.status {
            Ok(status) => pilot(&mut lines, status, view.per_second),
            Err(why) => lines.push(Line::from(Span::styled(
                format!("pilot {}: {}", printable(&view.name), printable(why)),
                Style::new().fg(Color::Red),
            ))),
        }
    }
    lines
}

fn pilot(lines: &mut Vec<Line<'static>>, status: &Status, per_second: Option<f64>) {
    let row = &status.pilot;
    let busy = status.slots.iter().filter(|slot| slot.payload.is_some());
    let (cpu, memory) = busy
        .clone()
        .filter_map(|slot| slot.payload.as_ref())
        .fold((0, 0), |sum, payload| (sum.0 + payload.cpu_millis, sum.1 + payload.memory_limit_bytes));
    let state = if row.ready { "" } else { ", takes no work" };
    lines.push(bold(format!("pilot {}, up {}{state}", printable(&row.name), elapsed(row.age_ms))));
    lines.push(Line::from(format!(
        "  {} of {} slots busy, cpu {} of {}, memory {} of {} asked for",
        busy.count(),
        row.slots,
        processors(cpu),
        processors(row.cpu_millis),
        bytes(memory),
        bytes(row.memory_bytes)
    )));
    lines.push(Line::from(format!("  {}", totals(row, per_second))));
    lines.push(heading(&format!(
        "  {:>4} {:<9} {:>8}  {:<ADDRESS$} {:>4} {:>9} {:>9}  IMAGE",
        "SLOT", "PHASE", "TIME", "PAYLOAD", "CPU", "MEMORY", "LIMIT"
    )));
    lines.extend(status.slots.iter().map(slot));
    if !status.images.is_empty() {
        let (launches, brought) = ("LAUNCHES", "BROUGHT");
        lines.push(heading(&format!("  {launches:>8} {brought:>9}  IMAGE")));
        let mut images: Vec<&ImageRow> = status.images.iter().collect();
        images.sort_by_key(|image| std::cmp::Reverse(image.launches));
        lines.extend(images.iter().take(LIST_MAX).map(|image| {
            Line::from(format!(
                "  {:>8} {:>9}  {}",
                image.launches,
                bytes(image.brought_bytes),
                printable(&image.image)
            ))
        }));
        lines.extend(rest(images.len()));
    }
    if !status.stages.is_empty() {
        lines.push(heading(&format!("  {:>9}  STAGE", "BYTES")));
        let shown = status.stages.iter().take(LIST_MAX);
        lines.extend(
            shown.map(|row| Line::from(format!("  {:>9}  {}", bytes(row.bytes), printable(&row.stage)))),
        );
        lines.extend(rest(status.stages.len()));
    }
}

fn rest(all: usize) -> Option<Line<'static>> {
    (all > LIST_MAX).then(|| Line::from(format!("  ... and {} more", all - LIST_MAX)))
}

fn totals(row: &PilotRow, per_second: Option<f64>) -> String {
    let succeeded: u64 =
        row.ended.iter().filter(|ending| ending.conclusion == "succeeded").map(|ending| ending.count).sum();
    let rate = per_second.map(|rate| format!(" ({rate:.1}/s)")).unwrap_or_default();
    let mut text = format!(
        "{} ended{rate}: {succeeded} well, {} not, {} retried; starts: {} warm, {} cold",
        ended(row),
        ended(row).saturating_sub(succeeded),
        row.retries,
        row.warm_starts,
        row.cold_starts
    );
    if row.adopted > 0 {
        text.push_str(&format!(", {} adopted", row.adopted));
    }
    text.push_str(&format!("; {} images brought {}", row.images, bytes(row.image_bytes)));
    if row.stages > 0 {
        text.push_str(&format!("; {} stages hold {}", row.stages, bytes(row.stage_bytes)));
    }
    text
}

fn slot(row: &SlotRow) -> Line<'static> {
    let mut spans = vec![
        Span::raw(format!("  {:>4} ", row.slot)),
        Span::styled(format!("{:<9}", row.phase.as_str()), Style::new().fg(hue(row.phase))),
    ];
    if let Some(payload) = &row.payload {
        let mut name = address(&payload.workflow, &payload.name);
        if payload.attempt > 1 {
            name.push_str(&format!(" (try {})", payload.attempt));
        }
        let used = row.memory_bytes.map_or(Cow::Borrowed("-"), |used| Cow::Owned(bytes(used)));
        spans.push(Span::raw(format!(
            " {:>8}  {:<ADDRESS$} {:>4} {:>9} {:>9}  {}",
            since(row.since_ms),
            cut(&printable(&name), ADDRESS),
            processors(payload.cpu_millis),
            used,
            bytes(payload.memory_limit_bytes),
            printable(&payload.image)
        )));
    } else {
        spans.push(Span::raw(format!(" {:>8}", since(row.since_ms))));
    }
    Line::from(spans)
}

/// Milliseconds matter below a second only.
fn since(ms: u64) -> String {
    if ms < 1000 { duration(ms) } else { elapsed(ms) }
}

/// As `pilot ls` prints it, where the workflow is a run of a spool.
#[must_use]
pub fn address(workflow: &str, payload: &str) -> String {
    let run = workflow
        .rsplit_once('.')
        .map(|(_, run)| run)
        .filter(|run| !run.is_empty() && run.bytes().all(|digit| digit.is_ascii_digit()));
    format!("{}/{payload}", run.unwrap_or(workflow))
}

/// `2`, `0.5`.
fn processors(millis: u64) -> String {
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

const fn hue(phase: SlotPhase) -> Color {
    match phase {
        SlotPhase::Running => Color::Green,
        SlotPhase::Binding | SlotPhase::Bound => Color::Cyan,
        SlotPhase::Draining | SlotPhase::Cleaning => Color::Yellow,
        SlotPhase::Retired => Color::Red,
        SlotPhase::Idle => Color::DarkGray,
    }
}

fn bold(text: String) -> Line<'static> {
    Line::from(Span::styled(text, Style::new().add_modifier(Modifier::BOLD)))
}

fn heading(text: &str) -> Line<'static> {
    Line::from(Span::styled(text.to_owned(), Style::new().add_modifier(Modifier::UNDERLINED)))
}

#[cfg(test)]
#[path = "top_tests.rs"]
mod tests;
