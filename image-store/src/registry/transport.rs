//! One HTTP exchange with a host: whom to trust, https or not, redirects. Knows no tokens and tries nothing
//! twice.
//!
//! A redirect is followed here and not by the HTTP library, because the authorization must not follow to
//! another host, and because each host has its own certificates.

use std::collections::HashMap;
use std::error::Error as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION,
    RANGE,
};
use reqwest::{Certificate, Client, Method, Response, Url};

use super::access::{RegistryAccess, is_loopback};
use super::error::RegistryError;

/// The longest chain seen in the field is 2.
const REDIRECTS_MAX: usize = 5;
/// A bundle of a site's authorities.
const CA_BYTES_MAX: u64 = 1 << 20;

/// Why an exchange brought nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Another try may bring it; the server may have said when.
    Again(RegistryError, Option<Duration>),
    /// It won't come from here.
    Final(RegistryError),
}

impl Failure {
    pub(crate) fn into_error(self) -> RegistryError {
        match self {
            Self::Again(error, _) | Self::Final(error) => error,
        }
    }
}

/// The connections of one session, by host.
#[derive(Debug)]
pub(crate) struct Transport {
    pub(crate) access: RegistryAccess,
    /// Also by whether they are for pieces.
    clients: Mutex<HashMap<(String, bool), Client>>,
}

/// A request that can be sent again.
#[derive(Debug, Clone)]
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) accept: Option<&'static str>,
    /// First byte that is wanted, if not the first of all.
    pub(crate) from: Option<u64>,
    pub(crate) piece: Option<&'a Piece>,
}

/// What a request brings.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) media_type: String,
    /// Its place in a blob: `FIRST-LAST`.
    pub(crate) range: Option<String>,
    pub(crate) bytes: Vec<u8>,
    /// How long the exchange may take in all. [`super::Patience::stall`] counts from the first byte that is
    /// sent to the first that comes, which a long piece on a slow line exceeds.
    pub(crate) time: Duration,
}

/// An answer, and whether another host than the one asked gave it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response,
    pub(crate) elsewhere: bool,
}

impl Transport {
    pub(crate) fn new(access: RegistryAccess) -> Self {
        // Whoever installed another provider first wins, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { access, clients: Mutex::default() }
    }

    /// Sends a request and follows redirects. `authorization` goes to the host of `request.url` alone.
    pub(crate) async fn send(
        &self,
        request: &Request<'_>,
        authorization: Option<&str>,
    ) -> Result<Answer, Failure> {
        let origin = &request.url;
        let mut url = origin.clone();
        let mut at_home = true;
        for _ in 0..=REDIRECTS_MAX {
            let host = authority(&url);
            let mut headers = HeaderMap::new();
            if let Some(accept) = request.accept {
                headers.insert(ACCEPT, HeaderValue::from_static(accept));
            }
            if let Some(first) = request.from {
                headers.insert(RANGE, text_header(&format!("bytes={first}-"), &host)?);
            }
            if let Some(value) = authorization.filter(|_| at_home) {
                let mut value = text_header(value, &host)?;
                value.set_sensitive(true);
                headers.insert(AUTHORIZATION, value);
            }
            let client = self.client(&host, request.piece.is_some()).map_err(Failure::Final)?;
            let mut sending = client.request(request.method.clone(), url.clone()).headers(headers);
            if let Some(piece) = request.piece {
                sending =
                    sending.headers(piece.headers(&host)?).timeout(piece.time).body(piece.bytes.clone());
            }
            let response = sending.send().await.map_err(|error| network(&host, error))?;
            let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let (true, Some(location)) = (response.status().is_redirection(), location) else {
                return Ok(Answer { response, elsewhere: !at_home });
            };
            let next = url.join(location).map_err(|_| protocol(&host, "it redirects to no address"))?;
            self.check_scheme(&host, &next)?;
            at_home = at_home && next.origin() == origin.origin();
            url = next;
        }
        Err(protocol(&authority(origin), "it redirects in circles"))
    }

    /// Sends a form, as token servers want identity tokens.
    pub(crate) async fn post(&self, url: Url, form: String) -> Result<Response, Failure> {
        let host = authority(&url);
        let client = self.client(&host, false).map_err(Failure::Final)?;
        let request = client.post(url).header("content-type", "application/x-www-form-urlencoded").body(form);
        request.send().await.map_err(|error| network(&host, error))
    }

    pub(crate) fn check_scheme(&self, host: &str, next: &Url) -> Result<(), Failure> {
        match next.scheme() {
            "https" => Ok(()),
            "http" if self.access.may_be_plain(&authority(next)) => Ok(()),
            _ => Err(protocol(host, "it redirects to an address that is not https")),
        }
    }

    fn client(&self, host: &str, for_pieces: bool) -> Result<Client, RegistryError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (host.to_owned(), for_pieces);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = self.build(host, for_pieces)?;
        clients.insert(key, client.clone());
        Ok(client)
    }

    fn build(&self, host: &str, for_pieces: bool) -> Result<Client, RegistryError> {
        let mut roots = Vec::new();
        if let Some(path) = self.access.rules(host).and_then(|rules| rules.ca.as_deref()) {
            roots.extend(certificates(host, path)?);
        }
        for folder in &self.access.certificate_folders {
            let path = folder.join(host).join("ca.crt");
            if path.is_file() {
                roots.extend(certificates(host, &path)?);
            }
        }
        let builder = || {
            let patience = &self.access.patience;
            let builder = Client::builder()
                .user_agent(concat!("latebind/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(patience.connect);
            let builder = if for_pieces { builder } else { builder.read_timeout(patience.stall) };
            if is_loopback(host) { builder.no_proxy() } else { builder }
        };
        // A machine without any certificates can still speak to its own registry.
        let built = builder().tls_certs_merge(roots.clone()).build();
        let built = built.or_else(|_| builder().tls_certs_only(roots).build());
        let reason = |error| RegistryError::Protocol { host: host.to_owned(), reason: one_line(error) };
        built.map_err(reason)
    }
}

impl Piece {
    fn headers(&self, host: &str) -> Result<HeaderMap, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, text_header(&self.media_type, host)?);
        if let Some(range) = &self.range {
            headers.insert(CONTENT_RANGE, text_header(range, host)?);
        }
        // Some servers want it said that nothing comes (411 otherwise).
        headers.insert(CONTENT_LENGTH, HeaderValue::from(self.bytes.len()));
        Ok(headers)
    }
}

/// Host and, if it isn't the scheme's own, port; as hosts are written in references.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

pub(crate) fn protocol(host: &str, reason: &str) -> Failure {
    Failure::Final(RegistryError::Protocol { host: host.to_owned(), reason: reason.to_owned() })
}

fn text_header(text: &str, host: &str) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(text)
        .map_err(|_| protocol(host, "what is to be sent there holds control characters"))
}

fn certificates(host: &str, path: &Path) -> Result<Vec<Certificate>, RegistryError> {
    use std::io::Read;
    let bad = |reason| RegistryError::Ca { host: host.to_owned(), path: path.to_path_buf(), reason };
    let mut pem = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(CA_BYTES_MAX).read_to_end(&mut pem));
    read.map_err(|error| bad(error.to_string()))?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(bad("it holds no certificate in PEM form".to_owned())),
    }
}

/// A failure of the connection, judged.
pub(crate) fn network(host: &str, error: reqwest::Error) -> Failure {
    let host = host.to_owned();
    if let Some(reason) = certificate_problem(&error) {
        return Failure::Final(RegistryError::Certificate { host, reason });
    }
    let reason = if error.is_timeout() {
        let phase = if error.is_connect() { "no connection" } else { "no byte came" };
        format!("{phase} within the time limit")
    } else {
        one_line(error)
    };
    Failure::Again(RegistryError::Unreachable { host, reason }, None)
}

fn certificate_problem(error: &reqwest::Error) -> Option<String> {
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(tls @ rustls::Error::InvalidCertificate(_)) = tls_error(cause) {
            return Some(tls.to_string());
        }
        next = cause.source();
    }
    None
}

/// A TLS error, also inside of I/O errors, which hide what they hold from `source`.
fn tls_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = cause;
    while let Some(inner) = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        cause = inner;
    }
    cause.downcast_ref()
}

/// The last causes say what happened. The address is left out: it may hold a signature.
fn one_line(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut parts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        next = cause.source();
    }
    parts.join(": ").replace('\n', " ")
}
