//! Claims beyond what can run: bound in slots that are left over, or waiting where no slot is.

use proptest::prelude::*;

use super::*;

fn ahead(slots: u32, bind_ahead: u32) -> PilotConfig {
    PilotConfig { bind_ahead, ..config(slots) }
}

fn end_warm(bench: &mut Bench, slot: u32) -> Vec<Output> {
    bench.event(slot, Event::Exited(ExitStatus::SUCCESS.into()));
    bench.event(slot, Event::Drained(Drained::default()));
    bench.event(slot, Event::Cleaned { warm: true })
}

#[test]
fn they_are_asked_for_even_when_no_slot_is_idle() {
    let mut bench = Bench::new(ahead(1, 3));
    assert_eq!(asked(&bench.give(Input::Tick)), Some(4));
    bench.run(claim(1), 0);
    bench.wait(30_000);
    assert_eq!(asked(&bench.give(Input::Offered(vec![claim(2)]))), Some(2));
    assert_eq!(asked(&bench.give(Input::Offered(vec![claim(3), claim(4)]))), None);
    assert_eq!(asked(&bench.wait(100_000)), None);
}

#[test]
fn a_slot_that_becomes_idle_finds_a_prepared_claim_at_once_and_the_next_is_asked_for() {
    let mut bench = Bench::new(ahead(1, 1));
    bench.run(claim(1), 0);
    bench.offer(claim(2));
    assert_eq!(bench.pilot.waiting().count(), 1);
    let outputs = end_warm(&mut bench, 0);
    assert!(matches!(orders(&outputs)[..], [(0, Order::Launch(_))]));
    assert_eq!(asked(&outputs), Some(1));
}

#[test]
fn what_is_bound_ahead_and_what_waits_share_one_allowance() {
    let mut bench = Bench::new(ahead(3, 2));
    bench.run(sized(1, 3), 0);
    assert_eq!(asked(&bench.wait(30_000)), Some(2));
    bench.offer(claim(2));
    bench.event(1, Event::Bound);
    assert_eq!((bench.phase(1), asked(&bench.wait(30_000))), (PhaseName::Bound, Some(1)));
    bench.offer(claim(3));
    assert_eq!((bench.phase(2), asked(&bench.wait(30_000))), (PhaseName::Binding, None));
}

#[test]
fn they_keep_their_leases_alive_and_go_back_when_no_more_work_is_taken() {
    let mut bench = Bench::new(ahead(1, 2));
    bench.run(claim(1), 0);
    bench.offer(leased(2, 1_000, 9_000));
    assert!(bench.wait(1_000).contains(&Output::Renew(ClaimId(2))));
    assert_eq!(released(&bench.give(Input::Cordon)), [(2, ReleaseWhy::Closed)]);
    assert_eq!(bench.phase(0), PhaseName::Running);
}

#[test]
fn none_goes_back_for_want_of_room_that_was_asked_for() {
    let mut bench = Bench::new(PilotConfig { max_waiting: 1, ..ahead(2, 40) });
    assert_eq!(asked(&bench.give(Input::Tick)), Some(42));
    let outputs = bench.give(Input::Offered((1..=43).map(claim).collect()));
    assert_eq!(released(&outputs), [(43, ReleaseWhy::NoRoom)]);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The queue answers, with as many claims as were asked for or fewer.
    Answer {
        of_ten: u32,
        cpu_millis: u64,
    },
    Prepared,
    /// Whatever a slot waits for comes.
    Slot {
        slot: u32,
    },
    Wait {
        ms: u64,
    },
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_honest_queue_never_has_more_out_than_slots_and_the_allowance(
        slots in 1_u32..5,
        bind_ahead in 0_u32..4,
        steps in prop::collection::vec(prop_oneof![
            3 => (0_u32..=10, 1_u64..5).prop_map(|(of_ten, cpu_millis)| Step::Answer { of_ten, cpu_millis }),
            3 => Just(Step::Prepared),
            6 => (0_u32..5).prop_map(|slot| Step::Slot { slot }),
            1 => (1_u64..2_000).prop_map(|ms| Step::Wait { ms }),
        ], 1..200),
    ) {
        let mut bench = Bench::new(PilotConfig { ask_timeout_ms: u64::MAX, ..ahead(slots, bind_ahead) });
        let mut question = asked(&bench.give(Input::Tick));
        let (mut next, mut preparing) = (1, std::collections::VecDeque::new());
        for step in steps {
            let outputs = match step {
                Step::Answer { of_ten, cpu_millis } => {
                    let Some(n) = question.take() else { continue };
                    let n = u64::from(n * of_ten / 10);
                    let claims: Vec<Claim> = (next..next + n).map(|id| sized(id, cpu_millis.min(slots.into()))).collect();
                    next += n;
                    preparing.extend(claims.iter().map(|claim| claim.id));
                    bench.give(Input::Offered(claims))
                }
                Step::Prepared => {
                    let Some(claim) = preparing.pop_front() else { continue };
                    bench.give(Input::Prepared { claim, image: "red".into(), bytes_missing: 0 })
                }
                Step::Slot { slot } => match bench.phase(slot) {
                    PhaseName::Binding => bench.event(slot, Event::Bound),
                    PhaseName::Running => bench.event(slot, Event::Exited(ExitStatus::SUCCESS.into())),
                    PhaseName::Draining => bench.event(slot, Event::Drained(Drained::default())),
                    PhaseName::Cleaning => bench.event(slot, Event::Cleaned { warm: true }),
                    PhaseName::Idle | PhaseName::Bound | PhaseName::Retired => continue,
                },
                Step::Wait { ms } => bench.wait(ms),
            };
            question = question.or(asked(&outputs));
            let held = bench.pilot.slots().filter(|slot| slot.claim.is_some() && slot.phase != PhaseName::Cleaning);
            let out = held.count() + bench.pilot.waiting().count();
            prop_assert!(out <= (slots + bind_ahead) as usize, "{} claims are out", out);
            prop_assert!(bench.pilot.bound_ahead() <= bind_ahead);
        }
    }
}
