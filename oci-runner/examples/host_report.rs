//! Prints what this machine allows: `host_report STORE LOCAL`.
//!
//! Ends with 1 when containers can't run here.

use std::path::Path;
use std::process::ExitCode;

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to its user")]
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let [_, store, local] = args.as_slice() else {
        eprintln!("usage: host_report STORE LOCAL");
        return ExitCode::from(64);
    };
    let report = oci_runner::probe_host(Path::new(store), Path::new(local));
    print!("{report}");
    println!("attach: {:?}", report.attach);
    if report.runs_containers() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
