//! The live view: one bar for all, one line for each image that is read and each payload that runs, as many as fit.
//!
//! Lasting lines (failures, notes, output of payloads) go above it. indicatif does the drawing: it is one bar that
//! is all message, several lines of it, so that one change is one drawing.
//!
//! Must not know: what follows from an event.

use std::collections::BTreeMap;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::event::UiEvent;
use super::plain;
use super::screen::{Screen, Shared, SizeSource};
use super::table::{self, Look};
use super::words::{bytes, cut, elapsed, printable};

/// Least time between two drawings: 20 a second are smooth, and ten thousand payloads a second don't need more.
const DRAW_EVERY_MS: u64 = 50;
/// Columns of the bar between its brackets.
const BAR_COLUMNS: u64 = 24;
/// Rows that stay free for the bar, the line "and .. more" and the prompt above.
const ROWS_KEPT: usize = 3;
/// What stands before a payload's line.
const INDENT: &str = "  ";

/// State of the live view.
pub(super) struct Terminal {
    out: Shared,
    size: Arc<SizeSource>,
    colour: bool,
    bar: ProgressBar,
    drawn_ms: Option<u64>,
    counts: Counts,
    /// By name: start, slot, attempt.
    running: BTreeMap<String, (u64, u32, u32)>,
    /// By image: bytes read, bytes in all.
    ingests: BTreeMap<String, (u64, Option<u64>)>,
}

#[derive(Default)]
struct Counts {
    total: u64,
    done: u64,
    failed: u64,
    skipped: u64,
}

impl Terminal {
    pub(super) fn new(out: Shared, size: SizeSource, colour: bool) -> Self {
        let size = Arc::new(size);
        let screen = Screen::new(out.clone(), Arc::clone(&size));
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::term_like(Box::new(screen)));
        bar.set_style(ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar()));
        let (running, ingests) = (BTreeMap::new(), BTreeMap::new());
        Self { out, size, colour, bar, drawn_ms: None, counts: Counts::default(), running, ingests }
    }

    /// The bar, for lines of others above it.
    pub(super) fn bar(&self) -> &ProgressBar {
        &self.bar
    }

    pub(super) fn show(&mut self, at_ms: u64, event: &UiEvent) -> std::io::Result<()> {
        let look = Look { colour: self.colour, width: Some(self.columns()) };
        match event {
            UiEvent::WorkflowStarted { total, .. } => {
                self.counts.total = *total;
                self.bar.println(plain::line(event, look));
            }
            UiEvent::IngestProgress { image, done_bytes, total_bytes } => {
                self.ingests.insert(image.clone(), (*done_bytes, *total_bytes));
            }
            UiEvent::Prepared { image, .. } => drop(self.ingests.remove(image)),
            UiEvent::PayloadStarted { name, slot, attempt } => {
                self.running.insert(name.clone(), (at_ms, *slot, *attempt));
            }
            UiEvent::PayloadEnded { name, ok, retry, .. } => {
                self.running.remove(name);
                self.counts.done += u64::from(*ok);
                self.counts.failed += u64::from(!*ok && !*retry);
                if !*ok {
                    self.bar.println(plain::line(event, look));
                }
            }
            UiEvent::PayloadSkipped { .. } => self.counts.skipped += 1,
            UiEvent::Output { .. } | UiEvent::Note { .. } => self.bar.println(plain::line(event, look)),
            UiEvent::Summary(summary) => {
                self.bar.finish_and_clear();
                return self.out.write(&table::summary(summary, look).replace('\n', "\r\n"));
            }
        }
        if self.drawn_ms.is_none_or(|drawn_ms| at_ms.saturating_sub(drawn_ms) >= DRAW_EVERY_MS) {
            self.draw(at_ms);
        }
        self.out.failure()
    }

    /// Draws whatever the time; for the passing of it.
    pub(super) fn draw(&mut self, at_ms: u64) {
        if self.bar.is_finished() {
            return;
        }
        self.drawn_ms = Some(at_ms);
        self.bar.set_message(self.message(at_ms));
    }

    fn message(&self, at_ms: u64) -> String {
        let Counts { total, done, failed, skipped } = self.counts;
        let running = self.running.len() as u64;
        let waiting = total.saturating_sub(done + failed + skipped + running);
        let mut counts = format!("{done}/{total} done, {running} running, {waiting} waiting");
        if failed + skipped > 0 {
            counts.push_str(&format!(", {failed} failed, {skipped} not run"));
        }
        let columns = self.columns();
        let first = format!("[{}] {counts}, {}", arrow(done + failed + skipped, total), elapsed(at_ms));
        let mut message = cut(&first, columns).into_owned();
        let rows = usize::from((self.size)().rows).saturating_sub(ROWS_KEPT);
        let ingests = self.ingests.iter().map(|(image, (done, total))| ingest(image, *done, *total));
        let payloads = self.running.iter().map(|(name, (start_ms, slot, attempt))| {
            let again = if *attempt > 1 { format!(", try {attempt}") } else { String::new() };
            let since = elapsed(at_ms.saturating_sub(*start_ms));
            format!("{}: slot {slot}{again}, {since}", printable(name))
        });
        let all = self.ingests.len() + self.running.len();
        for line in ingests.chain(payloads).take(rows) {
            message.push_str(&format!("\n{INDENT}{}", cut(&line, columns.saturating_sub(INDENT.len()))));
        }
        if all > rows {
            message.push_str(&format!("\n{INDENT}... and {} more", all - rows));
        }
        message
    }

    /// One less than there are: some terminals wrap when the last column is written.
    fn columns(&self) -> usize {
        usize::from((self.size)().columns).saturating_sub(1)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if !self.bar.is_finished() {
            self.bar.finish_and_clear();
        }
    }
}

/// As long as the part of all that has ended.
fn arrow(ended: u64, total: u64) -> String {
    let filled = (ended.min(total) * BAR_COLUMNS).checked_div(total).unwrap_or(0);
    let head = if filled > 0 && filled < BAR_COLUMNS { ">" } else { "" };
    let body = "=".repeat(filled as usize - head.len());
    format!("{:<width$}", format!("{body}{head}"), width = BAR_COLUMNS as usize)
}

fn ingest(image: &str, done: u64, total: Option<u64>) -> String {
    let total = total.map(|total| format!(" of {}", bytes(total))).unwrap_or_default();
    format!("image {}: {}{total} read", printable(image), bytes(done))
}

#[cfg(test)]
#[path = "terminal_tests.rs"]
mod tests;
