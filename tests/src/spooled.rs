//! A spool queue for tests: its folder goes with it.

use std::path::Path;

use pilot::ports::{Claimed, Queue, Renewed, Reported};
use pilot::queue::spool::{SpoolQueue, SpoolQueueConfig, submission};
use pilot::queue::workflow::Entry;
use pilot_core::{ClaimId, Fault, Outcome, ReleaseWhy};
use spool::{RunId, Spool};

use crate::fake::{WORKFLOW, name};

/// A queue of entries that were submitted to a spool of their own; closed when they are at their end.
#[derive(Debug)]
pub struct SpooledEntries {
    queue: SpoolQueue,
    _folder: tempfile::TempDir,
}

/// Submits entries as one run.
///
/// # Panics
/// When the spool does not take them.
pub fn submit(folder: &Path, entries: &[Entry]) -> RunId {
    let submission =
        submission(&name(WORKFLOW), Path::new("file"), Path::new("out"), None, entries).expect("submission");
    let mut spool = Spool::open(folder).expect("spool");
    spool.submit(&submission).expect("submit").run
}

impl SpooledEntries {
    /// Within a tokio runtime whose time is not paused.
    ///
    /// # Panics
    /// When no spool can be made.
    #[must_use]
    pub fn new(entries: Vec<Entry>) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        if !entries.is_empty() {
            submit(folder.path(), &entries);
        }
        let config = SpoolQueueConfig { closes: true, ..SpoolQueueConfig::new("suite") };
        let queue = SpoolQueue::open(folder.path(), config).expect("spool queue");
        Self { queue, _folder: folder }
    }
}

impl Queue for SpooledEntries {
    async fn claim(&self, at_most: u32, slots: u32) -> Result<Claimed, Fault> {
        self.queue.claim(at_most, slots).await
    }

    async fn report_together(&self, ends: Vec<(ClaimId, Outcome)>) -> Result<Vec<Reported>, Fault> {
        self.queue.report_together(ends).await
    }

    async fn renew(&self, claim: ClaimId) -> Result<Renewed, Fault> {
        self.queue.renew(claim).await
    }

    async fn report(&self, claim: ClaimId, outcome: Outcome) -> Result<Reported, Fault> {
        self.queue.report(claim, outcome).await
    }

    async fn release(&self, claim: ClaimId, why: ReleaseWhy) -> Result<(), Fault> {
        self.queue.release(claim, why).await
    }

    async fn wait_ready(&self) {
        self.queue.wait_ready().await;
    }

    async fn wait_cancelled(&self) -> ClaimId {
        self.queue.wait_cancelled().await
    }
}
