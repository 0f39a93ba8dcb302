//! Outputs that grow past what they may have, seen while it happens and not only at the commit.
//!
//! No limit of the kernel's fits: `RLIMIT_FSIZE` is one for all files that a process writes, `/work` among them, and
//! `F_SEAL_GROW` on memory would also stop a program that cuts its output and writes it anew. So sizes are looked at, several
//! times a second. What is written faster than that into memory meets the slot's memory limit, which knows of `max_size`.
//!
//! **Must not know:** how a payload is ended.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, fstat, statat};
use stage::StageName;

use super::stages::{OpenOutput, open_folder};
use crate::payload::Payload;
use crate::ui::bytes;

/// What is looked at of one launch.
#[derive(Debug, Default)]
pub(super) struct Growth {
    memory: Vec<(Most, OwnedFd)>,
    files: Arc<[Most]>,
    out: Option<Arc<OwnedFd>>,
}

/// What an output may have.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Most {
    name: StageName,
    max_bytes: u64,
}

/// An output that has more than it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Overgrown {
    most: Most,
    bytes: u64,
}

impl Growth {
    /// Of a payload's outputs, those that are memory or a file in `out`. Memory that can't be looked at is judged at its commit.
    pub(super) fn of(payload: &Payload, outputs: &[OpenOutput], out: &Path) -> Self {
        let (mut memory, mut files) = (Vec::new(), Vec::new());
        for (output, open) in payload.outputs.iter().zip(outputs) {
            let most = Most { name: output.name.clone(), max_bytes: output.max_bytes };
            match open {
                OpenOutput::Memory(writer) => {
                    memory.extend(writer.lend().try_clone_to_owned().map(|fd| (most, fd)));
                }
                OpenOutput::File(_) | OpenOutput::Value(_) => files.push(most),
                // A folder is measured with all else that is on disk; the size of what is shared is fixed.
                OpenOutput::Folder | OpenOutput::Shared(_) | OpenOutput::Passing => {}
            }
        }
        let out = if files.is_empty() { None } else { open_folder(out).ok().map(Arc::new) };
        Self { memory, files: files.into(), out }
    }

    /// Whether there is anything to look at.
    pub(super) fn watches(&self) -> bool {
        !self.memory.is_empty() || self.out.is_some()
    }

    /// The first output that has more than it may have.
    pub(super) async fn overgrown(&self) -> Option<Overgrown> {
        let size = |(most, fd): &(Most, OwnedFd)| Some(most.judge(size_of(&fstat(fd.as_fd()).ok()?)));
        if let Some(overgrown) = self.memory.iter().filter_map(size).flatten().next() {
            return Some(overgrown);
        }
        let (files, out) = (Arc::clone(&self.files), Arc::clone(self.out.as_ref()?));
        // A file system may keep one waiting.
        let look = tokio::task::spawn_blocking(move || files.iter().find_map(|most| most.look(&out)));
        look.await.ok().flatten()
    }
}

impl Most {
    fn judge(&self, bytes: u64) -> Option<Overgrown> {
        (bytes > self.max_bytes).then(|| Overgrown { most: self.clone(), bytes })
    }

    /// What lies under its name, also when the program has put another file there.
    fn look(&self, out: &OwnedFd) -> Option<Overgrown> {
        let stat = statat(out, self.name.as_str(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if is_file { self.judge(size_of(&stat)) } else { None }
    }
}

fn size_of(stat: &rustix::fs::Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

impl fmt::Display for Overgrown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { most: Most { name, max_bytes }, bytes: has } = self;
        let (has, most) = (bytes(*has), bytes(*max_bytes));
        write!(f, "output \"{name}\" has grown to {has}, and its max_size is {most}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_overgrown_above_its_size_and_not_at_it() {
        let most = Most { name: "hits".parse().expect("name"), max_bytes: 1 << 20 };
        assert_eq!((most.judge(0), most.judge(1 << 20)), (None, None));
        let more = most.judge(3 << 20).expect("it is more");
        assert_eq!(more.to_string(), "output \"hits\" has grown to 3.00 MiB, and its max_size is 1.00 MiB");
    }

    #[test]
    fn what_lies_under_an_outputs_name_is_looked_at_and_links_are_not_followed() {
        let home = tempfile::tempdir().expect("a folder");
        let out = open_folder(home.path()).expect("it is open");
        let most = Most { name: "x".parse().expect("name"), max_bytes: 3 };
        assert_eq!(most.look(&out), None);
        let large = home.path().join("large");
        std::fs::write(&large, "four").expect("a file");
        std::os::unix::fs::symlink(&large, home.path().join("x")).expect("a link");
        assert_eq!(most.look(&out), None);
        std::fs::rename(&large, home.path().join("x")).expect("renamed over it");
        assert_eq!(most.look(&out), Some(Overgrown { most: most.clone(), bytes: 4 }));
    }
}
