use super::*;
use crate::outcome::{Fault, Usage};

const RULE: BlackHole = BlackHole { failures: 3, within_ms: 100 };

fn ended(conclusion: Conclusion) -> Outcome {
    Outcome { conclusion, launched: true, status: None, usage: Usage::default() }
}

fn slot_fault() -> Outcome {
    ended(Conclusion::Failed(Fault::new(FaultClass::Slot, "no space left")))
}

fn bad_exit(code: u8) -> Outcome {
    ended(Conclusion::Exited(ExitStatus::Code(code)))
}

/// How many of the outcomes it took, if it came to that.
fn trips(outcomes: &[(&str, Outcome, Option<u64>)]) -> Option<usize> {
    let mut guard = Guard::new(RULE);
    let trip = |(family, outcome, ran_ms): &(&str, Outcome, Option<u64>)| {
        guard.note(&Arc::from(*family), outcome, *ran_ms).is_some()
    };
    outcomes.iter().map(trip).position(|tripped| tripped).map(|index| index + 1)
}

#[test]
fn faults_of_slot_or_machine_in_a_row_trip_it_even_within_one_family() {
    let fault = ("a", slot_fault(), None);
    assert_eq!(trips(&[fault.clone(), fault.clone(), fault]), Some(3));
}

#[test]
fn an_array_whose_program_is_wrong_does_not_trip_it() {
    let wrong = ("a", bad_exit(1), Some(5));
    assert_eq!(trips(&vec![wrong; 50]), None);
}

#[test]
fn unrelated_payloads_that_fail_at_once_in_the_same_way_trip_it() {
    let all = [("a", bad_exit(1), Some(5)), ("a", bad_exit(1), Some(5)), ("b", bad_exit(1), Some(5))];
    assert_eq!(trips(&all), Some(3));
}

#[test]
fn unrelated_payloads_that_fail_in_different_ways_do_not_trip_it() {
    let all = [("a", bad_exit(1), Some(5)), ("b", bad_exit(2), Some(5)), ("c", bad_exit(1), Some(5))];
    assert_eq!(trips(&all), None);
}

#[test]
fn a_success_or_a_late_failure_in_between_starts_the_row_anew() {
    let fault = || ("a", slot_fault(), Some(5));
    for between in [("a", ended(Conclusion::Succeeded), Some(5)), ("a", bad_exit(1), Some(101))] {
        assert_eq!(trips(&[fault(), fault(), between.clone(), fault(), fault()]), None);
        assert_eq!(trips(&[fault(), fault(), between, fault(), fault(), fault()]), Some(6));
    }
}

#[test]
fn stops_lost_leases_and_bad_images_say_nothing() {
    let fault = || ("a", slot_fault(), None);
    let image = Outcome::before_launch(Conclusion::Failed(Fault::new(FaultClass::Payload, "no such image")));
    for neutral in [ended(Conclusion::Stopped(StopCause::Evicted)), ended(Conclusion::Lost), image] {
        let neutral = ("b", neutral, Some(1));
        assert_eq!(trips(&[fault(), neutral.clone(), neutral.clone(), fault(), neutral, fault()]), Some(6));
    }
}
