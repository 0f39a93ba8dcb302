//! Other ways to start a container on the same node: a pod, or a Job, for each payload; the paper's way; containerd alone.
//!
//! **Must not know:** ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::place::{Place, REQUESTS, container, plain, pod_security};
use super::watch::Watch;
use crate::clock::now_ns;
use crate::peers::{Times, command, stamp};

/// Between two looks of a shell, or of the pilot, at a file.
const LOOK: Duration = Duration::from_millis(100);
/// What the paper's payload container runs: the image's own shell, which waits for a word. `trap` is a kindness: a shell that
/// is PID 1 and has none is killed after the pod's grace period only.
const SCRIPT: &str = "trap 'exit 143' TERM
while [ ! -e /share/go ]; do sleep 0.1; done
/first >/share/out; echo $? >/share/code.new; mv /share/code.new /share/code
sleep 86400 & wait";
/// containerd's namespace for what is not Kubernetes'.
const APART: &str = "latebind-bench";

/// A pod, or a Job, for each payload.
pub(super) struct Objects<'p> {
    place: &'p Place,
    pods: Api<Pod>,
    jobs: Api<Job>,
    watched_pods: Watch,
    watched_jobs: Watch,
    number: u32,
}

impl std::fmt::Debug for Objects<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Objects").field("number", &self.number).finish_non_exhaustive()
    }
}

impl<'p> Objects<'p> {
    pub(super) fn new(place: &'p Place) -> anyhow::Result<Self> {
        let (client, namespace) = (&place.client.0, place.namespace.name());
        Ok(Self {
            place,
            pods: Api::namespaced(client.clone(), namespace),
            jobs: Api::namespaced(client.clone(), namespace),
            watched_pods: Watch::new(&place.namespace, "pods", "{.metadata.name} {.status.phase}")?,
            watched_jobs: Watch::new(
                &place.namespace,
                "jobs",
                "{.metadata.name} {.status.conditions[*].type}",
            )?,
            number: 0,
        })
    }

    /// A pod, from the request to the watch that says it has succeeded.
    pub(super) async fn pod(&mut self, image: &str) -> anyhow::Result<Times> {
        self.number += 1;
        let name = format!("bare-{}", self.number);
        let pod = serde_json::from_value(
            json!({"metadata": {"name": name}, "spec": spec(image, "/first", REQUESTS)}),
        )?;
        let asked = now_ns();
        self.pods.create(&PostParams::default(), &pod).await?;
        let ended = self.watched_pods.until(&name, "Succeeded")?;
        let first = self.said(&format!("pod/{name}"))?;
        self.pods
            .delete(&name, &DeleteParams { grace_period_seconds: Some(0), ..Default::default() })
            .await?;
        between(Times { asked, first, ended })
    }

    /// A Job, from the request to the watch that says it is complete.
    pub(super) async fn job(&mut self, image: &str) -> anyhow::Result<Times> {
        let asked = now_ns();
        let name = self.make_job(image, "/first", REQUESTS).await?;
        let ended = self.watched_jobs.until(&name, "Complete")?;
        let first = self.said(&format!("job/{name}"))?;
        self.jobs.delete(&name, &DeleteParams::background()).await?;
        between(Times { asked, first, ended })
    }

    /// Jobs at once; gives how many were complete in a second.
    pub(super) async fn jobs(&mut self, image: &str, count: u32) -> anyhow::Result<f64> {
        let asked = now_ns();
        let mut names = Vec::new();
        for _ in 0..count {
            names.push(self.make_job(image, "/least", REQUESTS / count).await?);
        }
        // In whichever order they come.
        let mut last = asked;
        while !names.is_empty() {
            let (at, name) = self.watched_jobs.until_any(&names, "Complete")?;
            names.retain(|other| *other != name);
            last = at;
            self.jobs.delete(&name, &DeleteParams::background()).await?;
        }
        Ok(f64::from(count) / (crate::clock::span_ms(asked, last) / 1e3))
    }

    async fn make_job(&mut self, image: &str, program: &str, requests: u32) -> anyhow::Result<String> {
        self.number += 1;
        let name = format!("job-{}", self.number);
        let job = json!({
            "metadata": {"name": name},
            "spec": {"backoffLimit": 0, "template": {"spec": spec(image, program, requests)}},
        });
        self.jobs.create(&PostParams::default(), &serde_json::from_value(job)?).await?;
        Ok(name)
    }

    fn said(&self, object: &str) -> anyhow::Result<u64> {
        stamp(self.place.namespace.kubectl(&["logs", object], "").good().as_bytes())
    }
}

fn spec(image: &str, program: &str, requests: u32) -> Value {
    json!({
        "restartPolicy": "Never", "automountServiceAccountToken": false, "enableServiceLinks": false,
        "securityContext": pod_security(), "containers": [container("main", image, &[program], requests)],
    })
}

fn between(times: Times) -> anyhow::Result<Times> {
    let Times { asked, first, ended } = times;
    ensure!((asked..=ended).contains(&first), "its payload answered {first} between {asked} and {ended}");
    Ok(times)
}

/// The paper's way: a pod of the same shape as ours whose payload containers run a shell of their image.
#[derive(Debug)]
pub(super) struct Shell<'p> {
    place: &'p Place,
    share: PathBuf,
    epoch: u32,
}

impl<'p> Shell<'p> {
    const NAME: &'static str = "shell";

    /// Makes the pod, and lets its first container run once: from then on it waits for its end.
    pub(super) async fn new(place: &'p Place, image: &str) -> anyhow::Result<Self> {
        let mut containers = vec![container("pilot", image, &["/bin/sh", "-c", "sleep 86400 & wait"], 50)];
        for slot in ["slot-0", "slot-1"] {
            let mut payload = container(slot, image, &["/bin/sh", "-c", SCRIPT], REQUESTS);
            payload["volumeMounts"] = json!([{"name": "share", "mountPath": "/share", "subPath": slot}]);
            containers.push(payload);
        }
        let pod = place.start(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": Self::NAME},
            "spec": {
                "restartPolicy": "Always", "automountServiceAccountToken": false, "enableServiceLinks": false,
                "securityContext": pod_security(), "containers": containers,
                "volumes": [{"name": "share", "emptyDir": {}}],
            },
        }))?;
        let shell = Self { share: place.share(&pod)?.join("slot-0"), place, epoch: 0 };
        fs::write(shell.share.join("go"), b"")?;
        shell.until_ended().await;
        Ok(shell)
    }

    /// One payload. Its word to go lies there when its shell first looks: the one before does not look any more.
    pub(super) async fn once(&mut self, image: &str) -> anyhow::Result<Times> {
        for name in ["go", "code", "out"] {
            fs::remove_file(self.share.join(name)).with_context(|| format!("remove {name}"))?;
        }
        self.epoch += 1;
        let (repository, digest) = plain(image).split_once('@').context("a digest")?;
        // Our salt: without it the kubelet would wait longer and longer before it starts an image again.
        let salted = format!("{repository}:s{}@{digest}", self.epoch);
        let change = json!({"spec": {"containers": [{"name": "slot-0", "image": salted}]}});
        let pods: Api<Pod> = Api::namespaced(self.place.client.0.clone(), self.place.namespace.name());
        let asked = now_ns();
        pods.patch(Self::NAME, &PatchParams::default(), &Patch::Strategic(&change)).await?;
        fs::write(self.share.join("go"), b"")?;
        self.until_ended().await;
        let ended = now_ns();
        ensure!(fs::read_to_string(self.share.join("code"))?.trim() == "0", "its payload failed");
        between(Times { asked, first: stamp(&fs::read(self.share.join("out"))?)?, ended })
    }

    async fn until_ended(&self) {
        while !self.share.join("code").exists() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Removes the pod.
    pub(super) fn end(self) {
        self.place.remove(Self::NAME);
    }
}

/// The node's containerd, spoken to past Kubernetes.
#[derive(Debug)]
pub(super) struct Containerd {
    program: PathBuf,
    run: PathBuf,
}

impl Containerd {
    pub(super) fn new(place: &Place) -> anyhow::Result<Self> {
        let run = fs::read_to_string(place.node().state().join("run"))?;
        Ok(Self { program: place.node().program("ctr"), run: PathBuf::from(run.trim()) })
    }

    /// Removes images that Kubernetes knows, under all of their names: the next bind, or fetch, brings them again.
    pub(super) fn forget(&self, images: &[String]) {
        let listed = self.ask("k8s.io", &["images", "ls"]).unwrap_or_default();
        for line in String::from_utf8_lossy(&listed).lines() {
            let mut words = line.split_whitespace();
            let (Some(name), Some(digest)) = (words.next(), words.nth(1)) else { continue };
            if images.iter().any(|image| image.ends_with(digest)) {
                let _gone = self.ask("k8s.io", &["images", "rm", "--sync", name]);
            }
        }
    }

    fn ask(&self, namespace: &str, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
        let mut ctr = command(&self.program);
        ctr.arg("-a").arg(self.run.join("containerd.sock")).args(["-n", namespace]).args(arguments);
        let output = ctr.stdin(Stdio::null()).output().context("start ctr")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "ctr: {}: {}",
            output.status,
            said.lines().last().unwrap_or_default()
        );
        Ok(output.stdout)
    }
}

/// `ctr run`: containerd without Kubernetes.
#[derive(Debug)]
pub(super) struct Ctr {
    containerd: Containerd,
    image: String,
}

impl Ctr {
    /// Gives the image to containerd once more, where Kubernetes does not see it.
    pub(super) fn new(place: &Place, image: &str) -> anyhow::Result<Self> {
        let ctr = Self { containerd: Containerd::new(place)?, image: plain(image).to_owned() };
        ctr.containerd.ask(APART, &["images", "pull", "--plain-http", &ctr.image])?;
        Ok(ctr)
    }

    /// One container, from before the fork of `ctr` to its end.
    pub(super) fn once(&self) -> anyhow::Result<Times> {
        let [fifos, root] =
            ["ctr-fifos", "runc"].map(|name| self.containerd.run.join(name).display().to_string());
        let run = ["run", "--rm", "--fifo-dir", &fifos, "--runc-root", &root, &self.image, "bench", "/first"];
        let asked = now_ns();
        let output = self.containerd.ask(APART, &run)?;
        let ended = now_ns();
        between(Times { asked, first: stamp(&output)?, ended })
    }
}

impl Drop for Ctr {
    fn drop(&mut self) {
        let _gone = self.containerd.ask(APART, &["images", "rm", "--sync", &self.image]);
        let _gone = self.containerd.ask(APART, &["namespaces", "rm", APART]);
        let _gone = fs::remove_dir_all(self.containerd.run.join("ctr-fifos"));
        let groups = Path::new("/sys/fs/cgroup");
        for controller in fs::read_dir(groups).into_iter().flatten().flatten() {
            let _gone = fs::remove_dir(controller.path().join(APART));
        }
        let _gone = fs::remove_dir(groups.join(APART));
    }
}
