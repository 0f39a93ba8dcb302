//! Memory that another process kept for us, from an earlier life of ours: what it is, the kernel says.
//!
//! **Must not know:** who kept it, why.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, fchmod, fcntl_get_seals, fstat};

use crate::memory::{MemoryStage, MemoryWriter, is_untouched, reopen};
use crate::reader::size;
use crate::{MapError, StageName, sys};

impl MemoryStage {
    /// Takes a committed stage up again: it must be sealed, whole and of the size that was noted.
    ///
    /// # Errors
    /// When it is not; the descriptor is closed then.
    pub fn found(name: &StageName, fd: OwnedFd, bytes: u64) -> Result<Self, MapError> {
        let found = sys::SealProof::of(fd.as_fd())?.bytes();
        if found != bytes {
            return Err(MapError::OtherSize { bytes: found, noted: bytes });
        }
        let fd = reopen(fd.as_fd(), OFlags::RDONLY).map_err(|errno| MapError::Io(errno.into()))?;
        Ok(Self { name: name.clone(), fd, bytes })
    }
}

impl MemoryWriter {
    /// Takes memory up again that was lent by path to a producer that may still write it.
    ///
    /// # Errors
    /// When it is no memory that can be sealed, or could not be written through this descriptor.
    pub fn found(name: &StageName, fd: OwnedFd) -> Result<Self, MapError> {
        let io = |errno: rustix::io::Errno| MapError::Io(errno.into());
        fcntl_get_seals(&fd).map_err(|_| MapError::NotSealed)?;
        if rustix::fs::fcntl_getfl(&fd).map_err(io)? & OFlags::RWMODE != OFlags::RDWR {
            return Err(MapError::NotSealed);
        }
        // A commit that was not finished may have made it read-only.
        fchmod(&fd, Mode::from_raw_mode(0o666)).map_err(io)?;
        Ok(Self { name: name.clone(), fd })
    }

    /// Whether nobody has written it or set its size yet.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        fstat(&self.fd).is_ok_and(|stat| size(&stat) == 0 && is_untouched(&stat))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lending;

    fn name() -> StageName {
        StageName::new("x").expect("name")
    }

    fn written(text: &[u8]) -> MemoryWriter {
        let writer = MemoryWriter::create(&name(), Lending::ByPath).expect("memory");
        rustix::io::pwrite(writer.lend(), text, 0).expect("write");
        writer
    }

    fn other(of: impl AsFd) -> OwnedFd {
        of.as_fd().try_clone_to_owned().expect("dup")
    }

    #[test]
    fn a_stage_is_found_only_sealed_and_as_it_was_noted() {
        let writer = written(b"text");
        assert!(matches!(MemoryStage::found(&name(), other(writer.lend()), 4), Err(MapError::NotSealed)));
        let stage = writer.commit(100).expect("commit");
        let larger = MemoryStage::found(&name(), other(&stage), 5);
        assert!(matches!(larger, Err(MapError::OtherSize { bytes: 4, noted: 5 })));
        let found = MemoryStage::found(&name(), other(&stage), 4).expect("found");
        drop(stage);
        assert_eq!(&*crate::SealedMap::open(found.reader().expect("reader")).expect("map"), b"text");
        let (pipe, _end) = rustix::pipe::pipe().expect("pipe");
        assert!(matches!(MemoryStage::found(&name(), pipe, 0), Err(MapError::NotSealed)));
        let file = tempfile::tempfile().expect("file");
        assert!(MemoryStage::found(&name(), file.into(), 0).is_err());
    }

    #[test]
    fn memory_that_is_still_written_goes_on_and_is_committed_also_in_a_second_try() {
        let fresh = MemoryWriter::create(&name(), Lending::ByPath).expect("memory");
        assert!(fresh.is_untouched());
        let again = MemoryWriter::found(&name(), other(fresh.lend())).expect("found");
        assert!(again.is_untouched());
        rustix::io::pwrite(fresh.lend(), b"later", 0).expect("write");
        assert!(!again.is_untouched());
        let kept = other(again.lend());
        assert_eq!(again.commit(100).expect("commit").bytes(), 5);
        let twice = MemoryWriter::found(&name(), kept).expect("found sealed");
        let stage = twice.commit(100).expect("commit again");
        assert!(MemoryWriter::found(&name(), other(&stage)).is_err(), "it can't be written");
    }
}
