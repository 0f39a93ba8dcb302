//! A namespace on the node, images in its registry, and pods of pilots in it.
//!
//! **Must not know:** what is measured.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use image_store::layout::{Compression, ImageSpec, LayerBuilder, LayoutWriter};
use pilot_tests::images::busybox_layer;
use pilot_tests::kube::{Namespace, Node, Pod, Shape, push_layout};
use serde_json::{Value, json};

use crate::ground::Ground;

/// Programs that all images have.
const PROGRAMS: [&str; 3] = ["first", "least", "span"];
/// What every container that runs a payload is promised, in thousandths of a processor: its weight when processors are short.
pub(super) const REQUESTS: u32 = 200;
/// Memory of each slot, in MiB: as much as the payloads ask for.
const SLOT_MIB: u64 = 256;

/// The namespace, with a client that may do everything.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) namespace: Namespace,
    pub(super) client: Admin,
    programs: PathBuf,
}

/// Speaks as the administrator.
pub(super) struct Admin(pub(super) kube::Client);

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admin")
    }
}

impl Place {
    pub(super) async fn new(ground: &Ground, state: &Path) -> anyhow::Result<Self> {
        let file = kube::config::Kubeconfig::read_from(state.join("kubeconfig"))?;
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(file, &options).await?;
        let programs = ground.program("first").parent().context("the programs' folder")?.to_path_buf();
        let namespace = Namespace::new("bench", &["tiers.prefetch=true"]);
        Ok(Self { namespace, client: Admin(kube::Client::try_from(config)?), programs })
    }

    pub(super) fn node(&self) -> &Node {
        self.namespace.node()
    }

    /// What the node says of itself.
    pub(super) fn describe(&self) -> Value {
        let info = "jsonpath={.items[0].status.nodeInfo}";
        let text = self.node().kubectl(&["get", "nodes", "-o", info], "").stdout;
        let info: Value = serde_json::from_str(&text).unwrap_or_default();
        json!({"kubelet": info["kubeletVersion"], "runtime": info["containerRuntimeVersion"]})
    }

    /// Pushes an image with busybox and the programs; `number` makes it another one, with the same layer. Gives its reference
    /// by digest, as workflow files name it.
    pub(super) fn image(&self, number: u32) -> anyhow::Result<String> {
        self.push(number, None)
    }

    /// The same with a layer of `bytes` that compress badly, as programs and data do, and that no other image has.
    pub(super) fn large_image(&self, number: u32, bytes: usize) -> anyhow::Result<String> {
        self.push(number, Some(bytes))
    }

    fn push(&self, number: u32, large: Option<usize>) -> anyhow::Result<String> {
        let folder = tempfile::tempdir()?;
        let mut layer = busybox_layer(LayerBuilder::new())?;
        for name in PROGRAMS {
            let path = self.programs.join(name);
            let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            layer = layer.file(name, 0o755, &bytes);
        }
        let mut layers = vec![layer.finish(Compression::Gzip)?];
        if let Some(bytes) = large {
            let more = LayerBuilder::new().file("data", 0o644, noise(u64::from(number), bytes));
            layers.push(more.finish(Compression::Gzip)?);
        }
        let env = vec![format!("VARIANT={number}")];
        let spec = ImageSpec { entrypoint: vec!["/first".into()], env, ..ImageSpec::default() };
        LayoutWriter::create(folder.path())?.add_image("latest", &spec, layers)?;
        let name = if large.is_some() { "bench-large" } else { "bench" };
        Ok(push_layout(&self.node().registry(), name, folder.path(), &[]))
    }

    /// The manifest of a pilot's pod whose slots have these processors at most, in thousandths, and are promised `requests`:
    /// there must be room for the peers' pods.
    pub(super) fn manifest(&self, name: &str, slots: &[u64], requests: u32) -> anyhow::Result<Value> {
        let count = u32::try_from(slots.len())?;
        let (cpu, memory) =
            (format!("{}m", slots.iter().sum::<u64>()), format!("{}Mi", SLOT_MIB * u64::from(count)));
        let shape = Shape { name: name.to_owned(), slots: count, cpu, memory, ..Shape::default() };
        let mut manifest = Pod::manifest(&self.namespace, &shape);
        let containers = manifest["spec"]["containers"].as_array_mut().context("containers")?;
        for (container, cpu) in containers.iter_mut().skip(1).zip(slots) {
            container["resources"]["limits"]["cpu"] = json!(format!("{cpu}m"));
            container["resources"]["requests"]["cpu"] = json!(format!("{requests}m"));
        }
        Ok(manifest)
    }

    /// Makes a pod and waits until it is ready; gives it as it is then.
    pub(super) fn start(&self, manifest: &Value) -> anyhow::Result<Value> {
        let name = manifest["metadata"]["name"].as_str().context("its name")?;
        let _made = self.namespace.kubectl(&["apply", "-f", "-"], &manifest.to_string()).good();
        let wait = ["wait", "pod", name, "--for=condition=Ready", "--timeout=300s"];
        let answer = self.namespace.kubectl(&wait, "");
        ensure!(answer.code == 0, "pod {name}: {}", answer.stderr);
        Ok(self.namespace.get("pod", name))
    }

    /// Removes a pod, at once.
    pub(super) fn remove(&self, name: &str) {
        let _gone = self.namespace.kubectl(&["delete", "pod", name, "--grace-period=0", "--force"], "");
    }

    /// Where a pod's volume is on this machine.
    pub(super) fn share(&self, pod: &Value) -> anyhow::Result<PathBuf> {
        let uid = pod["metadata"]["uid"].as_str().context("the pod's uid")?;
        Ok(self.node().state().join("kubelet/pods").join(uid).join("volumes/kubernetes.io~empty-dir/share"))
    }
}

/// As manifests name an image, not workflow files.
pub(super) fn plain(image: &str) -> &str {
    image.trim_start_matches("docker://")
}

/// What Pod Security `restricted` asks of a pod.
pub(super) fn pod_security() -> Value {
    json!({"runAsNonRoot": true, "runAsUser": 10_001, "seccompProfile": {"type": "RuntimeDefault"}})
}

/// A peer's container, with a slot's limits and rights.
pub(super) fn container(name: &str, image: &str, command: &[&str], requests: u32) -> Value {
    let memory = format!("{SLOT_MIB}Mi");
    json!({
        "name": name, "image": plain(image), "imagePullPolicy": "IfNotPresent", "command": command,
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        },
        "resources": {
            "limits": {"cpu": "1", "memory": memory}, "requests": {"cpu": format!("{requests}m"), "memory": memory},
        },
    })
}

/// Bytes that compress badly; the same ones for the same seed (splitmix64).
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend((word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
