//! Processes that are killed or stopped, and disks that are full.
//!
//! The processes are this test program again: [`the_child_of_the_others`] does what the environment tells it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pilot_core::{ClaimId, FaultClass};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, setrlimit};
use spool::{NewPayload, Report, RunFilter, Spool, SpoolError, State, Submission};

use crate::common::{exit, many, payload, submission};

/// The environment's word for a child: what to do, a colon, and where.
const CHILD: &str = "SPOOL_TEST_CHILD";
const LEASE: u64 = 60_000;

#[test]
fn the_child_of_the_others() {
    // No test of its own: without the word it does nothing.
    let Some(word) = std::env::vars().find(|(name, _)| name == CHILD) else { return };
    let (deed, folder) = word.1.split_once(':').expect("a deed and a folder");
    match deed {
        "work" => work(Path::new(folder)),
        "hold" => hold(Path::new(folder)),
        "fill" => fill(Path::new(folder)),
        other => panic!("no such deed: {other}"),
    }
}

fn child(deed: &str, folder: &Path) -> Child {
    let program = std::env::current_exe().expect("this program");
    #[expect(
        clippy::disallowed_methods,
        reason = "the tests own the processes they start, and wait for them"
    )]
    let mut command = Command::new(program);
    command.args(["--exact", "faults::the_child_of_the_others", "--nocapture", "--test-threads=1"]);
    command.env(CHILD, format!("{deed}:{}", folder.display()));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command.spawn().expect("spawn")
}

/// The next line of a child that is one of ours.
fn said(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Option<String> {
    lines.by_ref().map_while(Result::ok).find_map(|line| {
        // The test program writes the test's name in front of the first.
        line.find("says ").map(|at| line[at + 5..].to_owned())
    })
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "says {text}").and_then(|()| out.flush());
}

/// Submits, claims and reports until it is killed, and says what was accepted.
fn work(folder: &Path) {
    let me = format!("pilot-{}", std::process::id());
    let mut spool = Spool::open(folder).expect("open");
    for round in 0.. {
        let key = format!("{me}-{round}");
        let list =
            vec![payload("a", &[]), NewPayload { retries: 1, ..payload("b", &[0]) }, payload("c", &[1])];
        let new = Submission { key: Some(key), ..submission("w", list) };
        say(&format!("submitted {}", spool.submit(&new).expect("submit").run));
        let offers = spool.claim(&*me, 3, LEASE).expect("claim");
        for offer in offers {
            say(&format!("claimed {} {}", offer.claim.0, offer.payload.0));
            let code = u8::from(offer.claim.0 % 5 == 0);
            let report = spool.report(offer.claim, &exit(code)).expect("report");
            let ended = matches!(report, Report::Final { .. });
            say(&format!("reported {} {} {code} {ended}", offer.claim.0, offer.payload.0));
        }
    }
}

/// Holds the database until it is killed.
fn hold(folder: &Path) {
    let mut spool = Spool::open(folder).expect("open");
    let held = spool.transact(|_| {
        say("holding");
        std::thread::sleep(Duration::from_secs(3600));
        Ok(())
    });
    drop(held);
}

/// Submits until no more can be written, and says how it was told.
fn fill(folder: &Path) {
    let mut spool = Spool::open(folder).expect("open");
    let mut accepted = 0;
    let error = loop {
        match spool.submit(&many("w", 500)) {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
    };
    say(&format!("{accepted} {:?} {error}", error.class()));
    let runs = spool.runs(RunFilter::All, None, 10_000).expect("it can still be read");
    say(&format!("{}", runs.len()));
    // And written again when there is room.
    setrlimit(Resource::Fsize, Rlimit { current: None, maximum: None }).expect("setrlimit");
    spool.submit(&many("w", 500)).expect("submit");
    say("again");
}

fn kill(child: &mut Child, signal: Signal) {
    let pid = Pid::from_child(child);
    kill_process(pid, signal).expect("kill");
}

#[test]
fn nothing_accepted_is_lost_when_processes_are_killed() {
    let folder = tempfile::tempdir().expect("folder");
    let rounds = if std::env::vars().any(|(name, _)| name == "LATEBIND_LONG") { 200 } else { 12 };
    let mut ends: std::collections::BTreeMap<i64, u32> = Default::default();
    let (mut submitted, mut claims) = (0_u64, std::collections::BTreeSet::new());
    for round in 0..rounds {
        let mut pair = [child("work", folder.path()), child("work", folder.path())];
        let mut outs =
            pair.each_mut().map(|child| BufReader::new(child.stdout.take().expect("stdout")).lines());
        // Each has said some before both are killed, at no particular place.
        let mut heard: Vec<String> = Vec::new();
        for _ in 0..5 + round * 7 % 31 {
            heard.extend(outs.iter_mut().filter_map(said));
        }
        for child in &mut pair {
            kill(child, Signal::KILL);
            child.wait().expect("wait");
        }
        for mut out in outs {
            while let Some(more) = said(&mut out) {
                heard.push(more);
            }
        }
        let spool = Spool::open(folder.path()).expect("open after a kill");
        for line in heard {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |index: usize| words[index].parse::<i64>().expect("a number");
            match words[0] {
                "submitted" => {
                    submitted += 1;
                    assert!(spool.run(spool::RunId(number(1).unsigned_abs())).expect("run").is_some());
                }
                "claimed" => assert!(claims.insert(number(1)), "{line}: given twice"),
                "reported" if words[4] == "true" => {
                    *ends.entry(number(2)).or_default() += 1;
                    let detail = spool.detail(spool::PayloadId(number(2))).expect("detail").expect("there");
                    let expected = if words[3] == "0" { State::Succeeded } else { State::Failed };
                    assert_eq!(detail.row.state, expected, "{line}");
                }
                _ => {}
            }
        }
    }
    assert!(ends.values().all(|ends| *ends == 1), "a payload ended twice: {ends:?}");
    let spool = Spool::open(folder.path()).expect("open");
    let runs = spool.runs(RunFilter::All, None, 1_000_000).expect("runs");
    assert!(runs.len() as u64 >= submitted, "{} runs of {submitted}", runs.len());
    for run in runs {
        let rows = spool.payloads(run.id, &[], None, 100).expect("payloads");
        assert_eq!(rows.len(), 3, "a run is there whole or not at all");
        for state in State::ALL {
            let count = rows.iter().filter(|row| row.state == state).count() as u64;
            assert_eq!(run.counts.of(state), count, "run {}", run.id);
        }
    }
    assert!(claims.len() > 20, "they worked");
}

#[test]
fn a_stopped_process_that_holds_the_database_is_told_as_busy_and_waited_out() {
    let folder = tempfile::tempdir().expect("folder");
    let mut spool = Spool::open(folder.path()).expect("open");
    spool.submit(&many("w", 3)).expect("submit");
    let mut holder = child("hold", folder.path());
    let mut lines = BufReader::new(holder.stdout.take().expect("stdout")).lines();
    assert_eq!(said(&mut lines).as_deref(), Some("holding"));
    kill(&mut holder, Signal::STOP);
    spool.set_busy_ms(50).expect("busy");
    let error = spool.claim("p", 1, LEASE).expect_err("it is held");
    assert!(matches!(error, SpoolError::Busy), "{error:?}");
    assert_eq!(error.class(), FaultClass::Retry);
    assert_eq!(spool.runs(RunFilter::All, None, 10).expect("who reads does not wait").len(), 1);
    kill(&mut holder, Signal::KILL);
    holder.wait().expect("wait");
    assert_eq!(spool.claim("p", 1, LEASE).expect("claim")[0].claim, ClaimId(1));
}

#[test]
fn a_full_disk_is_told_and_nothing_is_half_written() {
    let folder = tempfile::tempdir().expect("folder");
    drop(Spool::open(folder.path()).expect("open"));
    // Its files may have 3 MiB; more ends in an error, as SIGXFSZ is ignored across exec.
    #[expect(
        clippy::disallowed_methods,
        reason = "the tests own the processes they start, and wait for them"
    )]
    let mut command = Command::new("sh");
    let program = std::env::current_exe().expect("this program");
    let script = "trap '' XFSZ; ulimit -S -f 3072; exec \"$0\" \"$@\"";
    command.arg("-c").arg(script).arg(program);
    command.args(["--exact", "faults::the_child_of_the_others", "--nocapture", "--test-threads=1"]);
    command.env(CHILD, format!("fill:{}", folder.path().display()));
    let output = command.stdin(Stdio::null()).output().expect("output");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines().map(|line| Ok(line.to_owned()));
    let told =
        said(&mut lines).unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    let accepted: usize = told.split(' ').next().expect("a number").parse().expect("a number");
    assert!(accepted > 0 && told.contains(" Retry write the spool"), "{told}");
    assert_eq!(said(&mut lines), Some(accepted.to_string()), "what was refused is not there");
    assert_eq!(said(&mut lines).as_deref(), Some("again"), "{}", String::from_utf8_lossy(&output.stderr));
    let spool = Spool::open(folder.path()).expect("open");
    assert_eq!(spool.runs(RunFilter::All, None, 10_000).expect("runs").len(), accepted + 1);
}
