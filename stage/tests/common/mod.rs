//! What the suites of this crate share.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use stage::StageName;

/// An uid without rights that is not ours.
pub(crate) const OTHER_UID: u32 = 65_533;

/// One test at a time: a child that another test is starting holds a copy of every descriptor of ours until its exec,
/// and a writable one among them is a writer to the kernel.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Past the test harness, which keeps the output of tests that pass to itself.
pub(crate) fn skipped(test: &str, missing: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {missing}");
}

pub(crate) fn root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) fn name(text: &str) -> StageName {
    StageName::new(text).expect("name")
}

pub(crate) fn open_dir(path: &Path) -> File {
    File::open(path).expect("open folder")
}

#[expect(clippy::disallowed_methods, reason = "a test that waits for its child")]
pub(crate) fn sh(script: &str, uid: Option<u32>) -> Output {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).current_dir("/");
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    command.output().expect("run sh")
}

/// A descriptor that the next child inherits, while this lives.
pub(crate) struct Inherited<'fd>(BorrowedFd<'fd>);

impl<'fd> Inherited<'fd> {
    pub(crate) fn new(fd: BorrowedFd<'fd>) -> Self {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).expect("clear close-on-exec");
        Self(fd)
    }

    pub(crate) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

impl Drop for Inherited<'_> {
    fn drop(&mut self) {
        let _ = rustix::io::fcntl_setfd(self.0, rustix::io::FdFlags::CLOEXEC);
    }
}
