//! Simulates Z bosons in a detector.
//!
//! `simulate --events N --out FILE [--seed N] [--resolution R] [--background R] [--pt-min GEV] [--eta-max X]`
//! `LATEBIND_INDEX` in the environment makes each of many runs with the same arguments another sample.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the command line")]

use std::error::Error;
use std::fs::File;
use std::io::BufWriter;
use std::process::ExitCode;

use pilot_examples::Truth;
use pilot_examples::args::Args;
use pilot_examples::generate::{Setting, generate};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("simulate: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let known = ["events", "out", "seed", "resolution", "background", "pt-min", "eta-max"];
    let args = Args::parse(std::env::args().skip(1), &known)?;
    let default = Setting::default();
    let setting = Setting {
        truth: Truth { resolution: args.number("resolution", Truth::Z.resolution)?, ..Truth::Z },
        background: args.number("background", default.background)?,
        pt_min: args.number("pt-min", default.pt_min)?,
        eta_max: args.number("eta-max", default.eta_max)?,
    };
    if !(0.0..0.2).contains(&setting.truth.resolution) || !(0.0..=1.0).contains(&setting.background) {
        return Err("--resolution must lie between 0 and 0.2, --background between 0 and 1".into());
    }
    let index = index()?;
    // An odd constant with well-mixed bits: neighbouring indices begin far apart.
    let seed = args.number("seed", 1_u64)?.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let file = generate(&setting, args.number("events", 20_000)?, seed);
    let out = args.text("out", "/stage/out/events");
    let to = File::create(&out).map_err(|error| format!("create {out}: {error}"))?;
    file.write(BufWriter::new(to)).map_err(|error| format!("write {out}: {error}"))?;
    println!("sample {index}: {} of {} events accepted", file.events.len(), file.generated);
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the array's index is handed over in the environment")]
fn index() -> Result<u64, String> {
    match std::env::var("LATEBIND_INDEX") {
        Ok(text) => text.parse().map_err(|_| format!("LATEBIND_INDEX {text:?} is not a number")),
        Err(_) => Ok(0),
    }
}
