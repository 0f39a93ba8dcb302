//! Payloads that make and read their stages through a client library, beside others that use paths.

use pilot_tests::run::{Site, flow, good, sh};

/// What `stages make` writes.
fn made(bytes: u32) -> Vec<u8> {
    let byte = |at: u32| ((u64::from(at) * 2_654_435_761) >> 13).to_le_bytes()[0];
    (0..bytes).map(byte).collect()
}

#[test]
fn what_a_client_makes_is_read_by_path_and_the_other_way_round() {
    let Some(site) = Site::with_clients("what_a_client_makes_is_read_by_path_and_the_other_way_round") else {
        return;
    };
    let (small, large) = (100_000, 64 << 20);
    // Its memory is a third of what it makes: the pilot pays.
    let produce = format!(
        "  - {{name: produce, resources: {{cpu: 500m, memory: 24Mi}}, image: oci:busybox, command: [/bin/sh, -c, \
         'stages make x {large} && stages make s {small}'], outputs: [{{name: x, class: mem, max_size: 64Mi}}, \
         {{name: s, class: mem, max_size: 1Mi, save: s.bin}}]}}\n"
    );
    let inputs = "inputs: [{name: y, from: 'stage://produce/x'}]";
    let ran = site.run_with(
        &flow(&[
            produce,
            sh("by-path", "busybox sha256sum < /stage/in/y", inputs),
            sh("by-client", "stages place y && stages cat y | busybox sha256sum", inputs),
            sh(
                "writes",
                "cd /stage/out; echo file > f; echo memory > m; echo value > new; mv new v",
                "outputs: [{name: f}, {name: m, class: mem}, {name: v, class: value, save: v.txt}]",
            ),
            sh(
                "reads",
                "for x in f m v; do stages cat $x; done; cat /stage/in/v; stages place f; stages place m",
                "inputs: [{name: f, from: 'stage://writes/f'}, {name: m, from: 'stage://writes/m'}, \
                 {name: v, from: 'stage://writes/v'}]",
            ),
            sh("puts", "stages put v 42", "outputs: [{name: v, class: value, save: put.txt}]"),
            sh("gets", "stages cat v; cat /stage/in/v", "inputs: [{name: v, from: 'stage://puts/v'}]"),
            good(),
        ]),
        &["--slots", "1"],
    );
    ran.assert_code(0);
    ran.assert_good(&site);
    let sum = site.log("by-path", "stdout");
    assert_eq!(sum.len(), 64 + 4, "{sum}");
    assert_eq!(site.log("by-client", "stdout"), format!("in place\n{sum}"));
    assert_eq!(site.read("out/v.txt"), "value\n");
    assert_eq!((site.log("gets", "stdout"), site.read("out/put.txt")), ("4242".into(), "42".into()));
    assert_eq!(site.log("reads", "stdout"), "file\nmemory\nvalue\nvalue\ncopied\nin place\n");
    assert!(
        std::fs::read(site.path().join("out/s.bin")).expect("saved") == made(small),
        "it was saved whole"
    );
    site.assert_baseline();
}

#[test]
fn payloads_that_run_together_reach_each_other_through_a_client() {
    let Some(site) = Site::with_clients("payloads_that_run_together_reach_each_other_through_a_client")
    else {
        return;
    };
    let ran = site.run(&flow(&[
        sh(
            "makes",
            "echo streamed | stages stream-out p && stages share-out g",
            "outputs: [{name: p, class: pipe}, {name: g, class: shared, max_size: 8192}]",
        ),
        sh(
            "reads",
            "stages stream-in p && stages share-in g; stages share-in p; stages stream-in g; stages share-in none; true",
            "inputs: [{name: p, from: 'stage://makes/p'}, {name: g, from: 'stage://makes/g'}]",
        ),
        good(),
    ]));
    ran.assert_good(&site);
    ran.assert_done("makes");
    assert_eq!(site.log("reads", "stdout"), "streamed\nin shared memory of 8192 bytes\n");
    let refused = site.log("reads", "stderr");
    for words in
        ["share memory \"p\"", "read stream \"g\": it is no pipe", "share memory \"none\": No such file"]
    {
        assert!(refused.contains(words), "{refused}");
    }
    site.assert_baseline();
}

#[test]
fn no_reader_of_any_class_can_change_what_others_read() {
    let Some(site) = Site::with_clients("no_reader_of_any_class_can_change_what_others_read") else { return };
    let inputs = "inputs: [{name: f, from: 'stage://writes/f'}, {name: m, from: 'stage://writes/m'}]";
    let ran = site.run(&flow(&[
        sh(
            "writes",
            "echo file > /stage/out/f; echo memory > /stage/out/m",
            "outputs: [{name: f}, {name: m, class: mem}]",
        ),
        sh("spoils", "stages spoil f; stages spoil m", inputs),
        sh("reads", "cat /stage/in/f /stage/in/m", &format!("{inputs}, after: [spoils]")),
    ]));
    ran.assert_code(0);
    let tried = site.log("spoils", "stdout");
    assert!(tried.lines().count() >= 3 && !tried.contains("changed"), "{tried}");
    assert_eq!(site.log("reads", "stdout"), "file\nmemory\n");
    site.assert_baseline();
}

#[test]
fn what_no_client_committed_is_no_output() {
    let Some(site) = Site::with_clients("what_no_client_committed_is_no_output") else { return };
    let makes = |name: &str, script: &str| {
        sh(name, script, &format!("outputs: [{{name: x, class: mem, max_size: 1Mi, save: {name}.bin}}]"))
    };
    let ran = site.run(&flow(&[
        makes("leaves", "stages leave x 1000"),
        makes("twice", "stages make x 1000 && echo y > /stage/out/x"),
        makes("fails", "stages make x 1000; exit 3"),
        makes("large", "stages make x 1048577"),
        makes("undeclared", "stages make other 1"),
        sh("file", "stages make f 1", "outputs: [{name: x, class: mem}, {name: f}]"),
        sh("much", "head -c 65537 /dev/zero > /stage/out/v", "outputs: [{name: v, class: value}]"),
        sh("nothing", "true", "outputs: [{name: v, class: value}]"),
        sh("none", "echo ${LATEBIND_STAGE:-none}; ls -A /.latebind/in", ""),
        sh(
            "again",
            "stages make x 10 && ! stages make x 10 2>/stage/out/said",
            "outputs: [{name: x, class: mem}, {name: said, save: said}]",
        ),
        sh("after", "true", "inputs: [{name: x, from: 'stage://fails/x'}]"),
        good(),
    ]));
    ran.assert_code(1);
    ran.assert_good(&site);
    ran.assert_failed("leaves", &["\"x\"", "no client committed it"]);
    ran.assert_failed("twice", &["\"x\"", "in one way"]);
    for payload in ["fails", "large", "undeclared", "file"] {
        ran.assert_failed(payload, &["exit code"]);
    }
    ran.assert_failed("much", &["\"v\"", "max_size"]);
    ran.assert_failed("nothing", &["\"v\"", "did not write"]);
    assert_eq!(ran.row("after")["state"], "not_run");
    assert!(site.log("large", "stderr").contains("max_size"), "{}", site.log("large", "stderr"));
    assert!(site.log("undeclared", "stderr").contains("declares no such output"));
    assert!(site.log("file", "stderr").contains("declares no such output"));
    assert_eq!(site.log("none", "stdout"), "none\n");
    ran.assert_done("again");
    assert!(site.read("out/said").contains("committed already"), "{}", site.read("out/said"));
    for payload in ["leaves", "twice", "fails", "large", "undeclared"] {
        assert!(!site.path().join(format!("out/{payload}.bin")).exists(), "{payload} failed, and was saved");
    }
    site.assert_baseline();
}

#[test]
fn the_brokers_socket_is_the_slots_own_and_stays() {
    let Some(site) = Site::with_clients("the_brokers_socket_is_the_slots_own_and_stays") else { return };
    let attack = "echo $LATEBIND_STAGE; for x in 1 2 3; do (rm -f $LATEBIND_STAGE; mv $LATEBIND_STAGE /work/; chmod 0 $LATEBIND_STAGE; \
        ln -s /nowhere /.latebind/in/other) 2>/dev/null; done; ls -A /.latebind/in; stages make x 5";
    let ran = site.run(&flow(&[
        sh("attack", attack, "outputs: [{name: x, class: mem}]"),
        sh("next", "stages cat x | wc -c", "inputs: [{name: x, from: 'stage://attack/x'}]"),
        good(),
    ]));
    ran.assert_code(0);
    ran.assert_good(&site);
    assert_eq!(site.log("attack", "stdout"), "/.latebind/in/.stage\n.stage\n");
    assert_eq!(site.log("next", "stdout").trim(), "5");
    site.assert_baseline();
}

#[test]
fn room_for_an_output_is_made_before_its_payload_starts() {
    let Some(site) = Site::with_clients("room_for_an_output_is_made_before_its_payload_starts") else {
        return;
    };
    let ran = site.run_with(
        &flow(&[
            sh("never", "echo ran", "outputs: [{name: x, class: shared, max_size: 600Mi}]"),
            sh("mate", "echo ran", "inputs: [{name: x, from: 'stage://never/x'}]"),
            sh("just", "stages make x 1000", "outputs: [{name: x, class: mem, max_size: 300Mi}]"),
            good(),
        ]),
        &["--memory", "500Mi"],
    );
    ran.assert_code(1);
    ran.assert_good(&site);
    ran.assert_failed("never", &["lower its max_size"]);
    assert_eq!(site.log("never", "stdout"), "");
    ran.assert_done("just");
    site.assert_baseline();
}
