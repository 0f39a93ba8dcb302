//! What a runtime can do beyond its port for a pilot that serves, may die, and is followed by another life of itself.
//!
//! **Must not know:** any runtime, queues.

use std::collections::BTreeSet;
use std::path::PathBuf;

use pilot_core::{ClaimId, Epoch, Fault, SlotId};
use stage::{StageName, StageUri};

use super::exchange::StageExchange;
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
    /// What it shares of its stages with other pilots.
    fn exchange(&self) -> StageExchange;
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
