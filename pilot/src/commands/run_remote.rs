//! `pilot run --backend kubernetes FILE`: the workflow file of this machine, run in a pod that is made for it.
//!
//! ```text
//!   images pushed ─> pod and its login made ─> pod runs ─> attended (Session) ─> both removed
//! ```
//! Whatever happens on the way, pod and login are removed. A workstation that is killed can't: then the pod ends by itself.
//!
//! **Must not know:** how frames look, what payloads do.

use std::collections::BTreeMap;
use std::path::Path;

use image_store::{Reference, Transport};
use pilot_core::RunExit;
use stage::StageUri;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::pod::shape;
use super::push::push_all;
use crate::cli::{RunArgs, complain};
use crate::cluster::LocalCluster;
use crate::config::{Config, Settings};
use crate::driver::Progress;
use crate::entries::{entries, saves_allowed};
use crate::fault::chain;
use crate::mounts::{Mount, together};
use crate::payload::{Save, Source, StageClass};
use crate::pod::Shape;
use crate::ports::{Cluster, StageFigures, StopRequest};
use crate::queue::workflow::Entry;
use crate::remote::cluster::{Refusal, RunPod, connect};
use crate::remote::login::RunLogin;
use crate::remote::session::{Ended, News, Session, out_there};
use crate::show::Show;
use crate::workflow::Plan;

/// Wishes of the user that may wait: the first and the second.
const STOPS_MAX: usize = 4;

/// What is to be run, checked.
pub(super) struct Wanted<'a> {
    pub(super) settings: &'a Settings,
    pub(super) config: &'a Config,
    pub(super) arguments: &'a RunArgs,
    pub(super) plan: &'a Plan,
    pub(super) out: &'a Path,
}

/// Runs it.
pub(super) async fn run(wanted: Wanted<'_>, mut here: Vec<Entry>, mut show: Show) -> RunExit {
    // Listening comes first: a Ctrl-C from here on must leave nothing behind.
    let mut signals = match LocalCluster::listen() {
        Ok(signals) => signals,
        Err(error) => {
            complain(&format!("listen for signals: {error}"));
            return RunExit::OwnFault;
        }
    };
    let started = Instant::now();
    let prepared = prepare(&wanted, &mut here, &mut show).await;
    let (shape, there) = match prepared {
        Ok(prepared) => prepared,
        Err((line, exit)) => {
            complain(&line);
            return exit;
        }
    };
    let pod = match make(&wanted, shape, &there, &mut show).await {
        Ok(pod) => pod,
        Err((line, exit)) => {
            complain(&line);
            return exit;
        }
    };
    let objects = uses_objects(&here).then(|| wanted.config.object_access.clone());
    let session = Session::new(here, &there, wanted.out.to_path_buf(), objects);
    show.started();
    let ran = attend(&wanted, &pod, session, &mut signals, &mut show, started).await;
    let removed = pod.remove().await;
    let exit = match ran {
        Ok(Ended { exit, ends, stages }) => {
            if !ends.is_empty() {
                show.summary(started.elapsed(), ends, stages);
            }
            exit
        }
        Err((line, exit)) => {
            complain(&line);
            exit
        }
    };
    if let Err((line, _)) = removed {
        complain(&line);
    }
    exit
}

/// Pushes what has to be, and looks at the images.
async fn prepare(
    wanted: &Wanted<'_>,
    here: &mut [Entry],
    show: &mut Show,
) -> Result<(Shape, Vec<Entry>), Refusal> {
    let refused = |line: String| (line, RunExit::BadInput);
    let shape = shape(wanted.settings, &wanted.arguments.pod).map_err(|error| refused(chain(&error)))?;
    let name = format!("{}-{:08x}", shape.name, fastrand::u32(..));
    // The user's own `-v` goes along, by the way that settings go.
    let mounts = shape.mounts.iter().cloned().chain(mounts(here));
    let mounts = together(mounts).map_err(|error| refused(error.to_string()))?;
    let shape = Shape { name, command: vec!["stand".into()], ends: true, mounts, ..shape };
    let shape = match wanted.settings.memory {
        Some(_) => shape,
        None => Shape { slot_memory_bytes: slot_memory(here, shape.slot_memory_bytes), ..shape },
    };
    let local = |image: &str| image.parse::<Reference>().is_ok_and(|it| it.transport() != Transport::Docker);
    let images: Vec<String> =
        here.iter().map(|entry| entry.payload.image.clone()).filter(|i| local(i)).collect();
    let pushed: BTreeMap<String, String> = match (&wanted.arguments.push, images.first()) {
        (_, None) => BTreeMap::new(),
        (Some(to), Some(_)) => push_all(images, to, wanted.config, |text| show.note(text)).await?,
        (None, Some(image)) => {
            return Err(refused(format!(
                "image {image} is on this machine: the cluster can't see it; --push REGISTRY/PREFIX brings it there"
            )));
        }
    };
    // What is not sent back would be gone with the pod.
    if let Err(fault) = saves_allowed(here, wanted.out, &[]) {
        let text = fault.message.split("; ").next().unwrap_or_default().to_owned();
        return Err(refused(format!("{text}; from a pod, save to a relative path or to s3://")));
    }
    let mut there = entries(wanted.plan, &out_there()).map_err(|fault| refused(fault.to_string()))?;
    for entry in there.iter_mut().chain(here) {
        if let Some(reference) = pushed.get(&entry.payload.image) {
            let mut payload = (*entry.payload).clone();
            payload.image.clone_from(reference);
            entry.payload = std::sync::Arc::new(payload);
        }
    }
    Ok((shape, there))
}

/// Memory of each slot when nobody says: what the largest payload asks for with its outputs in memory, and no less than
/// `otherwise`. A container's memory is fixed with its pod.
fn slot_memory(entries: &[Entry], otherwise: u64) -> u64 {
    entries.iter().map(|entry| entry.payload.memory_bytes()).fold(otherwise, u64::max)
}

/// Whether the pod has to reach objects.
fn uses_objects(entries: &[Entry]) -> bool {
    let payloads = || entries.iter().map(|entry| &entry.payload);
    let reads = |source: &Source| matches!(source, Source::Object(_));
    let puts = |save: &Option<Save>| matches!(save, Some(Save::Object(_)));
    payloads().flat_map(|payload| &payload.inputs).any(|input| reads(&input.source))
        || payloads().flat_map(|payload| &payload.outputs).any(|output| puts(&output.save))
}

/// Where the workflow's payloads want inputs mounted.
fn mounts(entries: &[Entry]) -> impl Iterator<Item = Mount> {
    let inputs = entries.iter().flat_map(|entry| &entry.payload.inputs);
    let class_of = |uri: &StageUri| {
        let producer = entries.iter().find(|entry| entry.payload.name == uri.payload)?;
        producer.payload.outputs.iter().find(|output| output.name == uri.output).map(|output| output.class)
    };
    inputs.filter_map(move |input| {
        let at = input.at.clone()?;
        let is_file = match &input.source {
            Source::Host(path) => !path.is_dir(),
            Source::Object(_) => true,
            Source::Stage(uri) => class_of(uri) != Some(StageClass::Folder),
        };
        Some(Mount { at, is_file })
    })
}

/// Makes the pod, and brings it the logins that its images need: unless it has been told of a Secret with some.
async fn make(
    wanted: &Wanted<'_>,
    mut shape: Shape,
    there: &[Entry],
    show: &mut Show,
) -> Result<RunPod, Refusal> {
    let found = match shape.login {
        None => RunLogin::find(&wanted.config.registry_access, there, |text| show.note(text)).await?,
        Some(_) => None,
    };
    let place = wanted.config.place.clone().unwrap_or_default();
    let (client, namespace) = connect(place.namespace).await?;
    let login = match found {
        Some(found) => found.rehearse(&client, &namespace, &shape.name, |text| show.note(text)).await?,
        None => None,
    };
    if login.is_some() {
        shape.login = Some(shape.name.clone());
    }
    RunPod::create(client, &namespace, &shape, login.as_ref()).await
}

/// From a pod that was made to the end of the run in it.
async fn attend(
    wanted: &Wanted<'_>,
    pod: &RunPod,
    session: Session,
    signals: &mut LocalCluster,
    show: &mut Show,
    started: Instant,
) -> Result<Ended, Refusal> {
    let interrupted = |request: StopRequest| {
        let (StopRequest::Grace { signal, .. } | StopRequest::Kill { signal, .. }) = request;
        let exit = if signal == 2 { RunExit::Interrupted } else { RunExit::Terminated };
        Ended { exit, ends: Vec::new(), stages: StageFigures::default() }
    };
    tokio::select! {
        running = pod.until_running(|text| show.note(text)) => running?,
        request = signals.watch_stop() => return Ok(interrupted(request)),
    }
    let arguments = arguments(wanted.settings);
    let mut process = pod.attend(&arguments).await?;
    let lost = || (format!("enter pod {}: its streams are missing", pod.name()), RunExit::OwnFault);
    let (stdin, stdout) = process.stdin().zip(process.stdout()).ok_or_else(lost)?;
    let stderr = process.stderr();
    let (stop, stops) = mpsc::channel(STOPS_MAX);
    // Shown by whoever has the turn: the session, or the clock.
    let show = std::cell::RefCell::new(show);
    let told = |news| match news {
        News::Progress(progress) => show.borrow_mut().progress(started.elapsed(), progress),
        News::Note(text) => show.borrow_mut().note(text),
    };
    let session = session.run(stdin, stdout, stops, told);
    tokio::pin!(session);
    let passing = pass_on(stderr);
    tokio::pin!(passing);
    let mut passes = true;
    let mut ticks = tokio::time::interval(std::time::Duration::from_secs(1));
    loop {
        tokio::select! {
            ended = &mut session => {
                return ended.map_err(|error| {
                    (format!("run in pod {}: {}", pod.name(), chain(&error)), RunExit::HostUnable)
                });
            }
            request = signals.watch_stop() => {
                let _ = stop.send(request).await;
            }
            () = &mut passing, if passes => passes = false,
            _ = ticks.tick() => show.borrow_mut().progress(started.elapsed(), Progress::Tick),
        }
    }
}

/// Settings that are the user's to choose and not the pod's.
fn arguments(settings: &Settings) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut push = |name: &str, value: Option<String>| {
        arguments.extend(value.map(|value| format!("--{name}={value}")));
    };
    push("reuse", settings.reuse.map(|reuse| reuse.to_string()));
    push("bind-ahead", settings.bind_ahead.map(|ahead| ahead.to_string()));
    push("log-max", settings.log_max.map(|bytes| bytes.0.to_string()));
    arguments
}

/// What the pilot in the pod says of itself.
async fn pass_on(stderr: Option<impl tokio::io::AsyncRead + Unpin>) {
    let Some(mut stderr) = stderr else { return };
    let mut buffer = vec![0; 4096];
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        for line in String::from_utf8_lossy(&buffer[..read]).lines() {
            complain(&format!("in the pod: {}", line.trim_start_matches("pilot: ")));
        }
    }
}
