//! Settings: each has one name as a flag, an environment variable and a key of the settings file.
//!
//! A flag wins over the environment, that over the file, that over the default. `--state-dir` is `LATEBIND_STATE_DIR` and
//! `state-dir:`. The file is `$XDG_CONFIG_HOME/latebind/settings.yaml`, or the one that `--settings` names; it need not
//! exist. Nothing else in the pilot reads the environment.

mod settings;

use std::path::{Path, PathBuf};

pub use self::settings::{AttachChoice, Backend, Settings};
use crate::object_access::{Given, ObjectAccess};
pub use crate::surroundings::Surroundings;
use crate::units::MilliCpu;

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
    /// How objects are reached.
    pub object_access: ObjectAccess,
    /// Most bytes of fetched objects that are kept.
    pub object_cache_bytes: u64,
    /// Most bytes of stages on the volume, if there is a limit.
    pub stage_disk_bytes: Option<u64>,
    /// Where stages go that do not fit there.
    pub spill_to: Option<objects::ObjectUrl>,
    /// Folders below which `file://` outputs may be saved.
    pub save_under: Vec<PathBuf>,
    /// Root of the volume on which stages are shared with other pilots.
    pub exchange: Option<PathBuf>,
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
    /// The certificates of the object server can't be read.
    #[error("read the certificates {}", path.display())]
    Certificates {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The object server's certificates or address can't be used.
    #[error("{0}")]
    Objects(#[from] objects::SettingsError),
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

/// Share of the available memory that is handed out by default, in percent; the rest is for the page cache and the
/// pilot itself.
const MEMORY_SHARE_PERCENT: u64 = 80;
/// Slots run under this uid and the ones above it: beyond what useradd(8) or a subuid range hands out.
const UID_BASE: u32 = 2_000_000_000;
/// Ten minutes: time for an admin, or a supervisor, to start the pilot again.
const ORPHAN_GRACE_MS: u32 = 600_000;
/// Some large inputs for all slots, on the disk that payloads work on.
const OBJECT_CACHE_BYTES: u64 = 10 << 30;
/// More slots than this help nobody on one machine and cost a folder and a uid each.
const SLOTS_MAX: u32 = 1024;

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
        let name = settings.name.unwrap_or_else(|| "pilot".to_owned());
        if stage::StageName::new(&name).is_err() {
            let reason =
                "it must be 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit";
            return Err(ConfigError::Value { name: "name", value: name, reason });
        }
        let (slots, cpu_millis) = shares(settings.slots, settings.cpu, around)?;
        let tmp = around.tmp_dir.clone().unwrap_or_else(|| PathBuf::from("/tmp"));
        let runtime = || match &around.runtime_dir {
            Some(folder) => folder.join("latebind"),
            None => PathBuf::from(format!("/dev/shm/latebind-{}", around.uid)),
        };
        Ok(Self {
            store: store_folder(settings.store, around)?,
            registry_access: crate::registries::registry_access(
                settings.registries,
                settings.registry_auth,
                around,
            )?,
            object_access: ObjectAccess::new(
                Given {
                    endpoint: settings.s3_endpoint,
                    region: settings.s3_region,
                    ca: settings.s3_ca,
                    allow_http: settings.s3_allow_http,
                },
                around,
            )?,
            object_cache_bytes: settings.object_cache.map_or(OBJECT_CACHE_BYTES, |bytes| bytes.0),
            stage_disk_bytes: settings.stage_disk.map(|bytes| bytes.0),
            spill_to: settings.spill_to,
            save_under: settings.save_under.into_iter().map(absolute).collect(),
            exchange: settings.exchange.map(absolute),
            state_dir: absolute(settings.state_dir.unwrap_or_else(runtime)),
            scratch_dir: absolute(
                settings.scratch_dir.unwrap_or_else(|| tmp.join(format!("latebind-{}", around.uid))),
            ),
            // In a pod the slots bring it.
            shim: if place.is_none() { find_shim(settings.shim, around)? } else { PathBuf::new() },
            place,
            attach: settings.attach.unwrap_or_default(),
            uid_base: settings.uid_base.unwrap_or(UID_BASE),
            slots,
            cpu_millis,
            memory_bytes: settings
                .memory
                .map_or(around.memory_available_bytes / 100 * MEMORY_SHARE_PERCENT, |memory| memory.0),
            name,
            bind_ahead: settings.bind_ahead.unwrap_or(slots).min(SLOTS_MAX),
            idle_ms: settings.idle_ms,
            lifetime_ms: settings.lifetime_ms,
            reuse: settings.reuse.unwrap_or(true),
            orphan_grace_ms: settings
                .orphan_grace_ms
                .unwrap_or(ORPHAN_GRACE_MS)
                .min(wire::slot::GRACE_MS_MAX),
            log_max_bytes: settings
                .log_max
                .map_or(crate::runtime::logs::LogLimit::default().0, |bytes| bytes.0),
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

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
