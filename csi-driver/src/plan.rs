//! What is to be done about a request, from what is known and what was found. Pure: no I/O, no clock.
//!
//! | known | found at the target | publish | unpublish |
//! |---|---|---|---|
//! | no | nothing, or an empty folder | make, within quotas | nothing to do |
//! | no | anything else | refused | nothing to do |
//! | yes | nothing | make again | forget |
//! | yes | its own folder | already there; mount what is not mounted | remove |
//! | yes | another, empty folder | make again | forget |
//! | yes | anything else | refused | refused |
//!
//! **Must not know:** how a folder is made or removed, what time it is but by argument.

use std::time::Duration;

use crate::quantity::Bytes;
use crate::request::PublishRequest;
use crate::target::{Found, Target};
use crate::volume::{Backing, Known, VolumeId, Volumes};

/// What an admin lets volumes take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Whether anything may be mounted.
    pub mounts: bool,
    /// Most volumes of the node.
    pub volumes: usize,
    /// Most volumes of one tenant.
    pub tenant_volumes: usize,
    /// Most bytes of one tmpfs.
    pub volume_bytes: u64,
    /// Most bytes of one tenant: promised to its tmpfs volumes; and measured, before it gets another volume.
    pub tenant_bytes: u64,
}

/// What to do about a request to publish.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publish {
    /// Make the folder, and mount on it if it is that kind.
    Make,
    /// Its folder is there and its mount is not.
    Mount,
    /// All is there.
    Already,
    /// Nothing.
    Refuse(Refusal),
}

/// What to do about a request to unpublish.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpublish {
    /// This is no volume of ours: nothing is touched, and that is success.
    Nothing,
    /// Its folder is gone, so only what is known of it has to go.
    Forget,
    /// Unmount what is mounted, if it is that kind, and remove the folder.
    Remove,
    /// Nothing.
    Refuse(Conflict),
}

/// What at a target is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// A link or a file.
    #[error("at the target is something that is no folder; it is left alone")]
    NotAFolder,
    /// A folder with content that the driver did not make.
    #[error("at the target is a folder that the driver did not make, and not empty; it is left alone")]
    Foreign,
    /// A mount where none should be.
    #[error("something is mounted at the target that the driver did not mount; it is left alone")]
    Mounted,
    /// An earlier request is not done.
    #[error("the volume is being removed")]
    Busy,
}

/// Why a volume is not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Something is in the way.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The folder of the pod is not there.
    #[error("the folder that the target should be in does not exist")]
    NoParent,
    /// Published elsewhere.
    #[error("the volume is published at another target")]
    Elsewhere,
    /// Published as something else.
    #[error("the volume is published with other attributes, another tenant or another pod")]
    Incompatible,
    /// Mounts are not allowed.
    #[error("mode: mount is not allowed on this node: an admin starts the driver with --allow-mount true")]
    MountsForbidden,
    /// The node is full.
    #[error("the node has {0} volumes, as many as --volumes allows")]
    NodeVolumes(usize),
    /// The tenant has enough.
    #[error("the tenant has {0} volumes on this node, as many as --tenant-volumes allows")]
    TenantVolumes(usize),
    /// One volume wants too much.
    #[error("a volume of {asked} is more than --volume-bytes {most} allows")]
    VolumeBytes {
        /// Its size.
        asked: Bytes,
        /// What would do.
        most: Bytes,
    },
    /// The tenant wants too much.
    #[error(
        "the tenant's volumes on this node take {held}; with {asked} more it would have more than --tenant-bytes {most}"
    )]
    TenantBytes {
        /// What it has.
        held: Bytes,
        /// What it asks for.
        asked: Bytes,
        /// What it may have.
        most: Bytes,
    },
}

/// Decides about a request to publish.
pub fn publish(request: &PublishRequest, volumes: &Volumes, found: Found, limits: &Limits) -> Publish {
    match volumes.find(&request.id) {
        Some(known) => publish_known(request, known, found),
        None => publish_new(request, volumes, found, limits),
    }
}

fn publish_known(request: &PublishRequest, known: &Known, found: Found) -> Publish {
    let Known { volume, leaving, .. } = known;
    if *leaving {
        return Publish::Refuse(Conflict::Busy.into());
    }
    if volume.target != request.target {
        return Publish::Refuse(Refusal::Elsewhere);
    }
    if volume.wanted != request.wanted || volume.tenant != request.tenant || volume.pod != request.pod {
        return Publish::Refuse(Refusal::Incompatible);
    }
    match at(known, found) {
        At::NoParent => Publish::Refuse(Refusal::NoParent),
        At::Nothing | At::Empty => Publish::Make,
        At::Own => Publish::Already,
        At::Unmounted => Publish::Mount,
        At::Conflict(conflict) => Publish::Refuse(conflict.into()),
    }
}

fn publish_new(request: &PublishRequest, volumes: &Volumes, found: Found, limits: &Limits) -> Publish {
    let conflict = match found {
        Found::NoParent => Some(Refusal::NoParent),
        Found::Nothing | Found::Folder { empty: true, mounted: false, .. } => None,
        Found::Folder { mounted: true, .. } => Some(Conflict::Mounted.into()),
        Found::Folder { .. } => Some(Conflict::Foreign.into()),
        Found::Other => Some(Conflict::NotAFolder.into()),
    };
    match conflict.or_else(|| over(request, volumes, limits)) {
        Some(refusal) => Publish::Refuse(refusal),
        None => Publish::Make,
    }
}

/// Which limit a new volume would break.
fn over(request: &PublishRequest, volumes: &Volumes, limits: &Limits) -> Option<Refusal> {
    let backing = request.wanted.backing;
    if backing.is_mount() && !limits.mounts {
        return Some(Refusal::MountsForbidden);
    }
    if volumes.len() >= limits.volumes {
        return Some(Refusal::NodeVolumes(volumes.len()));
    }
    let held = volumes.held_by(&request.tenant);
    if held.volumes >= limits.tenant_volumes {
        return Some(Refusal::TenantVolumes(held.volumes));
    }
    let most = Bytes(limits.tenant_bytes);
    let (taken, asked) = match backing {
        Backing::Tmpfs { bytes } if bytes > limits.volume_bytes => {
            return Some(Refusal::VolumeBytes { asked: Bytes(bytes), most: Bytes(limits.volume_bytes) });
        }
        Backing::Tmpfs { bytes } => (held.promised_bytes.max(held.used_bytes), bytes),
        // What nobody can promise is judged by what was measured.
        Backing::Folder | Backing::Shared => (held.used_bytes, 0),
    };
    (taken.saturating_add(asked) > most.0).then_some(Refusal::TenantBytes {
        held: Bytes(taken),
        asked: Bytes(asked),
        most,
    })
}

/// Decides about a request to unpublish.
pub fn unpublish(id: &VolumeId, target: &Target, volumes: &Volumes, found: Found) -> Unpublish {
    let Some(known) = volumes.find(id).filter(|known| known.volume.target == *target) else {
        return Unpublish::Nothing;
    };
    if known.leaving {
        return Unpublish::Refuse(Conflict::Busy);
    }
    match at(known, found) {
        At::NoParent | At::Nothing | At::Empty => Unpublish::Forget,
        At::Own | At::Unmounted => Unpublish::Remove,
        At::Conflict(conflict) => Unpublish::Refuse(conflict),
    }
}

/// What is at the target of a volume that is known.
enum At {
    NoParent,
    Nothing,
    /// A folder that is not ours and has nothing in it.
    Empty,
    /// All that should be there.
    Own,
    /// Its folder, without the mount.
    Unmounted,
    Conflict(Conflict),
}

fn at(known: &Known, found: Found) -> At {
    let volume = &known.volume;
    match found {
        Found::NoParent => At::NoParent,
        Found::Nothing => At::Nothing,
        Found::Other => At::Conflict(Conflict::NotAFolder),
        // What is below can't be seen.
        Found::Folder { mounted: true, .. } if volume.wanted.backing.is_mount() => At::Own,
        Found::Folder { mounted: true, .. } => At::Conflict(Conflict::Mounted),
        Found::Folder { birth, .. } if volume.birth == Some(birth) => {
            if volume.wanted.backing.is_mount() {
                At::Unmounted
            } else {
                At::Own
            }
        }
        Found::Folder { empty: true, .. } => At::Empty,
        Found::Folder { .. } => At::Conflict(Conflict::Foreign),
    }
}

/// What a look at a volume's surroundings shows, for collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The folder that the target is in is there.
    pub parent: bool,
    /// The kubelet's note about the volume is there.
    pub noted: bool,
}

/// What to do about a volume whose pod may be gone.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collect {
    /// Its pod is there, as far as anybody knows.
    Keep,
    /// Its pod's folder is gone, and the volume with it.
    Forget,
    /// The kubelet has not known it for long enough: as if it had asked to unpublish.
    Remove,
}

/// Decides about one volume at the time `now`. `unnoted_since` is when the note was first seen to be missing.
pub fn collect(now: Duration, trace: Trace, unnoted_since: Option<Duration>, grace: Duration) -> Collect {
    match (trace, unnoted_since) {
        (Trace { parent: false, .. }, _) => Collect::Forget,
        (Trace { noted: true, .. }, _) | (_, None) => Collect::Keep,
        (_, Some(since)) if now.saturating_sub(since) >= grace => Collect::Remove,
        (_, Some(_)) => Collect::Keep,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
pub(crate) mod tests;
