//! What a payload leaves that did not come to a good end: all of it goes, and what it had begun is counted.
//!
//! **Must not know:** how it ended.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::Ordering;

use stage::broker::Ended;

use super::Stages;
use super::folders::open_folder;
use super::opening::OpenOutput;
use crate::payload::Payload;

impl Stages {
    /// Drops the outputs of a payload, those in `out` and those that its clients `made`.
    pub(in crate::runtime) fn drop_unfinished(
        &self,
        payload: &Payload,
        outputs: Vec<OpenOutput>,
        made: &Ended,
        out: &Path,
    ) {
        let begun = begun(payload, &outputs, out) + made.dropped + made.committed.len();
        drop(outputs);
        self.discard(payload);
        if begun > 0 {
            self.dropped.fetch_add(begun as u64, Ordering::Relaxed);
            tracing::debug!(payload = %payload.name, begun, "outputs were dropped");
        }
    }

    /// Outputs that were begun and dropped since this pilot began.
    pub(in crate::runtime) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Whether anything is in a folder; a link is none.
fn holds_any(folder: &Path) -> bool {
    let entries = open_folder(folder).ok().and_then(|folder| rustix::fs::Dir::new(folder).ok());
    entries.into_iter().flatten().flatten().any(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."))
}

/// How many were written by path.
fn begun(payload: &Payload, outputs: &[OpenOutput], out: &Path) -> usize {
    let Ok(folder) = open_folder(out) else { return 0 };
    let begun = payload.outputs.iter().zip(outputs).filter(|(output, open)| match open {
        OpenOutput::File(file) | OpenOutput::Value(file) => !file.is_untouched(folder.as_fd()),
        OpenOutput::Memory(writer) => !writer.is_untouched(),
        OpenOutput::Folder => holds_any(&out.join(output.name.as_str())),
        // What passes through them is never kept.
        OpenOutput::Shared(_) | OpenOutput::Passing => false,
    });
    begun.count()
}
