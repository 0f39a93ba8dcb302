//! The steps that turn a fresh mount namespace into a container's: data with a text form, compared in golden tests.
//!
//! **Must not know:** how a step is carried out ([`crate::apply`]) or why it is there ([`crate::plan`]).

use std::fmt;
use std::path::{Path, PathBuf};

/// One step. Targets are absolute paths inside the container and are resolved within its root, so no symlink of an
/// image leads out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountStep {
    /// Cut the namespace off from the host's, so that nothing done here shows there.
    Private,
    /// Make the root file system.
    Root(RootMount),
    /// Make a folder in a tmpfs of this plan.
    Dir {
        /// Where.
        target: PathBuf,
        /// Permission bits.
        mode: u32,
    },
    /// Make an empty file in a tmpfs of this plan, as mount point.
    File {
        /// Where.
        target: PathBuf,
    },
    /// Make a symbolic link in a tmpfs of this plan.
    Symlink {
        /// Where.
        target: PathBuf,
        /// What it says.
        to: PathBuf,
    },
    /// Mount an empty file system in memory.
    Tmpfs {
        /// Where.
        target: PathBuf,
        /// Limit in bytes.
        size_bytes: u64,
        /// Limit on inodes, 0 for none of ours.
        inodes: u64,
        /// Permission bits of its root.
        mode: u32,
    },
    /// Mount the process list of the new pid namespace.
    Proc {
        /// Where.
        target: PathBuf,
    },
    /// Mount a private set of pseudo-terminals.
    Devpts {
        /// Where.
        target: PathBuf,
    },
    /// Mount the POSIX message queues of the new ipc namespace, so that who cleans up finds them (mq_overview(7)). Left out by a
    /// kernel that has none.
    Mqueue {
        /// Where.
        target: PathBuf,
    },
    /// Show a host file or folder.
    Bind {
        /// Path on the host.
        source: PathBuf,
        /// Where.
        target: PathBuf,
        /// What may be done through it.
        access: Access,
        /// Leave it out when source or target does not exist.
        optional: bool,
    },
    /// Refuse further writes to a tmpfs of this plan.
    ReadOnly {
        /// Where.
        target: PathBuf,
    },
    /// Make the new root `/` and let go of the host's.
    Enter,
}

/// What may be done through a bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
    /// Using a device node, the one kind of mount without `nodev`.
    Device,
}

/// How the root file system is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootMount {
    /// overlayfs.
    Overlay {
        /// Read-only layers, topmost first.
        lowers: Vec<PathBuf>,
        /// The folder of file contents that the lowest layer's redirects point into ("data-only").
        data: Option<PathBuf>,
        /// Where changes land.
        upper: Option<Upper>,
    },
    /// A folder that holds all of it.
    Bind {
        /// The folder.
        tree: PathBuf,
        /// Whether it is shared with others.
        read_only: bool,
    },
}

/// The writable side of an overlay. Both folders have one parent, because overlayfs wants them on one mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upper {
    /// The folder that holds both.
    pub parent: PathBuf,
    /// Name of the folder where changes land.
    pub upper: PathBuf,
    /// Name of overlayfs's own folder.
    pub work: PathBuf,
}

impl MountStep {
    /// The path a person would look at when this step fails.
    pub fn object(&self) -> &Path {
        match self {
            Self::Private | Self::Enter => Path::new("/"),
            Self::Root(RootMount::Overlay { lowers, .. }) => {
                lowers.first().map_or(Path::new("/"), PathBuf::as_path)
            }
            Self::Root(RootMount::Bind { tree, .. }) => tree,
            Self::Dir { target, .. }
            | Self::File { target }
            | Self::Symlink { target, .. }
            | Self::Tmpfs { target, .. }
            | Self::Proc { target }
            | Self::Devpts { target }
            | Self::Mqueue { target }
            | Self::Bind { target, .. }
            | Self::ReadOnly { target } => target,
        }
    }
}

impl fmt::Display for MountStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Private => write!(f, "make every mount private"),
            Self::Root(root) => write!(f, "{root}"),
            Self::Dir { target, mode } => write!(f, "make folder {} mode={mode:o}", target.display()),
            Self::File { target } => write!(f, "make file {}", target.display()),
            Self::Symlink { target, to } => write!(f, "make link {} -> {}", target.display(), to.display()),
            Self::Tmpfs { target, size_bytes, inodes, mode } => {
                write!(f, "mount tmpfs on {} size={size_bytes} mode={mode:o}", target.display())?;
                if *inodes > 0 { write!(f, " inodes={inodes}") } else { Ok(()) }
            }
            Self::Proc { target } => write!(f, "mount proc on {}", target.display()),
            Self::Devpts { target } => write!(f, "mount devpts on {}", target.display()),
            Self::Mqueue { target } => write!(f, "mount mqueue on {}", target.display()),
            Self::Bind { source, target, access, optional } => {
                let access = match access {
                    Access::ReadOnly => "ro,nosuid,nodev",
                    Access::ReadWrite => "rw,nosuid,nodev",
                    Access::Device => "rw,nosuid,noexec",
                };
                let optional = if *optional { " if both exist" } else { "" };
                write!(f, "bind {} on {} {access}{optional}", source.display(), target.display())
            }
            Self::ReadOnly { target } => write!(f, "make {} read-only", target.display()),
            Self::Enter => write!(f, "enter the new root"),
        }
    }
}

impl fmt::Display for RootMount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlay { lowers, data, upper } => {
                write!(f, "mount overlay on / lower=")?;
                for (at, lower) in lowers.iter().enumerate() {
                    write!(f, "{}{}", if at == 0 { "" } else { ":" }, lower.display())?;
                }
                if let Some(data) = data {
                    write!(f, "::{}", data.display())?;
                }
                match upper {
                    None => write!(f, " ro"),
                    Some(Upper { parent, upper, work }) => {
                        write!(
                            f,
                            " upper={} work={} in {} rw",
                            upper.display(),
                            work.display(),
                            parent.display()
                        )
                    }
                }
            }
            Self::Bind { tree, read_only } => {
                write!(f, "bind {} on / {}", tree.display(), if *read_only { "ro" } else { "rw" })
            }
        }?;
        write!(f, ",nosuid,nodev")
    }
}
