//! Which waiting claim goes to which idle slot. Pure and deterministic: equal arguments, equal answer.
//! It must not know of phases, leases or time: what has waited how long is told.
//!
//! 1. Claims that have waited long come first, oldest first. One of them that does not fit keeps all others from
//!    what is free, so that the small can't starve the large.
//!    What may be bound ahead of its share only takes slots that no one else can use.
//! 2. The others come in order of what is here: a warm slot, then the image, then the inputs, then age.
//! 3. Each takes, of the slots that are left: one that is warm for it, else an empty one, else one that is warm for none of
//!    the others that wait here, else any; of equals the one that has been idle longest. No one waits for a busy slot that
//!    would be warm.

use std::cmp::Reverse;

use crate::claim::{ClaimId, SlotId};
use crate::payload::{Demand, Payload};
use crate::slot::Held;
use crate::time::Moment;

/// A claim that is ready to be bound.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Which; of two that have waited equally long the lower comes first.
    pub claim: ClaimId,
    /// What it would run, with the image as preflight found it.
    pub payload: &'a Payload,
    /// Since it was offered, in milliseconds.
    pub waited_ms: u64,
    /// Bytes of the image that this machine lacks.
    pub bytes_missing: u64,
    /// Inputs that this machine lacks.
    pub inputs_missing: usize,
}

/// A slot that could take a claim.
#[derive(Clone, Copy, Debug)]
pub struct IdleSlot<'a> {
    /// Which.
    pub slot: SlotId,
    /// What is warm in it.
    pub holds: Option<&'a Held>,
    /// Since when it is idle.
    pub since: Moment,
}

/// What may be given away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Processor and memory that no slot has.
    pub free: Demand,
    /// How many claims may be bound although their share is not free.
    pub ahead: u32,
    /// From this wait on a claim has the right of way, in milliseconds.
    pub aging_ms: u64,
}

/// A claim and its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// Which claim.
    pub claim: ClaimId,
    /// Which slot.
    pub slot: SlotId,
    /// Whether its share is set aside for it. If not, it is bound ahead and must wait for Go.
    pub charged: bool,
}

/// Gives claims to slots: first those whose share is free, then, in slots that are left, as many ahead as may be. Each claim
/// and each slot is in the answer at most once; shares set aside never exceed `room.free`.
pub fn assign(candidates: &[Candidate<'_>], slots: &[IdleSlot<'_>], room: Room) -> Vec<Match> {
    if slots.is_empty() {
        return Vec::new();
    }
    let mut order: Vec<&Candidate<'_>> = candidates.iter().collect();
    order.sort_by_cached_key(|candidate| rank(candidate, slots, room.aging_ms));
    let mut slots: Vec<&IdleSlot<'_>> = slots.iter().collect();
    let mut free = room.free;
    let mut later: Vec<usize> = Vec::new();
    let mut matches = Vec::new();
    let mut give = |rank: usize, slots: &mut Vec<&IdleSlot<'_>>, charged: bool| {
        let slot = slots.remove(best(order[rank], slots, &order[rank + 1..])).slot;
        matches.push(Match { claim: order[rank].claim, slot, charged });
    };
    for (rank, candidate) in order.iter().enumerate() {
        if slots.is_empty() {
            break;
        }
        let demand = candidate.payload.demand;
        if demand.fits(&free) {
            free = free.minus(demand);
            give(rank, &mut slots, true);
            continue;
        }
        if candidate.waited_ms >= room.aging_ms {
            free = Demand::default();
        }
        later.push(rank);
    }
    let ahead = usize::try_from(room.ahead).unwrap_or(usize::MAX);
    for rank in later.into_iter().take(ahead.min(slots.len())) {
        give(rank, &mut slots, false);
    }
    matches
}

/// Smallest first. Claims with the right of way differ in age alone.
fn rank(
    candidate: &Candidate<'_>,
    slots: &[IdleSlot<'_>],
    aging_ms: u64,
) -> (bool, bool, bool, usize, u64, impl Ord) {
    let age = (Reverse(candidate.waited_ms), candidate.claim);
    if candidate.waited_ms >= aging_ms {
        return (false, false, false, 0, 0, age);
    }
    let cold = !slots.iter().any(|slot| is_warm(slot, candidate));
    let absent = candidate.bytes_missing > 0;
    (true, cold, absent, candidate.inputs_missing, candidate.bytes_missing, age)
}

/// Which of the slots a candidate takes; `others` come after it.
fn best(candidate: &Candidate<'_>, slots: &[&IdleSlot<'_>], others: &[&Candidate<'_>]) -> usize {
    if let Some(warm) = slots.iter().position(|slot| is_warm(slot, candidate)) {
        return warm;
    }
    if let Some(empty) = slots.iter().position(|slot| slot.holds.is_none()) {
        return empty;
    }
    if slots.len() == 1 {
        return 0;
    }
    let is_wanted = |slot: &IdleSlot<'_>| others.iter().any(|other| is_warm(slot, other));
    let evicted = slots.iter().enumerate().min_by_key(|(_, slot)| (is_wanted(slot), slot.since));
    evicted.map_or(0, |(index, _)| index)
}

fn is_warm(slot: &IdleSlot<'_>, candidate: &Candidate<'_>) -> bool {
    slot.holds.is_some_and(|held| held.suits(candidate.payload))
}

#[cfg(test)]
#[path = "matchmaking_tests.rs"]
mod tests;
