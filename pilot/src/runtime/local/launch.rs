//! Launching a payload in a bound slot and waiting until nothing of it runs.
//!
//! One loop hears everything that can happen meanwhile: the shim's messages, signals from the driver, the work folder
//! growing too large, a KILL that the shim does not carry out, and the end of PID 1 itself.
//!
//! **Must not know:** why a signal is sent, what happens to the outputs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use pilot_core::{Exit, ExitStatus, Fault, FaultClass, Signal, StopCause};
use tokio::sync::mpsc;
use tokio::time::Instant;
use wire::slot::{
    ExitReport, FdRole, FromShim, InputLink, Launch, LaunchId, LaunchRefusal, Rlimit, ToShim, WaitStatus,
};

use super::images::Stored;
use super::live::{Live, SHIM_WAIT, died};
use super::slot_fault;
use super::stages::{OpenInput, OpenOutput};
use super::usage::bytes_below;
use crate::payload::{Payload, StageClass};
use crate::ports::{Ended, LaunchFault};
use crate::runtime::logs::log_pipe;
use crate::runtime::slots::SlotError;

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
        payload: &Payload,
        mut signals: mpsc::Receiver<Signal>,
    ) -> Result<Ended, LaunchFault> {
        let (launch, lent) = self.compose(payload).map_err(LaunchFault::NotStarted)?;
        self.send_launch(launch, lent).await.map_err(|error| LaunchFault::NotStarted(slot_fault(&error)))?;
        self.runs = true;
        let ended = self.follow(payload, &mut signals).await;
        // A lost slot is not known to be empty.
        self.runs = matches!(ended, Err(LaunchFault::SlotLost(_)));
        ended
    }

    /// Everything the shim has to be told, and the descriptors that go with it.
    fn compose(&mut self, payload: &Payload) -> Result<(Launch, Lent), Fault> {
        let image = self.shared.images.stored(&payload.image)?;
        let mut lent: Lent = Vec::new();
        for (role, stream) in [(FdRole::Stdout, "stdout"), (FdRole::Stderr, "stderr")] {
            let path = self.shared.logs.join(format!("{}.{stream}", payload.name));
            let pipe = log_pipe(&path, self.shared.log_limit).map_err(|error| {
                Fault::new(FaultClass::Pilot, format!("open log {}: {error}", path.display()))
            })?;
            self.logs.spawn(pipe.copier.run());
            lent.push((role, pipe.writer));
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
        let (argv, env, cwd) = invocation(payload, &image);
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
        signals: &mut mpsc::Receiver<Signal>,
    ) -> Result<Ended, LaunchFault> {
        let mut cause = None;
        let mut note = None;
        let mut started = false;
        let mut give_up: Option<Instant> = Some(Instant::now() + SHIM_WAIT);
        let mut disk = tokio::time::interval_at(Instant::now() + DISK_LOOK, DISK_LOOK);
        disk.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let Some(connection) = &self.connection else {
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
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return Err(self.lost(started).await),
                },
                Some(signal) = signals.recv() => {
                    let grace_ms = match signal {
                        Signal::Term { grace_ms } => u32::try_from(grace_ms).unwrap_or(u32::MAX).min(wire::slot::GRACE_MS_MAX),
                        Signal::Kill => {
                            give_up = Some(Instant::now() + KILL_WAIT);
                            0
                        }
                    };
                    if let Err(error) = connection.send(&ToShim::Stop { grace_ms }, &[]).await {
                        tracing::debug!(%error, "the shim can't be told to stop");
                    }
                }
                _ = disk.tick(), if cause.is_none() => {
                    let written = self.folders.written().map(Path::to_path_buf);
                    let look = move || written.iter().map(|folder| bytes_below(folder)).sum::<u64>();
                    let used = tokio::task::spawn_blocking(look).await.unwrap_or(0);
                    if used > disk_limit(payload) {
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
        let kills = figures.oom_kills.or_else(|| self.oom_kills());
        self.usage.wall_us = report.usage.wall_us;
        self.usage.user_us = report.usage.user_us;
        self.usage.system_us = report.usage.system_us;
        self.usage.max_rss_kib = report.usage.max_rss_kib;
        self.usage.memory_peak_bytes = figures.memory_peak_bytes.or_else(|| self.memory_peak_bytes());
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
        self.usage.memory_peak_bytes = self.memory_peak_bytes();
        if started && kills.is_some_and(|kills| kills > 0) {
            return LaunchFault::OutOfMemory(Exit {
                status: ExitStatus::Signal { signal: SIGKILL, core: false },
                cause: Some(StopCause::MemoryExceeded),
            });
        }
        LaunchFault::SlotLost(self.shim_died())
    }
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
    let mut env = std::collections::BTreeMap::from([
        ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("HOSTNAME".to_owned(), payload.name.as_str().to_owned()),
    ]);
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
