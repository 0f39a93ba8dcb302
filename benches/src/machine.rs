//! What the figures were measured on.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::peers::{command, version};

/// Load average of the last minute.
#[must_use]
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(f64::NAN)
}

/// Processor, memory, kernel, the file system below `folder` and the versions of the peers.
#[must_use]
pub fn describe(folder: &Path) -> Value {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().split(' ').next());
    let gib = kib.and_then(|kib| kib.parse::<f64>().ok()).map(|kib| (kib / 1_048_576.0).round() as u64);
    let uname = rustix::system::uname();
    let peers: serde_json::Map<_, _> = ["bwrap", "crun", "podman", "skopeo", "umoci", "docker-registry"]
        .into_iter()
        .map(|name| (name.to_owned(), json!(version(name).unwrap_or_else(|| "missing".into()))))
        .collect();
    json!({
        "processor": model, "processors": std::thread::available_parallelism().map_or(1, usize::from),
        "memory_gib": gib, "kernel": uname.release().to_string_lossy(),
        "file_system": file_system(folder), "cgroups": cgroups(), "peers": peers,
    })
}

fn file_system(folder: &Path) -> Option<String> {
    let output = command("findmnt").args(["-n", "-o", "FSTYPE", "-T"]).arg(folder).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn cgroups() -> &'static str {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "v2" } else { "v1" }
}

/// Now, in words.
#[must_use]
pub fn date() -> Option<String> {
    let output = command("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
