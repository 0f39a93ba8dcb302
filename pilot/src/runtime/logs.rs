//! A payload's standard output and error: two pipes that the pilot empties into two files.
//!
//! The pipes are the payload's own and are never mixed with the pilot's output. What a payload writes beyond
//! [`LogLimit`] is read and thrown away, so that a flood costs neither disk nor, through a full pipe, the payload's time;
//! a last line in the file says how much is missing.
//!
//! **Must not know:** containers, slots, what the text means.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::watch;

/// Most bytes that are kept of one stream of one payload.
#[derive(Clone, Copy, Debug)]
pub struct LogLimit(pub u64);

impl Default for LogLimit {
    /// 16 MiB: a long job's progress lines, not its data.
    fn default() -> Self {
        Self(16 * 1024 * 1024)
    }
}

/// The end for the payload and the copier for the pilot.
#[derive(Debug)]
pub struct LogPipe {
    /// Becomes the payload's descriptor 1 or 2; the pilot closes its own copy once it was sent.
    pub writer: OwnedFd,
    /// Empties the pipe.
    pub copier: LogCopier,
}

/// Reads one pipe to its end.
#[derive(Debug)]
pub struct LogCopier {
    reader: AsyncFd<OwnedFd>,
    file: OwnedFd,
    limit: LogLimit,
}

/// What became of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogTotals {
    /// Bytes in the file.
    pub kept: u64,
    /// Bytes read and thrown away.
    pub dropped: u64,
}

/// Makes the pipe and the (truncated) file.
///
/// # Errors
/// When either cannot be made.
pub fn log_pipe(path: &Path, limit: LogLimit) -> std::io::Result<LogPipe> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?;
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&reader, true)?;
    let reader = watch(reader, Interest::READABLE)?;
    Ok(LogPipe { writer, copier: LogCopier { reader, file, limit } })
}

impl LogCopier {
    /// Copies until every writer has closed the pipe.
    ///
    /// # Errors
    /// Reading can't fail in practice; when the file can't be written (disk full) the rest is dropped and counted.
    pub async fn run(self) -> std::io::Result<LogTotals> {
        let mut totals = LogTotals::default();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let mut ready = self.reader.readable().await?;
            match rustix::io::read(self.reader.get_ref(), &mut buffer) {
                Ok(0) => break,
                Ok(n) => self.keep(&buffer[..n], &mut totals),
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if totals.dropped > 0 {
            let line = format!("\n[latebind: {} more bytes were dropped]\n", totals.dropped);
            let _ = rustix::io::write(&self.file, line.as_bytes());
        }
        Ok(totals)
    }

    fn keep(&self, bytes: &[u8], totals: &mut LogTotals) {
        let room = usize::try_from(self.limit.0.saturating_sub(totals.kept)).unwrap_or(usize::MAX);
        let mut rest = &bytes[..bytes.len().min(room)];
        while !rest.is_empty() {
            match rustix::io::write(&self.file, rest) {
                Ok(n) if n > 0 => {
                    totals.kept += n as u64;
                    rest = &rest[n..];
                }
                Err(rustix::io::Errno::INTR) => {}
                _ => break,
            }
        }
        let kept = bytes.len().min(room) - rest.len();
        totals.dropped += (bytes.len() - kept) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::{LogLimit, LogTotals, log_pipe};

    #[tokio::test]
    async fn a_flood_is_cut_counted_and_does_not_block_the_writer() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("out");
        let pipe = log_pipe(&path, LogLimit(1000)).expect("pipe");
        let writer = pipe.writer;
        let flood = std::thread::spawn(move || {
            for _ in 0..100 {
                let mut rest = &[b'x'; 4096][..];
                while !rest.is_empty() {
                    rest = &rest[rustix::io::write(&writer, rest).expect("write")..];
                }
            }
        });
        let totals = pipe.copier.run().await.expect("copy");
        flood.join().expect("flood");
        assert_eq!(totals, LogTotals { kept: 1000, dropped: 408_600 });
        let text = std::fs::read_to_string(&path).expect("log");
        assert!(text.ends_with("[latebind: 408600 more bytes were dropped]\n"), "{}", &text[990..]);
    }
}
