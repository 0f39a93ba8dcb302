//! Finding what an earlier life of this pilot left in the slots, when its container was restarted: payloads that still run, or
//! ended while nobody looked, are adopted.
//!
//! ```text
//!   record? ─no───────────────────────────────────────> as new
//!      │ a shim comes with its nonce? ─no─────────────> as new (launched: lost)
//!      │    (an idle one is believed only when none has come: what runs may call as one;
//!      │     what it has kept of stages in memory is held again)
//!      │ it runs, or ended, the launch of the record? ─no──> cleaned at the next bind
//!      └─ its outputs can still be kept? ─no──────────> ended (launched: lost)
//!           └─> adopted
//! ```
//! **Must not know:** queues; what becomes of a payload that is lost.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use pilot_core::{ClaimId, Epoch, Fault, SlotId};
use stage::StageName;
use wire::slot::{ExitReport, Nonce, ShimState};

use super::KubernetesRuntime;
use super::live::{Live, Stands};
use super::meeting::ShimGone;
use super::view;
use crate::payload::Payload;
use crate::runtime::adoption::{Found, Inventory};
use crate::runtime::launching::{LastLaunch, log_path, slot_fault};
use crate::runtime::record::{LaunchLog, Launched, Record, boot_ms};
use crate::runtime::stage_clients::ClientSession;

/// A shim whose pilot has gone looks for a new one several times a second.
const SHIM_RETURNS: Duration = Duration::from_secs(3);

impl KubernetesRuntime {
    /// Looks at every slot. To be called once, before anything is bound.
    pub(super) async fn look_around(&self) -> Inventory {
        self.shared.stages.recover(&self.shared.share.stages_root());
        let mut looks = tokio::task::JoinSet::new();
        for (number, slot) in (0..).zip(&self.slots) {
            let slot = Arc::clone(slot);
            looks.spawn(async move {
                let mut live = slot.live.lock().await;
                (SlotId(number), live.look().await)
            });
        }
        let launches = self.shared.launches.as_ref().map(LaunchLog::read).unwrap_or_default();
        let mut inventory = Inventory::default();
        while let Some(looked) = looks.join_next().await {
            match looked {
                Ok((slot, Ok(Some(launched)))) => self.keep(slot, launched, &mut inventory).await,
                Ok((_, Ok(None))) => {}
                Ok((_, Err(launched))) => inventory.lost.extend(launched),
                Err(error) => tracing::error!(%error, "looking at a slot failed"),
            }
        }
        self.shared.stages.sweep_pipes();
        for found in &inventory.found {
            if let Ok(slot) = self.slot(found.slot) {
                slot.live.lock().await.resume_clients(&found.payload);
            }
        }
        inventory.settle(launches);
        inventory
    }

    async fn keep(&self, slot: SlotId, launched: Launched, inventory: &mut Inventory) {
        // Its configuration is needed for programs beside it; that it can't be had is no reason to end what runs.
        if let Err(fault) = self.shared.images.prepare(&launched.payload).await {
            tracing::warn!(%slot, %fault, "the image of an adopted payload can't be looked up");
        }
        inventory.found.push(Found {
            slot,
            epoch: launched.epoch(),
            claim: launched.claim(),
            key: launched.key,
            ran_ms: boot_ms().saturating_sub(launched.at_ms),
            payload: launched.payload,
        });
    }

    /// Ends a payload that was found and that nobody wants any more.
    pub(super) async fn end_found(&self, slot: SlotId) -> Result<(), Fault> {
        let mut live = self.slot(slot)?.live.lock().await;
        live.clean().await.map(drop)
    }
}

impl Live {
    /// Finds the shim of the record; gives the launch that it is about, or says which claim is lost.
    async fn look(&mut self) -> Result<Option<Launched>, Option<ClaimId>> {
        let Some(record) = Record::read(&self.folders.record) else { return Ok(None) };
        if let Some(launch) = &record.launch {
            self.shared.stages.sweep_unsaved(&launch.payload);
        }
        let nonce = record.nonce();
        self.nonce = nonce;
        let claim = record.launch.as_ref().map(Launched::claim);
        let epoch = record.launch.as_ref().map(Launched::epoch).unwrap_or_default();
        self.stands = Stands::Broken { gone: false };
        let met = match &record.launch {
            None => self.greet(nonce, epoch, SHIM_RETURNS).await,
            Some(_) => self.greet_running(nonce, epoch).await,
        };
        let (state, launch) = match (met, record.launch) {
            (Ok((theirs, state)), launch) if theirs == nonce && !nonce.is_idle() => (state, launch),
            (Ok(_idle), _) => {
                self.stands = Stands::Idle;
                return Err(claim);
            }
            (Err(fault), _) => {
                tracing::debug!(slot = %self.slot, %fault, "no shim came back");
                return Err(claim);
            }
        };
        let own = match &state {
            ShimState::Running(id) => Some(*id),
            ShimState::Ended(report) => Some(report.launch),
            ShimState::Idle => None,
        };
        let memory = self.retaining.take_back(&self.shared.stages, self.connection.as_ref(), own).await;
        // Who made which of them, by path or through a client, is not known any more: all count.
        self.owed = self.retaining.stages().cloned().collect();
        match (state, launch) {
            (ShimState::Running(id), Some(launch)) if id == launch.id() => {
                self.take_over(launch, None, memory).await
            }
            (ShimState::Ended(report), Some(launch)) if report.launch == launch.id() => {
                self.take_over(launch, Some(report), memory).await
            }
            // The launch was written down and never reached the shim, or its traces are gone already. The list of launches
            // says which claims may have run.
            _ => Ok(None),
        }
    }

    /// Waits for the shim of what was launched. Whatever runs can reach the socket, and the nonce of an idle shim is no secret:
    /// who calls as one is put off until the true one has had its time.
    async fn greet_running(&mut self, nonce: Nonce, epoch: Epoch) -> Result<(Nonce, ShimState), Fault> {
        self.listen()?;
        let listener = self.listener.as_ref().ok_or_else(|| slot_fault(&ShimGone))?;
        let met = listener.accept_before_idle(nonce, SHIM_RETURNS).await;
        let caller = met.map_err(|error| slot_fault(&error))?.ok_or_else(|| slot_fault(&ShimGone))?;
        self.welcome(caller.connection, epoch).await?;
        Ok((caller.nonce, caller.state))
    }

    /// Lets the clients of a payload that still runs go on, when all that shims have kept is held again.
    fn resume_clients(&mut self, payload: &Payload) {
        if matches!(self.adopted, Some(None)) {
            self.session = ClientSession::resume(&self.shared.stages, payload, &self.folders.inputs);
        }
    }

    /// Makes this pilot's own what the payload writes.
    async fn take_over(
        &mut self,
        launch: Launched,
        ended: Option<ExitReport>,
        memory: BTreeMap<StageName, OwnedFd>,
    ) -> Result<Option<Launched>, Option<ClaimId>> {
        let payload = &launch.payload;
        let touched = self.folders.keeping.exists();
        let (stages, out) = (&self.shared.stages, &self.folders.out);
        let opened = stages.reopen_outputs(payload, &launch.files, out, touched, memory);
        let outputs = match opened.and_then(|outputs| self.open_streams().map(|()| outputs)) {
            Ok(outputs) => outputs,
            Err(fault) => {
                tracing::warn!(slot = %self.slot, payload = %payload.name, %fault, "a payload can't be adopted");
                self.runs = true;
                return match self.clean().await {
                    Ok(_) => Err(Some(launch.claim())),
                    Err(fault) => {
                        tracing::error!(slot = %self.slot, %fault, "what runs in a slot can't be ended");
                        Err(Some(launch.claim()))
                    }
                };
            }
        };
        self.outputs = outputs;
        self.launched = Some(LastLaunch { id: launch.id(), inherited: true });
        for (stream, name) in self.streams.iter_mut().flatten().zip(["stdout", "stderr"]) {
            stream.go_on(log_path(payload, name));
        }
        if let Ok(pod) = self.shared.pod.look().await {
            self.before = view::ended_containers(&pod, &self.shape.name);
        }
        self.oom_kills_before = launch.oom_kills;
        // What the container's peak was before is not known.
        self.peak_before = u64::MAX;
        self.reusable = self.may_stay();
        self.stands = Stands::Bound;
        self.runs = true;
        self.adopted = Some(ended);
        Ok(Some(launch))
    }
}
