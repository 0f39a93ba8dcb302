//! The local backend: slots are rootless containers made by `oci-runner` from images in `image-store`.
//!
//! What a slot holds at any moment is one `live::Live`, built up step by step by `bind`, kept warm or taken down by `clean`,
//! so that whatever went wrong in between, one place removes it. A container stays for the next payload when that one has
//! the same [key](Prepared::image): image, user, mounts, limits, network.
//!
//! **Must not know:** queues, decisions, Kubernetes.

pub mod folders;

mod adopt;
mod container;
mod control;
mod ending;
pub(super) mod images;
mod launch;
mod live;
mod mounted;
mod start;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use image_store::{Attach, Store};
use oci_runner::cgroup::{Cgroup, Delegation, Guard, Limits, cgroup_name, cgroup_owner};
use oci_runner::{Authority, IdMap, Program};
use pilot_core::{Drained, Epoch, Fault, FaultClass, Signal, SlotId};
use stage::{StageName, StageUri};
use tokio::sync::Mutex as AsyncMutex;

use self::folders::{FolderError, PilotFolders};
use self::images::Images;
use self::live::Live;
use crate::config::{AttachChoice, Config};
use crate::fault::chain;
use crate::payload::{Payload, Source};
use crate::ports::{Ended, Grant, LaunchFault, Prepared, Runtime, StageFigures};
use crate::runtime::adoption::{Inventory, Standing};
use crate::runtime::exchange::StageExchange;
use crate::runtime::logs::LogLimit;
use crate::runtime::objects::Objects;
use crate::runtime::record::LaunchLog;
pub use crate::runtime::record::start_ticks;
use crate::runtime::sources::identity;
use crate::runtime::stages::{StageRoom, Stages};
use crate::runtime::talk::Talk;

/// Why the local backend can't start here.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// No folder to work in.
    #[error("prepare the pilot's folders")]
    Folders(#[from] FolderError),
    /// The image store can't be opened.
    #[error("open the image store")]
    Store(#[from] image_store::StoreError),
    /// The shim can't be loaded.
    #[error("load payload-shim")]
    Shim(#[from] oci_runner::LoadError),
    /// No mapping for payloads' ids.
    #[error("choose the payloads' user ids")]
    Ids(#[from] oci_runner::IdMapError),
    /// The broker can't be started.
    #[error("start the stage broker")]
    Stages(#[source] std::io::Error),
    /// Nothing on the attach ladder works.
    #[error("attach images: {0}; `pilot check` says what to do")]
    Attach(String),
}

/// Slots on this machine.
#[derive(Debug)]
pub struct LocalRuntime {
    shared: Arc<Shared>,
    slots: Vec<Slot>,
}

/// What all slots use.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Before the folders, in which the broker would write until it ends.
    stages: Arc<Stages>,
    folders: PilotFolders,
    images: Images,
    shim: Program,
    caller: oci_runner::Caller,
    uid_base: u32,
    log_limit: LogLimit,
    cgroups: Delegation,
    /// Payloads have another host uid than the pilot.
    foreign_uid: bool,
    /// Which claims were launched, for the next pilot of this name.
    launches: Option<LaunchLog>,
    /// A container may serve several payloads.
    reuse: bool,
    /// How long payloads go on without their pilot, in milliseconds.
    orphan_grace_ms: u32,
}

#[derive(Debug, Default)]
struct Slot {
    live: AsyncMutex<Option<Live>>,
    /// Where words reach the launch that runs.
    talk: Talk,
}

impl LocalRuntime {
    /// Makes the pilot's folders, loads the shim and finds out how images can be attached here.
    ///
    /// # Errors
    /// When this machine or these settings won't do.
    pub fn new(config: &Config, name: Name<'_>) -> Result<Self, LocalError> {
        let (folders, swept) = match name {
            Name::Any => {
                let id = format!("{:08x}", fastrand::u32(..));
                PilotFolders::create(&config.state_dir, &config.scratch_dir, &id)?
            }
            Name::Fixed(name) => PilotFolders::take(&config.state_dir, &config.scratch_dir, name)?,
        };
        if !swept.pilots.is_empty() {
            tracing::info!(pilots = ?swept.pilots, "removed what dead pilots left");
        }
        let store = Arc::new(Store::open(&config.store)?);
        let caller = oci_runner::caller();
        let ids = IdMap::choose(&caller, (0, 0), config.uid_base, 0)?;
        let foreign_uid = ids.authority == Authority::Privileged;
        let attach = choose_attach(config, &folders, &store, ids)?;
        let images = Images::new(
            store,
            attach,
            folders.shared().to_path_buf(),
            foreign_uid,
            config.registry_access.clone(),
        );
        let shim = Program::load(&config.shim)?;
        let cgroups = Delegation::find();
        cgroups.sweep(|name| cgroup_owner(name).is_some_and(|id| swept.pilots.iter().any(|dead| dead == id)));
        let serves = folders.serves();
        let launches = serves.then(|| LaunchLog::new(folders.state()));
        // Beside what all pilots of this user have on this disk: what one has fetched serves the others.
        let cache = config.scratch_dir.join("objects");
        let objects = Objects::new(config.object_access.clone(), cache, config.object_cache_bytes);
        let (root, pipes) = (folders.stages_root(), folders.pipes());
        let room = StageRoom {
            memory_bytes: config.memory_bytes,
            disk_bytes: config.stage_disk_bytes,
            spill_to: config.spill_to.clone(),
            left_far: swept.far,
        };
        let stages = Stages::new(room, serves, root, pipes, objects, !foreign_uid);
        let shared = Shared {
            folders,
            images,
            stages: stages.map_err(LocalError::Stages)?,
            shim,
            caller,
            uid_base: config.uid_base,
            log_limit: LogLimit(config.log_max_bytes),
            cgroups,
            foreign_uid,
            launches,
            reuse: config.reuse,
            // A pilot that nobody can follow takes its payloads with it.
            orphan_grace_ms: if serves { config.orphan_grace_ms } else { 0 },
        };
        let slots = (0..config.slots).map(|_| Slot::default()).collect();
        Ok(Self { shared: Arc::new(shared), slots })
    }

    fn slot(&self, slot: SlotId) -> Result<&Slot, Fault> {
        let unknown = || Fault::new(FaultClass::Pilot, format!("{slot} does not exist"));
        self.slots.get(slot.0 as usize).ok_or_else(unknown)
    }
}

/// The first rung that works, or the one that was asked for if it works.
fn choose_attach(
    config: &Config,
    folders: &PilotFolders,
    store: &Store,
    ids: IdMap,
) -> Result<Attach, LocalError> {
    let wanted = match config.attach {
        AttachChoice::Auto => None,
        AttachChoice::DataOnly => Some(Attach::DataOnly),
        AttachChoice::Overlay => Some(Attach::Overlay),
        AttachChoice::Copy => Some(Attach::Copy),
    };
    // In its own folder, so that a pilot that is killed while it tries leaves nothing for good.
    let trials = oci_runner::probe_attach(store.path(), folders.state(), ids);
    let mut tried = trials.into_iter().filter(|trial| wanted.is_none_or(|wanted| trial.attach == wanted));
    let mut last = None;
    for trial in tried.by_ref() {
        match trial.outcome {
            Ok(()) => return Ok(trial.attach),
            Err(error) => last = Some(chain(&error)),
        }
    }
    Err(LocalError::Attach(last.unwrap_or_default()))
}

impl Runtime for LocalRuntime {
    async fn prepare(&self, payload: &Payload) -> Result<Prepared, Fault> {
        let prepared = self.shared.images.prepare(payload).await?;
        self.shared.stages.bring_back(payload).await?;
        let objects_brought = self.shared.stages.objects.prepare(payload).await?;
        let mounted = mounted::wanted(payload, &self.shared.stages)?;
        if !mounted.is_empty() {
            let stored = self.shared.images.stored(payload)?;
            let fitted = self.shared.images.fitted(&stored, mounted::places(&mounted)).await?;
            mounted::binds(&mounted, &fitted.points)?;
        }
        let image = shape(&prepared.image, payload) + &mounted::key(&mounted);
        Ok(Prepared { image, bytes_brought: prepared.bytes_brought + objects_brought })
    }

    async fn bind(&self, slot: SlotId, epoch: Epoch, payload: &Payload) -> Result<(), Fault> {
        let mut held = self.slot(slot)?.live.lock().await;
        if let Some(warm) = held.as_mut() {
            // It holds what another payload left it for.
            warm.take_down().await?;
        }
        let live = Live::begin(Arc::clone(&self.shared), slot, payload)?;
        held.insert(live).bind(epoch, payload).await
    }

    async fn launch(&self, slot: SlotId, grant: Grant, payload: &Payload) -> Result<Ended, LaunchFault> {
        let here = self.slot(slot).map_err(LaunchFault::NotStarted)?;
        let words = here.talk.open(payload);
        let mut held = here.live.lock().await;
        let none = || LaunchFault::SlotLost(Fault::new(FaultClass::Slot, format!("{slot} is not bound")));
        held.as_mut().ok_or_else(none)?.launch(grant, payload, words).await
    }

    fn signal(&self, slot: SlotId, signal: Signal) {
        if let Ok(here) = self.slot(slot) {
            here.talk.signal(signal);
        }
    }

    async fn drain(&self, slot: SlotId, payload: &Payload, commit: bool) -> Drained {
        let here = match self.slot(slot) {
            Ok(here) => here,
            Err(fault) => return Drained { fault: Some(fault), ..Drained::default() },
        };
        here.talk.close();
        let mut held = here.live.lock().await;
        let Some(live) = held.as_mut() else {
            self.shared.stages.leave(payload);
            return Drained::default();
        };
        live.drain(payload, commit).await
    }

    async fn clean(&self, slot: SlotId) -> Result<bool, Fault> {
        let mut held = self.slot(slot)?.live.lock().await;
        if let Some(live) = held.as_mut() {
            if live.clean_warm().await {
                return Ok(true);
            }
            live.take_down().await?;
        }
        *held = None;
        Ok(false)
    }

    async fn close(&self) {
        for slot in &self.slots {
            let mut held = slot.live.lock().await;
            if let Some(live) = held.as_mut()
                && let Err(fault) = live.take_down().await
            {
                tracing::warn!(%fault, "a slot could not be taken down");
                continue;
            }
            *held = None;
        }
        self.shared.stages.rest();
        self.shared.stages.clear_far().await;
        self.shared.stages.objects.settle().await;
    }

    fn settle(&self, payload: &Payload) {
        self.shared.stages.settle(payload);
    }

    fn stage_figures(&self) -> StageFigures {
        self.shared.stages.figures()
    }
}

impl Standing for LocalRuntime {
    async fn recover(&self) -> Inventory {
        self.look_around().await
    }

    async fn disown(&self, slot: SlotId) -> Result<(), Fault> {
        self.end_found(slot).await
    }

    fn is_new(&self) -> bool {
        self.shared.folders.is_new()
    }

    fn exchange(&self) -> StageExchange {
        StageExchange::new(&self.shared.stages)
    }

    fn holds(&self, stage: &StageUri) -> bool {
        self.shared.stages.holds(stage)
    }

    fn workflows(&self) -> BTreeSet<StageName> {
        self.shared.stages.workflows()
    }

    fn keep_stages(&self, workflow: &StageName, unfinished: &BTreeSet<StageName>) {
        self.shared.stages.keep_for(workflow, unfinished);
    }

    fn dropped_outputs(&self) -> u64 {
        self.shared.stages.dropped()
    }

    fn api_socket(&self) -> PathBuf {
        self.shared.folders.api_socket()
    }

    fn unenforced(&self) -> Option<String> {
        let limits = Limits { memory_bytes: Some(1 << 30), cpu_millis: Some(1000), pids: None };
        let name = cgroup_name(self.shared.folders.id(), "probe");
        // Found out by doing; the trial cgroup goes at the end of this function.
        let (_trial, enforced) = Cgroup::create(&self.shared.cgroups, &name, &limits).ok()?;
        let memory = (enforced.memory != Guard::Cgroup).then_some("memory is limited for each process only");
        let cpu = (enforced.cpu != Guard::Cgroup).then_some("processor time is not limited");
        let lacking: Vec<&str> = memory.into_iter().chain(cpu).collect();
        (!lacking.is_empty()).then(|| format!("{}; `pilot check` says why", lacking.join(", ")))
    }
}

/// Under which name a pilot has its folders.
#[derive(Clone, Copy, Debug)]
pub enum Name<'a> {
    /// Any; what it leaves is swept by the next pilot.
    Any,
    /// This one; the next pilot of this name takes over what it leaves.
    Fixed(&'a str),
}

/// What two payloads must have in common for the second to follow the first in one container: all that a container is made
/// of. Work folder, inputs from stages, outputs, environment and command are made anew for each.
fn shape(image: &str, payload: &Payload) -> String {
    let Payload { user, resources, inputs, host_network, .. } = payload;
    let mut shape = format!(
        "{image} user={user:?} cpu={} memory={} network={host_network}",
        resources.cpu_millis, resources.memory_bytes
    );
    for (index, input) in inputs.iter().enumerate() {
        if let Source::Host(path) = &input.source {
            shape.push_str(&format!(" {index}={}", identity(path)));
        }
    }
    shape
}
