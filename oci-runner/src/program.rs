//! The program that becomes PID 1, kept where no payload can write to it.
//!
//! `/proc/<pid>/exe` leads back to the file that runs, through every namespace. A payload with the pilot's own host id
//! could so overwrite the pilot's program for its next user. A sealed memory file can't be written by anybody.
//!
//! **Must not know:** what the program does.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

/// A loaded program, shared by all containers of a pilot.
#[derive(Debug)]
pub enum Program {
    /// A sealed copy in memory: immutable for everybody.
    Sealed {
        /// The memory file.
        memory: OwnedFd,
    },
    /// The file itself, bound read-only into each container: what remains where the kernel refuses to execute
    /// memory files (`vm.memfd_noexec=2`, Linux >= 6.3).
    File {
        /// Path on the host.
        path: PathBuf,
    },
}

/// Why a program could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file can't be read.
    #[error("read the program {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The memory file can't be made, filled or sealed.
    #[error("keep a sealed copy of {} in memory", path.display())]
    Seal {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Program {
    /// Reads the static executable at `path` into a sealed memory file, or keeps its path where the kernel forbids
    /// such files to run.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let mut from = File::open(path).map_err(|source| LoadError::Read { path: path.into(), source })?;
        let seal_error = |source| LoadError::Seal { path: path.into(), source };
        let memory = match executable_memory() {
            Ok(memory) => memory,
            Err(Errno::ACCESS) => return Ok(Self::File { path: path.into() }),
            Err(errno) => return Err(seal_error(errno.into())),
        };
        let mut memory = File::from(memory);
        io::copy(&mut from, &mut memory).map_err(seal_error)?;
        memory.flush().map_err(seal_error)?;
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&memory, seals).map_err(|errno| seal_error(errno.into()))?;
        Ok(Self::Sealed { memory: memory.into() })
    }
}

/// A memory file that may be executed. Kernels before 6.3 don't know how to ask, and grant it.
pub(crate) fn executable_memory() -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(c"latebind-program", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"latebind-program", flags),
        other => other,
    }
}
