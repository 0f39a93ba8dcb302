//! Images that not everybody may have: whose login opens them, and for whom.

use pilot_tests::images::{busybox_image, shell};
use pilot_tests::kube::{Namespace, Node, Pod, SOON, Shape, push_layout};

use crate::basics::{flow, sh};
use crate::images::{bad, line, works};
use crate::neighbour::restarts;
use crate::pulls::push_large_to;

/// An image in the registry that lets in alice alone.
pub(crate) fn private_image(node: &Node, name: &str) -> String {
    let folder = tempfile::tempdir().expect("tempdir");
    let spec = image_store::layout::ImageSpec { env: vec![format!("SECRET={name}")], ..shell() };
    busybox_image(folder.path(), &spec).expect("busybox-static");
    push_layout(&node.private_registry(), name, folder.path(), &["--dest-creds", "alice:wonder"])
}

/// A Secret with alice's login.
fn make_login(namespace: &Namespace, name: &str, password: &str) {
    let server = format!("--docker-server={}", namespace.node().private_registry());
    let password = format!("--docker-password={password}");
    let all = ["create", "secret", "docker-registry", name, &server, "--docker-username=alice", &password];
    let _made = namespace.kubectl(&all, "").good();
}

fn good(image: &str) -> String {
    flow(&[format!("  - {{name: good, image: {image:?}, command: [/bin/sh, -c, 'echo $SECRET']}}\n")])
}

fn refused(pod: &Pod<'_>, workflow: &str, more: &[&str]) {
    let run = pod.submit_with(workflow, more);
    assert_ne!(pod.wait(&run, SOON).code, 0);
    let listed = pod.pilot(&["ls", &run, "--output", "plain"], "").good();
    assert!(line(&listed).contains(": 401: ") && line(&listed).contains("--registry-auth"), "{listed}");
}

#[test]
fn a_private_image_is_refused_without_a_login_before_a_slot_is_touched() {
    let namespace = Namespace::new("private", &[]);
    let pod = namespace.pod(&Shape { slots: 1, ..Shape::default() });
    let image = private_image(namespace.node(), "nobody");
    let before = (namespace.node().requests_of(namespace.name()).len(), restarts(&pod, "slot-0"));
    refused(&pod, &bad(&image), &[]);
    assert_eq!((namespace.node().requests_of(namespace.name()).len(), restarts(&pod, "slot-0")), before);
    works(&namespace, &pod);
}

#[test]
fn the_pilots_own_login_opens_images_for_all_and_is_out_of_their_reach() {
    let namespace = Namespace::new("team_login", &[]);
    make_login(&namespace, "team", "wonder");
    let pod = namespace.pod(&Shape { slots: 1, ..Shape::default() }.with(&["--registry-login", "team"]));
    let image = private_image(namespace.node(), "team");
    let run = pod.run_well(&good(&image));
    assert_eq!(pod.output(&run, "good"), "team\n");
    let script = "ls /latebind; find / -xdev -name '*auth*' 2>/dev/null; env | grep -i auth; echo looked";
    let run = pod.run_well(&flow(&[sh(&namespace, "thief", script, "")]));
    assert_eq!(pod.output(&run, "thief"), "looked\n");
}

#[test]
fn an_image_that_only_the_pilots_own_login_opens_runs_also_where_images_are_prefetched() {
    let namespace = Namespace::new("team_prefetch", &["tiers.prefetch=true"]);
    make_login(&namespace, "team", "wonder");
    let shape =
        Shape { slots: 1, ..Shape::default() }.with(&["--registry-login", "team", "--prefetch", "true"]);
    let pod = namespace.pod(&shape);
    // Large enough to be worth a pod of its own, which would have no login.
    let registry = namespace.node().private_registry();
    let large = push_large_to(&registry, "team-prefetch", 9, &["--dest-creds", "alice:wonder"]);
    let _good = pod.run_well(&good(&large));
    works(&namespace, &pod);
}

#[test]
fn a_wrong_login_of_the_pilots_is_told_as_one() {
    let namespace = Namespace::new("wrong_login", &[]);
    make_login(&namespace, "team", "blunder");
    let pod = namespace.pod(&Shape { slots: 1, ..Shape::default() }.with(&["--registry-login", "team"]));
    let listed = pod.run_badly(&bad(&private_image(namespace.node(), "wrong")));
    assert!(line(&listed).contains("401: the login that is known for it does not do"), "{listed}");
    works(&namespace, &pod);
}

#[test]
fn a_login_that_a_payload_brings_opens_its_image_for_it_alone_and_is_gone_afterwards() {
    let namespace = Namespace::new("late_login", &["tiers.credentials.secretName=latebind-pull"]);
    make_login(&namespace, "alice", "wonder");
    make_login(&namespace, "mallory", "blunder");
    let shape = Shape { slots: 1, ..Shape::default() }.with(&["--pull-secret", "latebind-pull"]);
    let pod = namespace.pod(&shape.secret("alice").secret("mallory"));
    let image = private_image(namespace.node(), "late");
    let login = ["--registry-auth", "/secrets/alice/.dockerconfigjson"];
    let in_secret = || namespace.get("secret", "latebind-pull")["data"][".dockerconfigjson"].clone();
    let empty = in_secret();
    refused(&pod, &bad(&image), &[]);
    let run = pod.submit_with(&good(&image), &login);
    let _good = pod.wait(&run, SOON).good();
    assert_eq!(pod.output(&run, "good"), "late\n");
    assert_eq!(in_secret(), empty);
    // The image is on the node now, and in a slot that is warm.
    let warm = restarts(&pod, "slot-0");
    refused(&pod, &bad(&image), &[]);
    refused(&pod, &bad(&image), &["--registry-auth", "/secrets/mallory/.dockerconfigjson"]);
    assert_eq!(restarts(&pod, "slot-0"), warm);
    let run = pod.submit_with(&good(&image), &login);
    let _good = pod.wait(&run, SOON).good();
    assert_eq!(restarts(&pod, "slot-0"), warm, "alice's own slot was not warm for her");
    works(&namespace, &pod);
    let run = pod.submit_with(&good(&image), &login);
    let _good = pod.wait(&run, SOON).good();
    assert_eq!(in_secret(), empty);
}

#[test]
fn a_login_is_refused_by_a_pod_that_has_no_place_for_it() {
    let namespace = Namespace::new("no_place", &[]);
    make_login(&namespace, "alice", "wonder");
    let pod = namespace.pod(&Shape { slots: 1, ..Shape::default() }.secret("alice"));
    let image = private_image(namespace.node(), "no-place");
    let run = pod.submit_with(&bad(&image), &["--registry-auth", "/secrets/alice/.dockerconfigjson"]);
    assert_ne!(pod.wait(&run, SOON).code, 0);
    let listed = pod.pilot(&["ls", &run, "--output", "plain"], "").good();
    assert!(line(&listed).contains("it brings a login, and this pod has no Secret for logins"), "{listed}");
    works(&namespace, &pod);
    let answer = pod.pilot(&["submit", "/dev/stdin", "--registry-auth", "/secrets/none"], &bad(&image));
    assert_eq!(answer.code, 64);
    assert!(answer.stderr.starts_with("pilot: read login /secrets/none: No such file"), "{}", answer.stderr);
}
