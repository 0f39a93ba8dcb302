//! Stopping: signals to the pilot at any moment, and a pilot that dies without a word.

use std::process::Child;
use std::time::Duration;

use pilot_tests::baseline::{descendants, pids_below, reap};
use pilot_tests::run::{Ran, SOON, Site, flow, good, sh, signal, within};
use rustix::process::Signal;

/// Saves its work when it is asked to end, and says so.
const SAVES: &str = "trap 'echo saved; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
/// Does not listen.
const DEAF: &str = "trap '' TERM INT HUP; echo ready; while :; do sleep 0.05; done";

/// Waits for the pilot's end; fails when it takes longer than it may.
fn ended(mut child: Child) -> Ran {
    let came = within(SOON, || matches!(child.try_wait(), Ok(Some(_))));
    if !came {
        let left = descendants(child.id());
        let _ = child.kill();
        panic!("the pilot did not end; still there: {left:?}");
    }
    Ran::of(child)
}

#[test]
fn an_interrupt_lets_payloads_save_their_work() {
    let Some(site) = Site::new("an_interrupt_lets_payloads_save_their_work") else { return };
    for (sent, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let child = site.start(&flow(&[sh("saves", SAVES, ""), sh("later", "true", "after: [saves]")]));
        site.wait_for("saves", "ready");
        signal(&child, sent);
        let ran = ended(child);
        ran.assert_code(code);
        assert_eq!(site.log("saves", "stdout"), "ready\nsaved\n");
        assert!(ran.outcome("saves").contains("the pilot stops"), "{}", ran.outcome("saves"));
        assert_eq!(ran.row("later")["state"], "not_run");
        assert!(ran.events_of("payload_started", "later").is_empty());
        std::fs::remove_dir_all(site.path().join("out")).expect("logs");
    }
    site.assert_baseline();
}

#[test]
fn a_second_interrupt_kills_what_does_not_listen() {
    let Some(site) = Site::new("a_second_interrupt_kills_what_does_not_listen") else { return };
    let child = site.start(&flow(&[sh("deaf", DEAF, "grace: 1h"), sh("saves", SAVES, "grace: 1h")]));
    site.wait_for("deaf", "ready");
    site.wait_for("saves", "ready");
    signal(&child, Signal::INT);
    // The first one was heard: the payload that listens has ended.
    site.wait_for("saves", "saved");
    signal(&child, Signal::INT);
    let ran = ended(child);
    ran.assert_code(130);
    assert!(ran.outcome("deaf").contains("the pilot stops"), "{}", ran.outcome("deaf"));
    site.assert_baseline();
}

#[test]
fn grace_ends_what_does_not_listen() {
    let Some(site) = Site::new("grace_ends_what_does_not_listen") else { return };
    let child = site.start(&flow(&[sh("deaf", DEAF, "grace: 300ms")]));
    site.wait_for("deaf", "ready");
    signal(&child, Signal::TERM);
    let ran = ended(child);
    ran.assert_code(143);
    assert!(ran.outcome("deaf").contains("signal 9"), "{}", ran.outcome("deaf"));
    site.assert_baseline();
}

#[test]
fn grace_begins_with_the_signal_however_long_the_payload_ran() {
    let Some(site) = Site::new("grace_begins_with_the_signal_however_long_the_payload_ran") else { return };
    let slow = "trap 'sleep 0.2; echo saved; exit 0' TERM; echo ready; i=0; while :; do sleep 0.1; i=$((i+1)); echo $i; done";
    let child = site.start(&flow(&[sh("slow", slow, "grace: 1s")]));
    // It has then run longer than its grace.
    site.wait_for("slow", "\n13\n");
    signal(&child, Signal::INT);
    ended(child).assert_code(130);
    assert!(site.log("slow", "stdout").ends_with("saved\n"), "{}", site.log("slow", "stdout"));
    site.assert_baseline();
}

#[test]
fn an_interrupt_at_any_moment_leaves_nothing() {
    let Some(site) = Site::new("an_interrupt_at_any_moment_leaves_nothing") else { return };
    let make = sh("make", "echo x > /stage/out/x; sleep 0.02", "count: 6, outputs: [{name: x, class: mem}]");
    let take = sh(
        "take",
        "cat /stage/in/x; sleep 5",
        "count: 6, grace: 200ms, inputs: [{name: x, from: 'stage://make/x', scatter: true}]",
    );
    let file = flow(&[make, take]);
    for delay in [0, 3, 8, 15, 25, 40, 60, 90, 140, 250] {
        let mut child = site.start(&file);
        // A moment that falls anywhere in reading, preparing, binding, running or committing.
        let early = within(Duration::from_millis(delay), || matches!(child.try_wait(), Ok(Some(_))));
        assert!(!early, "the pilot ended by itself");
        signal(&child, Signal::INT);
        let ran = ended(child);
        // Before the pilot listens the signal ends it as it would any program.
        assert!(ran.code == 130, "after {delay} ms: {} {}", ran.code, ran.stderr);
        let left = |name: &str| {
            std::fs::read_dir(site.path().join(name).join("pilots")).into_iter().flatten().count()
        };
        assert_eq!((left("state"), left("scratch")), (0, 0), "after {delay} ms");
        assert_eq!(descendants(std::process::id()).len(), 0, "after {delay} ms");
    }
    site.assert_baseline();
}

#[test]
fn an_interrupt_during_a_pause_between_tries_ends_the_pilot() {
    let Some(site) = Site::new("an_interrupt_during_a_pause_between_tries_ends_the_pilot") else { return };
    let child = site.start(&flow(&[
        sh("fails", "echo $(($(date +%s)))", "retries: 0"),
        sh("again", "echo ready; exit 1", "retries: 100"),
    ]));
    site.wait_for("again", "ready");
    signal(&child, Signal::INT);
    ended(child).assert_code(130);
    site.assert_baseline();
}

#[test]
fn what_a_killed_pilot_ran_is_gone_at_once_and_its_folders_with_the_next_run() {
    let test = "what_a_killed_pilot_ran_is_gone_at_once_and_its_folders_with_the_next_run";
    let Some(site) = Site::new(test) else { return };
    let child = site.start(&flow(&[
        sh("deaf", DEAF, ""),
        sh(
            "forks",
            "setsid sleep 1000 & trap '' TERM; echo ready; echo x > /stage/out/x; echo y > /work/y; wait",
            "outputs: [{name: x}]",
        ),
    ]));
    site.wait_for("deaf", "ready");
    site.wait_for("forks", "ready");
    let ran: Vec<u32> = pids_below(child.id()).into_iter().collect();
    // In each slot: PID 1, the payload, a sleep.
    assert!(ran.len() >= 6, "{:?}", descendants(child.id()));
    signal(&child, Signal::KILL);
    Ran::of(child).assert_code(137);
    let gone = within(Duration::from_secs(5), || {
        reap();
        descendants(std::process::id()).is_empty()
    });
    assert!(gone, "still there: {:?}", descendants(std::process::id()));
    for folder in ["state", "scratch"] {
        let left = std::fs::read_dir(site.path().join(folder).join("pilots")).expect("pilots").count();
        assert_eq!(left, 1, "a killed pilot can't remove its {folder} folder: what was this test about?");
    }
    let next = site.run(&flow(&[good()]));
    next.assert_code(0);
    next.assert_good(&site);
    // Its cgroups went too: what is there now is what was there before, or another suite's.
    site.assert_baseline();
}

#[test]
fn a_living_pilots_folders_are_left_alone_by_another() {
    let Some(site) = Site::new("a_living_pilots_folders_are_left_alone_by_another") else { return };
    let first = flow(&[sh(
        "first",
        "echo ready; while [ ! -e /stage/in/go/now ]; do sleep 0.02; done; echo x > /stage/out/x",
        "inputs: [{name: go, from: ./go}], outputs: [{name: x, save: first.txt}]",
    )]);
    std::fs::create_dir(site.path().join("go")).expect("mkdir");
    let child = site.start(&first);
    site.wait_for("first", "ready");
    let second = site.run(&flow(&[good()]));
    second.assert_code(0);
    second.assert_good(&site);
    site.write("go/now", "");
    ended(child).assert_code(0);
    assert_eq!(site.read("out/first.txt"), "x\n");
    site.assert_baseline();
}

#[test]
fn a_slot_whose_pid_1_dies_is_lost_and_the_payload_is_tried_again() {
    let Some(site) = Site::new("a_slot_whose_pid_1_dies_is_lost_and_the_payload_is_tried_again") else {
        return;
    };
    std::fs::create_dir(site.path().join("go")).expect("mkdir");
    let script = "echo ready; while [ ! -e /stage/in/go/now ]; do sleep 0.02; done; echo done";
    let go = "inputs: [{name: go, from: ./go}]";
    let child = site.start(&flow(&[
        sh("lost", script, go),
        sh("once", script, &format!("at_most_once: true, {go}")),
        good(),
    ]));
    site.wait_for("lost", "ready");
    site.wait_for("once", "ready");
    let shims: Vec<u32> = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id()))
        .map(|_| pids_below(child.id()))
        .expect("children")
        .into_iter()
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
                status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
            })
        })
        .collect();
    assert_eq!(shims.len(), 2);
    for pid in shims {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("pid")).expect("pid");
        rustix::process::kill_process(pid, Signal::KILL).expect("kill");
    }
    // The second try finds this and ends at once.
    site.write("go/now", "");
    let ran = ended(child);
    ran.assert_code(1);
    ran.assert_good(&site);
    ran.assert_done("lost");
    assert_eq!(ran.row("lost")["tries"], 2);
    assert_eq!(ran.row("once")["tries"], 1);
    assert_eq!(ran.row("once")["state"], "failed");
    site.assert_baseline();
}
