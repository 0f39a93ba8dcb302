//! Tables for people: columns as wide as their widest cell, cut to the terminal.
//!
//! **Must not know:** what is listed.

use crate::commands::spooled::Face;
use crate::ui::{cut, printable};

/// How a cell is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Nothing special.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Failed.
    Bad,
    /// Not run, or on its way.
    Warn,
}

/// One text of a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A text in a tone. Foreign text is made harmless.
    pub(crate) fn new(text: &str, tone: Tone) -> Self {
        Self { text: printable(text).into_owned(), tone }
    }

    /// A number; nothing is a dash.
    pub(crate) fn count(count: u64, tone: Tone) -> Self {
        if count == 0 { Self::from("-") } else { Self::new(&count.to_string(), tone) }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(text, Tone::Plain)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

/// A column's heading, and whether its cells stand to the right.
pub(crate) type Column = (&'static str, bool);

/// A table that is written page by page; columns only grow.
pub(crate) struct Grid {
    columns: &'static [Column],
    widths: Vec<usize>,
    is_headed: bool,
}

impl Grid {
    /// A table of these columns.
    pub(crate) fn new(columns: &'static [Column]) -> Self {
        let widths = columns.iter().map(|(heading, _)| heading.chars().count()).collect();
        Self { columns, widths, is_headed: false }
    }

    /// The next rows, the heading above the first of them; every line ended.
    pub(crate) fn page(&mut self, rows: &[Vec<Cell>], face: Face) -> String {
        for row in rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let mut text = String::new();
        if !self.is_headed && !rows.is_empty() {
            self.is_headed = true;
            let heading: Vec<Cell> = self.columns.iter().map(|(heading, _)| Cell::from(*heading)).collect();
            self.line(&heading, face, &mut text);
        }
        for row in rows {
            self.line(row, face, &mut text);
        }
        text
    }

    /// One row with the widths so far.
    fn line(&self, row: &[Cell], face: Face, text: &mut String) {
        let start = text.len();
        let mut left = face.columns().unwrap_or(usize::MAX);
        let last = row.len().saturating_sub(1);
        for (index, (cell, (width, (_, right)))) in
            row.iter().zip(self.widths.iter().zip(self.columns)).enumerate()
        {
            let shown = cut(&cell.text, left);
            let padding = " ".repeat(width.saturating_sub(shown.chars().count()).min(left));
            let painted = painted(&shown, cell.tone, face);
            match (index == last, right) {
                (_, true) => text.extend([padding.as_str(), &painted]),
                (true, false) => text.push_str(&painted),
                (false, false) => text.extend([painted.as_str(), &padding]),
            }
            left = left.saturating_sub(*width);
            text.push_str(&"  "[..left.min(2)]);
            left = left.saturating_sub(2);
        }
        let end = text.trim_end_matches(' ').len().max(start);
        text.truncate(end);
        text.push('\n');
    }
}

/// A text in the colour of its tone.
pub(crate) fn painted(text: &str, tone: Tone, face: Face) -> String {
    let code = match tone {
        Tone::Good => "32",
        Tone::Bad => "31",
        Tone::Warn => "33",
        Tone::Plain => return text.to_owned(),
    };
    if face.colour && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::{Cell, Grid, Tone};
    use crate::commands::spooled::Face;

    const FACE: Face = Face { json: false, live: false, colour: false };

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_never_shrink() {
        let mut grid = Grid::new(&[("RUN", true), ("NAME", false), ("WHY", false)]);
        let row = |run: &str, name: &str, why: &str| vec![Cell::from(run), Cell::from(name), Cell::from(why)];
        let first = grid.page(&[row("7", "a-long-name", ""), row("12", "b", "exit code 1")], FACE);
        assert_eq!(first, "RUN  NAME         WHY\n  7  a-long-name\n 12  b            exit code 1\n");
        assert_eq!(grid.page(&[row("1000", "c", "x\u{1b}[2J")], FACE), "1000  c            x\\u{1b}[2J\n");
        assert_eq!(grid.page(&[], FACE), "");
    }

    #[test]
    fn tones_are_colours_only_where_there_are_any() {
        let mut grid = Grid::new(&[("STATE", false), ("N", true)]);
        let row = vec![Cell::new("failed", Tone::Bad), Cell::count(0, Tone::Bad)];
        let text = grid.page(&[row], Face { colour: true, ..FACE });
        assert_eq!(text, "STATE   N\n\u{1b}[31mfailed\u{1b}[0m  -\n");
    }
}
