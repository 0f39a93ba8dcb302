//! Proof that nobody writes to a file while it becomes a stage: a lease where there is one, and a look before and after.
//!
//! **Must not know:** names, folders, what becomes of the file.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Stat, fchmod, fstat};

use crate::copy::is_memory;
use crate::reader::{allocated, read_only, size};
use crate::{CommitReason, FileLease, LeaseError};

/// A file that had no writer at the first look.
pub(crate) struct Unwritten<'fd> {
    pub(crate) file: &'fd OwnedFd,
    lease: Option<FileLease<'fd>>,
    /// How it was then.
    pub(crate) before: Stat,
}

impl<'fd> Unwritten<'fd> {
    /// Takes the first look.
    pub(crate) fn begin(file: &'fd OwnedFd) -> Result<Self, CommitReason> {
        let lease = match FileLease::take(file) {
            Ok(lease) => Some(lease),
            Err(LeaseError::Writer) => return Err(CommitReason::StillWritten),
            Err(LeaseError::NotOwner | LeaseError::Unsupported) => None,
            Err(LeaseError::Io(source)) => return Err(CommitReason::Io { doing: "lease it", source }),
        };
        let before = fstat(file).map_err(CommitReason::io("look at it"))?;
        Ok(Self { file, lease, before })
    }

    /// Whether the kernel would tell of a writer. Otherwise only a copy is safe.
    pub(crate) fn is_leased(&self) -> bool {
        self.lease.is_some()
    }

    /// Takes the right to write from everybody, before the file gets a second name.
    pub(crate) fn make_read_only(&self) -> Result<(), CommitReason> {
        let (bytes, allocated) = (size(&self.before), allocated(&self.before));
        if is_memory(self.file.as_fd())? && allocated < bytes {
            return Err(CommitReason::Sparse { bytes, allocated });
        }
        fchmod(self.file, read_only(&self.before)).map_err(CommitReason::io("make it read-only"))
    }

    /// Looks back: did anyone write, or try to, meanwhile? Gives how it is now.
    pub(crate) fn end(&self) -> Result<Stat, CommitReason> {
        let unbroken = self.lease.as_ref().map_or(Ok(true), FileLease::is_unbroken);
        let unbroken = unbroken.map_err(|source| CommitReason::Io { doing: "ask for its lease", source })?;
        let after = fstat(self.file).map_err(CommitReason::io("look at it"))?;
        let looks = [&self.before, &after].map(|stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec));
        if unbroken && looks[0] == looks[1] { Ok(after) } else { Err(CommitReason::StillWritten) }
    }
}
