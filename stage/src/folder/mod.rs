//! A folder as an output: a tree of files, folders and links that stay inside, committed as one stage.
//!
//! ## Flow
//! 1. [`prepare_folder`] makes the folder that the payload writes to.
//! 2. [`commit_folder`], when the payload is gone, builds a tree of its own beside the other stages, under a name that no
//!    stage has: folders are made, files leased and linked (or copied, where the pilot doesn't own them), links made anew.
//!    Then each link is followed, by the kernel, and must not leave the tree. Only then does the tree get its name.
//! 3. [`lend_folder`] builds the same tree of links for a consumer; [`remove_folder`] takes one away.
//!
//! ## Guarantees
//! As for a single file ([`crate::OutputFile`]): everything is reached by descriptor, one component at a time, no link
//! is followed, nothing is opened before it is known to be a regular file or a folder, and after an error the stage folder
//! is as it was. What was linked before an error is gone from the payload's folder.
//!
//! Links are judged in the finished tree and not in the payload's, because a link that stays inside may become one that
//! leaves when another on its way is exchanged; in our tree nobody exchanges anything.

mod tree;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, fchmod, fstat, futimens, mkdirat, openat, renameat,
    renameat_with, statat,
};
use rustix::io::Errno;

use crate::file::{PrepareError, open_path};
use crate::memory::{UNTOUCHED, is_untouched};
use crate::{CommitReason, StageName, WhyCopied};

use tree::{Doing, Tree};

/// What a folder may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FolderLimits {
    /// The most that all its files may have together.
    pub max_bytes: u64,
    /// The most files, folders and links.
    pub max_entries: u64,
    /// How deep folders may lie in folders; each level costs descriptors while it is looked at.
    pub max_depth: usize,
}

impl FolderLimits {
    /// A hundred thousand entries, 64 folders deep.
    #[must_use]
    pub fn new(max_bytes: u64) -> Self {
        Self { max_bytes, max_entries: 100_000, max_depth: 64 }
    }
}

/// A folder that was committed or lent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FolderStage {
    /// What its files have together.
    pub bytes: u64,
    /// Files, folders below it, and links.
    pub entries: u64,
    /// Files of which no byte was moved.
    pub linked: u64,
    /// Files that had to be copied.
    pub copied: u64,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Why the last of them was.
    pub why_copied: Option<WhyCopied>,
}

/// A folder that did not become a stage, or was not lent.
#[derive(Debug)]
pub struct FolderError {
    /// Which.
    pub name: StageName,
    /// The entry at fault, below it; empty for the folder itself.
    pub entry: PathBuf,
    /// Why.
    pub reason: CommitReason,
}

impl fmt::Display for FolderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "commit folder \"{}\": ", self.name)?;
        if !self.entry.as_os_str().is_empty() {
            // As a string literal: a name may hold a line break.
            write!(f, "{:?}: ", self.entry)?;
        }
        self.reason.fmt(f)
    }
}

impl std::error::Error for FolderError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.reason)
    }
}

/// Makes an empty folder `name` in `dir` with the permission bits `mode` for a payload to write to.
///
/// # Errors
/// When something of that name is there, or the folder can't be written.
pub fn prepare_folder(dir: BorrowedFd<'_>, name: &StageName, mode: u32) -> Result<(), PrepareError> {
    let failed = |errno: Errno| PrepareError { name: name.clone(), source: errno.into() };
    mkdirat(dir, name.as_str(), Mode::from_raw_mode(0o700)).map_err(failed)?;
    let finish = || {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = openat(dir, name.as_str(), flags, Mode::empty())?;
        fchmod(&fd, Mode::from_raw_mode(mode & 0o777))?;
        futimens(&fd, &UNTOUCHED)
    };
    finish().map_err(|errno| {
        let _ = rustix::fs::unlinkat(dir, name.as_str(), AtFlags::REMOVEDIR);
        failed(errno)
    })
}

/// Makes what the payload left as folder `name` in `out_dir` the stage `into_name` in `into_dir`: folders 0555, files 0444, programs 0555.
///
/// # Errors
/// See [`CommitReason`]. `into_dir` is as before.
pub fn commit_folder(
    out_dir: BorrowedFd<'_>,
    name: &StageName,
    limits: FolderLimits,
    into_dir: BorrowedFd<'_>,
    into_name: &StageName,
) -> Result<FolderStage, FolderError> {
    build(out_dir, name, into_dir, into_name, limits, Doing::Commit)
}

/// Makes the folder stage `name` of `stage_dir` appear in a consumer's folder as `as_name`: a tree of links. The consumer must
/// not own the files or must see the folder through a read-only mount.
///
/// # Errors
/// When there is no such stage, the name is taken in the consumer's folder, or the disk is full.
pub fn lend_folder(
    stage_dir: BorrowedFd<'_>,
    name: &StageName,
    in_dir: BorrowedFd<'_>,
    as_name: &StageName,
) -> Result<FolderStage, FolderError> {
    // It was judged when it was committed.
    let limits = FolderLimits { max_entries: u64::MAX, ..FolderLimits::new(u64::MAX) };
    lend_folder_within(stage_dir, name, in_dir, as_name, limits)
}

/// The same for one that somebody else committed.
pub(crate) fn lend_folder_within(
    stage_dir: BorrowedFd<'_>,
    name: &StageName,
    in_dir: BorrowedFd<'_>,
    as_name: &StageName,
    limits: FolderLimits,
) -> Result<FolderStage, FolderError> {
    build(stage_dir, name, in_dir, as_name, limits, Doing::Lend)
}

/// Removes a folder stage, or a consumer's tree of links to one.
///
/// # Errors
/// When it is not there, or is not ours to remove.
pub fn remove_folder(dir: BorrowedFd<'_>, name: &StageName) -> io::Result<()> {
    let name = std::ffi::CString::new(name.as_str())?;
    Ok(tree::remove(dir, &name, 0)?)
}

fn build(
    from_dir: BorrowedFd<'_>,
    name: &StageName,
    into_dir: BorrowedFd<'_>,
    into_name: &StageName,
    limits: FolderLimits,
    doing: Doing,
) -> Result<FolderStage, FolderError> {
    let whole = |reason| FolderError { name: name.clone(), entry: PathBuf::new(), reason };
    let from = open_root(from_dir, name, doing).map_err(whole)?;
    // No stage begins with a dot, and names are committed once: what is there is what a crash left.
    let building = std::ffi::CString::new(format!(".building.{into_name}"))
        .map_err(|_| whole(CommitReason::NotProduced))?;
    let _ = tree::remove(into_dir, &building, 0);
    let made = || -> Result<FolderStage, FolderError> {
        let io = |doing| move |errno: Errno| whole(CommitReason::io(doing)(errno));
        mkdirat(into_dir, &building, Mode::from_raw_mode(0o700)).map_err(io("make its folder"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let into = openat(into_dir, &building, flags, Mode::empty()).map_err(io("open its folder"))?;
        let mut tree = Tree::new(limits, doing);
        let grown = tree.grow(from.as_fd(), into.as_fd());
        grown.and_then(|()| tree.judge_links(into.as_fd())).map_err(|(entry, reason)| FolderError {
            name: name.clone(),
            entry,
            reason,
        })?;
        if doing == Doing::Commit && tree.stage.entries == 0 {
            let stat = fstat(&from).map_err(io("look at it"))?;
            if is_untouched(&stat) {
                return Err(whole(CommitReason::NotProduced));
            }
        }
        publish(into_dir, &building, into_name).map_err(whole)?;
        Ok(tree.stage)
    };
    made().inspect_err(|_| {
        let _ = tree::remove(into_dir, &building, 0);
    })
}

fn open_root(dir: BorrowedFd<'_>, name: &StageName, doing: Doing) -> Result<OwnedFd, CommitReason> {
    let path = match open_path(dir, name) {
        Err(Errno::NOENT) => return Err(CommitReason::NotProduced),
        other => other.map_err(CommitReason::io("open it"))?,
    };
    let stat = fstat(&path).map_err(CommitReason::io("look at it"))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => tree::open_folder(path.as_fd(), &stat, doing),
        FileType::Symlink => Err(CommitReason::Symlink),
        other => Err(CommitReason::NotFolder(other.into())),
    }
}

fn publish(dir: BorrowedFd<'_>, building: &std::ffi::CStr, name: &StageName) -> Result<(), CommitReason> {
    let renamed = match renameat_with(dir, building, dir, name.as_str(), RenameFlags::NOREPLACE) {
        // Not every file system has it (NFS); names are committed once, by us alone.
        Err(Errno::INVAL | Errno::NOSYS) => match statat(dir, name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => renameat(dir, building, dir, name.as_str()),
            Ok(_) => Err(Errno::EXIST),
            Err(errno) => Err(errno),
        },
        other => other,
    };
    renamed.map_err(|errno| match errno {
        Errno::EXIST | Errno::NOTEMPTY => CommitReason::Exists { name: name.clone() },
        errno => CommitReason::io("name it")(errno),
    })
}
