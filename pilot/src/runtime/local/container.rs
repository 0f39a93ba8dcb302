//! What a payload's container looks like: from the payload, its image and its slot's folders to `oci-runner`'s plain data.
//!
//! Pure. Paths in the container are part of the contract with payloads (docs/reference/slot.md).
//!
//! **Must not know:** how containers are started, sockets, stages' contents.

use std::path::{Path, PathBuf};

use oci_runner::{Bind, Dir, Network, Rootfs, Tmpfs};

use super::folders::SlotFolders;
use crate::payload::{Payload, Source};
use crate::runtime::stages::FILE_INPUTS;

/// `/tmp` and `/var/tmp` lie in memory; this is the most that each may take, and less when the payload has less memory.
const TMP_BYTES_MAX: u64 = 1 << 30;
/// `/stage` holds links and one folder: 2 x 512 names of 64 bytes fit.
const STAGE_BYTES: u64 = 1 << 20;
const HOST_INPUTS: &str = "/.latebind/host";

/// The parts of a container that depend on the payload.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) rootfs: Rootfs,
    pub(super) network: Network,
    pub(super) binds: Vec<Bind>,
    pub(super) tmpfs: Vec<Tmpfs>,
    pub(super) dirs: Vec<Dir>,
    pub(super) shm_bytes: u64,
}

/// Where the `index`-th input lies in the container when it comes from the host.
pub(super) fn host_input(index: usize) -> String {
    format!("{HOST_INPUTS}/{index}")
}

/// Lays out the container of a payload.
pub(super) fn layout(payload: &Payload, folders: &SlotFolders) -> Layout {
    let memory = payload.resources.memory_bytes;
    let tmpfs = |target: &str, size_bytes: u64, mode: u32| Tmpfs {
        target: PathBuf::from(target),
        size_bytes,
        inodes: 0,
        mode,
    };
    let bind = |source: &Path, target: &str, read_only: bool, is_file: bool| Bind {
        source: source.to_path_buf(),
        target: PathBuf::from(target),
        read_only,
        is_file,
        optional: false,
    };
    let mut binds = vec![
        bind(&folders.work, "/work", false, false),
        bind(&folders.out, "/stage/out", false, false),
        bind(&folders.inputs, FILE_INPUTS, true, false),
    ];
    for (index, input) in payload.inputs.iter().enumerate() {
        if let Source::Host(path) = &input.source {
            binds.push(bind(path, &host_input(index), true, !path.is_dir()));
        }
    }
    if payload.host_network {
        for file in ["/etc/resolv.conf", "/etc/hosts"] {
            binds.push(Bind { optional: true, ..bind(Path::new(file), file, true, true) });
        }
    }
    let rootfs = if payload.writable_root {
        Rootfs::Writable { upper: folders.upper.clone(), work: folders.overlay.clone() }
    } else {
        Rootfs::ReadOnly
    };
    Layout {
        rootfs,
        network: if payload.host_network { Network::Host } else { Network::None },
        binds,
        tmpfs: vec![
            tmpfs("/tmp", memory.min(TMP_BYTES_MAX), 0o1777),
            tmpfs("/var/tmp", memory.min(TMP_BYTES_MAX), 0o1777),
            tmpfs("/stage", STAGE_BYTES, 0o755),
        ],
        dirs: vec![Dir { target: PathBuf::from("/stage/in"), mode: 0o755 }],
        shm_bytes: memory,
    }
}
