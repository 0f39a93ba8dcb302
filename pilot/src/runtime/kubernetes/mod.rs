//! The kubernetes backend: slots are the other containers of the pilot's own pod.
//!
//! ```text
//!  pod ┌ pilot ────────────────┐   PATCH own pod: slot-0's image, slot-0's nonce    ┌ slot-0 ──────────────────┐
//!      │ driver ─> this module ├──────────> API server ──> kubelet ─ new container ─>│ payload-shim ─> payload  │
//!      └────────────┬──────────┘                                                    └──────────┬───────────────┘
//!                   └───── slots/0/control/sock on the shared volume: Hello(nonce), launch, .. ─┘
//! ```
//! The pilot has one right, to patch its own pod, and needs no other. A warm slot takes no request at all.
//!
//! **Must not know:** queues, decisions, how the pod was made.

mod adopt;
mod api;
mod control;
mod ending;
mod folders;
mod hidden;
mod images;
mod inputs;
mod launch;
mod live;
mod logins;
mod meeting;
mod mounted;
mod prefetch;
mod sizes;
mod view;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pilot_core::{Demand, Drained, Epoch, Fault, FaultClass, Signal, SlotId};
use stage::{StageName, StageUri};
use tokio::sync::Mutex as AsyncMutex;

use self::api::OwnPod;
use self::folders::Share;
pub use self::folders::prepare as prepare_share;
pub(crate) use self::folders::private as private_folder;
use self::images::{Images, objection};
use self::live::Live;
use self::prefetch::Prefetch;
use self::view::SlotShape;
use crate::object_access::ObjectAccess;
use crate::payload::Payload;
use crate::ports::{Ended, Grant, LaunchFault, Prepared, Runtime, StageFigures};
use crate::runtime::adoption::{Inventory, Standing};
use crate::runtime::exchange::StageExchange;
use crate::runtime::logs::LogLimit;
use crate::runtime::objects::Objects;
use crate::runtime::record::LaunchLog;
use crate::runtime::stages::{StageRoom, Stages};
use crate::runtime::talk::Talk;

/// All that has to be known to be the pilot of a pod.
#[derive(Clone)]
pub struct PodConfig {
    /// Speaks to the API server with the pod's own identity.
    pub client: kube::Client,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// Where the shared volume is.
    pub share: PathBuf,
    /// The image of slots that nothing is bound to, by digest.
    pub idle_image: String,
    /// How registries are reached.
    pub registry_access: image_store::RegistryAccess,
    /// Where documents of images are kept.
    pub store: PathBuf,
    /// Memory for stages, in bytes.
    pub stage_memory_bytes: u64,
    /// Most bytes of stages on the volume, if there is a limit.
    pub stage_disk_bytes: Option<u64>,
    /// Where stages go that do not fit there.
    pub spill_to: Option<objects::ObjectUrl>,
    /// How objects are reached.
    pub object_access: ObjectAccess,
    /// Most bytes of fetched objects that are kept.
    pub object_cache_bytes: u64,
    /// Most bytes kept of one stream.
    pub log_max_bytes: u64,
    /// Whether a container may serve several payloads.
    pub reuse: bool,
    /// Whether another life of this pilot may go on with what runs.
    pub serves: bool,
    /// How long payloads go on without their pilot, in milliseconds.
    pub orphan_grace_ms: u32,
    /// The Secret for late-bound logins, if there is one.
    pub pull_secret: Option<String>,
    /// Whether images may be fetched by pods of their own.
    pub prefetches: bool,
    /// Whether slots may be resized.
    pub resizes: bool,
}

impl std::fmt::Debug for PodConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodConfig")
            .field("namespace", &self.namespace)
            .field("pod", &self.pod)
            .finish_non_exhaustive()
    }
}

/// Why there are no slots here.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The pod can't be read.
    #[error("look at the pilot's own pod {pod}: {fault}")]
    Look {
        /// Which.
        pod: String,
        /// Why.
        fault: Fault,
    },
    /// The pod has no slots.
    #[error("find slots in pod {0}: it has no container named slot-0; `pilot pod` prints one that has")]
    NoSlots(String),
    /// The shared volume can't be used.
    #[error("use the shared volume {}", path.display())]
    Share {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Documents of images can't be kept.
    #[error("open the image store")]
    Store(#[from] image_store::StoreError),
    /// The broker can't be started.
    #[error("start the stage broker")]
    Stages(#[source] std::io::Error),
}

/// The slots of a pod.
#[derive(Debug)]
pub struct KubernetesRuntime {
    shared: Arc<Shared>,
    slots: Vec<Arc<Slot>>,
    shapes: Vec<SlotShape>,
    grace: Duration,
}

/// What all slots use.
#[derive(Debug)]
struct Shared {
    pod: OwnPod,
    share: Share,
    images: Images,
    stages: Arc<Stages>,
    launches: Option<LaunchLog>,
    log_limit: LogLimit,
    idle_image: String,
    reuse: bool,
    serves: bool,
    orphan_grace_ms: u32,
    pull_secret: Option<String>,
    login_turn: Arc<AsyncMutex<()>>,
    prefetch: Option<Prefetch>,
    resizes: bool,
    /// No earlier life of this pilot was here.
    is_new: bool,
}

#[derive(Debug)]
struct Slot {
    live: AsyncMutex<Live>,
    talk: Talk,
}

impl KubernetesRuntime {
    /// Reads the pod, once, and makes what is missing on its volume.
    ///
    /// # Errors
    /// When the pod can't be read, has no slots, or its volume can't be written.
    pub async fn new(config: PodConfig) -> Result<Self, PodError> {
        let own = OwnPod::new(config.client.clone(), &config.namespace, &config.pod);
        let pod = own.look().await.map_err(|fault| PodError::Look { pod: config.pod.clone(), fault })?;
        let shapes = view::slots(&pod);
        if shapes.is_empty() {
            return Err(PodError::NoSlots(config.pod));
        }
        if shapes.iter().any(|shape| shape.always_pulls) {
            tracing::warn!("AlwaysPullImages is on: each bind asks the registry, and waits while it is away");
        }
        let share_error = |source| PodError::Share { path: config.share.clone(), source };
        let count = u32::try_from(shapes.len()).unwrap_or(u32::MAX);
        let declared = shapes.iter().flat_map(|shape| &shape.mounts);
        let places: BTreeSet<String> = declared.map(|mount| mount.place.clone()).collect();
        let places: Vec<String> = places.into_iter().collect();
        folders::prepare(&config.share, count, &places).map_err(share_error)?;
        let share = Share::new(&config.share);
        let marker = share.private().join("serves");
        let is_new = !marker.exists();
        if config.serves {
            std::fs::write(&marker, b"").map_err(share_error)?;
        }
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let room = StageRoom {
            memory_bytes: config.stage_memory_bytes,
            disk_bytes: config.stage_disk_bytes,
            spill_to: config.spill_to,
            // What an earlier life of this pod's pilot left is written down on the volume.
            left_far: Vec::new(),
        };
        let stages = Stages::new(
            room,
            config.serves,
            share.stages_root(),
            share.private().join("pipes"),
            Objects::new(config.object_access, share.private().join("objects"), config.object_cache_bytes),
            false,
        );
        let shared = Arc::new(Shared {
            images: Images::new(&config.store, config.registry_access)?,
            stages: stages.map_err(PodError::Stages)?,
            launches: config.serves.then(|| LaunchLog::new(&share.private())),
            log_limit: LogLimit(config.log_max_bytes),
            idle_image: config.idle_image,
            reuse: config.reuse,
            serves: config.serves,
            // A pilot that nobody can follow takes its payloads with it.
            orphan_grace_ms: if config.serves { config.orphan_grace_ms } else { 0 },
            pull_secret: config.pull_secret,
            login_turn: Arc::default(),
            prefetch: config.prefetches.then(|| Prefetch::new(node, uid)),
            resizes: config.resizes,
            pod: own,
            share,
            is_new,
        });
        let slot = |(number, shape): (u32, &SlotShape)| {
            let live = Live::new(Arc::clone(&shared), SlotId(number), shape.clone());
            Arc::new(Slot { live: AsyncMutex::new(live), talk: Talk::default() })
        };
        let slots = (0..).zip(&shapes).map(slot).collect();
        Ok(Self { shared, slots, shapes, grace: view::grace(&pod) })
    }

    /// How long the cluster lets the pod end in peace.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// How many slots there are.
    #[must_use]
    pub fn slot_count(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    /// What all slots have together. A slot without a limit has its part of what is left: nothing is known of that, so it
    /// counts as much as anybody asks for.
    #[must_use]
    pub fn total(&self) -> Demand {
        let sum = |of: fn(&SlotShape) -> Option<u64>| {
            self.shapes.iter().map(of).try_fold(0_u64, |sum, part| sum.checked_add(part?))
        };
        Demand {
            cpu_millis: sum(|shape| shape.cpu_millis).unwrap_or(u64::MAX / 2),
            memory_bytes: sum(|shape| shape.memory_bytes).unwrap_or(u64::MAX / 2),
        }
    }

    /// Says how objects are reached, before the first is asked for.
    pub(crate) fn reach_objects(&self, access: ObjectAccess) {
        self.shared.stages.objects.reach(access);
    }

    /// Requests made to the API server so far.
    #[must_use]
    pub fn api_requests(&self) -> u64 {
        self.shared.pod.requests()
    }

    fn slot(&self, slot: SlotId) -> Result<&Slot, Fault> {
        let unknown = || Fault::new(FaultClass::Pilot, format!("{slot} does not exist"));
        self.slots.get(slot.0 as usize).map(|slot| &**slot).ok_or_else(unknown)
    }
}

impl Runtime for KubernetesRuntime {
    async fn prepare(&self, payload: &Payload) -> Result<Prepared, Fault> {
        let fits = |shape: &SlotShape| objection(payload, shape, self.shared.resizes);
        if let Some(text) = self.shapes.first().and_then(fits) {
            return Err(Fault::new(FaultClass::Payload, text));
        }
        self.shared.stages.bring_back(payload).await?;
        let objects_brought = self.shared.stages.objects.prepare(payload).await?;
        let mounts = match self.shapes.first() {
            Some(shape) => mounted::prepare(payload, shape, &self.shared.stages)?,
            None => String::new(),
        };
        let image = self.shared.images.prepare(payload).await?;
        let bytes_brought = match &self.shared.prefetch {
            // The kubelet has no login for a pod that is not the pilot's.
            Some(prefetch) if !self.shared.images.takes_login(payload, &image) => {
                prefetch.fetch(&self.shared.pod, &image).await?
            }
            _ => 0,
        };
        let mut key = image.pinned() + &mounts;
        if self.shared.resizes {
            let (cpu, memory) = (payload.resources.cpu_millis, payload.memory_bytes());
            key.push_str(&format!(" cpu={cpu} memory={memory}"));
        }
        Ok(Prepared { image: key, bytes_brought: bytes_brought + objects_brought })
    }

    async fn bind(&self, slot: SlotId, epoch: Epoch, payload: &Payload) -> Result<(), Fault> {
        self.slot(slot)?.live.lock().await.bind(epoch, payload).await
    }

    async fn launch(&self, slot: SlotId, grant: Grant, payload: &Payload) -> Result<Ended, LaunchFault> {
        let here = self.slot(slot).map_err(LaunchFault::NotStarted)?;
        let words = here.talk.open(payload);
        here.live.lock().await.launch(grant, payload, words).await
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
        here.live.lock().await.drain(payload, commit).await
    }

    async fn clean(&self, slot: SlotId) -> Result<bool, Fault> {
        self.slot(slot)?.live.lock().await.clean().await
    }

    fn bind_wait(&self) -> Duration {
        // It may hold the pull of an image of many gigabytes.
        Duration::from_secs(1800)
    }

    async fn close(&self) {
        let mut retiring = tokio::task::JoinSet::new();
        for slot in &self.slots {
            let slot = Arc::clone(slot);
            retiring.spawn(async move { slot.live.lock().await.retire().await });
        }
        while retiring.join_next().await.is_some() {}
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

impl Standing for KubernetesRuntime {
    async fn recover(&self) -> Inventory {
        self.look_around().await
    }

    async fn disown(&self, slot: SlotId) -> Result<(), Fault> {
        self.end_found(slot).await
    }

    fn is_new(&self) -> bool {
        self.shared.is_new
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
        self.shared.share.private().join("api.sock")
    }

    fn unenforced(&self) -> Option<String> {
        let unlimited =
            |of: fn(&SlotShape) -> Option<u64>| self.shapes.iter().any(|shape| of(shape).is_none());
        let memory = unlimited(|shape| shape.memory_bytes).then_some("memory");
        let cpu = unlimited(|shape| shape.cpu_millis).then_some("processor time");
        let lacking: Vec<&str> = memory.into_iter().chain(cpu).collect();
        (!lacking.is_empty()).then(|| format!("the pod's slots have no limit of {}", lacking.join(" and ")))
    }
}
