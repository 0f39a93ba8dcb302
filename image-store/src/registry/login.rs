//! Who one is to a registry: finds the login for a repository in the auth files of docker and podman.
//!
//! # Flow
//! The files are looked at in order; the first that knows the repository wins. In a file the most specific key
//! wins (podman: `host/team/image`, `host/team`, `host`); docker's own spellings (`https://host/v1/`) count as
//! the host. For the host itself `credHelpers` wins over `auths`, and `credsStore` is asked last.
//!
//! docker_credential is not used: it knows no keys below a host, and waits for a helper program for ever.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;

use super::error::RegistryError;
use crate::repository::Repository;

/// An auth file is a few lines for each registry.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// A helper may have to unlock a key ring; it can't ask anybody.
const HELPER_WAIT: Duration = Duration::from_secs(30);
const HELPER_POLL: Duration = Duration::from_millis(10);

/// A login. Its secret is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Login {
    Password {
        user: String,
        secret: String,
    },
    /// An identity token, to be exchanged for others at the token server.
    Identity(String),
    /// A bearer token that is sent as it is.
    Bearer(String),
}

impl Login {
    /// What tells this login from others: input for a keyed hash.
    pub(crate) fn material(&self) -> String {
        match self {
            Self::Password { user, secret } => format!("password\n{user}\n{secret}"),
            Self::Identity(token) => format!("identity\n{token}"),
            Self::Bearer(token) => format!("bearer\n{token}"),
        }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(..)",
            Self::Identity(_) => "Identity(..)",
            Self::Bearer(_) => "Bearer(..)",
        })
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AuthFile {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// The login for a repository, from the first file that has one. A file that is not there has none; with
/// `required` it must be there.
pub(crate) fn find(
    files: &[PathBuf],
    required: bool,
    repository: &Repository,
) -> Result<Option<Login>, RegistryError> {
    for path in files {
        let Some(text) = read(path, required)? else { continue };
        let bad = |reason: String| RegistryError::AuthFile { path: path.clone(), reason };
        // Not the parser's own words: they may quote a secret.
        let file: AuthFile = serde_json::from_slice(&text)
            .map_err(|error| bad(format!("it is no auth file (line {})", error.line())))?;
        if let Some(login) = file.login(repository).map_err(bad)? {
            return Ok(Some(login));
        }
    }
    Ok(None)
}

fn read(path: &Path, required: bool) -> Result<Option<Vec<u8>>, RegistryError> {
    let mut text = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut text));
    match read {
        Ok(_) => Ok(Some(text)),
        Err(error) if !required && absent(&error) => Ok(None),
        Err(error) => Err(RegistryError::AuthFile { path: path.to_path_buf(), reason: error.to_string() }),
    }
}

fn absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

impl AuthFile {
    fn login(&self, repository: &Repository) -> Result<Option<Login>, String> {
        let host = repository.host();
        let whole = repository.to_string();
        let mut key = whole.as_str();
        while let Some((shorter, _)) = key.rsplit_once('/') {
            if let Some(login) = self.entry(key)? {
                return Ok(Some(login));
            }
            key = shorter;
        }
        let helper = self.cred_helpers.iter().find(|(name, _)| same_host(name, host));
        if let Some((name, helper)) = helper {
            return ask_helper(helper, name);
        }
        if let Some(login) = self.entry(host)? {
            return Ok(Some(login));
        }
        match &self.creds_store {
            Some(helper) if !helper.is_empty() => ask_helper(helper, helper_name(host)),
            _ => Ok(None),
        }
    }

    fn entry(&self, key: &str) -> Result<Option<Login>, String> {
        let found = self.auths.get(key).or_else(|| {
            let mut others = self.auths.iter();
            others.find(|(name, _)| !key.contains('/') && same_host(name, key)).map(|(_, entry)| entry)
        });
        found.map_or(Ok(None), |entry| entry.login(key))
    }
}

impl Entry {
    fn login(&self, key: &str) -> Result<Option<Login>, String> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Some(Login::Identity(token)));
        }
        if let Some(token) = given(&self.registrytoken) {
            return Ok(Some(Login::Bearer(token)));
        }
        if let Some(auth) = given(&self.auth) {
            let text = base64(&auth).and_then(|bytes| String::from_utf8(bytes).ok());
            // Docker pads with NUL what it has encrypted itself.
            let text = text.map(|text| text.trim_end_matches('\0').to_owned());
            let pair = text.as_deref().and_then(|text| text.split_once(':'));
            let (user, secret) =
                pair.ok_or_else(|| format!("\"auth\" of \"{key}\" is not user:password in base64"))?;
            return Ok(Some(Login::Password { user: user.to_owned(), secret: secret.to_owned() }));
        }
        let pair = given(&self.username).zip(given(&self.password));
        // An entry without anything says that a helper knows.
        Ok(pair.map(|(user, secret)| Login::Password { user, secret }))
    }
}

/// Whether a key of an auth file means the registry `host`.
fn same_host(key: &str, host: &str) -> bool {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = ["/v1", "/v2", ""].iter().find_map(|end| key.trim_end_matches('/').strip_suffix(end));
    let key = key.unwrap_or_default();
    key == host || (host == "docker.io" && ["index.docker.io", "registry-1.docker.io"].contains(&key))
}

/// By what docker's own programs ask helpers for docker.io.
fn helper_name(host: &str) -> &str {
    if host == "docker.io" { "https://index.docker.io/v1/" } else { host }
}

/// Asks `docker-credential-<helper> get`.
fn ask_helper(helper: &str, host: &str) -> Result<Option<Login>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    if !helper.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(format!("{helper:?} is no name of a credential helper"));
    }
    let program = format!("docker-credential-{helper}");
    let failed = |what: &str| format!("{program} {what}");
    #[expect(clippy::disallowed_methods, reason = "waited for below, killed at the deadline")]
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(&format!("can't be started: {error}")))?;
    if let Some(mut input) = child.stdin.take() {
        // A helper that reads nothing has closed the pipe: its answer tells more.
        let _ = input.write_all(host.as_bytes());
    }
    let mut waited = Duration::ZERO;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if waited < HELPER_WAIT => {
                std::thread::sleep(HELPER_POLL);
                waited += HELPER_POLL;
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed("did not answer"));
            }
        }
    };
    let mut text = Vec::new();
    if let Some(output) = child.stdout.take() {
        // What does not fit into a pipe's buffer (64 KiB) is no login.
        let _ = output.take(1 << 16).read_to_end(&mut text);
    }
    if !status.success() {
        // "credentials not found in native keychain": asked and not known.
        let unknown = String::from_utf8_lossy(&text).contains("credentials not found");
        return if unknown { Ok(None) } else { Err(failed("failed")) };
    }
    let answer: Answer = serde_json::from_slice(&text).map_err(|_| failed("gave no login"))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Login::Identity(answer.secret),
        _ => Login::Password { user: answer.username, secret: answer.secret },
    }))
}

/// Standard base64, padded or not.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim().trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (bits, count) = (bits << 6 | u32::from(value), count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    (digits.len() % 4 != 1).then_some(bytes)
}

#[cfg(test)]
#[path = "login_tests.rs"]
mod tests;
