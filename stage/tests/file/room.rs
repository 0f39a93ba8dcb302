//! What a pilot has around an output.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use stage::{CommitError, CommitReason, FileStage, OutputFile};

use crate::common::{name, open_dir, skipped};

/// A slot's output folder, a stage folder and one prepared output `x` of at most 100 bytes.
pub(crate) struct Room {
    _folder: tempfile::TempDir,
    pub(crate) out: PathBuf,
    pub(crate) stages: PathBuf,
    pub(crate) prepared: OutputFile,
}

impl Room {
    pub(crate) fn on(parent: &Path) -> Self {
        let folder = tempfile::tempdir_in(parent).expect("folder");
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("open it for others");
        let (out, stages) = (folder.path().join("out"), folder.path().join("stages"));
        fs::create_dir(&out).expect("out");
        fs::set_permissions(&out, PermissionsExt::from_mode(0o777)).expect("the payload may write");
        fs::create_dir(&stages).expect("stages");
        let prepared = OutputFile::prepare(open_dir(&out).as_fd(), &name("x"), 0o666).expect("prepare");
        Self { _folder: folder, out, stages, prepared }
    }

    pub(crate) fn new() -> Self {
        Self::on(&std::env::temp_dir())
    }

    pub(crate) fn x(&self) -> PathBuf {
        self.out.join("x")
    }

    pub(crate) fn commit(&self) -> Result<FileStage, CommitError> {
        self.commit_below(100)
    }

    pub(crate) fn commit_below(&self, max_bytes: u64) -> Result<FileStage, CommitError> {
        let (out, stages) = (open_dir(&self.out), open_dir(&self.stages));
        self.prepared.commit(out.as_fd(), max_bytes, stages.as_fd(), &name("stage-x"))
    }

    pub(crate) fn stage(&self) -> PathBuf {
        self.stages.join("stage-x")
    }

    pub(crate) fn refused(&self) -> CommitReason {
        let refused = self.commit().expect_err("refused");
        assert_eq!(refused.output, name("x"));
        assert_eq!(fs::read_dir(&self.stages).expect("list").count(), 0, "nothing half-made: {refused}");
        refused.reason
    }
}

pub(crate) fn memory_room(test: &str) -> Option<Room> {
    let shm = Path::new("/dev/shm");
    if fs::metadata(shm)
        .is_ok_and(|stat| stat.dev() != fs::metadata(std::env::temp_dir()).map_or(0, |t| t.dev()))
    {
        return Some(Room::on(shm));
    }
    skipped(test, "/dev/shm, as another file system than the temporary folder");
    None
}
