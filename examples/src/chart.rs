//! The histogram in a terminal: bars for the entries, dots for the fit.

use crate::fit::Fit;
use crate::histogram::Histogram;

const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ROWS: usize = 16;
/// Room for the counts beside the axis: seven digits and a bar.
const MARGIN: usize = 9;

/// Draws in at most `columns` columns; bins are joined until they fit.
#[must_use]
pub fn chart(histogram: &Histogram, fit: &Fit, columns: usize) -> String {
    let room = columns.saturating_sub(MARGIN).max(8);
    let join = histogram.counts.len().div_ceil(room).next_power_of_two();
    let (bars, dots) = (joined(&histogram.counts, join), joined(&fit.curve, join));
    let highest = bars.iter().chain(&dots).fold(1.0, |a: f64, b| a.max(*b));
    let mut text = String::new();
    for row in (0..ROWS).rev() {
        let label =
            if row % 5 == 0 { format!("{:.0}", highest * (row as f64) / ROWS as f64) } else { String::new() };
        text.push_str(&format!("{label:>7} {}", if row % 5 == 0 { '┤' } else { '│' }));
        let cells: String =
            bars.iter().zip(&dots).map(|(bar, dot)| cell(bar / highest, dot / highest, row)).collect();
        text.push_str(cells.trim_end());
        text.push('\n');
    }
    text + &axis(histogram, bars.len())
}

fn joined(values: &[f64], join: usize) -> Vec<f64> {
    values.chunks(join).map(|part| part.iter().sum()).collect()
}

/// What stands in one cell: the dot where the fit passes, else as much of the bar as reaches it.
fn cell(bar: f64, dot: f64, row: usize) -> char {
    let rows = ROWS as f64;
    if (dot * rows * 0.9999) as usize == row {
        return '•';
    }
    let eighths = ((bar * rows - row as f64) * 8.0).round().clamp(0.0, 8.0);
    EIGHTHS[eighths as usize]
}

fn axis(histogram: &Histogram, bars: usize) -> String {
    let (low, high) = (histogram.low, histogram.high);
    let indent = " ".repeat(MARGIN - 1);
    let label = format!("{:.0}", (low + high) / 2.0);
    let left = (bars + 1).saturating_sub(label.len()) / 2;
    let right = (bars + 1).saturating_sub(left + label.len());
    let line = format!("{indent}└{}\n", "─".repeat(bars));
    let scale = format!("{indent}{low:<left$.0}{label}{high:>right$.0}\n");
    format!("{line}{scale}{indent}{:^bars$}", "mass of the muon pair in GeV; █ entries  • fit")
        .trim_end()
        .to_owned()
        + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PARAMETERS;

    fn drawn(bins: usize, columns: usize) -> String {
        let values: Vec<f64> = (0..bins).map(|bin| bin as f64 * 1000.0).collect();
        let histogram = Histogram { low: 70.0, high: 110.0, counts: values.clone() };
        let zero = [0.0; PARAMETERS];
        let background = vec![0.0; bins];
        let fit = Fit { values: zero, errors: zero, curve: values, background, chi2: 0.0, degrees: 1 };
        chart(&histogram, &fit, columns)
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for columns in [60, 80, 200] {
            let text = drawn(64, columns);
            let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
            assert!(widest <= columns, "{widest} > {columns}\n{text}");
        }
    }

    #[test]
    fn every_column_has_its_dot() {
        let dots = drawn(64, 80).lines().take(ROWS).map(|line| line.matches('•').count()).sum::<usize>();
        assert_eq!(dots, 64);
    }

    #[test]
    fn a_bar_fills_whole_and_part_cells() {
        assert_eq!(cell(1.0, 0.0, 15), '█');
        assert_eq!(cell(0.5 / ROWS as f64, 1.0, 0), '▄');
        assert_eq!(cell(0.0, 1.0, 3), ' ');
    }
}
