//! The stages of this pilot: reserved before a payload is launched, committed when it has ended well, lent to those that
//! read them, gone with the last reader. An output that nobody reads is saved, if asked for, and gone.
//!
//! When memory is short, what no payload has mapped goes to a file (`moving.rs`), and is a stage in a file from then on.
//!
//! They are on the broker, which keeps the ledger and whatever lies in memory; here it is known where files lie. So what a
//! payload made by path is there for a client library, and the other way round.
//!
//! A pilot that may come back writes down beside committed files who will read them (`recovery.rs`): its next life finds them
//! there ([`Stages::recover`]). What is in memory a slot's shim keeps for it, as long as that shim lives (`retained.rs`). What is
//! lost is made again: its producers run once more.
//!
//! **Must not know:** containers, sockets, how a payload ended.

mod dropping;
mod far;
mod figures;
mod folders;
mod landing;
mod leaving;
mod moving;
mod opening;
mod recovery;
mod retained;
mod returning;
mod saving;
mod sharing;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ::objects::ObjectUrl;
use pilot_core::{Fault, FaultClass};
use stage::broker::{Broker, Limits};
use stage::server::{BrokerServer, Content, Made, Settings, Stopped};
use stage::{Budget, Class, Fate, Medium, StageName, StageUri};
use wire::pilot::{StagePlace, StageRow};

pub(super) use self::far::left_far;
use self::far::{Away, Far};
use self::figures::Counting;
use self::folders::drop_file;
pub(super) use self::folders::{open_folder, prune};
use self::moving::{Mover, below_root, remove_spill_folder, spill_folder};
pub(super) use self::opening::{OpenInput, OpenOutput};
pub(super) use self::retained::{MemoryNote, is_in_memory, is_unmade};
use self::retained::{Retained, in_sealed_memory};
use self::sharing::Sharing;
pub(super) use self::sharing::has_exchange;
use super::objects::Objects;
use super::together::Together;
use crate::payload::{Output, Payload, Source, StageClass};
use crate::ports::StageFigures;

/// Where an input in a file lies in a slot, before the shim makes the link in `/stage/in`.
pub(super) const FILE_INPUTS: &str = "/.latebind/in";

/// What stages may take, and where they go then.
#[derive(Debug, Default)]
pub(super) struct StageRoom {
    /// Most bytes in memory.
    pub(super) memory_bytes: u64,
    /// Most bytes on the volume, if there is a limit.
    pub(super) disk_bytes: Option<u64>,
    /// Where stages go that do not fit there.
    pub(super) spill_to: Option<ObjectUrl>,
    /// What dead pilots have left there.
    pub(super) left_far: Vec<ObjectUrl>,
}

type Files = BTreeMap<StageUri, Lies>;

/// Where a stage lies on the volume.
#[derive(Clone, Debug)]
struct Lies {
    path: PathBuf,
    /// It was made in memory: its readers may use a descriptor.
    was_memory: bool,
    /// It is in the object store, and not here.
    away: Option<Away>,
}

/// All stages of a pilot.
#[derive(Debug)]
pub(super) struct Stages {
    pub(super) broker: BrokerServer,
    /// Where the stages in files lie. Held while the broker is asked to change what is in it, so that the two agree.
    files: Mutex<Files>,
    /// The folder below which files lie, and a descriptor of it once the first one does.
    root: PathBuf,
    root_fd: OnceLock<Arc<OwnedFd>>,
    /// Files are to be found again by the next pilot of this name.
    noted: bool,
    /// What shims keep of those in memory.
    retained: Retained,
    /// Outputs that were begun and dropped.
    dropped: AtomicU64,
    together: Arc<Together>,
    counting: Arc<Counting>,
    /// Takes over what leaves memory.
    mover: Mover,
    far: Arc<Far>,
    /// What comes from and goes to places that outlive the pilot.
    pub(super) objects: Objects,
    /// The exchange with other pilots, once it is joined.
    sharing: OnceLock<Sharing>,
}

impl Stages {
    /// Starts the broker; files will lie below `root`, also those of stages that leave memory when it is short. FIFOs are made in `pipes`, which must be on the file system
    /// of the slots' folders. `same_uid` says that payloads have the pilot's own.
    pub(super) fn new(
        room: StageRoom,
        noted: bool,
        root: PathBuf,
        pipes: PathBuf,
        objects: Objects,
        same_uid: bool,
    ) -> std::io::Result<Arc<Self>> {
        let StageRoom { memory_bytes, disk_bytes, spill_to, left_far } = room;
        // The disk's own limit is the file system's; ours would only guess at what others will write to it.
        let budget = Budget { memory_bytes, disk_bytes: disk_bytes.unwrap_or(u64::MAX) };
        let (mover, heard) = Mover::new();
        let counting = Arc::new(Counting::default());
        let settings = Settings {
            spill_dir: spill_folder(&root)?,
            moved: Some(mover.watch(&counting)),
            files_by_path: same_uid,
            ..Settings::new(Limits::new(budget))
        };
        let broker = BrokerServer::start(settings)?;
        let far = Arc::new(Far::new(spill_to, &root, left_far));
        let stages = Arc::new(Self {
            broker,
            files: Mutex::default(),
            root,
            root_fd: OnceLock::new(),
            noted,
            retained: Retained::default(),
            dropped: AtomicU64::new(0),
            together: Together::new(pipes),
            counting,
            mover,
            far,
            objects,
            sharing: OnceLock::new(),
        });
        stages.mover.start(&stages, heard)?;
        Ok(stages)
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all that run together with a payload have made what they share, so that it finds it.
    pub(super) async fn meet(&self, payload: &Payload) -> Result<(), Fault> {
        self.together.meet(payload).await
    }

    /// Nothing of a payload runs: what its gang shared goes with the last of it, and who waits for its end of a pipe is let go.
    pub(super) fn leave(&self, payload: &Payload) {
        self.objects.let_go(payload);
        self.far.let_go(payload);
        self.forget_shared(self.together.leave(payload));
    }

    fn forget_shared(&self, memory: Vec<StageUri>) {
        for uri in memory {
            let _ = self.broker.ask(move |broker| broker.remove(&uri));
        }
    }

    /// All that an earlier life of this pilot left running has been looked at.
    pub(super) fn sweep_pipes(&self) {
        self.together.sweep();
    }

    /// A committed file, as the broker opens it.
    fn made(&self, uri: &StageUri, bytes: u64) -> Result<Made, Fault> {
        Ok(Made::File { dir: self.root_dir()?, path: below_root(uri), bytes })
    }

    fn root_dir(&self) -> Result<Arc<OwnedFd>, Fault> {
        if let Some(dir) = self.root_fd.get() {
            return Ok(Arc::clone(dir));
        }
        let opened = Arc::new(open_folder(&self.root)?);
        Ok(Arc::clone(self.root_fd.get_or_init(|| opened)))
    }

    /// Whether a stage is here, or another pilot may have it.
    pub(super) fn holds(&self, uri: &StageUri) -> bool {
        self.holds_here(uri) || self.others_may_have(uri)
    }

    fn holds_here(&self, uri: &StageUri) -> bool {
        let uri = uri.clone();
        self.broker.ask(move |broker| broker.lookup(&uri).is_some()).unwrap_or(false)
    }

    /// Where a stage lies, if it is a file.
    pub(super) fn file(&self, uri: &StageUri) -> Option<PathBuf> {
        self.lock().get(uri).map(|lies| lies.path.clone())
    }

    /// What they came to so far.
    pub(super) fn figures(&self) -> StageFigures {
        self.counting.so_far()
    }

    /// All that is held.
    pub(super) fn rows(&self) -> Vec<StageRow> {
        let row = |broker: &Broker, (uri, class, bytes): (&StageUri, Class, u64)| {
            let medium = broker.ledger().object(uri).map(|object| object.medium);
            let place = match (class, medium) {
                (_, Some(Medium::Object)) => StagePlace::Object,
                (Class::File, _) => StagePlace::Volume,
                _ => StagePlace::Memory,
            };
            StageRow { stage: uri.to_string(), bytes, place }
        };
        let rows = move |broker: &mut Broker| broker.stages().map(|stage| row(broker, stage)).collect();
        self.broker.ask(rows).unwrap_or_default()
    }

    /// A stage for the pilot's own user to read, and its size; or why not, for people.
    pub(super) async fn open_for_user(&self, uri: &StageUri) -> Result<(OwnedFd, u64), String> {
        if let Some(copy) = self.copy_of_away(uri).await {
            let copy = copy.map_err(|error| format!("fetch {uri}: {error}"))?;
            let bytes = copy.metadata().map_or(0, |meta| meta.len());
            return Ok((copy.into(), bytes));
        }
        if let Some(path) = self.file(uri).filter(|path| path.is_dir()) {
            return Err(format!("it is a folder, which lies at {}", path.display()));
        }
        let missing = || format!("{uri} is not held here");
        let content = self.broker.reader(uri, None).map_err(|error| error.to_string())?;
        let fd = match content.ok_or_else(missing)?.map_err(|error| format!("open {uri}: {error}"))? {
            Content::Memory(fd) | Content::File(fd) => fd,
            Content::Value(value) => in_sealed_memory(&uri.output, &value)
                .ok_or_else(|| format!("open {uri}: there is no memory for a copy of it"))?,
        };
        let size = rustix::fs::fstat(&fd).map_err(|errno| format!("look at {uri}: {errno}"))?.st_size;
        Ok((fd, u64::try_from(size).unwrap_or(0)))
    }

    /// Workflows that have stages here.
    pub(super) fn workflows(&self) -> BTreeSet<StageName> {
        let workflows = |broker: &mut Broker| broker.stages().map(|(uri, ..)| uri.workflow.clone()).collect();
        self.broker.ask(workflows).unwrap_or_default()
    }

    /// Releases every reader of a workflow's stages that is not in `unfinished`: it ended elsewhere, or will never come.
    pub(super) fn keep_for(&self, workflow: &StageName, unfinished: &BTreeSet<StageName>) {
        let (workflow, unfinished) = (workflow.clone(), unfinished.clone());
        let gone = move |broker: &mut Broker| -> Vec<(StageUri, StageName)> {
            broker
                .ledger()
                .objects()
                .filter(|(uri, object)| uri.workflow == workflow && object.committed)
                .flat_map(|(uri, object)| object.readers.iter().map(|reader| (uri.clone(), reader.clone())))
                .filter(|(_, reader)| !unfinished.contains(reader))
                .collect()
        };
        for (uri, reader) in self.broker.ask(gone).unwrap_or_default() {
            self.release(&uri, &reader);
        }
    }

    /// Drops what a payload reserved or committed.
    pub(super) fn discard(&self, payload: &Payload) {
        // What is shared stays until the last of the gang has left.
        let kept = payload.outputs.iter().filter(|output| output.class != StageClass::Shared);
        let uris: Vec<StageUri> = kept.map(|output| payload.stage(&output.name)).collect();
        if uris.is_empty() {
            return;
        }
        self.withdraw(&uris);
        let mut held = self.lock();
        let files: Vec<Lies> = uris.iter().filter_map(|uri| held.remove(uri)).collect();
        uris.iter().for_each(|uri| self.retained.forget(uri));
        // Unknown is fine: it was never reserved.
        let _ = self.broker.ask(move |broker| uris.iter().filter(|uri| broker.remove(uri)).count());
        for lies in files {
            self.drop_lies(&lies);
        }
    }

    /// A payload will not run again: what only it would still have read goes.
    pub(super) fn settle(&self, payload: &Payload) {
        self.objects.let_go(payload);
        self.far.let_go(payload);
        for input in &payload.inputs {
            if let Source::Stage(uri) = &input.source {
                // An input read under two names is released once.
                self.release(uri, &payload.name);
            }
        }
    }

    /// A reader of a stage needs it no more; the last one takes it along.
    fn release(&self, uri: &StageUri, reader: &StageName) {
        let (asked, reader) = (uri.clone(), reader.clone());
        let mut held = self.lock();
        if let Ok(Ok(Fate::Gone)) = self.broker.ask(move |broker| broker.release(&asked, &reader)) {
            self.retained.forget(uri);
            if let Some(lies) = held.remove(uri) {
                self.drop_lies(&lies);
            }
            drop(held);
            self.withdraw(std::slice::from_ref(uri));
        }
    }

    fn drop_lies(&self, lies: &Lies) {
        match &lies.away {
            Some(away) => self.drop_away(away),
            None => drop_file(&lies.path),
        }
    }
}

impl Drop for Stages {
    fn drop(&mut self) {
        // Whatever it is copying would come there a moment later.
        self.broker.stop();
        remove_spill_folder(&self.root);
    }
}

/// Who needs an output: those that read it, and its producer until all of its outputs are saved and settled.
fn reading(payload: &Payload, output: &Output) -> BTreeSet<StageName> {
    output.readers.iter().chain([&payload.name]).cloned().collect()
}

fn stopped(error: Stopped) -> Fault {
    Fault::new(FaultClass::Pilot, error.to_string())
}
