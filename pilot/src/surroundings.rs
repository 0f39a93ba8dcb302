//! What `main` reads of the machine and the environment, once.

use std::path::PathBuf;

/// What defaults depend on, read once by `main`; an argument so that tests choose it.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// `$HOME`.
    pub home: Option<PathBuf>,
    /// `$XDG_CACHE_HOME`.
    pub cache_home: Option<PathBuf>,
    /// `$XDG_CONFIG_HOME`.
    pub config_home: Option<PathBuf>,
    /// `$XDG_STATE_HOME`.
    pub state_home: Option<PathBuf>,
    /// `$XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<PathBuf>,
    /// `$REGISTRY_AUTH_FILE`.
    pub registry_auth_file: Option<PathBuf>,
    /// `$DOCKER_CONFIG`: docker's folder.
    pub docker_config: Option<PathBuf>,
    /// `$TMPDIR`.
    pub tmp_dir: Option<PathBuf>,
    /// What AWS's usual variables say of objects.
    pub aws: AwsVariables,
    /// `$NO_COLOR` is set: no colours, on a terminal neither.
    pub no_color: bool,
    /// The pilot's own program file.
    pub program: Option<PathBuf>,
    /// Effective uid.
    pub uid: u32,
    /// Processors that this process may use.
    pub processors: u32,
    /// Bytes of memory available now.
    pub memory_available_bytes: u64,
}

/// AWS's usual variables, as its own programs read them.
#[derive(Clone, Default)]
pub struct AwsVariables {
    /// `$AWS_ENDPOINT_URL_S3`, else `$AWS_ENDPOINT_URL`.
    pub endpoint: Option<String>,
    /// `$AWS_REGION`, else `$AWS_DEFAULT_REGION`.
    pub region: Option<String>,
    /// `$AWS_ACCESS_KEY_ID`.
    pub access_key_id: Option<String>,
    /// `$AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: Option<String>,
    /// `$AWS_SESSION_TOKEN`.
    pub session_token: Option<String>,
    /// `$AWS_CA_BUNDLE`.
    pub ca_bundle: Option<PathBuf>,
}

impl std::fmt::Debug for AwsVariables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AwsVariables").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// Reads the environment and the machine.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment beside clap")]
pub fn read() -> Surroundings {
    let path =
        |name: &str| std::env::var(name).ok().filter(|value| value.starts_with('/')).map(PathBuf::from);
    let word = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    Surroundings {
        aws: AwsVariables {
            endpoint: word("AWS_ENDPOINT_URL_S3").or_else(|| word("AWS_ENDPOINT_URL")),
            region: word("AWS_REGION").or_else(|| word("AWS_DEFAULT_REGION")),
            access_key_id: word("AWS_ACCESS_KEY_ID"),
            secret_access_key: word("AWS_SECRET_ACCESS_KEY"),
            session_token: word("AWS_SESSION_TOKEN"),
            ca_bundle: path("AWS_CA_BUNDLE"),
        },
        home: path("HOME"),
        cache_home: path("XDG_CACHE_HOME"),
        config_home: path("XDG_CONFIG_HOME"),
        state_home: path("XDG_STATE_HOME"),
        runtime_dir: path("XDG_RUNTIME_DIR"),
        registry_auth_file: path("REGISTRY_AUTH_FILE"),
        docker_config: path("DOCKER_CONFIG"),
        tmp_dir: path("TMPDIR"),
        no_color: std::env::var("NO_COLOR").is_ok_and(|value| !value.is_empty()),
        program: std::env::current_exe().ok(),
        uid: rustix::process::geteuid().as_raw(),
        processors: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1)),
        memory_available_bytes: memory_available().unwrap_or(1 << 30),
    }
}

/// `MemAvailable` of `/proc/meminfo` (proc(5)), in bytes.
fn memory_available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
