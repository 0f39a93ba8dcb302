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
use stage::StageUri;
use tokio::time::Instant;
use wire::slot::{CleanReport, ExitReport, Nonce};

use super::Shared;
use super::api::Changed;
use super::folders::{OPEN, SlotFolders};
use super::inputs::empty;
use super::meeting::ShimGone;
use super::view::{self, SlotShape};
use crate::payload::Payload;
use crate::runtime::committing::Commit;
use crate::runtime::following::SHIM_WAIT;
use crate::runtime::launching::{LastLaunch, slot_fault};
use crate::runtime::logs::LogStream;
use crate::runtime::pristine::{is_as_made, open_folder};
use crate::runtime::record::{Launched, Record, RecordFile, VERSION};
use crate::runtime::retaining::Retaining;
use crate::runtime::slots::{Connection, SlotListener};
use crate::runtime::stage_clients::ClientSession;
use crate::runtime::stages::{OpenInput, OpenOutput};

/// How long the API server may be away when it is to be told something beside.
pub(super) const API_WAIT: Duration = Duration::from_secs(45);
/// How long it may be away while a slot is bound, as when it is upgraded. To give up sooner would cost the payload a try, and no
/// other one could be bound either.
const BIND_API_WAIT: Duration = Duration::from_secs(900);

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
    /// Stages that its container paid for; those that are gone meanwhile may be among them.
    pub(super) owed: Vec<StageUri>,
    pub(super) folders: SlotFolders,
    /// For the pilot that comes after this one.
    pub(super) record: RecordFile,
    /// What its shim keeps for that one.
    pub(super) retaining: Retaining,
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
    /// What the payload's client libraries may do.
    pub(super) session: Option<ClientSession>,
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
    /// The last launch.
    pub(super) launched: Option<LastLaunch>,
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
            owed: Vec::new(),
            record: RecordFile::new(&folders.record),
            retaining: Retaining::new(&folders.record),
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
            session: None,
            commit: Commit::default(),
            usage: Usage::default(),
            oom_kills_before: 0,
            peak_before: 0,
            last_figures: (0, 0),
            runs: false,
            adopted: None,
            launched: None,
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
        self.session = None;
        self.cleaning = Cleaning::No;
        self.retaining.begin_anew();
        self.owed.clear();
        (self.oom_kills_before, self.peak_before, self.last_figures) = (0, 0, (0, 0));
        empty(&self.folders.inputs);
        empty(&self.folders.out);
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

    /// Whether the container's own limit is what the payload asked for, its outputs in memory among it.
    pub(super) fn memory_is_enforced(&self, payload: &Payload) -> bool {
        self.shape.memory_bytes.is_some_and(|memory| memory <= payload.memory_bytes())
    }
}
