//! The stages of this pilot: reserved before a payload is bound, committed when it has ended well, lent to those that read
//! them, gone with the last reader.
//!
//! **Must not know:** containers, sockets, how a payload ended.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pilot_core::{Fault, FaultClass};
use rustix::fs::{Mode, OFlags, openat};
use stage::{
    Budget, Class, Fate, Ledger, Lending, Medium, MemoryStage, MemoryWriter, OutputFile, Reservation,
    ReserveError, StageName, StageUri, lend_file,
};

use crate::fault::chain;
use crate::payload::{Output, Payload, Source, StageClass};

/// All stages of a pilot.
#[derive(Debug)]
pub(super) struct Stages {
    state: Mutex<State>,
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
}

/// An input as the shim is told of it.
#[derive(Debug)]
pub(super) enum OpenInput {
    /// A path in the container.
    Link(String),
    /// Memory.
    Memory(OwnedFd),
}

impl Stages {
    pub(super) fn new(memory_bytes: u64) -> Self {
        // The disk's own limit is the file system's; ours would only guess at what others will write to it.
        let ledger = Ledger::new(Budget { memory_bytes, disk_bytes: u64::MAX });
        Self { state: Mutex::new(State { ledger, held: BTreeMap::new() }) }
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
            });
        }
        Ok(open)
    }

    fn reserve(&self, payload: &Payload, output: &Output) -> Result<(), Fault> {
        let (class, medium) = match output.class {
            StageClass::File => (Class::File, Medium::Disk),
            StageClass::Memory => (Class::Mem, Medium::Memory),
        };
        let asked = Reservation {
            uri: uri(payload, &output.name),
            class,
            medium,
            max_bytes: output.max_bytes,
            readers: output.readers.clone(),
        };
        self.lock().ledger.reserve(asked).map_err(|error| {
            let never = matches!(&error, ReserveError::OverBudget { max_bytes, budget_bytes, .. }
                if max_bytes > budget_bytes);
            let class = if never { FaultClass::Payload } else { FaultClass::Retry };
            Fault::new(
                class,
                format!("{error}; lower its max_size, use class file, or give the pilot more --memory"),
            )
        })
    }

    /// Opens a payload's inputs for its slot: files are linked into `inputs`, memory is given by descriptor.
    pub(super) fn open_inputs(&self, payload: &Payload, inputs: &Path) -> Result<Vec<OpenInput>, Fault> {
        let folder = open_folder(inputs)?;
        let open = |index: usize, name: &StageName, source: &Source| match source {
            Source::Host(_) => Ok(OpenInput::Link(super::container::host_input(index))),
            Source::Stage(uri) => match self.lock().held.get(uri) {
                None => Err(Fault::new(FaultClass::Retry, format!("{uri} is not there"))),
                Some(Held::Memory(stage)) => stage
                    .reader()
                    .map(OpenInput::Memory)
                    .map_err(|error| Fault::new(FaultClass::Retry, chain(&error))),
                Some(Held::File(stages)) => {
                    let stages = open_folder(stages)?;
                    lend_file(stages.as_fd(), &uri.output, folder.as_fd(), name)
                        .map(|_| OpenInput::Link(format!("{}/{name}", super::container::FILE_INPUTS)))
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
            };
            if let Some(path) = &output.save {
                save(&held, &output.name, path)?;
            }
            total += bytes;
            let uri = uri(payload, &output.name);
            let mut state = self.lock();
            let fate = state.ledger.commit(&uri, bytes).map_err(|error| wrong(&error))?;
            match fate {
                Fate::Kept => drop(state.held.insert(uri, held)),
                Fate::Gone => drop_held(held, &output.name),
            }
        }
        Ok(total)
    }

    /// Drops what a payload reserved or committed.
    pub(super) fn discard(&self, payload: &Payload) {
        for output in &payload.outputs {
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
    if let Held::File(folder) = held
        && let Err(error) = std::fs::remove_file(folder.join(name.as_str()))
    {
        tracing::warn!(stage = %name, %error, "a file stage is left until the pilot ends");
    }
}

fn uri(payload: &Payload, output: &StageName) -> StageUri {
    StageUri { workflow: payload.workflow.clone(), payload: payload.name.clone(), output: output.clone() }
}

fn open_folder(path: &Path) -> Result<OwnedFd, Fault> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat(rustix::fs::CWD, path, flags, Mode::empty())
        .map_err(|errno| Fault::new(FaultClass::Slot, format!("open folder {}: {errno}", path.display())))
}

/// Copies a stage to where the user wants it: under another name first, so that the user never sees half of it.
fn save(held: &Held, name: &StageName, path: &Path) -> Result<(), Fault> {
    let copy = || -> std::io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let mut from = match held {
            Held::File(stages) => File::open(stages.join(name.as_str()))?,
            Held::Memory(stage) => File::from(stage.reader().map_err(|error| error.source)?),
        };
        let mut into = tempfile::NamedTempFile::new_in(folder)?;
        std::io::copy(&mut from, into.as_file_mut())?;
        rustix::fs::fchmod(into.as_file(), Mode::from_raw_mode(0o644))?;
        into.persist(path)?;
        Ok(())
    };
    copy().map_err(|error| {
        let message = format!(
            "save output \"{name}\" to {}: {error}; choose another folder with --out",
            path.display()
        );
        Fault::new(FaultClass::Payload, message)
    })
}
