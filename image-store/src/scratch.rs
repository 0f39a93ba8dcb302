//! Folders for work in progress. Each is named after the process that owns it, so that what a killed process
//! leaves can be told from what a living one still needs: by node, boot, pid namespace, pid and start time.
//! A folder whose owner can't be judged from here (another node, another pid namespace) is left alone.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::digest::Digest;

/// A folder that is removed when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    dir: OwnedFd,
}

/// Who owns a scratch folder; all of it is in the folder's name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    node: String,
    boot: String,
    pid_namespace: String,
    pid: u32,
    start: String,
}

impl Scratch {
    /// Makes a folder below `parent`, mode 0700.
    pub(crate) fn create(parent: &Path) -> io::Result<Self> {
        let owner = Owner::this_process()?;
        loop {
            let path = parent.join(format!("{}.{:016x}", owner.name(), fastrand::u64(..)));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
                    let dir = rustix::fs::open(&path, flags, Mode::empty())?;
                    return Ok(Self { path, dir });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What can't be removed now is swept when the store is opened next.
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "scratch folder stays behind");
        }
    }
}

/// Removes the folders below `parent` whose owners are dead; answers how many.
pub(crate) fn sweep(parent: &Path) -> io::Result<usize> {
    let this = Owner::this_process()?;
    let mut swept = 0;
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let dead = entry.file_name().to_str().is_some_and(|name| is_dead(name, &this, start_of));
        if dead && fs::remove_dir_all(entry.path()).is_ok() {
            swept += 1;
        }
    }
    Ok(swept)
}

/// Whether the owner that `name` states is surely dead, seen by the process `this`.
fn is_dead(name: &str, this: &Owner, start_of: impl Fn(u32) -> Option<String>) -> bool {
    let Some(owner) = Owner::parse(name) else { return false };
    if owner.node != this.node {
        return false;
    }
    if owner.boot != this.boot {
        return true;
    }
    owner.pid_namespace == this.pid_namespace && start_of(owner.pid).as_ref() != Some(&owner.start)
}

impl Owner {
    fn this_process() -> io::Result<Self> {
        let pid = std::process::id();
        let node = rustix::system::uname();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let namespace = fs::read_link("/proc/self/ns/pid")?;
        let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
        Ok(Self {
            node: Digest::of(node.nodename().to_bytes()).hex()[..8].to_owned(),
            boot: Digest::of(boot.trim().as_bytes()).hex()[..8].to_owned(),
            pid_namespace: digits(&namespace.to_string_lossy()),
            pid,
            start: start_of(pid).ok_or(io::ErrorKind::NotFound)?,
        })
    }

    fn name(&self) -> String {
        let Self { node, boot, pid_namespace, pid, start } = self;
        format!("{node}.{boot}.{pid_namespace}.{pid}.{start}")
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('.');
        let mut next = || parts.next().map(str::to_owned);
        let (node, boot, pid_namespace) = (next()?, next()?, next()?);
        let (pid, start, _random) = (next()?.parse().ok()?, next()?, next()?);
        parts.next().is_none().then_some(Self { node, boot, pid_namespace, pid, start })
    }
}

/// When a process started, in clock ticks since boot; `None` if there is no such process. Field 22 of
/// /proc/PID/stat, counted behind the command, which may hold spaces and brackets.
fn start_of(pid: u32) -> Option<String> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn this() -> Owner {
        let text = |text: &str| text.to_owned();
        Owner { node: text("n"), boot: text("b"), pid_namespace: text("4"), pid: 7, start: text("100") }
    }

    #[test]
    fn only_owners_that_are_surely_dead_are_swept() {
        let starts = |pid| (pid == 8).then(|| "200".to_owned());
        for (name, dead) in [
            ("n.b.4.8.200.aa", false),
            ("n.b.4.8.199.aa", true),
            ("n.b.4.9.200.aa", true),
            ("n.b.5.9.200.aa", false),
            ("n.c.4.8.200.aa", true),
            ("m.c.4.9.200.aa", false),
            ("something else", false),
            ("n.b.4.9.200.aa.x", false),
        ] {
            assert_eq!(is_dead(name, &this(), starts), dead, "{name}");
        }
    }

    #[test]
    fn a_living_folder_survives_a_sweep_and_goes_when_dropped() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(parent.path()).unwrap();
        assert_eq!(sweep(parent.path()).unwrap(), 0);
        let path = scratch.path().to_owned();
        assert!(path.exists());
        drop(scratch);
        assert!(!path.exists());
    }
}
