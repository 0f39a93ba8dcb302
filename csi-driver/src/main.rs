//! The `csi-driver` program: reads settings, serves until it is told to stop, ends with a code.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use csi_driver::serve::{ServeError, serve};
use csi_driver::settings::Settings;
use csi_driver::telemetry;
use tokio::signal::unix::{SignalKind, signal};

/// Bad settings, as in the pilot.
const BAD_INPUT: u8 = 64;
/// It can't run here.
const UNABLE: u8 = 69;

/// CSI node plugin: inline volumes for pilots' pods
#[derive(Parser, Debug)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    /// Say more; may be repeated
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A failed print of a usage message leaves nothing better to do.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { BAD_INPUT } else { 0 });
        }
    };
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let config = match cli.settings.with_file().and_then(|settings| settings.config(&host)) {
        Ok(config) => config,
        Err(error) => return complain(&error, BAD_INPUT),
    };
    telemetry::start(cli.verbose, config.log_format);
    // One thread answers, one owns the volumes: a node has better uses for its memory.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error, UNABLE),
    };
    let result = runtime.block_on(async {
        let (mut term, mut int) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(term), Ok(int)) => (term, int),
            (Err(error), _) | (_, Err(error)) => return Err(ServeError::Run(error.to_string())),
        };
        let stop = async {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        };
        serve(config, stop).await
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error, UNABLE),
    }
}

fn complain(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    use std::io::Write as _;
    // Nobody reads it if this fails.
    let _ = writeln!(std::io::stderr().lock(), "csi-driver: {error}");
    ExitCode::from(code)
}
