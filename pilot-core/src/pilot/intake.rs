//! Asking for claims and taking them in.

use std::collections::BTreeMap;

use super::waiting::{Stage, Waiting};
use super::{Intake, Output, Outputs, Pilot, ReleaseWhy};
use crate::claim::{Claim, GangId};
use crate::outcome::{Conclusion, Outcome};
use crate::payload::InputKey;
use crate::time::Moment;

/// Inputs that are remembered as being here. Beyond it locality is guessed worse, nothing else.
const MAX_INPUTS_HERE: usize = 65_536;

/// Where we are with the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asking {
    /// May be asked.
    Free,
    /// Was asked for so many; after `by` the question counts as lost.
    Asked { by: Moment, wanted: u32 },
    /// Had nothing for one who wanted so many; is asked again at `at`, or for more: there may be a gang.
    Resting { at: Moment, wanted: u32 },
    /// Has nothing for ever.
    Closed,
}

impl Pilot {
    pub(super) fn on_offered(&mut self, now: Moment, claims: Vec<Claim>, out: &mut Outputs) {
        if claims.is_empty() {
            return self.on_queue_empty(now);
        }
        if self.asking != Asking::Closed {
            self.asking = Asking::Free;
        }
        let mut together: BTreeMap<GangId, Vec<Claim>> = BTreeMap::new();
        for claim in claims {
            match claim.gang {
                Some(gang) => together.entry(gang.id).or_default().push(claim),
                None => self.take_in(now, claim, out),
            }
        }
        for claims in together.into_values() {
            self.take_in_together(now, claims, out);
        }
    }

    fn take_in(&mut self, now: Moment, claim: Claim, out: &mut Outputs) {
        if self.knows(claim.id) {
            return;
        }
        let total = self.config.total;
        if self.intake != Intake::Open {
            self.release(claim.id, ReleaseWhy::Closed, out);
        } else if !claim.payload.demand.fits(&total) {
            self.release(claim.id, ReleaseWhy::NeverFits { total }, out);
        } else if self.waiting.len() >= self.config.max_waiting() {
            self.release(claim.id, ReleaseWhy::NoRoom, out);
        } else if claim.is_expired(now) {
            let lost = Outcome::before_launch(Conclusion::Lost);
            self.report(now, claim.id, None, lost, out);
        } else {
            self.let_wait(now, claim, out);
        }
    }

    pub(super) fn let_wait(&mut self, now: Moment, claim: Claim, out: &mut Outputs) {
        let claim = Box::new(claim);
        let stage = Stage::Preparing { by: now.after_ms(self.config.prepare_timeout_ms) };
        out.push(Output::Prepare(claim.clone()));
        let waiting = Waiting { id: claim.id, claim, since: now, stage };
        self.note_due(waiting.deadline());
        self.waiting.push(waiting);
    }

    pub(super) fn on_queue_empty(&mut self, now: Moment) {
        let wanted = match self.asking {
            Asking::Asked { wanted, .. } => wanted,
            Asking::Resting { wanted, .. } => wanted,
            Asking::Free => u32::MAX,
            Asking::Closed => return,
        };
        self.asking = Asking::Resting { at: now.after_ms(self.config.poll_ms), wanted };
    }

    pub(super) fn on_queue_filled(&mut self) {
        if matches!(self.asking, Asking::Resting { .. }) {
            self.asking = Asking::Free;
        }
    }

    pub(super) fn on_input_here(&mut self, key: InputKey) {
        if self.inputs_here.len() < MAX_INPUTS_HERE && !self.inputs_here.contains(&key) {
            self.count_missing(&key, |missing, named| missing.saturating_sub(named));
            self.inputs_here.insert(key);
        }
    }

    pub(super) fn on_input_gone(&mut self, key: &InputKey) {
        if self.inputs_here.remove(key) {
            self.count_missing(key, usize::saturating_add);
        }
    }

    fn count_missing(&mut self, key: &InputKey, count: impl Fn(usize, usize) -> usize) {
        for waiting in &mut self.waiting {
            if let Stage::Ready { inputs_missing, .. } = &mut waiting.stage {
                let named = waiting.claim.payload.inputs.iter().filter(|input| *input == key).count();
                *inputs_missing = count(*inputs_missing, named);
            }
        }
    }

    /// Never more than could be bound soon: idle slots and the claims allowed ahead, less those that wait already. Where no slot
    /// is idle, what is allowed ahead is asked for all the same.
    pub(super) fn ask(&mut self, now: Moment, out: &mut Outputs) {
        let wanted = self.wanted();
        match self.asking {
            Asking::Asked { by, .. } | Asking::Resting { at: by, .. } if by.is_due(now) => {
                self.asking = Asking::Free;
            }
            Asking::Resting { wanted: before, .. } if wanted > before => self.asking = Asking::Free,
            Asking::Free | Asking::Asked { .. } | Asking::Resting { .. } | Asking::Closed => {}
        }
        if self.asking == Asking::Free && wanted > 0 {
            self.asking = Asking::Asked { by: now.after_ms(self.config.ask_timeout_ms), wanted };
            out.push(Output::AskClaims(wanted));
        }
    }

    fn wanted(&self) -> u32 {
        if self.intake != Intake::Open {
            return 0;
        }
        let free = self.free();
        let startable = if free.cpu_millis > 0 && free.memory_bytes > 0 { self.tally.idle } else { 0 };
        let ahead = self.config.bind_ahead.saturating_sub(self.bound_ahead());
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let room = count(self.config.max_waiting().saturating_sub(self.waiting.len()));
        count(startable).saturating_add(ahead).saturating_sub(count(self.waiting.len())).min(room)
    }

    /// Only a pilot that would ask has to be woken for it.
    pub(super) fn ask_deadline(&self) -> Option<Moment> {
        let at = match self.asking {
            Asking::Asked { by, .. } | Asking::Resting { at: by, .. } => by,
            // After an adoption: overdue.
            Asking::Free => Moment::START,
            Asking::Closed => return None,
        };
        (self.wanted() > 0).then_some(at)
    }
}
