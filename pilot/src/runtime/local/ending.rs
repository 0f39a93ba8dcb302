//! The end of a payload and of a slot: logs kept, outputs committed, traces removed; then either the container stays for the
//! next payload, or it is taken down with its cgroup and its folders.
//!
//! # What a warm slot has been checked for
//! The shim removed what it could and failed at nothing; no process but its own is in the cgroup; the folders that the
//! payload could write are empty and have the owner and mode that they began with; nothing waits in its streams. A slot
//! that does not pass is not dirty, only cold: it is taken down, which removes everything whatever it is.
//!
//! **Must not know:** why a payload ended, which one comes next.

use oci_runner::cgroup::Cgroup;
use pilot_core::{Drained, Fault, FaultClass};
use wire::slot::ToShim;

use super::folders::SlotFolders;
use super::live::{Cleaning, Live, died};
use crate::payload::Payload;
use crate::runtime::following::SHIM_WAIT;
use crate::runtime::launching::{Left, lost_clients, remove_files, slot_fault};
use crate::runtime::pristine::{is_as_made, open_folder};

/// The shim, its stage holder, and one that the shim may just be ending.
const OWN_PROCESSES_MAX: usize = 3;

impl Live {
    /// See [`crate::ports::Runtime::drain`].
    pub(super) async fn drain(&mut self, payload: &Payload, commit: bool) -> Drained {
        self.settle_start().await;
        if self.runs {
            // The launch was given up: PID 1 takes everything with it.
            self.kill().await;
            self.runs = false;
        }
        self.shared.stages.leave(payload);
        // Nobody writes any more.
        for stream in self.streams.iter_mut().flatten() {
            stream.finish();
        }
        let made = self.session.take().map(|session| session.end(commit)).unwrap_or_default();
        let outputs = std::mem::take(&mut self.outputs);
        let left = Left { payload, outputs: &outputs, out: &self.folders.out };
        let fault = if commit { lost_clients(self.launched, left, &made) } else { None };
        if !commit || payload.outputs.is_empty() || fault.is_some() {
            self.shared.stages.drop_unfinished(payload, outputs, &made, &self.folders.out);
            return Drained { usage: self.usage, fault };
        }
        let stages = self.shared.folders.stages(payload.workflow.as_str(), payload.name.as_str());
        self.note_keeping();
        let committed = match stages {
            Err(error) => Err(slot_fault(&error)),
            Ok(stages) => {
                let places = (self.folders.out.clone(), stages);
                self.commit.run(&self.shared.stages, payload, (outputs, made), places).await
            }
        };
        match committed {
            Ok(bytes) => {
                self.usage.output_bytes = bytes;
                self.retain(payload).await;
                Drained { usage: self.usage, fault: None }
            }
            Err(fault) => Drained { usage: self.usage, fault: Some(fault) },
        }
    }

    /// Lets a pilot that comes after this one know that outputs may have left their folder.
    fn note_keeping(&self) {
        if self.shared.folders.serves()
            && let Err(error) = std::fs::write(&self.folders.keeping, b"")
        {
            tracing::debug!(slot = %self.slot, %error, "it can't be noted that outputs are being kept");
        }
    }

    /// Waits for a start that nobody waits for any more, so that what it made can be taken down.
    async fn settle_start(&mut self) {
        if self.starting.is_some()
            && let Err(fault) = self.started().await
        {
            tracing::debug!(slot = %self.slot, %fault, "a start that was given up failed");
        }
    }

    async fn kill(&mut self) {
        let Some(container) = &self.container else { return };
        if let Err(error) = container.kill() {
            tracing::warn!(slot = %self.slot, %error, "PID 1 can't be killed");
        }
        let _ = tokio::time::timeout(SHIM_WAIT, died(self.ended.as_ref())).await;
    }

    /// Lets the shim keep what is held in memory, for the pilot that comes after this one.
    async fn retain(&mut self, payload: &Payload) {
        let Some(launch) = self.launched.filter(|_| self.shared.folders.serves() && self.reusable) else {
            return;
        };
        if let Some(connection) = &self.connection {
            self.retaining.retain(&self.shared.stages, connection, launch.id, payload).await;
        }
    }

    /// Asks the shim to clean, once.
    pub(super) async fn begin_clean(&mut self) {
        if self.cleaning != Cleaning::No || !self.reusable {
            return;
        }
        let Some(connection) = &self.connection else { return };
        // One that can't be told is found out when its answer does not come.
        let _ = connection.send(&ToShim::Clean, &[]).await;
        self.cleaning = Cleaning::Asked;
    }

    /// Cleans up after a payload and keeps the container; `false` when it can't stay.
    pub(super) async fn clean_warm(&mut self) -> bool {
        if !self.reusable || self.runs || self.starting.is_some() || self.commit.is_under_way() {
            return false;
        }
        // Given up half-way before: an answer may still be on its way, and would be taken for that to a later question.
        if self.cleaning == Cleaning::Awaited {
            return false;
        }
        self.session = None;
        self.begin_clean().await;
        self.cleaning = Cleaning::Awaited;
        let Some(connection) = &self.connection else { return false };
        let cleaned = match tokio::time::timeout(SHIM_WAIT, connection.cleaned()).await {
            Ok(Ok(Some(report))) => report,
            other => {
                tracing::debug!(slot = %self.slot, ?other, "the shim did not clean");
                return false;
            }
        };
        self.cleaning = Cleaning::No;
        let pristine = cleaned.failures == 0 && self.is_alone() && self.folders_are_pristine();
        if !pristine {
            tracing::debug!(slot = %self.slot, ?cleaned, "the slot can't stay warm");
        }
        self.usage = pilot_core::Usage::default();
        pristine
    }

    fn is_alone(&self) -> bool {
        let Some(cgroup) = self.cgroup.as_ref().filter(|cgroup| cgroup.exists()) else { return true };
        cgroup.processes().is_ok_and(|processes| processes.len() <= OWN_PROCESSES_MAX)
    }

    /// Takes away what the pilot itself put there, and looks whether anything else is left. Owner and group can't have
    /// changed: the payload has no capability to give a folder away.
    fn folders_are_pristine(&mut self) -> bool {
        if self.holds_files {
            remove_files(&self.folders.inputs);
            remove_files(&self.folders.out);
        }
        let (open, inputs) = if self.shared.foreign_uid { (0o777, 0o755) } else { (0o700, 0o700) };
        if self.looks.is_none() {
            let SlotFolders { work, out, inputs, .. } = &self.folders;
            self.looks = [work, out, inputs]
                .iter()
                .map(|path| open_folder(path))
                .collect::<Option<Vec<_>>>()
                .and_then(|folders| folders.try_into().ok());
        }
        let Some(looks) = &self.looks else { return false };
        looks.iter().zip([open, open, inputs]).all(|(folder, mode)| is_as_made(folder, mode))
    }

    /// Ends the container and removes every trace of the slot. May be called again after a failure.
    pub(super) async fn take_down(&mut self) -> Result<(), Fault> {
        self.settle_start().await;
        self.commit.settle(&self.shared.stages).await;
        if let Some(connection) = self.connection.take() {
            let retired = tokio::time::timeout(SHIM_WAIT, connection.retire()).await;
            if !matches!(retired, Ok(Ok(()))) {
                tracing::debug!(slot = %self.slot, "the shim did not retire; killing it");
            } else {
                let _ = tokio::time::timeout(SHIM_WAIT, died(self.ended.as_ref())).await;
            }
        }
        self.kill().await;
        self.runs = false;
        self.session = None;
        self.listener = None;
        self.streams = None;
        self.looks = None;
        self.ended = None;
        // Reaps; kills first if it has to.
        drop(self.container.take());
        if self.removing.is_none() {
            let (mut cgroup, folders) = (self.cgroup.take(), self.folders.clone());
            self.removing = Some(tokio::task::spawn_blocking(move || {
                if let Some(Err(error)) = cgroup.as_mut().map(Cgroup::remove) {
                    return Err((slot_fault(&error), cgroup));
                }
                folders.remove().map_err(|error| (slot_fault(&error), None))
            }));
        }
        let Some(removing) = &mut self.removing else { return Ok(()) };
        let removed = removing.await;
        self.removing = None;
        match removed {
            Ok(Ok(())) => Ok(()),
            Ok(Err((fault, cgroup))) => {
                self.cgroup = cgroup;
                Err(fault)
            }
            Err(_) => Err(Fault::new(FaultClass::Pilot, "removing a slot's traces panicked")),
        }
    }
}
