//! `pilot run FILE`: one workflow on this machine, from the file to the exit code.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pilot_core::{Demand, DoneWhy, Fault, FaultClass, PilotConfig, RunExit};

use super::run_remote::{self, Wanted};
use crate::cli::{OutputFormat, RunArgs, complain, refuse, say};
use crate::cluster::LocalCluster;
use crate::config::{Config, Settings, Surroundings};
use crate::driver::{Done, Driver};
use crate::entries::{entries, saves_allowed};
use crate::fault::chain;
use crate::payload::Payload;
use crate::ports::Runtime as _;
use crate::queue::workflow::{Entry, WorkflowQueue};
use crate::runtime::adoption::Standing;
use crate::runtime::local::{LocalError, LocalRuntime, Name};
use crate::show::{Show, ends};
use crate::ui::{Reporter, size_of};
use crate::workflow::{self, Disk, Plan};

/// Runs the workflow.
pub fn run(settings: Settings, around: &Surroundings, arguments: &RunArgs, output: OutputFormat) -> RunExit {
    let given = settings.clone();
    let config = match Config::new(settings, around) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    let plan = match workflow::load(&arguments.file, &Disk) {
        Ok(plan) => plan,
        Err(workflow::LoadError::Invalid(problems)) => {
            problems.to_string().lines().for_each(complain);
            return RunExit::BadInput;
        }
        Err(error) => return refuse(&error),
    };
    let out = arguments.out.clone().unwrap_or_else(|| PathBuf::from(format!("{}.out", plan.workflow)));
    let out = std::path::absolute(&out).unwrap_or(out);
    let entries =
        match planned(&plan, &config, &out).and_then(|entries| shown(&plan, arguments).map(|()| entries)) {
            Ok(entries) => entries,
            Err(fault) => {
                complain(&format!("{}: {fault}", arguments.file.display()));
                return RunExit::BadInput;
            }
        };
    let logs = out.join("logs");
    if let Err(error) = std::fs::create_dir_all(&logs) {
        complain(&format!("make folder {}: {error}; choose another with --out", logs.display()));
        return RunExit::BadInput;
    }
    let reporter = reporter(output, around);
    let threads = super::threads();
    let threads = match threads {
        Ok(threads) => threads,
        Err(error) => {
            complain(&format!("start: {error}"));
            return RunExit::OwnFault;
        }
    };
    let show = Show::new(reporter, &plan, logs.clone());
    let exit = if config.place.is_some() {
        let wanted = Wanted { settings: &given, config: &config, arguments, plan: &plan, out: &out };
        threads.block_on(run_remote::run(wanted, entries, show))
    } else {
        threads.block_on(drive(config, entries, show))
    };
    if exit == RunExit::Success || exit == RunExit::PayloadFailed {
        for name in &arguments.show {
            let text = std::fs::read(logs.join(format!("{name}.stdout"))).unwrap_or_default();
            say(&String::from_utf8_lossy(&text));
        }
    }
    exit
}

async fn drive(config: Config, entries: Vec<Entry>, mut show: Show) -> RunExit {
    let total = Demand { cpu_millis: config.cpu_millis, memory_bytes: config.memory_bytes };
    let pilot = PilotConfig { bind_ahead: config.bind_ahead, ..PilotConfig::new(config.slots, total) };
    let queue = Arc::new(WorkflowQueue::new(entries));
    // Listening comes first: a Ctrl-C from here on must leave nothing behind.
    let cluster = match LocalCluster::listen() {
        Ok(cluster) => cluster,
        Err(error) => {
            complain(&format!("listen for signals: {error}"));
            return RunExit::OwnFault;
        }
    };
    let runtime = match tokio::task::spawn_blocking(move || LocalRuntime::new(&config, Name::Any)).await {
        Ok(Ok(runtime)) => Arc::new(runtime),
        Ok(Err(error)) => return local_exit(&error),
        Err(error) => {
            complain(&format!("start: {error}"));
            return RunExit::OwnFault;
        }
    };
    let started = tokio::time::Instant::now();
    show.started();
    if let Some(lack) = runtime.unenforced() {
        show.note(lack);
    }
    let driver = Driver::new(pilot, Arc::clone(&queue), Arc::clone(&runtime), cluster).with_ticks();
    let done = driver.run(|progress| show.progress(started.elapsed(), progress)).await;
    show.summary(started.elapsed(), ends(&queue), runtime.stage_figures());
    exit_of(&done, &queue)
}

/// Says why there are no slots here.
pub(super) fn local_exit(error: &LocalError) -> RunExit {
    complain(&chain(error));
    match error {
        LocalError::Attach(_) | LocalError::Ids(_) | LocalError::Stages(_) => RunExit::HostUnable,
        LocalError::Folders(_) | LocalError::Store(_) | LocalError::Shim(_) => RunExit::BadInput,
    }
}

/// The worst of what the payloads came to, unless a signal or the pilot itself ended it.
pub(crate) fn exit_of(done: &Done, queue: &WorkflowQueue) -> RunExit {
    match (&done.why, done.signal) {
        (_, Some(2)) => return RunExit::Interrupted,
        (_, Some(_)) => return RunExit::Terminated,
        (DoneWhy::AllRetired, _) => {
            complain("every slot had to be retired, because what payloads left could not be removed; see -v");
            return RunExit::OwnFault;
        }
        (DoneWhy::BlackHole(why), _) => {
            complain(&format!("gave up on this machine: {why}; `pilot check` says what it lacks"));
            return RunExit::HostUnable;
        }
        (DoneWhy::QueueClosed | DoneWhy::Idle | DoneWhy::Lifetime | DoneWhy::Stopped(_), None) => {}
    }
    let of = |index| match queue.standing(index) {
        Some((crate::queue::workflow::Standing::Succeeded, ..)) => RunExit::Success,
        Some((_, _, Some(outcome))) => RunExit::of(&outcome).max(RunExit::PayloadFailed),
        _ => RunExit::PayloadFailed,
    };
    (0..queue.entries().len()).map(of).max().unwrap_or(RunExit::Success)
}

fn reporter(output: OutputFormat, around: &Surroundings) -> Reporter {
    let stdout = std::io::stdout();
    let terminal = stdout.is_terminal();
    let colour = terminal && !around.no_color;
    let writer = Box::new(std::io::stdout());
    match output {
        OutputFormat::Json => Reporter::json(writer),
        OutputFormat::Auto if terminal => {
            Reporter::terminal(writer, Box::new(|| size_of(std::io::stdout()).unwrap_or_default()), colour)
        }
        OutputFormat::Auto | OutputFormat::Plain => Reporter::plain(writer, colour),
    }
}

/// Names given to `--show` must exist, before an hour of work and not after.
fn shown(plan: &Plan, arguments: &RunArgs) -> Result<(), Fault> {
    let names: BTreeSet<&str> = plan.payloads.iter().map(|payload| payload.name.as_str()).collect();
    match arguments.show.iter().find(|name| !names.contains(name.as_str())) {
        None => Ok(()),
        Some(name) => {
            Err(Fault::new(FaultClass::Payload, format!("--show {name}: there is no such payload")))
        }
    }
}

/// What asks for more than the pilot has in all would wait for ever.
fn fits(payload: &Payload, config: &Config) -> Result<(), Fault> {
    let (cpu_millis, memory_bytes) = (payload.resources.cpu_millis, payload.memory_bytes());
    let lack = if cpu_millis > config.cpu_millis {
        format!("{cpu_millis}m of cpu, the pilot has {}m (--cpu)", config.cpu_millis)
    } else if memory_bytes > config.memory_bytes {
        let sum = match payload.output_memory_bytes() {
            0 => String::new(),
            outputs => {
                format!(" ({} of its own, {outputs} for outputs in memory)", payload.resources.memory_bytes)
            }
        };
        format!("{memory_bytes} bytes of memory{sum}, the pilot has {} (--memory)", config.memory_bytes)
    } else {
        return Ok(());
    };
    Err(Fault::new(
        FaultClass::Payload,
        format!("{} asks for {lack}; ask for less or give the pilot more", payload.name),
    ))
}

fn planned(plan: &Plan, config: &Config, out: &Path) -> Result<Vec<Entry>, Fault> {
    let entries = entries(plan, out)?;
    saves_allowed(&entries, out, &config.save_under)?;
    if config.place.is_none() {
        entries.iter().try_for_each(|entry| fits(&entry.payload, config))?;
    }
    Ok(entries)
}
