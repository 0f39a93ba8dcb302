//! The harness of the end-to-end tests: where the built programs are, images made on the spot, and the baseline that
//! every test must leave as it found it.
//!
//! **Must not know:** the pilot's inside. These tests stand where a user stands: files, commands, exit codes, output.
#![forbid(unsafe_code)]

pub mod baseline;
pub mod conformance;
pub mod fake;
pub mod fuzz;
pub mod images;
pub mod run;

/// Says on stderr that a test could not run, in a form that `tests/run` counts.
#[expect(clippy::print_stderr, reason = "a skipped test that nobody sees is forbidden")]
pub fn skipped(test: &str, missing: &str) {
    eprintln!("SKIPPED: {test}: {missing}");
}
