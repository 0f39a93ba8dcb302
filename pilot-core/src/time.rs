//! Points in time as this crate sees them. It must not know of any clock.

use std::fmt;

/// Milliseconds since the pilot started. Only the driver turns a clock into one; it never runs backwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    /// The start of the pilot.
    pub const START: Self = Self(0);

    /// This moment and `ms` milliseconds; the end of time stays the end of time.
    pub const fn after_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this moment; 0 when `earlier` is the later one.
    pub const fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Whether a deadline set for this moment has come.
    pub fn is_due(self, now: Self) -> bool {
        self <= now
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}s", self.0 / 1000, self.0 % 1000)
    }
}
