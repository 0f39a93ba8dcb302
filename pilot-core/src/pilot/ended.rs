//! Claims that are over, so that an offer that comes twice is known. It must not know why they are over.

use std::collections::{BTreeSet, VecDeque};

use crate::claim::ClaimId;

/// So many are remembered. A queue's answer is never delayed by so many others.
const MAX_ENDED: usize = 4_096;

/// Claims that are over; the oldest are forgotten.
#[derive(Clone, Debug, Default)]
pub(super) struct Ended {
    order: VecDeque<ClaimId>,
    known: BTreeSet<ClaimId>,
}

impl Ended {
    pub(super) fn contains(&self, claim: ClaimId) -> bool {
        self.known.contains(&claim)
    }

    pub(super) fn insert(&mut self, claim: ClaimId) {
        if !self.known.insert(claim) {
            return;
        }
        self.order.push_back(claim);
        if self.order.len() > MAX_ENDED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_oldest_is_forgotten() {
        let mut ended = Ended::default();
        let count = MAX_ENDED as u64 + 1;
        (0..count).for_each(|id| ended.insert(ClaimId(id)));
        ended.insert(ClaimId(1));
        assert!(
            !ended.contains(ClaimId(0)) && ended.contains(ClaimId(1)) && ended.contains(ClaimId(count - 1))
        );
        assert_eq!((ended.order.len(), ended.known.len()), (MAX_ENDED, MAX_ENDED));
    }
}
