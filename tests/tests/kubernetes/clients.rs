//! Payloads of a pod that make and read their stages through a client library.

use pilot_tests::images::clients_image;
use pilot_tests::kube::{Namespace, Shape, images, push_layout};

use crate::basics::{flow, sh};

#[test]
fn what_a_client_makes_is_read_by_path_and_the_other_way_round() {
    let namespace = Namespace::new("clients", &[]);
    let folder = tempfile::tempdir().expect("tempdir");
    clients_image(folder.path()).expect("busybox-static and gcc");
    let clients = push_layout(&namespace.node().registry(), "clients", folder.path(), &[]);
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
