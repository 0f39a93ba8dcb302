//! A queue that many pilots share: grants claims under leases, takes them back when a lease is over, keeps the score.

use std::collections::BTreeMap;

use pilot_core::retry::decide;
use pilot_core::{Attempts, Claim, ClaimId, Conclusion, Decision, Jitter, Lease, Moment, Outcome, Payload};

#[derive(Debug)]
enum State {
    Waiting { from: u64 },
    Claimed { claim: ClaimId, expires: Option<u64> },
    Ended,
}

#[derive(Debug)]
struct Entry {
    payload: Payload,
    retries: u32,
    attempts: Attempts,
    state: State,
    /// Last words that were accepted; must come to exactly one.
    ends: u32,
}

#[derive(Debug)]
pub(crate) struct Queue {
    entries: Vec<Entry>,
    claims: BTreeMap<ClaimId, usize>,
    next: u64,
    lease_ms: Option<u64>,
    released: u64,
    pub(crate) successes: u32,
}

/// What a queue answers to a report or a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    Renewed(u64),
    Lost,
}

impl Queue {
    pub(crate) fn new(payloads: Vec<(Payload, u32)>, lease_ms: Option<u64>) -> Self {
        let entry = |(payload, retries)| Entry {
            payload,
            retries,
            attempts: Attempts::default(),
            state: State::Waiting { from: 0 },
            ends: 0,
        };
        let entries = payloads.into_iter().map(entry).collect();
        Self { entries, claims: BTreeMap::new(), next: 1, lease_ms, released: 0, successes: 0 }
    }

    /// Up to `n` claims. Times in the answer are the queue's; `asked` is when the question left the pilot.
    pub(crate) fn claim(&mut self, now: u64, asked: u64, born: u64, n: u32) -> Vec<Claim> {
        let mut claims = Vec::new();
        for (index, entry) in self.entries.iter_mut().enumerate() {
            if claims.len() >= n as usize {
                break;
            }
            if !matches!(entry.state, State::Waiting { from } if from <= now) {
                continue;
            }
            let claim = ClaimId(self.next);
            self.next += 1;
            self.claims.insert(claim, index);
            let expires = self.lease_ms.map(|ms| now + ms);
            entry.state = State::Claimed { claim, expires };
            let lease = self.lease_ms.map(|ms| lease(asked.saturating_sub(born), ms));
            claims.push(Claim { id: claim, payload: entry.payload.clone(), lease });
        }
        claims
    }

    pub(crate) fn is_over(&self) -> bool {
        self.entries.iter().all(|entry| matches!(entry.state, State::Ended))
    }

    pub(crate) fn renew(&mut self, now: u64, claim: ClaimId) -> Grant {
        self.expire(now);
        let Some(ms) = self.lease_ms else { return Grant::Lost };
        match self.held(claim) {
            Some(entry) => {
                entry.state = State::Claimed { claim, expires: Some(now + ms) };
                Grant::Renewed(ms)
            }
            None => Grant::Lost,
        }
    }

    pub(crate) fn release(&mut self, now: u64, claim: ClaimId) {
        self.expire(now);
        self.released += 1;
        assert!(self.released < 100_000, "claims go back and forth without end");
        if let Some(entry) = self.held(claim) {
            entry.state = State::Waiting { from: now + 50 };
        }
    }

    /// A report counts only while the claim is held; told twice it counts once.
    pub(crate) fn report(&mut self, now: u64, claim: ClaimId, outcome: &Outcome) {
        self.expire(now);
        let succeeded = outcome.is_success();
        if let Some(entry) = self.held(claim) {
            settle(now, entry, outcome);
            self.successes += u32::from(succeeded);
        }
    }

    /// Claims whose time is over. What may run only once may have run.
    pub(crate) fn expire(&mut self, now: u64) {
        for entry in &mut self.entries {
            if let State::Claimed { expires: Some(expires), .. } = entry.state
                && expires <= now
            {
                let lost = Outcome { launched: true, ..Outcome::before_launch(Conclusion::Lost) };
                settle(now, entry, &lost);
            }
        }
    }

    fn held(&mut self, claim: ClaimId) -> Option<&mut Entry> {
        let entry = &mut self.entries[*self.claims.get(&claim)?];
        matches!(entry.state, State::Claimed { claim: held, .. } if held == claim).then_some(entry)
    }

    pub(crate) fn assert_each_ended_once(&self) {
        for entry in &self.entries {
            assert_eq!(entry.ends, 1, "{} must end exactly once: {:?}", entry.payload.name, entry.state);
        }
    }
}

fn settle(now: u64, entry: &mut Entry, outcome: &Outcome) {
    let decision = decide(
        outcome,
        entry.attempts,
        entry.retries,
        entry.payload.at_most_once,
        Jitter::from_thousandths(300),
    );
    entry.state = match decision {
        Decision::Retry { after_ms, attempts } => {
            entry.attempts = attempts;
            State::Waiting { from: now + after_ms }
        }
        Decision::Final => {
            entry.ends += 1;
            State::Ended
        }
    };
}

/// In the pilot's own time, counted from when its question left.
pub(crate) fn lease(asked: u64, ms: u64) -> Lease {
    Lease { renew_at: Moment(asked + ms / 3), expires_at: Moment(asked + ms) }
}
