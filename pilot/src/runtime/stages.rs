//! The stages of this pilot: reserved before a payload is launched, committed when it has ended well, lent to those that
//! read them, gone with the last reader. An output that nobody reads is saved, if asked for, and gone.
//!
//! They are on the broker, which keeps the ledger and whatever lies in memory; here it is known where files lie. So what a
//! payload made by path is there for a client library, and the other way round.
//!
//! A pilot that may come back writes down beside committed files who will read them ([`NOTE`]): its next life finds them
//! there ([`Stages::recover`]). Memory is gone with the pilot; its producers run again.
//!
//! **Must not know:** containers, sockets, how a payload ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use pilot_core::{Fault, FaultClass};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat, statat};
use serde::{Deserialize, Serialize};
use stage::broker::{Broker, Ended, Limits, SessionId};
use stage::server::{BrokerServer, Content, Made, Settings, Stopped};
use stage::{
    Budget, Class, CommitError, CommitReason, Fate, Lending, Medium, MemoryStage, MemoryWriter, OutputFile,
    Reservation, ReserveError, StageName, StageUri, lend_file,
};

use wire::pilot::StageRow;

use super::together::Together;
use crate::fault::chain;
use crate::payload::{Output, Payload, Source, StageClass};

/// Where an input in a file lies in a slot, before the shim makes the link in `/stage/in`.
pub(super) const FILE_INPUTS: &str = "/.latebind/in";

/// All stages of a pilot.
#[derive(Debug)]
pub(super) struct Stages {
    pub(super) broker: BrokerServer,
    state: Mutex<State>,
    /// The folder below which files lie, and a descriptor of it once the first one does.
    root: PathBuf,
    root_fd: OnceLock<Arc<OwnedFd>>,
    /// Files are to be found again by the next pilot of this name.
    noted: bool,
    together: Arc<Together>,
}

/// In the folder of a payload's stages, what the ledger knows of them. No stage can have this name.
const NOTE: &str = ".held";

/// One stage as it is noted.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    output: StageName,
    bytes: u64,
    readers: BTreeSet<StageName>,
}

/// Held while the broker is asked to change what is in it, so that the two agree.
#[derive(Debug)]
struct State {
    /// Where the stages in files lie.
    files: BTreeMap<StageUri, PathBuf>,
}

/// An output that a bound payload may write.
#[derive(Debug)]
pub(super) enum OpenOutput {
    /// A file in the slot's `out` folder.
    File(OutputFile),
    /// Memory; the payload reaches it through the stage holder.
    Memory(MemoryWriter),
    /// A file in the slot's `out` folder, whose bytes are taken.
    Value(OutputFile),
    /// Memory that others of its gang write, too.
    Shared(OwnedFd),
    /// A pipe, or memory that an earlier life of this pilot lent: nothing of it is kept.
    Passing,
}

/// An input as the shim is told of it.
#[derive(Debug)]
pub(super) enum OpenInput {
    /// A path in the container.
    Link(String),
    /// Memory; what is shared in a gang may be written.
    Memory(OwnedFd),
}

impl Stages {
    /// Starts the broker; files will lie below `root`. FIFOs are made in `pipes`, which must be on the file system
    /// of the slots' folders.
    pub(super) fn new(
        memory_bytes: u64,
        noted: bool,
        root: PathBuf,
        pipes: PathBuf,
    ) -> std::io::Result<Self> {
        // The disk's own limit is the file system's; ours would only guess at what others will write to it.
        let budget = Budget { memory_bytes, disk_bytes: u64::MAX };
        let broker = BrokerServer::start(Settings::new(Limits::new(budget)))?;
        let state = Mutex::new(State { files: BTreeMap::new() });
        Ok(Self { broker, state, root, root_fd: OnceLock::new(), noted, together: Together::new(pipes) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for a payload's outputs and makes them, empty. What an earlier try left on the ledger is dropped.
    pub(super) fn open_outputs(
        &self,
        payload: &Payload,
        out: &Path,
        foreign_uid: bool,
    ) -> Result<Vec<OpenOutput>, Fault> {
        self.discard(payload);
        self.forget_shared(self.together.enter(payload));
        let folder = open_folder(out)?;
        let mut open = Vec::with_capacity(payload.outputs.len());
        for output in &payload.outputs {
            self.reserve(payload, output)?;
            open.push(match output.class {
                StageClass::File => OpenOutput::File(prepare(&folder, output, foreign_uid)?),
                StageClass::Value => OpenOutput::Value(prepare(&folder, output, foreign_uid)?),
                StageClass::Memory => {
                    let memory = MemoryWriter::create(&output.name, Lending::ByPath);
                    OpenOutput::Memory(memory.map_err(|error| Fault::new(FaultClass::Retry, chain(&error)))?)
                }
                StageClass::Pipe => {
                    let mode = Mode::from_raw_mode(if foreign_uid { 0o666 } else { 0o600 });
                    self.together.make_pipe(payload, output, &folder, mode)?;
                    OpenOutput::Passing
                }
                StageClass::Shared => OpenOutput::Shared(self.together.make_memory(payload, output)?),
            });
        }
        Ok(open)
    }

    fn reserve(&self, payload: &Payload, output: &Output) -> Result<(), Fault> {
        let (class, medium) = match output.class {
            StageClass::File => (Class::File, Medium::Disk),
            // To the ledger, what is shared is memory that is never committed.
            StageClass::Memory | StageClass::Shared => (Class::Mem, Medium::Memory),
            // The kernel holds at most some pages of it.
            StageClass::Pipe => return Ok(()),
            StageClass::Value => (Class::Value, Medium::Memory),
        };
        let is_shared = output.class == StageClass::Shared;
        let asked = Reservation {
            uri: payload.stage(&output.name),
            class,
            medium,
            max_bytes: output.max_bytes,
            // They end with the gang, and nobody else reads it.
            readers: if is_shared { BTreeSet::new() } else { reading(payload, output) },
        };
        let reserved = self.broker.ask(move |broker| broker.reserve(asked)).map_err(stopped)?;
        reserved.map_err(|error| {
            let never = matches!(&error, ReserveError::OverBudget { max_bytes, budget_bytes, .. }
                if max_bytes > budget_bytes);
            let class = if never { FaultClass::Payload } else { FaultClass::Retry };
            Fault::new(
                class,
                format!("{error}; lower its max_size, use class file, or give the pilot more --memory"),
            )
        })?;
        if is_shared {
            self.together.know_memory(payload, output);
        }
        Ok(())
    }

    /// Opens a payload's inputs for its slot: files are linked into `inputs`, memory is given by descriptor.
    /// Where an input that lies on the host will be found, `host` says; `holder` is the payload's session at the broker.
    pub(super) fn open_inputs(
        &self,
        payload: &Payload,
        inputs: &Path,
        holder: Option<SessionId>,
        host: impl Fn(usize, &StageName, &Path) -> Result<String, Fault>,
    ) -> Result<Vec<OpenInput>, Fault> {
        let folder = open_folder(inputs)?;
        let open = |index: usize, name: &StageName, source: &Source| match source {
            Source::Host(path) => host(index, name, path).map(OpenInput::Link),
            Source::Stage(uri) if payload.gang.contains(&uri.payload) => {
                self.open_passing(uri, &folder, name)
            }
            Source::Stage(uri) => self.open_stage(uri, name, folder.as_fd(), holder),
        };
        payload
            .inputs
            .iter()
            .enumerate()
            .map(|(index, input)| open(index, &input.name, &input.source))
            .collect()
    }

    fn open_passing(&self, uri: &StageUri, into: &OwnedFd, name: &StageName) -> Result<OpenInput, Fault> {
        if self.together.lend_pipe(uri, into, name)? {
            return Ok(OpenInput::Link(format!("{FILE_INPUTS}/{name}")));
        }
        match self.together.lend_memory(uri) {
            Some(Ok(memory)) => Ok(OpenInput::Memory(memory)),
            Some(Err(error)) => Err(Fault::new(FaultClass::Retry, chain(&error))),
            None => Err(Fault::new(FaultClass::Retry, format!("{uri} is not there"))),
        }
    }

    /// Waits until all that run together with a payload have made what they share, so that it finds it.
    pub(super) async fn meet(&self, payload: &Payload) -> Result<(), Fault> {
        self.together.meet(payload).await
    }

    /// Nothing of a payload runs: what its gang shared goes with the last of it, and who waits for its end of a pipe is let go.
    pub(super) fn leave(&self, payload: &Payload) {
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

    fn open_stage(
        &self,
        uri: &StageUri,
        name: &StageName,
        folder: BorrowedFd<'_>,
        holder: Option<SessionId>,
    ) -> Result<OpenInput, Fault> {
        let missing = || Fault::new(FaultClass::Retry, format!("{uri} is not there"));
        if let Some(path) = self.file(uri) {
            let stages = open_folder(path.parent().unwrap_or(&path))?;
            return lend_file(stages.as_fd(), &uri.output, folder, name)
                .map(|_| OpenInput::Link(format!("{FILE_INPUTS}/{name}")))
                .map_err(|error| Fault::new(FaultClass::Retry, chain(&error)));
        }
        match self.broker.reader(uri, holder).map_err(stopped)?.ok_or_else(missing)? {
            Ok(Content::Memory(fd)) => Ok(OpenInput::Memory(fd)),
            Ok(Content::Value(value)) => show(&value, folder, name)
                .map(|()| OpenInput::Link(format!("{FILE_INPUTS}/{name}")))
                .map_err(|error| Fault::new(FaultClass::Slot, format!("show input \"{name}\": {error}"))),
            Ok(Content::File(_)) => Err(missing()),
            Err(error) => Err(Fault::new(FaultClass::Retry, format!("open {uri}: {error}"))),
        }
    }

    /// Commits a payload's outputs, all of them or none; gives their bytes. `made` says what its clients committed, in the
    /// session that has ended; `out` is where it wrote by path.
    pub(super) fn commit(
        &self,
        payload: &Payload,
        outputs: Vec<OpenOutput>,
        made: &Ended,
        (out, stages): (&Path, &Path),
    ) -> Result<u64, Fault> {
        let committed = self.commit_each(payload, outputs, made, (out, stages));
        if committed.is_err() {
            self.discard(payload);
        }
        committed
    }

    fn commit_each(
        &self,
        payload: &Payload,
        outputs: Vec<OpenOutput>,
        made: &Ended,
        (out, stages): (&Path, &Path),
    ) -> Result<u64, Fault> {
        let (from, into) = (open_folder(out)?, open_folder(stages)?);
        let mut total = 0;
        // Their folder goes with the last of them, and the others still have to come into it.
        let mut unwanted = Vec::new();
        for (output, open) in payload.outputs.iter().zip(outputs) {
            let uri = payload.stage(&output.name);
            let Some(by_path) = land(output, open, (&from, &into), stages) else { continue };
            let by_client = made.committed.iter().find(|(made, ..)| *made == uri).map(|(.., bytes)| *bytes);
            let landed = either(output, by_path, by_client, made.dropped)?;
            if let Some(path) = &output.save {
                self.save(&landed, &uri, path).map_err(|error| {
                    landed.drop_file(&output.name);
                    unsaved(&output.name, path, &error)
                })?;
            }
            total += landed.bytes();
            unwanted.extend(self.keep(payload, output, landed)?);
        }
        for output in &payload.outputs {
            self.release(&payload.stage(&output.name), &payload.name);
        }
        for path in unwanted {
            drop_file(&path);
        }
        if self.noted {
            self.note(payload, stages);
        }
        Ok(total)
    }

    fn save(&self, landed: &Landed, uri: &StageUri, path: &Path) -> std::io::Result<()> {
        match landed {
            Landed::File { folder, .. } => save(&mut File::open(folder.join(uri.output.as_str()))?, path),
            Landed::Memory(stage) => {
                save(&mut File::from(stage.reader().map_err(|error| error.source)?), path)
            }
            Landed::Value(value) => save(&mut value.as_slice(), path),
            Landed::ByClient { .. } => match self.broker.reader(uri, None) {
                Ok(Some(content)) => match content? {
                    Content::Memory(fd) | Content::File(fd) => save(&mut File::from(fd), path),
                    Content::Value(value) => save(&mut value.as_slice(), path),
                },
                Ok(None) | Err(Stopped) => Err(std::io::ErrorKind::NotFound.into()),
            },
        }
    }

    /// Makes a stage of what a payload left; gives the path of its file if nobody wants it any more.
    fn keep(&self, payload: &Payload, output: &Output, landed: Landed) -> Result<Option<PathBuf>, Fault> {
        let uri = payload.stage(&output.name);
        let mut state = self.lock();
        let (made, path) = match landed {
            Landed::Memory(stage) => (Made::Memory(stage), None),
            Landed::Value(value) => (Made::Value(value), None),
            // It is on the broker since its client committed it.
            Landed::ByClient { .. } => return Ok(None),
            Landed::File { folder, bytes } => {
                (self.made(&uri, bytes)?, Some(folder.join(output.name.as_str())))
            }
        };
        let kept = self.broker.insert(&uri, made, &reading(payload, output)).map_err(stopped)?;
        match (kept, path) {
            (Ok(true), Some(path)) => {
                state.files.insert(uri, path);
                Ok(None)
            }
            (Ok(true), None) => Ok(None),
            (Ok(false), path) => Ok(path),
            (Err(error), path) => {
                if let Some(path) = path {
                    drop_file(&path);
                }
                Err(Fault::new(FaultClass::Payload, chain(&error)))
            }
        }
    }

    /// A committed file, as the broker opens it.
    fn made(&self, uri: &StageUri, bytes: u64) -> Result<Made, Fault> {
        let dir = match self.root_fd.get() {
            Some(dir) => Arc::clone(dir),
            None => {
                let opened = Arc::new(open_folder(&self.root)?);
                Arc::clone(self.root_fd.get_or_init(|| opened))
            }
        };
        let path = [&uri.workflow, &uri.payload, &uri.output].map(StageName::as_str).iter().collect();
        Ok(Made::File { dir, path, bytes })
    }

    /// Writes down which of a payload's files are held, and for whom. Without it they are made again after a restart.
    fn note(&self, payload: &Payload, stages: &Path) {
        let mut uris: Vec<StageUri> =
            payload.outputs.iter().map(|output| payload.stage(&output.name)).collect();
        let state = self.lock();
        uris.retain(|uri| state.files.contains_key(uri));
        let noted = move |broker: &mut Broker| -> Vec<Noted> {
            let known = uris.into_iter().filter_map(|uri| {
                let object = broker.ledger().object(&uri)?;
                Some(Noted { output: uri.output, bytes: object.bytes, readers: object.readers.clone() })
            });
            known.collect()
        };
        let noted = self.broker.ask(noted).unwrap_or_default();
        if noted.is_empty() {
            return;
        }
        let write = || -> std::io::Result<()> {
            let fresh = stages.join(".held.new");
            std::fs::write(&fresh, serde_json::to_vec(&noted)?)?;
            std::fs::rename(fresh, stages.join(NOTE))
        };
        if let Err(error) = write() {
            tracing::warn!(folder = %stages.display(), %error, "its stages will not survive this pilot");
        }
    }

    /// Finds what an earlier pilot of this name held; removes what it did not finish.
    pub(super) fn recover(&self, root: &Path) {
        for (workflow, folder) in folders(root) {
            for (payload, folder) in folders(&folder) {
                let noted = std::fs::read(folder.join(NOTE)).unwrap_or_default();
                let noted: Vec<Noted> = serde_json::from_slice(&noted).unwrap_or_default();
                for entry in &noted {
                    self.recover_file(&workflow, &payload, entry, &folder);
                }
                let is_held = |name: &str| noted.iter().any(|entry| entry.output.as_str() == name);
                for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                    if !entry.file_name().to_str().is_some_and(|name| name == NOTE || is_held(name)) {
                        let _ = std::fs::remove_file(entry.path());
                    }
                }
                tidy(&folder);
            }
        }
    }

    fn recover_file(&self, workflow: &StageName, payload: &StageName, noted: &Noted, folder: &Path) {
        let Noted { output, bytes, readers } = noted;
        let uri = StageUri { workflow: workflow.clone(), payload: payload.clone(), output: output.clone() };
        let there = std::fs::symlink_metadata(folder.join(output.as_str()))
            .is_ok_and(|meta| meta.is_file() && meta.len() == *bytes);
        if !there || readers.is_empty() {
            return;
        }
        let mut state = self.lock();
        let Ok(made) = self.made(&uri, *bytes) else { return };
        if let Ok(Ok(true)) = self.broker.insert(&uri, made, readers) {
            state.files.insert(uri, folder.join(output.as_str()));
        }
    }

    /// Whether a stage is here.
    pub(super) fn holds(&self, uri: &StageUri) -> bool {
        let uri = uri.clone();
        self.broker.ask(move |broker| broker.lookup(&uri).is_some()).unwrap_or(false)
    }

    /// Where a stage lies, if it is a file.
    pub(super) fn file(&self, uri: &StageUri) -> Option<PathBuf> {
        self.lock().files.get(uri).cloned()
    }

    /// All that is held.
    pub(super) fn rows(&self) -> Vec<StageRow> {
        let row = |(uri, _, bytes): (&StageUri, _, u64)| StageRow { stage: uri.to_string(), bytes };
        self.broker.ask(move |broker| broker.stages().map(row).collect()).unwrap_or_default()
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

    /// Goes on with the outputs of a payload that another pilot launched. `touched` says that that pilot had begun to keep
    /// them: what has left `out` then is gone with it, since what it did not finish is removed ([`Stages::recover`]).
    pub(super) fn reopen_outputs(
        &self,
        payload: &Payload,
        files: &[OutputFile],
        out: &Path,
        touched: bool,
    ) -> Result<Vec<OpenOutput>, Fault> {
        let out = open_folder(out)?;
        self.together.enter_again(payload);
        let mut open = Vec::with_capacity(payload.outputs.len());
        for output in &payload.outputs {
            let name = output.name.as_str();
            match output.class {
                // Its gang has it, and that is enough.
                StageClass::Shared => {
                    self.reserve(payload, output)?;
                    open.push(OpenOutput::Passing);
                    continue;
                }
                StageClass::Pipe if self.together.find_pipe(payload, output) => {
                    open.push(OpenOutput::Passing);
                    continue;
                }
                StageClass::Pipe | StageClass::File | StageClass::Memory | StageClass::Value => {}
            }
            let Some(file) = files.iter().find(|file| *file.name() == output.name) else {
                let text = format!("output \"{name}\" was in the memory of a pilot that is gone");
                return Err(Fault::new(FaultClass::Retry, text));
            };
            if touched && statat(&out, name, AtFlags::SYMLINK_NOFOLLOW).is_err() {
                let text = format!("output \"{name}\" was being kept when its pilot died");
                return Err(Fault::new(FaultClass::Retry, text));
            }
            self.reserve(payload, output)?;
            open.push(OpenOutput::File(file.clone()));
        }
        Ok(open)
    }

    /// Drops what a payload reserved or committed.
    pub(super) fn discard(&self, payload: &Payload) {
        // What is shared stays until the last of the gang has left.
        let kept = payload.outputs.iter().filter(|output| output.class != StageClass::Shared);
        let uris: Vec<StageUri> = kept.map(|output| payload.stage(&output.name)).collect();
        if uris.is_empty() {
            return;
        }
        let mut state = self.lock();
        let files: Vec<PathBuf> = uris.iter().filter_map(|uri| state.files.remove(uri)).collect();
        // Unknown is fine: it was never reserved.
        let _ = self.broker.ask(move |broker| uris.iter().filter(|uri| broker.remove(uri)).count());
        for path in files {
            drop_file(&path);
        }
    }

    /// A payload will not run again: what only it would still have read goes.
    pub(super) fn settle(&self, payload: &Payload) {
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
        let mut state = self.lock();
        if let Ok(Ok(Fate::Gone)) = self.broker.ask(move |broker| broker.release(&asked, &reader))
            && let Some(path) = state.files.remove(uri)
        {
            drop_file(&path);
        }
    }
}

/// What a payload left, out of its reach.
enum Landed {
    File { folder: PathBuf, bytes: u64 },
    Memory(MemoryStage),
    Value(Vec<u8>),
    ByClient { bytes: u64 },
}

/// Takes what a payload left by path, a file into the folder `stages`; `None` when nothing of it is kept.
fn land(
    output: &Output,
    open: OpenOutput,
    (from, into): (&OwnedFd, &OwnedFd),
    stages: &Path,
) -> Option<Result<Landed, CommitError>> {
    let file = |file: OutputFile| file.commit(from.as_fd(), output.max_bytes, into.as_fd(), &output.name);
    let landed = match open {
        OpenOutput::File(open) => {
            file(open).map(|stage| Landed::File { folder: stages.to_path_buf(), bytes: stage.bytes })
        }
        OpenOutput::Memory(writer) => {
            writer.commit(output.max_bytes).map(Landed::Memory).map_err(|lost| lost.error)
        }
        OpenOutput::Value(open) => {
            file(open).and_then(|_| {
                // It is the pilot's alone by now, and no larger than a value may be.
                let path = stages.join(output.name.as_str());
                let value = std::fs::read(&path);
                let _ = std::fs::remove_file(&path);
                value.map(Landed::Value).map_err(|source| CommitError {
                    output: output.name.clone(),
                    reason: CommitReason::Io { doing: "read it", source },
                })
            })
        }
        OpenOutput::Shared(_) | OpenOutput::Passing => return None,
    };
    Some(landed)
}

/// An output is made in one of two ways. `dropped` outputs were created by clients that did not commit them.
fn either(
    output: &Output,
    by_path: Result<Landed, CommitError>,
    by_client: Option<u64>,
    dropped: usize,
) -> Result<Landed, Fault> {
    let wrong = |text: String| Err(Fault::new(FaultClass::Payload, text));
    let name = &output.name;
    match (by_path, by_client) {
        (Ok(landed), None) => Ok(landed),
        (Ok(landed), Some(_)) => {
            landed.drop_file(name);
            wrong(format!(
                "commit output \"{name}\": it was written to /stage/out/{name} and committed by a client; make it in one way"
            ))
        }
        (Err(error), _) if !matches!(error.reason, CommitReason::NotProduced) => wrong(chain(&error)),
        (Err(_), Some(bytes)) => Ok(Landed::ByClient { bytes }),
        (Err(error), None) if output.class == StageClass::Memory && dropped > 0 => {
            wrong(format!("{}, and no client committed it", chain(&error)))
        }
        (Err(error), None) => wrong(chain(&error)),
    }
}

impl Landed {
    fn bytes(&self) -> u64 {
        match self {
            Self::File { bytes, .. } | Self::ByClient { bytes } => *bytes,
            Self::Memory(stage) => stage.bytes(),
            Self::Value(value) => value.len() as u64,
        }
    }

    fn drop_file(&self, name: &StageName) {
        if let Self::File { folder, .. } = self {
            drop_file(&folder.join(name.as_str()));
        }
    }
}

fn prepare(folder: &OwnedFd, output: &Output, foreign_uid: bool) -> Result<OutputFile, Fault> {
    let mode = if foreign_uid { 0o666 } else { 0o600 };
    OutputFile::prepare(folder.as_fd(), &output.name, mode)
        .map_err(|error| Fault::new(FaultClass::Slot, chain(&error)))
}

/// Makes a file of a value, for a payload that reads it by path.
fn show(value: &[u8], folder: BorrowedFd<'_>, name: &StageName) -> std::io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let readable = Mode::from_raw_mode(0o444);
    let mut file = File::from(openat(folder, name.as_str(), flags, readable)?);
    // Whatever the umask is.
    rustix::fs::fchmod(&file, readable)?;
    file.write_all(value)
}

/// Who needs an output: those that read it, and its producer until all of its outputs are saved and settled.
fn reading(payload: &Payload, output: &Output) -> BTreeSet<StageName> {
    output.readers.iter().chain([&payload.name]).cloned().collect()
}

fn stopped(error: Stopped) -> Fault {
    Fault::new(FaultClass::Pilot, error.to_string())
}

fn drop_file(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(stage = %path.display(), %error, "a file stage is left until the pilot ends");
    }
    if let Some(folder) = path.parent() {
        tidy(folder);
    }
}

/// Removes the folder of a payload's stages, and its workflow's, once they hold none.
fn tidy(folder: &Path) {
    let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    if entries.all(|entry| entry.file_name() == NOTE) {
        let _ = std::fs::remove_file(folder.join(NOTE));
        if std::fs::remove_dir(folder).is_ok()
            && let Some(workflow) = folder.parent()
        {
            let _ = std::fs::remove_dir(workflow);
        }
    }
}

/// The folders in a folder whose names can be those of a workflow or payload.
fn folders(root: &Path) -> Vec<(StageName, PathBuf)> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    named
        .filter_map(|entry| {
            let name = StageName::new(entry.file_name().to_str()?).ok()?;
            Some((name, entry.path()))
        })
        .collect()
}

/// Removes the empty folders below `folder`, and it too if nothing is left.
pub(super) fn prune(folder: &Path) {
    for (path, is_folder) in entries(folder) {
        if is_folder {
            prune(&path);
        }
    }
    let _ = std::fs::remove_dir(folder);
}

fn entries(folder: &Path) -> impl Iterator<Item = (PathBuf, bool)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir())))
}

/// Opens a folder by its own name; a link is none.
pub(super) fn open_folder(path: &Path) -> Result<OwnedFd, Fault> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat(rustix::fs::CWD, path, flags, Mode::empty())
        .map_err(|errno| Fault::new(FaultClass::Slot, format!("open folder {}: {errno}", path.display())))
}

/// Copies a stage to where the user wants it: it gets its name last, so that the user never sees half of it.
fn save<R: Read>(from: &mut R, path: &Path) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // Without a name until it is whole: a pilot that is killed leaves nothing of it.
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let Ok(into) = rustix::fs::open(folder, flags, Mode::from_raw_mode(0o600)) else {
        // Not every file system can (NFS).
        let mut into = tempfile::NamedTempFile::new_in(folder)?;
        std::io::copy(from, into.as_file_mut())?;
        rustix::fs::fchmod(into.as_file(), SAVED)?;
        into.persist(path)?;
        return Ok(());
    };
    let mut into = File::from(into);
    std::io::copy(from, &mut into)?;
    rustix::fs::fchmod(&into, SAVED)?;
    give_name(&into, folder, path)
}

fn unsaved(name: &StageName, path: &Path, error: &std::io::Error) -> Fault {
    let path = path.display();
    let message = format!("save output \"{name}\" to {path}: {error}; choose another folder with --out");
    Fault::new(FaultClass::Payload, message)
}

/// What the user may do with a saved output.
const SAVED: Mode = Mode::from_raw_mode(0o644);

/// Puts a file without a name in the place of what is at `path`.
fn give_name(file: &File, folder: &Path, path: &Path) -> std::io::Result<()> {
    // link(2) replaces nothing, so there is a step between, for as long as two system calls take.
    let between = folder.join(format!(".latebind-{:016x}", fastrand::u64(..)));
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, own, CWD, &between, AtFlags::SYMLINK_FOLLOW)?;
    std::fs::rename(&between, path).inspect_err(|_| drop(std::fs::remove_file(&between)))
}
