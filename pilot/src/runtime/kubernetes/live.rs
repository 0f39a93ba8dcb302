//! One slot of the pod: which container it has, who answers on its socket, and what of a payload is in it.
//!
//! ```text
//!            set_image(image, nonce)          Hello(nonce), clean
//!   Idle ------------------------> Changing -----------------------> Bound --launch, drain, clean--> Bound (warm)
//!    ^                                | trouble, dropped               | connection lost
//!    |                                v                                v
//!    '--- set_image(idle image) --- Broken <---------------------------'
//! ```
//! `Changing` and `Broken` are one state: a container that is not known to be of use. A bind replaces whatever is there.
//!
//! # What proves what
//! A Hello with the nonce of this epoch proves that the container is the one that was asked for. It is in the environment of
//! that container alone, and no code of a payload has run there yet. The API's status is read only to find out why no Hello
//! comes, or how a container ended that does not answer any more.
//!
//! **Must not know:** which payload comes next, why one ends.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use pilot_core::{Epoch, Fault, FaultClass, SlotId, Usage};
use tokio::time::Instant;
use wire::slot::{CleanReport, ExitReport, Nonce, ShimState, ToShim};
use wire::version::PROTOCOL;

use super::Shared;
use super::api::Changed;
use super::folders::{OPEN, SlotFolders};
use super::inputs::empty;
use super::view::{self, SlotShape};
use crate::payload::Payload;
use crate::runtime::committing::Commit;
use crate::runtime::following::SHIM_WAIT;
use crate::runtime::launching::slot_fault;
use crate::runtime::logs::LogStream;
use crate::runtime::pristine::{is_as_made, open_folder};
use crate::runtime::record::{Launched, Record, RecordFile, VERSION};
use crate::runtime::slots::{Caller, Connection, SlotListener};
use crate::runtime::stages::{OpenInput, OpenOutput};

/// When the API is asked why no Hello comes: a bad image shows after a second, and a long pull is no reason to ask often.
const LOOKS: [Duration; 4] =
    [Duration::from_millis(1500), Duration::from_secs(12), Duration::from_secs(30), Duration::from_secs(60)];
/// How long the API server may be away when it is to be told something beside.
pub(super) const API_WAIT: Duration = Duration::from_secs(45);
/// How long it may be away while a slot is bound, as when it is upgraded. To give up sooner would cost the payload a try, and no
/// other one could be bound either.
const BIND_API_WAIT: Duration = Duration::from_secs(900);

/// How long the kubelet may go on saying what is not true any more.
const DOUBT: Duration = Duration::from_secs(3);
/// How long giving back a size may take: it is a part of cleaning, which has half a minute.
const SHRINK_WAIT: Duration = Duration::from_secs(5);

/// What is known of the slot's container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stands {
    /// It has the idle image, or will have.
    Idle,
    /// Its shim has proved itself with the nonce of this epoch.
    Bound,
    /// No container that anything is known of. `gone` is whether PID 1, and all that ran under it, is known to be gone.
    Broken { gone: bool },
}

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
pub(super) struct Live {
    pub(super) shared: Arc<Shared>,
    pub(super) slot: SlotId,
    pub(super) shape: SlotShape,
    /// The processors and memory that it was made with.
    pub(super) made: (Option<u64>, Option<u64>),
    pub(super) folders: SlotFolders,
    /// For the pilot that comes after this one.
    pub(super) record: RecordFile,
    pub(super) stands: Stands,
    pub(super) listener: Option<SlotListener>,
    pub(super) connection: Option<Connection>,
    /// That of the container before, kept until the next one has come: hung up on, it would call again and again.
    pub(super) former: Option<Connection>,
    pub(super) nonce: Nonce,
    /// Containers that the slot had before the one that is bound.
    pub(super) before: BTreeSet<String>,
    /// Standard output and error.
    pub(super) streams: Option<[LogStream; 2]>,
    pub(super) inputs: Vec<OpenInput>,
    pub(super) outputs: Vec<OpenOutput>,
    pub(super) commit: Commit,
    pub(super) usage: Usage,
    /// Kills for memory before the payload that is here now.
    pub(super) oom_kills_before: u64,
    /// The container's peak of memory before it, in bytes.
    pub(super) peak_before: u64,
    /// Kills and peak that the shim told of last.
    pub(super) last_figures: (u64, u64),
    /// Whether a payload was launched and is not known to have ended.
    pub(super) runs: bool,
    /// Found running by this pilot; perhaps it has ended meanwhile.
    pub(super) adopted: Option<Option<ExitReport>>,
    /// The last payload's terms allow another one after it.
    pub(super) reusable: bool,
    pub(super) cleaning: Cleaning,
    /// The folders that the payload can write to, for looks at them.
    pub(super) looks: Option<[OwnedFd; 3]>,
}

impl Live {
    pub(super) fn new(shared: Arc<Shared>, slot: SlotId, shape: SlotShape) -> Self {
        let folders = shared.share.slot(slot.0);
        Self {
            shared,
            slot,
            made: (shape.cpu_millis, shape.memory_bytes),
            shape,
            record: RecordFile::new(&folders.record),
            folders,
            stands: Stands::Idle,
            listener: None,
            connection: None,
            former: None,
            nonce: Nonce::IDLE,
            before: BTreeSet::new(),
            streams: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            commit: Commit::default(),
            usage: Usage::default(),
            oom_kills_before: 0,
            peak_before: 0,
            last_figures: (0, 0),
            runs: false,
            adopted: None,
            reusable: false,
            cleaning: Cleaning::No,
            looks: None,
        }
    }

    /// Changes the slot's image and waits until the new container's shim has proved itself and found nothing to clean.
    pub(super) async fn bind(&mut self, epoch: Epoch, payload: &Payload) -> Result<(), Fault> {
        let image = self.shared.images.chosen(payload)?;
        self.commit.settle(&self.shared.stages).await;
        self.forget();
        self.show_mounts(payload)?;
        self.folders.renew_markers().map_err(|error| slot_fault(&error))?;
        self.listen()?;
        self.open_streams()?;
        self.nonce = Nonce(std::array::from_fn(|_| fastrand::u8(..)));
        // Whoever comes after this pilot can prove the container by it.
        self.write_record(None);
        let until = Instant::now() + BIND_API_WAIT;
        let logins = self.shared.late_logins(payload, &image, until).await?;
        self.resize(payload, until).await?;
        let reference = image.salted(epoch);
        let nonce = self.nonce.to_hex();
        let changed = self.shared.pod.set_image(&self.shape.name, &reference, &nonce, until).await?;
        let Changed { pod, asked_before } = &changed;
        self.before = view::containers_before(pod, &self.shape.name, *asked_before, &self.before);
        // What a webhook made of the name is as good: the digest says which image it is, and the nonce that it is this one.
        let met = self.until_met(&reference).await;
        if let Some(logins) = logins {
            logins.withdraw().await;
        }
        self.former = None;
        let connection = met?;
        self.welcome(connection, epoch).await?;
        // What a container that was killed left here has its shim's user; this shim has it too.
        let report = self.clean_by_shim().await.ok_or_else(|| slot_fault(&ShimGone))?;
        if report.failures > 0 || !self.is_pristine() {
            // The next container would find the same: the slot must prove that it can be cleaned before it is bound again.
            self.stands = Stands::Broken { gone: false };
            let text = "what an earlier payload left in the slot can't be removed";
            return Err(Fault::new(FaultClass::Slot, text));
        }
        self.stands = Stands::Bound;
        Ok(())
    }

    /// Lets go of the container that is there.
    fn forget(&mut self) {
        self.stands = Stands::Broken { gone: !self.runs };
        self.former = self.connection.take();
        self.runs = false;
        self.adopted = None;
        self.cleaning = Cleaning::No;
        (self.oom_kills_before, self.peak_before, self.last_figures) = (0, 0, (0, 0));
        empty(&self.folders.inputs);
        empty(&self.folders.out);
    }

    /// Makes the slot's socket, once.
    pub(super) fn listen(&mut self) -> Result<(), Fault> {
        if self.listener.is_none() {
            // That of a pilot that was here before.
            let _ = std::fs::remove_file(self.folders.control.join("sock"));
            let listener = SlotListener::bind(&self.folders.control).map_err(|error| slot_fault(&error))?;
            self.listener = Some(listener);
        }
        Ok(())
    }

    /// Opens the FIFOs of standard output and error.
    pub(super) fn open_streams(&mut self) -> Result<(), Fault> {
        if self.streams.is_none() {
            let limit = self.shared.log_limit;
            let open = |path| LogStream::open(path, limit).map_err(|error| slot_fault(&error));
            let [out, err] = &self.folders.streams;
            self.streams = Some([open(out)?, open(err)?]);
        }
        Ok(())
    }

    /// Waits for the shim of the container that was asked for, and asks the API now and then why it does not come.
    async fn until_met(&self, reference: &str) -> Result<Connection, Fault> {
        let listener = self.listener.as_ref().ok_or_else(|| slot_fault(&ShimGone))?;
        let nonces = [self.nonce];
        let met = listener.accept_any(&nonces);
        tokio::pin!(met);
        let began = Instant::now();
        let mut doubted = false;
        for look in 0.. {
            let after = LOOKS.get(look).copied().unwrap_or_else(|| LOOKS[LOOKS.len() - 1] * look as u32);
            tokio::select! {
                caller = &mut met => {
                    return caller.map(|Caller { connection, .. }| connection).map_err(|error| slot_fault(&error));
                }
                () = tokio::time::sleep_until(began + after) => {}
            }
            // An API server that is away says nothing of the image.
            let pod = self.shared.pod.look().await.ok();
            let Some(pod) = pod else { continue };
            let Some(fault) = view::trouble(&pod, &self.shape.name, reference) else { continue };
            if doubted || view::names(&pod, &self.shape.name, reference) {
                return Err(fault);
            }
            // It may be said of a container before this one: then it will not be said for long.
            doubted = true;
            if let Ok(caller) = tokio::time::timeout(DOUBT, &mut met).await {
                return caller
                    .map(|Caller { connection, .. }| connection)
                    .map_err(|error| slot_fault(&error));
            }
            if let Ok(pod) = self.shared.pod.look().await
                && let Some(fault) = view::trouble(&pod, &self.shape.name, reference)
            {
                return Err(fault);
            }
        }
        Err(slot_fault(&ShimGone))
    }

    /// Takes a proven connection.
    pub(super) async fn welcome(&mut self, connection: Connection, epoch: Epoch) -> Result<(), Fault> {
        let orphan_grace_ms = self.shared.orphan_grace_ms;
        let welcome = ToShim::Welcome { protocol: PROTOCOL, epoch: epoch.0, orphan_grace_ms };
        connection.send(&welcome, &[]).await.map_err(|error| slot_fault(&error))?;
        self.connection = Some(connection);
        Ok(())
    }

    /// Waits for a shim that proves itself with `nonce`, or for an idle one.
    pub(super) async fn greet(
        &mut self,
        nonce: Nonce,
        epoch: Epoch,
        wait: Duration,
    ) -> Result<(Nonce, ShimState), Fault> {
        self.listen()?;
        let listener = self.listener.as_ref().ok_or_else(|| slot_fault(&ShimGone))?;
        let met = tokio::time::timeout(wait, listener.accept_any(&[nonce, Nonce::IDLE])).await;
        let caller = met
            .map_err(|_| Fault::new(FaultClass::Slot, "the slot's shim did not say hello"))?
            .map_err(|error| slot_fault(&error))?;
        self.welcome(caller.connection, epoch).await?;
        Ok((caller.nonce, caller.state))
    }

    /// Asks the shim to clean, and waits for what it says.
    pub(super) async fn clean_by_shim(&self) -> Option<CleanReport> {
        let connection = self.connection.as_ref()?;
        match tokio::time::timeout(SHIM_WAIT, connection.clean()).await {
            Ok(Ok(report)) => report,
            other => {
                tracing::debug!(slot = %self.slot, ?other, "the shim did not clean");
                None
            }
        }
    }

    /// Whether the folders that a payload could write to are as they were made.
    pub(super) fn is_pristine(&mut self) -> bool {
        if self.looks.is_none() {
            let SlotFolders { work, out, links, .. } = &self.folders;
            let opened: Option<Vec<OwnedFd>> =
                [work, out, links].map(|path| open_folder(path)).into_iter().collect();
            self.looks = opened.and_then(|folders| folders.try_into().ok());
        }
        let looks = self.looks.iter().flatten();
        self.looks.is_some()
            && looks.into_iter().all(|folder| is_as_made(folder, OPEN))
            && self.folders.has_only_markers()
    }

    /// Gives the slot's container what the payload asks for, where the pilot may.
    async fn resize(&mut self, payload: &Payload, until: Instant) -> Result<(), Fault> {
        if !self.shared.resizes {
            return Ok(());
        }
        let (cpu, memory) = (payload.resources.cpu_millis, payload.resources.memory_bytes);
        if (self.shape.cpu_millis, self.shape.memory_bytes) == (Some(cpu), Some(memory)) {
            return Ok(());
        }
        self.shared.pod.set_resources(&self.shape.name, cpu, memory, until).await?;
        (self.shape.cpu_millis, self.shape.memory_bytes) = (Some(cpu), Some(memory));
        Ok(())
    }

    /// Gives back what the slot got beyond what it was made with, or the pod would grow from slot to slot; says whether there
    /// was anything.
    pub(super) async fn shrink(&mut self) -> bool {
        let grown = |now: Option<u64>, made: Option<u64>| now.zip(made).is_some_and(|(now, made)| now > made);
        let (cpu, memory) = self.made;
        let is_grown = grown(self.shape.cpu_millis, cpu) || grown(self.shape.memory_bytes, memory);
        let (true, Some(cpu), Some(memory)) = (is_grown, cpu, memory) else { return false };
        match self.shared.pod.set_resources(&self.shape.name, cpu, memory, Instant::now() + SHRINK_WAIT).await
        {
            Ok(()) => (self.shape.cpu_millis, self.shape.memory_bytes) = self.made,
            Err(fault) => {
                tracing::warn!(slot = %self.slot, %fault, "the slot keeps the size of its last payload")
            }
        }
        true
    }

    /// Whether another payload may follow in this container: where one may write to the image's files, what it wrote stays.
    pub(super) fn may_stay(&self) -> bool {
        self.shared.reuse && self.shape.root_is_read_only
    }

    /// Writes down what another pilot would have to know; only for one that can be followed by another.
    pub(super) fn write_record(&mut self, launch: Option<Launched>) {
        if !self.shared.serves {
            return;
        }
        let record =
            Record { version: VERSION, process: None, nonce: self.nonce.0, memory_enforced: true, launch };
        if let Err(error) = self.record.write(&record) {
            tracing::warn!(slot = %self.slot, %error, "what runs here could not be adopted after a crash");
        }
    }

    /// Whether the container's own limit is what the payload asked for.
    pub(super) fn memory_is_enforced(&self, payload: &Payload) -> bool {
        self.shape.memory_bytes.is_some_and(|memory| memory <= payload.resources.memory_bytes)
    }
}

/// A shim that was there and is not any more.
#[derive(Debug, thiserror::Error)]
#[error("talk to the slot's shim: it has gone")]
pub(super) struct ShimGone;
