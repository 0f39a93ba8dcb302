//! What the pilot's own socket may ask of the slots: a program beside a payload, memory in use, the stages that are held.
//!
//! **Must not know:** sockets, who asks.

use std::os::fd::OwnedFd;

use oci_runner::cgroup::cgroup_name;
use pilot_core::SlotId;
use stage::StageUri;
use wire::pilot::StageRow;

use super::LocalRuntime;
use crate::api::{Beside, Companion, Control};
use crate::payload::Payload;

impl Control for LocalRuntime {
    fn exec(&self, slot: SlotId, payload: &Payload, program: Beside) -> Result<Companion, String> {
        let here = self.slot(slot).map_err(|fault| fault.to_string())?;
        let image = self.shared.images.stored(payload).map_err(|fault| fault.to_string())?;
        here.talk.exec(slot, payload, &image.config, program)
    }

    fn memory_bytes(&self, slot: SlotId) -> Option<u64> {
        self.slot(slot).ok().filter(|slot| slot.talk.is_open())?;
        let name = cgroup_name(self.shared.folders.id(), slot.0);
        self.shared.cgroups.memory_bytes(&name)
    }

    fn stages(&self) -> Vec<StageRow> {
        self.shared.stages.rows()
    }

    async fn open_stage(&self, stage: &StageUri) -> Result<(OwnedFd, u64), String> {
        self.shared.stages.open_for_user(stage).await
    }
}
