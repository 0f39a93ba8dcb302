//! The three programs, one after the other, as a workflow runs them.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use pilot_examples::masses::MassFile;

#[expect(clippy::disallowed_methods, reason = "a test that waits for its child")]
fn run(program: &str, index: usize, args: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(program);
    command.env("LATEBIND_INDEX", index.to_string());
    for (name, path) in args {
        command.arg(name).arg(path);
    }
    command.output().expect("start")
}

const SIMULATE: &str = env!("CARGO_BIN_EXE_simulate");
const RECONSTRUCT: &str = env!("CARGO_BIN_EXE_reconstruct");
const FIT: &str = env!("CARGO_BIN_EXE_fit");

/// Two samples, measured: the file of masses in `folder`.
fn measured(folder: &Path) -> std::path::PathBuf {
    let (input, masses) = (folder.join("in"), folder.join("masses"));
    fs::create_dir(&input).expect("folder");
    for index in 0..2 {
        let made = run(SIMULATE, index, &[("--out", &input.join(format!("events-{index}")))]);
        assert!(made.status.success(), "{made:?}");
    }
    let made = run(RECONSTRUCT, 0, &[("--in", &input), ("--out", &masses)]);
    assert!(made.status.success(), "{made:?}");
    masses
}

fn fitted(folder: &Path, masses: &Path) -> Output {
    let (plot, result) = (folder.join("plot"), folder.join("result"));
    run(FIT, 0, &[("--in", masses), ("--plot", &plot), ("--result", &result)])
}

#[test]
fn the_chain_finds_the_generated_mass_and_draws_it() {
    let folder = tempfile::tempdir().expect("folder");
    let masses = measured(folder.path());
    let ended = fitted(folder.path(), &masses);
    let said = String::from_utf8(ended.stdout).expect("text");
    assert_eq!(ended.status.code(), Some(0), "{said}");
    assert!(said.contains("agrees with the generated one") && said.contains('█'), "{said}");
    assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
    let plot = fs::read_to_string(folder.path().join("plot")).expect("plot");
    assert!(plot.starts_with("<svg ") && plot.ends_with("</svg>\n"));
    assert_eq!(plot.matches("<circle").count(), 64);
    assert!(!plot.contains("NaN") && !plot.contains("inf"));
    let result = fs::read_to_string(folder.path().join("result")).expect("result");
    assert!(result.contains("\"agrees\": true"), "{result}");
}

#[test]
fn samples_of_different_indices_differ() {
    let folder = tempfile::tempdir().expect("folder");
    measured(folder.path());
    let sample = |index| fs::read(folder.path().join(format!("in/events-{index}"))).expect("read");
    assert_ne!(sample(0), sample(1));
}

#[test]
fn a_peak_at_another_mass_ends_with_one() {
    let folder = tempfile::tempdir().expect("folder");
    let masses = measured(folder.path());
    let mut file = MassFile::read(&fs::read(&masses).expect("read")).expect("masses");
    file.masses.iter_mut().for_each(|mass| *mass += 0.5);
    file.write(fs::File::create(&masses).expect("create")).expect("write");
    let ended = fitted(folder.path(), &masses);
    assert_eq!(ended.status.code(), Some(1), "{}", String::from_utf8_lossy(&ended.stdout));
}

#[test]
fn input_that_is_none_ends_with_two_and_one_line() {
    let folder = tempfile::tempdir().expect("folder");
    let masses = folder.path().join("masses");
    fs::write(&masses, "LBMASSES but no more").expect("write");
    for ended in [
        fitted(folder.path(), &masses),
        run(RECONSTRUCT, 0, &[("--in", &masses)]),
        run(RECONSTRUCT, 0, &[("--in", &folder.path().join("nothing"))]),
        run(SIMULATE, 0, &[("--evnts", Path::new("1"))]),
    ] {
        assert_eq!(ended.status.code(), Some(2));
        assert_eq!(String::from_utf8_lossy(&ended.stderr).lines().count(), 1);
    }
}
