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
        (Conclusion::Stopped(StopCause::OutputExceeded), 3, 3),
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

#[test]
fn members_of_a_gang_come_back_together_or_not_at_all() {
    let ended = |conclusion| Outcome { launched: true, ..Outcome::before_launch(conclusion) };
    let (good, bad) = (ended(Conclusion::Succeeded), ended(Conclusion::Exited(ExitStatus::Code(1))));
    let other = ended(Conclusion::GangFailed("bad".into()));
    let member = |outcome, retries, at_most_once| Member {
        outcome,
        attempts: Attempts { failed: 1, disrupted: 2 },
        retries,
        at_most_once,
    };
    let decide = |members: &[Member<'_>]| decide_together(members, Jitter::NONE);
    assert_eq!(decide(&[member(&good, 0, true), member(&good, 0, false)]), [Decision::Final; 2]);
    let decisions = decide(&[member(&bad, 2, false), member(&other, 0, false)]);
    let pause = RETRY_PAUSE.delay_ms(2, Jitter::NONE);
    let again = |failed| Decision::Retry { after_ms: pause, attempts: Attempts { failed, disrupted: 2 } };
    assert_eq!(decisions, [again(2), again(1)], "only who is to blame is charged, and all pause as long");
    assert_eq!(decide(&[member(&bad, 1, false), member(&other, 9, false)]), [Decision::Final; 2]);
    assert_eq!(decide(&[member(&bad, 9, false), member(&other, 9, true)]), [Decision::Final; 2]);
    assert_eq!(decide(&[member(&bad, 9, false), member(&good, 9, true)]), [Decision::Final; 2]);
    let unlaunched = Outcome::before_launch(Conclusion::GangFailed("bad".into()));
    assert!(decide(&[member(&bad, 9, false), member(&unlaunched, 0, true)]) != [Decision::Final; 2]);
}

#[test]
fn a_lost_stage_is_made_again_as_often_as_its_producer_has_retries() {
    let at = |failed, disrupted| Attempts { failed, disrupted };
    // counted before, retries, may run only once; what follows
    let table = [
        (at(0, 0), 0, false, Err(NotAgain::Spent)),
        (at(0, 0), 1, false, Ok(at(1, 0))),
        (at(1, 0), 1, false, Err(NotAgain::Spent)),
        (at(1, 4), 3, false, Ok(at(2, 4))),
        (at(3, 0), 3, false, Err(NotAgain::Spent)),
        (at(u32::MAX, 0), u32::MAX, false, Err(NotAgain::Spent)),
        (at(0, 0), 3, true, Err(NotAgain::Once)),
        (at(0, 0), 0, true, Err(NotAgain::Once)),
    ];
    for (attempts, retries, once, expected) in table {
        assert_eq!(make_again(attempts, retries, once), expected, "{attempts:?} {retries} {once}");
    }
}
