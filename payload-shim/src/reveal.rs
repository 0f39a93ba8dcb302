//! Making outputs readable to a pilot of another uid, which has no right to read what a payload made for itself alone: a
//! temporary file that a program renamed over its output has mode 0600.
//!
//! # Guarantees
//! - Nothing is followed and no mount is crossed; only files and folders of our own uid change, and only by rights to read.
//! - At most as many entries, and as deep, as a commit takes (`stage::FolderLimits`); what is beyond is refused there.
//!
//! # Assumptions
//! No process of the payload runs any more, so nothing moves while we look.
//!
//! **Must not know:** what becomes of an output.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, chmod, fstat, openat};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::clean::open_beneath;

/// As deep as a folder may be to be committed.
const DEPTH_MAX: usize = 64;
/// As many entries as it may have.
const ENTRIES_MAX: usize = 100_000;
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const ANY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Makes the entries `names` of the folder `out` readable, with all that is in them. What can't be is left: whoever reads it
/// is told why.
pub fn reveal(out: &str, names: &[String]) {
    let Ok(folder) = openat(CWD, out, FOLDER, Mode::empty()) else { return };
    let mut left = ENTRIES_MAX;
    for name in names {
        if let Ok(name) = CString::new(name.as_str()) {
            let _unreadable = reveal_entry(folder.as_fd(), &name, DEPTH_MAX, &mut left);
        }
    }
}

fn reveal_entry(parent: BorrowedFd<'_>, name: &CString, deep: usize, left: &mut usize) -> Result<(), Errno> {
    *left = left.checked_sub(1).ok_or(Errno::NFILE)?;
    let entry = open_beneath(parent, name, ANY)?;
    let stat = fstat(&entry)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let needs = match kind {
        FileType::RegularFile => Mode::from_raw_mode(0o444),
        FileType::Directory => Mode::from_raw_mode(0o555),
        _ => return Ok(()),
    };
    let mode = Mode::from_raw_mode(stat.st_mode);
    if !mode.contains(needs) && stat.st_uid == geteuid().as_raw() {
        // fchmod(2) refuses such a descriptor; its name in /proc is the same file, whatever happens to paths.
        chmod(format!("/proc/self/fd/{}", entry.as_raw_fd()), mode | needs)?;
    }
    match (kind, deep.checked_sub(1)) {
        (FileType::Directory, Some(deep)) => {
            reveal_all(&openat(&entry, c".", FOLDER, Mode::empty())?, deep, left)
        }
        _ => Ok(()),
    }
}

fn reveal_all(folder: &OwnedFd, deep: usize, left: &mut usize) -> Result<(), Errno> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            reveal_entry(folder.as_fd(), &name.to_owned(), deep, left)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::Path;

    use super::*;

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").permissions().mode() & 0o7777
    }

    #[test]
    fn outputs_become_readable_with_all_that_is_in_them_and_nothing_else_does() {
        let home = tempfile::tempdir().expect("a folder");
        let at = |name: &str| home.path().join("out").join(name);
        fs::create_dir_all(at("tree/deep")).expect("folders");
        let secret = home.path().join("secret");
        for file in [&secret, &at("file"), &at("program"), &at("other"), &at("tree/deep/x")] {
            fs::write(file, "x").expect("a file");
            set(file, 0o600);
        }
        set(&at("program"), 0o4700);
        symlink(&secret, at("link")).expect("a link");
        symlink(&secret, at("tree/link")).expect("a link");
        set(&at("tree/deep"), 0);
        set(&at("tree"), 0o700);
        let names = ["file", "program", "link", "tree", "missing", "..", "../secret"].map(str::to_owned);
        reveal(at("").to_str().expect("a path"), &names);
        assert_eq!((mode(&at("file")), mode(&at("program"))), (0o644, 0o4744));
        assert_eq!(
            (mode(&at("tree")), mode(&at("tree/deep")), mode(&at("tree/deep/x"))),
            (0o755, 0o555, 0o644)
        );
        assert_eq!((mode(&secret), mode(&at("other"))), (0o600, 0o600));
        set(&at("tree/deep"), 0o700);
        // Deeper than a commit goes.
        let deep = (0..70).fold(at("tree"), |path, _| path.join("d"));
        fs::create_dir_all(&deep).expect("folders");
        set(&deep, 0o700);
        reveal(at("").to_str().expect("a path"), &["tree".to_owned()]);
        assert_eq!(mode(&deep), 0o700);
    }
}
