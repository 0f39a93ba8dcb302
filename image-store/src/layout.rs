//! Writes OCI image layouts: a folder with `oci-layout`, `index.json` and `blobs/sha256/`. Used to pack
//! images offline and by tests. It knows nothing of the store that reads them back.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::digest::Digest;
pub use tar::{EntryType, Header};

pub use crate::layer_builder::{Compression, EntryAttributes, LayerBlob, LayerBuilder, header};

/// What an image says about how it wants to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSpec {
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
    /// Architecture in Go's spelling, for example `amd64`.
    pub architecture: String,
    /// Operating system, for example `linux`.
    pub os: String,
}

impl Default for ImageSpec {
    /// An image of this machine's platform that says nothing else.
    fn default() -> Self {
        let platform = crate::spec::Platform::host();
        Self {
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            env: Vec::new(),
            workdir: String::new(),
            user: String::new(),
            architecture: platform.architecture,
            os: platform.os,
        }
    }
}

/// Digests of an image that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenImage {
    /// Digest of the manifest: the image's identity.
    pub manifest: Digest,
    /// Length of the manifest in bytes.
    pub manifest_bytes: u64,
    /// Digest of the configuration.
    pub config: Digest,
}

/// A layout that is being written. Each `add_image` leaves a complete layout on disk.
#[derive(Debug)]
pub struct LayoutWriter {
    dir: PathBuf,
    manifests: Vec<Value>,
}

impl LayoutWriter {
    /// Makes the folder (and its parents) and an index without images. An index that is there is replaced;
    /// blobs that are there stay.
    ///
    /// # Errors
    /// Whatever creating folders and files answers.
    pub fn create(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir.join("blobs/sha256"))?;
        std::fs::write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let writer = Self { dir: dir.to_path_buf(), manifests: Vec::new() };
        writer.write_index()?;
        Ok(writer)
    }

    /// Writes an image under `tag`; a second image of the same tag replaces the first in the index.
    ///
    /// # Errors
    /// Whatever writing files answers.
    pub fn add_image(
        &mut self,
        tag: &str,
        spec: &ImageSpec,
        layers: Vec<LayerBlob>,
    ) -> io::Result<WrittenImage> {
        let config = self.add_blob(&config_json(spec, &layers))?;
        let mut descriptors = Vec::new();
        for layer in &layers {
            let digest = self.add_blob(&layer.bytes)?.0;
            descriptors
                .push(json!({"mediaType": layer.media_type, "digest": digest, "size": layer.bytes.len()}));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config.0, "size": config.1,
            },
            "layers": descriptors,
        });
        let (digest, size) = self.add_blob(manifest.to_string().as_bytes())?;
        self.add_manifest(
            tag,
            json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest, "size": size,
                "platform": {"architecture": spec.architecture, "os": spec.os},
            }),
        )?;
        Ok(WrittenImage { manifest: digest, manifest_bytes: size, config: config.0 })
    }

    /// Writes a blob of any content; answers its digest and length.
    ///
    /// # Errors
    /// Whatever writing the file answers.
    pub fn add_blob(&self, bytes: &[u8]) -> io::Result<(Digest, u64)> {
        let digest = Digest::of(bytes);
        let path = self.blob_path(&digest);
        if !path.exists() {
            std::fs::write(path, bytes)?;
        }
        Ok((digest, bytes.len() as u64))
    }

    /// Puts a descriptor into the index under `tag`, replacing one of the same tag. The descriptor may say
    /// anything.
    ///
    /// # Errors
    /// Whatever writing the index answers.
    pub fn add_manifest(&mut self, tag: &str, mut descriptor: Value) -> io::Result<()> {
        const REF_NAME: &str = "org.opencontainers.image.ref.name";
        descriptor["annotations"][REF_NAME] = json!(tag);
        self.manifests.retain(|other| other["annotations"][REF_NAME] != json!(tag));
        self.manifests.push(descriptor);
        self.write_index()
    }

    /// Where a blob is kept.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    fn write_index(&self) -> io::Result<()> {
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": self.manifests,
        });
        std::fs::write(self.dir.join("index.json"), index.to_string())
    }
}

/// The image configuration with one history-free `rootfs`.
#[must_use]
pub fn config_json(spec: &ImageSpec, layers: &[LayerBlob]) -> Vec<u8> {
    let mut config = serde_json::Map::new();
    let lists = [("Entrypoint", &spec.entrypoint), ("Cmd", &spec.cmd), ("Env", &spec.env)];
    for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        config.insert(key.to_owned(), json!(list));
    }
    for (key, text) in [("WorkingDir", &spec.workdir), ("User", &spec.user)] {
        if !text.is_empty() {
            config.insert(key.to_owned(), json!(text));
        }
    }
    json!({
        "architecture": spec.architecture,
        "os": spec.os,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>()},
    })
    .to_string()
    .into_bytes()
}
