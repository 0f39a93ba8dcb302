//! What a store's bytes are for, and whether they are still what they were: `df` and `fsck` of a store.

use std::collections::HashMap;
use std::fs;

use crate::digest::Digest;
use crate::entry::EntryKind;
use crate::objects::ObjectError;
use crate::record::ImageId;
use crate::store::Store;
use crate::store_format::StoreError;
use crate::{layer_format, tree_format};

/// What the store's bytes are for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Usage {
    /// Contents of files.
    pub objects: u64,
    /// Their bytes.
    pub object_bytes: u64,
    /// Bytes of trees and single layers' entries.
    pub tree_bytes: u64,
    /// Bytes of blobs that are on their way, or whose pull was broken off.
    pub part_bytes: u64,
    /// Bytes of manifests, configurations, records, references and grants.
    pub record_bytes: u64,
    /// Bytes of contents that no stored image needs; the next collection frees them.
    pub unused_bytes: u64,
    /// By image, ordered by digest.
    pub images: Vec<ImageUsage>,
}

/// What one image's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageUsage {
    /// The image.
    pub image: ImageId,
    /// References that mean it.
    pub references: Vec<String>,
    /// Bytes of contents that other images need too.
    pub shared_bytes: u64,
    /// Bytes of contents that it alone needs: what its removal frees.
    pub unique_bytes: u64,
}

/// What [`Store::verify_all`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Checked {
    /// Objects and documents that were hashed again.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is wrong.
    pub damages: Vec<Damage>,
}

/// Something that is missing, torn or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// Content, document, tree, layer or record, with its digest.
    pub what: String,
    /// What is wrong with it.
    pub reason: &'static str,
    /// Images that need it; none if nobody does.
    pub images: Vec<ImageId>,
}

/// Who needs a content, and how long it is said to be.
type Needs = HashMap<Digest, (u64, Vec<ImageId>)>;

impl Store {
    /// What the store's bytes are for.
    ///
    /// # Errors
    /// [`StoreError::Access`]. Images whose records are damaged count for nothing.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let access = |source| StoreError::Access { path: self.root.clone(), source };
        let mut usage = Usage {
            tree_bytes: self.folder_bytes("trees") + self.folder_bytes("layers"),
            part_bytes: self.folder_bytes("parts"),
            record_bytes: ["images", "refs", "grants"].map(|name| self.folder_bytes(name)).iter().sum(),
            ..Usage::default()
        };
        usage.record_bytes += self.blobs.all().map_err(access)?.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let (needs, _) = self.needs()?;
        for (digest, bytes) in self.files.all().map_err(access)? {
            usage.objects += 1;
            usage.object_bytes += bytes;
            usage.unused_bytes += if needs.contains_key(&digest) { 0 } else { bytes };
        }
        let refs = self.refs()?;
        for image in self.image_ids()? {
            let references = refs.iter().filter(|(_, of)| *of == image);
            let of = needs.values().filter(|(_, users)| users.contains(&image));
            let (shared, unique): (Vec<_>, Vec<_>) = of.partition(|(_, users)| users.len() > 1);
            usage.images.push(ImageUsage {
                image,
                references: references.map(|(reference, _)| reference.clone()).collect(),
                shared_bytes: shared.iter().map(|(bytes, _)| bytes).sum(),
                unique_bytes: unique.iter().map(|(bytes, _)| bytes).sum(),
            });
        }
        Ok(usage)
    }

    /// Hashes everything in the store again. Other than [`Store::verify`] it also looks at what several images
    /// share, at documents and at what no image needs.
    ///
    /// # Errors
    /// [`StoreError::Access`] if the store's folders can't be read; what is damaged is in the answer.
    pub fn verify_all(&self) -> Result<Checked, StoreError> {
        let access = |source| StoreError::Access { path: self.root.clone(), source };
        let (needs, damages) = self.needs()?;
        let mut checked = Checked { damages, ..Checked::default() };
        let mut there = HashMap::new();
        for (digest, bytes) in self.files.all().map_err(access)? {
            there.insert(digest, bytes);
            checked.objects += 1;
            checked.bytes += bytes;
            let users = || needs.get(&digest).map(|(_, users)| users.clone()).unwrap_or_default();
            match self.files.check(&digest) {
                Ok(()) => {}
                Err(ObjectError::Corrupt(_)) => {
                    checked.add("content", &digest, "its bytes were changed", users())
                }
                Err(ObjectError::Missing(_)) => {}
                Err(_) => checked.add("content", &digest, "it can't be read", users()),
            }
        }
        for (digest, (bytes, users)) in &needs {
            match there.get(digest) {
                None => checked.add("content", digest, "it is not there", users.clone()),
                Some(found) if found != bytes => {
                    checked.add("content", digest, "its length is wrong", users.clone())
                }
                Some(_) => {}
            }
        }
        for (digest, bytes) in self.blobs.all().map_err(access)? {
            checked.objects += 1;
            checked.bytes += bytes;
            if self.blobs.check(&digest).is_err() {
                checked.add("document", &digest, "its bytes were changed", Vec::new());
            }
        }
        self.check_layers(&mut checked);
        checked.damages.sort_by(|one, other| one.what.cmp(&other.what));
        checked.damages.dedup_by(|one, other| one.what == other.what);
        Ok(checked)
    }

    /// Who needs which content, and which images can't say so because their own files are damaged.
    fn needs(&self) -> Result<(Needs, Vec<Damage>), StoreError> {
        let (mut needs, mut damages) = (Needs::new(), Vec::new());
        for image in self.image_ids()? {
            let mut damaged =
                |what: String, reason| damages.push(Damage { what, reason, images: vec![image] });
            let Ok(record) = self.record(&image) else {
                damaged(format!("record {image}"), "it can't be read");
                continue;
            };
            match fs::read(self.tree_path(&record.chain))
                .ok()
                .and_then(|bytes| tree_format::decode(&bytes).ok())
            {
                Some(tree) => {
                    for content in tree.contents().filter(|content| content.size > 0) {
                        add_need(&mut needs, content.digest, content.size, image);
                    }
                }
                None => damaged(format!("tree {}", record.chain), "it is not there, torn or changed"),
            }
            let Ok(config) = self.config_document(&image, &record) else {
                damaged(format!("document {}", record.config), "it is not there, torn or changed");
                continue;
            };
            for parts in config.diff_ids.iter().filter_map(|diff_id| self.layer(diff_id)) {
                for entry in &parts.entries {
                    if let EntryKind::File(content) = &entry.kind
                        && content.size > 0
                    {
                        add_need(&mut needs, content.digest, content.size, image);
                    }
                }
            }
        }
        Ok((needs, damages))
    }

    fn check_layers(&self, checked: &mut Checked) {
        for entry in fs::read_dir(self.root.join("layers")).into_iter().flatten().flatten() {
            let name = entry.path().file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
            let Some(digest) = name.and_then(|hex| Digest::from_hex(&hex).ok()) else { continue };
            let whole = fs::read(entry.path()).ok().is_some_and(|bytes| layer_format::decode(&bytes).is_ok());
            if !whole {
                checked.add("layer", &digest, "its entries are torn or changed", Vec::new());
            }
        }
    }

    fn folder_bytes(&self, name: &str) -> u64 {
        let entries = fs::read_dir(self.root.join(name)).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.metadata().ok())
            .filter(fs::Metadata::is_file)
            .map(|meta| meta.len())
            .sum()
    }
}

impl Checked {
    fn add(&mut self, kind: &str, digest: &Digest, reason: &'static str, images: Vec<ImageId>) {
        self.damages.push(Damage { what: format!("{kind} {digest}"), reason, images });
    }
}

fn add_need(needs: &mut Needs, digest: Digest, bytes: u64, image: ImageId) {
    let (_, users) = needs.entry(digest).or_insert_with(|| (bytes, Vec::new()));
    if users.last() != Some(&image) {
        users.push(image);
    }
}
