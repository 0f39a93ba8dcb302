//! Images that can't be had or are made in unusual ways, and what is left of a slot after them.

use image_store::layout::{Compression, ImageSpec, LayerBuilder};
use pilot_tests::images::{busybox, image, shell};
use pilot_tests::kube::{Namespace, Node, Pod, SOON, Shape, push, push_layout};
use pilot_tests::run::within;
use serde_json::Value;

use crate::basics::{flow, sh};
use crate::neighbour::{Neighbour, restarts};

/// A workflow of one payload that must not run.
pub(crate) fn bad(image: &str) -> String {
    flow(&[format!("  - {{name: bad, image: {image:?}, command: [/bin/true]}}\n")])
}

/// Runs a good payload of an image in the one slot that is free.
pub(crate) fn works(namespace: &Namespace, pod: &Pod<'_>) {
    let run = pod.run_well(&flow(&[sh(namespace, "good", "echo works", "")]));
    assert_eq!(pod.output(&run, "good"), "works\n");
}

/// The one line about payload `bad` in what `pilot ls` says.
pub(crate) fn line(listed: &str) -> &str {
    let mut lines = listed.lines().filter(|line| line.starts_with("bad "));
    let line = lines.next().unwrap_or_else(|| panic!("no line about it: {listed}"));
    assert!(lines.next().is_none() && line.contains(" failed "), "{listed}");
    line
}

/// How long a run took, in milliseconds.
pub(crate) fn took_ms(pod: &Pod<'_>, run: &str) -> u64 {
    let listed = pod.pilot(&["ls", run, "--output", "json"], "").good();
    let row: Value = serde_json::from_str(listed.lines().next().expect("the run's line")).expect("json");
    let at = |name: &str| row[name].as_u64().unwrap_or_else(|| panic!("{name}: {row:#}"));
    at("ended_unix_ms") - at("submitted_unix_ms")
}

/// Pushes an image of one static program, `/program`, and nothing else: no shell, no `/etc`, no `/tmp`.
fn push_distroless(node: &Node, name: &str, spec: &ImageSpec) -> String {
    let folder = tempfile::tempdir().expect("tempdir");
    let program = std::fs::read(busybox().expect("busybox-static")).expect("read");
    let layer = LayerBuilder::new().file("busybox", 0o755, program).finish(Compression::Gzip).expect("layer");
    let _blobs = image(folder.path(), spec, vec![layer]).expect("image");
    push_layout(&node.registry(), name, folder.path(), &[])
}

#[test]
fn an_image_that_is_not_there_is_refused_before_any_slot_is_touched() {
    let namespace = Namespace::new("missing", &[]);
    let pod = namespace.pod(&Shape::default());
    let neighbour = Neighbour::start(&namespace, &pod);
    let (registry, slot) = (namespace.node().registry(), neighbour.other_slot());
    let before = (namespace.node().requests_of(namespace.name()).len(), restarts(&pod, slot));
    let digest = format!("busybox@sha256:{}", "1".repeat(64));
    for name in ["busybox:none", "none:latest", digest.as_str()] {
        let listed = pod.run_badly(&bad(&format!("docker://{registry}/{name}")));
        let expected = format!("find {name} at {registry}: it is not there; check the name");
        assert!(line(&listed).contains(&expected), "{listed}");
    }
    assert_eq!((namespace.node().requests_of(namespace.name()).len(), restarts(&pod, slot)), before);
    works(&namespace, &pod);
    neighbour.end_undisturbed();
}

#[test]
fn an_image_that_the_administrator_does_not_allow_is_the_payloads_fault() {
    let allowed = format!("allowedImages[0]={}/busybox", Node::here().registry());
    let namespace = Namespace::new("list", &[&allowed]);
    let pod = namespace.pod(&Shape::default());
    let neighbour = Neighbour::start(&namespace, &pod);
    let other = push(namespace.node(), "not-on-the-list", &shell());
    let listed = pod.run_badly(&bad(&other));
    let expected = "the image's repository is not among those that payloads may come from";
    assert!(line(&listed).contains(expected), "{listed}");
    works(&namespace, &pod);
    neighbour.end_undisturbed();
}

#[test]
fn an_image_of_one_program_and_nothing_else_runs() {
    let namespace = Namespace::new("distroless", &[]);
    let pod = namespace.pod(&Shape { slots: 1, ..Shape::default() });
    let entrypoint = ["/busybox", "id", "-u"].map(str::to_owned).to_vec();
    let spec = ImageSpec { entrypoint, ..ImageSpec::default() };
    let bare = push_distroless(namespace.node(), "bare", &spec);
    let more = |name: &str, fields: &str| format!("  - {{name: {name}, image: {bare:?}, {fields}}}\n");
    let run = pod.run_well(&flow(&[
        more("own", ""),
        more(
            "given",
            "command: [/busybox, sh, -c, 'echo x > /tmp/x && /busybox cat /tmp/x; echo $PWD $HOME']",
        ),
    ]));
    assert_eq!(pod.output(&run, "own"), "10001\n");
    assert_eq!(pod.output(&run, "given"), "x\n/work /work\n");
    let listed = pod.run_badly(&flow(&[format!("  - {{name: bad, image: {bare:?}, command: [/bin/sh]}}\n")]));
    assert!(line(&listed).ends_with("exit code 127"), "{listed}");
    works(&namespace, &pod);
}

#[test]
fn whoever_the_image_wants_to_be_it_is_the_slots_user() {
    let namespace = Namespace::new("users", &[]);
    let pod = namespace.pod(&Shape { slots: 1, ..Shape::default() });
    let users = ["", "root", "0:0", "physicist", "1234:1235", "nobody-knows"];
    let payloads: Vec<String> = users
        .iter()
        .zip(["none", "root", "zero", "name", "numbers", "unknown"])
        .map(|(user, name)| {
            let spec = ImageSpec { user: (*user).to_owned(), ..shell() };
            let image = push(namespace.node(), &format!("user-{name}"), &spec);
            format!("  - {{name: {name}, image: {image:?}, command: [/bin/sh, -c, 'id -u; id -g']}}\n")
        })
        .collect();
    let run = pod.run_well(&flow(&payloads));
    for name in ["none", "root", "zero", "name", "numbers", "unknown"] {
        assert_eq!(pod.output(&run, name), "10001\n10001\n", "{name}");
    }
}

#[test]
fn an_image_that_only_the_pilot_can_see_gives_the_slot_back_within_seconds() {
    let namespace = Namespace::new("unseen", &[]);
    let registry = namespace.node().registry();
    // A mirror that the kubelet has not heard of: preflight finds there what the node does not find.
    let text = format!("registries: {{{registry:?}: {{insecure: true, mirrors: [\"{registry}/seen\"]}}}}");
    let file = format!("--from-literal=registries.yaml={text}");
    let _made = namespace.kubectl(&["create", "configmap", "mirrors", &file], "").good();
    let seen = push(namespace.node(), "seen/unseen", &shell());
    let unseen = seen.replace("/seen/unseen@", "/unseen@");
    let pod = namespace.pod(&Shape::default().with(&["--registries-config", "mirrors"]));
    let neighbour = Neighbour::start(&namespace, &pod);
    let listed = pod.run_badly(&bad(&unseen));
    let said =
        "the node can't pull the image, which the pilot has seen (ErrImagePull): failed to pull and unpack";
    assert!(line(&listed).contains(said) && line(&listed).ends_with("not found"), "{listed}");
    assert!(took_ms(&pod, "2") < 20_000, "{}", took_ms(&pod, "2"));
    works(&namespace, &pod);
    neighbour.end_undisturbed();
}

#[test]
fn an_image_whose_container_can_not_be_started_costs_its_payload_and_not_the_slot() {
    let namespace = Namespace::new("unstartable", &[]);
    let pod = namespace.pod(&Shape::default());
    let neighbour = Neighbour::start(&namespace, &pod);
    let folder = tempfile::tempdir().expect("tempdir");
    // Where the work folder is to be mounted, there is a file.
    let layer = LayerBuilder::new().file("work", 0o644, "x").finish(Compression::Gzip).expect("layer");
    let _blobs = image(folder.path(), &shell(), vec![layer]).expect("image");
    let odd = push_layout(&namespace.node().registry(), "odd", folder.path(), &[]);
    let listed = pod.run_badly(&bad(&odd));
    let said = "the node can't start the image's container (";
    assert!(line(&listed).contains(said) && line(&listed).contains("not a directory"), "{listed}");
    works(&namespace, &pod);
    neighbour.end_undisturbed();
}

#[test]
fn a_registry_that_only_the_node_can_not_reach_is_tried_again() {
    let namespace = Namespace::new("unreachable", &[]);
    let registry = namespace.node().registry();
    // Nobody listens there; the pilot knows a mirror of it.
    let nobody = registry.replace(":5000", ":1");
    let text =
        format!("registries: {{{nobody:?}: {{mirrors: [{registry:?}]}}, {registry:?}: {{insecure: true}}}}");
    let file = format!("--from-literal=registries.yaml={text}");
    let _made = namespace.kubectl(&["create", "configmap", "mirrors", &file], "").good();
    let pod = namespace.pod(&Shape::default().with(&["--registries-config", "mirrors"]));
    let neighbour = Neighbour::start(&namespace, &pod);
    let run = pod.submit(&bad(&push(namespace.node(), "busybox", &shell()).replace(&registry, &nobody)));
    let mut row = Value::Null;
    let said = "the node can't pull the image, which the pilot has seen (ErrImagePull)";
    let tried_again = within(SOON, || {
        row = pod.payload(&run, "bad");
        row["tries"].as_u64() > Some(1)
            && row["outcome"].as_str().is_some_and(|words| words.starts_with(said))
    });
    assert!(tried_again, "{row:#}");
    let _ended = pod.pilot(&["cancel", &run, "--wait"], "").good();
    works(&namespace, &pod);
    neighbour.end_undisturbed();
}
