//! The histogram as an SVG picture.

use std::fmt::Write;

use crate::Truth;
use crate::fit::Fit;
use crate::histogram::Histogram;
use crate::model::{MASS, WIDTH};

const WIDTH_PX: f64 = 800.0;
const HEIGHT_PX: f64 = 500.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 780.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 440.0;

/// Draws entries with their statistical errors, the fit and its background.
#[must_use]
pub fn svg(histogram: &Histogram, fit: &Fit, truth: &Truth) -> String {
    let scale = Scale::of(histogram, fit);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH_PX} {HEIGHT_PX}\" \
         font-family=\"sans-serif\" font-size=\"14\">\n<title>Z to mu mu</title>\n\
         <rect width=\"{WIDTH_PX}\" height=\"{HEIGHT_PX}\" fill=\"white\"/>\n"
    );
    axes(&mut text, histogram, &scale);
    points(&mut text, histogram, &scale);
    curve(&mut text, histogram, &scale, &fit.background, "#888\" stroke-dasharray=\"6 4");
    curve(&mut text, histogram, &scale, &fit.curve, "#c22");
    legend(&mut text, histogram, fit, truth);
    text.push_str("</svg>\n");
    text
}

struct Scale {
    low: f64,
    high: f64,
    top: f64,
}

impl Scale {
    fn of(histogram: &Histogram, fit: &Fit) -> Self {
        let highest = histogram.counts.iter().chain(&fit.curve).fold(1.0, |a: f64, b| a.max(*b));
        Self { low: histogram.low, high: histogram.high, top: highest * 1.08 }
    }

    fn x(&self, mass: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * (mass - self.low) / (self.high - self.low)
    }

    fn y(&self, entries: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * (entries / self.top).max(0.0)
    }
}

// Writing to a String doesn't fail, so the answers of `write!` below are dropped.

fn axes(text: &mut String, histogram: &Histogram, scale: &Scale) {
    let _ = writeln!(
        text,
        "<path d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\" fill=\"none\" stroke=\"black\"/>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">mass of the muon pair in GeV</text>\n\
         <text transform=\"translate(18 {}) rotate(-90)\" text-anchor=\"middle\">entries in {} GeV</text>",
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 45.0,
        (TOP + BOTTOM) / 2.0,
        histogram.step(),
    );
    for tick in 0..=8 {
        let part = f64::from(tick) / 8.0;
        let mass = scale.low + (scale.high - scale.low) * part;
        let x = scale.x(mass);
        let _ = writeln!(
            text,
            "<path d=\"M{x} {BOTTOM}v6\" stroke=\"black\"/><text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{mass}</text>",
            BOTTOM + 22.0
        );
    }
    let step = round_step(scale.top / 5.0);
    let mut entries = 0.0;
    while entries <= scale.top {
        let y = scale.y(entries);
        let _ = writeln!(
            text,
            "<path d=\"M{LEFT} {y:.1}h-6\" stroke=\"black\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{entries}</text>",
            LEFT - 10.0,
            y + 5.0
        );
        entries += step;
    }
}

/// The next 1, 2 or 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.max(1.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|round| *round >= step)
        .unwrap_or(step)
}

fn points(text: &mut String, histogram: &Histogram, scale: &Scale) {
    for (bin, count) in histogram.counts.iter().enumerate() {
        let (low, high) = histogram.edges(bin);
        let (x, y, error) = (scale.x((low + high) / 2.0), scale.y(*count), count.sqrt());
        let _ = writeln!(
            text,
            "<path d=\"M{x:.1} {:.1}V{:.1}\" stroke=\"#135\"/><circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"#135\"/>",
            scale.y(count - error),
            scale.y(count + error)
        );
    }
}

fn curve(text: &mut String, histogram: &Histogram, scale: &Scale, entries: &[f64], stroke: &str) {
    text.push_str("<polyline fill=\"none\" points=\"");
    for (bin, entries) in entries.iter().enumerate() {
        let (low, high) = histogram.edges(bin);
        let _ = write!(text, "{:.1},{:.1} ", scale.x((low + high) / 2.0), scale.y(*entries));
    }
    let _ = writeln!(text, "\" stroke-width=\"2\" stroke=\"{stroke}\"/>");
}

fn legend(text: &mut String, histogram: &Histogram, fit: &Fit, truth: &Truth) {
    let line = |name: &str, index: usize, truth: f64| {
        format!("{name} {:.4} ± {:.4} GeV (generated {truth:.4})", fit.values[index], fit.errors[index])
    };
    let lines = [
        format!("{:.0} events", histogram.total()),
        line("mass", MASS, truth.mass),
        line("width", WIDTH, truth.width),
        format!("chi2 {:.1} for {} degrees of freedom", fit.chi2, fit.degrees),
    ];
    for (row, words) in lines.iter().enumerate() {
        let y = TOP + 20.0 + 20.0 * row as f64;
        let _ = writeln!(text, "<text x=\"{}\" y=\"{y}\">{words}</text>", LEFT + 15.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axis_steps_are_round() {
        for (step, round) in [(1.0, 1.0), (3.0, 5.0), (12.0, 20.0), (99.0, 100.0), (0.1, 1.0)] {
            assert!((round_step(step) - round).abs() < 1e-9, "{step}: {}", round_step(step));
        }
    }
}
