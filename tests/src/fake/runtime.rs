//! A runtime without processes: it plays what was scripted and keeps a ledger of what is alive.
//!
//! Calls are noted as short lines such as `bind 0 fit`, `launch 0 fit`, `term 0 1000`, `kill 0`, `drain 0 fit commit`,
//! `clean 0`, `settle fit`, with the millisecond at which they came.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pilot::payload::Payload;
use pilot::ports::{Ended, Grant, LaunchFault, Prepared, Runtime};
use pilot_core::{
    Demand, Drained, Epoch, Exit, ExitStatus, Fault, FaultClass, Signal, SlotId, StopCause, Usage,
};
use tokio::sync::watch;
use tokio::time::Instant;

use super::ledger::Ledger;
use super::script::{BindPlay, Deed, DrainPlay, LaunchPlay, Play};

const SIGTERM: ExitStatus = ExitStatus::Signal { signal: 15, core: false };
const SIGKILL: ExitStatus = ExitStatus::Signal { signal: 9, core: false };

/// See the module.
#[derive(Debug)]
pub struct FakeRuntime {
    ledger: Mutex<Ledger>,
    start: Instant,
}

/// A call about a slot, from its beginning until its future is done or dropped.
struct UnderWay<'a> {
    ledger: &'a Mutex<Ledger>,
    slot: SlotId,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        lock(self.ledger).leave(self.slot);
    }
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    // A play may say that a call panics; the books are whole all the same.
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self { ledger: Mutex::default(), start: Instant::now() }
    }
}

impl FakeRuntime {
    /// Nothing is scripted: every payload does its deed, which is to exit with 0 unless its command says otherwise.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Scripts a payload's tries, one play after the other.
    pub fn script(&self, payload: &str, plays: impl IntoIterator<Item = Play>) {
        let plays: VecDeque<Play> = plays.into_iter().collect();
        self.lock().scripts.insert(payload.to_owned(), plays);
    }

    /// Lets the payload's preflight fail, each time.
    pub fn fail_prepare(&self, payload: &str, fault: Fault) {
        self.lock().unprepared.insert(payload.to_owned(), Some(fault));
    }

    /// Lets the payload's preflight never answer.
    pub fn hang_prepare(&self, payload: &str) {
        self.lock().unprepared.insert(payload.to_owned(), None);
    }

    /// All calls so far but `prepare`, in their order.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.iter().map(|(_, call)| call.clone()).collect()
    }

    /// The calls so far, each with the millisecond since the start before it: `1000 launch 0 fit`.
    #[must_use]
    pub fn timed_calls(&self) -> Vec<String> {
        self.lock().calls.iter().map(|(at, call)| format!("{at} {call}")).collect()
    }

    /// The most that payloads which ran at once asked for together.
    #[must_use]
    pub fn peak(&self) -> Demand {
        self.lock().peak
    }

    /// Stages that are held, as `payload/output`.
    #[must_use]
    pub fn stages(&self) -> Vec<String> {
        self.lock().stages.keys().map(|uri| format!("{}/{}", uri.payload, uri.output)).collect()
    }

    /// Fails unless every slot is empty, every play was played and no call broke the port's contract.
    ///
    /// # Panics
    /// When something is left or went wrong, saying what.
    pub fn assert_quiet(&self) {
        self.assert_quiet_but(&[]);
    }

    /// As [`FakeRuntime::assert_quiet`], with slots that are retired: what is in them stays.
    ///
    /// # Panics
    /// As there.
    pub fn assert_quiet_but(&self, retired: &[u32]) {
        let ledger = self.lock();
        assert_eq!(ledger.violations, Vec::<String>::new(), "after {:#?}", ledger.calls);
        let live: Vec<u32> = ledger.slots.keys().map(|slot| slot.0).collect();
        assert_eq!(live, retired, "slots with something in them, after {:#?}", ledger.calls);
        let left: Vec<&String> =
            ledger.scripts.iter().filter(|(_, plays)| !plays.is_empty()).map(|(name, _)| name).collect();
        assert!(left.is_empty(), "scripted and never played: {left:?}, after {:#?}", ledger.calls);
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    fn note(&self, call: String) {
        let at = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.lock().calls.push((at, call));
    }

    fn enter(&self, slot: SlotId, call: &'static str) -> UnderWay<'_> {
        self.lock().enter(slot, call);
        UnderWay { ledger: &self.ledger, slot }
    }

    fn signals(&self, slot: SlotId) -> Option<watch::Receiver<Option<Signal>>> {
        self.lock().slots.get(&slot).map(|live| live.signals.subscribe())
    }

    async fn until(&self, slot: SlotId, obeys: impl Fn(&Signal) -> bool) -> ExitStatus {
        let Some(mut signals) = self.signals(slot) else { return SIGKILL };
        let obeyed = signals.wait_for(|signal| signal.as_ref().is_some_and(&obeys)).await;
        match obeyed.as_deref() {
            Ok(Some(Signal::Term { .. })) => SIGTERM,
            _ => SIGKILL,
        }
    }

    async fn perform(&self, slot: SlotId, payload: &Payload) -> Ended {
        let words: Vec<String> = payload.command.iter().chain(&payload.args).flatten().cloned().collect();
        let deed = Deed::of(&words);
        let status = match &deed {
            Deed::Hang => self.until(slot, |_| true).await,
            Deed::IgnoreTerm => self.until(slot, |signal| matches!(signal, Signal::Kill)).await,
            other => ExitStatus::Code(self.do_at_once(slot, other)),
        };
        let note = (deed == Deed::Missing).then(|| format!("{}: there is no such program", payload.name));
        Ended { exit: status.into(), note }
    }

    fn do_at_once(&self, slot: SlotId, deed: &Deed) -> u8 {
        let mut ledger = self.lock();
        let Some(live) = ledger.slots.get_mut(&slot) else { return 1 };
        match deed {
            Deed::Exit(code) => *code,
            Deed::Write { output, text } => match live.outputs.get_mut(output) {
                Some(bytes) => {
                    *bytes = text.clone().into_bytes();
                    0
                }
                None => 1,
            },
            Deed::Expect { input, text } => {
                u8::from(live.inputs.get(input).is_none_or(|bytes| bytes != text.as_bytes()))
            }
            Deed::Leave(file) => {
                live.files.insert(file.clone());
                0
            }
            Deed::Find(file) => u8::from(live.files.contains(file)),
            Deed::Missing => 127,
            Deed::Hang | Deed::IgnoreTerm => 1,
        }
    }

    async fn play(&self, slot: SlotId, payload: &Payload, play: LaunchPlay) -> Result<Ended, LaunchFault> {
        let status = match play {
            LaunchPlay::Deed => return Ok(self.perform(slot, payload).await),
            LaunchPlay::Exits { after_ms, status } => {
                tokio::time::sleep(Duration::from_millis(after_ms)).await;
                status
            }
            LaunchPlay::EndsOnTerm => self.until(slot, |_| true).await,
            LaunchPlay::EndsOnKill => self.until(slot, |signal| matches!(signal, Signal::Kill)).await,
            LaunchPlay::NeverEnds => std::future::pending().await,
            LaunchPlay::NotStarted(fault) => return Err(LaunchFault::NotStarted(fault)),
            LaunchPlay::SlotLost(fault) => return Err(LaunchFault::SlotLost(fault)),
            LaunchPlay::OutOfMemory => {
                let cause = Some(StopCause::MemoryExceeded);
                return Err(LaunchFault::OutOfMemory(Exit { status: SIGKILL, cause }));
            }
            LaunchPlay::Panics => panic!("scripted: the launch of {} panics", payload.name),
        };
        Ok(Ended { exit: status.into(), note: None })
    }
}

impl Runtime for FakeRuntime {
    async fn prepare(&self, payload: &Payload) -> Result<Prepared, Fault> {
        let scripted = self.lock().unprepared.get(payload.name.as_str()).cloned();
        match scripted {
            Some(Some(fault)) => Err(fault),
            Some(None) => std::future::pending().await,
            None => Ok(Prepared { image: format!("digest of {}", payload.image), bytes_brought: 0 }),
        }
    }

    async fn bind(&self, slot: SlotId, epoch: Epoch, payload: &Payload) -> Result<(), Fault> {
        self.note(format!("bind {} {}", slot.0, payload.name));
        let _under_way = self.enter(slot, "bind");
        let play = self.lock().begin(slot, epoch, payload)?;
        tokio::task::yield_now().await;
        match play.bind {
            BindPlay::Works => {}
            BindPlay::Fails(fault) => return Err(fault),
            BindPlay::Hangs => std::future::pending().await,
            BindPlay::Panics => panic!("scripted: the bind of {} panics", payload.name),
        }
        let bound = self.lock().bound(slot, payload);
        tokio::task::yield_now().await;
        bound
    }

    async fn launch(&self, slot: SlotId, _grant: Grant, payload: &Payload) -> Result<Ended, LaunchFault> {
        self.note(format!("launch {} {}", slot.0, payload.name));
        let _under_way = self.enter(slot, "launch");
        let launched = self.lock().launch(slot, payload);
        let Some(play) = launched else {
            return Err(LaunchFault::SlotLost(Fault::new(FaultClass::Slot, format!("{slot} is not bound"))));
        };
        tokio::task::yield_now().await;
        let ended = self.play(slot, payload, play.launch).await;
        let well = ended.as_ref().is_ok_and(|ended| ended.exit.status.is_success());
        self.lock().ended(slot, well);
        ended
    }

    fn signal(&self, slot: SlotId, signal: Signal) {
        match signal {
            Signal::Term { grace_ms } => self.note(format!("term {} {grace_ms}", slot.0)),
            Signal::Kill => self.note(format!("kill {}", slot.0)),
        }
        if let Some(live) = self.lock().slots.get(&slot) {
            live.signals.send_replace(Some(signal));
        }
    }

    async fn drain(&self, slot: SlotId, payload: &Payload, commit: bool) -> Drained {
        let how = if commit { "commit" } else { "drop" };
        self.note(format!("drain {} {} {how}", slot.0, payload.name));
        let _under_way = self.enter(slot, "drain");
        let play = self.lock().slots.get(&slot).map(|live| live.play.drain.clone());
        let (commit, fault) = match play.unwrap_or_default() {
            DrainPlay::Works => (commit, None),
            DrainPlay::Faults(fault) => (false, Some(fault)),
            DrainPlay::Hangs => {
                // Ending the payload comes first in every adapter; what hangs is the commit.
                self.lock().drain(slot, payload, false);
                std::future::pending().await
            }
        };
        let output_bytes = self.lock().drain(slot, payload, commit);
        tokio::task::yield_now().await;
        Drained { usage: Usage { output_bytes, ..Usage::default() }, fault }
    }

    async fn clean(&self, slot: SlotId) -> Result<bool, Fault> {
        self.note(format!("clean {}", slot.0));
        let _under_way = self.enter(slot, "clean");
        tokio::task::yield_now().await;
        self.lock().clean(slot).map(|()| false)
    }

    async fn close(&self) {}

    fn settle(&self, payload: &Payload) {
        self.note(format!("settle {}", payload.name));
        self.lock().settle(payload);
    }
}
