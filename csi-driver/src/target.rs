//! Targets: parsing them as hostile input, and looking at what is there by descriptor.
//!
//! A target is below the kubelet's folder of pods, in the folder of the pod that the request is about. Everything below that
//! folder is opened with openat2(2) and follows no link; what lies there is somebody else's until a record says otherwise.
//!
//! **Must not know:** volumes, what is to be done.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, openat2, statx,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::volume::Birth;

/// Longest path that the kernel takes, its NUL included.
const PATH_MAX: usize = 4096;
/// What the kubelet keeps beside a target as long as the volume is of use to it (`volDataFileName` in its csi package).
const NOTE: &str = "vol_data.json";

/// Opening a folder for what is in it.
pub(crate) const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How everything below a folder of ours is opened.
pub(crate) const STRICT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// A target path, below the kubelet's folder of pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The folder that it is in, relative to the pods' folder; its first part is the pod's uid.
    parent: String,
    /// Its own name.
    name: String,
}

/// Why a path is no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    /// Empty.
    #[error("target path is empty")]
    Empty,
    /// Longer than a path may be.
    #[error("target path is longer than 4095 bytes")]
    TooLong,
    /// Not absolute, or with `..`, `.`, empty parts or NUL in it.
    #[error("target path must be absolute, without '..', '.', empty parts and NUL")]
    NotPlain,
    /// Somewhere else.
    #[error("target path is not in a pod's folder below the kubelet's: check --kubelet-dir")]
    Elsewhere,
}

impl Target {
    /// Reads a path, as text; looks at no file.
    ///
    /// # Errors
    /// When it can't be a target below `pods`.
    pub fn parse(pods: &Path, text: &str) -> Result<Self, BadTarget> {
        if text.is_empty() {
            return Err(BadTarget::Empty);
        }
        if text.len() >= PATH_MAX {
            return Err(BadTarget::TooLong);
        }
        let Some(parts) = text.strip_prefix('/') else { return Err(BadTarget::NotPlain) };
        if text.contains('\0')
            || parts.split('/').any(|part| matches!(part, "" | "." | "..") || part.len() > 255)
        {
            return Err(BadTarget::NotPlain);
        }
        let below = Path::new(text).strip_prefix(pods).map_err(|_| BadTarget::Elsewhere)?;
        let below = below.to_str().ok_or(BadTarget::Elsewhere)?;
        let (parent, name) = below.rsplit_once('/').ok_or(BadTarget::Elsewhere)?;
        Ok(Self { parent: parent.to_owned(), name: name.to_owned() })
    }

    /// The first part of the path: whose folder it is in.
    #[must_use]
    pub fn pod(&self) -> &str {
        self.parent.split('/').next().unwrap_or_default()
    }

    /// The last part.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// What is at a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Not even the folder that it should be in.
    NoParent,
    /// Nothing.
    Nothing,
    /// A folder.
    Folder {
        /// Which.
        birth: Birth,
        /// Nothing is in it.
        empty: bool,
        /// Something is mounted there, so birth and content are those of the mount.
        mounted: bool,
    },
    /// A link, a file, or whatever else.
    Other,
}

/// The kubelet's folder of pods, open.
#[derive(Debug)]
pub struct Pods {
    path: PathBuf,
    folder: OwnedFd,
}

impl Pods {
    /// Opens it. The path is the admin's: its links are followed.
    ///
    /// # Errors
    /// When it isn't there or can't be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let folder = rustix::fs::openat(CWD, path, FOLDER - OFlags::NOFOLLOW, Mode::empty())?;
        Ok(Self { path: path.to_owned(), folder })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the folder that a target is in; none if it is not there.
    ///
    /// # Errors
    /// When a part of the path is a link, a mount or no folder, or can't be opened.
    pub fn parent(&self, target: &Target) -> io::Result<Option<OwnedFd>> {
        match openat2(&self.folder, target.parent.as_str(), FOLDER, Mode::empty(), STRICT) {
            Ok(folder) => Ok(Some(folder)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Looks at a target.
    ///
    /// # Errors
    /// As [`Pods::parent`], and when the target can't be looked at.
    pub fn look(&self, target: &Target) -> io::Result<Found> {
        match self.parent(target)? {
            Some(parent) => look(parent.as_fd(), &target.name),
            None => Ok(Found::NoParent),
        }
    }

    /// Whether the kubelet still has a use for the volume there: it keeps its note until it has been told that the volume is gone.
    ///
    /// # Errors
    /// As [`Pods::parent`].
    pub fn is_noted(&self, target: &Target) -> io::Result<bool> {
        let Some(parent) = self.parent(target)? else { return Ok(false) };
        match rustix::fs::statat(&parent, NOTE, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Looks at what is called `name` in a folder.
///
/// # Errors
/// When it can't be looked at.
pub(crate) fn look(parent: BorrowedFd<'_>, name: &str) -> io::Result<Found> {
    let asked = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = match statx(parent, name, flags, asked) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        Err(errno) => return Err(errno.into()),
    };
    if FileType::from_raw_mode(u32::from(stat.stx_mode)) != FileType::Directory {
        return Ok(Found::Other);
    }
    let mounted = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    // What is mounted is never judged by its content.
    let empty = !mounted && is_empty(parent, name)?;
    Ok(Found::Folder { birth: birth_of(&stat), empty, mounted })
}

/// Which folder is open.
///
/// # Errors
/// When the kernel does not say.
pub(crate) fn birth(folder: BorrowedFd<'_>) -> io::Result<Birth> {
    let asked = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    Ok(birth_of(&statx(folder, "", AtFlags::EMPTY_PATH, asked)?))
}

fn birth_of(stat: &rustix::fs::Statx) -> Birth {
    Birth { inode: stat.stx_ino, seconds: stat.stx_btime.tv_sec, nanos: stat.stx_btime.tv_nsec }
}

fn is_empty(parent: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    let folder = openat2(parent, name, FOLDER, Mode::empty(), STRICT)?;
    for entry in Dir::read_from(&folder)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const PODS: &str = "/var/lib/kubelet/pods";

    #[test]
    fn a_target_is_a_plain_path_in_a_pods_folder() {
        let pods = Path::new(PODS);
        let good = format!("{PODS}/1a2b/volumes/kubernetes.io~csi/share/mount");
        let target = Target::parse(pods, &good).expect("a target");
        assert_eq!((target.pod(), target.name()), ("1a2b", "mount"));
        let long = format!("{PODS}/a/{}", "x".repeat(4096));
        let wide = format!("{PODS}/a/{}", "x".repeat(256));
        for (path, why) in [
            ("", BadTarget::Empty),
            (long.as_str(), BadTarget::TooLong),
            (wide.as_str(), BadTarget::NotPlain),
            ("relative/path", BadTarget::NotPlain),
            ("/var/lib/kubelet/pods/a/../../b", BadTarget::NotPlain),
            ("/var/lib/kubelet/pods/a//b", BadTarget::NotPlain),
            ("/var/lib/kubelet/pods/a/./b", BadTarget::NotPlain),
            ("/var/lib/kubelet/pods/a/b/", BadTarget::NotPlain),
            ("/var/lib/kubelet/pods/a/b\0c", BadTarget::NotPlain),
            ("/var/lib/kubelet/pods", BadTarget::Elsewhere),
            ("/var/lib/kubelet/pods/a", BadTarget::Elsewhere),
            ("/var/lib/kubelet/podsx/a/b", BadTarget::Elsewhere),
            ("/etc/passwd/x", BadTarget::Elsewhere),
        ] {
            assert_eq!(Target::parse(pods, path), Err(why), "{path:?}");
        }
    }

    #[test]
    fn a_look_tells_folders_from_links_and_follows_none_on_the_way() {
        let root = tempfile::tempdir().expect("tempdir");
        let pods = Pods::open(root.path()).expect("pods");
        let at = |path: &str| {
            Target::parse(root.path(), root.path().join(path).to_str().expect("text")).expect("target")
        };
        std::fs::create_dir_all(root.path().join("pod/v/full/in")).expect("mkdir");
        std::fs::create_dir(root.path().join("pod/v/empty")).expect("mkdir");
        std::fs::write(root.path().join("pod/v/file"), "x").expect("write");
        symlink("full", root.path().join("pod/v/link")).expect("symlink");
        symlink("v", root.path().join("pod/w")).expect("symlink");
        assert!(matches!(
            pods.look(&at("pod/v/full")),
            Ok(Found::Folder { empty: false, mounted: false, .. })
        ));
        assert!(matches!(
            pods.look(&at("pod/v/empty")),
            Ok(Found::Folder { empty: true, mounted: false, .. })
        ));
        assert!(matches!(pods.look(&at("pod/v/file")), Ok(Found::Other)));
        assert!(matches!(pods.look(&at("pod/v/link")), Ok(Found::Other)));
        assert!(matches!(pods.look(&at("pod/v/none")), Ok(Found::Nothing)));
        assert!(matches!(pods.look(&at("pod/none/none")), Ok(Found::NoParent)));
        pods.look(&at("pod/w/full")).expect_err("a link on the way");
    }
}
