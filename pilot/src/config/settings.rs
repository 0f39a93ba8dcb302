//! Settings as given: by flag or environment, and by the settings file.
//!
//! **Must not know:** defaults, what a value is good for.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::{ConfigError, Surroundings};
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
    /// Server of `s3://` objects, such as `https://s3.example.org` [default: $AWS_ENDPOINT_URL_S3, $AWS_ENDPOINT_URL, AWS]
    #[arg(long, env = "LATEBIND_S3_ENDPOINT", global = true, value_name = "URL")]
    pub s3_endpoint: Option<String>,
    /// Region that requests for objects are signed for [default: $AWS_REGION, $AWS_DEFAULT_REGION, us-east-1]
    #[arg(long, env = "LATEBIND_S3_REGION", global = true, value_name = "NAME")]
    pub s3_region: Option<String>,
    /// File with the certificates (PEM) of who signed the object server's [default: $AWS_CA_BUNDLE, the system's]
    #[arg(long, env = "LATEBIND_S3_CA", global = true, value_name = "FILE")]
    pub s3_ca: Option<PathBuf>,
    /// Whether objects may come over plain http from another machine [default: false]
    #[arg(long, env = "LATEBIND_S3_ALLOW_HTTP", global = true, value_name = "BOOL")]
    pub s3_allow_http: Option<bool>,
    /// Most bytes of fetched objects that are kept for the next payload [default: 10Gi]
    #[arg(long, env = "LATEBIND_OBJECT_CACHE", global = true, value_name = "BYTES")]
    pub object_cache: Option<Bytes>,
    /// Most bytes that stages may take on disk [default: as many as there are]
    #[arg(long, env = "LATEBIND_STAGE_DISK", global = true, value_name = "BYTES")]
    pub stage_disk: Option<Bytes>,
    /// Where stages go that the disk has no room for, such as s3://BUCKET/PREFIX or file:///DIR [default: nowhere]
    #[arg(long, env = "LATEBIND_SPILL_TO", global = true, value_name = "URL")]
    pub spill_to: Option<objects::ObjectUrl>,
    /// Folder below which workflow files may save outputs by file:// (may be repeated) [default: none]
    #[arg(long, env = "LATEBIND_SAVE_UNDER", global = true, value_name = "DIR", value_delimiter = ',')]
    pub save_under: Vec<PathBuf>,
    /// Volume on which other pilots of this node share their stages; this pilot's folders lie below it [default: the pod's, if it has an exchange]
    #[arg(long, env = "LATEBIND_EXCHANGE", global = true, value_name = "DIR")]
    pub exchange: Option<PathBuf>,
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
        Self {
            settings: self.settings,
            backend: self.backend.or(file.backend),
            store: self.store.or(file.store),
            registries: self.registries.or(file.registries),
            registry_auth: self.registry_auth.or(file.registry_auth),
            s3_endpoint: self.s3_endpoint.or(file.s3_endpoint),
            s3_region: self.s3_region.or(file.s3_region),
            s3_ca: self.s3_ca.or(file.s3_ca),
            s3_allow_http: self.s3_allow_http.or(file.s3_allow_http),
            object_cache: self.object_cache.or(file.object_cache),
            stage_disk: self.stage_disk.or(file.stage_disk),
            spill_to: self.spill_to.or(file.spill_to),
            exchange: self.exchange.or(file.exchange),
            save_under: if self.save_under.is_empty() { file.save_under } else { self.save_under },
            spool: self.spool.or(file.spool),
            state_dir: self.state_dir.or(file.state_dir),
            scratch_dir: self.scratch_dir.or(file.scratch_dir),
            shim: self.shim.or(file.shim),
            attach: self.attach.or(file.attach),
            uid_base: self.uid_base.or(file.uid_base),
            slots: self.slots.or(file.slots),
            cpu: self.cpu.or(file.cpu),
            memory: self.memory.or(file.memory),
            reuse: self.reuse.or(file.reuse),
            orphan_grace_ms: self.orphan_grace_ms.or(file.orphan_grace_ms),
            name: self.name.or(file.name),
            bind_ahead: self.bind_ahead.or(file.bind_ahead),
            idle_ms: self.idle_ms.or(file.idle_ms),
            lifetime_ms: self.lifetime_ms.or(file.lifetime_ms),
            metrics: self.metrics.or(file.metrics),
            share: self.share.or(file.share),
            pod: self.pod.or(file.pod),
            namespace: self.namespace.or(file.namespace),
            idle_image: self.idle_image.or(file.idle_image),
            pull_secret: self.pull_secret.or(file.pull_secret),
            prefetch: self.prefetch.or(file.prefetch),
            resize: self.resize.or(file.resize),
            mount: if self.mount.is_empty() { file.mount } else { self.mount },
            log_max: self.log_max.or(file.log_max),
            log_format: self.log_format.or(file.log_format),
        }
    }
}

fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}
