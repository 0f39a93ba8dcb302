//! Giving a committed file to a consumer.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, OFlags, fstat};

use crate::copy::{Linked, copy, link};
use crate::file::open_path;
use crate::memory::reopen;
use crate::reader::size;
use crate::{CommitReason, FileStage, Landing, StageName};

/// A stage that a consumer did not get.
#[derive(Debug, thiserror::Error)]
#[error("lend stage \"{name}\" as \"{as_name}\"")]
pub struct LendError {
    /// The stage.
    pub name: StageName,
    /// What it would have been called.
    pub as_name: StageName,
    /// Why; [`CommitReason::NotProduced`] when there is no such stage.
    #[source]
    pub reason: CommitReason,
}

/// Links the stage `name` of `stage_dir` into a consumer's folder as `as_name`; copies it where a link is not
/// possible. The consumer must not own the file or must see the folder through a read-only mount.
///
/// # Errors
/// When there is no such stage, the name is taken in the consumer's folder, or the disk is full.
pub fn lend_file(
    stage_dir: BorrowedFd<'_>,
    name: &StageName,
    in_dir: BorrowedFd<'_>,
    as_name: &StageName,
) -> Result<FileStage, LendError> {
    lend(stage_dir, name, in_dir, as_name).map_err(|reason| LendError {
        name: name.clone(),
        as_name: as_name.clone(),
        reason,
    })
}

/// The same of a stage that is open already: wherever it lies by now, this is the one that was asked for.
///
/// # Errors
/// As [`lend_file`].
pub fn lend_open(
    stage: BorrowedFd<'_>,
    name: &StageName,
    in_dir: BorrowedFd<'_>,
    as_name: &StageName,
) -> Result<FileStage, LendError> {
    lend_opened(stage, in_dir, as_name).map_err(|reason| LendError {
        name: name.clone(),
        as_name: as_name.clone(),
        reason,
    })
}

fn lend(
    stage_dir: BorrowedFd<'_>,
    name: &StageName,
    in_dir: BorrowedFd<'_>,
    as_name: &StageName,
) -> Result<FileStage, CommitReason> {
    let path = match open_path(stage_dir, name) {
        Err(rustix::io::Errno::NOENT) => return Err(CommitReason::NotProduced),
        other => other.map_err(CommitReason::io("open it"))?,
    };
    lend_opened(path.as_fd(), in_dir, as_name)
}

fn lend_opened(
    stage: BorrowedFd<'_>,
    in_dir: BorrowedFd<'_>,
    as_name: &StageName,
) -> Result<FileStage, CommitReason> {
    let stat = fstat(stage).map_err(CommitReason::io("look at it"))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::RegularFile {
        return Err(CommitReason::NotRegular(kind.into()));
    }
    let bytes = size(&stat);
    match link(stage, in_dir, as_name)? {
        Linked::Yes => Ok(FileStage { bytes, how: Landing::Linked }),
        Linked::No(why) => {
            let file = reopen(stage, OFlags::RDONLY).map_err(CommitReason::io("open it"))?;
            let bytes = copy(file.as_fd(), in_dir, as_name, bytes)?;
            Ok(FileStage { bytes, how: Landing::Copied(why) })
        }
    }
}
