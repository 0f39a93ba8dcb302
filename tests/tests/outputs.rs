//! What is handed over: only a payload's own plain files become outputs, and nobody changes what others read.

use std::collections::BTreeSet;

use pilot_tests::run::{Ran, Site, flow, good, sh};

/// Runs payloads beside a good one and after another; both must succeed.
fn beside_good(site: &Site, payloads: &[String]) -> Ran {
    let mut all = payloads.to_vec();
    all.push(good());
    let ran = site.run(&flow(&all));
    ran.assert_good(site);
    ran
}

#[test]
fn an_output_must_be_a_plain_file_of_the_payloads_own() {
    let Some(site) = Site::new("an_output_must_be_a_plain_file_of_the_payloads_own") else { return };
    let bad = |name: &str, script: &str| {
        sh(name, &format!("cd /stage/out; {script}"), "outputs: [{name: x, max_size: 4Ki}]")
    };
    let ran = beside_good(
        &site,
        &[
            bad("missing", "rm x"),
            bad("unwritten", "true"),
            bad("symlink", "rm x; ln -s /etc/passwd x"),
            bad("dangling", "rm x; ln -s /nowhere x"),
            bad("fifo", "rm x; mkfifo x"),
            bad("folder", "rm x; mkdir x; echo y > x/y"),
            bad("elsewhere", "echo z > x; ln x also"),
            bad("large", "head -c 5000 /dev/zero > x"),
            bad("sparse", "dd if=/dev/zero of=x bs=1 count=1 seek=100000000"),
            bad("device", "rm x; mknod x c 1 3; true"),
            bad("shut", "echo z > x; chmod 0 x; true"),
            bad("renamed", "echo z > new; mv new x"),
            bad("just", "head -c 4096 /dev/zero > x"),
            sh(
                "mem-large",
                "head -c 5000 /dev/zero > /stage/out/x",
                "outputs: [{name: x, class: mem, max_size: 4Ki}]",
            ),
            sh("mem-unwritten", "true", "outputs: [{name: x, class: mem}]"),
            sh(
                "mem-just",
                "head -c 4096 /dev/zero > /stage/out/x",
                "outputs: [{name: x, class: mem, max_size: 4Ki}]",
            ),
            sh("consumer", "true", "inputs: [{name: x, from: 'stage://symlink/x'}]"),
        ],
    );
    ran.assert_code(1);
    for (payload, word) in [
        ("missing", "did not write"),
        ("unwritten", "did not write"),
        ("symlink", "symbolic link"),
        ("dangling", "symbolic link"),
        ("fifo", "FIFO"),
        ("folder", "directory"),
        ("elsewhere", "link"),
        ("large", "max_size"),
        ("sparse", "max_size"),
        ("device", "did not write"),
        ("mem-large", "max_size"),
        ("mem-unwritten", "did not write"),
    ] {
        ran.assert_failed(payload, &["\"x\"", word]);
    }
    for payload in ["shut", "renamed", "just", "mem-just"] {
        ran.assert_done(payload);
    }
    assert_eq!(ran.row("consumer")["state"], "not_run");
    site.assert_baseline();
}

#[test]
fn an_input_can_not_be_changed_for_the_next_reader() {
    let Some(site) = Site::new("an_input_can_not_be_changed_for_the_next_reader") else { return };
    let inputs = "inputs: [{name: f, from: 'stage://source/f'}, {name: m, from: 'stage://source/m'}]";
    let attack = "for x in f m; do (echo y > /stage/in/$x); (echo y >> /stage/in/$x); chmod 777 /stage/in/$x; \
        dd if=/dev/zero of=/stage/in/$x bs=1 count=1 conv=notrunc; : | tee /stage/in/$x; done; \
        rm -rf /.latebind/in/*; (eval \"echo y >&$LATEBIND_FD_IN_M\"); rm -f /stage/in/f /stage/in/m; \
        for n in 3 4 5 6 7 8 9; do (echo y > /proc/2/fd/$n); done; busybox truncate -s 0 /.latebind/in/f";
    let ran = beside_good(
        &site,
        &[
            sh(
                "source",
                "echo file > /stage/out/f; echo memory > /stage/out/m",
                "outputs: [{name: f}, {name: m, class: mem}]",
            ),
            sh("attack", &format!("({attack}) 2>/dev/null; true"), inputs),
            sh("reader", "cat /stage/in/f /stage/in/m", &format!("{inputs}, after: [attack]")),
        ],
    );
    ran.assert_code(0);
    assert_eq!(site.log("reader", "stdout"), "file\nmemory\n");
    site.assert_baseline();
}

#[test]
fn a_payload_can_not_litter_the_pilots_folders() {
    let Some(site) = Site::new("a_payload_can_not_litter_the_pilots_folders") else { return };
    let deep = "cd /work; i=0; while [ $i -lt 300 ]; do mkdir d; chmod 700 d; cd d; i=$((i+1)); done; echo x > f; chmod 0 f; cd /work; chmod 0 d; \
        mkdir /stage/out/extra; echo x > /stage/out/extra/y; chmod 0 /stage/out/extra; mkfifo /work/fifo; ln -s / /work/root; \
        ln -s /nowhere /stage/out/also; echo ok > /stage/out/x";
    let ran = beside_good(&site, &[sh("litter", deep, "outputs: [{name: x, save: x.txt}]")]);
    ran.assert_code(0);
    assert_eq!(site.read("out/x.txt"), "ok\n");
    let saved: BTreeSet<_> = std::fs::read_dir(site.path().join("out"))
        .expect("out")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(saved, BTreeSet::from(["good.txt".into(), "logs".into(), "x.txt".into()]));
    site.assert_baseline();
}
