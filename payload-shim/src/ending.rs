//! How things end: reaping, what the first process's end sets off, killing what is left, Clean, leaving.
//!
//! **Must not know:** how anything was started.

use rustix::process::{Pid, geteuid};
use wire::slot::{CleanReport, ExitReport, FromShim, WaitStatus};

use crate::clean::{self, ROOTS};
use crate::holder::Holder;
use crate::processes::{Pass, Sweep};
use crate::shim::{Exit, Payload, Phase, Shim};
use crate::standing::Standing;
use crate::{ipc, sys};

impl Shim {
    /// Waits for every child that has ended, ours or inherited.
    pub(crate) fn reap(&mut self) {
        while let Some((pid, status, usage)) = sys::wait_any() {
            let Some(status) = wait_status(status) else { continue };
            if self.holder.as_ref().is_some_and(|holder| holder.pid() == pid) {
                self.lose_holder();
            } else if let Some(at) = self.companions.iter().position(|companion| companion.pid == pid) {
                let companion = self.companions.swap_remove(at);
                let status = match companion.exec.outcome() {
                    Some(Err(failure)) => Err(failure.errno),
                    Some(Ok(())) | None => Ok(status),
                };
                self.link.tell(FromShim::ExecEnded { id: companion.id, status });
            } else if let Phase::Busy(payload) = &mut self.phase {
                add(payload, &usage);
                if payload.pid == pid {
                    payload.status = Some(status);
                }
            }
        }
    }

    fn lose_holder(&mut self) {
        self.holder = None;
        // While idle nothing leads to it: the next stage that is lent gets a new one.
        if let Phase::Busy(payload) = &mut self.phase
            && !self.sweep.as_ref().is_some_and(Sweep::was_last_resort)
        {
            payload.kill_at_ms = Some(0);
            self.link.tell(FromShim::HolderLost);
        }
    }

    /// Tells the pilot what became of the exec, before anything about the end.
    pub(crate) fn settle_exec(&mut self, now_us: u64) {
        let Phase::Busy(payload) = &mut self.phase else { return };
        if let Some(exec) = &payload.exec {
            // Dead without a word: killed before or after the exec, nobody knows; it counts as run.
            let outcome = exec.outcome().or(payload.status.map(|_| Ok(())));
            match outcome {
                None => return,
                Some(Ok(())) => {
                    payload.exec = None;
                    let pid = payload.pid.as_raw_nonzero().get().cast_unsigned();
                    self.link.tell(FromShim::Launched { launch: payload.id, pid });
                }
                Some(Err(failure)) => {
                    let (launch, links) = (payload.id, std::mem::take(&mut payload.links));
                    self.phase = Phase::Idle;
                    self.kept.clear();
                    self.retained.end();
                    // It may have been stopped before its exec could fail.
                    self.sweep = None;
                    self.undo(&links);
                    if self.terminate {
                        self.leave(Exit::Terminated, now_us / 1000);
                    }
                    return self.link.tell(FromShim::LaunchRefused { launch, refusal: failure.into() });
                }
            }
        }
        if payload.status.is_some() && payload.usage.wall_us == 0 {
            payload.usage.wall_us = now_us.saturating_sub(payload.began_us).max(1);
        }
    }

    /// Makes a pass when there is a reason to, and does what waits for the end of the sweep.
    pub(crate) fn drive_sweep(&mut self, now_us: u64) -> Option<Exit> {
        let now_ms = now_us / 1000;
        let ending = match &self.phase {
            Phase::Busy(payload) => {
                payload.status.is_some() || payload.kill_at_ms.is_some_and(|at| now_ms >= at)
            }
            Phase::Idle | Phase::Ended(_) => false,
        };
        if !ending && !self.clean_wanted && self.leaving.is_none() {
            return None;
        }
        if self.clean_wanted && !matches!(self.phase, Phase::Busy(_)) {
            // Before the last look: one that a payload has taken over (ptrace(2)) may have forked, or do it yet.
            self.end_holder();
        }
        let known: Vec<Pid> = match &self.phase {
            Phase::Busy(payload) => Some(payload.pid),
            Phase::Idle | Phase::Ended(_) => None,
        }
        .into_iter()
        .chain(self.companions.iter().map(|companion| companion.pid))
        .collect();
        let holder = self.holder.as_ref().map(Holder::pid);
        let sweep = self.sweep.get_or_insert_with(Sweep::default);
        let pass = sweep.pass(&self.processes, holder, &known);
        if let Some((exit, by_ms)) = self.leaving
            && (pass != Ok(Pass::Dying) && pass != Ok(Pass::Again) || now_ms >= by_ms)
        {
            if let Some(holder) = self.holder.take() {
                holder.kill();
            }
            return Some(exit);
        }
        // Without /proc nothing was launched, and as PID 1 the pass has killed everybody.
        let blind = pass.is_err() && !matches!(self.phase, Phase::Busy(_));
        if pass == Ok(Pass::Done) || blind {
            // A child may have died between the turn's reaping and this pass: the last word on it comes first.
            self.reap();
            self.settle_exec(now_us);
            self.finish_sweep(now_ms);
            if self.clean_wanted {
                return self.drive_sweep(now_us);
            }
        }
        None
    }

    fn finish_sweep(&mut self, now_ms: u64) {
        let Some(sweep) = self.sweep.take() else { return };
        let Phase::Busy(payload) = &self.phase else {
            if self.clean_wanted {
                self.clean(sweep.killed(), now_ms);
            }
            return;
        };
        let Some(status) = payload.status else { return };
        let report = ExitReport {
            launch: payload.id,
            status,
            usage: payload.usage,
            cgroup: self.cgroup.figures(&self.processes),
            leftover_processes: sweep.leftovers(),
            stopped: payload.stopped,
        };
        self.phase = Phase::Ended(report.clone());
        self.link.tell(FromShim::Exited(report));
        if self.clean_wanted {
            // Clean goes on from here, and counts on.
            self.sweep = Some(sweep);
        }
    }

    fn clean(&mut self, killed: u32, now_ms: u64) {
        self.clean_wanted = false;
        let mut report = CleanReport { processes: killed, ..CleanReport::default() };
        clean::folders(ROOTS, &mut report);
        clean::markers(self.link.control(), &mut report);
        ipc::remove_own(geteuid().as_raw(), &mut report);
        sys::clear_keyrings();
        if Standing::now() != self.standing || self.processes.check().is_err() {
            report.failures = report.failures.saturating_add(1);
        }
        self.phase = Phase::Idle;
        self.kept.clear();
        self.retained.end();
        self.helped = false;
        self.is_unclean = report.failures > 0;
        if self.memory_grew {
            sys::trim_heap();
        }
        self.link.tell(FromShim::Cleaned(report));
        if self.terminate {
            self.leave(Exit::Terminated, now_ms);
        } else if std::mem::take(&mut self.holder_used) {
            // The next payload is likely to be of the same kind; its holder starts while the pilot is busy.
            self.holder = Holder::start(self.is_alone()).ok();
        }
    }
}

fn wait_status(raw: i32) -> Option<WaitStatus> {
    if libc::WIFEXITED(raw) {
        u8::try_from(libc::WEXITSTATUS(raw)).ok().map(WaitStatus::Exited)
    } else if libc::WIFSIGNALED(raw) {
        Some(WaitStatus::Signaled { signal: libc::WTERMSIG(raw), core: libc::WCOREDUMP(raw) })
    } else {
        None
    }
}

/// wait4(2) tells of a child what it used itself and what it had waited for. Counted are the payload's first process and
/// every orphan that is reaped until `Exited`; not the holder, not the helpers, not what a parent that ignores SIGCHLD
/// never waited for. The sum starts at zero with each payload, and so does the maximum, which is that of one process and
/// never below our own peak: a program that has just been executed is told the peak of the memory it came from.
fn add(payload: &mut Payload, usage: &libc::rusage) {
    let micros = |time: libc::timeval| {
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_usec).unwrap_or(0)
    };
    let sum = &mut payload.usage;
    sum.user_us = sum.user_us.saturating_add(micros(usage.ru_utime));
    sum.system_us = sum.system_us.saturating_add(micros(usage.ru_stime));
    sum.max_rss_kib = sum.max_rss_kib.max(u64::try_from(usage.ru_maxrss).unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::wait_status;
    use wire::slot::WaitStatus;

    #[test]
    fn the_wait_status_is_told_exactly() {
        assert_eq!(wait_status(7 << 8), Some(WaitStatus::Exited(7)));
        assert_eq!(wait_status(9), Some(WaitStatus::Signaled { signal: 9, core: false }));
        assert_eq!(wait_status(11 | 0x80), Some(WaitStatus::Signaled { signal: 11, core: true }));
        assert_eq!(wait_status(0x137f), None, "stopped is not ended");
    }
}
