//! What a pilot looks like from outside: its slots, and figures since it began.
//!
//! A [`Board`] is fed with the driver's [`Progress`] and kept in memory only. It reads no clock: times are arguments,
//! counted from when the pilot began. [`LiveBoard`] adds clock and lock for those who watch a pilot at work; nothing here
//! ever wakes up by itself.
//!
//! **Must not know:** who watches, how it is shown, what is decided.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pilot_core::{Conclusion, Epoch, EventName, FaultClass, Outcome, PhaseName, SlotId, StopCause};
use tokio::time::Instant;

use crate::payload::Payload;
use crate::progress::Progress;

/// Most images that are told one by one; the totals count all.
const IMAGES_MAX: usize = 512;

/// What a pilot is, which never changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// How many slots it has.
    pub slots: u32,
    /// Thousandths of a processor that it hands out.
    pub cpu_millis: u64,
    /// Bytes of memory that it hands out.
    pub memory_bytes: u64,
}

/// A slot as last heard of.
#[derive(Clone, Debug)]
pub struct Seat {
    /// How often it was claimed.
    pub epoch: Epoch,
    /// What it does.
    pub phase: PhaseName,
    /// Since when.
    pub since: Duration,
    /// Its payload and that payload's try, until it is clean.
    pub payload: Option<(Arc<Payload>, u32)>,
}

/// An image that was prepared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageUse {
    /// Bytes that were brought in for it.
    pub brought_bytes: u64,
    /// Launches from it.
    pub launches: u64,
}

/// How a claim ended, in words without data: conclusion, and cause or blame where there is one.
pub type EndingName = (&'static str, &'static str);

/// Counts since the pilot began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Claims that queues granted.
    pub claims: u64,
    /// Ended claims by how they ended.
    pub ended: BTreeMap<EndingName, u64>,
    /// Ended claims whose payload is offered again.
    pub retries: u64,
    /// Payloads that will not run because another failed.
    pub skipped: u64,
    /// Claims that went to a new container.
    pub cold_starts: u64,
    /// Claims that went to a container that an earlier payload left.
    pub warm_starts: u64,
    /// Payloads that were found running.
    pub adopted: u64,
    /// Images that were prepared.
    pub images: u64,
    /// Bytes that were brought in for them.
    pub image_bytes: u64,
}

/// What stages take up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StagesHeld {
    /// How many.
    pub stages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Outputs that payloads had begun and that were dropped, since the pilot began.
    pub dropped: u64,
    /// Stages that left memory for a file, or the volume for an object store, since the pilot began.
    pub spilled: u64,
    /// Their bytes.
    pub spilled_bytes: u64,
}

/// Durations, counted in ranges.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Upper bounds in seconds, ascending; the last range has none.
    bounds: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
}

/// A bind takes milliseconds; its deadline is a minute.
const SHORT: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// A payload runs for milliseconds or for days.
const LONG: &[f64] =
    &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0];

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    fn add(&mut self, taken: Duration) {
        let seconds = taken.as_secs_f64();
        let range = self.bounds.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get_mut(range) {
            *count += 1;
        }
        self.sum += seconds;
    }

    /// Upper bound in seconds and count of each range; the last bound is infinite.
    pub fn ranges(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.bounds.iter().copied().chain([f64::INFINITY]).zip(self.counts.iter().copied())
    }

    /// All durations together, in seconds.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// How long slots stayed in their phases.
#[derive(Clone, Debug)]
pub struct Durations {
    /// From the order to bind until the shim had proved itself.
    pub bind: Histogram,
    /// From launch to the end of the payload.
    pub run: Histogram,
    /// Outputs and logs.
    pub drain: Histogram,
    /// Until the slot was free.
    pub clean: Histogram,
}

/// A pilot as seen from outside.
#[derive(Clone, Debug)]
pub struct Board {
    identity: Identity,
    seats: Vec<Seat>,
    images: BTreeMap<String, ImageUse>,
    totals: Totals,
    durations: Durations,
    stages: StagesHeld,
    /// What an earlier life of the pilot left is not known yet.
    looks_back: bool,
    stopping: bool,
}

/// A payload that was found running.
#[derive(Clone, Debug)]
pub struct Going {
    /// Where.
    pub slot: SlotId,
    /// Since which epoch of the slot.
    pub epoch: Epoch,
    /// What.
    pub payload: Arc<Payload>,
    /// Which try of it.
    pub attempt: u32,
}

impl Board {
    /// A pilot that has done nothing yet.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let idle = Seat { epoch: Epoch(0), phase: PhaseName::Idle, since: Duration::ZERO, payload: None };
        Self {
            seats: vec![idle; identity.slots as usize],
            identity,
            images: BTreeMap::new(),
            totals: Totals::default(),
            durations: Durations {
                bind: Histogram::new(SHORT),
                run: Histogram::new(LONG),
                drain: Histogram::new(SHORT),
                clean: Histogram::new(SHORT),
            },
            stages: StagesHeld::default(),
            looks_back: false,
            stopping: false,
        }
    }

    /// It looks for what an earlier life of it left: nothing can be said of its slots.
    pub fn look_back(&mut self) {
        self.looks_back = true;
    }

    /// That is known now.
    pub fn on_found(&mut self, at: Duration, going: impl IntoIterator<Item = Going>) {
        self.looks_back = false;
        for Going { slot, epoch, payload, attempt } in going {
            if let Some(seat) = self.seats.get_mut(slot.0 as usize) {
                *seat =
                    Seat { epoch, phase: PhaseName::Running, since: at, payload: Some((payload, attempt)) };
            }
        }
    }

    /// Whether it still looks for what an earlier life of it left.
    #[must_use]
    pub fn looks_back(&self) -> bool {
        self.looks_back
    }

    /// Something happened.
    pub fn take(&mut self, at: Duration, progress: &Progress) {
        let totals = &mut self.totals;
        match progress {
            Progress::Claimed { claims } => totals.claims += u64::from(*claims),
            Progress::Moved { slot, epoch, claim: _, from, to, event, payload } => {
                self.on_moved(at, (*slot, *epoch), (*from, *to), *event, payload.as_ref());
            }
            Progress::Prepared { image, bytes } => {
                totals.images += 1;
                totals.image_bytes += bytes;
                if self.images.len() < IMAGES_MAX || self.images.contains_key(image) {
                    self.images.entry(image.clone()).or_default().brought_bytes += bytes;
                }
            }
            Progress::Started { payload, .. } => {
                if let Some(image) = self.images.get_mut(&payload.image) {
                    image.launches += 1;
                }
            }
            Progress::Ended { outcome, retry, .. } => {
                *totals.ended.entry(ending(outcome)).or_default() += 1;
                totals.retries += u64::from(*retry);
            }
            Progress::Skipped { .. } => totals.skipped += 1,
            Progress::Stopping => self.stopping = true,
            Progress::Tick => {}
        }
    }

    fn on_moved(
        &mut self,
        at: Duration,
        (slot, epoch): (SlotId, Epoch),
        (from, to): (PhaseName, PhaseName),
        event: EventName,
        payload: Option<&(Arc<Payload>, u32)>,
    ) {
        match (from, to, event) {
            (_, _, EventName::Adopted) => self.totals.adopted += 1,
            (PhaseName::Idle, PhaseName::Bound, _) => self.totals.warm_starts += 1,
            (PhaseName::Idle, PhaseName::Binding, _) => self.totals.cold_starts += 1,
            _ => {}
        }
        let Some(seat) = self.seats.get_mut(slot.0 as usize) else { return };
        let taken = at.saturating_sub(seat.since);
        match (from, to) {
            (PhaseName::Binding, PhaseName::Bound) => self.durations.bind.add(taken),
            (PhaseName::Running, _) => self.durations.run.add(taken),
            (PhaseName::Draining, _) => self.durations.drain.add(taken),
            (PhaseName::Cleaning, PhaseName::Idle) => self.durations.clean.add(taken),
            _ => {}
        }
        seat.epoch = epoch;
        seat.phase = to;
        seat.since = at;
        match (to, payload) {
            (PhaseName::Idle | PhaseName::Retired, _) => seat.payload = None,
            (_, Some(payload)) => seat.payload = Some(payload.clone()),
            // The claim is over and the slot still busy with what it left.
            (_, None) => {}
        }
    }

    /// What stages take up just now; told by whoever knows the runtime.
    pub fn set_stages(&mut self, held: StagesHeld) {
        self.stages = held;
    }

    /// What it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its slots, by number.
    #[must_use]
    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// Images that were prepared, by reference; the first of them when there are very many.
    #[must_use]
    pub fn images(&self) -> &BTreeMap<String, ImageUse> {
        &self.images
    }

    /// Counts.
    #[must_use]
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Times.
    #[must_use]
    pub fn durations(&self) -> &Durations {
        &self.durations
    }

    /// What stages take up.
    #[must_use]
    pub fn stages(&self) -> StagesHeld {
        self.stages
    }

    /// Whether it takes work: it has looked back, nobody told it to end, and a slot is left.
    #[must_use]
    pub fn ready(&self) -> bool {
        !self.looks_back && !self.stopping && self.seats.iter().any(|seat| seat.phase != PhaseName::Retired)
    }

    /// Slots in a phase.
    #[must_use]
    pub fn slots_in(&self, phase: PhaseName) -> u64 {
        self.seats.iter().filter(|seat| seat.phase == phase).count() as u64
    }

    /// The slot in which a payload runs.
    #[must_use]
    pub fn slot_running(&self, workflow: &str, name: &str) -> Option<SlotId> {
        let is_it = |seat: &Seat| {
            seat.phase == PhaseName::Running
                && seat.payload.as_ref().is_some_and(|(payload, _)| {
                    payload.workflow.as_str() == workflow && payload.name.as_str() == name
                })
        };
        self.seats.iter().position(is_it).and_then(|slot| u32::try_from(slot).ok()).map(SlotId)
    }
}

/// Few words, so that figures can be kept for each.
fn ending(outcome: &Outcome) -> EndingName {
    match &outcome.conclusion {
        Conclusion::Succeeded => ("succeeded", ""),
        Conclusion::Exited(_) => ("exited", ""),
        Conclusion::Stopped(cause) => ("stopped", cause_name(*cause)),
        Conclusion::Failed(fault) => ("failed", blame(fault.class)),
        Conclusion::Lost => ("lost", ""),
        Conclusion::GangFailed(_) => ("gang-failed", ""),
    }
}

const fn cause_name(cause: StopCause) -> &'static str {
    match cause {
        StopCause::Evicted => "evicted",
        StopCause::Cancelled => "cancelled",
        StopCause::Expired => "expired",
        StopCause::Preempted => "preempted",
        StopCause::Walltime => "walltime",
        StopCause::MemoryExceeded => "memory",
        StopCause::DiskExceeded => "disk",
        StopCause::OutputExceeded => "output",
        StopCause::PilotStopping => "pilot-stopping",
        StopCause::GangEnded => "gang-ended",
    }
}

const fn blame(class: FaultClass) -> &'static str {
    match class {
        FaultClass::Retry => "retry",
        FaultClass::Payload => "payload",
        FaultClass::Slot => "slot",
        FaultClass::Pilot => "pilot",
    }
}

/// Asked whenever the board is read.
type Look = Arc<dyn Fn() -> StagesHeld + Send + Sync>;

/// A board with a clock, shared by the driver that feeds it and those who read it.
#[derive(Clone)]
pub struct LiveBoard {
    board: Arc<Mutex<Board>>,
    began: Instant,
    stages: Option<Look>,
}

impl std::fmt::Debug for LiveBoard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveBoard").field("board", &self.board).finish_non_exhaustive()
    }
}

impl LiveBoard {
    /// A pilot that begins now.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self { board: Arc::new(Mutex::new(Board::new(identity))), began: Instant::now(), stages: None }
    }

    /// One that first looks for what an earlier life of it left, until [`LiveBoard::found`].
    #[must_use]
    pub fn looking_back(self) -> Self {
        self.board.lock().unwrap_or_else(PoisonError::into_inner).look_back();
        self
    }

    /// What an earlier life of the pilot left is known.
    pub fn found(&self, going: impl IntoIterator<Item = Going>) {
        let at = self.began.elapsed();
        self.board.lock().unwrap_or_else(PoisonError::into_inner).on_found(at, going);
    }

    /// Lets it ask what stages take up each time that it is read, and at no other time.
    #[must_use]
    pub fn with_stages(mut self, look: impl Fn() -> StagesHeld + Send + Sync + 'static) -> Self {
        self.stages = Some(Arc::new(look));
        self
    }

    /// Something happened just now.
    pub fn take(&self, progress: &Progress) {
        let at = self.began.elapsed();
        self.board.lock().unwrap_or_else(PoisonError::into_inner).take(at, progress);
    }

    /// Reads it, with the time since the pilot began. The driver waits meanwhile: copy what is needed and go.
    pub fn read<T>(&self, look: impl FnOnce(Duration, &Board) -> T) -> T {
        let held = self.stages.as_ref().map(|stages| stages());
        let at = self.began.elapsed();
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = held {
            board.set_stages(held);
        }
        look(at, &board)
    }
}

#[cfg(test)]
#[path = "board_tests.rs"]
pub(crate) mod tests;
