//! Removing images, collecting what no image needs, and checking what is stored. Readers are protected by
//! [`Store::hold`], ingests by the store's lock; both are advisory locks of one machine.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use crate::digest::Digest;
use crate::entry::EntryKind;
use crate::objects::ObjectError;
use crate::record::ImageId;
use crate::scratch;
use crate::store::Store;
use crate::store_format::StoreError;

/// A pull that nobody went on with for a week was given up.
const PART_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a collection freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Collected {
    /// Objects removed.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What [`Store::verify`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Verified {
    /// Distinct contents that were hashed again.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that are missing, torn or changed.
    pub damaged: Vec<Digest>,
}

impl Store {
    /// The stored image that a text means: a digest (or its first 6 or more hex digits), or a reference as
    /// [`Store::list`] shows it, or one that resolves to such.
    ///
    /// # Errors
    /// [`StoreError::NoImage`].
    pub fn resolve(&self, text: &str) -> Result<ImageId, StoreError> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.len() >= 6 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let ids = self.image_ids()?;
            let mut found = ids.iter().filter(|id| id.digest().hex().starts_with(hex));
            if let (Some(id), None) = (found.next(), found.next()) {
                return Ok(*id);
            }
        }
        let absolute = text.parse().map(|reference| Self::ref_text(&reference)).unwrap_or_default();
        let refs = self.refs()?;
        let found = refs.iter().find(|(reference, _)| reference == text || *reference == absolute);
        found.map(|(_, image)| *image).ok_or_else(|| StoreError::NoImage(text.to_owned()))
    }

    /// Removes an image and its references. Its objects go with the next [`Store::collect`].
    ///
    /// # Errors
    /// [`StoreError::NoImage`]; [`StoreError::InUse`] if someone holds it.
    pub fn remove(&self, image: &ImageId) -> Result<(), StoreError> {
        let path = self.record_path(image);
        let record = fs::File::open(&path).map_err(|_| StoreError::NoImage(image.to_string()))?;
        match record.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(StoreError::InUse(*image)),
            Err(fs::TryLockError::Error(error)) => return Err(self.access(&path, error)),
        }
        fs::remove_file(&path).map_err(|error| self.access(&path, error))?;
        for record in self.all_refs()?.iter().filter(|record| record.image == *image) {
            let path = self.ref_path(&record.reference);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(self.access(&path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes objects, trees and documents that no stored image needs.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while an image is being ingested, here or in another process.
    pub fn collect(&self) -> Result<Collected, StoreError> {
        let lock = self.lock_file().ok_or(StoreError::Busy)?;
        lock.try_lock().map_err(|_| StoreError::Busy)?;
        let (mut files, mut blobs) = (HashSet::new(), HashSet::new());
        let (mut chains, mut layers) = (HashSet::new(), HashSet::new());
        for image in self.image_ids()? {
            // A record that can't be read might name anything: nothing is removed then.
            let record = self.record(&image)?;
            blobs.extend([record.manifest, record.config]);
            if chains.insert(record.chain) {
                files.extend(self.tree(&image, &record)?.contents().map(|content| content.digest));
            }
            layers.extend(self.config_document(&image, &record).map(|c| c.diff_ids).unwrap_or_default());
        }
        // What the next image of the same layers needs, also where an upper layer hides it.
        for parts in layers.iter().filter_map(|diff_id| self.layer(diff_id)) {
            files.extend(parts.entries.iter().filter_map(|entry| match &entry.kind {
                EntryKind::File(content) if content.size > 0 => Some(content.digest),
                _ => None,
            }));
        }
        self.remove_others("trees", &chains)?;
        self.remove_others("layers", &layers)?;
        self.remove_old_parts();
        self.collect_grants();
        let claims = self.root.join("claims");
        for claim in fs::read_dir(&claims).map_err(|error| self.access(&claims, error))?.flatten() {
            let _ = fs::remove_file(claim.path());
        }
        let access = |source| StoreError::Access { path: self.root.clone(), source };
        let (objects, bytes) = self.files.retain(|digest| files.contains(digest)).map_err(access)?;
        let documents = self.blobs.retain(|digest| blobs.contains(digest)).map_err(access)?;
        Ok(Collected { objects: objects + documents.0, bytes: bytes + documents.1 })
    }

    /// Removes the files of a folder that are not named after one of these digests.
    fn remove_others(&self, folder: &str, wanted: &HashSet<Digest>) -> Result<(), StoreError> {
        let folder = self.root.join(folder);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.access(&folder, error)),
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = path.file_stem().and_then(|stem| stem.to_str());
            let digest = name.and_then(|hex| Digest::from_hex(hex).ok());
            if digest.is_none_or(|digest| !wanted.contains(&digest)) {
                fs::remove_file(&path).map_err(|error| self.access(&path, error))?;
            }
        }
        Ok(())
    }

    /// Removes parts of blobs that nobody has gone on with for long. Now is when the file system says it is.
    fn remove_old_parts(&self) {
        let Ok(scratch) = self.scratch() else { return };
        let Ok(now) = fs::metadata(scratch.path()).and_then(|meta| meta.modified()) else { return };
        for part in fs::read_dir(self.root.join("parts")).into_iter().flatten().flatten() {
            let written = part.metadata().and_then(|meta| meta.modified());
            let age = written.ok().and_then(|written| now.duration_since(written).ok());
            if age.is_some_and(|age| age > PART_AGE) {
                let _ = fs::remove_file(part.path());
            }
        }
    }

    /// Hashes every content of an image again.
    ///
    /// # Errors
    /// [`StoreError`] if the image's tree can't be loaded; damaged contents are in the answer.
    pub fn verify(&self, image: &ImageId) -> Result<Verified, StoreError> {
        let _hold = self.hold(image)?;
        let record = self.record(image)?;
        let tree = self.tree(image, &record)?;
        let mut verified = Verified::default();
        let mut seen = HashSet::new();
        for content in tree.contents().filter(|content| content.size > 0) {
            if !seen.insert(content.digest) {
                continue;
            }
            verified.objects += 1;
            verified.bytes += content.size;
            match self.files.check(&content.digest) {
                Ok(()) => {}
                Err(ObjectError::Missing(digest) | ObjectError::Corrupt(digest)) => {
                    verified.damaged.push(digest)
                }
                Err(source) => return Err(StoreError::Access { path: self.root.clone(), source }),
            }
        }
        Ok(verified)
    }

    /// Removes what killed processes left in `ingest/`; [`Store::open`] does it too. Answers how many folders.
    ///
    /// # Errors
    /// [`StoreError::Access`].
    pub fn sweep(&self) -> Result<usize, StoreError> {
        let ingest = self.root.join("ingest");
        scratch::sweep(&ingest).map_err(|error| self.access(&ingest, error))
    }
}
