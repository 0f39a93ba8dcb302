//! Whether a payload gets another try. It must not know who keeps the count: a queue does, and asks here.
//!
//! Two budgets, because a payload must neither fail for what others did to it nor come back for ever:
//! its own failures count against the `retries` it asked for, disruptions against [`MAX_DISRUPTIONS`]. That a stage it made has
//! to be made again counts as a failure does ([`make_again`]).

use serde::{Deserialize, Serialize};

use crate::backoff::{Backoff, Jitter};
use crate::outcome::{Conclusion, FaultClass, Outcome, StopCause};

/// How often a payload may be disrupted through no fault of its own. Five machines in a row that fail under one
/// payload are more likely the payload's doing than chance.
pub const MAX_DISRUPTIONS: u32 = 5;

/// Pauses between tries: soon enough for a slip, long enough for a machine to come back.
pub const RETRY_PAUSE: Backoff = Backoff { base_ms: 500, cap_ms: 60_000 };

/// What was counted against a payload so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Attempts {
    /// Ends that were its own doing.
    pub failed: u32,
    /// Ends that were not.
    pub disrupted: u32,
}

/// What to do with a payload after an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Decision {
    /// Offer it again after a pause.
    Retry {
        /// The pause, in milliseconds.
        after_ms: u64,
        /// The count to keep for the next decision.
        attempts: Attempts,
    },
    /// This outcome is its last.
    Final,
}

enum Charge {
    /// It does not come back.
    Nothing,
    /// Whoever is to blame is charged.
    Another,
    Failure,
    Disruption,
}

/// Decides whether `outcome` is a payload's last. `attempts` is the count before this outcome, `retries` what the
/// payload asked for, `jitter` a draw by the caller.
pub fn decide(
    outcome: &Outcome,
    attempts: Attempts,
    retries: u32,
    at_most_once: bool,
    jitter: Jitter,
) -> Decision {
    if at_most_once && outcome.launched {
        return Decision::Final;
    }
    let (attempts, pauses, spent) = match charge(outcome) {
        Charge::Nothing => return Decision::Final,
        Charge::Another => (attempts, 1, false),
        Charge::Failure => {
            let failed = attempts.failed.saturating_add(1);
            (Attempts { failed, ..attempts }, failed, failed > retries)
        }
        Charge::Disruption => {
            let disrupted = attempts.disrupted.saturating_add(1);
            (Attempts { disrupted, ..attempts }, disrupted, disrupted > MAX_DISRUPTIONS)
        }
    };
    if spent {
        return Decision::Final;
    }
    Decision::Retry { after_ms: RETRY_PAUSE.delay_ms(pauses, jitter), attempts }
}

/// What [`decide_together`] has to know of one payload of a gang; each as for [`decide`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// How its claim ended.
    pub outcome: &'a Outcome,
    /// Its count before this outcome.
    pub attempts: Attempts,
    /// What it asked for.
    pub retries: u32,
    /// Whether it may be launched a second time.
    pub at_most_once: bool,
}

/// Decides for a gang whose claims have all ended: one decision for each member, in order. Either all are final or all come
/// back after the same pause, because none of them is of use without the others. Where all succeeded that was the last of
/// them; a success beside a failure counts for nothing.
pub fn decide_together(members: &[Member<'_>], jitter: Jitter) -> Vec<Decision> {
    let whole = members.iter().all(|member| member.outcome.is_success());
    let decision = |member: &Member<'_>| match member.outcome.is_success() {
        true if whole || member.at_most_once => Decision::Final,
        true => Decision::Retry { after_ms: RETRY_PAUSE.delay_ms(1, jitter), attempts: member.attempts },
        false => decide(member.outcome, member.attempts, member.retries, member.at_most_once, jitter),
    };
    let mut decisions: Vec<Decision> = members.iter().map(decision).collect();
    let pause = |decision: &Decision| match decision {
        Decision::Retry { after_ms, .. } => Some(*after_ms),
        Decision::Final => None,
    };
    let longest: Option<Vec<u64>> = decisions.iter().map(pause).collect();
    let longest = longest.and_then(|pauses| pauses.into_iter().max());
    for decision in &mut decisions {
        *decision = match (*decision, longest) {
            (Decision::Retry { attempts, .. }, Some(after_ms)) => Decision::Retry { after_ms, attempts },
            _ => Decision::Final,
        };
    }
    decisions
}

/// Why a payload that succeeded does not run again although a stage of it was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAgain {
    /// It may be launched only once.
    Once,
    /// It has no retry left.
    Spent,
}

/// Decides whether a payload that succeeded runs again because a stage of it was lost which someone still has to read; gives the
/// count to keep. Each time takes one of its `retries`, so that stages that are lost again and again come to an end.
///
/// # Errors
/// When it may not; then those who need the stage can't run.
pub fn make_again(attempts: Attempts, retries: u32, at_most_once: bool) -> Result<Attempts, NotAgain> {
    if at_most_once {
        return Err(NotAgain::Once);
    }
    if attempts.failed >= retries {
        return Err(NotAgain::Spent);
    }
    Ok(Attempts { failed: attempts.failed + 1, ..attempts })
}

fn charge(outcome: &Outcome) -> Charge {
    match &outcome.conclusion {
        Conclusion::Succeeded | Conclusion::Stopped(StopCause::Cancelled) => Charge::Nothing,
        Conclusion::GangFailed(_) | Conclusion::Stopped(StopCause::GangEnded) => Charge::Another,
        Conclusion::Exited(_) => Charge::Failure,
        Conclusion::Stopped(cause) if cause.is_own_doing() => Charge::Failure,
        Conclusion::Stopped(_) | Conclusion::Lost => Charge::Disruption,
        Conclusion::Failed(fault) => match fault.class {
            // A bad image or a command that is not there stays so.
            FaultClass::Payload if !outcome.launched => Charge::Nothing,
            FaultClass::Payload => Charge::Failure,
            FaultClass::Retry | FaultClass::Slot | FaultClass::Pilot => Charge::Disruption,
        },
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
