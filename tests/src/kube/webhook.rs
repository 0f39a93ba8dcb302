//! A mutating webhook as many clusters have one: it makes images come from a mirror, under another name.
//!
//! **Must not know:** pilots.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Namespace;
use crate::registry::Authority;

/// The webhook. It is asked about the pods of one namespace, for as long as this lives.
#[derive(Debug)]
pub struct Webhook<'n> {
    namespace: &'n Namespace,
    name: String,
    _authority: Authority,
}

impl<'n> Webhook<'n> {
    /// Makes `REGISTRY/NAME` be `REGISTRY/mirror/NAME` in each pod that is made or changed.
    ///
    /// # Panics
    /// When there is no port, or the cluster does not take it.
    #[must_use]
    pub fn mirroring(namespace: &'n Namespace) -> Self {
        let registry = namespace.node().registry();
        let (address, _) = registry.split_once(':').expect("a port");
        let authority = Authority::of(&[address]);
        let listener = TcpListener::bind((address, 0)).expect("a port of the bridge");
        let url = format!("https://{}/", listener.local_addr().expect("address"));
        let server = authority.server();
        // It goes with the test's process.
        let _serving = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (server, registry) = (Arc::clone(&server), registry.clone());
                let _answering = std::thread::spawn(move || {
                    let connection = rustls::ServerConnection::new(server).expect("tls");
                    answer_all(rustls::StreamOwned::new(connection, stream), &registry);
                });
            }
        });
        let name = format!("mirror-{}", namespace.name());
        let certificate = std::fs::read(authority.file("ca.pem")).expect("certificate");
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": [{
                "name": "mirror.latebind.dev",
                "clientConfig": {"url": url, "caBundle": base64(&certificate)},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["pods"]}],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name()}},
                "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail", "timeoutSeconds": 10,
            }],
        });
        let _made = namespace.node().kubectl(&["apply", "-f", "-"], &configuration.to_string()).good();
        Self { namespace, name, _authority: authority }
    }
}

impl Drop for Webhook<'_> {
    fn drop(&mut self) {
        let gone = ["delete", "mutatingwebhookconfiguration", &self.name, "--wait=false"];
        let _gone = self.namespace.node().kubectl(&gone, "");
    }
}

/// Answers one review after the other until the API server has no more.
fn answer_all(mut stream: impl Read + Write, registry: &str) {
    while let Some(review) = read(&mut stream) {
        let patch =
            base64(Value::Array(changes(&review["request"]["object"], registry)).to_string().as_bytes());
        let response = json!({
            "uid": review["request"]["uid"], "allowed": true, "patchType": "JSONPatch", "patch": patch,
        });
        let text =
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
                .to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            text.len()
        );
        if stream.write_all((head + &text).as_bytes()).and_then(|()| stream.flush()).is_err() {
            return;
        }
    }
}

/// The body of the next request.
fn read(stream: &mut impl Read) -> Option<Value> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok())?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    serde_json::from_slice(&body).ok()
}

/// What is to be another image.
fn changes(pod: &Value, registry: &str) -> Vec<Value> {
    let (theirs, mirror) = (format!("{registry}/"), format!("{registry}/mirror/"));
    let mut changes = Vec::new();
    for list in ["containers", "initContainers"] {
        for (index, container) in pod["spec"][list].as_array().into_iter().flatten().enumerate() {
            let image = container["image"].as_str().unwrap_or_default();
            if let Some(name) = image.strip_prefix(&theirs).filter(|_| !image.starts_with(&mirror)) {
                changes.push(json!({
                    "op": "replace", "path": format!("/spec/{list}/{index}/image"), "value": format!("{mirror}{name}"),
                }));
            }
        }
    }
    changes
}

/// As JSON wants bytes (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let bits =
            part.iter().fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte)) << (8 * (3 - part.len()));
        for place in 0..4 {
            let letter = LETTERS[bits >> (18 - 6 * place) & 63];
            text.push(if place <= part.len() { char::from(letter) } else { '=' });
        }
    }
    text
}
