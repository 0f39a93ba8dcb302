//! What the caller says about servers and patience. Nothing is read from the environment or from files here.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// How objects are reached.
#[derive(Clone, Default)]
pub struct Settings {
    /// The server of `s3://` objects, `https://host[:port]`; AWS itself without one. Addressed with the bucket in
    /// the path.
    pub endpoint: Option<String>,
    /// The region that requests are signed for; `us-east-1` without one.
    pub region: Option<String>,
    /// Who asks; without them requests are not signed, so only public objects are readable.
    pub credentials: Option<Credentials>,
    /// The endpoint may be spoken to over plain http. One on the loopback always may.
    pub allow_http: bool,
    /// Certificates (PEM) of the authority that signed the server's; trusted beside the system's.
    pub ca: Option<Vec<u8>>,
    /// The proxy that requests go through, `http://host:port`; none is used unsaid.
    pub proxy: Option<String>,
    /// Leave out `x-amz-checksum-sha256`, for servers that refuse what they don't know. Parts are still signed.
    pub without_checksums: bool,
    /// How long one waits, and how much goes on at once.
    pub limits: Limits,
}

impl fmt::Debug for Settings {
    /// Without what may hold a secret: a proxy's address may.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, region, credentials, allow_http, ca, proxy, without_checksums, limits } = self;
        f.debug_struct("Settings")
            .field("endpoint", endpoint)
            .field("region", region)
            .field("credentials", credentials)
            .field("allow_http", allow_http)
            .field("ca", &ca.is_some())
            .field("proxy", &proxy.is_some())
            .field("without_checksums", without_checksums)
            .field("limits", limits)
            .finish()
    }
}

/// An access key, as AWS's usual variables hold it.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: String,
    /// `AWS_SESSION_TOKEN`, of temporary keys.
    pub session_token: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(hidden)")
    }
}

/// Bounds on time, tries and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Until a connection stands.
    pub connect: Duration,
    /// Without a byte coming, after which a connection is given up.
    pub stall: Duration,
    /// One request in all, a part's bytes included.
    pub request: Duration,
    /// A whole operation in all: a put, a fetch.
    pub operation: Duration,
    /// Further tries of a request; of a range, those in a row that bring nothing.
    pub retries: u32,
    /// First wait between tries; each next is up to twice as long.
    pub first_wait: Duration,
    /// Longest wait between tries.
    pub longest_wait: Duration,
    /// Bytes of a part; objects up to this size go up in one request.
    pub part_bytes: u64,
    /// Parts under way at once in one operation.
    pub parts_at_once: usize,
}

impl Default for Limits {
    /// A part of 8 MiB in 5 minutes is 28 kB/s. Four parts hide a server's latency and bound memory to 40 MiB an
    /// upload. A terabyte in a day is 12 MB/s.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            request: Duration::from_secs(300),
            operation: Duration::from_secs(24 * 3600),
            retries: 6,
            first_wait: Duration::from_millis(200),
            longest_wait: Duration::from_secs(15),
            part_bytes: 8 << 20,
            parts_at_once: 4,
        }
    }
}

/// Settings that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The endpoint is no address of a server.
    #[error("use the S3 endpoint \"{0}\": write https://HOST[:PORT], without path, login or query")]
    Endpoint(String),
    /// Plain http to another machine.
    #[error(
        "use the S3 endpoint \"{0}\": plain http would show the data to the network; use https, or allow http"
    )]
    Plain(String),
    /// The certificates can't be read, or the TLS client can't be made.
    #[error("prepare the S3 client: {0}")]
    Client(String),
    /// S3 has no such parts.
    #[error(
        "use parts of {0} bytes, {1} at once: S3 takes parts of 5 MiB to 5 GiB, and 1 to 64 are possible at once"
    )]
    Parts(u64, usize),
}

impl Settings {
    /// Whether they can be used, without trying it.
    ///
    /// # Errors
    /// An endpoint that is none, plain http to another machine, parts that S3 does not take.
    pub fn check(&self) -> Result<(), SettingsError> {
        let limits = &self.limits;
        if !(5 << 20..=5 << 30).contains(&limits.part_bytes) || !(1..=64).contains(&limits.parts_at_once) {
            return Err(SettingsError::Parts(limits.part_bytes, limits.parts_at_once));
        }
        let Some(endpoint) = &self.endpoint else { return Ok(()) };
        let bad = || {
            SettingsError::Endpoint(
                endpoint.split('@').next_back().unwrap_or_default().chars().take(120).collect(),
            )
        };
        let url: reqwest::Url = endpoint.parse().map_err(|_| bad())?;
        let bare = url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
            && url.path() == "/"
            && url.host_str().is_some();
        match url.scheme() {
            "https" | "http" if !bare => Err(bad()),
            "https" => Ok(()),
            "http" if self.allow_http || self.on_loopback() => Ok(()),
            "http" => Err(SettingsError::Plain(endpoint.clone())),
            _ => Err(bad()),
        }
    }

    /// Whether the endpoint is this machine by its name alone; no name is looked up.
    pub(crate) fn on_loopback(&self) -> bool {
        let url = self.endpoint.as_deref().and_then(|text| text.parse::<reqwest::Url>().ok());
        let host = url.as_ref().and_then(|url| url.host_str()).unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(endpoint: &str, allow_http: bool) -> Result<(), SettingsError> {
        Settings { endpoint: Some(endpoint.to_owned()), allow_http, ..Settings::default() }.check()
    }

    #[test]
    fn plain_http_is_for_the_loopback_or_when_said() {
        for good in
            ["https://s3.example.org", "http://127.0.0.1:9000", "http://localhost:1", "http://[::1]:9000/"]
        {
            assert_eq!(check(good, false), Ok(()), "{good}");
        }
        assert!(matches!(check("http://s3.example.org", false), Err(SettingsError::Plain(_))));
        assert!(matches!(check("http://127.0.0.1.example.org", false), Err(SettingsError::Plain(_))));
        assert_eq!(check("http://s3.example.org", true), Ok(()));
        for bad in ["", "s3.example.org", "ftp://x", "https://x/path", "https://x/?q", "https://me:hunter2@x"]
        {
            let error = check(bad, true).expect_err(bad);
            assert!(matches!(error, SettingsError::Endpoint(_)), "{bad}: {error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let credentials = Credentials {
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret_access_key: "hunter2".to_owned(),
            session_token: Some("token3".to_owned()),
        };
        let proxy = Some("http://me:proxy4@proxy:1".to_owned());
        let text = format!("{:?}", Settings { credentials: Some(credentials), proxy, ..Settings::default() });
        for secret in ["AKIDEXAMPLE", "hunter2", "token3", "proxy4"] {
            assert!(!text.contains(secret), "{text}");
        }
    }

    #[test]
    fn parts_that_s3_refuses_are_refused_here() {
        for (part_bytes, parts_at_once) in [(0, 4), (4 << 20, 4), (6 << 30, 4), (8 << 20, 0), (8 << 20, 65)] {
            let limits = Limits { part_bytes, parts_at_once, ..Limits::default() };
            assert!(Settings { limits, ..Settings::default() }.check().is_err());
        }
    }
}
