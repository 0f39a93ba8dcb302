//! What can go wrong between here and a registry. Each message is one line that names the host and says what
//! to do next; none holds a secret or an address with a query.

use std::path::PathBuf;

use crate::digest::Digest;
use crate::objects::ObjectError;

/// Why a registry could not give an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// 404.
    #[error(
        "find {what} at {host}: it is not there; check the name (if it is private: `podman login {host}`, or name an auth file with --registry-auth)"
    )]
    NotFound {
        /// The registry.
        host: String,
        /// Image or blob.
        what: String,
    },
    /// 401 or 403, or what a token server answered.
    #[error("read {what} at {host}: {status}: {advice}")]
    Denied {
        /// The registry.
        host: String,
        /// Image or blob.
        what: String,
        /// HTTP status.
        status: u16,
        /// What to do.
        advice: String,
    },
    /// 429, or 5xx, also after several tries.
    #[error("read {what} at {host}: it answered {status}{}; try again later", .retry_after_s.map(|s| format!(" and asks to wait {s} s")).unwrap_or_default())]
    Unwilling {
        /// The registry.
        host: String,
        /// Image or blob.
        what: String,
        /// HTTP status.
        status: u16,
        /// Seconds that it asks to wait.
        retry_after_s: Option<u64>,
    },
    /// The host can't be reached, or the connection broke, also after several tries.
    #[error("reach {host}: {reason}")]
    Unreachable {
        /// The registry.
        host: String,
        /// What went wrong, in one line.
        reason: String,
    },
    /// Its certificate is not trusted.
    #[error(
        "trust {host}: {reason}; name its CA in the registries file (ca:), or declare it insecure there if it speaks plain http"
    )]
    Certificate {
        /// The registry.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The answer breaks the protocol.
    #[error("understand the answer of {host}: {reason}")]
    Protocol {
        /// The registry.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Other bytes than those that were asked for; from every place that has them.
    #[error("use {what} {stated} from {host}: its bytes have the digest {found}")]
    WrongDigest {
        /// The registry.
        host: String,
        /// Manifest, index or configuration.
        what: &'static str,
        /// By what it was asked for.
        stated: Digest,
        /// Of the bytes.
        found: Digest,
    },
    /// A blob that is longer or shorter than the manifest states.
    #[error("use blob {digest} from {host}: {found}, {stated} bytes are stated")]
    WrongLength {
        /// The registry.
        host: String,
        /// The blob.
        digest: Digest,
        /// Bytes by the manifest.
        stated: u64,
        /// What came instead.
        found: String,
    },
    /// A document over the limit.
    #[error("read {what} from {host}: it is longer than the limit of {limit} bytes")]
    TooLong {
        /// The registry.
        host: String,
        /// Which document.
        what: String,
        /// [`crate::Limits::document_bytes`].
        limit: u64,
    },
    /// An auth file that can't be read or understood.
    #[error("read the auth file \"{}\": {reason}", .path.display())]
    AuthFile {
        /// The file.
        path: PathBuf,
        /// What is wrong; nothing of its content.
        reason: String,
    },
    /// A CA's certificate that can't be read.
    #[error("read the CA certificate \"{}\" of {host}: {reason}", .path.display())]
    Ca {
        /// The registry.
        host: String,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A password would travel readable.
    #[error(
        "log in at {host}: it asks for a password over plain http; declare it insecure in the registries file if that is meant"
    )]
    PlainPassword {
        /// The registry, or its token server.
        host: String,
    },
    /// What is pushed is not taken; for what passes, also after several tries.
    #[error("push {what} to {repository}: it answered {status}{reason}")]
    Refused {
        /// The registry and the path there.
        repository: String,
        /// Layer, configuration or manifest, by its digest.
        what: String,
        /// HTTP status.
        status: u16,
        /// The registry's own words, if any, and what to do.
        reason: String,
    },
    /// What was to be pushed is not what its image states. It is not named there.
    #[error("push {what} to {repository}: {reason}; the image is damaged, make it anew")]
    Unsound {
        /// The registry and the path there.
        repository: String,
        /// Layer or configuration, by its digest.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// What comes can't be kept.
    #[error("keep what comes from {host}")]
    Store {
        /// The registry.
        host: String,
        /// What was refused.
        #[source]
        source: ObjectError,
    },
}

impl RegistryError {
    /// Whether another try later may go better without anybody changing anything.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Unwilling { .. } | Self::Unreachable { .. } | Self::Certificate { .. } => true,
            Self::Refused { status, .. } => is_passing(*status),
            Self::NotFound { .. }
            | Self::Denied { .. }
            | Self::Protocol { .. }
            | Self::WrongDigest { .. }
            | Self::WrongLength { .. }
            | Self::TooLong { .. }
            | Self::AuthFile { .. }
            | Self::Ca { .. }
            | Self::PlainPassword { .. }
            | Self::Unsound { .. }
            | Self::Store { .. } => false,
        }
    }

    /// The store's own fault, if it is one.
    #[must_use]
    pub const fn store_fault(&self) -> Option<&ObjectError> {
        if let Self::Store { source, .. } = self { Some(source) } else { None }
    }
}

/// Whether a server that answers so may answer otherwise soon. Not if it can't do such a thing at all (501, 505),
/// or is full (507): that takes somebody.
pub(crate) const fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502..=504 | 506 | 508..=599)
}
