//! The end of a cgroup: killing what is inside and removing it.
//!
//! **Must not know:** what runs in the cgroup.

use std::fs;
use std::io;
use std::path::Path;

use rustix::event::Timespec;
use rustix::process::{Pid, Signal};

use super::{Cgroup, CgroupError, Delegation, Folder};

/// How often a busy cgroup is looked at again, and how long between: the kernel clears a killed process within
/// milliseconds unless a file system hangs. The first pauses are shorter, for most are over by then.
const ATTEMPTS: u32 = 200;
const SHORT_ATTEMPTS: u32 = 10;
const SHORT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
/// Rounds of killing where `cgroup.kill` does not exist; each round catches what forked during the one before.
const KILL_ROUNDS: u32 = 50;

impl Cgroup {
    /// Kills every process inside: in one go where the kernel can, else in rounds until none is found. Does not wait for
    /// their end.
    pub fn kill(&self) -> io::Result<()> {
        if self.folders.iter().any(|folder| fs::write(folder.path.join("cgroup.kill"), "1").is_ok()) {
            return Ok(());
        }
        for _ in 0..KILL_ROUNDS {
            let pids = self.processes()?;
            if pids.is_empty() {
                break;
            }
            // Those of other pid namespaces are 0 and can't be named.
            for pid in pids.into_iter().filter_map(|pid| Pid::from_raw(pid.cast_signed())) {
                // Gone meanwhile is as good.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        Ok(())
    }

    /// Kills every process inside, the container's PID 1 too, and waits until none is left, at most 2 s. Blocks.
    ///
    /// # Errors
    /// `TimedOut` when a process does not go; anything else is what the kernel said.
    pub fn kill_all(&self) -> io::Result<()> {
        for attempt in 0..ATTEMPTS {
            if self.processes()?.is_empty() {
                return Ok(());
            }
            self.kill()?;
            pause(attempt)?;
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "processes stay in a cgroup after SIGKILL"))
    }

    /// Kills what is inside and removes the folders, waiting at most 2 s for each. Blocks. What could not be removed is
    /// kept for another try.
    pub fn remove(&mut self) -> Result<(), CgroupError> {
        self.memory = None;
        self.peak_reset.take();
        let mut result = Ok(());
        if let Err(error) = self.kill() {
            tracing::debug!(%error, "kill a cgroup");
        }
        for folder in std::mem::take(&mut self.folders) {
            if let Err(source) = remove(&folder.path) {
                result = Err(CgroupError::Remove { path: folder.path.clone(), source });
                self.folders.push(folder);
            }
        }
        result
    }
}

impl Delegation {
    /// Removes the cgroups whose names `dead` picks: what killed pilots left. Processes in them are killed. See
    /// [`super::cgroup_owner`] for whose a name is.
    pub fn sweep(&self, dead: impl Fn(&str) -> bool) {
        for (parent, kind) in self.folders() {
            let entries = fs::read_dir(parent).into_iter().flatten().flatten();
            for entry in entries.filter(|entry| entry.file_name().to_str().is_some_and(&dead)) {
                // Dropped at once, which removes it.
                drop(Cgroup::of(vec![Folder { path: entry.path(), kind }]));
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(%error, "a cgroup is left behind");
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    for attempt in 0..ATTEMPTS {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => pause(attempt)?,
            other => return other,
        }
    }
    fs::remove_dir(path)
}

/// v1 has no event for "empty": a short pause is all there is.
fn pause(attempt: u32) -> io::Result<()> {
    let pause = if attempt < SHORT_ATTEMPTS { &SHORT_PAUSE } else { &PAUSE };
    match rustix::event::poll(&mut [], Some(pause)) {
        Err(errno) if errno != rustix::io::Errno::INTR => Err(errno.into()),
        _ => Ok(()),
    }
}
