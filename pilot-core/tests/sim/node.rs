//! Pilots with their runtimes, and payloads, as chance makes them.

use pilot_core::{
    Claim, Demand, Epoch, Lifetime, Payload, Phase, PhaseName, Pilot, PilotConfig, SlotId, SlotLimits,
};

use super::chance::Chance;
use super::check::Watch;
use super::runtime::Ledger;
use super::world::Climate;

/// The share of each pilot.
pub(crate) const TOTAL: Demand = Demand { cpu_millis: 4_000, memory_bytes: 4_000 };

/// A payload that outlived its pilot.
pub(crate) struct Survivor {
    pub(crate) slot: SlotId,
    pub(crate) epoch: Epoch,
    pub(crate) claim: Box<Claim>,
    pub(crate) ledger: Ledger,
}

/// One pilot with its runtime. After a crash or a good end another takes its place, with a new life.
pub(crate) struct Node {
    pub(crate) pilot: Pilot,
    pub(crate) watch: Watch,
    pub(crate) ledgers: Vec<Ledger>,
    pub(crate) life: u32,
    pub(crate) born: u64,
    pub(crate) alive: bool,
    /// The runtime says nothing any more.
    pub(crate) silent: bool,
    pub(crate) wake: Option<u64>,
}

impl Node {
    pub(crate) fn new(chance: &mut Chance, climate: &Climate) -> Self {
        let slots = chance.between(1, 4) as u32;
        let limits = SlotLimits {
            bound_wait_ms: 5_000,
            drain_ms: 1_000,
            clean_ms: 500,
            clean_attempts: 3,
            ..SlotLimits::default()
        };
        let config = PilotConfig {
            limits,
            bind_ahead: climate.bind_ahead,
            ask_timeout_ms: 2_000,
            poll_ms: 300,
            prepare_timeout_ms: 2_000,
            report_timeout_ms: 5_000,
            aging_ms: 3_000,
            stop_grace_ms: 400,
            idle_ms: chance.in_thousand(300).then_some(4_000),
            lifetime: chance.in_thousand(300).then_some(Lifetime {
                total_ms: 30_000,
                retire_before_ms: 5_000,
                stop_before_ms: 2_000,
            }),
            ..PilotConfig::new(slots, TOTAL)
        };
        let ledgers = vec![Ledger::default(); slots as usize];
        let (pilot, watch) = (Pilot::new(config), Watch::default());
        Self { pilot, watch, ledgers, life: 1, born: 0, alive: true, silent: false, wake: None }
    }

    /// What the pilot could ever bind at once.
    pub(crate) fn usable_slots(&self) -> u32 {
        self.pilot.slots().filter(|slot| slot.phase != PhaseName::Retired).count() as u32
    }

    /// What a record of each slot would tell the pilot's next life: payloads that were launched and not seen to end.
    pub(crate) fn survivors(&self, now: u64) -> Vec<Survivor> {
        let survivor = |(n, ledger): (u32, &Ledger)| {
            let slot = self.pilot.slot(SlotId(n))?;
            let (Phase::Running { claim, .. } | Phase::Draining { claim, .. }) = slot.phase() else {
                return None;
            };
            let epoch = ledger.process.filter(|epoch| *epoch == slot.epoch())?;
            let mut claim = claim.clone();
            let ran_ms = now.saturating_sub(ledger.launched_at);
            claim.payload.walltime_ms = claim.payload.walltime_ms.saturating_sub(ran_ms);
            Some(Survivor { slot: slot.id(), epoch, claim, ledger: ledger.clone().orphaned() })
        };
        (0..).zip(&self.ledgers).filter_map(survivor).collect()
    }
}

pub(crate) fn some_payload(chance: &mut Chance, n: u64) -> (Payload, u32) {
    let payload = Payload {
        name: format!("payload-{n}").into(),
        family: format!("family-{}", n % 5).into(),
        demand: Demand { cpu_millis: chance.between(1, 4) * 1_000, memory_bytes: chance.between(1, 4_000) },
        trust: ["alice", "bob"][chance.between(0, 1) as usize].into(),
        image: ["red", "green", "blue"][chance.between(0, 2) as usize].into(),
        inputs: [].into(),
        bind_timeout_ms: 800,
        walltime_ms: 2_000,
        grace_ms: chance.between(0, 300),
        at_most_once: chance.in_thousand(300),
        reusable: chance.in_thousand(700),
    };
    (payload, chance.between(0, 3) as u32)
}

/// How many payloads belong together, one gang after the other; most are for themselves.
pub(crate) fn some_gangs(chance: &mut Chance, payloads: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> = Vec::new();
    while sizes.iter().sum::<usize>() < payloads {
        let size = if chance.in_thousand(250) { chance.between(2, 4) as usize } else { 1 };
        sizes.push(size.min(payloads - sizes.iter().sum::<usize>()));
    }
    sizes
}
