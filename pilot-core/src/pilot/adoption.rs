//! Taking over payloads that an earlier life of this pilot left running. It must not know how they were found.

use super::seat::Tenant;
use super::{Intake, Output, Outputs, Pilot, StopKind};
use crate::claim::{Claim, Epoch, SlotId};
use crate::outcome::{Conclusion, Fault, FaultClass, Outcome};
use crate::slot::{Event, EventName, Why};
use crate::time::Moment;

impl Pilot {
    /// The payload runs, whatever the pilot would decide now: so its share is charged even when it is not free, it needs no
    /// open intake, and it is watched at once.
    pub(super) fn on_adopted(
        &mut self,
        now: Moment,
        slot: SlotId,
        epoch: Epoch,
        claim: Box<Claim>,
        out: &mut Outputs,
    ) {
        let ignored = |why| Output::Ignored { slot, epoch, event: EventName::Adopted, why };
        if self.knows(claim.id) {
            return out.push(ignored(Why::Duplicate));
        }
        let seat = self.index_of(slot).filter(|index| self.seats[*index].slot.may_adopt(epoch));
        let Some(index) = seat.filter(|_| self.intake != Intake::Over) else {
            out.push(ignored(Why::NotInThisPhase));
            return self.disown(now, slot, &claim, out);
        };
        self.gangs.join(&claim);
        self.let_in(index, Tenant::new(&claim, now, true));
        self.apply(now, index, epoch, Event::Adopted(claim), out);
        self.apply_own(now, index, Event::Go, out);
        self.stop_with_the_others(now, index, out);
    }

    /// A stop reaches also what is found after it was given.
    fn stop_with_the_others(&mut self, now: Moment, index: usize, out: &mut Outputs) {
        match self.intake {
            Intake::Ending { stop: Some((StopKind::Grace, cause)), .. } => {
                let grace_ms = self.grace_ms(now);
                self.stop_seat(now, index, cause, grace_ms, out);
            }
            Intake::Ending { stop: Some((StopKind::Kill, cause)), .. } => {
                self.stop_seat(now, index, cause, 0, out);
            }
            Intake::Ending { stop: None | Some((StopKind::Drain, _)), .. }
            | Intake::Open
            | Intake::Cordoned
            | Intake::Over => {}
        }
    }

    /// Not a release: the payload's code has run, and one that may run only once must not be offered again.
    fn disown(&mut self, now: Moment, slot: SlotId, claim: &Claim, out: &mut Outputs) {
        let message = format!("adopt {} in {slot}, which can't take it", claim.payload.name);
        let conclusion = Conclusion::Failed(Fault::new(FaultClass::Slot, message));
        let outcome = Outcome { launched: true, ..Outcome::before_launch(conclusion) };
        if self.intake != Intake::Over {
            self.gangs.join(claim);
        }
        self.report(now, claim.id, claim.lease, outcome, out);
    }
}
