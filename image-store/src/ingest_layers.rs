//! The layers of one ingest: those that are stored already are looked up, the others are taken apart, several
//! at once; layers of a registry while they are still coming.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::candidate::{Candidate, LayerSource, Origin};
use crate::digest::Digest;
use crate::entry::{EntryKind, shown};
use crate::ingest::{Ingest, IngestError, Progress};
use crate::layer::{Budget, LayerError, LayerParts, LayerReader};
use crate::layer_format;
use crate::objects::{ObjectError, ObjectWriter};
use crate::record::Record;
use crate::registry::{Downloads, Part, Session};
use crate::source::{Source, SourceError};
use crate::store::Store;
use crate::tree::Tree;

/// Layers that are taken apart at once, at most; each has three threads of its own besides.
const LAYERS_AT_ONCE: usize = 4;

/// All layers of an image, taken apart.
pub(crate) struct Layers {
    parts: HashMap<Digest, LayerParts>,
    /// Stored forms of those that were not stored yet.
    pub(crate) fresh: Vec<(Digest, Vec<u8>)>,
}

/// A layer that has to be read, and, if it has to be fetched, where it comes to.
struct Missing<'a> {
    layer: &'a LayerSource,
    part: Option<Arc<Part>>,
}

/// What the threads share.
struct Shared<'a> {
    ingest: &'a Ingest<'a>,
    reader: LayerReader<'a>,
    downloads: Option<&'a Downloads<'a>>,
    bytes_total: u64,
    bytes_done: AtomicU64,
    next: AtomicUsize,
    results: Mutex<Result<Layers, IngestError>>,
}

impl Layers {
    /// Reads every layer of the candidate.
    pub(crate) fn of(ingest: &Ingest<'_>, writer: &ObjectWriter<'_>) -> Result<Self, IngestError> {
        let mut layers = Self { parts: HashMap::new(), fresh: Vec::new() };
        let missing = layers.take_stored(ingest)?;
        let limits = &ingest.store.options.limits;
        let budget = Budget::default();
        let reader = LayerReader { objects: &ingest.store.files, writer, limits, budget: &budget };
        let downloads = match &ingest.candidate.origin {
            Origin::Registry { session, .. } if !missing.is_empty() => Some(Downloads::new(session)),
            _ => None,
        };
        let shared = Shared {
            ingest,
            reader,
            downloads: downloads.as_ref(),
            bytes_total: missing.iter().map(|missing| missing.layer.size).sum(),
            bytes_done: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            results: Mutex::new(Ok(layers)),
        };
        std::thread::scope(|scope| {
            if let Some(downloads) = shared.downloads {
                scope.spawn(|| downloads.drive());
                missing
                    .iter()
                    .filter_map(|missing| missing.part.as_ref())
                    .for_each(|p| downloads.start(p, 0));
            }
            shared.read_all(&missing);
            if let Some(downloads) = shared.downloads {
                downloads.stop();
            }
        });
        shared.results.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is stored; answers the rest, in the image's order.
    fn take_stored<'a>(&mut self, ingest: &Ingest<'a>) -> Result<Vec<Missing<'a>>, IngestError> {
        let mut unique: Vec<&LayerSource> = Vec::new();
        for layer in &ingest.candidate.layers {
            if unique.iter().any(|other| other.diff_id == layer.diff_id) {
                continue;
            }
            if layer.digest.is_some() && unique.iter().any(|other| other.digest == layer.digest) {
                let reason = "one of its layers stands for two contents".to_owned();
                return Err(SourceError::Unusable { reference: ingest.reference.to_string(), reason }.into());
            }
            unique.push(layer);
        }
        // Parts are locked in one order by all, so that no two wait for each other.
        let mut order: Vec<usize> = (0..unique.len()).collect();
        order.sort_by_key(|at| unique[*at].digest);
        let mut missing: Vec<(usize, Missing<'a>)> = Vec::new();
        for at in order {
            let layer = unique[at];
            if let Some(parts) = ingest.stored_layer(layer)? {
                self.parts.insert(layer.diff_id, parts);
                continue;
            }
            let part = ingest.open_part(layer)?;
            // Whoever held the part before may have stored the layer.
            match ingest.stored_layer(layer)? {
                Some(parts) => {
                    self.parts.insert(layer.diff_id, parts);
                }
                None => missing.push((at, Missing { layer, part })),
            }
        }
        missing.sort_by_key(|(at, _)| *at);
        Ok(missing.into_iter().map(|(_, missing)| missing).collect())
    }

    /// Merges the layers in the image's order.
    pub(crate) fn merge(mut self, ingest: &Ingest<'_>, record: &mut Record) -> Result<Tree, IngestError> {
        let limits = &ingest.store.options.limits;
        let mut tree = Tree::new();
        // A layer that stands twice in an image is read once.
        let mut uses: HashMap<Digest, usize> = HashMap::new();
        for layer in &ingest.candidate.layers {
            *uses.entry(layer.diff_id).or_default() += 1;
        }
        for (number, layer) in (0..).zip(&ingest.candidate.layers) {
            let left = uses.entry(layer.diff_id).or_default();
            *left -= 1;
            let parts = if *left == 0 {
                self.parts.remove(&layer.diff_id)
            } else {
                self.parts.get(&layer.diff_id).cloned()
            };
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
}

impl Shared<'_> {
    fn read_all(&self, missing: &[Missing<'_>]) {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads.min(LAYERS_AT_ONCE).min(missing.len()) {
                scope.spawn(|| {
                    while let Some(missing) = missing.get(self.next.fetch_add(1, Ordering::Relaxed)) {
                        if !self.keep(missing.layer.diff_id, self.read(missing)) {
                            return;
                        }
                    }
                });
            }
        });
    }

    /// Keeps a result; `false` if there is no point in going on.
    fn keep(&self, diff_id: Digest, read: Result<(LayerParts, Vec<u8>), IngestError>) -> bool {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        match (&mut *results, read) {
            (Ok(all), Ok((parts, encoded))) => {
                all.parts.insert(diff_id, parts);
                all.fresh.push((diff_id, encoded));
            }
            (results @ Ok(_), Err(error)) => {
                *results = Err(error);
                // The others may be waiting for bytes that are of no use any more.
                if let Some(downloads) = self.downloads {
                    downloads.stop();
                }
            }
            (Err(_), _) => {}
        }
        results.is_ok()
    }

    fn read(&self, missing: &Missing<'_>) -> Result<(LayerParts, Vec<u8>), IngestError> {
        let parts = match (&missing.part, self.downloads) {
            (Some(part), Some(downloads)) => self.read_behind(missing.layer, part, downloads)?,
            _ => {
                let layer = missing.layer;
                let Origin::Local(source) = &self.ingest.candidate.origin else {
                    return Err(SourceError::NoBlob {
                        path: "the registry".into(),
                        name: layer.name.clone(),
                    }
                    .into());
                };
                let (blob, _) = source.require(&layer.name)?;
                self.reader
                    .read(blob, layer.size, layer.digest, layer.diff_id, |bytes| self.on_read(bytes))?
            }
        };
        let encoded = layer_format::encode(&parts);
        let root = &self.ingest.store.root;
        let encoded = encoded.map_err(|error| self.ingest.store_error(ObjectError::of(root, error)))?;
        Ok((parts, encoded))
    }

    /// Reads a layer while it is coming. Wrong bytes are dropped, and the next place is asked.
    fn read_behind(
        &self,
        layer: &LayerSource,
        part: &Arc<Part>,
        downloads: &Downloads<'_>,
    ) -> Result<LayerParts, IngestError> {
        // Once with bytes that were there before, once from each place.
        for _ in 0..=downloads.places() {
            let on_read = |bytes| self.on_read(bytes);
            let read = self.reader.read(part.reader(), layer.size, layer.digest, layer.diff_id, on_read);
            if let Some(error) = part.take_failure() {
                return Err(error.into());
            }
            let wrong = match read {
                Err(error @ LayerError::WrongDigest { .. }) => error,
                other => return Ok(other?),
            };
            let next = part.forget().map_err(|source| self.ingest.store_error(source))?;
            if next >= downloads.places() {
                return Err(wrong.into());
            }
            tracing::warn!(error = %wrong, "fetched once more");
            downloads.start(part, next);
        }
        let reason = format!("layer {} never came whole", part.digest);
        Err(SourceError::Unusable { reference: self.ingest.reference.to_string(), reason }.into())
    }

    fn on_read(&self, bytes: u64) {
        let done = self.bytes_done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // What is read a second time is not progress.
        let bytes_done = done.min(self.bytes_total);
        (self.ingest.progress)(Progress { bytes_done, bytes_total: self.bytes_total });
    }
}

impl Ingest<'_> {
    pub(crate) fn store_error(&self, source: ObjectError) -> IngestError {
        IngestError::Store { reference: self.reference.to_string(), source }
    }

    /// A layer that another image brought; if its source has it for this asker too.
    fn stored_layer(&self, layer: &LayerSource) -> Result<Option<LayerParts>, IngestError> {
        let Some(parts) = self.store.layer(&layer.diff_id) else { return Ok(None) };
        match &self.candidate.origin {
            // Hashing is an eighth of the work of decoding; a blob that is not right is read for its error.
            Origin::Local(source) => Ok(Some(parts).filter(|_| blob_is_right(source, layer))),
            Origin::Registry { session, .. } => {
                has_layer(session, layer)?;
                Ok(Some(parts))
            }
        }
    }

    fn open_part(&self, layer: &LayerSource) -> Result<Option<Arc<Part>>, IngestError> {
        let (Origin::Registry { .. }, Some(digest)) = (&self.candidate.origin, layer.digest) else {
            return Ok(None);
        };
        let folder = self.store.root.join("parts");
        let opened = self.store.folder("parts").and_then(|()| Part::open(&folder, digest, layer.size));
        opened.map(Some).map_err(|source| self.store_error(source))
    }
}

/// A stored image, or a tree of the same layers, is no right to them: the registry must have each for this asker.
pub(crate) fn check_right(candidate: &Candidate) -> Result<(), IngestError> {
    if let Origin::Registry { session, .. } = &candidate.origin {
        for layer in &candidate.layers {
            has_layer(session, layer)?;
        }
    }
    Ok(())
}

fn has_layer(session: &Session, layer: &LayerSource) -> Result<(), IngestError> {
    match &layer.digest {
        Some(digest) => Ok(session.has_blob(digest)?),
        None => Ok(()),
    }
}

fn blob_is_right(source: &Source, layer: &LayerSource) -> bool {
    let Ok((mut blob, _)) = source.require(&layer.name) else { return false };
    let found = Digest::of_reader(&mut blob);
    found.is_ok_and(|found| found == layer.digest.unwrap_or(layer.diff_id))
}

impl Store {
    /// A stored layer, if all its contents are there.
    pub(crate) fn layer(&self, diff_id: &Digest) -> Option<LayerParts> {
        let stored = std::fs::read(self.layer_path(diff_id)).ok()?;
        let parts = layer_format::decode(&stored).ok()?;
        let there = parts.entries.iter().all(|entry| match &entry.kind {
            EntryKind::File(content) if content.size > 0 => {
                self.files.size(&content.digest) == Some(content.size)
            }
            _ => true,
        });
        there.then_some(parts)
    }

    /// Removes the parts of an image's blobs.
    pub(crate) fn remove_parts(&self, candidate: &Candidate) {
        if matches!(candidate.origin, Origin::Registry { .. }) {
            for digest in candidate.layers.iter().filter_map(|layer| layer.digest) {
                let _ = std::fs::remove_file(self.root.join("parts").join(digest.hex()));
            }
        }
    }
}
