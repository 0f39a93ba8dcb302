//! The HTTP client below `object_store`: deadlines, TLS, proxy, and conditions that its interface lacks.
//! Knows no objects.
//!
//! It is one of our own because `object_store`'s brings HTTP/2 to reqwest, and so, in one build, to the registries'
//! client too.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use object_store::HeaderValue;
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use reqwest::{Certificate, Client};

use crate::settings::{Settings, SettingsError};

/// What a server may say about a refusal.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// A thousand keys of 1 KiB, escaped, with what else is said of each.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// How one bucket is spoken to. Cheap to copy.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    clients: Arc<Clients>,
    create_only: bool,
}

#[derive(Debug)]
struct Clients {
    /// reqwest counts a body that goes out as silence, so only what comes is watched for stalls.
    up: Client,
    down: Client,
}

impl Transport {
    pub(crate) fn new(settings: &Settings) -> Result<Self, SettingsError> {
        // Whoever came first has chosen the same one: the workspace has no other.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let failed = |reason: String| SettingsError::Client(crate::error::one_line(&reason));
        let roots = match &settings.ca {
            None => Vec::new(),
            Some(pem) => match Certificate::from_pem_bundle(pem) {
                Ok(found) if !found.is_empty() => found,
                _ => return Err(failed("the CA file holds no certificate in PEM form".to_owned())),
            },
        };
        let proxy = settings.proxy.as_deref().map(reqwest::Proxy::all).transpose();
        let proxy = proxy.map_err(|_| failed("the proxy is no http://host:port".to_owned()))?;
        let limits = &settings.limits;
        let builder = || {
            let builder = Client::builder()
                .user_agent(concat!("latebind/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(limits.connect)
                .timeout(limits.request)
                .no_proxy();
            match &proxy {
                Some(proxy) if !settings.on_loopback() => builder.proxy(proxy.clone()),
                _ => builder,
            }
        };
        let build = |stall: bool| {
            let builder = || if stall { builder().read_timeout(limits.stall) } else { builder() };
            // A machine without any certificates can still speak to its own server.
            let built = builder().tls_certs_merge(roots.clone()).build();
            let built = built.or_else(|_| builder().tls_certs_only(roots.clone()).build());
            built.map_err(|error| failed(error.to_string()))
        };
        let clients = Arc::new(Clients { up: build(false)?, down: build(true)? });
        Ok(Self { clients, create_only: false })
    }

    /// The same, but what it puts is only taken under names that are free.
    pub(crate) fn create_only(&self) -> Self {
        Self { clients: Arc::clone(&self.clients), create_only: true }
    }
}

impl HttpConnector for Transport {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Wire(self.clone())))
    }
}

/// One connected client; `HttpService` wants a type of our own.
#[derive(Debug)]
struct Wire(Transport);

impl HttpService for Wire {
    // What `async_trait` makes of `async fn call`.
    fn call<'s, 'f>(
        &'s self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(self.exchange(request))
    }
}

impl Wire {
    async fn exchange(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let method = parts.method.as_str();
        let query = parts.uri.query().unwrap_or_default();
        let names_the_object = match method {
            "PUT" => query.is_empty(),
            "POST" => query.contains("uploadId="),
            _ => false,
        };
        let asks = !query.is_empty();
        let sends = matches!(method, "PUT" | "POST");
        let url =
            parts.uri.to_string().parse().map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        if self.0.create_only && names_the_object {
            // S3 lets headers outside of the signature through, unless they are its own.
            request.headers_mut().insert("if-none-match", HeaderValue::from_static("*"));
        }
        *request.body_mut() = Some(reqwest::Body::wrap(body));
        let client = if sends { &self.0.clients.up } else { &self.0.clients.down };
        let answer = client.execute(request).await.map_err(|error| failed(error, HttpErrorKind::Request))?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = reqwest::Body::from(answer).map_err(|error| failed(error, HttpErrorKind::Interrupted));
        // `object_store` reads all but objects into memory.
        let body = match (status.is_success(), asks) {
            (false, _) => HttpResponseBody::new(bounded(body, REFUSAL_BYTES_MAX)),
            (true, true) => HttpResponseBody::new(bounded(body, ANSWER_BYTES_MAX)),
            (true, false) => HttpResponseBody::new(body),
        };
        let mut response = HttpResponse::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

/// A body that is an error past so many bytes.
fn bounded(
    body: impl http_body_util::BodyExt<Data = Bytes, Error = HttpError> + Send + 'static,
    bytes_max: usize,
) -> impl http_body_util::BodyExt<Data = Bytes, Error = HttpError> + Send + 'static {
    Limited::new(body, bytes_max).map_err(|error| match error.downcast() {
        Ok(error) => *error,
        Err(error) => HttpError::new_boxed(HttpErrorKind::Decode, error),
    })
}

/// All that we ask may be asked again, so what is no matter of time or contents counts as never sent.
fn failed(error: reqwest::Error, otherwise: HttpErrorKind) -> HttpError {
    let kind = if error.is_timeout() {
        HttpErrorKind::Timeout
    } else if error.is_connect() {
        HttpErrorKind::Connect
    } else {
        otherwise
    };
    // The address is said elsewhere.
    HttpError::new(kind, error.without_url())
}
