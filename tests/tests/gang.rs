//! Payloads that run together: pipes and memory between unmodified programs, and what becomes of all when one does not do well.

use std::process::Command;

use image_store::layout::{Compression, ImageSpec, LayerBuilder};
use pilot_tests::chaos::{Service, inmates, kill, row, stdout, wait_text};
use pilot_tests::images::{busybox_image, busybox_layer, image, shell};
use pilot_tests::run::{Ran, SOON, Site, flow, payload, sh, signal, within};
use rustix::process::Signal;
use spool::State;

const PIPE: &str = "outputs: [{name: x, class: pipe}]";
const READS: &str = "inputs: [{name: y, from: 'stage://a/x'}]";
const SLOTS: [&str; 2] = ["--slots", "3"];

fn place(test: &str) -> Option<Site> {
    Site::new(test)
}

/// Runs a workflow of these payloads on three slots.
fn run(site: &Site, payloads: &[String]) -> Ran {
    site.run_with(&flow(payloads), &SLOTS)
}

fn because(name: &str) -> String {
    format!("ended with its gang, because \"{name}\" did not succeed")
}

#[test]
fn three_programs_in_three_images_make_a_pipeline() {
    let Some(site) = place("three_programs_in_three_images_make_a_pipeline") else { return };
    for name in ["one", "two", "three"] {
        let spec = ImageSpec { env: vec![format!("IMAGE={name}")], ..shell() };
        busybox_image(&site.path().join(name), &spec).expect("image");
    }
    let with = |name: &str, script: &str, fields: &str| {
        payload(name, &format!("image: oci:{name}, command: [/bin/sh, -c, '{script}'], {fields}"))
    };
    let ran = run(
        &site,
        &[
            with(
                "one",
                "{ seq 1 3000; seq 1 3000; } > /stage/out/numbers; echo $IMAGE",
                "outputs: [{name: numbers, class: pipe}]",
            ),
            with(
                "two",
                "busybox sort -n /stage/in/unsorted > /stage/out/sorted; echo $IMAGE",
                "inputs: [{name: unsorted, from: \"stage://one/numbers\"}], outputs: [{name: sorted, class: pipe}]",
            ),
            with(
                "three",
                "busybox uniq -c < /stage/in/sorted | awk \"{n += \\$1 == 2} END {print n}\" > /stage/out/twice",
                "inputs: [{name: sorted, from: \"stage://two/sorted\"}], outputs: [{name: twice, save: twice.txt}]",
            ),
        ],
    );
    ran.assert_code(0);
    assert_eq!(site.read("out/twice.txt"), "3000\n");
    assert_eq!((site.log("one", "stdout"), site.log("two", "stdout")), ("one\n".into(), "two\n".into()));
    site.assert_baseline();
}

#[test]
fn a_gibibyte_goes_through_a_pipe_without_growth_of_memory_or_disk() {
    let Some(site) = place("a_gibibyte_goes_through_a_pipe_without_growth_of_memory_or_disk") else { return };
    let small = |name: &str, script: &str, fields: &str| {
        format!(
            "  - {{name: {name}, resources: {{cpu: 500m, memory: 64Mi, disk: 1Mi}}, image: oci:busybox, \
             command: [/bin/sh, -c, '{script}'], {fields}}}\n"
        )
    };
    let ran = run(
        &site,
        &[
            small("a", "dd if=/dev/zero of=/stage/out/x bs=1M count=1024", PIPE),
            small("b", "wc -c < /stage/in/y", READS),
        ],
    );
    ran.assert_code(0);
    assert_eq!(site.log("b", "stdout"), format!("{}\n", 1 << 30));
    for name in ["a", "b"] {
        let peak = ran.row(name)["figures"]["memory_peak_bytes"].as_u64().expect("a peak");
        assert!(peak < 48 << 20, "{name} had {peak} bytes");
    }
    site.assert_baseline();
}

#[test]
fn a_consumer_that_ends_early_gives_its_producer_the_signal_that_a_shell_would() {
    let Some(site) = place("a_consumer_that_ends_early_gives_its_producer_the_signal_that_a_shell_would")
    else {
        return;
    };
    let takes = sh("b", "head -n 1 /stage/in/y", READS);
    let ran = run(&site, &[sh("a", "exec yes > /stage/out/x", PIPE), takes.clone()]);
    ran.assert_failed("a", &["signal 13"]);
    ran.assert_failed("b", &[&because("a")]);
    assert_eq!(site.log("b", "stdout"), "y\n");
    // One that expects it says so.
    let ran = run(&site, &[sh("a", "yes > /stage/out/x; echo $?", PIPE), takes]);
    ran.assert_code(0);
    assert_eq!(site.log("a", "stdout"), "141\n");
    site.assert_baseline();
}

#[test]
fn nobody_waits_for_an_end_of_a_pipe_that_is_never_opened() {
    let Some(site) = place("nobody_waits_for_an_end_of_a_pipe_that_is_never_opened") else { return };
    let ran = run(&site, &[sh("a", "true", PIPE), sh("b", "wc -c < /stage/in/y", READS)]);
    ran.assert_code(0);
    assert_eq!(site.log("b", "stdout"), "0\n");
    let ran = run(&site, &[sh("a", "sleep 0.5; yes > /stage/out/x; echo $?", PIPE), sh("b", "true", READS)]);
    ran.assert_code(0);
    assert_eq!(site.log("a", "stdout"), "141\n");
    site.assert_baseline();
}

#[test]
fn a_producer_that_is_killed_ends_its_gang_and_is_named() {
    let Some(site) = place("a_producer_that_is_killed_ends_its_gang_and_is_named") else { return };
    let ran = run(
        &site,
        &[
            sh("a", "exec 3> /stage/out/x; echo part >&3; kill -9 $$", PIPE),
            sh("b", "cat /stage/in/y; sleep 40", READS),
            sh("c", "echo never", "after: [b]"),
        ],
    );
    ran.assert_code(1);
    ran.assert_failed("a", &["signal 9"]);
    ran.assert_failed("b", &[&because("a")]);
    assert_eq!(ran.row("c")["state"], "not_run");
    assert_eq!(ran.end_of("b")["because"], "a");
    // Its shell may be gone before what it started: then that is said, too.
    let outcome = ran.row("b")["outcome"].as_str().unwrap_or_default().to_owned();
    assert!(outcome.starts_with(&because("a")), "{outcome}");
    site.assert_baseline();
}

#[test]
fn a_gang_that_is_interrupted_leaves_nothing() {
    let Some(site) = place("a_gang_that_is_interrupted_leaves_nothing") else { return };
    let pilot = site.start(&flow(&[
        sh(
            "a",
            "exec 3> /stage/out/x; echo ready; sleep 40",
            "outputs: [{name: x, class: pipe}, {name: s, class: shared, max_size: 1Mi}]",
        ),
        sh(
            "b",
            "exec cat /stage/in/y",
            "inputs: [{name: y, from: 'stage://a/x'}, {name: s, from: 'stage://a/s'}]",
        ),
    ]));
    site.wait_for("a", "ready");
    signal(&pilot, Signal::INT);
    Ran::of(pilot).assert_code(130);
    site.assert_baseline();
}

#[test]
fn an_image_that_is_missing_lets_none_start() {
    let Some(site) = place("an_image_that_is_missing_lets_none_start") else { return };
    let absent = payload("b", &format!("image: oci:absent, {READS}"));
    let ran = run(&site, &[sh("a", "echo started > /stage/out/x", PIPE), absent]);
    ran.assert_code(1);
    ran.assert_failed("b", &["absent"]);
    ran.assert_failed("a", &[&because("b")]);
    assert_eq!(ran.events_of("payload_started", "a"), Vec::<serde_json::Value>::new());
    site.assert_baseline();
}

#[test]
fn more_payloads_than_slots_are_told_in_one_line() {
    let Some(site) = place("more_payloads_than_slots_are_told_in_one_line") else { return };
    let shares = "inputs: [{name: y, from: 'stage://a/x'}]";
    let mut payloads = vec![sh("a", "true", "outputs: [{name: x, class: shared, max_size: 4Ki}]")];
    payloads.extend(["b", "c", "d"].map(|name| sh(name, "true", shares)));
    payloads.push(pilot_tests::run::good());
    let ran = run(&site, &payloads);
    ran.assert_code(1);
    ran.assert_failed("a", &["its gang needs 4 slots", "the pilot's 3", "give the pilot more"]);
    for name in ["b", "c", "d"] {
        ran.assert_failed(name, &[&because("a")]);
    }
    ran.assert_good(&site);
    site.assert_baseline();
}

#[test]
fn two_gangs_at_once_on_three_slots_both_come_to_their_end() {
    let Some(site) = place("two_gangs_at_once_on_three_slots_both_come_to_their_end") else { return };
    let reads = |from: &str| format!("inputs: [{{name: y, from: 'stage://{from}/x'}}]");
    let mut payloads = Vec::new();
    for (a, b) in [("a", "b"), ("c", "d"), ("e", "f")] {
        payloads.push(sh(a, "seq 1 1000 > /stage/out/x", PIPE));
        payloads.push(sh("single", "sleep 0.2", "").replace("single", &format!("single-{a}")));
        payloads.push(sh(b, "wc -l < /stage/in/y", &reads(a)));
    }
    let ran = run(&site, &payloads);
    ran.assert_code(0);
    for name in ["b", "d", "f"] {
        assert_eq!(site.log(name, "stdout"), "1000\n");
    }
    site.assert_baseline();
}

#[test]
fn a_gang_is_tried_again_whole_and_what_comes_after_waits_for_all_of_it() {
    let Some(site) = place("a_gang_is_tried_again_whole_and_what_comes_after_waits_for_all_of_it") else {
        return;
    };
    std::fs::create_dir(site.path().join("go")).expect("mkdir");
    let go = "inputs: [{name: y, from: 'stage://a/x'}, {name: go, from: ./go}], retries: 1";
    // The first time it fails after its producer, which it holds up, has succeeded.
    let once = "cat /stage/in/y; [ -e /stage/in/go/now ] || { echo ready; while [ ! -e /stage/in/go/now ]; do sleep 0.05; done; exit 3; }";
    let workflow = flow(&[
        sh(
            "a",
            "echo again > /stage/out/x; echo f > /stage/out/f",
            "outputs: [{name: x, class: pipe}, {name: f}]",
        ),
        sh("b", once, go),
        sh("c", "cat /stage/in/f", "inputs: [{name: f, from: 'stage://a/f'}]"),
    ]);
    let pilot = site.start(&workflow);
    site.wait_for("b", "ready");
    assert_eq!(site.log("c", "stdout"), "", "what a gang made is there when all of it has succeeded");
    site.write("go/now", "");
    let ran = Ran::of(pilot);
    ran.assert_code(0);
    let tries = |name: &str| ran.events_of("payload_ended", name).len();
    assert_eq!((tries("a"), tries("b"), tries("c")), (2, 2, 1));
    assert_eq!((site.log("b", "stdout"), site.log("c", "stdout")), ("again\n".into(), "f\n".into()));
    site.assert_baseline();
}

/// One writes a number and waits for the answer, the other answers; both look whether the size can be changed.
const PAIR: &str = r#"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int count, char **words) {
    int fd = open(words[2], O_RDWR);
    struct stat stat;
    if (fd < 0 || fstat(fd, &stat)) return 2;
    volatile unsigned *grid = mmap(NULL, stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (grid == MAP_FAILED) return 3;
    unsigned asks = !strcmp(words[1], "ask");
    unsigned last = stat.st_size / sizeof *grid - 1;
    for (unsigned n = 1; n <= 10000; n++) {
        unsigned mine = 2 * n - asks, theirs = mine - 1;
        while (__atomic_load_n(&grid[0], __ATOMIC_ACQUIRE) != theirs) usleep(0);
        grid[last - asks] = n;
        __atomic_store_n(&grid[0], mine, __ATOMIC_RELEASE);
    }
    while (asks && __atomic_load_n(&grid[0], __ATOMIC_ACQUIRE) != 20000) usleep(0);
    printf("size %ld others %u shrink %s\n", (long)stat.st_size, grid[last - !asks],
           ftruncate(fd, 0) ? strerror(errno) : "done");
    return 0;
}
"#;

fn paired(test: &str) -> Option<Site> {
    let site = place(test)?;
    let (source, program) = (site.write("pair.c", PAIR), site.path().join("pair"));
    #[expect(clippy::disallowed_methods, reason = "the compiler that ./build needs, too")]
    let made = Command::new("cc").args(["-static", "-O1", "-w", "-o"]).arg(&program).arg(&source).output();
    match made {
        Ok(output) if output.status.success() => {}
        other => {
            pilot_tests::skipped(test, &format!("no C compiler with a static library: {other:?}"));
            return None;
        }
    }
    let layer = busybox_layer(LayerBuilder::new()).expect("busybox");
    let layer = layer.file("bin/pair", 0o755, std::fs::read(program).expect("pair"));
    image(&site.path().join("pair-image"), &shell(), vec![layer.finish(Compression::None).expect("layer")])
        .expect("image");
    Some(site)
}

fn pair(name: &str, command: &str, fields: &str) -> String {
    payload(name, &format!("image: oci:pair-image, command: {command}, {fields}"))
}

#[test]
fn two_payloads_shake_hands_in_shared_memory_whose_size_neither_can_change() {
    let Some(site) = paired("two_payloads_shake_hands_in_shared_memory_whose_size_neither_can_change") else {
        return;
    };
    let ran = run(
        &site,
        &[
            pair("a", "[pair, ask, /stage/out/x]", "outputs: [{name: x, class: shared, max_size: 3Mi}]"),
            pair("b", "[pair, answer, /stage/in/y]", READS),
        ],
    );
    ran.assert_code(0);
    let said = format!("size {} others 10000 shrink Operation not permitted\n", 3 << 20);
    assert_eq!((site.log("a", "stdout"), site.log("b", "stdout")), (said.clone(), said));
    site.assert_baseline();
}

#[test]
fn shared_memory_beyond_the_budget_lets_none_start() {
    let Some(site) = place("shared_memory_beyond_the_budget_lets_none_start") else { return };
    let ran = site.run_with(
        &flow(&[
            sh("a", "echo started", "outputs: [{name: x, class: shared, max_size: 2Gi}]"),
            sh("b", "echo started", READS),
        ]),
        &["--slots", "3", "--memory", "512Mi"],
    );
    ran.assert_code(1);
    ran.assert_failed("a", &["max_size"]);
    ran.assert_failed("b", &["gang"]);
    assert_eq!((site.log("a", "stdout"), site.log("b", "stdout")), (String::new(), String::new()));
    site.assert_baseline();
}

#[test]
fn a_gang_outlives_its_pilot_and_its_pipe_still_lets_go() {
    let Some(site) = place("a_gang_outlives_its_pilot_and_its_pipe_still_lets_go") else { return };
    std::fs::create_dir(site.path().join("go")).expect("mkdir");
    let mut pilot = Service::new(&site, "p", &SLOTS);
    pilot.start();
    let waits = "echo ready; while [ ! -e /stage/in/go/now ]; do sleep 0.02; done";
    let go = "{name: go, from: ./go}";
    let run = pilot.submit(&flow(&[
        // It never opens its second pipe, so that the pilot that comes has to let the reader go.
        sh(
            "a",
            &format!("exec 3> /stage/out/x; echo before >&3; {waits}; echo after >&3"),
            &format!("inputs: [{go}], outputs: [{{name: x, class: pipe}}, {{name: z, class: pipe}}]"),
        ),
        sh(
            "b",
            "echo ready; cat /stage/in/y /stage/in/z",
            "inputs: [{name: y, from: 'stage://a/x'}, {name: z, from: 'stage://a/z'}]",
        ),
    ]));
    wait_text(&site, run, "a", "ready\n");
    wait_text(&site, run, "b", "ready\nbefore\n");
    pilot.kill();
    assert_eq!(pilot.start(), 2);
    site.write("go/now", "");
    pilot.wait(run);
    for name in ["a", "b"] {
        let row = row(&site, run, name);
        assert_eq!((row.state, row.attempt), (State::Succeeded, 1), "{row:?}");
    }
    assert_eq!(stdout(&site, run, "b"), "ready\nbefore\nafter\n");
    pilot.stop().assert_code(0);
    pilot.reap();
    site.assert_baseline();
}

#[test]
fn a_gang_of_which_one_died_with_its_pilot_is_run_again_whole() {
    let Some(site) = place("a_gang_of_which_one_died_with_its_pilot_is_run_again_whole") else { return };
    std::fs::create_dir(site.path().join("go")).expect("mkdir");
    let mut pilot = Service::new(&site, "p", &SLOTS);
    pilot.start();
    let waits = "while [ ! -e /stage/in/go/now ]; do sleep 0.02; done";
    let run = pilot.submit(&flow(&[
        sh(
            "a",
            &format!("echo ready; {waits}; echo done > /stage/out/x"),
            "inputs: [{name: go, from: ./go}], outputs: [{name: x, class: pipe}]",
        ),
        sh("b", "echo ready; cat /stage/in/y", READS),
    ]));
    wait_text(&site, run, "a", "ready\n");
    wait_text(&site, run, "b", "ready\n");
    pilot.kill();
    let lost = inmates().into_iter().filter(|inmate| inmate.inner == 1).max_by_key(|inmate| inmate.pid);
    kill(lost.expect("a shim").pid);
    assert_eq!(pilot.start(), 0, "what is left of a gang is of no use");
    site.write("go/now", "");
    pilot.wait(run);
    for name in ["a", "b"] {
        let row = row(&site, run, name);
        assert_eq!((row.state, row.attempt), (State::Succeeded, 2), "{row:?}");
    }
    assert!(within(SOON, || stdout(&site, run, "b").ends_with("done\n")), "{}", stdout(&site, run, "b"));
    pilot.stop().assert_code(0);
    pilot.reap();
    site.assert_baseline();
}
