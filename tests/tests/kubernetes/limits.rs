//! What a payload may use and change, and that the next one in its slot finds nothing of it.

use image_store::layout::{Compression, LayerBuilder};
use pilot_tests::images::{busybox_layer, image, shell};
use pilot_tests::kube::{Namespace, Pod, SOON, Shape, push, push_layout};

use crate::basics::{flow, sh};
use crate::images::{line, took_ms, works};
use crate::neighbour::{Neighbour, restarts};

/// One slot, so that payloads follow each other in it.
fn one_slot() -> Shape {
    Shape { slots: 1, cpu: "300m".into(), memory: "128Mi".into(), ..Shape::default() }
}

/// What `pilot ls` says of a payload that must not end well.
fn refused(namespace: &Namespace, pod: &Pod<'_>, script: &str, fields: &str) -> String {
    line(&pod.run_badly(&flow(&[sh(namespace, "bad", script, fields)]))).to_owned()
}

/// Payload `name` of another image with the same programs.
fn elsewhere(namespace: &Namespace, name: &str, script: &str) -> String {
    let spec = image_store::layout::ImageSpec { env: vec!["OTHER=1".into()], ..shell() };
    let image = push(namespace.node(), "other", &spec);
    let script = serde_json::Value::from(script);
    format!("  - {{name: {name}, image: {image:?}, command: [/bin/sh, -c, {script}]}}\n")
}

#[test]
fn what_a_pods_slot_can_not_do_is_refused_in_words_before_a_slot_is_touched() {
    let namespace = Namespace::new("refusals", &[]);
    let pod = namespace.pod(&Shape::default());
    let neighbour = Neighbour::start(&namespace, &pod);
    let slot = neighbour.other_slot();
    let before = (namespace.node().requests_of(namespace.name()).len(), restarts(&pod, slot));
    let cases = [
        (
            "user: 0",
            "it asks to be user 0, and in a pod every payload is its slot's user (10001); leave user out",
        ),
        (
            "network: none",
            "it asks for no network, and the slots of a pod share the pod's; leave network out",
        ),
        ("rootfs: writable", "this pod's slots are read-only; make the pod with `pilot pod --writable-root`"),
        (
            "resources: {cpu: 100m, memory: 200Mi}",
            "it asks for 200 MiB of memory, and a slot of this pod has 128 MiB of memory; make the pod with fewer slots",
        ),
        (
            "resources: {cpu: 100m, memory: 100Mi}, outputs: [{name: x, class: mem, max_size: 50Mi}]",
            "it asks for 150 MiB of memory (100 MiB and 50.0 MiB for outputs in memory), and a slot of this pod has 128 MiB",
        ),
        ("resources: {cpu: 300m, memory: 64Mi}", "it asks for 0.3 cpu, and a slot of this pod has 0.2 cpu"),
        // More than all slots have together is refused before it is looked at.
        ("resources: {cpu: 100m, memory: 1Gi}", "it asks for more than the pilot has"),
    ];
    for (fields, expected) in cases {
        let listed = refused(&namespace, &pod, "true", fields);
        assert!(listed.contains(expected), "{listed}");
    }
    assert_eq!((namespace.node().requests_of(namespace.name()).len(), restarts(&pod, slot)), before);
    works(&namespace, &pod);
    neighbour.end_undisturbed();
}

#[test]
fn a_payload_that_ignores_sigterm_is_ended_and_its_slot_goes_on() {
    let namespace = Namespace::new("deaf", &[]);
    let pod = namespace.pod(&one_slot());
    let deaf = "trap '' TERM; echo runs; while :; do sleep 1; done";
    let run = pod.submit(&flow(&[sh(&namespace, "deaf", deaf, "grace: 1s")]));
    pod.until_output(&run, "deaf", "runs");
    let container = pod.container("slot-0")["containerID"].clone();
    let _ended = pod.pilot(&["cancel", &run, "--wait"], "").good();
    let row = pod.payload(&run, "deaf");
    assert_eq!((&row["state"], &row["outcome"]), (&"cancelled".into(), &"cancelled (signal 9)".into()));
    works(&namespace, &pod);
    assert_eq!(pod.container("slot-0")["containerID"], container, "the slot did not stay warm");
    // The container's own PID 1 does not wait for the pod's grace of 20 s when another image is bound.
    let run = pod.run_well(&flow(&[elsewhere(&namespace, "next", "echo $OTHER")]));
    assert_eq!(pod.output(&run, "next"), "1\n");
    assert!(took_ms(&pod, &run) < 15_000, "{}", took_ms(&pod, &run));
}

#[test]
fn a_stage_that_is_still_read_costs_the_next_payload_of_its_slot_no_memory() {
    let namespace = Namespace::new("owed", &[]);
    let pod = namespace.pod(&one_slot());
    // As many as it keeps: of more, busybox moves all that it has for each few that come.
    let take = |bytes: u32| format!("head -c {bytes} /dev/zero | tail -c {bytes} | wc -c");
    let run = pod.submit(&flow(&[
        sh(
            &namespace,
            "makes",
            "head -c 60000000 /dev/zero > /stage/out/x",
            "resources: {cpu: 100m, memory: 64Mi}, outputs: [{name: x, class: mem, max_size: 60Mi}]",
        ),
        // Both fit: the container stays. Then they don't, and it makes way.
        sh(&namespace, "little", &take(20_000_000), "resources: {cpu: 100m, memory: 64Mi}, after: [makes]"),
        sh(&namespace, "much", &take(90_000_000), "resources: {cpu: 100m, memory: 128Mi}, after: [little]"),
        sh(
            &namespace,
            "reads",
            "wc -c < /stage/in/x",
            "after: [much], inputs: [{name: x, from: 'stage://makes/x'}]",
        ),
    ]));
    assert_eq!(pod.wait(&run, SOON).code, 0, "{:#} {}", pod.payload(&run, "much"), pod.pilot_log());
    for (name, said) in [("little", "20000000\n"), ("much", "90000000\n"), ("reads", "60000000\n")] {
        assert_eq!(pod.output(&run, name), said);
        assert_eq!(pod.payload(&run, name)["tries"], 1, "{name}");
    }
}

#[test]
fn a_payload_that_takes_more_memory_than_the_slot_has_dies_alone() {
    let namespace = Namespace::new("memory", &[]);
    let pod = namespace.pod(&Shape::default());
    let neighbour = Neighbour::start(&namespace, &pod);
    let fields = "resources: {cpu: 100m, memory: 128Mi}";
    let good = "head -c 60000000 /dev/zero > /dev/shm/x && echo works";
    for script in ["exec tail /dev/zero", "dd if=/dev/zero of=/dev/shm/x bs=1M count=1000"] {
        let listed = refused(&namespace, &pod, script, fields);
        assert!(listed.contains("memory exceeded (signal 9)"), "{listed}");
        // All of the slot's memory is there again, also what was in files.
        let run = pod.run_well(&flow(&[sh(&namespace, "good", good, fields)]));
        assert_eq!(pod.output(&run, "good"), "works\n");
    }
    // What is killed may be one of its children only; then its own code counts.
    let run = pod.run_well(&flow(&[sh(&namespace, "child", "tail /dev/zero; echo went on", fields)]));
    assert_eq!(pod.output(&run, "child"), "went on\n");
    neighbour.end_undisturbed();
}

/// On cgroup v2 the kubelet lets the kernel end a container as a whole when it runs out of memory (memory.oom.group). Where
/// this node has v1, the kernel is told to choose the container's PID 1, which has the same end.
#[test]
fn a_slot_that_dies_of_its_payloads_memory_is_told_apart_from_one_that_is_lost() {
    let namespace = Namespace::new("whole", &[]);
    // What the score of 1000 adds to the kubelet's own grows with the slot, and must be more than a program's size.
    let pod = namespace.pod(&Shape { memory: "1Gi".into(), ..Shape::default() });
    let neighbour = Neighbour::start(&namespace, &pod);
    let slot: u32 = neighbour.other_slot().trim_start_matches("slot-").parse().expect("a slot's number");
    // Memory in files is no process's: the kernel goes by the score alone.
    let script = "echo runs; while [ ! -e go ]; do sleep 0.1; done; exec dd if=/dev/zero of=/dev/shm/x bs=1k";
    let fields = "resources: {cpu: 100m, memory: 512Mi}, retries: 0";
    let run = pod.submit(&flow(&[sh(&namespace, "bad", script, fields)]));
    pod.until_output(&run, "bad", "runs");
    let host = pod.host();
    let shim = host.shim(slot).expect("a shim").pid;
    std::fs::write(format!("/proc/{shim}/oom_score_adj"), "1000").expect("oom_score_adj");
    let before = restarts(&pod, &format!("slot-{slot}"));
    host.touch_work(slot, "go");
    assert_ne!(pod.wait(&run, std::time::Duration::from_secs(60)).code, 0);
    let row = pod.payload(&run, "bad");
    assert_eq!(row["outcome"], "memory exceeded (signal 9)", "{row:#}\n{}", pod.pilot_log());
    works(&namespace, &pod);
    assert!(restarts(&pod, &format!("slot-{slot}")) > before, "PID 1 lived on");
    neighbour.end_undisturbed();
}

#[test]
fn a_payloads_files_are_gone_for_the_next_one_warm_and_after_another_image() {
    let namespace = Namespace::new("traces", &[]);
    let pod = namespace.pod(&one_slot());
    let folders = "/tmp /var/tmp /dev/shm /work";
    let leave = format!(
        "for folder in {folders}; do mkdir -m 0 $folder/deep; mkdir -p $folder/a/b; echo x > $folder/a/b/.file; \
         chmod 500 $folder/a/b $folder/a; ln -s / $folder/link; mkfifo $folder/pipe; done; echo left"
    );
    let look = format!("find {folders} -mindepth 1; echo $HOME $PWD; echo looked");
    let found = |run: &str, name: &str| pod.output(run, name);
    let run = pod.run_well(&flow(&[sh(&namespace, "leave", &leave, "")]));
    assert_eq!(found(&run, "leave"), "left\n");
    let warm = restarts(&pod, "slot-0");
    let run = pod.run_well(&flow(&[sh(&namespace, "warm", &format!("{look}; {leave}"), "")]));
    assert_eq!(found(&run, "warm"), "/work /work\nlooked\nleft\n");
    assert_eq!(restarts(&pod, "slot-0"), warm);
    let run = pod.run_well(&flow(&[elsewhere(&namespace, "other", &format!("{look}; {leave}"))]));
    assert_eq!(found(&run, "other"), "/work /work\nlooked\nleft\n");
    // And after one that was killed in its container's way out.
    let run = pod.submit(&flow(&[sh(&namespace, "killed", &format!("{leave}; sleep 100"), "grace: 1s")]));
    pod.until_output(&run, "killed", "left");
    let _ended = pod.pilot(&["cancel", &run, "--wait"], "").good();
    let run = pod.run_well(&flow(&[sh(&namespace, "last", &look, "")]));
    assert_eq!(found(&run, "last"), "/work /work\nlooked\n");
}

#[test]
fn a_warm_slot_asks_the_api_server_for_nothing() {
    let namespace = Namespace::new("requests", &[]);
    let pod = namespace.pod(&one_slot());
    let requests = || namespace.node().requests_of(namespace.name());
    let before = requests().len();
    let run = pod.run_well(&flow(&[sh(&namespace, "cold", "true", "")]));
    let cold = requests().len();
    // After a second and a half without a word of the new container the pilot asks what is wrong.
    let most = if took_ms(&pod, &run) < 1_500 { 1 } else { 2 };
    assert!((1..=most).contains(&(cold - before)), "{} requests", cold - before);
    let all: Vec<String> =
        (0..20).map(|number| sh(&namespace, &format!("warm-{number}"), "true", "")).collect();
    let _warm = pod.run_well(&flow(&all));
    assert_eq!(requests().len(), cold);
    let verbs: std::collections::BTreeSet<String> =
        requests().iter().map(|event| event["verb"].as_str().unwrap_or_default().to_owned()).collect();
    assert_eq!(verbs.into_iter().collect::<Vec<_>>(), ["patch"]);
}

#[test]
fn what_a_payload_changes_in_a_writable_root_the_next_one_does_not_see() {
    let namespace = Namespace::new("writable", &[]);
    let folder = tempfile::tempdir().expect("tempdir");
    // The slot's user is not the image's root: it may write what the image lets everybody write.
    let layer = busybox_layer(LayerBuilder::new()).expect("busybox-static").dir("data", 0o777);
    let layer = layer.file("data/motto", 0o666, "as it was\n").finish(Compression::Gzip).expect("layer");
    let _blobs = image(folder.path(), &shell(), vec![layer]).expect("image");
    let open = push_layout(&namespace.node().registry(), "open", folder.path(), &[]);
    let payload = |name: &str, script: &str, fields: &str| {
        flow(&[format!(
            "  - {{name: {name}, image: {open:?}, command: [/bin/sh, -c, {script:?}], {fields}}}\n"
        )])
    };
    let script = "cat /data/motto; echo changed > /data/motto && mkdir /data/new && cat /data/motto";
    let pod = namespace.pod(&one_slot().with(&["--writable-root"]));
    for name in ["first", "second"] {
        let run = pod.run_well(&payload(name, script, "rootfs: writable"));
        assert_eq!(pod.output(&run, name), "as it was\nchanged\n");
    }
    // One that asks for nothing could write too; it does not meet what was changed either.
    for name in ["third", "fourth"] {
        let run = pod.run_well(&payload(name, script, ""));
        assert_eq!(pod.output(&run, name), "as it was\nchanged\n", "{name}");
    }
    works(&namespace, &pod);
}
