//! What another pilot must know to adopt a payload that runs in a slot: one small file for each slot.
//!
//! ```text
//!   about to start -> Record { nonce }      started -> Record { pid }      launch about to be sent -> Record { launch }      taken down -> no file
//! ```
//! It is written before the fact that it tells becomes possible: a launch that is not in the record never happened. The file
//! is replaced by rename, so whoever reads it finds a whole one. It lies in the state folder, which is memory: what would
//! survive the machine is of no use, since no payload does. For the same reason it is not synced.
//!
//! Beside the slots lies the list of claims that were launched lately, those of payloads that have ended included: between
//! the end of a payload and the moment at which its queue knows of it, the list is what says that it ran ([`LaunchLog`]).
//!
//! **Must not know:** sockets, containers, queues.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use pilot_core::{ClaimId, Epoch};
use serde::{Deserialize, Serialize};
use stage::OutputFile;
use wire::slot::{LaunchId, Nonce};

use crate::payload::Payload;

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
    pub(super) fn read(path: &Path) -> Option<Self> {
        let record: Self = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        (record.version == VERSION).then_some(record)
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, serde_json::to_vec(self)?)?;
        std::fs::rename(fresh, path)
    }

    pub(super) fn nonce(&self) -> Nonce {
        Nonce(self.nonce)
    }
}

impl Launched {
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
