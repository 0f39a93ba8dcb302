//! Where the log goes: stderr, one line an event. Names of volumes and pods are told, contents never.
//!
//! **Must not know:** what is told.

use clap::ValueEnum;
use serde::Deserialize;
use tracing_subscriber::filter::EnvFilter;

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people, without time.
    #[default]
    Plain,
    /// One JSON object a line, with time.
    Json,
}

/// Starts logging. `RUST_LOG` wins over `verbose`.
pub fn start(verbose: u8, format: LogFormat) {
    let level = match verbose {
        0 => "warn,csi_driver=info",
        1 => "warn,csi_driver=debug",
        _ => "info,csi_driver=trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    // A second start (tests) keeps the first.
    let _ = match format {
        LogFormat::Plain => lines.without_time().try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
}
