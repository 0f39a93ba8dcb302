//! Class `file`: an output in a folder, judged and linked by descriptor.
//!
//! ## Flow
//! 1. [`OutputFile::prepare`] makes the file before the payload starts, so that we own it: only a file's owner may take
//!    a lease, and only a non-owner can't make it writable again.
//! 2. The payload writes it, or renames a file of its own over it.
//! 3. [`OutputFile::commit`], when the payload is gone: *open* without opening (O_PATH), *judge* the inode, take a
//!    read *lease* as the proof that no writer is left, make it 0444, *link* that inode into the stage folder, take
//!    the payload's name away. What can't be linked safely is copied, and says so.
//!
//! ## Guarantees
//! The payload's folder is reached by descriptor and one component deep, no link is followed, nothing is opened before
//! it is known to be a regular file, and after an error the stage folder is as it was.
//!
//! ## Assumptions
//! The payload's processes are gone. A process that lives on can't slip a write past the lease unless it passed the
//! permission check of its open(2) before the mode changed and sleeps until the lease is given back; the pilot kills
//! every process of a slot before it commits. Consumers have another uid or a read-only mount.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fchmod, fstat, futimens, mknodat, openat, openat2,
    statat, unlinkat,
};
use rustix::io::Errno;
use rustix::path::Arg;

use serde::{Deserialize, Serialize};

use crate::copy::{Linked, copy, is_memory, link};
use crate::memory::{UNTOUCHED, is_untouched, proc_path, reopen, take_pages, within};
use crate::reader::{allocated, size};
use crate::unwritten::Unwritten;
use crate::{CommitError, CommitReason, Kind, StageName, WhyCopied};

/// An output file that was made for a payload. Written down, it can be committed by another process of its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    name: StageName,
    device: u64,
    inode: u64,
}

/// Why an output file could not be made.
#[derive(Debug, thiserror::Error)]
#[error("make output \"{name}\"")]
pub struct PrepareError {
    /// Which output.
    pub name: StageName,
    /// The kernel's answer; `AlreadyExists` when the slot was not clean.
    #[source]
    pub source: std::io::Error,
}

/// A committed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStage {
    /// Its size.
    pub bytes: u64,
    /// Whether its bytes were moved.
    pub how: Landing,
}

/// How a file came to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landing {
    /// The same inode: no byte was moved.
    Linked,
    /// A copy of our own.
    Copied(WhyCopied),
}

/// What the payload left, as its inode says.
pub(crate) struct Judged {
    /// O_PATH: not opened yet.
    pub(crate) path: OwnedFd,
    pub(crate) stat: Stat,
}

impl OutputFile {
    /// Makes an empty file `name` in `dir` with exactly the permission bits `mode` (0666 where the payload has another
    /// uid). Its times are set to the epoch, which is how a later look knows that nobody wrote it.
    ///
    /// # Errors
    /// When something of that name is there, or the folder can't be written.
    pub fn prepare(dir: BorrowedFd<'_>, name: &StageName, mode: u32) -> Result<Self, PrepareError> {
        let failed = |errno: Errno| PrepareError { name: name.clone(), source: errno.into() };
        // Not open(2): a writable descriptor of ours, inherited by a process that is just being forked, would look
        // like a writer.
        mknodat(dir, name.as_str(), FileType::RegularFile, Mode::from_raw_mode(0o600), 0).map_err(failed)?;
        let finish = || {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let fd = openat(dir, name.as_str(), flags, Mode::empty())?;
            fchmod(&fd, Mode::from_raw_mode(mode & 0o777))?;
            futimens(&fd, &UNTOUCHED)?;
            fstat(&fd)
        };
        let stat = finish().map_err(|errno| {
            let _ = unlinkat(dir, name.as_str(), AtFlags::empty());
            failed(errno)
        })?;
        Ok(Self { name: name.clone(), device: stat.st_dev, inode: stat.st_ino })
    }

    /// Its name in the payload's folder.
    #[must_use]
    pub fn name(&self) -> &StageName {
        &self.name
    }

    /// Whether nobody has written it, or put another one in its place.
    #[must_use]
    pub fn is_untouched(&self, out_dir: BorrowedFd<'_>) -> bool {
        let stat = statat(out_dir, self.name.as_str(), AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| stat.st_size == 0 && is_untouched(&stat))
    }

    /// Makes what the payload left under this name in `out_dir` the stage `into_name` in `into_dir`.
    ///
    /// # Errors
    /// See [`CommitReason`]. `into_dir` is as before; what the payload left may have lost its write permission.
    pub fn commit(
        &self,
        out_dir: BorrowedFd<'_>,
        max_bytes: u64,
        into_dir: BorrowedFd<'_>,
        into_name: &StageName,
    ) -> Result<FileStage, CommitError> {
        self.judge(out_dir, max_bytes)
            .and_then(|judged| self.land(&judged, out_dir, max_bytes, into_dir, into_name))
            .map_err(|reason| CommitError { output: self.name.clone(), reason })
    }

    fn judge(&self, out_dir: BorrowedFd<'_>, max_bytes: u64) -> Result<Judged, CommitReason> {
        let path = match open_path(out_dir, &self.name) {
            Err(Errno::NOENT) => return Err(CommitReason::NotProduced),
            other => other.map_err(CommitReason::io("open it"))?,
        };
        let stat = fstat(&path).map_err(CommitReason::io("look at it"))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Symlink => return Err(CommitReason::Symlink),
            other => return Err(CommitReason::NotRegular(Kind::from(other))),
        }
        sole_name(&stat)?;
        let prepared = stat.st_dev == self.device && stat.st_ino == self.inode;
        if prepared && size(&stat) == 0 && is_untouched(&stat) {
            return Err(CommitReason::NotProduced);
        }
        within(size(&stat), max_bytes)?;
        Ok(Judged { path, stat })
    }

    fn land(
        &self,
        judged: &Judged,
        out_dir: BorrowedFd<'_>,
        max_bytes: u64,
        into_dir: BorrowedFd<'_>,
        into_name: &StageName,
    ) -> Result<FileStage, CommitReason> {
        let ours = judged.stat.st_uid == rustix::process::geteuid().as_raw();
        let file = open_judged(judged, ours)?;
        let unwritten = Unwritten::begin(&file)?;
        sole_name(&unwritten.before)?;
        let bytes = size(&unwritten.before);
        within(bytes, max_bytes)?;
        let how = if !ours {
            Landing::Copied(WhyCopied::OtherOwner)
        } else if !unwritten.is_leased() {
            Landing::Copied(WhyCopied::NoLease)
        } else {
            unwritten.make_read_only()?;
            match link(file.as_fd(), into_dir, into_name)? {
                Linked::Yes => Landing::Linked,
                Linked::No(why) => Landing::Copied(why),
            }
        };
        let bytes = match how {
            Landing::Linked => bytes,
            Landing::Copied(_) => copy(file.as_fd(), into_dir, into_name, max_bytes)?,
        };
        let settled = settle(&unwritten, how).and_then(|()| self.take_away(&file, out_dir, how));
        settled.map(|()| FileStage { bytes, how }).inspect_err(|_| {
            let _ = unlinkat(into_dir, into_name.as_str(), AtFlags::empty());
        })
    }

    /// Takes the payload's name for it away. For a linked file that is part of the promise: the folder may be lent
    /// again. What was copied may stay; the slot's cleaning removes it.
    fn take_away(&self, file: &OwnedFd, out_dir: BorrowedFd<'_>, how: Landing) -> Result<(), CommitReason> {
        let removed = unlinkat(out_dir, self.name.as_str(), AtFlags::empty());
        if how != Landing::Linked {
            return Ok(());
        }
        removed.map_err(CommitReason::io("take its name from the payload's folder"))?;
        let after = fstat(file).map_err(CommitReason::io("look at it"))?;
        sole_name(&after)
    }
}

/// Whether nobody wrote, or gave it another name, while we worked.
fn settle(unwritten: &Unwritten<'_>, how: Landing) -> Result<(), CommitReason> {
    let after = unwritten.end()?;
    match how {
        // Ours and the payload's: a third name is one that we can't take away.
        Landing::Linked if after.st_nlink != 2 => {
            Err(CommitReason::HardLinked { links: links(&after).saturating_sub(1) })
        }
        _ => Ok(()),
    }
}

/// One component below `dir`, no link followed, no mount crossed, nothing opened.
pub(crate) fn open_path(dir: BorrowedFd<'_>, name: &StageName) -> rustix::io::Result<OwnedFd> {
    open_entry(dir, name.as_str())
}

/// The same for a name that is no stage name; it must be one component.
pub(crate) fn open_entry<P: Arg + Copy>(dir: BorrowedFd<'_>, name: P) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH | ResolveFlags::NO_XDEV;
    match openat2(dir, name, flags, Mode::empty(), resolve) {
        // Before Linux 5.6, or hidden by a seccomp profile. A name is one component, so O_NOFOLLOW says the same but
        // for mounts, and a payload without capabilities mounts nothing here.
        Err(Errno::NOSYS | Errno::PERM) => openat(dir, name, flags, Mode::empty()),
        other => other,
    }
}

/// Opens a regular file for reading; first fills its holes when it is memory of our own.
pub(crate) fn open_judged(judged: &Judged, ours: bool) -> Result<OwnedFd, CommitReason> {
    let path = judged.path.as_fd();
    if ours && judged.stat.st_mode & 0o600 != 0o600 {
        // A umask or a chmod of the payload's (same uid) must not shut the owner out.
        rustix::fs::chmod(proc_path(path), Mode::from_raw_mode(0o600))
            .map_err(CommitReason::io("make it readable"))?;
    }
    let file = reopen(path, OFlags::RDONLY).map_err(CommitReason::io("open it"))?;
    if ours && is_memory(file.as_fd())? && allocated(&judged.stat) < size(&judged.stat) {
        let writable = reopen(path, OFlags::RDWR).map_err(CommitReason::io("open it"))?;
        if take_pages(writable.as_fd(), size(&judged.stat)).is_err() {
            let now = statat(&file, "", AtFlags::EMPTY_PATH).unwrap_or(judged.stat);
            return Err(CommitReason::Sparse { bytes: size(&judged.stat), allocated: allocated(&now) });
        }
    }
    Ok(file)
}

fn sole_name(stat: &Stat) -> Result<(), CommitReason> {
    match links(stat) {
        1 => Ok(()),
        0 => Err(CommitReason::NotProduced),
        links => Err(CommitReason::HardLinked { links }),
    }
}

pub(crate) fn links(stat: &Stat) -> usize {
    usize::try_from(stat.st_nlink).unwrap_or(usize::MAX)
}
