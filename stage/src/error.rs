//! Why an output did not become a stage.

use std::{fmt, io};

use crate::StageName;

/// An output that did not become a stage.
#[derive(Debug)]
pub struct CommitError {
    /// Which output.
    pub output: StageName,
    /// Why.
    pub reason: CommitReason,
}

impl fmt::Display for CommitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "commit output \"{}\": {}", self.output, self.reason)
    }
}

impl std::error::Error for CommitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.reason)
    }
}

/// Reasons of a [`CommitError`].
#[derive(Debug, thiserror::Error)]
pub enum CommitReason {
    /// The payload removed it, or never opened it for writing.
    #[error("the payload did not write it")]
    NotProduced,
    /// It would lead elsewhere.
    #[error("it is a symbolic link")]
    Symlink,
    /// A link out of its folder.
    #[error("it is a symbolic link that leaves the output")]
    LeadsOut,
    /// More entries in a folder than are allowed.
    #[error("the folder has more than {max} entries")]
    TooManyEntries {
        /// How many there may be.
        max: u64,
    },
    /// Folders in folders, deeper than is allowed.
    #[error("it lies more than {max} folders deep")]
    TooDeep {
        /// How deep it may be.
        max: usize,
    },
    /// A file where a folder should be.
    #[error("it is a {0}, not a folder")]
    NotFolder(Kind),
    /// Opening it could block, or have effects.
    #[error("it is a {0}, not a regular file")]
    NotRegular(Kind),
    /// It can be reached, and so changed, under another name.
    #[error("it has {links} hard links, so it can be changed elsewhere")]
    HardLinked {
        /// How many names it has.
        links: usize,
    },
    /// Above the declared `max_size`.
    #[error("it has {bytes} bytes, max_size is {max}")]
    TooLarge {
        /// Its size, or how much of it was seen before giving up.
        bytes: u64,
        /// The declared limit.
        max: u64,
    },
    /// Its producer cut it.
    #[error("it has {bytes} bytes, {wanted} were to be committed")]
    TooSmall {
        /// Its size.
        bytes: u64,
        /// What it should have been.
        wanted: u64,
    },
    /// A file that someone has open or mapped for writing.
    #[error("it is still open for writing")]
    StillWritten,
    /// Memory that someone has mapped for writing. Try again when the producer is gone.
    #[error("it is still mapped for writing")]
    Busy,
    /// Memory whose holes could not be filled; its readers would pay for them.
    #[error("{allocated} of its {bytes} bytes are in memory, and the rest could not be filled")]
    Sparse {
        /// Size.
        bytes: u64,
        /// How much of it has memory behind it.
        allocated: u64,
    },
    /// The producer locked the seals of its memory before all that are needed were set.
    #[error("its producer locked its seals")]
    SealsLocked,
    /// A stage of that name exists.
    #[error("a stage \"{name}\" exists already")]
    Exists {
        /// The taken name.
        name: StageName,
    },
    /// A system call failed.
    #[error("could not {doing}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl CommitReason {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io { doing, source: errno.into() }
    }
}

/// What an output is when it is no regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Kind {
    RegularFile,
    Symlink,
    Directory,
    Fifo,
    Socket,
    CharacterDevice,
    BlockDevice,
    Unknown,
}

impl From<rustix::fs::FileType> for Kind {
    fn from(kind: rustix::fs::FileType) -> Self {
        use rustix::fs::FileType;
        match kind {
            FileType::RegularFile => Self::RegularFile,
            FileType::Symlink => Self::Symlink,
            FileType::Directory => Self::Directory,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::CharacterDevice => Self::CharacterDevice,
            FileType::BlockDevice => Self::BlockDevice,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RegularFile => "regular file",
            Self::Symlink => "symbolic link",
            Self::Directory => "directory",
            Self::Fifo => "FIFO",
            Self::Socket => "socket",
            Self::CharacterDevice => "character device",
            Self::BlockDevice => "block device",
            Self::Unknown => "file of unknown kind",
        })
    }
}
