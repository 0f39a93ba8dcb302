//! A cgroup for each slot, where one was delegated to us: limits, figures, and a way to kill.
//!
//! Both kinds are served. On v2 (`find`) the pilot first moves itself into a leaf, because a cgroup that gives
//! controllers to its children must hold no process. On v1 each controller is a tree of its own, and each is used or
//! not on its own. What can't be limited is said in [`Enforcement`], never passed over.
//!
//! **Must not know:** what runs in the cgroup, how much a slot should get.

mod find;
mod limits;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::Timespec;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};

pub use find::{Delegation, PILOT_LEAF};
pub use limits::{Enforcement, Guard, Limits};

/// How often a busy cgroup is tried again, and how long between: the kernel clears a killed process within
/// milliseconds unless a file system hangs.
const REMOVE_ATTEMPTS: u32 = 200;
const REMOVE_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
/// Rounds of killing where `cgroup.kill` does not exist; each round catches what forked during the one before.
const KILL_ROUNDS: u32 = 50;

/// The cgroup of one slot. Dropping it kills what is inside and removes it.
#[derive(Debug)]
pub struct Cgroup {
    /// One folder on v2, one for each controller on v1.
    folders: Vec<Folder>,
    memory: Option<OwnedFd>,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    kind: Kind,
}

/// Which files a folder has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// All controllers in one.
    V2,
    /// The memory controller of v1.
    Memory,
    /// The pids controller of v1.
    Pids,
    /// The cpu controller of v1.
    Cpu,
}

/// What a cgroup has counted. A figure that its kernel does not offer is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Most memory in use at a time, in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// Memory in use, in bytes.
    pub memory_bytes: Option<u64>,
    /// Processes killed because the limit was reached.
    pub oom_kills: Option<u64>,
    /// Processor time in microseconds.
    pub cpu_us: Option<u64>,
    /// Processes alive.
    pub pids: Option<u64>,
}

/// Why a slot's cgroup could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The name must be one plain path component.
    #[error("name a cgroup {name:?}")]
    Name {
        /// The name asked for.
        name: String,
    },
    /// Processes would not go away.
    #[error("remove cgroup {}", path.display())]
    Remove {
        /// Which folder.
        path: PathBuf,
        /// What the kernel said last.
        source: io::Error,
    },
}

impl Cgroup {
    /// Makes cgroup `name` below `parent` with `limits`. It always succeeds for a plain name: what could not be made
    /// or limited is in the answer.
    pub fn create(
        parent: &Delegation,
        name: &str,
        limits: &Limits,
    ) -> Result<(Self, Enforcement), CgroupError> {
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(CgroupError::Name { name: name.into() });
        }
        let mut folders = Vec::new();
        let mut enforced = Enforcement::without_cgroup(limits);
        for (path, kind) in parent.folders() {
            let path = path.join(name);
            match fs::create_dir(&path) {
                Ok(()) => {}
                // Left by a pilot that was killed; its limits are overwritten.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    tracing::debug!(path = %path.display(), %error, "no cgroup");
                    continue;
                }
            }
            limits::write(&path, kind, limits, &mut enforced);
            folders.push(Folder { path, kind });
        }
        let memory = folders.iter().find(|folder| matches!(folder.kind, Kind::V2 | Kind::Memory));
        let memory = memory.and_then(|folder| {
            rustix::fs::open(
                &folder.path,
                OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .ok()
        });
        Ok((Self { folders, memory }, enforced))
    }

    /// Puts process `pid` in.
    pub fn add(&self, pid: i32) -> io::Result<()> {
        for folder in &self.folders {
            fs::write(folder.path.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(())
    }

    /// Files that take a process in that writes "0" to them. On v1 that is `tasks`: a thread that moves itself needs no
    /// lock of the whole machine, while moving another process through `cgroup.procs` waits for an RCU grace period (7.6 ms
    /// median, 20 ms at worst, measured; cgroup_procs_write_start in the kernel). The right to write was judged here, at
    /// open, and not when an unprivileged child writes.
    pub(crate) fn entrances(&self) -> io::Result<Vec<OwnedFd>> {
        let open = |folder: &Folder| {
            let file = if folder.kind == Kind::V2 { "cgroup.procs" } else { "tasks" };
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::open(folder.path.join(file), flags, Mode::empty()).map_err(io::Error::from)
        };
        self.folders.iter().map(open).collect()
    }

    /// The folder with the memory figures, to be passed to whoever reads them from inside.
    pub fn dir_fd(&self) -> Option<BorrowedFd<'_>> {
        self.memory.as_ref().map(OwnedFd::as_fd)
    }

    /// Whether there is anything to it: `false` where nothing is delegated.
    pub fn exists(&self) -> bool {
        !self.folders.is_empty()
    }

    /// What has been counted so far.
    pub fn figures(&self) -> Figures {
        let mut figures = Figures::default();
        for Folder { path, kind } in &self.folders {
            match kind {
                Kind::V2 => {
                    figures.memory_peak_bytes = number(path, "memory.peak");
                    figures.memory_bytes = number(path, "memory.current");
                    figures.oom_kills = entry(path, "memory.events", "oom_kill");
                    figures.cpu_us = entry(path, "cpu.stat", "usage_usec");
                    figures.pids = number(path, "pids.current");
                }
                Kind::Memory => {
                    figures.memory_peak_bytes = number(path, "memory.max_usage_in_bytes");
                    figures.memory_bytes = number(path, "memory.usage_in_bytes");
                    figures.oom_kills = entry(path, "memory.oom_control", "oom_kill");
                }
                Kind::Pids => figures.pids = number(path, "pids.current"),
                // v1 counts time in the cpuacct controller, which is often the same folder.
                Kind::Cpu => figures.cpu_us = number(path, "cpuacct.usage").map(|ns| ns / 1000),
            }
        }
        figures
    }

    /// Kills every process inside: in one go where the kernel can, else in rounds until none is found.
    pub fn kill(&self) -> io::Result<()> {
        if self.folders.iter().any(|folder| fs::write(folder.path.join("cgroup.kill"), "1").is_ok()) {
            return Ok(());
        }
        let Some(folder) = self.folders.first() else { return Ok(()) };
        for _ in 0..KILL_ROUNDS {
            let pids = fs::read_to_string(folder.path.join("cgroup.procs"))?;
            let pids: Vec<Pid> =
                pids.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw).collect();
            if pids.is_empty() {
                break;
            }
            for pid in pids {
                // Gone meanwhile is as good.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        Ok(())
    }

    /// Kills what is inside and removes the folders, waiting at most 2 s for each. Blocks. What could not be removed is
    /// kept for another try.
    pub fn remove(&mut self) -> Result<(), CgroupError> {
        self.memory = None;
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
    /// Removes the cgroups whose names `dead` picks: what killed pilots left. Processes in them are killed.
    pub fn sweep(&self, dead: impl Fn(&str) -> bool) {
        for (parent, kind) in self.folders() {
            let entries = fs::read_dir(parent).into_iter().flatten().flatten();
            for entry in entries.filter(|entry| entry.file_name().to_str().is_some_and(&dead)) {
                // Dropped at once, which removes it.
                drop(Cgroup { folders: vec![Folder { path: entry.path(), kind }], memory: None });
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
    let mut attempts = 0;
    loop {
        attempts += 1;
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && attempts < REMOVE_ATTEMPTS => {}
            other => return other,
        }
        // v1 has no event for "empty": a short pause is all there is.
        if let Err(errno) = rustix::event::poll(&mut [], Some(&REMOVE_PAUSE))
            && errno != rustix::io::Errno::INTR
        {
            return Err(errno.into());
        }
    }
}

fn number(folder: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()
}

/// The value of `key` in a file of `key value` lines.
fn entry(folder: &Path, file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(folder.join(file)).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
#[path = "../cgroup_tests.rs"]
mod tests;
