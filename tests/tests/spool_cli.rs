//! The commands on the spool, from outside: `submit`, `ls`, `logs`, `cancel`, `wait`, `forget`, without a pilot and with
//! one that serves.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use pilot_tests::run::{Ran, SOON, Site, as_root, flow, sh, signal, within};
use rustix::process::Signal;
use serde_json::Value;

/// Saves its work when it is asked to end, and says so.
const SAVES: &str = "trap 'echo saved; exit 0' TERM; echo ready; while :; do sleep 0.05; done";

/// Asks the pilot about the place's spool.
fn ask(site: &Site, arguments: &[&str]) -> Ran {
    let mut all = arguments.to_vec();
    all.extend(["--spool", "spool"]);
    site.ask(&all)
}

/// What must go well.
fn good(site: &Site, arguments: &[&str]) -> Ran {
    let ran = ask(site, arguments);
    ran.assert_code(0);
    ran
}

/// The JSON objects of one kind.
fn json(site: &Site, arguments: &[&str], kind: &str) -> Vec<Value> {
    let mut all = arguments.to_vec();
    all.extend(["--output", "json"]);
    good(site, &all).events().into_iter().filter(|event| event["kind"] == kind).collect()
}

/// Submits a workflow; gives the run's number.
fn submit(site: &Site, workflow: &str) -> String {
    site.write("workflow.yaml", workflow);
    let ran = good(site, &["submit", "workflow.yaml", "--quiet"]);
    ran.stdout.trim().to_owned()
}

/// One clear line and code 64.
fn refused(ran: &Ran, words: &[&str]) {
    ran.assert_code(64);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    assert!(words.iter().all(|word| ran.stderr.contains(word)), "{words:?} in {}", ran.stderr);
}

/// A pilot that serves the place's spool; told to stop at the end of the test.
struct Serving(Option<Child>);

impl Serving {
    fn start(site: &Site) -> Self {
        let mut pilot = site.pilot(&["serve", "--spool", "spool", "--output", "json"]);
        let child = pilot.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the pilot");
        let wake = site.path().join("spool/wake");
        let serves = within(SOON, || wake.read_dir().is_ok_and(|mut entries| entries.next().is_some()));
        let serving = Self(Some(child));
        assert!(serves, "the pilot does not serve");
        serving
    }

    fn stop(mut self) {
        let child = self.0.take().expect("it runs");
        signal(&child, Signal::TERM);
        Ran::of(child).assert_code(0);
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Only when the test has failed: a pilot must not outlive it.
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn what_is_submitted_is_listed_cancelled_and_forgotten() {
    let Some(site) = Site::new("what_is_submitted_is_listed_cancelled_and_forgotten") else { return };
    let work = flow(&[
        sh("make", "true", "count: 2, outputs: [{name: x}]"),
        sh("take", "true", "inputs: [{name: x, from: 'stage://make/x'}], outputs: [{name: y, save: y.txt}]"),
    ]);
    site.write("workflow.yaml", &work);
    let first = good(&site, &["submit", "workflow.yaml"]);
    assert_eq!(first.stdout, "run 1: w, 3 payloads\n");
    assert_eq!(first.stderr.lines().count(), 1);
    assert!(first.stderr.contains("no pilot serves the spool") && first.stderr.contains("pilot serve"));
    assert!(site.path().join("w-1.out/logs").is_dir());
    let named = json(&site, &["submit", "workflow.yaml", "--run-name", "other", "--out", "o"], "submitted");
    assert_eq!((&named[0]["name"], &named[0]["new"]), (&"other".into(), &true.into()));
    let runs = json(&site, &["ls"], "run");
    assert_eq!(runs.len(), 2);
    assert_eq!(runs[0]["name"], "other");
    assert_eq!((&runs[1]["counts"]["ready"], &runs[1]["counts"]["waiting"]), (&2.into(), &1.into()));
    let rows = json(&site, &["ls", "1"], "payload");
    assert_eq!(
        rows.iter().map(|row| row["payload"].as_str().expect("name")).collect::<Vec<_>>(),
        ["make-0", "make-1", "take"]
    );
    assert_eq!(json(&site, &["ls", "w/make"], "payload").len(), 2, "an array");
    assert_eq!(json(&site, &["ls", "1", "--state", "waiting"], "payload").len(), 1);
    let take = &json(&site, &["ls", "1/take"], "payload")[0];
    let saved = site.path().join("w-1.out/y.txt");
    assert_eq!(take["spec"]["outputs"][0]["save"], saved.to_str().expect("utf-8"));
    let people = good(&site, &["ls", "1/take"]);
    assert!(people.stdout.contains("stage://") && people.stdout.contains("waiting"), "{}", people.stdout);
    refused(&ask(&site, &["forget", "1"]), &["forget run 1", "cancel it first"]);
    let cancelled = good(&site, &["cancel", "1/make-0"]);
    assert!(cancelled.stdout.starts_with("1/make-0: cancelled, 1 skipped"), "{}", cancelled.stdout);
    assert_eq!(good(&site, &["cancel", "1", "--wait"]).stdout, "run 1: 1 cancelled, 2 ended before\n");
    assert_eq!(good(&site, &["cancel", "1"]).stdout, "run 1: has ended already\n");
    let waited = ask(&site, &["wait", "1"]);
    waited.assert_code(1);
    assert!(waited.stdout.starts_with("run 1: w, cancelled: 0/3 done"), "{}", waited.stdout);
    assert_eq!(good(&site, &["forget", "--ended", "--older-than", "1h"]).stdout.lines().count(), 1);
    assert!(good(&site, &["forget", "--ended"]).stdout.starts_with("forgot run 1: w, 3 payloads"));
    assert!(site.path().join("w-1.out/logs").is_dir(), "what a run wrote is not the spool's");
    assert_eq!(json(&site, &["ls"], "run").len(), 1);
    site.assert_baseline();
}

#[test]
fn a_key_submits_once() {
    let Some(site) = Site::new("a_key_submits_once") else { return };
    site.write("workflow.yaml", &flow(&[sh("a", "true", "")]));
    let once = &json(&site, &["submit", "workflow.yaml", "--key", "k"], "submitted")[0];
    let again = &json(&site, &["submit", "workflow.yaml", "--key", "k"], "submitted")[0];
    assert_eq!((&once["new"], &again["new"]), (&true.into(), &false.into()));
    assert_eq!((&once["run"], &once["out"]), (&again["run"], &again["out"]));
    assert_eq!(json(&site, &["ls"], "run").len(), 1);
    let folders = site.path().read_dir().expect("site").flatten();
    let made = folders.filter(|entry| entry.file_name().to_string_lossy().ends_with(".out")).count();
    assert_eq!(made, 1, "the second one has left a folder");
    refused(
        &ask(&site, &["submit", "workflow.yaml", "workflow.yaml", "--key", "k"]),
        &["--key", "one by one"],
    );
    site.assert_baseline();
}

#[test]
fn nothing_is_submitted_when_anything_is_wrong() {
    let Some(site) = Site::new("nothing_is_submitted_when_anything_is_wrong") else { return };
    site.write("good.yaml", &flow(&[sh("a", "true", "")]));
    site.write("bad.yaml", &flow(&[sh("a", "true", "after: [nobody]")]));
    refused(&ask(&site, &["submit", "good.yaml", "bad.yaml"]), &["bad.yaml:", "nobody"]);
    refused(&ask(&site, &["submit", "good.yaml", "missing.yaml"]), &["missing.yaml"]);
    refused(&ask(&site, &["submit", "good.yaml", "--run-name", "a b"]), &["--run-name"]);
    site.write("image.yaml", &flow(&[pilot_tests::run::payload("a", "image: 'oci:'")]));
    refused(&ask(&site, &["submit", "good.yaml", "image.yaml"]), &["image.yaml"]);
    site.write("file", "");
    refused(&ask(&site, &["submit", "good.yaml", "--out", "file/out"]), &["file/out", "--out"]);
    if site.path().join("spool").exists() {
        assert_eq!(json(&site, &["ls"], "run").len(), 0);
    }
    site.assert_baseline();
}

#[test]
fn a_spool_that_can_not_be_used_costs_one_line_and_is_left_as_it_is() {
    let Some(site) = Site::new("a_spool_that_can_not_be_used_costs_one_line_and_is_left_as_it_is") else {
        return;
    };
    for command in [&["ls"][..], &["wait", "1"], &["logs", "1/a"], &["cancel", "1"], &["forget", "1"]] {
        refused(&ask(&site, command), &["no spool at", "pilot submit", "pilot serve"]);
    }
    assert!(!site.path().join("spool").exists(), "looking makes no spool");
    submit(&site, &flow(&[sh("a", "true", "")]));
    for (arguments, words) in [
        (&["ls", "9"][..], &["run 9"][..]),
        (&["ls", "1/b"], &["1/b", "no payload"]),
        (&["ls", "nobody"], &["nobody"]),
        (&["logs", "2/a"], &["run 2"]),
        (&["cancel", "1", "9"], &["run 9"]),
        (&["wait", "1/a"], &["1/a", "name the run"]),
        (&["forget", "1/a"], &["name the run"]),
    ] {
        refused(&ask(&site, arguments), words);
    }
    assert_eq!(json(&site, &["ls"], "run")[0]["counts"]["ready"], 1, "half a cancel was done");
    for arguments in [&["ls", "1/a/b"][..], &["ls", "--state", "asleep"], &["wait", "1", "--timeout", "5"]] {
        ask(&site, arguments).assert_code(64);
    }
    // Another user's, and one that others may write.
    let folder = site.path().join("spool");
    let mode =
        |mode| std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode)).expect("chmod");
    mode(0o777);
    refused(&ask(&site, &["ls"]), &["others may write"]);
    mode(0o700);
    if as_root() {
        std::os::unix::fs::chown(&folder, Some(12_345), None).expect("chown");
        refused(&ask(&site, &["ls"]), &["belongs to uid 12345"]);
        std::os::unix::fs::chown(&folder, Some(0), None).expect("chown");
    } else {
        let test = "a_spool_that_can_not_be_used_costs_one_line_and_is_left_as_it_is";
        pilot_tests::skipped(test, "another user's spool needs root");
    }
    let database = folder.join("spool.db");
    let good_bytes = std::fs::read(&database).expect("database");
    for bad in [good_bytes[..good_bytes.len() / 2].to_vec(), b"something else entirely".repeat(400)] {
        for log in ["spool.db-wal", "spool.db-shm"] {
            let _ = std::fs::remove_file(folder.join(log));
        }
        std::fs::write(&database, &bad).expect("write");
        for command in [&["ls"][..], &["submit", "workflow.yaml"], &["cancel", "1"]] {
            refused(&ask(&site, command), &["spool.db"]);
        }
        assert_eq!(std::fs::read(&database).expect("database"), bad, "a damaged spool was written to");
    }
    site.assert_baseline();
}

#[test]
fn ten_thousand_payloads_are_submitted_and_listed() {
    let Some(site) = Site::new("ten_thousand_payloads_are_submitted_and_listed") else { return };
    site.write("workflow.yaml", &flow(&[sh("a", "true", "count: 10000")]));
    let (ran, took) = timed(|| good(&site, &["submit", "workflow.yaml"]));
    assert_eq!(ran.stdout, "run 1: w, 10000 payloads\n");
    // The promise (2 s) is measured on a quiet machine, in docs/benchmarks.md; this is for what grows with the square.
    assert!(took < Duration::from_secs(10), "submit took {took:?}");
    let (ran, took) = timed(|| good(&site, &["ls", "1"]));
    assert_eq!(ran.stdout.lines().count(), 103, "two lines above, a hundred rows, one below");
    assert!(ran.stdout.ends_with("... and 9900 more; --all lists them, --state picks some\n"));
    assert!(took < Duration::from_secs(2), "ls took {took:?}");
    assert_eq!(good(&site, &["ls", "1", "--all"]).stdout.lines().count(), 10_002);
    assert_eq!(json(&site, &["ls", "1", "--limit", "7"], "payload").len(), 7);
    assert_eq!(json(&site, &["ls", "1"], "payload").len(), 10_000);
    good(&site, &["cancel", "1/a-7"]);
    let first = good(&site, &["ls", "1", "--limit", "10000"]).stdout;
    assert!(first.lines().nth(2).expect("a row").starts_with("a-0 "), "all fit: in their order");
    assert_eq!(json(&site, &["ls", "1", "--state", "cancelled"], "payload")[0]["payload"], "a-7");
    site.assert_baseline();
}

#[expect(clippy::disallowed_methods, reason = "a limit for what would take for ever")]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = std::time::Instant::now();
    let done = work();
    (done, began.elapsed())
}

#[test]
fn a_wait_ends_in_time() {
    let Some(site) = Site::new("a_wait_ends_in_time") else { return };
    let run = submit(&site, &flow(&[sh("a", "true", "")]));
    for timeout in ["0", "200ms"] {
        let ran = ask(&site, &["wait", &run, "--timeout", timeout]);
        ran.assert_code(1);
        assert!(ran.stderr.contains("run 1 has not ended after"), "{}", ran.stderr);
    }
    let mut wait = site.pilot(&["wait", &run, "--spool", "spool"]);
    let wait = wait.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
    let status = format!("/proc/{}/status", wait.id());
    // SIGINT is caught from when its bit is set (proc(5)); before, it would end the process as it ends any.
    let caught = || {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let mask = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).map(str::trim).unwrap_or("0");
        u64::from_str_radix(mask, 16).unwrap_or(0) & 0b10 != 0
    };
    assert!(within(SOON, caught), "it never listens");
    signal(&wait, Signal::INT);
    let ran = Ran::of(wait);
    ran.assert_code(130);
    assert!(ran.stderr.contains("run 1 goes on"), "{}", ran.stderr);
    site.assert_baseline();
}

#[test]
fn submitted_work_runs_and_answers_as_a_run_would() {
    let Some(site) = Site::new("submitted_work_runs_and_answers_as_a_run_would") else { return };
    let serving = Serving::start(&site);
    let work = flow(&[
        sh("make", "echo made $LATEBIND_INDEX > /stage/out/x", "count: 2, outputs: [{name: x}]"),
        sh(
            "take",
            "cat /stage/in/x-* | tee /stage/out/y; echo seen >&2",
            "inputs: [{name: x, from: 'stage://make/x'}], outputs: [{name: y, save: y.txt}]",
        ),
    ]);
    site.write("workflow.yaml", &work);
    let ran = good(&site, &["submit", "workflow.yaml", "--wait"]);
    assert!(
        ran.stdout.starts_with("run 1: w, 3 payloads\nrun 1: w, succeeded: 3/3 done in "),
        "{}",
        ran.stdout
    );
    assert_eq!(ran.stderr, "", "a pilot serves: there is nothing to say");
    assert_eq!(site.read("w-1.out/y.txt"), "made 0\nmade 1\n");
    let logs = good(&site, &["logs", "w/take"]);
    assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("made 0\nmade 1\n", "seen\n"));
    assert_eq!(good(&site, &["logs", "1/take", "--stderr"]).stdout, "seen\n");
    assert_eq!(good(&site, &["logs", "1/take", "--stdout", "--tail", "1"]).stdout, "made 1\n");
    assert_eq!(json(&site, &["logs", "1/take"], "line")[1]["line"], "made 1");
    let silent = good(&site, &["logs", "1/make-0"]);
    assert_eq!((silent.stdout.as_str(), silent.stderr.as_str()), ("", ""), "only a terminal is told");
    let take = &json(&site, &["ls", "1/take"], "payload")[0];
    assert_eq!((&take["state"], &take["tries"]), (&"succeeded".into(), &1.into()));
    assert!(take["figures"]["wall_ms"].is_u64() && take["usage"].is_object(), "{take}");
    let fails =
        submit(&site, &flow(&[sh("bad", "echo why >&2; exit 3", ""), sh("next", "true", "after: [bad]")]));
    let ran = ask(&site, &["wait", &fails]);
    ran.assert_code(1);
    assert!(ran.stdout.starts_with("2/bad: exit code 3; see `pilot logs 2/bad`\n"), "{}", ran.stdout);
    assert!(ran.stdout.contains("run 2: w, failed: 0/2 done, 1 failed, 1 skipped"), "{}", ran.stdout);
    let both = ask(&site, &["wait", "1", "2", "--output", "json"]);
    both.assert_code(1);
    assert_eq!(both.events().iter().map(|run| run["exit_code"].clone()).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(json(&site, &["ls", "2/next"], "payload")[0]["because"], "bad");
    serving.stop();
    site.assert_baseline();
}

#[test]
fn logs_are_followed_from_before_the_start_to_the_end() {
    let Some(site) = Site::new("logs_are_followed_from_before_the_start_to_the_end") else { return };
    std::fs::create_dir(site.path().join("go")).expect("mkdir");
    let script = "echo one; while [ ! -e /stage/in/go/now ]; do sleep 0.02; done; echo two; printf end";
    let run = submit(&site, &flow(&[sh("slow", script, "inputs: [{name: go, from: ./go}]")]));
    let follow = |arguments: &[&str]| {
        let mut all = vec!["logs", "--follow", "--spool", "spool"];
        all.extend_from_slice(arguments);
        let mut pilot = site.pilot(&all);
        let file = std::fs::File::create(site.path().join("followed")).expect("file");
        pilot.stdout(file).stderr(Stdio::piped()).spawn().expect("start")
    };
    let early = follow(&[&run]);
    let serving = Serving::start(&site);
    assert!(within(SOON, || site.read("followed") == "one\n"), "{}", site.read("followed"));
    site.write("go/now", "");
    Ran::of(early).assert_code(0);
    assert_eq!(site.read("followed"), "one\ntwo\nend");
    // A second try begins a file of its own.
    let again = "if [ -e /stage/in/go/again ]; then echo second; else echo first; exit 1; fi";
    let run = submit(&site, &flow(&[sh("retried", again, "retries: 2, inputs: [{name: go, from: ./go}]")]));
    let late = follow(&[&run]);
    assert!(within(SOON, || site.read("followed").contains("first\n")), "{}", site.read("followed"));
    site.write("go/again", "");
    Ran::of(late).assert_code(0);
    assert!(site.read("followed").ends_with("first\nsecond\n"), "{}", site.read("followed"));
    serving.stop();
    site.assert_baseline();
}

#[test]
fn a_cancel_reaches_what_runs_and_a_watch_sees_it() {
    let Some(site) = Site::new("a_cancel_reaches_what_runs_and_a_watch_sees_it") else { return };
    let serving = Serving::start(&site);
    let run = submit(&site, &flow(&[sh("saves", SAVES, ""), sh("later", "true", "after: [saves]")]));
    let log = format!("w-{run}.out/logs/saves.stdout");
    assert!(within(SOON, || site.read(&log).contains("ready")), "it never ran");
    let watch = |arguments: &[&str], file: &str| {
        let mut all = vec!["ls", "--watch", "--spool", "spool"];
        all.extend_from_slice(arguments);
        let file = std::fs::File::create(site.path().join(file)).expect("file");
        site.pilot(&all).stdout(file).stderr(Stdio::piped()).spawn().expect("start")
    };
    let of_run = watch(&[&run], "watched");
    let of_all = watch(&["--output", "json"], "watched.json");
    assert!(
        within(SOON, || site.read("watched").contains("saves") && site.read("watched.json").contains('}'))
    );
    let ran = good(&site, &["cancel", &run, "--wait"]);
    assert_eq!(ran.stdout, format!("run {run}: 1 cancelled, 1 told to end\n"));
    assert_eq!(site.read(&log), "ready\nsaved\n", "it had its grace");
    let run_json = &json(&site, &["ls"], "run")[0];
    assert_eq!((&run_json["state"], &run_json["counts"]["cancelled"]), (&"cancelled".into(), &2.into()));
    Ran::of(of_run).assert_code(0);
    let watched = site.read("watched");
    assert!(watched.contains(&format!("{run}/saves: cancelled")), "{watched}");
    assert!(watched.ends_with("2 cancelled\n"), "the run's end is the last line: {watched}");
    assert!(within(SOON, || site.read("watched.json").contains("\"state\":\"cancelled\"")));
    signal(&of_all, Signal::INT);
    Ran::of(of_all).assert_code(130);
    let waited = ask(&site, &["wait", &run]);
    waited.assert_code(1);
    assert!(waited.stdout.contains("cancelled: 0/2 done, 2 cancelled"), "{}", waited.stdout);
    serving.stop();
    site.assert_baseline();
}
