//! One conversation with a repository and its mirrors. The network runs on a runtime of its own that ends with
//! the session, so that a pilot that pulls nothing has neither threads nor connections for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Method, Response};
use tokio::runtime::Runtime;

use super::access::{Logins, RegistryAccess};
use super::endpoint::{Endpoint, body};
use super::error::RegistryError;
use super::login::{self, Login};
use super::part::Part;
use super::range::ContentRange;
use super::retry;
use super::transport::{Failure, Transport, network};
use crate::digest::Digest;
use crate::repository::{Repository, Wanted};
use crate::spec::Descriptor;

/// Tries at a mirror in a row: the origin is a better use of time.
const MIRROR_TRIES: u32 = 2;

/// See the module's doc.
#[derive(Debug)]
pub(crate) struct Session {
    /// Always there until dropped.
    runtime: Option<Runtime>,
    pub(crate) registry: Arc<Registry>,
}

/// The places where one repository's images are.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) transport: Transport,
    document_bytes_max: u64,
}

/// A manifest or index as a registry gave it.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptor: Descriptor,
    pub(crate) shown: Shown,
}

/// What had to be shown to be let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) repository: Repository,
    /// None: everybody is let in.
    pub(crate) login: Option<Login>,
}

impl Session {
    /// For pulls from a repository or its mirrors.
    pub(crate) fn open(
        access: &RegistryAccess,
        origin: &Repository,
        document_bytes_max: u64,
    ) -> Result<Self, RegistryError> {
        Self::at(access, access.places(origin), "pull", document_bytes_max)
    }

    /// For pushes, which go to the repository itself alone.
    pub(crate) fn open_to_push(access: &RegistryAccess, to: &Repository) -> Result<Self, RegistryError> {
        Self::at(access, vec![to.clone()], "pull,push", 0)
    }

    fn at(
        access: &RegistryAccess,
        places: Vec<Repository>,
        actions: &'static str,
        document_bytes_max: u64,
    ) -> Result<Self, RegistryError> {
        let host = places.last().map(|place| place.host().to_owned()).unwrap_or_default();
        let mut endpoints = Vec::new();
        for place in places {
            let login = match &access.logins {
                Logins::None => None,
                Logins::Usual(files) => login::find(files, false, &place)?,
                Logins::File(file) => login::find(std::slice::from_ref(file), true, &place)?,
            };
            endpoints.push(Endpoint::new(place, login, actions));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| RegistryError::Unreachable {
            host,
            reason: format!("start the network: {error}"),
        })?;
        let transport = Transport::new(access.clone());
        let registry = Arc::new(Registry { endpoints, transport, document_bytes_max });
        Ok(Self { runtime: Some(runtime), registry })
    }

    pub(crate) fn run<T>(
        &self,
        work: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        match &self.runtime {
            Some(runtime) => runtime.block_on(work),
            None => Err(RegistryError::Unreachable {
                host: String::new(),
                reason: "the session is over".to_owned(),
            }),
        }
    }

    pub(crate) const fn runtime(&self) -> Option<&Runtime> {
        self.runtime.as_ref()
    }

    /// What a manifest's digest is now, without fetching it; none if the registry doesn't say.
    pub(crate) fn head(&self, wanted: &Wanted) -> Result<(Option<Digest>, Shown), RegistryError> {
        self.run(self.registry.everywhere(async |endpoint| {
            let path = format!("manifests/{wanted}");
            let response = endpoint.ask(&self.registry.transport, Method::HEAD, &path, None).await?;
            Ok((stated_digest(response.headers()), endpoint.shown()))
        }))
    }

    /// A manifest or index.
    pub(crate) fn manifest(&self, wanted: &Wanted) -> Result<Document, RegistryError> {
        self.run(self.registry.everywhere(async |endpoint| self.registry.manifest(endpoint, wanted).await))
    }

    /// A small blob, verified.
    pub(crate) fn document(
        &self,
        what: &'static str,
        descriptor: &Descriptor,
    ) -> Result<Vec<u8>, RegistryError> {
        let limit = self.registry.document_bytes_max;
        self.run(self.registry.everywhere(async |endpoint| {
            let path = format!("blobs/{}", descriptor.digest);
            let response = endpoint.ask(&self.registry.transport, Method::GET, &path, None).await?;
            let bytes = body(response, limit, endpoint.host(), what).await?;
            check(endpoint.host(), what, &descriptor.digest, &bytes)?;
            Ok(bytes)
        }))
    }

    /// Whether one is let in to a blob.
    pub(crate) fn has_blob(&self, digest: &Digest) -> Result<(), RegistryError> {
        self.run(self.registry.everywhere(async |endpoint| {
            let path = format!("blobs/{digest}");
            endpoint.ask(&self.registry.transport, Method::HEAD, &path, None).await.map(drop)
        }))
    }

    /// Logins that would be shown, in the order of the places.
    pub(crate) fn logins(&self) -> impl Iterator<Item = Shown> {
        self.registry.endpoints.iter().map(|endpoint| Shown {
            repository: endpoint.repository.clone(),
            login: endpoint.login().cloned(),
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A name that is being looked up can't be called back; it is not waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Endpoint {
    fn shown(&self) -> Shown {
        Shown { repository: self.repository.clone(), login: self.needed().cloned() }
    }
}

pub(super) fn stated_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

fn check(host: &str, what: &'static str, stated: &Digest, bytes: &[u8]) -> Result<(), Failure> {
    let found = Digest::of(bytes);
    if found == *stated {
        return Ok(());
    }
    let host = host.to_owned();
    Err(Failure::Final(RegistryError::WrongDigest { host, what, stated: *stated, found }))
}

impl Registry {
    pub(crate) const fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    pub(crate) const fn downloads_at_once(&self) -> usize {
        self.transport.access.downloads_at_once
    }

    /// Tries the places in order; what the last one says is the answer.
    pub(super) async fn everywhere<T>(
        &self,
        once: impl AsyncFn(&Endpoint) -> Result<T, Failure>,
    ) -> Result<T, RegistryError> {
        let mut last = None;
        for (number, endpoint) in self.endpoints.iter().enumerate() {
            let mut tried = 0;
            loop {
                let failure = match once(endpoint).await {
                    Ok(done) => return Ok(done),
                    Err(failure) => failure,
                };
                tried += 1;
                match self.wait(number, tried, &failure) {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => {
                        last = Some(failure.into_error());
                        break;
                    }
                }
            }
        }
        Err(last.unwrap_or_else(|| RegistryError::Unreachable {
            host: String::new(),
            reason: "no place is known".into(),
        }))
    }

    /// How long to wait before the next try there; none if there is to be none.
    pub(super) fn wait(&self, number: usize, tried: u32, failure: &Failure) -> Option<Duration> {
        let patience = &self.transport.access.patience;
        let origin = number + 1 == self.endpoints.len();
        let tries = if origin { patience.tries } else { patience.tries.min(MIRROR_TRIES) };
        let Failure::Again(error, asked) = failure else { return None };
        if tried >= tries || asked.is_some_and(|asked| asked > patience.longest_wait) {
            return None;
        }
        let own = retry::backoff(
            tried.saturating_sub(1),
            patience.first_wait,
            patience.longest_wait,
            fastrand::f64(),
        );
        tracing::debug!(%error, tried, "registry is asked again");
        Some(asked.unwrap_or(own))
    }

    async fn manifest(&self, endpoint: &Endpoint, wanted: &Wanted) -> Result<Document, Failure> {
        let path = format!("manifests/{wanted}");
        let response = endpoint.ask(&self.transport, Method::GET, &path, None).await?;
        let stated = match wanted {
            Wanted::Digest(digest) => Some(*digest),
            Wanted::Tag(_) => stated_digest(response.headers()),
        };
        let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let kind = kind.and_then(|value| value.split(';').next()).unwrap_or_default().trim().to_owned();
        let what = format!("the manifest of {}", endpoint.repository);
        let bytes = body(response, self.document_bytes_max, endpoint.host(), &what).await?;
        if let Some(stated) = stated {
            check(endpoint.host(), "manifest", &stated, &bytes)?;
        }
        let descriptor = Descriptor::of(&bytes, kind);
        Ok(Document { bytes, descriptor, shown: endpoint.shown() })
    }

    /// Brings a part to its full length, beginning with the place `first`.
    pub(crate) async fn download(&self, part: &Part, first: usize) -> Result<(), RegistryError> {
        let mut last = None;
        let mut total = 0;
        for (number, endpoint) in self.endpoints.iter().enumerate().skip(first) {
            let mut fruitless = 0;
            loop {
                let before = part.bytes();
                let failure = match self.bring(number, endpoint, part).await {
                    Ok(()) => return Ok(()),
                    Err(failure) => failure,
                };
                total += 1;
                fruitless = if part.bytes() > before { 1 } else { fruitless + 1 };
                let enough = total >= self.transport.access.patience.tries_of_blob;
                match self.wait(number, fruitless, &failure).filter(|_| !enough) {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => {
                        last = Some(failure.into_error());
                        break;
                    }
                }
            }
            if matches!(last, Some(RegistryError::Store { .. })) {
                break;
            }
        }
        Err(last.unwrap_or_else(|| RegistryError::Unreachable {
            host: String::new(),
            reason: "no place is left".into(),
        }))
    }

    /// One request for what is missing of a part.
    async fn bring(&self, number: usize, endpoint: &Endpoint, part: &Part) -> Result<(), Failure> {
        let have = part.bytes();
        if have == part.size {
            return Ok(());
        }
        let ranges = !endpoint.no_ranges.load(Ordering::Relaxed);
        let from = (have > 0 && ranges).then_some(have);
        let path = format!("blobs/{}", part.digest);
        let response = endpoint.ask(&self.transport, Method::GET, &path, from).await?;
        let skip = match response.status().as_u16() {
            206 if is_rest(&response, have, part.size) => 0,
            // Neither the rest nor the whole: asked again for the whole, of which the beginning is skipped.
            206 | 416 => {
                endpoint.no_ranges.store(true, Ordering::Relaxed);
                let (host, reason) =
                    (endpoint.host().to_owned(), "it gives another range than asked for".to_owned());
                return Err(Failure::Again(RegistryError::Protocol { host, reason }, Some(Duration::ZERO)));
            }
            _ => have,
        };
        let expected = part.size - (have - skip);
        if let Some(length) = response.content_length().filter(|length| *length != expected) {
            return Err(wrong_length(endpoint, part, format!("{} bytes are offered", length + have - skip)));
        }
        append(number, endpoint, part, response, skip).await?;
        if part.bytes() < part.size {
            let (host, reason) = (endpoint.host().to_owned(), "the connection ended early".to_owned());
            return Err(Failure::Again(RegistryError::Unreachable { host, reason }, None));
        }
        Ok(())
    }
}

async fn append(
    number: usize,
    endpoint: &Endpoint,
    part: &Part,
    mut response: Response,
    mut skip: u64,
) -> Result<(), Failure> {
    let host = endpoint.host();
    while let Some(chunk) = response.chunk().await.map_err(|error| network(host, error))? {
        let known = chunk.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
        skip -= known as u64;
        let fresh = &chunk[known..];
        if part.bytes() + fresh.len() as u64 > part.size {
            return Err(wrong_length(endpoint, part, "more bytes came".to_owned()));
        }
        let stored = |source| Failure::Final(RegistryError::Store { host: host.to_owned(), source });
        if !fresh.is_empty() {
            part.append(number, fresh).map_err(stored)?;
        }
    }
    Ok(())
}

fn is_rest(response: &Response, have: u64, size: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
    range.and_then(ContentRange::parse).is_some_and(|range| range.is_rest(have, size))
}

fn wrong_length(endpoint: &Endpoint, part: &Part, found: String) -> Failure {
    let (host, digest, stated) = (endpoint.host().to_owned(), part.digest, part.size);
    Failure::Final(RegistryError::WrongLength { host, digest, stated, found })
}
