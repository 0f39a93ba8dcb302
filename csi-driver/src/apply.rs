//! Doing what was decided: making a volume's folder, mounting on it, moving it aside.
//!
//! A folder is made under a random name beside its target, whole, then recorded, then renamed: at a target there is always
//! nothing or all. Every step is by descriptor of the folder that the target is in.
//!
//! **Must not know:** why.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    Gid, Mode, RenameFlags, Uid, fchmod, fchown, mkdirat, openat, openat2, renameat, renameat_with,
};
use rustix::io::Errno;

use crate::journal::{Journal, folder};
use crate::layout;
use crate::mounts::{Detached, detach};
use crate::remove::remove;
use crate::target::{FOLDER, Found, STRICT, birth, look};
use crate::volume::{Backing, Birth, Volume, Wanted};
use crate::work::STACK_BYTES;

/// Which folder of a tenant its shared volumes show.
const SHARED: &str = "shared";

/// What was being done when the kernel said no.
#[derive(Debug)]
pub struct Failed {
    /// The step.
    pub step: &'static str,
    /// What it said.
    pub source: io::Error,
}

fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Failed {
    move |error| Failed { step, source: error.into() }
}

/// Makes a volume's folder, records it, gives it its name, mounts on it. The volume comes back with its birth.
///
/// # Errors
/// When a step fails; then nothing of it is left, and no record.
pub fn make(
    parent: BorrowedFd<'_>,
    tenant: &OwnedFd,
    journal: &Journal,
    volume: Volume,
) -> Result<Volume, Failed> {
    let made = make_whole(parent, tenant, journal, volume.clone());
    if made.is_err() {
        undo(parent, journal, &volume);
    }
    made
}

fn make_whole(
    parent: BorrowedFd<'_>,
    tenant: &OwnedFd,
    journal: &Journal,
    mut volume: Volume,
) -> Result<Volume, Failed> {
    volume.birth = None;
    journal.write(&volume, false).map_err(at("write the volume's record"))?;
    // The disk is waited for twice, for the record and for its name: at the same time, because that is most of what making takes.
    std::thread::scope(|scope| {
        let settle = || journal.settle().map_err(at("write the volume's record"));
        let thread = std::thread::Builder::new().name("csi-settle".to_owned()).stack_size(STACK_BYTES);
        let settling = thread.spawn_scoped(scope, settle);
        volume.birth = Some(make_aside(parent, &volume)?);
        journal.write(&volume, true).map_err(at("write the volume's record"))?;
        match settling.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(settled)) => settled,
            // There is no thread to be had, or it died.
            Ok(Err(_)) | Err(_) => settle(),
        }
    })?;
    let name = volume.target.name();
    match renameat_with(parent, &volume.aside, parent, name, RenameFlags::NOREPLACE) {
        // What is there is an empty folder, or else this fails. And there are file systems that can't promise it (some FUSE): nobody
        // else makes this name.
        Err(Errno::EXIST | Errno::INVAL) => {
            renameat(parent, &volume.aside, parent, name).map_err(at("put the folder in place"))?;
        }
        other => other.map_err(at("put the folder in place"))?,
    }
    mount(parent, tenant, &volume)?;
    Ok(volume)
}

/// Makes a volume's folder under its other name.
fn make_aside(parent: BorrowedFd<'_>, volume: &Volume) -> Result<Birth, Failed> {
    mkdirat(parent, &volume.aside, Mode::RWXU).map_err(at("make the folder"))?;
    let made = openat(parent, &volume.aside, FOLDER, Mode::empty()).map_err(at("open the folder"))?;
    if volume.wanted.backing == Backing::Folder {
        furnish(made.as_fd(), &volume.wanted)?;
    }
    birth(made.as_fd()).map_err(at("look at the folder"))
}

/// Mounts on a volume's folder what it is to show; nothing for a volume that is the folder.
///
/// # Errors
/// When a step fails; then nothing is mounted.
pub fn mount(parent: BorrowedFd<'_>, tenant: &OwnedFd, volume: &Volume) -> Result<(), Failed> {
    let wanted = &volume.wanted;
    let mount = match wanted.backing {
        Backing::Folder => return Ok(()),
        Backing::Tmpfs { bytes } => {
            let mount = Detached::tmpfs(bytes).map_err(at("make a tmpfs"))?;
            let root = mount.root().map_err(at("open the tmpfs"))?;
            furnish(root.as_fd(), wanted)?;
            mount
        }
        Backing::Shared => {
            let shared = shared(tenant).map_err(at("open the tenant's folder"))?;
            // Each volume of a tenant may be of another pod with other users.
            fchmod(&shared, Mode::from_raw_mode(0o1777))
                .map_err(at("open the tenant's folder to its pods"))?;
            Detached::of(shared.as_fd()).map_err(at("bind the tenant's folder"))?
        }
    };
    mount.attach(parent, volume.target.name(), wanted.read_only).map_err(at("mount on the folder"))
}

/// The folder that all volumes with `source: shared` of a tenant show.
///
/// # Errors
/// When it can't be made or opened.
pub fn shared(tenant: &OwnedFd) -> io::Result<OwnedFd> {
    folder(tenant.as_fd(), SHARED)
}

/// Makes the folders for a pilot's slots, then gives the root its owner and permissions.
fn furnish(root: BorrowedFd<'_>, wanted: &Wanted) -> Result<(), Failed> {
    for made in layout::folders(wanted.slots) {
        mkdirat(root, &made.path, Mode::RWXU).map_err(at("make the slots' folders"))?;
        let folder = openat2(root, &made.path, FOLDER, Mode::empty(), STRICT)
            .map_err(at("open the slots' folders"))?;
        own(folder.as_fd(), wanted.uid, wanted.gid, made.mode)?;
    }
    own(root, wanted.uid, wanted.gid, wanted.permissions)
}

fn own(folder: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>, mode: u32) -> Result<(), Failed> {
    if uid.is_some() || gid.is_some() {
        fchown(folder, uid.map(Uid::from_raw), gid.map(Gid::from_raw))
            .map_err(at("give the folder its owner (takes CAP_CHOWN)"))?;
    }
    // After the owner: a change of owner takes the setgid bit away. And by descriptor, whatever the umask.
    fchmod(folder, Mode::from_raw_mode(mode)).map_err(at("give the folder its permissions"))
}

/// Removes what a failed step left. What can't be removed stays with its record, for the next start.
fn undo(parent: BorrowedFd<'_>, journal: &Journal, volume: &Volume) {
    // Without a record nothing has been given its name.
    let recorded = journal.read(&volume.id).ok().flatten().unwrap_or_else(|| volume.clone());
    let gone = match set_aside(parent, &recorded) {
        // It never came so far, or stands there without its mount.
        Ok(()) => remove(parent, &recorded.aside, recorded.birth).is_ok(),
        Err(_) => false,
    };
    if gone {
        // The next start finds the record of nothing, and forgets it.
        let _ = journal.forget(&volume.id);
    }
}

/// Unmounts what is mounted on a volume's folder and moves the folder away from its target, where it is as good as gone. What is
/// at the target and is not the volume's stays there.
///
/// # Errors
/// When it is in use, or can't be moved.
pub fn set_aside(parent: BorrowedFd<'_>, volume: &Volume) -> io::Result<()> {
    let name = volume.target.name();
    if volume.wanted.backing.is_mount() {
        detach(parent, name)?;
    }
    match look(parent, name)? {
        Found::Folder { birth, mounted: false, .. } if volume.birth == Some(birth) => {
            Ok(renameat(parent, name, parent, &volume.aside)?)
        }
        _ => Ok(()),
    }
}

/// Opens what a volume shows at its target.
///
/// # Errors
/// When it can't be opened.
pub fn open(parent: BorrowedFd<'_>, volume: &Volume) -> io::Result<OwnedFd> {
    Ok(openat(parent, volume.target.name(), FOLDER, Mode::empty())?)
}
