//! Launching a payload in a bound slot, and what its end amounts to: status, figures, the limit that ended it.
//!
//! **Must not know:** why a signal is sent, what happens to the outputs.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_runner::cgroup::Cgroup;
use pilot_core::{Exit, ExitStatus, Fault, FaultClass, StopCause, Usage};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use wire::slot::{CgroupFigures, ExitReport};

use super::folders::SlotFolders;
use super::live::{Live, died};
use crate::payload::Payload;
use crate::ports::{Ended, Grant, LaunchFault};
use crate::runtime::exec::Word;
use crate::runtime::following::{Followed, Ground, SHIM_WAIT, follow, outlived, status};
use crate::runtime::growth::Growth;
use crate::runtime::launching::{
    LastLaunch, Left, Parts, compose, judge_inherited, refused, send_launch, slot_fault,
};
use crate::runtime::record::Launched;
use crate::runtime::slots::SlotError;
use crate::runtime::stage_clients::ClientSession;

const SIGKILL: i32 = 9;

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
                let ended = self.exited(&report, None, None);
                return judge_inherited(self.launched, Ok(ended), self.left(payload));
            }
            Some(None) => true,
            None => {
                self.begin_launch(grant, payload).await.map_err(LaunchFault::NotStarted)?;
                false
            }
        };
        self.runs = true;
        let ended = self.follow(payload, &mut words, started).await;
        let ended = judge_inherited(self.launched, ended, self.left(payload));
        // A lost slot is not known to be empty.
        self.runs = matches!(ended, Err(LaunchFault::SlotLost(_)));
        if ended.is_ok() && payload.outputs.is_empty() {
            // Nothing has to be kept before: the shim cleans while the pilot does its part.
            self.begin_clean().await;
        }
        ended
    }

    fn left<'a>(&'a self, payload: &'a Payload) -> Left<'a> {
        Left { payload, outputs: &self.outputs, out: &self.folders.out }
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
        self.limit_memory(payload.memory_bytes())?;
        self.may_owe_memory |= payload.output_memory_bytes() > 0;
        let foreign = self.shared.foreign_uid;
        self.holds_files = !payload.inputs.is_empty() || !payload.outputs.is_empty();
        if self.holds_files {
            self.outputs = self.shared.stages.open_outputs(payload, &self.folders.out, foreign).await?;
            self.shared.stages.meet(payload).await?;
            self.shared.stages.bring_shared(payload).await?;
            let host = |index, _: &_, _: &_| Ok(super::container::host_input(index));
            let folder = &self.folders.inputs;
            self.session = ClientSession::open(&self.shared.stages, payload, folder)?;
            let holder = self.session.as_ref().map(ClientSession::id);
            self.inputs = self.shared.stages.open_inputs(payload, folder, holder, host)?;
        }
        let image = self.shared.images.stored(payload)?;
        let parts = Parts {
            slot: self.slot,
            image: &image.config,
            inputs: std::mem::take(&mut self.inputs),
            outputs: &self.outputs,
            has_broker: self.session.is_some(),
            memory_is_enforced: self.memory_is_enforced(),
            streams: self.streams.as_mut(),
        };
        let (launch, lent) = compose(payload, parts)?;
        self.launched = Some(LastLaunch { id: launch.id, inherited: false });
        if self.shared.folders.serves() {
            // That of the payload before.
            let _ = std::fs::remove_file(&self.folders.keeping);
            let kills = self.oom_kills_before;
            self.write_record(Some(Launched::new(launch.id, grant.clone(), payload, &self.outputs, kills)));
        }
        if let Some(launches) = &self.shared.launches {
            // What can't be written down must not be run: nobody would know that it may have.
            launches.add(grant.claim).map_err(|error| slot_fault(&error))?;
        }
        let connection = self.connection.as_ref().ok_or_else(|| slot_fault(&SlotError::Gone))?;
        send_launch(connection, launch, lent).await.map_err(|error| slot_fault(&error))
    }

    /// Follows it until it is gone, and says how it ended.
    async fn follow(
        &mut self,
        payload: &Payload,
        words: &mut mpsc::Receiver<Word>,
        started: bool,
    ) -> Result<Ended, LaunchFault> {
        let (Some(connection), Some(streams)) = (&self.connection, &mut self.streams) else {
            let fault = Fault::new(FaultClass::Slot, "the slot has no connection");
            return Err(LaunchFault::SlotLost(fault));
        };
        let mut ground = Container {
            folders: &self.folders,
            cgroup: self.cgroup.as_ref(),
            ended: self.ended.as_ref(),
            peak_seen: (!self.peak_is_own).then_some(&mut self.peak_seen),
        };
        let growth = Growth::of(payload, &self.outputs, &self.folders.out);
        match follow(connection, streams, &mut ground, (payload, &growth), words, started).await {
            Followed::Exited { report, cause, note } => Ok(self.exited(&report, cause, note)),
            Followed::Refused(refusal) => refused(&refusal),
            Followed::Lost { started } => Err(self.lost(started).await),
            Followed::Stuck(fault) => Err(LaunchFault::SlotLost(fault)),
        }
    }

    fn exited(&mut self, report: &ExitReport, cause: Option<StopCause>, note: Option<String>) -> Ended {
        let status = status(report);
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
        Ended { exit: Exit { status, cause }, note: note.or_else(|| outlived(report)) }
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

/// What the loop that follows a payload knows of its container.
struct Container<'a> {
    folders: &'a SlotFolders,
    cgroup: Option<&'a Cgroup>,
    ended: Option<&'a AsyncFd<OwnedFd>>,
    /// Where the most memory seen is kept, when the kernel's own peak is not this payload's.
    peak_seen: Option<&'a mut u64>,
}

impl Ground for Container<'_> {
    fn look(&mut self) {
        if let Some(seen) = &mut self.peak_seen {
            let now = self.cgroup.and_then(|cgroup| cgroup.figures().memory_bytes).unwrap_or(0);
            **seen = now.max(**seen);
        }
    }

    fn written(&self) -> Vec<PathBuf> {
        self.folders.written().map(Path::to_path_buf).to_vec()
    }

    async fn died(&self) {
        died(self.ended).await;
    }
}
