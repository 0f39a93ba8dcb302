//! Slots that get the size of what runs in them, and what happens where there is no room.

use std::time::Duration;

use pilot_tests::kube::{Namespace, Pod, SOON, Shape, images};
use pilot_tests::run::within;
use serde_json::{Value, json};

use crate::basics::{flow, sh};
use crate::images::works;

/// Prints the memory that the container may use, in bytes.
const LIMIT: &str =
    "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; echo done";

/// A workflow of a payload that asks for so much memory and prints what it got.
fn sized(namespace: &Namespace, mib: u64) -> String {
    flow(&[sh(namespace, "sized", LIMIT, &format!("resources: {{cpu: 300m, memory: {mib}Mi}}"))])
}

fn until_told(pod: &Pod<'_>, run: &str, words: &str) {
    let mut row = Value::Null;
    let told = within(SOON, || {
        row = pod.payload(run, "sized");
        row["outcome"].as_str().is_some_and(|outcome| outcome.contains(words))
    });
    assert!(told, "{row:#}");
    assert_ne!(row["state"], "failed", "{row:#}");
}

/// The payload waits no more, and has what it asked for.
fn ends_well(pod: &Pod<'_>, run: &str, mib: u64) {
    let answer = pod.wait(run, Duration::from_secs(90));
    assert_eq!(answer.code, 0, "{:#}\n{}", pod.payload(run, "sized"), pod.pilot_log());
    assert_eq!(pod.output(run, "sized"), format!("{}\ndone\n", mib << 20));
}

#[test]
fn a_payload_gets_a_slot_of_its_own_size_where_slots_can_be_resized() {
    let namespace = Namespace::new("resize", &["tiers.resize=true"]);
    let pod = namespace.pod(&Shape::default().with(&["--resize", "true"]));
    for mib in [200, 100, 150] {
        let run = pod.submit(&sized(&namespace, mib));
        ends_well(&pod, &run, mib);
    }
    works(&namespace, &pod);
}

#[test]
fn a_payload_for_which_a_quota_has_no_room_waits_until_there_is_some() {
    let namespace = Namespace::new("quota", &["tiers.resize=true"]);
    let pod = namespace.pod(&Shape::default().with(&["--resize", "true"]));
    // Pilot and slots have 320 Mi of it.
    let _made = namespace.kubectl(&["create", "quota", "tight", "--hard=requests.memory=350Mi"], "").good();
    let quota = || namespace.get("quota", "tight")["status"]["used"]["requests.memory"].is_string();
    assert!(within(SOON, quota), "the quota does not count");
    let run = pod.submit(&sized(&namespace, 200));
    until_told(&pod, &run, "exceeded quota: tight");
    works(&namespace, &pod);
    let _gone = namespace.kubectl(&["delete", "quota", "tight"], "").good();
    ends_well(&pod, &run, 200);
}

#[test]
fn a_payload_for_which_the_node_has_no_room_waits_and_is_not_run_in_a_smaller_slot() {
    const GIB: u64 = 1 << 10;
    let namespace = Namespace::new("no_room", &["tiers.resize=true"]);
    let node = namespace.node().kubectl(&["get", "nodes", "-o", "json"], "").good();
    let node: Value = serde_json::from_str(&node).expect("json");
    let memory = node["items"][0]["status"]["allocatable"]["memory"].as_str().expect("memory");
    let mib = memory.trim_end_matches("Ki").parse::<u64>().expect("Ki") >> 10;
    // The slots have half of the node, another pod a third, and one slot wants as much as both slots have: nothing of it is
    // ever used.
    let half = format!("{}Mi", mib / 2);
    let pod = namespace.pod(&Shape { memory: half, ..Shape::default() }.with(&["--resize", "true"]));
    let amounts = json!({"cpu": "1m", "memory": format!("{}Mi", mib / 3)});
    let other = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "other"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "other", "image": images(namespace.node()).busybox.trim_start_matches("docker://"),
                "command": ["/bin/sleep", "600"], "resources": {"requests": amounts},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    });
    let _made = namespace.kubectl(&["apply", "-f", "-"], &other.to_string()).good();
    let runs = || namespace.get("pod", "other")["status"]["phase"] == "Running";
    assert!(within(SOON, runs), "the other pod does not run");
    let wanted = mib / 2 - GIB;
    let run = pod.submit(&sized(&namespace, wanted));
    until_told(&pod, &run, "Node didn't have enough resource: memory");
    // It is tried again and again; between two tries nothing is asked for.
    let asked = json!((wanted << 20).to_string());
    let given_back = || pod.object()["spec"]["containers"][1]["resources"]["limits"]["memory"] != asked;
    assert!(within(SOON, given_back), "it is still asked for");
    let _gone = namespace.kubectl(&["delete", "pod", "other", "--now"], "").good();
    ends_well(&pod, &run, wanted);
}
