//! Stages that leave memory when it is short: their readers get the same bytes, nobody can change them, and the memory is free.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use pilot_tests::chaos::{
    Draw, Service, assert_done, brief, end, inmates, kill, out, outcome, place, row, rows, stdout,
    wait_state, wait_text,
};
use pilot_tests::run::{Ran, SOON, Site, as_root, flow, within};
use spool::State;

/// Runs until it is let go.
const WAITS: &str = "echo ready; while [ ! -e /stage/in/go/now ]; do sleep 0.02; done";
const GO: &str = "{name: go, from: ./go}";
/// Room for two payloads at a time, and for three stages.
const MEMORY: &str = "64Mi";
/// What a stage has.
const STAGE: u64 = 16 * MIB;
const MIB: u64 = 1 << 20;

/// Whether files in this place are on a disk, so that there is something to move to.
fn has_disk(test: &str, site: &Site) -> bool {
    let folder = std::fs::File::open(site.path()).expect("open");
    let disk = !stage::lies_in_memory(std::os::fd::AsFd::as_fd(&folder));
    if !disk {
        pilot_tests::skipped(test, "the folder for temporary files is memory; set TMPDIR to one on a disk");
    }
    disk
}

/// Makes a stage in memory, which no other payload makes alike.
fn makes(name: &str, max_mib: u64, fields: &str) -> String {
    let script = format!(
        "yes {name} | head -c {STAGE} > /stage/out/m; busybox sha256sum < /stage/out/m > /stage/out/sum"
    );
    let outputs = format!("{{name: m, class: mem, max_size: {max_mib}Mi}}, {{name: sum, max_size: 1Ki}}");
    // With what its output may have it has the pilot to itself.
    of_memory(&format!("{}Mi", 64 - max_mib), name, &script, &format!("outputs: [{outputs}]{fields}"))
}

/// Inputs of what payloads have made.
fn inputs_of(names: &[&str]) -> String {
    let each = |name: &&str| {
        format!(
            "{{name: {name}, from: 'stage://{name}/m'}}, {{name: {name}-sum, from: 'stage://{name}/sum'}}"
        )
    };
    names.iter().map(each).collect::<Vec<_>>().join(", ")
}

/// Checks that each is what its producer made.
const CHECKS: &str =
    "for x in a b c d; do busybox sha256sum < /stage/in/$x | cmp - /stage/in/$x-sum && echo same; done";
/// The same by the descriptors that memory has.
const CHECKS_DESCRIPTORS: &str = "for X in A B C D; do x=$(echo $X | tr A-D a-d); eval \"busybox sha256sum <&\\$LATEBIND_FD_IN_$X\" | \
    cmp - /stage/in/$x-sum && echo same; done";

#[test]
fn what_does_not_fit_moves_and_its_readers_do_not_notice() {
    let test = "what_does_not_fit_moves_and_its_readers_do_not_notice";
    let Some(site) = Site::with_clients(test) else { return };
    if !has_disk(test, &site) {
        return;
    }
    let names = ["a", "b", "c", "d"];
    let inputs = inputs_of(&names);
    let mut payloads: Vec<String> = Vec::new();
    for (at, name) in names.iter().enumerate() {
        // One after the other, so that there is always the same to move: what is reserved is twice of what is made.
        let after = at.checked_sub(1).map_or(String::new(), |before| format!(", after: [{}]", names[before]));
        payloads.push(makes(name, 33, &after));
    }
    let spoils = "for x in a b c d; do stages spoil $x; (: > /stage/in/$x); chmod 666 /stage/in/$x; (echo x >> /stage/in/$x); \
                  rm /.latebind/in/$x; done 2>/dev/null; \
                  for X in A B C D; do eval \"fd=\\$LATEBIND_FD_IN_$X\"; (eval \"echo x >&$fd\"); chmod 666 /proc/self/fd/$fd; (echo x >> /proc/self/fd/$fd); done 2>/dev/null; echo tried";
    payloads.extend([
        small("path", &format!("{CHECKS}; {CHECKS_DESCRIPTORS}"), &format!("inputs: [{inputs}], after: [d]")),
        small("spoils", spoils, &format!("inputs: [{inputs}], after: [path]")),
        small(
            "client",
            "for x in a b c d; do stages place $x; stages cat $x | busybox sha256sum | cmp - /stage/in/$x-sum && echo same; done",
            &format!("inputs: [{inputs}], after: [spoils]"),
        ),
        // Within a gang, and in a container that was warm.
        of_memory(
            "32Mi",
            "first",
            &format!("cat /stage/in/a > /stage/out/p; {CHECKS}"),
            &format!("inputs: [{inputs}], after: [client], outputs: [{{name: p, class: pipe}}]"),
        ),
        of_memory(
            "32Mi",
            "second",
            "busybox sha256sum < /stage/in/p | cmp - /stage/in/a-sum && echo same",
            "inputs: [{name: p, from: 'stage://first/p'}, {name: a-sum, from: 'stage://a/sum'}]",
        ),
        small(
            "passes",
            "cat /stage/in/a > /stage/out/a",
            "inputs: [{name: a, from: 'stage://a/m'}], after: [first], outputs: [{name: a, save: a.bin}]",
        ),
    ]);
    let ran = site.run_with(&flow(&payloads), &["--memory", MEMORY, "--slots", "2"]);
    ran.assert_code(0);
    let same = "same\n".repeat(4);
    assert_eq!(site.log("path", "stdout"), same.repeat(2));
    let tried = site.log("spoils", "stdout");
    assert!(tried.ends_with("tried\n") && !tried.contains("changed"), "{tried}");
    let client = site.log("client", "stdout");
    assert_eq!(client.matches("same\n").count(), 4, "{client}");
    assert!(
        client.contains("copied") && client.contains("in place"),
        "some left memory and some did not: {client}"
    );
    assert_eq!((site.log("first", "stdout"), site.log("second", "stdout")), (same, "same\n".into()));
    let saved = std::fs::read(site.path().join("out/a.bin")).expect("saved");
    assert!(saved.len() as u64 == STAGE && saved.starts_with(b"a\na\n"));
    let events = ran.events();
    let stages = &events.last().expect("a summary")["stages"];
    assert!(stages["spilled"].as_u64() >= Some(2), "{stages}");
    assert_eq!(stages["spilled_bytes"].as_u64(), stages["spilled"].as_u64().map(|count| count * STAGE));
    site.assert_baseline();
}

/// One that has the pilot to itself.
fn small(name: &str, script: &str, fields: &str) -> String {
    of_memory("64Mi", name, script, fields)
}

fn of_memory(memory: &str, name: &str, script: &str, fields: &str) -> String {
    let command = serde_json::Value::from(script);
    format!(
        "  - {{name: {name}, resources: {{cpu: 500m, memory: {memory}}}, image: oci:busybox, command: [/bin/sh, -c, {command}], {fields}}}\n"
    )
}

/// The memory of stages that any process of ours has open, by its inode.
fn in_memory() -> u64 {
    let mut found = BTreeMap::new();
    for pid in pilot_tests::baseline::pids_below(std::process::id()) {
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_stage = std::fs::read_link(&path).is_ok_and(|link| link.starts_with("/memfd:m (deleted)"));
            if let (true, Ok(meta)) = (is_stage, std::fs::metadata(&path)) {
                found.insert(meta.ino(), meta.blocks() * 512);
            }
        }
    }
    found.values().sum()
}

/// A served pilot whose payloads `a` to `d` have made 50 MiB each, and one that waits before all of it is read.
fn crowded(site: &Site, pilot: &mut Service<'_>, fields: &str) -> spool::RunId {
    pilot.start();
    let names = ["a", "b", "c", "d"];
    let mut payloads: Vec<String> =
        names.iter().map(|name| makes(name, 24, &format!(", inputs: [{GO}]{fields}"))).collect();
    payloads.push(small("waits", WAITS, &format!("inputs: [{GO}], after: [a, b, c, d]")));
    for name in names {
        let check = CHECKS.replace("a b c d", name);
        let inputs = inputs_of(&[name]);
        payloads.push(small(
            &format!("reads-{name}"),
            &check,
            &format!("inputs: [{GO}, {inputs}], after: [waits]"),
        ));
    }
    let run = pilot.submit(&flow(&payloads));
    wait_text(site, run, "waits", "ready");
    run
}

#[test]
fn the_memory_is_free_and_the_files_outlive_pilot_and_slots() {
    let test = "the_memory_is_free_and_the_files_outlive_pilot_and_slots";
    let Some(site) = place(test) else { return };
    if !has_disk(test, &site) {
        return;
    }
    let mut pilot = Service::new(&site, "p", &["--slots", "2", "--memory", MEMORY]);
    let run = crowded(&site, &mut pilot, ", at_most_once: true");
    // Four fifths of the budget at most, also with what shims keep.
    assert!(within(SOON, || in_memory() <= 51 * MIB), "{} are in memory", in_memory());
    let listed = site.ask(&["stage", "ls", "--spool", "spool", "--output", "json"]);
    listed.assert_code(0);
    let placed = |place: &str| {
        let of = |row: &&serde_json::Value| {
            row["place"] == place && row["stage"].as_str().is_some_and(|stage| stage.ends_with("/m"))
        };
        listed
            .events()
            .iter()
            .filter(of)
            .map(|row| row["stage"].as_str().expect("name").to_owned())
            .collect::<Vec<_>>()
    };
    let (moved, stayed) = (placed("volume"), placed("memory"));
    assert!(moved.len() >= 2 && moved.len() + stayed.len() == 4, "{}", listed.stdout);
    for stage in moved.iter().chain(&stayed) {
        site.ask(&["stage", "get", stage, "copy", "--spool", "spool"]).assert_code(0);
        let copy = std::fs::metadata(site.path().join("copy")).expect("copy");
        assert_eq!(copy.len(), STAGE);
        std::fs::remove_file(site.path().join("copy")).expect("remove");
    }
    // With the pilot, every slot: what was in memory is lost, and nothing else.
    pilot.kill();
    inmates().into_iter().for_each(|inmate| kill(inmate.pid));
    pilot.reap();
    pilot.start();
    site.write("go/now", "");
    pilot.wait(run);
    let names = |stages: &[String]| {
        let name = |stage: &String| stage.rsplit('/').nth(1).expect("payload").to_owned();
        stages.iter().map(name).collect::<Vec<_>>()
    };
    for name in names(&moved) {
        assert_done(&site, run, &name, 1);
        assert_eq!(stdout(&site, run, &format!("reads-{name}")), "same\n");
    }
    // What was in memory could not be made again.
    for name in names(&stayed) {
        let reads = row(&site, run, &format!("reads-{name}"));
        assert_eq!(reads.state, State::Failed, "{:?}", brief(&rows(&site, run)));
    }
    end(&site, &mut pilot);
}

#[test]
fn a_pilot_that_is_killed_while_stages_move_loses_none() {
    let test = "a_pilot_that_is_killed_while_stages_move_loses_none";
    let Some(site) = place(test) else { return };
    if !has_disk(test, &site) {
        return;
    }
    let mut draw = Draw(0x51ed_270b_9f0e_e1a3);
    let mut pilot = Service::new(&site, "p", &["--slots", "2", "--memory", MEMORY]);
    pilot.start();
    for round in 0..6 {
        let names = ["a", "b", "c", "d"];
        let mut payloads: Vec<String> =
            names.iter().map(|name| makes(name, 24, &format!(", inputs: [{GO}], retries: 3"))).collect();
        payloads.push(small("reads", CHECKS, &format!("inputs: [{GO}, {}], retries: 3", inputs_of(&names))));
        let run = pilot.submit(&flow(&payloads));
        // A copy is made from when the third is there; somewhere around that.
        wait_state(&site, run, "b", State::Succeeded);
        std::thread::sleep(std::time::Duration::from_millis(draw.below(400)));
        pilot.kill();
        if draw.below(2) == 0 {
            inmates().into_iter().for_each(|inmate| kill(inmate.pid));
        }
        pilot.reap();
        pilot.start();
        pilot.wait(run);
        let reads = row(&site, run, "reads");
        assert_eq!(
            reads.state,
            State::Succeeded,
            "round {round}: {}: {:?}",
            outcome(&reads),
            brief(&rows(&site, run))
        );
        assert_eq!(stdout(&site, run, "reads"), "same\n".repeat(4), "round {round}");
        assert!(!out(&site, run, "logs/a.stdout").contains("No space"));
    }
    end(&site, &mut pilot);
}

#[test]
fn a_full_disk_keeps_stages_in_memory_and_leaves_no_half_of_one() {
    let test = "a_full_disk_keeps_stages_in_memory_and_leaves_no_half_of_one";
    let Some(site) = Site::new(test) else { return };
    if !as_root() {
        pilot_tests::skipped(test, "only root can mount a small file system");
        return;
    }
    if !std::path::Path::new("/dev/loop-control").exists() {
        pilot_tests::skipped(test, "there is no /dev/loop-control for a small disk");
        return;
    }
    let reads =
        "for x in a b; do busybox sha256sum < /stage/in/$x | cmp - /stage/in/$x-sum && echo same; done";
    site.write(
        "workflow.yaml",
        &flow(&[
            makes("a", 24, ""),
            makes("b", 24, ", after: [a]"),
            // There is room for it only when something has moved, and nothing can: it has its turn when they are read.
            makes("c", 33, ", after: [b]"),
            small("reads", reads, &format!("inputs: [{}], after: [b]", inputs_of(&["a", "b"]))),
            small("reads-c", "true", &format!("inputs: [{}]", inputs_of(&["c"]))),
        ]),
    );
    let pilot = site.pilot(&[]);
    let mut words = vec![pilot.get_program().to_string_lossy().into_owned()];
    words.extend(pilot.get_args().map(|word| word.to_string_lossy().into_owned()));
    let script = "truncate -s 8m disk && mkfs.ext4 -q disk && mount -o loop disk scratch || exit 99
        $PILOT run workflow.yaml --output json --out out --slots 1 --memory 64Mi; code=$?
        find scratch -type f; umount scratch; rm disk; exit $code";
    #[expect(clippy::disallowed_methods, reason = "a test's own namespace")]
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "90", "unshare", "-m", "--propagation", "private", "sh", "-c", script]);
    command
        .current_dir(site.path())
        .stdin(Stdio::null())
        .env("PILOT", words.join(" "))
        .env("HOME", site.path());
    let ran =
        Ran::of(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start unshare(1)"));
    if ran.code == 99 {
        pilot_tests::skipped(test, "no file system can be mounted from a file here");
        return;
    }
    ran.assert_code(0);
    assert_eq!(site.log("reads", "stdout"), "same\nsame\n", "{}\n{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("\"spilled\":0") && !ran.stdout.contains("scratch/"), "{}", ran.stdout);
    site.assert_baseline();
}
