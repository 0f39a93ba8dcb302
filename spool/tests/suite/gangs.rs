//! Payloads that run together: claimed whole, ended whole.

use pilot_core::{ClaimId, Conclusion, ExitStatus, Outcome};
use proptest::prelude::*;
use spool::{Address, Found, NewPayload, Recovery, Report, Selection, Spool, State, Want};

use crate::common::{TestClock, exit, open, payload, submission};

const LEASE: u64 = 60_000;
const BAD: Conclusion = Conclusion::Exited(ExitStatus::Code(1));

fn ended(conclusion: Conclusion) -> Outcome {
    Outcome { launched: true, ..Outcome::before_launch(conclusion) }
}

/// `single`, then `a`, `b` and `c`, which run together, and `after`, which waits for `b`.
fn with_gang(
    folder: &std::path::Path,
    change: impl Fn(&mut NewPayload),
) -> (Spool, std::sync::Arc<TestClock>) {
    let clock = TestClock::new();
    let mut spool = open(folder, &clock);
    let member = |name| {
        let mut member = NewPayload { gang: Some(1), ..payload(name, &[]) };
        change(&mut member);
        member
    };
    let payloads =
        vec![payload("single", &[]), member("a"), member("b"), member("c"), payload("after", &[2])];
    spool.submit(&submission("run", payloads)).expect("submit");
    (spool, clock)
}

fn claim(spool: &mut Spool, at_most: u32, slots: u32) -> (Vec<spool::Offer>, bool) {
    let granted = spool.transact(|work| work.claim_for("p", Want { at_most, slots }, LEASE)).expect("claim");
    (granted.offers, granted.held_up)
}

fn state(spool: &mut Spool, name: &str) -> State {
    let address: Address = format!("run/{name}").parse().expect("address");
    match spool.find(&address).expect("find") {
        Found::Payload(row) => row.state,
        other => panic!("{other:?}"),
    }
}

fn states(spool: &mut Spool) -> [State; 4] {
    ["a", "b", "c", "after"].map(|name| state(spool, name))
}

/// Claims the gang; `single` is done with.
fn gang(spool: &mut Spool) -> Vec<ClaimId> {
    let (offers, _) = claim(spool, 4, 4);
    let claims: Vec<ClaimId> = offers.iter().map(|offer| offer.claim).collect();
    let first = offers.iter().position(|offer| offer.gang.is_some()).expect("a gang");
    for claim in &claims[..first] {
        spool.report(*claim, &exit(0)).expect("report");
    }
    claims[first..].to_vec()
}

fn report(spool: &mut Spool, ends: Vec<(ClaimId, Outcome)>) -> Vec<Report> {
    let reports = spool.transact(|work| work.report_together(&ends)).expect("report");
    reports.into_iter().map(|(_, report)| report).collect()
}

#[test]
fn a_gang_is_claimed_whole_and_what_is_behind_it_waits_with_it() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut spool, _) = with_gang(folder.path(), |_| {});
    spool.submit(&submission("later", vec![payload("later", &[])])).expect("submit");
    let (offers, held_up) = claim(&mut spool, 3, 4);
    assert_eq!((offers.len(), held_up), (1, true));
    assert_eq!(claim(&mut spool, 2, 4), (vec![], true));
    let (offers, held_up) = claim(&mut spool, 4, 4);
    let first = offers[0].claim;
    let gangs: Vec<_> = offers.iter().map(|offer| offer.gang).collect();
    assert_eq!((gangs, held_up), (vec![Some((first, 3)), Some((first, 3)), Some((first, 3)), None], false));
}

#[test]
fn one_that_is_larger_than_the_pilot_is_handed_out_for_it_to_fail() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut spool, _) = with_gang(folder.path(), |_| {});
    let (offers, held_up) = claim(&mut spool, 2, 2);
    assert_eq!((offers.len(), held_up), (4, false));
}

#[test]
fn it_succeeds_whole_or_comes_back_whole() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut spool, clock) = with_gang(folder.path(), |member| member.retries = 1);
    let claims = gang(&mut spool);
    let failed = |claims: &[ClaimId]| {
        let other = || ended(Conclusion::GangFailed("b".into()));
        vec![(claims[0], other()), (claims[1], ended(BAD)), (claims[2], other())]
    };
    assert_eq!(report(&mut spool, failed(&claims)), [Report::Retried, Report::Retried, Report::Retried]);
    assert_eq!(claim(&mut spool, 4, 4).0, []);
    clock.advance(10_000);
    let claims = gang(&mut spool);
    let good = claims.iter().map(|claim| (*claim, exit(0))).collect();
    assert_eq!(report(&mut spool, good).len(), 3);
    assert_eq!(states(&mut spool), [State::Succeeded, State::Succeeded, State::Succeeded, State::Ready]);
}

#[test]
fn with_the_last_try_of_one_all_are_at_their_end() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut spool, _) = with_gang(folder.path(), |member| member.retries = u32::from(member.name == "a"));
    let claims = gang(&mut spool);
    let other = || ended(Conclusion::GangFailed("b".into()));
    let ends = vec![(claims[0], other()), (claims[1], ended(BAD)), (claims[2], other())];
    let reports = report(&mut spool, ends);
    let skipped = reports.iter().map(|report| match report {
        Report::Final { skipped } => skipped.len(),
        other => panic!("{other:?}"),
    });
    assert_eq!(skipped.sum::<usize>(), 1);
    assert_eq!(states(&mut spool), [State::Failed, State::Failed, State::Failed, State::Skipped]);
}

#[test]
fn a_lease_that_is_over_ends_every_claim_of_the_gang() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut spool, clock) = with_gang(folder.path(), |_| {});
    let claims = gang(&mut spool);
    clock.advance(LEASE / 2);
    for claim in &claims[1..] {
        assert!(spool.renew(*claim, LEASE).expect("renew"));
    }
    clock.advance(LEASE / 2);
    assert_eq!(claim(&mut spool, 4, 4).0, []);
    for claim in &claims {
        assert!(!spool.renew(*claim, LEASE).expect("renew"), "{claim} is over");
    }
    let late = report(&mut spool, claims.iter().map(|claim| (*claim, exit(0))).collect());
    assert_eq!(late, [Report::NotHeld, Report::NotHeld, Report::NotHeld]);
    assert_eq!(states(&mut spool)[..3], [State::Ready; 3]);
}

#[test]
fn claims_that_go_back_one_by_one_are_offered_again_when_the_last_is_back() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut spool, _) = with_gang(folder.path(), |_| {});
    let claims = gang(&mut spool);
    for claim in &claims {
        assert_eq!(self::claim(&mut spool, 4, 4).0, []);
        assert!(spool.release(*claim).expect("release"));
    }
    assert_eq!(gang(&mut spool).len(), 3);
}

#[test]
fn who_cancels_one_before_it_is_claimed_cancels_the_gang() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut spool, _) = with_gang(folder.path(), |_| {});
    let address: Address = "run/b".parse().expect("address");
    let found = spool.find(&address).expect("find");
    let cancelled = spool.cancel(&Selection::from(&found)).expect("cancel");
    assert_eq!((cancelled.ended, cancelled.skipped), (1, 3));
    assert_eq!(states(&mut spool), [State::Skipped, State::Cancelled, State::Skipped, State::Skipped]);
}

#[test]
fn a_claim_that_goes_back_to_a_gang_that_is_cancelled_meanwhile_is_skipped() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut spool, _) = with_gang(folder.path(), |_| {});
    let claims = gang(&mut spool);
    spool.release(claims[1]).expect("release");
    let address: Address = "run/b".parse().expect("address");
    let found = spool.find(&address).expect("find");
    spool.cancel(&Selection::from(&found)).expect("cancel");
    spool.release(claims[0]).expect("release");
    let ends = vec![(claims[2], ended(BAD))];
    assert!(matches!(report(&mut spool, ends)[..], [Report::Final { .. }]));
    assert_eq!(states(&mut spool), [State::Skipped, State::Cancelled, State::Failed, State::Skipped]);
}

#[test]
fn a_pilot_that_comes_back_goes_on_with_a_gang_that_is_whole_and_gives_up_one_that_is_not() {
    for (found, launched, given_up, given_back) in [(3, 3, 0, 0), (2, 3, 3, 0), (0, 0, 0, 3), (0, 1, 3, 0)] {
        let folder = tempfile::tempdir().expect("folder");
        let (mut spool, _) = with_gang(folder.path(), |_| {});
        let claims = gang(&mut spool);
        let recovery = Recovery {
            claimant: "p".into(),
            running: &claims[..found],
            launched: Some(&claims[..launched]),
            lease_ms: LEASE,
        };
        let recovered = spool.transact(|work| work.recover(&recovery, &mut |_| true)).expect("recover");
        let kept: Vec<_> = recovered.kept.iter().map(|offer| offer.gang).collect();
        let whole = if found == 3 { vec![Some((claims[0], 3)); 3] } else { vec![] };
        assert_eq!((kept, recovered.given_up, recovered.given_back), (whole, given_up, given_back));
    }
}

#[test]
fn a_spool_of_the_version_before_gangs_is_brought_up_to_date() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    open(folder.path(), &clock).submit(&submission("old", vec![payload("p", &[])])).expect("submit");
    let sql = rusqlite::Connection::open(folder.path().join("spool.db")).expect("open");
    sql.execute_batch(
        "DROP INDEX payloads_by_gang; ALTER TABLE payloads DROP COLUMN gang; PRAGMA user_version = 1",
    )
    .expect("as it was");
    drop(sql);
    let mut spool = open(folder.path(), &clock);
    assert_eq!(claim(&mut spool, 1, 1).0.len(), 1);
    let pair = ["a", "b"].map(|name| NewPayload { gang: Some(0), ..payload(name, &[]) });
    spool.submit(&submission("new", pair.to_vec())).expect("submit");
    assert_eq!(claim(&mut open(folder.path(), &clock), 2, 2).0.len(), 2);
}

#[test]
fn members_that_come_after_different_payloads_are_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let mut spool = open(folder.path(), &TestClock::new());
    let member = |name, after: &[usize]| NewPayload { gang: Some(1), ..payload(name, after) };
    let payloads = vec![payload("x", &[]), member("a", &[0]), member("b", &[])];
    let error = spool.submit(&submission("run", payloads)).expect_err("b could never be ready with a");
    assert!(error.to_string().contains("\"b\" can't run together"), "{error}");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Claim {
        at_most: u32,
    },
    /// Of the claims that are held, one gang or single ends, in one of these ways.
    End {
        which: usize,
        how: usize,
    },
    Release {
        which: usize,
    },
    Renew {
        which: usize,
    },
    Cancel {
        which: usize,
    },
    Wait {
        ms: u64,
    },
}

fn name_of(index: usize) -> &'static str {
    ["single", "a", "b", "c", "after"][index % 5]
}

#[test]
fn what_waits_for_a_member_that_is_given_back_after_its_gang_is_over_does_not_wait_for_ever() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut spool, _clock) = with_gang(folder.path(), |_| ());
    let claims = gang(&mut spool);
    let found = spool.find(&"run/a".parse::<Address>().expect("address")).expect("find");
    spool.cancel(&Selection::from(&found)).expect("cancel");
    for claim in claims {
        spool.release(claim).expect("release");
    }
    assert_eq!(states(&mut spool), [State::Cancelled, State::Skipped, State::Skipped, State::Skipped]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever pilots and users do, a gang is claimed whole and succeeds whole, and no payload waits for ever.
    #[test]
    fn a_gang_stays_whole_and_always_comes_to_its_end(
        retries in 0_u32..3,
        once in any::<bool>(),
        steps in prop::collection::vec(prop_oneof![
            6 => (1_u32..6).prop_map(|at_most| Step::Claim { at_most }),
            4 => (0_usize..8, 0_usize..4).prop_map(|(which, how)| Step::End { which, how }),
            3 => (0_usize..8).prop_map(|which| Step::Release { which }),
            1 => (0_usize..8).prop_map(|which| Step::Renew { which }),
            1 => (0_usize..5).prop_map(|which| Step::Cancel { which }),
            2 => (1_u64..LEASE).prop_map(|ms| Step::Wait { ms }),
        ], 0..40),
    ) {
        let folder = tempfile::tempdir().expect("folder");
        let (mut spool, clock) = with_gang(folder.path(), |member| {
            member.retries = retries;
            member.at_most_once = once && member.name == "b";
        });
        let mut held: Vec<(ClaimId, Option<ClaimId>)> = Vec::new();
        let quiet = (0..60).flat_map(|_| {
            [Step::Wait { ms: LEASE }, Step::Claim { at_most: 5 }, Step::End { which: 0, how: 0 }, Step::End { which: 0, how: 0 }]
        });
        for step in steps.into_iter().chain(quiet) {
            match step {
                Step::Claim { at_most } => {
                    let (offers, _) = claim(&mut spool, at_most, 5);
                    prop_assert!(offers.len() <= at_most as usize);
                    for offer in &offers {
                        let size = offer.gang.map_or(1, |(_, size)| size as usize);
                        let mates = offers.iter().filter(|other| other.gang == offer.gang).count();
                        prop_assert!(offer.gang.is_none() || (mates, size) == (3, 3), "{:?}", offers);
                        held.push((offer.claim, offer.gang.map(|(first, _)| first)));
                    }
                }
                Step::End { which, how } => {
                    let Some(&(claim, gang)) = held.get(which) else { continue };
                    let outcome = [exit(0), exit(1), ended(Conclusion::Lost), Outcome::before_launch(BAD)][how].clone();
                    let (over, rest): (Vec<_>, Vec<_>) =
                        held.into_iter().partition(|(of, other)| *of == claim || gang.is_some() && *other == gang);
                    held = rest;
                    if gang.is_none() {
                        spool.report(claim, &outcome).expect("report");
                    } else {
                        let good = outcome.is_success() && over.len() == 3;
                        let end = |(of, _): &(ClaimId, _)| match good || *of == claim && how > 0 {
                            true => (*of, outcome.clone()),
                            false => (*of, ended(Conclusion::GangFailed("x".into()))),
                        };
                        let ends = over.iter().map(end).collect();
                        report(&mut spool, ends);
                    }
                }
                Step::Release { which } => {
                    if which < held.len() {
                        spool.release(held.remove(which).0).expect("release");
                    }
                }
                Step::Renew { which } => {
                    if let Some((claim, _)) = held.get(which) {
                        spool.renew(*claim, LEASE).expect("renew");
                    }
                }
                Step::Cancel { which } => {
                    let address: Address = format!("run/{}", name_of(which)).parse().expect("address");
                    let found = spool.find(&address).expect("find");
                    spool.cancel(&Selection::from(&found)).expect("cancel");
                }
                Step::Wait { ms } => clock.advance(ms),
            }
            let states = ["a", "b", "c"].map(|name| state(&mut spool, name));
            let good = states.iter().filter(|state| **state == State::Succeeded).count();
            prop_assert!(good == 0 || good == 3, "{:?}", states);
        }
        for name in ["single", "a", "b", "c", "after"] {
            let state = state(&mut spool, name);
            prop_assert!(state.is_final(), "{} is {}", name, state);
        }
    }
}

#[test]
fn a_stage_that_is_lost_is_made_again_by_its_whole_gang() {
    let folder = tempfile::tempdir().expect("folder");
    let mut spool = open(folder.path(), &TestClock::new());
    // Only the one that has lost a stage needs a retry for it.
    let member = |name, retries| NewPayload { gang: Some(0), retries, ..payload(name, &[]) };
    let reads = vec![spool::Read { producer: 1, output: "f".to_owned() }];
    let reader = NewPayload { reads, ..payload("reader", &[]) };
    spool.submit(&submission("run", vec![member("a", 0), member("b", 1), reader])).expect("submit");
    let (offers, _) = claim(&mut spool, 2, 2);
    report(&mut spool, offers.iter().map(|offer| (offer.claim, exit(0))).collect());
    let recovery = Recovery { claimant: "p".into(), running: &[], launched: Some(&[]), lease_ms: LEASE };
    let recovered = spool.transact(|work| work.recover(&recovery, &mut |_| false)).expect("recover");
    assert_eq!(recovered.made_again.len(), 2);
    let states = ["a", "b", "reader"].map(|name| state(&mut spool, name));
    assert_eq!(states, [State::Ready, State::Ready, State::Waiting]);
    let (offers, _) = claim(&mut spool, 2, 2);
    assert_eq!(offers.len(), 2);
    report(&mut spool, offers.iter().map(|offer| (offer.claim, exit(0))).collect());
    let recovered = spool.transact(|work| work.recover(&recovery, &mut |_| false)).expect("recover");
    assert_eq!((recovered.made_again.len(), recovered.failed.len()), (0, 1));
    assert_eq!(state(&mut spool, "reader"), State::Failed);
}
