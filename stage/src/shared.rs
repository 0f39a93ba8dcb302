//! Class `shared`: memory of a fixed size that several payloads write at the same time. It is never sealed against writing
//! and never becomes a stage; nobody but the payloads looks into it.
//!
//! Its pages are taken when it is made, so that whoever makes it pays for them and a lack of memory shows before anybody
//! starts. The seals keep every holder from changing its size: one that shrank it would end the others with SIGBUS. A
//! holder can still punch holes; whoever touches such a page again pays for it.
//!
//! **Must not know:** who holds it.

use std::os::fd::OwnedFd;

use rustix::fs::{SealFlags, fcntl_add_seals};

use crate::StageName;
use crate::memory::{Lending, MemoryError, MemoryWriter};

/// Memory that is lent for reading and writing, for as long as anybody has it open.
#[derive(Debug)]
pub struct SharedMemory(MemoryWriter);

impl SharedMemory {
    /// Makes memory of exactly this size, filled with zeros.
    ///
    /// # Errors
    /// When memory is short.
    pub fn create(name: &StageName, bytes: u64) -> Result<Self, MemoryError> {
        let memory = MemoryWriter::create(name, Lending::ByPath)?;
        memory.allocate(bytes)?;
        fcntl_add_seals(memory.lend(), SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).map_err(
            |errno| MemoryError { name: name.clone(), doing: "fix the size", source: errno.into() },
        )?;
        Ok(Self(memory))
    }

    /// A descriptor for one who may read and write it.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn lend(&self) -> std::io::Result<OwnedFd> {
        self.0.lend().try_clone_to_owned()
    }
}
