//! Images on their way to the node: through a webhook that names them otherwise, and by pods of their own.

use std::io::Read as _;

use image_store::layout::{Compression, LayerBuilder};
use pilot_tests::images::{busybox_layer, image, shell};
use pilot_tests::kube::{Gate, Namespace, Node, SOON, Shape, Webhook, command, images, push, push_layout};
use pilot_tests::run::within;

use crate::basics::flow;
use crate::images::{bad, line, took_ms, works};
use crate::neighbour::Neighbour;

/// Copies images within the node's registry to where the mirror is.
fn mirror(node: &Node, references: &[&str]) {
    for reference in references {
        let plain = reference.trim_start_matches("docker://");
        let name = plain.split('@').next().and_then(|name| name.split_once('/')).expect("a registry").1;
        let (from, to) =
            (format!("docker://{plain}"), format!("docker://{}/mirror/{name}:latest", node.registry()));
        let all = [
            "--insecure-policy",
            "copy",
            "--quiet",
            "--preserve-digests",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            &from,
            &to,
        ];
        let _copied = command(std::path::Path::new("/usr/bin/skopeo"), &all, "").good();
    }
}

/// Pushes busybox with so many MiB of noise, which no compression makes smaller and no node has yet.
fn push_large(node: &Node, name: &str, mib: usize) -> String {
    push_large_to(&node.registry(), name, mib, &[])
}

pub(crate) fn push_large_to(registry: &str, name: &str, mib: usize, options: &[&str]) -> String {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut noise = Vec::new();
    let random = std::fs::File::open("/dev/urandom").expect("random bytes");
    random.take((mib as u64) << 20).read_to_end(&mut noise).expect("read");
    let layer = busybox_layer(LayerBuilder::new()).expect("busybox-static").file("noise", 0o644, noise);
    let _blobs =
        image(folder.path(), &shell(), vec![layer.finish(Compression::None).expect("layer")]).expect("image");
    push_layout(registry, name, folder.path(), options)
}

#[test]
fn what_a_webhook_calls_an_image_does_not_matter() {
    let namespace = Namespace::new("webhook", &[]);
    let node = namespace.node();
    let own = images(node);
    let only_here = push(node, "only-here", &shell());
    mirror(node, &[&own.pilot, &own.shim, &own.busybox]);
    let _webhook = Webhook::mirroring(&namespace);
    let pod = namespace.pod(&Shape::default());
    let neighbour = Neighbour::start(&namespace, &pod);
    works(&namespace, &pod);
    let images: Vec<String> = pod.object()["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|container| container["image"].to_string())
        .collect();
    let is_mirrors = |image: &String| image.starts_with(&format!("\"{}/mirror/", node.registry()));
    assert!(images.iter().all(is_mirrors), "{images:?}");
    // One that the mirror does not have: the pilot saw it where it is.
    let listed = pod.run_badly(&bad(&only_here));
    assert!(line(&listed).contains("the node can't pull the image, which the pilot has seen"), "{listed}");
    assert!(took_ms(&pod, "3") < 20_000, "{}", took_ms(&pod, "3"));
    works(&namespace, &pod);
    neighbour.end_undisturbed();
}

#[test]
fn a_large_image_is_fetched_while_other_slots_go_on() {
    let namespace = Namespace::new("prefetch", &["tiers.prefetch=true"]);
    let node = namespace.node();
    let gate = Gate::new(node);
    let hosts = [node.registry(), gate.host().to_owned()]
        .map(|host| format!("{host:?}: {{insecure: true}}"))
        .join(", ");
    let file = format!("--from-literal=registries.yaml=registries: {{{hosts}}}");
    let _made = namespace.kubectl(&["create", "configmap", "gated", &file], "").good();
    let large =
        push_large(node, &format!("large-{}", namespace.name()), 24).replace(&node.registry(), gate.host());
    let pod = namespace.pod(&Shape::default().with(&["--registries-config", "gated", "--prefetch", "true"]));
    let known = push_large(node, &format!("known-{}", namespace.name()), 9);
    let known = flow(&[format!("  - {{name: known, image: {known:?}, command: [/bin/true]}}\n")]);
    let _fetched = pod.run_well(&known);
    let run = pod.submit(&flow(&[format!(
        "  - {{name: large, image: {large:?}, command: [/bin/ls, /noise], walltime: 300s}}\n"
    )]));
    assert!(within(SOON, || gate.held() > 0), "nobody pulls: {}", pod.pilot_log());
    let names = || namespace.kubectl(&["get", "pods", "-o", "name"], "").stdout;
    assert!(names().contains("pod/pilot-pull-"), "{}", names());
    for _ in 0..2 {
        works(&namespace, &pod);
        // That it was fetched is known, and not asked for behind the other pull.
        let _known = pod.run_well(&known);
    }
    assert_eq!(pod.payload(&run, "large")["state"], "claimed");
    gate.open();
    let _ended = pod.wait(&run, SOON * 2).good();
    assert_eq!(pod.output(&run, "large"), "/noise\n");
    assert!(within(SOON, || names() == "pod/pilot\n"), "{}", names());
    let requests = node.requests_of(namespace.name());
    let verbs: Vec<&str> = requests.iter().filter_map(|event| event["verb"].as_str()).collect();
    assert!(verbs.iter().all(|verb| ["patch", "create", "delete"].contains(verb)), "{verbs:?}");
    assert_eq!(verbs.iter().filter(|verb| **verb == "create").count(), 2);
}

#[test]
fn a_large_image_that_the_node_can_not_fetch_is_refused_before_a_slot_is_touched() {
    let namespace = Namespace::new("prefetch_bad", &["tiers.prefetch=true"]);
    let node = namespace.node();
    let registry = node.registry();
    let text = format!("registries: {{{registry:?}: {{insecure: true, mirrors: [\"{registry}/seen\"]}}}}");
    let file = format!("--from-literal=registries.yaml={text}");
    let _made = namespace.kubectl(&["create", "configmap", "mirrors", &file], "").good();
    let name = format!("large-{}", namespace.name());
    let large = push_large(node, &format!("seen/{name}"), 9).replace("/seen/", "/");
    let pod =
        namespace.pod(&Shape::default().with(&["--registries-config", "mirrors", "--prefetch", "true"]));
    let neighbour = Neighbour::start(&namespace, &pod);
    let before = pod.container(neighbour.other_slot())["containerID"].clone();
    let listed = pod.run_badly(&bad(&large));
    assert!(line(&listed).contains("the node can't pull the image, which the pilot has seen"), "{listed}");
    assert_eq!(pod.container(neighbour.other_slot())["containerID"], before);
    assert_eq!(namespace.kubectl(&["get", "pods", "-o", "name"], "").stdout, "pod/pilot\n");
    works(&namespace, &pod);
    neighbour.end_undisturbed();
}
