//! What the measured masses should look like.
//!
//! Signal: a Breit-Wigner line, tilted by an acceptance that changes linearly with mass, folded with the detector. Since
//! momenta have a relative resolution r, ln(mass) has the resolution r / sqrt(2), so the fold is
//! ```text
//! f(x) = integral over z of  line(x e^(-s z)) e^(-s z) phi(z),     s = r / sqrt(2), phi the standard normal
//! ```
//! For small s that is Voigt's profile. Background: falls exponentially.

use std::f64::consts::{FRAC_1_SQRT_2, TAU};

use crate::histogram::Histogram;

/// What is fitted.
pub const PARAMETERS: usize = 6;
/// Entries of the signal in the histogram's range.
pub const SIGNAL: usize = 0;
/// Entries of the background in the histogram's range.
pub const BACKGROUND: usize = 1;
/// Mass of the boson.
pub const MASS: usize = 2;
/// Full width at half maximum of its line.
pub const WIDTH: usize = 3;
/// Relative change of the acceptance with mass, per GeV.
pub const TILT: usize = 4;
/// How fast the background falls, per GeV.
pub const FALL: usize = 5;

/// Values of the parameters, in the order of the constants above.
pub type Parameters = [f64; PARAMETERS];

/// Where tilt and fall are 1: any mass near the middle would do.
const REFERENCE: f64 = 90.0;

/// The fold with the detector, as a sum over points.
#[derive(Clone, Debug)]
pub struct Model {
    /// Factor on the mass, and weight.
    fold: Vec<(f64, f64)>,
}

impl Model {
    /// A detector of this relative momentum resolution.
    #[must_use]
    pub fn new(resolution: f64) -> Self {
        let s = resolution * FRAC_1_SQRT_2;
        // Equal steps: for a Gaussian times an analytic function the error is about exp(-TAU * d / step), d being the
        // distance of the line's pole from the real axis in units of the resolution (1.3 for the default): 1e-14.
        let step = 0.25;
        let points = (-22..=22).map(|k| {
            let z = f64::from(k) * step;
            ((-s * z).exp(), step * (-z * z / 2.0).exp() / TAU.sqrt())
        });
        Self { fold: points.collect() }
    }

    /// Expected entries of each bin.
    #[must_use]
    pub fn expected(&self, parameters: &Parameters, histogram: &Histogram) -> Vec<f64> {
        let signal = self.signal(parameters, histogram);
        let background = Self::background(parameters, histogram);
        signal.iter().zip(background).map(|(signal, background)| signal + background).collect()
    }

    /// The background's part of [`expected`](Self::expected).
    #[must_use]
    pub fn background(parameters: &Parameters, histogram: &Histogram) -> Vec<f64> {
        let fall = parameters[FALL];
        let shape = bins(histogram, |mass| (-fall * (mass - REFERENCE)).exp());
        scaled(&shape, parameters[BACKGROUND])
    }

    fn signal(&self, parameters: &Parameters, histogram: &Histogram) -> Vec<f64> {
        let shape = bins(histogram, |mass| self.line(parameters, mass));
        scaled(&shape, parameters[SIGNAL])
    }

    /// The folded line at the measured mass `x`, not normalised.
    fn line(&self, parameters: &Parameters, x: f64) -> f64 {
        let (mass, half, tilt) = (parameters[MASS], parameters[WIDTH] / 2.0, parameters[TILT]);
        self.fold
            .iter()
            .map(|(factor, weight)| {
                let m = x * factor;
                let off = (m - mass) / half;
                weight * factor * (1.0 + tilt * (m - REFERENCE)) / (1.0 + off * off)
            })
            .sum()
    }
}

/// Integrals of `density` over each bin: three points each (Gauss and Legendre).
fn bins(histogram: &Histogram, density: impl Fn(f64) -> f64) -> Vec<f64> {
    let half = histogram.step() / 2.0;
    let reach = half * 0.6_f64.sqrt();
    (0..histogram.counts.len())
        .map(|bin| {
            let middle = histogram.edges(bin).0 + half;
            let sides = density(middle - reach) + density(middle + reach);
            half * (8.0 * density(middle) + 5.0 * sides) / 9.0
        })
        .collect()
}

fn scaled(shape: &[f64], total: f64) -> Vec<f64> {
    let sum: f64 = shape.iter().sum();
    shape.iter().map(|part| part * total / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Parameters = [1000.0, 50.0, 91.2, 2.5, 0.0, 0.02];

    #[test]
    fn entries_add_up_to_signal_and_background() {
        let histogram = Histogram::of(&[], 70.0, 110.0, 64);
        let sum: f64 = Model::new(0.015).expected(&AT, &histogram).iter().sum();
        assert!((sum - 1050.0).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn a_perfect_detector_sees_the_bare_line() {
        let model = Model::new(0.0);
        for x in [80.0, 90.0, 91.2, 100.0] {
            let off = (x - 91.2) / 1.25;
            assert!((model.line(&AT, x) * (1.0 + off * off) - 1.0).abs() < 1e-6, "{x}");
        }
    }

    #[test]
    fn the_fold_does_not_depend_on_its_step() {
        let coarse = Model::new(0.015);
        let s = 0.015 * FRAC_1_SQRT_2;
        let fine = (-8000..=8000).map(|k| {
            let z = f64::from(k) / 1000.0;
            ((-s * z).exp(), (-z * z / 2.0).exp() / TAU.sqrt() / 1000.0)
        });
        let fine = Model { fold: fine.collect() };
        for x in [75.0, 88.0, 91.0, 91.2, 95.0] {
            let (a, b) = (coarse.line(&AT, x), fine.line(&AT, x));
            assert!((a / b - 1.0).abs() < 1e-6, "{x}: {a} {b}");
        }
    }
}
