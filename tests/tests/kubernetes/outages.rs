//! The API server, or the kubelet, is away for a while: what runs goes on, and what was asked for comes afterwards, once.
//!
//! Tests that stop a service have the node alone: see [`Namespace::alone`].

use std::time::Duration;

use pilot_tests::images::shell;
use pilot_tests::kube::{Host, Namespace, Node, SOON, Shape, push};
use pilot_tests::run::within;
use serde_json::Value;

use super::basics::{flow, sh};

/// A service that is away. It comes back also when the test fails.
struct Away<'n>(&'n Node, &'static str);

impl<'n> Away<'n> {
    fn new(node: &'n Node, name: &'static str) -> Self {
        node.service("stop", name);
        Self(node, name)
    }

    fn back(self) {}
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        self.0.service("start", self.1);
    }
}

fn one() -> Shape {
    Shape { slots: 1, cpu: "200m".into(), memory: "128Mi".into(), ..Shape::default() }
}

const WAITS: &str = "echo started; until [ -e /work/go ]; do sleep 0.05; done; echo done";

/// Submits where no API is needed.
fn submit(host: &Host, workflow: &str) -> String {
    // Not through standard input: a pipe can't be opened again by another user.
    std::fs::write(host.share().join("pilot/tmp/workflow.yaml"), workflow).expect("write");
    let private = "/latebind/share/pilot";
    let (file, out) = (format!("{private}/tmp/workflow.yaml"), format!("{private}/out-away"));
    host.ask(&["submit", &file, "--quiet", "--out", &out]).good().trim().to_owned()
}

/// States and tries of a run's payloads.
fn rows(host: &Host, run: &str) -> Vec<(String, String, u64)> {
    let text = host.ask(&["ls", run, "--output", "json"]).good();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let word = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    lines
        .filter(|row| row["kind"] == "payload")
        .map(|row| (word(&row, "payload"), word(&row, "state"), row["tries"].as_u64().unwrap_or_default()))
        .collect()
}

fn until_succeeded(host: &Host, run: &str, longest: Duration) {
    let done = || rows(host, run).iter().all(|(_, state, _)| state == "succeeded");
    assert!(within(longest, done), "{:?}", rows(host, run));
    let once = rows(host, run).iter().all(|(.., tries)| *tries == 1);
    assert!(once, "{:?}", rows(host, run));
}

/// A payload of another image than [`sh`]'s.
fn other(node: &Node, script: &str) -> String {
    let spec = image_store::layout::ImageSpec { env: vec!["OTHER=1".into()], ..shell() };
    let image = push(node, "busybox-other", &spec);
    format!("  - {{name: other, image: {image:?}, command: [/bin/sh, -c, {}]}}\n", Value::from(script))
}

#[test]
fn without_an_api_server_payloads_go_on_results_come_and_warm_slots_take_more() {
    let namespace = Namespace::alone("api_away", &[]);
    let pod = namespace.pod(&one());
    let (host, node) = (pod.host(), namespace.node());
    let run = pod.submit(&flow(&[
        sh(&namespace, "long", &format!("{WAITS}; echo kept > /stage/out/x"), "outputs: [{name: x}]"),
        sh(&namespace, "reads", "cat /stage/in/x", "inputs: [{name: x, from: 'stage://long/x'}]"),
        sh(&namespace, "more", "echo more", "after: [reads]"),
    ]));
    pod.until_output(&run, "long", "started\n");
    let change = flow(&[other(node, "echo $OTHER")]);
    let away = Away::new(node, "apiserver");
    let pilot = host.pilot();
    host.touch_work(0, "go");
    until_succeeded(&host, &run, SOON);
    let next = submit(&host, &flow(&[sh(&namespace, "warm", "echo warm", "")]));
    until_succeeded(&host, &next, SOON);
    // Another image is asked for again and again, until there is somebody to ask.
    let bound = submit(&host, &change);
    let claimed = || rows(&host, &bound).iter().all(|(_, state, _)| state == "claimed" || state == "running");
    assert!(within(SOON, claimed), "{:?}", rows(&host, &bound));
    away.back();
    // The kubelet waits longer and longer between its own calls to the server: half a minute and more on a busy machine.
    until_succeeded(&host, &bound, 2 * SOON);
    let now = host.pilot();
    assert_eq!(now.map(|pilot| pilot.pid), pilot.map(|pilot| pilot.pid), "the pilot was restarted");
    let up = || {
        namespace.kubectl(&["get", "pod", pod.name()], "").code == 0 && pod.output(&bound, "other") == "1\n"
    };
    assert!(within(SOON, up));
    assert_eq!(pod.output(&run, "reads"), "kept\n");
    // Idle, the first image, the other one.
    assert_eq!(pod.container("slot-0")["restartCount"], 2);
}

#[test]
fn a_kubelet_or_a_containerd_that_is_restarted_disturbs_no_payload_and_takes_up_a_bind() {
    let namespace = Namespace::alone("kubelet_away", &[]);
    let pod = namespace.pod(&one());
    let (host, node) = (pod.host(), namespace.node());
    let run = pod.submit(&flow(&[sh(&namespace, "long", WAITS, "")]));
    pod.until_output(&run, "long", "started\n");
    let change = flow(&[other(node, "echo $OTHER")]);
    let shim = host.shim(0).expect("a shim").pid;
    node.service("restart", "kubelet");
    node.service("restart", "containerd");
    assert_eq!(host.shim(0).map(|shim| shim.pid), Some(shim), "the payload's container was touched");
    let away = Away::new(node, "kubelet");
    host.touch_work(0, "go");
    until_succeeded(&host, &run, SOON);
    let bound = submit(&host, &change);
    // The API has the new image, and nobody acts on it.
    let asked = || {
        pod.object()["spec"]["containers"][1]["image"]
            .as_str()
            .is_some_and(|image| image.contains("busybox-other"))
    };
    assert!(within(SOON, asked), "{:#}", pod.object()["spec"]["containers"][1]);
    assert_eq!(host.shim(0).map(|shim| shim.pid), Some(shim));
    away.back();
    until_succeeded(&host, &bound, SOON);
    let up = || pod.pilot(&["top", "--once"], "").code == 0;
    assert!(within(SOON, up));
    assert_eq!(pod.output(&bound, "other"), "1\n");
    assert_eq!(pod.container("slot-0")["restartCount"], 2);
}

#[test]
fn a_pod_that_is_cut_off_from_the_api_server_for_a_minute_loses_no_try_and_no_slot() {
    let namespace = Namespace::new("cut_off", &[]);
    let pod = namespace.pod(&Shape::default());
    let (host, node) = (pod.host(), namespace.node());
    let _warm = pod.run_well(&flow(&[sh(&namespace, "first", "echo first", "")]));
    let change = flow(&[other(node, "echo $OTHER")]);
    let cut = host.cut_off();
    let bound = submit(&host, &change);
    let warm = submit(&host, &flow(&[sh(&namespace, "warm", "echo warm", "")]));
    until_succeeded(&host, &warm, SOON);
    // More than it may take the API server to answer, and than a cluster's clients give up after.
    let given_up = || rows(&host, &bound).iter().any(|(_, state, tries)| state != "claimed" || *tries != 1);
    assert!(!within(Duration::from_secs(60), given_up), "{:?}", rows(&host, &bound));
    drop(cut);
    until_succeeded(&host, &bound, SOON);
    assert_eq!(pod.output(&bound, "other"), "1\n");
}
