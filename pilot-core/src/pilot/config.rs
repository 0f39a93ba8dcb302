//! What a pilot has and how patient it is.

use crate::black_hole::BlackHole;
use crate::payload::Demand;
use crate::slot::SlotLimits;

/// What a pilot has and how patient it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PilotConfig {
    /// How many slots.
    pub slots: u32,
    /// Processor and memory for all payloads together.
    pub total: Demand,
    /// How long each slot waits for what.
    pub limits: SlotLimits,
    /// How many claims may be taken beyond what can run at once: bound in a slot that is left over, or prepared and waiting, so
    /// that a slot that becomes idle finds one. They hold leases, and go back when no more work is taken.
    pub bind_ahead: u32,
    /// Claims that may wait for a slot, if there is a reason for more than slots and `bind_ahead` together; what comes beyond
    /// goes back.
    pub max_waiting: u32,
    /// For the answer to AskClaims, in milliseconds; after that it is asked again.
    pub ask_timeout_ms: u64,
    /// Between two questions to a queue that had nothing, in milliseconds.
    pub poll_ms: u64,
    /// For a preflight, in milliseconds.
    pub prepare_timeout_ms: u64,
    /// For a report to reach the queue, uploads included, in milliseconds; after that the pilot may end without.
    pub report_timeout_ms: u64,
    /// From this wait on a claim has the right of way, in milliseconds.
    pub aging_ms: u64,
    /// The pilot ends when it had nothing to do for so long, in milliseconds.
    pub idle_ms: Option<u64>,
    /// When the pilot's place is taken away whatever happens.
    pub lifetime: Option<Lifetime>,
    /// On `StopKind::Grace` no payload gets more than this between TERM and KILL, in milliseconds.
    pub stop_grace_ms: u64,
    /// When to give up on this machine.
    pub black_hole: Option<BlackHole>,
}

/// The pilot's own walltime and how it is spent at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// From start to end, in milliseconds.
    pub total_ms: u64,
    /// So long before the end no more work is taken, in milliseconds.
    pub retire_before_ms: u64,
    /// So long before the end running payloads are stopped, in milliseconds. Half of it is grace, half for flush and clean.
    pub stop_before_ms: u64,
}

impl PilotConfig {
    /// Claims that may wait for a slot: all that could have been asked for, at least.
    pub(super) fn max_waiting(&self) -> usize {
        let asked = self.slots.saturating_add(self.bind_ahead);
        usize::try_from(self.max_waiting.max(asked)).unwrap_or(usize::MAX)
    }

    /// Slots and a share, and patience that suits a pilot of people who look at it: no idle timeout, no lifetime.
    pub fn new(slots: u32, total: Demand) -> Self {
        Self {
            slots,
            total,
            limits: SlotLimits::default(),
            bind_ahead: 0,
            // A queue that answers twice to one question must not fill the memory.
            max_waiting: slots.saturating_mul(4).max(16),
            ask_timeout_ms: 30_000,
            poll_ms: 1_000,
            prepare_timeout_ms: 3_600_000,
            report_timeout_ms: 3_600_000,
            aging_ms: 60_000,
            idle_ms: None,
            lifetime: None,
            stop_grace_ms: 30_000,
            black_hole: Some(BlackHole { failures: 10, within_ms: 5_000 }),
        }
    }
}
