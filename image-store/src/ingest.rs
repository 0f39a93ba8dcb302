//! From a reference to a stored image.
//!
//! # Flow
//! 1. Find the image in its source; verify manifest, configuration, lengths.
//! 2. Take its layers apart, several at once; contents become objects as they come. A layer that another
//!    image brought is not read again; one from a registry is taken apart while it is coming.
//! 3. Verify each blob's digest and each diff_id; merge the layers in order.
//! 4. Publish documents, then the tree, then the record: only now is the image there.
//!
//! # Guarantees
//! A process that is killed at any point leaves objects that [`Store::collect`] removes and a folder in
//! `ingest/` that the next [`Store::open`] removes. Two ingests of one image waste work and harm nothing;
//! an advisory lock makes the second wait for the first where locks work.

use std::fs::File;
use std::time::Duration;

use crate::candidate::{Candidate, Origin};
use crate::digest::Digest;
use crate::entry::{EntryError, LeftOut};
use crate::find::Found;
use crate::grants::Right;
use crate::ingest_layers::{self, Layers};
use crate::layer::LayerError;
use crate::mount_points::{self, MountPointError};
use crate::objects::{ObjectError, ObjectWriter};
use crate::preflight::{Preflight, infos};
use crate::record::{ImageId, RECORD_VERSION, Record, RefRecord};
use crate::reference::Reference;
use crate::registry::{RegistryAccess, RegistryError};
use crate::scratch::Scratch;
use crate::source::SourceError;
use crate::spec;
use crate::store::Store;
use crate::store_format::StoreError;
use crate::tree_format;

/// How long an ingest waits for another of the same layers before it does the work itself.
const CLAIM_WAIT: Duration = Duration::from_secs(600);
const CLAIM_POLL: Duration = Duration::from_millis(20);

/// An image that was stored, and may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ingested {
    /// The image.
    pub image: ImageId,
    /// How long it may be used without asking again; `None` for as long as one likes.
    pub lasts: Option<Duration>,
}

/// How far an ingest has come, in bytes of layers as the source has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes read.
    pub bytes_done: u64,
    /// Bytes to read.
    pub bytes_total: u64,
}

/// Why an image could not be stored. Nothing of it is visible then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IngestError {
    /// The image is not there, not whole, or not for this machine.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A layer is damaged, hostile or could not be stored.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// An entry has no place in the image.
    #[error("place entry \"{entry}\" of layer {layer}")]
    Place {
        /// Digest of the layer.
        layer: Digest,
        /// The entry.
        entry: String,
        /// Why.
        #[source]
        source: EntryError,
    },
    /// A place that must be mounted over can't be.
    #[error("use image \"{reference}\"")]
    MountPoint {
        /// The image.
        reference: String,
        /// Which place and why.
        #[source]
        source: MountPointError,
    },
    /// The store can't be written.
    #[error("store image \"{reference}\"")]
    Store {
        /// The image.
        reference: String,
        /// What was refused.
        #[source]
        source: ObjectError,
    },
    /// The store is damaged.
    #[error(transparent)]
    Damaged(#[from] StoreError),
}

impl Store {
    /// Stores the image that a reference means; does nothing but remember the reference if it is stored.
    /// `progress` is called from several threads.
    ///
    /// # Errors
    /// [`IngestError`]; the store is then as before, but for objects that [`Store::collect`] removes, and for
    /// parts of blobs, with which the next ingest goes on.
    pub fn ingest(
        &self,
        reference: &Reference,
        access: &RegistryAccess,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<ImageId, IngestError> {
        let found = self.find(reference, access)?;
        self.ingest_found(reference, &found, progress).map(|ingested| ingested.image)
    }

    /// As [`Store::ingest`], without asking again what the preflight of the same reference found out.
    ///
    /// # Errors
    /// As [`Store::ingest`].
    pub fn ingest_preflight(
        &self,
        reference: &Reference,
        preflight: &Preflight,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Ingested, IngestError> {
        self.ingest_found(reference, &preflight.found, progress)
    }

    fn ingest_found(
        &self,
        reference: &Reference,
        found: &Found,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Ingested, IngestError> {
        let candidate = match found {
            Found::Stored(stored) => {
                self.remember(reference, stored.image, false)?;
                return Ok(Ingested { image: stored.image, lasts: stored.lasts() });
            }
            Found::Candidate(candidate) => candidate,
        };
        let result = self.ingest_candidate(reference, candidate, progress);
        match &result {
            // What is there already saves the next try its work.
            Err(error) if error.is_transient() => {}
            Err(error) => {
                if error.is_full() {
                    self.remove_parts(candidate);
                }
                // Objects of a refused image serve nobody. If another ingest is busy, it or the next collects.
                let _ = self.collect();
            }
            Ok(_) => self.remove_parts(candidate),
        }
        result
    }

    fn ingest_candidate(
        &self,
        reference: &Reference,
        candidate: &Candidate,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Ingested, IngestError> {
        let image = ImageId::new(candidate.manifest_digest);
        let store_error = |source| IngestError::Store { reference: reference.to_string(), source };
        // A record whose tree is damaged is ingested anew: that repairs it.
        if self.is_whole(&image) {
            ingest_layers::check_right(candidate)?;
        } else {
            let _sharing = self.share();
            let scratch = self.scratch().map_err(store_error)?;
            let chain = spec::chain_id(&candidate.document.diff_ids);
            let _claim = self.claim(&chain);
            let ingest = Ingest { store: self, reference, candidate, scratch: &scratch, chain, progress };
            let record = ingest.run()?;
            let text = serde_json::to_vec(&record).unwrap_or_default();
            self.replace(&scratch, &self.record_path(&image), &text).map_err(store_error)?;
        }
        let mut right = Right::Everybody;
        if let Origin::Registry { top, shown, .. } = &candidate.origin {
            right = self.grant(&image, shown);
            if *top != candidate.manifest_digest {
                self.remember(&reference.pinned(*top), image, true)?;
            }
        }
        self.remember(reference, image, false)?;
        Ok(Ingested { image, lasts: right.lasts() })
    }

    /// Writes down what a reference means now. Where nothing can be written, what is stored serves without.
    fn remember(&self, reference: &Reference, image: ImageId, derived: bool) -> Result<(), IngestError> {
        let text = Self::ref_text(reference);
        let path = self.ref_path(&text);
        let bytes = serde_json::to_vec(&RefRecord { reference: text, image, derived }).unwrap_or_default();
        if std::fs::read(&path).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        let written = self.scratch().and_then(|scratch| self.replace(&scratch, &path, &bytes));
        match written {
            Ok(()) => Ok(()),
            Err(error @ ObjectError::ReadOnly { .. }) => {
                tracing::debug!(%error, "reference not remembered");
                Ok(())
            }
            Err(source) => Err(IngestError::Store { reference: reference.to_string(), source }),
        }
    }

    /// Keeps collection away while held. Where locks don't work there is no collection either.
    fn share(&self) -> Option<File> {
        let lock = self.lock_file()?;
        lock.lock_shared().ok()?;
        Some(lock)
    }

    pub(crate) fn lock_file(&self) -> Option<File> {
        File::options().create(true).truncate(false).write(true).open(self.root.join("lock")).ok()
    }

    /// Waits for another ingest of the same layers. A hint, not a right: what is published is right anyhow.
    fn claim(&self, chain: &Digest) -> Option<File> {
        let path = self.root.join("claims").join(chain.hex());
        let claim = File::options().create(true).truncate(false).write(true).open(path).ok()?;
        for _ in 0..CLAIM_WAIT.as_millis() / CLAIM_POLL.as_millis() {
            match claim.try_lock() {
                Ok(()) => return Some(claim),
                Err(std::fs::TryLockError::WouldBlock) => std::thread::sleep(CLAIM_POLL),
                Err(std::fs::TryLockError::Error(_)) => return None,
            }
        }
        None
    }
}

impl IngestError {
    /// Whether another try later may go better without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Source(SourceError::Registry(error)) if error.is_transient())
    }

    /// Whether the store, not the image, is to blame.
    #[must_use]
    pub fn is_store_fault(&self) -> bool {
        self.object_error().is_some() || matches!(self, Self::Damaged(_))
    }

    fn is_full(&self) -> bool {
        matches!(self.object_error(), Some(ObjectError::Full { .. }))
    }

    fn object_error(&self) -> Option<&ObjectError> {
        match self {
            Self::Store { source, .. }
            | Self::Layer(
                LayerError::Store { source, .. }
                | LayerError::Entry { source: EntryError::Store(source), .. },
            ) => Some(source),
            Self::Source(SourceError::Registry(error)) => error.store_fault(),
            _ => None,
        }
    }
}

impl From<RegistryError> for IngestError {
    fn from(error: RegistryError) -> Self {
        Self::Source(error.into())
    }
}

/// One ingest under way.
pub(crate) struct Ingest<'a> {
    pub(crate) store: &'a Store,
    pub(crate) reference: &'a Reference,
    pub(crate) candidate: &'a Candidate,
    pub(crate) scratch: &'a Scratch,
    chain: Digest,
    pub(crate) progress: &'a (dyn Fn(Progress) + Sync),
}

impl Ingest<'_> {
    fn run(&self) -> Result<Record, IngestError> {
        let store_error = |source| IngestError::Store { reference: self.reference.to_string(), source };
        let writer = ObjectWriter::new(self.scratch);
        let path = self.store.tree_path(&self.chain);
        let stored = std::fs::read(&path).ok().and_then(|bytes| tree_format::decode(&bytes).ok());
        let fresh = stored.is_none();
        let mut record = self.empty_record();
        let mut fresh_layers = Vec::new();
        let mut tree = match stored {
            Some(tree) => {
                ingest_layers::check_right(self.candidate)?;
                record.left_out = self.left_out_of_chain();
                tree
            }
            None => {
                let mut layers = Layers::of(self, &writer)?;
                fresh_layers = std::mem::take(&mut layers.fresh);
                layers.merge(self, &mut record)?
            }
        };
        record.unpacked_bytes = tree.contents().map(|content| content.size).sum();
        record.entries = tree.names();
        let encoded = if fresh { tree_format::encode(&tree) } else { Ok(Vec::new()) };
        let encoded = encoded.map_err(|error| store_error(ObjectError::of(&path, error)))?;
        // What must be mounted over is tried here, so that no payload is bound to an image that can't run.
        let mounts = mount_points::ensure(&mut tree, &record.extra_directories);
        record.mount_points = mounts
            .map_err(|source| IngestError::MountPoint { reference: self.reference.to_string(), source })?;
        self.store.put_blob(&writer, &self.candidate.config).map_err(store_error)?;
        self.store.put_blob(&writer, &self.candidate.manifest).map_err(store_error)?;
        self.sync().map_err(store_error)?;
        for (diff_id, encoded) in fresh_layers {
            let path = self.store.layer_path(&diff_id);
            self.store.replace(self.scratch, &path, &encoded).map_err(store_error)?;
        }
        if fresh {
            self.store.replace(self.scratch, &path, &encoded).map_err(store_error)?;
        }
        Ok(record)
    }

    /// What another image of the same layers left out.
    fn left_out_of_chain(&self) -> LeftOut {
        let ids = self.store.image_ids().unwrap_or_default();
        let mut records = ids.iter().filter_map(|id| self.store.record(id).ok());
        let same = records.find(|record| record.chain == self.chain);
        same.map(|record| record.left_out).unwrap_or_default()
    }

    fn empty_record(&self) -> Record {
        let workdir = &self.candidate.document.image.workdir;
        let wanted = workdir.starts_with('/') && workdir != "/";
        Record {
            version: RECORD_VERSION,
            manifest: self.candidate.manifest_digest,
            config: self.candidate.config_digest,
            chain: self.chain,
            layers: infos(&self.candidate.layers),
            extra_directories: if wanted { vec![workdir.clone()] } else { Vec::new() },
            mount_points: Vec::new(),
            unpacked_bytes: 0,
            entries: 0,
            left_out: LeftOut::default(),
        }
    }

    /// Objects must be on the disk before the record that promises them. One call for all of them: an fsync
    /// for each of 10^5 files takes minutes on a disk.
    fn sync(&self) -> Result<(), ObjectError> {
        let root = &self.store.root;
        if self.store.options.lazy_sync {
            return Ok(());
        }
        let dir = File::open(root).map_err(|error| ObjectError::of(root, error))?;
        rustix::fs::syncfs(&dir).map_err(|error| ObjectError::of(root, error))
    }
}
