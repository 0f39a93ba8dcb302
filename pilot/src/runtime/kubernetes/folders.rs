//! The shared volume: what the pilot keeps there, and the folders that each slot has mounted.
//!
//! ```text
//! <share>/                        mounted whole in the pilot only
//!   pilot/                        0700: records, logs, stages' notes, spool, image documents
//!   stages/<workflow>/<payload>/  0700: committed files
//!   slots/<n>/control/            0711  -> /.latebind/control     sock, ran/latest
//!   slots/<n>/in/                 0755  -> /.latebind/in          inputs in files, read-only there
//!   slots/<n>/links/              0777  -> /stage/in              the shim's links
//!   slots/<n>/out/                0777  -> /stage/out             outputs, made by the pilot
//!   slots/<n>/work/               0777  -> /work
//! ```
//! A slot mounts its own folders and nothing above them, so modes that let every uid in let one slot's in. The kubelet makes
//! a missing folder itself, as root and for everybody: they are made before any slot starts ([`prepare`]).
//!
//! **Must not know:** containers, payloads, the API.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What a slot's shim and payload may write to is open to all behind a folder that only this slot mounts.
pub(super) const OPEN: u32 = 0o777;
/// The mode of the folder of inputs.
pub(super) const INPUTS: u32 = 0o755;

/// The folders of one slot.
#[derive(Clone, Debug)]
pub(super) struct SlotFolders {
    /// Holds the pilot's socket and the shim's record of launches.
    pub(super) control: PathBuf,
    /// `/.latebind/in`.
    pub(super) inputs: PathBuf,
    /// `/stage/in`.
    pub(super) links: PathBuf,
    /// `/stage/out`.
    pub(super) out: PathBuf,
    /// `/work`.
    pub(super) work: PathBuf,
    /// The FIFOs of the payload's standard output and error; not mounted.
    pub(super) streams: [PathBuf; 2],
    /// What another pilot must know to adopt what runs here; not mounted.
    pub(super) record: PathBuf,
    /// There from when outputs are first touched; not mounted.
    pub(super) keeping: PathBuf,
}

/// The volume.
#[derive(Clone, Debug)]
pub(super) struct Share {
    root: PathBuf,
}

/// What the shim keeps among its markers.
const MARKER: &str = "latest";

impl SlotFolders {
    /// Where the shim notes what it launched. A payload is the same user and may write there as well.
    pub(super) fn markers(&self) -> PathBuf {
        self.control.join("ran")
    }

    /// Puts an empty folder there, so that no payload reads what one of another container left, or can't be launched for it.
    /// To be called when no shim that is still of use has launched anything.
    ///
    /// # Errors
    /// When that can't be done.
    pub(super) fn renew_markers(&self) -> io::Result<()> {
        let markers = self.markers();
        if fs::read_dir(&markers)?.next().is_none() {
            return Ok(());
        }
        let former = self.record.with_file_name(format!("former-{:08x}", fastrand::u32(..)));
        fs::rename(&markers, &former)?;
        make(&markers, OPEN)?;
        // Folders in it are another user's. They stay, where no payload sees them.
        let _ = fs::remove_dir_all(&former);
        Ok(())
    }

    /// Whether nothing is among the markers that is not the shim's.
    pub(super) fn has_only_markers(&self) -> bool {
        let own = |entry: io::Result<fs::DirEntry>| {
            entry.is_ok_and(|entry| {
                entry.file_name() == MARKER && entry.file_type().is_ok_and(|kind| kind.is_file())
            })
        };
        fs::read_dir(self.markers()).is_ok_and(|mut entries| entries.all(own))
    }
}

/// The folder of all that is the pilot's own.
pub(crate) fn private(share: &Path) -> PathBuf {
    share.join("pilot")
}

impl Share {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(super) fn private(&self) -> PathBuf {
        private(&self.root)
    }

    pub(super) fn stages_root(&self) -> PathBuf {
        self.root.join("stages")
    }

    /// The folder of a payload's committed file stages; made on demand.
    pub(super) fn stages(&self, workflow: &str, payload: &str) -> io::Result<PathBuf> {
        let path = self.stages_root().join(workflow).join(payload);
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(path)
    }

    pub(super) fn slot(&self, number: u32) -> SlotFolders {
        let mounted = self.root.join("slots").join(number.to_string());
        let own = self.private().join("slots").join(number.to_string());
        SlotFolders {
            control: mounted.join("control"),
            inputs: mounted.join("in"),
            links: mounted.join("links"),
            out: mounted.join("out"),
            work: mounted.join("work"),
            streams: [own.join("stdout"), own.join("stderr")],
            record: own.join("record"),
            keeping: own.join("keeping"),
        }
    }
}

/// Makes every folder of the volume, as it must be before the first slot starts. What is there stays.
///
/// # Errors
/// When one can't be made.
pub fn prepare(share: &Path, slots: u32) -> io::Result<()> {
    let share_folders = Share::new(share);
    for path in [share_folders.private(), share_folders.stages_root(), share_folders.private().join("tmp")] {
        make(&path, 0o700)?;
    }
    make(&share.join("slots"), 0o711)?;
    for number in 0..slots {
        let folders = share_folders.slot(number);
        make(&share.join("slots").join(number.to_string()), 0o711)?;
        make(&folders.control, 0o711)?;
        for path in [&folders.markers(), &folders.links, &folders.out, &folders.work] {
            make(path, OPEN)?;
        }
        make(&folders.inputs, INPUTS)?;
        if let Some(own) = folders.record.parent() {
            make(own, 0o700)?;
        }
    }
    Ok(())
}

/// Makes a folder of exactly this mode, whatever the umask.
fn make(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}
