//! Names in a registry, `[host[:port]/]path[:tag][@sha256:..]`, with the rules that docker made for what is
//! left out: no host means docker.io, one word there means `library/`, no tag means `latest`. Pure.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

/// The registry that a name without a host means.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag that a name without one means.
pub(crate) const DEFAULT_TAG: &str = "latest";
/// By the distribution specification, host included.
const NAME_BYTES_MAX: usize = 255;

/// A repository: where the images of one name are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    host: String,
    path: String,
}

impl Repository {
    /// Host, with its port if one was written.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Path below the registry, for example `library/debian`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A repository of a mirror: `host` with an optional `/prefix`, and the path there.
    pub(crate) fn below(place: &str, path: &str) -> Option<Self> {
        let place = place.trim_end_matches('/');
        let (host, prefix) =
            place.split_once('/').map_or((place, None), |(host, prefix)| (host, Some(prefix)));
        let path = prefix.map_or_else(|| path.to_owned(), |prefix| format!("{prefix}/{path}"));
        (is_host(host) && is_path(&path)).then(|| Self { host: host.to_owned(), path })
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)
    }
}

/// Why a text is no repository that images can be pushed to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// No host: by docker's rules the hub would be meant, where nobody wants to find an image by mistake.
    #[error("use repository \"{name}\": name the registry too, as in registry.example:5000/team/fit")]
    NoHost {
        /// As written.
        name: String,
    },
    /// A tag or a digest.
    #[error("use repository \"{name}\": leave out what follows the name; images are named there by digest")]
    NotAlone {
        /// As written.
        name: String,
    },
    /// A part that is written otherwise.
    #[error("use repository {name:?}: {reason}")]
    Name {
        /// As written.
        name: String,
        /// Which part is wrong, and how it is written.
        reason: &'static str,
    },
}

impl FromStr for Repository {
    type Err = RepositoryError;

    /// Reads `HOST[:PORT]/PATH`. Unlike in an image's name the host must be there; `docker://` may be.
    fn from_str(text: &str) -> Result<Self, RepositoryError> {
        let name = text.strip_prefix("docker://").unwrap_or(text);
        let parsed = parse(name).map_err(|reason| RepositoryError::Name { name: text.to_owned(), reason })?;
        if !name.split_once('/').is_some_and(|(first, _)| looks_like_host(first)) {
            return Err(RepositoryError::NoHost { name: text.to_owned() });
        }
        if parsed.tag.is_some() || parsed.digest.is_some() {
            return Err(RepositoryError::NotAlone { name: text.to_owned() });
        }
        Ok(parsed.repository)
    }
}

/// What a name was read as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) repository: Repository,
    pub(crate) tag: Option<String>,
    /// Text behind the `@`, not yet judged.
    pub(crate) digest: Option<String>,
}

/// Reads a name; on failure says which part is wrong.
pub(crate) fn parse(text: &str) -> Result<Name, &'static str> {
    let (rest, digest) =
        text.split_once('@').map_or((text, None), |(rest, digest)| (rest, Some(digest.to_owned())));
    let last = rest.rfind('/').map_or(0, |slash| slash + 1);
    // A colon before the last slash is a port's.
    let (name, tag) = match rest[last..].find(':') {
        Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
        None => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(
            "a tag is 1 to 128 letters, digits, \"_\", \".\" and \"-\", not beginning with \".\" or \"-\"",
        );
    }
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if looks_like_host(host) => (host, path.to_owned()),
        _ => (DEFAULT_REGISTRY, name.to_owned()),
    };
    let host = if host == "index.docker.io" { DEFAULT_REGISTRY } else { host };
    let path = if host == DEFAULT_REGISTRY && !path.contains('/') { format!("library/{path}") } else { path };
    if !is_host(host) {
        return Err("the registry is written as host or host:port");
    }
    if !is_path(&path) {
        return Err(
            "a repository is written in lower-case letters and digits, with single \".\", \"_\", \"-\" or \"/\" between",
        );
    }
    if host.len() + path.len() + 1 > NAME_BYTES_MAX {
        return Err("it is longer than 255 characters");
    }
    let repository = Repository { host: host.to_owned(), path };
    Ok(Name { repository, tag: tag.map(str::to_owned), digest })
}

/// Docker's rule for telling a host from the first part of a path.
fn looks_like_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase())
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, rest)) => match rest.strip_prefix(':') {
                Some(port) => (address, Some(port)),
                None => return false,
            },
            None => return false,
        },
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    if port.is_some_and(|port| !matches!(port.parse::<u16>(), Ok(1..))) {
        return false;
    }
    if host.starts_with('[') {
        return name.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.split('.').all(label)
}

fn is_path(path: &str) -> bool {
    path.split('/').all(is_component)
}

/// Runs of letters and digits with one `.`, one or two `_`, or any number of `-` between.
fn is_component(component: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !plain(*first) || !plain(*last) {
        return false;
    }
    let separators = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    separators
        .filter(|run| !run.is_empty())
        .all(|run| matches!(run, "." | "_" | "__") || run.bytes().all(|byte| byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    !tag.is_empty() && tag.len() <= 128 && tag.bytes().all(inner) && !tag.starts_with(['.', '-'])
}

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    Tag(String),
    Digest(Digest),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> (String, String, Option<String>) {
        let name = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        (name.repository.host, name.repository.path, name.tag)
    }

    #[test]
    fn what_is_left_out_is_what_docker_takes_it_for() {
        for (text, host, path, tag) in [
            ("debian", "docker.io", "library/debian", None),
            ("debian:12", "docker.io", "library/debian", Some("12")),
            ("user/tool:1.0-rc_2", "docker.io", "user/tool", Some("1.0-rc_2")),
            ("docker.io/debian", "docker.io", "library/debian", None),
            ("index.docker.io/a/b", "docker.io", "a/b", None),
            ("localhost/x", "localhost", "x", None),
            ("localhost:5000/x", "localhost:5000", "x", None),
            ("r.example.org/a/b/c:t", "r.example.org", "a/b/c", Some("t")),
            ("HOST/x", "HOST", "x", None),
            ("[::1]:5000/x:1", "[::1]:5000", "x", Some("1")),
            ("127.0.0.1:5000/a__b.c---d", "127.0.0.1:5000", "a__b.c---d", None),
        ] {
            let tag = tag.map(str::to_owned);
            assert_eq!(read(text), (host.to_owned(), path.to_owned(), tag), "{text}");
        }
        assert_eq!(parse("a@sha256:1").unwrap().digest.as_deref(), Some("sha256:1"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "Debian",
            "a:",
            "a:b:c",
            "a:-x",
            "a:.x",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "h.x:0/a",
            "h.x:65536/a",
            "h.x:y/a",
            "-h.x/a",
            "h..x/a",
            "[::1/a",
            "[zz]:1/a",
            "a b",
            "h.x/ä",
            "h.x/A",
        ] {
            assert!(parse(text).is_err(), "{text:?} is taken");
        }
        assert!(parse(&format!("a:{}", "t".repeat(129))).is_err());
        assert!(parse(&"a".repeat(256)).is_err());
    }

    #[test]
    fn a_repository_is_written_with_its_host_and_nothing_behind_it() {
        for (text, whole) in [
            ("registry.example:5000/team/fit", "registry.example:5000/team/fit"),
            ("docker://localhost/fit", "localhost/fit"),
            ("docker.io/fit", "docker.io/library/fit"),
        ] {
            assert_eq!(text.parse::<Repository>().unwrap().to_string(), whole);
        }
        for (text, says) in [
            ("team/fit", "name the registry too"),
            ("fit", "name the registry too"),
            ("h.x/fit:1", "leave out"),
            ("h.x/fit@sha256:1", "leave out"),
            ("h.x/Fit", "lower-case"),
            ("h.x", "name the registry too"),
            ("h.x/\n", "lower-case"),
        ] {
            let error = text.parse::<Repository>().unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains('\n'), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_mirror_may_have_a_prefix() {
        let mirror = Repository::below("m.example.org:5000/cache/", "library/debian").unwrap();
        assert_eq!(mirror.to_string(), "m.example.org:5000/cache/library/debian");
        assert_eq!(Repository::below("localhost", "a").unwrap().to_string(), "localhost/a");
        assert!(Repository::below("http://m", "a").is_none());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,60}") {
            let _ = parse(&text);
        }

        #[test]
        fn a_name_that_is_read_is_read_the_same_when_written_whole(
            text in "([a-z0-9.-]{1,8}(:[0-9]{1,5})?/)?[a-z0-9._-]{1,8}(/[a-z0-9_]{1,6})?(:[a-zA-Z0-9_.-]{1,8})?",
        ) {
            if let Ok(name) = parse(&text) {
                let tag = name.tag.clone().map(|tag| format!(":{tag}")).unwrap_or_default();
                prop_assert_eq!(parse(&format!("{}{tag}", name.repository)).unwrap(), name);
            }
        }
    }
}
