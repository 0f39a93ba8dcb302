//! What a slot's container may use, where the pilot may change it.
//!
//! **Must not know:** how a slot is bound.

use std::time::Duration;

use pilot_core::Fault;
use tokio::time::Instant;

use super::live::Live;
use crate::payload::Payload;

/// How long giving back a size may take: it is a part of cleaning, which has half a minute.
const SHRINK_WAIT: Duration = Duration::from_secs(5);

impl Live {
    /// Gives the slot's container what the payload asks for, where the pilot may.
    pub(super) async fn resize(&mut self, payload: &Payload, until: Instant) -> Result<(), Fault> {
        if !self.shared.resizes {
            return Ok(());
        }
        let (cpu, memory) = (payload.resources.cpu_millis, payload.resources.memory_bytes);
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
