//! The queue adapter of `pilot run`: the payloads of one workflow file, in one process.
//!
//! ```text
//!   Waiting --all producers done--> Ready --claim--> Claimed --report: success--> Succeeded
//!      |                              ^                 |  \--report: final----> Failed --> consumers: Skipped
//!      |                              |                 |
//!      |                              +--- release -----+
//!      |                              +--- retry after a delay (report: failed, tries left)
//!      +--a producer failed--> Skipped
//! ```
//! Leases never expire here: queue and pilot are one process and die together.
//!
//! **Must not know:** slots, containers, the workflow file's syntax.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pilot_core::{Attempts, ClaimId, Decision, Fault, FaultClass, Jitter, Outcome, ReleaseWhy, retry};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant};

use crate::payload::Payload;
use crate::ports::{Claimed, Offer, Queue, Reported, Terms};

/// One payload of the workflow with its place in it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What to run.
    pub payload: Arc<Payload>,
    /// Its trust group.
    pub trust_group: String,
    /// Never run it twice.
    pub at_most_once: bool,
    /// How often it may fail and be run again.
    pub retries: u32,
    /// Entries that must have succeeded before.
    pub after: Vec<usize>,
}

/// How an entry stands, or ended.
#[derive(Clone, Debug)]
pub enum Standing {
    /// Producers are not done.
    Waiting,
    /// May be claimed, from that moment on.
    Ready {
        /// Not before.
        from: Instant,
    },
    /// A pilot has it.
    Claimed(ClaimId),
    /// Done.
    Succeeded,
    /// Failed for good.
    Failed,
    /// Never run: entry `because` failed or was skipped.
    Skipped {
        /// Index of that entry.
        because: usize,
    },
}

/// A workflow's payloads and how they stand.
#[derive(Debug)]
pub struct WorkflowQueue {
    entries: Vec<Entry>,
    /// For each entry, the entries that wait for it.
    consumers: Vec<Vec<usize>>,
    state: Mutex<State>,
    ready: Notify,
}

#[derive(Debug)]
struct State {
    standings: Vec<Standing>,
    /// How often each was claimed and not given back.
    tries: Vec<u32>,
    /// What retries are decided on.
    attempts: Vec<Attempts>,
    outcomes: Vec<Option<Outcome>>,
    claims: BTreeMap<ClaimId, usize>,
    next_claim: u64,
}

impl WorkflowQueue {
    /// A queue of these entries; `after` holds indices into the same list and forms no cycle (the workflow reader has
    /// checked it).
    #[must_use]
    pub fn new(entries: Vec<Entry>) -> Self {
        let mut consumers = vec![Vec::new(); entries.len()];
        for (index, entry) in entries.iter().enumerate() {
            for producer in &entry.after {
                if let Some(list) = consumers.get_mut(*producer) {
                    list.push(index);
                }
            }
        }
        let now = Instant::now();
        let first = |entry: &Entry| {
            if entry.after.is_empty() { Standing::Ready { from: now } } else { Standing::Waiting }
        };
        let state = State {
            standings: entries.iter().map(first).collect(),
            tries: vec![0; entries.len()],
            attempts: vec![Attempts::default(); entries.len()],
            outcomes: vec![None; entries.len()],
            claims: BTreeMap::new(),
            next_claim: 1,
        };
        Self { entries, consumers, state: Mutex::new(state), ready: Notify::new() }
    }

    /// The entries, in the workflow's order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How entry `index` stands, how often it was tried, and its last outcome.
    #[must_use]
    pub fn standing(&self, index: usize) -> Option<(Standing, u32, Option<Outcome>)> {
        let state = self.lock();
        let standing = state.standings.get(index)?.clone();
        Some((standing, *state.tries.get(index)?, state.outcomes.get(index)?.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it; and the state is plain data either way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn succeed(&self, state: &mut State, index: usize) {
        state.standings[index] = Standing::Succeeded;
        for &consumer in &self.consumers[index] {
            let all_done = self.entries[consumer]
                .after
                .iter()
                .all(|&producer| matches!(state.standings[producer], Standing::Succeeded));
            if all_done && matches!(state.standings[consumer], Standing::Waiting) {
                state.standings[consumer] = Standing::Ready { from: Instant::now() };
            }
        }
    }

    /// Fails an entry for good; gives those that will never run because of it.
    fn fail(&self, state: &mut State, index: usize) -> Vec<Arc<Payload>> {
        state.standings[index] = Standing::Failed;
        let mut skipped = Vec::new();
        let mut lost = vec![index];
        while let Some(because) = lost.pop() {
            for &consumer in &self.consumers[because] {
                if matches!(state.standings[consumer], Standing::Waiting) {
                    state.standings[consumer] = Standing::Skipped { because };
                    skipped.push(Arc::clone(&self.entries[consumer].payload));
                    lost.push(consumer);
                }
            }
        }
        skipped
    }
}

fn unknown_claim(claim: ClaimId) -> Fault {
    Fault::new(FaultClass::Pilot, format!("claim {claim:?} is not held by this pilot"))
}

impl Queue for WorkflowQueue {
    async fn claim(&self, at_most: u32) -> Result<Claimed, Fault> {
        let mut state = self.lock();
        let now = Instant::now();
        let mut offers = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            if offers.len() >= at_most as usize {
                break;
            }
            if !matches!(state.standings[index], Standing::Ready { from } if from <= now) {
                continue;
            }
            let claim = ClaimId(state.next_claim);
            state.next_claim += 1;
            state.claims.insert(claim, index);
            state.standings[index] = Standing::Claimed(claim);
            state.tries[index] += 1;
            let terms = Terms {
                trust_group: entry.trust_group.clone(),
                at_most_once: entry.at_most_once,
                attempt: state.tries[index],
            };
            offers.push(Offer { claim, payload: Arc::clone(&entry.payload), terms });
        }
        if !offers.is_empty() {
            return Ok(Claimed::Offers(offers));
        }
        let open = |standing: &Standing| {
            matches!(standing, Standing::Waiting | Standing::Ready { .. } | Standing::Claimed(_))
        };
        Ok(if state.standings.iter().any(open) { Claimed::Empty } else { Claimed::Closed })
    }

    async fn renew(&self, claim: ClaimId) -> Result<(), Fault> {
        if self.lock().claims.contains_key(&claim) { Ok(()) } else { Err(unknown_claim(claim)) }
    }

    async fn report(&self, claim: ClaimId, outcome: Outcome) -> Result<Reported, Fault> {
        let mut state = self.lock();
        let index = state.claims.remove(&claim).ok_or_else(|| unknown_claim(claim))?;
        let entry = &self.entries[index];
        let reported = if outcome.is_success() {
            self.succeed(&mut state, index);
            Reported::Final { skipped: Vec::new() }
        } else {
            // Alone in its process, this queue has no herd to spread out.
            let before = state.attempts[index];
            match retry::decide(&outcome, before, entry.retries, entry.at_most_once, Jitter::NONE) {
                Decision::Retry { after_ms, attempts } => {
                    state.attempts[index] = attempts;
                    let from = Instant::now() + Duration::from_millis(after_ms);
                    state.standings[index] = Standing::Ready { from };
                    Reported::Retried
                }
                Decision::Final => Reported::Final { skipped: self.fail(&mut state, index) },
            }
        };
        state.outcomes[index] = Some(outcome);
        drop(state);
        self.ready.notify_one();
        Ok(reported)
    }

    async fn release(&self, claim: ClaimId, _why: ReleaseWhy) -> Result<(), Fault> {
        let mut state = self.lock();
        let index = state.claims.remove(&claim).ok_or_else(|| unknown_claim(claim))?;
        // It never ran, so it was no try.
        state.tries[index] = state.tries[index].saturating_sub(1);
        state.standings[index] = Standing::Ready { from: Instant::now() };
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    async fn wait_ready(&self) {
        let next = {
            let state = self.lock();
            let from = |standing: &Standing| match standing {
                Standing::Ready { from } => Some(*from),
                _ => None,
            };
            state.standings.iter().filter_map(from).min()
        };
        match next {
            Some(from) => {
                tokio::select! {
                    () = tokio::time::sleep_until(from) => {}
                    () = self.ready.notified() => {}
                }
            }
            None => self.ready.notified().await,
        }
    }
}

#[cfg(test)]
#[path = "workflow_tests.rs"]
mod tests;
