//! A pilot that serves is killed, and the next one of its name goes on: what runs is adopted, what ended is reported, what is
//! gone is run again or lost, as its spec says.

use std::time::Duration;

use pilot_tests::baseline::descendants;
use pilot_tests::chaos::{
    Inmate, Service, assert_done, brief, end, files, inmates, kill, out, outcome, place, row, rows, stdout,
    submit, wait_state, wait_text,
};
use pilot_tests::run::{SOON, Site, flow, sh, within};
use rustix::process::Signal;
use spool::{Row, RunId, State};

/// Runs until it is let go.
const WAITS: &str = "echo ready; while [ ! -e /stage/in/go/now ]; do sleep 0.02; done; echo done";
const GO: &str = "inputs: [{name: go, from: ./go}]";
/// Saves its work when it is asked to end, and says so.
const SAVES: &str = "trap 'echo saved; exit 0' TERM; echo ready; while :; do sleep 0.05; done";

/// The processes of payloads, with neither shim nor holder.
fn programs() -> Vec<Inmate> {
    inmates().into_iter().filter(|inmate| !inmate.is_ours()).collect()
}

fn shims() -> Vec<Inmate> {
    inmates().into_iter().filter(|inmate| inmate.inner == 1).collect()
}

#[test]
fn what_runs_goes_on_when_its_pilot_is_killed_and_started_again() {
    let Some(site) = place("what_runs_goes_on_when_its_pilot_is_killed_and_started_again") else { return };
    let mut pilot = Service::new(&site, "p", &[]);
    assert_eq!(pilot.start(), 0);
    let speaks = "echo ready; while [ ! -e /stage/in/go/now ]; do sleep 0.02; done; echo gap; \
        yes | head -c 300000; echo >&2 late; echo kept > /stage/out/x; exit 0";
    let run = pilot.submit(&flow(&[
        sh("speaks", speaks, &format!("outputs: [{{name: x, save: x.txt}}], {GO}")),
        sh("fails", &format!("{WAITS}; exit 7"), GO),
    ]));
    wait_text(&site, run, "speaks", "ready\n");
    wait_text(&site, run, "fails", "ready\n");
    pilot.kill();
    // What a pilot that dies while it saves leaves in the user's folder, and what is the user's.
    let [half, whole] =
        [".latebind-0123456789abcdef.part", "mine.part"].map(|name| format!("w-{run}.out/{name}"));
    for name in [&half, &whole] {
        site.write(name, "some");
    }
    site.write("go/now", "");
    // It writes more than a pipe holds, so it can't have ended; the other one has.
    let ended = within(SOON, || {
        pilot.reap();
        let named = |name: &str| programs().iter().filter(|inmate| inmate.name == name).count();
        (named("sleep"), named("sh"), named("head")) == (0, 1, 1)
    });
    assert!(ended, "{:?}", programs());
    assert_eq!(pilot.start(), 2);
    pilot.wait(run);
    assert_done(&site, run, "speaks", 1);
    let text = stdout(&site, run, "speaks");
    assert_eq!(text.len(), "ready\ngap\n".len() + 300_000, "{}", text.len());
    assert!(text.starts_with("ready\ngap\ny\n") && text.ends_with("y\ny\n"));
    assert_eq!(out(&site, run, "logs/speaks.stderr"), "late\n");
    assert_eq!(out(&site, run, "x.txt"), "kept\n");
    assert!(!site.path().join(half).exists() && site.path().join(whole).exists());
    let fails = row(&site, run, "fails");
    assert_eq!((fails.state, fails.attempt), (State::Failed, 1), "{:?}", outcome(&fails));
    assert!(outcome(&fails).contains("exit code 7"), "{}", outcome(&fails));
    assert_eq!(stdout(&site, run, "fails"), "ready\ndone\n");
    end(&site, &mut pilot);
}

#[test]
fn a_pilot_may_die_again_and_again() {
    let Some(site) = place("a_pilot_may_die_again_and_again") else { return };
    let mut pilot = Service::new(&site, "p", &[]);
    pilot.start();
    let counts = "i=0; while [ ! -e /stage/in/go/now ]; do i=$((i+1)); echo $i; sleep 0.02; done; echo done";
    let run = pilot.submit(&flow(&[sh("counts", counts, GO), sh("next", "echo next", "after: [counts]")]));
    wait_text(&site, run, "counts", "1\n");
    for _ in 0..6 {
        pilot.kill();
        assert_eq!(pilot.start(), 1);
    }
    site.write("go/now", "");
    pilot.wait(run);
    assert_done(&site, run, "counts", 1);
    assert_done(&site, run, "next", 1);
    let text = stdout(&site, run, "counts");
    let lines: Vec<&str> = text.lines().collect();
    let whole = lines.iter().enumerate().take(lines.len() - 1);
    assert!(whole.clone().all(|(at, line)| line.parse() == Ok(at + 1)), "a line is missing or there twice");
    end(&site, &mut pilot);
}

#[test]
fn walltime_goes_on_without_a_pilot() {
    let Some(site) = place("walltime_goes_on_without_a_pilot") else { return };
    let mut pilot = Service::new(&site, "p", &[]);
    pilot.start();
    let run = pilot.submit(&flow(&[sh("long", "echo ready; sleep 60", "walltime: 3s, grace: 1s")]));
    wait_text(&site, run, "long", "ready");
    pilot.kill();
    assert_eq!(pilot.start(), 1);
    pilot.wait(run);
    let long = row(&site, run, "long");
    assert!(outcome(&long).contains("walltime"), "{}", outcome(&long));
    let wall_us = long.outcome.map(|outcome| outcome.usage.wall_us).unwrap_or_default();
    // From its launch, not from its adoption; a busy machine may be late.
    assert!((2_900_000..6_000_000).contains(&wall_us), "{wall_us}");
    end(&site, &mut pilot);
}

#[test]
fn an_adopted_payload_is_cancelled_and_stopped_as_any_other() {
    let Some(site) = place("an_adopted_payload_is_cancelled_and_stopped_as_any_other") else { return };
    let mut pilot = Service::new(&site, "p", &[]);
    pilot.start();
    let run = pilot.submit(&flow(&[sh("cancelled", SAVES, ""), sh("stopped", SAVES, "")]));
    wait_text(&site, run, "cancelled", "ready");
    wait_text(&site, run, "stopped", "ready");
    pilot.kill();
    assert_eq!(pilot.start(), 2);
    let asked = site.ask(&["cancel", &format!("{run}/cancelled"), "--wait", "--spool", "spool"]);
    asked.assert_code(0);
    assert_eq!(row(&site, run, "cancelled").state, State::Cancelled);
    assert_eq!(stdout(&site, run, "cancelled"), "ready\nsaved\n");
    pilot.stop().assert_code(0);
    assert_eq!(stdout(&site, run, "stopped"), "ready\nsaved\n");
    // It was disrupted, and waits for another pilot.
    assert_eq!(row(&site, run, "stopped").state, State::Ready);
    pilot.reap();
    site.assert_baseline();
}

#[test]
fn what_was_cancelled_while_no_pilot_was_there_ends_with_the_next_one() {
    let Some(site) = place("what_was_cancelled_while_no_pilot_was_there_ends_with_the_next_one") else {
        return;
    };
    let mut pilot = Service::new(&site, "p", &[]);
    pilot.start();
    let run = pilot.submit(&flow(&[sh("saves", SAVES, "")]));
    wait_text(&site, run, "saves", "ready");
    pilot.kill();
    site.ask(&["cancel", &run.to_string(), "--spool", "spool"]).assert_code(0);
    pilot.start();
    pilot.wait(run);
    assert_eq!(row(&site, run, "saves").state, State::Cancelled);
    end(&site, &mut pilot);
}

#[test]
fn beyond_the_grace_of_orphans_payloads_end_and_are_run_again_or_lost() {
    let Some(site) = place("beyond_the_grace_of_orphans_payloads_end_and_are_run_again_or_lost") else {
        return;
    };
    let mut pilot = Service::new(&site, "p", &["--orphan-grace-ms", "300"]);
    pilot.start();
    let run = pilot
        .submit(&flow(&[sh("again", WAITS, GO), sh("once", WAITS, &format!("at_most_once: true, {GO}"))]));
    wait_text(&site, run, "again", "ready");
    wait_text(&site, run, "once", "ready");
    pilot.kill();
    let gone = within(SOON, || {
        pilot.reap();
        programs().is_empty()
    });
    assert!(gone, "{:?}", programs());
    site.write("go/now", "");
    assert_eq!(pilot.start(), 0);
    pilot.wait(run);
    assert_done(&site, run, "again", 2);
    let once = row(&site, run, "once");
    assert_eq!((once.state, once.attempt), (State::Lost, 1), "{}", outcome(&once));
    end(&site, &mut pilot);
}

#[test]
fn payloads_whose_shim_was_killed_too_are_run_again_or_lost() {
    let Some(site) = place("payloads_whose_shim_was_killed_too_are_run_again_or_lost") else { return };
    let mut pilot = Service::new(&site, "p", &[]);
    pilot.start();
    let run = pilot.submit(&flow(&[
        sh("again", WAITS, &format!("outputs: [{{name: x, class: mem}}], {GO}")),
        sh("once", WAITS, &format!("at_most_once: true, {GO}")),
    ]));
    wait_text(&site, run, "again", "ready");
    wait_text(&site, run, "once", "ready");
    pilot.kill();
    shims().iter().for_each(|shim| kill(shim.pid));
    site.write("go/now", "");
    assert_eq!(pilot.start(), 0);
    pilot.wait(run);
    let again = row(&site, run, "again");
    // It declared an output that it does not write: what matters is that it was started a second time.
    assert_eq!(again.attempt, 2, "{}", outcome(&again));
    let once = row(&site, run, "once");
    assert_eq!((once.state, once.attempt), (State::Lost, 1), "{}", outcome(&once));
    end(&site, &mut pilot);
}

/// Kills the pilot as soon as `reached`; starts it again, and lets the run end.
fn killed_when(site: &Site, workflow: &str, reached: impl Fn(RunId) -> bool) -> Vec<Row> {
    let mut pilot = Service::new(site, "p", &[]);
    pilot.start();
    let run = pilot.submit(workflow);
    assert!(within(SOON, || reached(run)), "the moment never came: {:?}", brief(&rows(site, run)));
    pilot.kill();
    pilot.start();
    let rows = pilot.wait(run);
    end(site, &mut pilot);
    rows
}

#[test]
fn a_pilot_killed_while_it_binds_or_launches_leaves_nothing_and_starts_nothing_twice() {
    let test = "a_pilot_killed_while_it_binds_or_launches_leaves_nothing_and_starts_nothing_twice";
    let Some(site) = place(test) else { return };
    let slot = site.path().join("state/pilots/p/slots/0");
    let work = flow(&[sh("a", "echo ran; sleep 0.2", ""), sh("b", "echo ran", "at_most_once: true")]);
    let text = |name: &str| std::fs::read_to_string(slot.join(name)).unwrap_or_default();
    let moments: [(&str, &dyn Fn() -> bool); 5] = [
        ("folders", &|| slot.join("control").exists()),
        ("socket", &|| slot.join("control/sock").exists()),
        ("record", &|| slot.join("record").exists()),
        ("launch recorded", &|| text("record").contains("\"claim\"")),
        ("launched", &|| slot.join("control/ran").read_dir().is_ok_and(|mut ran| ran.next().is_some())),
    ];
    for (moment, reached) in moments {
        let rows = killed_when(&site, &work, |_| reached());
        let a = rows.iter().find(|row| row.name == "a").expect("a");
        assert_eq!(a.state, State::Succeeded, "{moment}: {:?}", brief(&rows));
        let b = rows.iter().find(|row| row.name == "b").expect("b");
        assert!(matches!(b.state, State::Succeeded | State::Lost), "{moment}: {:?}", brief(&rows));
    }
}

#[test]
fn a_pilot_killed_in_a_commit_keeps_outputs_whole() {
    let Some(site) = place("a_pilot_killed_in_a_commit_keeps_outputs_whole") else { return };
    let fields = "outputs: [{name: a, save: a.bin}, {name: b, save: b.bin}, {name: c, save: c.bin}], resources: {disk: 1Gi}";
    let script = "for x in a b c; do head -c 40000000 /dev/zero > /stage/out/$x; done";
    let makes = format!(
        "  - {{name: makes, image: oci:busybox, command: [/bin/sh, -c, {}], {fields}}}\n",
        serde_json::Value::from(script)
    );
    let reads = sh(
        "reads",
        "cat /stage/in/a /stage/in/c | wc -c",
        "inputs: [{name: a, from: 'stage://makes/a'}, {name: c, from: 'stage://makes/c'}]",
    );
    for wanted in ["a.bin", "b.bin"] {
        let mut of = RunId(0);
        let rows = killed_when(&site, &flow(&[makes.clone(), reads.clone()]), |run| {
            let folder = site.path().join(format!("w-{run}.out"));
            folder.join(wanted).exists()
        });
        for row in &rows {
            of = row.run;
            assert_eq!(row.state, State::Succeeded, "{wanted}: {:?}", brief(&rows));
        }
        assert_eq!(stdout(&site, of, "reads"), "80000000\n");
        let saved = site.path().join(format!("w-{of}.out"));
        for name in ["a.bin", "b.bin", "c.bin"] {
            assert_eq!(std::fs::metadata(saved.join(name)).map(|meta| meta.len()).ok(), Some(40_000_000));
        }
        let names: Vec<_> =
            files(&saved).into_iter().filter(|path| !path.starts_with(saved.join("logs"))).collect();
        assert_eq!(names.len(), 3, "a half-written copy is left: {names:?}");
    }
}

#[test]
fn a_pilot_killed_while_it_cleans_takes_the_rest_away_later() {
    let Some(site) = place("a_pilot_killed_while_it_cleans_takes_the_rest_away_later") else { return };
    let litters = "for i in $(seq 1 60); do mkdir -p /work/$i/a/b; for j in $(seq 1 30); do : > /work/$i/a/b/$j; done; done";
    let slow = sh("litters", litters, "");
    let rows = killed_when(&site, &flow(&[slow]), |run| row(&site, run, "litters").state.is_final());
    assert!(rows.iter().all(|row| row.state == State::Succeeded && row.attempt == 1), "{:?}", brief(&rows));
}

#[test]
fn a_launch_that_the_shim_reads_after_its_pilot_died_is_adopted() {
    let Some(site) = place("a_launch_that_the_shim_reads_after_its_pilot_died_is_adopted") else { return };
    let mut pilot = Service::new(&site, "p", &["--slots", "1"]);
    pilot.start();
    let first = pilot.submit(&flow(&[sh("first", "echo first", GO)]));
    pilot.wait(first);
    let record = site.path().join("state/pilots/p/slots/0/record");
    let says = |word: &str| std::fs::read_to_string(&record).unwrap_or_default().contains(word);
    let warm = within(SOON, || shims().len() == 1 && inmates().len() == 1);
    assert!(warm, "no slot is warm: {:?}", inmates());
    // Nothing outside tells when a slot that is empty is clean, too; it takes a fraction of a millisecond.
    within(std::time::Duration::from_millis(300), || false);
    let shim = shims()[0].clone();
    let tell = |what| {
        let pid = rustix::process::Pid::from_raw(i32::try_from(shim.pid).expect("pid")).expect("pid");
        rustix::process::kill_process(pid, what).expect("signal");
    };
    tell(Signal::STOP);
    let run = pilot.submit(&flow(&[sh("second", WAITS, GO)]));
    assert!(within(SOON, || says("\"second\"")), "nothing is launched: {}", pilot.said());
    pilot.kill();
    tell(Signal::CONT);
    site.write("go/now", "");
    pilot.start();
    pilot.wait(run);
    let second = row(&site, run, "second");
    assert_eq!(second.state, State::Succeeded, "{}", outcome(&second));
    assert_eq!(stdout(&site, run, "second"), "ready\ndone\n");
    end(&site, &mut pilot);
}

#[test]
fn a_pilot_with_fewer_slots_adopts_what_it_has_room_for() {
    let Some(site) = place("a_pilot_with_fewer_slots_adopts_what_it_has_room_for") else { return };
    let mut pilot = Service::new(&site, "p", &["--slots", "3"]);
    pilot.start();
    let run = pilot.submit(&flow(&[sh("each", WAITS, &format!("count: 3, {GO}"))]));
    for index in 0..3 {
        wait_text(&site, run, &format!("each-{index}"), "ready");
    }
    pilot.kill();
    pilot.change(&["--slots", "1"]);
    assert_eq!(pilot.start(), 1);
    site.write("go/now", "");
    let rows = pilot.wait(run);
    assert!(rows.iter().all(|row| row.state == State::Succeeded), "{:?}", brief(&rows));
    assert_eq!(rows.iter().filter(|row| row.attempt == 1).count(), 1, "{:?}", brief(&rows));
    end(&site, &mut pilot);
}

#[test]
fn a_pilot_of_another_name_leaves_it_alone() {
    let Some(site) = place("a_pilot_of_another_name_leaves_it_alone") else { return };
    let (mut one, mut other) = (Service::new(&site, "one", &[]), Service::new(&site, "other", &[]));
    one.start();
    let run = one.submit(&flow(&[sh("waits", WAITS, GO)]));
    wait_text(&site, run, "waits", "ready");
    let runs = programs();
    one.kill();
    assert_eq!(other.start(), 0);
    let beside = other.submit(&flow(&[sh("beside", "echo x", "")]));
    other.wait(beside);
    assert!(programs().iter().any(|inmate| runs.contains(inmate)), "the other pilot ended it");
    assert_eq!(row(&site, run, "waits").state, State::Claimed);
    other.stop().assert_code(0);
    assert_eq!(one.start(), 1);
    site.write("go/now", "");
    one.wait(run);
    assert_done(&site, run, "waits", 1);
    end(&site, &mut one);
}

#[test]
fn a_second_pilot_of_one_name_is_refused_in_one_line() {
    let Some(site) = place("a_second_pilot_of_one_name_is_refused_in_one_line") else { return };
    let (mut first, mut second) = (Service::new(&site, "p", &[]), Service::new(&site, "p", &[]));
    first.start();
    let run = first.submit(&flow(&[sh("waits", WAITS, GO)]));
    wait_text(&site, run, "waits", "ready");
    second.change(&["--verbose"]);
    let ran = site.ask(&["serve", "--spool", "spool", "--name", "p"]);
    ran.assert_code(64);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("\"p\"") && ran.stderr.contains("--name"), "{}", ran.stderr);
    site.write("go/now", "");
    first.wait(run);
    assert_done(&site, run, "waits", 1);
    end(&site, &mut first);
}

#[test]
fn a_folder_outlives_its_pilot() {
    let Some(site) = place("a_folder_outlives_its_pilot") else { return };
    let mut pilot = Service::new(&site, "p", &[]);
    pilot.start();
    let run = pilot.submit(&flow(&[
        sh(
            "tree",
            "mkdir -p /stage/out/d/a /stage/out/d/empty; echo t > /stage/out/d/a/t",
            "outputs: [{name: d, class: folder}]",
        ),
        sh("waits", WAITS, GO),
        sh(
            "reads",
            "cd /stage/in/d; find . | sort; cat a/t",
            "inputs: [{name: d, from: 'stage://tree/d'}], after: [waits]",
        ),
    ]));
    wait_text(&site, run, "waits", "ready");
    wait_state(&site, run, "tree", State::Succeeded);
    pilot.kill();
    assert_eq!(pilot.start(), 1);
    site.write("go/now", "");
    let rows = pilot.wait(run);
    assert!(rows.iter().all(|row| row.state == State::Succeeded), "{:?}", brief(&rows));
    assert_done(&site, run, "tree", 1);
    assert_eq!(stdout(&site, run, "reads"), ".\n./a\n./a/t\n./empty\nt\n");
    end(&site, &mut pilot);
}

#[test]
fn a_run_that_was_half_done_when_its_pilot_stopped_goes_on_with_the_next() {
    let Some(site) = place("a_run_that_was_half_done_when_its_pilot_stopped_goes_on_with_the_next") else {
        return;
    };
    let mut pilot = Service::new(&site, "p", &[]);
    pilot.start();
    let run = pilot.submit(&flow(&[
        sh(
            "make",
            "echo x > /stage/out/x; mkdir -p /stage/out/d/empty",
            "outputs: [{name: x}, {name: d, class: folder}]",
        ),
        sh(
            "waits",
            "echo ready; while [ ! -e /stage/in/go/now ]; do sleep 0.02; done",
            &format!("grace: 200ms, {GO}"),
        ),
        sh(
            "reads",
            "ls /stage/in/d; cat /stage/in/x",
            "inputs: [{name: x, from: 'stage://make/x'}, {name: d, from: 'stage://make/d'}], after: [waits]",
        ),
    ]));
    wait_text(&site, run, "waits", "ready");
    wait_state(&site, run, "make", State::Succeeded);
    pilot.stop().assert_code(0);
    site.write("go/now", "");
    assert_eq!(pilot.start(), 0);
    let rows = pilot.wait(run);
    assert!(rows.iter().all(|row| row.state == State::Succeeded), "{:?}", brief(&rows));
    assert_done(&site, run, "make", 1);
    assert_eq!(stdout(&site, run, "reads"), "empty\nx\n");
    end(&site, &mut pilot);
}

#[test]
fn a_pilot_that_left_nothing_is_followed_by_one_that_finds_nothing() {
    let Some(site) = place("a_pilot_that_left_nothing_is_followed_by_one_that_finds_nothing") else { return };
    let mut pilot = Service::new(&site, "p", &[]);
    pilot.start();
    let run = pilot.submit(&flow(&[sh("a", "echo a", "outputs: []")]));
    pilot.wait(run);
    // Its slots are warm.
    pilot.kill();
    assert_eq!(pilot.start(), 0);
    let gone = within(Duration::from_secs(5), || {
        pilot.reap();
        inmates().is_empty()
    });
    assert!(gone, "{:?}", descendants(std::process::id()));
    let next = submit(&site, &flow(&[sh("b", "echo b", "")]));
    pilot.wait(next);
    assert_done(&site, next, "b", 1);
    end(&site, &mut pilot);
}
