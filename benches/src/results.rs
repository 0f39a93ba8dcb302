//! What was measured, in the form in which it is kept.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Measurements of one thing, in one unit.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    values: Vec<f64>,
}

impl Samples {
    /// Adds one.
    pub fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    /// The value that `percent` of a hundred do not exceed (nearest rank); `None` without any.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Option<f64> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        sorted.get(rank).copied()
    }

    fn json(&self) -> Value {
        // Microseconds are all that these clocks and programs can tell.
        let short = |value: f64| (value * 1e3).round() / 1e3;
        let at = |percent| self.percentile(percent).map(short);
        json!({
            "n": self.values.len(), "p50": at(50), "p99": at(99), "min": at(0), "max": at(100),
            "values": self.values.iter().copied().map(short).collect::<Vec<_>>(),
        })
    }
}

/// One section, measured by one user.
#[derive(Debug)]
pub struct Section {
    /// Its name in the results: `bind`.
    name: &'static str,
    load_before: f64,
    series: BTreeMap<String, Samples>,
    facts: BTreeMap<String, Value>,
    skipped: Vec<String>,
}

impl Section {
    /// Begins a section: notes the load of the machine.
    #[must_use]
    pub fn begin(name: &'static str) -> Self {
        Self {
            name,
            load_before: crate::machine::load(),
            series: BTreeMap::new(),
            facts: BTreeMap::new(),
            skipped: Vec::new(),
        }
    }

    /// Adds a measurement to the series of a competitor: `latebind`, `first`.
    pub fn add(&mut self, who: &str, what: &str, value: f64) {
        self.series.entry(format!("{who}/{what}")).or_default().push(value);
    }

    /// Keeps something that is not a series.
    pub fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    /// Says, on stderr and in the results, that a competitor did not take part.
    #[expect(clippy::print_stderr, reason = "a peer that is missing must not go unseen")]
    pub fn skip(&mut self, who: &str, why: &str) {
        eprintln!("SKIPPED: {}: {who}: {why}", self.name);
        self.skipped.push(format!("{who}: {why}"));
    }

    /// Ends the section.
    #[must_use]
    pub fn end(self) -> Value {
        let user = if rustix::process::geteuid().is_root() { "root" } else { "user" };
        let series: serde_json::Map<_, _> =
            self.series.iter().map(|(name, samples)| (name.clone(), samples.json())).collect();
        json!({
            "section": self.name, "as": user, "date": crate::machine::date(), "load": [self.load_before, crate::machine::load()],
            "series": series, "facts": self.facts, "skipped": self.skipped,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Samples;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile(50), None);
        for value in [5.0, 1.0, 4.0, 2.0, 3.0] {
            samples.push(value);
        }
        let at = |percent| samples.percentile(percent);
        assert_eq!((at(0), at(50), at(99), at(100)), (Some(1.0), Some(3.0), Some(5.0), Some(5.0)));
    }
}
