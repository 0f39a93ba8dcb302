//! A read lease: the kernel's proof that no one has a file open or mapped for writing.
//!
//! fcntl(2) grants `F_RDLCK` on a read-only descriptor only while no descriptor and no shared mapping can write the
//! file. While it is held, an open for writing waits (or fails with EWOULDBLOCK) and the holder gets a signal.
//! Only the file's owner (or CAP_LEASE) may take one. True on ext4 and tmpfs files; on a memfd the lease is granted
//! while a writable descriptor is open, so memory needs seals instead.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::sys;

/// A held read lease; given back when dropped.
#[derive(Debug)]
pub struct FileLease<'fd> {
    fd: BorrowedFd<'fd>,
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Someone has the file open or mapped for writing.
    #[error("lease file: it is still open for writing")]
    Writer,
    /// The file belongs to another uid.
    #[error("lease file: it belongs to another user")]
    NotOwner,
    /// This file system has no leases, or the host switched them off (`fs.leases-enable`).
    #[error("lease file: its file system has no leases")]
    Unsupported,
    /// The kernel refused for another reason.
    #[error("lease file")]
    Io(#[source] io::Error),
}

impl<'fd> FileLease<'fd> {
    /// Takes a read lease on a descriptor that was opened read-only.
    ///
    /// # Errors
    /// [`LeaseError::Writer`] is the answer that matters: the file can still change.
    pub fn take(file: &'fd impl AsFd) -> Result<Self, LeaseError> {
        let fd = file.as_fd();
        // SIGURG is ignored unless someone asks for it, so a break harms no process that knows nothing of leases.
        sys::set_lease_signal(fd, libc::SIGURG).map_err(LeaseError::Io)?;
        sys::set_lease(fd, libc::F_RDLCK).map_err(why_refused)?;
        Ok(Self { fd })
    }

    /// Whether no one has tried to open the file for writing since the lease was taken.
    ///
    /// # Errors
    /// When the kernel can't say.
    pub fn is_unbroken(&self) -> io::Result<bool> {
        Ok(sys::lease(self.fd)? == libc::F_RDLCK)
    }
}

impl Drop for FileLease<'_> {
    fn drop(&mut self) {
        // A lease that can't be given back ends when its descriptor closes.
        let _ = sys::set_lease(self.fd, libc::F_UNLCK);
    }
}

fn why_refused(error: io::Error) -> LeaseError {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => LeaseError::Writer,
        Some(libc::EACCES | libc::EPERM) => LeaseError::NotOwner,
        Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS) => LeaseError::Unsupported,
        _ => LeaseError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        let why = |errno| why_refused(io::Error::from_raw_os_error(errno));
        assert!(matches!(why(libc::EAGAIN), LeaseError::Writer));
        assert!(matches!(why(libc::EACCES), LeaseError::NotOwner));
        assert!(matches!(why(libc::EINVAL), LeaseError::Unsupported));
        assert!(matches!(why(libc::EOPNOTSUPP), LeaseError::Unsupported));
        assert!(matches!(why(libc::ENOMEM), LeaseError::Io(_)));
    }
}
