//! What a slot may use, and who sees to it.

use std::fs;
use std::path::Path;

use super::Kind;

/// Period of the processor quota, the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// Least quota that the kernel takes.
const CPU_QUOTA_US_MIN: u64 = 1_000;

/// What a slot may use; `None` asks for no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes, the page cache and memory file systems of the slot included; swap is not given.
    pub memory_bytes: Option<u64>,
    /// Processor time in thousandths of a processor.
    pub cpu_millis: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// Who sees to a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// No limit was asked for.
    NotAsked,
    /// The kernel, for the slot as a whole.
    Cgroup,
    /// The kernel, for each process (memory) or each user of a namespace (processes), by setrlimit: the launcher of
    /// the payload has to set it.
    Rlimit,
    /// Nobody: the limit is a figure for planning only.
    Nobody,
}

/// Who sees to each limit of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enforcement {
    /// Memory.
    pub memory: Guard,
    /// Processor time.
    pub cpu: Guard,
    /// Processes and threads.
    pub pids: Guard,
}

impl Enforcement {
    /// What remains where no cgroup is delegated.
    pub fn without_cgroup(limits: &Limits) -> Self {
        let fallback = |asked: Option<u64>, guard| if asked.is_some() { guard } else { Guard::NotAsked };
        Self {
            memory: fallback(limits.memory_bytes, Guard::Rlimit),
            cpu: fallback(limits.cpu_millis, Guard::Nobody),
            pids: fallback(limits.pids, Guard::Rlimit),
        }
    }
}

/// Writes `limits` into the folder of one cgroup and notes what the kernel took.
pub(super) fn write(folder: &Path, kind: Kind, limits: &Limits, enforced: &mut Enforcement) {
    let set = |file: &str, value: &str| fs::write(folder.join(file), value).is_ok();
    let exists = |file: &str| folder.join(file).exists();
    if let (Some(bytes), Kind::V2 | Kind::Memory) = (limits.memory_bytes, kind) {
        let bytes = bytes.to_string();
        let limited = if kind == Kind::V2 {
            // A killed part of a payload is no payload: all of it goes at once. Kernels without it kill one process.
            let _ = set("memory.oom.group", "1");
            set("memory.max", &bytes) && (!exists("memory.swap.max") || set("memory.swap.max", "0"))
        } else {
            // The second limit counts memory and swap together and must not be below the first.
            set("memory.limit_in_bytes", &bytes)
                && (!exists("memory.memsw.limit_in_bytes") || set("memory.memsw.limit_in_bytes", &bytes))
        };
        if limited {
            enforced.memory = Guard::Cgroup;
        }
    }
    if let (Some(millis), Kind::V2 | Kind::Cpu) = (limits.cpu_millis, kind) {
        let quota = (millis * CPU_PERIOD_US / 1000).max(CPU_QUOTA_US_MIN);
        let limited = if kind == Kind::V2 {
            set("cpu.max", &format!("{quota} {CPU_PERIOD_US}"))
        } else {
            set("cpu.cfs_period_us", &CPU_PERIOD_US.to_string())
                && set("cpu.cfs_quota_us", &quota.to_string())
        };
        if limited {
            enforced.cpu = Guard::Cgroup;
        }
    }
    if let (Some(pids), Kind::V2 | Kind::Pids) = (limits.pids, kind)
        && set("pids.max", &pids.to_string())
    {
        enforced.pids = Guard::Cgroup;
    }
}
