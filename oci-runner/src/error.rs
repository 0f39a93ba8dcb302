//! Why a container did not start: which step, on what, and what to do about it.
//!
//! **Must not know:** how the step was carried out.

use std::ffi::NulError;
use std::io;

use rustix::io::Errno;

use crate::child::{Report, Stage};
use crate::mounts::{MountStep, RootMount};
use crate::plan::PlanError;

/// Why [`crate::start`] failed. Nothing is left of the attempt.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The container contradicts itself.
    #[error("plan the container")]
    Plan(#[from] PlanError),
    /// A path, argument or variable holds a zero byte.
    #[error("prepare the container: a path, argument or variable holds a zero byte")]
    ZeroByte(#[from] NulError),
    /// Descriptors are passed under numbers from 0.
    #[error("pass a descriptor as number {number}")]
    DescriptorNumber {
        /// The number asked for.
        number: i32,
    },
    /// The kernel refuses the namespaces. [`crate::probe_host`] finds out which setting is behind it.
    #[error("make user, mount, pid, ipc and uts namespaces ({})", namespace_hint(source))]
    Namespaces {
        /// What the kernel said.
        source: io::Error,
    },
    /// An id map can't be written.
    #[error("write {name} of the new user namespace")]
    Map {
        /// `uid_map`, `gid_map` or `setgroups`.
        name: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// PID 1 can't be put into its cgroup.
    #[error("put PID 1 into its cgroup")]
    Cgroup {
        /// What the kernel said.
        source: io::Error,
    },
    /// A pipe to the new process failed.
    #[error("talk to the new process")]
    Pipe {
        /// What the kernel said.
        source: io::Error,
    },
    /// A mount step failed.
    #[error("{step}{}", advice.map_or(String::new(), |advice| format!(" ({advice})")))]
    Mount {
        /// The step in words, with its paths.
        step: String,
        /// What to do, when it is known.
        advice: Option<&'static str>,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something else in the new process failed.
    #[error("{what}")]
    Setup {
        /// What it was doing.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The new process did not get to its program in time.
    #[error(
        "start within {limit_s} s: the new process hangs, most likely on a file system that does not answer"
    )]
    TooSlow {
        /// The limit in seconds.
        limit_s: i64,
    },
    /// The new process ended without a word.
    #[error("start: the new process ended without saying why")]
    Vanished,
}

impl StartError {
    /// The kernel's error number, where the kernel is behind it.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Namespaces { source }
            | Self::Map { source, .. }
            | Self::Cgroup { source }
            | Self::Pipe { source }
            | Self::Mount { source, .. }
            | Self::Setup { source, .. } => source.raw_os_error(),
            Self::Plan(_)
            | Self::ZeroByte(_)
            | Self::DescriptorNumber { .. }
            | Self::TooSlow { .. }
            | Self::Vanished => None,
        }
    }
}

/// The error for what the child reported about `steps`.
pub(crate) fn step_failed(steps: &[MountStep], report: &Report) -> StartError {
    let source = io::Error::from(report.errno);
    let what = match report.stage {
        Stage::Sources | Stage::Mounts => {
            let step = steps.get(report.step);
            return StartError::Mount {
                step: step.map_or_else(|| "mount".to_owned(), ToString::to_string),
                advice: step.and_then(|step| advice(step, report.errno)),
                source,
            };
        }
        Stage::Cgroup => return StartError::Cgroup { source },
        Stage::Descriptors => "close inherited descriptors",
        Stage::Wait => "wait for the id maps",
        Stage::Ids => "take the container's user and group id",
        Stage::NestedNamespaces => "forbid namespaces below the container's",
        Stage::Hostname => "set the host name",
        Stage::Loopback => "set the loopback interface up",
        Stage::Privileges => "drop all privileges",
        Stage::Passing => "pass descriptors on",
        Stage::Exec => "execute the program of PID 1 (it must be a static executable for this machine)",
        Stage::Check => "read the probe's file inside",
    };
    StartError::Setup { what, source }
}

fn advice(step: &MountStep, errno: Errno) -> Option<&'static str> {
    match (step, errno) {
        (MountStep::Private, Errno::PERM | Errno::ACCESS) => Some(
            "a security module takes away the rights of user namespaces; `pilot check` says which setting and how to change it",
        ),
        (
            MountStep::Root(RootMount::Overlay { .. }),
            Errno::PERM | Errno::INVAL | Errno::NODEV | Errno::OPNOTSUPP,
        ) => Some(
            "this kernel or file system has no overlay for ordinary users; `pilot check` says what works, and attaching by copy always does",
        ),
        (MountStep::Bind { .. }, Errno::NOENT | Errno::NOTDIR) => Some(
            "the source is missing on the host, or the mount point is missing in the image, or one is a file and the other a folder",
        ),
        (MountStep::Tmpfs { .. } | MountStep::Proc { .. }, Errno::NOENT | Errno::NOTDIR) => {
            Some("the folder is missing in the image")
        }
        (MountStep::Proc { .. }, Errno::PERM) => Some(
            "parts of the host's /proc are hidden by other mounts, as in a container; run the pilot outside, or with /proc unmasked",
        ),
        (_, Errno::NOSPC) => Some("too many mounts: raise fs.mount-max, or no space is left"),
        _ => None,
    }
}

fn namespace_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOSPC) => "the limit user.max_user_namespaces is reached or 0",
        Some(libc::EPERM) => {
            "a sysctl, a security module or a seccomp filter forbids it; `pilot check` says which"
        }
        Some(libc::ENOSYS) => "this kernel is older than 5.3, or a seccomp filter hides clone3",
        Some(libc::EINVAL) => "this kernel is built without one of these namespaces",
        Some(libc::EAGAIN) => "the limit of processes is reached",
        _ => "unexpected",
    }
}
