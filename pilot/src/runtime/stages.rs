//! The stages of this pilot: reserved before a payload is launched, committed when it has ended well, lent to those that
//! read them, gone with the last reader. An output that nobody reads is saved, if asked for, and gone.
//!
//! A pilot that may come back writes down beside committed files who will read them ([`NOTE`]): its next life finds them
//! there ([`Stages::recover`]). Memory is gone with the pilot; its producers run again.
//!
//! **Must not know:** containers, sockets, how a payload ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pilot_core::{Fault, FaultClass};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat, statat};
use serde::{Deserialize, Serialize};
use stage::{
    Budget, Class, Fate, Ledger, Lending, Medium, MemoryStage, MemoryWriter, OutputFile, Reservation,
    ReserveError, StageName, StageUri, lend_file,
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
    state: Mutex<State>,
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

#[derive(Debug)]
struct State {
    ledger: Ledger,
    held: BTreeMap<StageUri, Held>,
}

#[derive(Debug)]
enum Held {
    File(PathBuf),
    Memory(MemoryStage),
}

/// An output that a bound payload may write.
#[derive(Debug)]
pub(super) enum OpenOutput {
    /// A file in the slot's `out` folder.
    File(OutputFile),
    /// Memory; the payload reaches it through the stage holder.
    Memory(MemoryWriter),
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
    /// FIFOs are made in `pipes`, which must be on the file system of the slots' folders.
    pub(super) fn new(memory_bytes: u64, noted: bool, pipes: PathBuf) -> Self {
        // The disk's own limit is the file system's; ours would only guess at what others will write to it.
        let ledger = Ledger::new(Budget { memory_bytes, disk_bytes: u64::MAX });
        Self {
            state: Mutex::new(State { ledger, held: BTreeMap::new() }),
            noted,
            together: Together::new(pipes),
        }
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
                StageClass::File => {
                    let mode = if foreign_uid { 0o666 } else { 0o600 };
                    let file = OutputFile::prepare(folder.as_fd(), &output.name, mode);
                    OpenOutput::File(file.map_err(|error| Fault::new(FaultClass::Slot, chain(&error)))?)
                }
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
        };
        let is_shared = output.class == StageClass::Shared;
        let asked = Reservation {
            uri: uri(payload, &output.name),
            class,
            medium,
            max_bytes: output.max_bytes,
            // They end with the gang, and nobody else reads it.
            readers: if is_shared { BTreeSet::new() } else { output.readers.clone() },
        };
        self.lock().ledger.reserve(asked).map_err(|error| {
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
    /// Where an input that lies on the host will be found, `host` says.
    pub(super) fn open_inputs(
        &self,
        payload: &Payload,
        inputs: &Path,
        host: impl Fn(usize, &StageName, &Path) -> Result<String, Fault>,
    ) -> Result<Vec<OpenInput>, Fault> {
        let folder = open_folder(inputs)?;
        let open = |index: usize, name: &StageName, source: &Source| match source {
            Source::Host(path) => host(index, name, path).map(OpenInput::Link),
            Source::Stage(uri) if payload.gang.contains(&uri.payload) => {
                self.open_passing(uri, &folder, name)
            }
            Source::Stage(uri) => match self.lock().held.get(uri) {
                None => Err(Fault::new(FaultClass::Retry, format!("{uri} is not there"))),
                Some(Held::Memory(stage)) => stage
                    .reader()
                    .map(OpenInput::Memory)
                    .map_err(|error| Fault::new(FaultClass::Retry, chain(&error))),
                Some(Held::File(stages)) => {
                    let stages = open_folder(stages)?;
                    lend_file(stages.as_fd(), &uri.output, folder.as_fd(), name)
                        .map(|_| OpenInput::Link(format!("{FILE_INPUTS}/{name}")))
                        .map_err(|error| Fault::new(FaultClass::Retry, chain(&error)))
                }
            },
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
            let _ = self.lock().ledger.discard(&uri);
        }
    }

    /// All that an earlier life of this pilot left running has been looked at.
    pub(super) fn sweep_pipes(&self) {
        self.together.sweep();
    }

    /// Commits a payload's outputs, all of them or none; gives their bytes.
    pub(super) fn commit(
        &self,
        payload: &Payload,
        outputs: Vec<OpenOutput>,
        out: &Path,
        stages: &Path,
    ) -> Result<u64, Fault> {
        let committed = self.commit_each(payload, outputs, out, stages);
        if committed.is_err() {
            self.discard(payload);
        }
        committed
    }

    fn commit_each(
        &self,
        payload: &Payload,
        outputs: Vec<OpenOutput>,
        out: &Path,
        stages: &Path,
    ) -> Result<u64, Fault> {
        let (from, into) = (open_folder(out)?, open_folder(stages)?);
        let mut total = 0;
        // Their folder goes with the last of them, and the others still have to come into it.
        let mut unread = Vec::new();
        for (output, open) in payload.outputs.iter().zip(outputs) {
            let wrong = |error: &dyn std::error::Error| Fault::new(FaultClass::Payload, chain(error));
            let (held, bytes) = match open {
                OpenOutput::File(file) => {
                    let stage = file
                        .commit(from.as_fd(), output.max_bytes, into.as_fd(), &output.name)
                        .map_err(|error| wrong(&error))?;
                    (Held::File(stages.to_path_buf()), stage.bytes)
                }
                OpenOutput::Memory(writer) => {
                    let stage = writer.commit(output.max_bytes).map_err(|lost| wrong(&lost.error))?;
                    let bytes = stage.bytes();
                    (Held::Memory(stage), bytes)
                }
                OpenOutput::Shared(_) | OpenOutput::Passing => continue,
            };
            if let Some(path) = &output.save {
                save(&held, &output.name, path)?;
            }
            total += bytes;
            let uri = uri(payload, &output.name);
            let mut state = self.lock();
            let fate = state.ledger.commit(&uri, bytes).map_err(|error| wrong(&error))?;
            match fate {
                Fate::Kept if output.readers.is_empty() => {
                    let _ = state.ledger.discard(&uri);
                    unread.push((held, &output.name));
                }
                Fate::Kept => drop(state.held.insert(uri, held)),
                Fate::Gone => unread.push((held, &output.name)),
            }
        }
        for (held, name) in unread {
            drop_held(held, name);
        }
        if self.noted {
            self.note(payload, stages);
        }
        Ok(total)
    }

    /// Writes down which of a payload's files are held, and for whom. Without it they are made again after a restart.
    fn note(&self, payload: &Payload, stages: &Path) {
        let state = self.lock();
        let noted = payload.outputs.iter().filter_map(|output| {
            let uri = uri(payload, &output.name);
            matches!(state.held.get(&uri), Some(Held::File(_))).then_some(())?;
            let object = state.ledger.object(&uri)?;
            Some(Noted { output: output.name.clone(), bytes: object.bytes, readers: object.readers.clone() })
        });
        let noted: Vec<Noted> = noted.collect();
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
        let mut state = self.lock();
        let asked = Reservation {
            uri: uri.clone(),
            class: Class::File,
            medium: Medium::Disk,
            max_bytes: *bytes,
            readers: readers.clone(),
        };
        if there
            && !readers.is_empty()
            && state.ledger.reserve(asked).is_ok()
            && let Ok(Fate::Kept) = state.ledger.commit(&uri, *bytes)
        {
            state.held.insert(uri, Held::File(folder.to_owned()));
        }
    }

    /// Whether a stage is here.
    pub(super) fn holds(&self, uri: &StageUri) -> bool {
        self.lock().held.contains_key(uri)
    }

    /// Where a stage lies, if it is a file.
    pub(super) fn file(&self, uri: &StageUri) -> Option<PathBuf> {
        match self.lock().held.get(uri)? {
            Held::File(folder) => Some(folder.join(uri.output.as_str())),
            Held::Memory(_) => None,
        }
    }

    /// All that is held.
    pub(super) fn rows(&self) -> Vec<StageRow> {
        let state = self.lock();
        let held = state.ledger.objects().filter(|(_, object)| object.committed);
        held.map(|(uri, object)| StageRow { stage: uri.to_string(), bytes: object.bytes }).collect()
    }

    /// Workflows that have stages here.
    pub(super) fn workflows(&self) -> BTreeSet<StageName> {
        self.lock().held.keys().map(|uri| uri.workflow.clone()).collect()
    }

    /// Releases every reader of a workflow's stages that is not in `unfinished`: it ended elsewhere, or will never come.
    pub(super) fn keep_for(&self, workflow: &StageName, unfinished: &BTreeSet<StageName>) {
        let mut state = self.lock();
        let gone: Vec<(StageUri, StageName)> = state
            .ledger
            .objects()
            .filter(|(uri, object)| uri.workflow == *workflow && object.committed)
            .flat_map(|(uri, object)| object.readers.iter().map(|reader| (uri.clone(), reader.clone())))
            .filter(|(_, reader)| !unfinished.contains(reader))
            .collect();
        for (uri, reader) in gone {
            if let Ok(Fate::Gone) = state.ledger.release(&uri, &reader)
                && let Some(held) = state.held.remove(&uri)
            {
                drop_held(held, &uri.output);
            }
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
                StageClass::Pipe | StageClass::File | StageClass::Memory => {}
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
        for output in kept {
            let uri = uri(payload, &output.name);
            let mut state = self.lock();
            // Unknown is fine: it was never reserved.
            let _ = state.ledger.discard(&uri);
            if let Some(held) = state.held.remove(&uri) {
                drop_held(held, &output.name);
            }
        }
    }

    /// A payload will not run again: what only it would still have read goes.
    pub(super) fn settle(&self, payload: &Payload) {
        for input in &payload.inputs {
            let Source::Stage(uri) = &input.source else { continue };
            let mut state = self.lock();
            // An input read under two names is released once.
            if let Ok(Fate::Gone) = state.ledger.release(uri, &payload.name)
                && let Some(held) = state.held.remove(uri)
            {
                drop_held(held, &uri.output);
            }
        }
    }
}

fn drop_held(held: Held, name: &StageName) {
    let Held::File(folder) = held else { return };
    if let Err(error) = std::fs::remove_file(folder.join(name.as_str())) {
        tracing::warn!(stage = %name, %error, "a file stage is left until the pilot ends");
    }
    tidy(&folder);
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

fn uri(payload: &Payload, output: &StageName) -> StageUri {
    StageUri { workflow: payload.workflow.clone(), payload: payload.name.clone(), output: output.clone() }
}

fn open_folder(path: &Path) -> Result<OwnedFd, Fault> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat(rustix::fs::CWD, path, flags, Mode::empty())
        .map_err(|errno| Fault::new(FaultClass::Slot, format!("open folder {}: {errno}", path.display())))
}

/// Copies a stage to where the user wants it: it gets its name last, so that the user never sees half of it.
fn save(held: &Held, name: &StageName, path: &Path) -> Result<(), Fault> {
    let copy = || -> std::io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let mut from = match held {
            Held::File(stages) => File::open(stages.join(name.as_str()))?,
            Held::Memory(stage) => File::from(stage.reader().map_err(|error| error.source)?),
        };
        // Without a name until it is whole: a pilot that is killed leaves nothing of it.
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let Ok(into) = rustix::fs::open(folder, flags, Mode::from_raw_mode(0o600)) else {
            // Not every file system can (NFS).
            let mut into = tempfile::NamedTempFile::new_in(folder)?;
            std::io::copy(&mut from, into.as_file_mut())?;
            rustix::fs::fchmod(into.as_file(), SAVED)?;
            into.persist(path)?;
            return Ok(());
        };
        let mut into = File::from(into);
        std::io::copy(&mut from, &mut into)?;
        rustix::fs::fchmod(&into, SAVED)?;
        give_name(&into, folder, path)
    };
    copy().map_err(|error| {
        let message = format!(
            "save output \"{name}\" to {}: {error}; choose another folder with --out",
            path.display()
        );
        Fault::new(FaultClass::Payload, message)
    })
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
