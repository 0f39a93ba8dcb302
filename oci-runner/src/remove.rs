//! Removes what a payload has left on disk, which need not be kind: folders without permissions, also overlayfs's own
//! (`work/work` has mode 000), nested deeper than a path or our stack goes, links to elsewhere.
//!
//! **Must not know:** what the folder was for.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};
use rustix::io::Errno;

/// Folders deeper than this are first moved to the top: one descriptor and one stack frame each is what they cost.
const DEPTH_MAX: u32 = 32;
/// Each pass takes off 32 levels, and a tree deeper than this many passes would have taken days to make.
const PASSES_MAX: u32 = 100_000;

/// Removes the folder at `path` with all that is in it, following no link. Nothing there is no error. Nobody else may
/// be changing it: call it when the container has ended.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let top = match open_at(CWD, path) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    let mut removal = Removal { top, moved: 0 };
    for _ in 0..PASSES_MAX {
        let moved = removal.moved;
        let top = rustix::io::fcntl_dupfd_cloexec(&removal.top, 0)?;
        removal.empty(top, 0)?;
        if removal.moved == moved {
            break;
        }
    }
    Ok(rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR)?)
}

struct Removal {
    top: OwnedFd,
    /// How many folders were moved to the top, for their names.
    moved: u32,
}

impl Removal {
    fn empty(&mut self, folder: OwnedFd, depth: u32) -> Result<(), Errno> {
        let mut entries = Dir::read_from(&folder)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
                Ok(()) => {}
                // EPERM is what POSIX says, EISDIR what Linux does.
                Err(Errno::ISDIR | Errno::PERM) if depth < DEPTH_MAX => {
                    self.empty(open_at(&folder, name)?, depth + 1)?;
                    rustix::fs::unlinkat(&folder, name, AtFlags::REMOVEDIR)?;
                }
                Err(Errno::ISDIR | Errno::PERM) => self.move_to_top(&folder, name)?,
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn move_to_top(&mut self, folder: &OwnedFd, name: &CStr) -> Result<(), Errno> {
        // A folder can't be moved without the right to change its `..`.
        open_at(folder, name)?;
        loop {
            self.moved += 1;
            let aside = format!(".latebind-{}", self.moved);
            match rustix::fs::renameat_with(
                folder,
                name,
                &self.top,
                aside.as_str(),
                rustix::fs::RenameFlags::NOREPLACE,
            ) {
                Err(Errno::EXIST) => {}
                other => return other,
            }
        }
    }
}

/// Opens a folder for reading and gives us every right on it first.
fn open_at(at: impl std::os::fd::AsFd, name: impl rustix::path::Arg + Copy) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = match rustix::fs::openat(&at, name, flags | OFlags::RDONLY, Mode::empty()) {
        Err(Errno::ACCESS) => {
            let shut = rustix::fs::openat(&at, name, flags | OFlags::PATH, Mode::empty())?;
            // chmod needs no right on the folder itself, but does not take such a descriptor directly.
            rustix::fs::chmod(format!("/proc/self/fd/{}", shut.as_raw_fd()), Mode::RWXU)?;
            rustix::fs::openat(&at, name, flags | OFlags::RDONLY, Mode::empty())?
        }
        other => other?,
    };
    rustix::fs::fchmod(&folder, Mode::RWXU)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn links_are_removed_and_not_followed() {
        let home = tempfile::tempdir().expect("a folder");
        let (kept, gone) = (home.path().join("kept"), home.path().join("gone"));
        fs::create_dir(&kept).expect("a folder");
        fs::write(kept.join("file"), "x").expect("a file");
        fs::create_dir(&gone).expect("a folder");
        symlink(&kept, gone.join("folder")).expect("a link");
        symlink(kept.join("file"), gone.join("file")).expect("a link");
        remove_tree(&gone).expect("removal");
        remove_tree(&gone).expect("nothing to remove");
        assert!(kept.join("file").exists() && !gone.exists());
    }

    #[test]
    fn a_link_in_place_of_the_folder_is_refused() {
        let home = tempfile::tempdir().expect("a folder");
        fs::create_dir(home.path().join("kept")).expect("a folder");
        symlink("kept", home.path().join("link")).expect("a link");
        assert!(remove_tree(&home.path().join("link")).is_err());
        assert!(home.path().join("kept").exists());
    }

    #[test]
    fn folders_may_be_shut_and_deep() {
        let home = tempfile::tempdir().expect("a folder");
        let top = home.path().join("top");
        fs::create_dir(&top).expect("a folder");
        let mut at = open_at(CWD, &top).expect("the folder");
        let mut shut = Vec::new();
        // Far longer than PATH_MAX in all.
        let name = "n".repeat(200);
        for _ in 0..300 {
            rustix::fs::mkdirat(&at, &*name, Mode::RWXU).expect("a folder");
            let next = open_at(&at, &*name).expect("the folder");
            rustix::fs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).expect("a file");
            shut.push(std::mem::replace(&mut at, next));
        }
        for folder in shut.into_iter().skip(1) {
            rustix::fs::fchmod(&folder, Mode::empty()).expect("a mode");
        }
        fs::set_permissions(&top, fs::Permissions::from_mode(0o000)).expect("a mode");
        remove_tree(&top).expect("removal");
        assert!(!top.exists());
    }
}
