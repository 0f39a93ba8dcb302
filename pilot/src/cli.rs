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
use crate::units::Millis;

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
    /// Run what is submitted to the spool, until told to stop
    Serve(ServeArgs),
    /// Put workflows into the spool; pilots that serve it run them
    Submit(SubmitArgs),
    /// Say how runs and payloads in the spool stand
    Ls(LsArgs),
    /// Print what a payload wrote to its standard output and error
    Logs(LogsArgs),
    /// End runs or payloads: what waits is never started, what runs is told to end
    Cancel(CancelArgs),
    /// Wait until runs have ended; the exit code is what `pilot run` would have given
    Wait(WaitArgs),
    /// Take ended runs out of the spool; their logs and saved outputs stay
    Forget(ForgetArgs),
    /// Say what this machine allows, and what to do about what it doesn't; with a file, check that workflow too
    Check(CheckArgs),
    /// Run a program beside a payload that runs, with this terminal
    Exec(commands::exec::ExecArgs),
    /// Show what pilots do: their slots, images, stages and totals
    Top(commands::top::TopArgs),
    /// Look at the stages that pilots of the spool hold
    #[command(subcommand)]
    Stage(commands::stage::StageCommand),
    /// Print the JSON schema of the workflow file
    Schema,
    /// Print the manifest of a pilot's pod for Kubernetes
    Pod(commands::pod::PodCommandArgs),
    /// Make the folders of a pod's shared volume
    #[command(hide = true)]
    PrepareShare(commands::pod::PrepareArgs),
    /// Hold a pod for a run from a workstation
    #[command(hide = true)]
    Stand,
    /// Run what a workstation sends on standard input
    #[command(hide = true)]
    Attend,
    /// Look at the image store, put images into it, or take them out of it
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
    /// With --backend kubernetes: push images of this machine below here, such as registry.example.org/team
    #[arg(long, value_name = "REGISTRY/PREFIX")]
    pub push: Option<String>,
    /// The pod that is made with --backend kubernetes.
    #[command(flatten)]
    pub pod: commands::pod::PodArgs,
}

/// Arguments of `pilot serve`.
#[derive(clap::Args, Debug)]
pub struct ServeArgs {
    /// End once everything in the spool has ended
    #[arg(long)]
    pub until_empty: bool,
}

/// Arguments of `pilot submit`.
#[derive(clap::Args, Debug)]
pub struct SubmitArgs {
    /// Workflow files; each becomes a run
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Folder for logs and saved outputs [default: WORKFLOW-RUN.out in the current folder]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Word of your choice: the same one again gives the run that is there instead of a second one
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Name of the run, in place of the workflow's
    // Not --name: that is the setting for a pilot's name.
    #[arg(long, value_name = "NAME")]
    pub run_name: Option<String>,
    /// Wait until it has ended, as `pilot wait` does
    #[arg(long)]
    pub wait: bool,
    /// Print the runs' numbers and nothing else
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `pilot ls`.
#[derive(clap::Args, Debug)]
pub struct LsArgs {
    /// What to list: 7 or zpeak (the newest run of that name), 7/fit, or an array of payloads [default: the runs]
    #[arg(value_name = "RUN[/PAYLOAD]")]
    pub addresses: Vec<spool::Address>,
    /// Go on: in place on a terminal, else with a line for each change; ends when all of what was named has ended
    #[arg(short, long)]
    pub watch: bool,
    /// List everything, however much there is
    #[arg(short, long, conflicts_with = "limit")]
    pub all: bool,
    /// Only what stands so: waiting, ready, claimed, succeeded, failed, skipped, cancelled or lost (may be repeated)
    #[arg(long, value_name = "STATE")]
    pub state: Vec<spool::State>,
    /// At most so many lines [default: 100; with --output json all]
    #[arg(long, value_name = "N")]
    pub limit: Option<u32>,
}

/// Arguments of `pilot logs`.
#[derive(clap::Args, Debug)]
pub struct LogsArgs {
    /// Whose logs; the run alone will do when it has one payload
    #[arg(value_name = "RUN/PAYLOAD")]
    pub address: spool::Address,
    /// Go on until the payload has ended
    #[arg(short, long)]
    pub follow: bool,
    /// Only its standard output
    #[arg(long, conflicts_with = "stderr")]
    pub stdout: bool,
    /// Only its standard error, on our standard output
    #[arg(long)]
    pub stderr: bool,
    /// Begin with the last N lines of each
    #[arg(long, value_name = "N")]
    pub tail: Option<usize>,
}

/// Arguments of `pilot cancel`.
#[derive(clap::Args, Debug)]
pub struct CancelArgs {
    /// Runs, payloads or arrays of payloads
    #[arg(required = true, value_name = "RUN[/PAYLOAD]")]
    pub addresses: Vec<spool::Address>,
    /// Return only when nothing of it runs any more
    #[arg(long)]
    pub wait: bool,
}

/// Arguments of `pilot wait`.
#[derive(clap::Args, Debug)]
pub struct WaitArgs {
    /// Runs, by number or name
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<spool::Address>,
    /// Longest wait, such as 90s or 2h; then the exit code is 1
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Millis>,
}

/// Arguments of `pilot forget`.
#[derive(clap::Args, Debug)]
pub struct ForgetArgs {
    /// Runs, by number or name
    #[arg(required_unless_present = "ended", value_name = "RUN")]
    pub runs: Vec<spool::Address>,
    /// All runs that have ended
    #[arg(long, conflicts_with = "runs")]
    pub ended: bool,
    /// Only those that ended so long ago, such as 12h or 7d
    #[arg(long, requires = "ended", value_name = "TIME")]
    pub older_than: Option<Millis>,
}

/// Arguments of `pilot check`.
#[derive(clap::Args, Debug)]
pub struct CheckArgs {
    /// A workflow file to check without running it
    pub file: Option<PathBuf>,
    /// Check the cluster of the kubeconfig, or from inside of a pod its own
    #[arg(long)]
    pub cluster: bool,
    /// The pod that would be made there.
    #[command(flatten)]
    pub pod: commands::pod::PodArgs,
}

/// Commands on the image store.
#[derive(Subcommand, Debug)]
pub enum ImagesCommand {
    /// Fetch or read images into the store, so that no payload waits for them
    Pull {
        /// References as in a workflow: docker://NAME:TAG, oci:DIR, oci-archive:FILE, docker-archive:FILE
        #[arg(required = true)]
        references: Vec<String>,
    },
    /// List the stored images
    Ls,
    /// Remove images and what only they needed
    Rm {
        /// References, or digests as `ls` prints them
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Say what the store's bytes are for, and what removing each image would free
    Df,
    /// Hash everything in the store again; exit code 1 when something is damaged
    Verify,
}

/// Runs one command to its end and gives this process's exit code.
pub fn run(cli: Cli) -> u8 {
    let around = surroundings::read();
    let settings = match cli.settings.with_file(&around) {
        Ok(settings) => settings,
        Err(error) => return refuse(&error).code(),
    };
    telemetry::start(cli.verbose, settings.log_format.unwrap_or_default());
    let output = cli.output;
    let exit = match cli.command {
        // Its code is the program's.
        Command::Exec(arguments) => return commands::exec::exec(settings, &around, arguments),
        Command::Stage(command) => commands::stage::stage(settings, &around, &command, output),
        Command::Top(arguments) => commands::top::top(settings, &around, &arguments, output),
        Command::Run(arguments) => commands::run::run(settings, &around, &arguments, output),
        Command::Serve(arguments) => commands::serve::serve(settings, &around, &arguments, output),
        Command::Submit(arguments) => commands::submit::submit(settings, &around, &arguments, output),
        Command::Ls(arguments) => commands::ls::ls(settings, &around, &arguments, output),
        Command::Logs(arguments) => commands::logs::logs(settings, &around, &arguments, output),
        Command::Cancel(arguments) => commands::cancel::cancel(settings, &around, &arguments, output),
        Command::Wait(arguments) => commands::wait::wait(settings, &around, &arguments, output),
        Command::Forget(arguments) => commands::forget::forget(settings, &around, &arguments, output),
        Command::Check(arguments) => commands::check::check(settings, &around, &arguments, output),
        Command::Schema => commands::schema::schema(),
        Command::Stand => commands::in_pod::stand(settings, &around),
        Command::Attend => commands::in_pod::attend(settings, &around),
        Command::Pod(arguments) => commands::pod::pod(&settings, &arguments, output),
        Command::PrepareShare(arguments) => {
            commands::pod::prepare_share(&settings, around.program.as_deref(), &arguments)
        }
        Command::Images(command) => commands::images::images(settings, &around, &command, output),
    };
    exit.code()
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
