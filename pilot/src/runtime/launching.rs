//! From a payload to what its slot's shim is told: argument vector, environment, limits, descriptors; and sending it.
//!
//! **Must not know:** how the slot's container came to be, how a payload ends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use image_store::ImageConfig;
use oci_runner::remove_tree;
use pilot_core::{ExitStatus, Fault, FaultClass, SlotId};
use stage::broker::Ended as Made;
use wire::slot::{FdRole, InputLink, Launch, LaunchId, LaunchRefusal, Rlimit, ToShim};

use super::logs::LogStream;
use super::slots::{Connection, SlotError};
use super::stage_clients::SOCKET;
use super::stages::{OpenInput, OpenOutput, is_unmade};
use crate::fault::chain;
use crate::payload::{Payload, StageClass};
use crate::ports::{Ended, LaunchFault};

/// What a shell would answer (and what tini answers) when a program can't be run, or isn't there.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// What goes with a launch.
#[derive(Debug, Default)]
pub(super) struct Lent {
    fds: Vec<(FdRole, OwnedFd)>,
    /// Inputs that are files, and were memory: their readers may use the descriptor that memory has.
    inherited: Vec<String>,
}

/// Names that surely fit a frame.
const INHERITED_MAX: usize = 256;

/// What a launch is made of, beside its payload.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) slot: SlotId,
    pub(super) image: &'a ImageConfig,
    pub(super) streams: Option<&'a mut [LogStream; 2]>,
    pub(super) inputs: Vec<OpenInput>,
    pub(super) outputs: &'a [OpenOutput],
    /// Whether the payload's client libraries find the broker.
    pub(super) has_broker: bool,
    /// Whether the payload's memory is limited as a whole.
    pub(super) memory_is_enforced: bool,
}

/// Everything the shim has to be told, and the descriptors that go with it.
pub(super) fn compose(payload: &Payload, parts: Parts<'_>) -> Result<(Launch, Lent), Fault> {
    let Parts { slot, image, streams, inputs, outputs, has_broker, memory_is_enforced } = parts;
    let Lent { fds: mut lent, mut inherited } = Lent::default();
    let roles = [(FdRole::Stdout, "stdout"), (FdRole::Stderr, "stderr")];
    for ((role, name), stream) in roles.into_iter().zip(streams.into_iter().flatten()) {
        let path = log_path(payload, name);
        let writer = stream.begin(path.clone()).map_err(|error| {
            Fault::new(FaultClass::Pilot, format!("begin log {}: {error}", path.display()))
        })?;
        lent.push((role, writer));
    }
    let mut links = Vec::new();
    for (input, open) in payload.inputs.iter().zip(inputs) {
        let name = input.name.as_str().to_owned();
        match open {
            OpenInput::Link(target) => links.push(InputLink { name, target: target.into_bytes() }),
            OpenInput::Moved(target) => {
                inherited.push(name.clone());
                links.push(InputLink { name, target: target.into_bytes() });
            }
            OpenInput::Memory(fd) => lent.push((FdRole::StageIn(name), fd)),
        }
    }
    for (output, open) in payload.outputs.iter().zip(outputs) {
        let fd = match open {
            OpenOutput::Memory(writer) => writer.lend().try_clone_to_owned(),
            OpenOutput::Shared(fd) => fd.try_clone(),
            OpenOutput::File(_) | OpenOutput::Folder | OpenOutput::Value(_) | OpenOutput::Passing => continue,
        };
        let role = FdRole::StageOut(output.name.as_str().to_owned());
        lent.push((role, fd.map_err(|error| slot_fault(&error))?));
    }
    let (argv, mut env, cwd) = invocation(payload, image);
    if !env.iter().any(|variable| variable.starts_with("HOSTNAME=")) {
        env.push(format!("HOSTNAME={}", hostname(slot)));
    }
    if has_broker {
        env.retain(|variable| !variable.starts_with("LATEBIND_STAGE="));
        env.push(format!("LATEBIND_STAGE={SOCKET}"));
    }
    let bytes = |strings: Vec<String>| strings.into_iter().map(String::into_bytes).collect();
    let mut rlimits = vec![Rlimit::Core(0)];
    if !memory_is_enforced {
        // Per process and of private writable memory only: the best there is without a cgroup (getrlimit(2)).
        rlimits.push(Rlimit::Data(payload.resources.memory_bytes));
    }
    let launch = Launch {
        id: LaunchId(std::array::from_fn(|_| fastrand::u8(..))),
        argv: bytes(argv),
        env: bytes(env),
        cwd: cwd.into_bytes(),
        umask: 0o022,
        rlimits,
        fds: Vec::new(),
        links,
    };
    Ok((launch, Lent { fds: lent, inherited }))
}

/// Sends a launch, what doesn't fit in its frame in frames before it.
pub(super) async fn send_launch(
    connection: &Connection,
    mut launch: Launch,
    Lent { fds: mut lent, inherited }: Lent,
) -> Result<(), SlotError> {
    if connection.inherits() {
        for names in inherited.chunks(INHERITED_MAX) {
            connection.send(&ToShim::Inherit { inputs: names.to_vec() }, &[]).await?;
        }
    }
    // One place stays free for the launch's own memory.
    let in_frame = lent.len().min(wire::frame::FRAME_FDS_MAX - 1);
    for part in lent.split_off(in_frame).chunks(wire::frame::FRAME_FDS_MAX) {
        let fds: Vec<BorrowedFd<'_>> = part.iter().map(|(_, fd)| fd.as_fd()).collect();
        let roles = part.iter().map(|(role, _)| role.clone()).collect();
        connection.send(&ToShim::Lend { fds: roles }, &fds).await?;
    }
    launch.fds = lent.iter().map(|(role, _)| role.clone()).collect();
    let fds: Vec<BorrowedFd<'_>> = lent.iter().map(|(_, fd)| fd.as_fd()).collect();
    let message = ToShim::Launch(launch);
    match connection.send(&message, &fds).await {
        Err(SlotError::Encode(wire::EncodeError::TooLong { .. })) => {}
        other => return other,
    }
    let ToShim::Launch(mut launch) = message else { return Ok(()) };
    let mut roles = vec![FdRole::Launch];
    roles.append(&mut launch.fds);
    let (memory, bytes) = wire::write_launch_memory(&launch)?;
    let mut all = vec![memory.as_fd()];
    all.extend(fds);
    connection.send(&ToShim::LaunchInMemory { bytes, fds: roles }, &all).await
}

/// A program that can't be run ends like one that a shell can't run; anything else is the slot's fault.
pub(super) fn refused(refusal: &LaunchRefusal) -> Result<Ended, LaunchFault> {
    let LaunchRefusal::Failed { step, errno } = refusal else {
        let fault = Fault::new(FaultClass::Slot, format!("the shim refused the launch: {refusal:?}"));
        return Err(LaunchFault::NotStarted(fault));
    };
    let error = std::io::Error::from_raw_os_error(*errno);
    let code = match (step.as_str(), error.kind()) {
        ("exec", std::io::ErrorKind::NotFound) => NOT_FOUND,
        ("exec" | "chdir", _) => NOT_EXECUTABLE,
        _ => {
            let fault = Fault::new(FaultClass::Slot, format!("launch failed at {step}: {error}"));
            return Err(LaunchFault::NotStarted(fault));
        }
    };
    let note = match step.as_str() {
        "chdir" => format!("its working directory: {error}; set cwd to a folder of its image"),
        _ => format!("its program could not be executed: {error}"),
    };
    Ok(Ended { exit: ExitStatus::Code(code).into(), note: Some(note) })
}

/// Argument vector, environment and working directory: the image's own, replaced by the payload's.
pub(super) fn invocation(payload: &Payload, config: &ImageConfig) -> (Vec<String>, Vec<String>, String) {
    let mut argv = payload.command.clone().unwrap_or_else(|| config.entrypoint.clone());
    match (&payload.args, &payload.command) {
        (Some(args), _) => argv.extend(args.iter().cloned()),
        (None, None) => argv.extend(config.cmd.iter().cloned()),
        (None, Some(_)) => {}
    }
    let mut env = std::collections::BTreeMap::from([(
        "PATH".to_owned(),
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
    )]);
    let pair =
        |variable: &String| variable.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    env.extend(config.env.iter().filter_map(pair));
    // The image's HOME is read-only here; the payload's own folder is not.
    env.insert("HOME".to_owned(), "/work".to_owned());
    env.extend(payload.env.clone());
    env.insert("LATEBIND_PAYLOAD".to_owned(), payload.name.as_str().to_owned());
    let env = env.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    let own = Some(config.workdir.clone()).filter(|workdir| !workdir.is_empty());
    let cwd = payload.cwd.clone().or(own).unwrap_or_else(|| "/work".to_owned());
    (argv, env, cwd)
}

/// What to run when neither payload nor image says.
pub(super) fn nothing_to_run() -> Fault {
    let text = "its image has neither ENTRYPOINT nor CMD; give the payload a command";
    Fault::new(FaultClass::Payload, text)
}

/// The last launch in a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastLaunch {
    pub(super) id: LaunchId,
    /// An earlier life of this pilot made it.
    pub(super) inherited: bool,
}

/// What a payload left, as far as it is known when it has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left<'a> {
    pub(super) payload: &'a Payload,
    pub(super) outputs: &'a [OpenOutput],
    /// The folder that it wrote to by path.
    pub(super) out: &'a Path,
}

/// Why nothing can be kept of a payload that an earlier life of this pilot launched: it has an output that it made neither by
/// path nor through a client of this life. What clients committed before is gone with that life.
pub(super) fn lost_clients(launch: Option<LastLaunch>, left: Left<'_>, made: &Made) -> Option<Fault> {
    let inherited = launch.is_some_and(|launch| launch.inherited);
    (inherited && is_unmade(left.payload, left.outputs, made, left.out)).then(|| {
        Fault::new(FaultClass::Retry, "its pilot was started again while clients were making its outputs")
    })
}

/// That a payload failed which has [lost its clients](lost_clients) is not taken for its own doing, whatever they made in this
/// life: they may have failed of what they lost.
pub(super) fn judge_inherited(
    launch: Option<LastLaunch>,
    ended: Result<Ended, LaunchFault>,
    left: Left<'_>,
) -> Result<Ended, LaunchFault> {
    let ended = ended?;
    match lost_clients(launch, left, &Made::default()).filter(|_| !ended.exit.status.is_success()) {
        Some(fault) => Err(LaunchFault::SlotLost(fault)),
        None => Ok(ended),
    }
}

/// What a container is called from inside. It may outlive the payload, so it has the slot's name.
pub(super) fn hostname(slot: SlotId) -> String {
    format!("slot-{}", slot.0)
}

/// Where a stream of a payload is kept.
pub(super) fn log_path(payload: &Payload, stream: &str) -> PathBuf {
    payload.logs.join(format!("{}.{stream}", payload.name))
}

/// Outputs have their own limits; everything else that a payload writes on disk shares one.
pub(super) fn disk_limit(payload: &Payload) -> u64 {
    let on_disk =
        |class: StageClass| matches!(class, StageClass::File | StageClass::Folder | StageClass::Value);
    let outputs = payload.outputs.iter().filter(|output| on_disk(output.class));
    outputs.fold(payload.resources.disk_bytes, |sum, output| sum.saturating_add(output.max_bytes))
}

/// Removes what is in a folder of ours: links to stages, and outputs that nobody wanted. What can't be goes with the slot.
pub(super) fn remove_files(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let _ = std::fs::remove_file(entry.path()).or_else(|_| remove_tree(&entry.path()));
    }
}

pub(super) fn slot_fault(error: &dyn std::error::Error) -> Fault {
    Fault::new(FaultClass::Slot, chain(error))
}
