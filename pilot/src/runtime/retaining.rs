//! Stages in memory that a slot's shim keeps for the pilot that comes after this one.
//!
//! ```text
//!   committed ─> written down beside the slot's record ─> Retain, with descriptors ─> (gone: Forget)
//!   the next life: Collect ─> what is written down is held again ─> what is not: Forget
//! ```
//! What is written down is of use as long as the memory is, and goes with it: with the slot's container.
//!
//! **Must not know:** runtimes, how stages are held.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stage::{StageName, StageUri};
use wire::frame::FRAME_FDS_MAX;
use wire::slot::{LaunchId, ToShim};

use super::following::SHIM_WAIT;
use super::record::RecordFile;
use super::slots::{Connection, SlotError};
use super::stages::{MemoryNote, Stages, is_in_memory};
use crate::payload::Payload;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    launch: [u8; 16],
    note: MemoryNote,
}

/// What the shim of one slot keeps.
#[derive(Debug)]
pub(super) struct Retaining {
    file: RecordFile,
    kept: Vec<Kept>,
}

impl Retaining {
    /// Nothing yet. `record` is where the slot's record lies.
    pub(super) fn new(record: &Path) -> Self {
        Self { file: RecordFile::new(&record.with_file_name("retained")), kept: Vec::new() }
    }

    /// Whether the shim keeps anything, as far as is known.
    pub(super) fn keeps_any(&self) -> bool {
        !self.kept.is_empty()
    }

    /// What it keeps, as far as is known.
    pub(super) fn stages(&self) -> impl Iterator<Item = &StageUri> {
        self.kept.iter().map(|kept| &kept.note.stage)
    }

    /// Another container: its shim has nothing.
    pub(super) fn begin_anew(&mut self) {
        if !std::mem::take(&mut self.kept).is_empty() {
            self.file.remove();
        }
    }

    /// Lets the shim keep what is held in memory of a payload's outputs. What it can't is made again after a crash.
    pub(super) async fn retain(
        &mut self,
        stages: &Arc<Stages>,
        connection: &Connection,
        launch: LaunchId,
        payload: &Payload,
    ) {
        if !connection.retains() || !payload.outputs.iter().any(|output| is_in_memory(output.class)) {
            return;
        }
        let held = stages.in_memory(payload);
        if held.is_empty() {
            return;
        }
        let send = tokio::time::timeout(SHIM_WAIT, self.hand_over(stages, connection, launch, held));
        match send.await {
            Ok(Ok(())) => {}
            other => {
                tracing::warn!(payload = %payload.name, ?other, "its memory will not survive this pilot")
            }
        }
    }

    async fn hand_over(
        &mut self,
        stages: &Arc<Stages>,
        connection: &Connection,
        launch: LaunchId,
        held: Vec<(MemoryNote, OwnedFd)>,
    ) -> Result<(), SlotError> {
        self.kept.retain(|kept| stages.is_retained(&kept.note.stage, LaunchId(kept.launch)));
        self.kept.extend(held.iter().map(|(note, _)| Kept { launch: launch.0, note: note.clone() }));
        // Before the shim has them: what nobody knows the name of is of no use.
        self.file.write(&self.kept).map_err(SlotError::Note)?;
        let line = connection.line();
        for some in held.chunks(FRAME_FDS_MAX) {
            let outputs = some.iter().map(|(note, _)| note.stage.output.as_str().to_owned()).collect();
            let fds: Vec<BorrowedFd<'_>> = some.iter().map(|(_, fd)| fd.as_fd()).collect();
            connection.send(&ToShim::Retain { launch, outputs }, &fds).await?;
            for (note, _) in some {
                stages.retained(&note.stage, launch, &line);
            }
        }
        Ok(())
    }

    /// Takes up again what the shim has kept for an earlier life of this pilot. What the payload of `own` writes, or wrote and
    /// nobody reported, is given back instead, by its names.
    pub(super) async fn take_back(
        &mut self,
        stages: &Stages,
        connection: Option<&Connection>,
        own: Option<LaunchId>,
    ) -> BTreeMap<StageName, OwnedFd> {
        let Some(connection) = connection else { return BTreeMap::new() };
        let collected = match tokio::time::timeout(SHIM_WAIT, connection.collect()).await {
            Ok(Ok(collected)) => collected,
            other => {
                tracing::debug!(?other, "nothing was collected from a slot's shim");
                return BTreeMap::new();
            }
        };
        let noted: Vec<Kept> = self.file.read().unwrap_or_default();
        let (line, mut written) = (connection.line(), BTreeMap::new());
        for (held, fd) in collected {
            let kept = noted
                .iter()
                .find(|kept| kept.launch == held.launch.0 && kept.note.stage.output.as_str() == held.output);
            if own == Some(held.launch) {
                if let Ok(name) = StageName::new(&held.output) {
                    written.insert(name, fd);
                }
            } else if let Some(kept) = kept.filter(|kept| stages.put_back(&kept.note, fd)) {
                self.kept.push(kept.clone());
                stages.retained(&kept.note.stage, held.launch, &line);
                continue;
            }
            line.tell(&ToShim::Forget { launch: held.launch, outputs: vec![held.output] });
        }
        written
    }
}
