//! Where a payload may have inputs mounted, and what a pod declares of it.
//!
//! Pure: the rules are the same for a workflow file, for `pilot pod`, and for both backends, so that a file which is right
//! for one is right for the other.
//!
//! **Must not know:** workflow files, containers, pods.

use std::fmt;
use std::path::{Component, Path};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};
use wire::slot::PATH_BYTES_MAX;

/// What every slot has mounted, or keeps, itself (docs/reference/slot.md, docs/reference/pod.md).
const OURS: [&str; 11] = [
    "/stage",
    "/work",
    "/tmp",
    "/var/tmp",
    "/dev",
    "/proc",
    "/sys",
    "/.latebind",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
];
/// Says in a list of mounts that a file is to be mounted there.
const FILE: &str = ":file";
/// Says the same in the name of a place.
const FILE_PLACE: &str = ".file";

/// A path in a container at which something of a payload's choosing may be mounted: absolute, without `.`, `..`, `//`, `:`
/// and `,`, and neither below nor above what is the slot's own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Destination(String);

/// Why nothing can be mounted at a path. Display follows the path and says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// It is not spelled as it must be.
    #[error(
        "is no plain absolute path; write it like /data/calib, without \"..\", \"//\", \":\", \",\" and \"/\" at the end"
    )]
    NotPlain,
    /// Something of the slot's own is there, or above, or below.
    #[error("would lie in, or cover, the slot's own {0}; choose another path, such as /data/calib")]
    Ours(&'static str),
}

impl Destination {
    /// The path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether one of the two is the other, or lies in it.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        nests(&self.0, &other.0)
    }
}

fn nests(one: &str, other: &str) -> bool {
    let (one, other) = (Path::new(one), Path::new(other));
    one.starts_with(other) || other.starts_with(one)
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        let path = Path::new(text);
        let mut parts = path.components();
        let absolute = parts.next() == Some(Component::RootDir);
        let plain = parts.all(|part| matches!(part, Component::Normal(_)));
        // What `components` passes over in silence.
        let written = path.components().collect::<std::path::PathBuf>().as_os_str() == text;
        let readable = !text.contains(|c: char| c == ':' || c == ',' || c.is_control());
        if !(absolute && plain && written && readable) || text.len() > PATH_BYTES_MAX {
            return Err(DestinationError::NotPlain);
        }
        match OURS.iter().find(|ours| nests(text, ours)) {
            Some(ours) => Err(DestinationError::Ours(ours)),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Destination {
    type Error = DestinationError;

    fn try_from(text: String) -> Result<Self, DestinationError> {
        text.parse()
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.0
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A place that each slot of a pod has for something to be mounted: `/data/calib`, or `/etc/app.json:file`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mount {
    /// Where.
    pub at: Destination,
    /// For files; otherwise for folders. A node can't change that from one container of a slot to the next.
    pub is_file: bool,
}

impl Mount {
    /// How what is mounted is called among the mounts of a slot, of which this is the `index`-th; says whether it is a file.
    #[must_use]
    pub fn place(&self, index: usize) -> String {
        format!("{index}{}", if self.is_file { FILE_PLACE } else { "" })
    }
}

/// Whether a place of a slot is for files.
#[must_use]
pub fn is_file_place(place: &str) -> bool {
    place.ends_with(FILE_PLACE)
}

/// Why a list of mounts can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// No place for a mount.
    #[error("mount {text:?}: it {why}")]
    Destination {
        /// As it was written.
        text: String,
        /// Why not.
        why: DestinationError,
    },
    /// One lies in another.
    #[error("mount both {0} and {1} in one pod: one lies in the other; choose paths side by side")]
    Nested(Destination, Destination),
    /// A file and a folder are wanted at one place.
    #[error("mount a file and a folder at {0} in one pod: choose another path for one of them")]
    TwoKinds(Destination),
}

impl FromStr for Mount {
    type Err = MountError;

    fn from_str(text: &str) -> Result<Self, MountError> {
        let (path, is_file) = text.strip_suffix(FILE).map_or((text, false), |path| (path, true));
        let at = path.parse().map_err(|why| MountError::Destination { text: text.to_owned(), why })?;
        Ok(Self { at, is_file })
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.at, if self.is_file { FILE } else { "" })
    }
}

impl<'de> Deserialize<'de> for Mount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What one pod has to have for all of these, each once, in an order that does not depend on theirs.
///
/// # Errors
/// When no pod can have them all.
pub fn together(mounts: impl IntoIterator<Item = Mount>) -> Result<Vec<Mount>, MountError> {
    let mut all: Vec<Mount> = mounts.into_iter().collect();
    all.sort();
    all.dedup();
    for (index, mount) in all.iter().enumerate() {
        for other in &all[..index] {
            if mount.at == other.at {
                return Err(MountError::TwoKinds(mount.at.clone()));
            }
            if mount.at.meets(&other.at) {
                return Err(MountError::Nested(other.at.clone(), mount.at.clone()));
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Result<Destination, DestinationError> {
        text.parse()
    }

    #[test]
    fn a_destination_is_a_plain_path_outside_of_the_slots_own() {
        for good in
            ["/data", "/data/calib", "/etc/app.json", "/tmpfs", "/opt/a b", "/var/lib", "/staging", "/é"]
        {
            assert_eq!(at(good).map(|at| at.to_string()), Ok(good.to_owned()));
        }
        for bad in [
            "", "data", "./data", "/data/", "//data", "/a//b", "/a/./b", "/a/../b", "/..", "/a:b", "/a,b",
            "/a\nb",
        ] {
            assert_eq!(at(bad), Err(DestinationError::NotPlain), "{bad:?}");
        }
        assert_eq!(at(&format!("/{}", "x".repeat(PATH_BYTES_MAX))), Err(DestinationError::NotPlain));
        for (path, ours) in [
            ("/", "/stage"),
            ("/stage/in/x", "/stage"),
            ("/work", "/work"),
            ("/tmp/x", "/tmp"),
            ("/var", "/var/tmp"),
            ("/etc", "/etc/hosts"),
            ("/dev/shm", "/dev"),
            ("/proc", "/proc"),
            ("/sys/fs", "/sys"),
            ("/.latebind/in", "/.latebind"),
            ("/etc/hosts", "/etc/hosts"),
        ] {
            assert_eq!(at(path), Err(DestinationError::Ours(ours)), "{path}");
        }
    }

    #[test]
    fn mounts_of_a_pod_are_side_by_side_and_of_one_kind() {
        let all = |texts: &[&str]| {
            let mounts = texts.iter().map(|text| text.parse::<Mount>()).collect::<Result<Vec<_>, _>>()?;
            let all = together(mounts)?;
            Ok::<_, MountError>(all.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(all(&["/b:file", "/a", "/b:file"]), Ok(vec!["/a".to_owned(), "/b:file".to_owned()]));
        assert!(matches!(all(&["/a/b", "/a-b", "/a"]), Err(MountError::Nested(..))));
        assert!(matches!(all(&["/a", "/a:file"]), Err(MountError::TwoKinds(_))));
        assert!(matches!(all(&["/a:files"]), Err(MountError::Destination { .. })));
    }
}
