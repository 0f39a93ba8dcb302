//! Where the pilot's own cgroups are and which of them it may divide.
//!
//! Facts: cgroups(7), and the kernel's `Documentation/admin-guide/cgroup-v2.rst` ("No Internal Process Constraint").

use std::fs;
use std::path::{Path, PathBuf};

use super::Kind;

/// The leaf that the pilot moves itself into on v2, so that its cgroup may have children with controllers.
pub const PILOT_LEAF: &str = "latebind-pilot";
const V2_CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// The cgroups below which the pilot may make others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delegation {
    folders: Vec<(PathBuf, Kind)>,
}

impl Delegation {
    /// Finds them for the calling process, and on v2 moves the process into a leaf of its own when that is needed to
    /// hand controllers down. Finding nothing is no error: the answer is empty.
    pub fn find() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let all = Self::parse(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"));
        Self { folders: all.folders.into_iter().filter(|(path, kind)| usable(path, *kind)).collect() }
    }

    /// What [`Delegation::find`] would divide, as far as looking alone can tell; changes nothing.
    pub fn look() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let all = Self::parse(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"));
        Self { folders: all.folders.into_iter().filter(|(path, kind)| may_be_usable(path, *kind)).collect() }
    }

    /// Where the cgroups of a process are, by the texts of its `/proc/<pid>/cgroup` and `/proc/<pid>/mountinfo`.
    pub fn parse(cgroup: &str, mountinfo: &str) -> Self {
        let mounts: Vec<Mount<'_>> = mountinfo.lines().filter_map(Mount::parse).collect();
        let mut folders = Vec::new();
        for line in cgroup.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            if controllers.is_empty() {
                let mount = mounts.iter().find(|mount| mount.kind == "cgroup2");
                if let Some(folder) = mount.and_then(|mount| mount.folder_of(above_leaf(path))) {
                    folders.push((folder, Kind::V2));
                }
                continue;
            }
            for (name, kind) in [("memory", Kind::Memory), ("cpu", Kind::Cpu), ("pids", Kind::Pids)] {
                if controllers.split(',').any(|controller| controller == name) {
                    let mount = mounts.iter().find(|mount| mount.kind == "cgroup" && mount.has_option(name));
                    if let Some(folder) = mount.and_then(|mount| mount.folder_of(path)) {
                        folders.push((folder, kind));
                    }
                }
            }
        }
        Self { folders }
    }

    /// Whether any limit can be enforced.
    pub fn is_empty(&self) -> bool {
        self.folders.is_empty()
    }

    /// `v2`, `v1`, `v1 and v2` or `none`, for reports.
    pub fn version(&self) -> &'static str {
        let v2 = self.folders.iter().any(|(_, kind)| *kind == Kind::V2);
        match (self.folders.iter().any(|(_, kind)| *kind != Kind::V2), v2) {
            (false, false) => "none",
            (false, true) => "v2",
            (true, false) => "v1",
            (true, true) => "v1 and v2",
        }
    }

    pub(crate) fn folders(&self) -> impl Iterator<Item = (&Path, Kind)> {
        self.folders.iter().map(|(path, kind)| (path.as_path(), *kind))
    }
}

struct Mount<'a> {
    /// What of the hierarchy is mounted.
    root: &'a str,
    target: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    /// A line of mountinfo: id, parent, device, root, target, options, tags..., `-`, type, source, super options.
    fn parse(line: &'a str) -> Option<Self> {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(3);
        let mut back = back.split(' ');
        Some(Self { root: front.next()?, target: front.next()?, kind: back.next()?, options: back.nth(1)? })
    }

    fn has_option(&self, name: &str) -> bool {
        self.options.split(',').any(|option| option == name)
    }

    fn folder_of(&self, path: &str) -> Option<PathBuf> {
        let below = Path::new(path).strip_prefix(self.root).ok()?;
        Some(Path::new(self.target).join(below))
    }
}

/// A pilot that has moved into its leaf divides what it came from.
fn above_leaf(path: &str) -> &str {
    match path.strip_suffix(PILOT_LEAF).and_then(|path| path.strip_suffix('/')) {
        Some("") => "/",
        Some(above) => above,
        None => path,
    }
}

/// Whether cgroups can be made there, by looking (v1) or by preparing it (v2).
fn usable(path: &Path, kind: Kind) -> bool {
    may_be_usable(path, kind) && (kind != Kind::V2 || hand_controllers_down(path))
}

fn may_be_usable(path: &Path, kind: Kind) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
        && (kind != Kind::V2 || !offered(path).is_empty())
}

/// Which of the controllers that matter are there for children.
fn offered(folder: &Path) -> Vec<&'static str> {
    let offered = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    V2_CONTROLLERS.into_iter().filter(|name| offered.split_whitespace().any(|has| has == *name)).collect()
}

/// Enables what of memory, cpu and pids is there for children. A process in the cgroup itself stands against it: the pilot
/// moves into a leaf first, and a neighbour's process there means no delegation.
fn hand_controllers_down(folder: &Path) -> bool {
    let wanted = offered(folder);
    let enabled = || {
        let have = fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default();
        wanted.iter().all(|name| have.split_whitespace().any(|has| has == *name))
    };
    if enabled() {
        return true;
    }
    // The root of the hierarchy has no type, and may hold processes.
    if folder.join("cgroup.type").exists() && !leave_to_leaf(folder) {
        return false;
    }
    // All or none. The kernel would enable cpu and pids beside processes, and then no child may hold a process unless
    // it is threaded.
    let all: Vec<String> = wanted.iter().map(|name| format!("+{name}")).collect();
    fs::write(folder.join("cgroup.subtree_control"), all.join(" ")).is_ok() && enabled()
}

/// Moves the calling process out of `folder` into its leaf; `false` when somebody else is there.
fn leave_to_leaf(folder: &Path) -> bool {
    let own = std::process::id().to_string();
    let inside = fs::read_to_string(folder.join("cgroup.procs"));
    if !inside.is_ok_and(|pids| pids.lines().all(|pid| pid == own)) {
        return false;
    }
    let leaf = folder.join(PILOT_LEAF);
    let made = fs::create_dir(&leaf).is_ok() || leaf.is_dir();
    made && fs::write(leaf.join("cgroup.procs"), "0").is_ok()
}
