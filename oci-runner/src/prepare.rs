//! Turns a plan into what the child can carry out without allocating: C strings, options, and a list of the host's
//! folders and files to open.
//!
//! **Must not know:** the calls that follow ([`crate::apply`]).

use std::ffi::{CStr, CString, NulError};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::Mode;
use rustix::mount::MountAttrFlags;

use crate::mounts::{Access, MountStep, RootMount};

/// The file system of POSIX message queues.
pub(crate) const MQUEUE: &CStr = c"mqueue";

/// What no mount of a container allows.
pub(crate) const LOCKED: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);

/// A plan with all memory it needs.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) steps: Vec<Step>,
    pub(crate) sources: Vec<Source>,
    pub(crate) root: Option<OwnedFd>,
    pub(crate) upper: Option<OwnedFd>,
    pub(crate) work: Option<OwnedFd>,
}

/// Something on the host that a step needs, opened ahead.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) step: usize,
    pub(crate) path: CString,
    pub(crate) kind: SourceKind,
    pub(crate) optional: bool,
    pub(crate) fd: Option<OwnedFd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SourceKind {
    /// Becomes a mount of its own, with these attributes.
    Mount(MountAttrFlags),
    /// A folder that overlayfs reads; attached out of sight when opened with privilege.
    Layer,
    /// The folder that holds those that overlayfs writes to; likewise.
    UpperParent,
}

/// A place inside the container: the folder it is in, its own name, and the whole.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) parent: CString,
    pub(crate) name: CString,
    pub(crate) whole: CString,
}

#[derive(Debug)]
pub(crate) enum Step {
    Private,
    Overlay {
        lowers: Range<usize>,
        data: Option<usize>,
        upper: Option<(usize, CString, CString)>,
    },
    RootBind {
        source: usize,
    },
    Dir {
        place: Place,
        mode: Mode,
    },
    File {
        place: Place,
    },
    Symlink {
        place: Place,
        to: CString,
    },
    Mount {
        place: Place,
        kind: &'static CStr,
        options: Vec<(&'static CStr, CString)>,
        attributes: MountAttrFlags,
    },
    Bind {
        place: Place,
        source: usize,
    },
    ReadOnly {
        place: Place,
    },
    Enter,
}

impl Prepared {
    /// Turns `steps` into what the child can carry out. Fails on a path with a zero byte, which no path has.
    pub(crate) fn new(steps: &[MountStep]) -> Result<Self, NulError> {
        let mut sources = Vec::new();
        let steps = steps
            .iter()
            .enumerate()
            .map(|(at, step)| prepare(at, step, &mut sources))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { steps, sources, root: None, upper: None, work: None })
    }
}

fn prepare(at: usize, step: &MountStep, sources: &mut Vec<Source>) -> Result<Step, NulError> {
    Ok(match step {
        MountStep::Private => Step::Private,
        MountStep::Root(root) => prepare_root(at, root, sources)?,
        MountStep::Dir { target, mode } => Step::Dir { place: place(target)?, mode: Mode::from(*mode) },
        MountStep::File { target } => Step::File { place: place(target)? },
        MountStep::Symlink { target, to } => Step::Symlink { place: place(target)?, to: c_string(to)? },
        MountStep::Tmpfs { target, size_bytes, inodes, mode } => {
            let mut options = vec![
                (c"size", CString::new(size_bytes.to_string())?),
                (c"mode", CString::new(format!("{mode:o}"))?),
            ];
            if *inodes > 0 {
                options.push((c"nr_inodes", CString::new(inodes.to_string())?));
            }
            Step::Mount { place: place(target)?, kind: c"tmpfs", options, attributes: LOCKED }
        }
        MountStep::Proc { target } => {
            let attributes = LOCKED | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            Step::Mount { place: place(target)?, kind: c"proc", options: Vec::new(), attributes }
        }
        MountStep::Devpts { target } => {
            let options = vec![(c"ptmxmode", c"0666".to_owned()), (c"mode", c"0620".to_owned())];
            let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            Step::Mount { place: place(target)?, kind: c"devpts", options, attributes }
        }
        MountStep::Mqueue { target } => {
            Step::Mount { place: place(target)?, kind: MQUEUE, options: Vec::new(), attributes: LOCKED }
        }
        MountStep::Bind { source, target, access, optional } => {
            let attributes = match access {
                Access::ReadOnly => LOCKED | MountAttrFlags::MOUNT_ATTR_RDONLY,
                Access::ReadWrite => LOCKED,
                Access::Device => MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
            };
            let source = add(sources, at, source, SourceKind::Mount(attributes), *optional)?;
            Step::Bind { place: place(target)?, source }
        }
        MountStep::ReadOnly { target } => Step::ReadOnly { place: place(target)? },
        MountStep::Enter => Step::Enter,
    })
}

fn prepare_root(at: usize, root: &RootMount, sources: &mut Vec<Source>) -> Result<Step, NulError> {
    Ok(match root {
        RootMount::Bind { tree, read_only } => {
            let read_only =
                if *read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
            Step::RootBind { source: add(sources, at, tree, SourceKind::Mount(LOCKED | read_only), false)? }
        }
        RootMount::Overlay { lowers, data, upper } => {
            let first = sources.len();
            for lower in lowers {
                add(sources, at, lower, SourceKind::Layer, false)?;
            }
            let lowers = first..sources.len();
            let data =
                data.as_ref().map(|data| add(sources, at, data, SourceKind::Layer, false)).transpose()?;
            let upper = match upper {
                None => None,
                Some(upper) => {
                    let parent = add(sources, at, &upper.parent, SourceKind::UpperParent, false)?;
                    Some((parent, c_string(&upper.upper)?, c_string(&upper.work)?))
                }
            };
            Step::Overlay { lowers, data, upper }
        }
    })
}

fn add(
    sources: &mut Vec<Source>,
    step: usize,
    path: &Path,
    kind: SourceKind,
    optional: bool,
) -> Result<usize, NulError> {
    sources.push(Source { step, path: c_string(path)?, kind, optional, fd: None });
    Ok(sources.len() - 1)
}

fn place(target: &Path) -> Result<Place, NulError> {
    Ok(Place {
        parent: c_string(target.parent().unwrap_or(Path::new("/")))?,
        name: CString::new(target.file_name().unwrap_or_default().as_bytes())?,
        whole: c_string(target)?,
    })
}

fn c_string(path: &Path) -> Result<CString, NulError> {
    CString::new(path.as_os_str().as_bytes())
}
