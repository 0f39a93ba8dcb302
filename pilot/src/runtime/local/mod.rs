//! The local backend: slots are rootless containers made by `oci-runner` from images in `image-store`.
//!
//! A fresh container for each payload. What a slot holds at any moment is one `live::Live`, built up step by step by
//! `bind` and taken down by `clean`, so that whatever went wrong in between, one place removes it.
//!
//! **Must not know:** queues, decisions, Kubernetes.

pub mod folders;

mod container;
mod images;
mod launch;
mod live;
mod stages;
mod start;
mod usage;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use image_store::{Attach, Store};
use oci_runner::cgroup::{Cgroup, Delegation, Guard, Limits};
use oci_runner::{Authority, IdMap, Program};
use pilot_core::{Drained, Epoch, Fault, FaultClass, Signal, SlotId};
use tokio::sync::{Mutex as AsyncMutex, mpsc};

use self::folders::{FolderError, PilotFolders};
use self::images::Images;
use self::live::Live;
use self::stages::Stages;
use crate::config::{AttachChoice, Config};
use crate::fault::chain;
use crate::payload::Payload;
use crate::ports::{Ended, LaunchFault, Prepared, Runtime};
use crate::runtime::logs::LogLimit;

/// Signals that may wait for one launch: a Term and a Kill, twice each.
const SIGNALS_MAX: usize = 4;

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
    folders: PilotFolders,
    images: Images,
    stages: Stages,
    shim: Program,
    caller: oci_runner::Caller,
    uid_base: u32,
    logs: PathBuf,
    log_limit: LogLimit,
    cgroups: Delegation,
    /// Payloads have another host uid than the pilot.
    foreign_uid: bool,
}

#[derive(Debug, Default)]
struct Slot {
    live: AsyncMutex<Option<Live>>,
    /// Where `signal` reaches the launch that runs.
    signals: Mutex<Option<mpsc::Sender<Signal>>>,
}

impl LocalRuntime {
    /// Makes the pilot's folders, loads the shim and finds out how images can be attached here.
    ///
    /// # Errors
    /// When this machine or these settings won't do.
    pub fn new(config: &Config, logs: PathBuf) -> Result<Self, LocalError> {
        let id = format!("{:08x}", fastrand::u32(..));
        let (folders, swept) = PilotFolders::create(&config.state_dir, &config.scratch_dir, &id)?;
        if !swept.pilots.is_empty() {
            tracing::info!(pilots = ?swept.pilots, "removed what dead pilots left");
        }
        let store = Arc::new(Store::open(&config.store)?);
        let caller = oci_runner::caller();
        let ids = IdMap::choose(&caller, (0, 0), config.uid_base, 0)?;
        let foreign_uid = ids.authority == Authority::Privileged;
        let attach = choose_attach(config, &folders, &store, ids)?;
        let images = Images::new(store, attach, folders.shared().to_path_buf(), foreign_uid);
        let shim = Program::load(&config.shim)?;
        let cgroups = Delegation::find();
        cgroups.sweep(|name| swept.pilots.iter().any(|id| name.starts_with(&format!("latebind-{id}-"))));
        let shared = Shared {
            folders,
            images,
            stages: Stages::new(config.memory_bytes),
            shim,
            caller,
            uid_base: config.uid_base,
            logs,
            log_limit: LogLimit(config.log_max_bytes),
            cgroups,
            foreign_uid,
        };
        let slots = (0..config.slots).map(|_| Slot::default()).collect();
        Ok(Self { shared: Arc::new(shared), slots })
    }

    /// Which limits this machine does not let the pilot enforce, in one line; `None` when all hold.
    #[must_use]
    pub fn unenforced(&self) -> Option<String> {
        let limits = Limits { memory_bytes: Some(1 << 30), cpu_millis: Some(1000), pids: None };
        let name = format!("latebind-{}-probe", self.shared.folders.id());
        // Found out by doing; the trial cgroup goes at the end of this function.
        let (_trial, enforced) = Cgroup::create(&self.shared.cgroups, &name, &limits).ok()?;
        let memory = (enforced.memory != Guard::Cgroup).then_some("memory is limited for each process only");
        let cpu = (enforced.cpu != Guard::Cgroup).then_some("processor time is not limited");
        let lacking: Vec<&str> = memory.into_iter().chain(cpu).collect();
        (!lacking.is_empty()).then(|| format!("{}; `pilot check` says why", lacking.join(", ")))
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
    let trials = oci_runner::probe_attach(store.path(), folders.shared(), ids);
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
        self.shared.images.prepare(payload).await
    }

    async fn bind(&self, slot: SlotId, epoch: Epoch, payload: &Payload) -> Result<(), Fault> {
        let mut held = self.slot(slot)?.live.lock().await;
        if held.is_some() {
            return Err(Fault::new(FaultClass::Slot, format!("{slot} was not cleaned")));
        }
        let live = Live::begin(Arc::clone(&self.shared), slot, payload)?;
        held.insert(live).bind(epoch, payload).await
    }

    async fn launch(&self, slot: SlotId, payload: &Payload) -> Result<Ended, LaunchFault> {
        let here = self.slot(slot).map_err(LaunchFault::NotStarted)?;
        let (sender, signals) = mpsc::channel(SIGNALS_MAX);
        *here.signals.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        let mut held = here.live.lock().await;
        let none = || LaunchFault::SlotLost(Fault::new(FaultClass::Slot, format!("{slot} is not bound")));
        held.as_mut().ok_or_else(none)?.launch(payload, signals).await
    }

    fn signal(&self, slot: SlotId, signal: Signal) {
        let Ok(here) = self.slot(slot) else { return };
        if let Some(sender) = &*here.signals.lock().unwrap_or_else(PoisonError::into_inner) {
            // Full or closed: the launch has ended or has been told often enough.
            let _ = sender.try_send(signal);
        }
    }

    async fn drain(&self, slot: SlotId, payload: &Payload, commit: bool) -> Drained {
        let here = match self.slot(slot) {
            Ok(here) => here,
            Err(fault) => return Drained { fault: Some(fault), ..Drained::default() },
        };
        here.signals.lock().unwrap_or_else(PoisonError::into_inner).take();
        match here.live.lock().await.as_mut() {
            Some(live) => live.drain(payload, commit).await,
            None => Drained::default(),
        }
    }

    async fn clean(&self, slot: SlotId) -> Result<bool, Fault> {
        let mut held = self.slot(slot)?.live.lock().await;
        if let Some(live) = held.as_mut() {
            live.clean().await?;
        }
        *held = None;
        Ok(false)
    }

    fn settle(&self, payload: &Payload) {
        self.shared.stages.settle(payload);
    }
}

pub(crate) fn slot_fault(error: &dyn std::error::Error) -> Fault {
    Fault::new(FaultClass::Slot, chain(error))
}
