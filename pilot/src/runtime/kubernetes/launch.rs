//! Launching a payload in a bound slot, and what its end amounts to.
//!
//! **Must not know:** why a signal is sent, what happens to the outputs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pilot_core::{Exit, ExitStatus, Fault, FaultClass, StopCause, Usage};
use stage::StageName;
use tokio::sync::mpsc;
use wire::slot::ExitReport;

use super::inputs::show;
use super::live::{Live, Stands};
use super::{folders::SlotFolders, view};
use crate::payload::Payload;
use crate::ports::{Ended, Grant, LaunchFault};
use crate::runtime::exec::Word;
use crate::runtime::following::{Followed, Ground, follow, outlived, status};
use crate::runtime::growth::Growth;
use crate::runtime::launching::{
    LastLaunch, Left, Parts, compose, judge_inherited, refused, send_launch, slot_fault,
};
use crate::runtime::record::Launched;
use crate::runtime::slots::SlotError;
use crate::runtime::stage_clients::ClientSession;
use crate::runtime::stages::FILE_INPUTS;

/// When the API is asked how a container ended that answers no more: the kubelet tells within a second or two.
const LOOKS: [Duration; 5] = [
    Duration::from_millis(300),
    Duration::from_millis(700),
    Duration::from_millis(1500),
    Duration::from_millis(2500),
    Duration::from_millis(4000),
];
const SIGKILL: i32 = 9;
/// A shim that is replaced while it is idle ends so, and no other does.
const REPLACED: i32 = 143;

impl Live {
    /// See [`crate::ports::Runtime::launch`].
    pub(super) async fn launch(
        &mut self,
        grant: Grant,
        payload: &Payload,
        mut words: mpsc::Receiver<Word>,
    ) -> Result<Ended, LaunchFault> {
        if self.stands != Stands::Bound {
            let text = format!("{} is not bound", self.slot);
            return Err(LaunchFault::SlotLost(Fault::new(FaultClass::Slot, text)));
        }
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
                self.make_room(grant.epoch, payload).await.map_err(LaunchFault::NotStarted)?;
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
        self.reusable = self.may_stay();
        self.usage = Usage::default();
        (self.oom_kills_before, self.peak_before) = self.last_figures;
        let image = self.shared.images.chosen(payload)?;
        if !payload.outputs.is_empty() || !payload.gang.is_empty() {
            self.outputs = self.shared.stages.open_outputs(payload, &self.folders.out, true).await?;
            self.shared.stages.meet(payload).await?;
        }
        self.shared.stages.bring_shared(payload).await?;
        let folder = &self.folders.inputs;
        self.session = ClientSession::open(&self.shared.stages, payload, folder)?;
        if !payload.inputs.is_empty() {
            let holder = self.session.as_ref().map(ClientSession::id);
            let host = |_, name: &StageName, path: &Path| shown(path, folder, name);
            self.inputs = self.shared.stages.open_inputs(payload, folder, holder, host)?;
        }
        let memory_is_enforced = self.memory_is_enforced(payload);
        let parts = Parts {
            slot: self.slot,
            image: &image.config,
            inputs: std::mem::take(&mut self.inputs),
            outputs: &self.outputs,
            has_broker: self.session.is_some(),
            memory_is_enforced,
            streams: self.streams.as_mut(),
        };
        let (launch, lent) = compose(payload, parts)?;
        self.launched = Some(LastLaunch { id: launch.id, inherited: false });
        if self.shared.serves {
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
            return Err(LaunchFault::SlotLost(slot_fault(&SlotError::Gone)));
        };
        let mut ground = Mounted { folders: &self.folders };
        let growth = Growth::of(payload, &self.outputs, &self.folders.out);
        match follow(connection, streams, &mut ground, (payload, &growth), words, started).await {
            Followed::Exited { report, cause, note } => Ok(self.exited(&report, cause, note)),
            Followed::Refused(refusal) => refused(&refusal),
            Followed::Lost { started } => Err(self.lost(started).await),
            Followed::Stuck(fault) => {
                (self.stands, self.connection) = (Stands::Broken { gone: false }, None);
                Err(LaunchFault::SlotLost(fault))
            }
        }
    }

    fn exited(&mut self, report: &ExitReport, cause: Option<StopCause>, note: Option<String>) -> Ended {
        let status = status(report);
        let figures = report.cgroup.unwrap_or_default();
        let kills = figures.oom_kills.map(|kills| kills.saturating_sub(self.oom_kills_before));
        let peak = figures.memory_peak_bytes.unwrap_or(0);
        self.last_figures = (figures.oom_kills.unwrap_or(0), peak);
        self.usage = Usage {
            wall_us: report.usage.wall_us,
            user_us: report.usage.user_us,
            system_us: report.usage.system_us,
            max_rss_kib: report.usage.max_rss_kib,
            // The peak is the container's. One that was not reached before is this payload's.
            memory_peak_bytes: (peak > self.peak_before).then_some(peak),
            oom_kills: kills,
            leftover_processes: report.leftover_processes,
            ..Usage::default()
        };
        let out_of_memory = !status.is_success() && kills.is_some_and(|kills| kills > 0);
        let cause = cause.or(out_of_memory.then_some(StopCause::MemoryExceeded));
        Ended { exit: Exit { status, cause }, note: note.or_else(|| outlived(report)) }
    }

    /// The connection is gone, and with it PID 1: on cgroup v2 that is how running out of memory looks, because the kubelet
    /// lets the kernel end a container as a whole. The API is asked how the container ended.
    async fn lost(&mut self, started: bool) -> LaunchFault {
        (self.stands, self.connection) = (Stands::Broken { gone: true }, None);
        let mut words = "the API server has not said how".to_owned();
        for pause in LOOKS {
            tokio::time::sleep(pause).await;
            let Ok(pod) = self.shared.pod.look().await else { continue };
            let Some(ended) = view::ended(&pod, &self.shape.name, &self.before) else { continue };
            if ended.exit_code == REPLACED {
                // The API is late: it speaks of a container before this one that it had not told of when this one was bound.
                continue;
            }
            if started && view::out_of_memory(ended) {
                self.usage.oom_kills = Some(1);
                return LaunchFault::OutOfMemory(Exit {
                    status: ExitStatus::Signal { signal: SIGKILL, core: false },
                    cause: Some(StopCause::MemoryExceeded),
                });
            }
            words = view::end_words(ended);
            break;
        }
        let text = format!("the slot's container ended under its payload ({words})");
        LaunchFault::SlotLost(Fault::new(FaultClass::Slot, text))
    }
}

fn shown(path: &Path, folder: &Path, name: &StageName) -> Result<String, Fault> {
    show(path, &folder.join(name.as_str())).map_err(|error| {
        Fault::new(FaultClass::Payload, format!("show input \"{name}\" from {}: {error}", path.display()))
    })?;
    Ok(format!("{FILE_INPUTS}/{name}"))
}

/// What the loop that follows a payload knows of a container whose processes it can't see.
struct Mounted<'a> {
    folders: &'a SlotFolders,
}

impl Ground for Mounted<'_> {
    fn look(&mut self) {}

    fn written(&self) -> Vec<PathBuf> {
        vec![self.folders.work.clone(), self.folders.out.clone(), self.folders.markers()]
    }

    async fn died(&self) {
        // Its socket closes.
        std::future::pending().await
    }
}
