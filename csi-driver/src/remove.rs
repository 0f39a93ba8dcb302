//! Removing and measuring what pods left in a volume: by descriptor, following nothing, with a bounded number of descriptors.
//!
//! A pod may have nested folders deeper than any path, closed them, or hung a mount below. Folders deeper than `DEPTH_MAX` are
//! moved up to the root and met there in the next pass; closed ones are opened up if they are ours to open; whatever is on
//! another file system is not entered.
//!
//! **Must not know:** volumes, records.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, chmod, fstat, openat, openat2, renameat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::target::{FOLDER, STRICT, birth};
use crate::volume::Birth;

/// Descriptors that one walk holds at most, two a level.
const DEPTH_MAX: usize = 48;
/// Passes over what keeps growing back: then somebody is still writing.
const PASSES_MAX: usize = 1 << 16;
/// Entries that a measurement looks at; more are taken for nothing.
const MEASURED_MAX: u64 = 1 << 20;
/// Files with several names that a measurement remembers, so that each counts once.
const LINKED_MAX: usize = 1 << 16;

/// A folder on the way down.
struct Level {
    folder: OwnedFd,
    name: CString,
    entries: Dir,
}

/// Removes a folder and all that is in it, if it is the one of that birth; with no birth, whichever it is.
///
/// # Errors
/// When something can't be removed, or it is another folder; what could be removed is gone. That nothing is there is no error.
pub fn remove(parent: BorrowedFd<'_>, name: &str, expected: Option<Birth>) -> io::Result<()> {
    let folder = match enter(parent, &CString::new(name)?) {
        Ok(folder) => folder,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    if let Some(expected) = expected
        && birth(folder.as_fd())? != expected
    {
        return Err(io::Error::other("another folder has its name"));
    }
    for number in 0..PASSES_MAX {
        let mut pass = Pass { number, changes: 0, failure: None };
        pass.run(&folder)?;
        match (pass.changes, pass.failure) {
            (0, None) => {
                unlinkat(parent, name, AtFlags::REMOVEDIR)?;
                return Ok(());
            }
            (0, Some(errno)) => return Err(errno.into()),
            _ => {}
        }
    }
    Err(io::Error::other("it fills up again while it is emptied"))
}

/// One walk over what is there.
struct Pass {
    number: usize,
    changes: u64,
    failure: Option<Errno>,
}

impl Pass {
    fn run(&mut self, root: &OwnedFd) -> io::Result<()> {
        let mut levels = vec![level(openat(root, c".", FOLDER, Mode::empty())?, CString::default())?];
        while let Some(top) = levels.last_mut() {
            match top.entries.read() {
                Some(Ok(entry)) => {
                    let name = entry.file_name().to_owned();
                    if !matches!(name.to_bytes(), b"." | b"..")
                        && let Some(below) = self.remove(root, &levels, &name)
                    {
                        levels.push(level(below, name)?);
                    }
                }
                Some(Err(errno)) => {
                    self.failure = Some(errno);
                    levels.pop();
                }
                None => {
                    let done = levels.pop();
                    if let (Some(done), Some(above)) = (done, levels.last()) {
                        self.count(unlinkat(&above.folder, &done.name, AtFlags::REMOVEDIR));
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes one entry of the last level, or gives the folder to be emptied first.
    fn remove(&mut self, root: &OwnedFd, levels: &[Level], name: &CStr) -> Option<OwnedFd> {
        let parent = &levels.last()?.folder;
        match unlinkat(parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {}
            other => {
                self.count(other);
                return None;
            }
        }
        if unlinkat(parent, name, AtFlags::REMOVEDIR).is_ok() {
            self.changes += 1;
            return None;
        }
        if levels.len() >= DEPTH_MAX {
            // Another one than in any pass before: there may be something below those.
            let fresh = format!(".latebind-deep-{}-{}", self.number, self.changes);
            self.count(renameat(parent, name, root, fresh));
            return None;
        }
        match enter(parent.as_fd(), name) {
            Ok(folder) => Some(folder),
            Err(errno) => {
                self.count(Err(errno));
                None
            }
        }
    }

    fn count(&mut self, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.changes += 1,
            Err(Errno::NOENT) => {}
            // A folder that a failure keeps from being empty tells less than that failure.
            Err(Errno::NOTEMPTY | Errno::EXIST) if self.failure.is_some() => {}
            Err(errno) => self.failure = Some(errno),
        }
    }
}

fn level(folder: OwnedFd, name: CString) -> io::Result<Level> {
    let entries = Dir::read_from(&folder)?;
    Ok(Level { folder, name, entries })
}

/// Opens a folder to empty it; one of our own is made accessible first, through a descriptor that needs no permission.
fn enter(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = FOLDER | OFlags::PATH;
    let path = openat2(parent, name, flags, Mode::empty(), STRICT)?;
    let stat = fstat(&path)?;
    if stat.st_uid == geteuid().as_raw() && !Mode::from_raw_mode(stat.st_mode).contains(Mode::RWXU) {
        // fchmod(2) refuses such a descriptor; its name in /proc is the same folder, whatever happens to paths.
        chmod(format!("/proc/self/fd/{}", path.as_raw_fd()), Mode::RWXU)?;
    }
    openat(&path, c".", FOLDER, Mode::empty())
}

/// What is in a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Bytes on the file system; a file with several names counts once.
    pub bytes: u64,
    /// Files, folders and whatever else.
    pub entries: u64,
}

/// Measures what is in a folder. What can't be entered, is too deep or too much counts as nothing.
///
/// # Errors
/// When the folder itself can't be read.
pub fn measure(root: &OwnedFd) -> io::Result<Content> {
    let mut content = Content::default();
    let mut linked: BTreeSet<(u64, u64)> = BTreeSet::new();
    let mut levels = vec![level(openat(root, c".", FOLDER, Mode::empty())?, CString::default())?];
    while let Some(top) = levels.last_mut() {
        let Some(entry) = top.entries.read() else {
            levels.pop();
            continue;
        };
        let Ok(entry) = entry else {
            levels.pop();
            continue;
        };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(stat) = statat(&top.folder, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        content.entries += 1;
        if content.entries >= MEASURED_MAX {
            break;
        }
        let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let seen = !is_folder
            && stat.st_nlink > 1
            && linked.len() < LINKED_MAX
            && !linked.insert((stat.st_dev, stat.st_ino));
        if !seen {
            content.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        }
        if is_folder && levels.len() < DEPTH_MAX {
            let below = openat2(&levels[levels.len() - 1].folder, name, FOLDER, Mode::empty(), STRICT);
            if let Ok(below) =
                below.map_err(io::Error::from).and_then(|folder| level(folder, CString::default()))
            {
                levels.push(below);
            }
        }
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn open(path: &std::path::Path) -> OwnedFd {
        openat(rustix::fs::CWD, path, FOLDER, Mode::empty()).expect("open")
    }

    #[test]
    fn all_is_removed_and_no_link_is_followed() {
        let root = tempfile::tempdir().expect("tempdir");
        let kept = root.path().join("kept");
        fs::create_dir(&kept).expect("mkdir");
        fs::write(kept.join("file"), "kept").expect("write");
        let volume = root.path().join("volume");
        fs::create_dir_all(volume.join("a/b/closed")).expect("mkdir");
        fs::write(volume.join("a/b/closed/file"), "x").expect("write");
        symlink(&kept, volume.join("a/link")).expect("symlink");
        symlink("../..", volume.join("a/up")).expect("symlink");
        fs::hard_link(kept.join("file"), volume.join("a/hard")).expect("link");
        fs::set_permissions(volume.join("a/b/closed"), fs::Permissions::from_mode(0o000)).expect("chmod");
        let parent = open(root.path());
        remove(parent.as_fd(), "volume", None).expect("remove");
        assert!(!volume.exists());
        assert_eq!(fs::read_to_string(kept.join("file")).expect("kept"), "kept");
        remove(parent.as_fd(), "volume", None).expect("nothing to remove");
    }

    #[test]
    fn folders_deeper_than_any_path_are_removed_with_few_descriptors() {
        let root = tempfile::tempdir().expect("tempdir");
        fs::create_dir(root.path().join("volume")).expect("mkdir");
        let mut at = open(&root.path().join("volume"));
        let name = "d".repeat(200);
        for _ in 0..300 {
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).expect("mkdir");
            at = openat(&at, &name, FOLDER, Mode::empty()).expect("open");
        }
        drop(at);
        let measured = measure(&open(&root.path().join("volume"))).expect("measure");
        assert_eq!(measured.entries, DEPTH_MAX as u64);
        remove(open(root.path()).as_fd(), "volume", None).expect("remove");
        assert!(!root.path().join("volume").exists());
    }

    #[test]
    fn another_folder_of_the_same_name_is_left_alone() {
        let root = tempfile::tempdir().expect("tempdir");
        fs::create_dir_all(root.path().join("volume/theirs")).expect("mkdir");
        let parent = open(root.path());
        let other = Birth { inode: 1, seconds: 0, nanos: 0 };
        remove(parent.as_fd(), "volume", Some(other)).expect_err("another folder");
        assert!(root.path().join("volume/theirs").exists());
        symlink("volume", root.path().join("link")).expect("symlink");
        remove(parent.as_fd(), "link", None).expect_err("a link");
        assert!(root.path().join("volume/theirs").exists());
    }

    #[test]
    fn a_file_with_several_names_is_measured_once() {
        let root = tempfile::tempdir().expect("tempdir");
        fs::write(root.path().join("one"), vec![1; 1 << 20]).expect("write");
        for name in ["two", "three"] {
            fs::hard_link(root.path().join("one"), root.path().join(name)).expect("link");
        }
        let content = measure(&open(root.path())).expect("measure");
        assert_eq!(content.entries, 3);
        assert!((1 << 20..2 << 20).contains(&content.bytes), "{content:?}");
    }
}
