//! From a source and a platform to one image: descends indexes, reads manifest and configuration, and
//! verifies their digests and the lengths of all layers. No layer is read.

use std::path::PathBuf;

use crate::digest::Digest;
use crate::limits::Limits;
use crate::reference::Reference;
use crate::registry::{Document, Session, Shown};
use crate::repository::Wanted;
use crate::source::{Form, Source, SourceError};
use crate::spec::{self, ConfigDocument, Descriptor, Manifest, Platform, SavedImage};

/// Indexes in indexes; the deepest seen in the field is 2.
const INDEX_DEPTH_MAX: usize = 4;

/// An image that was found and looks whole.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) origin: Origin,
    /// As the source has it, or made up for a docker archive.
    pub(crate) manifest: Vec<u8>,
    pub(crate) manifest_digest: Digest,
    pub(crate) config: Vec<u8>,
    pub(crate) config_digest: Digest,
    pub(crate) document: ConfigDocument,
    pub(crate) layers: Vec<LayerSource>,
}

/// Where a candidate's layers come from.
#[derive(Debug)]
pub(crate) enum Origin {
    Local(Source),
    Registry {
        session: Session,
        /// What the reference led to first: the manifest, or an index.
        top: Digest,
        shown: Shown,
    },
}

/// Where documents come from.
trait Documents {
    /// A document; its digest and length are checked by who asks.
    fn document(
        &self,
        what: &'static str,
        wanted: &Descriptor,
        limits: &Limits,
    ) -> Result<Vec<u8>, SourceError>;
    /// Bytes of a layer's blob, if it is there.
    fn layer_bytes(&self, wanted: &Descriptor) -> Result<Option<u64>, SourceError>;
    /// What it is, for complaints.
    fn place(&self) -> PathBuf;
}

impl Documents for Source {
    fn document(
        &self,
        _what: &'static str,
        wanted: &Descriptor,
        limits: &Limits,
    ) -> Result<Vec<u8>, SourceError> {
        self.document(&Self::blob_name(&wanted.digest), limits)
    }

    fn layer_bytes(&self, wanted: &Descriptor) -> Result<Option<u64>, SourceError> {
        Ok(self.find(&Self::blob_name(&wanted.digest))?.map(|(_, size)| size))
    }

    fn place(&self) -> PathBuf {
        self.path.clone()
    }
}

/// A registry, and the first document that it gave.
struct Remote<'a> {
    session: &'a Session,
    top: &'a Document,
}

impl Documents for Remote<'_> {
    fn document(
        &self,
        what: &'static str,
        wanted: &Descriptor,
        _limits: &Limits,
    ) -> Result<Vec<u8>, SourceError> {
        if wanted.digest == self.top.descriptor.digest {
            return Ok(self.top.bytes.clone());
        }
        Ok(match what {
            "configuration" => self.session.document(what, wanted)?,
            _ => self.session.manifest(&Wanted::Digest(wanted.digest))?.bytes,
        })
    }

    fn layer_bytes(&self, wanted: &Descriptor) -> Result<Option<u64>, SourceError> {
        // Such layers lie elsewhere; all others are believed to be there until they are fetched.
        let foreign = ["foreign", "nondistributable"].iter().any(|word| wanted.media_type.contains(word));
        let elsewhere = foreign && wanted.urls.iter().flatten().next().is_some();
        Ok((!elsewhere).then_some(wanted.size))
    }

    fn place(&self) -> PathBuf {
        PathBuf::from("the registry")
    }
}

/// A layer that can be read.
#[derive(Debug, Clone)]
pub(crate) struct LayerSource {
    /// Member or file in the source.
    pub(crate) name: String,
    /// Digest of the blob; docker archives state none.
    pub(crate) digest: Option<Digest>,
    /// Digest of the uncompressed tar, by the configuration.
    pub(crate) diff_id: Digest,
    /// Bytes of the blob.
    pub(crate) size: u64,
}

/// Finds the image that `reference` means.
pub(crate) fn find(
    reference: &Reference,
    platform: &Platform,
    limits: &Limits,
) -> Result<Candidate, SourceError> {
    let source = Source::open(reference, limits)?;
    let search = Search { reference, name: reference.to_string(), platform, limits };
    let candidate = match source.form {
        Form::Oci => {
            let parts = search.in_layout(&source)?;
            parts.from(Origin::Local(source))
        }
        Form::DockerSave => search.in_saved(source)?,
    };
    let found = candidate.manifest_digest;
    if reference.digest().is_some_and(|digest| digest != found) {
        return Err(SourceError::WrongPin { reference: search.name, found });
    }
    Ok(candidate)
}

/// Finds the image behind what a registry gave for `reference`.
pub(crate) fn find_remote(
    reference: &Reference,
    session: Session,
    top: &Document,
    platform: &Platform,
    limits: &Limits,
) -> Result<Candidate, SourceError> {
    let search = Search { reference, name: reference.to_string(), platform, limits };
    let parts = search.in_documents(&Remote { session: &session, top }, vec![top.descriptor.clone()])?;
    Ok(parts.from(Origin::Registry { session, top: top.descriptor.digest, shown: top.shown.clone() }))
}

/// A candidate without its origin.
struct Parts {
    manifest: Vec<u8>,
    manifest_digest: Digest,
    config: Vec<u8>,
    config_digest: Digest,
    document: ConfigDocument,
    layers: Vec<LayerSource>,
}

impl Parts {
    fn from(self, origin: Origin) -> Candidate {
        let Self { manifest, manifest_digest, config, config_digest, document, layers } = self;
        Candidate { origin, manifest, manifest_digest, config, config_digest, document, layers }
    }
}

struct Search<'a> {
    reference: &'a Reference,
    name: String,
    platform: &'a Platform,
    limits: &'a Limits,
}

impl Search<'_> {
    fn in_layout(&self, source: &Source) -> Result<Parts, SourceError> {
        let index = source.document("index.json", self.limits)?;
        let descriptors = spec::parse_index(&index).map_err(|error| self.document("the index", error))?;
        self.in_documents(source, self.with_tag(descriptors)?)
    }

    fn in_documents(
        &self,
        source: &dyn Documents,
        descriptors: Vec<Descriptor>,
    ) -> Result<Parts, SourceError> {
        let descriptor = self.for_platform(source, descriptors, 0)?;
        let manifest = self.verified(source, "manifest", &descriptor)?;
        let parsed = spec::parse_manifest(&manifest).map_err(|error| self.document("the manifest", error))?;
        self.check_manifest(&parsed)?;
        let config = self.verified(source, "configuration", &parsed.config)?;
        let document = self.config(&config)?;
        let layers = self.layers(source, &parsed.layers, &document.diff_ids)?;
        let (manifest_digest, config_digest) = (descriptor.digest, parsed.config.digest);
        Ok(Parts { manifest, manifest_digest, config, config_digest, document, layers })
    }

    fn in_saved(&self, source: Source) -> Result<Candidate, SourceError> {
        let list = source.document("manifest.json", self.limits)?;
        let images = spec::parse_saved(&list).map_err(|error| self.document("manifest.json", error))?;
        let image = self.saved_with_tag(images)?;
        let config = source.document(&image.config, self.limits)?;
        let config_digest = Digest::of(&config);
        // Docker names the configuration by its digest, and so the name is checked like one.
        let stem = image.config.rsplit('/').next().unwrap_or_default();
        if let Ok(stated) = Digest::from_hex(stem.strip_suffix(".json").unwrap_or(stem))
            && stated != config_digest
        {
            return Err(SourceError::WrongDigest { what: "configuration", stated, found: config_digest });
        }
        let document = self.config(&config)?;
        let names = image.layers.unwrap_or_default();
        self.check_count(names.len(), document.diff_ids.len())?;
        let mut layers = Vec::with_capacity(names.len());
        for (name, diff_id) in names.into_iter().zip(&document.diff_ids) {
            let (_, size) = source.require(&name)?;
            layers.push(LayerSource { name, digest: None, diff_id: *diff_id, size });
        }
        let manifest = saved_manifest(config_digest, config.len() as u64, &layers);
        let manifest_digest = Digest::of(&manifest);
        let parts = Parts { manifest, manifest_digest, config, config_digest, document, layers };
        Ok(parts.from(Origin::Local(source)))
    }

    /// The descriptors that the reference's tag names, or all if it has none and there is one tag at most.
    fn with_tag(&self, descriptors: Vec<Descriptor>) -> Result<Vec<Descriptor>, SourceError> {
        let mut tags: Vec<&str> = descriptors.iter().filter_map(Descriptor::tag).collect();
        tags.sort_unstable();
        tags.dedup();
        let available = listed(&tags);
        if let Some(tag) = self.reference.tag() {
            let named = descriptors.iter().filter(|descriptor| descriptor.is_named(tag));
            let named: Vec<Descriptor> = named.cloned().collect();
            if named.is_empty() {
                return Err(SourceError::NoTag { reference: self.name.clone(), available });
            }
            return Ok(named);
        }
        if tags.len() > 1 && self.reference.digest().is_none() {
            return Err(SourceError::Ambiguous { reference: self.name.clone(), available });
        }
        let pinned = descriptors.iter().find(|descriptor| Some(descriptor.digest) == self.reference.digest());
        Ok(pinned.map_or_else(|| descriptors.clone(), |descriptor| vec![descriptor.clone()]))
    }

    fn saved_with_tag(&self, mut images: Vec<SavedImage>) -> Result<SavedImage, SourceError> {
        let tags: Vec<&str> =
            images.iter().flat_map(|image| image.repo_tags.iter().flatten()).map(String::as_str).collect();
        let available = listed(&tags);
        let reference = self.name.clone();
        if let Some(tag) = self.reference.tag() {
            let has = |image: &SavedImage, same: &dyn Fn(&str) -> bool| {
                image.repo_tags.iter().flatten().any(|tag| same(tag))
            };
            let exact = images.iter().position(|image| has(image, &|other| other == tag));
            let short = short_name(tag);
            let found = exact
                .or_else(|| images.iter().position(|image| has(image, &|other| short_name(other) == short)));
            let found = found.ok_or(SourceError::NoTag { reference, available })?;
            return Ok(images.swap_remove(found));
        }
        match images.len() {
            1 => Ok(images.swap_remove(0)),
            0 => Err(self.unusable("manifest.json lists no image")),
            _ => Err(SourceError::Ambiguous { reference, available }),
        }
    }

    /// Descends indexes to the manifest for the platform.
    fn for_platform(
        &self,
        source: &dyn Documents,
        descriptors: Vec<Descriptor>,
        depth: usize,
    ) -> Result<Descriptor, SourceError> {
        let mut open: Vec<(Descriptor, usize)> = descriptors.into_iter().rev().map(|d| (d, depth)).collect();
        let mut others = Vec::new();
        let mut indexes = 0;
        while let Some((descriptor, depth)) = open.pop() {
            if let Some(other) = descriptor.platform.as_ref().filter(|other| !other.runs_on(self.platform)) {
                others.push(other.to_string());
                continue;
            }
            if !descriptor.is_index() {
                return Ok(descriptor);
            }
            indexes += 1;
            if depth >= INDEX_DEPTH_MAX || indexes > 64 {
                return Err(self.unusable("its indexes are nested too deeply"));
            }
            let index = self.verified(source, "index", &descriptor)?;
            let inner = spec::parse_index(&index).map_err(|error| self.document("the index", error))?;
            open.extend(inner.into_iter().rev().map(|descriptor| (descriptor, depth + 1)));
        }
        others.dedup();
        others.retain(|platform| platform != "unknown/unknown");
        if others.is_empty() {
            return Err(self.unusable("its index lists no image"));
        }
        Err(self.wrong_platform(others.join(", ")))
    }

    /// Reads a document and checks length and digest.
    fn verified(
        &self,
        source: &dyn Documents,
        what: &'static str,
        descriptor: &Descriptor,
    ) -> Result<Vec<u8>, SourceError> {
        let bytes = source.document(what, descriptor, self.limits)?;
        let found = Digest::of(&bytes);
        if found != descriptor.digest {
            return Err(SourceError::WrongDigest { what, stated: descriptor.digest, found });
        }
        check_length(&descriptor.digest.to_string(), descriptor.size, bytes.len() as u64)?;
        Ok(bytes)
    }

    fn check_manifest(&self, manifest: &Manifest) -> Result<(), SourceError> {
        if manifest.schema_version != 2 {
            return Err(self.unusable(&format!("its manifest has schema {}, not 2", manifest.schema_version)));
        }
        let known = spec::MANIFEST_TYPES.contains(&manifest.media_type.as_str());
        if known || manifest.media_type.is_empty() {
            return Ok(());
        }
        Err(self.unusable(&format!("its manifest is of the unknown type {:?}", manifest.media_type)))
    }

    fn config(&self, bytes: &[u8]) -> Result<ConfigDocument, SourceError> {
        let document =
            spec::parse_config(bytes).map_err(|error| self.document("the configuration", error))?;
        let platform = &document.image.platform;
        // Some builders leave both empty for images of scripts and data.
        let stated = !(platform.os.is_empty() && platform.architecture.is_empty());
        if stated && !platform.runs_on(self.platform) {
            return Err(self.wrong_platform(platform.to_string()));
        }
        Ok(document)
    }

    fn layers(
        &self,
        source: &dyn Documents,
        descriptors: &[Descriptor],
        diff_ids: &[Digest],
    ) -> Result<Vec<LayerSource>, SourceError> {
        self.check_count(descriptors.len(), diff_ids.len())?;
        let mut layers = Vec::with_capacity(descriptors.len());
        for (descriptor, diff_id) in descriptors.iter().zip(diff_ids) {
            let media_type = &descriptor.media_type;
            // How a tar is packed is seen by its first bytes; all types of tars say so in their names.
            let tar = media_type.is_empty() || media_type.contains(".tar");
            if !tar || media_type.ends_with("+encrypted") {
                return Err(self.unusable(&format!("a layer of type {media_type:?} is not supported")));
            }
            let (name, digest) = (Source::blob_name(&descriptor.digest), descriptor.digest);
            let Some(size) = source.layer_bytes(descriptor)? else {
                let url = descriptor.urls.iter().flatten().next().cloned();
                return Err(match url {
                    Some(url) => SourceError::ForeignLayer { digest, url },
                    None => SourceError::NoBlob { path: source.place(), name: digest.to_string() },
                });
            };
            check_length(&digest.to_string(), descriptor.size, size)?;
            layers.push(LayerSource { name, digest: Some(digest), diff_id: *diff_id, size });
        }
        Ok(layers)
    }

    fn check_count(&self, layers: usize, diff_ids: usize) -> Result<(), SourceError> {
        if layers != diff_ids {
            return Err(self.unusable(&format!("it has {layers} layers and {diff_ids} diff_ids")));
        }
        if layers > self.limits.layers {
            return Err(
                self.unusable(&format!("it has {layers} layers, over the limit of {}", self.limits.layers))
            );
        }
        Ok(())
    }

    fn document(&self, what: &'static str, source: serde_json::Error) -> SourceError {
        SourceError::Document { what, reference: self.name.clone(), source }
    }

    fn unusable(&self, reason: &str) -> SourceError {
        SourceError::Unusable { reference: self.name.clone(), reason: reason.to_owned() }
    }

    fn wrong_platform(&self, available: String) -> SourceError {
        SourceError::WrongPlatform { reference: self.name.clone(), wanted: self.platform.clone(), available }
    }
}

fn check_length(name: &str, stated: u64, found: u64) -> Result<(), SourceError> {
    if stated == found {
        return Ok(());
    }
    Err(SourceError::Length { name: name.to_owned(), stated, found })
}

fn listed(tags: &[&str]) -> String {
    if tags.is_empty() { "no tags".to_owned() } else { tags.join(", ") }
}

/// A name as users shorten it: without the registry's host, without `library/`, and with a tag.
fn short_name(name: &str) -> String {
    let name = match name.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) => rest,
        _ => name,
    };
    let name = name.strip_prefix("library/").unwrap_or(name);
    let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if tagged { name.to_owned() } else { format!("{name}:latest") }
}

/// A docker archive has no manifest; this one gives its image an identity that depends on nothing but the
/// configuration, which names every layer by the digest of its content.
fn saved_manifest(config: Digest, config_bytes: u64, layers: &[LayerSource]) -> Vec<u8> {
    let descriptor = |media_type: &str, digest, size| serde_json::json!({"mediaType": media_type, "digest": digest, "size": size});
    let layer =
        |layer: &LayerSource| descriptor("application/vnd.oci.image.layer.v1.tar", layer.diff_id, layer.size);
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": spec::MANIFEST_TYPES[0],
        "config": descriptor("application/vnd.oci.image.config.v1+json", config, config_bytes),
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes()
}
