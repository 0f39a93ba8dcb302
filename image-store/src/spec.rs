//! The JSON documents of an image, as little of them as the store needs: index, manifest, configuration
//! and the `manifest.json` of `docker save`. Everything is hostile input; unknown fields are ignored,
//! as the OCI image specification demands. Knows no file.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Operating system and processor of an image, in Go's spelling.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Platform {
    /// For example `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// For example `linux`.
    #[serde(default)]
    pub os: String,
    /// For example `v7` of `arm`; empty if the document names none.
    #[serde(default)]
    pub variant: String,
}

impl Platform {
    /// The platform that this program was built for.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: String::new() }
    }

    /// Whether an image of this platform runs on a machine of the platform `host`.
    #[must_use]
    pub fn runs_on(&self, host: &Self) -> bool {
        self.os == host.os && self.architecture == host.architecture
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
        write!(f, "{}/{}", known(&self.os), known(&self.architecture))?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// Media types of an image index, OCI and docker.
pub(crate) const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
/// Media types of an image manifest, OCI and docker schema 2.
pub(crate) const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];

/// A pointer to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub(crate) media_type: String,
    /// Digest of the blob.
    pub(crate) digest: Digest,
    /// Length of the blob in bytes.
    pub(crate) size: u64,
    /// Platform of an index entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    /// Annotations of an index entry; the tag is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<std::collections::BTreeMap<String, String>>,
    /// Where a foreign layer is to be fetched; such layers need not be in a layout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) urls: Option<Vec<String>>,
}

impl Descriptor {
    /// The descriptor of a document that was fetched: its type as it says itself, else as the server says.
    pub(crate) fn of(bytes: &[u8], served_as: String) -> Self {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Typed {
            media_type: String,
        }
        let own = serde_json::from_slice(bytes).map(|Typed { media_type }| media_type);
        Self {
            media_type: own.unwrap_or(served_as),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            platform: None,
            annotations: None,
            urls: None,
        }
    }

    pub(crate) fn tag(&self) -> Option<&str> {
        self.annotations.as_ref()?.get("org.opencontainers.image.ref.name").map(String::as_str)
    }

    /// Whether the entry goes by `tag`; containerd writes full names beside the tag.
    pub(crate) fn is_named(&self, tag: &str) -> bool {
        let full = self.annotations.as_ref().and_then(|all| all.get("io.containerd.image.name"));
        self.tag() == Some(tag) || full.is_some_and(|name| name == tag)
    }

    pub(crate) fn is_index(&self) -> bool {
        INDEX_TYPES.contains(&self.media_type.as_str())
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    #[serde(default)]
    pub(crate) manifests: Option<Vec<Descriptor>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    #[serde(default)]
    pub(crate) layers: Vec<Descriptor>,
}

/// What the image says about how it wants to be run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageConfig {
    /// `ENTRYPOINT`; empty if none.
    pub entrypoint: Vec<String>,
    /// `CMD`; empty if none.
    pub cmd: Vec<String>,
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// `WORKDIR`; empty if none.
    pub workdir: String,
    /// `USER`; empty means root.
    pub user: String,
    /// Signal that asks the image's program to end, for example `SIGQUIT`; `None` means SIGTERM.
    pub stop_signal: Option<String>,
    /// Platform of the image.
    pub platform: Platform,
}

/// The configuration document: what to run, and the digests of the uncompressed layers.
#[derive(Debug, Clone)]
pub(crate) struct ConfigDocument {
    pub(crate) image: ImageConfig,
    pub(crate) diff_ids: Vec<Digest>,
}

/// One image of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct SavedImage {
    pub(crate) config: String,
    #[serde(default)]
    pub(crate) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) layers: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawRun {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: String,
    config: Option<RawRun>,
    rootfs: RawRootfs,
}

/// Reads an image configuration.
pub(crate) fn parse_config(bytes: &[u8]) -> Result<ConfigDocument, serde_json::Error> {
    let raw: RawConfig = serde_json::from_slice(bytes)?;
    let platform = Platform { architecture: raw.architecture, os: raw.os, variant: raw.variant };
    let mut image = ImageConfig { platform, ..ImageConfig::default() };
    if let Some(run) = raw.config {
        image.entrypoint = run.entrypoint.unwrap_or_default();
        image.cmd = run.cmd.unwrap_or_default();
        image.env = run.env.unwrap_or_default();
        image.workdir = run.working_dir.unwrap_or_default();
        image.user = run.user.unwrap_or_default();
        image.stop_signal = run.stop_signal.filter(|signal| !signal.is_empty());
    }
    Ok(ConfigDocument { image, diff_ids: raw.rootfs.diff_ids.unwrap_or_default() })
}

pub(crate) fn parse_index(bytes: &[u8]) -> Result<Vec<Descriptor>, serde_json::Error> {
    let index: Index = serde_json::from_slice(bytes)?;
    Ok(index.manifests.unwrap_or_default())
}

pub(crate) fn parse_manifest(bytes: &[u8]) -> Result<Manifest, serde_json::Error> {
    serde_json::from_slice(bytes)
}

pub(crate) fn parse_saved(bytes: &[u8]) -> Result<Vec<SavedImage>, serde_json::Error> {
    serde_json::from_slice(bytes)
}

/// The digest that names a stack of layers, by the OCI image specification's recursion:
/// `chain(L0..Ln) = sha256(chain(L0..Ln-1) + " " + diff_id(Ln))`. No layers: the digest of nothing.
pub(crate) fn chain_id(diff_ids: &[Digest]) -> Digest {
    let mut ids = diff_ids.iter();
    let Some(first) = ids.next() else { return Digest::of(b"") };
    ids.fold(*first, |chain, id| Digest::of(format!("{chain} {id}").as_bytes()))
}
