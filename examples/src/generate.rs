//! Monte-Carlo generation of Z -> mu mu in a detector.
//!
//! The boson's mass follows a Breit-Wigner line between [`MASS_MIN`] and [`MASS_MAX`], its transverse momentum and
//! rapidity rough shapes of a hadron collider, its decay is isotropic in its rest frame. A part of the pairs comes from a
//! background that falls exponentially with mass. The detector measures each momentum with a log-normal relative error
//! and sees only muons of enough transverse momentum in a range of pseudorapidity. These cuts look at the true
//! momenta, so that they don't bend the resolution: ln(measured mass) is Gaussian around ln(true mass) exactly.

use std::f64::consts::TAU;

use fastrand::Rng;

use crate::Truth;
use crate::events::{Event, EventFile, MUON_MASS};

/// Smallest generated mass.
pub const MASS_MIN: f64 = 60.0;
/// Largest generated mass.
pub const MASS_MAX: f64 = 120.0;

/// Mean scale of the boson's transverse momentum.
const BOSON_PT_SCALE: f64 = 8.0;
/// Spread of its rapidity, and where that is cut.
const BOSON_RAPIDITY: (f64, f64) = (1.3, 3.0);
/// Mass over which the background falls by e.
const BACKGROUND_FALL: f64 = 25.0;

/// What to generate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting {
    /// The line and the detector's resolution.
    pub truth: Truth,
    /// Part of the pairs that is background, 0 to 1.
    pub background: f64,
    /// Smallest transverse momentum that the detector sees.
    pub pt_min: f64,
    /// Largest absolute pseudorapidity that it sees.
    pub eta_max: f64,
}

impl Default for Setting {
    fn default() -> Self {
        Self { truth: Truth::Z, background: 0.05, pt_min: 20.0, eta_max: 2.4 }
    }
}

/// Generates `count` pairs and keeps what the detector sees.
#[must_use]
pub fn generate(setting: &Setting, count: u64, seed: u64) -> EventFile {
    let mut rng = Rng::with_seed(seed);
    let events = (0..count).filter_map(|_| pair(setting, &mut rng)).collect();
    EventFile { truth: setting.truth, generated: count, seed, events }
}

fn pair(setting: &Setting, rng: &mut Rng) -> Option<Event> {
    let background = rng.f64() < setting.background;
    let mass = if background { background_mass(rng) } else { line_mass(&setting.truth, rng) };
    let muons = decay(mass, rng);
    if !muons.iter().all(|p| seen(p, setting)) {
        return None;
    }
    Some(muons.map(|p| {
        let factor = (setting.truth.resolution * gauss(rng)).exp();
        p.map(|component| component * factor)
    }))
}

/// By the inverse of the line's distribution function, which is an arc tangent.
fn line_mass(truth: &Truth, rng: &mut Rng) -> f64 {
    let half = truth.width / 2.0;
    let angle = |mass: f64| ((mass - truth.mass) / half).atan();
    let (low, high) = (angle(MASS_MIN), angle(MASS_MAX));
    truth.mass + half * (low + (high - low) * rng.f64()).tan()
}

fn background_mass(rng: &mut Rng) -> f64 {
    let reach = 1.0 - (-(MASS_MAX - MASS_MIN) / BACKGROUND_FALL).exp();
    MASS_MIN - BACKGROUND_FALL * (1.0 - reach * rng.f64()).ln()
}

/// Two muons in the laboratory.
fn decay(mass: f64, rng: &mut Rng) -> Event {
    let momentum = (mass * mass / 4.0 - MUON_MASS * MUON_MASS).sqrt();
    let direction = isotropic(rng);
    let boson = boson_momentum(mass, rng);
    let one = direction.map(|x| x * momentum);
    [boost(&one, mass, &boson), boost(&one.map(|x| -x), mass, &boson)]
}

fn isotropic(rng: &mut Rng) -> [f64; 3] {
    let (cos, phi) = (2.0 * rng.f64() - 1.0, TAU * rng.f64());
    let sin = (1.0 - cos * cos).sqrt();
    [sin * phi.cos(), sin * phi.sin(), cos]
}

fn boson_momentum(mass: f64, rng: &mut Rng) -> [f64; 3] {
    let pt = -BOSON_PT_SCALE * ((1.0 - rng.f64()) * (1.0 - rng.f64())).ln();
    let phi = TAU * rng.f64();
    let (spread, limit) = BOSON_RAPIDITY;
    // Three standard deviations and more lie outside: this ends.
    let rapidity = loop {
        let y = spread * gauss(rng);
        if y.abs() < limit {
            break y;
        }
    };
    let transverse_mass = (mass * mass + pt * pt).sqrt();
    [pt * phi.cos(), pt * phi.sin(), transverse_mass * rapidity.sinh()]
}

/// A muon's momentum `p` in the rest frame of a boson of `mass`, seen where the boson has momentum `boson`.
fn boost(p: &[f64; 3], mass: f64, boson: &[f64; 3]) -> [f64; 3] {
    let dot = |a: &[f64; 3], b: &[f64; 3]| a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
    let energy = (MUON_MASS * MUON_MASS + dot(p, p)).sqrt();
    let boson_energy = (mass * mass + dot(boson, boson)).sqrt();
    let along = dot(p, boson) / (mass * (boson_energy + mass)) + energy / mass;
    [0, 1, 2].map(|axis| p[axis] + boson[axis] * along)
}

fn seen(p: &[f64; 3], setting: &Setting) -> bool {
    let pt = p[0].hypot(p[1]);
    pt > setting.pt_min && (p[2] / pt).asinh().abs() < setting.eta_max
}

/// A standard normal number (Box and Muller).
fn gauss(rng: &mut Rng) -> f64 {
    (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (TAU * rng.f64()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::invariant_mass;

    #[test]
    fn the_same_seed_gives_the_same_events_and_another_gives_others() {
        let setting = Setting::default();
        assert_eq!(generate(&setting, 100, 3), generate(&setting, 100, 3));
        assert_ne!(generate(&setting, 100, 3).events, generate(&setting, 100, 4).events);
    }

    #[test]
    fn a_boost_keeps_the_mass() {
        let mut rng = Rng::with_seed(1);
        for _ in 0..1000 {
            let mass = 60.0 + 60.0 * rng.f64();
            let measured = invariant_mass(&decay(mass, &mut rng));
            assert!((measured - mass).abs() < 1e-6 * mass, "{mass} became {measured}");
        }
    }

    #[test]
    fn masses_stay_in_range_and_half_lie_within_half_a_width() {
        let mut rng = Rng::with_seed(2);
        let truth = Truth::Z;
        let masses: Vec<f64> = (0..20_000).map(|_| line_mass(&truth, &mut rng)).collect();
        assert!(masses.iter().all(|mass| (MASS_MIN..=MASS_MAX).contains(mass)));
        let within = masses.iter().filter(|mass| (**mass - truth.mass).abs() < truth.width / 2.0).count();
        // Half of a Breit-Wigner line, and 2.7 % more because its far tails are cut off.
        assert!((within as f64 / 20_000.0 - 0.5137).abs() < 0.015, "{within}");
        let background: Vec<f64> = (0..1000).map(|_| background_mass(&mut rng)).collect();
        assert!(background.iter().all(|mass| (MASS_MIN..=MASS_MAX).contains(mass)));
    }

    #[test]
    fn normal_numbers_are_normal() {
        let mut rng = Rng::with_seed(3);
        let (mut sum, mut squares, n) = (0.0, 0.0, 100_000);
        for _ in 0..n {
            let x = gauss(&mut rng);
            sum += x;
            squares += x * x;
        }
        assert!((sum / f64::from(n)).abs() < 0.015);
        assert!((squares / f64::from(n) - 1.0).abs() < 0.02);
    }

    #[test]
    fn muons_outside_the_detector_are_not_seen() {
        let setting = Setting::default();
        assert!(seen(&[30.0, 0.0, 0.0], &setting));
        assert!(!seen(&[19.0, 0.0, 0.0], &setting));
        assert!(!seen(&[30.0, 0.0, 300.0], &setting));
        let kept = generate(&setting, 10_000, 5).events.len();
        assert!((4000..7500).contains(&kept), "{kept} of 10000");
    }
}
