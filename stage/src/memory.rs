//! Class `mem`: memory that is lent for writing, then sealed.
//!
//! ```text
//! MemoryWriter::create -> lend (the producer writes) -> commit -> MemoryStage -> reader -> SealedMap
//!                                                         | Busy: a writable mapping lives
//!                                                         +-> the writer comes back, try again
//! ```
//! Sealing comes first and everything else is judged after it, because only then does nothing move: a size or a hole
//! that is looked at before can be another one a moment later.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags, Timespec, Timestamps, fallocate, fchmod,
    fcntl_add_seals, fcntl_get_seals, fstat, futimens, memfd_create, open,
};
use rustix::io::{Errno, retry_on_intr};
use rustix::time::{ClockId, clock_gettime};

use crate::reader::{SEALS_NEEDED, allocated, size};
use crate::{CommitError, CommitReason, StageName};

/// How the producer reaches the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lending {
    /// Through a descriptor that it inherits or receives: mode 0600.
    ByFd,
    /// Through a `/proc/<holder>/fd/N` path too, so that another uid can open it: mode 0666.
    ByPath,
}

/// Why there is no memory to write to.
#[derive(Debug, thiserror::Error)]
#[error("{doing} of \"{name}\"")]
pub struct MemoryError {
    /// Which output.
    pub name: StageName,
    /// What failed.
    pub doing: &'static str,
    /// The kernel's answer.
    #[source]
    pub source: std::io::Error,
}

/// Memory that a producer may still write.
#[derive(Debug)]
pub struct MemoryWriter {
    pub(crate) name: StageName,
    pub(crate) fd: OwnedFd,
}

/// A failed commit gives the writer back: after [`CommitReason::Busy`] it is worth another try when the producer is gone.
#[derive(Debug)]
pub struct NotCommitted {
    /// Drop it to free the memory.
    pub writer: MemoryWriter,
    /// Why.
    pub error: CommitError,
}

impl fmt::Display for NotCommitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for NotCommitted {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}

/// One step of an allocation; a signal undoes at most this much.
const ALLOCATE_STEP_BYTES: u64 = 64 << 20;

impl MemoryWriter {
    /// Makes empty memory. Nothing is charged to anyone until it is written or [allocated](Self::allocate).
    ///
    /// # Errors
    /// When the kernel has no descriptor or memory left.
    pub fn create(name: &StageName, lending: Lending) -> Result<Self, MemoryError> {
        let failed =
            |doing| move |errno: Errno| MemoryError { name: name.clone(), doing, source: errno.into() };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // NOEXEC_SEAL is Linux 6.3 and demanded where vm.memfd_noexec is 2; older kernels answer EINVAL.
        let fd = match memfd_create(name.as_str(), flags | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => memfd_create(name.as_str(), flags),
            other => other,
        }
        .map_err(failed("make memory"))?;
        let mode = match lending {
            Lending::ByFd => Mode::from_raw_mode(0o600),
            Lending::ByPath => Mode::from_raw_mode(0o666),
        };
        fchmod(&fd, mode).map_err(failed("set mode"))?;
        futimens(&fd, &UNTOUCHED).map_err(failed("set time"))?;
        Ok(Self { name: name.clone(), fd })
    }

    /// Sets the size and takes the pages now, so that the caller's cgroup pays for them and not the producer's, and
    /// a lack of memory shows here. A producer that opens with O_TRUNC gives the pages back and pays for its own.
    ///
    /// # Errors
    /// When memory is short; nothing stays allocated then that wasn't before.
    pub fn allocate(&self, bytes: u64) -> Result<(), MemoryError> {
        take_pages(self.fd.as_fd(), bytes).map_err(|errno| {
            let _ = rustix::fs::ftruncate(&self.fd, 0);
            MemoryError { name: self.name.clone(), doing: "allocate memory", source: errno.into() }
        })
    }

    /// The descriptor for the producer.
    #[must_use]
    pub fn lend(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Seals the memory.
    ///
    /// # Errors
    /// [`CommitReason::Busy`] while someone has it mapped for writing; `NotProduced` when nobody ever wrote it or
    /// set its size; `TooLarge`, `Sparse`, `SealsLocked`, `Io`. The writer comes back with each of them.
    pub fn commit(self, max_bytes: u64) -> Result<MemoryStage, NotCommitted> {
        match self.seal(max_bytes) {
            Ok((fd, bytes)) => Ok(MemoryStage { name: self.name, fd, bytes }),
            Err(reason) => {
                let error = CommitError { output: self.name.clone(), reason };
                Err(NotCommitted { writer: self, error })
            }
        }
    }

    /// Forbids its producer to make it larger than it is: what was allocated is all that it gets.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn fix_size(&self) -> Result<(), MemoryError> {
        fcntl_add_seals(&self.fd, SealFlags::GROW).map_err(|errno| MemoryError {
            name: self.name.clone(),
            doing: "fix size",
            source: errno.into(),
        })
    }

    /// Forbids writing, as a producer does before it asks for the commit: the kernel looks at each page for this, and who
    /// made them has the time. What is not the producer's to decide (cutting, all other seals) is left to the commit.
    ///
    /// # Errors
    /// `EBUSY` while someone has it mapped for writing; the memory is as it was then.
    pub fn forbid_writing(fd: impl AsFd) -> std::io::Result<()> {
        Ok(fcntl_add_seals(fd, SealFlags::WRITE)?)
    }

    /// Whether nobody can write it any more, so that what is left of a commit takes no time.
    #[must_use]
    pub fn is_written(&self) -> bool {
        fcntl_get_seals(&self.fd).is_ok_and(|seals| seals.contains(SealFlags::WRITE))
    }

    /// Cuts the memory to exactly `bytes` and seals it.
    ///
    /// # Errors
    /// As [`commit`](Self::commit), and [`CommitReason::TooSmall`] when there is less. After [`CommitReason::Busy`] it is
    /// cut already.
    pub fn commit_exactly(self, bytes: u64) -> Result<MemoryStage, NotCommitted> {
        self.commit_within(bytes, SEAL_ATTEMPTS)
    }

    /// As [`commit_exactly`](Self::commit_exactly), with a number of attempts: each may take 150 ms.
    pub(crate) fn commit_within(self, bytes: u64, attempts: u32) -> Result<MemoryStage, NotCommitted> {
        let cut = || {
            let before = size(&fstat(&self.fd).map_err(CommitReason::io("look at it"))?);
            if before < bytes {
                return Err(CommitReason::TooSmall { bytes: before, wanted: bytes });
            }
            if before > bytes {
                match rustix::fs::ftruncate(&self.fd, bytes) {
                    Ok(()) => {}
                    Err(Errno::PERM) => return Err(CommitReason::SealsLocked),
                    Err(errno) => return Err(CommitReason::io("cut it")(errno)),
                }
            }
            let (fd, sealed) = self.finish(bytes, attempts)?;
            // Its producer can cut it until the seals are set.
            if sealed < bytes {
                return Err(CommitReason::TooSmall { bytes: sealed, wanted: bytes });
            }
            Ok(fd)
        };
        match cut() {
            Ok(fd) => Ok(MemoryStage { name: self.name, fd, bytes }),
            Err(reason) => {
                let error = CommitError { output: self.name.clone(), reason };
                Err(NotCommitted { writer: self, error })
            }
        }
    }

    /// Takes the memory from a producer that may keep its descriptor; whether its pages are free. A producer that has
    /// sealed it against that keeps them until it ends.
    #[must_use = "pages that are not free still cost memory"]
    pub fn revoke(self) -> bool {
        let freed = rustix::fs::ftruncate(&self.fd, 0).is_ok() || {
            let bytes = fstat(&self.fd).map_or(0, |stat| size(&stat));
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            bytes == 0 || fallocate(&self.fd, punch, 0, bytes).is_ok()
        };
        // What it writes from here on goes nowhere: there is no page left, and there will be none.
        let _ = fcntl_add_seals(&self.fd, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL);
        freed
    }

    fn seal(&self, max_bytes: u64) -> Result<(OwnedFd, u64), CommitReason> {
        let before = fstat(&self.fd).map_err(CommitReason::io("look at it"))?;
        if size(&before) == 0 && is_untouched(&before) {
            return Err(CommitReason::NotProduced);
        }
        // Too large by now is too large for good or until the producer is gone: it stays unsealed, so a retry may pass.
        within(size(&before), max_bytes)?;
        self.finish(max_bytes, SEAL_ATTEMPTS)
    }

    fn finish(&self, max_bytes: u64, attempts: u32) -> Result<(OwnedFd, u64), CommitReason> {
        add_seals(self.fd.as_fd(), attempts)?;
        let sealed = fstat(&self.fd).map_err(CommitReason::io("look at it"))?;
        let bytes = size(&sealed);
        within(bytes, max_bytes)?;
        if allocated(&sealed) < bytes {
            // Filling holes is no write: the seals allow it, and the bytes stay the zeros that they were.
            let filled = take_pages(self.fd.as_fd(), bytes);
            let stat = fstat(&self.fd).map_err(CommitReason::io("look at it"))?;
            if filled.is_err() || allocated(&stat) < bytes {
                return Err(CommitReason::Sparse { bytes, allocated: allocated(&stat) });
            }
        }
        fchmod(&self.fd, Mode::from_raw_mode(0o444)).map_err(CommitReason::io("make it read-only"))?;
        let reader = reopen(self.fd.as_fd(), OFlags::RDONLY).map_err(CommitReason::io("reopen it"))?;
        Ok((reader, bytes))
    }
}

/// A memory stage: sealed, dense, mode 0444. Freed with its last descriptor and mapping.
#[derive(Debug)]
pub struct MemoryStage {
    pub(crate) name: StageName,
    pub(crate) fd: OwnedFd,
    pub(crate) bytes: u64,
}

impl MemoryStage {
    /// Name of the output that it was.
    #[must_use]
    pub fn name(&self) -> &StageName {
        &self.name
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A descriptor for one consumer: read-only, with an offset of its own.
    ///
    /// # Errors
    /// When no descriptor is left, or `/proc` is not there.
    pub fn reader(&self) -> Result<OwnedFd, MemoryError> {
        reopen(self.fd.as_fd(), OFlags::RDONLY).map_err(|errno| MemoryError {
            name: self.name.clone(),
            doing: "open reader",
            source: errno.into(),
        })
    }
}

impl AsFd for MemoryStage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A time that no clock gives: every write, truncation and O_TRUNC replaces it, however coarse the clock.
pub(crate) const UNTOUCHED: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 0, tv_nsec: 0 },
    last_modification: Timespec { tv_sec: 0, tv_nsec: 0 },
};

pub(crate) fn is_untouched(stat: &rustix::fs::Stat) -> bool {
    stat.st_mtime == 0 && stat.st_mtime_nsec == 0
}

pub(crate) fn within(bytes: u64, max: u64) -> Result<(), CommitReason> {
    if bytes > max { Err(CommitReason::TooLarge { bytes, max }) } else { Ok(()) }
}

/// A new open file of the same inode, by way of `/proc/self/fd`.
pub(crate) fn reopen(fd: BorrowedFd<'_>, access: OFlags) -> rustix::io::Result<OwnedFd> {
    open(proc_path(fd), access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())
}

pub(crate) fn proc_path(fd: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Makes `bytes` from the start exist, size included.
pub(crate) fn take_pages(fd: BorrowedFd<'_>, bytes: u64) -> rustix::io::Result<()> {
    let mut at = 0;
    while at < bytes {
        let step = ALLOCATE_STEP_BYTES.min(bytes - at);
        retry_on_intr(|| fallocate(fd, FallocateFlags::empty(), at, step))?;
        at += step;
    }
    Ok(())
}

/// How often sealing is tried while pages are pinned.
const SEAL_ATTEMPTS: u32 = 4;
/// The kernel looks for pinned pages for 150 ms (mm/memfd.c) before it says EBUSY; a writable mapping is EBUSY at once.
const PINNED_US: u64 = 100_000;

fn add_seals(fd: BorrowedFd<'_>, attempts: u32) -> Result<(), CommitReason> {
    let mut left = attempts;
    loop {
        let began = now_us();
        left = left.saturating_sub(1);
        match fcntl_add_seals(fd, SEALS_NEEDED | SealFlags::SEAL) {
            Ok(()) => return Ok(()),
            // Reclaim and compaction hold pages for a moment too, on a machine that is short of memory or time: no
            // producer can do anything about that.
            Err(Errno::BUSY) if left > 0 && now_us().saturating_sub(began) >= PINNED_US => {}
            Err(Errno::BUSY) => return Err(CommitReason::Busy),
            // SEAL is set already. A producer that set all of them did our work; one that stopped short made it useless.
            Err(Errno::PERM) => {
                return match fcntl_get_seals(fd) {
                    Ok(seals) if seals.contains(SEALS_NEEDED) => Ok(()),
                    _ => Err(CommitReason::SealsLocked),
                };
            }
            Err(errno) => return Err(CommitReason::io("seal it")(errno)),
        }
    }
}

/// Microseconds of a clock that only goes forward.
pub(crate) fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let whole = u64::try_from(now.tv_sec).unwrap_or(0).saturating_mul(1_000_000);
    whole + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}
