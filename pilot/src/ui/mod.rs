//! What people and machines see of a run.
//!
//! A [`Reporter`] is fed with [`UiEvent`]s and shows them in one of three ways: live on a terminal, as plain lines, or as
//! JSON, one object a line. It writes to whatever it was given and keeps no clock: the time is an argument.
//!
//! Must not know: where events come from, what is decided, environment variables (colours are an argument).

mod event;
mod plain;
mod screen;
mod table;
mod terminal;
mod words;

pub mod top;

use std::fmt;
use std::io::{self, Write};

use indicatif::ProgressBar;
use serde::Serialize;

pub use event::{Figures, RowState, Saved, Stream, Summary, SummaryRow, UiEvent};
pub use screen::{Size, SizeSource, size_of};
pub use words::{bytes, duration};
pub(crate) use words::{cut, elapsed, printable};

use screen::Shared;
use table::Look;
use terminal::Terminal;

/// Shows events.
pub struct Reporter {
    out: Shared,
    face: Face,
}

/// One of three ways to show events.
enum Face {
    Terminal(Box<Terminal>),
    Plain(Look),
    Json,
}

/// An event as a machine reads it.
#[derive(Serialize)]
struct JsonLine<'a> {
    at_ms: u64,
    #[serde(flatten)]
    event: &'a UiEvent,
}

impl Reporter {
    /// A live view on a terminal, whose size is asked before each drawing.
    pub fn terminal(out: Box<dyn Write + Send>, size: SizeSource, colour: bool) -> Self {
        let out = Shared::new(out);
        Self { face: Face::Terminal(Box::new(Terminal::new(out.clone(), size, colour))), out }
    }

    /// One line for each start and end.
    pub fn plain(out: Box<dyn Write + Send>, colour: bool) -> Self {
        Self { out: Shared::new(out), face: Face::Plain(Look { colour, width: None }) }
    }

    /// One JSON object a line.
    pub fn json(out: Box<dyn Write + Send>) -> Self {
        Self { out: Shared::new(out), face: Face::Json }
    }

    /// Shows an event, `at_ms` milliseconds after the start.
    ///
    /// # Errors
    /// What the writer says, such as a closed pipe. Later events may be reported all the same.
    pub fn report(&mut self, at_ms: u64, event: &UiEvent) -> io::Result<()> {
        match &mut self.face {
            Face::Terminal(terminal) => terminal.show(at_ms, event),
            Face::Plain(look) => match plain::lines(at_ms, event, *look) {
                lines if lines.is_empty() => Ok(()),
                lines => self.out.write(&lines),
            },
            Face::Json => {
                let mut line = serde_json::to_string(&JsonLine { at_ms, event })?;
                line.push('\n');
                self.out.write(&line)
            }
        }
    }

    /// Lets the times of a live view go on. Call it about once a second; other views do nothing.
    ///
    /// # Errors
    /// As [`Self::report`].
    pub fn tick(&mut self, at_ms: u64) -> io::Result<()> {
        if let Face::Terminal(terminal) = &mut self.face {
            terminal.draw(at_ms);
        }
        self.out.failure()
    }

    /// A writer for the lines of others (our own log), which appear above a live view. `None` for JSON, whose lines are
    /// all ours: such text goes to stderr.
    pub fn lines(&self) -> Option<Lines> {
        let bar = match &self.face {
            Face::Terminal(terminal) => Some(terminal.bar().clone()),
            Face::Plain(_) => None,
            Face::Json => return None,
        };
        Some(Lines { out: self.out.clone(), bar, part: Vec::new() })
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let face = match self.face {
            Face::Terminal(_) => "terminal",
            Face::Plain(_) => "plain",
            Face::Json => "json",
        };
        f.debug_struct("Reporter").field("face", &face).finish_non_exhaustive()
    }
}

/// Writes whole lines above the live view. A line without an end is kept until it ends or this is dropped. Each clone
/// has a line of its own.
pub struct Lines {
    out: Shared,
    bar: Option<ProgressBar>,
    part: Vec<u8>,
}

impl Lines {
    fn show(&self, line: &[u8]) -> io::Result<()> {
        let line = String::from_utf8_lossy(line);
        match &self.bar {
            Some(bar) if !bar.is_finished() => {
                bar.println(line);
                self.out.failure()
            }
            Some(_) => self.out.write(&format!("{line}\r\n")),
            None => self.out.write(&format!("{line}\n")),
        }
    }
}

impl Clone for Lines {
    fn clone(&self) -> Self {
        Self { out: self.out.clone(), bar: self.bar.clone(), part: Vec::new() }
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(bytes);
        while let Some(end) = self.part.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.part.drain(..=end).collect();
            self.show(&line[..end])?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if !self.part.is_empty() {
            // Nobody is left to hear of a failure.
            let _ = self.show(&self.part);
        }
    }
}

#[cfg(test)]
#[path = "ui_tests.rs"]
mod tests;
