//! Latebind's data plane: a stage is bytes that no one can change any more.
//!
//! ## Memory rules
//! 1. Memory becomes `&[u8]` only if *this process* asked the kernel (`F_GET_SEALS`) and found `F_SEAL_WRITE`,
//!    `F_SEAL_SHRINK` and `F_SEAL_GROW`. What a sender, a name or the broker says about it counts for nothing.
//! 2. `F_SEAL_FUTURE_WRITE` is not enough: a mapping that is older than the seal still writes.
//! 3. A file in a folder can't be sealed (tmpfs: EPERM, ext4: EINVAL), so a file is never mapped here. It is read.
//! 4. A hole is refused or filled before anything is mapped: a read through a mapping would allocate the page in the
//!    reader's name, and running out of memory there is SIGBUS.
//! 5. A descriptor has one owner (`OwnedFd`) and is close-on-exec from birth.
//!
//! [`SealedMap::open`] is the only place where rule 1 is kept and the only way to a slice.
//!
//! ## Rooms
//! [`MemoryWriter`] -> [`MemoryStage`] -> [`SealedMap`] is class `mem`; [`OutputFile`] -> [`FileStage`] ->
//! [`lend_file`] is class `file`, where a read lease proves what a seal proves for memory; [`commit_folder`] does the same for
//! a tree of files. [`Ledger`] knows what
//! exists, who still needs it and what may still be allocated; it touches nothing itself. [`Pipe`] and [`SharedMemory`]
//! are for payloads that run at the same time; what goes through them never becomes a stage.
//!
//! [`broker`] decides who may make and read what, through sockets that [`server`] owns; [`client`] is what a payload links
//! to speak with it. The messages are [`wire::stage`]. Through an [`exchange`] the brokers of several pilots share what they have.
//!
//! **Must not know:** Kubernetes, queues, payload life cycles, which folder belongs to whom. Folders arrive as
//! descriptors, so no path of a payload is ever walked.

pub mod broker;
pub mod client;
pub mod exchange;
pub mod server;

mod copy;
mod error;
mod file;
mod folder;
mod found;
mod lease;
mod ledger;
mod lend;
mod memory;
mod name;
mod pipe;
mod reader;
mod shared;
#[expect(unsafe_code, reason = "F_SETLEASE is in no safe wrapper, and mapping is unsafe by nature")]
mod sys;
mod unwritten;

pub use copy::{WhyCopied, lies_in_memory};
pub use error::{CommitError, CommitReason, Kind};
pub use file::{FileStage, Landing, OutputFile, PrepareError};
pub use folder::{
    FolderError, FolderLimits, FolderStage, commit_folder, lend_folder, prepare_folder, remove_folder,
};
pub use lease::{FileLease, LeaseError};
pub use ledger::{
    Budget, Class, Fate, Ledger, LedgerError, Medium, OBJECTS_MAX, Object, Reservation, ReserveError,
};
pub use lend::{LendError, lend_file, lend_open};
pub use memory::{Lending, MemoryError, MemoryStage, MemoryWriter, NotCommitted};
pub use name::{NameError, StageName, StageUri, UriError};
pub use pipe::{Pipe, PipeEnd, PipeError};
pub use reader::{MapError, SealedMap};
pub use shared::SharedMemory;
