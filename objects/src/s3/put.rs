//! Puts one object: in one request, or in parts if it is large. Knows what to make of what is already there.

use std::sync::Arc;

use object_store::path::Path as Key;
use object_store::{Attribute, Attributes, ObjectStore, PutOptions, PutPayload};

use super::upload::Upload;
use super::{Buckets, DIGEST, Mode, parse};
use crate::blocking::blocking;
use crate::tier::{Head, Planned, Stored};
use crate::{Digest, ObjectError, ObjectUrl, Source};

impl Buckets {
    pub(crate) async fn put(
        self: &Arc<Self>,
        url: &ObjectUrl,
        bucket: &str,
        key: &str,
        source: &Source,
        plan: &Planned,
    ) -> Result<Stored, ObjectError> {
        match self.head(url, bucket, key).await {
            Ok(found) if is(&found, plan) => return Ok(stored(found, plan, true)),
            Ok(_) if !plan.overwrite => return Err(ObjectError::Exists(url.clone())),
            Ok(_) | Err(ObjectError::NotFound(_)) => {}
            // Some may write what they may not read.
            Err(ObjectError::Forbidden(_)) => {}
            Err(other) => return Err(other),
        }
        let store = self.bucket(url, bucket, if plan.overwrite { Mode::Again } else { Mode::Create })?;
        let key_of = parse(url, key)?;
        let sent = if plan.bytes <= self.settings.limits.part_bytes {
            self.put_whole(url, &store, &key_of, source, plan).await
        } else {
            let upload = Upload::begin(self, url, &store, &key_of, attributes(plan)).await?;
            upload.run(source, plan).await
        };
        match sent {
            Ok(etag) => self.look(url, bucket, key, plan, etag).await,
            Err(error) => {
                use ObjectError as E;
                // The answer to a success may be lost, and a second try refused because of it; or somebody else
                // has put the same meanwhile.
                if !matches!(error, E::Exists(_) | E::Server { .. } | E::Timeout { .. }) {
                    return Err(error);
                }
                match (self.head(url, bucket, key).await, error) {
                    (Ok(found), _) if is(&found, plan) => Ok(stored(found, plan, true)),
                    // Refused because of a write that came to nothing.
                    (Err(E::NotFound(url)), E::Exists(_)) => {
                        let reason = "another write to it was under way".to_owned();
                        Err(E::Server { url, reason })
                    }
                    (_, error) => Err(error),
                }
            }
        }
    }

    async fn put_whole(
        &self,
        url: &ObjectUrl,
        store: &Arc<object_store::aws::AmazonS3>,
        key: &Key,
        source: &Source,
        plan: &Planned,
    ) -> Result<Option<String>, ObjectError> {
        let (source, length) = (source.clone(), usize::try_from(plan.bytes).unwrap_or(usize::MAX));
        let read = blocking(move |_| {
            let piece = source.piece(0, length)?;
            let digest = Digest::of(&piece);
            Ok((piece, digest))
        });
        let (piece, digest) = read.await.map_err(|error| plan.unreadable(url, &error))?;
        plan.check(url, digest)?;
        let options = PutOptions { attributes: attributes(plan), ..PutOptions::default() };
        let put = store.put_opts(key, PutPayload::from_bytes(piece), options).await;
        put.map(|answer| answer.e_tag).map_err(|error| self.meaning(url, &error))
    }

    /// Looks at what the server has now: it may have kept less than it was given.
    async fn look(
        &self,
        url: &ObjectUrl,
        bucket: &str,
        key: &str,
        plan: &Planned,
        etag: Option<String>,
    ) -> Result<Stored, ObjectError> {
        let found = match self.head(url, bucket, key).await {
            Ok(found) => found,
            Err(ObjectError::Forbidden(_)) => {
                return Ok(Stored { bytes: plan.bytes, digest: plan.digest, etag, already: false });
            }
            Err(other) => return Err(other),
        };
        if found.bytes != plan.bytes || found.digest.is_some_and(|digest| digest != plan.digest) {
            // Not ours: whoever came after us.
            return Err(ObjectError::Changed(url.clone()));
        }
        if found.digest.is_none() {
            tracing::warn!(%url, "the server keeps no metadata: what is fetched can't be verified by itself");
        }
        Ok(stored(found, plan, false))
    }
}

fn is(found: &Head, plan: &Planned) -> bool {
    found.bytes == plan.bytes && found.digest == Some(plan.digest)
}

fn stored(found: Head, plan: &Planned, already: bool) -> Stored {
    Stored { bytes: plan.bytes, digest: plan.digest, etag: found.etag, already }
}

fn attributes(plan: &Planned) -> Attributes {
    Attributes::from_iter([(Attribute::Metadata(DIGEST.into()), plan.digest.hex())])
}
