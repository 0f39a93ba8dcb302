//! A pilot that serves, seen and used from other processes: `pilot top`, `pilot exec`, its figures, its log.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use pilot::entries::entries;
use pilot::queue::spool::submission;
use pilot::workflow::{Disk, load};
use pilot_tests::baseline::reap;
use pilot_tests::run::{Ran, SOON, Site, flow, sh, signal, within};
use rustix::process::Signal;
use serde_json::Value;
use spool::Spool;

/// A payload that runs until somebody beside it says stop.
const WAITS: &str = "echo up; while [ ! -e /work/stop ]; do sleep 0.02; done; echo down";

/// A site with a spool and a pilot that serves it.
struct Served<'a> {
    site: &'a Site,
    pilot: Option<Child>,
    metrics: SocketAddr,
}

/// An address that was free a moment ago.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address")
}

impl<'a> Served<'a> {
    fn begin(site: &'a Site, more: &[&str]) -> Self {
        let metrics = free_address();
        let address = metrics.to_string();
        let mut arguments = vec!["serve", "--spool", "spool", "--metrics", &address];
        arguments.extend_from_slice(more);
        let log = std::fs::File::create(site.path().join("pilot.log")).expect("log");
        let mut command = site.pilot(&arguments);
        let pilot = command.stdout(Stdio::null()).stderr(log).spawn().expect("start the pilot");
        let served = Self { site, pilot: Some(pilot), metrics };
        assert!(
            within(SOON, || served.get("/healthz").starts_with("HTTP/1.1 200")),
            "{}",
            site.read("pilot.log")
        );
        served
    }

    fn submit(&self, workflow: &str) -> u64 {
        let file = self.site.write("workflow.yaml", workflow);
        let plan = load(&file, &Disk).expect("plan");
        let out = self.site.path().join("out");
        std::fs::create_dir_all(out.join("logs")).expect("logs");
        let entries = entries(&plan, &out).expect("entries");
        let name = plan.workflow.parse().expect("name");
        let submission = submission(&name, &file, &out, None, &entries).expect("submission");
        let folder = self.site.path().join("spool");
        let run = Spool::open(&folder).expect("spool").submit(&submission).expect("submit").run;
        spool::poke(&folder);
        run.0
    }

    fn exec(&self, arguments: &[&str]) -> Command {
        let mut all = vec!["exec", "--spool", "spool"];
        all.extend_from_slice(arguments);
        bare(self.site, &all)
    }

    fn ask(&self, arguments: &[&str]) -> Ran {
        let child = self.exec(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Ran::of(child.expect("start pilot exec"))
    }

    fn top(&self, arguments: &[&str]) -> Ran {
        let mut all = vec!["top", "--spool", "spool", "--once"];
        all.extend_from_slice(arguments);
        let child = bare(self.site, &all).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Ran::of(child.expect("start pilot top"))
    }

    fn get(&self, path: &str) -> String {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect(self.metrics) {
            let _ = stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: pilot\r\n\r\n").as_bytes());
            let _ = stream.read_to_string(&mut answer);
        }
        answer
    }

    fn tells(&self, line: &str) -> bool {
        within(SOON, || self.get("/metrics").lines().any(|found| found == line))
    }

    fn pid(&self) -> u32 {
        self.pilot.as_ref().expect("pilot").id()
    }

    fn end(mut self) {
        let pilot = self.pilot.take().expect("pilot");
        signal(&pilot, Signal::TERM);
        let ran = Ran::of(pilot);
        assert_eq!(ran.code, 0, "{}", self.site.read("pilot.log"));
    }
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        if let Some(mut pilot) = self.pilot.take() {
            // With its grace: what it runs would outlive a kill.
            signal(&pilot, Signal::TERM);
            let _ = pilot.wait();
        }
    }
}

/// The program with these arguments and nothing else.
fn bare(site: &Site, arguments: &[&str]) -> Command {
    let mut command = site.pilot(arguments);
    command.stdin(Stdio::null());
    command
}

#[test]
fn a_program_runs_beside_a_payload_with_the_callers_descriptors() {
    let Some(site) = Site::new("a_program_runs_beside_a_payload") else { return };
    let served = Served::begin(&site, &[]);
    let run = served.submit(&flow(&[sh("fit", WAITS, "env: {COLOUR: red}")]));
    site.wait_for("fit", "up");
    let fit = format!("{run}/fit");
    // What it sees is the payload's: environment, working directory, processes.
    let script = "echo $COLOUR $SHAPE; pwd; cat; echo wrong >&2; exit 3";
    let mut child = served
        .exec(&[&fit, "-e", "SHAPE=round", "--", "/bin/sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start pilot exec");
    child.stdin.take().expect("stdin").write_all(b"from outside\n").expect("write");
    let ran = Ran::of(child);
    assert_eq!((ran.code, ran.stdout.as_str()), (3, "red round\n/work\nfrom outside\n"), "{}", ran.stderr);
    assert_eq!(ran.stderr, "wrong\n");
    let ran = served.ask(&[&fit, "-w", "/bin", "-e", "COLOUR=blue", "--", "sh", "-c", "echo $COLOUR; pwd"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "blue\n/bin\n"), "{}", ran.stderr);
    // The codes of a shell.
    let ran = served.ask(&[&fit, "--", "no-such-program"]);
    assert_eq!(ran.code, 127, "{}", ran.stderr);
    assert!(ran.stderr.contains("No such file"), "{}", ran.stderr);
    let ran = served.ask(&[&fit, "--", "/bin/sh", "-c", "kill -TERM $$"]);
    assert_eq!(ran.code, 143, "{}", ran.stderr);
    let ran = served.ask(&[&fit, "--", "/bin/sh", "-c", ": > /work/stop"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    site.wait_for("fit", "down");
    assert!(served.tells("latebind_claims_ended_total{conclusion=\"succeeded\",cause=\"\"} 1"));
    // It is over now.
    let ran = served.ask(&[&fit, "--", "true"]);
    assert_eq!(ran.code, 125, "{}", ran.stderr);
    assert_eq!(ran.stderr, format!("pilot: {fit} does not run: it is succeeded\n"));
    for (address, code) in [("99/fit", 64), ("../..", 64), (&run.to_string(), 64)] {
        let ran = served.ask(&[address, "--", "true"]);
        assert_eq!((ran.code, ran.stderr.lines().count()), (code, 1), "{address}: {}", ran.stderr);
    }
    served.end();
    site.assert_baseline();
}

#[test]
fn a_program_that_outlives_its_payload_ends_with_it_and_signals_end_the_caller() {
    let Some(site) = Site::new("a_program_that_outlives_its_payload") else { return };
    let served = Served::begin(&site, &[]);
    let run = served.submit(&flow(&[sh("fit", WAITS, "")]));
    site.wait_for("fit", "up");
    let fit = format!("{run}/fit");
    let begin = |script: &str| {
        let mut command = served.exec(&[&fit, "--", "/bin/sh", "-c", script]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start pilot exec")
    };
    let wait = |child: &mut Child| {
        let mut byte = [0_u8; 1];
        let came = child.stdout.as_mut().expect("stdout").read_exact(&mut byte);
        let mut why = String::new();
        if came.is_err() {
            let _ = child.stderr.as_mut().expect("stderr").read_to_string(&mut why);
        }
        assert!(came.is_ok(), "it said nothing: {why}");
    };
    // Signals reach the program, or end the caller with the code that they would have given.
    let mut interrupted = begin("echo; sleep 1000");
    wait(&mut interrupted);
    signal(&interrupted, Signal::INT);
    // Its output stays open: the program has it and may go on.
    assert_eq!(interrupted.wait().expect("wait").code(), Some(130));
    let mut left = begin("echo; sleep 1000");
    wait(&mut left);
    assert_eq!(served.ask(&[&fit, "--", "/bin/sh", "-c", ": > /work/stop"]).code, 0);
    let ran = Ran::of(left);
    assert_eq!(ran.code, 137, "{}", ran.stderr);
    drop(interrupted);
    assert!(served.tells("latebind_slots{phase=\"running\"} 0"));
    served.end();
    site.assert_baseline();
}

#[test]
fn a_picture_and_figures_show_what_runs() {
    let Some(site) = Site::new("a_picture_and_figures_show_what_runs") else { return };
    let served = Served::begin(&site, &[]);
    let ready = || served.get("/readyz").starts_with("HTTP/1.1 200");
    assert!(within(SOON, ready), "{}", served.get("/readyz"));
    let run = served.submit(&flow(&[sh("fit", WAITS, "")]));
    site.wait_for("fit", "up");
    let ran = served.top(&[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let row = ran.stdout.lines().find(|line| line.contains(&format!("{run}/fit"))).expect("a row");
    assert!(row.contains("running") && row.contains("busybox") && row.contains("128 MiB"), "{row}");
    assert!(ran.stdout.contains("1 of 2 slots busy"), "{}", ran.stdout);
    assert!(ran.stdout.contains("1 open runs, 0 payloads waiting, 0 ready, 1 claimed"), "{}", ran.stdout);
    let ran = served.top(&["--output", "json"]);
    let picture: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let slots = picture["pilots"][0]["slots"].as_array().expect("slots");
    let running = slots.iter().find(|slot| slot["phase"] == "running").expect("running");
    assert_eq!(running["payload"]["name"], "fit");
    let ran = served.top(&["--pilot", "nobody"]);
    assert_eq!((ran.code, ran.stderr.lines().count()), (64, 1), "{}", ran.stderr);
    assert!(served.tells("latebind_slots{phase=\"running\"} 1"));
    assert!(served.tells("latebind_claims_total 1"));
    assert!(served.tells("latebind_starts_total{kind=\"cold\"} 1"));
    assert_eq!(served.ask(&[&format!("{run}/fit"), "--", "/bin/sh", "-c", ": > /work/stop"]).code, 0);
    assert!(served.tells("latebind_claims_ended_total{conclusion=\"succeeded\",cause=\"\"} 1"));
    assert!(served.tells("latebind_run_seconds_count 1"));
    // Alone on its address.
    let address = served.metrics.to_string();
    let second = site.ask(&["serve", "--spool", "spool", "--name", "second", "--metrics", &address]);
    assert_eq!(second.code, 64, "{}", second.stderr);
    assert!(second.stderr.contains(&format!("serve metrics at {address}")), "{}", second.stderr);
    served.end();
    // Nobody is left to ask.
    let child = bare(&site, &["top", "--spool", "spool", "--once"]).stdout(Stdio::piped()).spawn();
    assert!(Ran::of(child.expect("start pilot top")).stdout.contains("no pilot serves it"));
    site.assert_baseline();
}

#[test]
fn each_try_of_a_payload_is_one_span_and_no_secret_is_in_the_log() {
    let Some(site) = Site::new("each_try_of_a_payload_is_one_span") else { return };
    let served = Served::begin(&site, &["-vv", "--log-format", "json"]);
    served.submit(&flow(&[sh("fit", "echo quiet words", "env: {TOKEN: very-secret}")]));
    assert!(served.tells("latebind_claims_ended_total{conclusion=\"succeeded\",cause=\"\"} 1"));
    served.end();
    let log = site.read("pilot.log");
    let events: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let closed = |name: &str| {
        let is_end = |event: &&Value| event["fields"]["message"] == "close" && event["span"]["name"] == name;
        events.iter().find(is_end).map(|event| event["span"].clone())
    };
    for name in ["payload", "prepare", "bind", "launch", "drain", "clean", "report"] {
        assert!(closed(name).is_some(), "no end of span {name} in:\n{log}");
    }
    assert_eq!(closed("payload").expect("span")["payload"], "fit");
    for word in ["very-secret", "quiet words"] {
        assert!(!log.contains(word), "{word} is in the log:\n{log}");
    }
    site.assert_baseline();
}

/// The promise is under 0.1 % of a core and 15 MiB (docs/benchmarks.md); a debug build on a busy machine gets some room.
#[test]
fn a_pilot_that_nobody_needs_hardly_wakes_up() {
    let Some(site) = Site::new("a_pilot_that_nobody_needs_hardly_wakes_up") else { return };
    let served = Served::begin(&site, &[]);
    let switches = || {
        let threads = std::fs::read_dir(format!("/proc/{}/task", served.pid())).expect("threads").count();
        assert!(threads < 32, "{threads} threads");
        ticks(served.pid())
    };
    let before = switches();
    // A wait and not a guess: this is the time over which the figure is taken.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let ticks = switches() - before;
    // 100 ticks a second: 3 of 300 are 1 %.
    assert!(ticks <= 3, "{ticks} ticks of processor time in 3 s");
    served.end();
    site.assert_baseline();
}

/// User and system time of a process in clock ticks (proc(5), fields 14 and 15).
fn ticks(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields: Vec<&str> = text.rsplit_once(") ").expect("name").1.split(' ').collect();
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}

#[test]
fn a_pilot_that_was_started_again_says_nothing_before_it_knows_what_goes_on() {
    let Some(site) = Site::new("a_pilot_that_was_started_again_says_nothing") else { return };
    let mut first = Served::begin(&site, &[]);
    let run = first.submit(&flow(&[sh("fit", WAITS, "")]));
    site.wait_for("fit", "up");
    let mut killed = first.pilot.take().expect("pilot");
    killed.kill().expect("kill");
    killed.wait().expect("wait");
    // It lives, and has hardly begun.
    let served = Served::begin(&site, &[]);
    let ran = served.top(&["--output", "json"]);
    let picture: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    if let Some(slots) = picture["pilots"][0]["slots"].as_array() {
        assert!(slots.iter().any(|slot| slot["payload"]["name"] == "fit"), "{picture:#}");
        let ready = served.get("/readyz");
        assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    } else {
        // It had not even been listed.
        assert_eq!(picture["pilots"].as_array().map(Vec::len), Some(0), "{picture:#}");
    }
    assert!(served.tells("latebind_starts_total{kind=\"adopted\"} 1"));
    assert_eq!(served.ask(&[&format!("{run}/fit"), "--", "/bin/sh", "-c", ": > /work/stop"]).code, 0);
    assert!(served.tells("latebind_claims_ended_total{conclusion=\"succeeded\",cause=\"\"} 1"));
    served.end();
    // The shim was the killed pilot's child.
    reap();
    site.assert_baseline();
}

#[test]
fn outputs_that_were_begun_and_dropped_are_counted() {
    let Some(site) = Site::new("outputs_that_were_begun_and_dropped_are_counted") else { return };
    let served = Served::begin(&site, &[]);
    let outputs = "outputs: [{name: m, class: mem, max_size: 1Mi}, {name: f}, {name: v, class: value}, {name: n}, {name: d, class: folder}]";
    let begins = "cd /stage/out; echo half > m; echo half > f; echo half > v; echo half > d/x";
    let run = served.submit(&flow(&[
        sh("killed", &format!("{begins}; kill -9 $$"), outputs),
        sh("fails", &format!("{begins}; exit 1"), outputs),
        sh("good", &format!("{begins}; echo whole > n"), outputs),
    ]));
    let spool = Spool::open(&site.path().join("spool")).expect("spool");
    let ended = within(SOON, || {
        let rows = spool.payloads(spool::RunId(run), &[], None, 10).expect("payloads");
        rows.iter().all(|row| row.state.is_final())
    });
    assert!(ended, "{}", site.read("pilot.log"));
    assert!(served.tells("latebind_outputs_dropped_total 8"), "{}", served.get("/metrics"));
    assert!(served.tells("latebind_stages_held 0"), "{}", served.get("/metrics"));
    drop(spool);
    served.end();
    site.assert_baseline();
}
