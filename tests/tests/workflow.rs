//! Good workflows: what payloads find, what they hand on, what they are, and what is left of it.

use image_store::layout::{Compression, ImageSpec, LayerBuilder};
use pilot_tests::images::{busybox_layer, image, shell};
use pilot_tests::run::{Ran, Site, flow, good, payload, sh, within};
use std::time::Duration;

#[test]
fn a_payload_runs_and_its_output_is_saved() {
    let Some(site) = Site::new("a_payload_runs_and_its_output_is_saved") else { return };
    let ran = site.run(&flow(&[good()]));
    ran.assert_code(0);
    ran.assert_good(&site);
    let last = ran.events().pop().expect("events");
    assert_eq!(last["event"], "summary");
    assert_eq!(last["saved"][0]["stage"], "stage://w/good/kept");
    assert_eq!(last["saved"][0]["bytes"], 5);
    site.assert_baseline();
}

/// Writes both outputs by path, or by the descriptor that is named in the environment.
const MAKE: &str = "echo path > /stage/out/file; echo memory > /stage/out/mem.one; \
    eval \"echo descriptor >&$LATEBIND_FD_OUT_MEM_TWO\"; : > /stage/out/empty";
const TAKE: &str = "cat /stage/in/file /stage/in/m; eval \"cat <&$LATEBIND_FD_IN_M_2\"; cat /stage/in/empty; \
    wc -c < /stage/in/empty";

#[test]
fn stages_are_handed_on_by_path_and_by_descriptor() {
    let Some(site) = Site::new("stages_are_handed_on_by_path_and_by_descriptor") else { return };
    let ran = site.run(&flow(&[
        sh(
            "make",
            MAKE,
            "outputs: [{name: file}, {name: mem.one, class: mem}, {name: mem-two, class: mem}, {name: empty}]",
        ),
        sh(
            "take",
            TAKE,
            "inputs: [{name: file, from: 'stage://make/file'}, {name: m, from: 'stage://make/mem.one'}, \
             {name: m-2, from: 'stage://make/mem-two'}, {name: empty, from: 'stage://make/empty'}]",
        ),
        good(),
    ]));
    // An empty file is an output; an empty memory could not be told from one that was not written.
    ran.assert_code(0);
    ran.assert_good(&site);
    assert_eq!(site.log("take", "stdout"), "path\nmemory\ndescriptor\n0\n");
    site.assert_baseline();
}

#[test]
fn an_array_is_dealt_out_and_gathered_in_order() {
    let Some(site) = Site::new("an_array_is_dealt_out_and_gathered_in_order") else { return };
    let ran = site.run(&flow(&[
        sh(
            "simulate",
            "echo $LATEBIND_INDEX of $LATEBIND_COUNT as $LATEBIND_PAYLOAD > /stage/out/hits",
            "count: 3, outputs: [{name: hits, class: mem}]",
        ),
        sh(
            "square",
            "sed s/^/$LATEBIND_INDEX:/ /stage/in/hits > /stage/out/sum",
            "count: 3, inputs: [{name: hits, from: 'stage://simulate/hits', scatter: true}], \
             outputs: [{name: sum, save: 'sums/{index}.txt'}]",
        ),
        sh(
            "gather",
            "cat /stage/in/all-0 /stage/in/all-1 /stage/in/all-2; ls /stage/in | wc -l",
            "inputs: [{name: all, from: 'stage://square/sum'}]",
        ),
    ]));
    ran.assert_code(0);
    let lines = |index: u32| format!("{index}:{index} of 3 as simulate-{index}\n");
    assert_eq!(site.log("gather", "stdout"), format!("{}{}{}3\n", lines(0), lines(1), lines(2)));
    assert_eq!(site.read("out/sums/2.txt"), lines(2));
    assert_eq!(ran.row("simulate-1")["array"], "simulate");
    site.assert_baseline();
}

#[test]
fn host_files_and_folders_are_inputs_that_can_only_be_read() {
    let Some(site) = Site::new("host_files_and_folders_are_inputs_that_can_only_be_read") else { return };
    std::fs::create_dir_all(site.path().join("data/deep")).expect("mkdir");
    for name in ["data/a.txt", "data/b.txt", "data/deep/c.txt", "a file"] {
        site.write(name, &format!("{name}\n"));
    }
    let script = "cat /stage/in/one /stage/in/many-0 /stage/in/many-1 /stage/in/folder/deep/c.txt; \
        (echo x > /stage/in/one) 2>/dev/null && echo WROTE; (echo x > /stage/in/folder/new) 2>/dev/null && echo WROTE; \
        chmod 777 /stage/in/folder 2>/dev/null && echo WROTE; rm /stage/in/folder/a.txt 2>/dev/null && echo WROTE; true";
    let fields = "inputs: [{name: one, from: './a file'}, {name: many, from: './data/*.txt'}, {name: folder, from: ./data}]";
    let ran = site.run(&flow(&[sh("read", script, fields)]));
    ran.assert_code(0);
    assert_eq!(site.log("read", "stdout"), "a file\ndata/a.txt\ndata/b.txt\ndata/deep/c.txt\n");
    assert_eq!(site.read("a file"), "a file\n");
    assert!(site.path().join("data/a.txt").is_file());
    site.assert_baseline();
}

const SELF: &str = "id -u; id -g; pwd; umask; echo $HOME $SPICE $LANG $HOSTNAME \"$@\"; hostname";

#[test]
fn the_images_words_count_until_the_payload_says_otherwise() {
    let Some(site) = Site::new("the_images_words_count_until_the_payload_says_otherwise") else { return };
    let spec = ImageSpec {
        entrypoint: vec!["/bin/sh".into(), "-c".into(), SELF.into()],
        cmd: vec!["image".into(), "own words".into()],
        env: vec!["SPICE=pepper".into(), "LANG=C".into(), "HOME=/nowhere".into()],
        workdir: "/etc".into(),
        user: "physicist".into(),
        ..ImageSpec::default()
    };
    let layer = busybox_layer(LayerBuilder::new()).and_then(|layer| Ok(layer.finish(Compression::Zstd)?));
    image(&site.path().join("spoken"), &spec, vec![layer.expect("layer")]).expect("image");
    let ran = site.run(&flow(&[
        payload("as-it-is", "image: oci:spoken"),
        payload(
            "otherwise",
            "image: oci:spoken, args: [self, mine], env: {SPICE: salt, HOME: /tmp}, cwd: /bin, user: '7:8'",
        ),
        payload("bare", "image: oci:spoken, command: [/bin/id, -un]"),
    ]));
    ran.assert_code(0);
    // The container is called after its slot, whichever that was.
    let log = |name: &str| site.log(name, "stdout").replace("slot-0", "slot-N").replace("slot-1", "slot-N");
    // The shell takes the first of the arguments as its own name.
    assert_eq!(log("as-it-is"), "1234\n1235\n/etc\n0022\n/work pepper C slot-N own words\nslot-N\n");
    assert_eq!(log("otherwise"), "7\n8\n/bin\n0022\n/tmp salt C slot-N mine\nslot-N\n");
    assert_eq!(site.log("bare", "stdout"), "physicist\n");
    site.assert_baseline();
}

#[test]
fn a_program_that_can_not_run_is_told_as_a_shell_would() {
    let Some(site) = Site::new("a_program_that_can_not_run_is_told_as_a_shell_would") else { return };
    let layer = busybox_layer(LayerBuilder::new())
        .expect("busybox")
        .file("bin/lost", 0o755, "#!/no/such/shell\n")
        .file("bin/garbage", 0o755, [0x7f, b'E', b'L', b'F', 0, 1, 2, 3])
        .file("bin/plain", 0o644, "#!/bin/sh\n")
        .finish(Compression::Gzip)
        .expect("layer");
    image(&site.path().join("odd"), &shell(), vec![layer]).expect("image");
    let command = |name: &str, path: &str| payload(name, &format!("image: oci:odd, command: [{path}]"));
    let ran = site.run(&flow(&[
        command("lost", "/bin/lost"),
        command("garbage", "/bin/garbage"),
        command("plain", "/bin/plain"),
        command("absent", "absent"),
        payload("nowhere", "image: oci:odd, command: [/bin/true], cwd: /no/such/folder"),
        sh("three", "exit 3", ""),
        good(),
    ]));
    ran.assert_code(1);
    ran.assert_good(&site);
    ran.assert_failed("lost", &["exit code 127", "No such file"]);
    ran.assert_failed("garbage", &["exit code 126", "could not be executed"]);
    ran.assert_failed("plain", &["/bin/plain"]);
    ran.assert_failed("absent", &["absent"]);
    ran.assert_failed("nowhere", &["cwd"]);
    ran.assert_failed("three", &["exit code 3"]);
    site.assert_baseline();
}

#[test]
fn a_failure_is_tried_again_as_often_as_was_asked() {
    let Some(site) = Site::new("a_failure_is_tried_again_as_often_as_was_asked") else { return };
    let ran = site.run(&flow(&[
        sh("never", "exit 4", "retries: 1"),
        sh("once", "exit 5", "at_most_once: true"),
        sh("consumer", "cat /stage/in/x", "inputs: [{name: x, from: 'stage://writer/x'}]"),
        sh("writer", "exit 6", "outputs: [{name: x}]"),
        sh("last", "true", "after: [consumer]"),
        good(),
    ]));
    ran.assert_code(1);
    ran.assert_good(&site);
    let ends = ran.events_of("payload_ended", "never");
    let tries: Vec<_> = ends.iter().map(|end| (end["attempt"].as_u64(), end["retry"].as_bool())).collect();
    assert_eq!(tries, [(Some(1), Some(true)), (Some(2), Some(false))]);
    assert_eq!(ran.row("never")["tries"], 2);
    assert_eq!(ran.events_of("payload_ended", "once").len(), 1);
    for (lost, reason) in [("consumer", "writer failed"), ("last", "failed")] {
        let skipped = ran.events_of("payload_skipped", lost);
        assert_eq!(skipped.len(), 1, "{}", ran.stdout);
        assert!(skipped[0]["reason"].as_str().is_some_and(|text| text.ends_with(reason)), "{skipped:?}");
        assert_eq!(ran.row(lost)["state"], "not_run");
        assert_eq!(ran.row(lost)["tries"], 0);
        assert!(ran.events_of("payload_started", lost).is_empty());
    }
    site.assert_baseline();
}

#[test]
fn a_second_try_begins_with_nothing_of_the_first() {
    let Some(site) = Site::new("a_second_try_begins_with_nothing_of_the_first") else { return };
    site.write("flag", "");
    let script = "ls -A /work /tmp; cat /stage/out/x; echo part > /stage/out/x; echo x > /work/x; echo x > /tmp/x; exit 1";
    let ran = site.run(&flow(&[sh("again", script, "retries: 1, outputs: [{name: x}]")]));
    ran.assert_code(1);
    assert_eq!(ran.row("again")["tries"], 2);
    assert_eq!(site.log("again", "stdout"), "/tmp:\n\n/work:\n", "{}", site.log("again", "stderr"));
    site.assert_baseline();
}

#[test]
fn the_pilot_holds_no_more_descriptors_after_many_payloads() {
    let Some(site) = Site::new("the_pilot_holds_no_more_descriptors_after_many_payloads") else { return };
    let held = |count: u32| {
        let many = sh(
            "many",
            "echo x > /stage/out/m",
            &format!("count: {count}, outputs: [{{name: m, class: mem}}]"),
        );
        let taken = sh("take", "true", "inputs: [{name: m, from: 'stage://many/m'}]");
        let script = "echo ready; while :; do sleep 0.05; done";
        let child = site.start(&flow(&[many, taken, sh("wait", script, "after: [take], grace: 1s")]));
        site.wait_for("wait", "ready");
        // The slot of the payload before may still be on its way out, so the lowest of many looks counts.
        let mut fds = usize::MAX;
        within(Duration::from_millis(300), || {
            fds = fds.min(std::fs::read_dir(format!("/proc/{}/fd", child.id())).expect("fds").count());
            false
        });
        pilot_tests::run::signal(&child, rustix::process::Signal::INT);
        Ran::of(child).assert_code(130);
        std::fs::remove_dir_all(site.path().join("out")).expect("logs");
        fds
    };
    // With one, whether the payload after it takes the same slot or the other one is chance.
    let (few, many) = (held(2), held(12));
    assert!(many <= few, "{few} after two payloads, {many} after twelve");
    site.assert_baseline();
}
