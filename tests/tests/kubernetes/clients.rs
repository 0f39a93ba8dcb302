//! Payloads of a pod that make and read their stages through a client library.

use pilot_tests::images::clients_image;
use pilot_tests::kube::{Namespace, SOON, Shape, images, push_layout};
use pilot_tests::run::within;

use crate::basics::{flow, sh};
use crate::lifecycle::{WAITS, kill_pilot, one, until_next};

/// Pushes an image with the program `stages`; gives its name.
fn push_clients(namespace: &Namespace) -> String {
    let folder = tempfile::tempdir().expect("tempdir");
    clients_image(folder.path()).expect("busybox-static and gcc");
    push_layout(&namespace.node().registry(), "clients", folder.path(), &[])
}

#[test]
fn clients_go_on_with_the_next_life_of_their_pilot() {
    let namespace = Namespace::new("clients_adopted", &[]);
    let clients = push_clients(&namespace);
    let with_client = |name: &str, script: &str, fields: &str| {
        sh(&namespace, name, script, fields).replacen(&images(namespace.node()).busybox, &clients, 1)
    };
    let pod = namespace.pod(&one());
    let host = pod.host();
    let outputs =
        "at_most_once: true, outputs: [{name: x, class: mem, max_size: 1Mi}, {name: v, class: value}]";
    let makes = format!("{WAITS}; stages make x 1000 && stages put v 42");
    let run = pod.submit(&flow(&[
        with_client("makes", &makes, outputs),
        sh(
            &namespace,
            "reads",
            "wc -c < /stage/in/x; cat /stage/in/v",
            "inputs: [{name: x, from: 'stage://makes/x'}, {name: v, from: 'stage://makes/v'}]",
        ),
    ]));
    pod.until_output(&run, "makes", "started\n");
    until_next(&pod, &host, kill_pilot(&host));
    assert!(within(SOON, || pod.pilot_log().contains("1 adopted")), "{}", pod.pilot_log());
    host.touch_work(0, "go");
    assert_eq!(pod.wait(&run, SOON).code, 0, "{:#} {}", pod.payload(&run, "makes"), pod.pilot_log());
    assert_eq!(pod.output(&run, "reads"), "1000\n42");
    assert_eq!(pod.payload(&run, "makes")["tries"], 1);
}

#[test]
fn what_a_client_makes_is_read_by_path_and_the_other_way_round() {
    let namespace = Namespace::new("clients", &[]);
    let clients = push_clients(&namespace);
    let with_client = |name: &str, script: &str, fields: &str| {
        sh(&namespace, name, script, fields).replacen(&images(namespace.node()).busybox, &clients, 1)
    };
    let pod = namespace.pod(&Shape::default());
    let outputs = "outputs: [{name: x, class: mem, max_size: 16Mi}, {name: v, class: value}, {name: p, class: mem, max_size: 1Mi}, {name: f, max_size: 1Mi}]";
    let makes = "cd /stage/out; stages make x 16777216 && stages put v 42 && echo path > p && echo file > f";
    let inputs = "inputs: [{name: x, from: 'stage://makes/x'}, {name: v, from: 'stage://makes/v'}, \
        {name: p, from: 'stage://makes/p'}, {name: f, from: 'stage://makes/f'}]";
    let run = pod.run_well(&flow(&[
        with_client("makes", makes, outputs),
        sh(&namespace, "by-path", "cd /stage/in; busybox sha256sum < x; cat v p f", inputs),
        with_client(
            "by-client",
            "stages cat x | busybox sha256sum; for x in v p f; do stages cat $x; done",
            inputs,
        ),
    ]));
    let told = pod.output(&run, "by-path");
    assert!(told.ends_with("42path\nfile\n"), "{told}");
    assert_eq!(pod.output(&run, "by-client"), told);
    let leaves =
        with_client("leaves", "stages leave x 10", "outputs: [{name: x, class: mem, max_size: 1Mi}]");
    let told = pod.run_badly(&flow(&[leaves]));
    assert!(told.contains("no client committed it"), "{told}");
}
