//! Bringing an image to the node before any slot asks for it, by a pod of its own.
//!
//! One pod has a single pull lane, and it blocks kills and starts of the pod's other slots too; another pod has its own. Its
//! program need not exist: the pull comes first, and the image stays.
//!
//! ```text
//!   create pod (this node, image by digest) ─> ask now and then ─> pulled, or can't be ─> delete
//! ```
//! The answer of a DELETE that is only a rehearsal (`dryRun`) is the pod as it is: no right to read pods is needed.
//!
//! **Must not know:** slots, which payload wants the image.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use either::Either;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams};
use pilot_core::{Fault, FaultClass};
use serde_json::json;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::api::OwnPod;
use super::images::PodImage;
use super::view;
use crate::fault::chain;

/// Smaller images are pulled in less time than a pod takes to start.
const WORTH_BYTES: u64 = 8 << 20;
/// Longest pull; the pod ends by itself then.
const PULL_WAIT: Duration = Duration::from_secs(1800);
/// Between two looks; grows to the second one.
const PAUSES: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(3)];
/// The name of its container.
const CONTAINER: &str = "pull";

/// What this pilot has fetched.
#[derive(Debug)]
pub(super) struct Prefetch {
    node: String,
    pod_uid: String,
    /// By digest: those that are known to have been on the node are set. The kubelet may have removed one: then the bind
    /// pulls.
    there: Mutex<BTreeMap<String, Arc<OnceCell<()>>>>,
}

impl Prefetch {
    pub(super) fn new(node: String, pod_uid: String) -> Self {
        Self { node, pod_uid, there: Mutex::default() }
    }

    /// Makes sure that an image was on the node once; gives the bytes that were fetched for it. Several that want the same
    /// wait for one pull, and for no other.
    pub(super) async fn fetch(&self, own: &OwnPod, image: &PodImage) -> Result<u64, Fault> {
        let digest = image.id.to_string();
        if image.bytes < WORTH_BYTES {
            return Ok(0);
        }
        let is_there = {
            let mut there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(there.entry(digest.clone()).or_default())
        };
        let mut brought = 0;
        let pulled = is_there.get_or_try_init(|| async {
            if !self.pull(own, image, &digest).await.map_err(Some)? {
                return Err(None);
            }
            brought = image.bytes;
            Ok(())
        });
        match pulled.await {
            Ok(()) | Err(None) => Ok(brought),
            Err(Some(fault)) => Err(fault),
        }
    }

    /// Says whether it was done: a namespace may have no room for a pod, and then the bind pulls.
    async fn pull(&self, own: &OwnPod, image: &PodImage, digest: &str) -> Result<bool, Fault> {
        let hex = digest.rsplit(':').next().unwrap_or(digest);
        let name = format!("{}-pull-{}", own.name(), &hex[..hex.len().min(12)]);
        let pod = self.manifest(own.name(), &name, &image.pinned())?;
        match own.in_time(own.pods().create(&PostParams::default(), &pod)).await {
            // One that an earlier life of this pilot left serves as well.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(kube::Error::Api(status)) if status.message.contains("exceeded quota") => {
                tracing::warn!(image = image.pinned(), why = status.message, "an image is not fetched ahead");
                return Ok(false);
            }
            Err(error) => return Err(refused(&error)),
            Ok(_) => {}
        }
        let pulled = self.until_pulled(own, &name, &image.pinned()).await;
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        if let Err(error) = own.in_time(own.pods().delete(&name, &at_once)).await {
            tracing::warn!(
                pod = name,
                error = chain(&error),
                "a pod that fetched an image goes with the pilot's"
            );
        }
        pulled.map(|()| true)
    }

    async fn until_pulled(&self, own: &OwnPod, name: &str, reference: &str) -> Result<(), Fault> {
        let until = Instant::now() + PULL_WAIT;
        let mut pause = PAUSES[0];
        while Instant::now() < until {
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(PAUSES[1]);
            let rehearsal = DeleteParams { dry_run: true, ..DeleteParams::default() };
            let pod = match own.in_time(own.pods().delete(name, &rehearsal)).await {
                Ok(Either::Left(pod)) => pod,
                Ok(Either::Right(_)) => continue,
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    return Err(Fault::new(FaultClass::Retry, "the pod that fetched the image was removed"));
                }
                Err(_) => continue,
            };
            if let Some(done) = pulled(&pod, reference) {
                return done;
            }
        }
        Err(Fault::new(FaultClass::Retry, format!("fetch {reference}: not done in half an hour")))
    }

    fn manifest(&self, own: &str, name: &str, image: &str) -> Result<Pod, Fault> {
        // The sandbox and the attempt to start run within the limit: at 1m they take six seconds.
        let requests = json!({"cpu": "1m", "memory": "16Mi"});
        let limits = json!({"cpu": "200m", "memory": "16Mi"});
        let pod = json!({
            "metadata": {
                "name": name,
                "labels": {"latebind.dev/prefetch": "true"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": own, "uid": self.pod_uid}],
            },
            "spec": {
                "nodeName": self.node,
                "restartPolicy": "Never",
                "activeDeadlineSeconds": PULL_WAIT.as_secs(),
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "securityContext": {"runAsNonRoot": true, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": CONTAINER, "image": image, "imagePullPolicy": "IfNotPresent",
                    "command": ["/.latebind/no-program"],
                    "resources": {"limits": limits, "requests": requests},
                    "securityContext": {
                        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }],
            },
        });
        let wrong = |error: serde_json::Error| Fault::new(FaultClass::Pilot, error.to_string());
        serde_json::from_value(pod).map_err(wrong)
    }
}

/// `None` while it is under way.
fn pulled(pod: &Pod, reference: &str) -> Option<Result<(), Fault>> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let status = statuses.iter().find(|status| status.name == CONTAINER)?;
    let state = status.state.as_ref()?;
    // It was tried to be started: the pull was before that.
    if state.terminated.is_some() || state.running.is_some() || !status.image_id.is_empty() {
        return Some(Ok(()));
    }
    match view::trouble(pod, CONTAINER, reference) {
        Some(fault) if fault.message.contains("ImagePull") || fault.class == FaultClass::Payload => {
            Some(Err(fault))
        }
        Some(_started_in_vain) => Some(Ok(())),
        None => None,
    }
}

fn refused(error: &kube::Error) -> Fault {
    let class = match error {
        kube::Error::Api(status) if status.code == 422 => FaultClass::Payload,
        kube::Error::Api(status) if status.code == 403 => FaultClass::Pilot,
        _ => FaultClass::Retry,
    };
    Fault::new(class, format!("fetch the image by a pod of its own: {}", chain(error)))
}
