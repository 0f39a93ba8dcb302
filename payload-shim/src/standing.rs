//! What this process hands on to every child and a payload of the same uid can change from outside: resource limits
//! (prlimit(2)), nice value, scheduling policy, processors, I/O priority. The next payload must not suffer, and without
//! privileges most of it can't be taken back; so a change is found out and told.
//!
//! **Must not know:** who changed it, what follows.

use rustix::process::{Resource, Rlimit, getpriority_process, getrlimit};
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::sys;

const LIMITS: [Resource; 11] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Nproc,
    Resource::Nofile,
    Resource::Memlock,
    Resource::As,
    Resource::Sigpending,
    Resource::Msgqueue,
];

/// A snapshot; two that are equal mean that nothing was changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    limits: [Rlimit; LIMITS.len()],
    /// Unknown on a machine with more processors than the set holds, and then equal to itself.
    processors: Option<CpuSet>,
    nice: Option<i32>,
    /// Policy and I/O priority, as the kernel numbers them.
    policy: (i64, i64),
}

impl Standing {
    pub(crate) fn now() -> Self {
        Self {
            limits: LIMITS.map(getrlimit),
            processors: sched_getaffinity(None).ok(),
            nice: getpriority_process(None).ok(),
            policy: sys::policies(),
        }
    }
}
