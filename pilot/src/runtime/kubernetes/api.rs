//! The pilot's own pod, as the API server has it: changed by PATCH, and read by a PATCH that changes nothing.
//!
//! With the single right `pods: [patch]` the answer of a PATCH, which is the whole pod, is all that can be read. A request
//! whose answer is lost may have taken effect; each one here may be sent again, since it says what shall be and not what to
//! change.
//!
//! **Must not know:** slots' states, payloads, when to ask.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use pilot_core::{Fault, FaultClass};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::view::{self, Resizing, Size};
use crate::fault::chain;

/// Longest wait for one answer; the API server gives up on its own after a minute.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// The kubelet says within a second or two whether there is room.
const RESIZE_WAIT: Duration = Duration::from_secs(10);
/// How long it may say that the right is missing before that is believed: one that is just started answers before it has read who
/// may do what, and then nobody may. Measured on a busy node: several seconds.
const FORBIDDEN_WAIT: Duration = Duration::from_secs(20);
/// Between two tries; doubles to the second one.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// The pod.
pub(super) struct OwnPod {
    pods: Api<Pod>,
    secrets: Api<Secret>,
    name: String,
    requests: AtomicU64,
}

impl std::fmt::Debug for OwnPod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnPod").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What went wrong with a request, as far as it matters what to do next.
enum Refusal {
    /// Nobody answered, or nobody who could: the same request may go well in a moment.
    Again(Fault),
    /// It may not be so: see [`FORBIDDEN_WAIT`].
    Doubtful(Fault),
    Final(Fault),
}

/// A request that is made until it is done, refused or late.
struct Tries {
    pause: Duration,
    until: Instant,
    /// Since when nothing but [`Refusal::Doubtful`] is heard.
    doubtful: Option<Instant>,
}

impl Tries {
    fn new(until: Instant) -> Self {
        Self { pause: PAUSES[0], until, doubtful: None }
    }

    /// Waits for the next try, if there is to be one.
    async fn wait(&mut self, refusal: Refusal) -> Result<(), Fault> {
        let now = Instant::now();
        let (fault, until) = match refusal {
            Refusal::Final(fault) => return Err(fault),
            Refusal::Again(fault) => {
                self.doubtful = None;
                (fault, self.until)
            }
            Refusal::Doubtful(fault) => {
                let since = *self.doubtful.get_or_insert(now);
                (fault, self.until.min(since + FORBIDDEN_WAIT))
            }
        };
        if now + self.pause > until {
            return Err(fault);
        }
        tracing::debug!(%fault, "asking the API server again");
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSES[1]);
        Ok(())
    }
}

/// The answer to a change of the pod.
pub(super) struct Changed {
    pub(super) pod: Pod,
    /// It was asked for before, and perhaps done: the pod may have gone on since.
    pub(super) asked_before: bool,
}

impl OwnPod {
    pub(super) fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self {
            pods: Api::namespaced(client.clone(), namespace),
            secrets: Api::namespaced(client, namespace),
            name: name.to_owned(),
            requests: AtomicU64::new(0),
        }
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Pods of its namespace.
    pub(super) fn pods(&self) -> &Api<Pod> {
        &self.pods
    }

    /// Requests made so far.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    fn count(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// One request that is made elsewhere, counted and not waited for without end.
    pub(super) async fn in_time<T>(&self, asked: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
        self.count();
        let late = |_| kube::Error::Service("the API server did not answer in time".into());
        tokio::time::timeout(ANSWER_WAIT, asked).await.map_err(late)?
    }

    /// The pod as it is; tried once.
    pub(super) async fn look(&self) -> Result<Pod, Fault> {
        match self.patch(None, &json!({})).await {
            Ok(pod) => Ok(pod),
            Err(Refusal::Again(fault) | Refusal::Doubtful(fault) | Refusal::Final(fault)) => Err(fault),
        }
    }

    /// Gives a slot's container an image, and its shim the nonce that it will find in its environment.
    pub(super) async fn set_image(
        &self,
        slot: &str,
        image: &str,
        nonce: &str,
        until: Instant,
    ) -> Result<Changed, Fault> {
        let change = json!({
            "metadata": {"annotations": {annotation(slot): nonce}},
            "spec": {"containers": [{"name": slot, "image": image}]},
        });
        self.insist(None, &change, until).await
    }

    /// Gives a slot's container other limits, and waits until the node has set so much aside; takes the right to resize.
    pub(super) async fn set_resources(
        &self,
        slot: &str,
        cpu_millis: u64,
        memory_bytes: u64,
        until: Instant,
    ) -> Result<(), Fault> {
        let (size, asked) = (Size { cpu_millis, memory_bytes }, Instant::now());
        let mut pod = self.insist(Some("resize"), &sized(slot, size), until).await?.pod;
        let generation = pod.metadata.generation;
        let fault = loop {
            match view::resizing(&pod, slot, size, generation) {
                Resizing::Done => return Ok(()),
                Resizing::Refused(fault) => break fault,
                Resizing::UnderWay if asked.elapsed() > RESIZE_WAIT => {
                    break Fault::new(
                        FaultClass::Retry,
                        "resize the slot: the node has not said whether it can",
                    );
                }
                Resizing::UnderWay => {}
            }
            tokio::time::sleep(PAUSES[0]).await;
            pod = self.look().await.unwrap_or(pod);
        };
        // Or the node would do it later, when nobody counts on it.
        if let Some(before) = view::allocated(&pod, slot)
            && let Err(fault) = self.insist(Some("resize"), &sized(slot, before), until).await
        {
            tracing::warn!(slot, %fault, "the slot's former size can't be asked for again");
        }
        Err(fault)
    }

    /// Puts logins into the pre-made Secret that the pod's imagePullSecrets name; takes the right to patch it.
    pub(super) async fn set_logins(
        &self,
        secret: &str,
        auth_file: &Value,
        until: Instant,
    ) -> Result<(), Fault> {
        let change = json!({"stringData": {".dockerconfigjson": auth_file.to_string()}});
        let (params, patch) = (PatchParams::default(), Patch::Merge(&change));
        let mut tries = Tries::new(until);
        loop {
            self.count();
            let asked = self.secrets.patch(secret, &params, &patch);
            match judged(tokio::time::timeout(ANSWER_WAIT, asked).await, "give the node the image's login") {
                Ok(_) => return Ok(()),
                Err(refusal) => tries.wait(refusal).await?,
            }
        }
    }

    /// Tries until it is done, refused or late.
    async fn insist(&self, part: Option<&str>, change: &Value, until: Instant) -> Result<Changed, Fault> {
        let (mut tries, mut asked_before) = (Tries::new(until), false);
        loop {
            match self.patch(part, change).await {
                Ok(pod) => return Ok(Changed { pod, asked_before }),
                Err(refusal) => tries.wait(refusal).await?,
            }
            asked_before = true;
        }
    }

    async fn patch(&self, part: Option<&str>, change: &Value) -> Result<Pod, Refusal> {
        self.count();
        let (params, patch) = (PatchParams::default(), Patch::Strategic(change));
        let asked = async {
            match part {
                None => self.pods.patch(&self.name, &params, &patch).await,
                Some(part) => self.pods.patch_subresource(part, &self.name, &params, &patch).await,
            }
        };
        judged(tokio::time::timeout(ANSWER_WAIT, asked).await, "change the pilot's pod")
    }
}

/// The change that asks for a slot's size.
fn sized(slot: &str, size: Size) -> Value {
    let amounts = json!({"cpu": format!("{}m", size.cpu_millis), "memory": size.memory_bytes.to_string()});
    json!({"spec": {"containers": [{"name": slot, "resources": {"limits": amounts, "requests": amounts}}]}})
}

/// The annotation that holds a slot's nonce.
pub(crate) fn annotation(slot: &str) -> String {
    format!("latebind.dev/{slot}")
}

type Answer<T> = Result<kube::Result<T>, tokio::time::error::Elapsed>;

/// Tells what may go well next time from what will not, and whose fault it is.
fn judged<T>(answer: Answer<T>, what: &str) -> Result<T, Refusal> {
    let error = match answer {
        Ok(Ok(done)) => return Ok(done),
        Err(_late) => {
            let text = format!("{what}: the API server did not answer in {} s", ANSWER_WAIT.as_secs());
            return Err(Refusal::Again(Fault::new(FaultClass::Retry, text)));
        }
        Ok(Err(error)) => error,
    };
    let kube::Error::Api(status) = &error else {
        let text = format!("{what}: {}", chain(&error));
        return Err(Refusal::Again(Fault::new(FaultClass::Retry, text)));
    };
    let text = format!("{what}: {}", status.message.replace('\n', " "));
    let fault = |class| Fault::new(class, text.clone());
    Err(match status.code {
        // A policy's word about an image; the pod itself was accepted as it is.
        422 => Refusal::Final(fault(FaultClass::Payload)),
        // A ResourceQuota's word, or one about the node's size: there is room again when others have ended.
        403 if text.contains("exceeded quota") || text.contains("enough allocatable resources") => {
            Refusal::Final(fault(FaultClass::Retry))
        }
        // A webhook's word about an image; they choose the code themselves.
        400 | 403 if text.contains("denied the request") => Refusal::Final(fault(FaultClass::Payload)),
        // The right is not there, or not yet.
        403 => Refusal::Doubtful(fault(FaultClass::Pilot)),
        // The pod is not there, or this server is none.
        400 | 404 | 405 => Refusal::Final(fault(FaultClass::Pilot)),
        // 401 is a token that is just being renewed; 409 somebody else's change at the same moment; 429 and 5xx a server that
        // is busy or being started.
        _ => Refusal::Again(fault(FaultClass::Retry)),
    })
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "api_fake_tests.rs"]
mod fake_tests;
