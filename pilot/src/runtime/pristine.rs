//! Whether a folder that a payload could write to is as it was made.
//!
//! **Must not know:** which folder it is, what is done when it is not.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};

/// Opens a folder for looks at it.
pub(super) fn open_folder(path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

/// Whether a folder is empty and has the permission bits that it was made with.
pub(super) fn is_as_made(folder: &OwnedFd, mode: u32) -> bool {
    let mut room = [MaybeUninit::<u8>::uninit(); 256];
    let kept = rustix::fs::fstat(folder).is_ok_and(|stat| stat.st_mode & 0o7777 == mode);
    if !kept || rustix::fs::seek(folder, SeekFrom::Start(0)).is_err() {
        return false;
    }
    let mut entries = RawDir::new(folder, &mut room);
    loop {
        match entries.next() {
            None => return true,
            Some(Ok(entry)) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
            Some(_) => return false,
        }
    }
}
