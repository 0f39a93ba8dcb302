//! The `pilot` program: reads the command line, runs one command, ends with its code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = match pilot::cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A failed print of a usage message leaves nothing better to do.
            let _ = error.print();
            let help = !error.use_stderr();
            return ExitCode::from(if help { 0 } else { pilot_core::RunExit::BadInput.code() });
        }
    };
    ExitCode::from(pilot::cli::run(cli))
}
