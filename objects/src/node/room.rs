//! Room in the cache: counts what is there and removes what was not used for longest. Everything here blocks.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::{OncePerNode, is_at, locked};
use crate::ObjectError;
use crate::blocking::Abandoned;

/// How often one looks for the lock, and how long that is: who holds it only reads a folder. Past that the bound may be
/// overrun a little, which is better than to wait for a process that was stopped.
const LOOKS: u32 = 400;
const BETWEEN: Duration = Duration::from_millis(25);

/// A file of the cache, as it is counted.
struct Entry {
    used: (i64, i64),
    bytes: u64,
    path: PathBuf,
}

impl OncePerNode {
    /// Removes what was not used for longest until `bytes` more fit.
    pub(super) fn make_room(&self, bytes: u64, abandoned: &Abandoned) -> Result<(), ObjectError> {
        let path = self.folder.join("room");
        let failed = |error: io::Error| ObjectError::local(&path, &error);
        let opened = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let lock = opened.map_err(failed)?;
        for _ in 0..LOOKS {
            if locked(&lock, FlockOperation::NonBlockingLockExclusive).map_err(failed)? {
                break;
            }
            abandoned.check().map_err(failed)?;
            std::thread::sleep(BETWEEN);
        }
        self.sweep()?;
        let unfinished: u64 = entries(&self.folder.join("unfinished"))?.iter().map(|entry| entry.bytes).sum();
        let mut content = entries(&self.folder.join("content"))?;
        content.sort_by_key(|entry| entry.used);
        let mut total = unfinished + content.iter().map(|entry| entry.bytes).sum::<u64>();
        for entry in content {
            if total.saturating_add(bytes) <= self.bytes_max {
                return Ok(());
            }
            if remove_unused(&entry.path) {
                total -= entry.bytes;
            }
        }
        if total.saturating_add(bytes) <= self.bytes_max {
            return Ok(());
        }
        Err(ObjectError::DiskFull { path: self.folder.to_path_buf() })
    }

    /// Removes what the dead have left.
    fn sweep(&self) -> Result<(), ObjectError> {
        for entry in entries(&self.folder.join("unfinished"))? {
            remove_if_unlocked(&entry.path, |_| true);
        }
        Ok(())
    }
}

/// Removes a content that nobody has open through us and that has no other name.
fn remove_unused(path: &Path) -> bool {
    remove_if_unlocked(path, |file| file.metadata().is_ok_and(|metadata| metadata.nlink() == 1))
}

/// Removes a file that nobody has locked, if it `may` go.
pub(super) fn remove_if_unlocked(path: &Path, may: impl Fn(&File) -> bool) -> bool {
    let Ok(file) = File::open(path) else { return false };
    matches!(locked(&file, FlockOperation::NonBlockingLockExclusive), Ok(true))
        && is_at(&file, path)
        && may(&file)
        && std::fs::remove_file(path).is_ok()
}

/// The files of a folder; what goes while one looks is left out.
fn entries(folder: &Path) -> Result<Vec<Entry>, ObjectError> {
    let failed = |error: io::Error| ObjectError::local(folder, &error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(metadata) = entry.metadata() else { continue };
        let used = (metadata.atime(), metadata.atime_nsec());
        found.push(Entry { used, bytes: metadata.len(), path: entry.path() });
    }
    Ok(found)
}

/// Sets the time of use by hand: many file systems are mounted so that reading doesn't.
pub(super) fn mark_used(file: &File) {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    };
    let _ = rustix::fs::futimens(file, &times);
}
