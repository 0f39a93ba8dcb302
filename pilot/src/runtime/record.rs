//! What another pilot must know to adopt a payload that runs in a slot: one small file for each slot.
//!
//! ```text
//!   about to start -> Record { nonce }      started -> Record { pid }      launch about to be sent -> Record { launch }      taken down -> no file
//! ```
//! It is written before the fact that it tells becomes possible: a launch that is not in the record never happened. Each record
//! is a line that is added to the file, and the last whole line counts; now and then a file with one line replaces it by rename
//! ([`RecordFile`]). What would survive the machine is of no use, since no payload does, so nothing is synced.
//!
//! Beside the slots lies the list of claims that were launched lately, those of payloads that have ended included: between
//! the end of a payload and the moment at which its queue knows of it, the list is what says that it ran ([`LaunchLog`]).
//!
//! **Must not know:** sockets, containers, queues.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use pilot_core::{ClaimId, Epoch};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stage::OutputFile;
use wire::slot::{LaunchId, Nonce};

use super::stages::OpenOutput;
use crate::payload::Payload;
use crate::ports::Grant;

/// A slot's container, and what runs in it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// Version of this format; others are not understood, and their slots are taken down.
    pub(super) version: u32,
    /// PID 1 and its start time (proc(5)); `None` while the container is being started.
    pub(super) process: Option<(u32, u64)>,
    /// What its shim proves itself with.
    pub(super) nonce: [u8; 16],
    /// Whether the cgroup limits its memory.
    pub(super) memory_enforced: bool,
    /// The payload that was launched last. Whether it still runs, the shim says; once clean, it knows of none.
    pub(super) launch: Option<Launched>,
}

/// A launch.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Launched {
    pub(super) id: [u8; 16],
    pub(super) epoch: u64,
    pub(super) claim: u64,
    /// When, on the clock that all processes of this machine share (CLOCK_BOOTTIME), in milliseconds.
    pub(super) at_ms: u64,
    /// What must be equal for a warm slot.
    pub(super) key: String,
    /// Kills for memory before it.
    pub(super) oom_kills: u64,
    pub(super) payload: Payload,
    /// Its outputs in files.
    pub(super) files: Vec<OutputFile>,
}

/// The version that this pilot writes.
pub(super) const VERSION: u32 = 1;

impl Record {
    /// The last record of a slot that was written whole.
    pub(super) fn read(path: &Path) -> Option<Self> {
        last_whole(path).filter(|record: &Self| record.version == VERSION)
    }

    pub(super) fn nonce(&self) -> Nonce {
        Nonce(self.nonce)
    }
}

/// The last record in a file that was written whole.
fn last_whole<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = std::fs::read(path).ok()?;
    let whole = text.split_inclusive(|byte| *byte == b'\n').rfind(|line| line.ends_with(b"\n"))?;
    serde_json::from_slice(whole).ok()
}

impl Launched {
    /// A launch that is about to be sent.
    pub(super) fn new(
        id: LaunchId,
        grant: Grant,
        payload: &Payload,
        outputs: &[OpenOutput],
        oom_kills: u64,
    ) -> Self {
        Self {
            id: id.0,
            epoch: grant.epoch.0,
            claim: grant.claim.0,
            at_ms: boot_ms(),
            key: grant.key,
            oom_kills,
            payload: payload.clone(),
            files: outputs.iter().filter_map(OpenOutput::file).cloned().collect(),
        }
    }

    pub(super) fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    pub(super) fn claim(&self) -> ClaimId {
        ClaimId(self.claim)
    }

    pub(super) fn id(&self) -> LaunchId {
        LaunchId(self.id)
    }
}

/// Where records of a slot are written, of which the last counts.
///
/// A line is added in about a microsecond. To replace the file each time costs a hundred times that on ext4, which begins to
/// write a file to disk when it is renamed over another one (ext4(5), `auto_da_alloc`).
#[derive(Debug)]
pub(super) struct RecordFile {
    path: PathBuf,
    open: Option<(File, u64)>,
}

/// A file of records is replaced when it would grow beyond this.
const RECORDS_BYTES_MAX: u64 = 256 * 1024;

impl RecordFile {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), open: None }
    }

    /// Writes a record; those before it do not count any more.
    pub(super) fn write(&mut self, record: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        // After an error the end of the file is not known, so the next record begins a new one.
        if let Some((mut file, bytes)) = self.open.take()
            && bytes + line.len() as u64 <= RECORDS_BYTES_MAX
            && file.metadata()?.nlink() > 0
        {
            file.write_all(&line)?;
            self.open = Some((file, bytes + line.len() as u64));
            return Ok(());
        }
        let fresh = self.path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(&line)?;
        std::fs::rename(fresh, &self.path)?;
        self.open = Some((file, line.len() as u64));
        Ok(())
    }

    /// What was written last, by whatever process.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Option<T> {
        last_whole(&self.path)
    }

    /// None of it counts any more.
    pub(super) fn remove(&mut self) {
        self.open = None;
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The claims that were launched lately: a claim is added before its launch is sent. What is in it and is over does no harm.
#[derive(Debug)]
pub(super) struct LaunchLog {
    folder: PathBuf,
    open: Mutex<(Option<File>, u64)>,
}

/// Eight bytes a claim. At least so many of the last claims are in the list (8,192): many more than can have ended without
/// their queue knowing, since a queue that can't be told gives no new ones.
const LOG_BYTES_MAX: u64 = 64 * 1024;

impl LaunchLog {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), open: Mutex::new((None, LOG_BYTES_MAX)) }
    }

    /// Adds a claim.
    pub(super) fn add(&self, claim: ClaimId) -> io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.1 >= LOG_BYTES_MAX {
            let [current, before] = self.files();
            match std::fs::rename(&current, before) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => *open = (Some(File::options().append(true).create(true).open(current)?), 0),
            }
        }
        if let (Some(file), bytes) = &mut *open {
            file.write_all(&claim.0.to_le_bytes())?;
            *bytes += 8;
        }
        Ok(())
    }

    /// The claims in it.
    pub(super) fn read(&self) -> Vec<ClaimId> {
        let texts = self.files().map(|path| std::fs::read(path).unwrap_or_default());
        let claims = texts.iter().flat_map(|text| text.as_chunks::<8>().0);
        claims.map(|bytes| ClaimId(u64::from_le_bytes(*bytes))).collect()
    }

    fn files(&self) -> [PathBuf; 2] {
        [self.folder.join("launched"), self.folder.join("launched.before")]
    }
}

/// When a process began, in clock ticks since boot (proc(5), field 22); `None` when it is gone.
#[must_use]
pub fn start_ticks(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; what follows the last one is regular.
    text.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// Milliseconds since the machine started, sleep included.
pub(super) fn boot_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u8) -> Record {
        Record { version: VERSION, process: None, nonce: [number; 16], memory_enforced: false, launch: None }
    }

    #[test]
    fn the_last_whole_record_counts_and_the_file_does_not_grow() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("record");
        assert!(Record::read(&path).is_none());
        let mut file = RecordFile::new(&path);
        for round in 0..10_000_u32 {
            let number = u8::try_from(round % 251).expect("fits");
            file.write(&record(number)).expect("write");
            if round % 100 == 0 {
                assert_eq!(Record::read(&path).expect("a record").nonce, [number; 16]);
            }
            assert!(std::fs::metadata(&path).expect("stat").len() <= RECORDS_BYTES_MAX);
        }
        let whole = std::fs::read(&path).expect("read");
        for lost in 1..40 {
            std::fs::write(&path, &whole[..whole.len() - lost]).expect("cut");
            assert_eq!(Record::read(&path).expect("the one before").nonce, [(9_998 % 251) as u8; 16]);
        }
        let mut next = RecordFile::new(&path);
        next.write(&record(7)).expect("write");
        assert_eq!(Record::read(&path).expect("a record").nonce, [7; 16]);
    }

    #[test]
    fn a_record_of_a_slot_whose_folder_was_made_anew_is_found() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("record");
        let mut file = RecordFile::new(&path);
        file.write(&record(1)).expect("write");
        std::fs::remove_file(&path).expect("remove");
        file.write(&record(2)).expect("write");
        assert_eq!(Record::read(&path).expect("a record").nonce, [2; 16]);
        let bad = std::fs::read(&path).map(|mut text| {
            text.extend_from_slice(b"{\"version\":1}\n");
            text
        });
        std::fs::write(&path, bad.expect("read")).expect("write");
        assert!(Record::read(&path).is_none(), "a line that says nothing is not taken for an older one");
    }
}
