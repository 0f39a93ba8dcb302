//! The result in words and as JSON.

use std::fmt::Write;

use crate::Truth;
use crate::fit::Fit;
use crate::histogram::Histogram;
use crate::model::{BACKGROUND, MASS, SIGNAL, WIDTH};

/// Masses that are fitted.
pub const RANGE: (f64, f64) = (70.0, 110.0);
/// Bins over [`RANGE`]: a quarter of the width each, and with their axis they fit a terminal of 80 columns.
pub const BINS: usize = 64;

/// How many errors the fitted mass may be off.
const ERRORS_MAX: f64 = 3.0;

/// By how many errors the fitted mass is above the generated one.
#[must_use]
pub fn mass_pull(fit: &Fit, truth: &Truth) -> f64 {
    (fit.values[MASS] - truth.mass) / fit.errors[MASS]
}

/// Whether the fitted mass is the generated one within three errors.
#[must_use]
pub fn agrees(fit: &Fit, truth: &Truth) -> bool {
    mass_pull(fit, truth).abs() <= ERRORS_MAX
}

/// A few lines for people.
#[must_use]
pub fn lines(fit: &Fit, histogram: &Histogram, truth: &Truth) -> String {
    let line = |name: &str, index: usize, truth: f64| {
        let (value, error) = (fit.values[index], fit.errors[index]);
        let pull = (value - truth) / error;
        format!("{name:<11}{value:9.4} ± {error:.4} GeV   generated {truth:8.4}, {pull:+.1} errors off\n")
    };
    let count = |name: &str, index: usize| {
        format!("{name:<11}{:9.0} ± {:.0} events\n", fit.values[index], fit.errors[index])
    };
    let verdict = if agrees(fit, truth) { "agrees with" } else { "DISAGREES with" };
    [
        format!(
            "Z -> mu mu: {:.0} events between {} and {} GeV\n",
            histogram.total(),
            histogram.low,
            histogram.high
        ),
        line("mass", MASS, truth.mass),
        line("width", WIDTH, truth.width),
        count("signal", SIGNAL),
        count("background", BACKGROUND),
        format!("{:<11}{:9.1} for {} degrees of freedom\n", "chi2", fit.chi2, fit.degrees),
        format!("The fitted mass {verdict} the generated one.\n"),
    ]
    .concat()
}

/// The same for machines. Every value is a finite number, so no JSON library is needed.
#[must_use]
pub fn json(fit: &Fit, histogram: &Histogram, truth: &Truth) -> String {
    let pair =
        |index: usize| format!("{{\"value\": {}, \"error\": {}}}", fit.values[index], fit.errors[index]);
    let list = |values: &[f64]| {
        let mut text = String::new();
        for (index, value) in values.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            // Writing to a String doesn't fail.
            let _ = write!(text, "{comma}{value}");
        }
        text
    };
    format!(
        "{{\n  \"mass\": {},\n  \"width\": {},\n  \"signal\": {},\n  \"background\": {},\n  \"chi2\": {},\n  \
         \"degrees_of_freedom\": {},\n  \"generated\": {{\"mass\": {}, \"width\": {}, \"resolution\": {}}},\n  \
         \"agrees\": {},\n  \"histogram\": {{\"low\": {}, \"high\": {}, \"counts\": [{}], \"fit\": [{}]}}\n}}\n",
        pair(MASS),
        pair(WIDTH),
        pair(SIGNAL),
        pair(BACKGROUND),
        fit.chi2,
        fit.degrees,
        truth.mass,
        truth.width,
        truth.resolution,
        agrees(fit, truth),
        histogram.low,
        histogram.high,
        list(&histogram.counts),
        list(&fit.curve),
    )
}
