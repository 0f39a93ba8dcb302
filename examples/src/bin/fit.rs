//! Fits the peak and draws it.
//!
//! `fit [--in FILE] [--plot FILE] [--result FILE] [--columns N]`
//! Ends with 1 when the fitted mass is more than three errors off the generated one, with 2 when there is no fit.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the command line")]

use std::error::Error;
use std::fs;
use std::process::ExitCode;

use pilot_examples::args::Args;
use pilot_examples::histogram::Histogram;
use pilot_examples::masses::MassFile;
use pilot_examples::model::Model;
use pilot_examples::report::{BINS, RANGE, agrees, json, lines};
use pilot_examples::{chart, fit, plot};

/// What terminals have when nobody says otherwise, and what a log is read in.
const COLUMNS: usize = 80;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("fit: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, Box<dyn Error>> {
    let args = Args::parse(std::env::args().skip(1), &["in", "plot", "result", "columns"])?;
    let input = args.text("in", "/stage/in/masses");
    let bytes = fs::read(&input).map_err(|error| format!("read {input}: {error}"))?;
    let file = MassFile::read(&bytes).map_err(|error| format!("read {input}: {error}"))?;
    let histogram = Histogram::of(&file.masses, RANGE.0, RANGE.1, BINS);
    let fit = fit::fit(&Model::new(file.truth.resolution), &histogram)?;
    let results = [
        (args.text("plot", "/stage/out/plot"), plot::svg(&histogram, &fit, &file.truth)),
        (args.text("result", "/stage/out/result"), json(&fit, &histogram, &file.truth)),
    ];
    for (path, text) in results {
        fs::write(&path, text).map_err(|error| format!("write {path}: {error}"))?;
    }
    print!("{}", lines(&fit, &histogram, &file.truth));
    print!("{}", chart::chart(&histogram, &fit, args.number("columns", COLUMNS)?));
    Ok(agrees(&fit, &file.truth))
}
