//! A second, deliberately simple model of a slot, held against the real one with random events.
//!
//! It has no phases: only facts about the claim in flags, and one rule for each fact. Where the slot and these rules
//! disagree, one of them is wrong.

use proptest::prelude::*;

use super::tests::{claim, fault};
use super::*;
use crate::claim::Lease;
use crate::outcome::Outcome;

#[derive(Clone, Copy, Debug)]
enum Step {
    Adopted {
        epoch: u64,
    },
    Claimed {
        warm_match: bool,
        reusable: bool,
    },
    Bound,
    BindFailed,
    Go,
    LaunchFailed,
    Exited {
        code: u8,
    },
    Stop {
        grace_ms: u64,
    },
    LeaseLost,
    SlotLost,
    Drained,
    Cleaned {
        warm: bool,
    },
    CleanFailed,
    /// Time goes to the slot's deadline, and a little further.
    Wait {
        further_ms: u64,
    },
    /// The event that follows comes with an old epoch.
    Stale,
}

/// Facts, not phases.
#[derive(Clone, Debug, Default)]
struct Facts {
    epoch: u64,
    claimed: bool,
    bound: bool,
    gone: bool,
    /// Something has ended the claim.
    ending: bool,
    told_to_end: bool,
    drain_asked: bool,
    finished: bool,
    dirty: bool,
    failed_cleans: u32,
    pausing: bool,
    retired: bool,
}

impl Facts {
    fn phase(&self) -> PhaseName {
        if self.retired {
            PhaseName::Retired
        } else if self.dirty {
            PhaseName::Cleaning
        } else if self.ending {
            PhaseName::Draining
        } else if self.gone {
            PhaseName::Running
        } else if self.bound {
            PhaseName::Bound
        } else if self.claimed {
            PhaseName::Binding
        } else {
            PhaseName::Idle
        }
    }

    fn active(&self) -> bool {
        self.claimed && !self.ending
    }

    /// What must hold after an event that time or someone sent. `due` is set for a tick at the step's own deadline.
    fn learn(&mut self, step: Step, warm: bool) {
        match step {
            Step::Claimed { .. } if !self.claimed && !self.retired => {
                *self = Self { epoch: self.epoch + 1, claimed: true, bound: warm, ..Self::default() };
            }
            Step::Adopted { epoch } if self.epoch == 0 && epoch > 0 => {
                *self = Self { epoch, claimed: true, bound: true, ..Self::default() };
            }
            Step::Bound if self.active() && !self.bound => self.bound = true,
            Step::BindFailed if self.active() && !self.bound => self.end(true),
            Step::Go if self.active() && self.bound => self.gone = true,
            Step::LaunchFailed | Step::Exited { .. } if self.active() && self.gone => self.end(true),
            Step::LaunchFailed | Step::Exited { .. } if self.told_to_end && !self.drain_asked => {
                self.drain_asked = true;
            }
            Step::Stop { grace_ms } if self.active() => self.end(!self.gone || grace_ms == 0),
            Step::Stop { grace_ms: 0 } if self.told_to_end => self.drain_asked = true,
            Step::LeaseLost if self.active() => self.end(!self.gone),
            Step::SlotLost if self.active() => self.end(true),
            Step::SlotLost if self.told_to_end => self.drain_asked = true,
            Step::Drained if self.drain_asked && !self.dirty => self.finish(),
            Step::Cleaned { .. } if self.dirty => *self = Self { epoch: self.epoch, ..Self::default() },
            Step::CleanFailed if self.dirty && !self.pausing => self.clean_failed(),
            Step::Wait { .. } => self.time_is_up(),
            _ => {}
        }
    }

    fn end(&mut self, at_once: bool) {
        self.ending = true;
        self.told_to_end = !at_once;
        self.drain_asked = at_once;
    }

    fn finish(&mut self) {
        self.finished = true;
        self.dirty = true;
    }

    fn clean_failed(&mut self) {
        self.failed_cleans += 1;
        if self.failed_cleans == LIMITS.clean_attempts {
            *self = Self { epoch: self.epoch, retired: true, ..Self::default() };
        } else {
            self.pausing = true;
        }
    }

    fn time_is_up(&mut self) {
        if self.active() {
            self.end(!self.gone);
        } else if self.dirty && self.pausing {
            self.pausing = false;
        } else if self.dirty {
            self.clean_failed();
        } else if self.drain_asked {
            self.finish();
        } else if self.told_to_end {
            self.drain_asked = true;
        }
    }
}

const LIMITS: SlotLimits = SlotLimits {
    bound_wait_ms: 700,
    drain_ms: 500,
    clean_ms: 300,
    clean_attempts: 3,
    clean_pause: Backoff { base_ms: 10, cap_ms: 40 },
};

fn event(step: Step, id: u64) -> Option<Event> {
    Some(match step {
        Step::Adopted { .. } => Event::Adopted(Box::new(Claim { lease: None, ..*claim(id, "red") })),
        Step::Claimed { warm_match, reusable } => {
            let mut claim = claim(id, if warm_match { "red" } else { "green" });
            claim.payload.reusable = reusable;
            claim.lease = None;
            Event::Claimed(claim)
        }
        Step::Bound => Event::Bound,
        Step::BindFailed => Event::BindFailed(fault()),
        Step::Go => Event::Go,
        Step::LaunchFailed => Event::LaunchFailed(fault()),
        Step::Exited { code } => Event::Exited(ExitStatus::Code(code).into()),
        Step::Stop { grace_ms } => Event::Stop { cause: StopCause::Preempted, grace_ms },
        Step::LeaseLost => Event::LeaseLost,
        Step::SlotLost => Event::SlotLost(fault()),
        Step::Drained => Event::Drained(Drained::default()),
        Step::Cleaned { warm } => Event::Cleaned { warm },
        Step::CleanFailed => Event::CleanFailed(fault()),
        Step::Wait { .. } => Event::Tick,
        Step::Stale => return None,
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0_u64..4).prop_map(|epoch| Step::Adopted { epoch }),
        3 => (any::<bool>(), any::<bool>())
            .prop_map(|(warm_match, reusable)| Step::Claimed { warm_match, reusable }),
        4 => Just(Step::Bound),
        1 => Just(Step::BindFailed),
        4 => Just(Step::Go),
        1 => Just(Step::LaunchFailed),
        3 => (0_u8..2).prop_map(|code| Step::Exited { code }),
        2 => (0_u64..3).prop_map(|n| Step::Stop { grace_ms: n * 100 }),
        1 => Just(Step::LeaseLost),
        1 => Just(Step::SlotLost),
        4 => Just(Step::Drained),
        4 => any::<bool>().prop_map(|warm| Step::Cleaned { warm }),
        2 => Just(Step::CleanFailed),
        2 => (0_u64..5).prop_map(|further_ms| Step::Wait { further_ms }),
        1 => Just(Step::Stale),
    ];
    prop::collection::vec(step, 1..120)
}

/// What a run said about each claim, from which the promises follow.
#[derive(Default)]
struct Said {
    binds: u32,
    launches: u32,
    ends: u32,
}

fn count(said: &mut Said, verdict: &Verdict) {
    let Verdict::Acted(actions) = verdict else { return };
    for action in actions {
        match action {
            Action::Order(Order::Bind(_)) => said.binds += 1,
            Action::Order(Order::Launch(_)) => said.launches += 1,
            Action::Report(_) | Action::Release(_) => said.ends += 1,
            Action::Order(Order::Signal(_) | Order::Drain { .. } | Order::Clean) | Action::Renew => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_slot_agrees_with_the_simple_model(steps in steps()) {
        let mut slot = Slot::new(SlotId(0), LIMITS);
        let mut facts = Facts::default();
        let mut now = Moment::START;
        let mut said = Said::default();
        let mut old = false;
        for (step, id) in steps.into_iter().zip(1..) {
            let Some(event) = event(step, id) else { old = true; continue };
            let before = slot.clone();
            let sent_in = if let Step::Adopted { epoch } = step { Epoch(epoch) } else { before.epoch() };
            if std::mem::take(&mut old) && slot.epoch() > Epoch(0) && !matches!(step, Step::Adopted { .. }) {
                prop_assert_eq!(slot.handle(now, Epoch(slot.epoch().0 - 1), event), Verdict::Ignored(Why::Stale));
                prop_assert_eq!(&slot, &before);
                continue;
            }
            if let Step::Wait { further_ms } = step {
                now = slot.deadline().map_or(now, |deadline| now.max(deadline).after_ms(further_ms));
            }
            let warm = matches!((&before.phase, &event),
                (Phase::Idle { holds: Some(held) }, Event::Claimed(claim)) if held.suits(&claim.payload));
            let verdict = slot.handle(now, sent_in, event);
            facts.learn(step, warm);
            count(&mut said, &verdict);
            prop_assert_eq!(slot.name(), facts.phase(), "after {:?} in {:?}", step, before);
            prop_assert_eq!(slot.epoch().0, facts.epoch);
            // The code of an adopted payload has run: it never goes back, and no report says otherwise.
            if let Verdict::Acted(actions) = &verdict && before.is_adopted() && slot.is_adopted() {
                let harmless = |action: &Action| !matches!(action, Action::Release(_) | Action::Report(Outcome { launched: false, .. }));
                prop_assert!(actions.iter().all(harmless), "{:?}", actions);
            }
            if let Verdict::Ignored(_) = verdict {
                prop_assert_eq!(&slot, &before);
            }
            // An epoch is one claim: it has at most one bind, one launch, and one end, which comes before the clean slot.
            if slot.epoch() > before.epoch() {
                said = Said::default();
                count(&mut said, &verdict);
            }
            prop_assert!(said.binds <= 1 && said.launches <= 1 && said.ends <= 1);
            let over = matches!(slot.name(), PhaseName::Idle | PhaseName::Cleaning | PhaseName::Retired);
            prop_assert_eq!(said.ends == 1, over && slot.epoch() > Epoch(0));
            prop_assert_eq!(slot.deadline().is_none(), matches!(slot.name(), PhaseName::Idle | PhaseName::Retired));
        }
        // In silence time alone leads to Idle or Retired, in a bounded number of ticks.
        for _ in 0..4 + 2 * LIMITS.clean_attempts {
            let Some(deadline) = slot.deadline() else { break };
            now = now.max(deadline);
            let _ = slot.handle(now, slot.epoch(), Event::Tick);
        }
        prop_assert!(matches!(slot.name(), PhaseName::Idle | PhaseName::Retired), "{:?} waits for ever", slot);
    }

    #[test]
    fn a_lease_is_asked_for_before_it_ends_and_is_lost_when_no_one_answers(start in 0_u64..100_000, length in 1_u64..100_000) {
        let mut slot = Slot::new(SlotId(0), LIMITS);
        let mut held = claim(1, "red");
        held.payload.walltime_ms = u64::MAX;
        let start = Moment(start);
        held.lease = Some(Lease { renew_at: start.after_ms(length / 2), expires_at: start.after_ms(length) });
        let _ = slot.handle(start, Epoch(0), Event::Claimed(held));
        let _ = slot.handle(start, Epoch(1), Event::Bound);
        let _ = slot.handle(start, Epoch(1), Event::Go);
        let mut asked = 0_u32;
        while slot.name() == PhaseName::Running {
            let now = slot.deadline().unwrap_or(start);
            prop_assert!(now <= start.after_ms(length));
            if slot.handle(now, Epoch(1), Event::Tick) == Verdict::Acted(vec![Action::Renew]) {
                asked += 1;
            }
            prop_assert!(asked < 40, "a silent queue is asked without end");
        }
        prop_assert!(asked >= 1);
    }
}
