use super::*;
use crate::Truth;
use crate::events::invariant_mass;
use crate::generate::{Setting, generate};
use crate::report::{BINS, RANGE};

fn simulated(count: u64, seed: u64) -> Histogram {
    let file = generate(&Setting::default(), count, seed);
    let masses: Vec<f64> = file.events.iter().map(invariant_mass).collect();
    Histogram::of(&masses, RANGE.0, RANGE.1, BINS)
}

#[test]
fn the_fit_finds_what_was_generated_for_twenty_seeds() {
    let model = Model::new(Truth::Z.resolution);
    let mut pulls = Vec::new();
    for seed in 0..20 {
        let fit = fit(&model, &simulated(20_000, seed)).expect("fit");
        for (index, truth) in [(MASS, Truth::Z.mass), (WIDTH, Truth::Z.width)] {
            let pull = (fit.values[index] - truth) / fit.errors[index];
            assert!(pull.abs() < 4.0, "seed {seed}, parameter {index}: {pull} errors off");
            pulls.push(pull);
        }
        assert!((0.005..0.05).contains(&fit.errors[MASS]), "error {}", fit.errors[MASS]);
        let chi2_per_degree = fit.chi2 / fit.degrees as f64;
        assert!((0.4..1.8).contains(&chi2_per_degree), "seed {seed}: {chi2_per_degree}");
    }
    let mean = pulls.iter().sum::<f64>() / pulls.len() as f64;
    let spread = (pulls.iter().map(|pull| (pull - mean).powi(2)).sum::<f64>() / pulls.len() as f64).sqrt();
    // 40 pulls: the mean is known to 0.16, the spread to 0.11.
    assert!(mean.abs() < 0.6, "mean pull {mean}");
    assert!((0.65..1.4).contains(&spread), "spread of pulls {spread}");
}

#[test]
fn entries_exactly_as_expected_are_fitted_exactly() {
    let model = Model::new(0.015);
    let mut histogram = Histogram::of(&[], RANGE.0, RANGE.1, BINS);
    let truth = [90_000.0, 5_000.0, 91.3, 2.6, 0.002, 0.03];
    histogram.counts = model.expected(&truth, &histogram);
    let fit = fit(&model, &histogram).expect("fit");
    for (index, truth) in truth.iter().enumerate() {
        let off = (fit.values[index] - truth) / fit.errors[index];
        assert!(off.abs() < 0.01, "parameter {index}: {} for {truth}", fit.values[index]);
    }
    assert!(fit.chi2 < 1e-3, "{}", fit.chi2);
}

#[test]
fn too_few_entries_are_refused() {
    let histogram = Histogram::of(&[91.0; 10], RANGE.0, RANGE.1, BINS);
    assert_eq!(fit(&Model::new(0.015), &histogram).expect_err("too few"), FitError::TooFew { entries: 10 });
}

#[test]
fn entries_without_a_peak_end_in_an_answer() {
    let mut histogram = Histogram::of(&[], RANGE.0, RANGE.1, BINS);
    histogram.counts.fill(100.0);
    let _either = fit(&Model::new(0.015), &histogram);
}
