//! A pod's slots, driven from here: the pilot's own runtime port, with a token that is bound to the pod.
//!
//! **Must not know:** what is measured.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, anyhow, ensure};
use image_store::{Logins, Registries, RegistryAccess, RegistryRules};
use pilot::object_access::ObjectAccess;
use pilot::payload::{Payload, Resources};
use pilot::ports::Runtime;
use pilot::runtime::kubernetes::{KubernetesRuntime, PodConfig};
use pilot_core::{Epoch, SlotId};
use pilot_tests::kube::images;
use serde_json::{Value, json};
use stage::StageName;

use super::place::{Place, REQUESTS};
use crate::clock::now_ns;
use crate::ground::grant;
use crate::peers::stamp;

/// The pod and who drives it.
#[derive(Debug)]
pub(super) struct Outside {
    pub(super) runtime: KubernetesRuntime,
    logs: tempfile::TempDir,
    name: String,
}

/// Moments of one payload on [`now_ns`]'s clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moments {
    pub(super) asked: u64,
    pub(super) bound: u64,
    pub(super) first: u64,
    pub(super) exited: u64,
    pub(super) cleaned: u64,
}

impl Outside {
    /// Makes the pod; instead of its pilot stands something that stays.
    pub(super) async fn new(place: &Place, name: &str, prefetches: bool) -> anyhow::Result<Self> {
        let mut manifest = place.manifest(name, &[1000, 1000], REQUESTS)?;
        let pilot = &mut manifest["spec"]["containers"][0];
        pilot["command"] = json!(["/latebind/payload-shim"]);
        pilot["env"] = json!([
            {"name": "LATEBIND_CONTROL", "value": "/latebind/share"},
            {"name": "LATEBIND_NONCE", "value": "0".repeat(32)},
        ]);
        let pod = place.start(&manifest)?;
        let share = place.share(&pod)?;
        let config = PodConfig {
            client: client(place, name, pod["metadata"]["uid"].as_str().context("uid")?).await?,
            namespace: place.namespace.name().to_owned(),
            pod: name.to_owned(),
            store: share.join("pilot/store"),
            share,
            idle_image: images(place.node()).shim.clone(),
            registry_access: access(place),
            stage_memory_bytes: 256 << 20,
            stage_disk_bytes: None,
            spill_to: None,
            object_access: ObjectAccess::default(),
            object_cache_bytes: 256 << 20,
            log_max_bytes: 1 << 20,
            reuse: false,
            serves: false,
            orphan_grace_ms: 0,
            pull_secret: None,
            prefetches,
            resizes: false,
        };
        let runtime = KubernetesRuntime::new(config).await?;
        Ok(Self { runtime, logs: tempfile::tempdir()?, name: name.to_owned() })
    }

    /// Ends the slots' shims and removes the pod.
    pub(super) async fn end(self, place: &Place) {
        self.runtime.close().await;
        place.remove(&self.name);
    }

    /// A payload that runs `first`, for a slot.
    pub(super) fn payload(&self, image: &str, slot: u32) -> anyhow::Result<Payload> {
        let name = StageName::new(&format!("first-{slot}"))?;
        Ok(Payload {
            workflow: StageName::new("bench")?,
            family: name.clone(),
            name,
            image: image.to_owned(),
            command: Some(vec!["/first".into()]),
            args: None,
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            needs_image_user: false,
            resources: Resources { cpu_millis: 1000, memory_bytes: 256 << 20, disk_bytes: 1 << 30 },
            walltime_ms: None,
            grace_ms: 1000,
            inputs: Vec::new(),
            outputs: Vec::new(),
            writable_root: false,
            host_network: true,
            logs: self.logs.path().to_path_buf(),
            registry_auth: None,
            gang: Vec::new(),
        })
    }

    /// What is done before a slot is touched.
    pub(super) async fn prepare(&self, image: &str) -> anyhow::Result<()> {
        let payload = self.payload(image, 0)?;
        self.runtime.prepare(&payload).await.map(drop).map_err(|fault| anyhow!("prepare: {fault}"))
    }

    /// Runs `first` of a prepared image in a slot, from bind to clean.
    pub(super) async fn once(&self, slot: u32, epoch: &mut u64, image: &str) -> anyhow::Result<Moments> {
        let payload = self.payload(image, slot)?;
        *epoch += 1;
        let (slot, now) = (SlotId(slot), Epoch(*epoch));
        let asked = now_ns();
        self.runtime.bind(slot, now, &payload).await.map_err(|fault| anyhow!("bind: {fault}"))?;
        let bound = now_ns();
        let launched = self.runtime.launch(slot, grant(), &payload).await;
        let ended = launched.map_err(|fault| anyhow!("launch: {fault:?}"))?;
        let exited = now_ns();
        let drained = self.runtime.drain(slot, &payload, false).await;
        self.runtime.clean(slot).await.map_err(|fault| anyhow!("clean: {fault}"))?;
        let cleaned = now_ns();
        ensure!(ended.exit.status.is_success() && drained.fault.is_none(), "{ended:?} {drained:?}");
        let first = stamp(&std::fs::read(self.log(&payload))?)?;
        ensure!((bound..=exited).contains(&first), "the payload's clock is not ours");
        Ok(Moments { asked, bound, first, exited, cleaned })
    }

    fn log(&self, payload: &Payload) -> PathBuf {
        self.logs.path().join(format!("{}.stdout", payload.name))
    }
}

/// A client with a token of the pilot's account that is bound to the pod.
async fn client(place: &Place, pod: &str, uid: &str) -> anyhow::Result<kube::Client> {
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", pod, "--bound-object-uid", uid];
    let mut arguments = vec!["create", "token", "latebind-pilot"];
    arguments.extend(bound);
    let token = place.namespace.kubectl(&arguments, "").good();
    let config = place.node().kubectl(&["config", "view", "--raw", "-o", "json"], "").good();
    let config: Value = serde_json::from_str(&config)?;
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "c", "cluster": config["clusters"][0]["cluster"]}],
        "users": [{"name": "u", "user": {"token": token.trim()}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    });
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(serde_json::from_value(kubeconfig)?, &options).await?;
    Ok(kube::Client::try_from(config)?)
}

fn access(place: &Place) -> RegistryAccess {
    let rules = RegistryRules { insecure: true, ..RegistryRules::default() };
    let registries = [(place.node().registry(), rules)].into();
    RegistryAccess::new(Registries { registries }, Logins::None)
}
