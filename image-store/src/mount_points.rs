//! The places of an image that a runner mounts over. A read-only root can't grow a folder later, so what is
//! missing is made in the tree before it is written. Mounts nothing itself.

use serde::{Deserialize, Serialize};

use crate::entry::shown;
use crate::tree::Tree;
use crate::walk::Lost;

/// Directories that every materialised image has.
pub const MOUNT_POINTS: [&str; 9] =
    ["/proc", "/dev", "/sys", "/tmp", "/var/tmp", "/work", "/stage", "/.latebind", "/etc"];

/// Regular files that every materialised image has, empty if the image lacks them.
pub const MOUNT_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

const DEPTH_MAX: usize = 300;

/// A place beyond the usual ones that somebody wants to mount over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Absolute path; links of the image are followed.
    pub path: String,
    /// Whether a regular file is wanted there, rather than a directory.
    pub file: bool,
}

/// A place to mount over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// One of [`MOUNT_POINTS`] or [`MOUNT_FILES`], the image's WORKDIR, or a [`Place`].
    pub path: String,
    /// Where that is once the image's symbolic links are followed; has none on its way. Not UTF-8 names are
    /// shown with replacement characters and must be resolved by the reader.
    pub resolved: String,
    /// Whether the image lacked it.
    pub made: bool,
    /// A regular file, not a directory.
    pub file: bool,
}

/// A place that can't be mounted over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mount over \"{path}\" of the image: {reason}")]
pub struct MountPointError {
    /// The place.
    pub path: String,
    /// What the image has instead.
    pub reason: &'static str,
}

/// Makes what is missing in `tree`. `more` are further directories.
pub(crate) fn ensure(tree: &mut Tree, more: &[String]) -> Result<Vec<MountPoint>, MountPointError> {
    let directories = MOUNT_POINTS.into_iter().chain(more.iter().map(String::as_str));
    let directories = directories.map(|path| (path, false)).collect::<Vec<_>>();
    let all = directories.into_iter().chain(MOUNT_FILES.map(|path| (path, true)));
    all.map(|(path, file)| ensure_one(tree, path, file)).collect()
}

/// Makes what is missing of `places`, in their order.
pub(crate) fn ensure_places(tree: &mut Tree, places: &[Place]) -> Result<Vec<MountPoint>, MountPointError> {
    let made = |place: &Place| {
        let point = ensure_one(tree, &place.path, place.file)?;
        if point.resolved.contains(char::REPLACEMENT_CHARACTER) {
            let reason = "links of the image lead it to a name that is not UTF-8";
            return Err(MountPointError { path: point.path, reason });
        }
        Ok(point)
    };
    places.iter().map(made).collect()
}

fn ensure_one(tree: &mut Tree, path: &str, file: bool) -> Result<MountPoint, MountPointError> {
    let made = if file {
        tree.make_file(path.as_bytes(), DEPTH_MAX)
    } else {
        tree.make_directory(path.as_bytes(), DEPTH_MAX)
    };
    let (resolved, made) = made.map_err(|lost| {
        let reason = match lost {
            Lost::NotADirectory | Lost::Missing => "it, or something on its way, is not a directory",
            Lost::NotAFile => "it is not a regular file",
            Lost::Loop => "symbolic links on its way never end",
            Lost::TooDeep => "it lies too deep",
        };
        MountPointError { path: shown(path.as_bytes()), reason }
    })?;
    let resolved = String::from_utf8_lossy(&resolved).into_owned();
    Ok(MountPoint { path: path.to_owned(), resolved, made, file })
}
