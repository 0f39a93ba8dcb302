//! What a slot's container may use: changed where the pilot may, kept free for its payload where it may not.
//!
//! **Must not know:** how a slot is bound.

use std::time::Duration;

use pilot_core::{Epoch, Fault};
use stage::StageUri;
use stage::broker::Ended;
use tokio::time::Instant;

use super::live::Live;
use crate::payload::{Payload, StageClass};

/// How long giving back a size may take: it is a part of cleaning, which has half a minute.
const SHRINK_WAIT: Duration = Duration::from_secs(5);

impl Live {
    /// Sees to it that a payload finds the memory that it was told it has. Stages that earlier payloads of this container wrote
    /// by path are charged to it for as long as anybody reads them, and the pilot can't raise its limit for that. Where both
    /// don't fit, the slot is bound anew: the kernel charges to the pod what a container leaves, and the pod has room for it,
    /// because all stages together are no more than what the pilot's own container has for them.
    pub(super) async fn make_room(&mut self, epoch: Epoch, payload: &Payload) -> Result<(), Fault> {
        let Some(limit) = self.shape.memory_bytes else { return Ok(()) };
        let owed = self.shared.stages.bytes_in_memory(&self.owed);
        if owed == 0 {
            self.owed.clear();
        }
        if payload.memory_bytes().saturating_add(owed) <= limit {
            return Ok(());
        }
        tracing::debug!(slot = %self.slot, owed, "stages take memory of this container; it is bound anew");
        self.bind(epoch, payload).await
    }

    /// Gives the slot's container what the payload asks for, where the pilot may.
    pub(super) async fn resize(&mut self, payload: &Payload, until: Instant) -> Result<(), Fault> {
        if !self.shared.resizes {
            return Ok(());
        }
        let (cpu, memory) = (payload.resources.cpu_millis, payload.memory_bytes());
        if (self.shape.cpu_millis, self.shape.memory_bytes) == (Some(cpu), Some(memory)) {
            return Ok(());
        }
        self.shared.pod.set_resources(&self.shape.name, cpu, memory, until).await?;
        (self.shape.cpu_millis, self.shape.memory_bytes) = (Some(cpu), Some(memory));
        Ok(())
    }

    /// Gives back what the slot got beyond what it was made with, or the pod would grow from slot to slot; says whether there
    /// was anything.
    pub(super) async fn shrink(&mut self) -> bool {
        let grown = |now: Option<u64>, made: Option<u64>| now.zip(made).is_some_and(|(now, made)| now > made);
        let (cpu, memory) = self.made;
        let is_grown = grown(self.shape.cpu_millis, cpu) || grown(self.shape.memory_bytes, memory);
        let (true, Some(cpu), Some(memory)) = (is_grown, cpu, memory) else { return false };
        match self.shared.pod.set_resources(&self.shape.name, cpu, memory, Instant::now() + SHRINK_WAIT).await
        {
            Ok(()) => (self.shape.cpu_millis, self.shape.memory_bytes) = self.made,
            Err(fault) => {
                tracing::warn!(slot = %self.slot, %fault, "the slot keeps the size of its last payload")
            }
        }
        true
    }
}

/// The stages that a payload's container pays for: those in memory that it wrote by path.
pub(super) fn paid_by_slot(payload: &Payload, made: &Ended) -> Vec<StageUri> {
    let by_client = |uri: &StageUri| made.committed.iter().any(|(committed, ..)| committed == uri);
    let in_memory = payload.outputs.iter().filter(|output| output.class == StageClass::Memory);
    in_memory.map(|output| payload.stage(&output.name)).filter(|uri| !by_client(uri)).collect()
}
