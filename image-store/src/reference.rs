//! Image references as users write them: `docker://[HOST[:PORT]/]NAME[:TAG]`, `oci:DIR[:TAG]`,
//! `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:NAME:TAG]`, or a bare path that starts with `/`, `./` or
//! `../`. Each may end in `@sha256:<hex>`: then the manifest found (or, in a registry, the index that leads to
//! it) must have that digest. Parsing is pure: no path is touched and no host is asked.
//!
//! The first `:` after a path starts the tag, as with skopeo; a path can't hold a `:`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::digest::{Digest, DigestError};
use crate::repository::{self, Repository, Wanted};

/// Where an image lies and in which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A registry.
    Docker,
    /// A folder in OCI image layout.
    Oci,
    /// A tar of an OCI image layout.
    OciArchive,
    /// What `docker save` and `podman save` write.
    DockerArchive,
    /// A bare path: a folder is a layout; a file is an OCI archive if it has an index, else a docker archive.
    Path,
}

/// A parsed image reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    transport: Transport,
    path: PathBuf,
    repository: Option<Repository>,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a reference that this version understands. Each says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// Nothing there.
    #[error(
        "read an empty image reference: write docker://NAME:TAG, oci:DIR:TAG, oci-archive:FILE or docker-archive:FILE"
    )]
    Empty,
    /// A name without a transport. A path may be meant as well as a registry.
    #[error(
        "use image \"{reference}\": write docker://{reference} if it is in a registry, oci:DIR:TAG if it is a folder"
    )]
    NoTransport {
        /// As written.
        reference: String,
    },
    /// `docker://` with something else than a name after it.
    #[error("use image \"{reference}\": {reason}")]
    Name {
        /// As written.
        reference: String,
        /// Which part is wrong, and how it is written.
        reason: &'static str,
    },
    /// A transport that other tools know.
    #[error(
        "use image \"{reference}\": \"{transport}:\" is not supported; use docker://, oci:, oci-archive: or docker-archive:"
    )]
    Transport {
        /// As written.
        reference: String,
        /// The word before the first colon.
        transport: String,
    },
    /// `oci:` with nothing after it.
    #[error("use image \"{reference}\": a path is missing after \"{transport}:\"")]
    NoPath {
        /// As written.
        reference: String,
        /// The word before the first colon.
        transport: &'static str,
    },
    /// A tag with spaces, control characters or more than 255 bytes, or an empty one.
    #[error("use image \"{reference}\": the tag must be 1 to 255 printable characters without spaces")]
    Tag {
        /// As written.
        reference: String,
    },
    /// What follows `@` is no digest.
    #[error("use image \"{reference}\": write the digest as @sha256:<64 hex digits>")]
    Digest {
        /// As written.
        reference: String,
        /// What was wrong.
        #[source]
        source: DigestError,
    },
    /// A NUL or a line break, which no path that a person means has.
    #[error("use image {reference:?}: it holds a control character")]
    ControlCharacter {
        /// As written.
        reference: String,
    },
}

impl Reference {
    /// Where and in which form the image lies.
    #[must_use]
    pub const fn transport(&self) -> Transport {
        self.transport
    }

    /// The folder or file; empty for an image in a registry.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The repository of an image in a registry.
    #[must_use]
    pub const fn repository(&self) -> Option<&Repository> {
        self.repository.as_ref()
    }

    /// By what a registry is asked for the image: the digest decides if there is one.
    pub(crate) fn wanted(&self) -> Wanted {
        match (self.digest, &self.tag) {
            (Some(digest), _) => Wanted::Digest(digest),
            (None, Some(tag)) => Wanted::Tag(tag.clone()),
            (None, None) => Wanted::Tag(repository::DEFAULT_TAG.to_owned()),
        }
    }

    /// An image of a repository, by digest.
    pub(crate) const fn in_repository(repository: Repository, digest: Digest) -> Self {
        Self {
            transport: Transport::Docker,
            path: PathBuf::new(),
            repository: Some(repository),
            tag: None,
            digest: Some(digest),
        }
    }

    /// The same image of a registry, by digest.
    pub(crate) fn pinned(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The tag (docker archives: `name:tag`), if one was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The manifest digest that the image must have, if one was given.
    #[must_use]
    pub const fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same reference with a relative path taken to start at `base`.
    #[must_use]
    pub fn relative_to(&self, base: &Path) -> Self {
        if self.repository.is_some() { self.clone() } else { self.with_path(base.join(&self.path)) }
    }

    pub(crate) fn with_path(&self, path: PathBuf) -> Self {
        Self { path, ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.transport {
            Transport::Docker => f.write_str("docker://")?,
            Transport::Oci => f.write_str("oci:")?,
            Transport::OciArchive => f.write_str("oci-archive:")?,
            Transport::DockerArchive => f.write_str("docker-archive:")?,
            Transport::Path => {}
        }
        match &self.repository {
            Some(repository) => write!(f, "{repository}")?,
            None => write!(f, "{}", self.path.display())?,
        }
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.chars().any(char::is_control) {
            return Err(ReferenceError::ControlCharacter { reference: text.to_owned() });
        }
        if text.starts_with('/') || text.starts_with("./") || text.starts_with("../") {
            return split_path(text, Transport::Path, text);
        }
        if let Some(name) = text.strip_prefix("docker://") {
            return in_registry(text, name);
        }
        let named = [
            ("oci", Transport::Oci),
            ("oci-archive", Transport::OciArchive),
            ("docker-archive", Transport::DockerArchive),
        ];
        for (name, transport) in named {
            if let Some(rest) = text.strip_prefix(name).and_then(|rest| rest.strip_prefix(':')) {
                if rest.is_empty() || rest.starts_with([':', '@']) {
                    return Err(ReferenceError::NoPath { reference: text.to_owned(), transport: name });
                }
                return split_path(text, transport, rest);
            }
        }
        Err(not_supported(text))
    }
}

fn in_registry(reference: &str, name: &str) -> Result<Reference, ReferenceError> {
    let wrong = |reason| ReferenceError::Name { reference: reference.to_owned(), reason };
    let name = repository::parse(name).map_err(wrong)?;
    let digest = name.digest.map(|digest| digest.parse()).transpose();
    let digest =
        digest.map_err(|source| ReferenceError::Digest { reference: reference.to_owned(), source })?;
    // What was left out is written down, so that two spellings of one image are one.
    let default = || digest.is_none().then(|| repository::DEFAULT_TAG.to_owned());
    Ok(Reference {
        transport: Transport::Docker,
        path: PathBuf::new(),
        repository: Some(name.repository),
        tag: name.tag.or_else(default),
        digest,
    })
}

/// `PATH[:TAG][@DIGEST]`.
fn split_path(reference: &str, transport: Transport, rest: &str) -> Result<Reference, ReferenceError> {
    let (rest, digest) = match rest.rsplit_once('@') {
        Some((before, after)) if after.starts_with("sha") && after.contains(':') => {
            let digest = after
                .parse()
                .map_err(|source| ReferenceError::Digest { reference: reference.to_owned(), source })?;
            (before, Some(digest))
        }
        _ => (rest, None),
    };
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    let printable = |tag: &str| !tag.is_empty() && tag.len() <= 255 && !tag.contains(char::is_whitespace);
    if tag.is_some_and(|tag| !printable(tag)) {
        return Err(ReferenceError::Tag { reference: reference.to_owned() });
    }
    let path = PathBuf::from(path);
    Ok(Reference { transport, path, repository: None, tag: tag.map(str::to_owned), digest })
}

fn not_supported(text: &str) -> ReferenceError {
    let reference = text.to_owned();
    const OTHERS: [&str; 10] = [
        "dir",
        "containers-storage",
        "docker-daemon",
        "ostree",
        "sif",
        "library",
        "shub",
        "oras",
        "http",
        "https",
    ];
    match text.split_once(':') {
        Some((transport, rest)) if OTHERS.contains(&transport) || rest.starts_with("//") => {
            ReferenceError::Transport { reference, transport: transport.to_owned() }
        }
        _ => ReferenceError::NoTransport { reference },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_read_and_written_back() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, transport, path, tag) in [
            ("oci:/a/b", Transport::Oci, "/a/b", None),
            ("oci:a:1.0", Transport::Oci, "a", Some("1.0")),
            ("oci-archive:x.tar:t", Transport::OciArchive, "x.tar", Some("t")),
            ("docker-archive:x.tar:repo/name:1", Transport::DockerArchive, "x.tar", Some("repo/name:1")),
            ("./x", Transport::Path, "./x", None),
            ("/x/y:tag", Transport::Path, "/x/y", Some("tag")),
        ] {
            let read: Reference = text.parse().unwrap();
            assert_eq!(
                (read.transport(), read.path(), read.tag()),
                (transport, Path::new(path), tag),
                "{text}"
            );
            assert_eq!(read.to_string(), text);
            let pinned: Reference = format!("{text}@{digest}").parse().unwrap();
            assert_eq!(pinned.digest().unwrap().to_string(), digest);
            assert_eq!(pinned.path(), Path::new(path));
        }
    }

    #[test]
    fn what_is_not_supported_names_the_way_out() {
        for (text, says) in [
            ("", "oci:DIR:TAG"),
            ("debian:12", "write docker://debian:12 if"),
            ("ghcr.io/a/b", "write docker://ghcr.io/a/b if"),
            ("docker://Debian", "lower-case"),
            ("docker://", "lower-case"),
            ("docker://a:b c", "a tag is"),
            ("docker://h.x:0/a", "host:port"),
            ("docker://a@sha256:12", "@sha256:<64 hex digits>"),
            ("dir:/x", "use docker://, oci:"),
            ("oras://x", "\"oras:\" is not supported"),
            ("oci:", "a path is missing"),
            ("oci::tag", "a path is missing"),
            ("oci:x:", "tag"),
            ("oci:x:a b", "tag"),
            ("oci:x@sha256:12", "@sha256:<64 hex digits>"),
            ("oci:x\ny", "control character"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn an_image_in_a_registry_is_written_out_in_full() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, whole) in [
            ("docker://debian", "docker://docker.io/library/debian:latest".to_owned()),
            ("docker://localhost:5000/a:1", "docker://localhost:5000/a:1".to_owned()),
            (&format!("docker://h.x/a@{digest}"), format!("docker://h.x/a@{digest}")),
            (&format!("docker://h.x/a:1@{digest}"), format!("docker://h.x/a:1@{digest}")),
        ] {
            let read: Reference = text.parse().unwrap();
            assert_eq!((read.transport(), read.to_string()), (Transport::Docker, whole.clone()));
            assert_eq!(whole.parse(), Ok(read.relative_to(Path::new("/base"))));
        }
    }

    #[test]
    fn a_relative_path_starts_at_the_given_folder() {
        let read: Reference = "oci:a:1".parse().unwrap();
        assert_eq!(read.relative_to(Path::new("/base")).to_string(), "oci:/base/a:1");
        let read: Reference = "oci:/a:1".parse().unwrap();
        assert_eq!(read.relative_to(Path::new("/base")).to_string(), "oci:/a:1");
    }
}
