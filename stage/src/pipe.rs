//! Class `pipe`: a FIFO between two payloads that run at the same time. It is a stream, not a stage: nothing is counted,
//! sealed or kept.
//!
//! A FIFO has one inode under several names, one in each payload's folder; whoever opens any of them opens the same pipe
//! (fifo(7)). Opening waits for the other end, so one whose peer ended without ever opening it would wait for ever:
//! [`Pipe::stand_in`] opens that end for a moment, which lets it go on and find out.
//!
//! **Must not know:** who has ended.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, chmodat, linkat, mknodat, openat, statat, unlinkat};
use rustix::io::Errno;

use crate::StageName;

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PipeEnd {
    /// What is read from.
    Reader,
    /// What is written to.
    Writer,
}

/// Why a FIFO could not be made or handed on.
#[derive(Debug, thiserror::Error)]
#[error("{doing} pipe \"{name}\"")]
pub struct PipeError {
    /// Its name.
    pub name: String,
    /// What failed.
    pub doing: &'static str,
    /// The kernel's answer.
    #[source]
    pub source: std::io::Error,
}

/// A FIFO in a folder of the pilot's own.
#[derive(Clone, Copy, Debug)]
pub struct Pipe<'a> {
    /// The folder.
    pub folder: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a str,
}

impl Pipe<'_> {
    fn failed(&self, doing: &'static str) -> impl Fn(Errno) -> PipeError {
        let name = self.name.to_owned();
        move |errno| PipeError { name: name.clone(), doing, source: errno.into() }
    }

    /// Makes it, in place of what is there, with this mode whatever the umask.
    ///
    /// # Errors
    /// When the file system can't.
    pub fn make(&self, mode: Mode) -> Result<(), PipeError> {
        self.remove();
        mknodat(self.folder, self.name, FileType::Fifo, mode, 0).map_err(self.failed("make"))?;
        chmodat(self.folder, self.name, mode, AtFlags::empty()).map_err(self.failed("set mode of"))
    }

    /// Whether it is there.
    #[must_use]
    pub fn exists(&self) -> bool {
        let stat = statat(self.folder, self.name, AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
    }

    /// Gives it a name in another folder of the same file system.
    ///
    /// # Errors
    /// When that name is taken, or the file system can't.
    pub fn lend(&self, into: BorrowedFd<'_>, name: &StageName) -> Result<(), PipeError> {
        linkat(self.folder, self.name, into, name.as_str(), AtFlags::empty()).map_err(self.failed("hand on"))
    }

    /// Removes its name here. Those who have it open, or another name of it, go on.
    pub fn remove(&self) {
        let _ = unlinkat(self.folder, self.name, AtFlags::empty());
    }

    /// Opens an end that nobody will open any more, and closes it: who waits in open(2) at the other end goes on, and finds the
    /// end of the stream there, or EPIPE. Harmless to one who has it open already.
    pub fn stand_in(&self, end: PipeEnd) {
        let access = match end {
            PipeEnd::Reader => OFlags::RDONLY,
            // Without a reader: ENXIO, and nobody waits.
            PipeEnd::Writer => OFlags::WRONLY,
        };
        let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        drop(openat(self.folder, self.name, flags, Mode::empty()));
    }
}
