//! One slot between bind and clean: its folders, container, socket, outputs and logs.
//!
//! Each field is filled as soon as what it holds exists, and `clean` takes down whatever is there. Dropping it kills the
//! container.
//!
//! **Must not know:** which payload comes next, why one ends.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use oci_runner::Running;
use oci_runner::cgroup::{Cgroup, Guard};
use pilot_core::{Drained, Epoch, Fault, FaultClass, SlotId, Usage};
use tokio::io::unix::AsyncFd;
use tokio::task::{JoinHandle, JoinSet};
use wire::slot::{FromShim, Nonce, ToShim};
use wire::version::PROTOCOL;

use super::folders::SlotFolders;
use super::stages::{OpenInput, OpenOutput};
use super::{Shared, slot_fault};
use crate::payload::Payload;
use crate::runtime::logs::LogTotals;
use crate::runtime::slots::{Connection, SlotListener};

/// Longest wait for anything that a healthy shim does within milliseconds.
pub(super) const SHIM_WAIT: Duration = Duration::from_secs(10);
/// `run` has no one who could adopt a payload: it ends with its pilot.
const ORPHAN_GRACE_MS: u32 = 0;

/// What came of a removal; a cgroup that could not be removed comes back.
type Removed = Result<(), (Fault, Option<Cgroup>)>;

#[derive(Debug)]
pub(crate) struct Live {
    pub(super) shared: Arc<Shared>,
    pub(super) folders: SlotFolders,
    pub(super) slot: SlotId,
    listener: Option<SlotListener>,
    // Work on threads goes on when whoever waited for it gives up; each is awaited before anything builds on it.
    /// The start of the container.
    pub(super) starting: Option<JoinHandle<(Cgroup, Result<Running, Fault>)>>,
    /// The commit of this payload's outputs.
    committing: Option<(JoinHandle<Result<u64, Fault>>, Payload)>,
    /// The removal of cgroup and folders.
    removing: Option<JoinHandle<Removed>>,
    pub(super) cgroup: Option<Cgroup>,
    pub(super) memory_guard: Guard,
    pub(super) container: Option<Running>,
    /// Readable when PID 1 has ended; a duplicate, so that waiting needs no hold on `container`.
    pub(super) ended: Option<AsyncFd<OwnedFd>>,
    pub(super) connection: Option<Connection>,
    pub(super) nonce: Nonce,
    pub(super) inputs: Vec<OpenInput>,
    pub(super) outputs: Vec<OpenOutput>,
    pub(super) logs: JoinSet<std::io::Result<LogTotals>>,
    pub(super) usage: Usage,
    /// Whether a payload was launched and is not known to have ended.
    pub(super) runs: bool,
}

impl Live {
    /// Takes a slot's folders.
    pub(super) fn begin(shared: Arc<Shared>, slot: SlotId, payload: &Payload) -> Result<Self, Fault> {
        let foreign = shared.foreign_uid;
        let folders = shared
            .folders
            .slot(slot.0, foreign, payload.writable_root)
            .map_err(|error| slot_fault(&error))?;
        tracing::debug!(%slot, payload = %payload.name, "binding");
        Ok(Self {
            shared,
            folders,
            slot,
            listener: None,
            starting: None,
            committing: None,
            removing: None,
            cgroup: None,
            memory_guard: Guard::Nobody,
            container: None,
            ended: None,
            connection: None,
            nonce: Nonce(std::array::from_fn(|_| fastrand::u8(..))),
            inputs: Vec::new(),
            outputs: Vec::new(),
            logs: JoinSet::new(),
            usage: Usage::default(),
            runs: false,
        })
    }

    /// Starts the container and waits until its shim has proved itself.
    pub(super) async fn bind(&mut self, epoch: Epoch, payload: &Payload) -> Result<(), Fault> {
        let foreign = self.shared.foreign_uid;
        self.outputs = self.shared.stages.open_outputs(payload, &self.folders.out, foreign)?;
        self.inputs = self.shared.stages.open_inputs(payload, &self.folders.inputs)?;
        let listener = SlotListener::bind(&self.folders.control).map_err(|error| slot_fault(&error))?;
        self.start(payload).await?;
        let proven = tokio::time::timeout(SHIM_WAIT, listener.accept_proven(self.nonce));
        let (connection, _state) = tokio::select! {
            proven = proven => proven
                .map_err(|_| Fault::new(FaultClass::Slot, "the slot's shim did not say hello"))?
                .map_err(|error| slot_fault(&error))?,
            () = died(self.ended.as_ref()) => return Err(self.shim_died()),
        };
        let welcome =
            ToShim::Welcome { protocol: PROTOCOL, epoch: epoch.0, orphan_grace_ms: ORPHAN_GRACE_MS };
        connection.send(&welcome, &[]).await.map_err(|error| slot_fault(&error))?;
        self.connection = Some(connection);
        self.listener = Some(listener);
        Ok(())
    }

    /// What to say of a shim that ended when it should not have.
    pub(super) fn shim_died(&mut self) -> Fault {
        let how = self.container.as_mut().map(Running::try_wait);
        let how = match how {
            Some(Ok(Some(ended))) => format!("{ended:?}"),
            _ => "unknown".to_owned(),
        };
        Fault::new(FaultClass::Slot, format!("the slot's shim ended by itself ({how})"))
    }

    pub(super) fn has_cgroup(&self) -> bool {
        self.cgroup.as_ref().is_some_and(Cgroup::exists)
    }

    /// Processes that the kernel killed for memory since the slot was made; `None` without a cgroup.
    pub(super) fn oom_kills(&self) -> Option<u64> {
        self.cgroup.as_ref()?.figures().oom_kills
    }

    /// Highest memory use of the slot in bytes.
    pub(super) fn memory_peak_bytes(&self) -> Option<u64> {
        self.cgroup.as_ref()?.figures().memory_peak_bytes
    }

    /// Whether the memory limit holds for the payload as a whole.
    pub(super) fn memory_is_enforced(&self) -> bool {
        self.memory_guard == Guard::Cgroup
    }

    /// See [`crate::ports::Runtime::drain`].
    pub(super) async fn drain(&mut self, payload: &Payload, commit: bool) -> Drained {
        self.settle_start().await;
        if self.runs {
            // The launch was given up: PID 1 takes everything with it.
            self.kill().await;
            self.runs = false;
        }
        // With every writer gone the pipes are at their end; the wait is for the disk under the log files.
        let flushed = async { while self.logs.join_next().await.is_some() {} };
        if tokio::time::timeout(SHIM_WAIT, flushed).await.is_err() {
            tracing::warn!(payload = %payload.name, "the logs could not be flushed in time");
            self.logs.abort_all();
        }
        let outputs = std::mem::take(&mut self.outputs);
        if !commit {
            drop(outputs);
            self.shared.stages.discard(payload);
            return Drained { usage: self.usage, fault: None };
        }
        let committed = match self.shared.folders.stages(payload.name.as_str()) {
            Err(error) => Err(slot_fault(&error)),
            Ok(stages) => {
                let (shared, owned, out) =
                    (Arc::clone(&self.shared), payload.clone(), self.folders.out.clone());
                // A copy of many gigabytes may be part of it.
                let commit = move || shared.stages.commit(&owned, outputs, &out, &stages);
                self.committing = Some((tokio::task::spawn_blocking(commit), payload.clone()));
                self.committed().await
            }
        };
        match committed {
            Ok(bytes) => {
                self.usage.output_bytes = bytes;
                Drained { usage: self.usage, fault: None }
            }
            Err(fault) => Drained { usage: self.usage, fault: Some(fault) },
        }
    }

    /// Waits for a commit that was begun.
    async fn committed(&mut self) -> Result<u64, Fault> {
        let Some((commit, _)) = &mut self.committing else { return Ok(0) };
        let committed = commit.await;
        self.committing = None;
        committed.unwrap_or_else(|_| Err(Fault::new(FaultClass::Pilot, "committing outputs panicked")))
    }

    /// A commit that was given up came too late: its claim was reported as failed.
    async fn settle_commit(&mut self) {
        if let Some((commit, payload)) = &mut self.committing {
            let _too_late = commit.await;
            self.shared.stages.discard(payload);
            self.committing = None;
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

    /// See [`crate::ports::Runtime::clean`]. May be called again after a failure.
    pub(super) async fn clean(&mut self) -> Result<(), Fault> {
        self.settle_start().await;
        self.settle_commit().await;
        if let Some(connection) = self.connection.take() {
            let retired = tokio::time::timeout(SHIM_WAIT, retire(&connection)).await;
            if !matches!(retired, Ok(Ok(()))) {
                tracing::debug!(slot = %self.slot, "the shim did not retire; killing it");
            } else {
                let _ = tokio::time::timeout(SHIM_WAIT, died(self.ended.as_ref())).await;
            }
        }
        self.kill().await;
        self.listener = None;
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

/// Asks a shim to remove what the payload left and to end.
async fn retire(connection: &Connection) -> Result<(), crate::runtime::slots::SlotError> {
    connection.send(&ToShim::Clean, &[]).await?;
    loop {
        match connection.receive().await? {
            Some(FromShim::Cleaned(report)) => {
                tracing::debug!(?report, "cleaned");
                break;
            }
            Some(_) => {}
            None => return Ok(()),
        }
    }
    connection.send(&ToShim::Retire, &[]).await
}

/// Resolves when PID 1 has ended; never without a container.
pub(super) async fn died(ended: Option<&AsyncFd<OwnedFd>>) {
    match ended {
        Some(pidfd) => drop(pidfd.readable().await),
        None => std::future::pending().await,
    }
}
