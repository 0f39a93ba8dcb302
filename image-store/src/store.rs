//! The store's folder: opening, finding, listing. What is in it:
//! ```text
//! FORMAT                   version of the store
//! files/ab/<hex>           contents of regular files, 0444
//! blobs/sha256/ab/<hex>    manifests and configurations
//! trees/<chain-id>.tree    merged trees, self-checking
//! layers/<diff-id>.layer   entries of single layers, self-checking: for images that share them
//! images/<manifest>.json   records: an image is stored exactly if its record is
//! refs/<hash>.json         reference -> image, the last ingest of that reference
//! grants/                  who may use images of registries
//! parts/<digest>           blobs of registries, as far as they have come
//! ingest/                  work in progress, swept when its process is dead
//! claims/, lock            advisory locks: they spare double work and keep collection away
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::digest::Digest;
use crate::entry::LeftOut;
use crate::limits::Limits;
use crate::mount_points::MountPoint;
use crate::objects::{ObjectError, ObjectWriter, Objects};
use crate::record::{ImageId, LayerInfo, RECORD_VERSION, Record, RefRecord};
use crate::reference::Reference;
use crate::scratch::{self, Scratch};
use crate::spec::{self, ConfigDocument, ImageConfig, Platform};
use crate::store_format::{self, StoreError};
use crate::tree::Tree;
use crate::tree_format;

/// Trees kept in memory for look-ups; a tree of 100,000 files takes about 30 MB.
const TREES_IN_MEMORY: usize = 4;

/// How a store is used.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Bounds on images.
    pub limits: Limits,
    /// Platform that images must fit; `None` means this machine's.
    pub platform: Option<Platform>,
    /// Whether an ingest skips waiting for the disk. A power cut may then tear objects of images ingested
    /// shortly before; [`Store::verify`] finds them. A killed process never does.
    pub lazy_sync: bool,
}

/// A store of images. Methods block; clones of nothing: share it behind a reference or an `Arc`.
#[derive(Debug)]
pub struct Store {
    pub(crate) root: PathBuf,
    pub(crate) files: Objects,
    pub(crate) blobs: Objects,
    pub(crate) options: Options,
    pub(crate) platform: Platform,
    trees: Mutex<Vec<(Digest, Arc<Tree>)>>,
}

/// A stored image.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoredImage {
    /// Its identity.
    pub image: ImageId,
    /// References under which it was ingested last.
    pub references: Vec<String>,
    /// What it wants to run.
    pub config: ImageConfig,
    /// Its layers as the source had them.
    pub layers: Vec<LayerInfo>,
    /// Bytes of its files; contents that it shares with others are stored once.
    pub unpacked_bytes: u64,
    /// Entries of its layers.
    pub entries: u64,
    /// What an unprivileged user can't have of it.
    pub left_out: LeftOut,
    /// Places to mount over.
    pub mount_points: Vec<MountPoint>,
}

/// Keeps an image from being removed, by this process or another of this machine, until dropped.
#[derive(Debug)]
pub struct Hold {
    _record: File,
}

impl Store {
    /// Opens the store in the folder `path`, or makes one if the folder is missing or empty; sweeps what
    /// killed processes left.
    ///
    /// # Errors
    /// [`StoreError::Format`] and [`StoreError::NotAStore`]: then nothing was written.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, Options::default())
    }

    /// As [`Store::open`].
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(path: &Path, options: Options) -> Result<Self, StoreError> {
        let access = |source| StoreError::Access { path: path.to_path_buf(), source };
        let io = |source: io::Error| access(ObjectError::of(path, source));
        let root = std::path::absolute(path).map_err(io)?;
        store_format::prepare(&root)?;
        if let Err(error) = scratch::sweep(&root.join("ingest")) {
            tracing::debug!(%error, "ingest folder not swept");
        }
        let platform = options.platform.clone().unwrap_or_else(Platform::host);
        Ok(Self {
            files: Objects::open(&root.join("files")).map_err(access)?,
            blobs: Objects::open(&root.join("blobs/sha256")).map_err(access)?,
            root,
            options,
            platform,
            trees: Mutex::default(),
        })
    }

    /// The store's folder, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// All stored images, ordered by digest.
    ///
    /// # Errors
    /// [`StoreError::Access`]. A damaged record is left out.
    pub fn list(&self) -> Result<Vec<StoredImage>, StoreError> {
        let refs = self.refs()?;
        let mut images = Vec::new();
        for id in self.image_ids()? {
            if let Ok(image) = self.stored(&id, &refs) {
                images.push(image);
            }
        }
        Ok(images)
    }

    /// References and the images that they meant when they were last ingested, ordered by reference.
    ///
    /// # Errors
    /// [`StoreError::Access`].
    pub fn refs(&self) -> Result<Vec<(String, ImageId)>, StoreError> {
        let written = self.all_refs()?.into_iter().filter(|record| !record.derived);
        let mut refs: Vec<_> = written.map(|record| (record.reference, record.image)).collect();
        refs.sort();
        Ok(refs)
    }

    /// What [`Store::refs`] gives, and those that nobody wrote.
    pub(crate) fn all_refs(&self) -> Result<Vec<RefRecord>, StoreError> {
        let files = self.json_files("refs")?.into_iter();
        let read = |path: PathBuf| serde_json::from_slice(&fs::read(path).ok()?).ok();
        Ok(files.filter_map(read).collect())
    }

    /// One stored image.
    ///
    /// # Errors
    /// [`StoreError::NoImage`] if it isn't stored.
    pub fn image(&self, image: &ImageId) -> Result<StoredImage, StoreError> {
        self.stored(image, &self.refs()?)
    }

    /// Whether an image is stored.
    #[must_use]
    pub fn contains(&self, image: &ImageId) -> bool {
        self.record(image).is_ok()
    }

    /// Holds an image.
    ///
    /// # Errors
    /// [`StoreError::NoImage`] if it isn't stored.
    pub fn hold(&self, image: &ImageId) -> Result<Hold, StoreError> {
        let path = self.record_path(image);
        let record = File::open(&path).map_err(|_| StoreError::NoImage(image.to_string()))?;
        record.lock_shared().map_err(|error| self.access(&path, error))?;
        // It may have been removed while we waited for its remover.
        if path.exists() { Ok(Hold { _record: record }) } else { Err(StoreError::NoImage(image.to_string())) }
    }

    fn stored(&self, id: &ImageId, refs: &[(String, ImageId)]) -> Result<StoredImage, StoreError> {
        let record = self.record(id)?;
        let references = refs.iter().filter(|(_, image)| image == id);
        Ok(StoredImage {
            image: *id,
            references: references.map(|(reference, _)| reference.clone()).collect(),
            config: self.config_document(id, &record)?.image,
            layers: record.layers,
            unpacked_bytes: record.unpacked_bytes,
            entries: record.entries,
            left_out: record.left_out,
            mount_points: record.mount_points,
        })
    }

    pub(crate) fn record_path(&self, image: &ImageId) -> PathBuf {
        self.root.join("images").join(format!("{}.json", image.digest().hex()))
    }

    pub(crate) fn tree_path(&self, chain: &Digest) -> PathBuf {
        self.root.join("trees").join(format!("{}.tree", chain.hex()))
    }

    pub(crate) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(format!("{}.layer", diff_id.hex()))
    }

    /// Makes a folder that stores of earlier versions lack.
    pub(crate) fn folder(&self, name: &str) -> Result<(), ObjectError> {
        use std::os::unix::fs::DirBuilderExt;
        let path = self.root.join(name);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|error| ObjectError::of(&path, error))
    }

    pub(crate) fn ref_path(&self, reference: &str) -> PathBuf {
        self.root.join("refs").join(format!("{}.json", Digest::of(reference.as_bytes()).hex()))
    }

    /// The text under which a reference is remembered.
    pub(crate) fn ref_text(reference: &Reference) -> String {
        match std::path::absolute(reference.path()) {
            Ok(absolute) if reference.repository().is_none() => reference.with_path(absolute).to_string(),
            _ => reference.to_string(),
        }
    }

    pub(crate) fn record(&self, image: &ImageId) -> Result<Record, StoreError> {
        let missing = || StoreError::NoImage(image.to_string());
        let text = match fs::read(self.record_path(image)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
            Err(error) => return Err(self.access(&self.record_path(image), error)),
        };
        let record: Record = serde_json::from_slice(&text).map_err(|source| StoreError::Document {
            what: "the record",
            image: *image,
            source,
        })?;
        if record.version == RECORD_VERSION { Ok(record) } else { Err(missing()) }
    }

    pub(crate) fn config_document(
        &self,
        image: &ImageId,
        record: &Record,
    ) -> Result<ConfigDocument, StoreError> {
        let bytes = self
            .blobs
            .read(&record.config, self.options.limits.document_bytes)
            .map_err(|source| StoreError::Access { path: self.root.clone(), source })?;
        spec::parse_config(&bytes).map_err(|source| StoreError::Document {
            what: "the configuration",
            image: *image,
            source,
        })
    }

    /// The image's tree without mount points; kept in memory for the next look-up.
    pub(crate) fn tree(&self, image: &ImageId, record: &Record) -> Result<Arc<Tree>, StoreError> {
        let mut trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = trees.iter().position(|(chain, _)| *chain == record.chain) {
            let found = trees.remove(at);
            trees.push(found);
        } else {
            let path = self.tree_path(&record.chain);
            let bytes = fs::read(&path).map_err(|error| self.access(&path, error))?;
            let tree =
                tree_format::decode(&bytes).map_err(|source| StoreError::Tree { image: *image, source })?;
            if trees.len() >= TREES_IN_MEMORY {
                trees.remove(0);
            }
            trees.push((record.chain, Arc::new(tree)));
        }
        trees.last().map(|(_, tree)| Arc::clone(tree)).ok_or_else(|| StoreError::NoImage(image.to_string()))
    }

    pub(crate) fn image_ids(&self) -> Result<Vec<ImageId>, StoreError> {
        let stem = |path: &PathBuf| Digest::from_hex(path.file_stem()?.to_str()?).ok().map(ImageId::new);
        let mut ids: Vec<ImageId> = self.json_files("images")?.iter().filter_map(stem).collect();
        ids.sort();
        Ok(ids)
    }

    pub(crate) fn json_files(&self, folder: &str) -> Result<Vec<PathBuf>, StoreError> {
        let folder = self.root.join(folder);
        let entries = fs::read_dir(&folder).map_err(|error| self.access(&folder, error))?;
        let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        Ok(paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect())
    }

    /// Writes a small file by rename.
    pub(crate) fn replace(&self, scratch: &Scratch, path: &Path, bytes: &[u8]) -> Result<(), ObjectError> {
        let temporary = scratch.path().join(format!("r{:016x}", fastrand::u64(..)));
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            if self.options.lazy_sync { Ok(()) } else { file.sync_all() }
        };
        write().map_err(|error| ObjectError::of(&self.root, error))?;
        let renamed = match fs::rename(&temporary, path) {
            // A folder that stores of earlier versions lack.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
                self.folder(folder.unwrap_or_default())?;
                fs::rename(&temporary, path)
            }
            other => other,
        };
        renamed.map_err(|error| ObjectError::of(path, error))
    }

    pub(crate) fn scratch(&self) -> Result<Scratch, ObjectError> {
        Scratch::create(&self.root.join("ingest")).map_err(|error| ObjectError::of(&self.root, error))
    }

    pub(crate) fn access(&self, path: &Path, error: io::Error) -> StoreError {
        StoreError::Access { path: self.root.clone(), source: ObjectError::of(path, error) }
    }

    /// Stores a document.
    pub(crate) fn put_blob(&self, writer: &ObjectWriter<'_>, bytes: &[u8]) -> Result<(), ObjectError> {
        self.blobs.put(writer, bytes).map(|_| ())
    }
}
