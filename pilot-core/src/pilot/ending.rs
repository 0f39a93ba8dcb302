//! Cordons, stops, and the end of the pilot.

use std::sync::Arc;

use super::intake::Asking;
use super::{DoneWhy, Intake, Output, Outputs, Pilot, StopKind};
use crate::outcome::StopCause;
use crate::slot::PhaseName;
use crate::time::Moment;

impl Pilot {
    pub(super) fn on_cordon(&mut self) {
        if self.intake == Intake::Open {
            self.intake = Intake::Cordoned;
        }
    }

    pub(super) fn on_uncordon(&mut self) {
        if self.intake == Intake::Cordoned {
            self.intake = Intake::Open;
        }
    }

    pub(super) fn on_stop(&mut self, now: Moment, kind: StopKind, cause: StopCause, out: &mut Outputs) {
        self.end(now, DoneWhy::Stopped(cause), kind, cause, out);
    }

    pub(super) fn on_black_hole(&mut self, reason: Arc<str>) {
        self.end_intake(DoneWhy::BlackHole(reason));
    }

    /// No more work, for good. What runs goes on. The first reason stays.
    fn end_intake(&mut self, why: DoneWhy) {
        match self.intake {
            Intake::Open | Intake::Cordoned => self.intake = Intake::Ending { why, stop: None },
            Intake::Ending { .. } | Intake::Over => {}
        }
    }

    fn end(&mut self, now: Moment, why: DoneWhy, kind: StopKind, cause: StopCause, out: &mut Outputs) {
        self.end_intake(why);
        match &mut self.intake {
            Intake::Ending { stop, .. } if stop.is_none_or(|(sofar, _)| sofar < kind) => {
                *stop = Some((kind, cause));
            }
            _ => return,
        }
        let at_most_ms = match kind {
            StopKind::Drain => return self.stop_what_does_not_run(now, cause, out),
            StopKind::Grace => self.grace_ms(now),
            StopKind::Kill => 0,
        };
        for index in 0..self.seats.len() {
            self.stop_seat(now, index, cause, at_most_ms, out);
        }
    }

    fn stop_what_does_not_run(&mut self, now: Moment, cause: StopCause, out: &mut Outputs) {
        for index in 0..self.seats.len() {
            if matches!(self.seats[index].slot.name(), PhaseName::Binding | PhaseName::Bound) {
                self.stop_seat(now, index, cause, u64::MAX, out);
            }
        }
    }

    /// Near the end of the pilot's life half of what is left is kept for flush and clean.
    pub(super) fn grace_ms(&self, now: Moment) -> u64 {
        let left = self.config.lifetime.map(|lifetime| Moment(lifetime.total_ms).ms_since(now) / 2);
        self.config.stop_grace_ms.min(left.unwrap_or(u64::MAX))
    }

    pub(super) fn tick_life(&mut self, now: Moment, out: &mut Outputs) {
        if let Some([retire, stop, kill]) = self.life() {
            if retire.is_due(now) {
                self.end_intake(DoneWhy::Lifetime);
            }
            if stop.is_due(now) {
                self.end(now, DoneWhy::Lifetime, StopKind::Grace, StopCause::Expired, out);
            }
            if kill.is_due(now) {
                self.end(now, DoneWhy::Lifetime, StopKind::Kill, StopCause::Expired, out);
            }
        }
        if self.tally.retired == self.seats.len() {
            self.end_intake(DoneWhy::AllRetired);
        }
    }

    /// When to take no more work, when to stop what runs, when to kill it.
    fn life(&self) -> Option<[Moment; 3]> {
        let lifetime = self.config.lifetime?;
        let before = |ms| Moment(lifetime.total_ms.saturating_sub(ms));
        Some([
            before(lifetime.retire_before_ms.max(lifetime.stop_before_ms)),
            before(lifetime.stop_before_ms),
            Moment(lifetime.total_ms),
        ])
    }

    /// Whether nothing is left that anyone waits for.
    fn is_quiet(&self) -> bool {
        self.waiting.is_empty()
            && self.reporting.is_empty()
            && self.gangs.is_empty()
            && self.tally.vacant == self.seats.len()
    }

    pub(super) fn finish(&mut self, now: Moment, out: &mut Outputs) {
        if !self.is_quiet() {
            self.idle_since = None;
            return;
        }
        let since = *self.idle_since.get_or_insert(now);
        let idle = self.config.idle_ms.is_some_and(|idle_ms| since.after_ms(idle_ms).is_due(now));
        let why = match &self.intake {
            Intake::Over => return,
            Intake::Ending { why, .. } => why.clone(),
            Intake::Open | Intake::Cordoned if self.asking == Asking::Closed => DoneWhy::QueueClosed,
            Intake::Open | Intake::Cordoned if idle => DoneWhy::Idle,
            Intake::Open | Intake::Cordoned => return,
        };
        self.intake = Intake::Over;
        out.push(Output::Done(why));
    }

    /// The next of these that would change something.
    pub(super) fn life_deadline(&self) -> Option<Moment> {
        let idle = self.idle_since.zip(self.config.idle_ms).map(|(since, idle_ms)| since.after_ms(idle_ms));
        let life = self.life().and_then(|[retire, stop, kill]| match &self.intake {
            Intake::Open | Intake::Cordoned => Some(retire),
            Intake::Ending { stop: None | Some((StopKind::Drain, _)), .. } => Some(stop),
            Intake::Ending { stop: Some((StopKind::Grace, _)), .. } => Some(kill),
            Intake::Ending { stop: Some((StopKind::Kill, _)), .. } | Intake::Over => None,
        });
        idle.into_iter().chain(life).min()
    }
}
