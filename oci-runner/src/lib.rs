//! Rootless containers from a stored image.
//!
//! [`start`] makes a process that is PID 1 of new user, mount, pid, ipc and uts namespaces, with an image as its root
//! and no privilege of any kind, and returns when its program runs. No setuid program, daemon, or subordinate id is
//! involved, and it works the same for an ordinary user and for root, whose payloads get an id of their own.
//!
//! ```text
//!  Container ──plan──> Vec<MountStep> ──Prepared──> (clone3) ──child──> PID 1      Running: pidfd, kill, wait
//!  (data)     (pure)      (golden tests)  (C strings)           (raw calls only)
//! ```
//! A container outlives the process that started it, unless it was asked not to; another one takes it over by what was
//! written down ([`Running::adopt`], [`cgroup::Cgroup::reopen`]).
//!
//! [`probe_host`] says what the machine allows and what to do about what it does not; [`cgroup`] limits what a
//! container may use where a cgroup is delegated to us.
//!
//! **Must not know:** Kubernetes, queues, slots, registries, what PID 1 does.

#[expect(unsafe_code, reason = "clone3, execveat, mount_setattr and close_range are not in rustix")]
mod sys;

mod apply;
pub mod cgroup;
mod child;
mod container;
mod error;
mod idmap;
mod launch;
mod mounts;
mod overlay;
mod plan;
mod prepare;
mod probe;
mod program;
mod remove;
mod running;
mod text;

pub use container::{Bind, Container, Dir, Network, Rootfs, Tmpfs};
pub use error::StartError;
pub use idmap::{Authority, Caller, IdMap, IdMapError, UID_BASE};
pub use image_store::{Attach, Root};
pub use launch::start;
pub use mounts::{Access, MountStep, RootMount, Upper};
pub use plan::{OWN_DIR, PROGRAM_PATH, PlanError, plan};
pub use probe::{AttachTrial, HostReport, Item, caller, probe_attach, probe_host};
pub use program::{LoadError, Program};
pub use remove::remove_tree;
pub use running::{Ended, Running};
