//! What the store remembers of an image: one small JSON file each in `images/`, written last. An image is in
//! the store exactly if its record is. Knows the form, not the file system.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError};
use crate::entry::LeftOut;
use crate::mount_points::MountPoint;

/// Version of the record; another one counts as "not stored".
pub(crate) const RECORD_VERSION: u32 = 1;

/// An image's identity: the digest of its manifest. For a docker archive, which has none, of the manifest
/// that its configuration implies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(Digest);

impl ImageId {
    /// The image whose manifest has this digest.
    #[must_use]
    pub const fn new(manifest: Digest) -> Self {
        Self(manifest)
    }

    /// Digest of the manifest.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for ImageId {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        text.parse().map(Self)
    }
}

/// A layer as the source has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Digest of the blob, or of its content if the source states no other.
    pub digest: Digest,
    /// Bytes of the blob.
    pub bytes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) version: u32,
    pub(crate) manifest: Digest,
    pub(crate) config: Digest,
    /// Names the tree: images with the same layers share it.
    pub(crate) chain: Digest,
    pub(crate) layers: Vec<LayerInfo>,
    /// Directories that the image asks for and lacks: its WORKDIR.
    pub(crate) extra_directories: Vec<String>,
    pub(crate) mount_points: Vec<MountPoint>,
    pub(crate) unpacked_bytes: u64,
    pub(crate) entries: u64,
    pub(crate) left_out: LeftOut,
}

/// A name under which an image was ingested.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RefRecord {
    pub(crate) reference: String,
    pub(crate) image: ImageId,
    /// Nobody wrote this reference: it says which image an index leads to.
    #[serde(default)]
    pub(crate) derived: bool,
}
