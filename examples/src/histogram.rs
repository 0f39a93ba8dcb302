//! Counting masses.

/// Counts in bins of equal width.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Lower edge of the first bin.
    pub low: f64,
    /// Upper edge of the last bin.
    pub high: f64,
    /// Entries of each bin.
    pub counts: Vec<f64>,
}

impl Histogram {
    /// Counts the values from `low` up to `high`; what lies outside is left out.
    #[must_use]
    pub fn of(values: &[f64], low: f64, high: f64, bins: usize) -> Self {
        let mut counts = vec![0.0; bins];
        for value in values {
            let place = (value - low) / (high - low) * bins as f64;
            if place >= 0.0
                && let Some(count) = counts.get_mut(place as usize)
            {
                *count += 1.0;
            }
        }
        Self { low, high, counts }
    }

    /// Width of a bin.
    #[must_use]
    pub fn step(&self) -> f64 {
        (self.high - self.low) / self.counts.len() as f64
    }

    /// Edges of bin `bin`.
    #[must_use]
    pub fn edges(&self, bin: usize) -> (f64, f64) {
        let low = self.low + self.step() * bin as f64;
        (low, low + self.step())
    }

    /// Entries of all bins.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_in_their_bin_and_outside_not_at_all() {
        let histogram = Histogram::of(&[0.0, 0.9, 1.0, 3.99, 4.0, -0.1, 100.0, f64::NAN], 0.0, 4.0, 4);
        assert_eq!(histogram.counts, [2.0, 1.0, 0.0, 1.0]);
        assert_eq!(histogram.edges(2), (2.0, 3.0));
    }
}
