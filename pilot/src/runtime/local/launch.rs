//! Launching a payload in a bound slot and waiting until nothing of it runs.
//!
//! One loop hears everything that can happen meanwhile: the shim's messages, the payload's output, signals from the driver,
//! helpers to start beside it, the work folder growing too large, a KILL that the shim does not carry out, and the end of
//! PID 1 itself. For a payload that another pilot launched, the loop is all there is.
//!
//! **Must not know:** why a signal is sent, what happens to the outputs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use oci_runner::cgroup::Cgroup;
use pilot_core::{Exit, ExitStatus, Fault, FaultClass, Signal, SlotId, StopCause, Usage};
use tokio::sync::mpsc;
use tokio::time::Instant;
use wire::slot::{
    CgroupFigures, ExitReport, FdRole, FromShim, InputLink, Launch, LaunchId, LaunchRefusal, Rlimit, ToShim,
    WaitStatus,
};

use super::folders::SlotFolders;
use super::images::Stored;
use super::live::{Live, SHIM_WAIT, died};
use super::record::{Launched, boot_ms};
use super::slot_fault;
use super::stages::{OpenInput, OpenOutput};
use super::usage::bytes_below;
use crate::payload::{Payload, StageClass};
use crate::ports::{Ended, Grant, LaunchFault};
use crate::runtime::exec::{Companions, Word};
use crate::runtime::slots::{Connection, SlotError};

/// How often what a payload wrote is measured. A payload can be above its limit for about this long.
const DISK_LOOK: Duration = Duration::from_secs(1);
/// A shim carries out a KILL in milliseconds; then its container goes instead.
const KILL_WAIT: Duration = Duration::from_secs(3);
/// What a shell would answer (and what tini answers) when a program can't be run, or isn't there.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
const SIGKILL: i32 = 9;

type Lent = Vec<(FdRole, OwnedFd)>;

impl Live {
    /// See [`crate::ports::Runtime::launch`].
    pub(super) async fn launch(
        &mut self,
        grant: Grant,
        payload: &Payload,
        mut words: mpsc::Receiver<Word>,
    ) -> Result<Ended, LaunchFault> {
        if self.adopted.is_some()
            && let Some(launches) = &self.shared.launches
            // The list of the life that launched it goes in time.
            && let Err(error) = launches.add(grant.claim)
        {
            tracing::warn!(slot = %self.slot, %error, "it can't be written down that an adopted payload was launched");
        }
        let started = match self.adopted.take() {
            Some(Some(report)) => {
                self.runs = false;
                return Ok(self.exited(&report, None, None));
            }
            Some(None) => true,
            None => {
                self.begin_launch(grant, payload).await.map_err(LaunchFault::NotStarted)?;
                false
            }
        };
        self.runs = true;
        let ended = self.follow(payload, &mut words, started).await;
        // A lost slot is not known to be empty.
        self.runs = matches!(ended, Err(LaunchFault::SlotLost(_)));
        if ended.is_ok() && payload.outputs.is_empty() {
            // Nothing has to be kept before: the shim cleans while the pilot does its part.
            self.begin_clean().await;
        }
        ended
    }

    async fn begin_launch(&mut self, grant: Grant, payload: &Payload) -> Result<(), Fault> {
        self.reusable = self.shared.reuse && !payload.writable_root;
        self.usage = Usage::default();
        self.peak_seen = 0;
        // The kernel's peak is the whole slot's unless it can be begun anew.
        self.peak_is_own = self.launches == 0 || self.cgroup.as_ref().is_some_and(Cgroup::reset_peak);
        // Nothing that could be killed was in the slot since.
        self.oom_kills_before = self.oom_kills_seen;
        self.launches += 1;
        let foreign = self.shared.foreign_uid;
        self.holds_files = !payload.inputs.is_empty() || !payload.outputs.is_empty();
        if self.holds_files {
            self.outputs = self.shared.stages.open_outputs(payload, &self.folders.out, foreign)?;
            self.inputs = self.shared.stages.open_inputs(payload, &self.folders.inputs)?;
        }
        let (launch, lent) = self.compose(payload)?;
        if self.shared.folders.serves() {
            // That of the payload before.
            let _ = std::fs::remove_file(&self.folders.keeping);
            let files = self.outputs.iter().filter_map(|output| match output {
                OpenOutput::File(file) => Some(file.clone()),
                OpenOutput::Memory(_) => None,
            });
            self.write_record(Some(Launched {
                id: launch.id.0,
                epoch: grant.epoch.0,
                claim: grant.claim.0,
                at_ms: boot_ms(),
                key: grant.key,
                oom_kills: self.oom_kills_before,
                payload: payload.clone(),
                files: files.collect(),
            }));
        }
        if let Some(launches) = &self.shared.launches {
            // What can't be written down must not be run: nobody would know that it may have.
            launches.add(grant.claim).map_err(|error| slot_fault(&error))?;
        }
        self.send_launch(launch, lent).await.map_err(|error| slot_fault(&error))
    }

    /// Everything the shim has to be told, and the descriptors that go with it.
    fn compose(&mut self, payload: &Payload) -> Result<(Launch, Lent), Fault> {
        let image = self.shared.images.stored(payload)?;
        let mut lent: Lent = Vec::new();
        let roles = [(FdRole::Stdout, "stdout"), (FdRole::Stderr, "stderr")];
        for ((role, name), stream) in roles.into_iter().zip(self.streams.iter_mut().flatten()) {
            let path = log_path(payload, name);
            let writer = stream.begin(path.clone()).map_err(|error| {
                Fault::new(FaultClass::Pilot, format!("begin log {}: {error}", path.display()))
            })?;
            lent.push((role, writer));
        }
        let mut links = Vec::new();
        for (input, open) in payload.inputs.iter().zip(std::mem::take(&mut self.inputs)) {
            let name = input.name.as_str().to_owned();
            match open {
                OpenInput::Link(target) => links.push(InputLink { name, target: target.into_bytes() }),
                OpenInput::Memory(fd) => lent.push((FdRole::StageIn(name), fd)),
            }
        }
        for (output, open) in payload.outputs.iter().zip(&self.outputs) {
            if let OpenOutput::Memory(writer) = open {
                let fd = writer.lend().try_clone_to_owned().map_err(|error| slot_fault(&error))?;
                lent.push((FdRole::StageOut(output.name.as_str().to_owned()), fd));
            }
        }
        let (argv, mut env, cwd) = invocation(payload, &image);
        if !env.iter().any(|variable| variable.starts_with("HOSTNAME=")) {
            env.push(format!("HOSTNAME={}", hostname(self.slot)));
        }
        let bytes = |strings: Vec<String>| strings.into_iter().map(String::into_bytes).collect();
        let mut rlimits = vec![Rlimit::Core(0)];
        if !self.memory_is_enforced() {
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
        Ok((launch, lent))
    }

    /// Sends a launch, what doesn't fit in its frame in frames before it.
    async fn send_launch(&self, mut launch: Launch, mut lent: Lent) -> Result<(), SlotError> {
        let connection = self.connection.as_ref().ok_or(SlotError::Gone)?;
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

    /// Hears everything until the payload is gone.
    async fn follow(
        &mut self,
        payload: &Payload,
        words: &mut mpsc::Receiver<Word>,
        mut started: bool,
    ) -> Result<Ended, LaunchFault> {
        let mut cause = None;
        let mut note = None;
        let mut companions = Companions::default();
        let mut give_up: Option<Instant> = (!started).then(|| Instant::now() + SHIM_WAIT);
        let mut disk = tokio::time::interval_at(Instant::now() + DISK_LOOK, DISK_LOOK);
        disk.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let (Some(connection), Some([out, err])) = (&self.connection, &mut self.streams) else {
                return Err(LaunchFault::SlotLost(Fault::new(
                    FaultClass::Slot,
                    "the slot has no connection",
                )));
            };
            tokio::select! {
                // The shim's own words come first: they say more than its end.
                biased;
                message = connection.receive() => match message {
                    Ok(Some(FromShim::Launched { pid, .. })) => {
                        tracing::debug!(payload = %payload.name, pid, "launched");
                        (started, give_up) = (true, None);
                    }
                    Ok(Some(FromShim::LaunchRefused { refusal, .. })) => return refused(&refusal),
                    Ok(Some(FromShim::Exited(report))) => return Ok(self.exited(&report, cause, note)),
                    Ok(Some(FromShim::HolderLost)) => {
                        note = Some("it killed the stage holder of its slot".to_owned());
                    }
                    Ok(Some(FromShim::ExecEnded { id, status })) => companions.ended(id, status),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return Err(self.lost(started).await),
                },
                Some(word) = words.recv() => {
                    if pass_on(word, connection, &mut companions).await {
                        give_up = Some(Instant::now() + KILL_WAIT);
                    }
                }
                signal = companions.next_signal() => {
                    let _ = connection.send(&signal, &[]).await;
                }
                pumped = out.pump() => unreadable(pumped)?,
                pumped = err.pump() => unreadable(pumped)?,
                _ = disk.tick(), if cause.is_none() => {
                    if !self.peak_is_own {
                        self.peak_seen = self.peak_seen.max(memory_in_use(self.cgroup.as_ref()));
                    }
                    if written(&self.folders).await > disk_limit(payload) {
                        cause = Some(StopCause::DiskExceeded);
                        give_up = Some(Instant::now() + KILL_WAIT);
                        let _ = connection.send(&ToShim::Stop { grace_ms: 0 }, &[]).await;
                    }
                }
                () = at(give_up) => {
                    let what = if started { "carry out a KILL" } else { "launch" };
                    return Err(LaunchFault::SlotLost(Fault::new(FaultClass::Slot, format!("the shim did not {what} in time"))));
                }
                () = died(self.ended.as_ref()) => return Err(self.lost(started).await),
            }
        }
    }

    fn exited(&mut self, report: &ExitReport, cause: Option<StopCause>, note: Option<String>) -> Ended {
        let status = match report.status {
            WaitStatus::Exited(code) => ExitStatus::Code(code),
            WaitStatus::Signaled { signal, core } => ExitStatus::Signal { signal, core },
        };
        // Without a cgroup of our own the shim may have read that of the whole machine.
        let figures = report.cgroup.filter(|_| self.has_cgroup()).unwrap_or_default();
        let kills = match figures.oom_kills {
            Some(kills) => {
                self.oom_kills_seen = kills;
                Some(kills.saturating_sub(self.oom_kills_before))
            }
            None => self.oom_kills(),
        };
        self.usage.wall_us = report.usage.wall_us;
        self.usage.user_us = report.usage.user_us;
        self.usage.system_us = report.usage.system_us;
        self.usage.max_rss_kib = report.usage.max_rss_kib;
        self.take_peak(figures);
        self.usage.oom_kills = kills;
        self.usage.leftover_processes = report.leftover_processes;
        let failed = !status.is_success();
        let out_of_memory = failed && kills.is_some_and(|kills| kills > 0);
        let cause = cause.or(out_of_memory.then_some(StopCause::MemoryExceeded));
        let outlived = (report.leftover_processes > 0)
            .then(|| format!("{} processes outlived the payload and were killed", report.leftover_processes));
        Ended { exit: Exit { status, cause }, note: note.or(outlived) }
    }

    /// The connection or PID 1 is gone. On cgroup v2 that is how running out of memory looks: the kernel ends the whole
    /// slot at once (memory.oom.group).
    async fn lost(&mut self, started: bool) -> LaunchFault {
        let _ = tokio::time::timeout(SHIM_WAIT, died(self.ended.as_ref())).await;
        let kills = self.oom_kills();
        self.usage.oom_kills = kills;
        self.take_peak(CgroupFigures::default());
        if started && kills.is_some_and(|kills| kills > 0) {
            return LaunchFault::OutOfMemory(Exit {
                status: ExitStatus::Signal { signal: SIGKILL, core: false },
                cause: Some(StopCause::MemoryExceeded),
            });
        }
        LaunchFault::SlotLost(self.shim_died())
    }

    /// The most memory that the payload used: the kernel's own figure where it is this payload's, else what was seen.
    fn take_peak(&mut self, reported: CgroupFigures) {
        // On v2 what is begun anew is begun anew for our own handle only (see `oci_runner::cgroup`).
        let told = self.launches == 1 || reported.version == 1;
        if self.peak_is_own && told && reported.memory_peak_bytes.is_some() {
            self.usage.memory_peak_bytes = reported.memory_peak_bytes;
            return;
        }
        let figures = self.cgroup.as_ref().map(Cgroup::figures).unwrap_or_default();
        if self.peak_is_own {
            self.usage.memory_peak_bytes = figures.memory_peak_bytes;
            return;
        }
        self.peak_seen = self.peak_seen.max(figures.memory_bytes.unwrap_or(0));
        self.usage.memory_peak_bytes = (self.peak_seen > 0).then_some(self.peak_seen);
        self.usage.memory_peak_sampled = self.usage.memory_peak_bytes.is_some();
    }
}

fn unreadable(pumped: std::io::Result<()>) -> Result<(), LaunchFault> {
    pumped.map_err(|error| {
        LaunchFault::SlotLost(Fault::new(FaultClass::Slot, format!("read the payload's output: {error}")))
    })
}

/// What a container is called from inside. It may outlive the payload, so it has the slot's name.
pub(super) fn hostname(slot: SlotId) -> String {
    format!("slot-{}", slot.0)
}

/// Where a stream of a payload is kept.
pub(super) fn log_path(payload: &Payload, stream: &str) -> std::path::PathBuf {
    payload.logs.join(format!("{}.{stream}", payload.name))
}

/// Passes a word on to the shim; says whether it was to kill.
async fn pass_on(word: Word, connection: &Connection, companions: &mut Companions) -> bool {
    let (grace_ms, kills) = match word {
        Word::Signal(Signal::Term { grace_ms }) => {
            (u32::try_from(grace_ms).unwrap_or(u32::MAX).min(wire::slot::GRACE_MS_MAX), false)
        }
        Word::Signal(Signal::Kill) => (0, true),
        Word::Exec(request) => {
            companions.start(connection, *request).await;
            return false;
        }
    };
    if let Err(error) = connection.send(&ToShim::Stop { grace_ms }, &[]).await {
        tracing::debug!(%error, "the shim can't be told to stop");
    }
    kills
}

fn memory_in_use(cgroup: Option<&Cgroup>) -> u64 {
    cgroup.and_then(|cgroup| cgroup.figures().memory_bytes).unwrap_or(0)
}

/// Bytes that the payload has on disk.
async fn written(folders: &SlotFolders) -> u64 {
    let written = folders.written().map(Path::to_path_buf);
    let look = move || written.iter().map(|folder| bytes_below(folder)).sum::<u64>();
    tokio::task::spawn_blocking(look).await.unwrap_or(0)
}

/// Outputs have their own limits; everything else that a payload writes on disk shares one.
fn disk_limit(payload: &Payload) -> u64 {
    let outputs = payload.outputs.iter().filter(|output| output.class == StageClass::File);
    outputs.fold(payload.resources.disk_bytes, |sum, output| sum.saturating_add(output.max_bytes))
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// A program that can't be run ends like one that a shell can't run; anything else is the slot's fault.
fn refused(refusal: &LaunchRefusal) -> Result<Ended, LaunchFault> {
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
pub(super) fn invocation(payload: &Payload, image: &Stored) -> (Vec<String>, Vec<String>, String) {
    let config = &image.config;
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
