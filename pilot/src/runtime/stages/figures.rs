//! What a run's stages came to: made, read, and how much of it was copied.
//!
//! **Must not know:** where stages lie.

use std::sync::{Mutex, PoisonError};

use stage::{FileStage, FolderStage, Landing};

use crate::ports::StageFigures;

/// Counts as it goes.
#[derive(Debug, Default)]
pub(super) struct Counting(Mutex<StageFigures>);

impl Counting {
    pub(super) fn so_far(&self) -> StageFigures {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, change: impl FnOnce(&mut StageFigures)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// An output was committed.
    pub(super) fn made(&self, bytes: u64) {
        self.add(|figures| {
            figures.made += 1;
            figures.made_bytes += bytes;
        });
    }

    /// A payload was shown an input.
    pub(super) fn read(&self, bytes: u64) {
        self.add(|figures| {
            figures.read += 1;
            figures.read_bytes += bytes;
        });
    }

    /// So much had to be written a second time.
    pub(super) fn copied(&self, bytes: u64) {
        self.add(|figures| figures.copied_bytes += bytes);
    }

    /// A stage left memory for a file, or the volume for an object store, because there was no room.
    pub(super) fn spilled(&self, bytes: u64) {
        self.add(|figures| {
            figures.spilled += 1;
            figures.spilled_bytes += bytes;
        });
    }

    /// A file was linked or copied.
    pub(super) fn landed(&self, stage: FileStage) {
        if matches!(stage.how, Landing::Copied(_)) {
            self.copied(stage.bytes);
        }
    }

    /// The same of a folder's files.
    pub(super) fn folder(&self, stage: FolderStage) {
        self.copied(stage.copied_bytes);
    }
}
