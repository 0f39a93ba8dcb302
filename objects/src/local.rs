//! Objects that are files: `file://`. Whole or not there, because a name is given last. Everything here blocks.
//!
//! A file keeps no digest: people edit files, and what one said of the old content would be held against the new.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::blocking::{Abandoned, Uncopied, copy, digest_of, reserve};
use crate::tier::{Head, Listed, Planned, Stored};
use crate::unfinished::{self, Unfinished};
use crate::{Digest, ObjectError, ObjectUrl, Source};

/// Entries of folders that one listing looks at.
const LOOKED_AT_MAX: usize = 1_000_000;

fn open(url: &ObjectUrl, path: &Path) -> Result<(File, Metadata), ObjectError> {
    // A FIFO would wait for its writer.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| ObjectError::file(url, path, &error))?;
    let metadata = file.metadata().map_err(|error| ObjectError::file(url, path, &error))?;
    if !metadata.is_file() {
        return Err(ObjectError::NotAFile(url.clone()));
    }
    Ok((file, metadata))
}

/// A file that is changed in place gets another one, as far as its times tell.
fn etag(metadata: &Metadata) -> String {
    let (seconds, nanos) = (metadata.mtime(), metadata.mtime_nsec());
    format!("{:x}-{:x}-{:x}-{seconds:x}.{nanos:x}", metadata.dev(), metadata.ino(), metadata.len())
}

pub(crate) fn head(url: &ObjectUrl, path: &Path) -> Result<Head, ObjectError> {
    let (_, metadata) = open(url, path)?;
    Ok(Head { bytes: metadata.len(), etag: Some(etag(&metadata)), digest: None })
}

pub(crate) fn put(
    url: &ObjectUrl,
    path: &Path,
    source: &Source,
    plan: &Planned,
    abandoned: &Abandoned,
) -> Result<Stored, ObjectError> {
    match open(url, path) {
        Ok((file, metadata)) => {
            if let Some(stored) = same(url, path, file, &metadata, plan, abandoned)? {
                return Ok(stored);
            }
            if !plan.overwrite {
                return Err(ObjectError::Exists(url.clone()));
            }
        }
        Err(ObjectError::NotFound(_)) => {}
        Err(other) => return Err(other),
    }
    let failed = |error: io::Error| ObjectError::file(url, path, &error);
    let unfinished = Unfinished::beside(path).map_err(failed)?;
    let file = Arc::clone(unfinished.file());
    reserve(&file, plan.bytes).map_err(failed)?;
    let copied = copy(source, plan.bytes, abandoned, &file).map_err(|uncopied| match uncopied {
        Uncopied::Unread(error) => plan.unreadable(url, &error),
        Uncopied::Unwritten(error) => failed(error),
    });
    plan.check(url, copied?)?;
    match unfinished.publish(path, plan.overwrite) {
        Ok(()) => {}
        // Somebody was quicker, perhaps with the same.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let (file, metadata) = open(url, path)?;
            let found = same(url, path, file, &metadata, plan, abandoned)?;
            return found.ok_or_else(|| ObjectError::Exists(url.clone()));
        }
        Err(error) => return Err(failed(error)),
    }
    let etag = file.metadata().map_err(failed).map(|metadata| etag(&metadata))?;
    Ok(Stored { bytes: plan.bytes, digest: plan.digest, etag: Some(etag), already: false })
}

/// What is there, if it is what should be put.
fn same(
    url: &ObjectUrl,
    path: &Path,
    file: File,
    metadata: &Metadata,
    plan: &Planned,
    abandoned: &Abandoned,
) -> Result<Option<Stored>, ObjectError> {
    if metadata.len() != plan.bytes {
        return Ok(None);
    }
    let read = digest_of(&Source::from(file), plan.bytes, abandoned);
    let found = read.map_err(|error| ObjectError::file(url, path, &error))?;
    let stored = Stored { bytes: plan.bytes, digest: plan.digest, etag: Some(etag(metadata)), already: true };
    Ok((found == plan.digest).then_some(stored))
}

/// Copies the object into `into`, whose path is `name`, and says its digest.
pub(crate) fn fetch(
    url: &ObjectUrl,
    path: &Path,
    known: &Head,
    into: &File,
    name: &Path,
    abandoned: &Abandoned,
) -> Result<Digest, ObjectError> {
    let changed = || ObjectError::Changed(url.clone());
    let (file, before) = open(url, path)?;
    if Some(etag(&before)) != known.etag {
        return Err(changed());
    }
    let file = Arc::new(file);
    let source = Source::File(Arc::clone(&file));
    let digest = copy(&source, known.bytes, abandoned, into).map_err(|uncopied| match uncopied {
        Uncopied::Unwritten(error) => ObjectError::local(name, &error),
        Uncopied::Unread(error) if error.kind() == io::ErrorKind::UnexpectedEof => changed(),
        Uncopied::Unread(error) => ObjectError::file(url, path, &error),
    })?;
    let after = file.metadata().map_err(|error| ObjectError::file(url, path, &error))?;
    if etag(&after) == etag(&before) { Ok(digest) } else { Err(changed()) }
}

/// Removes the object; it is none, if it is there no more.
pub(crate) fn remove(url: &ObjectUrl, path: &Path) -> Result<(), ObjectError> {
    match open(url, path) {
        Ok(_) => {}
        Err(ObjectError::NotFound(_)) => return Ok(()),
        Err(other) => return Err(other),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ObjectError::file(url, path, &error)),
        _ => Ok(()),
    }
}

/// The regular files below a folder; links are not followed.
pub(crate) fn list(url: &ObjectUrl, folder: &Path, max: usize) -> Result<Vec<Listed>, ObjectError> {
    let too_much = |reason: String| ObjectError::TooMuch { url: url.clone(), reason };
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    let mut looked_at = 0;
    while let Some(folder) = open.pop() {
        let failed = |error: io::Error| ObjectError::file(url, &folder, &error);
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            looked_at += 1;
            if looked_at > LOOKED_AT_MAX {
                return Err(too_much(format!("more than {LOOKED_AT_MAX} files and folders; list less")));
            }
            let metadata = entry.metadata().map_err(failed)?;
            if metadata.is_dir() {
                open.push(entry.path());
            }
            let unfinished = entry.file_name().to_string_lossy().starts_with(unfinished::PREFIX);
            if !metadata.is_file() || unfinished {
                continue;
            }
            let Some(url) = entry.path().to_str().and_then(|path| format!("file://{path}").parse().ok())
            else {
                continue;
            };
            if found.len() == max {
                return Err(too_much(format!("more than {max} objects; list less")));
            }
            found.push(Listed { url, bytes: metadata.len() });
        }
    }
    found.sort_by(|a, b| a.url.cmp(&b.url));
    Ok(found)
}
