//! Settings: each has one name as a flag, an environment variable and a key of the settings file.
//!
//! A flag wins over the environment, that over the file, that over the default: `--state-dir` is `LATEBIND_CSI_STATE_DIR` and
//! `state-dir:`. Domains are in the file only, because who shares with whom is nothing for a command line.
//!
//! **Must not know:** what settings are good for.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;

use crate::plan::Limits;
use crate::quantity::Bytes;
use crate::telemetry::LogFormat;
use crate::tenant::Domains;

/// Settings as given. Everything is optional.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[command(next_help_heading = "Settings (flag, LATEBIND_CSI_<NAME>, or a key of the settings file)")]
pub struct Settings {
    /// File with settings, a YAML mapping of these names; and `domains`, which only it has
    #[arg(long, env = "LATEBIND_CSI_SETTINGS", value_name = "FILE")]
    #[serde(skip)]
    pub settings: Option<PathBuf>,
    /// The driver's name, as the CSIDriver object has it [default: csi.latebind.dev]
    #[arg(long, env = "LATEBIND_CSI_DRIVER_NAME", value_name = "NAME")]
    pub driver_name: Option<String>,
    /// The node's name [default: the host's name]
    #[arg(long, env = "LATEBIND_CSI_NODE_ID", value_name = "NAME")]
    pub node_id: Option<String>,
    /// The kubelet's folder; at the same path in the driver's container as on the node [default: /var/lib/kubelet]
    #[arg(long, env = "LATEBIND_CSI_KUBELET_DIR", value_name = "DIR")]
    pub kubelet_dir: Option<PathBuf>,
    /// Where the driver keeps what it knows, on the file system of the kubelet's folder [default: KUBELET_DIR/plugins/NAME/state]
    #[arg(long, env = "LATEBIND_CSI_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The socket for the kubelet's calls [default: KUBELET_DIR/plugins/NAME/csi.sock]
    #[arg(long, env = "LATEBIND_CSI_ENDPOINT", value_name = "FILE")]
    pub endpoint: Option<PathBuf>,
    /// Whether to register with the kubelet, in KUBELET_DIR/plugins_registry [default: true]
    #[arg(long, env = "LATEBIND_CSI_REGISTER", value_name = "BOOL")]
    pub register: Option<bool>,
    /// Whether pods may have volumes with `mode: mount`; takes CAP_SYS_ADMIN and bidirectional propagation [default: false]
    #[arg(long, env = "LATEBIND_CSI_ALLOW_MOUNT", value_name = "BOOL")]
    pub allow_mount: Option<bool>,
    /// Most volumes of the node [default: 1000]
    #[arg(long, env = "LATEBIND_CSI_VOLUMES", value_name = "N")]
    pub volumes: Option<u32>,
    /// Most volumes of one tenant on the node [default: 250]
    #[arg(long, env = "LATEBIND_CSI_TENANT_VOLUMES", value_name = "N")]
    pub tenant_volumes: Option<u32>,
    /// Largest tmpfs of one volume [default: 1Gi]
    #[arg(long, env = "LATEBIND_CSI_VOLUME_BYTES", value_name = "BYTES")]
    pub volume_bytes: Option<Bytes>,
    /// Most bytes of one tenant on the node; one that has more gets no further volume [default: 64Gi]
    #[arg(long, env = "LATEBIND_CSI_TENANT_BYTES", value_name = "BYTES")]
    pub tenant_bytes: Option<Bytes>,
    /// How often volumes are measured and looked at for pods that are gone, in milliseconds [default: 60000]
    #[arg(long, env = "LATEBIND_CSI_COLLECT_MS", value_name = "MS")]
    pub collect_ms: Option<u64>,
    /// How long a volume stays that the kubelet has no note of any more, in milliseconds [default: 600000]
    #[arg(long, env = "LATEBIND_CSI_GRACE_MS", value_name = "MS")]
    pub grace_ms: Option<u64>,
    /// Where figures are told in Prometheus' text format, such as 127.0.0.1:9465 [default: nowhere]
    #[arg(long, env = "LATEBIND_CSI_METRICS", value_name = "ADDR")]
    pub metrics: Option<SocketAddr>,
    /// How the log is written [default: plain]
    #[arg(long, env = "LATEBIND_CSI_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
    /// Domains and the accounts that may join each: `namespace/account` or `namespace/*`.
    #[arg(skip)]
    pub domains: Domains,
}

/// Settings after defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// The driver's name.
    pub driver_name: String,
    /// The node's name.
    pub node_id: String,
    /// The kubelet's folder of pods.
    pub pods: PathBuf,
    /// The state folder.
    pub state: PathBuf,
    /// The socket for calls.
    pub endpoint: PathBuf,
    /// The kubelet's folder for registrations; none if the driver is not to register.
    pub registry: Option<PathBuf>,
    /// What volumes may take.
    pub limits: Limits,
    /// How often volumes are looked at.
    pub collect_every: Duration,
    /// How long a volume stays that the kubelet does not know any more.
    pub grace: Duration,
    /// Where figures are told.
    pub metrics: Option<SocketAddr>,
    /// How the log is written.
    pub log_format: LogFormat,
    /// Who may be in which domain.
    pub domains: Domains,
}

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file can't be read.
    #[error("read settings {path}: {source}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a mapping of settings.
    #[error("{path}: {reason}")]
    Parse {
        /// Which.
        path: String,
        /// Line, column and what is wrong.
        reason: String,
    },
    /// A value that can't work.
    #[error("--{name} {value}: {reason}")]
    Value {
        /// The setting.
        name: &'static str,
        /// What was given.
        value: String,
        /// Why not, and what would do.
        reason: &'static str,
    },
}

const NAME: &str = "csi.latebind.dev";
const KUBELET: &str = "/var/lib/kubelet";
/// Several for each of the 110 pods that a kubelet takes by default.
const VOLUMES: u32 = 1000;
const TENANT_VOLUMES: u32 = 250;
const VOLUME_BYTES: u64 = 1 << 30;
const TENANT_BYTES: u64 = 64 << 30;
const COLLECT_MS: u64 = 60_000;
/// A kubelet that is being upgraded is back by then.
const GRACE_MS: u64 = 600_000;
/// sockaddr_un's path has 108 bytes with its NUL, and a socket is made under a name that is one longer.
const SOCKET_PATH_MAX: usize = 107;
/// More volumes than this are a mistake: each costs a record that is held in memory.
const VOLUMES_MAX: u32 = 100_000;

impl Settings {
    /// Fills the gaps from the settings file.
    ///
    /// # Errors
    /// When it can't be read, or is wrong.
    pub fn with_file(self) -> Result<Self, SettingsError> {
        let Some(path) = self.settings.clone() else { return Ok(self) };
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(&path)
            .map_err(|source| SettingsError::Read { path: shown.clone(), source })?;
        if text.trim().is_empty() {
            return Ok(self);
        }
        let file: Self = serde_saphyr::from_str(&text).map_err(|error| SettingsError::Parse {
            path: shown,
            reason: error.to_string().lines().next().unwrap_or_default().to_owned(),
        })?;
        Ok(self.or(file))
    }

    fn or(self, file: Self) -> Self {
        Self {
            settings: self.settings,
            driver_name: self.driver_name.or(file.driver_name),
            node_id: self.node_id.or(file.node_id),
            kubelet_dir: self.kubelet_dir.or(file.kubelet_dir),
            state_dir: self.state_dir.or(file.state_dir),
            endpoint: self.endpoint.or(file.endpoint),
            register: self.register.or(file.register),
            allow_mount: self.allow_mount.or(file.allow_mount),
            volumes: self.volumes.or(file.volumes),
            tenant_volumes: self.tenant_volumes.or(file.tenant_volumes),
            volume_bytes: self.volume_bytes.or(file.volume_bytes),
            tenant_bytes: self.tenant_bytes.or(file.tenant_bytes),
            collect_ms: self.collect_ms.or(file.collect_ms),
            grace_ms: self.grace_ms.or(file.grace_ms),
            metrics: self.metrics.or(file.metrics),
            log_format: self.log_format.or(file.log_format),
            domains: file.domains,
        }
    }

    /// Puts defaults where nothing is said, and looks whether all of it can work.
    ///
    /// # Errors
    /// On the first that can't.
    pub fn config(self, host: &str) -> Result<Config, SettingsError> {
        let Self {
            settings: _,
            driver_name,
            node_id,
            kubelet_dir,
            state_dir,
            endpoint,
            register,
            allow_mount,
            volumes,
            tenant_volumes,
            volume_bytes,
            tenant_bytes,
            collect_ms,
            grace_ms,
            metrics,
            log_format,
            domains,
        } = self;
        let driver_name = driver_name.unwrap_or_else(|| NAME.to_owned());
        check_name("driver-name", &driver_name, 63)?;
        let node_id = node_id.unwrap_or_else(|| host.to_owned());
        check_name("node-id", &node_id, 253)?;
        let kubelet = plain("kubelet-dir", kubelet_dir.unwrap_or_else(|| PathBuf::from(KUBELET)))?;
        let plugin = kubelet.join("plugins").join(&driver_name);
        let endpoint = plain("endpoint", endpoint.unwrap_or_else(|| plugin.join("csi.sock")))?;
        let registry = register.unwrap_or(true).then(|| kubelet.join("plugins_registry"));
        let registration = registry.as_ref().map(|folder| folder.join(format!("{driver_name}-reg.sock")));
        [Some(&endpoint), registration.as_ref()]
            .into_iter()
            .flatten()
            .try_for_each(|path| check_socket(path))?;
        let volumes = volumes.unwrap_or(VOLUMES);
        if !(1..=VOLUMES_MAX).contains(&volumes) {
            let reason = "must be from 1 to 100000";
            return Err(SettingsError::Value { name: "volumes", value: volumes.to_string(), reason });
        }
        let collect_ms = collect_ms.unwrap_or(COLLECT_MS);
        if collect_ms == 0 {
            return Err(SettingsError::Value {
                name: "collect-ms",
                value: "0".into(),
                reason: "must be at least 1",
            });
        }
        let limits = Limits {
            mounts: allow_mount.unwrap_or(false),
            volumes: volumes as usize,
            tenant_volumes: tenant_volumes.unwrap_or(TENANT_VOLUMES) as usize,
            volume_bytes: volume_bytes.map_or(VOLUME_BYTES, |bytes| bytes.0),
            tenant_bytes: tenant_bytes.map_or(TENANT_BYTES, |bytes| bytes.0),
        };
        Ok(Config {
            pods: kubelet.join("pods"),
            state: plain("state-dir", state_dir.unwrap_or_else(|| plugin.join("state")))?,
            driver_name,
            node_id,
            endpoint,
            registry,
            limits,
            collect_every: Duration::from_millis(collect_ms),
            grace: Duration::from_millis(grace_ms.unwrap_or(GRACE_MS)),
            metrics,
            log_format: log_format.unwrap_or_default(),
            domains,
        })
    }
}

/// A DNS name, which is what Kubernetes takes.
fn check_name(name: &'static str, value: &str, most: usize) -> Result<(), SettingsError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let good = (1..=most).contains(&value.len()) && value.bytes().all(fits) && !value.starts_with(['.', '-']);
    if good {
        return Ok(());
    }
    let reason = "must be a name of letters, digits, '-', '_' and '.'";
    Err(SettingsError::Value { name, value: value.to_owned(), reason })
}

fn check_socket(path: &Path) -> Result<(), SettingsError> {
    if path.as_os_str().len() < SOCKET_PATH_MAX {
        return Ok(());
    }
    let reason = "a socket's path must be shorter than 107 bytes";
    Err(SettingsError::Value { name: "endpoint", value: path.display().to_string(), reason })
}

/// An absolute path without `..`: it is compared with what the kubelet says.
fn plain(name: &'static str, path: PathBuf) -> Result<PathBuf, SettingsError> {
    use std::path::Component;
    let plain = path.is_absolute()
        && Path::new(&path)
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if plain && path.to_str().is_some() {
        // Without what components() leaves out: doubled and final slashes.
        return Ok(path.components().collect());
    }
    let reason = "must be an absolute path of plain text, without '..'";
    Err(SettingsError::Value { name, value: path.display().to_string(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_has_a_default_and_a_flag_wins_over_the_file() {
        let config = Settings::default().config("node1").expect("defaults");
        assert_eq!(config.pods, Path::new("/var/lib/kubelet/pods"));
        assert_eq!(config.endpoint, Path::new("/var/lib/kubelet/plugins/csi.latebind.dev/csi.sock"));
        assert_eq!((config.node_id.as_str(), config.limits.mounts), ("node1", false));
        let folder = tempfile::tempdir().expect("tempdir");
        let file = folder.path().join("settings.yaml");
        let text =
            "volumes: 5\ntenant-bytes: 10Gi\nkubelet-dir: /data/kubelet/\ndomains:\n  physics: [cms/*]\n";
        std::fs::write(&file, text).expect("write");
        let given = Settings { settings: Some(file), volumes: Some(7), ..Settings::default() };
        let config = given.with_file().expect("read").config("n").expect("config");
        assert_eq!((config.limits.volumes, config.limits.tenant_bytes), (7, 10 << 30));
        assert_eq!(config.pods, Path::new("/data/kubelet/pods"));
        assert_eq!(config.domains["physics"], ["cms/*"]);
    }

    #[test]
    fn what_can_not_work_is_said_in_one_line() {
        let folder = tempfile::tempdir().expect("tempdir");
        let file = folder.path().join("settings.yaml");
        std::fs::write(&file, "volumez: 5\n").expect("write");
        let given = Settings { settings: Some(file), ..Settings::default() };
        let line = given.with_file().expect_err("a typing error").to_string();
        assert!(line.contains("volumez") && !line.contains('\n'), "{line}");
        let with = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.config("n").expect_err("wrong").to_string()
        };
        assert!(with(|s| s.kubelet_dir = Some("kubelet".into())).starts_with("--kubelet-dir kubelet: "));
        assert!(with(|s| s.state_dir = Some("/a/../b".into())).starts_with("--state-dir "));
        assert!(with(|s| s.driver_name = Some("a/b".into())).starts_with("--driver-name "));
        assert!(with(|s| s.volumes = Some(0)).starts_with("--volumes 0: "));
        assert!(
            with(|s| s.endpoint = Some(format!("/{}", "x".repeat(120)).into())).starts_with("--endpoint ")
        );
    }
}
