//! Removing the files that a payload left in the slot's writable folders.
//!
//! # Guarantees
//! - Nothing is followed: folders are entered by descriptor, through openat2(2) with `BENEATH`, `NO_SYMLINKS` and
//!   `NO_XDEV`, and a name is removed without looking through it.
//! - Only files of our own uid are removed. Others are the pilot's (a payload can't make one), and stay; a payload's
//!   files inside another's folder are found all the same.
//! - Any depth and any number of entries is dealt with in constant memory and descriptors: a folder below
//!   `DEPTH_MAX` is moved up to the root before it is emptied.
//!
//! # Assumptions
//! No process of the payload runs any more, so nothing moves while we look.
//!
//! **Must not know:** slots, payloads, why.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RawDir, ResolveFlags, chmod, fstat, openat, openat2, renameat,
    statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;
use wire::slot::CleanReport;

use crate::ran;

/// A folder to clean.
#[derive(Clone, Copy, Debug)]
pub struct Root<'a> {
    /// Its path.
    pub path: &'a str,
    /// Names in it that stay, with all that is in them.
    pub keep: &'a [&'a str],
    /// Names of regular files in it that stay; anything else of such a name does not.
    pub keep_files: &'a [&'a str],
    /// Remove symbolic links only, and enter no folder.
    pub links_only: bool,
    /// Count what is removed as IPC objects.
    pub ipc: bool,
}

impl<'a> Root<'a> {
    /// A folder in which nothing stays.
    #[must_use]
    pub const fn all(path: &'a str) -> Self {
        Self { path, keep: &[], keep_files: &[], links_only: false, ipc: false }
    }

    fn keeps_file(&self, name: &[u8], kind: FileType) -> bool {
        kind == FileType::RegularFile && self.keep_files.iter().any(|keep| keep.as_bytes() == name)
    }
}

/// What Clean empties in a slot. Outputs in `/stage/out` are the pilot's to keep or drop; links there lead nowhere once
/// the holder is gone. POSIX message queues are files where their file system is mounted.
pub const ROOTS: &[Root<'static>] = &[
    Root { keep: &["in", "out"], ..Root::all("/stage") },
    Root::all("/stage/in"),
    Root { links_only: true, ..Root::all("/stage/out") },
    Root::all("/tmp"),
    Root::all("/var/tmp"),
    Root::all("/dev/shm"),
    Root::all("/work"),
    Root { ipc: true, ..Root::all("/dev/mqueue") },
];

/// The folder of launch markers, below the control folder: in a pod a payload can write there.
const MARKERS: Root<'static> = Root { keep_files: &[ran::MARKER], ..Root::all(ran::FOLDER) };

/// Room for a listing of a folder that is as it should be; a longer one takes more calls, not more room.
const LISTING_BYTES: usize = 1024;
/// Folders that are entered at a time; each holds a descriptor.
const DEPTH_MAX: usize = 64;

/// Cleans `roots` and counts in `report`. A root that is not there, or is a link of the image's, has nothing to clean.
pub fn folders(roots: &[Root<'_>], report: &mut CleanReport) {
    for root in roots {
        match open_root(root.path) {
            Ok(folder) => clean_root(root, &folder, report),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {}
            Err(_) => report.failures = report.failures.saturating_add(1),
        }
    }
}

/// Cleans what a payload left among the launch markers of a control folder; the record of launches stays.
pub fn markers(control: BorrowedFd<'_>, report: &mut CleanReport) {
    let name = CString::new(MARKERS.path).unwrap_or_default();
    match open_beneath(control, &name, FOLDER) {
        Ok(folder) => clean_root(&MARKERS, &folder, report),
        // Who launched nothing needs none.
        Err(Errno::NOENT) => {}
        Err(_) => report.failures = report.failures.saturating_add(1),
    }
}

/// Whether one short listing shows that nothing is to be done: the usual case, for a fraction of a walk's price.
fn is_clean(root: &Root<'_>, folder: &OwnedFd) -> bool {
    let mut space = [MaybeUninit::uninit(); LISTING_BYTES];
    let mut entries = RawDir::new(folder, &mut space);
    while let Some(entry) = entries.next() {
        let Ok(entry) = entry else { return false };
        let name = entry.file_name().to_bytes();
        let kind = entry.file_type();
        let stays = matches!(name, b"." | b"..")
            || root.keep.iter().any(|keep| keep.as_bytes() == name)
            || root.keeps_file(name, kind)
            || root.links_only && !matches!(kind, FileType::Symlink | FileType::Unknown);
        if !stays {
            return false;
        }
    }
    true
}

/// Passes until one changes nothing: what was moved up, or what a file system forgot to list while entries went, is met
/// in the next. Only the last pass's failures count.
fn clean_root(root: &Root<'_>, folder: &OwnedFd, report: &mut CleanReport) {
    if is_clean(root, folder) {
        return;
    }
    let failures = report.failures;
    loop {
        report.failures = failures;
        let mut walk = Walk { root, report, changes: 0 };
        walk.pass(folder);
        if walk.changes == 0 {
            return;
        }
    }
}

fn open_root(path: &str) -> Result<OwnedFd, Errno> {
    match openat2(CWD, path, FOLDER, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        // Linux before 5.6, or a seccomp filter older than the call.
        Err(Errno::NOSYS | Errno::PERM) => openat(CWD, path, FOLDER, Mode::empty()),
        other => other,
    }
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

struct Walk<'a> {
    root: &'a Root<'a>,
    report: &'a mut CleanReport,
    /// Entries removed or moved in this pass.
    changes: u64,
}

/// A folder on the way down.
struct Level {
    folder: OwnedFd,
    /// Its name in the level above; empty for the root.
    name: CString,
    entries: Dir,
}

/// What is to be done with an entry.
enum Fate {
    Gone,
    Stays,
    Enter(OwnedFd),
}

impl Walk<'_> {
    fn pass(&mut self, root: &OwnedFd) {
        let mut levels: Vec<Level> = Vec::new();
        match openat(root, c".", FOLDER, Mode::empty()) {
            Ok(top) => self.push(&mut levels, top, CString::default()),
            Err(_) => self.fail(),
        }
        while let Some(level) = levels.last_mut() {
            match level.entries.read() {
                Some(Ok(entry)) => {
                    let name = entry.file_name().to_owned();
                    let depth = levels.len();
                    if matches!(name.to_bytes(), b"." | b"..") || depth == 1 && self.keeps(&name) {
                        continue;
                    }
                    if let Fate::Enter(folder) = self.remove(&levels, &name) {
                        self.push(&mut levels, folder, name);
                    }
                }
                Some(Err(_)) => {
                    self.fail();
                    levels.pop();
                }
                None => {
                    let done = levels.pop();
                    if let (Some(done), Some(above)) = (done, levels.last()) {
                        self.remove_emptied(above, &done);
                    }
                }
            }
        }
    }

    fn keeps(&self, name: &CStr) -> bool {
        self.root.keep.iter().any(|keep| keep.as_bytes() == name.to_bytes())
    }

    fn push(&mut self, levels: &mut Vec<Level>, folder: OwnedFd, name: CString) {
        match Dir::read_from(&folder) {
            Ok(entries) => levels.push(Level { folder, name, entries }),
            Err(_) => self.fail(),
        }
    }

    /// Removes one entry of the last level, or says to enter it first.
    fn remove(&mut self, levels: &[Level], name: &CStr) -> Fate {
        let (Some(top), Some(level)) = (levels.first(), levels.last()) else { return Fate::Stays };
        let Ok(stat) = statat(&level.folder, name, AtFlags::SYMLINK_NOFOLLOW) else { return Fate::Stays };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let own = stat.st_uid == geteuid().as_raw();
        if self.root.links_only && kind != FileType::Symlink
            || levels.len() == 1 && self.root.keeps_file(name.to_bytes(), kind)
        {
            return Fate::Stays;
        }
        if kind != FileType::Directory {
            return if own { self.unlink(&level.folder, name, AtFlags::empty()) } else { Fate::Stays };
        }
        if own && unlinkat(&level.folder, name, AtFlags::REMOVEDIR).is_ok() {
            return self.gone();
        }
        let folder = match enter(&level.folder, name, own) {
            Ok(folder) => folder,
            // A folder of another uid that we may not read holds nothing of ours that we could remove.
            Err(Errno::ACCESS) if !own => return Fate::Stays,
            Err(_) => return self.failed(),
        };
        if levels.len() < DEPTH_MAX {
            return Fate::Enter(folder);
        }
        // The next pass meets it there.
        let fresh = format!(".latebind-clean-{}-{}", stat.st_ino, self.changes);
        match renameat(&level.folder, name, &top.folder, fresh) {
            Ok(()) => {
                self.changes += 1;
                Fate::Gone
            }
            Err(_) => self.failed(),
        }
    }

    fn remove_emptied(&mut self, above: &Level, done: &Level) {
        // Another's folder was entered for the payload's files only.
        if fstat(&done.folder).is_ok_and(|stat| stat.st_uid == geteuid().as_raw()) {
            match unlinkat(&above.folder, &done.name, AtFlags::REMOVEDIR) {
                Ok(()) => {
                    self.gone();
                }
                // What kept it from being empty was counted, or belongs to somebody else.
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(_) => self.fail(),
            }
        }
    }

    fn unlink(&mut self, folder: &OwnedFd, name: &CStr, flags: AtFlags) -> Fate {
        match unlinkat(folder, name, flags) {
            Ok(()) => self.gone(),
            Err(Errno::NOENT) => Fate::Gone,
            Err(_) => self.failed(),
        }
    }

    fn gone(&mut self) -> Fate {
        self.changes += 1;
        let count = if self.root.ipc { &mut self.report.ipc_objects } else { &mut self.report.files };
        *count = count.saturating_add(1);
        Fate::Gone
    }

    fn failed(&mut self) -> Fate {
        self.fail();
        Fate::Stays
    }

    fn fail(&mut self) {
        self.report.failures = self.report.failures.saturating_add(1);
    }
}

/// Opens a folder for emptying. One of ours is made accessible first, through a descriptor that needs no permission.
fn enter(parent: &OwnedFd, name: &CStr, own: bool) -> Result<OwnedFd, Errno> {
    let path = open_beneath(parent.as_fd(), name, FOLDER.difference(OFlags::RDONLY).union(OFlags::PATH))?;
    let all = Mode::RWXU;
    if own && !Mode::from_raw_mode(fstat(&path)?.st_mode).contains(all) {
        // fchmod(2) refuses such a descriptor; its name in /proc is the same file, whatever happens to paths.
        chmod(format!("/proc/self/fd/{}", path.as_raw_fd()), all)?;
    }
    openat(&path, c".", FOLDER, Mode::empty())
}

pub(crate) fn open_beneath(parent: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    match openat2(parent, name, flags, Mode::empty(), resolve) {
        Err(Errno::NOSYS | Errno::PERM) => {
            let folder = openat(parent, name, flags, Mode::empty())?;
            if fstat(&folder)?.st_dev == fstat(parent)?.st_dev { Ok(folder) } else { Err(Errno::XDEV) }
        }
        other => other,
    }
}

#[cfg(test)]
#[path = "clean_tests.rs"]
mod tests;
