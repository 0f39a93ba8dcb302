//! Objects: files named by the SHA-256 of their bytes, one for each distinct content, never changed.
//! `files/ab/<hex>` holds contents of images (0444, at least one byte), `blobs/sha256/ab/<hex>` documents.
//!
//! An object appears by rename of a finished file, so it is whole or not there. Another writer of the same
//! digest is no conflict: it wrote the same bytes. Knows neither images nor trees.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::digest::Digest;
use crate::scratch::Scratch;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

/// What can go wrong with an object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// No room (or quota) left.
    #[error("write to \"{}\": no space is left there", .path.display())]
    Full {
        /// The store's folder.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The store can't be written by this user or at all.
    #[error("write to \"{}\": it is read-only for this user", .path.display())]
    ReadOnly {
        /// The store's folder.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Anything else the file system answers.
    #[error("access \"{}\"", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The object isn't there.
    #[error("find object {0} in the store")]
    Missing(Digest),
    /// The object's bytes don't have its name's digest, or not the length that the image states.
    #[error("use object {0}: its content was changed or is torn")]
    Corrupt(Digest),
}

impl ObjectError {
    /// Sorts an answer of the kernel about `path`.
    pub(crate) fn of(path: &Path, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.to_path_buf(), source.into());
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path, source },
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                Self::ReadOnly { path, source }
            }
            _ => Self::Io { path, source },
        }
    }
}

/// One family of objects.
#[derive(Debug)]
pub(crate) struct Objects {
    path: PathBuf,
    dir: OwnedFd,
}

impl Objects {
    /// Makes the folder; its 256 sub-folders come when they are needed. All can be passed by everyone:
    /// overlay looks objects up with the rights of the user that mounts, which as root is another one; the
    /// store's own folder is the fence.
    pub(crate) fn prepare(path: &Path) -> Result<(), ObjectError> {
        let io = |source| ObjectError::of(path, source);
        DirBuilder::new().recursive(true).create(path).map_err(io)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(io)
    }

    pub(crate) fn open(path: &Path) -> Result<Self, ObjectError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| ObjectError::of(path, e))?;
        Ok(Self { path: path.to_path_buf(), dir })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Path of an object below the family's folder.
    pub(crate) fn name(digest: &Digest) -> String {
        let hex = digest.hex();
        format!("{}/{hex}", &hex[..2])
    }

    /// The object's length, if it is there.
    pub(crate) fn size(&self, digest: &Digest) -> Option<u64> {
        let stat = rustix::fs::statat(&self.dir, Self::name(digest), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        u64::try_from(stat.st_size).ok()
    }

    /// Opens an object; with `size` its length is checked.
    pub(crate) fn open_object(&self, digest: &Digest, size: Option<u64>) -> Result<File, ObjectError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::openat(&self.dir, Self::name(digest), flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Err(ObjectError::Missing(*digest)),
            Err(error) => return Err(ObjectError::of(&self.path.join(Self::name(digest)), error)),
        };
        let length = file.metadata().map_err(|e| ObjectError::of(&self.path, e))?.len();
        if size.is_some_and(|size| size != length) {
            return Err(ObjectError::Corrupt(*digest));
        }
        Ok(file)
    }

    /// Reads a small object whole and checks its digest.
    pub(crate) fn read(&self, digest: &Digest, bytes_max: u64) -> Result<Vec<u8>, ObjectError> {
        let mut bytes = Vec::new();
        let file = self.open_object(digest, None)?;
        let read = file.take(bytes_max).read_to_end(&mut bytes);
        read.map_err(|e| ObjectError::of(&self.path.join(Self::name(digest)), e))?;
        if Digest::of(&bytes) == *digest { Ok(bytes) } else { Err(ObjectError::Corrupt(*digest)) }
    }

    /// Re-hashes an object.
    pub(crate) fn check(&self, digest: &Digest) -> Result<(), ObjectError> {
        let mut file = self.open_object(digest, None)?;
        let found = Digest::of_reader(&mut file)
            .map_err(|e| ObjectError::of(&self.path.join(Self::name(digest)), e))?;
        if found == *digest { Ok(()) } else { Err(ObjectError::Corrupt(*digest)) }
    }

    /// Stores `bytes` unless an object of their digest and length is there.
    pub(crate) fn put(&self, writer: &ObjectWriter<'_>, bytes: &[u8]) -> Result<Digest, ObjectError> {
        let digest = Digest::of(bytes);
        if self.size(&digest) != Some(bytes.len() as u64) {
            let mut file = writer.start()?;
            file.write(bytes)?;
            self.publish(file, &digest)?;
        }
        Ok(digest)
    }

    /// Gives a finished file its name.
    pub(crate) fn publish(&self, file: Unpublished<'_>, digest: &Digest) -> Result<(), ObjectError> {
        let io = |error: Errno| ObjectError::of(&self.path, error);
        rustix::fs::fchmod(&file.file, Mode::from_raw_mode(0o444)).map_err(io)?;
        let name = Self::name(digest);
        let scratch = file.scratch.dir();
        let rename =
            || rustix::fs::renameat_with(scratch, &file.name, &self.dir, &name, RenameFlags::NOREPLACE);
        let result = match rename() {
            Err(Errno::NOENT) => {
                self.make_fan(&name[..2]).map_err(io)?;
                rename()
            }
            other => other,
        };
        let result = match result {
            // NFS and some FUSE file systems know no flags.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rustix::fs::linkat(scratch, &file.name, &self.dir, &name, AtFlags::empty())
            }
            other => other,
        };
        match result {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) if self.size(digest) == Some(file.written) => Ok(()),
            // Torn by a power cut: the name is there and the bytes are not.
            Err(Errno::EXIST) => rustix::fs::renameat(scratch, &file.name, &self.dir, &name).map_err(io),
            Err(error) => Err(io(error)),
        }
    }

    /// Every object: its digest and length.
    pub(crate) fn all(&self) -> Result<Vec<(Digest, u64)>, ObjectError> {
        let mut objects = Vec::new();
        for fan in fs::read_dir(&self.path).map_err(|e| ObjectError::of(&self.path, e))? {
            let fan = fan.map_err(|e| ObjectError::of(&self.path, e))?.path();
            for object in fs::read_dir(&fan).map_err(|e| ObjectError::of(&fan, e))? {
                let object = object.map_err(|e| ObjectError::of(&fan, e))?;
                let digest = object.file_name().to_str().and_then(|name| Digest::from_hex(name).ok());
                let bytes = object.metadata().map(|meta| meta.len());
                objects.extend(digest.zip(bytes.ok()));
            }
        }
        Ok(objects)
    }

    /// Makes a sub-folder. Mode bits are set apart, because the umask may take some.
    fn make_fan(&self, fan: &str) -> Result<(), Errno> {
        let mode = Mode::from_raw_mode(0o755);
        match rustix::fs::mkdirat(&self.dir, fan, mode) {
            Ok(()) | Err(Errno::EXIST) => rustix::fs::chmodat(&self.dir, fan, mode, AtFlags::empty()),
            Err(error) => Err(error),
        }
    }

    /// Removes every object that `keep` doesn't want; answers how many and their bytes.
    pub(crate) fn retain(&self, keep: impl Fn(&Digest) -> bool) -> Result<(u64, u64), ObjectError> {
        let (mut objects, mut bytes) = (0, 0);
        for fan in fs::read_dir(&self.path).map_err(|e| ObjectError::of(&self.path, e))? {
            let fan = fan.map_err(|e| ObjectError::of(&self.path, e))?.path();
            for object in fs::read_dir(&fan).map_err(|e| ObjectError::of(&fan, e))? {
                let object = object.map_err(|e| ObjectError::of(&fan, e))?;
                let digest = object.file_name().to_str().and_then(|name| Digest::from_hex(name).ok());
                if digest.is_some_and(|digest| !keep(&digest)) {
                    bytes += object.metadata().map_or(0, |meta| meta.len());
                    fs::remove_file(object.path()).map_err(|e| ObjectError::of(&object.path(), e))?;
                    objects += 1;
                }
            }
        }
        Ok((objects, bytes))
    }
}

/// Makes files in a scratch folder that become objects. Shared by threads.
#[derive(Debug)]
pub(crate) struct ObjectWriter<'a> {
    scratch: &'a Scratch,
    next: AtomicU64,
}

/// A file that has no name in the store yet; it vanishes with its scratch folder, or when dropped.
#[derive(Debug)]
pub(crate) struct Unpublished<'a> {
    scratch: &'a Scratch,
    name: String,
    file: File,
    written: u64,
}

impl<'a> ObjectWriter<'a> {
    pub(crate) const fn new(scratch: &'a Scratch) -> Self {
        Self { scratch, next: AtomicU64::new(0) }
    }

    pub(crate) fn start(&self) -> Result<Unpublished<'a>, ObjectError> {
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(self.scratch.dir(), &name, flags, Mode::from_raw_mode(0o600))
            .map_err(|e| ObjectError::of(self.scratch.path(), e))?;
        Ok(Unpublished { scratch: self.scratch, name, file: File::from(fd), written: 0 })
    }
}

impl Unpublished<'_> {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), ObjectError> {
        self.file.write_all(bytes).map_err(|e| ObjectError::of(self.scratch.path(), e))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Leaves a hole.
    pub(crate) fn skip(&mut self, bytes: u64) -> Result<(), ObjectError> {
        self.written += bytes;
        rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Start(self.written))
            .and_then(|_| rustix::fs::ftruncate(self.file.as_fd(), self.written))
            .map_err(|e| ObjectError::of(self.scratch.path(), e))
    }
}

impl Drop for Unpublished<'_> {
    fn drop(&mut self) {
        // After a rename the name is gone already; after a link, or a failure, this is the clean-up.
        let _ = rustix::fs::unlinkat(self.scratch.dir(), &self.name, AtFlags::empty());
    }
}
