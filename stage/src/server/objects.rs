//! What the broker's thread holds: memory, files, values, each under an id.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};

use super::Content;
use crate::broker::ObjectId;
use crate::{MemoryStage, MemoryWriter, StageName};

#[derive(Debug)]
pub(super) enum Object {
    /// A producer writes it.
    Lent(MemoryWriter),
    /// A worker has it.
    Away,
    Memory(MemoryStage),
    /// A file; `ours` is one that was spilled.
    File {
        dir: Arc<OwnedFd>,
        path: PathBuf,
        ours: bool,
    },
    /// A folder, which no descriptor may leave for: from one, `..` leads to the pilot's own.
    Folder,
    Value(Vec<u8>),
}

/// Giving back less than this is not worth a thread's attention: about a millisecond.
pub(super) const LIGHT_BYTES: u64 = 8 << 20;

impl Object {
    pub(super) fn spilled(dir: &Arc<OwnedFd>, name: &StageName) -> Self {
        Self::File { dir: Arc::clone(dir), path: name.as_str().into(), ours: true }
    }

    pub(super) fn is_light(&self) -> bool {
        match self {
            Self::Memory(stage) => stage.bytes() <= LIGHT_BYTES,
            Self::Lent(_) => false,
            Self::Away | Self::Folder | Self::Value(_) => true,
            Self::File { ours, .. } => !ours,
        }
    }

    /// Gives everything back.
    pub(super) fn free(self) {
        match self {
            Self::File { dir, path, ours: true } => {
                let _ = unlinkat(&*dir, &path, AtFlags::empty());
            }
            Self::Lent(writer) => {
                let _ = writer.revoke();
            }
            Self::Away | Self::Memory(_) | Self::File { .. } | Self::Folder | Self::Value(_) => {}
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Objects {
    all: BTreeMap<ObjectId, Object>,
    /// Spilled copies that are not yet the stage.
    pub(super) copies: BTreeMap<ObjectId, StageName>,
}

impl Objects {
    pub(super) fn insert(&mut self, id: ObjectId, object: Object) -> Option<Object> {
        self.all.insert(id, object)
    }

    pub(super) fn remove(&mut self, id: ObjectId) -> Option<Object> {
        self.all.remove(&id)
    }

    pub(super) fn holds(&self, id: ObjectId) -> bool {
        self.all.contains_key(&id)
    }

    pub(super) fn memory(&self, id: ObjectId) -> Option<&MemoryStage> {
        match self.all.get(&id) {
            Some(Object::Memory(stage)) => Some(stage),
            _ => None,
        }
    }

    pub(super) fn lent(&self, id: ObjectId) -> Option<&MemoryWriter> {
        match self.all.get(&id) {
            Some(Object::Lent(writer)) => Some(writer),
            _ => None,
        }
    }

    /// Takes memory that is lent, for a worker to seal.
    pub(super) fn take_lent(&mut self, id: ObjectId) -> Option<MemoryWriter> {
        match self.all.get_mut(&id).map(|object| std::mem::replace(object, Object::Away)) {
            Some(Object::Lent(writer)) => Some(writer),
            Some(other) => {
                self.all.insert(id, other);
                None
            }
            None => None,
        }
    }

    /// Opens one for reading.
    pub(super) fn open(&self, id: ObjectId) -> io::Result<Content> {
        match self.all.get(&id) {
            Some(Object::Memory(stage)) => stage.reader().map(Content::Memory).map_err(|error| error.source),
            Some(Object::File { dir, path, .. }) => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                Ok(Content::File(openat(dir.as_fd(), path, flags, Mode::empty())?))
            }
            Some(Object::Folder) => Err(io::Error::new(
                io::ErrorKind::IsADirectory,
                "it is a folder; read it by path, below /stage/in",
            )),
            Some(Object::Value(value)) => Ok(Content::Value(value.clone())),
            Some(Object::Lent(_) | Object::Away) | None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Moves a spilled file to where the pilot wants it, whose it is from then on.
    pub(super) fn give_place(
        &mut self,
        id: ObjectId,
        to: Arc<OwnedFd>,
        as_path: PathBuf,
    ) -> io::Result<bool> {
        let Some(object) = self.all.get_mut(&id) else { return Ok(false) };
        let Object::File { dir, path, ours: true } = object else { return Ok(false) };
        renameat(&**dir, &*path, &*to, &as_path)?;
        *object = Object::File { dir: to, path: as_path, ours: false };
        Ok(true)
    }

    pub(super) fn drop_copies(&mut self, dir: &Arc<OwnedFd>) {
        for name in std::mem::take(&mut self.copies).into_values() {
            Object::spilled(dir, &name).free();
        }
    }

    pub(super) fn free_all(&mut self) {
        for object in std::mem::take(&mut self.all).into_values() {
            object.free();
        }
    }
}
