//! One repository at one place (a mirror or its origin), and how one is let in there: anonymously, with a
//! password, or with a token that a token server gives.
//!
//! # Flow
//! Nothing is sent unasked: the first request goes without authorization; what the answer's challenge asks for
//! is fetched, kept, and sent along until it is refused. Then it has expired, and is fetched once more.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::header::{DATE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::error::RegistryError;
use super::login::Login;
use super::retry;
use super::transport::{Answer, Failure, Request, Transport, authority, protocol};
use crate::repository::Repository;

/// A token is a signed JSON of some thousand bytes.
const TOKEN_BYTES_MAX: u64 = 1 << 20;
/// A token may have been used up by others between getting it and using it; it won't happen three times.
const AUTHORIZATIONS_MAX: u32 = 3;
/// What manifests are asked for as.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// A repository at a place.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) repository: Repository,
    login: Option<Login>,
    /// Whether the login has ever been asked for.
    asked: AtomicBool,
    /// Value of the Authorization header that was let in last.
    authorization: Mutex<Option<String>>,
    /// Whether it speaks plain http.
    plain: OnceLock<bool>,
    /// It lies about ranges, or knows none.
    pub(crate) no_ranges: AtomicBool,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Endpoint {
    pub(crate) fn new(repository: Repository, login: Option<Login>) -> Self {
        Self {
            repository,
            login,
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
        let accept = path.starts_with("manifests/").then_some(ACCEPT);
        let mut authorized = 0;
        loop {
            let used = self.authorization.lock().await.clone();
            let answer = self.send(transport, &method, path, accept, from, used.as_deref()).await?;
            let (status, elsewhere) = (answer.response.status(), answer.elsewhere);
            if status == StatusCode::UNAUTHORIZED && !elsewhere && authorized < AUTHORIZATIONS_MAX {
                self.authorize(transport, &answer.response, used.as_deref()).await?;
                authorized += 1;
                continue;
            }
            if status.is_success() || (status == StatusCode::RANGE_NOT_SATISFIABLE && from.is_some()) {
                return Ok(answer.response);
            }
            return Err(self.refusal(&answer.response, &self.what(path), elsewhere));
        }
    }

    async fn send(
        &self,
        transport: &Transport,
        method: &Method,
        path: &str,
        accept: Option<&'static str>,
        from: Option<u64>,
        authorization: Option<&str>,
    ) -> Result<Answer, Failure> {
        let request = |plain: bool| {
            let url = self.url(plain, path)?;
            Ok(Request { method: method.clone(), url, accept, from })
        };
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

    /// Gets what the challenge of `refused` asks for. Of several who were refused one goes, the others take
    /// what it brought.
    async fn authorize(
        &self,
        transport: &Transport,
        refused: &Response,
        used: Option<&str>,
    ) -> Result<(), Failure> {
        let mut authorization = self.authorization.lock().await;
        if authorization.as_deref() != used {
            return Ok(());
        }
        let headers = refused.headers().get_all(WWW_AUTHENTICATE).iter();
        let texts: Vec<&str> = headers.filter_map(|value| value.to_str().ok()).collect();
        let challenges = texts.iter().filter_map(|text| http_auth::parse_challenges(text).ok()).flatten();
        let challenges: Vec<_> = challenges.collect();
        let find = |scheme: &str| challenges.iter().find(|c| c.scheme.eq_ignore_ascii_case(scheme));
        let value = if let Some(challenge) = find("bearer") {
            let of = |name: &str| {
                let param = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                param.map(|(_, value)| value.to_unescaped())
            };
            self.bearer(transport, of("realm"), of("service"), of("scope")).await?
        } else if find("basic").is_some() {
            let plain = refused.url().scheme() != "https";
            if plain && !transport.access.may_be_plain(self.host()) {
                return Err(Failure::Final(RegistryError::PlainPassword { host: self.host().to_owned() }));
            }
            let value = match &self.login {
                Some(Login::Password { user, secret }) => http_auth::basic::encode_credentials(user, secret),
                _ => return Err(self.denied(401, &self.repository.to_string())),
            };
            // A password that was refused is not sent again: some servers count.
            if used == Some(value.as_str()) {
                return Err(self.denied(401, &self.repository.to_string()));
            }
            value
        } else {
            return Err(self.denied(401, &self.repository.to_string()));
        };
        self.asked.store(self.login.is_some(), Ordering::Relaxed);
        *authorization = Some(value);
        Ok(())
    }

    async fn bearer(
        &self,
        transport: &Transport,
        realm: Option<String>,
        service: Option<String>,
        scope: Option<String>,
    ) -> Result<String, Failure> {
        if let Some(Login::Bearer(token)) = &self.login {
            return Ok(format!("Bearer {token}"));
        }
        let realm = realm.and_then(|realm| Url::parse(&realm).ok());
        let mut url = realm.ok_or_else(|| protocol(self.host(), "its challenge names no token server"))?;
        let host = authority(&url);
        if url.scheme() != "https" && !(url.scheme() == "http" && transport.access.may_be_plain(&host)) {
            return Err(Failure::Final(RegistryError::PlainPassword { host }));
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository.path()));
        let mut pairs = vec![("scope", scope.as_str())];
        pairs.extend(service.as_deref().map(|service| ("service", service)));
        let response = if let Some(Login::Identity(token)) = &self.login {
            pairs.extend([("grant_type", "refresh_token"), ("client_id", "latebind")]);
            pairs.push(("refresh_token", token));
            // The query of an address without anything else is a form.
            let form = Url::parse_with_params("form:", &pairs).ok();
            transport.post(url, form.as_ref().and_then(Url::query).unwrap_or_default().to_owned()).await?
        } else {
            url.query_pairs_mut().extend_pairs(pairs);
            let authorization = match &self.login {
                Some(Login::Password { user, secret }) => {
                    url.query_pairs_mut().append_pair("account", user);
                    Some(http_auth::basic::encode_credentials(user, secret))
                }
                _ => None,
            };
            let request = Request { method: Method::GET, url, accept: None, from: None };
            transport.send(&request, authorization.as_deref()).await?.response
        };
        if !response.status().is_success() {
            return Err(self.refusal(&response, &self.repository.to_string(), false));
        }
        let bytes = body(response, TOKEN_BYTES_MAX, &host, "a token").await?;
        let token: Token =
            serde_json::from_slice(&bytes).map_err(|_| protocol(&host, "its token server gives no token"))?;
        let token = token.token.filter(|token| !token.is_empty()).or(token.access_token);
        token
            .map(|token| format!("Bearer {token}"))
            .ok_or_else(|| protocol(&host, "its token server gives no token"))
    }

    /// An image or blob as errors name it.
    fn what(&self, path: &str) -> String {
        let (_, name) = path.split_once('/').unwrap_or(("", path));
        let mark = if name.starts_with("sha256:") { '@' } else { ':' };
        format!("{}{mark}{name}", self.repository.path())
    }

    fn refusal(&self, response: &Response, what: &str, elsewhere: bool) -> Failure {
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

    fn denied(&self, status: u16, what: &str) -> Failure {
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
