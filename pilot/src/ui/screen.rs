//! A writer that several parties share, and the terminal that indicatif draws on it.
//!
//! Must not know: what is drawn.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::TermLike;

/// Columns and rows of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

impl Default for Size {
    /// What a terminal has that does not say.
    fn default() -> Self {
        Self { columns: 80, rows: 24 }
    }
}

/// Asked before each drawing, because terminals are resized.
pub type SizeSource = Box<dyn Fn() -> Size + Send + Sync>;

/// The size of the terminal behind a descriptor; `None` when there is none.
pub fn size_of(fd: impl rustix::fd::AsFd) -> Option<Size> {
    let size = rustix::termios::tcgetwinsize(fd).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some(Size { columns: size.ws_col, rows: size.ws_row })
}

/// A writer behind a lock. The first failure is kept until someone asks: indicatif forgets failures.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Inner>>);

struct Inner {
    out: Box<dyn Write + Send>,
    failure: Option<io::Error>,
}

impl Shared {
    pub(super) fn new(out: Box<dyn Write + Send>) -> Self {
        Self(Arc::new(Mutex::new(Inner { out, failure: None })))
    }

    /// Writes all of it and flushes.
    pub(super) fn write(&self, text: &str) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.out.write_all(text.as_bytes())?;
        inner.out.flush()
    }

    /// The first failure since the last call.
    pub(super) fn failure(&self) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.failure.take().map_or(Ok(()), Err)
    }

    fn draw(&self, text: &str) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = inner.out.write_all(text.as_bytes()) {
            inner.failure.get_or_insert(error);
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = inner.out.flush() {
            inner.failure.get_or_insert(error);
        }
        Ok(())
    }
}

/// indicatif subtracts from the size it is told, so a terminal of no columns must not reach it.
const COLUMNS_MIN: u16 = 10;
/// As [`COLUMNS_MIN`].
const ROWS_MIN: u16 = 2;

/// What indicatif draws on: the few sequences of ECMA-48 that every terminal has.
pub(super) struct Screen {
    out: Shared,
    size: Arc<SizeSource>,
}

impl Screen {
    pub(super) fn new(out: Shared, size: Arc<SizeSource>) -> Self {
        Self { out, size }
    }

    fn cursor(&self, n: usize, direction: char) -> io::Result<()> {
        if n == 0 { Ok(()) } else { self.out.draw(&format!("\x1b[{n}{direction}")) }
    }
}

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Screen").finish_non_exhaustive()
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        (self.size)().columns.max(COLUMNS_MIN)
    }

    fn height(&self) -> u16 {
        (self.size)().rows.max(ROWS_MIN)
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.cursor(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.cursor(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.cursor(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.cursor(n, 'D')
    }

    fn write_line(&self, s: &str) -> io::Result<()> {
        self.out.draw(&format!("{s}\r\n"))
    }

    fn write_str(&self, s: &str) -> io::Result<()> {
        self.out.draw(s)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.out.draw("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        self.out.flush()
    }
}
