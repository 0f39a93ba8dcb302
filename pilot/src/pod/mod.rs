//! The pilot's pod as Kubernetes is told of it: one container for the pilot, one for each slot, and what they share.
//!
//! Pure: from a [`Shape`] to a manifest. Everything that a slot will ever have is fixed here, because later only images and
//! nonces may change: who it runs as, its limits, its folders.
//!
//! **Must not know:** clusters, files, how the pod is used.

mod slot;

use serde_json::{Value, json};
use wire::slot::Nonce;

use crate::mounts::Mount;

/// Where the shared volume is in the pilot's container.
pub const SHARE: &str = "/latebind/share";
/// Where the pilot's program is in its image.
pub const PROGRAM: &str = "/latebind/pilot";
/// Who the pilot is; slot n is the n-th after it. Any number will do that nobody else has in the pod.
pub const PILOT_UID: u32 = 10_000;
/// Memory of the pilot's container, and what stages may take of it.
const PILOT_MEMORY: &str = "1Gi";
const STAGE_MEMORY: &str = "768Mi";
/// In which folder of a slot the shim's program is.
const SHIM_FOLDER: &str = "/.latebind/bin";
/// Where an init container copies the shim to, on clusters without image volumes.
const SHIM_COPY: &str = "/latebind/bin";
/// Where the Secret with the pilot's own login is.
const LOGIN: &str = "/latebind/login";
/// Where the ConfigMap about registries is.
const REGISTRIES: &str = "/latebind/registries";
/// The label by which pods of pilots are found.
pub const LABEL: (&str, &str) = ("app.kubernetes.io/name", "latebind-pilot");
/// From this minor version of Kubernetes 1 on, image volumes are always there (KEP-4639).
pub const IMAGE_VOLUMES_SINCE: u32 = 36;

/// What kind of object holds the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// The pod alone.
    #[default]
    Pod,
    /// A Deployment: pilots that live on and are replaced.
    Deployment,
    /// A Job: a pilot that ends.
    Job,
}

/// What can be chosen about the pod.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Its name.
    pub name: String,
    /// What holds it.
    pub form: Form,
    /// The image with the pilot's program.
    pub pilot_image: String,
    /// The image with the shim's program, by digest; idle slots have it.
    pub idle_image: String,
    /// How many slots.
    pub slots: u32,
    /// Processors of each slot, in thousandths.
    pub slot_cpu_millis: u64,
    /// Memory of each slot, in bytes.
    pub slot_memory_bytes: u64,
    /// Whether the cluster has image volumes.
    pub image_volume: bool,
    /// Whose rights the pilot has.
    pub service_account: String,
    /// Secrets with logins for registries that are the same for all payloads.
    pub pull_secrets: Vec<String>,
    /// The Secret with the login that pilot and node have for all payloads' images.
    pub login: Option<String>,
    /// The Secret for logins that payloads bring.
    pub late_secret: Option<String>,
    /// ConfigMap with `registries.yaml` and what it names, such as authorities' certificates.
    pub registries: Option<String>,
    /// The Secret whose entries are variables of the pilot: how it reaches objects.
    pub s3_secret: Option<String>,
    /// Whether images may be fetched by pods of their own.
    pub prefetch: bool,
    /// Whether slots may be resized.
    pub resize: bool,
    /// Whether payloads may write to their images' files.
    pub writable_root: bool,
    /// Where payloads may have inputs mounted, in each slot.
    pub mounts: Vec<Mount>,
    /// How long the cluster lets the pod end in peace, in seconds.
    pub grace_s: u64,
    /// Whether it ends: containers that end well are not started again. Always so for a Job.
    pub ends: bool,
    /// What the pilot does: the arguments of its program.
    pub command: Vec<String>,
    /// Added to the pilot's environment.
    pub env: Vec<(String, String)>,
}

impl Shape {
    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> Value {
        let labels = json!({LABEL.0: LABEL.1, "app.kubernetes.io/instance": self.name});
        let pod_meta = json!({"labels": labels, "annotations": self.annotations()});
        match self.form {
            Form::Pod => json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": self.name, "labels": labels, "annotations": self.annotations()},
                "spec": self.spec(if self.ends { "OnFailure" } else { "Always" }),
            }),
            Form::Deployment => json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": self.name, "labels": labels},
                "spec": {
                    "replicas": 1,
                    "selector": {"matchLabels": labels},
                    "template": {"metadata": pod_meta, "spec": self.spec("Always")},
                },
            }),
            Form::Job => json!({
                "apiVersion": "batch/v1", "kind": "Job",
                "metadata": {"name": self.name, "labels": labels},
                "spec": {
                    // Each bind restarts a container, and the controller counts restarts.
                    "backoffLimit": i32::MAX,
                    "template": {"metadata": pod_meta, "spec": self.spec("OnFailure")},
                },
            }),
        }
    }

    fn annotations(&self) -> Value {
        let idle = |slot| (format!("latebind.dev/slot-{slot}"), json!(Nonce::IDLE.to_hex()));
        Value::Object((0..self.slots).map(idle).collect())
    }

    fn spec(&self, restart: &str) -> Value {
        let mut containers = vec![self.pilot()];
        containers.extend((0..self.slots).map(|slot| slot::container(self, slot)));
        let mut secrets: Vec<&String> = Vec::new();
        for name in self.pull_secrets.iter().chain(&self.login).chain(&self.late_secret) {
            if !secrets.contains(&name) {
                secrets.push(name);
            }
        }
        json!({
            "serviceAccountName": self.service_account,
            "automountServiceAccountToken": false,
            // Variables about the namespace's Services are none of the payloads' business.
            "enableServiceLinks": false,
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": self.grace_s,
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "imagePullSecrets": secrets.iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
            "initContainers": [self.prepare()],
            "containers": containers,
            "volumes": self.volumes(),
        })
    }

    /// Makes the folders of the shared volume before any slot starts.
    fn prepare(&self) -> Value {
        let mut env = vec![env("LATEBIND_SLOTS", &self.slots.to_string()), env("LATEBIND_SHARE", SHARE)];
        if !self.mounts.is_empty() {
            let mounts: Vec<String> = self.mounts.iter().map(ToString::to_string).collect();
            env.push(self::env("LATEBIND_MOUNT", &mounts.join(",")));
        }
        let mut mounts = vec![mount("share", SHARE)];
        if !self.image_volume {
            env.push(self::env("LATEBIND_SHIM_COPY", &format!("{SHIM_COPY}/payload-shim")));
            mounts.push(mount("shim", SHIM_COPY));
        }
        json!({
            "name": "prepare",
            "image": self.pilot_image,
            "imagePullPolicy": "IfNotPresent",
            "command": [PROGRAM, "prepare-share"],
            "env": env,
            "securityContext": confined(PILOT_UID, true),
            "resources": amounts(100, 64 << 20),
            "volumeMounts": mounts,
        })
    }

    fn pilot(&self) -> Value {
        let private = format!("{SHARE}/pilot");
        let below = |name: &str| format!("{private}/{name}");
        let mut env = vec![
            self::env("LATEBIND_BACKEND", "kubernetes"),
            self::env("LATEBIND_SHARE", SHARE),
            self::env("LATEBIND_IDLE_IMAGE", &self.idle_image),
            self::env("LATEBIND_SPOOL", &below("spool")),
            self::env("LATEBIND_STORE", &below("store")),
            self::env("HOME", &private),
            self::env("TMPDIR", &below("tmp")),
            self::env("LATEBIND_MEMORY", STAGE_MEMORY),
            field("LATEBIND_POD", "metadata.name"),
            field("LATEBIND_NAMESPACE", "metadata.namespace"),
        ];
        env.extend(self.late_secret.iter().map(|name| self::env("LATEBIND_PULL_SECRET", name)));
        let mut mounts = vec![
            mount("share", SHARE),
            json!({
                "name": "token", "readOnly": true,
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
            }),
        ];
        if self.registries.is_some() {
            env.push(self::env("LATEBIND_REGISTRIES", &format!("{REGISTRIES}/registries.yaml")));
            mounts.push(json!({"name": "registries", "mountPath": REGISTRIES, "readOnly": true}));
        }
        if self.login.is_some() {
            env.push(self::env("LATEBIND_REGISTRY_AUTH", &format!("{LOGIN}/auth.json")));
            mounts.push(json!({"name": "login", "mountPath": LOGIN, "readOnly": true}));
        }
        env.extend(self.prefetch.then(|| self::env("LATEBIND_PREFETCH", "true")));
        env.extend(self.resize.then(|| self::env("LATEBIND_RESIZE", "true")));
        env.extend(self.env.iter().map(|(name, value)| self::env(name, value)));
        let secret = |name: &String| json!({"secretRef": {"name": name}});
        let from: Vec<Value> = self.s3_secret.iter().map(secret).collect();
        let mut command = vec![PROGRAM.to_owned()];
        command.extend(self.command.iter().cloned());
        json!({
            "name": "pilot",
            "image": self.pilot_image,
            "imagePullPolicy": "IfNotPresent",
            "command": command,
            // Where `pilot submit` puts a run's folder when nobody says; the root is read-only.
            "workingDir": private,
            "envFrom": from,
            "env": env,
            "securityContext": confined(PILOT_UID, true),
            // Small when idle; stages in memory are the pilot's.
            "resources": {
                "requests": {"cpu": "50m", "memory": "64Mi"},
                "limits": {"cpu": "1", "memory": PILOT_MEMORY},
            },
            "volumeMounts": mounts,
        })
    }

    fn volumes(&self) -> Value {
        let shim = if self.image_volume {
            json!({"name": "shim", "image": {"reference": self.idle_image, "pullPolicy": "IfNotPresent"}})
        } else {
            json!({"name": "shim", "emptyDir": {"sizeLimit": "16Mi"}})
        };
        let mut volumes = vec![json!({"name": "share", "emptyDir": {}}), shim];
        volumes.extend(
            (0..self.slots)
                .map(|slot| json!({"name": format!("memory-{slot}"), "emptyDir": {"medium": "Memory"}})),
        );
        volumes.extend(
            self.registries.iter().map(|name| json!({"name": "registries", "configMap": {"name": name}})),
        );
        let auth = json!([{"key": ".dockerconfigjson", "path": "auth.json"}]);
        volumes.extend(
            self.login
                .iter()
                .map(|name| json!({"name": "login", "secret": {"secretName": name, "items": auth}})),
        );
        volumes.push(json!({"name": "token", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        ]}}));
        Value::Array(volumes)
    }
}

fn env(name: &str, value: &str) -> Value {
    json!({"name": name, "value": value})
}

fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

fn mount(volume: &str, path: &str) -> Value {
    json!({"name": volume, "mountPath": path})
}

/// What Pod Security `restricted` asks for, and a read-only root.
fn confined(uid: u32, read_only_root: bool) -> Value {
    json!({
        "runAsUser": uid, "runAsGroup": uid,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": read_only_root,
        "capabilities": {"drop": ["ALL"]},
    })
}

/// Requests and limits alike: what a slot has is its own.
fn amounts(cpu_millis: u64, memory_bytes: u64) -> Value {
    let amounts = json!({"cpu": format!("{cpu_millis}m"), "memory": memory_bytes.to_string()});
    json!({"requests": amounts, "limits": amounts})
}

#[cfg(test)]
#[path = "pod_tests.rs"]
pub(crate) mod tests;
