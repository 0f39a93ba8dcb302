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

/// What to do about a limit that may be there and is not asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Old {
    /// The cgroup is new and has no limits.
    None,
    /// Lift it.
    Overwrite,
}

/// Writes `limits` into the folder of one cgroup and notes what the kernel took.
pub(super) fn write(folder: &Path, kind: Kind, limits: &Limits, old: Old, enforced: &mut Enforcement) {
    let set = |file: &str, value: &str| fs::write(folder.join(file), value).is_ok();
    let wanted = |limit: Option<u64>| limit.is_some() || old == Old::Overwrite;
    if matches!(kind, Kind::V2 | Kind::Memory) && wanted(limits.memory_bytes) {
        let limited = if kind == Kind::V2 { memory_v2(folder, limits) } else { memory_v1(folder, limits) };
        if limited && limits.memory_bytes.is_some() {
            enforced.memory = Guard::Cgroup;
        }
    }
    if matches!(kind, Kind::V2 | Kind::Cpu) && wanted(limits.cpu_millis) {
        let quota = limits.cpu_millis.map(|millis| (millis * CPU_PERIOD_US / 1000).max(CPU_QUOTA_US_MIN));
        let quota = quota.map(|us| us.to_string());
        let limited = if kind == Kind::V2 {
            set("cpu.max", &format!("{} {CPU_PERIOD_US}", quota.as_deref().unwrap_or("max")))
        } else {
            set("cpu.cfs_period_us", &CPU_PERIOD_US.to_string())
                && set("cpu.cfs_quota_us", quota.as_deref().unwrap_or("-1"))
        };
        if limited && quota.is_some() {
            enforced.cpu = Guard::Cgroup;
        }
    }
    if matches!(kind, Kind::V2 | Kind::Pids) && wanted(limits.pids) {
        let limited = set("pids.max", &limits.pids.map_or("max".to_owned(), |pids| pids.to_string()));
        if limited && limits.pids.is_some() {
            enforced.pids = Guard::Cgroup;
        }
    }
}

fn memory_v2(folder: &Path, limits: &Limits) -> bool {
    let set = |file: &str, value: &str| fs::write(folder.join(file), value).is_ok();
    let (bytes, swap) =
        limits.memory_bytes.map_or(("max".to_owned(), "max"), |bytes| (bytes.to_string(), "0"));
    // A killed part of a payload is no payload: all of it goes at once. Kernels without it kill one process.
    let _ = set("memory.oom.group", "1");
    set("memory.max", &bytes) && (!folder.join("memory.swap.max").exists() || set("memory.swap.max", swap))
}

/// The second limit counts memory and swap together and must never be below the first: which one goes first depends on
/// whether the limits rise.
fn memory_v1(folder: &Path, limits: &Limits) -> bool {
    let bytes = limits.memory_bytes.map_or("-1".to_owned(), |bytes| bytes.to_string());
    let set = |file: &str| fs::write(folder.join(file), &bytes).is_ok();
    let (memory, both) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
    if !folder.join(both).exists() {
        return set(memory);
    }
    if set(memory) { set(both) } else { set(both) && set(memory) }
}
