//! Brings an image that lies in a folder or file into a repository of a registry, byte for byte, so that its
//! digest there is the identity that it has here.
//!
//! # What it must not know
//! Stores: what is pushed is what a layout holds, not what was ingested from it. Tags: an image is named by its
//! digest alone.

use std::collections::BTreeSet;

use crate::candidate::{self, Candidate, Origin};
use crate::limits::Limits;
use crate::reference::Reference;
use crate::registry::{Outgoing, RegistryAccess, RegistryError, Session};
use crate::repository::Repository;
use crate::source::{Source, SourceError};
use crate::spec::{self, Descriptor, Platform};

/// How an image is pushed. [`PushOptions::default`] is meant for production.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushOptions {
    /// Of an index the image for this platform is pushed.
    pub platform: Platform,
    /// Bounds for the image's documents.
    pub limits: Limits,
    /// Bytes that are sent at once, and held in memory. A registry may ask for more, up to 64 MiB.
    pub piece_bytes: u64,
}

impl Default for PushOptions {
    /// Pieces of 8 MiB: one that breaks off costs seconds, and a round trip more for each is not felt.
    fn default() -> Self {
        Self { platform: Platform::host(), limits: Limits::default(), piece_bytes: 8 << 20 }
    }
}

/// How far a push has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PushProgress {
    /// Bytes that are in the repository; they never get fewer.
    pub bytes_done: u64,
    /// Bytes of the image: layers, configuration, manifest.
    pub bytes_total: u64,
}

/// An image that is in the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The image there, by its digest: `docker://HOST/PATH@sha256:..`.
    pub reference: Reference,
    /// Bytes of blobs and of the manifest that had to be sent.
    pub bytes_sent: u64,
    /// Bytes of those that were there before.
    pub bytes_there: u64,
}

/// Why an image can't be pushed. Nothing is named in the repository then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// The image is not there, not whole, or not for the platform.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The registry can't be reached or does not take it, or a blob is not what the image states.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// What is in a registry is not fetched to be pushed.
    #[error(
        "push image \"{reference}\": it is in a registry already; name a folder or a file (oci:, oci-archive:, docker-archive:)"
    )]
    NotLocal {
        /// The image.
        reference: String,
    },
}

impl PushError {
    /// Whether another try later may go better without anybody changing anything.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Source(_) | Self::NotLocal { .. } => false,
            Self::Registry(error) => error.is_transient(),
        }
    }
}

/// Copies an image of a folder or file into a repository; what is there already is not sent again. The
/// repository's mirrors are not asked.
///
/// # Flow
/// 1. The image is found as pulls find it; documents are verified, and the lengths of all layers.
/// 2. Layers and configuration are sent where they are missing, their digests computed on the way.
/// 3. The manifest is put under its digest. Whoever looks before that sees no image.
///
/// # Errors
/// [`PushError`]: one line that says what to do.
pub fn push(
    from: &Reference,
    to: &Repository,
    access: &RegistryAccess,
    options: &PushOptions,
    told: &dyn Fn(PushProgress),
) -> Result<Pushed, PushError> {
    if from.repository().is_some() {
        return Err(PushError::NotLocal { reference: from.to_string() });
    }
    let candidate = candidate::find(from, &options.platform, &options.limits)?;
    let blobs = blobs(&candidate)?;
    let session = Session::open_to_push(access, to)?;
    let manifest_bytes = candidate.manifest.len() as u64;
    let bytes_total = manifest_bytes + blobs.iter().map(|blob| blob.size).sum::<u64>();
    let (mut bytes_sent, mut bytes_there) = (0, 0);
    let mut count = |sent: bool, bytes: u64| {
        *(if sent { &mut bytes_sent } else { &mut bytes_there }) += bytes;
    };
    let mut bytes_before = 0;
    for mut blob in blobs {
        let told = |bytes| told(PushProgress { bytes_done: bytes_before + bytes, bytes_total });
        let sent = session.upload(&mut blob, options.piece_bytes, &told)?;
        count(sent, blob.size);
        bytes_before += blob.size;
    }
    let kind = Descriptor::of(&candidate.manifest, spec::MANIFEST_TYPES[0].to_owned()).media_type;
    count(session.name(candidate.manifest_digest, &kind, &candidate.manifest)?, manifest_bytes);
    told(PushProgress { bytes_done: bytes_total, bytes_total });
    let reference = Reference::in_repository(to.clone(), candidate.manifest_digest);
    Ok(Pushed { reference, bytes_sent, bytes_there })
}

/// What the manifest names, each once: images may have a layer twice.
fn blobs(candidate: &Candidate) -> Result<Vec<Outgoing<'_>>, PushError> {
    let mut known = BTreeSet::new();
    let mut blobs = Vec::new();
    let Origin::Local(source) = &candidate.origin else { return Ok(blobs) };
    for layer in &candidate.layers {
        // The manifest that is made up for a docker archive names layers by their content.
        let digest = layer.digest.unwrap_or(layer.diff_id);
        if known.insert(digest) {
            blobs.push(Outgoing::file("layer", digest, layer.size, range(source, &layer.name)?));
        }
    }
    blobs.push(Outgoing::document("configuration", candidate.config_digest, &candidate.config));
    Ok(blobs)
}

fn range(source: &Source, name: &str) -> Result<crate::archive_file::Range, SourceError> {
    source.require(name).map(|(range, _)| range)
}
