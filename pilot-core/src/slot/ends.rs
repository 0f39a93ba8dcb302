//! The edges from Draining on: how a claim comes to its one end, and how the slot becomes clean.

use super::edges::{At, Due, Step, acted, clean, due, flush, ignored, kill, renewed};
use super::{Action, CleanStep, Drained, End, Ending, Event, Held, Order, Phase, Reached, Signal, Why};
use crate::backoff::Jitter;
use crate::claim::{Claim, ClaimId, ReleaseWhy};
use crate::outcome::{Conclusion, Exit, Fault, FaultClass, Outcome, StopCause};
use crate::time::Moment;

/// Draining, while the exit of a payload that was told to end is awaited.
pub(super) fn stopping(at: &At<'_>, mut claim: Box<Claim>, end: End, by: Moment, event: Event) -> Step {
    match event {
        Event::Exited(Exit { status, .. }) => flush(at, claim, End { status: Some(status), ..end }, []),
        Event::LaunchFailed(_) => flush(at, claim, End { reached: Reached::Bound, ..end }, []),
        Event::SlotLost(_) => flush(at, claim, end, []),
        Event::Stop { cause, grace_ms: 0 } => {
            kill(at, claim, End { ending: stopped(end.ending, cause), ..end })
        }
        Event::Stop { cause, grace_ms } => hurry(at, claim, end, by, (cause, grace_ms)),
        Event::LeaseRenewed(_) if end.ending == Ending::LeaseLost => {
            ignored(Phase::Draining { claim, end, by }, Why::Late)
        }
        Event::LeaseRenewed(lease) => {
            let verdict = renewed(&mut claim, lease);
            (Phase::Draining { claim, end, by }, verdict)
        }
        Event::LeaseLost => lose(claim, end, by),
        Event::Tick => match due_while_draining(at, &mut claim, &end, by) {
            Due::Lease => lose(claim, end, by),
            Due::Step => kill(at, claim, end),
            Due::Renewal => acted(Phase::Draining { claim, end, by }, [Action::Renew]),
            Due::Nothing => ignored(Phase::Draining { claim, end, by }, Why::Early),
        },
        Event::Bound => ignored(Phase::Draining { claim, end, by }, Why::Duplicate),
        Event::Claimed(_)
        | Event::Adopted(_)
        | Event::Go
        | Event::BindFailed(_)
        | Event::Drained(_)
        | Event::Cleaned { .. }
        | Event::CleanFailed(_) => ignored(Phase::Draining { claim, end, by }, Why::NotInThisPhase),
    }
}

/// Draining, while the runtime ends what is left and keeps logs and outputs.
pub(super) fn flushing(at: &At<'_>, mut claim: Box<Claim>, mut end: End, by: Moment, event: Event) -> Step {
    match event {
        Event::Drained(drained) => conclude(at, claim, end, Some(drained)),
        // The bind was under way when it was undone: what has come up must go.
        Event::Bound if end.reached == Reached::Binding => {
            end.reached = Reached::Bound;
            let term = Order::Signal(Signal::Term { grace_ms: 0 });
            acted(Phase::Draining { claim, end, by }, [Action::Order(term)])
        }
        Event::Exited(exit) if end.reached == Reached::Launched && end.status.is_none() => {
            end.status = Some(exit.status);
            acted(Phase::Draining { claim, end, by }, [])
        }
        Event::LaunchFailed(_) if end.reached == Reached::Launched && end.status.is_none() => {
            end.reached = Reached::Bound;
            acted(Phase::Draining { claim, end, by }, [])
        }
        Event::Stop { cause, grace_ms } => hurry(at, claim, end, by, (cause, grace_ms)),
        Event::LeaseRenewed(_) if end.ending == Ending::LeaseLost => {
            ignored(Phase::Draining { claim, end, by }, Why::Late)
        }
        Event::LeaseRenewed(lease) => {
            let verdict = renewed(&mut claim, lease);
            (Phase::Draining { claim, end, by }, verdict)
        }
        Event::LeaseLost => lose(claim, end, by),
        Event::Tick => match due_while_draining(at, &mut claim, &end, by) {
            Due::Lease => lose(claim, end, by),
            Due::Step => conclude(at, claim, end, None),
            Due::Renewal => acted(Phase::Draining { claim, end, by }, [Action::Renew]),
            Due::Nothing => ignored(Phase::Draining { claim, end, by }, Why::Early),
        },
        Event::BindFailed(_) | Event::SlotLost(_) => ignored(Phase::Draining { claim, end, by }, Why::Late),
        Event::Bound => ignored(Phase::Draining { claim, end, by }, Why::Duplicate),
        Event::Exited(_) | Event::LaunchFailed(_) => {
            let why = if end.reached == Reached::Binding { Why::NotInThisPhase } else { Why::Duplicate };
            ignored(Phase::Draining { claim, end, by }, why)
        }
        Event::Claimed(_) | Event::Adopted(_) | Event::Go | Event::Cleaned { .. } | Event::CleanFailed(_) => {
            ignored(Phase::Draining { claim, end, by }, Why::NotInThisPhase)
        }
    }
}

/// A lease that is known to be lost is neither renewed nor lost again.
fn due_while_draining(at: &At<'_>, claim: &mut Claim, end: &End, by: Moment) -> Due {
    if end.ending != Ending::LeaseLost {
        return due(at, claim, by);
    }
    if by.is_due(at.now) { Due::Step } else { Due::Nothing }
}

fn lose(claim: Box<Claim>, end: End, by: Moment) -> Step {
    if end.ending == Ending::LeaseLost {
        return ignored(Phase::Draining { claim, end, by }, Why::Duplicate);
    }
    acted(Phase::Draining { claim, end: End { ending: Ending::LeaseLost, ..end }, by }, [])
}

/// A further stop can only make the wait shorter. It leaves the cause as it is, except that what its user cancels must not
/// come back: neither as a failure with a retry left, nor as a claim that was released.
fn hurry(at: &At<'_>, claim: Box<Claim>, end: End, by: Moment, stop: (StopCause, u64)) -> Step {
    let (cause, grace_ms) = stop;
    let sooner = at.now.after_ms(grace_ms);
    let ending = stopped(end.ending.clone(), cause);
    if sooner < by || ending != end.ending {
        acted(Phase::Draining { claim, end: End { ending, ..end }, by: by.min(sooner) }, [])
    } else {
        ignored(Phase::Draining { claim, end, by }, Why::Duplicate)
    }
}

/// What a claim ends with when it is stopped while it ends. A success is what its user wanted, and its outputs may be there.
fn stopped(ending: Ending, cause: StopCause) -> Ending {
    match ending {
        Ending::LeaseLost => Ending::LeaseLost,
        Ending::Exited(status) if status.is_success() => Ending::Exited(status),
        _ if cause == StopCause::Cancelled => Ending::Stopped(cause),
        other => other,
    }
}

/// The one end of a claim. `drained` is `None` when the runtime did not answer in time.
fn conclude(at: &At<'_>, claim: Box<Claim>, end: End, drained: Option<Drained>) -> Step {
    let reached = end.reached;
    let last = if claim.is_expired(at.now) {
        report(Conclusion::Lost, &end, drained)
    } else {
        match &end.ending {
            Ending::LeaseLost => report(Conclusion::Lost, &end, drained),
            Ending::Exited(status) if status.is_success() => {
                let fault = match &drained {
                    Some(drained) => drained.fault.clone(),
                    None => Some(unanswered(&claim)),
                };
                report(fault.map_or(Conclusion::Succeeded, Conclusion::Failed), &end, drained)
            }
            Ending::Exited(status) => report(Conclusion::Exited(*status), &end, drained),
            Ending::Stopped(cause) if reached < Reached::Launched && !cause.is_own_doing() => {
                Action::Release(ReleaseWhy::Stopped(*cause))
            }
            Ending::Stopped(cause) => report(Conclusion::Stopped(*cause), &end, drained),
            Ending::BindFailed(fault) | Ending::LaunchFailed(fault) | Ending::SlotLost(fault) => {
                report(Conclusion::Failed(fault.clone()), &end, drained)
            }
            Ending::WaitedTooLong => Action::Release(ReleaseWhy::WaitedTooLong),
        }
    };
    acted(clean(at, &claim, reached), [last, Action::Order(Order::Clean)])
}

fn unanswered(claim: &Claim) -> Fault {
    Fault::new(FaultClass::Slot, format!("commit outputs of {} in time", claim.payload.name))
}

fn report(conclusion: Conclusion, end: &End, drained: Option<Drained>) -> Action {
    Action::Report(Outcome {
        conclusion,
        launched: end.reached == Reached::Launched,
        status: end.status,
        usage: drained.map(|drained| drained.usage).unwrap_or_default(),
    })
}

/// What Cleaning knows.
pub(super) struct Traces {
    pub(super) claim: ClaimId,
    pub(super) holds: Option<Held>,
    pub(super) attempts: u32,
    pub(super) step: CleanStep,
    pub(super) by: Moment,
}

impl Traces {
    fn phase(self) -> Phase {
        let Self { claim, holds, attempts, step, by } = self;
        Phase::Cleaning { claim, holds, attempts, step, by }
    }
}

pub(super) fn cleaning(at: &At<'_>, traces: Traces, event: Event) -> Step {
    match event {
        // Also the late answer to a try that was given up: nothing has made the slot dirty since. But a later try may
        // still take away what the earlier one left warm, so only the answer to a single try counts as warm.
        Event::Cleaned { warm } => {
            let holds = traces.holds.filter(|_| warm && traces.attempts == 0);
            acted(Phase::Idle { holds }, [])
        }
        Event::CleanFailed(_) => match traces.step {
            CleanStep::Working => clean_failed(at, traces),
            CleanStep::Pausing => ignored(traces.phase(), Why::Duplicate),
        },
        Event::Tick if !traces.by.is_due(at.now) => ignored(traces.phase(), Why::Early),
        Event::Tick => match traces.step {
            CleanStep::Working => clean_failed(at, traces),
            CleanStep::Pausing => {
                let by = at.now.after_ms(at.limits.clean_ms);
                let again = Traces { step: CleanStep::Working, by, ..traces };
                acted(again.phase(), [Action::Order(Order::Clean)])
            }
        },
        Event::Drained(_) => ignored(traces.phase(), Why::Duplicate),
        Event::Bound
        | Event::BindFailed(_)
        | Event::LaunchFailed(_)
        | Event::Exited(_)
        | Event::Stop { .. }
        | Event::LeaseRenewed(_)
        | Event::LeaseLost
        | Event::SlotLost(_) => ignored(traces.phase(), Why::Late),
        Event::Claimed(_) | Event::Adopted(_) | Event::Go => ignored(traces.phase(), Why::NotInThisPhase),
    }
}

fn clean_failed(at: &At<'_>, traces: Traces) -> Step {
    let attempts = traces.attempts.saturating_add(1);
    if attempts >= at.limits.clean_attempts {
        return acted(Phase::Retired, []);
    }
    let by = at.now.after_ms(at.limits.clean_pause.delay_ms(attempts, Jitter::NONE));
    acted(Traces { attempts, step: CleanStep::Pausing, by, ..traces }.phase(), [])
}

pub(super) fn retired(event: Event) -> Step {
    match event {
        Event::Claimed(_) | Event::Adopted(_) | Event::Go => ignored(Phase::Retired, Why::NotInThisPhase),
        Event::Tick => ignored(Phase::Retired, Why::Early),
        Event::Bound
        | Event::BindFailed(_)
        | Event::LaunchFailed(_)
        | Event::Exited(_)
        | Event::Stop { .. }
        | Event::LeaseRenewed(_)
        | Event::LeaseLost
        | Event::SlotLost(_)
        | Event::Drained(_)
        | Event::Cleaned { .. }
        | Event::CleanFailed(_) => ignored(Phase::Retired, Why::Late),
    }
}
