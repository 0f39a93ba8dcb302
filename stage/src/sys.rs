//! The calls that no safe wrapper has: file leases and the mapping of sealed memory.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use memmap2::{Mmap, MmapOptions};
use rustix::fs::{FileType, fcntl_get_seals, fstat};

use crate::reader::{MapError, SEALS_NEEDED, allocated, size};

/// fcntl(2) F_SETSIG; not in the libc crate.
const F_SETSIG: libc::c_int = 10;

/// Takes (`F_RDLCK`) or gives back (`F_UNLCK`) a lease on the open file.
pub(crate) fn set_lease(fd: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: F_SETLEASE takes an int and no pointer; `fd` is borrowed, so it is open during the call.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, kind) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The lease on the open file: `F_RDLCK`, or `F_UNLCK` when there is none or a writer waits for its end.
pub(crate) fn lease(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // SAFETY: F_GETLEASE takes no argument; `fd` is borrowed, so it is open during the call.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETLEASE) } {
        -1 => Err(io::Error::last_os_error()),
        kind => Ok(kind),
    }
}

/// Chooses the signal that tells of a lease break. The default, SIGIO, ends a process that doesn't handle it.
pub(crate) fn set_lease_signal(fd: BorrowedFd<'_>, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: F_SETSIG takes an int and no pointer; `fd` is borrowed, so it is open during the call.
    match unsafe { libc::fcntl(fd.as_raw_fd(), F_SETSIG, signal) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Memory of which this process knows that it can't change: the precondition of mapping it, as a type.
pub(crate) struct SealProof<'fd> {
    fd: BorrowedFd<'fd>,
    bytes: usize,
}

impl<'fd> SealProof<'fd> {
    /// Asks the kernel about type, seals, size and holes.
    pub(crate) fn of(fd: BorrowedFd<'fd>) -> Result<Self, MapError> {
        let seals = fcntl_get_seals(fd).map_err(|_| MapError::NotSealed)?;
        if !seals.contains(SEALS_NEEDED) {
            return Err(MapError::NotSealed);
        }
        // Asked after the seals are known: from here on neither size nor holes can change.
        let stat = fstat(fd).map_err(|errno| MapError::Io(errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(MapError::NotRegular);
        }
        let (bytes, allocated) = (size(&stat), allocated(&stat));
        if allocated < bytes {
            return Err(MapError::Sparse { bytes, allocated });
        }
        let bytes = usize::try_from(bytes).map_err(|_| MapError::Io(io::ErrorKind::FileTooLarge.into()))?;
        Ok(Self { fd, bytes })
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Maps the memory for reading; nothing when it is empty.
    pub(crate) fn map(self) -> Result<Option<Mmap>, MapError> {
        if self.bytes == 0 {
            return Ok(None);
        }
        // SAFETY: `of` is the only way to a proof. It found WRITE, so no one changes the bytes while they are borrowed;
        // SHRINK, so no page vanishes; and no hole, so no access runs out of memory. Seals never go away.
        let map = unsafe { MmapOptions::new().len(self.bytes).map(self.fd.as_raw_fd()) };
        map.map(Some).map_err(MapError::Io)
    }
}

/// How many bytes the peer of a unix socket has not received yet (SIOCOUTQ, tty_ioctl(4) TIOCOUTQ).
pub(crate) fn unread_bytes(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut unread: libc::c_int = 0;
    // SAFETY: TIOCOUTQ writes one int to where the pointer says, and that is a local int; `socket` is open.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(u64::try_from(unread).unwrap_or(0)),
    }
}
