//! The harness of the tests on a real node: namespaces with the pilot's rights, pods of pilots, and what a user would type.
//!
//! `tests/node/with` starts the node and sets `LATEBIND_NODE`. Each test has a namespace of its own, under Pod Security
//! `restricted`, which goes with it.
//!
//! **Must not know:** the pilot's inside.

mod gate;
mod host;
mod images;
mod pod;
mod stand;
mod turn;
mod webhook;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

pub use self::gate::Gate;
pub use self::host::{CutOff, Host, Process, kill};
pub use self::images::{Images, busybox_spec, images, push, push_layout};
pub use self::pod::{Pod, Shape};
pub use self::stand::PodStand;
use self::turn::Turn;
pub use self::webhook::Webhook;
use crate::run::{dist, within};

/// Longest wait for something that the cluster does within a second or two at rest.
pub const SOON: Duration = Duration::from_secs(60);

/// What a command answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Answer {
    /// The standard output of a command that must have succeeded.
    ///
    /// # Panics
    /// When it has not, with what it said.
    #[must_use]
    pub fn good(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }
}

/// Runs a command to its end, with `stdin` on its standard input.
///
/// # Panics
/// When it can't be started.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "tests run programs as a user does")]
pub fn command(program: &Path, arguments: &[&str], stdin: &str) -> Answer {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let mut input = child.stdin.take().expect("piped");
    let text = stdin.to_owned();
    let feeding = std::thread::spawn(move || drop(input.write_all(text.as_bytes())));
    let output = child.wait_with_output().expect("wait");
    feeding.join().expect("feed");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    Answer { code: output.status.code().unwrap_or(-1), stdout, stderr }
}

/// The project's folder.
#[must_use]
pub fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The node that the environment names.
#[derive(Clone, Debug)]
pub struct Node {
    state: PathBuf,
}

impl Node {
    /// The node.
    ///
    /// # Panics
    /// When there is none: these tests are only built for `tests/node/with`.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the tests' one setting")]
    pub fn here() -> Self {
        let state =
            std::env::var("LATEBIND_NODE").expect("LATEBIND_NODE; run these tests through tests/node/with");
        Self { state: PathBuf::from(state) }
    }

    /// Its folder.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.state.join(name)).expect(name).trim().to_owned()
    }

    /// The registry that lets everybody in, as `host:port`.
    #[must_use]
    pub fn registry(&self) -> String {
        self.file("registry")
    }

    /// The registry that lets in alice, with the password wonder.
    #[must_use]
    pub fn private_registry(&self) -> String {
        self.file("private-registry")
    }

    /// One of the node's programs.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        Path::new(&self.file("bin")).join(name)
    }

    /// `kubectl ARGUMENTS`, as administrator.
    #[must_use]
    pub fn kubectl(&self, arguments: &[&str], stdin: &str) -> Answer {
        let kubeconfig = self.state.join("kubeconfig");
        let cache = self.state.join("kubectl-cache");
        let mut all = vec!["--kubeconfig", kubeconfig.to_str().expect("path"), "--cache-dir"];
        all.push(cache.to_str().expect("path"));
        all.extend(arguments);
        command(&self.program("kubectl"), &all, stdin)
    }

    /// Stops, starts or restarts one of the node's services.
    pub fn service(&self, verb: &str, name: &str) {
        let script = project().join("tests/node").join(verb);
        let state = self.state.to_str().expect("path");
        let _done = command(&script, &[state, name], "").good();
    }

    /// Lines of the API server's audit log about a ServiceAccount of a namespace: its requests.
    #[must_use]
    pub fn requests_of(&self, namespace: &str) -> Vec<serde_json::Value> {
        let user = format!("system:serviceaccount:{namespace}:latebind-pilot");
        let log = std::fs::read_to_string(self.state.join("log/audit.log")).unwrap_or_default();
        let lines = log.lines().filter(|line| line.contains(&user));
        let parsed = lines.filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        parsed.filter(|event| event["user"]["username"] == user.as_str()).collect()
    }
}

/// A namespace with the pilot's account and rights. It goes with its test.
#[derive(Debug)]
pub struct Namespace {
    node: Node,
    name: String,
    _turn: Turn,
}

impl Namespace {
    /// Makes one; `values` are settings of the chart, as for `helm --set`.
    #[must_use]
    pub fn new(test: &str, values: &[&str]) -> Self {
        Self::make(test, values, Turn::shared())
    }

    /// As [`Namespace::new`], while no other test of this process has one: for tests that stop the node's services.
    #[must_use]
    pub fn alone(test: &str, values: &[&str]) -> Self {
        Self::make(test, values, Turn::alone())
    }

    fn make(test: &str, values: &[&str], turn: Turn) -> Self {
        let node = Node::here();
        let name = format!("{}-{:06x}", test.replace('_', "-"), std::process::id() & 0x00ff_ffff);
        let name: String = name.chars().rev().take(50).collect::<Vec<_>>().into_iter().rev().collect();
        let name = name.trim_start_matches('-').to_owned();
        let namespace = Self { node, name, _turn: turn };
        let _made = namespace.node.kubectl(&["create", "namespace", &namespace.name], "").good();
        let level = "pod-security.kubernetes.io/enforce=restricted";
        let _labelled = namespace.node.kubectl(&["label", "namespace", &namespace.name, level], "").good();
        namespace.install(values);
        namespace
    }

    fn install(&self, values: &[&str]) {
        let images = images(&self.node);
        let chart = project().join("deploy/chart/latebind");
        let pilot = format!("images.pilot={}", images.pilot);
        let shim = format!("images.shim={}", images.shim);
        let mut all = vec![
            "template",
            "latebind",
            chart.to_str().expect("path"),
            "--namespace",
            &self.name,
            "--kube-version",
            "1.36",
        ];
        for value in ["form=none", "allowedImages[0]=.+", &pilot, &shim].iter().chain(values) {
            all.extend(["--set", value]);
        }
        let manifests = command(&self.node.program("helm"), &all, "").good();
        let _applied = self.kubectl(&["apply", "-f", "-"], &manifests).good();
        let hosts = [self.node.registry(), self.node.private_registry()];
        let plain = hosts.map(|host| format!("{host:?}: {{insecure: true}}")).join(", ");
        let registries = format!("--from-literal=registries.yaml=registries: {{{plain}}}");
        let _made = self.kubectl(&["create", "configmap", "registries", &registries], "").good();
        let account = || self.kubectl(&["get", "serviceaccount", "default"], "").code == 0;
        assert!(within(SOON, account), "the namespace's account did not come");
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// `kubectl -n NAMESPACE ARGUMENTS`.
    #[must_use]
    pub fn kubectl(&self, arguments: &[&str], stdin: &str) -> Answer {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend(arguments);
        self.node.kubectl(&all, stdin)
    }

    /// An object, as JSON.
    #[must_use]
    pub fn get(&self, kind: &str, name: &str) -> serde_json::Value {
        let text = self.kubectl(&["get", kind, name, "-o", "json"], "").good();
        serde_json::from_str(&text).expect("json")
    }

    /// A pilot's pod; returns when its pilot serves.
    #[must_use]
    pub fn pod(&self, shape: &Shape) -> Pod<'_> {
        Pod::start(self, shape)
    }

    /// The pod of a pilot's Job; returns when its pilot serves.
    #[must_use]
    pub fn job(&self, shape: &Shape) -> Pod<'_> {
        Pod::start_job(self, shape)
    }

    /// `pilot ARGUMENTS` on this machine, with the administrator's kubeconfig.
    #[must_use]
    pub fn pilot(&self, arguments: &[&str], stdin: &str) -> Answer {
        let kubeconfig = format!("KUBECONFIG={}", self.node.state.join("kubeconfig").display());
        let program = dist().join("pilot");
        let mut all = vec![kubeconfig.as_str(), program.to_str().expect("path")];
        all.extend(arguments);
        command(Path::new("/usr/bin/env"), &all, stdin)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let pods = self.kubectl(&["get", "pods", "-o", "wide"], "");
            let events = self.kubectl(&["get", "events", "--sort-by=.lastTimestamp"], "");
            let tail: Vec<&str> = events.stdout.lines().rev().take(25).collect();
            crate::note(&format!("{}{}", pods.stdout, tail.into_iter().rev().collect::<Vec<_>>().join("\n")));
        }
        for kind in ["validatingadmissionpolicybindings", "validatingadmissionpolicies"] {
            let names = self.node.kubectl(&["get", kind, "-o", "name"], "").stdout;
            let suffix = format!("-{}", self.name);
            for name in names.lines().filter(|name| name.ends_with(&suffix)) {
                let _gone = self.node.kubectl(&["delete", name, "--wait=false"], "");
            }
        }
        let _gone = self.kubectl(&["delete", "pods", "--all", "--grace-period=0", "--force"], "");
        let _gone = self.node.kubectl(&["delete", "namespace", &self.name, "--wait=false"], "");
    }
}
