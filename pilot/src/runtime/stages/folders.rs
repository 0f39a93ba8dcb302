//! The folders that stages in files lie in.
//!
//! **Must not know:** what is in the files.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use pilot_core::{Fault, FaultClass};
use rustix::fs::{Mode, OFlags};

/// In the folder of a payload's stages, what the ledger knows of them. No stage can have this name.
pub(super) const NOTE: &str = ".held";

/// Opens a folder by its own name; a link is none.
pub(in crate::runtime) fn open_folder(path: &Path) -> Result<OwnedFd, Fault> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| Fault::new(FaultClass::Slot, format!("open folder {}: {errno}", path.display())))
}

/// Removes a stage on disk, and its folders once they hold none.
pub(super) fn drop_file(path: &Path) {
    let is_folder = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let removed = if is_folder { oci_runner::remove_tree(path) } else { std::fs::remove_file(path) };
    if let Err(error) = removed {
        tracing::warn!(stage = %path.display(), %error, "a stage on disk is left until the pilot ends");
    }
    if let Some(folder) = path.parent() {
        tidy(folder);
    }
}

/// Removes the folder of a payload's stages, and its workflow's, once they hold none.
pub(super) fn tidy(folder: &Path) {
    let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    if entries.all(|entry| entry.file_name() == NOTE) {
        let _ = std::fs::remove_file(folder.join(NOTE));
        if std::fs::remove_dir(folder).is_ok()
            && let Some(workflow) = folder.parent()
        {
            let _ = std::fs::remove_dir(workflow);
        }
    }
}

/// Removes the empty folders `levels` deep below `folder`, and it too if nothing is left. Deeper ones are in stages.
pub(in crate::runtime) fn prune(folder: &Path, levels: u32) {
    for (path, is_folder) in entries(folder) {
        if is_folder && levels > 0 {
            prune(&path, levels - 1);
        }
    }
    let _ = std::fs::remove_dir(folder);
}

fn entries(folder: &Path) -> impl Iterator<Item = (PathBuf, bool)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir())))
}
