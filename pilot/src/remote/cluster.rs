//! The pod of one run: made with the user's own rights, waited for, and removed whatever happens.
//!
//! **Must not know:** workflows, frames.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, Secret};
use kube::api::{AttachParams, AttachedProcess, DeleteParams, PostParams};
use kube::{Api, Client};
use pilot_core::RunExit;
use tokio::time::Instant;

use super::login::{self, Owner, RunLogin};
use crate::fault::{chain, said_by_api};
use crate::pod::{PROGRAM, Shape};

/// Longest wait for the pod to run, pulls of the pilot's image included.
const START_WAIT: Duration = Duration::from_secs(600);
/// Longest wait for the pod to be gone.
const END_WAIT: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// The most of the pod's end that is waited for: its slots have been told to end already.
const GRACE_S: u32 = 2;
/// What can't come right by waiting.
const HOPELESS: [&str; 6] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "CrashLoopBackOff",
];

/// A line for people, and the exit code.
pub(crate) type Refusal = (String, RunExit);

/// A pod that was made for one run.
#[derive(Clone)]
pub(crate) struct RunPod {
    pods: Api<Pod>,
    /// Where its login is, if it has one.
    secrets: Option<Api<Secret>>,
    name: String,
}

pub(super) fn refusal(what: &str, error: &kube::Error) -> Refusal {
    (format!("{what}: {}", said_by_api(error)), RunExit::HostUnable)
}

/// The cluster that the user's kubeconfig names, and the namespace.
pub(crate) async fn connect(namespace: Option<String>) -> Result<(Client, String), Refusal> {
    let config = kube::Config::infer().await.map_err(|error| {
        let text = format!("find a cluster: {}; set KUBECONFIG, or use --backend local", chain(&error));
        (text, RunExit::BadInput)
    })?;
    let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).map_err(|error| refusal("talk to the API server", &error))?;
    Ok((client, namespace))
}

impl RunPod {
    /// Makes the pod, and the Secret that its shape names for its login.
    pub(crate) async fn create(
        client: Client,
        namespace: &str,
        shape: &Shape,
        login: Option<&RunLogin>,
    ) -> Result<Self, Refusal> {
        let wrong = |error: serde_json::Error| (format!("write the pod: {error}"), RunExit::OwnFault);
        let pod: Pod = serde_json::from_value(shape.manifest()).map_err(wrong)?;
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let made = pods.create(&PostParams::default(), &pod).await;
        let made = made.map_err(|error| {
            let (text, exit) = refusal(&format!("make a pod in namespace {namespace}"), &error);
            (format!("{text}; `pilot check --cluster` says what is missing"), exit)
        })?;
        let secrets = login.map(|_| Api::namespaced(client.clone(), namespace));
        let pod = Self { pods, secrets, name: shape.name.clone() };
        let Some(login) = login else { return Ok(pod) };
        let uid = made.metadata.uid.unwrap_or_default();
        match login.hand_over(&client, namespace, Owner { name: &pod.name, uid: &uid }).await {
            Ok(()) => Ok(pod),
            Err(refusal) => {
                // It would wait for its login for ever.
                pod.remove().await?;
                Err(refusal)
            }
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Waits until the pilot's container runs. What keeps it waiting is `told` once.
    pub(crate) async fn until_running(&self, mut told: impl FnMut(String)) -> Result<(), Refusal> {
        let until = Instant::now() + START_WAIT;
        let mut last = String::new();
        loop {
            let pod = self.pods.get(&self.name).await.map_err(|error| refusal("look at the pod", &error))?;
            let waits = match stands(&pod) {
                Stand::Runs => return Ok(()),
                Stand::Never(why) => {
                    return Err((format!("start pod {}: {why}", self.name), RunExit::HostUnable));
                }
                Stand::Waits(why) => why,
            };
            if let Some(why) = waits.filter(|why| *why != last) {
                told(format!("pod {} waits: {why}", self.name));
                last = why;
            }
            if Instant::now() > until {
                let text = format!("start pod {}: not running after {} s", self.name, START_WAIT.as_secs());
                return Err((format!("{text} ({last})"), RunExit::HostUnable));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Starts the pilot's program that attends to the run.
    pub(crate) async fn attend(&self, arguments: &[String]) -> Result<AttachedProcess, Refusal> {
        let params = AttachParams::default().container("pilot").stdin(true).stdout(true).stderr(true);
        let mut command = vec![PROGRAM.to_owned(), "attend".to_owned()];
        command.extend(arguments.iter().cloned());
        // A kubelet may say that a container runs a moment before it can be entered.
        let mut tries = 0;
        loop {
            match self.pods.exec(&self.name, command.clone(), &params).await {
                Ok(process) => return Ok(process),
                Err(error) if tries >= 4 => {
                    return Err(refusal(&format!("enter pod {} (the right pods/exec)", self.name), &error));
                }
                Err(error) => tracing::debug!(%error, "the pod can't be entered yet"),
            }
            tries += 1;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Removes the pod and its login, and waits until the pod is gone.
    pub(crate) async fn remove(&self) -> Result<(), Refusal> {
        if let Some(secrets) = &self.secrets {
            login::withdraw(secrets, &self.name).await;
        }
        let params = DeleteParams { grace_period_seconds: Some(GRACE_S), ..DeleteParams::default() };
        let until = Instant::now() + END_WAIT;
        let mut asked = false;
        loop {
            let answer = if asked {
                self.pods.get(&self.name).await.map(drop)
            } else {
                self.pods.delete(&self.name, &params).await.map(|_| asked = true)
            };
            match answer {
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
                Err(error) if Instant::now() > until => {
                    let (text, exit) = refusal(&format!("remove pod {}", self.name), &error);
                    return Err((format!("{text}; `kubectl delete pod {}` does it", self.name), exit));
                }
                Ok(()) if Instant::now() > until => {
                    let text = format!("pod {} is being removed and not gone yet", self.name);
                    return Err((text, RunExit::HostUnable));
                }
                Err(_) | Ok(()) => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

enum Stand {
    Runs,
    Waits(Option<String>),
    Never(String),
}

fn stands(pod: &Pod) -> Stand {
    let Some(status) = &pod.status else { return Stand::Waits(None) };
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    for container in all {
        if let Some(why) = hopeless(container) {
            return Stand::Never(why);
        }
        let runs = container.state.as_ref().is_some_and(|state| state.running.is_some());
        if container.name == "pilot" && runs {
            return Stand::Runs;
        }
    }
    match status.phase.as_deref() {
        Some(phase @ ("Failed" | "Succeeded")) => {
            let why = status.message.clone().or_else(|| status.reason.clone()).unwrap_or_default();
            Stand::Never(format!("it has ended ({phase}) {why}"))
        }
        _ => {
            let conditions = status.conditions.iter().flatten();
            let unscheduled =
                conditions.into_iter().find(|c| c.type_ == "PodScheduled" && c.status == "False");
            Stand::Waits(unscheduled.and_then(|condition| condition.message.clone()))
        }
    }
}

fn hopeless(container: &ContainerStatus) -> Option<String> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().filter(|reason| HOPELESS.contains(reason))?;
    let said = waiting.message.as_deref().unwrap_or_default().replace('\n', " ");
    Some(format!("container {}: {reason}: {said}", container.name))
}
