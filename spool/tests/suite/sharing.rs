//! Pilots that can have each other's stages share the runs that hand them on.

use crate::common::{TestClock, exit, open, payload, submission};
use spool::{Claimant, NewPayload, Read, Recovery, RunId, Spool};

const LEASE: u64 = 60_000;
const A: Claimant<'_> = Claimant { pilot: "a", domain: Some("node-1") };
const B: Claimant<'_> = Claimant { pilot: "b", domain: Some("node-1") };
const ELSEWHERE: Claimant<'_> = Claimant { pilot: "c", domain: Some("node-2") };
const ALONE: Claimant<'_> = Claimant { pilot: "node-1", domain: None };

fn reader(name: &str, producer: usize) -> NewPayload {
    NewPayload { reads: vec![Read { producer, output: "data".to_owned() }], ..payload(name, &[]) }
}

/// A producer that may come back once, and two who read what it makes.
fn fan(spool: &mut Spool) -> RunId {
    let make = NewPayload { retries: 1, ..payload("make", &[]) };
    let list = vec![make, reader("one", 0), reader("two", 0)];
    spool.submit(&submission("w", list)).expect("submit").run
}

fn states(spool: &Spool, run: RunId) -> String {
    let rows = spool.payloads(run, &[], None, 100).expect("payloads");
    rows.iter().map(|row| row.state.name().chars().next().expect("a word")).collect()
}

#[test]
fn a_run_that_hands_stages_is_run_by_all_pilots_of_one_domain_and_by_no_other() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    let run = fan(&mut spool);
    let made = spool.claim(A, 9, LEASE).expect("claim").remove(0);
    spool.report(made.claim, &exit(0)).expect("report");
    for other in [ELSEWHERE, ALONE] {
        assert_eq!(spool.claim(other, 9, LEASE).expect("claim"), [], "{other:?}");
        assert!(!spool.upcoming(other).expect("upcoming").now);
    }
    assert!(spool.upcoming(B).expect("upcoming").now);
    let one = spool.claim(B, 1, LEASE).expect("claim").remove(0);
    let two = spool.claim(A, 9, LEASE).expect("claim").remove(0);
    assert_eq!((one.spec.as_str(), two.spec.as_str()), ("spec of one", "spec of two"));
    for claim in [one.claim, two.claim] {
        spool.report(claim, &exit(0)).expect("report");
    }
    assert_eq!(states(&spool, run), "sss");
}

#[test]
fn what_a_pilot_began_before_it_shared_stays_its_own() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    fan(&mut spool);
    let made = spool.claim("a", 1, LEASE).expect("claim").remove(0);
    spool.report(made.claim, &exit(0)).expect("report");
    assert_eq!(spool.claim(B, 9, LEASE).expect("claim"), []);
    assert_eq!(spool.claim(A, 9, LEASE).expect("claim").len(), 2);
}

#[test]
fn each_pilot_of_a_domain_recovers_its_own_claims_and_no_stage_that_another_has_is_lost() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    let run = fan(&mut spool);
    let made = spool.claim(A, 1, LEASE).expect("claim").remove(0);
    spool.report(made.claim, &exit(0)).expect("report");
    let one = spool.claim(B, 1, LEASE).expect("claim").remove(0);
    let recovery = Recovery { claimant: A, running: &[], launched: None, lease_ms: LEASE };
    let recovered = spool.recover(&recovery, &mut |_| true).expect("recover");
    assert_eq!((recovered.kept.len(), recovered.given_up, recovered.made_again.len()), (0, 0, 0));
    assert_eq!(states(&spool, run), "scr");
    spool.report(one.claim, &exit(0)).expect("report");

    // Gone with the exchange, while another pilot goes on.
    let restored = spool.restore(B, &mut |_| true).expect("restore");
    assert_eq!(restored, spool::Recovered::default());
    let mut asked = Vec::new();
    let restored = spool.restore(B, &mut |uri| {
        asked.push(uri.to_owned());
        false
    });
    let restored = restored.expect("restore");
    assert_eq!((restored.made_again.len(), restored.failed.len()), (1, 0));
    assert_eq!(asked, ["stage://w.1/make/data"]);
    assert_eq!(states(&spool, run), "rsw");
    assert_eq!(spool.restore(ELSEWHERE, &mut |_| false).expect("restore"), spool::Recovered::default());
    for spec in ["spec of make", "spec of two"] {
        let offer = spool.claim(B, 9, LEASE).expect("claim").remove(0);
        assert_eq!(offer.spec, spec);
        spool.report(offer.claim, &exit(0)).expect("report");
    }
    assert_eq!(states(&spool, run), "sss");
}

#[test]
fn a_spool_has_an_identity_that_stays() {
    let folders = [tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder")];
    let clock = TestClock::new();
    let all: Vec<String> = std::thread::scope(|scope| {
        let (folders, clock) = (&folders, &clock);
        let ask = move |n: usize| open(folders[n % 2].path(), clock).identity().expect("identity");
        let asked: Vec<_> = (0..8).map(|n| scope.spawn(move || ask(n))).collect();
        asked.into_iter().map(|one| one.join().expect("a thread")).collect()
    });
    assert!(all.iter().all(|one| one.len() == 32), "{all:?}");
    assert!((0..8).all(|n| all[n] == all[n % 2]) && all[0] != all[1], "{all:?}");
}
