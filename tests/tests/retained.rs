//! What becomes of stages when the pilot that holds them is killed: files lie where they lay, memory is where the shim of the slot that
//! made it has kept it, and what is lost is made again.

use pilot_tests::chaos::{
    Service, assert_done, brief, end, inmates, kill, out, outcome, place, row, rows, stdout, wait_state,
    wait_text,
};
use pilot_tests::run::{SOON, Site, flow, sh, within};
use spool::State;

/// Runs until it is let go.
const WAITS: &str = "echo ready; while [ ! -e /stage/in/go/now ]; do sleep 0.02; done";
/// All that have it follow each other in one container: what is mounted is the same.
const GO: &str = "{name: go, from: ./go}";

/// One whose image has the program `stages`.
fn place_with_clients(test: &str) -> Option<Site> {
    let site = place(test)?;
    site.add_clients(test).then_some(site)
}

/// A payload that mounts what all here mount, with these inputs besides.
fn payload(name: &str, script: &str, inputs: &str, fields: &str) -> String {
    sh(name, script, &format!("inputs: [{GO}{inputs}], {fields}"))
}

const MEMORY: &str = "outputs: [{name: m, class: mem, max_size: 1Mi}]";

#[test]
fn memory_and_values_outlive_their_pilot_in_the_slot_that_made_them() {
    let Some(site) = place("memory_and_values_outlive_their_pilot_in_the_slot_that_made_them") else {
        return;
    };
    let mut pilot = Service::new(&site, "p", &["--slots", "2"]);
    pilot.start();
    let run = pilot.submit(&flow(&[
        payload(
            "makes",
            "echo memory > /stage/out/m; : > /stage/out/empty; echo value > /stage/out/v; echo file > /stage/out/f",
            "",
            "outputs: [{name: m, class: mem, max_size: 1Mi}, {name: empty, class: mem, max_size: 1Mi}, \
             {name: v, class: value}, {name: f}]",
        ),
        payload("once", "echo once > /stage/out/m", "", &format!("at_most_once: true, {MEMORY}")),
        payload("waits", WAITS, "", ""),
        payload(
            "reads",
            "cat /stage/in/m /stage/in/empty /stage/in/v /stage/in/f /stage/in/once",
            ", {name: m, from: 'stage://makes/m'}, {name: empty, from: 'stage://makes/empty'}, \
             {name: v, from: 'stage://makes/v'}, {name: f, from: 'stage://makes/f'}, \
             {name: once, from: 'stage://once/m'}",
            "after: [waits]",
        ),
    ]));
    wait_text(&site, run, "waits", "ready");
    for name in ["makes", "once"] {
        wait_state(&site, run, name, State::Succeeded);
    }
    // Twice: what was taken up again is kept again, too.
    for _ in 0..2 {
        pilot.kill();
        assert_eq!(pilot.start(), 1);
    }
    site.write("go/now", "");
    pilot.wait(run);
    for name in ["makes", "once", "waits", "reads"] {
        assert_done(&site, run, name, 1);
    }
    assert_eq!(stdout(&site, run, "reads"), "memory\nvalue\nfile\nonce\n");
    end(&site, &mut pilot);
}

#[test]
fn a_payload_that_writes_memory_goes_on_when_its_pilot_is_killed() {
    let Some(site) = place("a_payload_that_writes_memory_goes_on_when_its_pilot_is_killed") else { return };
    let mut pilot = Service::new(&site, "p", &[]);
    pilot.start();
    let script =
        format!("echo -n m > /stage/out/m; echo v > /stage/out/v; {WAITS}; echo ore >> /stage/out/m");
    let outputs = |name: &str| {
        format!(
            "outputs: [{{name: m, class: mem, max_size: 1Mi, save: {name}-m}}, {{name: v, class: value, save: {name}-v}}]"
        )
    };
    let run = pilot.submit(&flow(&[
        payload("make", &script, "", &outputs("make")),
        payload("once", &script, "", &format!("at_most_once: true, {}", outputs("once"))),
    ]));
    wait_text(&site, run, "make", "ready");
    wait_text(&site, run, "once", "ready");
    for _ in 0..2 {
        pilot.kill();
        assert_eq!(pilot.start(), 2);
    }
    pilot.kill();
    site.write("go/now", "");
    // One is started while they may have ended already.
    pilot.start();
    pilot.wait(run);
    for name in ["make", "once"] {
        assert_done(&site, run, name, 1);
        assert_eq!(out(&site, run, &format!("{name}-m")), "more\n");
        assert_eq!(out(&site, run, &format!("{name}-v")), "v\n");
    }
    end(&site, &mut pilot);
}

#[test]
fn clients_go_on_with_the_next_life_of_their_pilot() {
    let Some(site) = place_with_clients("clients_go_on_with_the_next_life_of_their_pilot") else { return };
    let mut pilot = Service::new(&site, "p", &["--slots", "5", "--cpu", "8"]);
    pilot.start();
    let run = pilot.submit(&flow(&[
        payload(
            "made",
            "stages make m 100000; stages put v text",
            "",
            "outputs: [{name: m, class: mem, max_size: 1Mi}, {name: v, class: value}]",
        ),
        payload("makes", &format!("{WAITS}; stages make m 1000"), "", MEMORY),
        payload(
            "once",
            &format!("{WAITS}; stages make m 1000 && stages put v 42"),
            "",
            "at_most_once: true, outputs: [{name: m, class: mem, max_size: 1Mi}, {name: v, class: value}]",
        ),
        payload(
            "opens",
            &format!("{WAITS}; stages place m && stages cat m | wc -c && stages cat v"),
            ", {name: m, from: 'stage://made/m'}, {name: v, from: 'stage://made/v'}",
            "at_most_once: true",
        ),
        // Where a client is may matter to nobody: this one has no output but what it writes by path.
        payload("fails", &format!("{WAITS}; exit 3"), "", "outputs: [{name: f}]"),
        payload(
            "reads",
            "cat /stage/in/m | wc -c; wc -c < /stage/in/other; cat /stage/in/v; stages cat w",
            ", {name: m, from: 'stage://made/m'}, {name: v, from: 'stage://made/v'}, \
             {name: other, from: 'stage://makes/m'}, {name: w, from: 'stage://once/v'}",
            "",
        ),
    ]));
    for name in ["makes", "once", "fails"] {
        wait_text(&site, run, name, "ready");
    }
    wait_state(&site, run, "made", State::Succeeded);
    wait_text(&site, run, "opens", "ready");
    // Twice: whoever was adopted is adopted again.
    for _ in 0..2 {
        pilot.kill();
        assert_eq!(pilot.start(), 4);
    }
    site.write("go/now", "");
    pilot.wait(run);
    for name in ["made", "makes", "once", "opens", "reads"] {
        assert_done(&site, run, name, 1);
    }
    let fails = row(&site, run, "fails");
    assert_eq!((fails.state, fails.attempt), (State::Failed, 1), "{}", outcome(&fails));
    assert_eq!(stdout(&site, run, "opens"), "ready\nin place\n100000\ntext");
    assert_eq!(stdout(&site, run, "reads"), "100000\n1000\ntext42");
    end(&site, &mut pilot);
}

#[test]
fn what_a_client_had_committed_when_its_pilot_was_killed_is_made_again() {
    let test = "what_a_client_had_committed_when_its_pilot_was_killed_is_made_again";
    let Some(site) = place_with_clients(test) else { return };
    let mut pilot = Service::new(&site, "p", &["--slots", "3", "--cpu", "8"]);
    pilot.start();
    let two = "outputs: [{name: m, class: mem, max_size: 1Mi}, {name: n, class: mem, max_size: 1Mi}]";
    // Of no account of its own: neither has a retry.
    let script = format!("stages make m 1000; {WAITS}; stages make n 10");
    let run = pilot.submit(&flow(&[
        payload("makes", &script, "", two),
        payload("once", &script, "", &format!("at_most_once: true, {two}")),
        payload(
            "reads",
            "wc -c < /stage/in/m; wc -c < /stage/in/n",
            ", {name: m, from: 'stage://makes/m'}, {name: n, from: 'stage://makes/n'}",
            "",
        ),
    ]));
    wait_text(&site, run, "makes", "ready");
    wait_text(&site, run, "once", "ready");
    pilot.kill();
    assert_eq!(pilot.start(), 2);
    site.write("go/now", "");
    pilot.wait(run);
    assert_done(&site, run, "makes", 2);
    let once = row(&site, run, "once");
    assert_eq!((once.state, once.attempt), (State::Failed, 1));
    assert!(outcome(&once).contains("its pilot was started again"), "{}", outcome(&once));
    assert_eq!(stdout(&site, run, "reads"), "1000\n10\n");
    end(&site, &mut pilot);
}

#[test]
fn memory_whose_slot_was_bound_anew_is_made_again_and_files_are_not() {
    let Some(site) = place("memory_whose_slot_was_bound_anew_is_made_again_and_files_are_not") else {
        return;
    };
    // One slot; what waits in it mounts something else, so that it gets another container.
    let mut pilot = Service::new(&site, "p", &["--slots", "1"]);
    pilot.start();
    let run = pilot.submit(&flow(&[
        sh("file", "echo f$LATEBIND_INDEX > /stage/out/f", "count: 2, outputs: [{name: f}]"),
        sh("memory", "echo m > /stage/out/m", &format!("retries: 1, {MEMORY}")),
        payload("waits", WAITS, "", ""),
        sh("reads-files", "cat /stage/in/f-*", "inputs: [{name: f, from: 'stage://file/f'}], after: [waits]"),
        sh("reads", "cat /stage/in/m", "inputs: [{name: m, from: 'stage://memory/m'}], after: [waits]"),
    ]));
    wait_text(&site, run, "waits", "ready");
    pilot.kill();
    assert_eq!(pilot.start(), 1);
    site.write("go/now", "");
    pilot.wait(run);
    for (name, tries) in [("file-0", 1), ("file-1", 1), ("memory", 2), ("reads-files", 1), ("reads", 1)] {
        assert_done(&site, run, name, tries);
    }
    assert_eq!(
        (stdout(&site, run, "reads-files"), stdout(&site, run, "reads")),
        ("f0\nf1\n".into(), "m\n".into())
    );
    end(&site, &mut pilot);
}

#[test]
fn what_is_lost_again_and_again_comes_to_an_end_with_its_producers_retries() {
    let test = "what_is_lost_again_and_again_comes_to_an_end_with_its_producers_retries";
    let Some(site) = place(test) else { return };
    let mut pilot = Service::new(&site, "p", &["--slots", "2"]);
    pilot.start();
    let memory = |name: &str| format!(", {{name: m, from: 'stage://{name}/m'}}");
    let run = pilot.submit(&flow(&[
        payload("makes", "echo m > /stage/out/m", "", &format!("retries: 2, {MEMORY}")),
        payload(
            "passes",
            "cat /stage/in/m > /stage/out/m",
            &memory("makes"),
            &format!("retries: 1, {MEMORY}"),
        ),
        payload("waits", WAITS, "", ""),
        payload("reads", "cat /stage/in/m", &memory("passes"), "after: [waits]"),
    ]));
    for tries in 1..=2 {
        let made = within(SOON, || {
            let row = row(&site, run, "passes");
            (row.state, row.attempt) == (State::Succeeded, tries)
        });
        assert!(made, "{:?}", brief(&rows(&site, run)));
        // The one who waits is disrupted, which is not counted.
        wait_text(&site, run, "waits", "ready");
        pilot.kill();
        inmates().into_iter().for_each(|inmate| kill(inmate.pid));
        pilot.reap();
        pilot.start();
    }
    site.write("go/now", "");
    pilot.wait(run);
    // Its stage was there no more for the first reader, and nobody wanted it after that.
    assert_done(&site, run, "makes", 2);
    assert_done(&site, run, "passes", 2);
    let reads = row(&site, run, "reads");
    assert_eq!((reads.state, reads.attempt), (State::Failed, 0));
    assert!(outcome(&reads).contains("passes has no retry left"), "{}", outcome(&reads));
    end(&site, &mut pilot);
}

#[test]
fn what_nobody_reads_any_more_is_forgotten_by_the_shim_that_kept_it() {
    let Some(site) = place("what_nobody_reads_any_more_is_forgotten_by_the_shim_that_kept_it") else {
        return;
    };
    let mut pilot = Service::new(&site, "p", &["--slots", "2"]);
    pilot.start();
    let run = pilot.submit(&flow(&[
        payload("makes", "echo memory > /stage/out/m", "", MEMORY),
        payload("waits", WAITS, "", ""),
        payload("reads", "cat /stage/in/m", ", {name: m, from: 'stage://makes/m'}", "after: [waits]"),
    ]));
    wait_text(&site, run, "waits", "ready");
    wait_state(&site, run, "makes", State::Succeeded);
    let kept = || {
        let shims = inmates().into_iter().filter(|inmate| inmate.inner == 1);
        let links = shims.flat_map(|shim| {
            std::fs::read_dir(format!("/proc/{}/fd", shim.pid)).into_iter().flatten().flatten()
        });
        links
            .filter(|entry| {
                std::fs::read_link(entry.path()).is_ok_and(|link| link.starts_with("/memfd:m (deleted)"))
            })
            .count()
    };
    assert!(within(SOON, || kept() == 1), "its shim keeps it: {}", kept());
    // Also by one that was met again.
    pilot.kill();
    pilot.start();
    site.write("go/now", "");
    pilot.wait(run);
    assert_done(&site, run, "makes", 1);
    assert!(within(SOON, || kept() == 0), "{} shims still have it", kept());
    // And the shim that keeps it may go first.
    let again = pilot.submit(&flow(&[payload("makes", "echo memory > /stage/out/m", "", MEMORY)]));
    pilot.wait(again);
    inmates().into_iter().filter(|inmate| inmate.inner == 1).for_each(|shim| kill(shim.pid));
    end(&site, &mut pilot);
}
