//! Stages that leave the volume for an object store when it is full, and come back for their readers.

use std::process::{Command, Stdio};

use pilot_tests::chaos::{Service, assert_done, end, files, inmates, kill, place, stdout, wait_text};
use pilot_tests::run::{Ran, SOON, Site, as_root, flow, sh, within};

#[path = "../../objects/tests/objects/server.rs"]
#[expect(dead_code, reason = "the tests of `objects` use all of it")]
mod server;

use server::{ACCESS, SECRET, Server, url};

const WAITS: &str = "echo ready; while [ ! -e /stage/in/go/now ]; do sleep 0.02; done";
const GO: &str = "{name: go, from: ./go}";
/// Room for two stages, and for what one may become.
const DISK: &str = "10Mi";
/// What a stage has.
const STAGE: u64 = 4 << 20;

fn makes(name: &str, fields: &str) -> String {
    let script = format!(
        "yes {name} | head -c {STAGE} > /stage/out/f; busybox sha256sum < /stage/out/f > /stage/out/sum"
    );
    let outputs = "{name: f, max_size: 5Mi}, {name: sum, max_size: 1Ki}";
    sh(name, &script, &format!("outputs: [{outputs}]{fields}"))
}

/// Reads the outputs of some payloads.
fn checks(name: &str, of: &[&str], fields: &str) -> String {
    let inputs = of.iter().map(|from| {
        format!(
            "{{name: {from}, from: 'stage://{from}/f'}}, {{name: {from}-sum, from: 'stage://{from}/sum'}}"
        )
    });
    let script = format!(
        "for x in {}; do busybox sha256sum < /stage/in/$x | cmp - /stage/in/$x-sum && stat -L -c %a /stage/in/$x; done; \
         (echo x >> /stage/in/{}) 2>/dev/null; true",
        of.join(" "),
        of[0]
    );
    let inputs = inputs.collect::<Vec<_>>().join(", ");
    sh(name, &script, &format!("inputs: [{GO}, {inputs}]{fields}"))
}

/// Four stages where two have room, each read twice, and one that is mounted.
fn workflow() -> String {
    let names = ["a", "b", "c", "d"];
    let mut payloads = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let after = at.checked_sub(1).map_or(String::new(), |before| format!(", after: [{}]", names[before]));
        payloads.push(makes(name, &after));
    }
    payloads.extend([
        checks("one", &["a", "b"], ", after: [d]"),
        checks("two", &["c", "d"], ", after: [one]"),
        checks("three", &["b", "c"], ", after: [two]"),
        sh(
            "at",
            "busybox sha256sum < /data/f | cmp - /stage/in/sum && echo same",
            "inputs: [{name: a, from: 'stage://a/f', at: /data/f}, {name: sum, from: 'stage://a/sum'}], after: [three]",
        ),
    ]);
    flow(&payloads)
}

fn assert_read(site: &Site, ran: &Ran) {
    ran.assert_code(0);
    for reader in ["one", "two", "three"] {
        assert_eq!(site.log(reader, "stdout"), "444\n444\n", "{reader}: {}", ran.stdout);
    }
    assert_eq!(site.log("at", "stdout"), "same\n");
    let events = ran.events();
    let stages = &events.last().expect("a summary")["stages"];
    assert!(stages["spilled"].as_u64() >= Some(3), "{stages}");
}

fn place_with_go(test: &str) -> Option<Site> {
    let site = place(test)?;
    std::fs::create_dir(site.path().join("far")).expect("mkdir");
    Some(site)
}

/// The objects that are there.
fn far(site: &Site) -> usize {
    files(&site.path().join("far")).len()
}

fn to(site: &Site) -> String {
    format!("file://{}/far", site.path().display())
}

#[test]
fn what_the_volume_has_no_room_for_goes_to_a_folder_and_comes_back() {
    let Some(site) = place_with_go("what_the_volume_has_no_room_for_goes_to_a_folder_and_comes_back") else {
        return;
    };
    let ran = site.run_with(&workflow(), &["--slots", "1", "--stage-disk", DISK, "--spill-to", &to(&site)]);
    assert_read(&site, &ran);
    assert_eq!(far(&site), 0, "{:?}", files(&site.path().join("far")));
    site.assert_baseline();
}

#[test]
fn without_a_place_to_go_what_has_no_room_waits_and_what_never_has_fails() {
    let test = "without_a_place_to_go_what_has_no_room_waits_and_what_never_has_fails";
    let Some(site) = place_with_go(test) else { return };
    let large = sh("large", "echo x > /stage/out/f", "outputs: [{name: f, max_size: 11Mi}]");
    let work = flow(&[large, makes("a", ""), checks("reads", &["a"], "")]);
    let ran = site.run_with(&work, &["--slots", "1", "--stage-disk", DISK]);
    ran.assert_code(1);
    ran.assert_failed("large", &["--stage-disk", "max_size"]);
    assert_eq!(site.log("reads", "stdout"), "444\n");
    site.assert_baseline();
}

#[test]
fn what_the_volume_has_no_room_for_goes_to_a_bucket_and_comes_back() {
    let test = "what_the_volume_has_no_room_for_goes_to_a_bucket_and_comes_back";
    let Some(site) = place_with_go(test) else { return };
    let Some(server) = Server::start(test) else { return };
    site.write("workflow.yaml", &workflow());
    let endpoint = format!("http://{}", server.address);
    let arguments = [
        "run",
        "workflow.yaml",
        "--output",
        "json",
        "--out",
        "out",
        "--s3-endpoint",
        &endpoint,
        "--slots",
        "1",
        "--stage-disk",
        DISK,
        "--spill-to",
        "s3://data/stages",
    ];
    let mut pilot = site.pilot(&arguments);
    pilot.env("AWS_ACCESS_KEY_ID", ACCESS).env("AWS_SECRET_ACCESS_KEY", SECRET);
    let ran = Ran::of(pilot.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the pilot"));
    assert_read(&site, &ran);
    let threads = tokio::runtime::Runtime::new().expect("threads");
    let left = threads.block_on(server.tier().list(&url("s3://data/stages"), 100)).expect("list");
    assert!(left.is_empty(), "{left:?}");
    drop((threads, server));
    site.assert_baseline();
}

#[test]
fn a_disk_that_is_full_is_relieved_also_without_a_limit() {
    let test = "a_disk_that_is_full_is_relieved_also_without_a_limit";
    let Some(site) = place_with_go(test) else { return };
    if !as_root() || !std::path::Path::new("/dev/loop-control").exists() {
        pilot_tests::skipped(test, "only root, with /dev/loop-control, can make a small disk");
        return;
    }
    let names = ["a", "b", "c", "d"];
    let memory = |payload: String| payload.replace("memory: 128Mi", "memory: 64Mi");
    let large = |name: &str| {
        makes(name, "")
            .replace("memory: 128Mi", "memory: 31Mi")
            .replace("{name: f, max_size: 5Mi}", "{name: f, class: mem, max_size: 33Mi}")
            .replace(&STAGE.to_string(), &(16 << 20).to_string())
    };
    let mut payloads: Vec<String> = names.iter().map(|name| large(name)).collect();
    for name in names {
        payloads.push(memory(checks(&format!("reads-{name}"), &[name], ", after: [a, b, c, d]")));
    }
    site.write("workflow.yaml", &flow(&payloads));
    let pilot = site.pilot(&[]);
    let mut words = vec![pilot.get_program().to_string_lossy().into_owned()];
    words.extend(pilot.get_args().map(|word| word.to_string_lossy().into_owned()));
    // Room for one of them.
    let script = "truncate -s 28m disk && mkfs.ext4 -q -m 0 disk && mount -o loop disk scratch || exit 99
        $PILOT run workflow.yaml --output json --out out --slots 1 --memory 64Mi --spill-to $TO; code=$?
        find scratch far -type f; umount scratch; rm disk; exit $code";
    #[expect(clippy::disallowed_methods, reason = "a test's own namespace")]
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "90", "unshare", "-m", "--propagation", "private", "sh", "-c", script]);
    command.current_dir(site.path()).stdin(Stdio::null()).env("PILOT", words.join(" ")).env("TO", to(&site));
    command.env("HOME", site.path());
    let ran =
        Ran::of(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start unshare(1)"));
    if ran.code == 99 {
        pilot_tests::skipped(test, "no file system can be mounted from a file here");
        return;
    }
    ran.assert_code(0);
    for name in names {
        let read = site.log(&format!("reads-{name}"), "stdout");
        assert_eq!(read, "444\n", "{}\n{}", ran.stdout, ran.stderr);
    }
    let left = |line: &str| line.starts_with("scratch/") || line.starts_with("far/");
    assert!(!ran.stdout.lines().any(left), "{}", ran.stdout);
    // Two left memory, and one of them the disk.
    let summary: Vec<_> = ran.events().into_iter().filter(|event| event["event"] == "summary").collect();
    assert!(summary[0]["stages"]["spilled"].as_u64() >= Some(3), "{}", ran.stdout);
    site.assert_baseline();
}

#[test]
fn stages_that_are_away_outlive_their_pilot() {
    let Some(site) = place_with_go("stages_that_are_away_outlive_their_pilot") else { return };
    let to = to(&site);
    let options = ["--slots", "1", "--stage-disk", DISK, "--spill-to", &to];
    let mut pilot = Service::new(&site, "p", &options);
    pilot.start();
    let names = ["a", "b", "c", "d"];
    let mut payloads: Vec<String> = names.iter().map(|name| makes(name, ", at_most_once: true")).collect();
    payloads.push(sh("waits", WAITS, &format!("inputs: [{GO}], after: [a, b, c, d]")));
    payloads.push(checks("one", &["a", "b"], ", after: [waits]"));
    payloads.push(checks("two", &["c", "d"], ", after: [waits]"));
    let run = pilot.submit(&flow(&payloads));
    wait_text(&site, run, "waits", "ready");
    let away = || {
        let listed = site.ask(&["stage", "ls", "--spool", "spool", "--output", "json"]);
        listed.assert_code(0);
        let rows = listed.events().into_iter().filter(|row| row["place"] == "object");
        rows.map(|row| row["stage"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    let before = away();
    assert!(before.len() >= 2 && far(&site) == before.len(), "{before:?}");
    let get = || {
        site.ask(&["stage", "get", &before[0], "copy", "--spool", "spool"]).assert_code(0);
        assert_eq!(std::fs::metadata(site.path().join("copy")).expect("copy").len(), STAGE);
        std::fs::remove_file(site.path().join("copy")).expect("remove");
    };
    get();
    // Something that was begun when it died: nobody will need it.
    let journal = files(&site.path().join("scratch")).into_iter().find(|path| path.ends_with(".far"));
    let journal = journal.expect("it is written down");
    pilot.kill();
    inmates().into_iter().for_each(|inmate| kill(inmate.pid));
    pilot.reap();
    let half = site.path().join("far/w.x.f.0");
    std::fs::write(&half, "half").expect("write");
    let mut entries: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(&journal).expect("read")).expect("json");
    entries.push(serde_json::json!({"url": format!("file://{}", half.display())}));
    std::fs::write(&journal, serde_json::to_vec(&entries).expect("json")).expect("write");
    pilot.start();
    assert!(within(SOON, || !half.exists()), "it goes");
    assert_eq!(away(), before);
    get();
    site.write("go/now", "");
    pilot.wait(run);
    for name in names {
        assert_done(&site, run, name, 1);
    }
    for reader in ["one", "two"] {
        assert_eq!(stdout(&site, run, reader), "444\n444\n");
    }
    assert!(within(SOON, || far(&site) == 0), "{:?}", files(&site.path().join("far")));
    end(&site, &mut pilot);
}

#[test]
fn what_a_killed_run_left_there_is_removed_by_the_next() {
    let Some(site) = place_with_go("what_a_killed_run_left_there_is_removed_by_the_next") else { return };
    let to = to(&site);
    let names = ["a", "b", "c"];
    let mut payloads: Vec<String> = names.iter().map(|name| makes(name, "")).collect();
    payloads.push(sh("waits", WAITS, &format!("inputs: [{GO}], after: [a, b, c]")));
    payloads.push(checks("reads", &names[..2], ", after: [waits]"));
    payloads.push(checks("more", &names[2..], ", after: [waits]"));
    site.write("workflow.yaml", &flow(&payloads));
    let arguments =
        ["run", "workflow.yaml", "--out", "out", "--slots", "1", "--stage-disk", DISK, "--spill-to", &to];
    let mut child =
        site.pilot(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start");
    site.wait_for("waits", "ready");
    assert!(far(&site) >= 1);
    child.kill().expect("kill");
    child.wait().expect("wait");
    assert!(far(&site) >= 1);
    site.run_with(&flow(&[sh("other", "true", "")]), &[]).assert_code(0);
    assert_eq!(far(&site), 0, "{:?}", files(&site.path().join("far")));
    pilot_tests::baseline::reap();
    site.assert_baseline();
}

#[test]
fn a_stage_that_was_damaged_while_it_was_away_is_read_by_nobody() {
    let Some(site) = place_with_go("a_stage_that_was_damaged_while_it_was_away_is_read_by_nobody") else {
        return;
    };
    let to = to(&site);
    let mut payloads: Vec<String> = ["a", "b", "c"].iter().map(|name| makes(name, "")).collect();
    payloads.push(sh("waits", WAITS, &format!("inputs: [{GO}], after: [a, b, c]")));
    payloads
        .extend(["a", "b", "c"].map(|name| checks(&format!("reads-{name}"), &[name], ", after: [waits]")));
    site.write("workflow.yaml", &flow(&payloads));
    let arguments = [
        "run",
        "workflow.yaml",
        "--output",
        "json",
        "--out",
        "out",
        "--slots",
        "1",
        "--stage-disk",
        DISK,
        "--spill-to",
        &to,
    ];
    let child = site.pilot(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
    site.wait_for("waits", "ready");
    let away = files(&site.path().join("far"));
    assert_eq!(away.len(), 1, "{away:?}");
    let name = away[0].file_name().expect("a name").to_string_lossy().into_owned();
    let damaged = name.split('.').nth(1).expect("a payload");
    // Of the same length.
    let mut bytes = std::fs::read(&away[0]).expect("read");
    bytes[1000] ^= 1;
    std::fs::remove_file(&away[0]).expect("remove");
    std::fs::write(&away[0], bytes).expect("write");
    site.write("go/now", "");
    let ran = Ran::of(child);
    ran.assert_code(1);
    ran.assert_failed(&format!("reads-{damaged}"), &[&format!("fetch stage://w/{damaged}/f"), "damaged"]);
    for name in ["a", "b", "c"].into_iter().filter(|name| *name != damaged) {
        assert_eq!(site.log(&format!("reads-{name}"), "stdout"), "444\n");
    }
    assert_eq!(far(&site), 0, "{:?}", files(&site.path().join("far")));
    site.assert_baseline();
}
