//! One slot from its first bind until it is taken down: its folders, container, socket, and what of a payload is in it.
//!
//! ```text
//!   begin ─ bind ─> launch ─ drain ─ clean ──> warm ─ launch ─ drain ─ clean ─> .. ──> taken down
//!             adopt ──^                                (next payload)
//! ```
//! Each field is filled as soon as what it holds exists, and `take_down` removes whatever is there. Dropping it kills the
//! container, unless a pilot of the same name may come for it.
//!
//! **Must not know:** which payload comes next, why one ends.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use oci_runner::Running;
use oci_runner::cgroup::{Cgroup, Guard};
use pilot_core::{Epoch, Fault, FaultClass, SlotId, Usage};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use wire::slot::{ExitReport, Nonce, ToShim};
use wire::version::PROTOCOL;

use super::Shared;
use super::folders::SlotFolders;
use crate::payload::Payload;
use crate::runtime::committing::Commit;
use crate::runtime::following::SHIM_WAIT;
use crate::runtime::launching::{LastLaunch, slot_fault};
use crate::runtime::logs::LogStream;
use crate::runtime::record::{Launched, Record, RecordFile, VERSION};
use crate::runtime::retaining::Retaining;
use crate::runtime::slots::{Connection, SlotListener};
use crate::runtime::stage_clients::ClientSession;
use crate::runtime::stages::{OpenInput, OpenOutput};

/// What came of a removal; a cgroup that could not be removed comes back.
pub(super) type Removed = Result<(), (Fault, Option<Cgroup>)>;

/// How far cleaning has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cleaning {
    /// The shim was not asked.
    No,
    /// It was asked.
    Asked,
    /// Its answer is waited for.
    Awaited,
}

#[derive(Debug)]
pub(crate) struct Live {
    pub(super) shared: Arc<Shared>,
    pub(super) folders: SlotFolders,
    /// For the pilot that comes after this one.
    pub(super) record: RecordFile,
    /// What its shim keeps for that one.
    pub(super) retaining: Retaining,
    pub(super) slot: SlotId,
    pub(super) listener: Option<SlotListener>,
    // Work on threads goes on when whoever waited for it gives up; each is awaited before anything builds on it.
    /// The start of the container.
    pub(super) starting: Option<JoinHandle<(Cgroup, Result<Running, Fault>)>>,
    /// The commit of this payload's outputs.
    pub(super) commit: Commit,
    /// The removal of cgroup and folders.
    pub(super) removing: Option<JoinHandle<Removed>>,
    pub(super) cgroup: Option<Cgroup>,
    pub(super) memory_guard: Guard,
    /// The cgroup's memory limit in bytes, if this life of the pilot has set it.
    pub(super) memory_limit: Option<u64>,
    /// Whether stages in memory may still be charged to the cgroup that earlier payloads made.
    pub(super) may_owe_memory: bool,
    pub(super) container: Option<Running>,
    /// Readable when PID 1 has ended; a duplicate, so that waiting needs no hold on `container`.
    pub(super) ended: Option<AsyncFd<OwnedFd>>,
    pub(super) connection: Option<Connection>,
    pub(super) nonce: Nonce,
    /// Standard output and error.
    pub(super) streams: Option<[LogStream; 2]>,
    pub(super) inputs: Vec<OpenInput>,
    pub(super) outputs: Vec<OpenOutput>,
    /// What the payload's client libraries may do.
    pub(super) session: Option<ClientSession>,
    pub(super) usage: Usage,
    /// Kills for memory before the payload that is here now.
    pub(super) oom_kills_before: u64,
    /// Kills for memory that the shim told of last, in the slot's whole life.
    pub(super) oom_kills_seen: u64,
    /// The folders that a payload may write, for a look whether they are as they were made.
    pub(super) looks: Option<[OwnedFd; 3]>,
    /// The pilot put something into the payload's folders.
    pub(super) holds_files: bool,
    /// Payloads that were launched in this container.
    pub(super) launches: u64,
    /// Whether the kernel's peak of memory is this payload's own.
    pub(super) peak_is_own: bool,
    /// Most memory seen by looking, in bytes.
    pub(super) peak_seen: u64,
    /// Whether a payload was launched and is not known to have ended.
    pub(super) runs: bool,
    /// Found running by this pilot; perhaps it has ended meanwhile.
    pub(super) adopted: Option<Option<ExitReport>>,
    /// The last launch.
    pub(super) launched: Option<LastLaunch>,
    /// What is written down about the container, for a pilot that can be followed by another.
    pub(super) process: Option<(u32, u64)>,
    /// The last payload's shape allows another one after it.
    pub(super) reusable: bool,
    /// Whether the shim was asked to clean.
    pub(super) cleaning: Cleaning,
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
        Ok(Self::empty(shared, slot, folders))
    }

    /// A slot with folders and nothing in them.
    pub(super) fn empty(shared: Arc<Shared>, slot: SlotId, folders: SlotFolders) -> Self {
        Self {
            shared,
            record: RecordFile::new(&folders.record),
            retaining: Retaining::new(&folders.record),
            folders,
            slot,
            listener: None,
            starting: None,
            commit: Commit::default(),
            removing: None,
            cgroup: None,
            memory_guard: Guard::Nobody,
            memory_limit: None,
            may_owe_memory: false,
            container: None,
            ended: None,
            connection: None,
            nonce: Nonce(std::array::from_fn(|_| fastrand::u8(..))),
            streams: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            session: None,
            usage: Usage::default(),
            oom_kills_before: 0,
            oom_kills_seen: 0,
            looks: None,
            holds_files: true,
            launches: 0,
            peak_is_own: true,
            peak_seen: 0,
            runs: false,
            adopted: None,
            launched: None,
            process: None,
            reusable: false,
            cleaning: Cleaning::No,
        }
    }

    /// Starts the container and waits until its shim has proved itself.
    pub(super) async fn bind(&mut self, epoch: Epoch, payload: &Payload) -> Result<(), Fault> {
        self.open_streams()?;
        let listener = SlotListener::bind(&self.folders.control).map_err(|error| slot_fault(&error))?;
        // Whoever finds the container without knowing its process can still prove it by its nonce.
        self.write_record(None);
        self.start(payload).await?;
        self.write_record(None);
        let proven = tokio::time::timeout(SHIM_WAIT, listener.accept_proven(self.nonce));
        let (connection, _state) = tokio::select! {
            proven = proven => proven
                .map_err(|_| Fault::new(FaultClass::Slot, "the slot's shim did not say hello"))?
                .map_err(|error| slot_fault(&error))?,
            () = died(self.ended.as_ref()) => return Err(self.shim_died()),
        };
        self.welcome(connection, listener, epoch).await
    }

    /// Takes a proven connection.
    pub(super) async fn welcome(
        &mut self,
        connection: Connection,
        listener: SlotListener,
        epoch: Epoch,
    ) -> Result<(), Fault> {
        let welcome = ToShim::Welcome {
            protocol: PROTOCOL,
            epoch: epoch.0,
            orphan_grace_ms: self.shared.orphan_grace_ms,
        };
        connection.send(&welcome, &[]).await.map_err(|error| slot_fault(&error))?;
        self.connection = Some(connection);
        self.listener = Some(listener);
        Ok(())
    }

    /// Opens the FIFOs of standard output and error.
    pub(super) fn open_streams(&mut self) -> Result<(), Fault> {
        let limit = self.shared.log_limit;
        let open = |path| LogStream::open(path, limit).map_err(|error| slot_fault(&error));
        let [out, err] = &self.folders.streams;
        self.streams = Some([open(out)?, open(err)?]);
        Ok(())
    }

    /// Writes down what another pilot would have to know; only for one that can be followed by another.
    pub(super) fn write_record(&mut self, launch: Option<Launched>) {
        if !self.shared.folders.serves() {
            return;
        }
        let record = Record {
            version: VERSION,
            process: self.process,
            nonce: self.nonce.0,
            memory_enforced: self.memory_is_enforced(),
            launch,
        };
        if let Err(error) = self.record.write(&record) {
            tracing::warn!(slot = %self.slot, %error, "what runs here could not be adopted after a crash");
        }
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

    /// Processes that the kernel killed for memory since this payload was launched; `None` without a cgroup.
    pub(super) fn oom_kills(&self) -> Option<u64> {
        let kills = self.cgroup.as_ref()?.figures().oom_kills?;
        Some(kills.saturating_sub(self.oom_kills_before))
    }

    /// Limits the slot to `bytes` of memory for what runs in it next, beside what stays charged to it: stages that earlier
    /// payloads of this container wrote by path, for as long as anybody reads them. Those are of no use to the next one, so
    /// they must not cost it anything. The pilot's own budget for stages bounds them.
    pub(super) fn limit_memory(&mut self, bytes: u64) -> Result<(), Fault> {
        let Some(cgroup) = self.cgroup.as_ref().filter(|_| self.memory_guard == Guard::Cgroup) else {
            // An rlimit counts a process's own pages, and memory files are not among them (getrlimit(2), RLIMIT_DATA).
            return Ok(());
        };
        let owed = if self.may_owe_memory { cgroup.shared_memory_bytes().unwrap_or(0) } else { 0 };
        let limit = bytes.saturating_add(owed);
        if self.memory_limit == Some(limit) {
            return Ok(());
        }
        if !cgroup.limit_memory(limit) {
            self.memory_limit = None;
            let text = format!("limit the slot's memory to {limit} bytes: the kernel refuses");
            return Err(Fault::new(FaultClass::Slot, text));
        }
        self.memory_limit = Some(limit);
        Ok(())
    }

    /// Whether the memory limit holds for the payload as a whole.
    pub(super) fn memory_is_enforced(&self) -> bool {
        self.memory_guard == Guard::Cgroup
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // Only for a pilot that is being torn down in disorder: another of its name will find the record.
        if self.runs && self.shared.folders.serves() {
            std::mem::forget(self.container.take());
            std::mem::forget(self.cgroup.take());
        }
    }
}

/// Resolves when PID 1 has ended; never without a container.
pub(super) async fn died(ended: Option<&AsyncFd<OwnedFd>>) {
    match ended {
        Some(pidfd) => drop(pidfd.readable().await),
        None => std::future::pending().await,
    }
}
