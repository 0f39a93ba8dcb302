//! Where images come from: an OCI layout folder, or an archive of one, or what `docker save` writes. Finds
//! the image that a reference means for a platform and checks every digest and length that can be checked
//! without reading layers. Knows no store.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::archive_file::{ArchiveFile, Range};
use crate::digest::Digest;
use crate::entry::EntryError;
use crate::limits::Limits;
use crate::reference::{Reference, Transport};
use crate::registry::RegistryError;
use crate::spec::Platform;

/// Why an image can't be found or used. Each message names the image or the document.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The registry can't give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The folder or file isn't there.
    #[error("find \"{}\": no such file or folder", .0.display())]
    NoSource(PathBuf),
    /// It is there, and is not what the reference says.
    #[error("read \"{}\" as {expected}", .path.display())]
    NotThat {
        /// The folder or file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// The archive's tar is damaged.
    #[error("read the archive \"{}\"", .path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: EntryError,
    },
    /// The system refuses.
    #[error("read \"{}\"", .path.display())]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A blob that a document names is not there.
    #[error("find blob {name} in \"{}\": the image is incomplete", .path.display())]
    NoBlob {
        /// The folder or file.
        path: PathBuf,
        /// Digest or member name.
        name: String,
    },
    /// A layer that has to be fetched from elsewhere.
    #[error(
        "use layer {digest}: it is a foreign layer that lies at {url}, which this version does not fetch"
    )]
    ForeignLayer {
        /// The layer.
        digest: Digest,
        /// The first of its addresses.
        url: String,
    },
    /// A blob is longer or shorter than its descriptor says.
    #[error("use blob {name} of {found} bytes: {stated} bytes are stated")]
    Length {
        /// Digest or member name.
        name: String,
        /// Bytes by the descriptor.
        stated: u64,
        /// Bytes found.
        found: u64,
    },
    /// A document's bytes don't have its digest.
    #[error("use {what} {stated}: its bytes have the digest {found}")]
    WrongDigest {
        /// Manifest, index or configuration.
        what: &'static str,
        /// By the descriptor.
        stated: Digest,
        /// Of the bytes.
        found: Digest,
    },
    /// A document over the limit.
    #[error("read {what} of {bytes} bytes: the limit is {limit}")]
    DocumentTooLong {
        /// Which document.
        what: String,
        /// Its length.
        bytes: u64,
        /// [`crate::Limits::document_bytes`].
        limit: u64,
    },
    /// A document that is no JSON of its kind.
    #[error("read {what} of image \"{reference}\"")]
    Document {
        /// Which document.
        what: &'static str,
        /// The image.
        reference: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A document that contradicts itself or an unknown kind of document.
    #[error("use image \"{reference}\": {reason}")]
    Unusable {
        /// The image.
        reference: String,
        /// What is wrong.
        reason: String,
    },
    /// No image of that tag.
    #[error("find image \"{reference}\": there is no such tag; it has {available}")]
    NoTag {
        /// The image.
        reference: String,
        /// The tags that are there.
        available: String,
    },
    /// Several images, and no tag was given.
    #[error("choose an image of \"{reference}\": add a tag, one of {available}")]
    Ambiguous {
        /// The image.
        reference: String,
        /// The tags that are there.
        available: String,
    },
    /// No image for this machine.
    #[error("use image \"{reference}\" on {wanted}: it is made for {available}")]
    WrongPlatform {
        /// The image.
        reference: String,
        /// This machine's platform.
        wanted: Platform,
        /// Those of the image.
        available: String,
    },
    /// The reference pins a digest, and the image has another.
    #[error("use image \"{reference}\": it has the digest {found}")]
    WrongPin {
        /// The image, with the digest that was asked for.
        reference: String,
        /// Digest of the manifest that was found.
        found: Digest,
    },
}

/// An opened folder or archive.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) form: Form,
    place: Place,
}

/// Which documents lead to the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `index.json`.
    Oci,
    /// `manifest.json`.
    DockerSave,
}

#[derive(Debug)]
enum Place {
    Folder,
    Archive(ArchiveFile),
}

impl Source {
    /// Opens what a reference points to and finds out its form.
    pub(crate) fn open(reference: &Reference, limits: &Limits) -> Result<Self, SourceError> {
        let path = reference.path().to_path_buf();
        if reference.transport() == Transport::Docker {
            return Err(SourceError::NotThat { path, expected: "a folder or file: it is in a registry" });
        }
        let not = |expected| SourceError::NotThat { path: path.clone(), expected };
        let meta = std::fs::metadata(&path).map_err(|source| io_error(&path, source))?;
        let place = match (reference.transport(), meta.is_dir()) {
            (Transport::Oci | Transport::Path | Transport::Docker, true) => Place::Folder,
            (Transport::Oci, false) => return Err(not("an OCI image layout: it is not a folder")),
            (Transport::OciArchive | Transport::DockerArchive, true) => {
                return Err(not("an archive: it is a folder (write oci: before a layout folder)"));
            }
            (_, false) => {
                let file = open_regular(&path)?;
                let archive = ArchiveFile::open(file, limits)
                    .map_err(|source| SourceError::Archive { path: path.clone(), source })?;
                Place::Archive(archive)
            }
        };
        let mut source = Self { path: path.clone(), form: Form::Oci, place };
        let oci = source.find("index.json")?.is_some();
        let saved = source.find("manifest.json")?.is_some();
        source.form = match (reference.transport(), oci, saved) {
            (Transport::Oci | Transport::OciArchive | Transport::Path | Transport::Docker, true, _) => {
                Form::Oci
            }
            (Transport::DockerArchive, _, true) | (Transport::Path, false, true) => Form::DockerSave,
            (Transport::Oci, ..) => return Err(not("an OCI image layout: it has no index.json")),
            (Transport::OciArchive, _, true) => {
                return Err(not("an OCI archive: it has no index.json (write docker-archive: before it)"));
            }
            (Transport::OciArchive, ..) => return Err(not("an OCI archive: it has no index.json")),
            (Transport::DockerArchive, true, _) => {
                return Err(not("a docker archive: it has no manifest.json (write oci-archive: before it)"));
            }
            (Transport::DockerArchive, ..) => return Err(not("a docker archive: it has no manifest.json")),
            (Transport::Path | Transport::Docker, ..) => {
                return Err(not("an image: it has neither index.json nor manifest.json"));
            }
        };
        Ok(source)
    }

    /// A member's reader and length, or `None` if it isn't there.
    pub(crate) fn find(&self, name: &str) -> Result<Option<(Range, u64)>, SourceError> {
        match &self.place {
            Place::Archive(archive) => Ok(archive.member(name)),
            Place::Folder => match open_regular(&self.path.join(name)) {
                Ok(file) => {
                    let size = file.metadata().map_err(|source| io_error(&self.path, source))?.len();
                    Ok(Some((Range::new(Arc::new(file), 0, size), size)))
                }
                Err(SourceError::NoSource(_)) => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    /// Like [`Source::find`] for what must be there.
    pub(crate) fn require(&self, name: &str) -> Result<(Range, u64), SourceError> {
        self.find(name)?.ok_or_else(|| SourceError::NoBlob { path: self.path.clone(), name: name.to_owned() })
    }

    /// Name of a blob's file.
    pub(crate) fn blob_name(digest: &Digest) -> String {
        format!("blobs/sha256/{}", digest.hex())
    }

    /// A whole small document.
    pub(crate) fn document(&self, name: &str, limits: &Limits) -> Result<Vec<u8>, SourceError> {
        let (reader, bytes) = self.require(name)?;
        let limit = limits.document_bytes;
        if bytes > limit {
            return Err(SourceError::DocumentTooLong { what: name.to_owned(), bytes, limit });
        }
        let mut document = Vec::new();
        reader
            .take(limit)
            .read_to_end(&mut document)
            .map_err(|source| SourceError::Io { path: self.path.join(name), source })?;
        Ok(document)
    }
}

/// Opens a regular file; a FIFO or device doesn't hang or answer.
fn open_regular(path: &Path) -> Result<File, SourceError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| io_error(path, error.into()))?;
    let file = File::from(fd);
    let meta = file.metadata().map_err(|source| io_error(path, source))?;
    if meta.is_file() {
        Ok(file)
    } else {
        Err(SourceError::NotThat { path: path.to_path_buf(), expected: "a regular file" })
    }
}

fn io_error(path: &Path, source: io::Error) -> SourceError {
    let path = path.to_path_buf();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => SourceError::NoSource(path),
        _ => SourceError::Io { path, source },
    }
}
