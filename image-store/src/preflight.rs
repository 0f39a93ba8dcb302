//! The look at an image that reads no layer and stores no image.

use std::sync::Arc;
use std::time::Duration;

use crate::candidate::LayerSource;
use crate::digest::Digest;
use crate::find::{Found, InStore};
use crate::record::{ImageId, LayerInfo};
use crate::reference::Reference;
use crate::registry::RegistryAccess;
use crate::source::SourceError;
use crate::spec::{self, ImageConfig};
use crate::store::Store;
use crate::store_format::StoreError;

/// What is known of an image before anything is done with it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Preflight {
    /// The image that the reference means here and now.
    pub image: ImageId,
    /// Digest of its configuration.
    pub config_digest: Digest,
    /// What it wants to run.
    pub config: ImageConfig,
    /// Its layers.
    pub layers: Vec<LayerInfo>,
    /// Bytes of layers that an ingest would have to read; 0 if the image, or one with the same layers, is
    /// stored.
    pub bytes_missing: u64,
    /// How long the stored image may be used without asking again; `None` for as long as one likes. That of an
    /// image that is not stored yet is found out by its ingest.
    pub lasts: Option<Duration>,
    /// What is not as it should be, in one line: the registry is away, and what was fetched last is used.
    pub note: Option<String>,
    pub(crate) found: Arc<Found>,
}

/// Why an image can't be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreflightError {
    /// The image is not there, not whole, not for this machine, or not for this asker.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The store is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Finds out what a reference means: reads documents, no layers; stores nothing but the right to use an
    /// image that is stored already.
    ///
    /// # Errors
    /// [`SourceError`] in all its forms: a bad image is refused here, and so is one that this asker may not
    /// have.
    pub fn preflight(
        &self,
        reference: &Reference,
        access: &RegistryAccess,
    ) -> Result<Preflight, PreflightError> {
        let found = Arc::new(self.find(reference, access)?);
        let candidate = match &*found {
            Found::Stored(stored) => return self.preflight_stored(stored, Arc::clone(&found)),
            Found::Candidate(candidate) => candidate,
        };
        let layers = infos(&candidate.layers);
        let stored = self.tree_path(&spec::chain_id(&candidate.document.diff_ids)).exists();
        let missing = candidate.layers.iter().filter(|layer| !self.layer_path(&layer.diff_id).exists());
        Ok(Preflight {
            image: ImageId::new(candidate.manifest_digest),
            config_digest: candidate.config_digest,
            config: candidate.document.image.clone(),
            bytes_missing: if stored { 0 } else { missing.map(|layer| layer.size).sum() },
            layers,
            lasts: None,
            note: None,
            found,
        })
    }

    fn preflight_stored(&self, stored: &InStore, found: Arc<Found>) -> Result<Preflight, PreflightError> {
        let record = self.record(&stored.image)?;
        Ok(Preflight {
            image: stored.image,
            config_digest: record.config,
            config: self.config_document(&stored.image, &record)?.image,
            layers: record.layers,
            bytes_missing: 0,
            lasts: stored.lasts(),
            note: stored.note.clone(),
            found,
        })
    }
}

pub(crate) fn infos(layers: &[LayerSource]) -> Vec<LayerInfo> {
    let info =
        |layer: &LayerSource| LayerInfo { digest: layer.digest.unwrap_or(layer.diff_id), bytes: layer.size };
    layers.iter().map(info).collect()
}
