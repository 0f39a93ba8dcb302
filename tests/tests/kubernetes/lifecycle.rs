//! Pilots that are killed and come back, pods that go, shims that are killed under their payload, pilots that end.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use pilot_tests::kube::{Host, Namespace, Pod, SOON, Shape, busybox_spec, kill, push};
use pilot_tests::run::within;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use wire::slot::{FromShim, Nonce, ShimState};
use wire::version::PROTOCOL;

use super::basics::{flow, sh};

/// One slot, so that a test knows where its payload is.
pub(crate) fn one() -> Shape {
    Shape { slots: 1, cpu: "200m".into(), memory: "128Mi".into(), ..Shape::default() }
}

/// Runs until it is let go; writes a line for each time that it was started.
pub(crate) const WAITS: &str = "echo started; until [ -e /work/go ]; do sleep 0.05; done; echo done";

/// Kills the pilot; gives the pid that it had.
pub(crate) fn kill_pilot(host: &Host) -> u32 {
    let pilot = host.pilot().expect("a pilot");
    kill(&pilot);
    pilot.pid
}

/// Waits until there is another pilot than this one, and it serves.
pub(crate) fn until_next(pod: &Pod<'_>, host: &Host, before: u32) {
    let next = || host.pilot().is_some_and(|pilot| pilot.pid != before);
    assert!(within(SOON, next), "no pilot came back: {:#}", pod.container("pilot"));
    pod.until_serving();
}

#[test]
fn a_pilot_that_is_killed_comes_back_and_adopts_what_runs_and_what_ended_meanwhile() {
    let namespace = Namespace::new("pilot_killed", &[]);
    let pod = namespace.pod(&one());
    let host = pod.host();
    let first = pod.submit(&flow(&[
        sh(
            &namespace,
            "first",
            &format!("{WAITS}; echo kept > /stage/out/x"),
            "outputs: [{name: x, max_size: 1Mi}]",
        ),
        sh(&namespace, "next", "cat /stage/in/x", "inputs: [{name: x, from: 'stage://first/x'}]"),
    ]));
    pod.until_output(&first, "first", "started\n");
    let container = pod.container("slot-0")["containerID"].clone();
    until_next(&pod, &host, kill_pilot(&host));
    assert!(within(SOON, || pod.pilot_log().contains("1 adopted")), "{}", pod.pilot_log());
    assert_eq!(pod.container("slot-0")["containerID"], container, "the payload's container was touched");
    host.touch_work(0, "go");
    assert_eq!(pod.wait(&first, SOON).code, 0, "{:#} {}", pod.payload(&first, "first"), pod.pilot_log());
    assert_eq!(pod.output(&first, "first"), "started\ndone\n");
    assert_eq!(pod.output(&first, "next"), "kept\n");
    assert_eq!(pod.payload(&first, "first")["tries"], 1);

    // The kubelet lets ten seconds pass before the second restart.
    let fields = "outputs: [{name: x, max_size: 1Mi}]";
    let script = format!("{WAITS}; echo gone; echo late > /stage/out/x; exit 7");
    let second = pod.submit(&flow(&[
        sh(&namespace, "ends", &script, fields),
        sh(&namespace, "waits", "echo afterwards", "after: []"),
    ]));
    pod.until_output(&second, "ends", "started\n");
    let before = kill_pilot(&host);
    host.touch_work(0, "go");
    let ended = || host.slot(0).iter().all(|process| process.name != "sh");
    assert!(within(SOON, ended), "{:?}", host.slot(0));
    until_next(&pod, &host, before);
    let failed = pod.wait(&second, SOON);
    assert_eq!(failed.code, 1, "{}{}", failed.stdout, failed.stderr);
    let row = pod.payload(&second, "ends");
    assert_eq!((&row["state"], &row["tries"]), (&"failed".into(), &1.into()), "{row:#}");
    assert!(row["outcome"].as_str().is_some_and(|text| text.contains("exit code 7")), "{row:#}");
    assert_eq!(pod.output(&second, "ends"), "started\ndone\ngone\n");
    assert_eq!(pod.payload(&second, "waits")["state"], "succeeded");
}

#[test]
fn stages_in_memory_outlive_their_pilot_in_the_slot_that_made_them() {
    let namespace = Namespace::new("memory_kept", &[]);
    let pod = namespace.pod(&one());
    let host = pod.host();
    let memory = |name: &str| format!("{{name: {name}, class: mem, max_size: 1Mi}}");
    let from = |name: &str, payload: &str| format!("{{name: {name}, from: 'stage://{payload}/{name}'}}");
    let run = pod.submit(&flow(&[
        sh(
            &namespace,
            "makes",
            "echo memory > /stage/out/m; echo value > /stage/out/v",
            &format!("outputs: [{}, {{name: v, class: value}}]", memory("m")),
        ),
        sh(
            &namespace,
            "waits",
            &format!("echo begun > /stage/out/w; {WAITS}; echo ended >> /stage/out/w"),
            &format!("at_most_once: true, after: [makes], outputs: [{}]", memory("w")),
        ),
        sh(
            &namespace,
            "reads",
            "cat /stage/in/m /stage/in/v /stage/in/w",
            &format!("inputs: [{}, {}, {}]", from("m", "makes"), from("v", "makes"), from("w", "waits")),
        ),
    ]));
    pod.until_output(&run, "waits", "started\n");
    until_next(&pod, &host, kill_pilot(&host));
    assert!(within(SOON, || pod.pilot_log().contains("1 adopted")), "{}", pod.pilot_log());
    host.touch_work(0, "go");
    assert_eq!(pod.wait(&run, SOON).code, 0, "{:#} {}", pod.payload(&run, "reads"), pod.pilot_log());
    assert_eq!(pod.output(&run, "reads"), "memory\nvalue\nbegun\nended\n");
    for name in ["makes", "waits", "reads"] {
        assert_eq!(pod.payload(&run, name)["tries"], 1, "{name}");
    }
}

/// Calls on a slot's socket as an idle shim, as whatever runs in the slot can; `None` while nobody listens there.
fn call_as_idle(host: &Host, slot: u32) -> Option<OwnedFd> {
    // The path is too long for an address.
    let control = std::fs::File::open(host.share().join(format!("slots/{slot}/control"))).ok()?;
    let path = format!("/proc/self/fd/{}/sock", control.as_raw_fd());
    let kind = (AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let socket = rustix::net::socket_with(kind.0, kind.1, kind.2, None).expect("socket");
    rustix::net::connect(&socket, &SocketAddrUnix::new(path.as_str()).expect("address")).ok()?;
    let hello = FromShim::Hello { protocol: PROTOCOL, nonce: Nonce::IDLE, state: ShimState::Idle };
    wire::frame::send(socket.as_fd(), &wire::encode(&hello).expect("encode"), &[]).ok()?;
    Some(socket)
}

#[test]
fn whoever_calls_as_an_idle_shim_keeps_nothing_from_being_adopted() {
    let namespace = Namespace::new("idle_call", &[]);
    let pod = namespace.pod(&one());
    let host = pod.host();
    let run = pod.submit(&flow(&[sh(&namespace, "waits", WAITS, "at_most_once: true")]));
    pod.until_output(&run, "waits", "started\n");
    let before = kill_pilot(&host);
    // The first to call, most likely: the shim's next turn is some hundred milliseconds away.
    let mut line = None;
    let called = || {
        line = call_as_idle(&host, 0);
        line.is_some()
    };
    assert!(within(SOON, called), "nobody listened");
    until_next(&pod, &host, before);
    assert!(within(SOON, || pod.pilot_log().contains("1 adopted")), "{}", pod.pilot_log());
    host.touch_work(0, "go");
    assert_eq!(pod.wait(&run, SOON).code, 0, "{:#} {}", pod.payload(&run, "waits"), pod.pilot_log());
    assert_eq!(pod.output(&run, "waits"), "started\ndone\n");
}

#[test]
fn a_shim_that_is_killed_costs_the_try_and_not_the_slot() {
    let namespace = Namespace::new("shim_killed", &[]);
    let pod = namespace.pod(&one());
    let host = pod.host();
    let run =
        pod.submit(&flow(&[sh(&namespace, "again", WAITS, ""), sh(&namespace, "after", "ls -A /work", "")]));
    pod.until_output(&run, "again", "started\n");
    let first = host.shim(0).expect("a shim");
    kill(&first);
    let second = || {
        host.shim(0).is_some_and(|shim| shim.pid != first.pid)
            && host.slot(0).iter().any(|process| process.name == "sh")
    };
    assert!(within(SOON, second), "{:#}\n{}", pod.payload(&run, "again"), pod.pilot_log());
    host.touch_work(0, "go");
    assert_eq!(pod.wait(&run, SOON).code, 0, "{:#}\n{}", pod.payload(&run, "again"), pod.pilot_log());
    assert_eq!(pod.payload(&run, "again")["tries"], 2);
    assert_eq!(pod.output(&run, "after"), "", "a later payload found something");

    let once = pod.submit(&flow(&[sh(&namespace, "once", WAITS, "at_most_once: true")]));
    pod.until_output(&once, "once", "started\n");
    kill(&host.shim(0).expect("a shim"));
    assert_ne!(pod.wait(&once, SOON).code, 0);
    let row = pod.payload(&once, "once");
    assert_eq!((&row["state"], &row["tries"]), (&"failed".into(), &1.into()), "{row:#}");
    // The idle container that was there just before ended with 143, and the API may still speak of that one.
    let how = "the slot's container ended under its payload (Error, exit code 137)";
    assert_eq!(row["outcome"], how, "{row:#}");
    let _fine = pod.run_well(&flow(&[sh(&namespace, "fine", "echo fine", "")]));
}

/// Notes when it was told to end, and each moment that it still had.
const HOLDS_OUT: &str = "trap 'cut -d\" \" -f1 /proc/uptime > /work/term' TERM; echo ready; \
    while :; do sleep 0.1; cut -d' ' -f1 /proc/uptime > /work/last.new; mv /work/last.new /work/last; done";
/// Saves its work for a second when it is told to end; what it saved goes when it ends, so it stays for another one.
const SAVES: &str = "trap 'echo term > /work/term; sleep 1; echo saved > /work/saved; sleep 1; exit 0' TERM; echo ready; \
    while :; do sleep 0.1; done";

/// In which slot a payload is that has written this file.
fn slot_with(host: &Host, name: &str) -> Option<u32> {
    (0..2).find(|slot| host.work(*slot).join(name).exists())
}

fn seconds(host: &Host, slot: u32, name: &str) -> Option<f64> {
    host.read_work(slot, name).trim().parse().ok()
}

#[test]
fn payloads_of_a_pod_that_is_deleted_get_a_word_and_then_their_end_within_its_grace() {
    let namespace = Namespace::new("pod_deleted", &[]);
    let pod = namespace.pod(&Shape::default());
    let host = pod.host();
    let run = pod.submit(&flow(&[
        sh(&namespace, "stays", HOLDS_OUT, "grace: 60s"),
        sh(&namespace, "saves", &format!("echo > /work/saves; {SAVES}"), "grace: 60s"),
    ]));
    pod.until_output(&run, "stays", "ready");
    pod.until_output(&run, "saves", "ready");
    let (stays, saves) =
        (slot_with(&host, "last").expect("a slot"), slot_with(&host, "saves").expect("a slot"));
    let _deleted = namespace.kubectl(&["delete", "pod", pod.name(), "--wait=false"], "").good();
    // The kubelet takes the volume away with the last container, so what stands there is noted while it does.
    let (mut term, mut last, mut saved) = (None, None, false);
    let gone = within(Duration::from_secs(40), || {
        term = seconds(&host, stays, "term").or(term);
        last = seconds(&host, stays, "last").or(last);
        saved |= host.read_work(saves, "saved") == "saved\n";
        host.processes().is_empty()
    });
    assert!(gone, "the pod did not end: {:?}", host.processes());
    assert!(saved, "the payload had no time to save its work");
    let (term, last) = (term.expect("a TERM"), last.expect("a moment"));
    // Of 20 s, 5 are kept for the pilot.
    assert!((13.0..18.0).contains(&(last - term)), "it had {} s", last - term);
    let ended = || namespace.kubectl(&["get", "pod", pod.name()], "").code != 0;
    assert!(within(SOON, ended), "the pod is still listed");
}

#[test]
fn a_pod_that_is_evicted_lets_its_payloads_save_their_work_and_is_gone_soon() {
    let namespace = Namespace::new("pod_evicted", &[]);
    let pod = namespace.pod(&one());
    let host = pod.host();
    let run = pod.submit(&flow(&[sh(&namespace, "saves", SAVES, "grace: 15s")]));
    pod.until_output(&run, "saves", "ready");
    let path = format!("/api/v1/namespaces/{}/pods/{}/eviction", namespace.name(), pod.name());
    let eviction = serde_json::json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": pod.name(), "namespace": namespace.name()},
    });
    let _evicted = namespace.kubectl(&["create", "--raw", &path, "-f", "-"], &eviction.to_string()).good();
    let mut saved = false;
    // Its grace of 20 s is not used up: nothing is left to wait for after a second.
    let gone = within(Duration::from_secs(12), || {
        saved |= host.read_work(0, "saved") == "saved\n";
        host.processes().is_empty()
    });
    assert!(saved, "the payload had no time to save its work");
    assert!(gone, "{:?}", host.processes());
}

#[test]
fn a_jobs_pilot_binds_rolls_back_and_retires_and_the_job_is_complete() {
    let namespace = Namespace::new("job_completes", &[]);
    let registry = namespace.node().registry();
    // A mirror that the kubelet has not heard of: the pilot binds what the node can't pull, and the slot is rolled back.
    let text = format!("registries: {{{registry:?}: {{insecure: true, mirrors: [\"{registry}/seen\"]}}}}");
    let file = format!("--from-literal=registries.yaml={text}");
    let _made = namespace.kubectl(&["create", "configmap", "mirrors", &file], "").good();
    let unseen = push(namespace.node(), "seen/unseen-by-job", &busybox_spec()).replace("/seen/", "/");
    let shape = Shape::default().env("LATEBIND_IDLE_MS", "5000").with(&["--registries-config", "mirrors"]);
    let pod = namespace.job(&shape);
    let bad = format!("  - {{name: bad, image: {unseen:?}, command: [/bin/true]}}\n");
    let good = (0..3).map(|number| sh(&namespace, &format!("good-{number}"), "echo good", "after: []"));
    let mut all: Vec<String> = good.collect();
    all.insert(1, bad);
    let run = pod.submit(&flow(&all));
    let _failed = pod.wait(&run, SOON);
    let listed = pod.pilot(&["ls", &run, "--output", "plain"], "").good();
    assert!(listed.contains("the node can't pull the image"), "{listed}");
    for row in pod.payloads(&run) {
        let Some(name) = row["payload"].as_str() else { continue };
        let wanted = if name == "bad" { "failed" } else { "succeeded" };
        assert_eq!(row["state"], wanted, "{row:#}");
    }
    let mut job = serde_json::Value::Null;
    let complete = within(SOON, || {
        job = namespace.get("job", "pilot");
        let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|condition| condition["type"] == "Complete" && condition["status"] == "True")
    });
    assert!(complete, "{job:#}\n{}", pod.pilot_log());
    let object = pod.object();
    for status in object["status"]["containerStatuses"].as_array().expect("statuses") {
        let ended = &status["state"]["terminated"];
        assert_eq!((&ended["exitCode"], &ended["reason"]), (&0.into(), &"Completed".into()), "{status:#}");
    }
}
