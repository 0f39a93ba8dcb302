//! What a runtime can do beyond its port for a pilot that serves, may die, and is followed by another life of itself.
//!
//! **Must not know:** any runtime, queues.

use std::collections::BTreeSet;
use std::path::PathBuf;

use pilot_core::{ClaimId, Epoch, Fault, FaultClass, SlotId};
use stage::{StageName, StageUri};

use crate::api::Control;
use crate::payload::Payload;
use crate::ports::Runtime;

/// A payload that was found running.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where.
    pub slot: SlotId,
    /// The epoch in which it was launched.
    pub epoch: Epoch,
    /// The claim under which it was launched.
    pub claim: ClaimId,
    /// What its slot must have in common with the next one's.
    pub key: String,
    /// How long ago it was launched, in milliseconds.
    pub ran_ms: u64,
    /// What runs.
    pub payload: Payload,
}

/// What a look around came to.
#[derive(Debug, Default)]
pub struct Inventory {
    /// In slots of this pilot.
    pub found: Vec<Found>,
    /// Claims that were launched and whose payloads are gone. Those that their queue knows to be over are among them.
    pub lost: Vec<ClaimId>,
    /// What could not be taken down.
    pub dirty: Vec<(SlotId, Fault)>,
}

impl Inventory {
    /// Adds the claims that were launched lately and are not among what was found.
    pub(super) fn settle(&mut self, launched: Vec<ClaimId>) {
        let running = |claim: &ClaimId| self.found.iter().any(|found| found.claim == *claim);
        let ended: Vec<ClaimId> = launched.into_iter().filter(|claim| !running(claim)).collect();
        self.lost.extend(ended);
    }
}

/// A runtime that a later life of its pilot can take up again.
pub trait Standing: Runtime + Control {
    /// Looks at every slot that an earlier life of this pilot left. To be called once, before anything is bound.
    fn recover(&self) -> impl Future<Output = Inventory> + Send;
    /// Ends a payload that was found and that nobody wants any more.
    fn disown(&self, slot: SlotId) -> impl Future<Output = Result<(), Fault>> + Send;
    /// Whether no earlier life of this pilot left records.
    fn is_new(&self) -> bool;
    /// Joins the exchange on a volume, for the stages of one spool; gives the name that all pilots have in common whose stages can
    /// be had here.
    fn join(&self, volume: PathBuf, spool: String) -> impl Future<Output = Result<String, Fault>> + Send;
    /// Workflows of which something is on the exchange.
    fn shared_workflows(&self) -> impl Future<Output = BTreeSet<StageName>> + Send;
    /// Takes an ended workflow's stages from the exchange, whoever offered them.
    fn withdraw_workflow(&self, workflow: StageName) -> impl Future<Output = ()> + Send;
    /// Looks after the exchange; whether a stage that somebody reads may be lost.
    fn tend_sharing(&self) -> impl Future<Output = bool> + Send;
    /// Whether a stage is held here, or another pilot may have it.
    fn holds(&self, stage: &StageUri) -> bool;
    /// Workflows that have stages here.
    fn workflows(&self) -> BTreeSet<StageName>;
    /// Frees what nobody in `unfinished` will read of a workflow's stages.
    fn keep_stages(&self, workflow: &StageName, unfinished: &BTreeSet<StageName>);
    /// Outputs that payloads had begun and that were dropped, because these did not end well.
    fn dropped_outputs(&self) -> u64;
    /// Where the socket for `pilot exec` and `pilot top` goes.
    fn api_socket(&self) -> PathBuf;
    /// Which limits can't be enforced here, in one line; `None` when all hold.
    fn unenforced(&self) -> Option<String>;
}

/// Does what may block where it may.
pub(super) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fault> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Fault::new(FaultClass::Pilot, error.to_string()))
}
