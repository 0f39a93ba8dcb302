//! `pilot run FILE`: one workflow on this machine, from the file to the exit code.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pilot_core::{Demand, DoneWhy, Fault, FaultClass, PilotConfig, RunExit};
use stage::{StageName, StageUri};

use crate::cli::{OutputFormat, RunArgs, complain, refuse, say};
use crate::cluster::LocalCluster;
use crate::config::{Config, Settings, Surroundings};
use crate::driver::{Done, Driver};
use crate::fault::chain;
use crate::payload::{Input, Output, Payload, Resources, Source, StageClass};
use crate::queue::workflow::{Entry, WorkflowQueue};
use crate::runtime::local::{LocalError, LocalRuntime};
use crate::show::Show;
use crate::ui::{Reporter, size_of};
use crate::workflow::{self, Disk, Plan, PlannedPayload};

/// Runs the workflow.
pub fn run(settings: Settings, around: &Surroundings, arguments: &RunArgs, output: OutputFormat) -> RunExit {
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
        match entries(&plan, &config, &out).and_then(|entries| shown(&plan, arguments).map(|()| entries)) {
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
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let threads = match threads {
        Ok(threads) => threads,
        Err(error) => {
            complain(&format!("start: {error}"));
            return RunExit::OwnFault;
        }
    };
    let show = Show::new(reporter, &plan, logs.clone());
    let exit = threads.block_on(drive(config, entries, &logs, show));
    if exit == RunExit::Success || exit == RunExit::PayloadFailed {
        for name in &arguments.show {
            let text = std::fs::read(logs.join(format!("{name}.stdout"))).unwrap_or_default();
            say(&String::from_utf8_lossy(&text));
        }
    }
    exit
}

async fn drive(config: Config, entries: Vec<Entry>, logs: &Path, mut show: Show) -> RunExit {
    let total = Demand { cpu_millis: config.cpu_millis, memory_bytes: config.memory_bytes };
    let pilot = PilotConfig::new(config.slots, total);
    let queue = Arc::new(WorkflowQueue::new(entries));
    // Listening comes first: a Ctrl-C from here on must leave nothing behind.
    let cluster = match LocalCluster::listen() {
        Ok(cluster) => cluster,
        Err(error) => {
            complain(&format!("listen for signals: {error}"));
            return RunExit::OwnFault;
        }
    };
    let logs = logs.to_path_buf();
    let runtime = match tokio::task::spawn_blocking(move || LocalRuntime::new(&config, logs)).await {
        Ok(Ok(runtime)) => Arc::new(runtime),
        Ok(Err(error)) => {
            complain(&chain(&error));
            return match error {
                LocalError::Attach(_) | LocalError::Ids(_) => RunExit::HostUnable,
                LocalError::Folders(_) | LocalError::Store(_) | LocalError::Shim(_) => RunExit::BadInput,
            };
        }
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
    let driver = Driver::new(pilot, Arc::clone(&queue), Arc::clone(&runtime), cluster);
    let done = driver.run(|progress| show.progress(started.elapsed(), progress)).await;
    show.summary(started.elapsed(), &queue);
    exit_of(&done, &queue)
}

/// The worst of what the payloads came to, unless a signal or the pilot itself ended it.
fn exit_of(done: &Done, queue: &WorkflowQueue) -> RunExit {
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

/// From the file's plan to the queue's entries.
fn entries(plan: &Plan, config: &Config, out: &Path) -> Result<Vec<Entry>, Fault> {
    let workflow = name(&plan.workflow)?;
    let mut readers: BTreeMap<(usize, usize), BTreeSet<StageName>> = BTreeMap::new();
    for payload in &plan.payloads {
        for input in &payload.inputs {
            if let workflow::InputSource::Stage { producer, output } = input.source {
                readers.entry((producer, output)).or_default().insert(name(&payload.name)?);
            }
        }
    }
    let entry = |planned: &PlannedPayload| {
        let payload = payload(plan, planned, &workflow, &readers, out)?;
        fits(&payload, config)?;
        let spec = &planned.spec;
        Ok(Entry {
            payload: Arc::new(payload),
            trust_group: spec.trust_group.clone().unwrap_or_else(|| "user".to_owned()),
            at_most_once: spec.at_most_once,
            retries: spec.retries,
            after: planned.needs.clone(),
        })
    };
    plan.payloads.iter().map(entry).collect()
}

/// What asks for more than the pilot has in all would wait for ever.
fn fits(payload: &Payload, config: &Config) -> Result<(), Fault> {
    let Resources { cpu_millis, memory_bytes, .. } = payload.resources;
    let lack = if cpu_millis > config.cpu_millis {
        format!("{cpu_millis}m of cpu, the pilot has {}m (--cpu)", config.cpu_millis)
    } else if memory_bytes > config.memory_bytes {
        format!("{memory_bytes} bytes of memory, the pilot has {} (--memory)", config.memory_bytes)
    } else {
        return Ok(());
    };
    Err(Fault::new(
        FaultClass::Payload,
        format!("{} asks for {lack}; ask for less or give the pilot more", payload.name),
    ))
}

fn name(text: &str) -> Result<StageName, Fault> {
    StageName::new(text).map_err(|error| Fault::new(FaultClass::Payload, error.to_string()))
}

/// The reference, its path absolute.
fn image(plan: &Plan, spec: &workflow::PayloadSpec) -> Result<String, Fault> {
    let reference: image_store::Reference = spec.image.parse().map_err(|error| {
        let (line, column) = (spec.at.line, spec.at.column);
        let text = format!("line {line}, column {column}: payload {:?}: {}", spec.name, chain(&error));
        Fault::new(FaultClass::Payload, text)
    })?;
    Ok(reference.relative_to(&plan.folder).to_string())
}

fn payload(
    plan: &Plan,
    planned: &PlannedPayload,
    workflow: &StageName,
    readers: &BTreeMap<(usize, usize), BTreeSet<StageName>>,
    out: &Path,
) -> Result<Payload, Fault> {
    let spec = &planned.spec;
    let input = |input: &workflow::PlannedInput| {
        let source = match &input.source {
            workflow::InputSource::Host(path) => Source::Host(path.clone()),
            workflow::InputSource::Stage { producer, output } => {
                let missing =
                    || Fault::new(FaultClass::Pilot, "an input names a payload that is not planned");
                let from = plan.payloads.get(*producer).ok_or_else(missing)?;
                let of = from.spec.outputs.get(*output).ok_or_else(missing)?;
                let (payload, output) = (name(&from.name)?, name(&of.name)?);
                Source::Stage(StageUri { workflow: workflow.clone(), payload, output })
            }
        };
        Ok(Input { name: name(&input.name)?, source })
    };
    let output = |(index, output): (usize, &workflow::PlannedOutput)| {
        Ok(Output {
            name: name(&output.name)?,
            class: match output.class {
                workflow::model::OutputClass::File => StageClass::File,
                workflow::model::OutputClass::Mem => StageClass::Memory,
            },
            max_bytes: output.max_bytes,
            save: planned.save_path(output).map(|path| out.join(path)),
            readers: readers.get(&(planned.id, index)).cloned().unwrap_or_default(),
        })
    };
    Ok(Payload {
        workflow: workflow.clone(),
        name: name(&planned.name)?,
        family: name(&spec.name)?,
        image: image(plan, spec)?,
        command: spec.command.clone(),
        args: spec.args.clone(),
        env: planned.environment(),
        cwd: spec.cwd.clone(),
        user: match spec.user {
            workflow::User::Image => None,
            workflow::User::Ids { uid, gid } => Some((uid, gid.unwrap_or(uid))),
        },
        resources: Resources {
            cpu_millis: spec.resources.cpu_millicores,
            memory_bytes: spec.resources.memory_bytes,
            disk_bytes: spec.resources.disk_bytes,
        },
        walltime_ms: spec.walltime_ms,
        grace_ms: spec.grace_ms,
        inputs: planned.inputs.iter().map(input).collect::<Result<_, Fault>>()?,
        outputs: spec.outputs.iter().enumerate().map(output).collect::<Result<_, Fault>>()?,
        writable_root: spec.rootfs == workflow::model::Rootfs::Writable,
        host_network: spec.network == workflow::model::Network::Host,
    })
}
