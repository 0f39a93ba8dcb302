//! The handle to a container that runs.
//!
//! **Must not know:** any async runtime. The pidfd becomes readable when PID 1 ends; wait for it as you like.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions};

/// PID 1 is killed with the whole namespace; the kernel is done in milliseconds unless a file system hangs.
const REAP_LIMIT_S: i64 = 5;

/// A container whose PID 1 was started. Dropping it kills everything inside and reaps PID 1.
///
/// `AsFd` is the pidfd of PID 1: readable (as by `poll`) once PID 1 has ended, which is after every other process of
/// the container.
#[derive(Debug)]
pub struct Running {
    pid: i32,
    pidfd: OwnedFd,
    ended: Option<Ended>,
}

/// How PID 1 ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Exited(i32),
    /// By this signal, leaving a core or not.
    Killed {
        /// Number of the signal.
        signal: i32,
        /// Whether a core was written.
        core: bool,
    },
    /// Somebody else has reaped it: the process ignores SIGCHLD.
    Unknown,
}

impl Running {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd, ended: None }
    }

    /// Process id of PID 1 in the caller's pid namespace, for reports. It is reused once [`Running::try_wait`] has
    /// answered; to signal, use [`Running::kill`].
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// How PID 1 ended, if it has; reaps it. Does not block.
    pub fn try_wait(&mut self) -> io::Result<Option<Ended>> {
        if self.ended.is_none() {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            self.ended = match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Ok(None) => None,
                Ok(Some(status)) => Some(match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Ended::Exited(code),
                    (None, Some(signal)) => Ended::Killed { signal, core: status.dumped() },
                    (None, None) => Ended::Unknown,
                }),
                Err(Errno::CHILD) => Some(Ended::Unknown),
                Err(errno) => return Err(errno.into()),
            };
        }
        Ok(self.ended)
    }

    /// Waits for PID 1 to end, for at most `limit_s` seconds; `None` when it still runs. Blocks.
    pub fn wait_for(&mut self, limit_s: i64) -> io::Result<Option<Ended>> {
        loop {
            if let Some(ended) = self.try_wait()? {
                return Ok(Some(ended));
            }
            let limit = Timespec { tv_sec: limit_s, tv_nsec: 0 };
            match rustix::event::poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&limit)) {
                Ok(0) => return Ok(None),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends SIGKILL to PID 1, which ends every process of the container. Killing an ended container is no error.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    /// Sends SIGTERM to PID 1.
    pub fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Err(Errno::SRCH) | Ok(()) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Running {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_some() {
            return;
        }
        let ended = self.kill().and_then(|()| self.wait_for(REAP_LIMIT_S));
        if !matches!(ended, Ok(Some(_))) {
            tracing::warn!(pid = self.pid, "container does not end after SIGKILL; a file system may hang");
        }
    }
}
