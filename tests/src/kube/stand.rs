//! The kubernetes runtime driven from outside of its pod: the same code with the same right, a token that is bound to the pod,
//! and the same volume, which root finds on the node.
//!
//! **Must not know:** which promises are tried.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pilot::object_access::ObjectAccess;
use pilot::payload::Payload;
use pilot::runtime::kubernetes::{KubernetesRuntime, PodConfig};
use serde_json::{Value, json};

use super::pod::{Pod, Shape};
use super::{Namespace, images};
use crate::conformance::runtime::Stand;
use crate::fake::Deed;
use crate::run::within;

/// A pod whose pilot is this process.
pub struct PodStand {
    runtime: KubernetesRuntime,
    uid: String,
    share: PathBuf,
    logs: tempfile::TempDir,
    namespace: Namespace,
}

impl std::fmt::Debug for PodStand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodStand").field("share", &self.share).finish_non_exhaustive()
    }
}

impl PodStand {
    /// Makes the pod. `reuse` is whether its slots may stay warm.
    ///
    /// # Panics
    /// When the node does not do its part.
    pub async fn new(test: &str, shape: &Shape, reuse: bool) -> Self {
        let namespace = Namespace::new(test, &[]);
        let mut manifest = Pod::manifest(&namespace, shape);
        let pilot = &mut manifest["spec"]["containers"][0];
        // Something that stays: a shim that nobody binds.
        pilot["command"] = json!(["/latebind/payload-shim"]);
        pilot["env"] = json!([
            {"name": "LATEBIND_CONTROL", "value": "/latebind/share"},
            {"name": "LATEBIND_NONCE", "value": "0".repeat(32)},
        ]);
        let _made = namespace.kubectl(&["apply", "-f", "-"], &manifest.to_string()).good();
        let wait = ["wait", "pod", &shape.name, "--for=condition=Ready", "--timeout=60s"];
        let _ready = namespace.kubectl(&wait, "").good();
        let pod = namespace.get("pod", &shape.name);
        let uid = pod["metadata"]["uid"].as_str().expect("uid").to_owned();
        let volumes = namespace.node().state().join("kubelet/pods").join(&uid).join("volumes");
        let share = volumes.join("kubernetes.io~empty-dir/share");
        let store = share.join("pilot/store");
        let config = PodConfig {
            client: client(&namespace, &shape.name, &uid),
            namespace: namespace.name().to_owned(),
            pod: shape.name.clone(),
            share: share.clone(),
            idle_image: images(namespace.node()).shim.clone(),
            registry_access: access(&namespace),
            store,
            stage_memory_bytes: 256 << 20,
            stage_disk_bytes: None,
            spill_to: None,
            object_access: ObjectAccess::default(),
            object_cache_bytes: 256 << 20,
            log_max_bytes: 1 << 20,
            reuse,
            serves: false,
            orphan_grace_ms: 0,
            pull_secret: None,
            prefetches: false,
            resizes: false,
        };
        let runtime = KubernetesRuntime::new(config).await.expect("runtime");
        Self { runtime, uid, share, logs: tempfile::tempdir().expect("tempdir"), namespace }
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its namespace, when the runtime is not needed any more.
    #[must_use]
    pub fn into_namespace(self) -> Namespace {
        self.namespace
    }
}

/// Speaks to the API server with a token of the pod's account that is bound to the pod.
fn client(namespace: &Namespace, pod: &str, uid: &str) -> kube::Client {
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", pod, "--bound-object-uid", uid];
    let mut arguments = vec!["create", "token", "latebind-pilot"];
    arguments.extend(bound);
    let token = namespace.kubectl(&arguments, "").good().trim().to_owned();
    let config = namespace.node().kubectl(&["config", "view", "--raw", "-o", "json"], "").good();
    let config: Value = serde_json::from_str(&config).expect("json");
    let cluster = &config["clusters"][0]["cluster"];
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    });
    let kubeconfig: kube::config::Kubeconfig = serde_json::from_value(kubeconfig).expect("kubeconfig");
    let options = kube::config::KubeConfigOptions::default();
    let loading = kube::Config::from_custom_kubeconfig(kubeconfig, &options);
    let config = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(loading));
    kube::Client::try_from(config.expect("config")).expect("client")
}

fn access(namespace: &Namespace) -> image_store::RegistryAccess {
    let rules = image_store::RegistryRules { insecure: true, ..image_store::RegistryRules::default() };
    let registries = [(namespace.node().registry(), rules)].into();
    image_store::RegistryAccess::new(image_store::Registries { registries }, image_store::Logins::None)
}

impl Stand for PodStand {
    type Runtime = KubernetesRuntime;

    fn runtime(&self) -> &KubernetesRuntime {
        &self.runtime
    }

    fn fitted(&self, mut payload: Payload) -> Payload {
        // The pod's network is there, and its slots are small.
        payload.host_network = true;
        payload.resources.cpu_millis = 100;
        payload
    }

    fn logs(&self) -> PathBuf {
        self.logs.path().to_path_buf()
    }

    fn image(&self) -> String {
        images(self.namespace.node()).busybox.clone()
    }

    fn command(&self, deed: &Deed) -> Vec<String> {
        deed.in_busybox()
    }

    async fn until_running(&self, payload: &Payload) {
        crate::conformance::runtime::until_ready(self.logs.path(), payload).await;
    }

    fn leftovers(&self) -> Vec<String> {
        // Each container's own programs, and what of them is just ending.
        let ended = || processes(&self.uid).is_empty();
        within(Duration::from_secs(3), ended);
        let mut left = processes(&self.uid);
        for slot in ["0", "1"] {
            for folder in ["work", "out", "in", "links"] {
                let folder = self.share.join("slots").join(slot).join(folder);
                let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
                left.extend(entries.map(|entry| entry.path().display().to_string()));
            }
        }
        left
    }
}

/// Processes of a pod that are not ours.
fn processes(pod: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let is_number = entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
        if !is_number || !read("cgroup").contains(pod) {
            continue;
        }
        let name = read("comm").trim().to_owned();
        if !["payload-shim", "pause", "runc", "runc:[2:INIT]", "runc:[1:CHILD]", "exe"]
            .contains(&name.as_str())
        {
            found.push(format!("{} {name}", Path::new(&entry.file_name()).display()));
        }
    }
    found
}
