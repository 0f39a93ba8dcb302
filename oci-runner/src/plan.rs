//! Decides which mounts a container gets and in which order. Pure: nothing is opened, nothing is looked up.
//!
//! ```text
//!  private -> root -> proc, dev (+ devices, shm, pts), sys -> caller's tmpfs, folders, binds (parents first)
//!          -> what needs no more writes becomes read-only -> enter
//! ```
//! A mount point is made only where the plan itself has put a tmpfs; everywhere else the image must have it, because
//! making it could write into a shared tree.
//!
//! **Must not know:** the kernel's mount calls, which descriptors exist, whether a path exists.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use crate::container::{Bind, Container, Dir, Rootfs, Tmpfs};
use crate::mounts::{Access, MountStep, RootMount, Upper};
use crate::program::Program;
use image_store::Root;

/// Where the runner keeps what is its own inside a container; a tmpfs of its own when anything is bound below it.
pub const OWN_DIR: &str = "/.latebind";
/// Where the program of PID 1 is bound when the kernel refuses to execute memory files.
pub const PROGRAM_PATH: &str = "/.latebind/program";

/// Device nodes every container has; all of them are safe in any hands.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const DEV_LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];
/// Holds only mount points and links: 16 inodes of at most a page each.
const SMALL_TMPFS_BYTES: u64 = 64 << 10;
/// The runner's own tmpfs holds one mount point for each host input.
const OWN_TMPFS_BYTES: u64 = 1 << 20;

/// Why no plan can be made; always the caller's mistake, found before anything starts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A target must be absolute, must not be `/`, and must hold no `..`.
    #[error("mount on {}: not a plain absolute path below /", .0.display())]
    Target(PathBuf),
    /// A folder was asked for where the plan has no tmpfs.
    #[error("make folder {}: not below a tmpfs of this container", .0.display())]
    DirOutsideTmpfs(PathBuf),
    /// overlayfs wants both folders on one mount, which only a common parent proves.
    #[error("use {} and {} as upper and work folder: they must lie side by side in one folder", upper.display(), work.display())]
    UpperAndWorkApart {
        /// The upper folder.
        upper: PathBuf,
        /// The work folder.
        work: PathBuf,
    },
    /// An overlay needs a layer.
    #[error("mount an overlay without layers")]
    NoLayers,
}

/// The mounts of `container`, in order.
pub fn plan(container: &Container<'_>) -> Result<Vec<MountStep>, PlanError> {
    let mut steps = vec![MountStep::Private, MountStep::Root(root(&container.root, &container.rootfs)?)];
    let mut below = Below::default();
    standard(&mut steps, &mut below, container.shm_bytes);
    let own = own_mounts(container);
    let mut wanted: Vec<Wanted<'_>> = Vec::new();
    wanted.extend(container.tmpfs.iter().chain(&own.tmpfs).map(Wanted::Tmpfs));
    wanted.extend(container.dirs.iter().map(Wanted::Dir));
    wanted.extend(container.binds.iter().chain(&own.binds).map(Wanted::Bind));
    // Stable, so that what was asked for at the same depth stays in the caller's order.
    wanted.sort_by_key(|wanted| wanted.target().components().count());
    for wanted in wanted {
        wanted.plan(&mut steps, &mut below)?;
    }
    if !own.tmpfs.is_empty() {
        steps.push(MountStep::ReadOnly { target: OWN_DIR.into() });
    }
    steps.push(MountStep::ReadOnly { target: "/dev".into() });
    steps.push(MountStep::Enter);
    Ok(steps)
}

/// The steps of a container that has nothing but its root: what a probe of the attach ladder needs.
pub(crate) fn plan_root_only(root_of: &Root, rootfs: &Rootfs) -> Result<Vec<MountStep>, PlanError> {
    Ok(vec![MountStep::Private, MountStep::Root(root(root_of, rootfs)?), MountStep::Enter])
}

fn root(root: &Root, rootfs: &Rootfs) -> Result<RootMount, PlanError> {
    let upper = match rootfs {
        Rootfs::ReadOnly => None,
        Rootfs::Writable { upper, work } => Some(side_by_side(upper, work)?),
    };
    Ok(match root {
        Root::DataOnly { lowers, .. } | Root::Overlay { lowers } if lowers.is_empty() => {
            return Err(PlanError::NoLayers);
        }
        Root::DataOnly { lowers, objects } => {
            RootMount::Overlay { lowers: lowers.clone(), data: Some(objects.clone()), upper }
        }
        // One layer and nothing on top is no overlay to the kernel (it wants two), and none is needed.
        Root::Overlay { lowers } if lowers.len() == 1 && upper.is_none() => {
            RootMount::Bind { tree: lowers[0].clone(), read_only: true }
        }
        Root::Overlay { lowers } => RootMount::Overlay { lowers: lowers.clone(), data: None, upper },
        Root::Copy { tree } => match rootfs {
            Rootfs::ReadOnly => RootMount::Bind { tree: tree.clone(), read_only: true },
            Rootfs::Writable { upper, .. } => RootMount::Bind { tree: upper.clone(), read_only: false },
        },
    })
}

fn side_by_side(upper: &Path, work: &Path) -> Result<Upper, PlanError> {
    let apart = || PlanError::UpperAndWorkApart { upper: upper.into(), work: work.into() };
    let parent = upper.parent().filter(|parent| work.parent() == Some(parent)).ok_or_else(apart)?;
    let (Some(upper), Some(work)) = (upper.file_name(), work.file_name()) else { return Err(apart()) };
    Ok(Upper { parent: parent.into(), upper: upper.into(), work: work.into() })
}

fn standard(steps: &mut Vec<MountStep>, below: &mut Below, shm_bytes: u64) {
    steps.push(MountStep::Proc { target: "/proc".into() });
    below.opaque("/proc");
    let dev = Tmpfs { target: "/dev".into(), size_bytes: SMALL_TMPFS_BYTES, inodes: 32, mode: 0o755 };
    tmpfs(&dev, steps, below);
    for device in DEVICES {
        let target = Path::new("/dev").join(device);
        steps.push(MountStep::File { target: target.clone() });
        steps.push(MountStep::Bind {
            source: target.clone(),
            target,
            access: Access::Device,
            optional: false,
        });
    }
    for (target, to) in DEV_LINKS {
        steps.push(MountStep::Symlink { target: target.into(), to: to.into() });
    }
    steps.push(MountStep::Dir { target: "/dev/pts".into(), mode: 0o755 });
    steps.push(MountStep::Devpts { target: "/dev/pts".into() });
    steps.push(MountStep::Dir { target: "/dev/mqueue".into(), mode: 0o755 });
    steps.push(MountStep::Mqueue { target: "/dev/mqueue".into() });
    steps.push(MountStep::Dir { target: "/dev/shm".into(), mode: 0o755 });
    tmpfs(&Tmpfs { target: "/dev/shm".into(), size_bytes: shm_bytes, inodes: 0, mode: 0o1777 }, steps, below);
    // A sysfs of our own would need a network namespace of our own.
    let sys = PathBuf::from("/sys");
    steps.push(MountStep::Bind {
        source: sys.clone(),
        target: sys,
        access: Access::ReadOnly,
        optional: false,
    });
    below.opaque("/sys");
}

#[derive(Default)]
struct OwnMounts {
    tmpfs: Vec<Tmpfs>,
    binds: Vec<Bind>,
}

fn own_mounts(container: &Container<'_>) -> OwnMounts {
    let mut own = OwnMounts::default();
    if let Program::File { path } = container.program {
        own.binds.push(Bind {
            source: path.clone(),
            target: PROGRAM_PATH.into(),
            read_only: true,
            is_file: true,
            optional: false,
        });
    }
    let used = container.binds.iter().chain(&own.binds).any(|bind| bind.target.starts_with(OWN_DIR));
    if used {
        own.tmpfs.push(Tmpfs { target: OWN_DIR.into(), size_bytes: OWN_TMPFS_BYTES, inodes: 0, mode: 0o755 });
    }
    own
}

fn tmpfs(tmpfs: &Tmpfs, steps: &mut Vec<MountStep>, below: &mut Below) {
    let Tmpfs { target, size_bytes, inodes, mode } = tmpfs.clone();
    below.made(&target);
    steps.push(MountStep::Tmpfs { target, size_bytes, inodes, mode });
}

enum Wanted<'a> {
    Tmpfs(&'a Tmpfs),
    Dir(&'a Dir),
    Bind(&'a Bind),
}

impl Wanted<'_> {
    fn target(&self) -> &Path {
        match self {
            Self::Tmpfs(tmpfs) => &tmpfs.target,
            Self::Dir(dir) => &dir.target,
            Self::Bind(bind) => &bind.target,
        }
    }

    fn plan(&self, steps: &mut Vec<MountStep>, below: &mut Below) -> Result<(), PlanError> {
        check_target(self.target())?;
        match self {
            Self::Tmpfs(wanted) => {
                below.make_parents(&wanted.target, steps);
                below.make(&wanted.target, false, 0o755, steps);
                tmpfs(wanted, steps, below);
            }
            Self::Dir(Dir { target, mode }) => {
                if below.ground(target) != Some(true) {
                    return Err(PlanError::DirOutsideTmpfs(target.clone()));
                }
                below.make_parents(target, steps);
                below.make(target, false, *mode, steps);
            }
            Self::Bind(Bind { source, target, read_only, is_file, optional }) => {
                below.make_parents(target, steps);
                below.make(target, *is_file, 0o755, steps);
                let access = if *read_only { Access::ReadOnly } else { Access::ReadWrite };
                let (source, optional) = (source.clone(), *optional);
                steps.push(MountStep::Bind { source, target: target.clone(), access, optional });
                below.opaque(target);
            }
        }
        Ok(())
    }
}

fn check_target(target: &Path) -> Result<(), PlanError> {
    let mut components = target.components();
    let plain = components.next() == Some(Component::RootDir)
        && components.clone().next().is_some()
        && components.all(|component| matches!(component, Component::Normal(_)));
    if plain { Ok(()) } else { Err(PlanError::Target(target.into())) }
}

/// What lies where, as far as the plan has come: on a fresh tmpfs mount points are made, elsewhere they must exist.
#[derive(Default)]
struct Below {
    mounts: Vec<(PathBuf, bool)>,
    folders: BTreeSet<PathBuf>,
}

impl Below {
    fn made(&mut self, tmpfs: &Path) {
        self.mounts.push((tmpfs.into(), true));
        self.folders.retain(|folder| !folder.starts_with(tmpfs));
    }

    fn opaque(&mut self, target: impl AsRef<Path>) {
        self.mounts.push((target.as_ref().into(), false));
    }

    /// Whether the innermost mount above `target` is a tmpfs of ours; `None` when it is the image itself.
    fn ground(&self, target: &Path) -> Option<bool> {
        let above =
            self.mounts.iter().rev().filter(|(mount, _)| target.starts_with(mount) && target != mount);
        above.max_by_key(|(mount, _)| mount.components().count()).map(|(_, ours)| *ours)
    }

    fn make_parents(&mut self, target: &Path, steps: &mut Vec<MountStep>) {
        let mut parents: Vec<&Path> = target.ancestors().skip(1).collect();
        parents.reverse();
        for parent in parents {
            if !self.mounts.iter().any(|(mount, _)| mount == parent) {
                self.make(parent, false, 0o755, steps);
            }
        }
    }

    fn make(&mut self, target: &Path, is_file: bool, mode: u32, steps: &mut Vec<MountStep>) {
        if self.ground(target) == Some(true) && self.folders.insert(target.into()) {
            let target = target.to_path_buf();
            steps.push(if is_file { MountStep::File { target } } else { MountStep::Dir { target, mode } });
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
