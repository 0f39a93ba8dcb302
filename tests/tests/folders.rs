//! Outputs of class `folder`: what a payload leaves in one becomes a tree that nobody changes.

use std::os::unix::fs::symlink;

use pilot_tests::run::{Site, flow, good, sh};

const TREE: &str = "cd /stage/out/d; mkdir -p a/b empty; echo one > a/one; echo two > a/b/two; chmod 700 a; \
    ln -s ../one a/b/up; ln -s a/b dir; printf '#!/bin/sh\\necho ran\\n' > run; chmod 755 run; ln a/one a/also";
const SHOW: &str = "cd /stage/in/d; find . | sort; cat a/b/up dir/two a/also; ./run";
const SHOWN: &str =
    ".\n./a\n./a/also\n./a/b\n./a/b/two\n./a/b/up\n./a/one\n./dir\n./empty\n./run\none\ntwo\none\nran\n";

#[test]
fn a_folder_is_handed_on_mounted_saved_and_never_changed() {
    let Some(site) = Site::new("a_folder_is_handed_on_mounted_saved_and_never_changed") else { return };
    let from = "inputs: [{name: d, from: 'stage://make/d'}]";
    let attack = "for x in a/one a/b/two new; do (echo y > /stage/in/d/$x); done; chmod -R 777 /stage/in/d/; \
        rm -rf /stage/in/d/a /.latebind/in/d/a; mv /.latebind/in/d /.latebind/in/e; ln -sfn /etc /.latebind/in/d/dir";
    // What was saved before is replaced, whatever it was.
    std::fs::create_dir_all(site.path().join("out/tree/old")).expect("mkdir");
    let ran = site.run(&flow(&[
        sh("make", TREE, "outputs: [{name: d, class: folder, max_size: 1Mi, save: tree}]"),
        sh("attack", &format!("({attack}) 2>/dev/null; true"), from),
        sh("show", SHOW, &format!("{from}, after: [attack]")),
        sh(
            "at",
            "cat /opt/tree/a/b/two; ls /opt/tree",
            "inputs: [{name: d, from: 'stage://make/d', at: /opt/tree}]",
        ),
        sh(
            "again",
            "cp -r /stage/in/d/. /stage/out/d/; chmod u+w /stage/out/d/a; rm /stage/out/d/a/also",
            &format!("{from}, outputs: [{{name: d, class: folder}}]"),
        ),
        sh("third", "cat /stage/in/d/dir/two", "inputs: [{name: d, from: 'stage://again/d'}]"),
    ]));
    ran.assert_code(0);
    assert_eq!(site.log("show", "stdout"), SHOWN);
    let summary = ran.events().pop().expect("a summary");
    assert_eq!((&summary["stages"]["made"], &summary["stages"]["read"]), (&2.into(), &5.into()), "{summary}");
    assert_eq!(site.log("at", "stdout"), "two\na\ndir\nempty\nrun\n");
    assert_eq!(site.log("third", "stdout"), "two\n");
    assert_eq!(site.read("out/tree/a/b/up"), "one\n");
    assert_eq!(std::fs::read_link(site.path().join("out/tree/dir")).expect("a link").to_str(), Some("a/b"));
    assert!(site.path().join("out/tree/empty").is_dir() && !site.path().join("out/tree/old").exists());
    site.assert_baseline();
}

#[test]
fn a_folder_that_can_not_be_a_stage_costs_its_payload_alone() {
    let Some(site) = Site::new("a_folder_that_can_not_be_a_stage_costs_its_payload_alone") else { return };
    let bad = |name: &str, script: &str| {
        let output = format!("outputs: [{{name: d, class: folder, max_size: 4Ki, save: bad-{name}}}]");
        sh(name, &format!("cd /stage/out; {script}"), &output)
    };
    let all = [
        ("missing", "rmdir d", "did not write"),
        ("unwritten", "true", "did not write"),
        ("file", "rmdir d; echo x > d", "folder"),
        ("link", "rmdir d; ln -s /etc d", "symbolic link"),
        ("leads-out", "ln -s /etc/passwd d/x", "leaves"),
        ("climbs", "mkdir d/a; ln -s ../../d2 d/a/x", "leaves"),
        ("fifo", "mkfifo d/x", "FIFO"),
        ("elsewhere", "echo x > y; ln y d/x", "link"),
        ("large", "head -c 5000 /dev/zero > d/x", "max_size"),
        ("many", "head -c 3000 /dev/zero > d/x; head -c 3000 /dev/zero > d/y", "max_size"),
        ("deep", "cd d; i=0; while [ $i -lt 100 ]; do mkdir n; cd n; i=$((i+1)); done; echo x > x", "deep"),
    ];
    let mut payloads: Vec<String> = all.iter().map(|(name, script, _)| bad(name, script)).collect();
    payloads.push(sh("reads", "true", "inputs: [{name: d, from: 'stage://leads-out/d'}]"));
    payloads.push(good());
    let ran = site.run(&flow(&payloads));
    ran.assert_code(1);
    ran.assert_good(&site);
    for (name, _, word) in all {
        ran.assert_failed(name, &["\"d\"", word]);
    }
    assert_eq!(ran.row("reads")["state"], "not_run");
    let results = std::fs::read_dir(site.path().join("out")).expect("results").flatten();
    let names: Vec<_> = results.map(|entry| entry.file_name()).collect();
    assert!(names.iter().all(|name| name == "logs" || name == "good.txt"), "{names:?}");
    site.assert_baseline();
}

#[test]
fn a_folder_that_is_a_link_in_the_results_is_replaced_and_not_followed() {
    let Some(site) = Site::new("a_folder_that_is_a_link_in_the_results_is_replaced_and_not_followed") else {
        return;
    };
    std::fs::create_dir_all(site.path().join("out")).expect("mkdir");
    std::fs::create_dir(site.path().join("precious")).expect("mkdir");
    site.write("precious/kept", "kept");
    symlink("../precious", site.path().join("out/tree")).expect("link");
    let ran = site.run(&flow(&[sh(
        "make",
        "echo x > /stage/out/d/x",
        "outputs: [{name: d, class: folder, save: tree}]",
    )]));
    ran.assert_code(0);
    assert_eq!(site.read("precious/kept"), "kept");
    assert_eq!(site.read("out/tree/x"), "x\n");
    assert!(!site.path().join("precious/x").exists());
    site.assert_baseline();
}
