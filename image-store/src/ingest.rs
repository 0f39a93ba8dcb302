//! From a reference to a stored image.
//!
//! # Flow
//! 1. Find the image in its source; verify manifest, configuration, lengths.
//! 2. Take its layers apart, several at once; contents become objects as they come.
//! 3. Verify each blob's digest and each diff_id; merge the layers in order.
//! 4. Publish documents, then the tree, then the record: only now is the image there.
//!
//! # Guarantees
//! A process that is killed at any point leaves objects that [`Store::collect`] removes and a folder in
//! `ingest/` that the next [`Store::open`] removes. Two ingests of one image waste work and harm nothing;
//! an advisory lock makes the second wait for the first where locks work.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::candidate::{self, Candidate, LayerSource};
use crate::digest::Digest;
use crate::entry::{EntryError, LeftOut, shown};
use crate::layer::{Budget, LayerError, LayerParts, LayerReader};
use crate::mount_points::{self, MountPointError};
use crate::objects::{ObjectError, ObjectWriter};
use crate::preflight::infos;
use crate::record::{ImageId, RECORD_VERSION, Record, RefRecord};
use crate::reference::Reference;
use crate::scratch::Scratch;
use crate::source::SourceError;
use crate::spec;
use crate::store::Store;
use crate::store_format::StoreError;
use crate::tree::Tree;
use crate::tree_format;

/// Layers that are taken apart at once, at most; each has three threads of its own besides.
const LAYERS_AT_ONCE: usize = 4;
/// How long an ingest waits for another of the same layers before it does the work itself.
const CLAIM_WAIT: Duration = Duration::from_secs(600);
const CLAIM_POLL: Duration = Duration::from_millis(20);

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
    /// [`IngestError`]; the store is then as before, but for objects that [`Store::collect`] removes; that is
    /// tried at once.
    pub fn ingest(
        &self,
        reference: &Reference,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<ImageId, IngestError> {
        let candidate = candidate::find(reference, &self.platform, &self.options.limits)?;
        let result = self.ingest_candidate(reference, &candidate, progress);
        if result.is_err() {
            // Objects of a refused image serve nobody. If another ingest is busy, it or the next collects.
            let _ = self.collect();
        }
        result
    }

    fn ingest_candidate(
        &self,
        reference: &Reference,
        candidate: &Candidate,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<ImageId, IngestError> {
        let image = ImageId::new(candidate.manifest_digest);
        let store_error = |source| IngestError::Store { reference: reference.to_string(), source };
        let _sharing = self.share();
        let scratch = self.scratch().map_err(store_error)?;
        // A record whose tree is damaged is ingested anew: that repairs it.
        if self.record(&image).and_then(|record| self.tree(&image, &record)).is_err() {
            let chain = spec::chain_id(&candidate.document.diff_ids);
            let _claim = self.claim(&chain);
            let ingest = Ingest { store: self, reference, candidate, scratch: &scratch, chain, progress };
            let record = ingest.run()?;
            let text = serde_json::to_vec(&record).unwrap_or_default();
            self.replace(&scratch, &self.record_path(&image), &text).map_err(store_error)?;
        }
        let text = Self::ref_text(reference);
        let path = self.ref_path(&text);
        let bytes = serde_json::to_vec(&RefRecord { reference: text, image }).unwrap_or_default();
        self.replace(&scratch, &path, &bytes).map_err(store_error)?;
        Ok(image)
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

/// One ingest under way.
struct Ingest<'a> {
    store: &'a Store,
    reference: &'a Reference,
    candidate: &'a Candidate,
    scratch: &'a Scratch,
    chain: Digest,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl Ingest<'_> {
    fn run(&self) -> Result<Record, IngestError> {
        let store_error = |source| IngestError::Store { reference: self.reference.to_string(), source };
        let writer = ObjectWriter::new(self.scratch);
        let path = self.store.tree_path(&self.chain);
        let stored = std::fs::read(&path).ok().and_then(|bytes| tree_format::decode(&bytes).ok());
        let fresh = stored.is_none();
        let mut record = self.empty_record();
        let mut tree = match stored {
            Some(tree) => {
                record.left_out = self.left_out_of_chain();
                tree
            }
            None => self.merge(&writer, &mut record)?,
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

    /// Takes all layers apart and merges them.
    fn merge(&self, writer: &ObjectWriter<'_>, record: &mut Record) -> Result<Tree, IngestError> {
        let limits = &self.store.options.limits;
        let mut parts = self.read_layers(writer)?;
        let mut tree = Tree::new();
        // A layer that stands twice in an image is read once.
        let mut uses: HashMap<Digest, usize> = HashMap::new();
        for layer in &self.candidate.layers {
            *uses.entry(layer.diff_id).or_default() += 1;
        }
        for (number, layer) in (0..).zip(&self.candidate.layers) {
            let left = uses.entry(layer.diff_id).or_default();
            *left -= 1;
            let parts =
                if *left == 0 { parts.remove(&layer.diff_id) } else { parts.get(&layer.diff_id).cloned() };
            let Some(LayerParts { entries, left_out, .. }) = parts else { continue };
            record.left_out.add(left_out);
            for entry in entries {
                let path = entry.path.clone();
                tree.apply(number, entry, limits).map_err(|source| IngestError::Place {
                    layer: layer.digest.unwrap_or(layer.diff_id),
                    entry: shown(&path),
                    source,
                })?;
            }
        }
        Ok(tree)
    }

    fn read_layers(&self, writer: &ObjectWriter<'_>) -> Result<HashMap<Digest, LayerParts>, IngestError> {
        let mut unique: Vec<&LayerSource> = Vec::new();
        for layer in &self.candidate.layers {
            if !unique.iter().any(|other| other.diff_id == layer.diff_id) {
                unique.push(layer);
            }
        }
        let reader = LayerReader {
            objects: &self.store.files,
            writer,
            limits: &self.store.options.limits,
            budget: &Budget::default(),
        };
        let bytes_total = unique.iter().map(|layer| layer.size).sum();
        let done = AtomicU64::new(0);
        let on_read = |bytes| {
            let bytes_done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            (self.progress)(Progress { bytes_done, bytes_total });
        };
        let next = AtomicUsize::new(0);
        let results: Mutex<Result<HashMap<Digest, LayerParts>, IngestError>> = Mutex::new(Ok(HashMap::new()));
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads.min(LAYERS_AT_ONCE).min(unique.len()) {
                scope.spawn(|| {
                    while let Some(layer) = unique.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let parts = self.read_layer(&reader, layer, &on_read);
                        let Ok(mut results) = results.lock() else { return };
                        match (&mut *results, parts) {
                            (Ok(all), Ok(parts)) => {
                                all.insert(layer.diff_id, parts);
                            }
                            (results @ Ok(_), Err(error)) => *results = Err(error),
                            (Err(_), _) => {}
                        }
                        if results.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn read_layer(
        &self,
        reader: &LayerReader<'_>,
        layer: &LayerSource,
        on_read: &(dyn Fn(u64) + Sync),
    ) -> Result<LayerParts, IngestError> {
        let (blob, _) = self.candidate.source.require(&layer.name)?;
        Ok(reader.read(blob, layer.size, layer.digest, layer.diff_id, on_read)?)
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
