//! Copies of stages where the user wants them.
//!
//! **Must not know:** what is a stage.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use objects::unfinished::{self, Unfinished};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, linkat};
use rustix::io::Errno;

use super::Stages;
use crate::payload::Payload;

/// Copies a stage to where the user wants it: it gets its name last, so that the user never sees half of it.
pub(super) fn copy_to<R: Read>(from: &mut R, path: &Path, program: bool) -> std::io::Result<()> {
    let mode = saved(program);
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // Without a name until it is whole: a pilot that is killed leaves nothing of it.
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let Ok(into) = rustix::fs::open(folder, flags, Mode::from_raw_mode(0o600)) else {
        // Not every file system can (NFS).
        unfinished::sweep(folder);
        let into = Unfinished::beside(path)?;
        std::io::copy(from, &mut &**into.file())?;
        rustix::fs::fchmod(into.file(), mode)?;
        return into.publish(path, true);
    };
    let mut into = File::from(into);
    std::io::copy(from, &mut into)?;
    rustix::fs::fchmod(&into, mode)?;
    give_name(&into, path)
}

/// Copies a folder to where the user wants it. What is there is replaced at once; a folder that is there is removed.
pub(super) fn copy_folder_to(from: &Path, path: &Path) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    unfinished::sweep(folder);
    let (fresh, _held) =
        unfinished::make(path, |fresh| std::fs::create_dir(fresh), |fresh| File::open(fresh))?;
    let put = put_folder(from, &fresh.join("copy"), path);
    put.and(oci_runner::remove_tree(&fresh))
}

fn put_folder(from: &Path, copy: &Path, path: &Path) -> std::io::Result<()> {
    copy_tree(from, copy)?;
    match std::fs::rename(copy, path) {
        // Something is there: a folder that is not empty, or no folder.
        Err(_) if std::fs::symlink_metadata(path).is_ok() => {
            rustix::fs::renameat_with(CWD, copy, CWD, path, RenameFlags::EXCHANGE)?;
            let is_folder = std::fs::symlink_metadata(copy).is_ok_and(|meta| meta.is_dir());
            if is_folder { oci_runner::remove_tree(copy) } else { std::fs::remove_file(copy) }
        }
        renamed => renamed,
    }
}

/// Files, folders and links of a stage: nobody changes it, and its links stay inside.
fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (kind, into) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_tree(&entry.path(), &into)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(entry.path())?, into)?;
        } else {
            let (mut from, mut into) = (File::open(entry.path())?, File::create_new(&into)?);
            std::io::copy(&mut from, &mut into)?;
            rustix::fs::fchmod(&into, saved(is_program(&from)))?;
        }
    }
    Ok(())
}

/// What the user may do with a saved output.
const fn saved(program: bool) -> Mode {
    Mode::from_raw_mode(if program { 0o755 } else { 0o644 })
}

/// Whether anybody may run it.
pub(super) fn is_program(file: &File) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0)
}

/// Puts a file without a name in the place of what is at `path`.
fn give_name(file: &File, path: &Path) -> std::io::Result<()> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = |path: &Path| linkat(CWD, &own, CWD, path, AtFlags::SYMLINK_FOLLOW);
    match link(path) {
        // link(2) replaces nothing, so there is a step between, for as long as two system calls take.
        Err(Errno::EXIST) => {}
        linked => return linked.map_err(Into::into),
    }
    unfinished::hold(file);
    let between = unfinished::beside(path);
    link(&between)?;
    std::fs::rename(&between, path).inspect_err(|_| drop(std::fs::remove_file(&between)))
}

impl Stages {
    /// Removes what an earlier pilot had begun to save of a payload and never finished.
    pub(in crate::runtime) fn sweep_unsaved(&self, payload: &Payload) {
        let places: BTreeSet<_> =
            payload.outputs.iter().filter_map(|output| output.save.as_ref()?.folder()).collect();
        for folder in places {
            let swept = unfinished::sweep(folder);
            if swept > 0 {
                tracing::info!(folder = %folder.display(), swept, "removed what an earlier pilot did not finish");
            }
        }
    }
}
