//! Objects of a server that speaks S3. Knows buckets and requests, no files that have names.

mod fetch;
mod put;
mod upload;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use object_store::aws::{AmazonS3, AmazonS3Builder, Checksum};
use object_store::path::Path as Key;
use object_store::{Attribute, BackoffConfig, GetOptions, GetRange, ObjectStore, RetryConfig};
use tokio::task::JoinSet;

use crate::http::Transport;
use crate::settings::{Settings, SettingsError};
use crate::tier::{Head, Listed};
use crate::{Digest, ObjectError, ObjectUrl};

/// The metadata in which an object's digest is kept (`x-amz-meta-sha256`), in hex.
const DIGEST: &str = "sha256";

/// The buckets that were used, and what is still to be taken back there.
pub(crate) struct Buckets {
    settings: Settings,
    transport: Transport,
    open: Mutex<HashMap<(String, Mode), Arc<AmazonS3>>>,
    ending: Mutex<JoinSet<()>>,
}

/// How requests behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Mode {
    /// Tried once: who asks goes on from where it failed.
    Once,
    /// Tried again.
    Again,
    /// Tried again, and names that are taken are refused.
    Create,
}

impl fmt::Debug for Buckets {
    /// The clients hold keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buckets").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Buckets {
    pub(crate) fn new(settings: Settings) -> Result<Self, SettingsError> {
        let transport = Transport::new(&settings)?;
        Ok(Self { settings, transport, open: Mutex::default(), ending: Mutex::default() })
    }

    pub(crate) fn server(&self) -> &str {
        self.settings.endpoint.as_deref().unwrap_or("aws")
    }

    fn bucket(&self, url: &ObjectUrl, name: &str, mode: Mode) -> Result<Arc<AmazonS3>, ObjectError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = open.get(&(name.to_owned(), mode)) {
            return Ok(Arc::clone(bucket));
        }
        let bucket = self.build(name, mode).map_err(|error| self.meaning(url, &error))?;
        let bucket = Arc::new(bucket);
        open.insert((name.to_owned(), mode), Arc::clone(&bucket));
        Ok(bucket)
    }

    fn build(&self, name: &str, mode: Mode) -> object_store::Result<AmazonS3> {
        let settings = &self.settings;
        let limits = &settings.limits;
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: limits.first_wait,
                max_backoff: limits.longest_wait,
                base: 2.0,
            },
            max_retries: if mode == Mode::Once { 0 } else { limits.retries as usize },
            // A signature is good for 15 minutes.
            retry_timeout: limits.request.min(Duration::from_secs(600)),
        };
        let transport =
            if mode == Mode::Create { self.transport.create_only() } else { self.transport.clone() };
        let builder = AmazonS3Builder::new()
            .with_bucket_name(name)
            .with_region(settings.region.as_deref().unwrap_or("us-east-1"))
            .with_virtual_hosted_style_request(false)
            .with_disable_bulk_delete(true)
            .with_retry(retry)
            .with_http_connector(transport);
        let builder = match &settings.endpoint {
            Some(endpoint) => builder.with_endpoint(endpoint.trim_end_matches('/')).with_allow_http(true),
            None => builder,
        };
        let builder = match &settings.credentials {
            Some(who) => {
                let builder = builder
                    .with_access_key_id(&who.access_key_id)
                    .with_secret_access_key(&who.secret_access_key);
                match &who.session_token {
                    Some(token) => builder.with_token(token),
                    None => builder,
                }
            }
            None => builder.with_skip_signature(true),
        };
        let builder = if settings.without_checksums {
            builder
        } else {
            builder.with_checksum_algorithm(Checksum::SHA256)
        };
        builder.build()
    }

    fn meaning(&self, url: &ObjectUrl, error: &object_store::Error) -> ObjectError {
        ObjectError::server(url, &self.settings.limits, error)
    }

    pub(crate) async fn head(&self, url: &ObjectUrl, bucket: &str, key: &str) -> Result<Head, ObjectError> {
        let store = self.bucket(url, bucket, Mode::Again)?;
        let key = parse(url, key)?;
        match store.get_opts(&key, GetOptions { head: true, ..GetOptions::default() }).await {
            Ok(answer) => {
                let digest = answer.attributes.get(&Attribute::Metadata(DIGEST.into()));
                let digest = digest.and_then(|text| Digest::from_hex(text));
                Ok(Head { bytes: answer.meta.size, etag: answer.meta.e_tag, digest })
            }
            Err(object_store::Error::NotFound { .. }) => {
                // An answer to HEAD has no body, which would tell a missing bucket from a missing object.
                let range = Some(GetRange::Bounded(0..1));
                let asked = store.get_opts(&key, GetOptions { range, ..GetOptions::default() }).await;
                match asked.map_err(|error| self.meaning(url, &error)) {
                    Err(missing @ ObjectError::NoBucket(_)) => Err(missing),
                    _ => Err(ObjectError::NotFound(url.clone())),
                }
            }
            Err(error) => Err(self.meaning(url, &error)),
        }
    }

    pub(crate) async fn remove(&self, url: &ObjectUrl, bucket: &str, key: &str) -> Result<(), ObjectError> {
        let store = self.bucket(url, bucket, Mode::Again)?;
        let key = parse(url, key)?;
        let mut removed = store.delete_stream(stream::iter([Ok(key)]).boxed());
        while let Some(one) = removed.next().await {
            match one.map_err(|error| self.meaning(url, &error)) {
                Ok(_) | Err(ObjectError::NotFound(_)) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    pub(crate) async fn list(
        &self,
        url: &ObjectUrl,
        bucket: &str,
        key: &str,
        max: usize,
    ) -> Result<Vec<Listed>, ObjectError> {
        let store = self.bucket(url, bucket, Mode::Again)?;
        let key = parse(url, key)?;
        let mut listed = store.list(Some(&key));
        let mut found = Vec::new();
        while let Some(one) = listed.next().await {
            let one = one.map_err(|error| self.meaning(url, &error))?;
            if let Ok(name) = format!("s3://{bucket}/{}", one.location).parse() {
                if found.len() == max {
                    let reason = format!("more than {max} objects; list less");
                    return Err(ObjectError::TooMuch { url: url.clone(), reason });
                }
                found.push(Listed { url: name, bytes: one.size });
            }
        }
        found.sort_by(|a, b| a.url.cmp(&b.url));
        Ok(found)
    }

    /// Goes on with what must be taken back after its owner is gone.
    fn end_later(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        while ending.try_join_next().is_some() {}
        // Without a runtime there is nobody left to speak to the server.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            ending.spawn_on(work, &runtime);
        }
    }

    pub(crate) async fn settle(&self) {
        let mut ending = std::mem::take(&mut *self.ending.lock().unwrap_or_else(PoisonError::into_inner));
        while ending.join_next().await.is_some() {}
    }
}

fn parse(url: &ObjectUrl, key: &str) -> Result<Key, ObjectError> {
    Key::parse(key).map_err(|_| ObjectError::NotFound(url.clone()))
}
