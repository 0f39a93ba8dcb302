//! The handle to a container that runs, started here or taken over from a process that died.
//!
//! ```text
//!  start ──> Running ──identity──> (pid, start time) ──written down──> adopt ──> Running, in another process
//! ```
//! A container's processes are no children of whoever adopts it. The pidfd serves as well for waiting and killing, but
//! how PID 1 ended is told to its parent only: [`Ended::Unknown`].
//!
//! **Must not know:** any async runtime. The pidfd becomes readable when PID 1 ends; wait for it as you like.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

/// PID 1 is killed with the whole namespace; the kernel is done in milliseconds unless a file system hangs.
const REAP_LIMIT_S: i64 = 5;

/// The state and the start time, counted from what follows the name in `/proc/<pid>/stat` (fields 3 and 22).
const STATE_FIELD: usize = 0;
const START_TICKS_FIELD: usize = 19;

/// A container whose PID 1 runs. Dropping it kills everything inside and, where PID 1 is a child, reaps it.
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
    /// Only its parent was told, and that is somebody else (the container was adopted), or the process ignores SIGCHLD.
    Unknown,
}

impl Running {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd, ended: None }
    }

    /// Takes over the container whose PID 1 another process started and wrote down by [`Running::identity`]. The start
    /// time proves that `pid` was not given to somebody else meanwhile; both hold until the machine boots again, so
    /// whoever writes them down also keeps the boot id.
    ///
    /// From then on it is as one that was started here, except that its end is [`Ended::Unknown`] unless PID 1 is a
    /// child of the caller.
    ///
    /// # Errors
    /// `NotFound` when that PID 1 has ended; anything else is what the kernel said.
    pub fn adopt(pid: u32, start_ticks: u64) -> io::Result<Self> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("process {pid} has ended"));
        let number = i32::try_from(pid).map_err(|_| gone())?;
        let process = Pid::from_raw(number).ok_or_else(gone)?;
        // Held before it is looked at: if the look shows the right process, it had this number all the time.
        let pidfd = match rustix::process::pidfd_open(process, PidfdFlags::empty()) {
            // EINVAL: the number belongs to a thread.
            Err(Errno::SRCH | Errno::INVAL) => return Err(gone()),
            other => other?,
        };
        match Stat::read(number) {
            Err(error) if has_ended(&error) => Err(gone()),
            Err(error) => Err(error),
            Ok(stat) if stat.ended || stat.start_ticks != start_ticks => Err(gone()),
            Ok(_) => Ok(Self::new(number, pidfd)),
        }
    }

    /// What [`Running::adopt`] needs to find this container again: process id of PID 1 and its start time in clock
    /// ticks since boot.
    ///
    /// # Errors
    /// `NotFound` when PID 1 has ended and was reaped; anything else is what the kernel said.
    pub fn identity(&self) -> io::Result<(u32, u64)> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("process {} was reaped", self.pid));
        if self.ended.is_some() {
            return Err(gone());
        }
        let stat = Stat::read(self.pid).map_err(|error| if has_ended(&error) { gone() } else { error })?;
        Ok((self.pid.unsigned_abs(), stat.start_ticks))
    }

    /// Process id of PID 1 in the caller's pid namespace, for reports. It is reused once [`Running::try_wait`] has
    /// answered; to signal, use [`Running::kill`].
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// How PID 1 ended, if it has; reaps it if it is a child. Does not block.
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
                Err(Errno::CHILD) => self.wait_until_ended(0)?.then_some(Ended::Unknown),
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
            if !self.wait_until_ended(limit_s)? {
                return Ok(None);
            }
        }
    }

    /// Whether PID 1 has ended within `limit_s` seconds. A signal that arrives starts the wait anew.
    fn wait_until_ended(&self, limit_s: i64) -> io::Result<bool> {
        let limit = Timespec { tv_sec: limit_s, tv_nsec: 0 };
        loop {
            match rustix::event::poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&limit)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
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

/// What `/proc/<pid>/stat` says (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// A zombie, or less.
    ended: bool,
    start_ticks: u64,
}

impl Stat {
    fn read(pid: i32) -> io::Result<Self> {
        let text = fs::read(format!("/proc/{pid}/stat"))?;
        let strange =
            || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat can't be understood"));
        Self::parse(&String::from_utf8_lossy(&text)).ok_or_else(strange)
    }

    /// The second field is a name in parentheses that the process chose, which may hold anything, also `) `.
    fn parse(text: &str) -> Option<Self> {
        let (_, fields) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let ended = matches!(*fields.get(STATE_FIELD)?, "Z" | "X" | "x");
        Some(Self { ended, start_ticks: fields.get(START_TICKS_FIELD)?.parse().ok()? })
    }
}

/// A process may vanish before its file is opened, or between that and the read.
fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "4242 (NAME) S 1 4242 4242 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 987654 1 2";

    #[test]
    fn a_start_time_is_found_behind_any_name() {
        for name in ["sh", "a b", ") Z 1 2", "()", ""] {
            let stat = Stat::parse(&STAT.replace("NAME", name));
            assert_eq!(stat, Some(Stat { ended: false, start_ticks: 987_654 }), "{name:?}");
        }
        assert_eq!(
            Stat::parse(&STAT.replace(") S", ") Z")),
            Some(Stat { ended: true, start_ticks: 987_654 })
        );
        for text in ["", "1 (sh", "1 (sh) S 1 2 3", &STAT.replace("987654", "x")] {
            assert_eq!(Stat::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_process_with_another_start_time_is_somebody_else() {
        let own = std::process::id();
        let stat = Stat::read(own.cast_signed()).expect("own figures");
        assert!(Running::adopt(own, stat.start_ticks + 1).is_err_and(|error| has_ended(&error)));
        for pid in [0, u32::MAX, i32::MAX as u32] {
            assert!(Running::adopt(pid, 1).is_err_and(|error| has_ended(&error)), "{pid}");
        }
    }
}
