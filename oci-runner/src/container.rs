//! What a container is, as plain data: no descriptor is opened and no path looked at before [`crate::start`].
//!
//! **Must not know:** images, registries, slots, payloads; whoever fills this in has decided all of that.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use crate::cgroup::Cgroup;
use crate::idmap::IdMap;
use crate::program::Program;
use image_store::Root;

/// A container to be started: one process tree with its own root, ids and view of the machine.
#[derive(Debug)]
pub struct Container<'a> {
    /// Where the root file system comes from, as the image store laid it out.
    pub root: Root,
    /// Whether the payload may write to `/`.
    pub rootfs: Rootfs,
    /// Which id the processes have inside, and which one the host sees.
    pub ids: IdMap,
    /// What `hostname` answers inside. At most 64 bytes.
    pub hostname: String,
    /// Which network the processes see.
    pub network: Network,
    /// Host files and folders shown inside.
    pub binds: Vec<Bind>,
    /// Empty file systems in memory, beside the standard ones (`/dev`, `/dev/shm`, and `/.latebind` when needed).
    pub tmpfs: Vec<Tmpfs>,
    /// Folders made before the start; each must lie below one of `tmpfs`.
    pub dirs: Vec<Dir>,
    /// Size limit of `/dev/shm` in bytes.
    pub shm_bytes: u64,
    /// Whether processes may make user namespaces of their own. Without, no process in the container can ever hold
    /// a capability again; with, nested container tools work (the kernel lets uid 0 without `CAP_SETFCAP` map only
    /// others than itself, so they want another id inside). The safe answer is `false`.
    pub nested_user_namespaces: bool,
    /// What runs as PID 1.
    pub program: &'a Program,
    /// `argv` of PID 1, the name first.
    pub argv: Vec<String>,
    /// The whole environment of PID 1, as `NAME=value`.
    pub env: Vec<String>,
    /// Descriptors that PID 1 inherits, each under the number given. Of 0, 1 and 2, those not named here are
    /// `/dev/null`; no other descriptor is open.
    pub fds: Vec<(BorrowedFd<'a>, i32)>,
    /// The cgroup that PID 1 is put into before anything of the container runs.
    pub cgroup: Option<&'a Cgroup>,
    /// Kill PID 1 when the *thread* that called [`crate::start`] ends (`PR_SET_PDEATHSIG` is bound to a thread, not
    /// to the process). Set it only when that thread lives as long as the pilot; a pool's worker does not.
    pub dies_with_starting_thread: bool,
}

/// Whether the root file system can be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// `/` is read-only.
    ReadOnly,
    /// `/` is writable and what is written lands in `upper`, which belongs to this container alone. Both folders
    /// must be empty, owned by the host id of the container, and lie side by side in one folder. For
    /// [`Root::Copy`] there is no overlay: `upper` must hold a copy of the tree and becomes the root itself.
    /// Afterwards, [`crate::remove_tree`] removes them; overlayfs leaves a folder without permissions in `work`.
    Writable {
        /// Where changes land.
        upper: PathBuf,
        /// overlayfs's own folder beside it.
        work: PathBuf,
    },
}

/// Which network the processes see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The host's, as HPC jobs expect.
    Host,
    /// None but a loopback of their own.
    None,
}

/// A host file or folder shown inside, always `nosuid,nodev`, with whatever is mounted below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Path on the host.
    pub source: PathBuf,
    /// Absolute path inside. It must exist in the image, or lie below a tmpfs of this container, where it is made.
    pub target: PathBuf,
    /// Whether writing is refused, also on what is mounted below.
    pub read_only: bool,
    /// Whether the source is a file rather than a folder; it decides what is made as mount point.
    pub is_file: bool,
    /// Leave it out, instead of failing, when the source or the mount point does not exist.
    pub optional: bool,
}

/// An empty file system in memory, `nosuid,nodev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tmpfs {
    /// Absolute path inside; it must exist in the image or lie below another tmpfs.
    pub target: PathBuf,
    /// Size limit in bytes.
    pub size_bytes: u64,
    /// Limit on files and folders; 0 for the kernel's own.
    pub inodes: u64,
    /// Permission bits of its root.
    pub mode: u32,
}

/// A folder made inside a tmpfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dir {
    /// Absolute path inside.
    pub target: PathBuf,
    /// Permission bits.
    pub mode: u32,
}
