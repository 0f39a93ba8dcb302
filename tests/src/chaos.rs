//! A spool with a pilot that serves it, and that is killed and started again as often as a test likes.
//!
//! Whatever a killed pilot leaves becomes a child of the test process (see [`crate::baseline`]); [`Service::reap`] takes its
//! dead away, as an init would.
//!
//! **Must not know:** the pilot's inside; it looks at processes, files and the spool.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use spool::{Row, RunId, Spool, State};

use crate::baseline::pids_below;
use crate::run::{Ran, SOON, Site, signal, within};

/// Longest wait for a run: every payload of a test takes less than a few seconds, on a busy machine a few times that.
const RUN: Duration = Duration::from_secs(90);
/// More than any test submits.
const ROWS: u32 = 100_000;

/// A place with a folder `go`, for payloads that wait for a file in it.
#[must_use]
pub fn place(test: &str) -> Option<Site> {
    let site = Site::new(test)?;
    std::fs::create_dir(site.path().join("go")).expect("mkdir");
    Some(site)
}

/// Stops the pilot and looks for leftovers.
pub fn end(site: &Site, service: &mut Service<'_>) {
    service.stop().assert_code(0);
    service.reap();
    site.assert_baseline();
}

/// How a payload came to its end, in words; empty before.
#[must_use]
pub fn outcome(row: &Row) -> String {
    row.outcome.as_ref().map(|outcome| outcome.conclusion.to_string()).unwrap_or_default()
}

/// Fails unless a payload has succeeded in just so many tries.
///
/// # Panics
/// When it has not.
pub fn assert_done(site: &Site, run: RunId, name: &str, tries: u32) {
    let row = row(site, run, name);
    assert_eq!((row.state, row.attempt), (State::Succeeded, tries), "{:?}", brief(&rows(site, run)));
}

/// A process in a slot's container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inmate {
    /// Outside.
    pub pid: u32,
    /// In its container; 1 is the shim.
    pub inner: u32,
    /// Its name (proc(5), comm).
    pub name: String,
}

impl Inmate {
    /// Whether it is the shim or its stage holder, and no payload's.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.inner == 1 || self.name == "stage-holder"
    }
}

/// One pilot's service of the spool `spool` of a place.
#[derive(Debug)]
pub struct Service<'a> {
    site: &'a Site,
    name: String,
    more: Vec<String>,
    lives: u32,
    child: Option<Child>,
}

impl<'a> Service<'a> {
    /// A pilot of this name, with these arguments, that is not started yet.
    #[must_use]
    pub fn new(site: &'a Site, name: &str, more: &[&str]) -> Self {
        let more = more.iter().map(|argument| (*argument).to_owned()).collect();
        Self { site, name: name.to_owned(), more, lives: 0, child: None }
    }

    /// Other arguments from the next start on.
    pub fn change(&mut self, more: &[&str]) {
        self.more = more.iter().map(|argument| (*argument).to_owned()).collect();
    }

    /// Starts it without waiting for anything.
    ///
    /// # Panics
    /// When it runs already or can't be started.
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "it runs");
        self.lives += 1;
        let mut arguments = vec!["serve", "--spool", "spool", "--name", &self.name, "--output", "json"];
        arguments.extend(self.more.iter().map(String::as_str));
        let file = |end: &str| std::fs::File::create(self.log(end)).expect("log");
        let mut pilot = self.site.pilot(&arguments);
        let child = pilot.stdout(file("out")).stderr(file("err")).spawn().expect("start the pilot");
        self.child = Some(child);
    }

    /// Starts it and waits until it serves; gives how many payloads it adopted.
    ///
    /// # Panics
    /// When it does not come to that.
    pub fn start(&mut self) -> u64 {
        self.launch();
        let mut adopted = None;
        let came = within(SOON, || {
            let text = std::fs::read_to_string(self.log("out")).unwrap_or_default();
            let first = text.split_once('\n').map(|(first, _)| first).unwrap_or_default();
            let event: serde_json::Value = serde_json::from_str(first).unwrap_or_default();
            adopted = event["adopted"].as_u64();
            adopted.is_some()
        });
        assert!(came, "{} does not serve: {}", self.name, self.said());
        adopted.unwrap_or_default()
    }

    fn log(&self, end: &str) -> PathBuf {
        self.site.path().join(format!("serve-{}-{}.{end}", self.name, self.lives))
    }

    /// What it has said on stderr in this life.
    #[must_use]
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.log("err")).unwrap_or_default()
    }

    /// Its PID, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&self, what: Signal) {
        signal(self.child.as_ref().expect("it runs"), what);
    }

    /// Kills it with -9, if it runs.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to stop and waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(&mut self) -> Ran {
        self.signal(Signal::TERM);
        self.ended()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    pub fn ended(&mut self) -> Ran {
        let mut child = self.child.take().expect("it runs");
        let came = within(RUN, || {
            self.reap_but(&[child.id()]);
            matches!(child.try_wait(), Ok(Some(_)))
        });
        if !came {
            let _ = child.kill();
        }
        let status = child.wait().expect("wait for the pilot");
        assert!(came, "{} did not end: {}", self.name, self.said());
        let read = |end: &str| std::fs::read(self.log(end)).unwrap_or_default();
        Ran::from(&std::process::Output { status, stdout: read("out"), stderr: read("err") })
    }

    /// Takes dead children away that are not the pilot.
    pub fn reap(&self) {
        self.reap_but(&self.pid().into_iter().collect::<Vec<_>>());
    }

    fn reap_but(&self, keep: &[u32]) {
        for pid in children().into_iter().filter(|pid| !keep.contains(pid)) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
    }

    /// Submits a workflow; gives the run's number. Its logs and outputs go to `<name>-<number>.out`.
    ///
    /// # Panics
    /// When it is not taken.
    pub fn submit(&self, workflow: &str) -> RunId {
        submit(self.site, workflow)
    }

    /// Waits until every payload of a run has ended; gives them.
    ///
    /// # Panics
    /// When that does not come.
    pub fn wait(&self, run: RunId) -> Vec<Row> {
        let mut rows = Vec::new();
        let spool = spool(self.site);
        let done = within(RUN, || {
            self.reap();
            rows = spool.payloads(run, &[], None, ROWS).expect("payloads");
            rows.iter().all(|row| row.state.is_final())
        });
        assert!(done, "run {run} does not end: {:?}\n{}", brief(&rows), self.said());
        rows
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        // Only when the test has failed: nothing may outlive it.
        self.kill();
        if std::thread::panicking() {
            inmates().iter().for_each(|inmate| kill(inmate.pid));
        }
        self.reap();
    }
}

/// The spool of a place.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn spool(site: &Site) -> Spool {
    Spool::open_existing(&site.path().join("spool")).expect("spool")
}

/// Submits a workflow to the spool of a place; see [`Service::submit`].
///
/// # Panics
/// When it is not taken.
pub fn submit(site: &Site, workflow: &str) -> RunId {
    site.write("workflow.yaml", workflow);
    let ran = site.ask(&["submit", "workflow.yaml", "--quiet", "--spool", "spool"]);
    ran.assert_code(0);
    RunId(ran.stdout.trim().parse().expect("a run's number"))
}

/// The payloads of a run, in their order.
///
/// # Panics
/// When the spool can't be read.
#[must_use]
pub fn rows(site: &Site, run: RunId) -> Vec<Row> {
    spool(site).payloads(run, &[], None, ROWS).expect("payloads")
}

/// One payload.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn row(site: &Site, run: RunId, name: &str) -> Row {
    spool(site).payload(run, name).expect("payload").unwrap_or_else(|| panic!("no payload {name}"))
}

/// Waits until a payload stands so.
///
/// # Panics
/// When that does not come.
pub fn wait_state(site: &Site, run: RunId, name: &str, state: State) {
    let came = within(SOON, || row(site, run, name).state == state);
    assert!(came, "{name} is not {state}: {:?}", row(site, run, name));
}

/// Names, states, tries and ends, for a test that has failed.
#[must_use]
pub fn brief(rows: &[Row]) -> Vec<String> {
    let end = |row: &Row| row.outcome.as_ref().map(|outcome| outcome.conclusion.to_string());
    rows.iter()
        .map(|row| format!("{} {} try {} {}", row.name, row.state, row.attempt, end(row).unwrap_or_default()))
        .collect()
}

/// A file in the folder of a run of the workflow `w`.
#[must_use]
pub fn out(site: &Site, run: RunId, name: &str) -> String {
    site.read(&format!("w-{run}.out/{name}"))
}

/// A payload's standard output.
#[must_use]
pub fn stdout(site: &Site, run: RunId, payload: &str) -> String {
    out(site, run, &format!("logs/{payload}.stdout"))
}

/// Waits until a payload has written this.
///
/// # Panics
/// When it does not come.
pub fn wait_text(site: &Site, run: RunId, payload: &str, text: &str) {
    let came = within(SOON, || stdout(site, run, payload).contains(text));
    assert!(came, "{payload} never wrote {text:?}: {:?}", brief(&rows(site, run)));
}

/// All processes in containers below this test process.
#[must_use]
pub fn inmates() -> Vec<Inmate> {
    pids_below(std::process::id()).into_iter().filter_map(inmate).collect()
}

fn inmate(pid: u32) -> Option<Inmate> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = |word: &str| status.lines().find_map(|line| line.strip_prefix(word)).map(str::trim);
    if line("State:")?.starts_with('Z') {
        return None;
    }
    let numbers: Vec<&str> = line("NSpid:")?.split_whitespace().collect();
    let inner = numbers.get(1..)?.last()?.parse().ok()?;
    Some(Inmate { pid, inner, name: line("Name:")?.to_owned() })
}

/// Kills a process below this one.
pub fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Own children that have ended and were not waited for.
fn children() -> BTreeSet<u32> {
    let own = std::process::id();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let dead_child = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ')).into_iter().flatten();
        fields.next() == Some("Z") && fields.next().and_then(|parent| parent.parse().ok()) == Some(own)
    };
    pids.filter(dead_child).collect()
}

/// Files below a folder, at any depth.
#[must_use]
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

/// A small seeded generator (xorshift64*).
#[derive(Clone, Debug)]
pub struct Draw(pub u64);

impl Draw {
    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        if end == 0 { 0 } else { drawn % end }
    }
}
