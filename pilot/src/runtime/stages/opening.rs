//! Outputs and inputs as a payload that is about to be launched gets them, or had them from an earlier life of this pilot.
//!
//! **Must not know:** what becomes of an output.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use pilot_core::{Fault, FaultClass};
use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};
use stage::broker::SessionId;
use stage::server::{Content, Stopped};
use stage::{
    Class, Lending, Medium, MemoryWriter, OutputFile, Reservation, ReserveError, StageName, StageUri,
    lend_file, lend_folder, lend_open, prepare_folder,
};

use super::folders::open_folder;
use super::{FILE_INPUTS, Lies, Stages, reading, stopped};
use crate::fault::chain;
use crate::payload::{Output, Payload, Source, StageClass};

/// An output that a bound payload may write.
#[derive(Debug)]
pub(in crate::runtime) enum OpenOutput {
    /// A file in the slot's `out` folder.
    File(OutputFile),
    /// A folder in the slot's `out` folder.
    Folder,
    /// Memory; the payload reaches it through the stage holder.
    Memory(MemoryWriter),
    /// A file in the slot's `out` folder, whose bytes are taken.
    Value(OutputFile),
    /// Memory that others of its gang write, too.
    Shared(OwnedFd),
    /// A pipe, or memory that an earlier life of this pilot lent: nothing of it is kept.
    Passing,
}

impl OpenOutput {
    /// The file of the slot's `out` folder that it is.
    pub(in crate::runtime) fn file(&self) -> Option<&OutputFile> {
        match self {
            Self::File(file) | Self::Value(file) => Some(file),
            Self::Folder | Self::Memory(_) | Self::Shared(_) | Self::Passing => None,
        }
    }
}

/// An input as the shim is told of it.
#[derive(Debug)]
pub(in crate::runtime) enum OpenInput {
    /// A path in the container.
    Link(String),
    /// The same of a file that was made in memory: the payload gets a descriptor, too.
    Moved(String),
    /// Memory; what is shared in a gang may be written.
    Memory(OwnedFd),
}

impl Stages {
    /// Makes room for a payload's outputs and makes them, empty. What an earlier try left on the ledger is dropped. Where stages
    /// can leave memory for them, it waits for that.
    pub(in crate::runtime) async fn open_outputs(
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
            self.make_room(payload, output).await?;
            open.push(match output.class {
                StageClass::File => OpenOutput::File(prepare(&folder, output, foreign_uid)?),
                StageClass::Folder => {
                    let mode = if foreign_uid { 0o777 } else { 0o700 };
                    prepare_folder(folder.as_fd(), &output.name, mode)
                        .map_err(|error| Fault::new(FaultClass::Slot, chain(&error)))?;
                    OpenOutput::Folder
                }
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

    async fn make_room(&self, payload: &Payload, output: &Output) -> Result<(), Fault> {
        loop {
            let Some(asked) = reservation(payload, output) else { return Ok(()) };
            let (tell, told) = tokio::sync::oneshot::channel();
            // One that gave up is not told; what it was given is dropped with the rest of that try.
            self.broker.reserve(asked, move |reserved| drop(tell.send(reserved))).map_err(stopped)?;
            let reserved = told.await.map_err(|_| stopped(Stopped))?;
            let lacking = reserved.as_ref().err().and_then(|error| self.lacks_disk(error));
            match lacking {
                Some(bytes) if self.make_disk_room(bytes).await => {}
                _ => return self.reserved(payload, output, reserved),
            }
        }
    }

    /// How much must leave the volume so that there is room; `None` when that would not help.
    fn lacks_disk(&self, error: &ReserveError) -> Option<u64> {
        let ReserveError::OverBudget { medium, max_bytes, free_bytes, budget_bytes, .. } = error else {
            return None;
        };
        let lacking = max_bytes.saturating_sub(*free_bytes);
        let helps = match medium {
            Medium::Disk => true,
            // Stages in memory could go to the volume, and there is no room.
            Medium::Memory => self.broker.ask(|broker| broker.idle_bytes()).unwrap_or(0) >= lacking,
            Medium::Object => false,
        };
        (self.has_far() && helps && max_bytes <= budget_bytes).then_some(lacking)
    }

    fn reserve(&self, payload: &Payload, output: &Output) -> Result<(), Fault> {
        let Some(asked) = reservation(payload, output) else { return Ok(()) };
        let reserved = self.broker.ask(move |broker| broker.reserve(asked)).map_err(stopped)?;
        self.reserved(payload, output, reserved)
    }

    fn reserved(
        &self,
        payload: &Payload,
        output: &Output,
        reserved: Result<(), ReserveError>,
    ) -> Result<(), Fault> {
        reserved.map_err(|error| {
            let never = matches!(&error, ReserveError::OverBudget { max_bytes, budget_bytes, .. }
                if max_bytes > budget_bytes);
            let class = if never { FaultClass::Payload } else { FaultClass::Retry };
            let advice = match &error {
                ReserveError::OverBudget { medium: Medium::Disk, .. } => {
                    "or give the pilot more --stage-disk"
                }
                _ => "use class file, or give the pilot more --memory",
            };
            Fault::new(class, format!("{error}; lower its max_size, {advice}"))
        })?;
        if output.class == StageClass::Shared {
            self.together.know_memory(payload, output);
        }
        Ok(())
    }

    /// Opens a payload's inputs for its slot: files are linked into `inputs`, memory is given by descriptor.
    /// Where an input that lies on the host will be found, `host` says; `holder` is the payload's session at the broker.
    pub(in crate::runtime) fn open_inputs(
        &self,
        payload: &Payload,
        inputs: &Path,
        holder: Option<SessionId>,
        host: impl Fn(usize, &StageName, &Path) -> Result<String, Fault>,
    ) -> Result<Vec<OpenInput>, Fault> {
        let folder = open_folder(inputs)?;
        let open = |index: usize, name: &StageName, source: &Source| match source {
            Source::Host(path) => host(index, name, path).map(OpenInput::Link),
            Source::Object(url) => {
                self.objects.show(payload, url, &inputs.join(name.as_str()))?;
                Ok(OpenInput::Link(format!("{FILE_INPUTS}/{name}")))
            }
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

    fn open_stage(
        &self,
        uri: &StageUri,
        name: &StageName,
        folder: BorrowedFd<'_>,
        holder: Option<SessionId>,
    ) -> Result<OpenInput, Fault> {
        let missing = || Fault::new(FaultClass::Retry, format!("{uri} is not there"));
        let link = || Ok(OpenInput::Link(format!("{FILE_INPUTS}/{name}")));
        let moved = || Ok(OpenInput::Moved(format!("{FILE_INPUTS}/{name}")));
        let lies = self.lock().get(uri).cloned();
        if let Some(Lies { path, was_memory, .. }) = lies {
            let stages = open_folder(path.parent().unwrap_or(&path))?;
            let failed = |error: &dyn std::error::Error| Fault::new(FaultClass::Retry, chain(error));
            if path.is_dir() {
                let lent =
                    lend_folder(stages.as_fd(), &uri.output, folder, name).map_err(|error| failed(&error))?;
                self.counting.folder(lent);
                self.counting.read(lent.bytes);
                return link();
            }
            let lent =
                lend_file(stages.as_fd(), &uri.output, folder, name).map_err(|error| failed(&error))?;
            self.counting.landed(lent);
            self.counting.read(lent.bytes);
            return if was_memory { moved() } else { link() };
        }
        match self.broker.reader(uri, holder).map_err(stopped)?.ok_or_else(missing)? {
            Ok(Content::Memory(fd)) => {
                let bytes = rustix::fs::fstat(&fd).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
                self.counting.read(bytes);
                Ok(OpenInput::Memory(fd))
            }
            Ok(Content::Value(value)) => {
                let bytes = value.len() as u64;
                show(&value, folder, name).map_err(|error| {
                    Fault::new(FaultClass::Slot, format!("show input \"{name}\": {error}"))
                })?;
                self.counting.copied(bytes);
                self.counting.read(bytes);
                link()
            }
            // It left memory a moment ago.
            Ok(Content::File(fd)) => {
                let lent = lend_open(fd.as_fd(), &uri.output, folder, name);
                let lent = lent.map_err(|error| Fault::new(FaultClass::Retry, chain(&error)))?;
                self.counting.landed(lent);
                self.counting.read(lent.bytes);
                moved()
            }
            Err(error) => Err(Fault::new(FaultClass::Retry, format!("open {uri}: {error}"))),
        }
    }

    /// Goes on with the outputs of a payload that another pilot launched. `touched` says that that pilot had begun to keep
    /// them: what has left `out` then is gone with it, since what it did not finish is removed ([`Stages::recover`]). `memory` is
    /// what the slot's shim has of those in memory.
    pub(in crate::runtime) fn reopen_outputs(
        &self,
        payload: &Payload,
        files: &[OutputFile],
        out: &Path,
        touched: bool,
        mut memory: BTreeMap<StageName, OwnedFd>,
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
                StageClass::Folder if statat(&out, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() => {
                    if touched {
                        // Some of it may have left.
                        let text = format!("output \"{name}\" was being kept when its pilot died");
                        return Err(Fault::new(FaultClass::Retry, text));
                    }
                    self.reserve(payload, output)?;
                    open.push(OpenOutput::Folder);
                    continue;
                }
                StageClass::Memory => {
                    open.push(OpenOutput::Memory(found(output, memory.remove(&output.name))?));
                    self.reserve(payload, output)?;
                    continue;
                }
                StageClass::Pipe | StageClass::File | StageClass::Folder | StageClass::Value => {}
            }
            let file = files.iter().find(|file| *file.name() == output.name);
            let file = file.ok_or_else(|| gone_with_its_pilot(output))?;
            if touched && statat(&out, name, AtFlags::SYMLINK_NOFOLLOW).is_err() {
                let text = format!("output \"{name}\" was being kept when its pilot died");
                return Err(Fault::new(FaultClass::Retry, text));
            }
            self.reserve(payload, output)?;
            open.push(match output.class {
                StageClass::Value => OpenOutput::Value(file.clone()),
                _ => OpenOutput::File(file.clone()),
            });
        }
        Ok(open)
    }
}

/// What an output takes before anything of it exists; `None` when that is not worth counting.
fn reservation(payload: &Payload, output: &Output) -> Option<Reservation> {
    let (class, medium) = match output.class {
        StageClass::File | StageClass::Folder => (Class::File, Medium::Disk),
        // To the ledger, what is shared is memory that is never committed.
        StageClass::Memory | StageClass::Shared => (Class::Mem, Medium::Memory),
        // The kernel holds at most some pages of it.
        StageClass::Pipe => return None,
        StageClass::Value => (Class::Value, Medium::Memory),
    };
    // What is shared ends with the gang, and nobody else reads it.
    let is_shared = output.class == StageClass::Shared;
    let readers = if is_shared { BTreeSet::new() } else { reading(payload, output) };
    Some(Reservation {
        uri: payload.stage(&output.name),
        class,
        medium,
        max_bytes: output.max_bytes,
        readers,
    })
}

/// What the shim has of an output in memory.
fn found(output: &Output, memory: Option<OwnedFd>) -> Result<MemoryWriter, Fault> {
    let memory = memory.ok_or_else(|| gone_with_its_pilot(output))?;
    MemoryWriter::found(&output.name, memory).map_err(|error| Fault::new(FaultClass::Retry, chain(&error)))
}

fn gone_with_its_pilot(output: &Output) -> Fault {
    let text = format!("output \"{}\" was in the memory of a pilot that is gone", output.name);
    Fault::new(FaultClass::Retry, text)
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
