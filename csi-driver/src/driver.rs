//! The owner of all volumes: one thread, one question after the other.
//!
//! ```text
//!   Ask ──> look at the target ──> plan ──> apply ──> answer
//!                                    └────> work: remove, measure ──> Ask::Removed, Ask::Measured
//! ```
//! A volume that is being removed is `leaving`: until the removal is done, requests about it are told to come again.
//!
//! **Must not know:** gRPC, clocks.

mod owner;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::fstatvfs;
use tokio::sync::{mpsc, oneshot};

use self::owner::Owner;
use crate::code::{PublishError, StatsError, UnpublishError};
use crate::gates::Gates;
use crate::journal::State;
use crate::metrics::Metrics;
use crate::plan::Limits;
use crate::remove::Content;
use crate::request::PublishRequest;
use crate::target::{Pods, Target};
use crate::volume::{VolumeId, Volumes};
use crate::work::{STACK_BYTES, Work};

/// Questions that wait; the kubelet asks about a few volumes at a time.
const ASKS_MAX: usize = 64;

/// What the driver is asked, and told by its workers.
#[derive(Debug)]
pub enum Ask {
    /// To make a volume.
    Publish(Box<PublishRequest>, oneshot::Sender<Result<(), PublishError>>),
    /// To remove one.
    Unpublish(VolumeId, Target, oneshot::Sender<Result<(), UnpublishError>>),
    /// How full one is.
    Stats(VolumeId, Target, oneshot::Sender<Result<Figures, StatsError>>),
    /// To look for volumes whose pods are gone. The time is since the driver started.
    Collect(Duration),
    /// A removal is done.
    Removed {
        /// The volume; none for a tenant's folder.
        id: Option<VolumeId>,
        /// How it went.
        result: io::Result<()>,
    },
    /// A volume was measured.
    Measured {
        /// Which.
        id: VolumeId,
        /// What it takes.
        bytes: u64,
    },
}

/// A file system's figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// All that it can hold.
    pub bytes: u64,
    /// What anybody may still take.
    pub free_bytes: u64,
    /// What is taken.
    pub used_bytes: u64,
    /// Inodes that it can hold.
    pub inodes: u64,
    /// Inodes that anybody may still take.
    pub free_inodes: u64,
    /// Inodes that are taken.
    pub used_inodes: u64,
}

impl FileSystem {
    fn of(folder: &OwnedFd) -> io::Result<Self> {
        let told = fstatvfs(folder)?;
        let bytes = |blocks: u64| blocks.saturating_mul(told.f_frsize);
        Ok(Self {
            bytes: bytes(told.f_blocks),
            free_bytes: bytes(told.f_bavail),
            used_bytes: bytes(told.f_blocks.saturating_sub(told.f_bfree)),
            inodes: told.f_files,
            free_inodes: told.f_favail,
            used_inodes: told.f_files.saturating_sub(told.f_ffree),
        })
    }
}

/// How full a volume is.
#[derive(Debug)]
pub struct Figures {
    /// Of the file system that it is on.
    pub file_system: FileSystem,
    /// What is in it; it comes later. None if the file system is the volume's own.
    pub content: Option<oneshot::Receiver<io::Result<Content>>>,
}

/// How to ask the driver.
#[derive(Clone, Debug)]
pub struct Driver {
    asks: mpsc::Sender<Ask>,
}

/// What a driver works with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Limits.
    pub limits: Limits,
    /// How long a volume stays that the kubelet does not know any more.
    pub grace: Duration,
}

impl Driver {
    /// Takes over what a state folder knows, clears up what a killed driver left, and starts.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn start(state: State, pods: Pods, settings: Settings, metrics: Arc<Metrics>) -> io::Result<Self> {
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let work = Work::start(settings.limits.volumes.max(state.volumes.len()), &asks.downgrade())?;
        let State { journal, key, volumes, unreadable } = state;
        for name in unreadable {
            tracing::error!(
                record = name,
                "a record is not understood; it stays, and its volume is not looked after"
            );
        }
        let owner = Owner {
            gates: Gates::start(settings.limits.tenant_bytes)?,
            journal,
            key,
            pods,
            settings,
            metrics,
            work,
            volumes: Volumes::default(),
            waiting: BTreeMap::new(),
            unnoted: BTreeMap::new(),
        };
        let thread = std::thread::Builder::new().name("csi-volumes".to_owned()).stack_size(STACK_BYTES * 2);
        thread.spawn(move || owner.run(volumes, asked))?;
        Ok(Self { asks })
    }

    /// Makes a volume; returns when it is there.
    ///
    /// # Errors
    /// When it is refused or fails; nothing of it is left then.
    pub async fn publish(&self, request: PublishRequest) -> Result<(), PublishError> {
        let (answer, answered) = oneshot::channel();
        let ask = Ask::Publish(Box::new(request), answer);
        self.asks.send(ask).await.map_err(|_| PublishError::Stopping)?;
        answered.await.map_err(|_| PublishError::Stopping)?
    }

    /// Removes a volume; returns when it is gone.
    ///
    /// # Errors
    /// When it is refused or fails.
    pub async fn unpublish(&self, id: VolumeId, target: Target) -> Result<(), UnpublishError> {
        let (answer, answered) = oneshot::channel();
        self.asks.send(Ask::Unpublish(id, target, answer)).await.map_err(|_| UnpublishError::Stopping)?;
        answered.await.map_err(|_| UnpublishError::Stopping)?
    }

    /// Measures a volume.
    ///
    /// # Errors
    /// When it is not published there, or can't be looked at.
    pub async fn stats(
        &self,
        id: VolumeId,
        target: Target,
    ) -> Result<(FileSystem, Option<Content>), StatsError> {
        let (answer, answered) = oneshot::channel();
        self.asks.send(Ask::Stats(id, target, answer)).await.map_err(|_| StatsError::Stopping)?;
        let figures = answered.await.map_err(|_| StatsError::Stopping)??;
        let content = match figures.content {
            None => None,
            Some(content) => Some(content.await.map_err(|_| StatsError::Stopping)??),
        };
        Ok((figures.file_system, content))
    }

    /// Looks for volumes whose pods are gone.
    pub async fn collect(&self, now: Duration) {
        // A driver that is gone has nothing to collect.
        let _ = self.asks.send(Ask::Collect(now)).await;
    }
}
