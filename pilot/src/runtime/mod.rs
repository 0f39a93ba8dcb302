//! Runtime adapters: where payloads run. All but [`kubernetes`] and [`local`] is common to all of them.

pub mod adoption;
pub mod exchange;
pub mod exec;
pub mod kubernetes;
pub mod local;
pub mod logs;
pub mod slots;
mod sources;

mod committing;
mod following;
mod growth;
mod known;
mod launching;
mod objects;
mod pristine;
mod record;
mod retaining;
mod stage_clients;
mod stages;
mod talk;
mod together;
mod usage;

use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime's event loop.
///
/// # Errors
/// When it can't be polled, such as a regular file.
#[expect(
    deprecated,
    reason = "deprecated for types whose AsRawFd lies or changes; OwnedFd's does neither, and the new constructor is unsafe"
)]
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}
