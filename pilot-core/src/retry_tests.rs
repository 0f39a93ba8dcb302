use super::*;
use crate::outcome::{ExitStatus, Fault, Usage};

fn launched(conclusion: Conclusion) -> Outcome {
    Outcome { conclusion, launched: true, status: None, usage: Usage::default() }
}

fn tries(outcome: &Outcome, retries: u32, at_most_once: bool) -> u32 {
    let mut attempts = Attempts::default();
    for tries in 1..100 {
        match decide(outcome, attempts, retries, at_most_once, Jitter::NONE) {
            Decision::Final => return tries,
            Decision::Retry { attempts: counted, .. } => attempts = counted,
        }
    }
    panic!("{outcome:?} is retried for ever");
}

#[test]
fn every_outcome_has_a_last_try() {
    let fault = |class| Conclusion::Failed(Fault::new(class, "x"));
    let forgiven = 1 + MAX_DISRUPTIONS;
    // conclusion, tries with 2 retries when it was launched, and when it was not
    let table = [
        (Conclusion::Succeeded, 1, 1),
        (Conclusion::Exited(ExitStatus::Code(1)), 3, 3),
        (Conclusion::Stopped(StopCause::Cancelled), 1, 1),
        (Conclusion::Stopped(StopCause::Walltime), 3, 3),
        (Conclusion::Stopped(StopCause::MemoryExceeded), 3, 3),
        (Conclusion::Stopped(StopCause::DiskExceeded), 3, 3),
        (Conclusion::Stopped(StopCause::Evicted), forgiven, forgiven),
        (Conclusion::Stopped(StopCause::Expired), forgiven, forgiven),
        (Conclusion::Stopped(StopCause::Preempted), forgiven, forgiven),
        (Conclusion::Stopped(StopCause::PilotStopping), forgiven, forgiven),
        (Conclusion::Lost, forgiven, forgiven),
        (fault(FaultClass::Payload), 3, 1),
        (fault(FaultClass::Retry), forgiven, forgiven),
        (fault(FaultClass::Slot), forgiven, forgiven),
        (fault(FaultClass::Pilot), forgiven, forgiven),
    ];
    for (conclusion, after_launch, before_launch) in table {
        assert_eq!(tries(&launched(conclusion.clone()), 2, false), after_launch, "launched: {conclusion}");
        assert_eq!(
            tries(&Outcome::before_launch(conclusion.clone()), 2, false),
            before_launch,
            "{conclusion}"
        );
    }
}

#[test]
fn a_payload_that_may_run_once_is_not_retried_after_its_launch() {
    assert_eq!(tries(&launched(Conclusion::Lost), 9, true), 1);
    assert_eq!(tries(&launched(Conclusion::Exited(ExitStatus::Code(1))), 9, true), 1);
}

#[test]
fn a_payload_that_may_run_once_is_retried_when_it_never_ran() {
    let slot = Conclusion::Failed(Fault::new(FaultClass::Slot, "x"));
    assert_eq!(tries(&Outcome::before_launch(slot), 0, true), 1 + MAX_DISRUPTIONS);
}

#[test]
fn the_pause_grows_with_each_failure() {
    let outcome = launched(Conclusion::Exited(ExitStatus::Code(1)));
    let pause = |failed| match decide(&outcome, Attempts { failed, disrupted: 0 }, 9, false, Jitter::NONE) {
        Decision::Retry { after_ms, .. } => after_ms,
        Decision::Final => 0,
    };
    assert_eq!([pause(0), pause(1), pause(2)], [500, 1_000, 2_000]);
}
