//! What the pilot's own socket may ask of the slots: a program beside a payload, the stages that are held.
//!
//! **Must not know:** sockets, who asks.

use std::os::fd::OwnedFd;

use pilot_core::SlotId;
use stage::StageUri;
use wire::pilot::StageRow;

use super::KubernetesRuntime;
use crate::api::{Beside, Companion, Control};
use crate::payload::Payload;

impl Control for KubernetesRuntime {
    fn exec(&self, slot: SlotId, payload: &Payload, program: Beside) -> Result<Companion, String> {
        let here = self.slot(slot).map_err(|fault| fault.to_string())?;
        let image = self.shared.images.chosen(payload).map_err(|fault| fault.to_string())?;
        here.talk.exec(slot, payload, &image.config, program)
    }

    fn stages(&self) -> Vec<StageRow> {
        self.shared.stages.rows()
    }

    async fn open_stage(&self, stage: &StageUri) -> Result<(OwnedFd, u64), String> {
        self.shared.stages.open_for_user(stage).await
    }
}
