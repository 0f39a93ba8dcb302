//! A pilot's pod, and what a user does with it.
//!
//! **Must not know:** how the node came to be.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Answer, Host, Namespace, SOON, images};
use crate::run::{dist, within};

/// What a test may choose about the pod.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Its name.
    pub name: String,
    /// How many slots.
    pub slots: u32,
    /// Processors of all slots together.
    pub cpu: String,
    /// Memory of all slots together.
    pub memory: String,
    /// More arguments of `pilot pod`.
    pub more: Vec<String>,
    /// More variables of the pilot's container.
    pub env: Vec<(String, String)>,
    /// Secrets in the pilot's container, each below `/secrets`.
    pub secrets: Vec<String>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            name: "pilot".into(),
            slots: 2,
            cpu: "400m".into(),
            memory: "256Mi".into(),
            more: Vec::new(),
            env: Vec::new(),
            secrets: Vec::new(),
        }
    }
}

impl Shape {
    /// The same with more arguments.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.more.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// The same with another variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same with a Secret in the pilot's container, as `/secrets/NAME`.
    #[must_use]
    pub fn secret(mut self, name: &str) -> Self {
        self.secrets.push(name.to_owned());
        self
    }

    fn add_secrets(&self, spec: &mut Value) {
        for name in &self.secrets {
            let volume = json!({"name": name, "secret": {"secretName": name}});
            spec["volumes"].as_array_mut().expect("volumes").push(volume);
            let mount = json!({"name": name, "mountPath": format!("/secrets/{name}"), "readOnly": true});
            spec["containers"][0]["volumeMounts"].as_array_mut().expect("mounts").push(mount);
        }
    }
}

/// Where runs keep what they make, in the pod.
const OUT: &str = "/latebind/share/pilot/out";

/// A pod.
#[derive(Debug)]
pub struct Pod<'n> {
    namespace: &'n Namespace,
    name: String,
}

impl<'n> Pod<'n> {
    /// The manifest that `pilot pod` prints.
    #[must_use]
    pub fn manifest(namespace: &Namespace, shape: &Shape) -> Value {
        let images = images(namespace.node());
        let slots = shape.slots.to_string();
        let mut arguments = vec![
            "pod",
            "--output",
            "json",
            "--name",
            &shape.name,
            "--slots",
            &slots,
            "--cpu",
            &shape.cpu,
            "--memory",
            &shape.memory,
            "--pilot-image",
            &images.pilot,
            "--idle-image",
            &images.shim,
            "--pod-grace",
            "20",
        ];
        if !shape.more.iter().any(|argument| argument == "--registries-config") {
            arguments.extend(["--registries-config", "registries"]);
        }
        arguments.extend(shape.more.iter().map(String::as_str));
        let text = super::command(&dist().join("pilot"), &arguments, "").good();
        let mut manifest: Value = serde_json::from_str(&text).expect("json");
        let spec = if manifest["kind"] == "Pod" {
            &mut manifest["spec"]
        } else {
            &mut manifest["spec"]["template"]["spec"]
        };
        if let Some(list) = spec["containers"][0]["env"].as_array_mut() {
            list.extend(shape.env.iter().map(|(name, value)| json!({"name": name, "value": value})));
        }
        shape.add_secrets(spec);
        manifest
    }

    pub(super) fn start(namespace: &'n Namespace, shape: &Shape) -> Self {
        let manifest = Self::manifest(namespace, shape).to_string();
        let _made = namespace.kubectl(&["apply", "-f", "-"], &manifest).good();
        let pod = Self { namespace, name: shape.name.clone() };
        pod.until_serving();
        pod
    }

    pub(super) fn start_job(namespace: &'n Namespace, shape: &Shape) -> Self {
        let shape = shape.clone().with(&["--form", "job"]);
        let manifest = Self::manifest(namespace, &shape).to_string();
        let _made = namespace.kubectl(&["apply", "-f", "-"], &manifest).good();
        let label = format!("--selector=batch.kubernetes.io/job-name={}", shape.name);
        let ask = ["get", "pods", &label, "-o", "jsonpath={.items[*].metadata.name}"];
        let mut name = String::new();
        let made = within(SOON, || {
            name = namespace.kubectl(&ask, "").stdout;
            !name.is_empty()
        });
        assert!(made, "the Job made no pod");
        let pod = Self { namespace, name };
        pod.until_serving();
        pod
    }

    /// Waits until the pilot answers.
    ///
    /// # Panics
    /// When it does not within a minute.
    pub fn until_serving(&self) {
        let serves = || self.pilot(&["top", "--once", "--output", "json"], "").code == 0;
        assert!(within(SOON, serves), "the pilot does not serve: {}", self.pilot_log());
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As the API has it.
    #[must_use]
    pub fn object(&self) -> Value {
        self.namespace.get("pod", &self.name)
    }

    /// As its node has it.
    #[must_use]
    pub fn host(&self) -> Host {
        Host::new(self.namespace.node(), self.object()["metadata"]["uid"].as_str().expect("uid"))
    }

    /// The status of one container.
    #[must_use]
    pub fn container(&self, name: &str) -> Value {
        let pod = self.object();
        let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|status| status["name"] == name).unwrap_or_default()
    }

    /// What the pilot wrote to its log; also in its life before, if it was restarted.
    #[must_use]
    pub fn pilot_log(&self) -> String {
        let ask = |more: &[&str]| {
            self.namespace.kubectl(&[&["logs", &self.name, "-c", "pilot"], more].concat(), "")
        };
        let (before, now) = (ask(&["--previous"]), ask(&[]));
        let before = if before.code == 0 { format!("{}--\n", before.stdout) } else { String::new() };
        before + &now.stdout + &now.stderr
    }

    /// `pilot ARGUMENTS` in the pilot's container.
    #[must_use]
    pub fn pilot(&self, arguments: &[&str], stdin: &str) -> Answer {
        let mut all = vec!["exec", "-i", &self.name, "-c", "pilot", "--", "/latebind/pilot"];
        all.extend(arguments);
        self.namespace.kubectl(&all, stdin)
    }

    /// Submits a workflow; gives the run's number.
    #[must_use]
    pub fn submit(&self, workflow: &str) -> String {
        self.submit_with(workflow, &[])
    }

    /// As [`Pod::submit`], with more arguments.
    #[must_use]
    pub fn submit_with(&self, workflow: &str, more: &[&str]) -> String {
        let out = format!("{OUT}-{:08x}", unique());
        let mut arguments = vec!["submit", "/dev/stdin", "--quiet", "--out", &out];
        arguments.extend(more);
        self.pilot(&arguments, workflow).good().trim().to_owned()
    }

    /// How the payloads of a run stand.
    #[must_use]
    pub fn payloads(&self, run: &str) -> Vec<Value> {
        let text = self.pilot(&["ls", run, "--all", "--output", "json"], "").good();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["kind"] == "payload").collect()
    }

    /// How one payload stands.
    #[must_use]
    pub fn payload(&self, run: &str, payload: &str) -> Value {
        let all = self.payloads(run);
        all.into_iter().find(|row| row["payload"] == payload).unwrap_or_default()
    }

    /// Waits until a payload has written this to its standard output.
    ///
    /// # Panics
    /// When it does not come.
    pub fn until_output(&self, run: &str, payload: &str, text: &str) {
        let address = format!("{run}/{payload}");
        let came = || self.pilot(&["logs", "--stdout", &address], "").stdout.contains(text);
        assert!(
            within(SOON, came),
            "{payload} never wrote {text:?}: {:#}\n{}",
            self.payload(run, payload),
            self.pilot_log()
        );
    }

    /// Waits until a run has ended, whichever way.
    ///
    /// # Panics
    /// When it has not in time.
    pub fn wait(&self, run: &str, longest: Duration) -> Answer {
        let timeout = format!("{}s", longest.as_secs());
        self.pilot(&["wait", run, "--timeout", &timeout], "")
    }

    /// Runs a workflow to its end, which must be a good one.
    pub fn run_well(&self, workflow: &str) -> String {
        let run = self.submit(workflow);
        let answer = self.wait(&run, Duration::from_secs(120));
        assert_eq!(
            answer.code,
            0,
            "{}{}\n{}\n{:#?}",
            answer.stdout,
            answer.stderr,
            self.pilot_log(),
            self.payloads(&run)
        );
        run
    }

    /// Runs a workflow of one payload that must not end well; gives what `pilot ls` says of it.
    #[must_use]
    pub fn run_badly(&self, workflow: &str) -> String {
        let run = self.submit(workflow);
        let answer = self.wait(&run, Duration::from_secs(120));
        assert_ne!(answer.code, 0, "it was to fail: {}", answer.stdout);
        self.pilot(&["ls", &run, "--output", "plain"], "").good()
    }

    /// What a payload wrote to its standard output.
    #[must_use]
    pub fn output(&self, run: &str, payload: &str) -> String {
        self.pilot(&["logs", "--stdout", &format!("{run}/{payload}")], "").good()
    }
}

/// A number that no other call gave.
fn unique() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    (std::process::id() << 12) + NEXT.fetch_add(1, Ordering::Relaxed)
}
