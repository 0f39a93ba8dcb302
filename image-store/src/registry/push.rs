//! Blobs and manifests into a repository: the session of a push.
//!
//! Blobs go one after the other: they share one line, which a second would not widen, and the registry hashes
//! while it receives; what is lost is a round trip or four for each blob.
//!
//! # What it must not know
//! Where the blobs lie, and what an image is.

use std::time::Duration;

use reqwest::Method;

use super::endpoint::{Call, Endpoint, To};
use super::error::RegistryError;
use super::outgoing::Outgoing;
use super::refused::{pushing, refusal};
use super::session::{Registry, Session, stated_digest};
use super::transport::{Answer, Failure, Piece, protocol};
use super::upload::Upload;
use crate::digest::Digest;

/// On a line that is slower a piece is given up.
pub(super) const LINE_BYTES_PER_S: u64 = 64 << 10;
impl Session {
    /// Brings a blob into the repository; `told` is told of bytes that are there. Whether it had to be sent.
    pub(crate) fn upload(
        &self,
        blob: &mut Outgoing<'_>,
        piece_bytes: u64,
        told: &dyn Fn(u64),
    ) -> Result<bool, RegistryError> {
        self.run(async {
            let endpoint = self.registry.endpoints.first().ok_or_else(nowhere)?;
            Upload::new(&self.registry, endpoint, blob, piece_bytes).run(told).await
        })
    }

    /// Puts a manifest under its digest, once its blobs are there. Whether it had to be sent.
    pub(crate) fn name(
        &self,
        digest: Digest,
        media_type: &str,
        manifest: &[u8],
    ) -> Result<bool, RegistryError> {
        let registry = &self.registry;
        let (what, path) = (format!("manifest {digest}"), format!("manifests/{digest}"));
        self.run(registry.everywhere(async |endpoint| {
            if registry.is_there(endpoint, &path, &what).await? {
                return Ok(false);
            }
            let piece = Piece {
                media_type: media_type.to_owned(),
                range: None,
                bytes: manifest.to_vec(),
                time: registry.time(manifest.len() as u64, LINE_BYTES_PER_S),
            };
            let answer = registry.put(endpoint, To::Path(&path), Method::PUT, Some(&piece), &what).await?;
            if !answer.response.status().is_success() {
                return Err(refusal(endpoint, answer, &what).await);
            }
            match stated_digest(answer.response.headers()) {
                Some(other) if other != digest => {
                    Err(protocol(endpoint.host(), &format!("it calls manifest {digest} {other}")))
                }
                _ => Ok(true),
            }
        }))
    }
}

fn nowhere() -> RegistryError {
    RegistryError::Unreachable { host: String::new(), reason: "no place is known".to_owned() }
}

impl Registry {
    /// How long an exchange of so many bytes may take.
    pub(super) fn time(&self, bytes: u64, bytes_per_s: u64) -> Duration {
        self.transport.access.patience.stall + Duration::from_secs(bytes.div_ceil(bytes_per_s))
    }

    pub(super) async fn put(
        &self,
        endpoint: &Endpoint,
        to: To<'_>,
        method: Method,
        piece: Option<&Piece>,
        what: &str,
    ) -> Result<Answer, Failure> {
        let call = Call { method, to, from: None, piece };
        endpoint.exchange(&self.transport, &call).await.map_err(|failure| pushing(endpoint, what, failure))
    }

    /// Whether the repository has a blob or a manifest.
    pub(super) async fn is_there(
        &self,
        endpoint: &Endpoint,
        path: &str,
        what: &str,
    ) -> Result<bool, Failure> {
        let answer = self.put(endpoint, To::Path(path), Method::HEAD, None, what).await?;
        let status = answer.response.status();
        if status.is_success() {
            return Ok(true);
        }
        match refusal(endpoint, answer, what).await {
            again @ Failure::Again(..) => Err(again),
            denied if status.as_u16() == 401 => Err(denied),
            // A repository that is yet to be made is hidden from some; whether one may push, POST and PUT tell.
            _ => Ok(false),
        }
    }
}
