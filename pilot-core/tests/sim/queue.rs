//! A queue that many pilots share: grants claims under leases, takes them back when a lease is over, keeps the score.

use std::collections::BTreeMap;

use pilot_core::retry::{Member, decide_together};
use pilot_core::{
    Attempts, Claim, ClaimId, Conclusion, Decision, Gang, GangId, Jitter, Lease, Moment, Outcome, Payload,
};

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
    /// The first and the last of those that run together with it; itself, when it is for itself.
    gang: (usize, usize),
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
    /// Of `gangs`, each holds so many payloads as it says, one gang after the other.
    pub(crate) fn new(payloads: Vec<(Payload, u32)>, gangs: &[usize], lease_ms: Option<u64>) -> Self {
        let mut together: Vec<(usize, usize)> = Vec::new();
        for size in gangs {
            let first = together.len();
            together.extend(std::iter::repeat_n((first, first + size - 1), *size));
        }
        let entry = |((payload, retries), gang)| Entry {
            payload,
            retries,
            gang,
            attempts: Attempts::default(),
            state: State::Waiting { from: 0 },
            ends: 0,
        };
        let entries = payloads.into_iter().zip(together).map(entry).collect();
        Self { entries, claims: BTreeMap::new(), next: 1, lease_ms, released: 0, successes: 0 }
    }

    /// Up to `n` claims. Times in the answer are the queue's; `asked` is when the question left the pilot. A gang comes whole,
    /// and what is behind it waits until there is room for it; one that is larger than the pilot's `slots` comes all the same.
    pub(crate) fn claim(&mut self, now: u64, asked: u64, born: u64, n: u32, slots: u32) -> Vec<Claim> {
        let mut claims = Vec::new();
        let mut next = 0;
        while next < self.entries.len() && claims.len() < n as usize {
            let (first, last) = self.entries[next].gang;
            next = last + 1;
            let ready = |entry: &Entry| matches!(entry.state, State::Waiting { from } if from <= now);
            if !self.entries[first..=last].iter().all(ready) {
                continue;
            }
            let size = last + 1 - first;
            if size > n as usize - claims.len() && size <= slots as usize {
                break;
            }
            let gang = (size > 1).then_some(Gang { id: GangId(self.next), size: size as u32 });
            for index in first..=last {
                let claim = ClaimId(self.next);
                self.next += 1;
                self.claims.insert(claim, index);
                let expires = self.lease_ms.map(|ms| now + ms);
                let entry = &mut self.entries[index];
                entry.state = State::Claimed { claim, expires };
                let lease = self.lease_ms.map(|ms| lease(asked.saturating_sub(born), ms));
                claims.push(Claim { id: claim, payload: entry.payload.clone(), lease, gang });
            }
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
            Some(index) => {
                self.entries[index].state = State::Claimed { claim, expires: Some(now + ms) };
                Grant::Renewed(ms)
            }
            None => Grant::Lost,
        }
    }

    pub(crate) fn release(&mut self, now: u64, claim: ClaimId) {
        self.expire(now);
        self.released += 1;
        assert!(self.released < 100_000, "claims go back and forth without end");
        if let Some(index) = self.held(claim) {
            self.entries[index].state = State::Waiting { from: now + 50 };
        }
    }

    /// Reports count only while the claims are held; told twice they count once.
    pub(crate) fn report(&mut self, now: u64, ends: &[(ClaimId, Outcome)]) {
        self.expire(now);
        let held = |(claim, outcome): &(ClaimId, Outcome)| {
            self.held(*claim)?;
            Some((*self.claims.get(claim)?, outcome.clone()))
        };
        let ends: BTreeMap<usize, Outcome> = ends.iter().filter_map(held).collect();
        if let Some((index, _)) = ends.first_key_value() {
            self.successes += ends.values().filter(|outcome| outcome.is_success()).count() as u32;
            self.settle(now, self.entries[*index].gang, &ends);
        }
    }

    /// Claims whose time is over, each with its gang. What may run only once may have run.
    pub(crate) fn expire(&mut self, now: u64) {
        for index in 0..self.entries.len() {
            if matches!(self.entries[index].state, State::Claimed { expires: Some(expires), .. } if expires <= now)
            {
                self.settle(now, self.entries[index].gang, &BTreeMap::new());
            }
        }
    }

    /// Ends every claim of a gang. Who says nothing of one has lost it.
    fn settle(&mut self, now: u64, (first, last): (usize, usize), ends: &BTreeMap<usize, Outcome>) {
        let claimed = |index: &usize| matches!(self.entries[*index].state, State::Claimed { .. });
        let claimed: Vec<usize> = (first..=last).filter(claimed).collect();
        let lost = Outcome { launched: true, ..Outcome::before_launch(Conclusion::Lost) };
        let members = claimed.iter().map(|index| {
            let entry = &self.entries[*index];
            let outcome = ends.get(index).unwrap_or(&lost);
            let at_most_once = entry.payload.at_most_once;
            Member { outcome, attempts: entry.attempts, retries: entry.retries, at_most_once }
        });
        let members: Vec<Member<'_>> = members.collect();
        let succeeded = members.iter().filter(|member| member.outcome.is_success()).count();
        assert!(succeeded == 0 || succeeded == last + 1 - first, "a part of a gang succeeded: {ends:?}");
        for (index, decision) in claimed.iter().zip(decide_together(&members, Jitter::from_thousandths(300)))
        {
            if let Decision::Retry { after_ms, attempts } = decision {
                self.entries[*index].attempts = attempts;
                self.entries[*index].state = State::Waiting { from: now + after_ms };
                continue;
            }
            // Also those that had gone back already.
            for entry in &mut self.entries[first..=last] {
                if !matches!(entry.state, State::Ended) {
                    (entry.ends, entry.state) = (entry.ends + 1, State::Ended);
                }
            }
        }
    }

    fn held(&self, claim: ClaimId) -> Option<usize> {
        let index = *self.claims.get(&claim)?;
        matches!(self.entries[index].state, State::Claimed { claim: held, .. } if held == claim)
            .then_some(index)
    }

    pub(crate) fn assert_each_ended_once(&self) {
        for entry in &self.entries {
            assert_eq!(entry.ends, 1, "{} must end exactly once: {:?}", entry.payload.name, entry.state);
        }
    }
}

/// In the pilot's own time, counted from when its question left.
pub(crate) fn lease(asked: u64, ms: u64) -> Lease {
    Lease { renew_at: Moment(asked + ms / 3), expires_at: Moment(asked + ms) }
}
