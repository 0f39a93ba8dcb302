//! Finding what an earlier pilot of the same name left: payloads that still run, or ended while nobody looked, are adopted;
//! everything else is taken down.
//!
//! ```text
//!   record? ─no──────────────────────────────────────────────> take down
//!      │ PID 1 alive? ─no────────────────────────────────────> take down   (launched: lost)
//!      │ shim connects and proves itself? ─no────────────────> kill, take down
//!      │    (what it has kept of stages in memory is held again)
//!      │ it runs, or ended, the launch of the record? ─no────> take down   (never launched, or clean already; if its shim still
//!      │                                                                    keeps some, the next bind does that)
//!      └─ its outputs can still be kept? ─no─────────────────> kill, take down   (launched: lost)
//!           └─> adopted
//! ```
//!
//! **Must not know:** queues; what becomes of a payload that is lost.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use oci_runner::Running;
use oci_runner::cgroup::{Cgroup, Guard, cgroup_name};
use pilot_core::{ClaimId, Epoch, Fault, FaultClass, SlotId};
use stage::StageName;
use tokio::io::Interest;
use wire::slot::{ExitReport, ShimState};

use super::LocalRuntime;
use super::live::{Live, died};
use crate::payload::Payload;
use crate::runtime::adoption::{Found, Inventory};
use crate::runtime::launching::{LastLaunch, log_path, slot_fault};
use crate::runtime::record::{LaunchLog, Launched, Record, boot_ms, start_ticks};
use crate::runtime::slots::{Connection, SlotListener};
use crate::runtime::stage_clients::ClientSession;
use crate::runtime::watch;

/// A shim whose pilot has gone looks for a new one several times a second.
const SHIM_RETURNS: Duration = Duration::from_secs(3);

enum Left {
    Adopted(Box<(Live, Launched)>),
    /// Nothing runs in it, and its shim keeps stages in memory: it stays until it is bound anew.
    Keeps(Box<Live>),
    Gone {
        launched: Option<ClaimId>,
    },
    Dirty(Fault),
}

impl LocalRuntime {
    /// Looks at every slot that an earlier pilot of this name left. To be called once, before anything is bound.
    pub(super) async fn look_around(&self) -> Inventory {
        self.shared.stages.recover(&self.shared.folders.stages_root());
        let mut looks = tokio::task::JoinSet::new();
        for number in self.shared.folders.left() {
            let (shared, usable) = (Arc::clone(&self.shared), (number as usize) < self.slots.len());
            looks.spawn(async move { (SlotId(number), look(shared, SlotId(number), usable).await) });
        }
        let launches = self.shared.launches.as_ref().map(LaunchLog::read).unwrap_or_default();
        let mut inventory = Inventory::default();
        while let Some(looked) = looks.join_next().await {
            match looked {
                Ok((slot, Left::Adopted(adopted))) => self.keep(slot, *adopted, &mut inventory).await,
                Ok((slot, Left::Keeps(live))) => {
                    if let Ok(here) = self.slot(slot) {
                        *here.live.lock().await = Some(*live);
                    }
                }
                Ok((_, Left::Gone { launched })) => inventory.lost.extend(launched),
                Ok((slot, Left::Dirty(fault))) => inventory.dirty.push((slot, fault)),
                Err(error) => tracing::error!(%error, "looking at a slot failed"),
            }
        }
        self.shared.stages.sweep_pipes();
        for found in &inventory.found {
            if let Ok(here) = self.slot(found.slot)
                && let Some(live) = here.live.lock().await.as_mut()
            {
                live.resume_clients(&found.payload);
            }
        }
        inventory.settle(launches);
        inventory
    }

    async fn keep(&self, slot: SlotId, (live, launched): (Live, Launched), inventory: &mut Inventory) {
        let Ok(here) = self.slot(slot) else { return };
        // Keeps its image from being removed under it; that it can't is no reason to end what runs.
        if let Err(fault) = self.shared.images.prepare(&launched.payload).await {
            tracing::warn!(%slot, %fault, "the image of an adopted payload is not held");
        }
        inventory.found.push(Found {
            slot,
            epoch: launched.epoch(),
            claim: launched.claim(),
            key: launched.key,
            ran_ms: boot_ms().saturating_sub(launched.at_ms),
            payload: launched.payload,
        });
        *here.live.lock().await = Some(live);
    }

    /// Ends a payload that was found and that nobody wants any more.
    pub(super) async fn end_found(&self, slot: SlotId) -> Result<(), Fault> {
        let mut held = self.slot(slot)?.live.lock().await;
        if let Some(live) = held.as_mut() {
            live.take_down().await?;
        }
        *held = None;
        Ok(())
    }
}

async fn look(shared: Arc<super::Shared>, slot: SlotId, usable: bool) -> Left {
    let folders = shared.folders.places_of(slot.0);
    let record = Record::read(&folders.record);
    let name = cgroup_name(shared.folders.id(), slot.0);
    let cgroup = Cgroup::reopen(&shared.cgroups, &name).ok();
    let mut live = Live::empty(shared, slot, folders);
    // Also without a record: a container is started before there is one.
    live.cgroup = cgroup;
    if let Some(launch) = record.as_ref().and_then(|record| record.launch.as_ref()) {
        live.shared.stages.sweep_unsaved(&launch.payload);
    }
    let launch = match record {
        Some(record) => live.meet(record, usable).await,
        None => Ok(None),
    };
    let own = launch.as_ref().ok().and_then(|found| Some(found.as_ref()?.0.id()));
    let memory = live.retaining.take_back(&live.shared.stages, live.connection.as_ref(), own).await;
    match launch {
        Ok(Some((launch, ended))) => match live.take_over(&launch, ended, memory) {
            Ok(()) => Left::Adopted(Box::new((live, launch))),
            Err(fault) => {
                tracing::warn!(%slot, payload = %launch.payload.name, %fault, "a payload can't be adopted");
                gone(live, Some(launch.claim())).await
            }
        },
        Ok(None) if usable && live.retaining.keeps_any() => Left::Keeps(Box::new(live)),
        Ok(None) => gone(live, None).await,
        Err(launched) => gone(live, launched).await,
    }
}

async fn gone(mut live: Live, launched: Option<ClaimId>) -> Left {
    // Without a cgroup only the shim's own end takes the container with it; it comes when its PID 1 is killed.
    live.runs = false;
    match live.take_down().await {
        Ok(()) => Left::Gone { launched },
        Err(fault) => Left::Dirty(fault),
    }
}

impl Live {
    /// Finds the container of a record and its shim; gives the launch that it is about, or says which claim is lost.
    async fn meet(
        &mut self,
        record: Record,
        usable: bool,
    ) -> Result<Option<(Launched, Option<ExitReport>)>, Option<ClaimId>> {
        self.nonce = record.nonce();
        self.process = record.process;
        self.memory_guard = if record.memory_enforced { Guard::Cgroup } else { Guard::Nobody };
        let claim = record.launch.as_ref().map(Launched::claim);
        let Some(process) = record.process else {
            self.meet_newborn().await;
            return Ok(None);
        };
        if !self.hold(process) {
            return Err(claim);
        }
        let Some(epoch) = record.launch.as_ref().map(Launched::epoch) else { return Err(claim) };
        // Where there is no slot for what runs, what its shim has kept is taken all the same.
        let state = self.greet(epoch).await;
        match (state, record.launch) {
            _ if !usable => Err(claim),
            (Ok(ShimState::Running(id)), Some(launch)) if id == launch.id() => Ok(Some((launch, None))),
            (Ok(ShimState::Ended(report)), Some(launch)) if report.launch == launch.id() => {
                Ok(Some((launch, Some(report))))
            }
            // The launch was written down and never reached the shim, or its traces are gone already. The list of launches
            // says which claims may have run.
            (Ok(ShimState::Idle), _) => Ok(None),
            (state, _) => {
                tracing::debug!(slot = %self.slot, %epoch, ?state, "a slot's shim was not found as it was left");
                Err(claim)
            }
        }
    }

    /// A container that its pilot was just starting, if it got that far. With a cgroup all of it is found there; without
    /// one, its shim comes by itself, and nothing was launched in it.
    async fn meet_newborn(&mut self) {
        if self.has_cgroup() {
            return;
        }
        if let Err(fault) = self.greet(Epoch(0)).await {
            tracing::debug!(slot = %self.slot, %fault, "no container was being started here");
            return;
        }
        let peer = self.connection.as_ref().and_then(Connection::peer);
        if let Some((pid, started)) = peer.and_then(|pid| Some((pid, start_ticks(pid)?))) {
            self.hold((pid, started));
        }
    }

    /// Takes hold of PID 1; `false` when it is gone.
    fn hold(&mut self, (pid, started): (u32, u64)) -> bool {
        let Ok(running) = Running::adopt(pid, started) else { return false };
        let pidfd = std::os::fd::AsFd::as_fd(&running).try_clone_to_owned();
        self.ended = pidfd.and_then(|fd| watch(fd, Interest::READABLE)).ok();
        self.container = Some(running);
        true
    }

    /// Waits for the shim to come to a new socket.
    async fn greet(&mut self, epoch: Epoch) -> Result<ShimState, Fault> {
        let _ = std::fs::remove_file(self.folders.control.join("sock"));
        let listener = SlotListener::bind(&self.folders.control).map_err(|error| slot_fault(&error))?;
        let proven = tokio::time::timeout(SHIM_RETURNS, listener.accept_proven(self.nonce));
        let (connection, state) = tokio::select! {
            proven = proven => proven
                .map_err(|_| Fault::new(FaultClass::Slot, "the slot's shim did not come back"))?
                .map_err(|error| slot_fault(&error))?,
            () = died(self.ended.as_ref()) => return Err(self.shim_died()),
        };
        self.welcome(connection, listener, epoch).await?;
        Ok(state)
    }

    /// Lets the clients of a payload that still runs go on, when all that shims have kept is held again.
    fn resume_clients(&mut self, payload: &Payload) {
        if matches!(self.adopted, Some(None)) {
            self.session = ClientSession::resume(&self.shared.stages, payload, &self.folders.inputs);
        }
    }

    /// Makes this pilot's own what the payload writes.
    fn take_over(
        &mut self,
        launch: &Launched,
        ended: Option<ExitReport>,
        memory: BTreeMap<StageName, OwnedFd>,
    ) -> Result<(), Fault> {
        let payload = &launch.payload;
        let touched = self.folders.keeping.exists();
        let out = &self.folders.out;
        self.outputs = self.shared.stages.reopen_outputs(payload, &launch.files, out, touched, memory)?;
        self.launched = Some(LastLaunch { id: launch.id(), inherited: true });
        self.open_streams()?;
        for (stream, name) in self.streams.iter_mut().flatten().zip(["stdout", "stderr"]) {
            stream.go_on(log_path(payload, name));
        }
        self.oom_kills_before = launch.oom_kills;
        // What the kernel counted since when is not known; it is looked at from here on.
        (self.launches, self.peak_is_own) = (2, false);
        self.may_owe_memory = true;
        self.reusable = self.shared.reuse && !payload.writable_root;
        self.runs = true;
        self.adopted = Some(ended);
        Ok(())
    }
}
