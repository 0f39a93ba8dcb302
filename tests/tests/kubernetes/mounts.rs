//! Inputs at paths of a payload's own choosing, in slots whose mounts were declared when the pod was made.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use pilot_tests::kube::{Namespace, Pod, Shape};

use crate::basics::{flow, sh};
use crate::images::{line, works};
use crate::neighbour::restarts;

/// One slot with a place for a folder and one for a file.
fn shape() -> Shape {
    let shape = Shape { slots: 1, cpu: "300m".into(), memory: "128Mi".into(), ..Shape::default() };
    shape.with(&["--mount", "/data/calib,/etc/app.json:file"])
}

/// Where the pilot finds what [`bring`] brought.
const BROUGHT: &str = "/latebind/share/pilot/brought";

/// Files in the pilot's container, as somebody else's program would have put them there: folders `a` and `b`, which anybody
/// could write, and a file that only the pilot can read.
fn bring(pod: &Pod<'_>) {
    let root = pod.host().share().join("pilot/brought");
    for (name, text, mode) in
        [("a/deep/table", "of a\n", 0o666), ("b/table", "of b\n", 0o666), ("c.json", "{}\n", 0o600)]
    {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        std::fs::write(&path, text).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        chown(&path, Some(10_000), Some(10_000)).expect("chown");
    }
}

/// What is shown in slot 0, and where its mounts lead.
fn shown(pod: &Pod<'_>) -> (usize, Vec<PathBuf>) {
    let slot = pod.host().share().join("slots/0");
    let names = std::fs::read_dir(slot.join("shown")).expect("shown").count();
    let links =
        ["0", "1.file"].map(|name| std::fs::read_link(slot.join("mounts").join(name)).expect("a link"));
    (names, links.to_vec())
}

/// In which container it is; what is mounted; what can be written.
const LOOK: &str = "echo $(readlink /proc/self/ns/pid) $(awk '{print $22}' /proc/1/stat); ls -A /data/calib; cat /data/calib/table /data/calib/deep/table 2>/dev/null; cat /etc/app.json; echo .
for f in /data/calib/new /data/calib/table /data/calib/deep/table /etc/app.json; do (echo no > $f) 2>/dev/null && echo wrote $f; done; true";

#[test]
fn a_slot_shows_each_payload_its_own_mounts_and_the_next_one_nothing() {
    let namespace = Namespace::new("mounts", &[]);
    let pod = namespace.pod(&shape());
    bring(&pod);
    let look = |name: &str, inputs: &str, after: &str| {
        sh(&namespace, name, LOOK, &format!("inputs: [{inputs}], after: [{after}]"))
    };
    let folder = |name: &str| format!("{{name: calib, from: {BROUGHT}/{name}, at: /data/calib}}");
    let file = format!("{{name: cfg, from: {BROUGHT}/c.json, at: /etc/app.json}}");
    let stage = "{name: cfg, from: 'stage://make/x', at: /etc/app.json}";
    let run = pod.run_well(&flow(&[
        sh(&namespace, "make", "echo stage > /stage/out/x", "outputs: [{name: x, max_size: 1Mi}]"),
        look("first", &format!("{}, {stage}", folder("a")), "make"),
        look("same", &format!("{}, {stage}", folder("a")), "first"),
        look("second", &format!("{}, {file}", folder("b")), "same"),
        look("half", &folder("b"), "second"),
        look("without", "", "half"),
    ]));
    let output = |name: &str| {
        let text = pod.output(&run, name);
        let (container, rest) = text.split_once('\n').expect("lines");
        (container.to_owned(), rest.to_owned())
    };
    assert_eq!(output("first").1, "deep\nof a\nstage\n.\n");
    assert_eq!(output("same"), output("first"), "the same mounts need no other container");
    assert_eq!(output("second").1, "table\nof b\n{}\n.\n");
    assert_eq!(output("half").1, "table\nof b\n.\n");
    assert_eq!(output("without").1, ".\n");
    let containers = ["first", "second", "half", "without"].map(|name| output(name).0);
    let different: std::collections::BTreeSet<_> = containers.iter().collect();
    assert_eq!(different.len(), containers.len());
    assert_eq!(shown(&pod), (0, vec!["empty".into(), "none".into()]));
    let table = std::fs::read_to_string(pod.host().share().join("pilot/brought/a/deep/table"));
    assert_eq!(table.expect("read"), "of a\n");
}

#[test]
fn what_was_shown_goes_with_a_payload_that_fails_or_is_killed() {
    let namespace = Namespace::new("mountsgone", &[]);
    let pod = namespace.pod(&shape());
    bring(&pod);
    let inputs = format!("inputs: [{{name: calib, from: {BROUGHT}/a, at: /data/calib}}]");
    let killed = sh(&namespace, "killed", "cat /data/calib/deep/table; sleep 300", &inputs);
    let run = pod.submit(&flow(&[killed]));
    pod.until_output(&run, "killed", "of a");
    assert_eq!(shown(&pod).0, 1);
    let shim = pod.host().shim(0).expect("a shim");
    pilot_tests::kube::kill(&shim);
    let _over = pod.pilot(&["cancel", &run, "--wait"], "");
    let checked = sh(&namespace, "checked", "ls -A /data/calib; wc -c < /etc/app.json", "");
    let run = pod.run_well(&flow(&[checked]));
    assert_eq!(pod.output(&run, "checked"), "0\n");
    assert_eq!(shown(&pod), (0, vec!["empty".into(), "none".into()]));
}

#[test]
fn a_mount_that_the_pod_does_not_have_is_refused_in_words_before_a_slot_is_touched() {
    let namespace = Namespace::new("undeclared", &[]);
    let pod = namespace.pod(&shape());
    bring(&pod);
    works(&namespace, &pod);
    let before = restarts(&pod, "slot-0");
    let cases = [
        (
            "a",
            "/opt/x",
            "it wants input \"x\" at /opt/x, where this pod has no mount; make the pod with --mount /opt/x",
        ),
        ("c.json", "/opt/x", "where this pod has no mount; make the pod with --mount /opt/x:file"),
        ("a", "/etc/app.json", "where this pod mounts files only; make the pod with --mount /etc/app.json"),
        (
            "c.json",
            "/data/calib",
            "where this pod mounts folders only; make the pod with --mount /data/calib:file",
        ),
    ];
    for (from, at, words) in cases {
        let fields = format!("inputs: [{{name: x, from: {BROUGHT}/{from}, at: {at}}}]");
        let listed = pod.run_badly(&flow(&[sh(&namespace, "bad", "true", &fields)]));
        assert!(line(&listed).contains(words), "{listed}");
    }
    works(&namespace, &pod);
    assert_eq!(restarts(&pod, "slot-0"), before, "no container was made anew");
}

#[test]
fn an_image_with_a_link_where_something_is_mounted_keeps_the_slots_own_places() {
    let namespace = Namespace::new("mountlinks", &[]);
    let pod = namespace.pod(&shape());
    bring(&pod);
    let inputs = format!("inputs: [{{name: calib, from: {BROUGHT}/a, at: /data/calib}}]");
    let image = linked(&namespace);
    let script = serde_json::Value::from("cat /usr/data/calib/deep/table; ls -A /usr/data");
    let payload =
        format!("  - {{name: linked, image: {image:?}, command: [/bin/sh, -c, {script}], {inputs}}}\n");
    let run = pod.run_well(&flow(&[payload]));
    assert_eq!(pod.output(&run, "linked"), "of a\ncalib\nkept\n");
}

/// An image whose `/data` is a link.
fn linked(namespace: &Namespace) -> String {
    use image_store::layout::{Compression, LayerBuilder};
    use pilot_tests::images::{busybox_layer, image, shell};
    let folder = tempfile::tempdir().expect("tempdir");
    let layer = busybox_layer(LayerBuilder::new()).expect("busybox").dir("usr", 0o755).dir("usr/data", 0o755);
    let layer = layer.file("usr/data/kept", 0o644, "").symlink("data", "usr/data");
    image(folder.path(), &shell(), vec![layer.finish(Compression::Gzip).expect("layer")]).expect("image");
    pilot_tests::kube::push_layout(&namespace.node().registry(), "linked", Path::new(folder.path()), &[])
}
