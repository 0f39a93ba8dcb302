//! Payloads that run together: all of them or none.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::claim::{Gang, GangId};
use crate::slot::{DrainStep, End, Phase};

/// Claims `first`.. of one gang.
fn gang(first: u64, size: u32) -> Vec<Claim> {
    let gang = Some(Gang { id: GangId(first), size });
    (first..first + u64::from(size)).map(|id| Claim { gang, ..claim(id) }).collect()
}

fn prepared(bench: &mut Bench, ids: std::ops::RangeInclusive<u64>) -> Vec<Output> {
    let tell = |id| bench.give(Input::Prepared { claim: ClaimId(id), image: "red".into(), bytes_missing: 0 });
    ids.flat_map(tell).collect()
}

fn launches(outputs: &[Output]) -> usize {
    orders(outputs).iter().filter(|(_, order)| matches!(order, Order::Launch(_))).count()
}

fn together(outputs: &[Output]) -> Vec<(u64, Conclusion, bool)> {
    let ends = outputs.iter().filter_map(|output| match output {
        Output::ReportTogether(ends) => Some(ends),
        _ => None,
    });
    ends.flatten().map(|(claim, outcome)| (claim.0, outcome.conclusion.clone(), outcome.launched)).collect()
}

/// Bound in slots 0 and 1, and launched.
fn running(config: PilotConfig) -> Bench {
    let mut bench = Bench::new(config);
    bench.give(Input::Offered(gang(1, 2)));
    prepared(&mut bench, 1..=2);
    bench.event(0, Event::Bound);
    bench.event(1, Event::Bound);
    assert_eq!((bench.phase(0), bench.phase(1)), (PhaseName::Running, PhaseName::Running));
    bench
}

fn because(id: u64) -> Conclusion {
    Conclusion::GangFailed(format!("payload {id}").into())
}

const BAD: ExitStatus = ExitStatus::Code(3);

#[test]
fn nothing_is_bound_before_all_are_prepared_and_nothing_is_launched_before_all_are_bound() {
    let mut bench = Bench::new(config(3));
    bench.give(Input::Offered(gang(1, 3)));
    assert_eq!(orders(&prepared(&mut bench, 1..=2)), []);
    assert_eq!(orders(&prepared(&mut bench, 3..=3)).len(), 3);
    assert_eq!(launches(&bench.event(0, Event::Bound)), 0);
    assert_eq!(launches(&bench.event(2, Event::Bound)), 0);
    assert_eq!(launches(&bench.event(1, Event::Bound)), 3);
}

#[test]
fn it_waits_for_all_its_slots_without_holding_any() {
    let mut bench = Bench::new(config(3));
    bench.run(claim(1), 0);
    bench.give(Input::Offered(gang(2, 3)));
    prepared(&mut bench, 2..=4);
    assert_eq!((bench.phase(1), bench.phase(2)), (PhaseName::Idle, PhaseName::Idle));
    bench.offer(claim(5));
    assert_eq!(bench.phase(1), PhaseName::Binding, "what is for itself passes it");
    bench.event(1, Event::Bound);
    bench.end(0, ExitStatus::SUCCESS);
    assert_eq!(bench.phase(0), PhaseName::Idle);
    assert_eq!(orders(&bench.end(1, ExitStatus::SUCCESS)).len(), 3 + 2, "three binds, a drain and a clean");
}

#[test]
fn one_that_has_waited_long_is_passed_by_nothing() {
    let mut bench = Bench::new(PilotConfig { bind_ahead: 2, ..config(2) });
    bench.run(claim(1), 0);
    bench.give(Input::Offered(gang(2, 2)));
    prepared(&mut bench, 2..=3);
    bench.wait(bench.pilot.config.aging_ms);
    bench.offer(claim(4));
    assert_eq!(bench.phase(1), PhaseName::Idle);
    bench.end(0, ExitStatus::SUCCESS);
    let waiting: Vec<u64> = bench.pilot.waiting().map(|claim| claim.id.0).collect();
    assert_eq!(waiting, [4]);
}

#[test]
fn it_is_never_bound_ahead_of_its_share() {
    let mut bench = Bench::new(PilotConfig { bind_ahead: 4, ..config(4) });
    bench.run(sized(1, 3), 0);
    bench.give(Input::Offered(gang(2, 2)));
    prepared(&mut bench, 2..=3);
    assert_eq!(bench.pilot.waiting().count(), 2);
    bench.end(0, ExitStatus::SUCCESS);
    assert_eq!(bench.pilot.waiting().count(), 0);
}

#[test]
fn two_of_them_never_hold_half_of_the_slots_each() {
    let mut bench = Bench::new(config(3));
    let mut both = gang(1, 2);
    both.extend(gang(3, 2));
    bench.give(Input::Offered(both));
    prepared(&mut bench, 1..=4);
    assert_eq!((bench.phase(2), bench.pilot.waiting().count()), (PhaseName::Idle, 2));
    bench.event(0, Event::Bound);
    bench.event(1, Event::Bound);
    bench.end(0, ExitStatus::SUCCESS);
    bench.end(1, ExitStatus::SUCCESS);
    assert_eq!(bench.pilot.waiting().count(), 0);
}

#[test]
fn success_is_reported_when_the_last_has_succeeded_and_leases_go_on_until_then() {
    let mut bench = Bench::new(config(2));
    let lease = Some(Lease { renew_at: Moment(1_000), expires_at: Moment(9_000) });
    bench.give(Input::Offered(gang(1, 2).into_iter().map(|claim| Claim { lease, ..claim }).collect()));
    prepared(&mut bench, 1..=2);
    bench.event(0, Event::Bound);
    bench.event(1, Event::Bound);
    let outputs = bench.end(0, ExitStatus::SUCCESS);
    assert_eq!((together(&outputs), reported(&outputs)), (vec![], vec![]));
    assert_eq!(bench.phase(0), PhaseName::Idle);
    let renewed = bench.wait(1_000);
    assert!(renewed.contains(&Output::Renew(ClaimId(1))) && renewed.contains(&Output::Renew(ClaimId(2))));
    let ends = together(&bench.end(1, ExitStatus::SUCCESS));
    assert_eq!(ends, [(1, Conclusion::Succeeded, true), (2, Conclusion::Succeeded, true)]);
}

#[test]
fn one_that_fails_ends_the_others_and_its_name_is_told() {
    let mut bench = running(config(2));
    let outputs = bench.event(0, Event::Exited(BAD.into()));
    assert!(orders(&outputs).contains(&(1, &Order::Signal(Signal::Term { grace_ms: 5_000 }))));
    bench.event(0, Event::Drained(Drained::default()));
    bench.event(1, Event::Exited(ExitStatus::SUCCESS.into()));
    let ends = together(&bench.event(1, Event::Drained(Drained::default())));
    assert_eq!(ends, [(1, Conclusion::Exited(BAD), true), (2, because(1), true)]);
}

#[test]
fn one_that_had_succeeded_before_counts_for_nothing_when_another_fails() {
    let mut bench = running(config(2));
    bench.end(0, ExitStatus::SUCCESS);
    let ends = together(&bench.end(1, BAD));
    assert_eq!(ends, [(1, because(2), true), (2, Conclusion::Exited(BAD), true)]);
}

#[test]
fn an_image_that_is_missing_lets_none_start() {
    let mut bench = Bench::new(config(2));
    bench.give(Input::Offered(gang(1, 2)));
    prepared(&mut bench, 1..=1);
    let fault = fault(FaultClass::Payload);
    let outputs = bench.give(Input::PrepareFailed { claim: ClaimId(2), fault: fault.clone() });
    assert_eq!(together(&outputs), [(1, because(2), false), (2, Conclusion::Failed(fault), false)]);
    assert_eq!((bench.phase(0), bench.phase(1)), (PhaseName::Idle, PhaseName::Idle));
}

#[test]
fn a_bind_that_fails_undoes_the_others() {
    let mut bench = Bench::new(config(2));
    bench.give(Input::Offered(gang(1, 2)));
    prepared(&mut bench, 1..=2);
    bench.event(0, Event::Bound);
    bench.event(1, Event::BindFailed(fault(FaultClass::Slot)));
    bench.event(1, Event::Drained(Drained::default()));
    let outputs = bench.event(0, Event::Drained(Drained::default()));
    let ends = [(1, because(2), false), (2, Conclusion::Failed(fault(FaultClass::Slot)), false)];
    assert_eq!(together(&outputs), ends);
}

#[test]
fn what_is_stopped_before_the_launch_through_no_fault_of_its_own_goes_back_whole() {
    let mut bench = Bench::new(config(2));
    bench.give(Input::Offered(gang(1, 2)));
    prepared(&mut bench, 1..=2);
    bench.event(0, Event::Bound);
    bench.give(Input::StopClaim { claim: ClaimId(2), cause: StopCause::Preempted });
    assert_eq!(released(&bench.event(1, Event::Drained(Drained::default()))), []);
    let outputs = bench.event(0, Event::Drained(Drained::default()));
    let (other, own) = (StopCause::GangEnded, StopCause::Preempted);
    assert_eq!(released(&outputs), [(1, ReleaseWhy::Stopped(other)), (2, ReleaseWhy::Stopped(own))]);
}

#[test]
fn a_cordon_sends_it_back_whole_and_leaves_it_alone_once_it_has_its_slots() {
    let mut bench = Bench::new(config(2));
    bench.give(Input::Offered(gang(1, 2)));
    prepared(&mut bench, 1..=1);
    let closed = ReleaseWhy::Closed;
    assert_eq!(released(&bench.give(Input::Cordon)), [(1, closed), (2, closed)]);
    assert_eq!(released(&bench.give(Input::Offered(gang(3, 2)))), [(3, closed), (4, closed)]);
    bench.give(Input::Uncordon);
    bench.give(Input::Offered(gang(5, 2)));
    prepared(&mut bench, 5..=6);
    bench.event(0, Event::Bound);
    bench.give(Input::Cordon);
    assert_eq!(launches(&bench.event(1, Event::Bound)), 2);
}

#[test]
fn one_that_can_never_fit_fails_with_one_line_instead_of_waiting_for_ever() {
    let mut bench = Bench::new(config(2));
    for (first, mut claims) in [(1, gang(1, 3)), (11, gang(11, 2))] {
        claims[0].payload.demand.cpu_millis = 2;
        let outputs = bench.give(Input::Offered(claims));
        let ends = together(&outputs);
        let lines: Vec<&str> = ends.iter().filter_map(|(_, conclusion, _)| line(conclusion)).collect();
        assert!(matches!(lines[..], [line] if line.starts_with("its gang needs ")), "{ends:?}");
        assert!(ends[1..].iter().all(|(_, conclusion, _)| *conclusion == because(first)));
        assert!(!outputs.iter().any(|output| matches!(output, Output::Prepare(_))));
    }
}

fn line(conclusion: &Conclusion) -> Option<&str> {
    match conclusion {
        Conclusion::Failed(fault) if fault.class == FaultClass::Payload => Some(&fault.message),
        _ => None,
    }
}

#[test]
fn one_that_does_not_fit_any_more_because_slots_were_retired_fails_as_well() {
    let limits = SlotLimits { clean_attempts: 1, ..SlotLimits::default() };
    let mut bench = Bench::new(PilotConfig { limits, ..config(2) });
    bench.run(claim(1), 0);
    bench.give(Input::Offered(gang(2, 2)));
    prepared(&mut bench, 2..=3);
    bench.event(0, Event::Exited(ExitStatus::SUCCESS.into()));
    bench.event(0, Event::Drained(Drained::default()));
    let ends = together(&bench.event(0, Event::CleanFailed(fault(FaultClass::Slot))));
    assert!(
        matches!(&ends[..], [(2, first, false), (3, second, false)]
        if line(first).is_some() && *second == because(2)),
        "{ends:?}"
    );
}

#[test]
fn who_cancels_one_cancels_its_gang_even_when_it_had_succeeded_already() {
    for ended in [false, true] {
        let mut bench = running(config(2));
        if ended {
            bench.end(0, ExitStatus::SUCCESS);
        }
        bench.give(Input::StopClaim { claim: ClaimId(1), cause: StopCause::Cancelled });
        let mut outputs = if ended { Vec::new() } else { bench.end(0, BAD) };
        outputs.extend(bench.end(1, ExitStatus::SUCCESS));
        let cancelled = Conclusion::Stopped(StopCause::Cancelled);
        assert_eq!(together(&outputs), [(1, cancelled, true), (2, because(1), true)]);
    }
}

#[test]
fn a_lease_that_is_lost_takes_the_gang_with_it() {
    let mut bench = running(config(2));
    bench.end(0, ExitStatus::SUCCESS);
    bench.give(Input::LeaseLost { claim: ClaimId(1) });
    let ends = together(&bench.end(1, ExitStatus::SUCCESS));
    assert_eq!(ends, [(1, Conclusion::Lost, true), (2, because(1), true)]);
}

#[test]
fn one_that_is_found_whole_after_a_restart_goes_on_and_of_a_part_the_rest_is_ended() {
    let adopt = |claim: &Claim, slot| Input::Adopted {
        slot: SlotId(slot),
        epoch: crate::claim::Epoch(4),
        claim: Box::new(claim.clone()),
        image: "red".into(),
    };
    let claims = gang(1, 2);
    let mut bench = Bench::new(config(2));
    bench.give(adopt(&claims[0], 0));
    bench.give(adopt(&claims[1], 1));
    bench.give(Input::Tick);
    bench.end(0, ExitStatus::SUCCESS);
    assert_eq!(together(&bench.end(1, ExitStatus::SUCCESS)).len(), 2);

    let mut bench = Bench::new(config(2));
    bench.give(adopt(&claims[0], 0));
    let outputs = bench.give(Input::Tick);
    assert!(matches!(orders(&outputs)[..], [(0, Order::Signal(_))]), "{outputs:?}");
    let ends = together(&bench.end(0, ExitStatus::SUCCESS));
    assert!(matches!(&ends[..], [(1, Conclusion::Failed(fault), true)] if fault.class == FaultClass::Retry));
}

#[test]
fn a_pilot_that_has_more_room_than_when_the_queue_had_nothing_asks_again() {
    let mut bench = Bench::new(config(3));
    bench.give(Input::Tick);
    bench.give(Input::Offered(vec![claim(1)]));
    prepared(&mut bench, 1..=1);
    bench.event(0, Event::Bound);
    assert_eq!(asked(&bench.give(Input::QueueEmpty)), None);
    assert_eq!(asked(&bench.end(0, ExitStatus::SUCCESS)), Some(3));
}

fn stops(bench: &Bench, slot: u32) -> bool {
    let phase = bench.pilot.slot(SlotId(slot)).map(Slot::phase);
    matches!(phase, Some(Phase::Draining { end: End { step: DrainStep::Stopping, .. }, .. }))
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Offer {
        size: u32,
    },
    Prepared {
        any: usize,
        well: bool,
    },
    /// Whatever the slot waits for comes, well or badly.
    Slot {
        slot: u32,
        well: bool,
    },
    Stop {
        any: usize,
    },
    Wait {
        ms: u64,
    },
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// The second model knows only sets: who was offered with whom, who was launched, who has ended.
    #[test]
    fn gangs_start_and_end_whole_whatever_happens(steps in prop::collection::vec(prop_oneof![
        2 => (1_u32..5).prop_map(|size| Step::Offer { size }),
        6 => (0_usize..20, 0..10).prop_map(|(any, of_ten)| Step::Prepared { any, well: of_ten > 0 }),
        9 => (0_u32..3, 0..10).prop_map(|(slot, of_ten)| Step::Slot { slot, well: of_ten > 0 }),
        1 => (0_usize..20).prop_map(|any| Step::Stop { any }),
        1 => (1_u64..90_000).prop_map(|ms| Step::Wait { ms }),
    ], 1..200)) {
        let mut bench = Bench::new(PilotConfig { bind_ahead: 1, max_waiting: 12, ..config(3) });
        let mut size_of: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
        let mut open: Vec<u64> = Vec::new();
        let mut next = 1;
        let quiet = (0..400).map(|n| Step::Slot { slot: n % 3, well: true });
        let ready = (0..120).map(|n| Step::Prepared { any: n % 12, well: true });
        for step in steps.into_iter().chain(ready).chain(quiet) {
            let outputs = match step {
                Step::Offer { size } => {
                    let claims = if size == 1 { vec![claim(next)] } else { gang(next, size) };
                    for claim in &claims {
                        size_of.insert(claim.id.0, (next, size));
                        open.push(claim.id.0);
                    }
                    next += u64::from(size);
                    bench.give(Input::Offered(claims))
                }
                Step::Prepared { any, well } => {
                    let Some(claim) = bench.pilot.waiting().map(|claim| claim.id).nth(any) else { continue };
                    bench.give(match well {
                        true => Input::Prepared { claim, image: "red".into(), bytes_missing: 0 },
                        false => Input::PrepareFailed { claim, fault: fault(FaultClass::Retry) },
                    })
                }
                Step::Slot { slot, well } => {
                    let event = match bench.phase(slot) {
                        PhaseName::Idle | PhaseName::Bound | PhaseName::Retired => continue,
                        PhaseName::Binding if well => Event::Bound,
                        PhaseName::Binding => Event::BindFailed(fault(FaultClass::Slot)),
                        PhaseName::Running if well => Event::Exited(ExitStatus::SUCCESS.into()),
                        PhaseName::Running => Event::Exited(BAD.into()),
                        PhaseName::Draining if stops(&bench, slot) => Event::Exited(BAD.into()),
                        PhaseName::Draining => Event::Drained(Drained::default()),
                        PhaseName::Cleaning => Event::Cleaned { warm: well },
                    };
                    bench.event(slot, event)
                }
                Step::Stop { any } => {
                    let Some(claim) = open.get(any).copied().map(ClaimId) else { continue };
                    bench.give(Input::StopClaim { claim, cause: StopCause::Preempted })
                }
                Step::Wait { ms } => bench.wait(ms),
            };
            let mut launched: BTreeMap<u64, u32> = BTreeMap::new();
            let mut ended: BTreeMap<u64, u32> = BTreeMap::new();
            let mut end = |claim: ClaimId| {
                *ended.entry(size_of[&claim.0].0).or_default() += 1;
                let index = open.iter().position(|id| *id == claim.0);
                open.remove(index.expect("it ends once"));
            };
            for output in &outputs {
                match output {
                    Output::Slot { claim, order: Order::Launch(_), .. } => {
                        *launched.entry(size_of[&claim.0].0).or_default() += 1;
                    }
                    Output::Report { claim, .. } | Output::Release { claim, .. } => end(*claim),
                    Output::ReportTogether(ends) => ends.iter().for_each(|(claim, _)| end(*claim)),
                    _ => {}
                }
            }
            for (gang, count) in launched.iter().chain(&ended) {
                prop_assert_eq!(*count, size_of[gang].1, "a part of gang {}", gang);
            }
        }
        prop_assert!(open.is_empty(), "nobody is left waiting: {:?}", open);
    }
}
