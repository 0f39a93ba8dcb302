//! A private copy of a file, made where a link would not be safe or not possible.
//!
//! The copy has no name until it is whole (O_TMPFILE), so a crash leaves nothing behind. Where the file system has no
//! nameless files it gets a name beginning with a dot, which no [`StageName`] does, and loses it on any error.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, copy_file_range, fchmod, fstat, fstatfs, ioctl_ficlone, linkat, openat,
    unlinkat,
};
use rustix::io::{Errno, pread, pwrite, retry_on_intr};
use rustix::path::Arg;

use crate::memory::{proc_path, take_pages, within};
use crate::reader::{read_only, size};
use crate::{CommitReason, StageName};

/// Why a file was copied and not linked. The summary counts these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyCopied {
    /// The payload's uid owns it, and an owner can make a file writable again.
    OtherOwner,
    /// The file system has no leases, so a writer can't be ruled out.
    NoLease,
    /// The folders are on different file systems.
    OtherFileSystem,
    /// The file system has no hard links, or the file has as many as it can.
    NoLinks,
    /// It has several names in its folder, and each of them must be the only one.
    ManyNames,
}

impl fmt::Display for WhyCopied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherOwner => "the payload's user owns it",
            Self::NoLease => "its file system has no leases",
            Self::OtherFileSystem => "it lies on another file system",
            Self::NoLinks => "its file system has no link left for it",
            Self::ManyNames => "it has several names",
        })
    }
}

/// What linking by descriptor came to.
pub(crate) enum Linked {
    Yes,
    No(WhyCopied),
}

/// Gives the open file the name `name` in `dir`.
pub(crate) fn link(
    file: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    name: &StageName,
) -> Result<Linked, CommitReason> {
    link_entry(file, dir, name.as_str()).map_err(|errno| match errno {
        Errno::EXIST => CommitReason::Exists { name: name.clone() },
        errno => CommitReason::io("link it")(errno),
    })
}

/// The same for a name that is no stage name.
pub(crate) fn link_entry<P: Arg>(
    file: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    name: P,
) -> rustix::io::Result<Linked> {
    // By descriptor: whatever has the payload's name by then, this is the inode that was judged.
    match linkat(CWD, proc_path(file), dir, name, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => Ok(Linked::Yes),
        Err(Errno::XDEV) => Ok(Linked::No(WhyCopied::OtherFileSystem)),
        Err(Errno::PERM | Errno::MLINK | Errno::OPNOTSUPP) => Ok(Linked::No(WhyCopied::NoLinks)),
        Err(errno) => Err(errno),
    }
}

/// Copies the open file to `name` in `dir`, read-only, owned by us. Gives its size.
pub(crate) fn copy(
    file: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    name: &StageName,
    max_bytes: u64,
) -> Result<u64, CommitReason> {
    let target = Unnamed::create(dir, name)?;
    let bytes = fill(file, target.fd.as_fd(), max_bytes)?;
    let stat = fstat(file).map_err(CommitReason::io("look at it"))?;
    fchmod(&target.fd, read_only(&stat)).map_err(CommitReason::io("make its copy read-only"))?;
    target.publish(name)?;
    Ok(bytes)
}

pub(crate) fn fill(from: BorrowedFd<'_>, to: BorrowedFd<'_>, max_bytes: u64) -> Result<u64, CommitReason> {
    if ioctl_ficlone(to, from).is_err() {
        let stat = fstat(from).map_err(CommitReason::io("look at it"))?;
        within(size(&stat), max_bytes)?;
        if is_memory(to)? {
            // The pages are taken up front: lack of memory is an error here and not a hole that a reader pays for.
            take_pages(to, size(&stat)).map_err(CommitReason::io("take memory for its copy"))?;
        }
        stream(from, to, max_bytes)?;
    }
    let copied = size(&fstat(to).map_err(CommitReason::io("look at its copy"))?);
    within(copied, max_bytes)?;
    Ok(copied)
}

/// Inside the kernel where it can, through a buffer where it can't.
pub(crate) fn stream(from: BorrowedFd<'_>, to: BorrowedFd<'_>, max_bytes: u64) -> Result<(), CommitReason> {
    const STEP_BYTES: usize = 16 << 20;
    let mut at: u64 = 0;
    loop {
        let (mut read_at, mut write_at) = (at, at);
        let copied =
            retry_on_intr(|| copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), STEP_BYTES));
        match copied {
            Ok(0) => return Ok(()),
            Ok(n) => at += n as u64,
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => break,
            Err(errno) => return Err(CommitReason::io("copy it")(errno)),
        }
        within(at, max_bytes)?;
    }
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = match retry_on_intr(|| pread(from, &mut buffer[..], at)) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(errno) => return Err(CommitReason::io("read it")(errno)),
        };
        within(at + read as u64, max_bytes)?;
        let mut written = 0;
        while written < read {
            written += retry_on_intr(|| pwrite(to, &buffer[written..read], at + written as u64))
                .map_err(CommitReason::io("write its copy"))?;
        }
        at += read as u64;
    }
}

/// A file that nobody sees until [`publish`](Self::publish).
struct Unnamed<'dir> {
    fd: OwnedFd,
    dir: BorrowedFd<'dir>,
    /// Only where the file system has no nameless files.
    temporary: Option<String>,
}

impl<'dir> Unnamed<'dir> {
    fn create(dir: BorrowedFd<'dir>, name: &StageName) -> Result<Self, CommitReason> {
        let (access, mode) = (OFlags::RDWR | OFlags::CLOEXEC, Mode::from_raw_mode(0o600));
        match openat(dir, ".", access | OFlags::TMPFILE, mode) {
            Ok(fd) => return Ok(Self { fd, dir, temporary: None }),
            // Kernels and file systems without O_TMPFILE answer with one of these.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {}
            Err(errno) => return Err(CommitReason::io("make its copy")(errno)),
        }
        Self::create_named(dir, name)
    }

    fn create_named(dir: BorrowedFd<'dir>, name: &StageName) -> Result<Self, CommitReason> {
        let access = OFlags::RDWR | OFlags::CLOEXEC | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let temporary = format!(".copying.{name}");
        // What a crash left: the folder is ours alone and names are committed once, so no one else uses it.
        let _ = unlinkat(dir, temporary.as_str(), AtFlags::empty());
        let fd = openat(dir, temporary.as_str(), access, Mode::from_raw_mode(0o600))
            .map_err(CommitReason::io("make its copy"))?;
        Ok(Self { fd, dir, temporary: Some(temporary) })
    }

    fn publish(self, name: &StageName) -> Result<(), CommitReason> {
        let linked = match &self.temporary {
            None => linkat(CWD, proc_path(self.fd.as_fd()), self.dir, name.as_str(), AtFlags::SYMLINK_FOLLOW),
            Some(temporary) => {
                linkat(self.dir, temporary.as_str(), self.dir, name.as_str(), AtFlags::empty())
            }
        };
        match linked {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(CommitReason::Exists { name: name.clone() }),
            Err(errno) => Err(CommitReason::io("name its copy")(errno)),
        }
    }
}

impl Drop for Unnamed<'_> {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = unlinkat(self.dir, temporary.as_str(), AtFlags::empty());
        }
    }
}

/// Whether what lies in this folder is memory and not disk.
#[must_use]
pub fn lies_in_memory(folder: BorrowedFd<'_>) -> bool {
    is_memory(folder).unwrap_or(false)
}

/// Whether the file's bytes are memory (statfs(2): TMPFS_MAGIC), where a hole costs whoever reads it.
pub(crate) fn is_memory(file: BorrowedFd<'_>) -> Result<bool, CommitReason> {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    let statfs = fstatfs(file).map_err(CommitReason::io("ask for its file system"))?;
    #[expect(clippy::cast_sign_loss, reason = "a magic number is a bit pattern")]
    Ok(statfs.f_type as u64 == TMPFS_MAGIC)
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
