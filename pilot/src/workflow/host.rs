//! Files of this machine that a workflow names: do they exist, and which ones does a pattern mean.
//!
//! A pattern has `*` (any characters) and `?` (one character), each within one path component; neither matches a dot at
//! the beginning of a name. There is no way to quote them.
//!
//! Must not know: the workflow format.

use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Most files that one pattern may mean.
pub const MATCHES_MAX: usize = 10_000;
/// Most directory entries that are read for one pattern.
const ENTRIES_MAX: usize = 1_000_000;

/// What a path leads to, links followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A device, FIFO or socket.
    Other,
}

/// A view of the file system, so that checking a workflow can be tested (and fuzzed) without one.
pub trait HostFiles {
    /// What `path` leads to.
    ///
    /// # Errors
    /// As stat(2).
    fn kind(&self, path: &Path) -> io::Result<FileKind>;

    /// Names in a folder, in any order, at most `max`.
    ///
    /// # Errors
    /// As opendir(3) and readdir(3).
    fn names(&self, folder: &Path, max: usize) -> io::Result<Vec<OsString>>;
}

/// The machine's own file system.
#[derive(Clone, Copy, Debug)]
pub struct Disk;

impl HostFiles for Disk {
    fn kind(&self, path: &Path) -> io::Result<FileKind> {
        let metadata = std::fs::metadata(path)?;
        Ok(match metadata.file_type() {
            kind if kind.is_file() => FileKind::File,
            kind if kind.is_dir() => FileKind::Folder,
            _ => FileKind::Other,
        })
    }

    fn names(&self, folder: &Path, max: usize) -> io::Result<Vec<OsString>> {
        std::fs::read_dir(folder)?.take(max).map(|entry| Ok(entry?.file_name())).collect()
    }
}

/// Why a pattern can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum MatchError {
    #[error("no file or folder matches")]
    Nothing,
    #[error("more than {MATCHES_MAX} files match")]
    TooMany,
    #[error("more than {ENTRIES_MAX} files would have to be looked at")]
    TooWide,
}

/// Whether a path is a pattern.
pub(super) fn is_pattern(path: &str) -> bool {
    path.contains(['*', '?'])
}

/// All files and folders that a pattern means, sorted; a relative one begins at `folder`. What can't be read is not
/// matched.
pub(super) fn matches(
    files: &impl HostFiles,
    folder: &Path,
    pattern: &str,
) -> Result<Vec<PathBuf>, MatchError> {
    let mut found = vec![folder.to_owned()];
    let mut entries_left = ENTRIES_MAX;
    for component in Path::new(pattern).components().filter(|component| *component != Component::CurDir) {
        let wild = match component {
            Component::Normal(name) => name.to_str().filter(|name| is_pattern(name)),
            _ => None,
        };
        let Some(wild) = wild else {
            found.iter_mut().for_each(|path| path.push(component));
            continue;
        };
        let mut wider = Vec::new();
        for folder in found {
            let place = if folder.as_os_str().is_empty() { Path::new(".") } else { &folder };
            let names = files.names(place, entries_left + 1).unwrap_or_default();
            entries_left = entries_left.checked_sub(names.len() + 1).ok_or(MatchError::TooWide)?;
            wider.extend(
                names
                    .iter()
                    .filter(|name| name_matches(wild, &name.to_string_lossy()))
                    .map(|name| folder.join(name)),
            );
        }
        found = wider;
    }
    found.retain(|path| matches!(files.kind(path), Ok(FileKind::File | FileKind::Folder)));
    found.sort();
    match found.len() {
        0 => Err(MatchError::Nothing),
        1..=MATCHES_MAX => Ok(found),
        _ => Err(MatchError::TooMany),
    }
}

/// Whether a name fits a pattern. Linear but for one step back to the last star.
fn name_matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    n = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
