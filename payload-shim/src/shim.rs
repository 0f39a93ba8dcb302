//! The loop of PID 1: wait for the first of signals, the pilot, the payload's exec and deadlines; act; again.
//!
//! ```text
//!           Launch                    first process ends,
//!   Idle ------------> Busy(payload)  all others killed    Ended(report)
//!    ^                      |-------------------------------->|
//!    '---- refused ---------'                                 |
//!    '------------------------- Clean ------------------------'
//! ```
//! `Busy` begins at the fork: `Launched` or `LaunchRefused` follows when it is known whether the program was executed: at
//! once where nobody else is in the slot, else when the child's pipe tells. From the end of the first process on, a [`Sweep`] kills the others, one pass a turn. The same sweep serves Clean and leaving.
//!
//! # Signals
//! All are blocked; SIGTERM and SIGCHLD are read. A SIGTERM from inside the slot is ignored: one from outside the PID
//! namespace has sender 0 *and* the code of kill(2), which sigqueue(3) can't give (rt_sigqueueinfo(2)). When this is not
//! PID 1 of a namespace nobody can tell in from out, and every SIGTERM counts. Idle, it means exit 143 at once. Else
//! the pilot's ladder decides, and the exit comes after Clean.
//!
//! **Must not know:** how a program is started, how a folder is cleaned, what goes over the line.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Pid;
use wire::slot::{ExitReport, FdRole, LaunchId, ShimState, Usage, WaitStatus};

use crate::cgroup::Cgroup;
use crate::clock::{now_us, span_ms};
use crate::holder::Holder;
use crate::launch::Execution;
use crate::link::{Heard, Link};
use crate::processes::{Processes, Sweep};
use crate::ran::Ran;
use crate::retained::Retained;
use crate::settings::Settings;
use crate::standing::Standing;
use crate::sys;

/// Exit code for a fault of our own.
pub const FAULT: u8 = 70;
/// How long a sweep waits for SIGCHLD before it looks again; processes may die without being our children.
const SWEEP_WAIT_MS: u64 = 5;
/// How long leaving waits for killed processes; one that hangs in the kernel must not keep us.
pub(crate) const LEAVE_MS_MAX: u64 = 5000;

/// Why the shim ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The pilot said Retire, or went away for good while nothing ran.
    Retired,
    /// SIGTERM while idle.
    Terminated,
    /// The pilot could not be reached, did not believe us, broke the protocol, or left a payload behind.
    Cut(&'static str),
    /// Our own fault.
    Fault(&'static str),
}

impl Exit {
    /// The process's exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Retired => 0,
            Self::Terminated => 143,
            Self::Cut(_) => 71,
            Self::Fault(_) => FAULT,
        }
    }

    /// One line for people, when there is something to say.
    #[must_use]
    pub fn why(self) -> Option<&'static str> {
        match self {
            Self::Retired | Self::Terminated => None,
            Self::Cut(why) | Self::Fault(why) => Some(why),
        }
    }
}

/// A payload from its fork to the end of its last process.
#[derive(Debug)]
pub(crate) struct Payload {
    pub(crate) id: LaunchId,
    pub(crate) pid: Pid,
    /// Until the exec is known to have happened.
    pub(crate) exec: Option<Execution>,
    pub(crate) began_us: u64,
    /// Once its first process has ended.
    pub(crate) status: Option<WaitStatus>,
    pub(crate) usage: Usage,
    pub(crate) stopped: bool,
    /// When everything gets its SIGKILL.
    pub(crate) kill_at_ms: Option<u64>,
    /// Undone when the exec fails.
    pub(crate) links: Vec<crate::stages::Link>,
}

#[derive(Debug)]
pub(crate) enum Phase {
    Idle,
    Busy(Box<Payload>),
    Ended(ExitReport),
}

/// A process beside the payload.
#[derive(Debug)]
pub(crate) struct Companion {
    pub(crate) id: u32,
    pub(crate) pid: Pid,
    pub(crate) exec: Execution,
}

/// Everything PID 1 has.
#[derive(Debug)]
pub struct Shim {
    pub(crate) signals: OwnedFd,
    pub(crate) link: Link,
    pub(crate) processes: Processes,
    pub(crate) cgroup: Cgroup,
    pub(crate) ran: Ran,
    pub(crate) retained: Retained,
    /// From the first stage that is lent to Clean; and a fresh one after it, when a payload with stages went before.
    pub(crate) holder: Option<Holder>,
    /// Whether the last launch had stages.
    pub(crate) holder_used: bool,
    pub(crate) phase: Phase,
    /// Output streams that stay open until Clean.
    pub(crate) kept: Vec<OwnedFd>,
    pub(crate) lent: Vec<(FdRole, OwnedFd)>,
    /// What was wrong with a Lend; there is no answer to it, so the launch it belongs to is refused.
    pub(crate) lend_objection: Option<String>,
    /// Inputs of the next launch that its payload inherits, though they are files.
    pub(crate) inherited: Vec<String>,
    pub(crate) companions: Vec<Companion>,
    /// Whether a companion was started since the last Clean; it may have left something behind.
    pub(crate) helped: bool,
    /// Whether a launch that is longer than a frame was ever read.
    pub(crate) memory_grew: bool,
    /// Whether the last Clean left something; no payload may meet that.
    pub(crate) is_unclean: bool,
    pub(crate) sweep: Option<Sweep>,
    pub(crate) clean_wanted: bool,
    /// SIGTERM came while it could not be obeyed.
    pub(crate) terminate: bool,
    pub(crate) leaving: Option<(Exit, u64)>,
    pub(crate) standing: Standing,
}

impl Shim {
    /// Opens what the loop needs.
    ///
    /// # Errors
    /// When the kernel refuses a descriptor, or there is no process table of our own.
    pub fn start(settings: Settings) -> Result<Self, StartError> {
        // What can't be had without keyrings need not be kept from payloads.
        let _ = sys::join_session_keyring();
        let signals = sys::signal_descriptor(&[libc::SIGTERM, libc::SIGCHLD]).map_err(StartError::Signals)?;
        let processes = Processes::open();
        processes.check().map_err(|errno| StartError::Processes(errno.into()))?;
        Ok(Self {
            signals,
            link: Link::new(settings.control, settings.nonce, now_us() / 1000),
            processes,
            cgroup: Cgroup::new(settings.cgroup),
            ran: Ran::default(),
            retained: Retained::default(),
            holder: None,
            holder_used: false,
            phase: Phase::Idle,
            kept: Vec::new(),
            lent: Vec::new(),
            lend_objection: None,
            inherited: Vec::new(),
            companions: Vec::new(),
            helped: false,
            memory_grew: false,
            is_unclean: false,
            sweep: None,
            clean_wanted: false,
            terminate: false,
            leaving: None,
            standing: Standing::now(),
        })
    }

    /// Runs until there is a reason to exit.
    pub fn run(&mut self) -> Exit {
        loop {
            let now_us = now_us();
            // That it was launched is told before anything that it did.
            self.settle_exec(now_us);
            self.reap();
            let now_ms = now_us / 1000;
            self.settle_exec(now_us);
            if let Some(exit) = self.drive_sweep(now_us) {
                return exit;
            }
            if self.link.is_down() {
                // What is lent belongs to a launch that will not come: the next pilot lends its own.
                self.forget_lent();
            }
            let state = self.state();
            self.link.tick(now_ms, || state);
            if self.link.is_orphaned(now_ms) {
                self.abandon(now_ms);
            }
            match self.wait(now_ms) {
                Ok(ready) => {
                    // The wait may have lasted hours: what is heard now is answered now.
                    let now_ms = crate::clock::now_us() / 1000;
                    if ready.signals {
                        self.read_signals(now_ms);
                    }
                    if ready.pilot {
                        self.hear(now_ms);
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return Exit::Fault("poll failed"),
            }
        }
    }

    pub(crate) fn state(&self) -> ShimState {
        match &self.phase {
            Phase::Idle => ShimState::Idle,
            Phase::Busy(payload) => ShimState::Running(payload.id),
            Phase::Ended(report) => ShimState::Ended(report.clone()),
        }
    }

    fn wait(&self, now_ms: u64) -> Result<Ready, Errno> {
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        let pilot = self.link.socket().filter(|_| self.leaving.is_none());
        fds.extend(pilot.map(|socket| PollFd::new(socket, PollFlags::IN)));
        if let Phase::Busy(payload) = &self.phase {
            let exec = payload.exec.as_ref().and_then(Execution::pipe);
            fds.extend(exec.map(|pipe| PollFd::from_borrowed_fd(pipe, PollFlags::IN)));
        }
        let span = self.deadline_ms(now_ms).map(|at| span_ms(at.saturating_sub(now_ms)));
        poll(&mut fds, span.as_ref())?;
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let signals = ready.next().unwrap_or(false);
        Ok(Ready { signals, pilot: pilot.is_some() && ready.next().unwrap_or(false) })
    }

    fn deadline_ms(&self, now_ms: u64) -> Option<u64> {
        let sweep = self.sweep.as_ref().map(|sweep| now_ms + if sweep.is_hot() { 0 } else { SWEEP_WAIT_MS });
        let payload = match &self.phase {
            Phase::Busy(payload) if self.sweep.is_none() => payload.kill_at_ms,
            Phase::Busy(_) | Phase::Idle | Phase::Ended(_) => None,
        };
        let wanted =
            (self.sweep.is_none() && (self.clean_wanted || self.leaving.is_some())).then_some(now_ms);
        let link = if self.leaving.is_some() { None } else { self.link.deadline_ms() };
        [sweep, payload, wanted, link].into_iter().flatten().min()
    }

    fn read_signals(&mut self, now_ms: u64) {
        // signalfd_siginfo (signalfd(2)): number at 0, code at 8, sender at 12; 128 bytes each.
        let mut records = [0; 128 * 4];
        let mut more = true;
        while more && let Ok(length @ 1..) = rustix::io::read(&self.signals, &mut records) {
            more = length == records.len();
            for record in records.get(..length).unwrap_or_default().as_chunks::<128>().0 {
                let word = |at: usize| {
                    record.get(at..at + 4).and_then(|w| w.try_into().ok()).map_or(0, i32::from_ne_bytes)
                };
                let from_outside = matches!(word(8), libc::SI_USER | libc::SI_KERNEL) && word(12) == 0;
                if word(0) == libc::SIGTERM && (from_outside || !self.processes.is_init()) {
                    self.terminate = true;
                }
            }
        }
        if self.terminate && matches!(self.phase, Phase::Idle) {
            self.leave(Exit::Terminated, now_ms);
        }
    }

    fn hear(&mut self, now_ms: u64) {
        match self.link.hear(now_ms) {
            Heard::Nothing => {}
            Heard::Order(order, fds) => self.obey(order, fds, now_ms),
            Heard::Cut(why) => self.leave(Exit::Cut(why), now_ms),
        }
    }

    /// The pilot did not come back in time.
    fn abandon(&mut self, now_ms: u64) {
        let exit = match &self.phase {
            _ if !self.link.was_welcomed() => Exit::Cut("no pilot answered"),
            Phase::Idle => Exit::Retired,
            Phase::Busy(_) | Phase::Ended(_) => Exit::Cut("the pilot has gone and left its payload"),
        };
        self.leave(exit, now_ms);
    }

    /// Ends everything, then exits; the first reason counts.
    pub(crate) fn leave(&mut self, exit: Exit, now_ms: u64) {
        self.leaving.get_or_insert((exit, now_ms + LEAVE_MS_MAX));
    }
}

struct Ready {
    signals: bool,
    pilot: bool,
}

/// Why there is no shim.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No signal descriptor.
    #[error("open a signal descriptor")]
    Signals(#[source] std::io::Error),
    /// Payloads' processes could not be found, so they could not be ended either.
    #[error("look at the process table in /proc")]
    Processes(#[source] std::io::Error),
}
