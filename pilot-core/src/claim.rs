//! What a queue grants: a claim on one payload, perhaps for a limited time. It must not know of slots' phases.

use std::fmt;

use crate::outcome::StopCause;
use crate::payload::{Demand, Payload};
use crate::time::Moment;

/// After a renewal was asked for, the next try comes no sooner than this: half of the time left shrinks towards
/// nothing, and a queue that does not answer must not be asked thousands of times.
const RENEW_PAUSE_MS: u64 = 1_000;

/// Name of one grant by a queue. A payload that is offered again comes under a new id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimId(pub u64);

/// Name of a gang: payloads that a queue grants together, and that run all of them or none. A gang that is offered again
/// comes under a new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GangId(pub u64);

/// That a claim is one of several that only count together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gang {
    /// Which gang.
    pub id: GangId,
    /// How many claims it has in all; all of them come in one offer.
    pub size: u32,
}

/// Name of a slot within its pilot, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u32);

/// How often a slot was claimed. Whatever carries another epoch than the slot's is stale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of the slot's next claim.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Time bound on a claim, in the pilot's own time.
///
/// The adapter counts `expires_at` from the moment its request *left*, so that the pilot gives up before the queue does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// When to ask for more time.
    pub renew_at: Moment,
    /// From here on another pilot may hold the payload.
    pub expires_at: Moment,
}

impl Lease {
    /// When this lease next needs attention.
    pub fn deadline(&self) -> Moment {
        self.renew_at.min(self.expires_at)
    }

    /// The same lease after a renewal was asked for: the next try is halfway to its end.
    #[must_use]
    pub fn asked(self, now: Moment) -> Self {
        let pause = (self.expires_at.ms_since(now) / 2).max(RENEW_PAUSE_MS);
        Self { renew_at: now.after_ms(pause), expires_at: self.expires_at }
    }
}

/// The exclusive right of one slot-epoch to run one payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The queue's name for this grant.
    pub id: ClaimId,
    /// What to run.
    pub payload: Payload,
    /// How long the right lasts. A queue that shares its payloads with no one gives none, and the claim never expires.
    pub lease: Option<Lease>,
    /// The gang that it belongs to, if it is not for itself.
    pub gang: Option<Gang>,
}

/// Why a claim goes back to its queue with nothing held against the payload, which never started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseWhy {
    /// Its slot was stopped before the payload was launched.
    Stopped(StopCause),
    /// It was bound ahead, and what it needs did not become free in time.
    WaitedTooLong,
    /// The pilot takes no more work.
    Closed,
    /// More came than was asked for.
    NoRoom,
    /// It needs more than the pilot has in all: offering it here again is in vain.
    NeverFits {
        /// What the pilot has in all.
        total: Demand,
    },
}

impl Claim {
    /// Whether the right is over.
    pub fn is_expired(&self, now: Moment) -> bool {
        self.lease.is_some_and(|lease| lease.expires_at.is_due(now))
    }

    /// Takes over a renewed lease. An answer that was overtaken by a later one changes nothing and returns `false`.
    pub fn renew(&mut self, lease: Lease) -> bool {
        let newer = self.lease.is_none_or(|held| held.expires_at < lease.expires_at);
        if newer {
            self.lease = Some(lease);
        }
        newer
    }
}

impl fmt::Display for ReleaseWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped(cause) => cause.fmt(f),
            Self::WaitedTooLong => f.write_str("waited too long for its share of the machine"),
            Self::Closed => f.write_str("the pilot takes no more work"),
            Self::NoRoom => f.write_str("the pilot has enough work"),
            Self::NeverFits { total } => write!(f, "needs more than the pilot's {total}"),
        }
    }
}

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "claim {}", self.0)
    }
}

impl fmt::Display for GangId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gang {}", self.0)
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}", self.0)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
