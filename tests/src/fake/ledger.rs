//! The fake runtime's books: what is alive in which slot, and what was done that the port forbids.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pilot::payload::{Payload, Source};
use pilot_core::{Demand, Epoch, Fault, FaultClass, Signal, SlotId};
use stage::{StageName, StageUri};
use tokio::sync::watch;

use super::script::Play;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) scripts: BTreeMap<String, VecDeque<Play>>,
    /// Preflights that fail, or without a fault never answer.
    pub(super) unprepared: BTreeMap<String, Option<Fault>>,
    pub(super) calls: Vec<(u64, String)>,
    pub(super) slots: BTreeMap<SlotId, Live>,
    pub(super) stages: BTreeMap<StageUri, Stage>,
    pub(super) violations: Vec<String>,
    pub(super) peak: Demand,
    busy: BTreeMap<SlotId, &'static str>,
    epochs: BTreeMap<SlotId, Epoch>,
    settled: BTreeSet<StageName>,
}

/// What is alive in a slot between bind and clean.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) payload: StageName,
    pub(super) at: At,
    pub(super) play: Play,
    pub(super) inputs: BTreeMap<String, Vec<u8>>,
    /// Open outputs; empty again once they are drained.
    pub(super) outputs: BTreeMap<String, Vec<u8>>,
    pub(super) files: BTreeSet<String>,
    pub(super) demand: Demand,
    pub(super) signals: watch::Sender<Option<Signal>>,
}

/// How far a slot's payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Binding,
    Bound,
    Running,
    Ended { well: bool },
    Drained,
}

/// A committed output and who has still to read it.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) bytes: Vec<u8>,
    pub(super) readers: BTreeSet<StageName>,
}

impl Ledger {
    pub(super) fn accuse(&mut self, what: String) {
        self.violations.push(what);
    }

    /// Notes that a call is under way; two at once break the port's contract.
    pub(super) fn enter(&mut self, slot: SlotId, call: &'static str) {
        if let Some(other) = self.busy.insert(slot, call) {
            self.accuse(format!("{call} came to {slot} during {other}"));
        }
    }

    pub(super) fn leave(&mut self, slot: SlotId) {
        self.busy.remove(&slot);
    }

    /// Takes a clean slot for a payload.
    pub(super) fn begin(&mut self, slot: SlotId, epoch: Epoch, payload: &Payload) -> Result<Play, Fault> {
        if let Some(live) = self.slots.get(&slot) {
            let text = format!("bind of {} in {slot}, which still has {}", payload.name, live.payload);
            self.accuse(text.clone());
            return Err(Fault::new(FaultClass::Slot, text));
        }
        if self.epochs.insert(slot, epoch).is_some_and(|last| last >= epoch) {
            self.accuse(format!("bind in {slot} with epoch {epoch} a second time"));
        }
        let script = self.scripts.get_mut(payload.name.as_str());
        let play = script.and_then(VecDeque::pop_front).unwrap_or_default();
        let resources = payload.resources;
        let live = Live {
            payload: payload.name.clone(),
            at: At::Binding,
            play: play.clone(),
            inputs: BTreeMap::new(),
            outputs: payload.outputs.iter().map(|out| (out.name.to_string(), Vec::new())).collect(),
            files: BTreeSet::new(),
            demand: Demand { cpu_millis: resources.cpu_millis, memory_bytes: resources.memory_bytes },
            signals: watch::Sender::new(None),
        };
        self.slots.insert(slot, live);
        Ok(play)
    }

    /// Opens a payload's inputs; after this nothing of it runs yet, but all is there.
    pub(super) fn bound(&mut self, slot: SlotId, payload: &Payload) -> Result<(), Fault> {
        let mut inputs = BTreeMap::new();
        for input in &payload.inputs {
            let bytes = match &input.source {
                Source::Host(_) | Source::Object(_) => Vec::new(),
                Source::Stage(uri) => match self.stages.get(uri) {
                    Some(stage) => stage.bytes.clone(),
                    None => return Err(Fault::new(FaultClass::Retry, format!("{uri} is not there"))),
                },
            };
            inputs.insert(input.name.to_string(), bytes);
        }
        if let Some(live) = self.slots.get_mut(&slot) {
            (live.inputs, live.at) = (inputs, At::Bound);
        }
        Ok(())
    }

    /// Notes a launch; `None` when the slot is not ready for it.
    pub(super) fn launch(&mut self, slot: SlotId, payload: &Payload) -> Option<Play> {
        let at = self.slots.get(&slot).map(|live| (live.at, live.payload.clone()));
        if at != Some((At::Bound, payload.name.clone())) {
            self.accuse(format!("launch of {} in {slot}, where {at:?} is", payload.name));
            return None;
        }
        let live = self.slots.get_mut(&slot)?;
        live.at = At::Running;
        let play = live.play.clone();
        let used = self.running().fold(Demand::default(), Demand::plus);
        self.peak.cpu_millis = self.peak.cpu_millis.max(used.cpu_millis);
        self.peak.memory_bytes = self.peak.memory_bytes.max(used.memory_bytes);
        Some(play)
    }

    fn running(&self) -> impl Iterator<Item = Demand> {
        self.slots.values().filter(|live| live.at == At::Running).map(|live| live.demand)
    }

    pub(super) fn ended(&mut self, slot: SlotId, well: bool) {
        if let Some(live) = self.slots.get_mut(&slot)
            && live.at == At::Running
        {
            live.at = At::Ended { well };
        }
    }

    /// Ends what runs and closes the outputs; gives the bytes that became stages.
    pub(super) fn drain(&mut self, slot: SlotId, payload: &Payload, commit: bool) -> u64 {
        let Some(live) = self.slots.get_mut(&slot) else { return 0 };
        let (at, mut outputs) = (live.at, std::mem::take(&mut live.outputs));
        live.at = At::Drained;
        if live.payload != payload.name {
            let text = format!("drain of {} in {slot}, which has {}", payload.name, live.payload);
            self.accuse(text);
        }
        if !commit {
            return 0;
        }
        if at != (At::Ended { well: true }) {
            self.accuse(format!("commit of {}, which is {at:?}", payload.name));
        }
        let mut total = 0;
        for output in &payload.outputs {
            let bytes = outputs.remove(output.name.as_str()).unwrap_or_default();
            total += bytes.len() as u64;
            let uri = StageUri {
                workflow: payload.workflow.clone(),
                payload: payload.name.clone(),
                output: output.name.clone(),
            };
            self.stages.insert(uri, Stage { bytes, readers: output.readers.clone() });
        }
        total
    }

    pub(super) fn clean(&mut self, slot: SlotId) -> Result<(), Fault> {
        let Some(live) = self.slots.get_mut(&slot) else { return Ok(()) };
        if live.at != At::Drained {
            let text = format!("clean of {slot}, whose {} is {:?}", live.payload, live.at);
            self.violations.push(text);
        }
        if live.play.clean_failures > 0 {
            live.play.clean_failures -= 1;
            return Err(Fault::new(FaultClass::Slot, format!("{slot} can't be cleaned")));
        }
        self.slots.remove(&slot);
        Ok(())
    }

    pub(super) fn settle(&mut self, payload: &Payload) {
        if !self.settled.insert(payload.name.clone()) {
            self.accuse(format!("{} was settled twice", payload.name));
        }
        for input in &payload.inputs {
            let Source::Stage(uri) = &input.source else { continue };
            if let Some(stage) = self.stages.get_mut(uri) {
                stage.readers.remove(&payload.name);
                if stage.readers.is_empty() {
                    self.stages.remove(uri);
                }
            }
        }
    }
}
