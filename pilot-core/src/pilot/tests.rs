//! One sentence for each rule of the pilot.

use super::*;
use crate::black_hole::BlackHole;
use crate::claim::Lease;
use crate::outcome::{Conclusion, ExitStatus, Fault, FaultClass, StopCause};
use crate::payload::{ImageKey, Payload};
use crate::slot::{Drained, Event, Order, Signal, SlotLimits, Why};

/// A pilot with its time, and an executor that does what it is told only when a test says so.
struct Bench {
    pilot: Pilot,
    now: Moment,
}

fn config(slots: u32) -> PilotConfig {
    let total = Demand { cpu_millis: slots.into(), memory_bytes: slots.into() };
    PilotConfig { black_hole: None, ..PilotConfig::new(slots, total) }
}

fn claim(id: u64) -> Claim {
    let payload = Payload {
        name: format!("payload {id}").into(),
        family: format!("family {id}").into(),
        demand: Demand { cpu_millis: 1, memory_bytes: 1 },
        trust: "alice".into(),
        image: "red".into(),
        inputs: [].into(),
        bind_timeout_ms: 1_000,
        walltime_ms: 60_000,
        grace_ms: 5_000,
        at_most_once: false,
        reusable: true,
    };
    Claim { id: ClaimId(id), payload, lease: None, gang: None }
}

fn sized(id: u64, cpu_millis: u64) -> Claim {
    let mut claim = claim(id);
    claim.payload.demand.cpu_millis = cpu_millis;
    claim
}

fn leased(id: u64, renew_ms: u64, expire_ms: u64) -> Claim {
    let lease = Lease { renew_at: Moment(renew_ms), expires_at: Moment(expire_ms) };
    Claim { lease: Some(lease), ..claim(id) }
}

fn fault(class: FaultClass) -> Fault {
    Fault::new(class, "fault")
}

impl Bench {
    fn new(config: PilotConfig) -> Self {
        Self { pilot: Pilot::new(config), now: Moment::START }
    }

    fn give(&mut self, input: Input) -> Vec<Output> {
        self.pilot.handle(self.now, input)
    }

    fn wait(&mut self, ms: u64) -> Vec<Output> {
        self.now = self.now.after_ms(ms);
        self.give(Input::Tick)
    }

    /// Offers a claim and says that its image is here.
    fn offer(&mut self, claim: Claim) -> Vec<Output> {
        let (id, image) = (claim.id, claim.payload.image.clone());
        let mut outputs = self.give(Input::Offered(vec![claim]));
        outputs.extend(self.give(Input::Prepared { claim: id, image, bytes_missing: 0 }));
        outputs
    }

    fn event(&mut self, slot: u32, event: Event) -> Vec<Output> {
        let epoch = self.pilot.slot(SlotId(slot)).map(Slot::epoch).unwrap_or_default();
        self.give(Input::Slot { slot: SlotId(slot), epoch, event })
    }

    fn run(&mut self, claim: Claim, slot: u32) {
        self.offer(claim);
        self.event(slot, Event::Bound);
        assert_eq!(self.phase(slot), PhaseName::Running);
    }

    /// From Running to Idle.
    fn end(&mut self, slot: u32, status: ExitStatus) -> Vec<Output> {
        let mut outputs = self.event(slot, Event::Exited(status.into()));
        outputs.extend(self.event(slot, Event::Drained(Drained::default())));
        outputs.extend(self.event(slot, Event::Cleaned { warm: false }));
        outputs
    }

    fn phase(&self, slot: u32) -> PhaseName {
        self.pilot.slot(SlotId(slot)).map_or(PhaseName::Retired, Slot::name)
    }
}

fn asked(outputs: &[Output]) -> Option<u32> {
    outputs.iter().find_map(|output| match output {
        Output::AskClaims(n) => Some(*n),
        _ => None,
    })
}

fn done(outputs: &[Output]) -> Option<DoneWhy> {
    outputs.iter().find_map(|output| match output {
        Output::Done(why) => Some(why.clone()),
        _ => None,
    })
}

fn reported(outputs: &[Output]) -> Vec<(u64, Conclusion)> {
    let report = |output: &Output| match output {
        Output::Report { claim, outcome } => Some((claim.0, outcome.conclusion.clone())),
        _ => None,
    };
    outputs.iter().filter_map(report).collect()
}

fn released(outputs: &[Output]) -> Vec<(u64, ReleaseWhy)> {
    let release = |output: &Output| match output {
        Output::Release { claim, why } => Some((claim.0, *why)),
        _ => None,
    };
    outputs.iter().filter_map(release).collect()
}

fn orders(outputs: &[Output]) -> Vec<(u32, &Order)> {
    let order = |output| match output {
        &Output::Slot { slot, ref order, .. } => Some((slot.0, order)),
        _ => None,
    };
    outputs.iter().filter_map(order).collect()
}

#[path = "tests/adoption.rs"]
mod adoption;
#[path = "tests/ahead.rs"]
mod ahead;
#[path = "tests/ends.rs"]
mod ends;
#[path = "tests/gangs.rs"]
mod gangs;
#[path = "tests/intake.rs"]
mod intake;
#[path = "tests/way.rs"]
mod way;
