//! `pilot pod`: prints the manifest of a pilot's pod. And what its init container does: `pilot prepare-share`.
//!
//! **Must not know:** clusters.

use std::path::{Path, PathBuf};

use clap::Args;
use pilot_core::RunExit;

use crate::cli::{OutputFormat, complain, refuse, say};
use crate::config::Settings;
use crate::mounts::{MountError, together};
use crate::pod::{Form, IMAGE_VOLUMES_SINCE, Shape};

/// Slots of a pod when nobody says.
const SLOTS: u32 = 2;
/// Memory of each when nobody says: what a payload asks for when nobody says.
const SLOT_MEMORY_BYTES: u64 = 1 << 30;

/// What can be said of a pod on the command line, beside the settings.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "The pilot's pod")]
pub struct PodArgs {
    /// Image with the pilot's program; deploy/image/build makes one
    #[arg(long, env = "LATEBIND_PILOT_IMAGE", value_name = "IMAGE")]
    pub pilot_image: Option<String>,
    /// Version of the cluster, such as 1.34: older ones have no image volumes, and get the shim by a copy
    #[arg(long, value_name = "VERSION", value_parser = minor)]
    pub kube_version: Option<u32>,
    /// The pod's ServiceAccount
    #[arg(long, value_name = "NAME", default_value = "latebind-pilot")]
    pub service_account: String,
    /// Secret with a login for a registry that all payloads may use (may be repeated)
    #[arg(long, value_name = "NAME")]
    pub image_pull_secret: Vec<String>,
    /// Secret with the login that pilot and node have for payloads' images; of type kubernetes.io/dockerconfigjson
    #[arg(long, value_name = "NAME")]
    pub registry_login: Option<String>,
    /// Secret with AWS's variables (AWS_ACCESS_KEY_ID, ..) for the objects of payloads; `pilot run` sends yours by itself
    #[arg(long, value_name = "NAME")]
    pub s3_secret: Option<String>,
    /// ConfigMap with registries.yaml, and the certificates that it names
    #[arg(long, value_name = "NAME")]
    pub registries_config: Option<String>,
    /// Let payloads write to their images' files
    #[arg(long)]
    pub writable_root: bool,
    /// How long the cluster lets the pod end in peace, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub pod_grace: u64,
}

/// Arguments of `pilot pod`.
#[derive(Args, Clone, Debug)]
pub struct PodCommandArgs {
    /// What holds the pod
    #[arg(long, value_enum, default_value_t)]
    pub form: Form,
    /// The pod.
    #[command(flatten)]
    pub pod: PodArgs,
}

/// Why there is no such pod.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    /// An image is not named.
    #[error("make a pod: --{0} is not set; deploy/image/build makes the images and prints their names")]
    NoImage(&'static str),
    /// A name without a digest can't be bound twice.
    #[error("make a pod: --idle-image {0} has no digest; write it as NAME@sha256:..")]
    NoDigest(String),
    /// Fewer than one, or more than a pod holds.
    #[error("make a pod with {0} slots: from 1 to 64 are possible")]
    Slots(u32),
    /// Mounts that no pod can have together.
    #[error(transparent)]
    Mounts(#[from] MountError),
}

/// Accepts `1.34`, `v1.34.2` and `34`.
fn minor(text: &str) -> Result<u32, String> {
    let rest = text.trim_start_matches('v').trim_start_matches("1.");
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().map_err(|_| format!("{text} is not a version such as 1.34"))
}

/// The pod that settings and arguments describe.
///
/// # Errors
/// When an image is missing or a number is out of range.
pub fn shape(settings: &Settings, arguments: &PodArgs) -> Result<Shape, ShapeError> {
    let slots = settings.slots.unwrap_or(SLOTS);
    if slots == 0 || slots > 64 {
        return Err(ShapeError::Slots(slots));
    }
    let each = u64::from(slots);
    let idle_image = settings.idle_image.clone().ok_or(ShapeError::NoImage("idle-image"))?;
    if !idle_image.contains("@sha256:") {
        return Err(ShapeError::NoDigest(idle_image));
    }
    Ok(Shape {
        name: settings.name.clone().unwrap_or_else(|| "latebind-pilot".to_owned()),
        form: Form::Pod,
        pilot_image: arguments.pilot_image.clone().ok_or(ShapeError::NoImage("pilot-image"))?,
        idle_image,
        slots,
        slot_cpu_millis: settings.cpu.map_or(1000, |cpu| cpu.0 / each),
        slot_memory_bytes: settings.memory.map_or(SLOT_MEMORY_BYTES, |memory| memory.0 / each),
        image_volume: arguments.kube_version.is_none_or(|minor| minor >= IMAGE_VOLUMES_SINCE),
        service_account: arguments.service_account.clone(),
        pull_secrets: arguments.image_pull_secret.clone(),
        login: arguments.registry_login.clone(),
        late_secret: settings.pull_secret.clone(),
        registries: arguments.registries_config.clone(),
        s3_secret: arguments.s3_secret.clone(),
        prefetch: settings.prefetch.unwrap_or(false),
        resize: settings.resize.unwrap_or(false),
        writable_root: arguments.writable_root,
        mounts: together(settings.mount.iter().cloned())?,
        grace_s: arguments.pod_grace,
        ends: false,
        command: vec!["serve".to_owned()],
        env: Vec::new(),
    })
}

/// Prints the manifest.
pub fn pod(settings: &Settings, arguments: &PodCommandArgs, output: OutputFormat) -> RunExit {
    let shape = match shape(settings, &arguments.pod) {
        Ok(shape) => Shape { form: arguments.form, ..shape },
        Err(error) => return refuse(&error),
    };
    let manifest = shape.manifest();
    if output == OutputFormat::Json {
        say(&format!("{manifest:#}\n"));
        return RunExit::Success;
    }
    match serde_saphyr::to_string(&manifest) {
        Ok(text) => {
            say(&text);
            RunExit::Success
        }
        Err(error) => {
            complain(&format!("write the manifest: {error}"));
            RunExit::OwnFault
        }
    }
}

/// Arguments of `pilot prepare-share`.
#[derive(Args, Clone, Debug)]
pub struct PrepareArgs {
    /// Copy the shim's program here: for clusters that can't mount its image
    #[arg(long, env = "LATEBIND_SHIM_COPY", value_name = "FILE")]
    pub shim_copy: Option<PathBuf>,
}

/// Makes the folders of the shared volume; what the pod's init container does.
pub fn prepare_share(settings: &Settings, program: Option<&Path>, arguments: &PrepareArgs) -> RunExit {
    let Some(share) = &settings.share else {
        complain("--share is not set; this command is for the init container of a pilot's pod");
        return RunExit::BadInput;
    };
    let places = settings.mount.iter().enumerate().map(|(index, mount)| mount.place(index));
    let places: Vec<String> = places.collect();
    let slots = settings.slots.unwrap_or(SLOTS);
    if let Err(error) = crate::runtime::kubernetes::prepare_share(share, slots, &places) {
        complain(&format!("prepare the shared volume {}: {error}", share.display()));
        return RunExit::HostUnable;
    }
    let Some(target) = &arguments.shim_copy else { return RunExit::Success };
    let beside = program.and_then(Path::parent).map(|folder| folder.join("payload-shim"));
    let source = settings.shim.clone().or(beside).unwrap_or_else(|| PathBuf::from("payload-shim"));
    match std::fs::copy(&source, target) {
        Ok(_) => RunExit::Success,
        Err(error) => {
            complain(&format!("copy {} to {}: {error}", source.display(), target.display()));
            RunExit::HostUnable
        }
    }
}

#[cfg(test)]
mod tests {
    use super::minor;

    #[test]
    fn a_version_is_read_as_people_and_servers_write_it() {
        assert_eq!(["1.34", "v1.36.3", "34", "36+"].map(minor), [Ok(34), Ok(36), Ok(34), Ok(36)]);
        assert!(minor("new").is_err());
    }
}
