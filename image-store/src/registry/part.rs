//! The bytes of a blob that have come so far: a file in the store that outlives the process, so that the next
//! one asks for the rest only. One thread appends, another may follow it and read what is there already.
//!
//! # Guarantees
//! A part is whole-blob bytes without a gap, as far as the registry tells the truth; nobody takes them for the
//! blob before the digest of all of them was computed. After a power cut there may be holes: the digest finds
//! them. A lock keeps two processes from writing to one part; the second makes one of its own.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::error::RegistryError;
use crate::digest::Digest;
use crate::objects::ObjectError;

/// How long one waits for another process that is fetching the same blob; after that it is fetched twice.
const LOCK_WAIT: Duration = Duration::from_secs(600);
const LOCK_POLL: Duration = Duration::from_millis(50);

/// A blob that is on its way.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    path: PathBuf,
    /// Another process has the part that outlives us; this one goes with us.
    own: bool,
    file: File,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: u64,
    /// Some of the bytes are an earlier process's: nobody knows where from.
    inherited: bool,
    /// The first endpoint that gave any of the bytes.
    first_source: Option<usize>,
    end: End,
}

#[derive(Debug, Default)]
enum End {
    /// More will come.
    #[default]
    Open,
    /// All is there.
    Whole,
    Failed(Option<RegistryError>),
}

impl Part {
    /// Opens the part of a blob in `folder`, or makes it. Waits while another process writes to it.
    pub(crate) fn open(folder: &Path, digest: Digest, size: u64) -> Result<Arc<Self>, ObjectError> {
        let path = folder.join(digest.hex());
        for _ in 0..LOCK_WAIT.as_millis() / LOCK_POLL.as_millis() {
            let (file, inode) = create(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(std::fs::TryLockError::WouldBlock) => {
                    std::thread::sleep(LOCK_POLL);
                    continue;
                }
                // No locks here: nobody else is known to be at it either.
                Err(std::fs::TryLockError::Error(_)) => break,
            }
            // Its former owner may have removed it meanwhile.
            if std::fs::metadata(&path).is_ok_and(|meta| meta.ino() == inode) {
                return Self::with(path, false, file, digest, size);
            }
        }
        let path = folder.join(format!("{}.{:016x}", digest.hex(), fastrand::u64(..)));
        let (file, _) = create(&path)?;
        Self::with(path, true, file, digest, size)
    }

    fn with(
        path: PathBuf,
        own: bool,
        file: File,
        digest: Digest,
        size: u64,
    ) -> Result<Arc<Self>, ObjectError> {
        let io = |error| ObjectError::of(&path, error);
        let mut bytes = file.metadata().map_err(io)?.len();
        if bytes > size {
            file.set_len(0).map_err(io)?;
            bytes = 0;
        }
        let state = State { bytes, inherited: bytes > 0, ..State::default() };
        Ok(Arc::new(Self {
            digest,
            size,
            path,
            own,
            file,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// Appends what the endpoint number `source` gave. One thread only.
    pub(crate) fn append(&self, source: usize, bytes: &[u8]) -> Result<(), ObjectError> {
        let at = self.bytes();
        self.file.write_all_at(bytes, at).map_err(|error| ObjectError::of(&self.path, error))?;
        let mut state = self.state();
        state.bytes = at + bytes.len() as u64;
        state.first_source.get_or_insert(source);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Says how the download ended.
    pub(crate) fn finish(&self, result: Result<(), RegistryError>) {
        self.state().end = match result {
            Ok(()) => End::Whole,
            Err(error) => End::Failed(Some(error)),
        };
        self.changed.notify_all();
    }

    /// Ends the part if its download was dropped.
    pub(crate) fn abandon(&self) {
        let mut state = self.state();
        if matches!(state.end, End::Open) {
            state.end = End::Failed(None);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Why the download failed, told once.
    pub(crate) fn take_failure(&self) -> Option<RegistryError> {
        if let End::Failed(error) = &mut self.state().end { error.take() } else { None }
    }

    /// Drops wrong bytes. Answers the endpoint from which the next try starts: past the first that gave any of
    /// them, unless some were there before.
    pub(crate) fn forget(&self) -> Result<usize, ObjectError> {
        let mut state = self.state();
        self.file.set_len(0).map_err(|error| ObjectError::of(&self.path, error))?;
        let next = if state.inherited { 0 } else { state.first_source.map_or(0, |source| source + 1) };
        *state = State::default();
        Ok(next)
    }

    /// Reads from the start and waits for what has not come yet.
    pub(crate) fn reader(self: &Arc<Self>) -> PartReader {
        PartReader { part: Arc::clone(self), at: 0 }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.own {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn create(path: &Path) -> Result<(File, u64), ObjectError> {
    let io = |error| ObjectError::of(path, error);
    let mut options = File::options();
    let file =
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(io)?;
    let inode = file.metadata().map_err(io)?.ino();
    Ok((file, inode))
}

/// See [`Part::reader`].
#[derive(Debug)]
pub(crate) struct PartReader {
    part: Arc<Part>,
    at: u64,
}

impl Read for PartReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.part.state();
        while state.bytes <= self.at {
            if self.at >= self.part.size || matches!(state.end, End::Whole) {
                return Ok(0);
            }
            if matches!(state.end, End::Failed(_)) {
                return Err(io::Error::other("the download ended early"));
            }
            state = self.part.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let there = usize::try_from(state.bytes - self.at).unwrap_or(usize::MAX);
        drop(state);
        let most = buffer.len().min(there);
        let read = self.part.file.read_at(&mut buffer[..most], self.at)?;
        if read == 0 && most > 0 {
            return Err(io::Error::other("the part file was cut by somebody else"));
        }
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_follows_the_writer_to_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let part = Part::open(dir.path(), Digest::of(&bytes), bytes.len() as u64).unwrap();
        let mut reader = part.reader();
        let mut read = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| reader.read_to_end(&mut read).unwrap());
            bytes.chunks(777).for_each(|chunk| part.append(0, chunk).unwrap());
            part.finish(Ok(()));
        });
        assert_eq!(Digest::of(&read), part.digest);
    }

    #[test]
    fn what_came_is_there_for_the_next_process_and_wrong_bytes_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Part::open(dir.path(), Digest::of(b"x"), 10).unwrap();
        let part = open();
        part.append(1, b"1234").unwrap();
        drop(part);
        let part = open();
        assert_eq!(part.bytes(), 4);
        part.append(1, b"567890").unwrap();
        part.finish(Ok(()));
        assert_eq!(part.forget().unwrap(), 0, "an earlier process may have been given the wrong bytes");
        assert_eq!(part.bytes(), 0);
        part.append(1, b"1234567890").unwrap();
        part.finish(Ok(()));
        assert_eq!(part.forget().unwrap(), 2);
    }

    #[test]
    fn a_reader_of_a_download_that_ended_early_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let part = Part::open(dir.path(), Digest::of(b"x"), 10).unwrap();
        part.append(1, b"1234").unwrap();
        part.abandon();
        let mut read = Vec::new();
        assert!(part.reader().read_to_end(&mut read).is_err());
        assert_eq!(read, b"1234");
        assert!(part.take_failure().is_none());
    }
}
