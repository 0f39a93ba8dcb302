//! Mounts for volumes of `mode: mount`: made whole before anything is attached, so that nothing half-made is ever at a target.
//!
//! **Must not know:** volumes, records.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};

use crate::sys;
use crate::target::FOLDER;

/// Mounts on top of each other at a target: the driver makes one.
const STACK_MAX: usize = 8;

/// A mount that is nowhere yet.
#[derive(Debug)]
pub struct Detached {
    mount: OwnedFd,
}

impl Detached {
    /// A tmpfs of so many bytes, with at most one file for each 4 KiB of it.
    ///
    /// # Errors
    /// When the kernel refuses, such as for want of `CAP_SYS_ADMIN`.
    pub fn tmpfs(bytes: u64) -> io::Result<Self> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "size", bytes.to_string())?;
        // The folders of a layout, and one for each page.
        fsconfig_set_string(&context, "nr_inodes", (bytes / 4096 + 4096).to_string())?;
        fsconfig_set_string(&context, "mode", "0700")?;
        fsconfig_create(&context)?;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        Ok(Self { mount })
    }

    /// What is in a folder, once more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn of(folder: BorrowedFd<'_>) -> io::Result<Self> {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        Ok(Self { mount: open_tree(folder, "", flags)? })
    }

    /// Its root, open for what is in it.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn root(&self) -> io::Result<OwnedFd> {
        Ok(openat(&self.mount, c".", FOLDER, Mode::empty())?)
    }

    /// Puts it on a folder, without programs that change users and without devices.
    ///
    /// # Errors
    /// When the kernel refuses; then it is nowhere.
    pub fn attach(self, parent: BorrowedFd<'_>, name: &str, read_only: bool) -> io::Result<()> {
        sys::restrict_mount(self.mount.as_fd(), read_only)?;
        Ok(move_mount(&self.mount, "", parent, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
    }
}

/// Takes away whatever is mounted on a folder.
///
/// # Errors
/// When it is in use.
pub fn detach(parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    // The name is looked up in the folder that is open, and no link is followed.
    let path = format!("/proc/self/fd/{}/{name}", parent.as_raw_fd());
    for _ in 0..STACK_MAX {
        match unmount(&path, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Nothing is mounted there, or nothing is there.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::Error::from(Errno::BUSY))
}
