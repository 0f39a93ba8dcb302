//! A real S3 server for one test, on the loopback, over a folder of its own.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use objects::{Credentials, Limits, ObjectTier, ObjectUrl, Put, Settings};

pub(crate) const ACCESS: &str = "latebind-test";
pub(crate) const SECRET: &str = "latebind-test-secret";

/// The running server. It ends when this is dropped.
pub(crate) struct Server {
    child: Child,
    folder: tempfile::TempDir,
    pub(crate) address: SocketAddr,
}

/// A folder that is not in /tmp, where that may be memory without extended attributes; who did not build this may not write
/// elsewhere.
pub(crate) fn disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).or_else(|_| tempfile::tempdir()).expect("folder")
}

/// What `tests/s3/build` built, or LATEBIND_TEST_S3 where that can't be looked up.
#[expect(clippy::disallowed_methods, reason = "the script only looks for a file")]
fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("LATEBIND_TEST_S3") {
        return Some(PathBuf::from(named)).filter(|path| path.exists());
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/s3/build");
    let built = Command::new(script).arg("--there").output().ok().filter(|built| built.status.success())?;
    Some(PathBuf::from(String::from_utf8(built.stdout).expect("path").trim()))
}

impl Server {
    /// Starts one with the bucket `data`, or says why it can't be had.
    pub(crate) fn start(test: &str) -> Option<Self> {
        Self::start_on(test, "127.0.0.1")
    }

    /// The same on another address of this machine.
    pub(crate) fn start_on(test: &str, host: &str) -> Option<Self> {
        Self::start_with(test, host, &[])
    }

    /// The same over TLS, and the certificate of who signed for it.
    pub(crate) fn start_tls(test: &str) -> Option<(Self, Vec<u8>)> {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let folder = tempfile::tempdir().expect("folder");
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).expect("authority").pem();
        let issuer = Issuer::new(params, key);
        let own_key = KeyPair::generate().expect("key");
        let own = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
        let own = own.signed_by(&own_key, &issuer).expect("certificate");
        let [cert, key] = ["cert", "key"].map(|name| folder.path().join(name));
        std::fs::write(&cert, own.pem()).expect("write");
        std::fs::write(&key, own_key.serialize_pem()).expect("write");
        let [cert, key] = [cert, key].map(|path| path.to_str().expect("path").to_owned());
        Some((Self::start_with(test, "127.0.0.1", &["--cert", &cert, "--key", &key])?, ca.into_bytes()))
    }

    #[expect(clippy::disallowed_methods, reason = "the test owns the child and waits for it")]
    fn start_with(test: &str, host: &str, more: &[&str]) -> Option<Self> {
        let Some(program) = program() else {
            skipped(test, "the S3 server: run tests/s3/build, which needs Go");
            return None;
        };
        let folder = disk();
        std::fs::create_dir(folder.path().join("data")).expect("bucket");
        // Another process may take the port in between: then the server ends and another port is tried.
        for _ in 0..5 {
            let address = TcpListener::bind((host, 0)).and_then(|l| l.local_addr()).expect("port");
            let mut child = Command::new(&program)
                .args(["--quiet", "--keep-alive", "--port", &address.to_string()])
                .args(more)
                .arg("posix")
                .arg(folder.path())
                .env_clear()
                .env("ROOT_ACCESS_KEY", ACCESS)
                .env("ROOT_SECRET_KEY", SECRET)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("S3 server");
            for _ in 0..600 {
                if TcpStream::connect(address).is_ok() {
                    return Some(Self { child, folder, address });
                }
                if child.try_wait().expect("wait").is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("the S3 server does not start");
    }

    pub(crate) fn tier(&self) -> ObjectTier {
        tier(self.address, quick())
    }

    /// Files below the bucket, with what the server keeps of uploads; what is hidden otherwise.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.folder.path().join("data")];
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() { open.push(path) } else { found.push(path) }
            }
        }
        // The server's own locks stay.
        found.retain(|path| path.metadata().is_ok_and(|metadata| metadata.len() > 0));
        found
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Limits with which a fault does not take long.
pub(crate) fn quick() -> Limits {
    Limits {
        stall: Duration::from_secs(20),
        request: Duration::from_secs(60),
        operation: Duration::from_secs(300),
        retries: 3,
        first_wait: Duration::from_millis(5),
        longest_wait: Duration::from_millis(50),
        part_bytes: 5 << 20,
        ..Limits::default()
    }
}

pub(crate) fn settings(address: SocketAddr, limits: Limits) -> Settings {
    Settings {
        endpoint: Some(format!("http://{address}")),
        // Some tests have a network of their own.
        allow_http: true,
        credentials: Some(Credentials {
            access_key_id: ACCESS.to_owned(),
            secret_access_key: SECRET.to_owned(),
            session_token: None,
        }),
        limits,
        ..Settings::default()
    }
}

pub(crate) fn tier(address: SocketAddr, limits: Limits) -> ObjectTier {
    ObjectTier::new(settings(address, limits)).expect("tier")
}

pub(crate) fn url(text: &str) -> ObjectUrl {
    text.parse().expect("url")
}

pub(crate) fn put_of(content: &[u8]) -> Put {
    Put { bytes: content.len() as u64, digest: None, overwrite: false }
}

/// Bytes that look random, another sequence for each seed.
pub(crate) fn content(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut content = vec![0; bytes];
    random.fill(&mut content);
    content
}

/// Says on stderr that a test could not run, in a form that `tests/run` counts.
pub(crate) fn skipped(test: &str, missing: &str) {
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED: {test}: {missing}");
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("folder").flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Says something to the parent of a test's process.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "\n{text}");
}
