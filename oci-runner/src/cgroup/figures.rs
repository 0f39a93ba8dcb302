//! What a cgroup has counted.
//!
//! Counts only grow, for as long as the cgroup lives; whoever uses it twice takes differences. The peak of memory is
//! the one figure that can be begun anew, where the kernel can.
//!
//! **Must not know:** what the figures are for.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;

use super::{Cgroup, Delegation, Folder, Kind};

/// What a cgroup has counted. A figure that its kernel does not offer is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Most memory in use at a time, in bytes. From Linux 5.19 on v2.
    pub memory_peak_bytes: Option<u64>,
    /// Whether the peak is counted from the last [`Cgroup::reset_peak`] of this handle. `false`: since the cgroup was
    /// made, or on v1 since any earlier reset.
    pub peak_since_reset: bool,
    /// Memory in use, in bytes.
    pub memory_bytes: Option<u64>,
    /// Processes killed because the limit was reached, since the cgroup was made.
    pub oom_kills: Option<u64>,
    /// Processor time in microseconds, since the cgroup was made.
    pub cpu_us: Option<u64>,
    /// Processes and threads alive.
    pub pids: Option<u64>,
}

/// How a peak was begun anew.
#[derive(Debug)]
pub(super) enum PeakReset {
    /// v1: the kernel's one counter was set back, for everyone who reads it.
    Counter,
    /// v2: the kernel counts anew for who reads through this open file; everyone else sees the whole life's peak.
    File(File),
}

impl Delegation {
    /// Memory that cgroup `name` has in use, in bytes, for whoever only looks.
    pub fn memory_bytes(&self, name: &str) -> Option<u64> {
        self.folders().find_map(|(path, kind)| match kind {
            Kind::V2 => number(&path.join(name), "memory.current"),
            Kind::Memory => number(&path.join(name), "memory.usage_in_bytes"),
            Kind::Pids | Kind::Cpu => None,
        })
    }
}

impl Cgroup {
    /// What has been counted so far.
    pub fn figures(&self) -> Figures {
        let mut figures = Figures::default();
        for Folder { path, kind } in &self.folders {
            match kind {
                Kind::V2 => {
                    figures.memory_peak_bytes = match self.peak_reset.get() {
                        Some(PeakReset::File(file)) => read_again(file).ok(),
                        _ => number(path, "memory.peak"),
                    };
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
        figures.peak_since_reset = self.peak_reset.get().is_some();
        figures
    }

    /// Memory that is charged to it and that is not freed by the end of its processes: memory files and memory file
    /// systems, in bytes. `None` where the kernel does not say. It may be some 256 KiB a processor behind (the kernel
    /// gathers small changes before it counts them).
    pub fn shared_memory_bytes(&self) -> Option<u64> {
        let folder = self.folders.iter().find(|folder| matches!(folder.kind, Kind::V2 | Kind::Memory))?;
        entry(&folder.path, "memory.stat", "shmem")
    }

    /// Begins the peak of memory anew at what is in use; `false` where that is impossible: on v2 before Linux 6.12, or
    /// without a cgroup. On v1 the shim's figures begin anew with ours; on v2 only [`Cgroup::figures`] of this handle do.
    pub fn reset_peak(&self) -> bool {
        let folder = self.folders.iter().find(|folder| matches!(folder.kind, Kind::V2 | Kind::Memory));
        let Some(Folder { path, kind }) = folder else { return false };
        if *kind == Kind::Memory {
            return fs::write(path.join("memory.max_usage_in_bytes"), "0").is_ok()
                && matches!(self.peak_reset.get_or_init(|| PeakReset::Counter), PeakReset::Counter);
        }
        if let Some(PeakReset::File(file)) = self.peak_reset.get() {
            return reset(file).is_ok();
        }
        // Before 6.12 the file is read-only; root may open it all the same, and then the write is refused.
        let opened = File::options().read(true).write(true).open(path.join("memory.peak"));
        let begun = opened.and_then(|file| reset(&file).map(|()| file));
        match begun {
            // Lost against another thread: its file was reset at this very moment too.
            Ok(file) => matches!(self.peak_reset.get_or_init(|| PeakReset::File(file)), PeakReset::File(_)),
            Err(_) => false,
        }
    }
}

/// Any non-empty text will do (cgroup-v2.rst, "memory.peak").
fn reset(mut peak: &File) -> io::Result<()> {
    peak.rewind()?;
    peak.write_all(b"reset\n")
}

fn read_again(mut file: &File) -> io::Result<u64> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    text.trim().parse().map_err(io::Error::other)
}

fn number(folder: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()
}

/// The value of `key` in a file of `key value` lines.
fn entry(folder: &Path, file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(folder.join(file)).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}
