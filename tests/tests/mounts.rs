//! Inputs at paths of a payload's own choosing: what it finds there on every rung of the attach ladder, that it can't write it,
//! and which payloads may follow each other in one container.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use image_store::layout::{Compression, LayerBuilder};
use pilot_tests::images::{busybox_layer, image, shell};
use pilot_tests::run::{Site, flow, sh};
use pilot_tests::skipped;
use serde_json::Value;

/// In which container a payload is: its PID namespace, and when PID 1 began.
const WHERE: &str = "readlink /proc/self/ns/pid; awk '{print $22}' /proc/1/stat";

/// A place with a folder `calib` and a file `app.json`, both open to everybody: only the mounts protect them.
fn place(test: &str) -> Option<Site> {
    let site = Site::new(test)?;
    std::fs::create_dir_all(site.path().join("calib/deep")).expect("mkdir");
    site.write("calib/run", "#!/bin/sh\necho run\n");
    site.write("calib/deep/table", "one\n");
    site.write("app.json", "{}\n");
    for name in ["calib", "calib/deep", "calib/run", "calib/deep/table", "app.json"] {
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(site.path().join(name), open).expect("chmod");
    }
    Some(site)
}

const MOUNTED: &str = "inputs: [{name: calib, from: ./calib, at: /data/calib}, {name: cfg, from: ./app.json, at: /etc/app.json}, \
    {name: motto, from: ./app.json, at: /etc/motto}, {name: x, from: 'stage://make/x', at: /opt/deep/er/x}]";

/// Says what is mounted, and tries to change it.
const LOOK: &str = "cat /data/calib/deep/table /etc/app.json /etc/motto /opt/deep/er/x; ls /data /opt /opt/deep
cat /stage/in/calib/deep/table /stage/in/cfg /stage/in/x
for f in /data/calib/new /data/calib/deep/table /etc/app.json /etc/motto /opt/deep/er/x; do (echo no > $f) 2>/dev/null && echo wrote $f; done
rm -rf /data/calib/deep 2>/dev/null; mount -o remount,rw /data/calib 2>/dev/null && echo remounted
stat -c '%a' /etc /bin; ls /bin/awk";

const SEEN: &str = "one\n{}\n{}\nstage\n/data:\ncalib\n\n/opt:\ndeep\n\n/opt/deep:\ner\none\n{}\nstage\n755\n755\n/bin/awk\n";

#[test]
fn a_payload_finds_its_inputs_where_it_wants_them_on_every_rung_and_can_not_write_them() {
    let test = "a_payload_finds_its_inputs_where_it_wants_them_on_every_rung_and_can_not_write_them";
    let Some(site) = place(test) else { return };
    for attach in ["copy", "overlay", "data-only"] {
        let ran = site.run_with(
            &flow(&[
                sh("make", "echo stage > /stage/out/x", "outputs: [{name: x}]"),
                sh("look", LOOK, MOUNTED),
                sh("closed", "mkdir /data/new /opt/new 2>/dev/null || echo read-only", MOUNTED),
                sh(
                    "open",
                    &format!("{LOOK}; echo x > /data/own && cat /data/own"),
                    &format!("rootfs: writable, {MOUNTED}"),
                ),
                sh("without", "ls -d /data /opt /etc/app.json 2>/dev/null; cat /etc/motto", "after: [look]"),
            ]),
            &["--attach", attach],
        );
        if ran.code == 69 {
            assert_ne!(attach, "copy", "{}", ran.stderr);
            skipped(test, ran.stderr.trim());
            continue;
        }
        ran.assert_code(0);
        assert_eq!(site.log("look", "stdout"), SEEN, "{attach}");
        assert_eq!(site.log("closed", "stdout"), "read-only\n", "{attach}");
        assert_eq!(
            site.log("open", "stdout"),
            format!("{SEEN}x\n"),
            "{attach}: {}",
            site.log("open", "stderr")
        );
        assert_eq!(site.log("without", "stdout"), "as it was\n", "{attach}");
        assert_eq!(site.read("calib/deep/table") + &site.read("app.json"), "one\n{}\n");
        assert!(!site.path().join("calib/new").exists());
    }
    site.assert_baseline();
}

#[test]
fn a_container_stays_for_a_payload_with_the_same_mounts_and_for_no_other() {
    let Some(site) = place("a_container_stays_for_a_payload_with_the_same_mounts_and_for_no_other") else {
        return;
    };
    let calib = |at: &str| format!("inputs: [{{name: calib, from: ./calib, at: {at}}}]");
    let payloads = [
        sh("first", WHERE, &calib("/data/calib")),
        sh("same", WHERE, &format!("after: [first], {}", calib("/data/calib"))),
        sh(
            "moved",
            &format!("{WHERE}; ls -d /data/calib"),
            &format!("after: [same], {}", calib("/data/other")),
        ),
        sh("none", &format!("{WHERE}; ls -d /data"), "after: [moved]"),
    ];
    let ran = site.run_with(&flow(&payloads[..2]), &["--slots", "1"]);
    ran.assert_code(0);
    assert_eq!(site.log("first", "stdout"), site.log("same", "stdout"));
    let ran = site.run_with(&flow(&payloads), &["--slots", "1"]);
    ran.assert_done("same");
    let container =
        |name: &str| site.log(name, "stdout").lines().take(2).map(str::to_owned).collect::<Vec<_>>();
    assert_ne!(container("same"), container("moved"));
    assert_eq!(site.log("moved", "stdout").lines().count(), 2, "{}", site.log("moved", "stdout"));
    site.assert_baseline();
}

/// A payload of an image in which links and files are in the way.
fn crooked(name: &str, script: &str, fields: &str) -> String {
    let script = Value::from(script);
    format!(
        "  - {{name: {name}, image: oci:crooked, resources: {{cpu: 500m, memory: 128Mi}}, command: [/bin/sh, -c, {script}], {fields}}}\n"
    )
}

fn crooked_image(dir: &Path) {
    let layer = busybox_layer(LayerBuilder::new()).expect("busybox");
    let layer = layer.dir("usr", 0o755).dir("usr/data", 0o750).file("usr/data/kept", 0o644, "kept\n");
    let layer = layer.symlink("data", "usr/data").symlink("scratch", "/tmp").symlink("both", "/usr/data");
    image(dir, &shell(), vec![layer.finish(Compression::None).expect("layer")]).expect("image");
}

#[test]
fn links_of_an_image_are_followed_in_it_and_what_is_in_the_way_is_told() {
    let test = "links_of_an_image_are_followed_in_it_and_what_is_in_the_way_is_told";
    let Some(site) = place(test) else { return };
    crooked_image(&site.path().join("crooked"));
    let folder = |at: &str| format!("inputs: [{{name: c, from: ./calib, at: {at}}}]");
    let file = |at: &str| format!("inputs: [{{name: c, from: ./app.json, at: {at}}}]");
    let two = "inputs: [{name: c, from: ./calib, at: /data/x}, {name: d, from: ./calib, at: /both/x}]";
    let ran = site.run(&flow(&[
        crooked(
            "linked",
            "cat /usr/data/c/deep/table /data/c/deep/table /data/kept; stat -c %a /usr/data",
            &folder("/data/c"),
        ),
        crooked("covers", "ls /usr/data", &folder("/data")),
        crooked("tmp", "true", &folder("/scratch/c")),
        crooked("file", "true", &folder("/bin/busybox")),
        crooked("below", "true", &folder("/bin/busybox/c")),
        crooked("folder", "true", &file("/usr")),
        crooked("twice", "true", two),
        crooked(
            "good",
            "echo fine && echo data > /stage/out/kept",
            "outputs: [{name: kept, save: good.txt}]",
        ),
    ]));
    ran.assert_code(1);
    ran.assert_good(&site);
    ran.assert_done("linked");
    let linked = site.log("linked", "stdout");
    assert!(linked == "one\none\nkept\n750\n" || linked == "one\none\nkept\n755\n", "{linked}");
    ran.assert_done("covers");
    assert_eq!(site.log("covers", "stdout"), "deep\nrun\n");
    ran.assert_failed("tmp", &["\"c\" at /scratch/c", "the slot's own /tmp", "choose another path"]);
    ran.assert_failed("file", &["/bin/busybox", "is not a directory", "choose another path"]);
    ran.assert_failed("below", &["/bin/busybox/c", "is not a directory"]);
    ran.assert_failed("folder", &["/usr", "it is not a regular file"]);
    ran.assert_failed("twice", &["\"d\" at /both/x", "/usr/data/x"]);
    site.assert_baseline();
}

#[test]
fn a_program_may_come_with_what_is_mounted() {
    let Some(site) = place("a_program_may_come_with_what_is_mounted") else { return };
    let run = |name: &str, fields: &str| {
        let mount = "inputs: [{name: c, from: ./calib, at: /sw}]";
        pilot_tests::run::payload(name, &format!("image: oci:busybox, {mount}, {fields}"))
    };
    let ran = site.run(&flow(&[
        run("absolute", "command: [/sw/run]"),
        run("found", "command: [run], env: {PATH: '/bin:/sw'}"),
        run("missing", "command: [/other/run]"),
    ]));
    ran.assert_code(1);
    assert_eq!(site.log("absolute", "stdout") + &site.log("found", "stdout"), "run\nrun\n");
    ran.assert_failed("missing", &["/other/run", "it is not there"]);
    site.assert_baseline();
}

#[test]
fn a_file_that_takes_anothers_place_is_seen_by_the_next_payload_in_a_warm_slot() {
    let test = "a_file_that_takes_anothers_place_is_seen_by_the_next_payload_in_a_warm_slot";
    let Some(site) = place(test) else { return };
    let inputs = "inputs: [{name: f, from: ./app.json, at: /data/f}, {name: plain, from: ./app.json}, {name: calib, from: ./calib}]";
    let waits =
        "cat /data/f /stage/in/plain; echo runs; until [ -e /stage/in/calib/go ]; do sleep 0.05; done";
    site.write(
        "workflow.yaml",
        &flow(&[
            sh("before", waits, inputs),
            sh("after", "cat /data/f /stage/in/plain", &format!("after: [before], {inputs}")),
        ]),
    );
    let arguments = ["run", "workflow.yaml", "--output", "json", "--out", "out", "--slots", "1"];
    let mut command = site.pilot(&arguments);
    let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn();
    let child = child.expect("start the pilot");
    site.wait_for("before", "runs");
    site.write("new.json", "new\n");
    std::fs::rename(site.path().join("new.json"), site.path().join("app.json")).expect("rename");
    site.write("calib/go", "");
    pilot_tests::run::Ran::of(child).assert_code(0);
    assert_eq!(site.log("before", "stdout"), "{}\n{}\nruns\n");
    assert_eq!(site.log("after", "stdout"), "new\nnew\n");
    site.assert_baseline();
}
