//! One log file on its way out.
//!
//! **Must not know:** payloads, the spool.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Read at once.
const CHUNK: usize = 64 * 1024;

/// Why a stream can't go on.
pub(super) enum PumpError {
    /// The file can't be read.
    Read(io::Error),
    /// Nobody takes what is printed.
    Write,
}

/// One of a payload's log files on its way out.
pub(super) struct Stream {
    pub(super) path: PathBuf,
    name: &'static str,
    to_stderr: bool,
    is_json: bool,
    /// Lines to begin with, until the file was seen for the first time.
    tail: Option<usize>,
    open: Option<File>,
    /// Bytes printed.
    pub(super) written: u64,
    /// A line without an end, in JSON.
    part: Vec<u8>,
}

impl Stream {
    /// A stream that nothing was printed of yet.
    pub(super) fn new(
        path: PathBuf,
        name: &'static str,
        to_stderr: bool,
        is_json: bool,
        tail: Option<usize>,
    ) -> Self {
        Self { path, name, to_stderr, is_json, tail, open: None, written: 0, part: Vec::new() }
    }

    /// Prints what is new; `false` when nothing is.
    pub(super) fn pump(&mut self) -> Result<bool, PumpError> {
        let mut is_more = false;
        loop {
            let mut chunk = vec![0; CHUNK];
            let read = match &mut self.open {
                Some(file) => file.read(&mut chunk).map_err(PumpError::Read)?,
                None => 0,
            };
            chunk.truncate(read);
            if read > 0 {
                is_more = true;
                self.print(&chunk).map_err(|_| PumpError::Write)?;
            } else if !self.renew().map_err(PumpError::Read)? {
                return Ok(is_more);
            }
        }
    }

    /// Opens the file that has the name; `false` when that is the one we have, or there is none.
    fn renew(&mut self) -> io::Result<bool> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // What comes later is all new.
                self.tail = None;
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        if let Some(open) = &self.open {
            let (old, new) = (open.metadata()?, file.metadata()?);
            if (old.dev(), old.ino()) == (new.dev(), new.ino()) {
                return Ok(false);
            }
        }
        if let Some(lines) = self.tail.take() {
            let start = start_of_tail(&mut file, lines)?;
            file.seek(SeekFrom::Start(start))?;
        }
        self.open = Some(file);
        Ok(true)
    }

    fn print(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        if self.is_json {
            self.part.extend_from_slice(bytes);
            let whole = self.part.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            let lines: Vec<u8> = self.part.drain(..whole).collect();
            return self.print_json(&lines);
        }
        if self.to_stderr {
            write_all(&mut io::stderr().lock(), bytes)
        } else {
            write_all(&mut io::stdout().lock(), bytes)
        }
    }

    fn print_json(&self, lines: &[u8]) -> io::Result<()> {
        let mut text = String::new();
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line));
            let line = serde_json::json!({"kind": "line", "stream": self.name, "line": line});
            text.push_str(&format!("{line}\n"));
        }
        write_all(&mut io::stdout().lock(), text.as_bytes())
    }

    /// A last line that has no end.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        let part = std::mem::take(&mut self.part);
        if part.is_empty() { Ok(()) } else { self.print_json(&part) }
    }
}

fn write_all(out: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}

/// Where the last `lines` lines begin; read from the end, so that a long file costs no more than a short one.
fn start_of_tail(file: &mut File, lines: usize) -> io::Result<u64> {
    let end = file.metadata()?.len();
    let mut start = end;
    let mut seen = 0;
    while start > 0 {
        let from = start.saturating_sub(CHUNK as u64);
        file.seek(SeekFrom::Start(from))?;
        let mut chunk = Vec::new();
        (&mut *file).take(start - from).read_to_end(&mut chunk)?;
        for (index, byte) in chunk.iter().enumerate().rev() {
            let place = from + index as u64;
            // The newline at the very end closes the last line and begins none.
            if *byte == b'\n' && place + 1 < end {
                seen += 1;
                if seen == lines {
                    return Ok(place + 1);
                }
            }
        }
        start = from;
    }
    Ok(if lines == 0 { end } else { 0 })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::start_of_tail;

    #[test]
    fn a_tail_begins_at_a_line() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("log");
        let tail = |text: &str, lines| {
            std::fs::write(&path, text).expect("write");
            let start = start_of_tail(&mut File::open(&path).expect("open"), lines).expect("read");
            text[usize::try_from(start).expect("small")..].to_owned()
        };
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("a\nb\nc\n", 9), "a\nb\nc\n");
        assert_eq!(tail("a\nb\nc\n", 0), "");
        assert_eq!(tail("", 3), "");
        assert_eq!(tail("\n\n", 1), "\n");
        let long = "0123456789abcdef\n".repeat(10_000);
        assert_eq!(tail(&long, 7000).len(), 7000 * 17);
    }
}
