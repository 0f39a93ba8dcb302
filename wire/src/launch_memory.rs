//! A launch that is longer than a frame travels as a sealed memfd.
//!
//! The reader checks the seals itself before it reads, so a sender that still holds a writable descriptor can't
//! change the launch between our check and our use (memfd_create(2), fcntl(2) F_ADD_SEALS).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    FileType, MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
};
use rustix::io::{pread, pwrite};

use crate::codec::{DecodeError, decode};
use crate::limits::Check;
use crate::slot::{LAUNCH_BYTES_MAX, Launch};

const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE).union(SealFlags::SEAL);

/// Why a launch in memory was not written or not accepted.
#[derive(Debug, thiserror::Error)]
pub enum LaunchMemoryError {
    /// It could be changed under the reader.
    #[error("read launch: its memory is not sealed")]
    NotSealed,
    /// Not the announced length, or above [`LAUNCH_BYTES_MAX`].
    #[error("launch of {bytes} bytes, announced as {announced}: at most {LAUNCH_BYTES_MAX} are allowed")]
    Length {
        /// As the kernel says.
        bytes: u64,
        /// As the sender says.
        announced: u64,
    },
    /// Not a launch.
    #[error("read launch")]
    Decode(#[from] DecodeError),
    /// The launch breaks its limits.
    #[error("write launch")]
    Encode(#[from] crate::EncodeError),
    /// A system call failed.
    #[error("hold launch in memory")]
    Io(#[from] std::io::Error),
}

/// Writes a launch to a sealed memfd; gives the memfd and its length.
///
/// # Errors
/// When the launch breaks its limits or memory is short.
pub fn write_launch_memory(launch: &Launch) -> Result<(OwnedFd, u32), LaunchMemoryError> {
    launch.check().map_err(crate::EncodeError::from)?;
    let bytes = postcard::to_allocvec(launch).map_err(crate::EncodeError::from)?;
    let length = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= LAUNCH_BYTES_MAX);
    let Some(length) = length else {
        return Err(LaunchMemoryError::Length { bytes: bytes.len() as u64, announced: bytes.len() as u64 });
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // NOEXEC_SEAL is Linux 6.3; EINVAL before.
    let fd = memfd_create(c"latebind-launch", flags | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| memfd_create(c"latebind-launch", flags))
        .map_err(std::io::Error::from)?;
    ftruncate(&fd, bytes.len() as u64).map_err(std::io::Error::from)?;
    let mut written = 0;
    while written < bytes.len() {
        written += pwrite(&fd, &bytes[written..], written as u64).map_err(std::io::Error::from)?;
    }
    fcntl_add_seals(&fd, SEALS).map_err(std::io::Error::from)?;
    Ok((fd, length))
}

/// Reads a launch from a memfd of `announced` bytes, after checking type, seals and length.
///
/// # Errors
/// When the memory is not sealed, not of that length, or no launch.
pub fn read_launch_memory(fd: BorrowedFd<'_>, announced: u32) -> Result<Launch, LaunchMemoryError> {
    let stat = fstat(fd).map_err(std::io::Error::from)?;
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let sealed = fcntl_get_seals(fd.as_fd()).is_ok_and(|seals| seals.contains(SEALS));
    if !regular || !sealed {
        return Err(LaunchMemoryError::NotSealed);
    }
    let bytes = u64::try_from(stat.st_size).unwrap_or(0);
    if bytes != u64::from(announced) || bytes > LAUNCH_BYTES_MAX as u64 {
        return Err(LaunchMemoryError::Length { bytes, announced: u64::from(announced) });
    }
    let mut buffer = vec![0; announced as usize];
    let mut read = 0;
    while read < buffer.len() {
        match pread(fd, &mut buffer[read..], read as u64).map_err(std::io::Error::from)? {
            0 => {
                return Err(LaunchMemoryError::Length {
                    bytes: read as u64,
                    announced: u64::from(announced),
                });
            }
            n => read += n,
        }
    }
    Ok(decode(&buffer)?)
}
