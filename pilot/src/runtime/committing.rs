//! The commit of a payload's outputs, on a thread: a copy of many gigabytes may be part of it. It goes on when whoever
//! waited for it gives up, so it is settled before anything builds on the slot.
//!
//! **Must not know:** how a payload ended.

use std::path::PathBuf;
use std::sync::Arc;

use pilot_core::{Fault, FaultClass};
use stage::broker::Ended;
use tokio::task::JoinHandle;

use super::stages::{OpenOutput, Stages, prune};
use crate::payload::Payload;

/// At most one commit of a slot.
#[derive(Debug, Default)]
pub(super) struct Commit {
    begun: Option<(JoinHandle<Result<u64, Fault>>, Payload)>,
}

impl Commit {
    /// Commits the outputs that are in `out` into `into`, and those that clients made; gives their bytes. Dropped, it goes on.
    pub(super) async fn run(
        &mut self,
        stages: &Arc<Stages>,
        payload: &Payload,
        (outputs, made): (Vec<OpenOutput>, Ended),
        (out, into): (PathBuf, PathBuf),
    ) -> Result<u64, Fault> {
        let (stages, owned) = (Arc::clone(stages), payload.clone());
        let commit = move || {
            let committed = stages.commit(&owned, outputs, &made, (&out, &into));
            // Nothing may have been held; then the folder is of no use.
            prune(&into, 0);
            committed
        };
        let (begun, _) = self.begun.insert((tokio::task::spawn_blocking(commit), payload.clone()));
        let committed = begun.await;
        self.begun = None;
        committed.unwrap_or_else(|_| Err(Fault::new(FaultClass::Pilot, "committing outputs panicked")))
    }

    /// A commit that was given up came too late: its claim was reported as failed.
    pub(super) async fn settle(&mut self, stages: &Stages) {
        if let Some((begun, payload)) = &mut self.begun {
            let _too_late = begun.await;
            stages.discard(payload);
            self.begun = None;
        }
    }

    /// Whether one was begun and not waited for.
    pub(super) fn is_under_way(&self) -> bool {
        self.begun.is_some()
    }
}
