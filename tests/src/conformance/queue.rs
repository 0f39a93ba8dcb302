//! The promises of [`Queue`]. `make` opens a queue of the given entries; time may be paused.

use std::collections::BTreeSet;
use std::time::Duration;

use pilot::payload::Payload;
use pilot::ports::{Claimed, Offer, Queue, Renewed, Reported};
use pilot::queue::workflow::Entry;
use pilot_core::{ClaimId, Conclusion, ExitStatus, Fault, FaultClass, Outcome, ReleaseWhy, StopCause, Usage};

use crate::fake::{entry, name, payload};

/// Longer than any queue pauses before a second try.
const LONG: Duration = Duration::from_secs(120);

/// Slots of a pilot that is large enough for all that these tests have.
pub const SLOTS: u32 = 8;

/// The payload ran and exited with 0.
#[must_use]
pub fn success() -> Outcome {
    exit(0)
}

/// The payload ran and exited with `code`.
#[must_use]
pub fn exit(code: u8) -> Outcome {
    let status = ExitStatus::Code(code);
    let conclusion = if code == 0 { Conclusion::Succeeded } else { Conclusion::Exited(status) };
    Outcome { conclusion, launched: true, status: Some(status), usage: Usage::default() }
}

fn entries(count: usize) -> Vec<Entry> {
    (0..count).map(|index| entry(payload(&format!("p{index}")))).collect()
}

/// `first`, and `second` after it.
fn chain(retries: u32) -> Vec<Entry> {
    let first = Entry { retries, ..entry(payload("first")) };
    let second = Entry { after: vec![0], ..entry(payload("second")) };
    let third = Entry { after: vec![1], ..entry(payload("third")) };
    vec![first, second, third]
}

async fn offers(queue: &impl Queue, at_most: u32) -> Vec<Offer> {
    match queue.claim(at_most, SLOTS).await.expect("claim") {
        Claimed::Offers(offers) => offers,
        Claimed::Empty | Claimed::Closed => Vec::new(),
    }
}

async fn one(queue: &impl Queue) -> Offer {
    let mut offers = offers(queue, 1).await;
    assert_eq!(offers.len(), 1, "one payload was to be on offer");
    offers.remove(0)
}

async fn is_closed(queue: &impl Queue) -> bool {
    matches!(queue.claim(1, SLOTS).await.expect("claim"), Claimed::Closed)
}

async fn is_empty(queue: &impl Queue) -> bool {
    matches!(queue.claim(1, SLOTS).await.expect("claim"), Claimed::Empty)
}

/// The next offer, when it takes a pause to come; the queue has to wake whoever waits.
async fn next(queue: &impl Queue) -> Offer {
    for _ in 0..3 {
        if let Some(offer) = offers(queue, 1).await.pop() {
            return offer;
        }
        tokio::time::timeout(LONG, queue.wait_ready()).await.expect("the queue wakes who waits for a retry");
    }
    panic!("the queue woke us three times and had nothing");
}

/// A claim gives no more than was asked for, each payload once, and each under a name of its own.
pub async fn a_claim_is_bounded_and_gives_nothing_twice<Q: Queue>(make: impl Fn(Vec<Entry>) -> Q) {
    let queue = make(entries(5));
    let mut claims = BTreeSet::new();
    let mut names = Vec::new();
    for wanted in [2, 2, 2] {
        let offers = offers(&queue, wanted).await;
        assert!(offers.len() <= wanted as usize, "{} were asked for, {} came", wanted, offers.len());
        for offer in offers {
            assert!(claims.insert(offer.claim), "{} was given twice", offer.claim);
            assert_eq!(offer.terms.attempt, 1);
            names.push(offer.payload.name.to_string());
        }
    }
    assert_eq!(names, ["p0", "p1", "p2", "p3", "p4"], "in the submitter's order");
    assert!(is_empty(&queue).await, "claimed is not closed: any of them may come back");
}

/// A claim that was reported or released is over: a second answer is refused and changes nothing.
pub async fn a_claim_has_one_answer<Q: Queue>(make: impl Fn(Vec<Entry>) -> Q) {
    let queue = make(entries(2));
    let (reported, released) = (one(&queue).await.claim, one(&queue).await.claim);
    let held = queue.renew(reported).await.expect("renew");
    assert!(matches!(held, Renewed::Extended(_)), "{held:?}");
    queue.report(reported, success()).await.expect("report");
    queue.release(released, ReleaseWhy::Closed).await.expect("release");
    for claim in [reported, released, ClaimId(u64::MAX)] {
        assert!(queue.report(claim, exit(1)).await.is_err(), "{claim} was reported a second time");
        assert!(
            queue.release(claim, ReleaseWhy::NoRoom).await.is_err(),
            "{claim} was released a second time"
        );
        assert_eq!(queue.renew(claim).await.expect("renew"), Renewed::Lost, "{claim} is held by no one");
    }
    let again = one(&queue).await;
    assert_eq!(
        again.payload.name.as_str(),
        "p1",
        "what was reported stays so, what was released is there again"
    );
    queue.report(again.claim, success()).await.expect("report");
    assert!(is_closed(&queue).await);
}

/// What is released is offered again at once, under a new name, and it was no try.
pub async fn a_released_payload_is_offered_again<Q: Queue>(make: impl Fn(Vec<Entry>) -> Q) {
    let queue = make(entries(1));
    let stopped = ReleaseWhy::Stopped(StopCause::PilotStopping);
    let mut seen = BTreeSet::new();
    for why in [ReleaseWhy::Closed, ReleaseWhy::NoRoom, ReleaseWhy::WaitedTooLong, stopped] {
        let offer = one(&queue).await;
        assert_eq!(offer.terms.attempt, 1, "a claim that never ran is no try");
        assert!(seen.insert(offer.claim), "{} was given a second time", offer.claim);
        queue.release(offer.claim, why).await.expect("release");
    }
    assert_eq!(offers(&queue, 5).await.len(), 1);
}

/// A payload that failed comes back as often as its retries say, after a pause, and counts its tries.
pub async fn a_failed_payload_comes_back_until_its_retries_are_spent<Q: Queue>(
    make: impl Fn(Vec<Entry>) -> Q,
) {
    let queue = make(chain(2));
    for attempt in 1..=3 {
        let offer = next(&queue).await;
        assert_eq!((offer.payload.name.as_str(), offer.terms.attempt), ("first", attempt));
        let reported = queue.report(offer.claim, exit(1)).await.expect("report");
        assert_eq!(matches!(reported, Reported::Retried), attempt < 3, "try {attempt} of 3");
        if attempt < 3 {
            assert!(is_empty(&queue).await, "no pause before try {}", attempt + 1);
        }
    }
    assert!(is_closed(&queue).await);
}

/// With the last failure goes everything that waits for the payload, and the report says so.
pub async fn a_final_failure_skips_what_comes_after<Q: Queue>(make: impl Fn(Vec<Entry>) -> Q) {
    let queue = make(chain(0));
    let offer = one(&queue).await;
    let Reported::Final { skipped } = queue.report(offer.claim, exit(1)).await.expect("report") else {
        panic!("there are no retries");
    };
    let names: BTreeSet<&str> = skipped.iter().map(|payload| payload.name.as_str()).collect();
    assert_eq!(names, BTreeSet::from(["second", "third"]));
    assert!(is_closed(&queue).await);
}

/// A payload that may run at most once is not offered again when its code may have run, and is when it did not.
pub async fn at_most_once_holds_once_it_was_launched<Q: Queue>(make: impl Fn(Vec<Entry>) -> Q) {
    let queue = make(vec![Entry { at_most_once: true, retries: 5, ..entry(payload("once")) }]);
    let offer = one(&queue).await;
    assert!(offer.terms.at_most_once);
    let fault = Fault::new(FaultClass::Slot, "the slot broke");
    let before = Outcome::before_launch(Conclusion::Failed(fault.clone()));
    assert_eq!(queue.report(offer.claim, before).await, Ok(Reported::Retried));
    let offer = next(&queue).await;
    let launched = Outcome { launched: true, ..Outcome::before_launch(Conclusion::Failed(fault)) };
    let reported = queue.report(offer.claim, launched).await;
    assert_eq!(reported, Ok(Reported::Final { skipped: Vec::new() }));
    assert!(is_closed(&queue).await);
}

/// A payload is offered when all that comes before it has succeeded, and not a moment sooner.
pub async fn what_comes_after_waits_for_all_before_it<Q: Queue>(make: impl Fn(Vec<Entry>) -> Q) {
    let mut list = entries(2);
    list.push(Entry { after: vec![0, 1], ..entry(payload("last")) });
    let queue = make(list);
    let before = offers(&queue, 10).await;
    assert_eq!(before.len(), 2);
    for offer in before {
        assert!(is_empty(&queue).await, "the last one was offered too soon");
        queue.report(offer.claim, success()).await.expect("report");
    }
    let last = one(&queue).await;
    assert_eq!(last.payload.name.as_str(), "last");
    queue.report(last.claim, success()).await.expect("report");
}

/// Closed is said when every payload has come to its end, and then for ever.
pub async fn closed_is_said_only_at_the_end<Q: Queue>(make: impl Fn(Vec<Entry>) -> Q) {
    assert!(is_closed(&make(Vec::new())).await, "a queue without payloads is at its end");
    let queue = make(entries(2));
    let (first, second) = (one(&queue).await, one(&queue).await);
    queue.report(first.claim, success()).await.expect("report");
    assert!(is_empty(&queue).await, "one is still claimed");
    queue.release(second.claim, ReleaseWhy::NoRoom).await.expect("release");
    let second = one(&queue).await;
    queue.report(second.claim, exit(1)).await.expect("report");
    assert!(is_closed(&queue).await && is_closed(&queue).await);
}

/// Whoever waits is woken by a report that frees a payload, by a release, and by one that came before the wait.
pub async fn a_wait_ends_when_there_may_be_something<Q: Queue>(make: impl Fn(Vec<Entry>) -> Q) {
    let soon = Duration::from_secs(1);
    let queue = make(chain(0));
    let first = one(&queue).await;
    assert!(is_empty(&queue).await);
    let asleep = tokio::time::timeout(soon, queue.wait_ready()).await;
    assert!(asleep.is_err(), "woken for nothing");
    let (woken, reported) =
        tokio::join!(tokio::time::timeout(soon, queue.wait_ready()), queue.report(first.claim, success()));
    assert!(woken.is_ok() && reported.is_ok(), "not woken by a report");
    let second = one(&queue).await;
    let (woken, released) = tokio::join!(
        tokio::time::timeout(soon, queue.wait_ready()),
        queue.release(second.claim, ReleaseWhy::NoRoom)
    );
    assert!(woken.is_ok() && released.is_ok(), "not woken by a release");
    let second = one(&queue).await;
    assert!(is_empty(&queue).await);
    queue.report(second.claim, success()).await.expect("report");
    let woken = tokio::time::timeout(soon, queue.wait_ready()).await;
    assert!(woken.is_ok(), "what came between the claim and the wait was missed");
    assert_eq!(one(&queue).await.payload.name.as_str(), "third");
}

/// `first`, then `a`, `b` and `c`, which run together after it, and `last` after `c`; `change` changes those three.
fn with_gang(change: impl Fn(&mut Entry)) -> Vec<Entry> {
    let gang: Vec<_> = ["a", "b", "c"].map(name).into();
    let member = |text: &str| {
        let mut member = Entry { after: vec![0], ..entry(Payload { gang: gang.clone(), ..payload(text) }) };
        change(&mut member);
        member
    };
    let last = Entry { after: vec![3], ..entry(payload("last")) };
    vec![entry(payload("first")), member("a"), member("b"), member("c"), last]
}

/// Claims the gang of [`with_gang`], after `first`.
async fn gang(queue: &impl Queue) -> Vec<Offer> {
    let first = one(queue).await;
    queue.report(first.claim, success()).await.expect("report");
    offers(queue, 3).await
}

async fn claimed(queue: &impl Queue, at_most: u32, slots: u32) -> usize {
    match queue.claim(at_most, slots).await.expect("claim") {
        Claimed::Offers(offers) => offers.len(),
        Claimed::Empty | Claimed::Closed => 0,
    }
}

fn because(culprit: &str) -> Outcome {
    Outcome { conclusion: Conclusion::GangFailed(culprit.into()), ..exit(1) }
}

/// A gang is given whole or not at all, what is behind it waits for its turn, and one that is larger than the pilot comes all the
/// same.
pub async fn a_gang_is_given_whole_or_not_at_all<Q: Queue>(make: impl Fn(Vec<Entry>) -> Q) {
    let mut list = with_gang(|_| {});
    list.push(entry(payload("behind")));
    let queue = make(list);
    let first = one(&queue).await;
    let behind = one(&queue).await;
    assert_eq!(behind.payload.name.as_str(), "behind", "the gang is not ready yet");
    queue.release(behind.claim, ReleaseWhy::NoRoom).await.expect("release");
    queue.report(first.claim, success()).await.expect("report");
    assert_eq!(claimed(&queue, 2, SLOTS).await, 0);
    let all = offers(&queue, 4).await;
    let names: Vec<&str> = all.iter().map(|offer| offer.payload.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "behind"]);
    let gangs: BTreeSet<_> = all[..3].iter().map(|offer| offer.terms.gang.map(|gang| gang.id)).collect();
    assert_eq!((gangs.len(), all[0].terms.gang.map(|gang| gang.size)), (1, Some(3)));
    assert_eq!(all[3].terms.gang, None);
    for offer in all {
        queue.release(offer.claim, ReleaseWhy::NoRoom).await.expect("release");
    }
    assert_eq!(claimed(&queue, 2, 2).await, 3, "this pilot has to learn that it never fits");
}

/// Who waits while a gang is too large for it is woken by what changes, and not without end by what is there.
pub async fn who_has_no_room_for_a_gang_is_not_kept_awake_by_it<Q: Queue>(make: impl Fn(Vec<Entry>) -> Q) {
    let queue = make(with_gang(|_| {}));
    let held = gang(&queue).await;
    for offer in held {
        queue.release(offer.claim, ReleaseWhy::NoRoom).await.expect("release");
    }
    // What was said before is heard once.
    let mut woken = 0;
    let quiet = tokio::time::timeout(Duration::from_millis(500), async {
        loop {
            assert_eq!(claimed(&queue, 1, SLOTS).await, 0);
            queue.wait_ready().await;
            woken += 1;
            assert!(woken < 8, "woken without end");
        }
    });
    quiet.await.expect_err("it sleeps");
}

/// Members succeed together; only then what comes after is offered.
pub async fn a_gang_succeeds_as_a_whole<Q: Queue>(make: impl Fn(Vec<Entry>) -> Q) {
    let queue = make(with_gang(|_| {}));
    let ends: Vec<_> = gang(&queue).await.iter().map(|offer| (offer.claim, success())).collect();
    assert!(is_empty(&queue).await);
    let reported = queue.report_together(ends.clone()).await.expect("report");
    assert_eq!(reported, vec![Reported::Final { skipped: Vec::new() }; 3]);
    queue.report_together(ends).await.expect_err("it is over");
    assert_eq!(one(&queue).await.payload.name.as_str(), "last");
}

/// A gang comes back whole as long as those who failed have tries left, and only they are charged.
pub async fn a_gang_comes_back_whole_until_one_has_no_try_left<Q: Queue>(make: impl Fn(Vec<Entry>) -> Q) {
    let queue = make(with_gang(|member| member.retries = u32::from(member.payload.name.as_str() == "b")));
    let mut held = gang(&queue).await;
    for attempt in 1..=2 {
        assert!(held.iter().all(|offer| offer.terms.attempt == attempt), "{held:?}");
        let end = |offer: &Offer| match offer.payload.name.as_str() {
            "b" => (offer.claim, exit(1)),
            _ => (offer.claim, because("b")),
        };
        let ends = held.iter().map(end).collect();
        let reported = queue.report_together(ends).await.expect("report");
        assert_eq!(reported.iter().all(|one| *one == Reported::Retried), attempt == 1, "{reported:?}");
        held.clear();
        for _ in 0..3 {
            if attempt == 1 && held.is_empty() {
                tokio::time::timeout(LONG, queue.wait_ready()).await.expect("woken");
                held = offers(&queue, 3).await;
            }
        }
        if attempt == 2 {
            let skipped = |one: &Reported| match one {
                Reported::Final { skipped } => skipped.len(),
                Reported::Retried => 9,
            };
            assert_eq!(reported.iter().map(skipped).sum::<usize>(), 1, "that is last");
        }
    }
    assert!(is_closed(&queue).await);
}

/// A gang with a payload that may run at most once does not come back when that one was launched, whoever failed.
pub async fn at_most_once_holds_for_a_gang<Q: Queue>(make: impl Fn(Vec<Entry>) -> Q) {
    for launched in [false, true] {
        let queue = make(with_gang(|member| {
            member.retries = 5;
            member.at_most_once = member.payload.name.as_str() == "a";
        }));
        let end = |offer: &Offer| match offer.payload.name.as_str() {
            "b" => (offer.claim, Outcome { launched, ..exit(1) }),
            _ => (offer.claim, Outcome { launched, ..because("b") }),
        };
        let ends = gang(&queue).await.iter().map(end).collect();
        let reported = queue.report_together(ends).await.expect("report");
        assert_eq!(reported.iter().all(|one| *one == Reported::Retried), !launched, "{reported:?}");
    }
}

/// Two pilots ask the same queue as fast as they can: each payload is accepted once, whoever has it, and both end.
pub async fn two_pilots_share_and_each_payload_is_accepted_once<Q: Queue>(one: Q, two: Q, count: usize) {
    async fn serve(queue: &impl Queue) -> Vec<String> {
        let mut accepted = Vec::new();
        loop {
            match queue.claim(3, SLOTS).await.expect("claim") {
                Claimed::Offers(offers) => {
                    for offer in offers {
                        queue.report(offer.claim, success()).await.expect("report");
                        accepted.push(offer.payload.name.to_string());
                    }
                }
                Claimed::Empty => {
                    tokio::time::timeout(LONG, queue.wait_ready()).await.expect("woken");
                }
                Claimed::Closed => return accepted,
            }
        }
    }
    let (mut accepted, theirs) = tokio::join!(serve(&one), serve(&two));
    accepted.extend(theirs);
    accepted.sort();
    let unique: BTreeSet<&String> = accepted.iter().collect();
    assert_eq!((accepted.len(), unique.len()), (count, count));
}

/// A pilot that does not renew in time loses the payload to another one, and whatever it says of it is refused.
pub async fn a_lost_lease_is_the_other_pilots<Q: Queue>(slow: Q, quick: Q) {
    let lost = one(&slow).await;
    assert!(lost.lease.is_some(), "who shares gives leases");
    let won = next(&quick).await;
    assert_eq!(won.payload.name, lost.payload.name);
    assert_eq!((won.terms.attempt, won.claim == lost.claim), (2, false));
    assert_eq!(slow.renew(lost.claim).await.expect("renew"), Renewed::Lost);
    let refused = slow.report(lost.claim, exit(1)).await.expect_err("it is the other's");
    assert_ne!(refused.class, FaultClass::Retry, "there is no use in saying it again");
    slow.release(lost.claim, ReleaseWhy::NoRoom).await.expect_err("it is the other's");
    quick.report(won.claim, success()).await.expect("report");
}

/// A lease that is renewed in time goes on, however long.
pub async fn a_renewed_lease_goes_on<Q: Queue>(held: Q, other: Q) {
    let offer = one(&held).await;
    let span = offer.lease.expect("who shares gives leases");
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(span.renew_after_ms)).await;
        let renewed = held.renew(offer.claim).await.expect("renew");
        assert_eq!(renewed, Renewed::Extended(Some(span)));
        assert!(offers(&other, 1).await.is_empty());
    }
    held.report(offer.claim, success()).await.expect("report");
}
