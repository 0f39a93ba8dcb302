//! Growing one tree from another, entry by entry, each judged by descriptor.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fchmod, fstat, mkdirat, openat, openat2,
    readlinkat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::{FolderLimits, FolderStage};
use crate::copy::{Linked, fill, link_entry};
use crate::file::{Judged, links, open_entry, open_judged};
use crate::memory::{proc_path, reopen, within};
use crate::reader::{read_only, size};
use crate::unwritten::Unwritten;
use crate::{CommitReason, WhyCopied};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    /// From a payload's folder, which is not to be trusted.
    Commit,
    /// From a stage.
    Lend,
}

/// The entry at fault and why.
type Fault = (PathBuf, CommitReason);

pub(super) struct Tree {
    limits: FolderLimits,
    doing: Doing,
    pub(super) stage: FolderStage,
    /// Files with several names: how many of them were met, of how many.
    names: BTreeMap<(u64, u64), (usize, usize, PathBuf)>,
    /// Symbolic links, to be judged when the tree stands.
    links: Vec<PathBuf>,
}

impl Tree {
    pub(super) fn new(limits: FolderLimits, doing: Doing) -> Self {
        Self { limits, doing, stage: FolderStage::default(), names: BTreeMap::new(), links: Vec::new() }
    }

    pub(super) fn grow(&mut self, from: BorrowedFd<'_>, into: BorrowedFd<'_>) -> Result<(), Fault> {
        self.folder(from, into, Path::new(""), 0)?;
        // A name that was not met lies elsewhere, where someone may still write.
        match self.names.values().find(|(met, names, _)| self.doing == Doing::Commit && met != names) {
            Some((_, names, path)) => Err((path.clone(), CommitReason::HardLinked { links: *names })),
            None => Ok(()),
        }
    }

    fn folder(
        &mut self,
        from: BorrowedFd<'_>,
        into: BorrowedFd<'_>,
        path: &Path,
        depth: usize,
    ) -> Result<(), Fault> {
        let here = |reason| (path.to_path_buf(), reason);
        let max = self.limits.max_depth;
        if depth > max {
            return Err(here(CommitReason::TooDeep { max }));
        }
        for name in self.entries(from).map_err(here)? {
            let path = path.join(OsStr::from_bytes(name.to_bytes()));
            let failed = |reason| (path.clone(), reason);
            let entry =
                open_entry(from, name.as_c_str()).map_err(CommitReason::io("open it")).map_err(failed)?;
            let stat = fstat(&entry).map_err(CommitReason::io("look at it")).map_err(failed)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let below = open_folder(entry.as_fd(), &stat, self.doing).map_err(failed)?;
                    let made = make_folder(into, &name).map_err(failed)?;
                    self.folder(below.as_fd(), made.as_fd(), &path, depth + 1)?;
                }
                FileType::RegularFile => {
                    self.file(Judged { path: entry, stat }, from, into, &name, &path).map_err(failed)?;
                }
                FileType::Symlink => {
                    let target = readlinkat(&entry, "", Vec::new());
                    target
                        .and_then(|target| symlinkat(&target, into, name.as_c_str()))
                        .map_err(CommitReason::io("make its link"))
                        .map_err(failed)?;
                    self.links.push(path);
                }
                other => return Err(failed(CommitReason::NotRegular(other.into()))),
            }
        }
        fchmod(into, Mode::from_raw_mode(0o555)).map_err(CommitReason::io("make it read-only")).map_err(here)
    }

    /// All names, taken before anything is removed: a folder that changes under its reader skips some.
    fn entries(&mut self, folder: BorrowedFd<'_>) -> Result<Vec<CString>, CommitReason> {
        let mut names = Vec::new();
        for entry in Dir::read_from(folder).map_err(CommitReason::io("list it"))? {
            let entry = entry.map_err(CommitReason::io("list it"))?;
            let name = entry.file_name();
            if [&b"."[..], b".."].contains(&name.to_bytes()) {
                continue;
            }
            self.stage.entries += 1;
            if self.stage.entries > self.limits.max_entries {
                return Err(CommitReason::TooManyEntries { max: self.limits.max_entries });
            }
            names.push(name.to_owned());
        }
        Ok(names)
    }

    fn file(
        &mut self,
        judged: Judged,
        from: BorrowedFd<'_>,
        into: BorrowedFd<'_>,
        name: &CStr,
        path: &Path,
    ) -> Result<(), CommitReason> {
        let left = self.limits.max_bytes.saturating_sub(self.stage.bytes);
        self.within_all(size(&judged.stat))?;
        let landed = match self.doing {
            Doing::Lend => match link_entry(judged.path.as_fd(), into, name) {
                Ok(Linked::Yes) => Landed { bytes: size(&judged.stat), copied: None },
                Ok(Linked::No(why)) => {
                    let file =
                        reopen(judged.path.as_fd(), OFlags::RDONLY).map_err(CommitReason::io("open it"))?;
                    Landed { bytes: copy_entry(file.as_fd(), into, name, u64::MAX)?, copied: Some(why) }
                }
                Err(errno) => return Err(CommitReason::io("link it")(errno)),
            },
            Doing::Commit => {
                let names = links(&judged.stat);
                if names > 1 {
                    let inode = (judged.stat.st_dev, judged.stat.st_ino);
                    self.names.entry(inode).or_insert((0, names, path.to_path_buf())).0 += 1;
                }
                land(&judged, from, into, name, left)?
            }
        };
        self.within_all(landed.bytes)?;
        self.stage.bytes += landed.bytes;
        match landed.copied {
            None => self.stage.linked += 1,
            Some(why) => {
                self.stage.copied += 1;
                self.stage.copied_bytes += landed.bytes;
                self.stage.why_copied = Some(why);
            }
        }
        Ok(())
    }

    fn within_all(&self, more: u64) -> Result<(), CommitReason> {
        within(self.stage.bytes.saturating_add(more), self.limits.max_bytes)
    }

    /// Follows every link in the finished tree. One that leads nowhere may stay: nothing will ever be there.
    pub(super) fn judge_links(&self, root: BorrowedFd<'_>) -> Result<(), Fault> {
        if self.doing == Doing::Lend {
            return Ok(());
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        for link in &self.links {
            match openat2(root, link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Ok(_) | Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {}
                Err(Errno::XDEV) => return Err((link.clone(), CommitReason::LeadsOut)),
                Err(errno) => return Err((link.clone(), CommitReason::io("follow it")(errno))),
            }
        }
        Ok(())
    }
}

struct Landed {
    bytes: u64,
    copied: Option<WhyCopied>,
}

/// A payload's file becomes one of ours: leased and linked, or copied.
fn land(
    judged: &Judged,
    from: BorrowedFd<'_>,
    into: BorrowedFd<'_>,
    name: &CStr,
    max_bytes: u64,
) -> Result<Landed, CommitReason> {
    let ours = judged.stat.st_uid == rustix::process::geteuid().as_raw();
    let file = open_judged(judged, ours)?;
    let unwritten = Unwritten::begin(&file)?;
    let bytes = size(&unwritten.before);
    within(bytes, max_bytes)?;
    let why = match (ours, unwritten.is_leased(), links(&unwritten.before)) {
        (false, ..) => Some(WhyCopied::OtherOwner),
        (true, false, _) => Some(WhyCopied::NoLease),
        (true, true, 1) => link_it(&unwritten, into, name)?,
        (true, true, _) => Some(WhyCopied::ManyNames),
    };
    let bytes = match why {
        None => bytes,
        Some(_) => copy_entry(file.as_fd(), into, name, max_bytes)?,
    };
    unwritten.end()?;
    if why.is_none() {
        // Ours must be its only name: through another its owner could make it writable again.
        unlinkat(from, name, AtFlags::empty())
            .map_err(CommitReason::io("take its name from the payload's folder"))?;
        let left = links(&fstat(&file).map_err(CommitReason::io("look at it"))?);
        if left != 1 {
            return Err(CommitReason::HardLinked { links: left });
        }
    }
    Ok(Landed { bytes, copied: why })
}

fn link_it(
    unwritten: &Unwritten<'_>,
    into: BorrowedFd<'_>,
    name: &CStr,
) -> Result<Option<WhyCopied>, CommitReason> {
    unwritten.make_read_only()?;
    match link_entry(unwritten.file.as_fd(), into, name).map_err(CommitReason::io("link it"))? {
        Linked::Yes => Ok(None),
        Linked::No(why) => Ok(Some(why)),
    }
}

/// The tree has no name yet, so that its files may have theirs at once.
fn copy_entry(
    file: BorrowedFd<'_>,
    into: BorrowedFd<'_>,
    name: &CStr,
    max_bytes: u64,
) -> Result<u64, CommitReason> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy =
        openat(into, name, flags, Mode::from_raw_mode(0o600)).map_err(CommitReason::io("make its copy"))?;
    let bytes = fill(file, copy.as_fd(), max_bytes)?;
    let stat = fstat(file).map_err(CommitReason::io("look at it"))?;
    fchmod(&copy, read_only(&stat)).map_err(CommitReason::io("make its copy read-only"))?;
    Ok(bytes)
}

fn make_folder(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, CommitReason> {
    mkdirat(dir, name, Mode::from_raw_mode(0o700)).map_err(CommitReason::io("make its folder"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat(dir, name, flags, Mode::empty()).map_err(CommitReason::io("open its folder"))
}

/// Opens a folder that was judged, for listing.
pub(super) fn open_folder(path: BorrowedFd<'_>, stat: &Stat, doing: Doing) -> Result<OwnedFd, CommitReason> {
    let ours = stat.st_uid == rustix::process::geteuid().as_raw();
    if doing == Doing::Commit && ours && stat.st_mode & 0o700 != 0o700 {
        // A umask or a chmod of the payload's (same uid), or a copy of a stage's folder, must not shut the owner out.
        rustix::fs::chmod(proc_path(path), Mode::from_raw_mode(0o700))
            .map_err(CommitReason::io("make it readable"))?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(path, ".", flags, Mode::empty()).map_err(CommitReason::io("open it"))
}

/// Trees deeper than we make are not ours to remove.
const REMOVE_DEPTH_MAX: usize = 256;

pub(super) fn remove(dir: BorrowedFd<'_>, name: &CStr, depth: usize) -> rustix::io::Result<()> {
    if depth > REMOVE_DEPTH_MAX {
        return Err(Errno::LOOP);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = openat(dir, name, flags, Mode::empty())?;
    // It was made 0555, and its entries can't be removed then.
    fchmod(&folder, Mode::from_raw_mode(0o700))?;
    let names: Vec<CString> = Dir::read_from(&folder)?
        .filter_map(|entry| entry.ok().map(|entry| entry.file_name().to_owned()))
        .collect();
    for name in names.iter().filter(|name| ![&b"."[..], b".."].contains(&name.to_bytes())) {
        match unlinkat(&folder, name.as_c_str(), AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => remove(folder.as_fd(), name, depth + 1)?,
            other => other?,
        }
    }
    unlinkat(dir, name, AtFlags::REMOVEDIR)
}
