//! An input that is read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::fstat;
use wire::stage::Class;

use super::ClientError;
use crate::copy::stream;
use crate::memory::Lending;
use crate::reader::size;
use crate::{MapError, MemoryError, MemoryWriter, NotCommitted, SealedMap, StageName};

/// A stage, for as long as this lives.
#[derive(Debug)]
pub struct Input {
    name: StageName,
    bytes: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Value(Vec<u8>),
    /// In place.
    Memory {
        fd: OwnedFd,
        map: SealedMap,
    },
    /// A file, and a copy of it once its bytes were asked for.
    File {
        fd: OwnedFd,
        copy: OnceLock<SealedMap>,
    },
}

/// An input that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// Memory that is not sealed, or can't be mapped.
    #[error("read input \"{name}\"")]
    Map {
        /// Which.
        name: StageName,
        /// Why.
        #[source]
        source: MapError,
    },
    /// A file that is not what the broker said.
    #[error("read input \"{name}\": it has {found} bytes, the broker said {said}")]
    Size {
        /// Which.
        name: StageName,
        /// What it has.
        found: u64,
        /// What it should have.
        said: u64,
    },
    /// It could not be copied.
    #[error("read input \"{name}\": {why}")]
    Copy {
        /// Which.
        name: StageName,
        /// Why.
        why: String,
    },
}

impl Input {
    pub(super) fn of_value(name: StageName, value: Vec<u8>) -> Self {
        Self { name, bytes: value.len() as u64, content: Content::Value(value) }
    }

    pub(super) fn new(name: StageName, class: Class, bytes: u64, fd: OwnedFd) -> Result<Self, ClientError> {
        let wrong = |source: io::Error| ClientError::Io { doing: "read an input", source };
        let content = match class {
            Class::Mem => {
                let map = SealedMap::open(&fd).map_err(|error| wrong(io::Error::other(error)))?;
                if map.len() as u64 != bytes {
                    return Err(ClientError::Protocol { what: "memory of another size than it said" });
                }
                Content::Memory { fd, map }
            }
            Class::File => Content::File { fd, copy: OnceLock::new() },
            Class::Value => return Err(ClientError::Protocol { what: "a value with a descriptor" }),
        };
        Ok(Self { name, bytes, content })
    }

    /// Its size.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether [`bytes`](Self::bytes) shows the stage itself, and not a copy of this process.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        matches!(self.content, Content::Memory { .. })
    }

    /// The read-only descriptor; a value has none. A file is read through it without a copy in memory.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.content {
            Content::Value(_) => None,
            Content::Memory { fd, .. } | Content::File { fd, .. } => Some(fd.as_fd()),
        }
    }

    /// The bytes. Sealed memory is shown in place. A file can't be sealed, and its owner could change it, so that it is
    /// first copied, once, into sealed memory of this process: its size in memory of the payload's own.
    ///
    /// # Errors
    /// When a file can't be copied or is not what the broker said.
    pub fn bytes(&self) -> Result<&[u8], InputError> {
        match &self.content {
            Content::Value(value) => Ok(value),
            Content::Memory { map, .. } => Ok(map),
            Content::File { fd, copy } => {
                if let Some(copy) = copy.get() {
                    return Ok(copy);
                }
                let made = self.private_copy(fd.as_fd())?;
                Ok(copy.get_or_init(|| made))
            }
        }
    }

    /// Maps all its pages at once, so that no access waits for one later; see [`SealedMap::populate`](crate::SealedMap::populate).
    /// A copy is there already.
    pub fn populate(&self) {
        if let Content::Memory { map, .. } = &self.content {
            map.populate();
        }
    }

    fn private_copy(&self, fd: BorrowedFd<'_>) -> Result<SealedMap, InputError> {
        let failed = |why: String| InputError::Copy { name: self.name.clone(), why };
        let kernel = |error: MemoryError| failed(format!("{}: {}", error.doing, error.source));
        let memory = MemoryWriter::create(&self.name, Lending::ByFd).map_err(kernel)?;
        memory.allocate(self.bytes).map_err(kernel)?;
        stream(fd, memory.lend(), self.bytes).map_err(|reason| failed(reason.to_string()))?;
        let found = fstat(fd).map(|stat| size(&stat)).map_err(|errno| failed(errno.to_string()))?;
        if found != self.bytes {
            return Err(InputError::Size { name: self.name.clone(), found, said: self.bytes });
        }
        let sealed = memory.commit_exactly(self.bytes);
        let sealed = sealed.map_err(|NotCommitted { error, .. }| failed(error.to_string()))?;
        SealedMap::open(&sealed).map_err(|source| InputError::Map { name: self.name.clone(), source })
    }
}
