//! Stages in memory of which a slot's shim keeps a descriptor, for the next life of this pilot; and taking them up again there.
//!
//! A shim is told when a stage goes: until then its memory would stay.
//!
//! **Must not know:** slots, what a shim does else.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use stage::broker::{Broker, Ended, SessionId};
use stage::server::{Content, Made};
use stage::{Lending, Medium, MemoryStage, MemoryWriter, SealedMap, StageName, StageUri};
use wire::slot::{LaunchId, ToShim};

use super::Stages;
use super::folders::open_folder;
use super::opening::OpenOutput;
use crate::fault::chain;
use crate::payload::{Payload, Source, StageClass};
use crate::runtime::slots::Line;

/// A stage in memory as it is noted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::runtime) struct MemoryNote {
    pub(in crate::runtime) stage: StageUri,
    /// It is a value, and the memory holds a copy of it.
    is_value: bool,
    bytes: u64,
    readers: BTreeSet<StageName>,
}

/// Which shims have what.
#[derive(Debug, Default)]
pub(super) struct Retained(Mutex<BTreeMap<StageUri, (LaunchId, Line)>>);

impl Retained {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<StageUri, (LaunchId, Line)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stage is gone: whoever keeps it for later need not.
    pub(super) fn forget(&self, uri: &StageUri) {
        Self::drop_one(&mut self.lock(), uri);
    }

    fn drop_one(kept: &mut BTreeMap<StageUri, (LaunchId, Line)>, uri: &StageUri) {
        if let Some((launch, line)) = kept.remove(uri) {
            line.tell(&ToShim::Forget { launch, outputs: vec![uri.output.as_str().to_owned()] });
        }
    }
}

impl Stages {
    /// What is held in memory of a payload's outputs, each with a descriptor for whoever keeps it.
    pub(in crate::runtime) fn in_memory(&self, payload: &Payload) -> Vec<(MemoryNote, OwnedFd)> {
        let outputs = payload.outputs.iter().filter(|output| is_in_memory(output.class));
        outputs.filter_map(|output| self.memory_of(&payload.stage(&output.name))).collect()
    }

    /// What those of these stages take that are held in memory, in bytes.
    pub(in crate::runtime) fn bytes_in_memory(&self, of: &[StageUri]) -> u64 {
        if of.is_empty() {
            return 0;
        }
        let of = of.to_vec();
        let bytes = move |broker: &mut Broker| {
            let held = of.iter().filter_map(|uri| broker.ledger().object(uri));
            held.filter(|object| object.medium == Medium::Memory).map(|object| object.bytes).sum()
        };
        self.broker.ask(bytes).unwrap_or(0)
    }

    fn memory_of(&self, uri: &StageUri) -> Option<(MemoryNote, OwnedFd)> {
        let asked = uri.clone();
        let known = self.broker.ask(move |broker| {
            let object = broker.ledger().object(&asked)?;
            object.committed.then(|| (object.bytes, object.readers.clone()))
        });
        let (bytes, readers) = known.ok().flatten()?;
        let note = |is_value| MemoryNote { stage: uri.clone(), is_value, bytes, readers };
        match self.broker.reader(uri, None).ok()??.ok()? {
            Content::Memory(fd) => Some((note(false), fd)),
            Content::Value(value) => Some((note(true), in_sealed_memory(&uri.output, &value)?)),
            Content::File(_) => None,
        }
    }

    /// A shim keeps a stage from now on.
    pub(in crate::runtime) fn retained(&self, uri: &StageUri, launch: LaunchId, line: &Line) {
        self.retained.lock().insert(uri.clone(), (launch, line.clone()));
        // Its last reader may have let go of it meanwhile, or it went to a file, and then nobody would.
        self.retain_what_is_in_memory(uri);
    }

    /// Lets a shim forget a stage that is not in memory, or not any more. While nothing else changes what shims keep: one of
    /// that name may be made again.
    pub(super) fn retain_what_is_in_memory(&self, uri: &StageUri) {
        let mut kept = self.retained.lock();
        if kept.contains_key(uri) && !self.is_in_memory(uri) {
            Retained::drop_one(&mut kept, uri);
        }
    }

    /// Notes that a payload that was found running has its inputs, which an earlier life of this pilot gave it.
    pub(in crate::runtime) fn hold_again(&self, payload: &Payload, session: SessionId) {
        let stages = payload.inputs.iter().filter_map(|input| match &input.source {
            Source::Stage(uri) => Some(uri.clone()),
            Source::Host(_) | Source::Object(_) => None,
        });
        let stages: Vec<StageUri> = stages.collect();
        let _ = self
            .broker
            .ask(move |broker| stages.iter().filter(|uri| broker.hold(uri, session).is_some()).count());
    }

    /// Whether a shim keeps a stage of this launch.
    pub(in crate::runtime) fn is_retained(&self, uri: &StageUri, of: LaunchId) -> bool {
        self.retained.lock().get(uri).is_some_and(|(launch, _)| *launch == of)
    }

    /// Takes a stage up again that a shim has kept; whether it is held now.
    pub(in crate::runtime) fn put_back(&self, note: &MemoryNote, fd: OwnedFd) -> bool {
        let MemoryNote { stage, is_value, bytes, readers } = note;
        // Killed between two steps, a pilot may have noted a file of it, too.
        if readers.is_empty() || self.file(stage).is_some() {
            return false;
        }
        let found = MemoryStage::found(&stage.output, fd, *bytes).and_then(|memory| {
            if *is_value {
                return Ok(Made::Value(SealedMap::open(&memory)?.to_vec()));
            }
            Ok(Made::Memory(memory))
        });
        let put = match found {
            Ok(made) => self.broker.insert(stage, made, readers),
            Err(error) => {
                tracing::warn!(%stage, error = chain(&error), "what a shim kept is not that stage");
                return false;
            }
        };
        match put {
            Ok(Ok(held)) => held,
            Ok(Err(error)) => {
                tracing::warn!(%stage, error = chain(&error), "a stage that a shim kept can't be held");
                false
            }
            Err(_stopped) => false,
        }
    }
}

/// Whether an output that clients may make was made in no way, neither by path nor as `made` says.
pub(in crate::runtime) fn is_unmade(
    payload: &Payload,
    outputs: &[OpenOutput],
    made: &Ended,
    out: &Path,
) -> bool {
    let Ok(folder) = open_folder(out) else { return false };
    let by_client = |uri: StageUri| made.committed.iter().any(|(committed, ..)| *committed == uri);
    payload.outputs.iter().zip(outputs).any(|(output, open)| {
        let untouched = match open {
            OpenOutput::Memory(writer) => writer.is_untouched(),
            OpenOutput::Value(file) => file.is_untouched(folder.as_fd()),
            OpenOutput::File(_) | OpenOutput::Folder | OpenOutput::Shared(_) | OpenOutput::Passing => false,
        };
        untouched && !by_client(payload.stage(&output.name))
    })
}

pub(in crate::runtime) fn is_in_memory(class: StageClass) -> bool {
    matches!(class, StageClass::Memory | StageClass::Value)
}

/// A copy of a value that can be passed on by descriptor.
pub(super) fn in_sealed_memory(name: &StageName, value: &[u8]) -> Option<OwnedFd> {
    let writer = MemoryWriter::create(name, Lending::ByFd).ok()?;
    let mut written = 0;
    while written < value.len() {
        written += rustix::io::pwrite(writer.lend(), value.get(written..)?, written as u64).ok()?;
    }
    // An empty one, too, counts as written from here on.
    rustix::fs::ftruncate(writer.lend(), value.len() as u64).ok()?;
    writer.commit(value.len() as u64).ok()?.reader().ok()
}
