//! Outputs that a payload made for itself alone. In a pod it has another uid than the pilot, which can't read a file of mode 0600
//! that a program renamed over its output, nor look into a folder of mode 0700. The slot's shim has the payload's uid.
//!
//! **Must not know:** how an output is committed.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, statat};

use super::live::Live;
use crate::payload::{Payload, StageClass};
use crate::runtime::following::SHIM_WAIT;
use crate::runtime::pristine::open_folder;

impl Live {
    /// Has outputs made readable that the pilot may not be able to read. What stays hidden fails at the commit, with the
    /// reason.
    pub(super) async fn reveal_outputs(&self, payload: &Payload) {
        let hidden = self.hidden(payload);
        let Some(connection) = self.connection.as_ref().filter(|_| !hidden.is_empty()) else { return };
        let revealed = tokio::time::timeout(SHIM_WAIT, connection.reveal(hidden)).await;
        if !matches!(revealed, Ok(Ok(()))) {
            tracing::debug!(slot = %self.slot, ?revealed, "outputs were not made readable");
        }
    }

    /// Files that others may not read, and folders, because what is in them is not known.
    fn hidden(&self, payload: &Payload) -> Vec<String> {
        let Some(out) = open_folder(&self.folders.out) else { return Vec::new() };
        let is_hidden = |name: &str| {
            statat(out.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
                let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                let is_ours = stat.st_uid == rustix::process::geteuid().as_raw();
                is_file && !is_ours && stat.st_mode & 0o004 == 0
            })
        };
        let outputs = payload.outputs.iter().filter(|output| match output.class {
            StageClass::File | StageClass::Value => is_hidden(output.name.as_str()),
            StageClass::Folder => true,
            StageClass::Memory | StageClass::Pipe | StageClass::Shared => false,
        });
        outputs.map(|output| output.name.to_string()).collect()
    }
}
