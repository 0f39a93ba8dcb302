//! One repository at one place (a mirror or its origin), and how one is let in there: anonymously, with a
//! password, or with a token that a token server gives.
//!
//! # Flow
//! Nothing is sent unasked: the first request goes without authorization; what the answer's challenge asks for
//! is fetched, kept, and sent along until it is refused. Then it has expired, and is fetched once more.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::header::{DATE, LOCATION, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::Mutex;

use super::error::RegistryError;
use super::login::Login;
use super::retry;
use super::transport::{Answer, Failure, Piece, Request, Transport, authority, protocol};
use crate::repository::Repository;

/// A token may have been used up by others between getting it and using it; it won't happen three times.
const AUTHORIZATIONS_MAX: u32 = 3;
/// What manifests are asked for as.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// A repository at a place.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) repository: Repository,
    pub(super) login: Option<Login>,
    /// What is asked of token servers where the challenge does not say: `pull` or `pull,push`.
    pub(super) actions: &'static str,
    /// Whether the login has ever been asked for.
    pub(super) asked: AtomicBool,
    /// Value of the Authorization header that was let in last.
    pub(super) authorization: Mutex<Option<String>>,
    /// Whether it speaks plain http.
    plain: OnceLock<bool>,
    /// It lies about ranges, or knows none.
    pub(crate) no_ranges: AtomicBool,
}

/// A request to a repository.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) to: To<'a>,
    pub(crate) from: Option<u64>,
    pub(crate) piece: Option<&'a Piece>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum To<'a> {
    /// Below the repository, for example `blobs/sha256:..`.
    Path(&'a str),
    /// An address that the registry named.
    At(&'a Url),
}

impl Endpoint {
    pub(crate) fn new(repository: Repository, login: Option<Login>, actions: &'static str) -> Self {
        Self {
            repository,
            login,
            actions,
            asked: AtomicBool::new(false),
            authorization: Mutex::default(),
            plain: OnceLock::new(),
            no_ranges: AtomicBool::new(false),
        }
    }

    pub(crate) fn host(&self) -> &str {
        self.repository.host()
    }

    /// The login that would be used here.
    pub(crate) const fn login(&self) -> Option<&Login> {
        self.login.as_ref()
    }

    /// The login that was needed here; none if everybody is let in.
    pub(crate) fn needed(&self) -> Option<&Login> {
        self.login.as_ref().filter(|_| self.asked.load(Ordering::Relaxed))
    }

    /// Asks for `path` below the repository, for example `blobs/sha256:..`. Answers with a success, or 416 if
    /// a range was asked for.
    pub(crate) async fn ask(
        &self,
        transport: &Transport,
        method: Method,
        path: &str,
        from: Option<u64>,
    ) -> Result<Response, Failure> {
        let Answer { response, elsewhere } =
            self.exchange(transport, &Call { method, to: To::Path(path), from, piece: None }).await?;
        let status = response.status();
        if status.is_success() || (status == StatusCode::RANGE_NOT_SATISFIABLE && from.is_some()) {
            return Ok(response);
        }
        Err(self.refusal(&response, &self.what(path), elsewhere))
    }

    /// The answer of whatever status, once one was let in as far as one is.
    pub(crate) async fn exchange(&self, transport: &Transport, call: &Call<'_>) -> Result<Answer, Failure> {
        let mut authorized = 0;
        loop {
            let used = self.authorization.lock().await.clone();
            let answer = self.send(transport, call, used.as_deref()).await?;
            let unknown = answer.response.status() == StatusCode::UNAUTHORIZED && !answer.elsewhere;
            if !unknown || authorized == AUTHORIZATIONS_MAX {
                return Ok(answer);
            }
            self.authorize(transport, &answer.response, used.as_deref()).await?;
            authorized += 1;
        }
    }

    async fn send(
        &self,
        transport: &Transport,
        call: &Call<'_>,
        authorization: Option<&str>,
    ) -> Result<Answer, Failure> {
        let whole = |url, accept| Request {
            method: call.method.clone(),
            url,
            accept,
            from: call.from,
            piece: call.piece,
        };
        let path = match call.to {
            To::Path(path) => path,
            To::At(url) => {
                let home = self.is_home(url);
                let sent = transport.send(&whole(url.clone(), None), authorization.filter(|_| home)).await?;
                return Ok(Answer { elsewhere: sent.elsewhere || !home, ..sent });
            }
        };
        let accept = path.starts_with("manifests/").then_some(ACCEPT);
        let request = |plain: bool| Ok(whole(self.url(plain, path)?, accept));
        if let Some(plain) = self.plain.get() {
            return transport.send(&request(*plain)?, authorization).await;
        }
        // The first exchange finds out. With an authority named for it, it must be https.
        let rules = transport.access.rules(self.host());
        let certain = rules.is_some_and(|rules| rules.ca.is_some());
        let result = transport.send(&request(false)?, authorization).await;
        match result {
            Err(Failure::Again(error, wait)) if !certain && transport.access.may_be_plain(self.host()) => {
                let plain = transport.send(&request(true)?, authorization).await;
                if plain.is_ok() {
                    let _ = self.plain.set(true);
                    return plain;
                }
                Err(Failure::Again(error, wait))
            }
            Ok(answer) => {
                let _ = self.plain.set(false);
                Ok(answer)
            }
            failed => failed,
        }
    }

    fn url(&self, plain: bool, path: &str) -> Result<Url, Failure> {
        let scheme = if plain { "http" } else { "https" };
        // Docker's own registry answers under another name than its images bear.
        let host = if self.host() == "docker.io" { "registry-1.docker.io" } else { self.host() };
        let text = format!("{scheme}://{host}/v2/{}/{path}", self.repository.path());
        Url::parse(&text).map_err(|_| protocol(self.host(), "its name makes no address"))
    }

    /// Whether an address is the registry's own, so that it may see the authorization.
    fn is_home(&self, url: &Url) -> bool {
        let own = self.plain.get().and_then(|plain| self.url(*plain, "").ok());
        own.is_some_and(|own| own.origin() == url.origin())
    }

    /// The address that an answer names for what comes next; none if it names none.
    pub(crate) fn location(
        &self,
        transport: &Transport,
        response: &Response,
    ) -> Result<Option<Url>, Failure> {
        let Some(location) = response.headers().get(LOCATION) else { return Ok(None) };
        let base = response.url();
        let next = location.to_str().ok().and_then(|location| base.join(location).ok());
        let mut next = next.ok_or_else(|| protocol(self.host(), "its Location is no address"))?;
        // A registry behind a proxy that ends TLS may not know that it is spoken to by https.
        if base.scheme() == "https" && next.scheme() == "http" && authority(base) == authority(&next) {
            let _ = next.set_scheme("https");
        }
        transport.check_scheme(self.host(), &next)?;
        Ok(Some(next))
    }

    /// An image or blob as errors name it.
    fn what(&self, path: &str) -> String {
        let (_, name) = path.split_once('/').unwrap_or(("", path));
        let mark = if name.starts_with("sha256:") { '@' } else { ':' };
        format!("{}{mark}{name}", self.repository.path())
    }

    pub(super) fn refusal(&self, response: &Response, what: &str, elsewhere: bool) -> Failure {
        let (host, what) = (self.host().to_owned(), what.to_owned());
        let status = response.status().as_u16();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        match status {
            404 => Failure::Final(RegistryError::NotFound { host, what }),
            // Where blobs really lie, 401 and 403 mean that the address has expired.
            401 | 403 if !elsewhere => self.denied(status, &what),
            401 | 403 | 408 | 429 | 500..=599 => {
                let wait = header(RETRY_AFTER).and_then(|value| retry::retry_after(value, header(DATE)));
                let retry_after_s = wait.map(|wait: Duration| wait.as_secs());
                Failure::Again(RegistryError::Unwilling { host, what, status, retry_after_s }, wait)
            }
            _ => protocol(&host, &format!("it answered {status} when asked for {what}")),
        }
    }

    pub(super) fn denied(&self, status: u16, what: &str) -> Failure {
        let host = self.host();
        let advice = if self.login.is_some() {
            format!(
                "the login that is known for it does not do; `podman login {host}` makes another, --registry-auth names another auth file"
            )
        } else {
            format!("log in with `podman login {host}` or name an auth file with --registry-auth")
        };
        Failure::Final(RegistryError::Denied { host: host.to_owned(), what: what.to_owned(), status, advice })
    }
}

/// A whole body of at most `limit` bytes.
pub(crate) async fn body(
    mut response: Response,
    limit: u64,
    host: &str,
    what: &str,
) -> Result<Vec<u8>, Failure> {
    let too_long =
        || Failure::Final(RegistryError::TooLong { host: host.to_owned(), what: what.to_owned(), limit });
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| super::transport::network(host, error))? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(too_long());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use crate::spec;

    #[test]
    fn every_kind_of_manifest_that_is_understood_is_asked_for() {
        for kind in spec::INDEX_TYPES.iter().chain(&spec::MANIFEST_TYPES) {
            assert!(super::ACCEPT.contains(kind), "{kind}");
        }
    }
}
