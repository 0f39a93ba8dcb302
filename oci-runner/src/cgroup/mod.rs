//! A cgroup for each slot, where one was delegated to us: limits, figures, and a way to kill.
//!
//! Both kinds are served. On v2 (`find`) the pilot first moves itself into a leaf, because a cgroup that gives
//! controllers to its children must hold no process. On v1 each controller is a tree of its own, and each is used or
//! not on its own. What can't be limited is said in [`Enforcement`], never passed over.
//!
//! A cgroup outlives the process that made it: another one finds it by its name ([`Cgroup::reopen`], `name`).
//!
//! **Must not know:** what runs in the cgroup, how much a slot should get.

mod end;
mod figures;
mod find;
mod limits;
mod name;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};

use self::figures::PeakReset;
use self::limits::Old;
pub use figures::Figures;
pub use find::{Delegation, PILOT_LEAF};
pub use limits::{Enforcement, Guard, Limits};
pub use name::{cgroup_name, cgroup_owner};

/// The cgroup of one slot. Dropping it kills what is inside and removes it.
#[derive(Debug)]
pub struct Cgroup {
    /// One folder on v2, one for each controller on v1.
    folders: Vec<Folder>,
    memory: Option<OwnedFd>,
    /// Set by the first [`Cgroup::reset_peak`] that worked.
    peak_reset: OnceLock<PeakReset>,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    kind: Kind,
}

/// Which files a folder has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// All controllers in one.
    V2,
    /// The memory controller of v1.
    Memory,
    /// The pids controller of v1.
    Pids,
    /// The cpu controller of v1.
    Cpu,
}

/// Why a slot's cgroup could not be made, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The name must be one plain path component.
    #[error("name a cgroup {name:?}")]
    Name {
        /// The name asked for.
        name: String,
    },
    /// A folder is there and can't be looked at.
    #[error("find cgroup {}", path.display())]
    Find {
        /// Which folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Processes would not go away.
    #[error("remove cgroup {}", path.display())]
    Remove {
        /// Which folder.
        path: PathBuf,
        /// What the kernel said last.
        source: io::Error,
    },
}

impl Cgroup {
    /// Makes cgroup `name` below `parent` with `limits`. It always succeeds for a plain name: what could not be made
    /// or limited is in the answer.
    ///
    /// # Errors
    /// `Name` when the name is no plain path component.
    pub fn create(
        parent: &Delegation,
        name: &str,
        limits: &Limits,
    ) -> Result<(Self, Enforcement), CgroupError> {
        check_name(name)?;
        let mut folders = Vec::new();
        let mut enforced = Enforcement::without_cgroup(limits);
        for (path, kind) in parent.folders() {
            let path = path.join(name);
            let old = match fs::create_dir(&path) {
                Ok(()) => Old::None,
                // Left by a pilot that was killed; its limits are overwritten.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Old::Overwrite,
                Err(error) => {
                    tracing::debug!(path = %path.display(), %error, "no cgroup");
                    continue;
                }
            };
            limits::write(&path, kind, limits, old, &mut enforced);
            folders.push(Folder { path, kind });
        }
        Ok((Self::of(folders), enforced))
    }

    /// Takes over the cgroup `name` below `parent` that another process made, with its limits and what it has counted.
    /// As with a made one, dropping it kills what is inside. [`Cgroup::exists`] is `false` when there is none, also
    /// when the caller was given another part of the tree than the process that made it.
    ///
    /// # Errors
    /// `Name` when the name is no plain path component; `Find` when a folder can't be looked at.
    pub fn reopen(parent: &Delegation, name: &str) -> Result<Self, CgroupError> {
        check_name(name)?;
        let mut folders = Vec::new();
        for (path, kind) in parent.folders() {
            let path = path.join(name);
            match fs::metadata(&path) {
                Ok(_) => folders.push(Folder { path, kind }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    // Not ours to kill after a failure.
                    return Err(CgroupError::Find { path, source });
                }
            }
        }
        Ok(Self::of(folders))
    }

    fn of(folders: Vec<Folder>) -> Self {
        let memory = folders.iter().find(|folder| matches!(folder.kind, Kind::V2 | Kind::Memory));
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let memory = memory.and_then(|folder| rustix::fs::open(&folder.path, flags, Mode::empty()).ok());
        Self { folders, memory, peak_reset: OnceLock::new() }
    }

    /// Gives it other limits, `None` for none, and notes what the kernel took. A memory limit below what is in use is
    /// refused (v1) or makes the kernel reclaim and kill (v2): call it while no payload is inside.
    pub fn set_limits(&self, limits: &Limits) -> Enforcement {
        let mut enforced = Enforcement::without_cgroup(limits);
        for Folder { path, kind } in &self.folders {
            limits::write(path, *kind, limits, Old::Overwrite, &mut enforced);
        }
        enforced
    }

    /// Gives it another memory limit and leaves its other limits; whether the kernel took it, in every folder that counts
    /// memory. As for [`Cgroup::set_limits`], not to be called while a payload is inside.
    #[must_use = "a limit that was not taken does not hold"]
    pub fn limit_memory(&self, bytes: u64) -> bool {
        let limits = Limits { memory_bytes: Some(bytes), ..Limits::default() };
        let mut enforced = Enforcement::without_cgroup(&limits);
        for Folder { path, kind } in &self.folders {
            limits::write(path, *kind, &limits, Old::None, &mut enforced);
        }
        enforced.memory == Guard::Cgroup
    }

    /// Puts process `pid` in.
    pub fn add(&self, pid: i32) -> io::Result<()> {
        for folder in &self.folders {
            fs::write(folder.path.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(())
    }

    /// The processes inside, by their ids in the caller's pid namespace; one outside of that is 0. Empty without a cgroup.
    pub fn processes(&self) -> io::Result<Vec<u32>> {
        let Some(folder) = self.folders.first() else { return Ok(Vec::new()) };
        let text = fs::read_to_string(folder.path.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// The folder of v2, for a process to be born in: moving one there waits for an RCU grace period.
    pub(crate) fn birthplace(&self) -> io::Result<Option<OwnedFd>> {
        let folder = self.folders.iter().find(|folder| folder.kind == Kind::V2);
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let opened = folder.map(|folder| rustix::fs::open(&folder.path, flags, Mode::empty()));
        opened.transpose().map_err(io::Error::from)
    }

    /// Files of v1 that take a thread in that writes "0" to them. A thread that moves itself through `tasks` needs no
    /// lock of the whole machine, while moving another process through `cgroup.procs` waits for an RCU grace period (7.6 ms
    /// median, 20 ms at worst, measured; cgroup_procs_write_start in the kernel). The right to write was judged here, at
    /// open, and not when an unprivileged child writes.
    pub(crate) fn entrances(&self) -> io::Result<Vec<OwnedFd>> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let open = |folder: &Folder| rustix::fs::open(folder.path.join("tasks"), flags, Mode::empty());
        let folders = self.folders.iter().filter(|folder| folder.kind != Kind::V2);
        folders.map(|folder| open(folder).map_err(io::Error::from)).collect()
    }

    /// The folder with the memory figures, to be passed to whoever reads them from inside.
    pub fn dir_fd(&self) -> Option<BorrowedFd<'_>> {
        self.memory.as_ref().map(OwnedFd::as_fd)
    }

    /// Whether there is anything to it: `false` where nothing is delegated.
    pub fn exists(&self) -> bool {
        !self.folders.is_empty()
    }
}

fn check_name(name: &str) -> Result<(), CgroupError> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(CgroupError::Name { name: name.into() });
    }
    Ok(())
}

#[cfg(test)]
#[path = "../cgroup_tests.rs"]
mod tests;
