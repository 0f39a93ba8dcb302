//! What the spool's queue adds to the port's promises: leases between pilots, cancelling, recovery, a database that
//! someone else holds.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use pilot::payload::{Input, Payload, Source};
use pilot::ports::{Claimed, LeaseSpan, Offer, Queue, Renewed};
use pilot::queue::spool::{SpoolQueue, SpoolQueueConfig};
use pilot::queue::workflow::Entry;
use pilot_core::{ClaimId, Conclusion, FaultClass};
use pilot_tests::conformance::queue::{self, SLOTS, success};
use pilot_tests::fake::{WORKFLOW, entry, name, payload};
use pilot_tests::spooled::submit;
use rustix::process::{Pid, Signal, kill_process};
use spool::{RunId, Selection, Spool, State};
use stage::StageUri;

const SHORT: LeaseSpan = LeaseSpan { renew_after_ms: 100, expires_after_ms: 300 };
const SOON: Duration = Duration::from_secs(20);

fn open(folder: &Path, pilot: &str, lease: LeaseSpan) -> SpoolQueue {
    let config = SpoolQueueConfig { lease, closes: true, ..SpoolQueueConfig::new(pilot) };
    SpoolQueue::open(folder, config).expect("spool queue")
}

fn entries(count: usize) -> Vec<Entry> {
    (0..count).map(|index| entry(payload(&format!("p{index}")))).collect()
}

async fn offers(queue: &SpoolQueue, at_most: u32) -> Vec<Offer> {
    match queue.claim(at_most, SLOTS).await.expect("claim") {
        Claimed::Offers(offers) => offers,
        Claimed::Empty | Claimed::Closed => Vec::new(),
    }
}

fn reads(producer: &str) -> Input {
    let uri = StageUri { workflow: name(WORKFLOW), payload: name(producer), output: name("data") };
    Input { name: name("in"), source: Source::Stage(uri), at: None }
}

#[tokio::test]
async fn two_pilots_share_a_spool() {
    let folder = tempfile::tempdir().expect("folder");
    submit(folder.path(), &entries(120));
    let lease = pilot::queue::spool::LEASE;
    let (one, two) = (open(folder.path(), "one", lease), open(folder.path(), "two", lease));
    queue::two_pilots_share_and_each_payload_is_accepted_once(one, two, 120).await;
}

#[tokio::test]
async fn a_lost_lease_is_the_other_pilots() {
    let folder = tempfile::tempdir().expect("folder");
    submit(folder.path(), &entries(1));
    let (slow, quick) = (open(folder.path(), "slow", SHORT), open(folder.path(), "quick", SHORT));
    queue::a_lost_lease_is_the_other_pilots(slow, quick).await;
}

#[tokio::test]
async fn a_renewed_lease_goes_on() {
    let folder = tempfile::tempdir().expect("folder");
    submit(folder.path(), &entries(1));
    let lease = LeaseSpan { renew_after_ms: 200, expires_after_ms: 5_000 };
    let (held, other) = (open(folder.path(), "held", lease), open(folder.path(), "other", lease));
    queue::a_renewed_lease_goes_on(held, other).await;
}

#[tokio::test]
async fn a_submission_by_another_process_wakes_who_waits() {
    let folder = tempfile::tempdir().expect("folder");
    let queue = SpoolQueue::open(folder.path(), SpoolQueueConfig::new("one")).expect("spool queue");
    assert!(matches!(queue.claim(1, SLOTS).await, Ok(Claimed::Empty)), "a pilot that serves is never closed");
    let submitted = async {
        submit(folder.path(), &entries(1));
        spool::poke(folder.path());
    };
    let (woken, ()) = tokio::join!(tokio::time::timeout(SOON, queue.wait_ready()), submitted);
    woken.expect("woken");
    assert_eq!(offers(&queue, 9).await.len(), 1);
    // Without a poke the next look finds it.
    submit(folder.path(), &entries(1));
    tokio::time::timeout(SOON, queue.wait_ready()).await.expect("woken");
    assert_eq!(offers(&queue, 9).await.len(), 1);
}

#[tokio::test]
async fn a_cancelled_claim_is_told_once() {
    let folder = tempfile::tempdir().expect("folder");
    submit(folder.path(), &entries(3));
    let queue = open(folder.path(), "one", pilot::queue::spool::LEASE);
    let held: Vec<ClaimId> = offers(&queue, 2).await.iter().map(|offer| offer.claim).collect();
    let mut user = Spool::open(folder.path()).expect("open");
    user.cancel(&Selection::Run(RunId(1))).expect("cancel");
    spool::poke(folder.path());
    let mut told = Vec::new();
    for _ in 0..2 {
        told.push(tokio::time::timeout(SOON, queue.wait_cancelled()).await.expect("told"));
    }
    told.sort();
    assert_eq!(told, held);
    let more = tokio::time::timeout(Duration::from_millis(1500), queue.wait_cancelled()).await;
    assert!(more.is_err(), "{more:?} was told twice");
}

#[tokio::test]
async fn runs_of_one_workflow_share_no_stage() {
    let folder = tempfile::tempdir().expect("folder");
    let reader = Payload { inputs: vec![reads("make")], ..payload("read") };
    let list = [entry(payload("make")), Entry { after: vec![0], ..entry(reader) }];
    submit(folder.path(), &list);
    submit(folder.path(), &list);
    let queue = open(folder.path(), "one", pilot::queue::spool::LEASE);
    let mut seen = Vec::new();
    for _ in 0..4 {
        let offer = offers(&queue, 1).await.remove(0);
        seen.push(format!("{}/{}", offer.payload.workflow, offer.payload.name));
        if let Some(Source::Stage(uri)) = offer.payload.inputs.first().map(|input| &input.source) {
            seen.push(uri.to_string());
        }
        queue.report(offer.claim, success()).await.expect("report");
    }
    let expected = [
        "suite.1/make",
        "suite.1/read",
        "stage://suite.1/make/data",
        "suite.2/make",
        "suite.2/read",
        "stage://suite.2/make/data",
    ];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_pilot_takes_up_what_it_left() {
    let folder = tempfile::tempdir().expect("folder");
    let reader = Payload { inputs: vec![reads("make")], ..payload("read") };
    let make = Entry { retries: 1, ..entry(payload("make")) };
    let list = [make, Entry { after: vec![0], ..entry(reader) }, entry(payload("runs"))];
    submit(folder.path(), &list);
    let lease = pilot::queue::spool::LEASE;
    let before = open(folder.path(), "one", lease);
    let make = offers(&before, 1).await.remove(0);
    before.report(make.claim, success()).await.expect("report");
    let held = offers(&before, 2).await;
    drop(before);
    let after = open(folder.path(), "one", lease);
    let unfinished = after.unfinished(&make.payload.workflow).await.expect("unfinished");
    assert_eq!(unfinished.into_iter().collect::<Vec<_>>(), ["read", "runs"]);
    let running = held.iter().filter(|offer| offer.payload.name.as_str() == "runs");
    let running: Vec<ClaimId> = running.map(|offer| offer.claim).collect();
    let recovered = after
        .recover(running.clone(), Some(Vec::new()), |uri| {
            assert_eq!(uri.to_string(), "stage://suite.1/make/data");
            false
        })
        .await
        .expect("recover");
    assert_eq!(recovered.offers.iter().map(|offer| offer.claim).collect::<Vec<_>>(), running);
    assert_eq!((recovered.given_up, recovered.given_back, recovered.made_again.len()), (0, 1, 1));
    let again = offers(&after, 9).await;
    assert_eq!(again.iter().map(|offer| offer.payload.name.as_str()).collect::<Vec<_>>(), ["make"]);
}

#[tokio::test]
async fn a_spec_that_cannot_be_read_is_reported_failed() {
    let folder = tempfile::tempdir().expect("folder");
    let new = |spec: &str| spool::NewPayload {
        name: "odd".into(),
        family: "odd".into(),
        spec: spec.into(),
        image: String::new(),
        after: Vec::new(),
        reads: Vec::new(),
        retries: 3,
        at_most_once: false,
        trust_group: "user".into(),
        cpu_millis: 1,
        memory_bytes: 1,
        gang: None,
    };
    let mut user = Spool::open(folder.path()).expect("open");
    for spec in ["", "{\"from\": \"the future\"}"] {
        let submission = spool::Submission {
            name: "w".into(),
            key: None,
            origin: String::new(),
            out: String::new(),
            payloads: vec![new(spec)],
        };
        user.submit(&submission).expect("submit");
    }
    submit(folder.path(), &entries(1));
    let queue = open(folder.path(), "one", pilot::queue::spool::LEASE);
    assert_eq!(offers(&queue, 1).await[0].payload.name.as_str(), "p0");
    for run in [1, 2] {
        let row = user.payload(RunId(run), "odd").expect("payload").expect("there");
        assert_eq!(row.state, State::Failed);
        let Some(Conclusion::Failed(fault)) = row.outcome.map(|outcome| outcome.conclusion) else {
            panic!("it has a fault");
        };
        assert!(fault.message.starts_with("read the payload's spec"), "{fault}");
    }
}

/// The environment's word for the child of the next test.
const HOLD: &str = "LATEBIND_TEST_HOLD";

#[test]
fn the_child_that_holds_the_database() {
    // No test of its own: without the word it does nothing.
    let Some((_, folder)) = std::env::vars().find(|(name, _)| name == HOLD) else { return };
    let mut spool = Spool::open(Path::new(&folder)).expect("open");
    let held = spool.transact(|_| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\nholding").and_then(|()| out.flush()).expect("say");
        std::thread::sleep(Duration::from_secs(3600));
        Ok(())
    });
    drop(held);
}

#[tokio::test]
async fn a_stopped_process_that_holds_the_database_is_waited_out() {
    let folder = tempfile::tempdir().expect("folder");
    submit(folder.path(), &entries(2));
    let queue = open(folder.path(), "one", pilot::queue::spool::LEASE);
    let held = offers(&queue, 1).await.remove(0);
    #[expect(clippy::disallowed_methods, reason = "the test owns the process it starts, and waits for it")]
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "the_child_that_holds_the_database", "--nocapture"]).env(HOLD, folder.path());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("spawn");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "holding"), "the child did not get the database");
    kill_process(Pid::from_child(&child), Signal::STOP).expect("stop");
    // Whatever is asked meanwhile is answered, in bounded time, with: try again.
    let (renewed, reported, claimed) =
        tokio::join!(queue.renew(held.claim), queue.report(held.claim, success()), queue.claim(1, SLOTS));
    let classes = [renewed.map(drop), reported.map(drop), claimed.map(drop)]
        .map(|answer| answer.expect_err("held").class);
    assert_eq!(classes, [FaultClass::Retry; 3]);
    let early = tokio::time::timeout(Duration::from_millis(50), queue.wait_cancelled()).await;
    assert!(early.is_err());
    kill_process(Pid::from_child(&child), Signal::KILL).expect("kill");
    child.wait().expect("wait");
    assert!(matches!(queue.renew(held.claim).await, Ok(Renewed::Extended(_))));
    queue.report(held.claim, success()).await.expect("report");
    assert_eq!(offers(&queue, 9).await.len(), 1);
}
