//! The harness of the end-to-end tests: where the built programs are, images made on the spot, and the baseline that
//! every test must leave as it found it.
//!
//! **Must not know:** the pilot's inside, but for its public types in [`fake`] and [`conformance`]. The end-to-end tests stand
//! where a user stands: files, commands, exit codes, output.
#![forbid(unsafe_code)]

pub mod baseline;
pub mod chaos;
pub mod conformance;
pub mod fake;
pub mod fuzz;
pub mod images;
pub mod kube;
pub mod registry;
pub mod rounds;
pub mod run;
pub mod spooled;

/// Says something on stderr that a reader of a failure needs, whatever the test runner keeps to itself.
pub fn note(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Says on stderr that a test could not run, in a form that `tests/run` counts.
pub fn skipped(test: &str, missing: &str) {
    use std::io::Write as _;
    // Not eprintln: the test runner keeps that to itself when the test passes.
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED: {test}: {missing}");
}
