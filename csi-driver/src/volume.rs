//! A volume as the driver knows it, and as its record on disk says.
//!
//! **Must not know:** how records get to disk, what a folder looks like.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::target::Target;
use crate::tenant::Tenant;

/// The record's version: a driver refuses to start over records of a newer one.
pub const RECORD_VERSION: u32 = 1;

/// A volume's identity, as the kubelet gives it: at most [`VolumeId::MAX_BYTES`] bytes, no control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VolumeId(String);

impl VolumeId {
    /// CSI asks for 128 at least; the kubelet's have 68.
    pub const MAX_BYTES: usize = 256;

    /// Reads one; nothing if it can't be one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = !text.is_empty() && text.len() <= Self::MAX_BYTES && !text.chars().any(char::is_control);
        fits.then(|| Self(text.to_owned()))
    }

    /// As given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for VolumeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which folder it is, whatever it is called: no two of one file system have the same over time. The device's number is left out,
/// because a machine may give another one after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Birth {
    /// The inode's number.
    pub inode: u64,
    /// When it was made, in seconds; 0 where the file system does not say.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanos: u32,
}

/// What a volume's bytes are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backing {
    /// A folder made in place: mount-free.
    Folder,
    /// A tmpfs of so many bytes.
    Tmpfs {
        /// Its size.
        bytes: u64,
    },
    /// The folder that all volumes of a tenant share, bound there.
    Shared,
}

impl Backing {
    /// Whether something is mounted at the target.
    #[must_use]
    pub fn is_mount(self) -> bool {
        !matches!(self, Self::Folder)
    }
}

/// What a volume is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Where bytes go.
    pub backing: Backing,
    /// Owner of the folder; the driver's own if none.
    pub uid: Option<u32>,
    /// Group of the folder; the driver's own if none.
    pub gid: Option<u32>,
    /// Permissions of the volume's root.
    pub permissions: u32,
    /// Folders for so many slots of a pilot are made.
    pub slots: u32,
    /// Nothing may be written.
    pub read_only: bool,
}

/// A volume and its folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// See [`RECORD_VERSION`].
    pub version: u32,
    /// As the kubelet calls it.
    pub id: VolumeId,
    /// Where it is.
    pub target: Target,
    /// The name, beside the target, that the folder has before it is whole and while it is removed. Random: nobody else makes it.
    pub aside: String,
    /// Which folder it is; none while it is being made, before it has any content.
    pub birth: Option<Birth>,
    /// Whose.
    pub tenant: Tenant,
    /// The pod's uid.
    pub pod: String,
    /// What was asked for.
    pub wanted: Wanted,
}

/// All volumes of the node, by id; and what was measured of them.
#[derive(Clone, Debug, Default)]
pub struct Volumes {
    known: BTreeMap<VolumeId, Known>,
}

/// A volume and what is not in its record.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its record.
    pub volume: Volume,
    /// Being removed: nothing else may be done with it.
    pub leaving: bool,
    /// Bytes that it was last seen to take.
    pub used_bytes: u64,
}

/// What a tenant has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Volumes.
    pub volumes: usize,
    /// Bytes promised to its tmpfs volumes.
    pub promised_bytes: u64,
    /// Bytes measured in all its volumes.
    pub used_bytes: u64,
}

impl Volumes {
    /// One of them.
    #[must_use]
    pub fn find(&self, id: &VolumeId) -> Option<&Known> {
        self.known.get(id)
    }

    /// To change what is not in the record.
    pub fn find_mut(&mut self, id: &VolumeId) -> Option<&mut Known> {
        self.known.get_mut(id)
    }

    /// Puts one in, or in the place of the one of its id.
    pub fn put(&mut self, volume: Volume) {
        let known = Known { leaving: false, used_bytes: 0, volume };
        self.known.insert(known.volume.id.clone(), known);
    }

    /// Takes one out.
    pub fn take(&mut self, id: &VolumeId) -> Option<Volume> {
        self.known.remove(id).map(|known| known.volume)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Known> {
        self.known.values()
    }

    /// What a tenant has.
    #[must_use]
    pub fn held_by(&self, tenant: &Tenant) -> Held {
        let own = self.iter().filter(|known| known.volume.tenant == *tenant);
        own.fold(Held::default(), |held, known| Held {
            volumes: held.volumes + 1,
            promised_bytes: held.promised_bytes.saturating_add(match known.volume.wanted.backing {
                Backing::Tmpfs { bytes } => bytes,
                Backing::Folder | Backing::Shared => 0,
            }),
            used_bytes: held.used_bytes.saturating_add(known.used_bytes),
        })
    }
}
