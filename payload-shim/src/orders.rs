//! What each word of the pilot does.
//!
//! **Must not know:** the line it came over; how payloads end.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use wire::slot::{Exec, FdRole, FromShim, Launch, LaunchId, LaunchRefusal, STAGES_MAX, ToShim, Usage};

use crate::clock::now_us;
use crate::failure::Failure;
use crate::holder::Holder;
use crate::launch::{self, Started};
use crate::reveal::reveal;
use crate::shim::{Companion, Exit, Payload, Phase, Shim};
use crate::stages::FOLDER_OUT;
use crate::{stages, sys};

/// Most helpers at a time. More get `EAGAIN`.
const COMPANIONS_MAX: usize = 32;
/// Stands for the id of a launch that could not be read.
const UNREAD: LaunchId = LaunchId([0; 16]);

impl Shim {
    pub(crate) fn obey(&mut self, order: ToShim, fds: Vec<OwnedFd>, now_ms: u64) {
        match order {
            // The line has dealt with it.
            ToShim::Welcome { .. } => {}
            ToShim::Lend { fds: roles } => self.lend(roles, fds),
            ToShim::Launch(launch) => self.launch(launch, fds),
            ToShim::LaunchInMemory { bytes, fds: roles } => self.launch_in_memory(bytes, roles, fds),
            ToShim::Signal { signal } => self.signal(signal),
            ToShim::Stop { grace_ms } => self.stop(u64::from(grace_ms), now_ms),
            ToShim::Exec(exec) => self.exec(exec, fds),
            ToShim::Clean => {
                self.clean_wanted = true;
                // What is lent from here on is for the next payload.
                self.forget_lent();
                self.stop_now();
            }
            ToShim::Retire => self.leave(Exit::Retired, now_ms),
            ToShim::SignalExec { id, signal } => self.signal_companion(id, signal),
            ToShim::Retain { launch, outputs } => self.retained.keep(launch, outputs, fds),
            ToShim::Forget { launch, outputs } => self.retained.forget(launch, &outputs),
            ToShim::Inherit { inputs } => self.inherit(inputs),
            ToShim::Collect => self.link.send_all(&self.retained.all()),
            ToShim::Reveal { outputs } => {
                // While something runs, what is looked at could be moved; then who asks finds it as it is.
                if !matches!(self.phase, Phase::Busy(_)) && self.companions.is_empty() {
                    reveal(FOLDER_OUT, &outputs);
                }
                self.link.tell(FromShim::Revealed);
            }
        }
    }

    fn lend(&mut self, roles: Vec<FdRole>, fds: Vec<OwnedFd>) {
        if matches!(self.phase, Phase::Idle) && !self.clean_wanted && self.holder.is_none() {
            // It will be needed: it starts while the rest arrives. The launch tries again, and says why not.
            self.holder = Holder::start(self.is_alone()).ok();
        }
        match pair(roles, fds) {
            Ok(pairs) if self.lent.len() + pairs.len() <= STAGES_MAX + 3 => self.lent.extend(pairs),
            Ok(_) => self.lend_objection = Some(format!("more than {STAGES_MAX} stages were lent")),
            Err(objection) => self.lend_objection = Some(objection),
        }
    }

    fn inherit(&mut self, inputs: Vec<String>) {
        if self.inherited.len() + inputs.len() <= STAGES_MAX {
            self.inherited.extend(inputs);
        } else {
            self.lend_objection = Some(format!("more than {STAGES_MAX} inputs are to be inherited"));
        }
    }

    fn launch_in_memory(&mut self, bytes: u32, mut roles: Vec<FdRole>, mut fds: Vec<OwnedFd>) {
        if fds.is_empty() || roles.is_empty() {
            return self
                .refuse(UNREAD, LaunchRefusal::BadRequest("no descriptor came with the launch".into()));
        }
        let memory = fds.remove(0);
        roles.remove(0);
        match wire::read_launch_memory(std::os::fd::AsFd::as_fd(&memory), bytes) {
            Ok(mut launch) => {
                drop(memory);
                // The frame's roles and the launch's own name the same descriptors; a sender fills either.
                if launch.fds.is_empty() {
                    launch.fds = roles;
                } else if !roles.is_empty() && launch.fds != roles {
                    let text = "the roles in the frame and in the launch differ";
                    return self.refuse(launch.id, LaunchRefusal::BadRequest(text.into()));
                }
                self.memory_grew = true;
                self.launch(launch, fds);
                sys::trim_heap();
            }
            Err(error) => self.refuse(UNREAD, LaunchRefusal::BadRequest(error.to_string())),
        }
    }

    /// Closes what was lent for a launch that does not come.
    pub(crate) fn forget_lent(&mut self) {
        self.lent.clear();
        self.lend_objection = None;
        self.inherited.clear();
    }

    fn refuse(&mut self, launch: LaunchId, refusal: LaunchRefusal) {
        self.forget_lent();
        self.link.tell(FromShim::LaunchRefused { launch, refusal });
    }

    /// Everything that is lent belongs to this launch, whatever becomes of it.
    fn launch(&mut self, launch: Launch, fds: Vec<OwnedFd>) {
        let id = launch.id;
        if !matches!(self.phase, Phase::Idle) || self.clean_wanted || self.leaving.is_some() {
            return self.refuse(id, LaunchRefusal::Busy);
        }
        if self.is_unclean {
            return self.refuse(id, Failure::at("clean")(Errno::UCLEAN).into());
        }
        let mut given = std::mem::take(&mut self.lent);
        let inherited = std::mem::take(&mut self.inherited);
        let objection = self.lend_objection.take().or_else(|| launch::objection(&launch));
        let sorted = match (objection, pair(launch.fds.clone(), fds)) {
            (Some(objection), _) | (None, Err(objection)) => Err(objection),
            (None, Ok(pairs)) => {
                given.extend(pairs);
                stages::sort(given, &launch.links)
            }
        };
        let mut sorted = match sorted {
            Ok(sorted) => sorted,
            Err(objection) => return self.refuse(id, LaunchRefusal::BadRequest(objection)),
        };
        let mut links = Vec::new();
        match self.try_launch(launch, &mut sorted, &inherited, &mut links) {
            Ok(Started { pid, exec }) => {
                self.kept = launch::lossy(sorted.stdio);
                self.retained.begin(id, sorted.stages);
                self.phase = Phase::Busy(Box::new(Payload {
                    id,
                    pid,
                    exec: Some(exec),
                    began_us: now_us(),
                    status: None,
                    usage: Usage::default(),
                    stopped: false,
                    kill_at_ms: None,
                    links,
                }));
            }
            Err(failure) => {
                self.undo(&links);
                if links.is_empty() && !sorted.stages.is_empty() {
                    // It may hold some of them, or answer late.
                    self.end_holder();
                }
                let ran = Failure::at("marker")(Errno::EXIST);
                let refusal = if failure == ran { LaunchRefusal::AlreadyRun } else { failure.into() };
                self.refuse(id, refusal);
            }
        }
    }

    fn try_launch(
        &mut self,
        launch: Launch,
        sorted: &mut stages::Sorted,
        inherited: &[String],
        links: &mut Vec<stages::Link>,
    ) -> Result<Started, Failure> {
        // Without it the payload's processes can't be found, so they could not be ended either.
        self.processes.check().map_err(Failure::at("proc"))?;
        launch::fill(&mut sorted.stdio)?;
        self.ran.add(self.link.control(), launch.id)?;
        let alone = self.is_alone();
        self.holder_used = !sorted.stages.is_empty();
        *links = launch::links(&launch, &sorted.stages, &mut self.holder, alone)?;
        stages::make_links(links)?;
        sorted.files = stages::open_files(&launch.links, inherited)?;
        launch::start(launch, sorted, alone)
    }

    /// Whether a child can be started on our own memory while we stand still. Nobody may be there who could stop it on
    /// its way: nobody is between Clean and a launch, unless a helper was asked for. And what a program uses at most is
    /// counted from the peak of the memory that it came from, so ours must not have been large.
    pub(crate) fn is_alone(&self) -> bool {
        self.processes.is_init() && !self.helped && !self.memory_grew
    }

    /// Takes back what a launch that failed has made. Only links that are ours can be there: an alien of that name
    /// was the failure.
    pub(crate) fn undo(&mut self, links: &[stages::Link]) {
        if !links.is_empty() {
            stages::remove_links(links);
            self.end_holder();
        }
    }

    /// The next one holds nothing, whatever was done to this one.
    pub(crate) fn end_holder(&mut self) {
        if let Some(holder) = self.holder.take() {
            holder.end();
        }
    }

    fn signal(&mut self, signal: i32) {
        if let Phase::Busy(payload) = &self.phase
            && payload.status.is_none()
        {
            // Not reaped, so the PID is its own. EPERM can't be: same uid, no privileges gained.
            let _ = sys::kill(Some(payload.pid), signal);
        }
    }

    fn signal_companion(&self, id: u32, signal: i32) {
        if let Some(companion) = self.companions.iter().find(|companion| companion.id == id) {
            // On the list until it is reaped, so the PID is its own.
            let _ = sys::kill(Some(companion.pid), signal);
        }
    }

    /// A second Stop only shortens the time that is left.
    fn stop(&mut self, grace_ms: u64, now_ms: u64) {
        let Phase::Busy(payload) = &mut self.phase else { return };
        let first = !std::mem::replace(&mut payload.stopped, true);
        let at = now_ms + grace_ms;
        payload.kill_at_ms = Some(payload.kill_at_ms.map_or(at, |earlier| earlier.min(at)));
        if first && payload.status.is_none() {
            let holder = self.holder.as_ref().map(Holder::pid);
            for process in self.processes.list(holder).unwrap_or_default() {
                // It may have gone meanwhile.
                let _ = sys::kill(Some(process.pid), libc::SIGTERM);
            }
        }
    }

    /// Clean before the end: the pilot is not interested any more.
    fn stop_now(&mut self) {
        if let Phase::Busy(payload) = &mut self.phase {
            payload.stopped = true;
            payload.kill_at_ms = Some(0);
        }
    }

    fn exec(&mut self, exec: Exec, fds: Vec<OwnedFd>) {
        let id = exec.id;
        let ending = match &self.phase {
            Phase::Busy(payload) => payload.status.is_some() || payload.kill_at_ms == Some(0),
            Phase::Idle | Phase::Ended(_) => false,
        };
        let started = if ending || self.sweep.is_some() || self.clean_wanted || self.leaving.is_some() {
            Err(Errno::BUSY.raw_os_error())
        } else if self.companions.len() >= COMPANIONS_MAX {
            Err(Errno::AGAIN.raw_os_error())
        } else {
            start_companion(exec, fds)
        };
        match started {
            Ok(Started { pid, exec }) => {
                self.helped = true;
                self.companions.push(Companion { id, pid, exec });
            }
            Err(errno) => self.link.tell(FromShim::ExecEnded { id, status: Err(errno) }),
        }
    }
}

fn start_companion(exec: Exec, fds: Vec<OwnedFd>) -> Result<Started, i32> {
    let invalid = |_| Errno::INVAL.raw_os_error();
    let given = pair(exec.fds.clone(), fds).map_err(invalid)?;
    let mut sorted = stages::sort(given, &[]).map_err(invalid)?;
    if !sorted.stages.is_empty() || !exec.cwd.starts_with(b"/") {
        return Err(Errno::INVAL.raw_os_error());
    }
    launch::fill(&mut sorted.stdio).map_err(|failure| failure.errno)?;
    launch::start_helper(exec, &sorted).map_err(|failure| failure.errno)
}

fn pair(roles: Vec<FdRole>, fds: Vec<OwnedFd>) -> Result<Vec<(FdRole, OwnedFd)>, String> {
    if roles.len() == fds.len() {
        Ok(roles.into_iter().zip(fds).collect())
    } else {
        Err(format!("{} descriptors for {} roles", fds.len(), roles.len()))
    }
}
