//! Tells a machine on which everything fails at once from a payload that is wrong. It must not know what to do about it.
//!
//! A broken machine swallows a queue: it fails each payload in no time and asks for the next. So a pilot stops asking when
//! the last few payloads all failed at once, and either slot or machine was to blame each time, or payloads that
//! have nothing to do with each other failed in the same way. An array whose program is wrong is no black hole.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::outcome::{Conclusion, ExitStatus, FaultClass, Outcome, StopCause};

/// When to give up on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlackHole {
    /// So many payloads in a row.
    pub failures: u32,
    /// Each failed within this time of its launch, in milliseconds.
    pub within_ms: u64,
}

/// How a payload failed, as far as two failures can be the same.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    /// Slot or machine is to blame.
    Here,
    /// It ended badly.
    Exited(ExitStatus),
    /// It was ended for what it did.
    Stopped(StopCause),
    /// Something about it is wrong.
    Fault(Arc<str>),
}

/// The last failures in a row.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    rule: BlackHole,
    row: VecDeque<(Arc<str>, Failure)>,
}

enum Sign {
    /// Says nothing about the machine.
    Neutral,
    /// The machine can run payloads.
    Good,
    Bad(Failure),
}

impl Guard {
    pub(crate) fn new(rule: BlackHole) -> Self {
        Self { rule, row: VecDeque::new() }
    }

    /// Takes note of the end of a payload of `family`, `ran_ms` after its launch (`None`: it was never launched).
    /// The answer is what to say when this was one too many.
    pub(crate) fn note(
        &mut self,
        family: &Arc<str>,
        outcome: &Outcome,
        ran_ms: Option<u64>,
    ) -> Option<Arc<str>> {
        match sign(outcome, ran_ms, self.rule.within_ms) {
            Sign::Neutral => return None,
            Sign::Good => {
                self.row.clear();
                return None;
            }
            Sign::Bad(failure) => self.row.push_back((family.clone(), failure)),
        }
        let wanted = usize::try_from(self.rule.failures.max(1)).unwrap_or(usize::MAX);
        while self.row.len() > wanted {
            self.row.pop_front();
        }
        let (family, failure) = self.row.front()?;
        let same = self.row.iter().all(|(_, other)| other == failure);
        let unrelated = self.row.iter().any(|(other, _)| other != family);
        let damning = self.row.len() == wanted && same && (*failure == Failure::Here || unrelated);
        damning.then(|| {
            format!("{wanted} payloads in a row failed at once, the last with: {}", outcome.conclusion).into()
        })
    }
}

fn sign(outcome: &Outcome, ran_ms: Option<u64>, within_ms: u64) -> Sign {
    if ran_ms.is_some_and(|ran_ms| ran_ms > within_ms) {
        return Sign::Good;
    }
    match &outcome.conclusion {
        Conclusion::Succeeded => Sign::Good,
        Conclusion::Lost | Conclusion::GangFailed(_) => Sign::Neutral,
        Conclusion::Exited(status) => Sign::Bad(Failure::Exited(*status)),
        Conclusion::Stopped(StopCause::Cancelled) => Sign::Neutral,
        Conclusion::Stopped(cause) if cause.is_own_doing() => Sign::Bad(Failure::Stopped(*cause)),
        Conclusion::Stopped(_) => Sign::Neutral,
        Conclusion::Failed(fault) => match fault.class {
            FaultClass::Slot | FaultClass::Pilot => Sign::Bad(Failure::Here),
            FaultClass::Payload if outcome.launched => Sign::Bad(Failure::Fault(fault.message.clone())),
            // A bad image, a command that is not there, a registry that is away.
            FaultClass::Payload | FaultClass::Retry => Sign::Neutral,
        },
    }
}

#[cfg(test)]
#[path = "black_hole_tests.rs"]
mod tests;
