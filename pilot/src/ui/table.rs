//! The closing summary for people: a table, the failures one by one, what was saved, and one last line.
//!
//! Elements of an array that ended alike share a row. Figures of such a row are `mean / max`, memory is the highest.
//!
//! Must not know: whether it goes to a terminal, beyond width and colours.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::event::{Figures, RowState, Saved, Summary, SummaryRow};
use super::words::{bytes, cut, duration, printable};
use crate::ports::StageFigures;

/// Most failures, and most saved outputs, that are listed singly.
const LISTED_MAX: usize = 20;
const HEADINGS: [&str; COLUMNS] = ["PAYLOAD", "TRIES", "OUTCOME", "WALL", "CPU", "MEMORY", "IMAGE"];
const COLUMNS: usize = 7;
/// The column that is coloured.
const OUTCOME: usize = 2;
/// The last column, which is cut to what is left of the width.
const IMAGE: usize = 6;

/// How text may look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    pub(super) colour: bool,
    /// Columns of the terminal, if it is one.
    pub(super) width: Option<usize>,
}

impl Look {
    /// The text in the colour of a state.
    pub(super) fn state(self, state: RowState, text: &str) -> String {
        match state {
            RowState::Done => self.painted("32", text),
            RowState::Failed => self.painted("31", text),
            RowState::NotRun => self.painted("33", text),
        }
    }

    fn painted(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// The whole summary, every line ended.
pub(super) fn summary(summary: &Summary, look: Look) -> String {
    let lines = folded(&summary.rows);
    let cells: Vec<[String; COLUMNS]> = lines.iter().map(Line::cells).collect();
    let mut text = String::new();
    let mut widths = HEADINGS.map(str::len);
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    if !cells.is_empty() {
        let headings = HEADINGS.map(str::to_owned);
        let heading = row(&headings, &widths, look, |_, cell| look.painted("1", cell));
        text.push_str(&heading);
    }
    for (line, cells) in lines.iter().zip(&cells) {
        let paint = |column, cell: &str| {
            if column == OUTCOME { look.state(line.state, cell) } else { cell.to_owned() }
        };
        text.push_str(&row(cells, &widths, look, paint));
    }
    failures(&mut text, &summary.rows, look);
    saved(&mut text, &summary.saved);
    stages(&mut text, summary.stages);
    last_line(&mut text, summary, look);
    text
}

/// Numbers stand to the right, words to the left; nothing follows the last column.
fn row(
    cells: &[String; COLUMNS],
    widths: &[usize; COLUMNS],
    look: Look,
    paint: impl Fn(usize, &str) -> String,
) -> String {
    let mut line = String::new();
    let mut used = 0;
    for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let cell = match look.width {
            Some(all) if column == IMAGE => cut(cell, all.saturating_sub(used).max(8)),
            _ => cell.as_str().into(),
        };
        let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
        let painted = paint(column, &cell);
        match column {
            IMAGE => line.push_str(&painted),
            0 | OUTCOME => line.extend([&painted, padding.as_str(), "  "]),
            _ => line.extend([padding.as_str(), &painted, "  "]),
        }
        used += width + 2;
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

/// One row of the table: a payload, or elements of an array that ended alike.
struct Line<'a> {
    first: &'a SummaryRow,
    state: RowState,
    /// Elements in this line, and in the whole array.
    elements: Option<(usize, usize)>,
    tries: (u32, u32),
    wall: Spread,
    cpu: Spread,
    memory: Spread,
}

/// What is known of one figure of several payloads.
#[derive(Clone, Copy, Default)]
struct Spread {
    count: u64,
    sum: u128,
    max: u64,
}

impl Spread {
    fn add(&mut self, value: Option<u64>) {
        if let Some(value) = value {
            self.count += 1;
            self.sum += u128::from(value);
            self.max = self.max.max(value);
        }
    }

    fn mean(self) -> Option<u64> {
        u64::try_from(self.sum.checked_div(u128::from(self.count))?).ok()
    }

    fn mean_and_max(self, is_many: bool) -> String {
        match self.mean() {
            None => "-".to_owned(),
            Some(mean) if is_many => format!("{} / {}", duration(mean), duration(self.max)),
            Some(_) => duration(self.max),
        }
    }
}

impl<'a> Line<'a> {
    fn new(first: &'a SummaryRow, array_size: Option<usize>) -> Self {
        let (wall, cpu, memory) = (Spread::default(), Spread::default(), Spread::default());
        let elements = array_size.map(|size| (0, size));
        Self { first, state: first.state, elements, tries: (u32::MAX, 0), wall, cpu, memory }
    }

    fn add(&mut self, row: &SummaryRow) {
        let Figures { wall_ms, cpu_ms, memory_peak_bytes } = row.figures;
        self.wall.add(wall_ms);
        self.cpu.add(cpu_ms);
        self.memory.add(memory_peak_bytes);
        self.tries = (self.tries.0.min(row.tries), self.tries.1.max(row.tries));
        if let Some((here, _)) = &mut self.elements {
            *here += 1;
        }
    }

    fn cells(&self) -> [String; COLUMNS] {
        let row = self.first;
        let name = match self.elements {
            None => row.name.clone(),
            Some((1, all)) if all > 1 => row.name.clone(),
            Some((here, all)) => {
                let array = row.array.as_deref().unwrap_or(&row.name);
                if here == all { format!("{array}[{all}]") } else { format!("{array}[{here} of {all}]") }
            }
        };
        let is_many = self.elements.is_some_and(|(here, _)| here > 1);
        let (least, most) = self.tries;
        [
            printable(&name).into_owned(),
            if least == most { most.to_string() } else { format!("{least}-{most}") },
            outcome(row),
            self.wall.mean_and_max(is_many),
            self.cpu.mean_and_max(is_many),
            if self.memory.count == 0 { "-".to_owned() } else { bytes(self.memory.max) },
            printable(&row.image).into_owned(),
        ]
    }
}

/// Longest outcome in the table; the failures below have it in full.
const OUTCOME_COLUMNS_MAX: usize = 36;

fn outcome(row: &SummaryRow) -> String {
    cut(&printable(&row.outcome), OUTCOME_COLUMNS_MAX).into_owned()
}

/// Rows in the order of their first payload.
fn folded(rows: &[SummaryRow]) -> Vec<Line<'_>> {
    let mut sizes: HashMap<&str, usize> = HashMap::new();
    for array in rows.iter().filter_map(|row| row.array.as_deref()) {
        *sizes.entry(array).or_default() += 1;
    }
    let mut lines: Vec<Line<'_>> = Vec::new();
    let mut places: HashMap<(&str, RowState, &str, &str), usize> = HashMap::new();
    for row in rows {
        let Some(array) = row.array.as_deref() else {
            let mut line = Line::new(row, None);
            line.add(row);
            lines.push(line);
            continue;
        };
        let place = *places.entry((array, row.state, &row.outcome, &row.image)).or_insert_with(|| {
            lines.push(Line::new(row, sizes.get(array).copied()));
            lines.len() - 1
        });
        lines[place].add(row);
    }
    lines
}

fn failures(text: &mut String, rows: &[SummaryRow], look: Look) {
    let failed = || rows.iter().filter(|row| row.state == RowState::Failed);
    for row in failed().take(LISTED_MAX) {
        let name = look.state(RowState::Failed, &printable(&row.name));
        let tries = if row.tries > 1 { format!(" (after {} tries)", row.tries) } else { String::new() };
        let log = row.log.as_deref().map(|log| format!("; its output is in {}", printable(log)));
        let _ = writeln!(text, "{name}: {}{tries}{}", printable(&row.outcome), log.unwrap_or_default());
    }
    more(text, failed().count(), "failed");
}

fn saved(text: &mut String, saved: &[Saved]) {
    for output in saved.iter().take(LISTED_MAX) {
        let _ = writeln!(text, "saved {} ({})", printable(&output.path), bytes(output.bytes));
    }
    more(text, saved.len(), "were saved");
}

fn more(text: &mut String, count: usize, what: &str) {
    if count > LISTED_MAX {
        let _ = writeln!(text, "... and {} more {what}", count - LISTED_MAX);
    }
}

/// What was handed on, and how much of it had to be copied; nothing when there was nothing to hand on.
fn stages(text: &mut String, figures: StageFigures) {
    let StageFigures { made, made_bytes, read, read_bytes, copied_bytes, spilled, spilled_bytes } = figures;
    if read == 0 {
        return;
    }
    let (made_bytes, read_bytes, copied) = (bytes(made_bytes), bytes(read_bytes), bytes(copied_bytes));
    let spilled = match spilled {
        0 => String::new(),
        _ => format!("; {} spilled", bytes(spilled_bytes)),
    };
    let _ = writeln!(
        text,
        "stages: {made} made, {made_bytes}; {read} handed on, {read_bytes}; {copied} copied{spilled}"
    );
}

fn last_line(text: &mut String, summary: &Summary, look: Look) {
    let count = |state| summary.rows.iter().filter(|row| row.state == state).count();
    let mut parts = vec![look.state(RowState::Done, &format!("{} done", count(RowState::Done)))];
    for (state, word) in [(RowState::Failed, "failed"), (RowState::NotRun, "not run")] {
        if count(state) > 0 {
            parts.push(look.state(state, &format!("{} {word}", count(state))));
        }
    }
    let name = printable(&summary.workflow);
    let (total, wall) = (payloads(summary.rows.len() as u64), duration(summary.wall_ms));
    let _ = writeln!(text, "{name}: {total}, {} in {wall}", parts.join(", "));
}

/// `1 payload`, `2 payloads`.
pub(super) fn payloads(count: u64) -> String {
    if count == 1 { "1 payload".to_owned() } else { format!("{count} payloads") }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
