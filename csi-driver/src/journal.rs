//! What the driver keeps on disk: one record per volume, its key, its tenants' folders, and the lock that says it is alone.
//!
//! ```text
//!   <state>/            0700
//!     lock              held by the driver that lives
//!     key               32 random bytes, made once
//!     volumes/<h>.json  the record of a volume; h is a hash of its id
//!     tenants/<t>/      a tenant's own folder; t is a keyed hash
//! ```
//! A record is there whole or not at all. One that says which folder a volume has is on the disk before that
//! folder has its name, so not even a power cut leaves a folder that nobody knows.
//!
//! **Must not know:** what records are good for.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, fdatasync, flock, fsync, mkdirat, openat, renameat,
    unlinkat,
};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::target::FOLDER;
use crate::tenant::{Key, hex};
use crate::volume::{RECORD_VERSION, Volume, VolumeId};

/// More than a record with the longest path that there can be.
const RECORD_MAX: u64 = 64 << 10;
/// What a write(2) to a file puts there whole or not at all, whoever is killed.
const PAGE: usize = 4096;
/// What is not whole yet, or not there any more.
const UNFINISHED: &str = ".new-";
/// A tenant's folder that is being removed.
pub(crate) const GONE: &str = ".gone-";

/// Why the state folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Some step failed.
    #[error("{step}: {source}")]
    Io {
        /// What was being done.
        step: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Two drivers on one folder.
    #[error("another csi-driver works with this state folder; end it, or choose another with --state-dir")]
    InUse,
    /// A record of a later version of this program.
    #[error("record {0} was written by a newer csi-driver; run that one, or remove all volumes first")]
    Newer(String),
}

/// The state folder, open and locked.
#[derive(Debug)]
pub struct Journal {
    volumes: OwnedFd,
    tenants: OwnedFd,
    _lock: OwnedFd,
}

/// What a state folder has.
#[derive(Debug)]
pub struct State {
    /// The folder.
    pub journal: Journal,
    /// The key for tenants' names.
    pub key: Key,
    /// All volumes.
    pub volumes: Vec<Volume>,
    /// Names of records that can't be read: they are left where they are.
    pub unreadable: Vec<String>,
}

impl Journal {
    /// Opens a state folder, makes what is missing, removes what was never finished.
    ///
    /// # Errors
    /// When it can't be used.
    pub fn open(path: &Path) -> Result<State, StateError> {
        let step = |step: &str| {
            let step = format!("{step} {}", path.display());
            move |error: io::Error| StateError::Io { step, source: error }
        };
        std::fs::create_dir_all(path).map_err(step("make the state folder"))?;
        let root = openat(CWD, path, FOLDER - OFlags::NOFOLLOW, Mode::empty())
            .map_err(io::Error::from)
            .map_err(step("open the state folder"))?;
        rustix::fs::fchmod(&root, Mode::RWXU).map_err(io::Error::from).map_err(step("close to others"))?;
        let lock = openat(
            &root,
            "lock",
            OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::RUSR | Mode::WUSR,
        )
        .map_err(io::Error::from)
        .map_err(step("open the lock in"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(StateError::InUse),
            Err(errno) => return Err(step("lock")(errno.into())),
        }
        let volumes = folder(root.as_fd(), "volumes").map_err(step("make folders in"))?;
        let tenants = folder(root.as_fd(), "tenants").map_err(step("make folders in"))?;
        let key = key(root.as_fd()).map_err(step("make the key in"))?;
        let journal = Self { volumes, tenants, _lock: lock };
        let (volumes, unreadable) = journal.load(path)?;
        Ok(State { journal, key, volumes, unreadable })
    }

    fn load(&self, path: &Path) -> Result<(Vec<Volume>, Vec<String>), StateError> {
        let step = |source: io::Error| StateError::Io {
            step: format!("read records in {}", path.display()),
            source,
        };
        let (mut volumes, mut unreadable) = (Vec::new(), Vec::new());
        for name in names(self.volumes.as_fd()).map_err(step)? {
            if name.starts_with(UNFINISHED) {
                unlinkat(&self.volumes, &name, AtFlags::empty()).map_err(|errno| step(errno.into()))?;
                continue;
            }
            match read_record(self.volumes.as_fd(), &name).map_err(step)? {
                // Killed between making the file and writing it: nothing else was made.
                None if is_empty(self.volumes.as_fd(), &name).map_err(step)? => {
                    unlinkat(&self.volumes, &name, AtFlags::empty()).map_err(|errno| step(errno.into()))?;
                }
                Some(volume) if volume.version > RECORD_VERSION => return Err(StateError::Newer(name)),
                // Under its own name, so that nothing is known twice.
                Some(volume) if record_name(&volume.id) == name => volumes.push(volume),
                _ => unreadable.push(name),
            }
        }
        Ok((volumes, unreadable))
    }

    /// Writes a volume's record. When it returns, no end of this process can undo it; with `durable`, no end of the machine,
    /// if the name of a record that was there before is on the disk ([`Journal::settle`]).
    ///
    /// A record of one page is written in place, in one call, which a kill does not cut in two: replacing a file frees a block for
    /// each volume, and there are disks that are told of each (mount option `discard`) and take milliseconds for it.
    ///
    /// # Errors
    /// When it can't be written; then none is left, or the one before.
    pub fn write(&self, volume: &Volume, durable: bool) -> io::Result<()> {
        let name = record_name(&volume.id);
        let text = serde_json::to_vec(volume).map_err(io::Error::other)?;
        let there = self.read(&volume.id)?;
        if text.len() > PAGE || there.as_ref().is_some_and(|there| !is_step_to(there, volume)) {
            return self.replace(&name, &text, durable);
        }
        let mut written = put(self.volumes.as_fd(), &name, &text, durable);
        if durable && there.is_none() {
            written = written.and_then(|()| self.settle());
        }
        if written.is_err() && there.is_none() {
            // It may not even be there.
            let _ = unlinkat(&self.volumes, &name, AtFlags::empty());
        }
        written
    }

    fn replace(&self, name: &str, text: &[u8], durable: bool) -> io::Result<()> {
        let fresh = format!("{UNFINISHED}{name}");
        let written = put(self.volumes.as_fd(), &fresh, text, durable)
            .and_then(|()| renameat(&self.volumes, &fresh, &self.volumes, name).map_err(io::Error::from));
        if written.is_err() {
            // It may not even be there.
            let _ = unlinkat(&self.volumes, &fresh, AtFlags::empty());
        }
        written?;
        if durable { self.settle() } else { Ok(()) }
    }

    /// Waits until the names of all records that are there are on the disk, which a file system without a journal does not do with
    /// a file's bytes.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn settle(&self) -> io::Result<()> {
        Ok(fsync(&self.volumes)?)
    }

    /// Reads a volume's record; none if there is none, or none that is understood.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn read(&self, id: &VolumeId) -> io::Result<Option<Volume>> {
        match read_record(self.volumes.as_fd(), &record_name(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other,
        }
    }

    /// Forgets a volume.
    ///
    /// # Errors
    /// When its record can't be removed. That there is none is no error.
    pub fn forget(&self, id: &VolumeId) -> io::Result<()> {
        match unlinkat(&self.volumes, record_name(id), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The folder of all tenants.
    #[must_use]
    pub fn tenants(&self) -> BorrowedFd<'_> {
        self.tenants.as_fd()
    }

    /// Makes a tenant's folder if it is not there, and opens it.
    ///
    /// # Errors
    /// When that can't be done.
    pub fn tenant(&self, name: &str) -> io::Result<OwnedFd> {
        folder(self.tenants.as_fd(), name)
    }
}

/// What is in a folder, by name.
///
/// # Errors
/// When it can't be read.
pub(crate) fn names(folder: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        // All names that the driver gives are text.
        if let Ok(name) = entry.file_name().to_str()
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn is_empty(folder: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    Ok(rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?.st_size == 0)
}

/// Whether the second is the first with its birth, so that its text is longer and covers all of the first's.
fn is_step_to(there: &Volume, next: &Volume) -> bool {
    there.birth.is_none() && next.birth.is_some() && Volume { birth: next.birth, ..there.clone() } == *next
}

/// Writes a file from its beginning, in one call if it is short.
fn put(folder: BorrowedFd<'_>, name: &str, text: &[u8], durable: bool) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = File::from(openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(text)?;
    if durable {
        fdatasync(&file)?;
    }
    Ok(())
}

fn record_name(id: &VolumeId) -> String {
    format!("{}.json", hex(&Sha256::digest(id.as_str().as_bytes())[..16]))
}

fn read_record(volumes: BorrowedFd<'_>, name: &str) -> io::Result<Option<Volume>> {
    let file = File::from(openat(
        volumes,
        name,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )?);
    let mut text = Vec::new();
    file.take(RECORD_MAX).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text).ok())
}

/// Opens a folder of the driver's own; makes it if it isn't there.
pub(crate) fn folder(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    Ok(openat(parent, name, FOLDER, Mode::empty())?)
}

fn key(root: BorrowedFd<'_>) -> io::Result<Key> {
    let mut bytes = [0; 32];
    match openat(root, "key", OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(file) => {
            File::from(file).read_exact(&mut bytes)?;
            Ok(Key(bytes))
        }
        Err(Errno::NOENT) => {
            fill_random(&mut bytes)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let mut file = File::from(openat(root, ".new-key", flags, Mode::RUSR | Mode::WUSR)?);
            file.write_all(&bytes)?;
            fsync(&file)?;
            renameat(root, ".new-key", root, "key")?;
            Ok(Key(bytes))
        }
        Err(errno) => Err(errno.into()),
    }
}

/// 128 random bits, as 32 hexadecimal digits.
///
/// # Errors
/// When the kernel has none.
pub(crate) fn random_name() -> io::Result<String> {
    let mut bytes = [0; 16];
    fill_random(&mut bytes)?;
    Ok(hex(&bytes))
}

fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    // So few bytes come whole.
    match rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty())? {
        got if got == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::volume;

    #[test]
    fn records_are_found_again_and_forgotten_ones_are_not() {
        let root = tempfile::tempdir().expect("tempdir");
        let state = Journal::open(root.path()).expect("open");
        let (one, two) = (volume("one"), volume("two"));
        state.journal.write(&one, true).expect("write");
        state.journal.write(&two, false).expect("write");
        state.journal.forget(&one.id).expect("forget");
        state.journal.forget(&one.id).expect("forget again");
        assert!(matches!(Journal::open(root.path()), Err(StateError::InUse)));
        let key = state.key.0;
        drop(state);
        let again = Journal::open(root.path()).expect("open again");
        assert_eq!((again.volumes, again.key.0), (vec![two], key));
    }

    #[test]
    fn a_record_is_replaced_by_whatever_comes_and_one_that_is_long_too() {
        let root = tempfile::tempdir().expect("tempdir");
        let mut state = Journal::open(root.path()).expect("open");
        let born = volume("one");
        let unborn = Volume { birth: None, ..born.clone() };
        let short = Volume { pod: "p".into(), aside: "a".into(), ..born.clone() };
        let long = Volume { pod: "p".repeat(5000), ..born.clone() };
        for next in [&unborn, &born, &short, &unborn, &born, &long, &short, &long, &unborn, &born] {
            state.journal.write(next, false).expect("write");
            assert_eq!(state.journal.read(&next.id).expect("read").as_ref(), Some(next));
            drop(state);
            state = Journal::open(root.path()).expect("open again");
            assert_eq!(&state.volumes, std::slice::from_ref(next));
        }
    }

    #[test]
    fn what_is_half_written_is_removed_and_what_is_not_understood_is_left_alone() {
        let root = tempfile::tempdir().expect("tempdir");
        let state = Journal::open(root.path()).expect("open");
        state.journal.write(&volume("one"), true).expect("write");
        drop(state);
        let volumes = root.path().join("volumes");
        std::fs::write(volumes.join(".new-abc.json"), "{").expect("write");
        std::fs::write(volumes.join("abc.json"), "{").expect("write");
        std::fs::write(volumes.join("empty.json"), "").expect("write");
        let state = Journal::open(root.path()).expect("open");
        assert_eq!(
            (state.volumes.len(), state.unreadable.as_slice()),
            (1, ["abc.json".to_owned()].as_slice())
        );
        assert!(volumes.join("abc.json").exists() && !volumes.join(".new-abc.json").exists());
        assert!(!volumes.join("empty.json").exists());
    }

    #[test]
    fn a_record_of_a_newer_driver_stops_an_older_one() {
        let root = tempfile::tempdir().expect("tempdir");
        let state = Journal::open(root.path()).expect("open");
        let newer = Volume { version: RECORD_VERSION + 1, ..volume("one") };
        state.journal.write(&newer, true).expect("write");
        drop(state);
        assert!(matches!(Journal::open(root.path()), Err(StateError::Newer(_))));
    }
}
