//! Settings: each has one name as a flag, an environment variable and a key of the settings file.
//!
//! A flag wins over the environment, that over the file, that over the default. `--state-dir` is `LATEBIND_STATE_DIR` and
//! `state-dir:`. The file is `$XDG_CONFIG_HOME/latebind/settings.yaml`, or the one that `--settings` names; it need not
//! exist. Nothing else in the pilot reads the environment.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::mounts::Mount;
use crate::telemetry::LogFormat;
use crate::units::{Bytes, MilliCpu};

/// Settings as given, by flag or environment. Everything is optional: defaults depend on the machine.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[command(next_help_heading = "Settings (flag, LATEBIND_<NAME>, or a key of the settings file)")]
pub struct Settings {
    /// File with settings, a YAML mapping of these names
    #[arg(long, env = "LATEBIND_SETTINGS", global = true, value_name = "FILE")]
    #[serde(skip)]
    pub settings: Option<PathBuf>,
    /// Where payloads run [default: local]
    #[arg(long, env = "LATEBIND_BACKEND", global = true, value_enum)]
    pub backend: Option<Backend>,
    /// Where images are kept; may be shared between machines [default: ~/.cache/latebind]
    #[arg(long, env = "LATEBIND_STORE", global = true, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// File with what is to be known about registries: mirrors, CAs [default: ~/.config/latebind/registries.yaml]
    #[arg(long, env = "LATEBIND_REGISTRIES", global = true, value_name = "FILE")]
    pub registries: Option<PathBuf>,
    /// Auth file (docker's or podman's) for registries [default: where `podman login` and `docker login` put it]
    #[arg(long, env = "LATEBIND_REGISTRY_AUTH", global = true, value_name = "FILE")]
    pub registry_auth: Option<PathBuf>,
    /// Where submitted work is kept; local to this machine [default: ~/.local/state/latebind/spool]
    #[arg(long, env = "LATEBIND_SPOOL", global = true, value_name = "DIR")]
    pub spool: Option<PathBuf>,
    /// Where running slots live; local to this machine [default: $XDG_RUNTIME_DIR/latebind or below /dev/shm]
    #[arg(long, env = "LATEBIND_STATE_DIR", global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where payloads' work folders and file stages live, on disk [default: $TMPDIR/latebind-UID]
    #[arg(long, env = "LATEBIND_SCRATCH_DIR", global = true, value_name = "DIR")]
    pub scratch_dir: Option<PathBuf>,
    /// The payload-shim program [default: beside the pilot]
    #[arg(long, env = "LATEBIND_SHIM", global = true, value_name = "FILE")]
    pub shim: Option<PathBuf>,
    /// How an image becomes a root file system
    #[arg(long, env = "LATEBIND_ATTACH", global = true, value_enum)]
    pub attach: Option<AttachChoice>,
    /// First host uid for slots when the pilot runs as root [default: 2000000000]
    #[arg(long, env = "LATEBIND_UID_BASE", global = true, value_name = "UID")]
    pub uid_base: Option<u32>,
    /// Slots: how many payloads may run at once [default: the processors this process may use]
    #[arg(long, env = "LATEBIND_SLOTS", global = true, value_name = "N")]
    pub slots: Option<u32>,
    /// Processors to hand out, shared by all slots, such as 4 or 2500m [default: all that this process may use]
    #[arg(long, env = "LATEBIND_CPU", global = true, value_name = "CPUS")]
    pub cpu: Option<MilliCpu>,
    /// Memory to hand out, shared by all slots, such as 8Gi [default: 80% of what is available]
    #[arg(long, env = "LATEBIND_MEMORY", global = true, value_name = "BYTES")]
    pub memory: Option<Bytes>,
    /// Whether a container may serve several payloads of one trust group, cleaned in between [default: true]
    #[arg(long, env = "LATEBIND_REUSE", global = true, value_name = "BOOL")]
    pub reuse: Option<bool>,
    /// How long payloads go on when the pilot that serves them has died, in milliseconds [default: 600000]
    #[arg(long, env = "LATEBIND_ORPHAN_GRACE_MS", global = true, value_name = "MS")]
    pub orphan_grace_ms: Option<u32>,
    /// Name under which a pilot serves; the next one of this name goes on where it stopped [default: pilot]
    #[arg(long, env = "LATEBIND_NAME", global = true, value_name = "NAME")]
    pub name: Option<String>,
    /// Payloads to claim, and bind, beyond what can run at once [default: the number of slots]
    #[arg(long, env = "LATEBIND_BIND_AHEAD", global = true, value_name = "N")]
    pub bind_ahead: Option<u32>,
    /// A serving pilot ends when it had nothing to do for so long, in milliseconds [default: never]
    #[arg(long, env = "LATEBIND_IDLE_MS", global = true, value_name = "MS")]
    pub idle_ms: Option<u64>,
    /// How long a serving pilot has its place; it takes no work near the end [default: for ever]
    #[arg(long, env = "LATEBIND_LIFETIME_MS", global = true, value_name = "MS")]
    pub lifetime_ms: Option<u64>,
    /// Where a serving pilot tells its figures in Prometheus' text format, such as 127.0.0.1:9464 [default: nowhere]
    #[arg(long, env = "LATEBIND_METRICS", global = true, value_name = "ADDR")]
    pub metrics: Option<std::net::SocketAddr>,
    /// In a pod: the volume that the pilot shares with its slots
    #[arg(long, env = "LATEBIND_SHARE", global = true, value_name = "DIR")]
    pub share: Option<PathBuf>,
    /// In a pod: its name
    #[arg(long, env = "LATEBIND_POD", global = true, value_name = "NAME")]
    pub pod: Option<String>,
    /// On Kubernetes: the namespace [default: the pod's own, or the one that the kubeconfig says]
    #[arg(long, env = "LATEBIND_NAMESPACE", global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// On Kubernetes: the image of slots that nothing is bound to, by digest; it brings the payload-shim
    #[arg(long, env = "LATEBIND_IDLE_IMAGE", global = true, value_name = "IMAGE")]
    pub idle_image: Option<String>,
    /// In a pod: the Secret into which the pilot may put the logins that payloads bring [default: none]
    #[arg(long, env = "LATEBIND_PULL_SECRET", global = true, value_name = "NAME")]
    pub pull_secret: Option<String>,
    /// In a pod: whether the pilot may fetch images by pods of their own [default: false]
    #[arg(long, env = "LATEBIND_PREFETCH", global = true, value_name = "BOOL")]
    pub prefetch: Option<bool>,
    /// In a pod: whether the pilot may resize its slots for each payload [default: false]
    #[arg(long, env = "LATEBIND_RESIZE", global = true, value_name = "BOOL")]
    pub resize: Option<bool>,
    /// In a pod: where payloads may have inputs mounted, as /data/calib or /etc/app.json:file (may be repeated) [default: nowhere]
    #[arg(long, env = "LATEBIND_MOUNT", global = true, value_name = "DEST", value_delimiter = ',')]
    pub mount: Vec<Mount>,
    /// Most bytes kept of each payload's stdout, and of its stderr [default: 16Mi]
    #[arg(long, env = "LATEBIND_LOG_MAX", global = true, value_name = "BYTES")]
    pub log_max: Option<Bytes>,
    /// How the pilot's own log is written [default: plain]
    #[arg(long, env = "LATEBIND_LOG_FORMAT", global = true, value_enum)]
    pub log_format: Option<LogFormat>,
}

/// The attach ladder (ARCHITECTURE.md), or one rung of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachChoice {
    /// The first that works here.
    #[default]
    Auto,
    /// Overlay whose file contents stay in the store (Linux 6.16 without root).
    DataOnly,
    /// Overlay over an extracted tree (Linux 5.11 without root).
    Overlay,
    /// A copied tree.
    Copy,
}

/// Where payloads run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// On this machine, in rootless containers.
    #[default]
    Local,
    /// In a pod: that of the pilot, or one that `pilot run` makes.
    Kubernetes,
}

/// What is set about the pod that a pilot is in, or makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodPlace {
    /// The volume that pilot and slots share.
    pub share: Option<PathBuf>,
    /// The pod's name.
    pub pod: Option<String>,
    /// The namespace.
    pub namespace: Option<String>,
    /// The image of idle slots.
    pub idle_image: Option<String>,
    /// The Secret for late-bound logins.
    pub pull_secret: Option<String>,
    /// Whether images may be fetched by pods of their own.
    pub prefetches: bool,
    /// Whether slots may be resized.
    pub resizes: bool,
}

/// Settings after defaults; what the rest of the pilot sees.
#[derive(Clone, Debug)]
pub struct Config {
    /// In which pod; on this machine if none.
    pub place: Option<PodPlace>,
    /// The image store.
    pub store: PathBuf,
    /// How registries are reached.
    pub registry_access: image_store::RegistryAccess,
    /// Slots, sockets, metadata trees.
    pub state_dir: PathBuf,
    /// Work folders and file stages.
    pub scratch_dir: PathBuf,
    /// The shim's program file.
    pub shim: PathBuf,
    /// How to attach.
    pub attach: AttachChoice,
    /// First slot uid as root.
    pub uid_base: u32,
    /// Number of slots.
    pub slots: u32,
    /// Processors to hand out, in thousandths.
    pub cpu_millis: u64,
    /// Memory to hand out, in bytes.
    pub memory_bytes: u64,
    /// Most bytes kept of one stream.
    pub log_max_bytes: u64,
    /// Whether a container may serve several payloads.
    pub reuse: bool,
    /// How long payloads go on without their pilot, in milliseconds.
    pub orphan_grace_ms: u32,
    /// Name of a serving pilot.
    pub name: String,
    /// Payloads claimed beyond what can run at once.
    pub bind_ahead: u32,
    /// Longest idleness in milliseconds.
    pub idle_ms: Option<u64>,
    /// The pilot's own walltime in milliseconds.
    pub lifetime_ms: Option<u64>,
}

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that `--settings` names can't be read.
    #[error("read settings {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a mapping of settings.
    #[error("{}: {reason}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Line, column and what is wrong, in one line.
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
    /// No shim beside the pilot and none named.
    #[error("find payload-shim at {}: build it with ./build, or name it with --shim", path.display())]
    NoShim {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// No home folder is known.
    #[error("choose a folder for images: HOME is not set; name one with --store")]
    NoHome,
    /// No home folder is known, and the spool is to be there.
    #[error("choose a folder for the spool: HOME is not set; name one with --spool")]
    NoHomeForSpool,
}

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

/// Share of the available memory that is handed out by default, in percent; the rest is for the page cache and the
/// pilot itself.
const MEMORY_SHARE_PERCENT: u64 = 80;
/// Slots run under this uid and the ones above it: beyond what useradd(8) or a subuid range hands out.
const UID_BASE: u32 = 2_000_000_000;
/// Ten minutes: time for an admin, or a supervisor, to start the pilot again.
const ORPHAN_GRACE_MS: u32 = 600_000;
/// More slots than this help nobody on one machine and cost a folder and a uid each.
const SLOTS_MAX: u32 = 1024;

impl Settings {
    /// Fills the gaps from the settings file.
    ///
    /// # Errors
    /// When a named file can't be read, or a file is wrong.
    pub fn with_file(self, around: &Surroundings) -> Result<Self, ConfigError> {
        let default = around
            .config_home
            .clone()
            .or_else(|| around.home.as_ref().map(|home| home.join(".config")))
            .map(|folder| folder.join("latebind/settings.yaml"));
        let Some(path) = self.settings.clone().or_else(|| default.clone()) else { return Ok(self) };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.settings.is_none() => {
                return Ok(self);
            }
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        if text.trim().is_empty() {
            return Ok(self);
        }
        let file: Self = serde_saphyr::from_str(&text)
            .map_err(|error| ConfigError::Parse { path, reason: one_line(&error.to_string()) })?;
        Ok(self.or(file))
    }

    fn or(self, file: Self) -> Self {
        let Self {
            settings,
            backend,
            store,
            registries,
            registry_auth,
            spool,
            state_dir,
            scratch_dir,
            shim,
            attach,
            uid_base,
            slots,
            cpu,
            memory,
            reuse,
            orphan_grace_ms,
            name,
            bind_ahead,
            idle_ms,
            lifetime_ms,
            metrics,
            share,
            pod,
            namespace,
            idle_image,
            pull_secret,
            prefetch,
            resize,
            mount,
            log_max,
            log_format,
        } = self;
        Self {
            settings,
            backend: backend.or(file.backend),
            store: store.or(file.store),
            registries: registries.or(file.registries),
            registry_auth: registry_auth.or(file.registry_auth),
            spool: spool.or(file.spool),
            state_dir: state_dir.or(file.state_dir),
            scratch_dir: scratch_dir.or(file.scratch_dir),
            shim: shim.or(file.shim),
            attach: attach.or(file.attach),
            uid_base: uid_base.or(file.uid_base),
            slots: slots.or(file.slots),
            cpu: cpu.or(file.cpu),
            memory: memory.or(file.memory),
            reuse: reuse.or(file.reuse),
            orphan_grace_ms: orphan_grace_ms.or(file.orphan_grace_ms),
            name: name.or(file.name),
            bind_ahead: bind_ahead.or(file.bind_ahead),
            idle_ms: idle_ms.or(file.idle_ms),
            lifetime_ms: lifetime_ms.or(file.lifetime_ms),
            metrics: metrics.or(file.metrics),
            share: share.or(file.share),
            pod: pod.or(file.pod),
            namespace: namespace.or(file.namespace),
            idle_image: idle_image.or(file.idle_image),
            pull_secret: pull_secret.or(file.pull_secret),
            prefetch: prefetch.or(file.prefetch),
            resize: resize.or(file.resize),
            mount: if mount.is_empty() { file.mount } else { mount },
            log_max: log_max.or(file.log_max),
            log_format: log_format.or(file.log_format),
        }
    }
}

impl PodPlace {
    /// What is set, if payloads run in a pod.
    fn of(settings: &Settings) -> Option<Self> {
        match settings.backend.unwrap_or_default() {
            Backend::Local => None,
            Backend::Kubernetes => Some(Self {
                share: settings.share.clone().map(absolute),
                pod: settings.pod.clone(),
                namespace: settings.namespace.clone(),
                idle_image: settings.idle_image.clone(),
                pull_secret: settings.pull_secret.clone(),
                prefetches: settings.prefetch.unwrap_or(false),
                resizes: settings.resize.unwrap_or(false),
            }),
        }
    }
}

impl Config {
    /// Checks the settings and fills in the machine's defaults.
    ///
    /// # Errors
    /// When a value can't work here.
    pub fn new(settings: Settings, around: &Surroundings) -> Result<Self, ConfigError> {
        let place = PodPlace::of(&settings);
        let Settings {
            settings: _,
            backend: _,
            store,
            registries,
            registry_auth,
            spool: _,
            state_dir,
            scratch_dir,
            shim,
            attach,
            uid_base,
            slots,
            cpu,
            memory,
            reuse,
            orphan_grace_ms,
            name,
            bind_ahead,
            idle_ms,
            lifetime_ms,
            metrics: _,
            // See PodPlace.
            share: _,
            pod: _,
            namespace: _,
            idle_image: _,
            pull_secret: _,
            prefetch: _,
            resize: _,
            // Of the manifest; a pilot in a pod reads them there.
            mount: _,
            log_max,
            log_format: _,
        } = settings;
        let name = name.unwrap_or_else(|| "pilot".to_owned());
        if stage::StageName::new(&name).is_err() {
            let reason =
                "it must be 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit";
            return Err(ConfigError::Value { name: "name", value: name, reason });
        }
        let (slots, cpu_millis) = shares(slots, cpu, around)?;
        let tmp = around.tmp_dir.clone().unwrap_or_else(|| PathBuf::from("/tmp"));
        let runtime = || match &around.runtime_dir {
            Some(folder) => folder.join("latebind"),
            None => PathBuf::from(format!("/dev/shm/latebind-{}", around.uid)),
        };
        Ok(Self {
            store: store_folder(store, around)?,
            registry_access: crate::registries::registry_access(registries, registry_auth, around)?,
            state_dir: absolute(state_dir.unwrap_or_else(runtime)),
            scratch_dir: absolute(
                scratch_dir.unwrap_or_else(|| tmp.join(format!("latebind-{}", around.uid))),
            ),
            // In a pod the slots bring it.
            shim: if place.is_none() { find_shim(shim, around)? } else { PathBuf::new() },
            place,
            attach: attach.unwrap_or_default(),
            uid_base: uid_base.unwrap_or(UID_BASE),
            slots,
            cpu_millis,
            memory_bytes: memory
                .map_or(around.memory_available_bytes / 100 * MEMORY_SHARE_PERCENT, |memory| memory.0),
            name,
            bind_ahead: bind_ahead.unwrap_or(slots).min(SLOTS_MAX),
            idle_ms,
            lifetime_ms,
            reuse: reuse.unwrap_or(true),
            orphan_grace_ms: orphan_grace_ms.unwrap_or(ORPHAN_GRACE_MS).min(wire::slot::GRACE_MS_MAX),
            log_max_bytes: log_max.map_or(crate::runtime::logs::LogLimit::default().0, |bytes| bytes.0),
        })
    }
}

/// Slots and processors to hand out.
fn shares(
    slots: Option<u32>,
    cpu: Option<MilliCpu>,
    around: &Surroundings,
) -> Result<(u32, u64), ConfigError> {
    let slots = slots.unwrap_or(around.processors.max(1));
    if slots == 0 || slots > SLOTS_MAX {
        let reason = "at least one slot and at most 1024 are possible";
        return Err(ConfigError::Value { name: "slots", value: slots.to_string(), reason });
    }
    let cpu_millis = cpu.map_or(u64::from(around.processors.max(1)) * 1000, |cpu| cpu.0);
    if cpu_millis == 0 {
        let reason = "payloads need some processor time, such as 1 or 500m";
        return Err(ConfigError::Value { name: "cpu", value: "0".into(), reason });
    }
    Ok((slots, cpu_millis))
}

/// The image store's folder: as named, or in the user's cache.
///
/// # Errors
/// When none is named and there is no home folder.
pub fn store_folder(named: Option<PathBuf>, around: &Surroundings) -> Result<PathBuf, ConfigError> {
    let below_home = || around.home.as_ref().map(|home| home.join(".cache"));
    let cache = || around.cache_home.clone().or_else(below_home).map(|cache| cache.join("latebind"));
    named.or_else(cache).map(absolute).ok_or(ConfigError::NoHome)
}

/// The spool's folder: as named, or in the user's state, which outlives a reboot as caches and runtime folders may not.
///
/// # Errors
/// When none is named and there is no home folder.
pub fn spool_folder(named: Option<PathBuf>, around: &Surroundings) -> Result<PathBuf, ConfigError> {
    let below_home = || around.home.as_ref().map(|home| home.join(".local/state"));
    let state = || around.state_home.clone().or_else(below_home).map(|state| state.join("latebind/spool"));
    named.or_else(state).map(absolute).ok_or(ConfigError::NoHomeForSpool)
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

fn find_shim(named: Option<PathBuf>, around: &Surroundings) -> Result<PathBuf, ConfigError> {
    let beside = || around.program.as_deref().and_then(Path::parent).map(|dir| dir.join("payload-shim"));
    let path = named.or_else(beside).unwrap_or_else(|| PathBuf::from("payload-shim"));
    if path.is_file() { Ok(absolute(path)) } else { Err(ConfigError::NoShim { path }) }
}

fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
