//! The shared volume: what the pilot keeps there, and the folders that each slot has mounted.
//!
//! ```text
//! <share>/                        mounted whole in the pilot only
//!   pilot/                        0700: records, logs, stages' notes, spool, image documents
//!   stages/<workflow>/<payload>/  0700: committed files
//!   stages/.spill/                0700: stages that are just leaving memory
//!   slots/<n>/control/            0711  -> /.latebind/control     sock, ran/latest
//!   slots/<n>/in/                 0755  -> /.latebind/in          inputs in files, read-only there
//!   slots/<n>/links/              0777  -> /stage/in              the shim's links
//!   slots/<n>/out/                0777  -> /stage/out             outputs, made by the pilot
//!   slots/<n>/work/               0777  -> /work
//!   slots/<n>/mounts/<k>          a link to what the pod's k-th mount shows: `empty`, `none` (a file), or in shown/
//!   slots/<n>/shown/              0711  what payloads want mounted at paths of their own choosing
//! ```
//! A slot mounts its own folders and nothing above them, so modes that let every uid in let one slot's in. The kubelet makes
//! a missing folder itself, as root and for everybody: they are made before any slot starts ([`prepare`]).
//!
//! **Must not know:** containers, payloads, the API.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::mounts::is_file_place;

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
    /// The links that say what is mounted where the pod declares it.
    pub(super) mounts: PathBuf,
    /// What they lead to while a payload wants something there.
    pub(super) shown: PathBuf,
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

/// What is mounted where nobody wants a folder, or a file.
const NOTHING: [&str; 2] = ["empty", "none"];

impl SlotFolders {
    /// Lets the mount `place` show what is called `shown`, or nothing, from the next container on. The node resolves the
    /// link when it makes a container, in one step: so it is replaced in one.
    ///
    /// # Errors
    /// When that can't be done.
    pub(super) fn point(&self, place: &str, shown: Option<&str>) -> io::Result<()> {
        let target = match shown {
            Some(name) => Path::new("../shown").join(name),
            None => NOTHING[usize::from(is_file_place(place))].into(),
        };
        let fresh = self.mounts.join(format!("fresh-{:08x}", fastrand::u32(..)));
        // Relative: the volume has another path on the node.
        symlink(target, &fresh)?;
        fs::rename(&fresh, self.mounts.join(place)).inspect_err(|_| drop(fs::remove_file(&fresh)))
    }

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
        // A shim cleans here too, but one that was killed has not: folders of its payload are another user's, and stay where no
        // payload sees them.
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
            mounts: mounted.join("mounts"),
            shown: mounted.join("shown"),
            streams: [own.join("stdout"), own.join("stderr")],
            record: own.join("record"),
            keeping: own.join("keeping"),
        }
    }
}

/// Makes every folder of the volume, as it must be before the first slot starts, and the mounts `places` of each slot, which
/// show nothing. What is there stays.
///
/// # Errors
/// When one can't be made.
pub fn prepare(share: &Path, slots: u32, places: &[String]) -> io::Result<()> {
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
        prepare_mounts(&folders, places)?;
        if let Some(own) = folders.record.parent() {
            make(own, 0o700)?;
        }
    }
    Ok(())
}

fn prepare_mounts(folders: &SlotFolders, places: &[String]) -> io::Result<()> {
    if places.is_empty() {
        return Ok(());
    }
    for path in [&folders.mounts, &folders.shown] {
        make(path, 0o711)?;
    }
    let [folder, file] = NOTHING.map(|name| folders.mounts.join(name));
    make(&folder, INPUTS)?;
    if !file.exists() {
        fs::write(&file, b"")?;
        fs::set_permissions(&file, Permissions::from_mode(0o444))?;
    }
    for place in places {
        if folders.mounts.join(place).symlink_metadata().is_err() {
            folders.point(place, None)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_shows_nothing_then_something_then_nothing_and_is_not_reset_by_a_second_look() {
        let root = tempfile::tempdir().expect("tempdir");
        let places = ["0".to_owned(), "1.file".to_owned()];
        prepare(root.path(), 1, &places).expect("prepare");
        let slot = Share::new(root.path()).slot(0);
        let (folder, file) = (slot.mounts.join("0"), slot.mounts.join("1.file"));
        assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 0);
        assert_eq!(fs::read(&file).expect("a file"), b"");
        fs::write(slot.shown.join("x"), "shown").expect("write");
        slot.point("1.file", Some("x")).expect("point");
        prepare(root.path(), 1, &places).expect("prepare again");
        assert_eq!(fs::read(&file).expect("a file"), b"shown");
        assert!(fs::read_link(&file).expect("a link").is_relative());
        slot.point("1.file", None).expect("point");
        assert_eq!(fs::read(&file).expect("a file"), b"");
        let left = fs::read_dir(&slot.mounts).expect("list").count();
        assert_eq!(left, places.len() + NOTHING.len());
    }
}
