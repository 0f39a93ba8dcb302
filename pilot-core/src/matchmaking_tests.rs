use super::*;
use crate::payload::TrustGroup;

const ROOM: Room =
    Room { free: Demand { cpu_millis: 4_000, memory_bytes: 4_000 }, ahead: 0, aging_ms: 1_000 };

fn payload(image: &str, cpu_millis: u64) -> Payload {
    Payload {
        name: "p".into(),
        family: "p".into(),
        demand: Demand { cpu_millis, memory_bytes: 100 },
        trust: "alice".into(),
        image: image.into(),
        inputs: [].into(),
        bind_timeout_ms: 1,
        walltime_ms: 1,
        grace_ms: 1,
        at_most_once: false,
        reusable: true,
    }
}

fn candidate(id: u64, payload: &Payload) -> Candidate<'_> {
    Candidate { claim: ClaimId(id), payload, waited_ms: 100 - id, bytes_missing: 0, inputs_missing: 0 }
}

fn held(image: &str, trust: &str) -> Held {
    Held { image: image.into(), trust: TrustGroup::from(trust) }
}

fn slot(n: u32, holds: Option<&Held>) -> IdleSlot<'_> {
    IdleSlot { slot: SlotId(n), holds, since: Moment(0) }
}

fn pairs(matches: &[Match]) -> Vec<(u64, u32)> {
    matches.iter().map(|found| (found.claim.0, found.slot.0)).collect()
}

#[test]
fn a_claim_takes_the_slot_that_is_warm_for_it() {
    let red = payload("red", 1_000);
    let (green, mine, theirs) = (held("green", "alice"), held("red", "alice"), held("red", "bob"));
    let slots = [slot(0, None), slot(1, Some(&green)), slot(2, Some(&theirs)), slot(3, Some(&mine))];
    assert_eq!(pairs(&assign(&[candidate(1, &red)], &slots, ROOM)), [(1, 3)]);
}

#[test]
fn warmth_of_another_trust_group_is_left_alone_while_there_is_an_empty_slot() {
    let red = payload("red", 1_000);
    let theirs = held("red", "bob");
    let slots = [slot(0, Some(&theirs)), slot(1, None)];
    assert_eq!(pairs(&assign(&[candidate(1, &red)], &slots, ROOM)), [(1, 1)]);
    assert_eq!(pairs(&assign(&[candidate(1, &red)], &slots[..1], ROOM)), [(1, 0)]);
}

#[test]
fn of_slots_that_are_warm_for_others_the_one_that_was_used_least_recently_is_given_up() {
    let red = payload("red", 1_000);
    let (green, blue, theirs) = (held("green", "alice"), held("blue", "alice"), held("red", "bob"));
    let since = |slot, ms| IdleSlot { since: Moment(ms), ..slot };
    let slots = [
        since(slot(0, Some(&green)), 30),
        since(slot(1, Some(&theirs)), 10),
        since(slot(2, Some(&blue)), 20),
    ];
    assert_eq!(pairs(&assign(&[candidate(1, &red)], &slots, ROOM)), [(1, 1)]);
    let with_empty = [slots[0], slots[1], since(slot(3, None), 40)];
    assert_eq!(pairs(&assign(&[candidate(1, &red)], &with_empty, ROOM)), [(1, 3)]);
}

#[test]
fn warmth_that_another_one_waits_for_is_given_up_last() {
    let (red, green) = (payload("red", 1_000), payload("green", 1_000));
    let (for_red, for_blue) = (held("red", "alice"), held("blue", "alice"));
    let slots = [slot(0, Some(&for_red)), IdleSlot { since: Moment(9), ..slot(1, Some(&for_blue)) }];
    let aged = Candidate { waited_ms: 1_000, ..candidate(1, &green) };
    assert_eq!(pairs(&assign(&[candidate(2, &red), aged], &slots, ROOM)), [(1, 1), (2, 0)]);
}

#[test]
fn one_that_leaves_traces_in_its_root_takes_an_empty_slot_before_a_warm_one() {
    let writer = Payload { reusable: false, ..payload("red", 1_000) };
    let mine = held("red", "alice");
    let slots = [slot(0, Some(&mine)), slot(1, None)];
    assert_eq!(pairs(&assign(&[candidate(1, &writer)], &slots, ROOM)), [(1, 1)]);
}

#[test]
fn what_is_here_goes_first() {
    let (red, green) = (payload("red", 1_000), payload("green", 1_000));
    let warm = held("green", "alice");
    let far = Candidate { bytes_missing: 1, ..candidate(1, &red) };
    let inputs_far = Candidate { inputs_missing: 1, ..candidate(2, &red) };
    let near = candidate(3, &red);
    let warmest = candidate(4, &green);
    let all = [far, inputs_far, near, warmest];
    let mut slots = vec![slot(0, Some(&warm))];
    assert_eq!(pairs(&assign(&all, &slots, ROOM)), [(4, 0)]);
    slots[0].holds = None;
    assert_eq!(pairs(&assign(&all, &slots, ROOM)), [(3, 0)]);
    assert_eq!(pairs(&assign(&all[..2], &slots, ROOM)), [(2, 0)]);
}

#[test]
fn what_waits_longest_goes_first_when_all_else_is_equal() {
    let red = payload("red", 1_000);
    let all =
        [Candidate { waited_ms: 5, ..candidate(1, &red) }, Candidate { waited_ms: 9, ..candidate(2, &red) }];
    assert_eq!(pairs(&assign(&all, &[slot(0, None)], ROOM)), [(2, 0)]);
}

#[test]
fn shares_that_are_set_aside_never_exceed_what_is_free() {
    let (small, large) = (payload("red", 1_500), payload("red", 3_000));
    let tiny = payload("red", 1_000);
    let all = [candidate(1, &large), candidate(2, &small), candidate(3, &tiny)];
    let slots = [slot(0, None), slot(1, None), slot(2, None)];
    assert_eq!(pairs(&assign(&all, &slots, ROOM)), [(1, 0), (3, 1)]);
}

#[test]
fn the_small_pass_the_large_until_it_has_waited_too_long() {
    let (small, large) = (payload("red", 1_000), payload("red", 4_000));
    let room = Room { free: Demand { cpu_millis: 2_000, memory_bytes: 4_000 }, ..ROOM };
    let slots = [slot(0, None), slot(1, None)];
    let young = [candidate(1, &large), candidate(2, &small)];
    assert_eq!(pairs(&assign(&young, &slots, room)), [(2, 0)]);
    let aged = [Candidate { waited_ms: 1_000, ..young[0] }, young[1]];
    assert_eq!(pairs(&assign(&aged, &slots, room)), []);
    assert_eq!(pairs(&assign(&aged, &slots, ROOM)), [(1, 0)]);
}

#[test]
fn a_claim_may_be_bound_ahead_of_its_share_but_no_more_than_allowed() {
    let large = payload("red", 4_000);
    let all = [candidate(1, &large), candidate(2, &large), candidate(3, &large)];
    let slots = [slot(0, None), slot(1, None), slot(2, None)];
    let matches = assign(&all, &slots, Room { ahead: 1, ..ROOM });
    let charged: Vec<_> = matches.iter().map(|found| (found.claim.0, found.charged)).collect();
    assert_eq!(charged, [(1, true), (2, false)]);
}

#[test]
fn a_claim_that_is_bound_ahead_takes_no_slot_from_one_that_could_start() {
    let (large, small) = (payload("red", 4_000), payload("red", 1_000));
    let room = Room { free: Demand { cpu_millis: 1_000, memory_bytes: 4_000 }, ahead: 1, ..ROOM };
    let all = [candidate(1, &large), candidate(2, &small)];
    assert_eq!(pairs(&assign(&all, &[slot(0, None)], room)), [(2, 0)]);
    assert_eq!(pairs(&assign(&all, &[slot(0, None), slot(1, None)], room)), [(2, 0), (1, 1)]);
}

#[test]
fn the_order_of_the_arguments_does_not_matter_for_who_is_chosen() {
    let (red, green) = (payload("red", 2_000), payload("green", 2_000));
    let all = [candidate(1, &red), candidate(2, &green), candidate(3, &red)];
    let mut turned = all;
    turned.reverse();
    let slots = [slot(0, None), slot(1, None)];
    assert_eq!(assign(&all, &slots, ROOM), assign(&turned, &slots, ROOM));
}
