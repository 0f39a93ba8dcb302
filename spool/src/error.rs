//! What can go wrong with a spool, and who is to blame.

use std::io;
use std::path::{Path, PathBuf};

use pilot_core::FaultClass;
use rusqlite::ErrorCode;

use crate::words::RunId;

/// A spool can't be opened. Nothing in its folder was changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Only an existing one was asked for.
    #[error("open spool {}: there is none", folder.display())]
    Missing {
        /// The spool's folder.
        folder: PathBuf,
    },
    /// The folder belongs to someone else, or others may write in it.
    #[error("open spool {}: {why}", folder.display())]
    NotOurs {
        /// The spool's folder.
        folder: PathBuf,
        /// Whose it is, or who may write.
        why: String,
    },
    /// The folder, or something in it, can't be made or read.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The file is of another program.
    #[error("open {}: it is not a spool's database; move it away or name another folder", file.display())]
    NotASpool {
        /// The database.
        file: PathBuf,
    },
    /// The file is cut off or overwritten.
    #[error("open {}: it is damaged ({why}); it was left as it is: restore it or name another folder", file.display())]
    Damaged {
        /// The database.
        file: PathBuf,
        /// How that shows.
        why: String,
    },
    /// A later program has been here.
    #[error("open {}: it has version {found}, this program knows {known}; use the newer program", file.display())]
    TooNew {
        /// The database.
        file: PathBuf,
        /// Its version.
        found: i64,
        /// The latest that is known here.
        known: i64,
    },
    /// Another process holds it for long.
    #[error("open {}: another process holds it", file.display())]
    Busy {
        /// The database.
        file: PathBuf,
    },
    /// Nothing can be written there.
    #[error("open {}: it can't be written", file.display())]
    ReadOnly {
        /// The database.
        file: PathBuf,
    },
    /// SQLite has another complaint.
    #[error("open {}", file.display())]
    Sql {
        /// The database.
        file: PathBuf,
        /// SQLite's words.
        #[source]
        source: rusqlite::Error,
    },
}

impl OpenError {
    /// Retry when it may go well in a while.
    #[must_use]
    pub fn class(&self) -> FaultClass {
        match self {
            Self::Busy { .. } => FaultClass::Retry,
            _ => FaultClass::Pilot,
        }
    }

    pub(crate) fn sql(file: &Path, source: rusqlite::Error) -> Self {
        let file = file.to_path_buf();
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy { file },
            Some(ErrorCode::ReadOnly) => Self::ReadOnly { file },
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                Self::Damaged { file, why: source.to_string() }
            }
            _ => Self::Sql { file, source },
        }
    }
}

/// Something could not be done with an open spool. Nothing of it was done.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another process holds the database for long.
    #[error("use the spool: another process holds it; try again")]
    Busy,
    /// There is no room for what was to be written.
    #[error("write the spool: the disk is full; make room and try again")]
    Full,
    /// The disk does not do what it should.
    #[error("write the spool")]
    Io(#[source] rusqlite::Error),
    /// Nothing can be written there.
    #[error("write the spool: it is read-only")]
    ReadOnly,
    /// The file was damaged under us.
    #[error("read the spool: it is damaged ({0}); it was left as it is")]
    Damaged(String),
    /// A submission that makes no sense.
    #[error("submit: {0}")]
    BadSubmission(String),
    /// The run has payloads that have not come to their end.
    #[error("forget run {run}: {open} of its payloads are not done; cancel it first")]
    Unfinished {
        /// The run.
        run: RunId,
        /// How many.
        open: u64,
    },
    /// There is no such run.
    #[error("find run {0}: there is none")]
    NoRun(RunId),
    /// A pilot of that name serves this spool.
    #[error("register pilot {name:?}: one of that name serves this spool already")]
    PilotLives {
        /// Its name.
        name: String,
    },
    /// A file or socket beside the database.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// SQLite has another complaint.
    #[error("use the spool")]
    Sql(#[source] rusqlite::Error),
}

impl SpoolError {
    /// Who is to blame: Retry when it may go well in a while.
    #[must_use]
    pub fn class(&self) -> FaultClass {
        match self {
            Self::Busy | Self::Full | Self::Io(_) => FaultClass::Retry,
            Self::BadSubmission(_) | Self::Unfinished { .. } | Self::NoRun(_) => FaultClass::Payload,
            Self::ReadOnly
            | Self::Damaged(_)
            | Self::PilotLives { .. }
            | Self::File { .. }
            | Self::Sql(_) => FaultClass::Pilot,
        }
    }
}

impl From<rusqlite::Error> for SpoolError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::SystemIoFailure) => Self::Io(error),
            Some(ErrorCode::ReadOnly) => Self::ReadOnly,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(error.to_string()),
            _ => Self::Sql(error),
        }
    }
}
