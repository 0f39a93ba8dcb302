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
//! Payloads of a gang are claimed together and reported together: all succeed, all come back or all fail.
//! Leases never expire here: queue and pilot are one process and die together.
//!
//! **Must not know:** slots, containers, the workflow file's syntax.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pilot_core::retry::Member;
use pilot_core::{
    Attempts, ClaimId, Conclusion, Decision, Fault, FaultClass, Gang, GangId, Jitter, Outcome, ReleaseWhy,
    retry,
};
use stage::StageName;
use tokio::sync::Notify;
use tokio::time::{Duration, Instant};

use crate::payload::Payload;
use crate::ports::{Claimed, Offer, Queue, Renewed, Reported, Terms};

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
    /// For each entry, those that run together with it, itself among them; itself alone when it is for itself.
    gangs: Vec<Vec<usize>>,
    state: Mutex<State>,
    ready: Notify,
}

#[derive(Debug)]
struct State {
    standings: Vec<Standing>,
    /// Those that may be claimed at once, and those with a pause before: what a claim looks at, however many others there
    /// are. Their standings say the same.
    ready: BTreeSet<usize>,
    paused: BTreeSet<(Instant, usize)>,
    /// For each entry, the producers that have not succeeded.
    pending: Vec<usize>,
    /// Entries that are not at their end.
    open: usize,
    /// How often each was claimed and not given back.
    tries: Vec<u32>,
    /// What retries are decided on.
    attempts: Vec<Attempts>,
    outcomes: Vec<Option<Outcome>>,
    claims: BTreeMap<ClaimId, usize>,
    next_claim: u64,
    /// The last claim found nothing that it could take, although something is ready: a gang that is too large just now, or of
    /// which a part is still held.
    stuck: bool,
}

impl WorkflowQueue {
    /// A queue of these entries; `after` holds indices into the same list and forms no cycle (the workflow reader has
    /// checked it).
    #[must_use]
    pub fn new(entries: Vec<Entry>) -> Self {
        let mut consumers = vec![Vec::new(); entries.len()];
        let mut pending = vec![0; entries.len()];
        for (index, entry) in entries.iter().enumerate() {
            // Each once, also when it is named twice.
            let producers: BTreeSet<usize> = entry.after.iter().copied().collect();
            for producer in producers {
                if let Some(list) = consumers.get_mut(producer) {
                    list.push(index);
                    pending[index] += 1;
                }
            }
        }
        let now = Instant::now();
        let first = |entry: &Entry| {
            if entry.after.is_empty() { Standing::Ready { from: now } } else { Standing::Waiting }
        };
        let free = |(index, entry): (usize, &Entry)| entry.after.is_empty().then_some(index);
        let state = State {
            standings: entries.iter().map(first).collect(),
            ready: entries.iter().enumerate().filter_map(free).collect(),
            paused: BTreeSet::new(),
            pending,
            open: entries.len(),
            tries: vec![0; entries.len()],
            attempts: vec![Attempts::default(); entries.len()],
            outcomes: vec![None; entries.len()],
            claims: BTreeMap::new(),
            next_claim: 1,
            stuck: false,
        };
        Self { gangs: gangs(&entries), entries, consumers, state: Mutex::new(state), ready: Notify::new() }
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

    fn grant(&self, state: &mut State, gang: &[usize], offers: &mut Vec<Offer>) {
        let id = GangId(state.next_claim);
        let size = u32::try_from(gang.len()).unwrap_or(u32::MAX);
        for &index in gang {
            let entry = &self.entries[index];
            let claim = ClaimId(state.next_claim);
            state.next_claim += 1;
            state.ready.remove(&index);
            state.claims.insert(claim, index);
            state.standings[index] = Standing::Claimed(claim);
            state.tries[index] += 1;
            let terms = Terms {
                trust_group: entry.trust_group.clone(),
                at_most_once: entry.at_most_once,
                attempt: state.tries[index],
                gang: (size > 1).then_some(Gang { id, size }),
            };
            offers.push(Offer { claim, payload: Arc::clone(&entry.payload), terms, lease: None });
        }
    }

    /// Ends every claim of a gang. Who says nothing of one has lost it.
    fn settle_gang(
        &self,
        state: &mut State,
        gang: &[usize],
        mut said: BTreeMap<usize, Outcome>,
    ) -> BTreeMap<ClaimId, Reported> {
        let mut held: Vec<(usize, ClaimId, Outcome)> = Vec::with_capacity(gang.len());
        for &index in gang {
            if let Standing::Claimed(claim) = state.standings[index] {
                let lost = || Outcome { launched: true, ..Outcome::before_launch(Conclusion::Lost) };
                held.push((index, claim, said.remove(&index).unwrap_or_else(lost)));
            }
        }
        let members = held.iter().map(|(index, _, outcome)| Member {
            outcome,
            attempts: state.attempts[*index],
            retries: self.entries[*index].retries,
            at_most_once: self.entries[*index].at_most_once,
        });
        let members: Vec<Member<'_>> = members.collect();
        // As to the jitter: alone in its process, this queue has no herd to spread out.
        let decisions = retry::decide_together(&members, Jitter::NONE);
        let mut answers = BTreeMap::new();
        for ((index, claim, outcome), decision) in held.into_iter().zip(decisions) {
            state.claims.remove(&claim);
            answers.insert(claim, self.settle(state, index, outcome, decision));
        }
        answers
    }

    fn settle(&self, state: &mut State, index: usize, outcome: Outcome, decision: Decision) -> Reported {
        let reported = match decision {
            Decision::Final if outcome.is_success() => {
                self.succeed(state, index);
                Reported::Final { skipped: Vec::new() }
            }
            Decision::Retry { after_ms, attempts } => {
                state.attempts[index] = attempts;
                state.make_ready(index, Instant::now(), Some(Duration::from_millis(after_ms)));
                Reported::Retried
            }
            Decision::Final => Reported::Final { skipped: self.fail(state, index) },
        };
        state.outcomes[index] = Some(outcome);
        reported
    }

    fn succeed(&self, state: &mut State, index: usize) {
        state.standings[index] = Standing::Succeeded;
        state.open -= 1;
        for &consumer in &self.consumers[index] {
            state.pending[consumer] -= 1;
            if state.pending[consumer] == 0 && matches!(state.standings[consumer], Standing::Waiting) {
                state.make_ready(consumer, Instant::now(), None);
            }
        }
    }

    /// Fails an entry for good; gives those that will never run because of it.
    fn fail(&self, state: &mut State, index: usize) -> Vec<Arc<Payload>> {
        state.standings[index] = Standing::Failed;
        state.open -= 1;
        let mut skipped = Vec::new();
        let mut lost = vec![index];
        for &mate in self.gangs[index].iter().filter(|mate| **mate != index) {
            if matches!(state.standings[mate], Standing::Ready { .. } | Standing::Waiting) {
                state.unready(mate);
                state.standings[mate] = Standing::Skipped { because: index };
                state.open -= 1;
                skipped.push(Arc::clone(&self.entries[mate].payload));
                lost.push(mate);
            }
        }
        while let Some(because) = lost.pop() {
            for &consumer in &self.consumers[because] {
                if matches!(state.standings[consumer], Standing::Waiting) {
                    state.standings[consumer] = Standing::Skipped { because };
                    state.open -= 1;
                    skipped.push(Arc::clone(&self.entries[consumer].payload));
                    lost.push(consumer);
                }
            }
        }
        skipped
    }
}

/// Names are unique within a workflow.
fn gangs(entries: &[Entry]) -> Vec<Vec<usize>> {
    let numbers: BTreeMap<&StageName, usize> =
        entries.iter().enumerate().map(|(index, entry)| (&entry.payload.name, index)).collect();
    let gang = |(index, entry): (usize, &Entry)| {
        let mut gang: Vec<usize> =
            entry.payload.gang.iter().filter_map(|name| numbers.get(name).copied()).collect();
        gang.sort_unstable();
        if gang.len() > 1 { gang } else { vec![index] }
    };
    entries.iter().enumerate().map(gang).collect()
}

impl State {
    fn make_ready(&mut self, index: usize, now: Instant, pause: Option<Duration>) {
        let from = now + pause.unwrap_or_default();
        self.standings[index] = Standing::Ready { from };
        if pause.is_some() {
            self.paused.insert((from, index));
        } else {
            self.ready.insert(index);
        }
    }

    fn unready(&mut self, index: usize) {
        self.ready.remove(&index);
        self.paused.retain(|(_, paused)| *paused != index);
    }

    fn end_pauses(&mut self, now: Instant) {
        while let Some(&(from, index)) = self.paused.first()
            && from <= now
        {
            self.paused.pop_first();
            self.ready.insert(index);
        }
    }
}

fn unknown_claim(claim: ClaimId) -> Fault {
    Fault::new(FaultClass::Pilot, format!("claim {claim:?} is not held by this pilot"))
}

impl Queue for WorkflowQueue {
    async fn claim(&self, at_most: u32, slots: u32) -> Result<Claimed, Fault> {
        let mut state = self.lock();
        let now = Instant::now();
        state.end_pauses(now);
        let mut offers = Vec::new();
        let mut from = 0;
        while offers.len() < at_most as usize {
            let Some(&index) = state.ready.range(from..).next() else { break };
            from = index + 1;
            let gang = &self.gangs[index];
            if !gang.iter().all(|member| state.ready.contains(member)) {
                continue;
            }
            let room = at_most as usize - offers.len();
            if gang.len() > room && gang.len() <= slots as usize {
                break;
            }
            self.grant(&mut state, gang, &mut offers);
        }
        state.stuck = offers.is_empty() && !state.ready.is_empty();
        if !offers.is_empty() {
            return Ok(Claimed::Offers(offers));
        }
        Ok(if state.open > 0 { Claimed::Empty } else { Claimed::Closed })
    }

    async fn report_together(&self, ends: Vec<(ClaimId, Outcome)>) -> Result<Vec<Reported>, Fault> {
        let mut state = self.lock();
        let mut said: BTreeMap<usize, Outcome> = BTreeMap::new();
        for (claim, outcome) in &ends {
            let index = *state.claims.get(claim).ok_or_else(|| unknown_claim(*claim))?;
            said.insert(index, outcome.clone());
        }
        let Some(gang) = said.keys().next().map(|index| &self.gangs[*index]) else { return Ok(Vec::new()) };
        let mut answers = self.settle_gang(&mut state, gang, said);
        drop(state);
        self.ready.notify_one();
        Ok(ends.iter().map(|(claim, _)| answers.remove(claim).unwrap_or(Reported::Retried)).collect())
    }

    async fn renew(&self, claim: ClaimId) -> Result<Renewed, Fault> {
        let held = self.lock().claims.contains_key(&claim);
        Ok(if held { Renewed::Extended(None) } else { Renewed::Lost })
    }

    async fn report(&self, claim: ClaimId, outcome: Outcome) -> Result<Reported, Fault> {
        // One that is for itself is a gang of one.
        let mut answers = self.report_together(vec![(claim, outcome)]).await?;
        answers.pop().ok_or_else(|| unknown_claim(claim))
    }

    async fn release(&self, claim: ClaimId, _why: ReleaseWhy) -> Result<(), Fault> {
        let mut state = self.lock();
        let index = state.claims.remove(&claim).ok_or_else(|| unknown_claim(claim))?;
        // It never ran, so it was no try.
        state.tries[index] = state.tries[index].saturating_sub(1);
        state.make_ready(index, Instant::now(), None);
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    async fn wait_ready(&self) {
        let next = {
            let state = self.lock();
            let paused = state.paused.first().map(|(from, _)| *from);
            if state.ready.is_empty() || state.stuck { paused } else { Some(Instant::now()) }
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

    async fn wait_cancelled(&self) -> ClaimId {
        // Who runs a workflow file stops it as a whole.
        std::future::pending().await
    }
}

#[cfg(test)]
#[path = "workflow_tests.rs"]
mod tests;
