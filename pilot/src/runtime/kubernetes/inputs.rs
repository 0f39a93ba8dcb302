//! Inputs that lie in the pilot's own container: shown to a slot as read-only names for the same files.
//!
//! **Must not know:** stages, the API, where the files came from.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;

/// A name for everybody's eyes: what slots' users must be able to read.
const READABLE: u32 = 0o444;

/// Makes `target` show what is at `source`: a file, or a folder of files, folders and links.
pub(super) fn show(source: &Path, target: &Path) -> io::Result<()> {
    let meta = fs::metadata(source)?;
    if meta.is_dir() { show_folder(source, target) } else { show_file(source, &meta, target) }
}

fn show_folder(source: &Path, target: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(target)?;
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        let (kind, name) = (entry.file_type()?, target.join(entry.file_name()));
        if kind.is_symlink() {
            // It means in the slot what it says there: a link is never followed on this side.
            symlink(fs::read_link(entry.path())?, name)?;
        } else if kind.is_dir() {
            show_folder(&entry.path(), &name)?;
        } else if kind.is_file() {
            show_file(&entry.path(), &entry.metadata()?, &name)?;
        }
    }
    Ok(())
}

/// A second name where slots may read it and the file system can; else a copy.
fn show_file(source: &Path, meta: &fs::Metadata, target: &Path) -> io::Result<()> {
    let readable = meta.mode() & 0o004 != 0;
    if readable && fs::hard_link(source, target).is_ok() {
        return Ok(());
    }
    let mode = if meta.mode() & 0o111 != 0 { READABLE | 0o111 } else { READABLE };
    let mut into = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(target)?;
    io::copy(&mut fs::File::open(source)?, &mut into)?;
    into.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))
}

/// Removes what is in a folder of ours.
pub(super) fn empty(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let removed = match entry.file_type() {
            // Those of a stage are read-only.
            Ok(kind) if kind.is_dir() => oci_runner::remove_tree(&path),
            _ => fs::remove_file(&path),
        };
        if let Err(error) = removed {
            tracing::debug!(path = %path.display(), %error, "left to the slot's shim");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_folder_is_shown_without_a_copy_and_a_private_file_with_one() {
        let root = tempfile::tempdir().expect("tempdir");
        let source = root.path().join("source");
        fs::create_dir_all(source.join("deep")).expect("mkdir");
        fs::write(source.join("deep/open"), "open").expect("write");
        fs::write(source.join("closed"), "closed").expect("write");
        fs::set_permissions(source.join("closed"), fs::Permissions::from_mode(0o600)).expect("chmod");
        symlink("/etc/passwd", source.join("link")).expect("symlink");
        let target = root.path().join("target");
        show(&source, &target).expect("show");
        let inode = |path: &Path| fs::metadata(path).expect("stat").ino();
        assert_eq!(inode(&source.join("deep/open")), inode(&target.join("deep/open")));
        assert_ne!(inode(&source.join("closed")), inode(&target.join("closed")));
        assert_eq!(fs::metadata(target.join("closed")).expect("stat").mode() & 0o777, READABLE);
        assert_eq!(fs::read_link(target.join("link")).expect("link"), Path::new("/etc/passwd"));
        empty(root.path());
        assert_eq!(fs::read_dir(root.path()).expect("list").count(), 0);
    }
}
