//! What a spool promises to pilots and to people, one promise a test.

use crate::common::{TestClock, exit, many, open, payload, submission};
use pilot_core::{ClaimId, Conclusion, Outcome, StopCause};
use spool::{
    Address, Cancelled, FindError, Found, NewPayload, NewPilot, Read, Recovery, Remade, Report, RunFilter,
    RunId, RunStatus, Selection, SpoolError, State, workflow_of,
};

const LEASE: u64 = 60_000;

fn states(spool: &spool::Spool, run: RunId) -> String {
    let rows = spool.payloads(run, &[], None, 1000).expect("payloads");
    rows.iter().map(|row| row.state.name().chars().next().expect("a word")).collect()
}

fn reads(producer: usize) -> Vec<Read> {
    vec![Read { producer, output: "data".to_owned() }]
}

#[test]
fn the_oldest_run_comes_first_and_each_in_its_order() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    spool.submit(&many("a", 3)).expect("submit");
    spool.submit(&many("b", 2)).expect("submit");
    let names: Vec<String> = spool
        .claim("p", 4, LEASE)
        .expect("claim")
        .iter()
        .map(|offer| format!("{}/{}", workflow_of(&offer.run_name, offer.run), offer.spec))
        .collect();
    assert_eq!(names, ["a.1/spec of p-0", "a.1/spec of p-1", "a.1/spec of p-2", "b.2/spec of p-0"]);
    assert_eq!(states(&spool, RunId(2)), "cr");
}

#[test]
fn a_submission_is_there_whole_or_not_at_all() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    let bad = [
        vec![payload("a", &[]), payload("a", &[])],
        vec![payload("a", &[1])],
        vec![payload("a", &[1]), payload("b", &[0])],
        vec![payload("a", &[0])],
        vec![NewPayload { reads: reads(7), ..payload("a", &[]) }],
    ];
    for payloads in bad {
        let error = spool.submit(&submission("w", payloads)).expect_err("nonsense");
        assert!(matches!(error, SpoolError::BadSubmission(_)), "{error}");
    }
    assert_eq!(spool.runs(RunFilter::All, None, 10).expect("runs"), []);
    let empty = spool.submit(&submission("w", Vec::new())).expect("submit").run;
    assert_eq!(spool.run(empty).expect("run").expect("there").status(), RunStatus::Succeeded);
}

#[test]
fn the_same_key_gives_the_same_run() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    let keyed = spool::Submission { key: Some("night".to_owned()), ..many("a", 3) };
    let first = spool.submit(&keyed).expect("submit");
    let second = spool.submit(&keyed).expect("submit");
    assert_eq!((first.run, first.new, second.run, second.new), (RunId(1), true, RunId(1), false));
    assert_eq!(spool.runs(RunFilter::All, None, 10).expect("runs").len(), 1);
}

#[test]
fn an_overdue_lease_costs_the_pilot_its_claim_and_the_payload_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let (mut one, mut other) = (open(folder.path(), &clock), open(folder.path(), &clock));
    one.submit(&many("a", 1)).expect("submit");
    let lost = one.claim("one", 1, LEASE).expect("claim").remove(0);
    clock.advance(LEASE - 1);
    assert_eq!(other.claim("other", 1, LEASE).expect("claim"), []);
    clock.advance(1);
    assert_eq!(other.claim("other", 1, LEASE).expect("claim"), [], "there is a pause first");
    clock.advance(500);
    let won = other.claim("other", 1, LEASE).expect("claim").remove(0);
    assert_eq!((won.attempt, won.claim > lost.claim), (2, true));
    assert!(!one.renew(lost.claim, LEASE).expect("renew"));
    assert!(!one.release(lost.claim).expect("release"));
    assert_eq!(one.report(lost.claim, &exit(1)).expect("report"), Report::NotHeld);
    assert_eq!(other.report(won.claim, &exit(0)).expect("report"), Report::Final { skipped: Vec::new() });
    assert_eq!(states(&one, RunId(1)), "s");
}

#[test]
fn a_lease_that_is_renewed_in_time_goes_on() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    spool.submit(&many("a", 1)).expect("submit");
    let claim = spool.claim("one", 1, LEASE).expect("claim")[0].claim;
    for _ in 0..10 {
        clock.advance(LEASE / 2);
        assert!(spool.renew(claim, LEASE).expect("renew"));
        assert_eq!(spool.claim("other", 1, LEASE).expect("claim"), []);
    }
}

#[test]
fn what_may_run_once_is_lost_with_its_pilot() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    let once = NewPayload { at_most_once: true, retries: 3, ..payload("a", &[]) };
    spool.submit(&submission("w", vec![once, payload("b", &[0])])).expect("submit");
    spool.claim("one", 1, LEASE).expect("claim");
    clock.advance(LEASE);
    assert_eq!(spool.claim("other", 1, LEASE).expect("claim"), []);
    assert_eq!(states(&spool, RunId(1)), "ls");
    let run = spool.run(RunId(1)).expect("run").expect("there");
    assert_eq!((run.status(), run.counts.lost, run.counts.skipped), (RunStatus::Failed, 1, 1));
    let row = spool.payload(RunId(1), "b").expect("payload").expect("there");
    assert_eq!(spool.detail(row.id).expect("detail").expect("there").because.as_deref(), Some("a"));
}

#[test]
fn the_wall_clock_moves_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    let retried = NewPayload { retries: 9, ..payload("b", &[]) };
    spool.submit(&submission("w", vec![payload("a", &[]), retried])).expect("submit");
    let claims = spool.claim("one", 2, LEASE).expect("claim");
    for wall in [0, 4_000_000_000_000, 1] {
        clock.set_wall(wall);
        assert_eq!(spool.claim("other", 1, LEASE).expect("claim"), [], "the wall clock says {wall}");
        assert!(spool.renew(claims[0].claim, LEASE).expect("renew"));
    }
    spool.report(claims[1].claim, &exit(1)).expect("report");
    clock.set_wall(u64::MAX);
    assert_eq!(spool.claim("other", 1, LEASE).expect("claim"), [], "its pause is not over");
    clock.advance(500);
    assert_eq!(spool.claim("other", 1, LEASE).expect("claim").len(), 1);
}

#[test]
fn a_reboot_voids_leases_and_pauses() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    let retried = NewPayload { retries: 9, ..payload("b", &[]) };
    spool.submit(&submission("w", vec![payload("a", &[]), retried])).expect("submit");
    let claims = spool.claim("one", 2, LEASE).expect("claim");
    spool.report(claims[1].claim, &exit(1)).expect("report");
    clock.reboot("second");
    let again = spool.claim("other", 2, LEASE).expect("claim");
    assert_eq!(again.iter().map(|offer| &*offer.spec).collect::<Vec<_>>(), ["spec of b"]);
    clock.advance(500);
    let again = spool.claim("other", 2, LEASE).expect("claim");
    assert_eq!(again.iter().map(|offer| &*offer.spec).collect::<Vec<_>>(), ["spec of a"]);
}

#[test]
fn a_run_that_hands_stages_stays_with_one_pilot() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    let reader = NewPayload { reads: reads(0), ..payload("c", &[]) };
    spool.submit(&submission("w", vec![payload("a", &[]), payload("b", &[]), reader])).expect("submit");
    spool.submit(&many("free", 2)).expect("submit");
    let first = spool.claim("one", 1, LEASE).expect("claim").remove(0);
    assert_eq!(spool.run(RunId(1)).expect("run").expect("there").home.as_deref(), Some("one"));
    let other = spool.claim("other", 9, LEASE).expect("claim");
    assert!(other.iter().all(|offer| offer.run == RunId(2)), "{other:?}");
    assert_eq!(other.len(), 2);
    spool.report(first.claim, &exit(0)).expect("report");
    assert_eq!(spool.claim("other", 9, LEASE).expect("claim"), []);
    assert!(!spool.upcoming("other").expect("upcoming").now);
    assert!(spool.upcoming("one").expect("upcoming").now);
    assert_eq!(spool.claim("one", 9, LEASE).expect("claim").len(), 2);
}

#[test]
fn cancelling_ends_what_has_not_begun_and_flags_what_has() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    let list = vec![
        payload("a", &[]),
        payload("b-0", &[]),
        payload("b-1", &[]),
        payload("c", &[1]),
        payload("d", &[0]),
    ];
    spool.submit(&submission("w", list)).expect("submit");
    let first = spool.claim("one", 2, LEASE).expect("claim");
    let family = Selection::Family(RunId(1), "b".to_owned());
    let expected = Cancelled { ended: 1, flagged: 1, skipped: 0, already: 0 };
    assert_eq!(spool.cancel(&family).expect("cancel"), expected);
    assert_eq!(states(&spool, RunId(1)), "cccww");
    assert_eq!(spool.cancelled_claims("one").expect("claims"), [first[1].claim]);
    assert_eq!(spool.cancelled_claims("other").expect("claims"), []);
    let stopped =
        Outcome { launched: true, ..Outcome::before_launch(Conclusion::Stopped(StopCause::Cancelled)) };
    let Report::Final { skipped } = spool.report(first[1].claim, &stopped).expect("report") else {
        panic!("it was cancelled");
    };
    assert_eq!(skipped.iter().map(|skipped| &*skipped.spec).collect::<Vec<_>>(), ["spec of c"]);
    let all = spool.cancel(&Selection::Run(RunId(1))).expect("cancel");
    assert_eq!(all, Cancelled { ended: 1, flagged: 1, skipped: 0, already: 3 });
    let failed = Outcome { launched: true, ..Outcome::before_launch(Conclusion::Lost) };
    let last = spool.report(first[0].claim, &failed).expect("report");
    assert_eq!(last, Report::Final { skipped: Vec::new() }, "no one wants another try");
    let run = spool.run(RunId(1)).expect("run").expect("there");
    assert_eq!((run.status(), run.counts.cancelled), (RunStatus::Cancelled, 4));
}

#[test]
fn a_pilot_that_comes_back_keeps_what_runs_and_loses_the_rest() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    let once = |name| NewPayload { at_most_once: true, ..payload(name, &[]) };
    let list =
        vec![payload("runs", &[]), payload("gone", &[]), once("begun"), once("fresh"), payload("other", &[])];
    spool.submit(&submission("w", list)).expect("submit");
    let claims: Vec<ClaimId> =
        spool.claim("one", 4, LEASE).expect("claim").iter().map(|offer| offer.claim).collect();
    let others = spool.claim("two", 1, LEASE).expect("claim")[0].claim;
    clock.advance(LEASE + 5);
    let recovery = Recovery {
        claimant: "one".into(),
        running: &[claims[0], others, ClaimId(99)],
        launched: Some(&[claims[1], claims[2]]),
        lease_ms: LEASE,
    };
    let recovered = spool.recover(&recovery, &mut |_| true).expect("recover");
    let kept: Vec<ClaimId> = recovered.kept.iter().map(|offer| offer.claim).collect();
    assert_eq!((kept, recovered.given_up, recovered.given_back), (vec![claims[0]], 2, 1));
    assert_eq!(recovered.kept[0].attempt, 1);
    assert_eq!(states(&spool, RunId(1)), "crlrc");
    assert_eq!(spool.claim("one", 1, LEASE).expect("claim")[0].spec, "spec of fresh");
    assert_eq!(spool.report(claims[0], &exit(0)).expect("report"), Report::Final { skipped: Vec::new() });
}

#[test]
fn a_stage_that_went_with_its_pilot_is_made_again() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    let reader = |name: &str, from| NewPayload { reads: reads(from), ..payload(name, &[]) };
    // 0 -> 1 -> 2 (reads both ways), 3 only waits for 1.
    let again = |new| NewPayload { retries: 1, ..new };
    let list = vec![again(payload("a", &[])), again(reader("b", 0)), reader("c", 1), payload("d", &[1, 2])];
    spool.submit(&submission("w", list)).expect("submit");
    for _ in 0..2 {
        let claim = spool.claim("one", 1, LEASE).expect("claim")[0].claim;
        spool.report(claim, &exit(0)).expect("report");
    }
    assert_eq!(states(&spool, RunId(1)), "ssrw");
    let recovery = Recovery { claimant: "one".into(), running: &[], launched: None, lease_ms: LEASE };
    let recovered = spool.recover(&recovery, &mut |_| true).expect("recover");
    assert_eq!(recovered.made_again, []);
    let mut asked = Vec::new();
    let recovered = spool.recover(&recovery, &mut |uri| {
        asked.push(uri.to_owned());
        false
    });
    assert_eq!(recovered.expect("recover").made_again.len(), 2);
    asked.sort();
    assert_eq!(asked, ["stage://w.1/a/data", "stage://w.1/b/data"]);
    assert_eq!(states(&spool, RunId(1)), "rwww");
    for spec in ["spec of a", "spec of b", "spec of c", "spec of d"] {
        let offer = spool.claim("one", 1, LEASE).expect("claim").remove(0);
        assert_eq!(offer.spec, spec);
        spool.report(offer.claim, &exit(0)).expect("report");
    }
    assert_eq!(states(&spool, RunId(1)), "ssss");
}

#[test]
fn a_stage_is_made_again_at_someones_wish_where_it_costs_nobody_anything() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    let reader = |name: &str, from| NewPayload { reads: reads(from), ..payload(name, &[]) };
    let once = |new| NewPayload { at_most_once: true, ..new };
    // 0 -> 1 -> 2, and 3 -> 4; none has a retry.
    let list = vec![
        payload("a", &[]),
        reader("b", 0),
        reader("c", 1),
        once(payload("o", &[])),
        NewPayload { after: vec![2], ..reader("p", 3) },
    ];
    spool.submit(&submission("w", list)).expect("submit");
    let remake = |spool: &mut spool::Spool, name: &str, held: &[&str]| {
        let of = |name: &str| format!("stage://w.1/{name}/data");
        let mut has = |uri: &str| held.iter().any(|name| of(name) == uri);
        spool.remake(&of(name), &mut has).expect("an answer")
    };
    let run = |spool: &mut spool::Spool, spec: &str| {
        let offer = spool.claim("one", 1, LEASE).expect("claim").remove(0);
        assert_eq!(offer.spec, spec);
        spool.report(offer.claim, &exit(0)).expect("report");
    };
    assert_eq!(remake(&mut spool, "a", &["a"]), Remade::Unknown, "it has not run");
    run(&mut spool, "spec of a");
    let offers = spool.claim("one", 2, LEASE).expect("claim");
    assert_eq!(
        offers.iter().map(|offer| offer.spec.as_str()).collect::<Vec<_>>(),
        ["spec of b", "spec of o"]
    );
    assert_eq!(remake(&mut spool, "a", &["a"]), Remade::Reading("b".into()));
    for offer in &offers {
        spool.report(offer.claim, &exit(0)).expect("report");
    }
    assert_eq!(states(&spool, RunId(1)), "ssrsw");
    for (name, said) in [("a", Remade::Unread), ("o", Remade::Once("o".into())), ("nobody", Remade::Unknown)]
    {
        assert_eq!(remake(&mut spool, name, &["a", "b", "o"]), said, "{name}");
    }
    for uri in ["stage://w.1/b/other", "stage://w.1/b", "stage://w/b/data", "stage://w.2/b/data", "b", ""] {
        let said = spool.remake(uri, &mut |_| true).expect("an answer");
        assert!(matches!(said, Remade::Unknown | Remade::Unread), "{uri}: {said:?}");
    }
    assert_eq!(states(&spool, RunId(1)), "ssrsw", "nothing was changed");
    // What its producer reads is still there.
    assert!(matches!(remake(&mut spool, "b", &["a", "b", "o"]), Remade::Again(again) if again.len() == 1));
    assert_eq!(states(&spool, RunId(1)), "srwsw");
    run(&mut spool, "spec of b");
    // Now it is not.
    assert!(matches!(remake(&mut spool, "b", &["b", "o"]), Remade::Again(again) if again.len() == 2));
    assert_eq!(states(&spool, RunId(1)), "rwwsw");
    for spec in ["spec of a", "spec of b", "spec of c", "spec of p"] {
        run(&mut spool, spec);
    }
    assert_eq!(states(&spool, RunId(1)), "sssss");
    assert_eq!(remake(&mut spool, "b", &["b"]), Remade::Unread);
}

#[test]
fn a_stage_is_made_again_as_often_as_its_producer_has_retries_and_then_its_readers_fail() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    let retries = |retries, new| NewPayload { retries, ..new };
    let reader = |name: &str, from| NewPayload { reads: reads(from), ..payload(name, &[]) };
    // A chain whose second payload may come back three times; the last never gets to run.
    let list =
        vec![retries(9, payload("a", &[])), retries(3, reader("b", 0)), reader("c", 1), payload("d", &[2])];
    spool.submit(&submission("w", list)).expect("submit");
    let succeed = |spool: &mut spool::Spool| {
        for _ in 0..2 {
            let claim = spool.claim("one", 1, LEASE).expect("claim")[0].claim;
            spool.report(claim, &exit(0)).expect("report");
        }
        assert_eq!(states(spool, RunId(1)), "ssrw");
    };
    succeed(&mut spool);
    let recovery = Recovery { claimant: "one".into(), running: &[], launched: None, lease_ms: LEASE };
    for _ in 0..2 {
        let recovered = spool.recover(&recovery, &mut |_| false).expect("recover");
        assert_eq!((recovered.made_again.len(), recovered.failed.len()), (2, 0));
        succeed(&mut spool);
    }
    // What only the second has lost, it makes again alone.
    let recovered = spool.recover(&recovery, &mut |uri| uri.contains("/a/")).expect("recover");
    assert_eq!((recovered.made_again.len(), recovered.failed.len()), (1, 0));
    let claim = spool.claim("one", 1, LEASE).expect("claim")[0].claim;
    spool.report(claim, &exit(0)).expect("report");
    let recovered = spool.recover(&recovery, &mut |_| false).expect("recover");
    // The first could, and nobody would read it.
    assert_eq!((recovered.made_again.len(), recovered.failed.len()), (0, 1));
    assert_eq!(states(&spool, RunId(1)), "ssfs");
    let row = spool.payload(RunId(1), "c").expect("payload").expect("there");
    let text = row.outcome.expect("an outcome").conclusion.to_string();
    assert_eq!(
        text,
        "its input stage://w.1/b/data was lost with the pilot, and b has no retry left to make it again; give it more retries, or keep the stage in a file"
    );
}

#[test]
fn who_needs_a_lost_stage_that_can_be_made_only_once_fails() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    let reader = |name: &str, from| NewPayload { reads: reads(from), ..payload(name, &[]) };
    let once = NewPayload { at_most_once: true, ..payload("a", &[]) };
    let middle = NewPayload { retries: 1, ..reader("b", 0) };
    let list = vec![once, middle, reader("c", 1), payload("d", &[2]), payload("e", &[])];
    spool.submit(&submission("w", list)).expect("submit");
    for _ in 0..2 {
        let claim = spool.claim("one", 1, LEASE).expect("claim")[0].claim;
        spool.report(claim, &exit(0)).expect("report");
    }
    // The oldest goes first, and "e" after "a" frees "b": both orders end here.
    while states(&spool, RunId(1)).as_bytes()[1] != b's' {
        let claim = spool.claim("one", 1, LEASE).expect("claim")[0].claim;
        spool.report(claim, &exit(0)).expect("report");
    }
    let recovery = Recovery { claimant: "one".into(), running: &[], launched: None, lease_ms: LEASE };
    let recovered = spool.recover(&recovery, &mut |_| false).expect("recover");
    assert_eq!((recovered.made_again.len(), recovered.failed.len()), (0, 1));
    let row = spool.payload(RunId(1), "c").expect("payload").expect("there");
    let text = row.outcome.expect("an outcome").conclusion.to_string();
    assert_eq!(text, "its input stage://w.1/b/data was lost with the pilot, and a may run only once");
    assert!(states(&spool, RunId(1)).starts_with("ssfs"));
}

#[test]
fn an_ended_run_can_be_forgotten_and_its_number_is_not_given_again() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    spool.submit(&submission("w", vec![payload("a", &[]), payload("b", &[0])])).expect("submit");
    assert!(matches!(spool.forget(RunId(1)), Err(SpoolError::Unfinished { open: 2, .. })));
    spool.cancel(&Selection::Run(RunId(1))).expect("cancel");
    assert_eq!(spool.forget(RunId(1)).expect("forget"), 2);
    assert!(matches!(spool.forget(RunId(1)), Err(SpoolError::NoRun(RunId(1)))));
    assert_eq!(spool.submit(&many("w", 1)).expect("submit").run, RunId(2));
}

#[test]
fn addresses_lead_to_runs_payloads_and_arrays() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    spool.submit(&submission("zpeak", vec![payload("fit", &[])])).expect("submit");
    spool.submit(&submission("zpeak", vec![payload("fit", &[]), payload("gen-0", &[])])).expect("submit");
    let find = |text: &str| spool.find(&text.parse::<Address>().expect("address"));
    assert!(matches!(find("1"), Ok(Found::Run(run)) if run.id == RunId(1)));
    assert!(matches!(find("zpeak"), Ok(Found::Run(run)) if run.id == RunId(2)));
    assert!(matches!(find("1/fit"), Ok(Found::Payload(row)) if row.run == RunId(1)));
    assert!(matches!(find("zpeak/fit"), Ok(Found::Payload(row)) if row.run == RunId(2)));
    assert!(matches!(find("2/gen"), Ok(Found::Family(run, family)) if run.id == RunId(2) && family == "gen"));
    assert!(matches!(find("3"), Err(FindError::NoRun(_))));
    assert!(matches!(find("nothing/fit"), Err(FindError::NoRun(_))));
    assert!(matches!(find("99999999999999999"), Err(FindError::NoRun(_))));
    assert!(matches!(find("1/gen"), Err(FindError::NoPayload { .. })));
    for bad in ["", "/", "1/", "/fit", "1/a/b", "a b"] {
        assert!(bad.parse::<Address>().is_err(), "{bad:?}");
    }
}

#[test]
fn listings_go_page_by_page_and_by_state() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    for _ in 0..5 {
        spool.submit(&many("a", 10)).expect("submit");
    }
    let claims = spool.claim("one", 10, LEASE).expect("claim");
    for (index, offer) in claims.iter().enumerate() {
        spool.report(offer.claim, &exit(u8::from(index % 3 == 0))).expect("report");
    }
    let rows = spool.payloads(RunId(1), &[State::Failed], None, 2).expect("payloads");
    assert_eq!(rows.iter().map(|row| row.id.index()).collect::<Vec<_>>(), [0, 3]);
    let rows = spool.payloads(RunId(1), &[State::Failed], Some(rows[1].id), 9).expect("payloads");
    assert_eq!(rows.iter().map(|row| row.id.index()).collect::<Vec<_>>(), [6, 9]);
    assert!(rows.iter().all(|row| row.attempt == 1 && row.outcome.is_some() && row.ended_wall_ms.is_some()));
    let both = spool.payloads(RunId(1), &[State::Succeeded, State::Failed], None, 4).expect("payloads");
    assert_eq!(both.iter().map(|row| row.id.index()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let runs = spool.runs(RunFilter::Open, None, 2).expect("runs");
    assert_eq!(runs.iter().map(|run| run.id.0).collect::<Vec<_>>(), [5, 4]);
    let runs = spool.runs(RunFilter::Open, Some(RunId(4)), 9).expect("runs");
    assert_eq!(runs.iter().map(|run| run.id.0).collect::<Vec<_>>(), [3, 2]);
    let ended = spool.runs(RunFilter::Ended, None, 9).expect("runs");
    assert_eq!((ended.len(), ended[0].counts.failed, ended[0].counts.succeeded), (1, 4, 6));
}

#[test]
fn a_pilots_lock_says_whether_it_lives() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let (mut spool, mut other) = (open(folder.path(), &clock), open(folder.path(), &clock));
    let pilot =
        NewPilot { name: "p".to_owned(), pid: 1, start_ticks: 2, api_socket: "s".to_owned(), slots: 3 };
    let registration = spool.register(&pilot).expect("register");
    assert!(matches!(other.register(&pilot), Err(SpoolError::PilotLives { .. })));
    assert!(other.is_alive("p") && other.pilots().expect("pilots")[0].alive);
    drop(registration);
    assert!(!other.is_alive("p") && !other.pilots().expect("pilots")[0].alive);
    let _again = other.register(&pilot).expect("register");
    other.unregister("p").expect("unregister");
    assert_eq!(spool.pilots().expect("pilots"), []);
    let bad = NewPilot { name: "../p".to_owned(), ..pilot };
    assert!(spool.register(&bad).is_err());
}

#[test]
fn a_poke_reaches_every_pilot_and_sweeps_dead_sockets() {
    let folder = tempfile::tempdir().expect("folder");
    let deep = folder.path().join("x".repeat(200));
    let clock = TestClock::new();
    let _spool = open(&deep, &clock);
    let (one, two) =
        (spool::Ear::bind(&deep, "one").expect("bind"), spool::Ear::bind(&deep, "two").expect("bind"));
    // A socket whose pilot was killed: the name is there, no one listens.
    let dead = deep.join("wake/dead");
    let sleeper = spool::Ear::bind(&deep, "gone").expect("bind");
    std::fs::rename(deep.join("wake/gone"), &dead).expect("rename");
    drop(sleeper);
    spool::poke_others(&deep, "two");
    let poked = |ear: &spool::Ear| ear.socket().recv(&mut [0; 1]).is_ok();
    assert!(poked(&one) && !poked(&one) && !poked(&two));
    assert!(!dead.exists());
    spool::poke(&deep);
    assert!(poked(&one) && poked(&two));
}
