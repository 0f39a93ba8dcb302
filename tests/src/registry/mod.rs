//! Registries on the loopback for tests: one of our own that misbehaves on demand and remembers what it was asked, and
//! Debian's `docker-registry` as a judge.
//!
//! The misbehaving one speaks HTTP/1.1 by hand, one thread a connection, because it has to do what HTTP libraries don't
//! let one do: cut a body at a byte, stall in the middle, state a wrong length.
//!
//! **Must not know:** the client under test.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use image_store::Digest;
use image_store::layout::{ImageSpec, LayerBlob, LayoutWriter, WrittenImage};

pub use self::debian::{Debian, DebianSettings};
pub use self::http::Seen;
use self::http::{Reply, Request};
pub use self::tls::Authority;
pub use self::uploads::Locations;
use self::uploads::Uploads;

mod debian;
mod http;
mod tls;
mod uploads;

/// How long a connection waits before it looks whether the server is to stop.
const POLL: Duration = Duration::from_millis(50);

/// What a registry does wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Answers this status with these headers.
    Status(u16, Vec<(&'static str, String)>),
    /// Closes the connection after so many bytes of the body.
    Cut(usize),
    /// Sends so many bytes of the body and then nothing, with the connection open.
    Stall(usize),
    /// Changes a byte in the middle.
    WrongBytes,
    /// Leaves out so many bytes, and states the length of what is left.
    Short(usize),
    /// Sends so many bytes too many, and states that length.
    Long(usize),
    /// Answers 200 with the whole to a request for a range.
    IgnoreRange,
    /// Answers 206 with a range that begins one byte late.
    LieAboutRange,
    /// Sends the client to this address; what follows the host is kept.
    Redirect(String),
    /// A body without end.
    Endless,
    /// Closes the connection without an answer.
    Gone,
    /// Takes what is sent and says nothing, with the connection open.
    Silent,
    /// Takes so many bytes of what is sent, keeps them, and closes the connection.
    CutUpload(usize),
}

/// Who is let in.
#[derive(Debug, Clone, Default)]
pub enum Entry {
    /// Everybody.
    #[default]
    Open,
    /// Who shows this user and password.
    Basic(&'static str, &'static str),
    /// Who shows a token of the token server at `/token`, which gives one to this user, or to everybody if none is
    /// named. A token is good for so many requests.
    Token(Option<(&'static str, &'static str)>, usize),
}

#[derive(Debug)]
struct Rule {
    method: Option<&'static str>,
    part: String,
    fault: Fault,
    left: usize,
}

#[derive(Debug, Default)]
struct Content {
    blobs: HashMap<String, Vec<u8>>,
    /// By tag and by digest: media type and bytes.
    manifests: HashMap<String, (String, Vec<u8>)>,
    rules: Vec<Rule>,
    entry: Entry,
    seen: Vec<Seen>,
    /// Tokens and how many requests each is still good for.
    tokens: HashMap<String, usize>,
    uploads: Uploads,
}

/// What the server's threads share.
#[derive(Debug)]
struct Shared {
    content: Mutex<Content>,
    stop: AtomicBool,
    host: String,
    scheme: &'static str,
}

/// A registry of our own; it ends with its handle.
#[derive(Debug)]
pub struct Misbehaving {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

impl Misbehaving {
    /// Starts one that speaks plain http.
    ///
    /// # Panics
    /// When the loopback has no port left.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// Starts one that speaks https with a certificate of this authority.
    ///
    /// # Panics
    /// As [`Misbehaving::start`].
    #[must_use]
    pub fn start_tls(authority: &Authority) -> Self {
        Self::start_with(Some(authority.server()))
    }

    fn start_with(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of the loopback");
        let address = listener.local_addr().expect("address");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (content, stop) = (Mutex::default(), AtomicBool::new(false));
        let shared = Arc::new(Shared { content, stop, host: address.to_string(), scheme });
        let threads = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || accept(&listener, &threads, tls.as_ref()));
        Self { shared, address, acceptor: Some(acceptor) }
    }

    /// `host:port`, as references have it.
    #[must_use]
    pub fn host(&self) -> String {
        self.shared.host.clone()
    }

    /// The address that a redirect or a token server bears.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", self.shared.scheme, self.shared.host)
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.shared.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds an image under `tag`, in every repository.
    ///
    /// # Panics
    /// When the temporary folder can't be written.
    pub fn add(&self, tag: &str, spec: &ImageSpec, layers: Vec<LayerBlob>) -> WrittenImage {
        let folder = tempfile::tempdir().expect("tempdir");
        let mut layout = LayoutWriter::create(folder.path()).expect("layout");
        let written = layout.add_image(tag, spec, layers).expect("image");
        let manifest = std::fs::read(layout.blob_path(&written.manifest)).expect("manifest");
        self.add_manifest(tag, "application/vnd.oci.image.manifest.v1+json", &manifest);
        for blob in std::fs::read_dir(folder.path().join("blobs/sha256")).expect("blobs") {
            self.add_blob(&std::fs::read(blob.expect("blob").path()).expect("blob"));
        }
        written
    }

    /// Holds a blob.
    pub fn add_blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.content().blobs.insert(digest.to_string(), bytes.to_vec());
        digest
    }

    /// Holds a manifest or index under a tag and its digest.
    pub fn add_manifest(&self, tag: &str, media_type: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let mut content = self.content();
        for name in [tag.to_owned(), digest.to_string()] {
            content.manifests.insert(name, (media_type.to_owned(), bytes.to_vec()));
        }
        digest
    }

    /// Lets in only who has the right.
    pub fn let_in(&self, entry: Entry) {
        self.content().entry = entry;
    }

    /// Does `fault` for the next `times` GET requests whose path holds `part`.
    pub fn fault(&self, part: impl Into<String>, fault: Fault, times: usize) {
        self.rule(Some("GET"), part.into(), fault, times);
    }

    /// As [`Misbehaving::fault`], for every method.
    pub fn fault_any(&self, part: impl Into<String>, fault: Fault, times: usize) {
        self.rule(None, part.into(), fault, times);
    }

    /// As [`Misbehaving::fault`], for another method.
    pub fn fault_of(&self, method: &'static str, part: impl Into<String>, fault: Fault, times: usize) {
        self.rule(Some(method), part.into(), fault, times);
    }

    fn rule(&self, method: Option<&'static str>, part: String, fault: Fault, left: usize) {
        self.content().rules.push(Rule { method, part, fault, left });
    }

    /// Says where uploads go on in this way.
    pub fn locate(&self, locations: Locations) {
        self.content().uploads.locations = locations;
    }

    /// Whether a manifest is there, by its tag or digest.
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        self.content().manifests.contains_key(name)
    }

    /// Uploads that were begun and neither completed nor called off.
    #[must_use]
    pub fn open_uploads(&self) -> usize {
        self.content().uploads.open()
    }

    /// Behaves again.
    pub fn behave(&self) {
        self.content().rules.clear();
    }

    /// What it was asked since the last time, in order.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.content().seen)
    }

    /// As [`Misbehaving::seen`], of blobs of this digest that were fetched.
    #[must_use]
    pub fn fetched(&self, digest: &Digest) -> Vec<Seen> {
        let name = digest.to_string();
        self.seen().into_iter().filter(|seen| seen.method == "GET" && seen.path.contains(&name)).collect()
    }
}

impl Drop for Misbehaving {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // The acceptor wakes up for it and sees that it is to stop.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, tls: Option<&Arc<rustls::ServerConfig>>) {
    let mut connections = Vec::new();
    for stream in listener.incoming() {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        let Ok(stream) = stream else { continue };
        let (shared, tls) = (Arc::clone(shared), tls.cloned());
        connections.push(std::thread::spawn(move || {
            let _ = stream.set_nodelay(true);
            if stream.set_read_timeout(Some(POLL)).is_err() {
                return;
            }
            match tls {
                None => serve(stream, &shared),
                Some(config) => {
                    if let Ok(connection) = rustls::ServerConnection::new(config) {
                        serve(rustls::StreamOwned::new(connection, stream), &shared);
                    }
                }
            }
        }));
    }
    for connection in connections {
        let _ = connection.join();
    }
}

/// Answers one request after the other.
fn serve(mut stream: impl Read + Write, shared: &Shared) {
    while let Some(mut request) = Request::read(&mut stream, &shared.stop) {
        let fault = {
            let mut content = shared.content.lock().unwrap_or_else(PoisonError::into_inner);
            content.seen.push(request.seen.clone());
            content.fault(&request)
        };
        let most = if let Some(Fault::CutUpload(bytes)) = fault { bytes } else { usize::MAX };
        if !request.read_body(&mut stream, most, &shared.stop) {
            return;
        }
        if matches!(fault, Some(Fault::Silent)) {
            while !shared.stop.load(Ordering::Relaxed) {
                std::thread::sleep(POLL);
            }
            return;
        }
        let reply = answer(&request, fault, shared);
        let Some(reply) = reply else { return };
        if !reply.write(&mut stream, &request, &shared.stop) {
            return;
        }
    }
}

/// The reply; `None` closes the connection.
fn answer(request: &Request, fault: Option<Fault>, shared: &Shared) -> Option<Reply> {
    let mut content = shared.content.lock().unwrap_or_else(PoisonError::into_inner);
    let reply = match &fault {
        Some(Fault::Gone) => return None,
        Some(Fault::Status(status, headers)) => {
            let mut reply = Reply::new(*status, b"{\"errors\":[]}".to_vec());
            reply.headers.extend(headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
            return Some(reply);
        }
        Some(Fault::Redirect(to)) => {
            let location = format!("{to}{}", request.seen.path);
            return Some(Reply::new(307, Vec::new()).with("Location", &location));
        }
        Some(Fault::CutUpload(_)) => {
            content.reply(request, shared);
            return None;
        }
        _ => content.reply(request, shared),
    };
    Some(reply.spoiled(fault.as_ref(), request.range))
}

impl Content {
    fn fault(&mut self, request: &Request) -> Option<Fault> {
        let rule = self.rules.iter_mut().find(|rule| {
            let method = rule.method.is_none_or(|method| method == request.seen.method);
            rule.left > 0 && method && request.seen.path.contains(&rule.part)
        })?;
        rule.left -= 1;
        Some(rule.fault.clone())
    }

    fn reply(&mut self, request: &Request, shared: &Shared) -> Reply {
        let path = request.seen.path.as_str();
        if path.starts_with("/token") {
            return self.token(request);
        }
        if let Some(refused) = self.refused(request, shared) {
            return refused;
        }
        if path.contains("/blobs/uploads/") {
            let url = format!("{}://{}", shared.scheme, shared.host);
            return self.uploads.reply(request, &url, &mut self.blobs);
        }
        if let Some((_, name)) = path.rsplit_once("/manifests/") {
            if request.seen.method == "PUT" {
                self.manifests.insert(name.to_owned(), (request.media_type.clone(), request.body.clone()));
                return Reply::new(201, Vec::new());
            }
            return match self.manifests.get(name) {
                Some((media_type, bytes)) => Reply::new(200, bytes.clone())
                    .with("Content-Type", media_type)
                    .with("Docker-Content-Digest", &Digest::of(bytes).to_string()),
                None => Reply::new(404, Vec::new()),
            };
        }
        let blob = path.rsplit_once("/blobs/").and_then(|(_, name)| self.blobs.get(name));
        blob.map_or_else(|| Reply::new(404, Vec::new()), |bytes| Reply::new(200, bytes.clone()))
    }

    fn refused(&mut self, request: &Request, shared: &Shared) -> Option<Reply> {
        let shown = request.seen.authorization.as_deref();
        match &self.entry {
            Entry::Open => None,
            Entry::Basic(user, password) => {
                let right = http::basic(user, password);
                (shown != Some(&right))
                    .then(|| Reply::new(401, Vec::new()).with("WWW-Authenticate", "Basic realm=\"test\""))
            }
            Entry::Token(..) => {
                let token = shown.and_then(|shown| shown.strip_prefix("Bearer "));
                if let Some(left) = token.and_then(|token| self.tokens.get_mut(token))
                    && *left > 0
                {
                    *left -= 1;
                    return None;
                }
                let challenge = format!(
                    "Bearer realm=\"{}://{}/token\",service=\"test\",scope=\"repository:x:pull\"",
                    shared.scheme, shared.host
                );
                Some(Reply::new(401, Vec::new()).with("WWW-Authenticate", &challenge))
            }
        }
    }

    fn token(&mut self, request: &Request) -> Reply {
        let Entry::Token(login, uses) = &self.entry else { return Reply::new(404, Vec::new()) };
        let right = login.map(|(user, password)| http::basic(user, password));
        if right.is_some() && request.seen.authorization != right {
            return Reply::new(401, Vec::new());
        }
        let token = format!("token-{}", self.tokens.len());
        let body = format!("{{\"token\":\"{token}\",\"expires_in\":60}}");
        self.tokens.insert(token, *uses);
        Reply::new(200, body.into_bytes())
    }
}

/// An auth file with one login.
///
/// # Panics
/// When it can't be written.
pub fn write_auth(path: &Path, host: &str, user: &str, password: &str) {
    let encoded = http::basic(user, password);
    let encoded = encoded.trim_start_matches("Basic ");
    std::fs::write(path, format!("{{\"auths\":{{\"{host}\":{{\"auth\":\"{encoded}\"}}}}}}"))
        .expect("auth file");
}
