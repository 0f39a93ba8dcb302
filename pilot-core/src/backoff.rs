//! How long to wait before the next try. It must not know of chance: jitter is an argument.

/// How much of the jittered half of a pause is left out, in thousandths. The caller draws it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Jitter(u16);

impl Jitter {
    /// The whole pause.
    pub const NONE: Self = Self(0);

    /// From a draw of any size; 1000 and more leaves out half of the pause.
    pub const fn from_thousandths(draw: u16) -> Self {
        Self(if draw > 1000 { 1000 } else { draw })
    }
}

/// Exponential pauses with a cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The first pause, in milliseconds.
    pub base_ms: u64,
    /// No pause is longer, in milliseconds.
    pub cap_ms: u64,
}

impl Backoff {
    /// The pause after `failures` failures (at least one) in milliseconds: between half of it and all of it.
    pub const fn delay_ms(&self, failures: u32, jitter: Jitter) -> u64 {
        let doublings = failures.saturating_sub(1);
        let factor = if doublings < 63 { 1_u64 << doublings } else { u64::MAX };
        let mut full = self.base_ms.saturating_mul(factor);
        if full > self.cap_ms {
            full = self.cap_ms;
        }
        // Thousandths of the half; divided first where the product could overflow.
        let half = full / 2;
        full - (half / 1000 * jitter.0 as u64 + half % 1000 * jitter.0 as u64 / 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { base_ms: 100, cap_ms: 1_000 };

    #[test]
    fn pauses_double_until_the_cap() {
        let pauses: Vec<u64> = (1..=6).map(|n| BACKOFF.delay_ms(n, Jitter::NONE)).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1_000, 1_000]);
    }

    #[test]
    fn jitter_takes_away_half_at_most() {
        assert_eq!(BACKOFF.delay_ms(1, Jitter::from_thousandths(1_000)), 50);
        assert_eq!(BACKOFF.delay_ms(1, Jitter::from_thousandths(u16::MAX)), 50);
        assert_eq!(BACKOFF.delay_ms(1, Jitter::from_thousandths(500)), 75);
    }

    #[test]
    fn no_number_of_failures_overflows() {
        let endless = Backoff { base_ms: u64::MAX, cap_ms: u64::MAX };
        assert_eq!(endless.delay_ms(u32::MAX, Jitter::NONE), u64::MAX);
        assert_eq!(BACKOFF.delay_ms(u32::MAX, Jitter::NONE), 1_000);
        assert_eq!(BACKOFF.delay_ms(0, Jitter::NONE), 100);
    }
}
