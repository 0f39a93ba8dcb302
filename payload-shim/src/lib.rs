//! PID 1 of a Latebind slot: starts, watches, ends and cleans up one payload at a time.
//!
//! ```text
//!            control socket                 fork/exec
//!   pilot <==================> PID 1 ----------------------> payload (and its descendants, helpers)
//!                                | private socketpair           |
//!                                v                              | /stage/in/x -> /proc/<holder>/fd/N
//!                              holder <-------------------------+
//! ```
//! One process, and a second one where stages are lent, because a payload has the same uid as they. PID 1 is not
//! dumpable, so the payload can neither trace it nor take its descriptors; it keeps the control socket. The holder is
//! dumpable, so that links into its `/proc/<pid>/fd` work; it keeps stage descriptors and nothing else ([`holder`]). Stages in
//! memory that a pilot which comes back is to have again are kept by PID 1, out of payloads' reach (`retained.rs`).
//!
//! One poll loop ([`shim`]) waits for signals, the pilot, the payload's exec and deadlines. What the pilot may say is
//! in [`wire::slot`]; what each word does is in `orders.rs`; how a payload comes to its end is in `ending.rs`.
//!
//! **Must not know:** images, Kubernetes, workflows, which payload is good. An injected PID 1 refuses features.
//!
//! # Guarantees
//! - A launch id runs at most once, also after a restart: it is written down before the fork, and the latest 1024 are
//!   remembered.
//! - After a Clean without failures there is no process of the payload, nothing of it in [`clean::ROOTS`] or beside the record of
//!   launches, no System V object, no limit or priority of ours that it changed. After one with failures nothing more is launched.
//! - When `Exited` is sent, no process of the payload is left but zombies of a holder that the payload has taken over.
//! - Nothing that the pilot or the payload sends makes it panic.
//! - With `LATEBIND_CONFINE=pod` nobody whom PID 1 started can use System V IPC or POSIX message queues, for whatever ABI
//!   it was built, nor, where the kernel has Landlock of Linux 6.12 or newer switched on, connect or send to an abstract
//!   unix socket that was made outside the slot. What is not closed is listed in [`confine`].
//! - A shim with [`wire::slot::Nonce::IDLE`] waits for its pilot for as long as it takes.
//!
//! # Size
//! At most 1.5 MiB, linked statically; `docs/benchmarks.md` says how large it is.
//!
//! # Assumptions
//! - `/proc` belongs to this PID namespace. Without it nothing is launched.
//! - As PID 1, everything in the PID namespace but us is the payload's. Not as PID 1 (tests, a pod with a
//!   shared PID namespace), everything that descends from this process is; it is then a subreaper, so nobody gets away.

pub mod cgroup;
pub mod clean;
pub mod clock;
pub mod confine;
pub mod holder;
pub mod processes;
pub mod reveal;
pub mod settings;
pub mod shim;
pub mod stages;

mod ending;
mod failure;
mod ipc;
mod launch;
mod link;
mod orders;
mod privileges;
mod ran;
mod retained;
mod standing;
#[expect(unsafe_code, reason = "fork, exec, wait4, signalfd and the environment have no safe wrapper")]
mod sys;

pub use privileges::give_up;
pub use sys::block_signals;
