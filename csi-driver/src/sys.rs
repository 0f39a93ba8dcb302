//! The one call that no safe wrapper has: changing the attributes of a mount that is not attached yet.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes a mount `nosuid` and `nodev`, and read-only if asked: mount_setattr(2), Linux 5.12.
pub(crate) fn restrict_mount(mount: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let read_only = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | read_only,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a NUL-terminated literal; the structure lives through the call and its true size is passed, so the
    // kernel reads no further; `mount` is borrowed, so it is open during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
