//! Debian's `docker-registry` on the loopback, with a configuration of our own (never the packaged one), and a client that
//! pushes to it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use image_store::Digest;
use image_store::layout::{ImageSpec, LayerBlob, LayoutWriter, WrittenImage};

use super::http::basic;
use super::tls::Authority;
use crate::run::{SOON, within};

/// `user:secret` as `htpasswd -nbB` writes it; bcrypt takes a library otherwise.
const HTPASSWD: &str = "user:$2y$05$IA1agAU1iEdQa6oV1fRB6eifmLnbphJozPfIrfEJmhTtRIJonqePW\n";

/// How it runs.
#[derive(Debug, Default, Clone, Copy)]
pub struct DebianSettings<'a> {
    /// Only `user` with the password `secret` is let in.
    pub login: bool,
    /// It speaks https with a certificate of this authority.
    pub authority: Option<&'a Authority>,
}

/// See the module's doc. It ends with its handle.
#[derive(Debug)]
pub struct Debian {
    child: Child,
    port: u16,
    login: bool,
    tls: Option<Arc<rustls::ClientConfig>>,
    _folder: tempfile::TempDir,
}

impl Debian {
    /// Starts one; `None` where it is not installed.
    ///
    /// # Panics
    /// When it is installed and does not start.
    #[must_use]
    pub fn start(settings: DebianSettings<'_>) -> Option<Self> {
        let program = ["/usr/bin/docker-registry", "/usr/local/bin/docker-registry"];
        let program = program.iter().find(|path| std::path::Path::new(path).is_file())?;
        let folder = tempfile::tempdir().expect("tempdir");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let mut text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            folder.path().join("data").display()
        );
        if let Some(authority) = settings.authority {
            let (certificate, key) = (authority.file("server.pem"), authority.file("server.key"));
            text.push_str(&format!(
                "  tls: {{certificate: {}, key: {}}}\n",
                certificate.display(),
                key.display()
            ));
        }
        if settings.login {
            let path = folder.path().join("htpasswd");
            std::fs::write(&path, HTPASSWD).expect("htpasswd");
            text.push_str(&format!("auth:\n  htpasswd: {{realm: test, path: {}}}\n", path.display()));
        }
        let config = folder.path().join("config.yml");
        std::fs::write(&config, text).expect("config");
        #[expect(clippy::disallowed_methods, reason = "killed and waited for when dropped")]
        let child = Command::new(program)
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry");
        let tls = settings.authority.map(Authority::client);
        let registry = Self { child, port, login: settings.login, tls, _folder: folder };
        assert!(
            within(SOON, || TcpStream::connect(("127.0.0.1", port)).is_ok()),
            "docker-registry did not start"
        );
        Some(registry)
    }

    /// `host:port`, as references have it.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Pushes an image to `repository:tag`.
    ///
    /// # Panics
    /// When it is not taken.
    pub fn push(
        &self,
        repository: &str,
        tag: &str,
        spec: &ImageSpec,
        layers: Vec<LayerBlob>,
    ) -> WrittenImage {
        let folder = tempfile::tempdir().expect("tempdir");
        let mut layout = LayoutWriter::create(folder.path()).expect("layout");
        let mut blobs: Vec<Digest> = layers.iter().map(LayerBlob::digest).collect();
        let written = layout.add_image(tag, spec, layers).expect("image");
        blobs.push(written.config);
        for digest in &blobs {
            let bytes = std::fs::read(layout.blob_path(digest)).expect("blob");
            let (status, location) =
                self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), None, b"");
            assert_eq!(status, 202, "upload of a blob");
            let location = location.expect("where to");
            let path = location.find("/v2/").map_or(location.as_str(), |at| &location[at..]);
            let mark = if path.contains('?') { '&' } else { '?' };
            let (status, _) = self.send("PUT", &format!("{path}{mark}digest={digest}"), None, &bytes);
            assert_eq!(status, 201, "blob");
        }
        let manifest = std::fs::read(layout.blob_path(&written.manifest)).expect("manifest");
        let kind = Some("application/vnd.oci.image.manifest.v1+json");
        let (status, _) = self.send("PUT", &format!("/v2/{repository}/manifests/{tag}"), kind, &manifest);
        assert_eq!(status, 201, "manifest");
        written
    }

    /// One request on a connection of its own: the status and the Location.
    fn send(&self, method: &str, path: &str, kind: Option<&str>, body: &[u8]) -> (u16, Option<String>) {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\nContent-Type: {}\r\n",
            self.host(),
            body.len(),
            kind.unwrap_or("application/octet-stream")
        );
        if self.login {
            head.push_str(&format!("Authorization: {}\r\n", basic("user", "secret")));
        }
        head.push_str("\r\n");
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connection");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
        let reply = match &self.tls {
            None => exchange(stream, head.as_bytes(), body),
            Some(config) => {
                let name = rustls::pki_types::ServerName::try_from("127.0.0.1").expect("name");
                let connection = rustls::ClientConnection::new(Arc::clone(config), name).expect("connection");
                exchange(rustls::StreamOwned::new(connection, stream), head.as_bytes(), body)
            }
        };
        let status = reply.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("status");
        let location = reply.lines().find_map(|line| line.strip_prefix("Location: ").map(str::to_owned));
        (status, location)
    }
}

fn exchange(mut stream: impl Read + Write, head: &[u8], body: &[u8]) -> String {
    stream.write_all(head).and_then(|()| stream.write_all(body)).and_then(|()| stream.flush()).expect("send");
    let mut reply = Vec::new();
    // A peer that ends TLS without a farewell has said what we need.
    let _ = stream.read_to_end(&mut reply);
    String::from_utf8_lossy(&reply).into_owned()
}

impl Drop for Debian {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
