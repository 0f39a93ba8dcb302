//! Copies of stages where the user wants them.
//!
//! **Must not know:** what is a stage.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat};

/// Copies a stage to where the user wants it: it gets its name last, so that the user never sees half of it.
pub(super) fn copy_to<R: Read>(from: &mut R, path: &Path) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // Without a name until it is whole: a pilot that is killed leaves nothing of it.
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let Ok(into) = rustix::fs::open(folder, flags, Mode::from_raw_mode(0o600)) else {
        // Not every file system can (NFS).
        let mut into = tempfile::NamedTempFile::new_in(folder)?;
        std::io::copy(from, into.as_file_mut())?;
        rustix::fs::fchmod(into.as_file(), SAVED)?;
        into.persist(path)?;
        return Ok(());
    };
    let mut into = File::from(into);
    std::io::copy(from, &mut into)?;
    rustix::fs::fchmod(&into, SAVED)?;
    give_name(&into, folder, path)
}

/// What the user may do with a saved output.
const SAVED: Mode = Mode::from_raw_mode(0o644);

/// Puts a file without a name in the place of what is at `path`.
fn give_name(file: &File, folder: &Path, path: &Path) -> std::io::Result<()> {
    // link(2) replaces nothing, so there is a step between, for as long as two system calls take.
    let between = folder.join(format!(".latebind-{:016x}", fastrand::u64(..)));
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, own, CWD, &between, AtFlags::SYMLINK_FOLLOW)?;
    std::fs::rename(&between, path).inspect_err(|_| drop(std::fs::remove_file(&between)))
}
