//! A queue without a file or a server: entries in their order, a ledger of every claim, and faults on demand.
//!
//! It is a second, simpler model of what `pilot`'s queues promise: a failed payload comes back after a fixed pause until its
//! retries are spent, and with a payload that failed for good everything after it is skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pilot::ports::{Claimed, Offer, Queue, Renewed, Reported, Terms};
use pilot::queue::workflow::Entry;
use pilot_core::{ClaimId, Conclusion, Fault, FaultClass, Gang, GangId, Outcome, ReleaseWhy};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Between a failure and the next offer.
pub const PAUSE: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug)]
pub struct FakeQueue {
    entries: Vec<Entry>,
    books: Mutex<Books>,
    changed: Notify,
}

#[derive(Debug)]
struct Books {
    states: Vec<State>,
    tries: Vec<u32>,
    claims: BTreeMap<ClaimId, usize>,
    /// Far from 0 and in steps: whoever takes a claim for an index, or counts for itself, is found out.
    last_claim: u64,
    log: Vec<String>,
    outcomes: Vec<(String, Outcome)>,
    violations: Vec<String>,
    refusals: u32,
    lost_reports: BTreeSet<String>,
    /// The last claim had no room for what was ready.
    stuck: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting { from: Instant },
    Claimed,
    Succeeded,
    Failed,
}

impl FakeQueue {
    /// A queue of these entries, whose `after` are indices into them.
    #[must_use]
    pub fn new(entries: Vec<Entry>) -> Self {
        let books = Books {
            states: vec![State::Waiting { from: Instant::now() }; entries.len()],
            tries: vec![0; entries.len()],
            claims: BTreeMap::new(),
            last_claim: 1000,
            log: Vec::new(),
            outcomes: Vec::new(),
            violations: Vec::new(),
            refusals: 0,
            lost_reports: BTreeSet::new(),
            stuck: false,
        };
        Self { entries, books: Mutex::new(books), changed: Notify::new() }
    }

    /// Lets the next so many claims fail.
    pub fn refuse_claims(&self, times: u32) {
        self.lock().refusals = times;
    }

    /// Lets the reports of this payload never be answered.
    pub fn lose_reports_of(&self, payload: &str) {
        self.lock().lost_reports.insert(payload.to_owned());
    }

    /// What came, in its order: `report fit: succeeded`, `release fit: the pilot takes no more work`.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.lock().log.clone()
    }

    /// The outcomes that were reported, with their payloads.
    #[must_use]
    pub fn outcomes(&self) -> Vec<(String, Outcome)> {
        self.lock().outcomes.clone()
    }

    /// Fails unless every claim was answered exactly once.
    ///
    /// # Panics
    /// When a claim is open or was answered twice.
    pub fn assert_quiet(&self) {
        let books = self.lock();
        assert_eq!(books.violations, Vec::<String>::new(), "after {:#?}", books.log);
        assert!(
            books.claims.is_empty(),
            "claims without an answer: {:?}, after {:#?}",
            books.claims,
            books.log
        );
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all that comes before an entry has succeeded.
    fn is_free(&self, books: &Books, index: usize) -> bool {
        self.entries[index].after.iter().all(|&before| books.states[before] == State::Succeeded)
    }

    /// Fails all that waits for a failed entry, until nothing changes any more.
    fn skip_after(&self, books: &mut Books) -> Vec<usize> {
        let mut skipped = Vec::new();
        loop {
            let doomed = (0..self.entries.len()).find(|&index| {
                matches!(books.states[index], State::Waiting { .. })
                    && self.entries[index].after.iter().any(|&before| books.states[before] == State::Failed)
            });
            let Some(index) = doomed else { return skipped };
            books.states[index] = State::Failed;
            skipped.push(index);
        }
    }

    /// Those that run together with an entry, itself among them.
    fn gang(&self, index: usize) -> Vec<usize> {
        let gang = &self.entries[index].payload.gang;
        let is_mate = |other: &usize| gang.contains(&self.entries[*other].payload.name);
        let mates: Vec<usize> = (0..self.entries.len()).filter(is_mate).collect();
        if mates.is_empty() { vec![index] } else { mates }
    }

    fn may_try_again(&self, books: &Books, index: usize, outcome: &Outcome) -> bool {
        let entry = &self.entries[index];
        books.tries[index] <= entry.retries && !(entry.at_most_once && outcome.launched)
    }

    fn settle(&self, books: &mut Books, index: usize, outcome: Outcome, again: bool) -> Reported {
        let succeeded = outcome.is_success();
        books.outcomes.push((self.entries[index].payload.name.to_string(), outcome));
        if succeeded {
            books.states[index] = State::Succeeded;
            Reported::Final { skipped: Vec::new() }
        } else if again {
            books.states[index] = State::Waiting { from: Instant::now() + PAUSE };
            Reported::Retried
        } else {
            books.states[index] = State::Failed;
            let skipped = self.skip_after(books);
            let payload = |index: usize| self.entries[index].payload.clone();
            Reported::Final { skipped: skipped.into_iter().map(payload).collect() }
        }
    }

    fn end(&self, books: &mut Books, claim: ClaimId, verb: &str, how: &str) -> Result<usize, Fault> {
        let Some(index) = books.claims.remove(&claim) else {
            books.violations.push(format!("{verb} of {claim}, which is not held: {how}"));
            return Err(Fault::new(FaultClass::Pilot, format!("{claim} is not held")));
        };
        books.log.push(format!("{verb} {}: {how}", self.entries[index].payload.name));
        Ok(index)
    }
}

impl Queue for FakeQueue {
    async fn claim(&self, at_most: u32, slots: u32) -> Result<Claimed, Fault> {
        let mut guard = self.lock();
        let books = &mut *guard;
        if books.refusals > 0 {
            books.refusals -= 1;
            return Err(Fault::new(FaultClass::Retry, "the queue is away"));
        }
        let now = Instant::now();
        let mut offers = Vec::new();
        for index in 0..self.entries.len() {
            let ready = |books: &Books, index: usize| {
                matches!(books.states[index], State::Waiting { from } if from <= now)
                    && self.is_free(books, index)
            };
            let gang = self.gang(index);
            if offers.len() >= at_most as usize || !gang.iter().all(|member| ready(books, *member)) {
                continue;
            }
            if gang.len() > at_most as usize - offers.len() && gang.len() <= slots as usize {
                break;
            }
            let id = GangId(books.last_claim + 7);
            for &member in &gang {
                books.states[member] = State::Claimed;
                books.tries[member] += 1;
                books.last_claim += 7;
                let claim = ClaimId(books.last_claim);
                books.claims.insert(claim, member);
                let entry = &self.entries[member];
                let terms = Terms {
                    trust_group: entry.trust_group.clone(),
                    at_most_once: entry.at_most_once,
                    attempt: books.tries[member],
                    gang: (gang.len() > 1).then_some(Gang { id, size: gang.len() as u32 }),
                };
                offers.push(Offer { claim, payload: entry.payload.clone(), terms, lease: None });
            }
        }
        books.stuck = offers.is_empty();
        let open = books.states.iter().any(|state| matches!(state, State::Waiting { .. } | State::Claimed));
        Ok(match (offers.is_empty(), open) {
            (false, _) => Claimed::Offers(offers),
            (true, true) => Claimed::Empty,
            (true, false) => Claimed::Closed,
        })
    }

    async fn wait_cancelled(&self) -> ClaimId {
        std::future::pending().await
    }

    async fn renew(&self, claim: ClaimId) -> Result<Renewed, Fault> {
        let held = self.lock().claims.contains_key(&claim);
        Ok(if held { Renewed::Extended(None) } else { Renewed::Lost })
    }

    async fn report(&self, claim: ClaimId, outcome: Outcome) -> Result<Reported, Fault> {
        let (reported, lost) = {
            let mut books = self.lock();
            let index = self.end(&mut books, claim, "report", &outcome.conclusion.to_string())?;
            let lost = books.lost_reports.contains(self.entries[index].payload.name.as_str());
            let again = self.may_try_again(&books, index, &outcome);
            (self.settle(&mut books, index, outcome, again), lost)
        };
        if lost {
            std::future::pending().await
        }
        self.changed.notify_one();
        Ok(reported)
    }

    async fn report_together(&self, ends: Vec<(ClaimId, Outcome)>) -> Result<Vec<Reported>, Fault> {
        let reported = {
            let mut books = self.lock();
            let mut members = Vec::new();
            for (claim, outcome) in ends {
                let index = self.end(&mut books, claim, "report", &outcome.conclusion.to_string())?;
                members.push((index, outcome));
            }
            let good = members.iter().filter(|(_, outcome)| outcome.is_success()).count();
            if good > 0 && good < members.len() {
                books.violations.push("a part of a gang succeeded".to_owned());
            }
            // Only who failed by itself has to have a try left.
            let again = members.iter().all(|(index, outcome)| {
                let others = matches!(outcome.conclusion, Conclusion::GangFailed(_));
                let once = self.entries[*index].at_most_once && outcome.launched;
                (others && !once) || self.may_try_again(&books, *index, outcome)
            });
            let settle = |(index, outcome)| self.settle(&mut books, index, outcome, again);
            members.into_iter().map(settle).collect()
        };
        self.changed.notify_one();
        Ok(reported)
    }

    async fn release(&self, claim: ClaimId, why: ReleaseWhy) -> Result<(), Fault> {
        {
            let mut books = self.lock();
            let index = self.end(&mut books, claim, "release", &why.to_string())?;
            books.tries[index] -= 1;
            books.states[index] = State::Waiting { from: Instant::now() };
        }
        self.changed.notify_one();
        Ok(())
    }

    async fn wait_ready(&self) {
        let next = {
            let books = self.lock();
            let from = |index: usize| match books.states[index] {
                State::Waiting { from } if books.stuck && from <= Instant::now() => None,
                State::Waiting { from } if self.is_free(&books, index) => Some(from),
                _ => None,
            };
            (0..self.entries.len()).filter_map(from).min()
        };
        let pause = async {
            match next {
                Some(from) => tokio::time::sleep_until(from).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = pause => {}
            () = self.changed.notified() => {}
        }
    }
}
