//! The look at an image that reads no layer and writes nothing.

use crate::candidate::{self, LayerSource};
use crate::digest::Digest;
use crate::record::{ImageId, LayerInfo};
use crate::reference::Reference;
use crate::source::SourceError;
use crate::spec::{self, ImageConfig};
use crate::store::Store;

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
}

/// Why an image can't be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreflightError {
    /// The image is not there, not whole, or not for this machine.
    #[error(transparent)]
    Source(#[from] SourceError),
}

impl Store {
    /// Finds out what a reference means: reads documents, no layers; writes nothing.
    ///
    /// # Errors
    /// [`SourceError`] in all its forms: a bad image is refused here.
    pub fn preflight(&self, reference: &Reference) -> Result<Preflight, PreflightError> {
        let candidate = candidate::find(reference, &self.platform, &self.options.limits)?;
        let layers = infos(&candidate.layers);
        let stored = self.tree_path(&spec::chain_id(&candidate.document.diff_ids)).exists();
        Ok(Preflight {
            image: ImageId::new(candidate.manifest_digest),
            config_digest: candidate.config_digest,
            config: candidate.document.image,
            bytes_missing: if stored { 0 } else { layers.iter().map(|layer| layer.bytes).sum() },
            layers,
        })
    }
}

pub(crate) fn infos(layers: &[LayerSource]) -> Vec<LayerInfo> {
    let info =
        |layer: &LayerSource| LayerInfo { digest: layer.digest.unwrap_or(layer.diff_id), bytes: layer.size };
    layers.iter().map(info).collect()
}
