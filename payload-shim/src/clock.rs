//! The monotonic clock, read once a turn of the loop; everything else takes the time as an argument.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Microseconds since an arbitrary start.
#[must_use]
pub fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

/// A span for poll(2).
#[must_use]
pub fn span_ms(ms: u64) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ms % 1000).unwrap_or(0) * 1_000_000,
    }
}
