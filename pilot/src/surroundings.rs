//! What `main` reads of the machine and the environment, once.

use crate::config::Surroundings;

/// Reads the environment and the machine.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment beside clap")]
pub fn read() -> Surroundings {
    let path = |name: &str| {
        std::env::var(name).ok().filter(|value| value.starts_with('/')).map(std::path::PathBuf::from)
    };
    Surroundings {
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
