//! The three ports: where work comes from, where it runs, what the surroundings say.
//!
//! Adapters take and give the types of this crate and of `pilot-core` only; every failure is a [`Fault`] whose class says
//! who is to blame. A fourth port needs a reason.
//!
//! **Must not know:** any adapter.

use std::sync::Arc;
use std::time::Duration;

use pilot_core::{
    ClaimId, Demand, Drained, Epoch, Exit, Fault, Gang, ImageKey, Outcome, ReleaseWhy, Signal, SlotId,
    StopCause, TrustGroup,
};

use serde::{Deserialize, Serialize};

use crate::payload::{Payload, Source};

/// A payload with the right to run it.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The right.
    pub claim: ClaimId,
    /// What to run.
    pub payload: Arc<Payload>,
    /// Facts that pilot-core decides on and only the queue knows.
    pub terms: Terms,
    /// How long the right lasts, counted from when it was asked for. A queue that shares with no one gives none.
    pub lease: Option<LeaseSpan>,
}

/// How long a claim lasts, counted from the moment at which the request for it left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseSpan {
    /// When to ask for more, in milliseconds.
    pub renew_after_ms: u64,
    /// When another pilot may have the payload, in milliseconds.
    pub expires_after_ms: u64,
}

/// Answer to a request for more time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// The claim goes on; with a lease for so long.
    Extended(Option<LeaseSpan>),
    /// The claim is over: another pilot may have the payload.
    Lost,
}

/// Longest bind. A healthy one takes milliseconds; a network file system may take its time.
const BIND_WAIT: Duration = Duration::from_secs(60);
/// A payload without a walltime: longer than any machine is up (100 years).
const NO_WALLTIME_MS: u64 = 3_155_760_000_000;

impl Offer {
    /// What pilot-core has to know of it, where a bind may take `bind_wait`.
    #[must_use]
    pub fn facts(&self, bind_wait: Duration) -> pilot_core::Payload {
        let payload = &*self.payload;
        let inputs = payload.inputs.iter().filter_map(|input| match &input.source {
            Source::Stage(uri) => Some(pilot_core::InputKey(uri.to_string().into())),
            Source::Host(_) | Source::Object(_) => None,
        });
        pilot_core::Payload {
            name: payload.name.as_str().into(),
            family: payload.family.as_str().into(),
            demand: Demand { cpu_millis: payload.resources.cpu_millis, memory_bytes: payload.memory_bytes() },
            trust: TrustGroup(self.terms.trust_group.as_str().into()),
            image: ImageKey(payload.image.as_str().into()),
            inputs: inputs.collect(),
            bind_timeout_ms: u64::try_from(bind_wait.as_millis()).unwrap_or(u64::MAX),
            walltime_ms: payload.walltime_ms.unwrap_or(NO_WALLTIME_MS),
            grace_ms: u64::from(payload.grace_ms),
            at_most_once: self.terms.at_most_once,
            reusable: !payload.writable_root,
        }
    }
}

/// The queue's terms for one claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Payloads of different groups never share a warm slot.
    pub trust_group: String,
    /// Never run it a second time.
    pub at_most_once: bool,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// The gang that it belongs to, if it is not for itself. All of a gang is offered at once.
    pub gang: Option<Gang>,
}

/// Answer to a request for work.
#[derive(Clone, Debug)]
pub enum Claimed {
    /// Payloads, at most as many as were asked for, unless the last are a gang that is larger than the pilot.
    Offers(Vec<Offer>),
    /// Nothing at the moment; the queue wakes the pilot when there is.
    Empty,
    /// Nothing ever again.
    Closed,
}

/// What a queue did with a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reported {
    /// The payload is done with, and so are those that will never run because of it.
    Final {
        /// Payloads that will not be offered.
        skipped: Vec<Arc<Payload>>,
    },
    /// The payload will be offered again.
    Retried,
}

/// Where work comes from.
pub trait Queue: Send + Sync + 'static {
    /// Asks for up to `at_most` payloads. Of a gang it gives all or none; one that is larger than `at_most` comes to its turn:
    /// what is behind it waits. One that is larger than the pilot's `slots` it gives all the same, so that the pilot can say that
    /// it never fits.
    fn claim(&self, at_most: u32, slots: u32) -> impl Future<Output = Result<Claimed, Fault>> + Send;
    /// Prolongs a claim's lease. A fault means that the queue could not be asked, not that the claim is over.
    fn renew(&self, claim: ClaimId) -> impl Future<Output = Result<Renewed, Fault>> + Send;
    /// Ends a claim with its outcome. A fault of class Retry means that the queue could not be asked just now; any other,
    /// that the claim is not this pilot's any more.
    fn report(
        &self,
        claim: ClaimId,
        outcome: Outcome,
    ) -> impl Future<Output = Result<Reported, Fault>> + Send;
    /// Ends the claims of a gang with their outcomes, all of them at once: they succeed or come back together. Faults are as for
    /// [`Queue::report`], and then nothing was changed. The answers are in the order of `ends`.
    fn report_together(
        &self,
        ends: Vec<(ClaimId, Outcome)>,
    ) -> impl Future<Output = Result<Vec<Reported>, Fault>> + Send;
    /// Gives a claim back unused. A gang is offered again when the last of it was given back.
    fn release(&self, claim: ClaimId, why: ReleaseWhy) -> impl Future<Output = Result<(), Fault>> + Send;
    /// Resolves when a claim that found nothing may find something.
    fn wait_ready(&self) -> impl Future<Output = ()> + Send;
    /// Resolves with a claim of this pilot whose payload its user does not want any more; each such claim once.
    fn wait_cancelled(&self) -> impl Future<Output = ClaimId> + Send;
}

/// An image that passed its preflight and is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// What must be equal for a payload to follow another in a warm slot: the image's digest, and the container's shape.
    pub image: String,
    /// Bytes that had to be brought in for it.
    pub bytes_brought: u64,
}

/// By what right a payload is launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The slot's epoch.
    pub epoch: Epoch,
    /// The queue's claim.
    pub claim: ClaimId,
    /// What its slot must have in common with the last one's, as [`Prepared::image`] said.
    pub key: String,
}

/// How a launched payload ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its wait status and, when the runtime knows it, the limit that ended it.
    pub exit: Exit,
    /// What else there is to say, in one line: the program that was not found, the processes it left.
    pub note: Option<String>,
}

/// What the stages of a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageFigures {
    /// Outputs that became stages.
    pub made: u64,
    /// Their bytes.
    pub made_bytes: u64,
    /// Inputs that payloads were shown.
    pub read: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Bytes that had to be written a second time for any of it; everything else was passed on as it was.
    pub copied_bytes: u64,
    /// Stages that left memory for a file, or the volume for an object store, because there was no room.
    #[serde(default)]
    pub spilled: u64,
    /// Their bytes.
    #[serde(default)]
    pub spilled_bytes: u64,
}

/// Where payloads run. Calls about one slot come one after the other; a call whose future is dropped has no further
/// effect of its own, and the next call finds the slot as it was left. `signal` may come at any time.
pub trait Runtime: Send + Sync + 'static {
    /// Checks the payload's image, without touching a slot, and makes it ready to bind.
    fn prepare(&self, payload: &Payload) -> impl Future<Output = Result<Prepared, Fault>> + Send;
    /// Puts the image in the slot. Returns when the slot's shim has proved itself.
    fn bind(
        &self,
        slot: SlotId,
        epoch: Epoch,
        payload: &Payload,
    ) -> impl Future<Output = Result<(), Fault>> + Send;
    /// Runs the payload in a bound, or warm, slot. Returns when nothing of it runs any more. In a slot that was found with
    /// this payload running in it, goes on from there.
    fn launch(
        &self,
        slot: SlotId,
        grant: Grant,
        payload: &Payload,
    ) -> impl Future<Output = Result<Ended, LaunchFault>> + Send;
    /// Asks the payload of a running `launch` to end; returns at once.
    fn signal(&self, slot: SlotId, signal: Signal);
    /// Makes sure that nothing of the payload runs, flushes its logs and, with `commit`, makes its outputs stages.
    fn drain(&self, slot: SlotId, payload: &Payload, commit: bool) -> impl Future<Output = Drained> + Send;
    /// Removes every trace of the payload from the slot. `Ok(true)` when its image is still there for the next one.
    fn clean(&self, slot: SlotId) -> impl Future<Output = Result<bool, Fault>> + Send;
    /// The payload will not run again: what only it would have read may go.
    fn settle(&self, payload: &Payload);
    /// What the stages came to so far.
    fn stage_figures(&self) -> StageFigures {
        StageFigures::default()
    }
    /// How long a bind may take before it is given up. A runtime gives up earlier on what it knows to be in vain.
    fn bind_wait(&self) -> Duration {
        BIND_WAIT
    }
    /// Takes down what slots still hold for the next payload. Nothing is bound after this.
    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// Why a launch has no exit status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaunchFault {
    /// The payload could not be started; none of its code ran.
    NotStarted(Fault),
    /// The slot is gone, and the payload with it.
    SlotLost(Fault),
    /// The kernel ended the whole slot for memory; this is what the payload's exit amounts to.
    OutOfMemory(Exit),
}

/// What the surroundings ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopRequest {
    /// End every payload with its grace, then the pilot.
    Grace {
        /// The signal that asked.
        signal: i32,
        /// On whose behalf.
        cause: StopCause,
    },
    /// End everything at once.
    Kill {
        /// The signal that asked.
        signal: i32,
        /// On whose behalf.
        cause: StopCause,
    },
}

/// What the surroundings are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    /// `local` or `kubernetes`.
    pub backend: &'static str,
}

/// The machine or cluster that the pilot is a guest of.
pub trait Cluster: Send + 'static {
    /// What it is.
    fn status(&self) -> impl Future<Output = ClusterStatus> + Send;
    /// Resolves when the pilot is to stop; again when it is to stop harder.
    fn watch_stop(&mut self) -> impl Future<Output = StopRequest> + Send;
}
