//! The clocks of a spool: one that all processes of a boot share, and one that is only shown to people.

use std::fmt::Debug;
use std::sync::Arc;

use rustix::time::{ClockId, clock_gettime};

/// Where a spool reads the time. Tests bring their own.
pub trait Clock: Send + Sync + Debug {
    /// Milliseconds since the machine started, sleep included. Never goes back within a boot.
    fn boot_ms(&self) -> u64;
    /// Which boot that is counted in.
    fn boot_id(&self) -> Arc<str>;
    /// Milliseconds since 1970. May jump; nothing is decided by it.
    fn wall_ms(&self) -> u64;
}

/// The machine's own clocks.
#[derive(Clone, Debug)]
pub struct SystemClock {
    boot_id: Arc<str>,
}

impl SystemClock {
    /// Asks the kernel which boot this is.
    ///
    /// # Errors
    /// When `/proc` can't be read.
    pub fn new() -> std::io::Result<Self> {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Self { boot_id: id.trim().into() })
    }
}

impl Clock for SystemClock {
    fn boot_ms(&self) -> u64 {
        ms(ClockId::Boottime)
    }

    fn boot_id(&self) -> Arc<str> {
        Arc::clone(&self.boot_id)
    }

    fn wall_ms(&self) -> u64 {
        ms(ClockId::Realtime)
    }
}

fn ms(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1000) + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000
}
