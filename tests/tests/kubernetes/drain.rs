//! A node that is taken out of service, by the program that administrators use for it.

use pilot_tests::kube::{Answer, Namespace, Node, SOON};
use pilot_tests::run::within;

use super::workstation::{Desk, text};

/// A node that takes no new pods; it does again when this goes.
struct Cordoned<'n> {
    node: &'n Node,
    name: String,
}

impl<'n> Cordoned<'n> {
    /// `kubectl drain`, of one pod: others on the node are none of this test's.
    fn drain(node: &'n Node, pod: &str) -> (Self, Answer) {
        let name = node.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"], "").good();
        let cordoned = Self { node, name };
        let pod = format!("--pod-selector=app.kubernetes.io/instance={pod}");
        let evicts = ["--disable-eviction=false", "--delete-emptydir-data", "--force", "--timeout=60s"];
        let answer = node.kubectl(&[&["drain", &cordoned.name, &pod], &evicts[..]].concat(), "");
        (cordoned, answer)
    }

    fn is_unschedulable(&self) -> bool {
        let path = "jsonpath={.spec.unschedulable}";
        self.node.kubectl(&["get", "node", &self.name, "-o", path], "").stdout == "true"
    }
}

impl Drop for Cordoned<'_> {
    fn drop(&mut self) {
        let _ = self.node.kubectl(&["uncordon", &self.name], "");
    }
}

/// Saves its work for a second when it is told to end.
const SAVES: &str = r#"
apiVersion: latebind/v1
metadata: {name: drained}
payloads:
  - name: saves
    image: "oci:busybox"
    command: [sh, -c, "trap 'sleep 1; echo saved; exit 0' TERM; echo ready; sleep 300 & while :; do wait; done"]
    grace: 15s
    resources: {cpu: 100m, memory: 64Mi}
"#;

#[test]
fn a_node_that_is_drained_lets_payloads_save_their_work_and_the_workstation_hears_of_it() {
    let desk = Desk::of(Namespace::alone("drained", &[]), SAVES);
    let mut child = desk.start();
    desk.until_sleeping();
    let pod = desk.pods().first().cloned().expect("a pod");
    let (cordoned, answer) = Cordoned::drain(desk.namespace.node(), pod.trim_start_matches("pod/"));
    assert!(cordoned.is_unschedulable(), "{answer:?}");
    drop(cordoned);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(answer.stdout.contains(&format!("{pod} evicted")), "{answer:?}");
    let mut code = None;
    let ended = || {
        code = child.try_wait().expect("wait");
        code.is_some()
    };
    assert!(within(SOON, ended), "the workstation waits: {}", text(&desk.path("said")));
    let said = text(&desk.path("said"));
    assert_eq!(text(&desk.path("out/logs/saves.stdout")), "ready\nsaved\n", "{said}");
    assert!(said.contains("saves: evicted (in "), "{said}");
    // As one that was told to end.
    assert_eq!(code.and_then(|code| code.code()), Some(143), "{said}");
    assert_eq!(desk.pods(), Vec::<String>::new());
}
