//! A tar file used as a folder: member names, offsets and lengths are read once, contents are read in place
//! and nothing is unpacked. Symbolic and hard links between members are followed, as old `docker save` makes
//! them. Knows nothing of images.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::entry::EntryError;
use crate::limits::Limits;
use crate::tar_stream::{Kind, TarStream};

/// How often a link may lead to a link.
const LINKS_MAX: usize = 8;

/// The members of an archive.
#[derive(Debug)]
pub(crate) struct ArchiveFile {
    file: Arc<File>,
    members: HashMap<String, Member>,
}

#[derive(Debug, Clone)]
enum Member {
    File { offset: u64, size: u64 },
    Link(String),
}

/// A part of a file that is read from its start; other readers of the file don't disturb it.
#[derive(Debug)]
pub(crate) struct Range {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Range {
    pub(crate) const fn new(file: Arc<File>, offset: u64, bytes: u64) -> Self {
        Self { file, offset, left: bytes }
    }

    /// What is left of it behind the first `bytes`.
    pub(crate) fn behind(&self, bytes: u64) -> Self {
        let skipped = bytes.min(self.left);
        Self::new(Arc::clone(&self.file), self.offset + skipped, self.left - skipped)
    }
}

impl Read for Range {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.offset)?;
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl ArchiveFile {
    /// Indexes a tar. Members that aren't plain files or links are of no use and ignored.
    pub(crate) fn open(file: File, limits: &Limits) -> Result<Self, EntryError> {
        let length = file.metadata().map_err(EntryError::Read)?.len();
        let mut members = HashMap::new();
        let mut stream = TarStream::new(&file, limits.clone());
        while let Some(entry) = stream.next_entry()? {
            if members.len() >= limits.archive_members {
                return Err(EntryError::TooManyEntries { limit: limits.archive_members as u64 });
            }
            let name = normal(&String::from_utf8_lossy(&entry.path));
            let member = match entry.kind {
                Kind::Regular if !entry.sparse => {
                    let offset = (&file).stream_position().map_err(EntryError::Read)?;
                    let stored = stream.forget_stored();
                    let next = offset.checked_add(stored).filter(|next| *next <= length);
                    let next = next.ok_or_else(|| EntryError::Read(io::ErrorKind::UnexpectedEof.into()))?;
                    (&file).seek(io::SeekFrom::Start(next)).map_err(EntryError::Read)?;
                    Member::File { offset, size: entry.size }
                }
                Kind::Symlink => {
                    let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                    Member::Link(normal(&format!("{parent}/{}", String::from_utf8_lossy(&entry.link))))
                }
                Kind::HardLink => Member::Link(normal(&String::from_utf8_lossy(&entry.link))),
                Kind::Regular | Kind::Directory | Kind::Special => continue,
            };
            members.insert(name, member);
        }
        Ok(Self { file: Arc::new(file), members })
    }

    /// Where a member lies: reader and length.
    pub(crate) fn member(&self, name: &str) -> Option<(Range, u64)> {
        let mut name = normal(name);
        for _ in 0..LINKS_MAX {
            match self.members.get(&name)? {
                Member::File { offset, size } => {
                    return Some((Range::new(Arc::clone(&self.file), *offset, *size), *size));
                }
                Member::Link(target) => name.clone_from(target),
            }
        }
        None
    }
}

/// A member's name without `.`, empty names and `..`.
fn normal(name: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            part => names.push(part),
        }
    }
    names.join("/")
}
