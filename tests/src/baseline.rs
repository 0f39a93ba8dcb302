//! What a machine looks like before and after a test: processes, mounts, descriptors, cgroups and files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{WaitOptions, set_child_subreaper, wait};

use crate::run::within;

/// How long a cgroup may stay: other suites on this machine make some with the same word in their names.
const FOREIGN_CGROUPS: Duration = Duration::from_secs(5);

/// A look at everything that a pilot could leave behind.
///
/// Processes are those that descend from this test process, reparented ones included: the harness is a subreaper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Baseline {
    /// Folders that must be empty of what was not there before.
    watched: Vec<PathBuf>,
    /// Children of this process, by PID and name.
    processes: BTreeSet<String>,
    /// Lines of `/proc/self/mountinfo`, without their IDs, that name a watched folder.
    mounts: BTreeSet<String>,
    /// Descriptors open in this process.
    fds: usize,
    /// Cgroup folders whose name has the token in it.
    cgroups: BTreeSet<PathBuf>,
    /// Paths below the watched folders.
    files: BTreeSet<PathBuf>,
}

impl Baseline {
    /// Takes a look. `watched` are the state and scratch folders of the pilot under test; `token` is the word that its
    /// cgroups carry.
    #[must_use]
    pub fn take(watched: &[&Path], token: &str) -> Self {
        // So that what a killed pilot leaves becomes our child and is seen.
        let _ = set_child_subreaper(Some(rustix::process::getpid()));
        Self {
            watched: watched.iter().map(|path| path.to_path_buf()).collect(),
            processes: descendants(std::process::id()),
            mounts: mounts(watched),
            fds: fds(),
            cgroups: cgroups(token),
            files: watched.iter().flat_map(|path| files(path)).collect(),
        }
    }

    /// Fails the test when anything is left that was not there at the first look.
    ///
    /// # Panics
    /// When something is left, naming it.
    pub fn assert_unchanged(&self, token: &str) {
        let watched: Vec<&Path> = self.watched.iter().map(PathBuf::as_path).collect();
        let after = Self::take(&watched, token);
        assert_eq!(left(&self.processes, &after.processes), Vec::<String>::new(), "processes are left");
        assert_eq!(left(&self.mounts, &after.mounts), Vec::<String>::new(), "mounts are left");
        assert_eq!(left(&self.files, &after.files), Vec::<PathBuf>::new(), "files are left");
        assert_eq!(left(&after.files, &self.files), Vec::<PathBuf>::new(), "files are gone");
        // Tests that run beside have descriptors for moments; what is left stays.
        let closed = within(FOREIGN_CGROUPS, || fds() <= self.fds);
        assert!(closed, "descriptors are left: {} before, {} after", self.fds, fds());
        let mut foreign = left(&self.cgroups, &after.cgroups);
        let gone = within(FOREIGN_CGROUPS, || {
            let family = pids_below(std::process::id());
            foreign.retain(|path| path.exists() && !holds_others(path, &family));
            foreign.is_empty()
        });
        assert!(gone, "cgroups are left: {foreign:?}");
    }
}

fn left<T: Ord + Clone>(before: &BTreeSet<T>, after: &BTreeSet<T>) -> Vec<T> {
    after.difference(before).cloned().collect()
}

/// Reaps what a killed pilot left and what has ended since. Only for moments when no [`std::process::Child`] is waited
/// for elsewhere in this process.
pub fn reap() {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

/// Whether a process that is not of `family` is in this cgroup: then another suite made it.
fn holds_others(cgroup: &Path, family: &BTreeSet<u32>) -> bool {
    let held = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    held.lines().filter_map(|pid| pid.parse().ok()).any(|pid| !family.contains(&pid))
}

/// Every process below `root` in the process tree, as `pid name`.
#[must_use]
pub fn descendants(root: u32) -> BTreeSet<String> {
    let parents = processes();
    let family = family(root, &parents);
    let below = parents.iter().filter(|(pid, ..)| *pid != root && family.contains(pid));
    below.map(|(pid, _, name)| format!("{pid} {name}")).collect()
}

/// The PIDs of every process below `root`.
#[must_use]
pub fn pids_below(root: u32) -> BTreeSet<u32> {
    let mut family = family(root, &processes());
    family.remove(&root);
    family
}

/// All processes: PID, parent, name.
fn processes() -> Vec<(u32, u32, String)> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (head, tail) = stat.rsplit_once(')')?;
            let parent = tail.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent, head.split_once('(')?.1.to_owned()))
        })
        .collect()
}

fn family(root: u32, processes: &[(u32, u32, String)]) -> BTreeSet<u32> {
    let mut family = BTreeSet::from([root]);
    loop {
        let before = family.len();
        let children =
            processes.iter().filter(|(_, parent, _)| family.contains(parent)).map(|(pid, ..)| *pid);
        family.extend(children.collect::<Vec<_>>());
        if family.len() == before {
            return family;
        }
    }
}

fn mounts(watched: &[&Path]) -> BTreeSet<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let of_ours = |line: &&str| watched.iter().any(|path| line.contains(&*path.to_string_lossy()));
    table.lines().filter(of_ours).map(|line| line.splitn(4, ' ').skip(3).collect()).collect()
}

/// Cgroup folders, of version 1 and 2, whose name has `token` in it.
#[must_use]
pub fn cgroups(token: &str) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().contains(token) {
                    found.insert(entry.path());
                }
                open.push(entry.path());
            }
        }
    }
    found
}

fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.path().symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
                open.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found
}

/// Descriptors of this process, but for those of async runtimes: a test that waits for its turn has one already.
fn fds() -> usize {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let link = |entry: std::fs::DirEntry| std::fs::read_link(entry.path()).unwrap_or_default();
    let of_a_runtime = |link: &PathBuf| {
        let link = link.to_string_lossy();
        link.starts_with("anon_inode:[event") || link.starts_with("socket:")
    };
    entries.map(link).filter(|link| !of_a_runtime(link)).count()
}
