//! Measures the mass of each simulated boson.
//!
//! `reconstruct [--in FILE-OR-FOLDER] [--out FILE]`; of a folder every file is read, in the order of their names.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the command line")]

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use pilot_examples::args::Args;
use pilot_examples::events::{EventFile, invariant_mass};
use pilot_examples::masses::MassFile;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reconstruct: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let args = Args::parse(std::env::args().skip(1), &["in", "out"])?;
    let input = args.text("in", "/stage/in");
    let paths = inputs(Path::new(&input)).map_err(|error| format!("list {input}: {error}"))?;
    let mut truth = None;
    let mut masses = Vec::new();
    for path in &paths {
        let name = path.display();
        let bytes = fs::read(path).map_err(|error| format!("read {name}: {error}"))?;
        let file = EventFile::read(&bytes).map_err(|error| format!("read {name}: {error}"))?;
        if *truth.get_or_insert(file.truth) != file.truth {
            return Err(format!("{name} was simulated with another mass, width or resolution").into());
        }
        masses.extend(file.events.iter().map(invariant_mass));
    }
    let truth = truth.ok_or_else(|| format!("there is no file in {input}"))?;
    let out = args.text("out", "/stage/out/masses");
    let to = File::create(&out).map_err(|error| format!("create {out}: {error}"))?;
    let file = MassFile { truth, masses };
    file.write(BufWriter::new(to)).map_err(|error| format!("write {out}: {error}"))?;
    println!("{} masses of {} samples", file.masses.len(), paths.len());
    Ok(())
}

fn inputs(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut paths = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}
