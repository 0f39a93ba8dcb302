//! The command line: what can be asked, and which code answers.
//!
//! **Must not know:** how anything is done.

use std::io::Write;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use pilot_core::RunExit;

use crate::commands;
use crate::config::Settings;
use crate::surroundings;
use crate::telemetry;

/// Runs container payloads in slots, without privilege: images are chosen when the machine is already held.
#[derive(Parser, Debug)]
#[command(name = "pilot", version, after_help = exit_codes())]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How to tell it: for people, as plain lines, or one JSON object a line
    #[arg(long, env = "LATEBIND_OUTPUT", global = true, value_enum, default_value_t)]
    pub output: OutputFormat,
    /// Say more on stderr: -v what slots do, -vv every step (RUST_LOG overrides)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// All other settings.
    #[command(flatten)]
    pub settings: Settings,
}

/// How results are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Progress bars on a terminal, plain lines otherwise.
    #[default]
    Auto,
    /// Plain lines.
    Plain,
    /// One JSON object a line.
    Json,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the payloads of a workflow file on this machine
    Run(RunArgs),
    /// Say what this machine allows, and what to do about what it doesn't; with a file, check that workflow too
    Check(CheckArgs),
    /// Print the JSON schema of the workflow file
    Schema,
    /// Look at the image store, or take images out of it
    #[command(subcommand)]
    Images(ImagesCommand),
}

/// Arguments of `pilot run`.
#[derive(clap::Args, Debug)]
pub struct RunArgs {
    /// The workflow file
    pub file: PathBuf,
    /// Folder for logs and saved outputs [default: WORKFLOW.out in the current folder]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print these payloads' standard output at the end (may be repeated)
    #[arg(long, value_name = "PAYLOAD")]
    pub show: Vec<String>,
}

/// Arguments of `pilot check`.
#[derive(clap::Args, Debug)]
pub struct CheckArgs {
    /// A workflow file to check without running it
    pub file: Option<PathBuf>,
}

/// Commands on the image store.
#[derive(Subcommand, Debug)]
pub enum ImagesCommand {
    /// List the stored images
    Ls,
    /// Remove images and what only they needed
    Rm {
        /// References, or digests as `ls` prints them
        #[arg(required = true)]
        images: Vec<String>,
    },
}

/// Runs one command to its end.
pub fn run(cli: Cli) -> RunExit {
    let around = surroundings::read();
    telemetry::start(cli.verbose);
    let settings = match cli.settings.with_file(&around) {
        Ok(settings) => settings,
        Err(error) => return refuse(&error),
    };
    let output = cli.output;
    match cli.command {
        Command::Run(arguments) => commands::run::run(settings, &around, &arguments, output),
        Command::Check(arguments) => commands::check::check(settings, &around, &arguments, output),
        Command::Schema => commands::schema::schema(),
        Command::Images(command) => commands::images::images(settings, &around, &command, output),
    }
}

/// Tells a wrong input in one line.
pub(crate) fn refuse(error: &dyn std::error::Error) -> RunExit {
    complain(&crate::fault::chain(error));
    RunExit::BadInput
}

/// Prints one line on stderr. Nothing can be done when even that fails.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "pilot: {line}");
}

/// Prints to stdout; a closed pipe (`| head`) is the reader's choice and no failure.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn exit_codes() -> String {
    let rows = RunExit::ALL.map(|exit| format!("  {:>3}  {}\n", exit.code(), exit.meaning()));
    format!("Exit codes:\n{}", rows.concat())
}
