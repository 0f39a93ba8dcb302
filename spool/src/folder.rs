//! The spool's folder: made for its owner alone, refused when it is someone else's.
//!
//! **Must not know:** the database's tables.

use std::fs::{DirBuilder, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::OpenError;

/// Names in a spool's folder.
pub(crate) const DATABASE: &str = "spool.db";
pub(crate) const WAKE: &str = "wake";
pub(crate) const PILOTS: &str = "pilots";
/// Locked while a database is made.
pub(crate) const MAKING: &str = "making";
const IDENTITY: &str = "identity";

/// Makes sure that the folder and those in it are there and ours. Makes nothing unless `create`.
pub(crate) fn ready(folder: &Path, create: bool) -> Result<(), OpenError> {
    if create {
        make(folder)?;
    }
    owned(folder)?;
    for inner in [WAKE, PILOTS] {
        make(&folder.join(inner))?;
    }
    Ok(())
}

fn make(folder: &Path) -> Result<(), OpenError> {
    match DirBuilder::new().recursive(true).mode(0o700).create(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        // What is there may be enough; if not, the next step says so.
        Err(_) if folder.is_dir() => Ok(()),
        Err(source) => Err(io("make folder", folder, source)),
    }
}

/// What tells this spool from every other: 32 hexadecimal digits, made once.
pub(crate) fn identity(folder: &Path) -> std::io::Result<String> {
    let path = folder.join(IDENTITY);
    if let Ok(text) = std::fs::read_to_string(&path) {
        return Ok(text);
    }
    let mut bytes = [0_u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let new = folder.join(format!("{IDENTITY}.{text}"));
    std::fs::write(&new, &text)?;
    // A link never takes the place of what another one has made by now.
    let linked = std::fs::hard_link(&new, &path);
    std::fs::remove_file(&new)?;
    match linked {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => std::fs::read_to_string(&path),
    }
}

fn owned(folder: &Path) -> Result<(), OpenError> {
    let metadata: Metadata = match std::fs::metadata(folder) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(OpenError::Missing { folder: folder.to_path_buf() });
        }
        Err(source) => return Err(io("look at folder", folder, source)),
    };
    let us = rustix::process::geteuid().as_raw();
    let not_ours = |why: String| OpenError::NotOurs { folder: folder.to_path_buf(), why };
    if !metadata.is_dir() {
        return Err(not_ours("it is not a folder".to_owned()));
    }
    if metadata.uid() != us {
        return Err(not_ours(format!("it belongs to uid {}, not to uid {us}", metadata.uid())));
    }
    if metadata.mode() & 0o022 != 0 {
        let mode = metadata.mode() & 0o777;
        return Err(not_ours(format!("others may write in it (mode {mode:o}); chmod go-w it")));
    }
    Ok(())
}

pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> OpenError {
    OpenError::Io { action, path: PathBuf::from(path), source }
}
