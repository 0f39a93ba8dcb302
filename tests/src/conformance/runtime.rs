//! The promises of [`Runtime`] about slots and what runs in them. A [`Stand`] is one runtime with two slots and an image in which every [`Deed`] can be done.

use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use pilot::payload::{Payload, StageClass};
use pilot::ports::{Ended, Grant, LaunchFault, Runtime};
use pilot_core::{ClaimId, Drained, Epoch, ExitStatus, Fault, Signal, SlotId};

use super::stages::producer_and_consumer;
use crate::fake::{Deed, payload};

pub(super) const HERE: SlotId = SlotId(0);
pub(super) const THERE: SlotId = SlotId(1);
/// A call that is not done after so many polls is not getting anywhere.
const POLLS_MAX: u32 = 200;
/// Longer than any test: TERM that never becomes KILL by itself.
const LONG_GRACE_MS: u64 = 600_000;

/// Waits until a payload of [`Deed::in_busybox`] has said in its log that it runs.
///
/// # Panics
/// When it does not.
pub async fn until_ready(logs: &Path, payload: &Payload) {
    let log = logs.join(format!("{}.stdout", payload.name));
    let said = async {
        while !std::fs::read_to_string(&log).unwrap_or_default().contains("ready") {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), said).await.expect("the payload says that it runs");
    std::fs::write(log, "").expect("forget it for the next launch of this name");
}

/// A runtime under test.
pub trait Stand {
    /// Its kind.
    type Runtime: Runtime;
    /// The runtime.
    fn runtime(&self) -> &Self::Runtime;
    /// An image of it.
    fn image(&self) -> String;
    /// A command in that image. [`Deed::Hang`] and [`Deed::IgnoreTerm`] show that they run.
    fn command(&self, deed: &Deed) -> Vec<String>;
    /// A payload as this runtime can have it.
    fn fitted(&self, payload: Payload) -> Payload {
        payload
    }
    /// Where payloads' logs go.
    fn logs(&self) -> PathBuf {
        PathBuf::new()
    }
    /// Resolves when the launched payload runs and would get a signal.
    fn until_running(&self, payload: &Payload) -> impl Future<Output = ()>;
    /// Processes, files and mounts of slots, each named; nothing when every slot is clean.
    fn leftovers(&self) -> Vec<String>;
}

/// A stand with the epochs that it has used.
#[derive(Debug)]
pub struct Trial<S> {
    pub(super) stand: S,
    epoch: AtomicU64,
}

impl<S: Stand> Trial<S> {
    /// A trial on a fresh stand.
    #[must_use]
    pub const fn new(stand: S) -> Self {
        Self { stand, epoch: AtomicU64::new(0) }
    }

    /// The stand, once the trial is over.
    #[must_use]
    pub fn into_stand(self) -> S {
        self.stand
    }

    pub(super) fn runtime(&self) -> &S::Runtime {
        self.stand.runtime()
    }

    pub(super) fn payload(&self, name: &str, deed: &Deed) -> Payload {
        self.stand.fitted(Payload {
            image: self.stand.image(),
            command: Some(self.stand.command(deed)),
            logs: self.stand.logs(),
            ..payload(name)
        })
    }

    fn next_epoch(&self) -> Epoch {
        Epoch(self.epoch.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub(super) async fn bind(&self, slot: SlotId, payload: &Payload) -> Result<(), Fault> {
        self.runtime().bind(slot, self.next_epoch(), payload).await
    }

    /// Stores the image.
    pub(super) async fn prepare(&self) {
        let payload = self.payload("prepare", &Deed::Exit(0));
        self.runtime().prepare(&payload).await.expect("prepare");
    }

    /// Binds and launches; the slot is left to be drained.
    pub(super) async fn launch(&self, slot: SlotId, payload: &Payload) -> Ended {
        self.bind(slot, payload).await.expect("bind");
        self.runtime().launch(slot, grant(), payload).await.expect("launch")
    }

    /// Why a payload is not started: at its bind, or at its launch.
    pub(super) async fn refused(&self, slot: SlotId, payload: &Payload) -> Fault {
        if let Err(fault) = self.bind(slot, payload).await {
            return fault;
        }
        match self.runtime().launch(slot, grant(), payload).await {
            Err(LaunchFault::NotStarted(fault)) => fault,
            other => panic!("{} was to be refused: {other:?}", payload.name),
        }
    }

    /// The whole way, as the driver goes it.
    pub(super) async fn run(&self, slot: SlotId, payload: &Payload) -> (ExitStatus, Drained) {
        let ended = self.launch(slot, payload).await;
        let status = ended.exit.status;
        let drained = self.runtime().drain(slot, payload, status.is_success()).await;
        self.clean(slot).await;
        (status, drained)
    }

    pub(super) async fn run_well(&self, slot: SlotId, payload: &Payload) {
        let (status, drained) = self.run(slot, payload).await;
        assert_eq!((status, drained.fault), (ExitStatus::SUCCESS, None), "{}", payload.name);
    }

    async fn clean(&self, slot: SlotId) {
        self.runtime().clean(slot).await.expect("clean");
    }

    /// Launches a payload and gives the launch up while it runs.
    async fn leave_running(&self, slot: SlotId, payload: &Payload) {
        self.bind(slot, payload).await.expect("bind");
        let ended: Option<Result<Ended, LaunchFault>> = tokio::select! {
            ended = self.runtime().launch(slot, grant(), payload) => Some(ended),
            () = self.stand.until_running(payload) => None,
        };
        assert_eq!(ended, None, "it was to run until it is told to end");
    }

    /// Drains without commit and cleans: what is done to a slot in which something went wrong.
    pub(super) async fn undo(&self, slot: SlotId, payload: &Payload) {
        let drained = self.runtime().drain(slot, payload, false).await;
        assert_eq!(drained.fault, None, "a drain that commits nothing has nothing to complain of");
        self.clean(slot).await;
    }

    /// The end of every trial: the slots work, and nothing is left.
    pub(super) async fn assert_as_new(&self) {
        for slot in [HERE, THERE] {
            self.run_well(slot, &self.payload("last", &Deed::Find("trace".into()))).await;
        }
        assert_eq!(self.stand.leftovers(), Vec::<String>::new());
    }
}

/// The right to launch; which one is nothing to these promises.
pub(super) fn grant() -> Grant {
    Grant { epoch: Epoch(1), claim: ClaimId(1), key: String::new() }
}

/// Polls a call at most so often and drops it; its answer, if it came.
async fn polled<F: Future>(call: F, polls: u32) -> Option<F::Output> {
    let mut call = pin!(call);
    let mut left = polls;
    poll_fn(|context| match call.as_mut().poll(context) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending if left <= 1 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

/// An image that is stored is told by its digest, and a second time nothing has to be brought.
pub async fn an_image_is_prepared_once<S: Stand>(trial: &Trial<S>) {
    let payload = trial.payload("a", &Deed::Exit(0));
    let first = trial.runtime().prepare(&payload).await.expect("prepare");
    let again = trial.runtime().prepare(&payload).await.expect("prepare again");
    assert_eq!(first.image, again.image);
    assert_ne!(first.image, payload.image, "a digest, not the reference");
    trial.assert_as_new().await;
}

/// The code with which a payload exits is the code that is told.
pub async fn the_exit_code_is_told<S: Stand>(trial: &Trial<S>) {
    trial.prepare().await;
    for code in [0, 3, 255] {
        let (status, _) = trial.run(HERE, &trial.payload("a", &Deed::Exit(code))).await;
        assert_eq!(status, ExitStatus::Code(code));
    }
    trial.assert_as_new().await;
}

/// A program that isn't there ends as in a shell, and says which.
pub async fn a_missing_program_ends_with_127<S: Stand>(trial: &Trial<S>) {
    trial.prepare().await;
    let payload = trial.payload("a", &Deed::Missing);
    let ended = trial.launch(HERE, &payload).await;
    assert_eq!(ended.exit.status, ExitStatus::Code(127));
    assert!(ended.note.is_some_and(|note| note.contains('a')), "a note says what is missing");
    trial.undo(HERE, &payload).await;
    trial.assert_as_new().await;
}

async fn signalled<S: Stand>(trial: &Trial<S>, deed: &Deed, signals: &[Signal]) -> ExitStatus {
    trial.prepare().await;
    let payload = trial.payload("a", deed);
    trial.bind(HERE, &payload).await.expect("bind");
    let signal = async {
        trial.stand.until_running(&payload).await;
        for signal in signals {
            trial.runtime().signal(HERE, *signal);
        }
    };
    let (ended, ()) = tokio::join!(trial.runtime().launch(HERE, grant(), &payload), signal);
    trial.undo(HERE, &payload).await;
    ended.expect("launch").exit.status
}

/// TERM reaches a payload.
pub async fn term_ends_a_payload_that_obeys<S: Stand>(trial: &Trial<S>) {
    let status = signalled(trial, &Deed::Hang, &[Signal::Term { grace_ms: LONG_GRACE_MS }]).await;
    assert_eq!(status, ExitStatus::Signal { signal: 15, core: false });
    trial.assert_as_new().await;
}

/// KILL ends a payload that TERM didn't.
pub async fn kill_ends_a_payload_that_ignores_term<S: Stand>(trial: &Trial<S>) {
    let signals = [Signal::Term { grace_ms: LONG_GRACE_MS }, Signal::Kill];
    let status = signalled(trial, &Deed::IgnoreTerm, &signals).await;
    assert_eq!(status, ExitStatus::Signal { signal: 9, core: false });
    trial.assert_as_new().await;
}

/// Nobody is there to hear it, and nothing comes of it.
pub async fn calls_about_an_empty_slot_are_harmless<S: Stand>(trial: &Trial<S>) {
    trial.prepare().await;
    let payload = trial.payload("a", &Deed::Exit(0));
    trial.runtime().signal(HERE, Signal::Kill);
    trial.undo(HERE, &payload).await;
    trial.clean(HERE).await;
    trial.assert_as_new().await;
}

/// A payload finds nothing that an earlier one left in its slot.
pub async fn a_cleaned_slot_holds_no_trace<S: Stand>(trial: &Trial<S>) {
    trial.prepare().await;
    let leave = trial.payload("leaves", &Deed::Leave("trace".into()));
    trial.run_well(HERE, &leave).await;
    trial.clean(HERE).await;
    assert_eq!(trial.stand.leftovers(), Vec::<String>::new());
    trial.assert_as_new().await;
}

/// Two payloads at once, each in its slot: neither sees what the other wrote.
pub async fn slots_side_by_side_see_nothing_of_each_other<S: Stand>(trial: &Trial<S>) {
    trial.prepare().await;
    let leave = trial.payload("leaves", &Deed::Leave("trace".into()));
    let find = trial.payload("finds", &Deed::Find("trace".into()));
    let (left, right) = tokio::join!(trial.bind(HERE, &leave), trial.bind(THERE, &find));
    assert_eq!((left, right), (Ok(()), Ok(())));
    let ended = trial.runtime().launch(HERE, grant(), &leave).await.expect("launch");
    assert_eq!(ended.exit.status, ExitStatus::SUCCESS);
    let ended = trial.runtime().launch(THERE, grant(), &find).await.expect("launch");
    assert_eq!(ended.exit.status, ExitStatus::SUCCESS, "the file of the other slot was found");
    trial.undo(HERE, &leave).await;
    trial.undo(THERE, &find).await;
    trial.assert_as_new().await;
}

/// A bind that is given up, wherever it was, leaves a slot that drain and clean bring back.
pub async fn a_bind_dropped_at_any_await_can_be_undone<S: Stand>(trial: &Trial<S>) {
    trial.prepare().await;
    let (producer, _) = producer_and_consumer(trial, StageClass::Memory);
    for polls in 1..=POLLS_MAX {
        let bound = polled(trial.bind(HERE, &producer), polls).await;
        trial.undo(HERE, &producer).await;
        assert_eq!(trial.stand.leftovers(), Vec::<String>::new(), "after {polls} polls");
        if let Some(bound) = bound {
            bound.expect("bind");
            return trial.assert_as_new().await;
        }
    }
    panic!("bind was not done after {POLLS_MAX} polls");
}

/// A launch that is given up, wherever it was, leaves a slot that drain and clean bring back.
pub async fn a_launch_dropped_at_any_await_can_be_undone<S: Stand>(trial: &Trial<S>) {
    trial.prepare().await;
    let payload = trial.payload("leaves", &Deed::Leave("trace".into()));
    for polls in 1..=POLLS_MAX {
        trial.bind(HERE, &payload).await.expect("bind");
        let ended = polled(trial.runtime().launch(HERE, grant(), &payload), polls).await;
        trial.undo(HERE, &payload).await;
        assert_eq!(trial.stand.leftovers(), Vec::<String>::new(), "after {polls} polls");
        if let Some(ended) = ended {
            assert_eq!(ended.expect("launch").exit.status, ExitStatus::SUCCESS);
            return trial.assert_as_new().await;
        }
    }
    panic!("launch was not done after {POLLS_MAX} polls");
}

/// A drain that is given up leaves a slot that a clean brings back, and so does a clean: the payload runs when they begin.
pub async fn a_drain_and_a_clean_dropped_at_any_await_can_be_made_good<S: Stand>(trial: &Trial<S>) {
    trial.prepare().await;
    let payload = trial.payload("a", &Deed::Hang);
    for polls in 1..=POLLS_MAX {
        trial.leave_running(HERE, &payload).await;
        let drained = polled(trial.runtime().drain(HERE, &payload, false), polls).await;
        let cleaned = polled(trial.runtime().clean(HERE), polls).await;
        trial.clean(HERE).await;
        assert_eq!(trial.stand.leftovers(), Vec::<String>::new(), "after {polls} polls");
        if drained.is_some()
            && let Some(cleaned) = cleaned
        {
            cleaned.expect("clean");
            return trial.assert_as_new().await;
        }
    }
    panic!("drain and clean were not done after {POLLS_MAX} polls");
}

/// A drain ends what a given up launch left running, deaf to TERM or not.
pub async fn a_drain_ends_what_still_runs<S: Stand>(trial: &Trial<S>) {
    trial.prepare().await;
    for deed in [Deed::Hang, Deed::IgnoreTerm] {
        let payload = trial.payload("a", &deed);
        trial.leave_running(HERE, &payload).await;
        trial.undo(HERE, &payload).await;
        assert_eq!(trial.stand.leftovers(), Vec::<String>::new());
    }
    trial.assert_as_new().await;
}
