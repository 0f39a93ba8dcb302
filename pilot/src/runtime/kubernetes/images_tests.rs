use std::collections::BTreeSet;

use super::*;
use crate::board::tests::payload;
use crate::payload::{Output, StageClass};

const DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";

/// Splits `NAME:TAG@DIGEST`.
fn parts(reference: &str) -> (&str, &str, &str) {
    let (tagged, digest) = reference.split_once('@').expect("a digest");
    let (name, tag) = tagged.rsplit_once(':').expect("a tag");
    (name, tag, digest)
}

fn image(reference: &str) -> PodImage {
    let reference: Reference = reference.parse().expect("reference");
    PodImage {
        repository: reference.repository().cloned().expect("a registry's"),
        id: DIGEST.parse().expect("digest"),
        config: ImageConfig::default(),
        bytes: 0,
    }
}

fn slot() -> SlotShape {
    SlotShape {
        name: "slot-0".into(),
        cpu_millis: Some(500),
        memory_bytes: Some(64 << 20),
        root_is_read_only: true,
        uid: Some(10001),
        always_pulls: false,
        mounts: Vec::new(),
    }
}

fn in_memory(name: &str, max_bytes: u64) -> Output {
    let name = name.parse().expect("name");
    Output { name, class: StageClass::Memory, max_bytes, save: None, readers: BTreeSet::new() }
}

fn fitting() -> Payload {
    Payload { host_network: true, ..(*payload("fit")).clone() }
}

#[test]
fn each_bind_has_a_name_of_its_own_for_the_same_digest() {
    let image = image("docker://registry.example:5000/team/fit:2026.1");
    let (one, other) = (image.salted(Epoch(7)), image.salted(Epoch(7)));
    let (name, tag, digest) = parts(&one);
    assert_eq!((name, digest), ("registry.example:5000/team/fit", DIGEST));
    assert!(tag.starts_with("x7-") && tag.len() == "x7-0a1b2c".len(), "{tag}");
    // Another life of the pilot counts its epochs anew.
    assert_ne!(one, other);
    assert_eq!(image.pinned(), format!("registry.example:5000/team/fit@{DIGEST}"));
    assert_eq!(image.host(), "registry.example:5000");
}

#[test]
fn a_name_without_a_registry_is_completed_for_the_kubelet() {
    assert_eq!(image("docker://busybox").pinned(), format!("docker.io/library/busybox@{DIGEST}"));
}

#[test]
fn the_idle_image_is_salted_whatever_its_name_is_made_of() {
    let cases = [
        ("shim", "shim"),
        ("shim:1", "shim"),
        ("registry.example/latebind/shim:0.1.0", "registry.example/latebind/shim"),
        ("registry.example:5000/latebind/shim", "registry.example:5000/latebind/shim"),
        ("registry.example:5000/latebind/shim:0.1.0", "registry.example:5000/latebind/shim"),
        ("10.97.0.1:5000/shim", "10.97.0.1:5000/shim"),
    ];
    for (given, expected) in cases {
        let salted = salted_idle(&format!("{given}@{DIGEST}"), Epoch(0));
        let (name, tag, digest) = parts(&salted);
        assert_eq!((name, digest), (expected, DIGEST), "{given}");
        assert!(tag.starts_with("x0-"), "{salted}");
    }
}

#[test]
fn an_idle_image_without_a_digest_stays_as_it_is() {
    assert_eq!(salted_idle("registry.example:5000/shim:1", Epoch(0)), "registry.example:5000/shim:1");
}

#[test]
fn a_payload_that_fits_is_not_objected_to() {
    assert_eq!(objection(&fitting(), &slot(), false), None);
    // The slot's own user is what it gets anyhow.
    assert_eq!(objection(&Payload { user: Some((10001, 10001)), ..fitting() }, &slot(), false), None);
    let open = SlotShape { root_is_read_only: false, ..slot() };
    assert_eq!(objection(&Payload { writable_root: true, ..fitting() }, &open, false), None);
}

#[test]
fn what_a_slot_can_not_do_is_said_with_what_to_do() {
    let said = |payload: Payload| objection(&payload, &slot(), false).unwrap_or_default();
    let user = said(Payload { user: Some((0, 0)), ..fitting() });
    assert!(user.contains("user 0") && user.contains("10001") && user.contains("leave user out"), "{user}");
    let image = said(Payload { needs_image_user: true, ..fitting() });
    assert!(image.contains("its image's user") && image.contains("leave user out"), "{image}");
    let network = said(Payload { host_network: false, ..fitting() });
    assert!(network.contains("no network") && network.contains("leave network out"), "{network}");
    let root = said(Payload { writable_root: true, ..fitting() });
    assert!(root.contains("pilot pod --writable-root"), "{root}");
    let mut big = fitting();
    big.resources.memory_bytes *= 2;
    let memory = said(big);
    assert!(memory.contains("128 MiB of memory, and a slot of this pod has 64.0 MiB of memory"), "{memory}");
    let mut makes = fitting();
    makes.outputs = vec![in_memory("x", 16 << 20), in_memory("y", 8 << 20)];
    let sum = said(makes.clone());
    assert!(
        sum.contains("88.0 MiB of memory (64.0 MiB and 24.0 MiB for outputs in memory), and a slot"),
        "{sum}"
    );
    makes.resources.memory_bytes -= 24 << 20;
    assert_eq!(said(makes), "");
    let mut fast = fitting();
    fast.resources.cpu_millis = 501;
    assert!(said(fast).contains("0.501 cpu, and a slot of this pod has 0.5 cpu"));
}

#[test]
fn a_slot_that_can_be_resized_or_has_no_limit_is_never_too_small() {
    let mut big = fitting();
    (big.resources.memory_bytes, big.resources.cpu_millis) = (1 << 40, 64_000);
    assert_eq!(objection(&big, &slot(), true), None);
    let endless = SlotShape { memory_bytes: None, cpu_millis: None, ..slot() };
    assert_eq!(objection(&big, &endless, false), None);
}
