//! Inputs that a payload finds at paths of its own choosing. The pod declares the paths ([`crate::pod`]); what lies there is
//! decided before each container starts, because the node then follows a link that the pilot has put there.
//!
//! ```text
//!   slots/0/mounts/0 -> empty                idle: an empty folder
//!   slots/0/mounts/0 -> ../shown/0-5f3a0c11  bound: what the payload wants there
//! ```
//! A container keeps what it has found at its start, so a payload follows in a warm slot only with the same mounts.
//!
//! **Must not know:** images, the API, how a payload is launched.

use pilot_core::{Fault, FaultClass};

use super::inputs::{empty, show};
use super::live::Live;
use super::view::SlotShape;
use crate::payload::Payload;
use crate::runtime::launching::slot_fault;
use crate::runtime::sources::{contents, source_of};
use crate::runtime::stages::Stages;

/// Refuses what the pod's slots have no mount for; gives what another payload must have mounted to follow in the same
/// container.
pub(super) fn prepare(payload: &Payload, slot: &SlotShape, stages: &Stages) -> Result<String, Fault> {
    let mut key = String::new();
    for input in &payload.inputs {
        let Some(at) = &input.at else { continue };
        let (source, is_file) = source_of(payload, input, stages)?;
        let name = input.name.as_str();
        let refused = |why: &str| {
            let option = if is_file { format!("{at}:file") } else { at.to_string() };
            let text =
                format!("it wants input \"{name}\" at {at}, {why}; make the pod with --mount {option}");
            Err(Fault::new(FaultClass::Payload, text))
        };
        match slot.mounts.iter().find(|mount| mount.at == at.as_str()) {
            None => return refused("where this pod has no mount"),
            Some(mount) if mount.is_file && !is_file => return refused("where this pod mounts files only"),
            Some(mount) if !mount.is_file && is_file => return refused("where this pod mounts folders only"),
            Some(_) => {}
        }
        let seen = contents(&source).map_err(|error| {
            let text = format!("read input \"{name}\" from {}: {error}", source.display());
            Fault::new(FaultClass::Payload, text)
        })?;
        key.push_str(&format!(" at {at}={seen}"));
    }
    Ok(key)
}

impl Live {
    /// Puts what the payload wants at each of the slot's mounts, for the container that starts next.
    pub(super) fn show_mounts(&self, payload: &Payload) -> Result<(), Fault> {
        self.hide_mounts()?;
        for input in &payload.inputs {
            let Some(at) = &input.at else { continue };
            let declared = self.shape.mounts.iter().find(|mount| mount.at == at.as_str());
            let Some(mount) = declared else { continue };
            let (source, _) = source_of(payload, input, &self.shared.stages)?;
            let name = format!("{}-{:08x}", mount.place, fastrand::u32(..));
            show(&source, &self.folders.shown.join(&name)).map_err(|error| {
                let (input, source) = (input.name.as_str(), source.display());
                let text = format!("show input \"{input}\" from {source} at {at}: {error}");
                Fault::new(FaultClass::Payload, text)
            })?;
            self.folders.point(&mount.place, Some(&name)).map_err(|error| slot_fault(&error))?;
        }
        Ok(())
    }

    /// Leaves nothing at the slot's mounts, for the container that starts next, and removes what was there.
    pub(super) fn hide_mounts(&self) -> Result<(), Fault> {
        for mount in &self.shape.mounts {
            self.folders.point(&mount.place, None).map_err(|error| slot_fault(&error))?;
        }
        empty(&self.folders.shown);
        Ok(())
    }
}
