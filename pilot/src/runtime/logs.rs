//! A slot's standard output and error: two FIFOs that the pilot empties into two files for each payload.
//!
//! ```text
//!   payload 1 ──writes──> <slot>/stdout (FIFO) ──pump──> <logs>/<payload>.stdout
//! ```
//! FIFOs and not pipes, because they have a name: a payload that outlives its pilot writes on, and the pilot that adopts it
//! opens the same FIFO again. The payload's descriptor is open for reading too (fifo(7): Linux allows it), so that no
//! writer ever meets a closed pipe; when the FIFO is full, the payload waits for its new pilot.
//!
//! Bytes go from the FIFO to the file in one system call (splice(2)): a pilot that is killed has either not taken them, and
//! the next one finds them, or has kept them.
//!
//! The files are made at the first byte: a silent payload costs none. What a payload writes beyond [`LogLimit`] is read and
//! thrown away, so that a flood costs neither disk nor, through a full pipe, the payload's time; a last line in the file
//! says how much is missing.
//!
//! **Must not know:** containers, slots, what the text means.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, SeekFrom, mknodat, seek};
use rustix::io::{Errno, ioctl_fionread};
use rustix::pipe::{SpliceFlags, splice};
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

/// Read at once; a pipe holds as much (pipe(7)).
const CHUNK: usize = 64 * 1024;

/// What became of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogTotals {
    /// Bytes in the file.
    pub kept: u64,
    /// Bytes read and thrown away.
    pub dropped: u64,
}

/// One stream of a slot.
#[derive(Debug)]
pub struct LogStream {
    path: PathBuf,
    reader: AsyncFd<OwnedFd>,
    /// Open for writing, so that the reader never meets the end of the FIFO (which poll(2) would report for ever).
    _keeper: OwnedFd,
    log: Log,
}

/// Where what a payload writes is kept.
#[derive(Debug)]
struct Log {
    limit: LogLimit,
    file: PathBuf,
    open: Option<OwnedFd>,
    totals: LogTotals,
    /// For what is not kept, and for file systems that can't splice.
    buffer: Vec<u8>,
}

impl LogStream {
    /// Opens the FIFO at `path`; makes it when it is not there.
    ///
    /// # Errors
    /// When it can't be made or opened; needs a tokio runtime.
    pub fn open(path: &Path, limit: LogLimit) -> std::io::Result<Self> {
        // Opened again by a payload through /dev/stdout it must let any uid in; the folder above keeps others out.
        match mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o666), 0) {
            Ok(()) => rustix::fs::chmod(path, Mode::from_raw_mode(0o666))?,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let reader = rustix::fs::open(path, flags, Mode::empty())?;
        let keeper = writer(path)?;
        Ok(Self {
            path: path.to_owned(),
            reader: watch(reader, Interest::READABLE)?,
            _keeper: keeper,
            log: Log {
                limit,
                file: PathBuf::new(),
                open: None,
                totals: LogTotals::default(),
                buffer: Vec::new(),
            },
        })
    }

    /// Begins a payload's log; gives the descriptor for the payload. A fresh one each time: its flags are the payload's to
    /// change, and the next one must not find them changed.
    ///
    /// # Errors
    /// When the FIFO can't be opened, or an old log of that name can't be removed.
    pub fn begin(&mut self, file: PathBuf) -> std::io::Result<OwnedFd> {
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let log = &mut self.log;
        (log.file, log.open, log.totals) = (file, None, LogTotals::default());
        writer(&self.path)
    }

    /// Goes on with a log that another pilot began.
    pub fn go_on(&mut self, file: PathBuf) {
        let kept = std::fs::metadata(&file).map_or(0, |meta| meta.len());
        let log = &mut self.log;
        (log.file, log.open, log.totals) = (file, None, LogTotals { kept, dropped: 0 });
    }

    /// Waits until there is something to read, and keeps it.
    ///
    /// # Errors
    /// Reading can't fail in practice; when the file can't be written (disk full) the rest is dropped and counted.
    pub async fn pump(&mut self) -> std::io::Result<()> {
        let mut ready = self.reader.readable().await?;
        match self.log.take(self.reader.get_ref()) {
            Ok(0) | Err(Errno::AGAIN) => ready.clear_ready(),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }

    /// Keeps all that is there and closes the file; when this is called nobody writes any more.
    pub fn finish(&mut self) -> LogTotals {
        let log = &mut self.log;
        loop {
            match log.take(self.reader.get_ref()) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => {
                    tracing::warn!(log = %log.file.display(), %errno, "a payload's output can't be read");
                    break;
                }
            }
        }
        // A slot at rest holds no memory for a flood that is over.
        log.buffer = Vec::new();
        if log.totals.dropped > 0
            && let Some(file) = &log.open
        {
            let line = format!("\n[latebind: {} more bytes were dropped]\n", log.totals.dropped);
            let _ = rustix::io::write(file, line.as_bytes());
        }
        log.open = None;
        std::mem::take(&mut log.totals)
    }
}

impl Log {
    /// Takes what waits in a FIFO, once: keeps it as far as the limit goes. Gives how many bytes were taken.
    fn take(&mut self, from: &OwnedFd) -> Result<usize, Errno> {
        let room = usize::try_from(self.limit.0.saturating_sub(self.totals.kept)).unwrap_or(usize::MAX);
        // A file that is made after the bytes were taken could be too late for them.
        if room > 0 && self.open.is_none() {
            if ioctl_fionread(from)? == 0 {
                return Err(Errno::AGAIN);
            }
            self.open = self.make_file();
        }
        if room > 0
            && let Some(file) = &self.open
        {
            let moved = splice(from, None, file, None, room.min(CHUNK), SpliceFlags::NONBLOCK);
            match moved {
                Ok(moved) => {
                    self.totals.kept += moved as u64;
                    return Ok(moved);
                }
                Err(Errno::AGAIN) => return Err(Errno::AGAIN),
                // A full disk, or a file system that can't splice: the write below tells.
                Err(_) => {}
            }
        }
        self.buffer.resize(CHUNK, 0);
        let read = rustix::io::read(from, &mut self.buffer)?;
        self.keep(read, room);
        Ok(read)
    }

    /// Writes what of the first `length` bytes of the buffer there is room for.
    fn keep(&mut self, length: usize, room: usize) {
        let wanted = length.min(room);
        let mut rest = self.buffer.get(..wanted).unwrap_or_default();
        while let (false, Some(file)) = (rest.is_empty(), &self.open) {
            match rustix::io::write(file.as_fd(), rest) {
                Ok(n) if n > 0 => {
                    self.totals.kept += n as u64;
                    rest = rest.get(n..).unwrap_or_default();
                }
                Err(Errno::INTR) => {}
                _ => break,
            }
        }
        self.totals.dropped += (length - wanted + rest.len()) as u64;
    }

    fn make_file(&self) -> Option<OwnedFd> {
        // Not APPEND: splice(2) refuses that, and nobody else writes.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let open = || rustix::fs::open(&self.file, flags, Mode::from_raw_mode(0o644));
        let file = match (open(), self.file.parent()) {
            (Err(Errno::NOENT), Some(folder)) => match std::fs::create_dir_all(folder) {
                Ok(()) => open(),
                Err(_) => Err(Errno::NOENT),
            },
            (file, _) => file,
        };
        file.and_then(|file| seek(&file, SeekFrom::End(0)).map(|_| file))
            .inspect_err(|errno| tracing::warn!(log = %self.file.display(), %errno, "a log can't be made"))
            .ok()
    }
}

/// Opens a FIFO for a payload: never blocks, never breaks (see the module).
fn writer(path: &Path) -> std::io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::{LogLimit, LogStream, LogTotals};

    #[tokio::test]
    async fn a_flood_is_cut_counted_and_does_not_block_the_writer() {
        let folder = tempfile::tempdir().expect("tempdir");
        let log = folder.path().join("logs/out");
        let mut stream = LogStream::open(&folder.path().join("fifo"), LogLimit(1000)).expect("open");
        let writer = stream.begin(log.clone()).expect("begin");
        let (done, mut ended) = tokio::sync::oneshot::channel();
        let flood = std::thread::spawn(move || {
            for _ in 0..100 {
                let mut rest = &[b'x'; 4096][..];
                while !rest.is_empty() {
                    rest = &rest[rustix::io::write(&writer, rest).expect("write")..];
                }
            }
            done.send(()).expect("send");
        });
        loop {
            tokio::select! {
                biased;
                pumped = stream.pump() => pumped.expect("pump"),
                _ = &mut ended => break,
            }
        }
        flood.join().expect("flood");
        assert_eq!(stream.finish(), LogTotals { kept: 1000, dropped: 408_600 });
        let text = std::fs::read_to_string(&log).expect("log");
        assert!(text.ends_with("[latebind: 408600 more bytes were dropped]\n"), "{}", &text[990..]);
    }

    #[tokio::test]
    async fn a_silent_payload_leaves_no_file_and_a_second_pilot_goes_on_where_the_first_one_stopped() {
        let folder = tempfile::tempdir().expect("tempdir");
        let (fifo, log) = (folder.path().join("fifo"), folder.path().join("out"));
        let mut first = LogStream::open(&fifo, LogLimit(100)).expect("open");
        let writer = first.begin(log.clone()).expect("begin");
        assert_eq!(first.finish(), LogTotals::default());
        assert!(!log.exists());
        rustix::io::write(&writer, b"one ").expect("write");
        first.pump().await.expect("pump");
        drop(first);
        rustix::io::write(&writer, b"two").expect("nobody reads, and nothing breaks");
        let mut second = LogStream::open(&fifo, LogLimit(100)).expect("open");
        second.go_on(log.clone());
        assert_eq!(second.finish().kept, 7);
        assert_eq!(std::fs::read_to_string(&log).expect("log"), "one two");
    }
}
