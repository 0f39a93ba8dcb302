//! How registries are reached: settings of the site, auth files, and how patient one is. No secret is in here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::repository::Repository;

/// What is to be known about single registries: the registries file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registries {
    /// By host, with the port if it has one: `docker.io`, `registry.example.org:5000`.
    pub registries: BTreeMap<String, RegistryRules>,
}

/// What is to be known about one registry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RegistryRules {
    /// It may be spoken to over plain http, also with a password. Hosts of the loopback may always.
    pub insecure: bool,
    /// Certificates (PEM) of the authority that signed its certificate; they are trusted beside the system's.
    pub ca: Option<PathBuf>,
    /// Where its images are looked for first: `host[:port][/prefix]`, in this order.
    pub mirrors: Vec<String>,
}

/// Where logins come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Logins {
    /// Never log in.
    None,
    /// The first of these files that knows the registry; files may be missing.
    Usual(Vec<PathBuf>),
    /// This file, which must be there.
    File(PathBuf),
}

/// How long one waits and how often one tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Until a connection stands.
    pub connect: Duration,
    /// Without a byte coming, after which a connection is given up.
    pub stall: Duration,
    /// Tries in a row that bring nothing.
    pub tries: u32,
    /// Tries of one blob, also if each brings something.
    pub tries_of_blob: u32,
    /// First wait between tries; each next is twice as long.
    pub first_wait: Duration,
    /// Longest wait, also if the registry asks for a longer one: then one gives up.
    pub longest_wait: Duration,
}

impl Default for Patience {
    /// Six tries with 0.5 to 8 s between are about 16 s; a registry that asks for more than a minute gets its
    /// wish by the queue's own retries.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            tries: 6,
            tries_of_blob: 100,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(60),
        }
    }
}

/// How the images of one asker are reached. Local transports ignore it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryAccess {
    /// The registries file.
    pub registries: Registries,
    /// Whose images may be read.
    pub logins: Logins,
    /// When to give up.
    pub patience: Patience,
    /// Folders with `<host>/ca.crt`, as docker and podman have them.
    pub certificate_folders: Vec<PathBuf>,
    /// Blobs that are fetched at once, at least one.
    pub downloads_at_once: usize,
}

impl RegistryAccess {
    /// Reads public images only.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::new(Registries::default(), Logins::None)
    }

    /// With logins and the usual patience.
    #[must_use]
    pub fn new(registries: Registries, logins: Logins) -> Self {
        Self {
            registries,
            logins,
            patience: Patience::default(),
            certificate_folders: ["/etc/containers/certs.d", "/etc/docker/certs.d"]
                .map(PathBuf::from)
                .to_vec(),
            // More than one hides the round trips between layers; many share one line and finish late together.
            downloads_at_once: 4,
        }
    }

    pub(crate) fn rules(&self, host: &str) -> Option<&RegistryRules> {
        self.registries.registries.get(host)
    }

    /// Where to look for a repository's images: its mirrors, then itself.
    pub(crate) fn places(&self, origin: &Repository) -> Vec<Repository> {
        let mirrors = self.rules(origin.host()).map(|rules| rules.mirrors.as_slice()).unwrap_or_default();
        let mirrors = mirrors.iter().filter_map(|mirror| Repository::below(mirror, origin.path()));
        mirrors.chain(std::iter::once(origin.clone())).collect()
    }

    /// Whether a host may be spoken to over plain http.
    pub(crate) fn may_be_plain(&self, host: &str) -> bool {
        is_loopback(host) || self.rules(host).is_some_and(|rules| rules.insecure)
    }
}

/// The auth files that are looked at when none is named, in this order: podman's of this session, podman's,
/// docker's.
#[must_use]
pub fn usual_auth_files(
    runtime_dir: Option<PathBuf>,
    config_home: Option<PathBuf>,
    docker: Option<PathBuf>,
) -> Logins {
    let podman = [runtime_dir, config_home].into_iter().flatten().map(|dir| dir.join("containers/auth.json"));
    Logins::Usual(podman.chain(docker.map(|dir| dir.join("config.json"))).collect())
}

/// Whether a host (with or without a port) is this machine by its name alone; no name is looked up.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:1", "127.8.9.1", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example.org", "127.0.0.1.example.org", "[::2]:5", "10.0.0.1", "registry"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn mirrors_come_before_the_origin() {
        let rules =
            RegistryRules { mirrors: vec!["m.x:5000/hub".into(), "n.x".into()], ..RegistryRules::default() };
        let registries = Registries { registries: [("docker.io".to_owned(), rules)].into() };
        let access = RegistryAccess::new(registries, Logins::None);
        let places = |name| {
            let origin = crate::repository::parse(name).unwrap().repository;
            access.places(&origin).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            places("debian"),
            ["m.x:5000/hub/library/debian", "n.x/library/debian", "docker.io/library/debian"]
        );
        assert_eq!(places("h.x/a"), ["h.x/a"]);
    }

    #[test]
    fn the_usual_files_come_in_podmans_order_and_then_dockers() {
        let dir = |name: &str| Some(PathBuf::from(name));
        let Logins::Usual(files) = usual_auth_files(dir("/run/u"), dir("/h/.config"), dir("/h/.docker"))
        else {
            panic!("not the usual")
        };
        let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
        assert_eq!(
            files,
            ["/run/u/containers/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json"]
        );
    }
}
