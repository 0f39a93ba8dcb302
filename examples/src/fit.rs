//! A binned maximum-likelihood fit with Poisson statistics.
//!
//! Each step solves the likelihood equations with the expected second derivatives (Fisher scoring), damped as Levenberg
//! and Marquardt do it until the likelihood grows. The inverse of that matrix at the end is the covariance.

use std::fmt;

use crate::histogram::Histogram;
use crate::linear::{invert, times};
use crate::model::{BACKGROUND, FALL, MASS, Model, PARAMETERS, Parameters, SIGNAL, TILT, WIDTH};

type Matrix = [[f64; PARAMETERS]; PARAMETERS];

/// A fitted peak.
#[derive(Clone, Debug)]
pub struct Fit {
    /// Best values.
    pub values: Parameters,
    /// One standard deviation each.
    pub errors: Parameters,
    /// Expected entries of each bin at the best values.
    pub curve: Vec<f64>,
    /// The background's part of it.
    pub background: Vec<f64>,
    /// Poisson chi-square (twice the log of the likelihood ratio to a perfect model).
    pub chi2: f64,
    /// Bins less parameters.
    pub degrees: usize,
}

/// A histogram that can't be fitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FitError {
    /// Fewer than this many entries say nothing.
    TooFew {
        /// How many there are.
        entries: u64,
    },
    /// The likelihood has no usable maximum.
    NoMaximum,
}

impl fmt::Display for FitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFew { entries } => {
                write!(f, "fit the peak of {entries} entries: at least {ENTRIES_MIN} are needed")
            }
            Self::NoMaximum => f.write_str("fit the peak: the likelihood has no maximum near it"),
        }
    }
}

impl std::error::Error for FitError {}

/// A peak and its two sides need about this many entries to tell six parameters apart.
const ENTRIES_MIN: u64 = 500;
const STEPS_MAX: u32 = 200;

/// Fits line and background.
///
/// # Errors
/// When there are too few entries, or they show no peak.
pub fn fit(model: &Model, histogram: &Histogram) -> Result<Fit, FitError> {
    let entries = histogram.total();
    if entries < ENTRIES_MIN as f64 {
        return Err(FitError::TooFew { entries: entries as u64 });
    }
    let mut at = start(histogram);
    let mut cost = chi2(histogram, &model.expected(&at, histogram));
    let mut damping = 1e-3;
    for _ in 0..STEPS_MAX {
        let (pull, information) = derivatives(model, histogram, &at);
        let mut damped = information;
        for (index, row) in damped.iter_mut().enumerate() {
            row[index] *= 1.0 + damping;
        }
        let step = times(&invert(&damped).ok_or(FitError::NoMaximum)?, &pull);
        let mut next = at;
        next.iter_mut().zip(step).for_each(|(value, step)| *value += step);
        let next_cost =
            if sensible(&next) { chi2(histogram, &model.expected(&next, histogram)) } else { f64::INFINITY };
        if next_cost <= cost {
            let gain = cost - next_cost;
            (at, cost, damping) = (next, next_cost, (damping * 0.1_f64).max(1e-9));
            if gain < 1e-9 {
                return finish(model, histogram, at, cost);
            }
        } else {
            damping *= 10.0;
            // The best step is no longer visible in double precision: this is the top.
            if damping > 1e9 {
                return finish(model, histogram, at, cost);
            }
        }
    }
    Err(FitError::NoMaximum)
}

fn finish(model: &Model, histogram: &Histogram, values: Parameters, chi2: f64) -> Result<Fit, FitError> {
    let (_, information) = derivatives(model, histogram, &values);
    let covariance = invert(&information).ok_or(FitError::NoMaximum)?;
    let mut errors = [0.0; PARAMETERS];
    for (index, error) in errors.iter_mut().enumerate() {
        *error = covariance[index][index].sqrt();
    }
    if !errors.iter().all(|error| error.is_finite()) {
        return Err(FitError::NoMaximum);
    }
    Ok(Fit {
        values,
        errors,
        curve: model.expected(&values, histogram),
        background: Model::background(&values, histogram),
        chi2,
        degrees: histogram.counts.len().saturating_sub(PARAMETERS),
    })
}

/// The highest bin, and a plausible rest.
fn start(histogram: &Histogram) -> Parameters {
    let highest =
        histogram.counts.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(bin, _)| bin);
    let (low, high) = histogram.edges(highest);
    let mut at = [0.0; PARAMETERS];
    at[SIGNAL] = histogram.total() * 0.95;
    at[BACKGROUND] = histogram.total() * 0.05;
    at[MASS] = (low + high) / 2.0;
    at[WIDTH] = 2.5;
    at[TILT] = 0.0;
    at[FALL] = 0.02;
    at
}

/// Where the model means something.
fn sensible(at: &Parameters) -> bool {
    at.iter().all(|value| value.is_finite())
        && at[SIGNAL] > 0.0
        && (0.05..20.0).contains(&at[WIDTH])
        && at[TILT].abs() < 0.03
        && at[FALL].abs() < 1.0
}

/// First derivatives of the log likelihood, and minus the expectation of the second.
fn derivatives(model: &Model, histogram: &Histogram, at: &Parameters) -> (Parameters, Matrix) {
    let expected = model.expected(at, histogram);
    let slopes = STEPS.map(|(index, step)| {
        let (mut up, mut down) = (*at, *at);
        // Numbers of entries enter linearly: any step is exact.
        let step = if index <= BACKGROUND { step * at[SIGNAL] } else { step };
        up[index] += step;
        down[index] -= step;
        let (up, down) = (model.expected(&up, histogram), model.expected(&down, histogram));
        up.iter().zip(down).map(|(up, down)| (up - down) / (2.0 * step)).collect::<Vec<f64>>()
    });
    let mut pull = [0.0; PARAMETERS];
    let mut information = [[0.0; PARAMETERS]; PARAMETERS];
    for (bin, (count, expected)) in histogram.counts.iter().zip(expected).enumerate() {
        let expected = expected.max(EXPECTED_MIN);
        for i in 0..PARAMETERS {
            pull[i] += slopes[i][bin] * (count / expected - 1.0);
            for j in 0..PARAMETERS {
                information[i][j] += slopes[i][bin] * slopes[j][bin] / expected;
            }
        }
    }
    (pull, information)
}

/// Steps of the numerical derivatives: small beside each parameter's error, large beside rounding.
const STEPS: [(usize, f64); PARAMETERS] =
    [(SIGNAL, 1e-3), (BACKGROUND, 1e-3), (MASS, 1e-4), (WIDTH, 1e-4), (TILT, 1e-6), (FALL, 1e-5)];

/// A negative background may make a bin negative on the way to the maximum; the logarithm must not see that.
const EXPECTED_MIN: f64 = 1e-6;

fn chi2(histogram: &Histogram, expected: &[f64]) -> f64 {
    let term = |(count, expected): (&f64, &f64)| {
        let expected = expected.max(EXPECTED_MIN);
        let log = if *count > 0.0 { count * (count / expected).ln() } else { 0.0 };
        2.0 * (expected - count + log)
    };
    histogram.counts.iter().zip(expected).map(term).sum()
}

#[cfg(test)]
#[path = "fit_tests.rs"]
mod tests;
