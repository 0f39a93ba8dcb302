//! Reading sealed memory in place.

use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;

use memmap2::Mmap;
use rustix::fs::{Mode, SealFlags, Stat};

use crate::sys;

/// The seals without which memory is never shown as a slice.
pub(crate) const SEALS_NEEDED: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW);

/// Sealed memory, mapped for reading. Keeps the memory alive after its descriptors are closed.
#[derive(Debug)]
pub struct SealedMap {
    /// None for an empty stage: there is nothing to map.
    map: Option<Mmap>,
}

/// Why memory was not mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// A device, pipe or folder.
    #[error("map stage: it is not a regular file")]
    NotRegular,
    /// Someone could still change it, whatever its sender says.
    #[error("map stage: it is not sealed against writing, shrinking and growing")]
    NotSealed,
    /// Reading its holes would allocate memory in the reader's name.
    #[error("map stage of {bytes} bytes: only {allocated} are in memory")]
    Sparse {
        /// Size.
        bytes: u64,
        /// How much of it has memory behind it.
        allocated: u64,
    },
    /// Another one than was noted.
    #[error("take up a stage of {bytes} bytes: {noted} were noted")]
    OtherSize {
        /// Size.
        bytes: u64,
        /// What it was when it was committed.
        noted: u64,
    },
    /// The kernel refused.
    #[error("map stage")]
    Io(#[source] io::Error),
}

impl SealedMap {
    /// Checks type, seals and holes of `fd` and maps it. The descriptor is not needed afterwards.
    ///
    /// # Errors
    /// When the memory could still change or grow, or mapping fails.
    pub fn open(fd: impl AsFd) -> Result<Self, MapError> {
        Ok(Self { map: sys::SealProof::of(fd.as_fd())?.map()? })
    }

    /// Maps all its pages at once, so that no access waits for one later. It does not make reading all of them faster: on demand the
    /// kernel maps sixteen at a time, and takes from a half to nine tenths of the time of this (measured, Linux 6.18).
    /// Kernels before 5.14 have no such call, and then it does nothing.
    pub fn populate(&self) {
        if let Some(map) = &self.map {
            // A wish: without it the pages come on demand.
            let _ = map.advise(memmap2::Advice::PopulateRead);
        }
    }
}

impl Deref for SealedMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

impl AsRef<[u8]> for SealedMap {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// What a file may be for once nobody writes it: 0444, and 0555 for a program. Set-id bits never stay.
pub(crate) fn read_only(stat: &Stat) -> Mode {
    Mode::from_raw_mode(if stat.st_mode & 0o111 == 0 { 0o444 } else { 0o555 })
}

pub(crate) fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// stat(2): `st_blocks` counts 512 bytes whatever the file system's block size.
pub(crate) fn allocated(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
}
