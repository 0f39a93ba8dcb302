//! The edges up to Draining, and the step function: a phase and an event in, a phase and a verdict out.
//!
//! Each function takes one phase apart and has one arm for each event; no wildcard, so that a new event is judged here.

use super::ends;
use super::{Action, CleanStep};
use super::{DrainStep, End, Ending, Event, Held, Order, Phase, Reached, Signal, SlotLimits, Verdict, Why};
use crate::claim::{Claim, Lease};
use crate::outcome::{Exit, Fault, FaultClass, StopCause};
use crate::time::Moment;

/// What every edge may look at.
pub(super) struct At<'a> {
    pub(super) now: Moment,
    pub(super) limits: &'a SlotLimits,
    /// The claim was adopted: its payload's code has run.
    pub(super) adopted: bool,
}

impl At<'_> {
    /// How far a claim has come whose slot is bound.
    fn reached_bound(&self) -> Reached {
        if self.adopted { Reached::Launched } else { Reached::Bound }
    }
}

pub(super) type Step = (Phase, Verdict);

pub(super) fn step(at: &At<'_>, phase: Phase, event: Event) -> Step {
    match phase {
        Phase::Idle { holds } => idle(at, holds, event),
        Phase::Binding { claim, by } => binding(at, claim, by, event),
        Phase::Bound { claim, by } => bound(at, claim, by, event),
        Phase::Running { claim, by } => running(at, claim, by, event),
        Phase::Draining { claim, end, by } => match end.step {
            DrainStep::Stopping => ends::stopping(at, claim, end, by, event),
            DrainStep::Flushing => ends::flushing(at, claim, end, by, event),
        },
        Phase::Cleaning { claim, holds, attempts, step, by } => {
            ends::cleaning(at, ends::Traces { claim, holds, attempts, step, by }, event)
        }
        Phase::Retired => ends::retired(event),
    }
}

pub(super) fn acted(phase: Phase, actions: impl Into<Vec<Action>>) -> Step {
    (phase, Verdict::Acted(actions.into()))
}

pub(super) fn ignored(phase: Phase, why: Why) -> Step {
    (phase, Verdict::Ignored(why))
}

fn idle(at: &At<'_>, holds: Option<Held>, event: Event) -> Step {
    match event {
        Event::Claimed(claim) if holds.as_ref().is_some_and(|held| held.suits(&claim.payload)) => {
            let by = at.now.after_ms(at.limits.bound_wait_ms);
            acted(Phase::Bound { claim, by }, [])
        }
        Event::Claimed(claim) => {
            let by = at.now.after_ms(claim.payload.bind_timeout_ms);
            acted(Phase::Binding { claim: claim.clone(), by }, [Action::Order(Order::Bind(claim))])
        }
        Event::Adopted(claim) => {
            acted(Phase::Bound { claim, by: at.now.after_ms(at.limits.bound_wait_ms) }, [])
        }
        Event::SlotLost(_) if holds.is_some() => acted(Phase::Idle { holds: None }, []),
        Event::Bound
        | Event::BindFailed(_)
        | Event::LaunchFailed(_)
        | Event::Exited(_)
        | Event::Stop { .. }
        | Event::LeaseRenewed(_)
        | Event::LeaseLost
        | Event::SlotLost(_)
        | Event::Drained(_)
        | Event::CleanFailed(_) => ignored(Phase::Idle { holds }, Why::Late),
        Event::Cleaned { .. } => ignored(Phase::Idle { holds }, Why::Duplicate),
        Event::Go => ignored(Phase::Idle { holds }, Why::NotInThisPhase),
        Event::Tick => ignored(Phase::Idle { holds }, Why::Early),
    }
}

fn binding(at: &At<'_>, mut claim: Box<Claim>, by: Moment, event: Event) -> Step {
    match event {
        Event::Bound => acted(Phase::Bound { claim, by: at.now.after_ms(at.limits.bound_wait_ms) }, []),
        Event::BindFailed(fault) | Event::SlotLost(fault) => {
            drain(at, claim, Ending::BindFailed(fault), Reached::Binding)
        }
        Event::Stop { cause, .. } => drain(at, claim, Ending::Stopped(cause), Reached::Binding),
        Event::LeaseLost => drain(at, claim, Ending::LeaseLost, Reached::Binding),
        Event::LeaseRenewed(lease) => {
            let verdict = renewed(&mut claim, lease);
            (Phase::Binding { claim, by }, verdict)
        }
        Event::Tick => match due(at, &mut claim, by) {
            Due::Lease => drain(at, claim, Ending::LeaseLost, Reached::Binding),
            Due::Step => {
                let message =
                    format!("bind {} within {} ms", claim.payload.image, claim.payload.bind_timeout_ms);
                let fault = Fault::new(FaultClass::Slot, message);
                drain(at, claim, Ending::BindFailed(fault), Reached::Binding)
            }
            Due::Renewal => acted(Phase::Binding { claim, by }, [Action::Renew]),
            Due::Nothing => ignored(Phase::Binding { claim, by }, Why::Early),
        },
        Event::Claimed(_)
        | Event::Adopted(_)
        | Event::Go
        | Event::LaunchFailed(_)
        | Event::Exited(_)
        | Event::Drained(_)
        | Event::Cleaned { .. }
        | Event::CleanFailed(_) => ignored(Phase::Binding { claim, by }, Why::NotInThisPhase),
    }
}

fn bound(at: &At<'_>, mut claim: Box<Claim>, by: Moment, event: Event) -> Step {
    match event {
        // Never launch what another pilot may have launched. What was adopted runs: it is told to end once it is watched.
        Event::Go if claim.is_expired(at.now) && !at.adopted => {
            drain(at, claim, Ending::LeaseLost, Reached::Bound)
        }
        Event::Go => {
            let by = at.now.after_ms(claim.payload.walltime_ms);
            acted(Phase::Running { claim: claim.clone(), by }, [Action::Order(Order::Launch(claim))])
        }
        Event::SlotLost(fault) => drain(at, claim, Ending::SlotLost(fault), at.reached_bound()),
        Event::Stop { cause, .. } => drain(at, claim, Ending::Stopped(cause), at.reached_bound()),
        Event::LeaseLost => drain(at, claim, Ending::LeaseLost, at.reached_bound()),
        Event::LeaseRenewed(lease) => {
            let verdict = renewed(&mut claim, lease);
            (Phase::Bound { claim, by }, verdict)
        }
        Event::Tick => match due(at, &mut claim, by) {
            Due::Lease => drain(at, claim, Ending::LeaseLost, at.reached_bound()),
            Due::Step => drain(at, claim, waited_too_long(at), at.reached_bound()),
            Due::Renewal => acted(Phase::Bound { claim, by }, [Action::Renew]),
            Due::Nothing => ignored(Phase::Bound { claim, by }, Why::Early),
        },
        Event::Bound => ignored(Phase::Bound { claim, by }, Why::Duplicate),
        Event::Claimed(_)
        | Event::Adopted(_)
        | Event::BindFailed(_)
        | Event::LaunchFailed(_)
        | Event::Exited(_)
        | Event::Drained(_)
        | Event::Cleaned { .. }
        | Event::CleanFailed(_) => ignored(Phase::Bound { claim, by }, Why::NotInThisPhase),
    }
}

fn running(at: &At<'_>, mut claim: Box<Claim>, by: Moment, event: Event) -> Step {
    match event {
        Event::Exited(exit) => exited(at, claim, exit),
        Event::LaunchFailed(fault) => drain(at, claim, Ending::LaunchFailed(fault), Reached::Bound),
        Event::SlotLost(fault) => drain(at, claim, Ending::SlotLost(fault), Reached::Launched),
        Event::Stop { cause, grace_ms } => stop(at, claim, Ending::Stopped(cause), grace_ms),
        Event::LeaseLost => lose(at, claim),
        Event::LeaseRenewed(lease) => {
            let verdict = renewed(&mut claim, lease);
            (Phase::Running { claim, by }, verdict)
        }
        Event::Tick => match due(at, &mut claim, by) {
            Due::Lease => lose(at, claim),
            Due::Step => {
                let grace_ms = claim.payload.grace_ms;
                stop(at, claim, Ending::Stopped(StopCause::Walltime), grace_ms)
            }
            Due::Renewal => acted(Phase::Running { claim, by }, [Action::Renew]),
            Due::Nothing => ignored(Phase::Running { claim, by }, Why::Early),
        },
        Event::Bound | Event::Go => ignored(Phase::Running { claim, by }, Why::Duplicate),
        Event::Claimed(_)
        | Event::Adopted(_)
        | Event::BindFailed(_)
        | Event::Drained(_)
        | Event::Cleaned { .. }
        | Event::CleanFailed(_) => ignored(Phase::Running { claim, by }, Why::NotInThisPhase),
    }
}

/// What runs can't go back as if it never had.
fn waited_too_long(at: &At<'_>) -> Ending {
    if at.adopted { Ending::Stopped(StopCause::PilotStopping) } else { Ending::WaitedTooLong }
}

/// To the last step of Draining: nothing of the payload needs to be told to end.
fn drain(at: &At<'_>, claim: Box<Claim>, ending: Ending, reached: Reached) -> Step {
    let end = End { ending, status: None, reached, step: DrainStep::Flushing };
    flush(at, claim, end, [])
}

fn exited(at: &At<'_>, claim: Box<Claim>, exit: Exit) -> Step {
    let ending = exit.cause.map_or(Ending::Exited(exit.status), Ending::Stopped);
    let end =
        End { ending, status: Some(exit.status), reached: Reached::Launched, step: DrainStep::Flushing };
    flush(at, claim, end, [])
}

fn lose(at: &At<'_>, claim: Box<Claim>) -> Step {
    let grace_ms = claim.payload.grace_ms;
    stop(at, claim, Ending::LeaseLost, grace_ms)
}

fn stop(at: &At<'_>, claim: Box<Claim>, ending: Ending, grace_ms: u64) -> Step {
    let end = End { ending, status: None, reached: Reached::Launched, step: DrainStep::Stopping };
    if grace_ms == 0 {
        return kill(at, claim, end);
    }
    let by = at.now.after_ms(grace_ms);
    acted(Phase::Draining { claim, end, by }, [Action::Order(Order::Signal(Signal::Term { grace_ms }))])
}

pub(super) fn kill(at: &At<'_>, claim: Box<Claim>, end: End) -> Step {
    flush(at, claim, end, [Action::Order(Order::Signal(Signal::Kill))])
}

pub(super) fn flush<const N: usize>(at: &At<'_>, claim: Box<Claim>, end: End, first: [Action; N]) -> Step {
    let commit = matches!(end.ending, Ending::Exited(status) if status.is_success());
    let end = End { step: DrainStep::Flushing, ..end };
    let mut actions = Vec::with_capacity(N + 1);
    actions.extend(first);
    actions.push(Action::Order(Order::Drain { commit }));
    acted(Phase::Draining { claim, end, by: at.now.after_ms(at.limits.drain_ms) }, actions)
}

pub(super) fn renewed(claim: &mut Claim, lease: Lease) -> Verdict {
    if claim.renew(lease) { Verdict::Acted(Vec::new()) } else { Verdict::Ignored(Why::Duplicate) }
}

/// What a tick finds, the gravest first.
pub(super) enum Due {
    /// The lease is over.
    Lease,
    /// The phase's or step's own time is over.
    Step,
    /// The lease must be renewed; noted as asked.
    Renewal,
    /// Nothing yet.
    Nothing,
}

pub(super) fn due(at: &At<'_>, claim: &mut Claim, by: Moment) -> Due {
    if claim.is_expired(at.now) {
        return Due::Lease;
    }
    if by.is_due(at.now) {
        return Due::Step;
    }
    match &mut claim.lease {
        Some(lease) if lease.renew_at.is_due(at.now) => {
            *lease = lease.asked(at.now);
            Due::Renewal
        }
        _ => Due::Nothing,
    }
}

/// The first try to clean.
pub(super) fn clean(at: &At<'_>, claim: &Claim, reached: Reached) -> Phase {
    let payload = &claim.payload;
    let held = Held { image: payload.image.clone(), trust: payload.trust.clone() };
    Phase::Cleaning {
        claim: claim.id,
        holds: (payload.reusable && reached >= Reached::Bound).then_some(held),
        attempts: 0,
        step: CleanStep::Working,
        by: at.now.after_ms(at.limits.clean_ms),
    }
}
