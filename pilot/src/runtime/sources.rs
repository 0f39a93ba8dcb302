//! Files that inputs come from, as both runtimes look at them before they mount or show them.
//!
//! **Must not know:** containers, where an input is shown.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::fs::Metadata;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pilot_core::{Fault, FaultClass};

use super::stages::Stages;
use crate::payload::{Input, Payload, Source};

/// The file or folder that an input is, and whether it is a file.
pub(super) fn source_of(payload: &Payload, input: &Input, stages: &Stages) -> Result<(PathBuf, bool), Fault> {
    match &input.source {
        Source::Stage(uri) => {
            let missing = || Fault::new(FaultClass::Retry, format!("{uri} is not there as a file or folder"));
            let path = stages.file(uri).ok_or_else(missing)?;
            let is_file = !path.is_dir();
            Ok((path, is_file))
        }
        Source::Object(url) => Ok((stages.objects.path(payload, url)?, true)),
        Source::Host(path) => match std::fs::metadata(path) {
            Ok(meta) => Ok((path.clone(), !meta.is_dir())),
            Err(error) => {
                let (name, path) = (input.name.as_str(), path.display());
                let text =
                    format!("read input \"{name}\" from {path}: {error}; put it there, or correct \"from\"");
                Err(Fault::new(FaultClass::Payload, text))
            }
        },
    }
}

/// Tells a file from another one that takes its place later. A container holds on to what it has mounted.
pub(super) fn identity(path: &Path) -> String {
    let number = std::fs::metadata(path).map_or(String::new(), |meta| number(&meta));
    format!("{}#{number}", path.display())
}

/// Tells what is in a file or folder from what was there before, without reading files: what is shown to a container may be
/// a copy.
pub(super) fn contents(path: &Path) -> io::Result<String> {
    let mut hasher = DefaultHasher::new();
    let mut open = vec![(path.to_owned(), std::fs::metadata(path)?)];
    while let Some((path, meta)) = open.pop() {
        (number(&meta), meta.len(), meta.mode(), meta.mtime(), meta.mtime_nsec()).hash(&mut hasher);
        if !meta.is_dir() {
            continue;
        }
        let names = std::fs::read_dir(&path)?.map(|entry| entry.map(|entry| entry.file_name()));
        let mut names = names.collect::<io::Result<Vec<OsString>>>()?;
        names.sort();
        for name in names {
            name.hash(&mut hasher);
            let path = path.join(name);
            let meta = std::fs::symlink_metadata(&path)?;
            open.push((path, meta));
        }
    }
    Ok(format!("{}#{:016x}", path.display(), hasher.finish()))
}

fn number(meta: &Metadata) -> String {
    format!("{:x}.{:x}", meta.dev(), meta.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_below_a_folder_is_seen_and_the_same_is_the_same() {
        let folder = tempfile::tempdir().expect("tempdir");
        let deep = folder.path().join("a/b");
        std::fs::create_dir_all(&deep).expect("mkdir");
        std::fs::write(deep.join("file"), "one").expect("write");
        let seen = || contents(folder.path()).expect("contents");
        let before = seen();
        assert_eq!(before, seen());
        std::fs::write(deep.join("file"), "more").expect("write");
        let longer = seen();
        assert_ne!(before, longer);
        std::fs::write(deep.join("other"), "").expect("write");
        assert_ne!(longer, seen());
    }

    #[test]
    fn a_file_that_takes_anothers_place_is_another() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("file");
        std::fs::write(&path, "one").expect("write");
        let before = identity(&path);
        assert_eq!(before, identity(&path));
        std::fs::write(folder.path().join("new"), "one").expect("write");
        std::fs::rename(folder.path().join("new"), &path).expect("rename");
        assert_ne!(before, identity(&path));
    }
}
