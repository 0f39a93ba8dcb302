//! A private certificate authority, made for one test.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// See the module's doc. Its files go with it.
#[derive(Debug)]
pub struct Authority {
    folder: tempfile::TempDir,
    server: Arc<rustls::ServerConfig>,
}

impl Authority {
    /// Makes an authority, and a certificate of it for 127.0.0.1 and localhost.
    ///
    /// # Panics
    /// When there is no randomness or no room.
    #[must_use]
    pub fn new() -> Self {
        Self::of(&["127.0.0.1", "localhost"])
    }

    /// Makes an authority, and a certificate of it for these names and addresses.
    ///
    /// # Panics
    /// When there is no randomness or no room.
    #[must_use]
    pub fn of(names: &[&str]) -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).expect("authority");
        let issuer = Issuer::new(params, key);
        let own_key = KeyPair::generate().expect("key");
        let own = CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())
            .expect("parameters")
            .signed_by(&own_key, &issuer)
            .expect("certificate");
        let folder = tempfile::tempdir().expect("tempdir");
        for (name, text) in
            [("ca.pem", authority.pem()), ("server.pem", own.pem()), ("server.key", own_key.serialize_pem())]
        {
            std::fs::write(folder.path().join(name), text).expect("write");
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own_key.serialize_der()));
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], private)
            .expect("certificate");
        Self { folder, server: Arc::new(server) }
    }

    /// `ca.pem`, `server.pem` or `server.key`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn server(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.server)
    }

    /// What a client needs to trust it.
    pub(super) fn client(&self) -> Arc<rustls::ClientConfig> {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject;
        let mut roots = rustls::RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(self.file("ca.pem")).expect("authority");
        roots.add(authority).expect("authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().expect("versions");
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
