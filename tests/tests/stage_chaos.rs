//! Kills at random moments while payloads hand each other stages: of a producer, a consumer, a stage holder, a shim, the pilot, of
//! all at once.
//!
//! A round is one kill. What producers write is new in each try, and they note its digest; who reads it tells what it found, twice.
//! So a stage that changed, or came from nowhere, is seen. While no pilot lives, the files that are committed and wanted are
//! looked at where they lie: none may be missing, none may have changed. The settings are those of `chaos.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use image_store::Digest;
use pilot_tests::baseline::pids_below;
use pilot_tests::chaos::{Draw, Inmate, Service, brief, files, inmates, kill, rows, spool, stdout};
use pilot_tests::note;
use pilot_tests::rounds::{Notes, Rounds};
use pilot_tests::run::{SOON, Site, flow, sh, within};
use spool::{Detail, Row, RunId, State};

const ROUNDS: u64 = 100;
/// Kills upon one run; fewer than the disruptions that a payload stands (five).
const KILLS_MAX: u64 = 5;
const DISRUPTIONS: u32 = 5;

/// Each stage by the name that its readers have for it: who makes it, what it is called there, who reads it.
const STAGES: [(&str, &str, &str, &[&str]); 9] = [
    ("f-0", "file-0", "f", &["chain", "fan-0", "fan-1", "fan-2"]),
    ("f-1", "file-1", "f", &["chain", "fan-0", "fan-1", "fan-2"]),
    ("m", "mem", "m", &["chain", "fan-0", "fan-1", "fan-2"]),
    ("c", "client", "c", &["fan-0", "fan-1", "fan-2"]),
    ("v", "client", "v", &["fan-0", "fan-1", "fan-2"]),
    ("w", "value", "w", &["fan-0", "fan-1", "fan-2"]),
    ("g", "chain", "g", &["fan-0", "fan-1", "fan-2", "last"]),
    ("h", "chain", "h", &["last"]),
    ("o", "once", "o", &["needs"]),
];
/// Those in files.
const FILES: [&str; 3] = ["f-0", "f-1", "h"];
const PRODUCERS: [&str; 6] = ["file-", "mem", "client", "value", "chain", "once"];

// Under `set -e` the end of a program that was killed is the end of its payload only where nothing hides it, as a pipe would.
const TELL: &str = "tell() { for x in /stage/in/*; do [ $x = /stage/in/notes ] || \
    found ${x##*/} $x; done; }; ";
const NOTE: &str = "note() { echo $LATEBIND_PAYLOAD $1 $2 > /stage/in/notes/fifo; }; \
    sum() { d=$(busybox sha256sum < $2); note $1 ${d%% *}; }; found() { d=$(busybox sha256sum < $2); echo $1 ${d%% *}; }; \
    some() { head -c $1 /dev/urandom; }; note started; ";

fn noted(name: &str, script: &str, inputs: &str, fields: &str) -> String {
    let inputs = format!("inputs: [{{name: notes, from: ./notes}}{inputs}], {fields}");
    sh(name, &format!("set -e; {NOTE}{TELL}{script}"), &inputs)
}

/// Inputs of these names.
fn reads(names: &[&str]) -> String {
    let from = |name: &&str| match *name {
        "f" => "file",
        "m" => "mem",
        "c" | "v" => "client",
        "w" => "value",
        "o" => "once",
        _ => "chain",
    };
    names.iter().map(|name| format!(", {{name: {name}, from: 'stage://{}/{name}'}}", from(name))).collect()
}

/// Files, memory and values, by path and through a client; a chain, a fan, what may be made only once.
fn load() -> String {
    flow(&[
        noted(
            "file",
            "some 90000 > /stage/out/f; sum f /stage/out/f; sleep 0.05",
            "",
            "count: 2, retries: 20, outputs: [{name: f}]",
        ),
        noted(
            "mem",
            "sleep 0.05; some 90000 > /stage/out/m; sum m /stage/out/m",
            "",
            "retries: 20, outputs: [{name: m, class: mem, max_size: 1Mi}]",
        ),
        noted(
            "client",
            "n=$((100000 + $(some 2 | od -An -tu2))); note c $n; stages make c $n; sleep 0.05; \
             t=$(some 20 | od -An -tx1); echo -n \"$t\" > /work/v; sum v /work/v; stages put v \"$t\"",
            "",
            "retries: 20, outputs: [{name: c, class: mem, max_size: 1Mi}, {name: v, class: value}]",
        ),
        noted(
            "value",
            "some 300 > /stage/out/w; sum w /stage/out/w",
            "",
            "retries: 20, outputs: [{name: w, class: value}]",
        ),
        noted(
            "chain",
            "tell; some 50000 > /stage/out/g; sum g /stage/out/g; some 50000 > /stage/out/h; sum h /stage/out/h; tell",
            &reads(&["f", "m"]),
            "retries: 20, outputs: [{name: g, class: mem, max_size: 1Mi}, {name: h}]",
        ),
        noted(
            "fan",
            "tell; sleep 0.05; tell",
            &reads(&["f", "m", "c", "v", "w", "g"]),
            "count: 3, retries: 20",
        ),
        noted(
            "last",
            // Without its pilot a client finds nobody, and then this is a try of its own.
            "tell; for x in g h; do stages cat $x > /work/$x; found $x /work/$x; done",
            &reads(&["g", "h"]),
            "retries: 20",
        ),
        noted(
            "once",
            "some 90000 > /stage/out/o; sum o /stage/out/o",
            "",
            "at_most_once: true, outputs: [{name: o, class: mem, max_size: 1Mi}]",
        ),
        noted("needs", "tell; sleep 0.1; tell", &reads(&["o"]), "retries: 20"),
    ])
}

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Pilot,
    Producer,
    Consumer,
    Holder,
    Shim,
    All,
}

const VICTIMS: [Victim; 9] = [
    Victim::Pilot,
    Victim::Producer,
    Victim::Pilot,
    Victim::Consumer,
    Victim::Pilot,
    Victim::Holder,
    Victim::Shim,
    Victim::All,
    Victim::Pilot,
];

impl Victim {
    fn is(self, inmate: &Inmate) -> bool {
        match self {
            Self::Producer | Self::Consumer => {
                let makes = |name: &String| PRODUCERS.iter().any(|makes| name.starts_with(makes));
                !inmate.is_ours()
                    && payload(inmate.pid).is_some_and(|name| makes(&name) == (self == Self::Producer))
            }
            Self::Holder => inmate.inner != 1 && inmate.name == "stage-holder",
            Self::Shim => inmate.inner == 1,
            Self::All => true,
            Self::Pilot => false,
        }
    }
}

/// Which payload a process belongs to.
fn payload(pid: u32) -> Option<String> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = environment.split(|byte| *byte == 0);
    let name = variables.find_map(|variable| variable.strip_prefix(b"LATEBIND_PAYLOAD="))?;
    String::from_utf8(name.to_vec()).ok()
}

/// Files at rest: by run, payload, try and output, the digest that was seen first.
#[derive(Default)]
struct Rest {
    seen: BTreeMap<(RunId, String, u32, String), Digest>,
    looked: u64,
}

impl Rest {
    /// Looks at the files of a run while no pilot lives: what the spool says is made, and someone will read, must be there.
    fn look(&mut self, site: &Site, run: RunId) {
        let rows = rows(site, run);
        let of = |name: &str| rows.iter().find(|row| row.name == name).expect("a payload");
        for (_, producer, output, readers) in STAGES.iter().filter(|stage| FILES.contains(&stage.0)) {
            let row = of(producer);
            let wanted = readers.iter().any(|reader| !of(reader).state.is_final());
            if row.state != State::Succeeded || !wanted {
                continue;
            }
            let path: PathBuf =
                ["scratch/pilots/p/stages", &format!("w.{run}"), producer, output].iter().collect();
            let bytes = std::fs::read(site.path().join(&path));
            let bytes =
                bytes.unwrap_or_else(|error| panic!("{}: {error}: {:?}", path.display(), brief(&rows)));
            let key = (run, (*producer).to_owned(), row.attempt, (*output).to_owned());
            let digest = Digest::of(&bytes);
            let first = self.seen.entry(key).or_insert(digest);
            assert_eq!(*first, digest, "{} changed: {:?}", path.display(), brief(&rows));
            self.looked += 1;
        }
    }
}

/// One kill; the pilot runs again afterwards. Gives how many payloads were adopted.
fn strike(pilot: &mut Service<'_>, victim: Victim, draw: &mut Draw, mut at_rest: impl FnMut()) -> u64 {
    if matches!(victim, Victim::Pilot | Victim::All) {
        pilot.kill();
    }
    let those: Vec<Inmate> = inmates().into_iter().filter(|inmate| victim.is(inmate)).collect();
    if victim == Victim::All {
        those.iter().for_each(|inmate| kill(inmate.pid));
    } else if let Some(one) = those.get(usize::try_from(draw.below(those.len() as u64)).unwrap_or(0)) {
        kill(one.pid);
    }
    if pilot.pid().is_some() {
        return 0;
    }
    std::thread::sleep(Duration::from_millis([0, 0, 20, 300][usize::try_from(draw.below(4)).unwrap_or(0)]));
    pilot.reap();
    at_rest();
    // One in three is killed again before it has found its feet.
    if draw.below(3) == 0 {
        pilot.launch();
        std::thread::sleep(Duration::from_millis(draw.below(80)));
        pilot.kill();
        at_rest();
    }
    pilot.start()
}

/// What producers noted: how often each was started, and what each output was, in all tries.
#[derive(Debug, Default)]
struct Noted {
    starts: BTreeMap<String, u32>,
    made: BTreeMap<(String, String), BTreeSet<String>>,
}

impl Noted {
    fn take(&mut self, notes: &Notes) {
        for line in notes.take() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                [name, "started", ""] | [name, "started"] => {
                    *self.starts.entry(name.to_owned()).or_insert(0) += 1
                }
                [name, output, what] => {
                    // What the client's program writes follows from its size.
                    let what =
                        what.parse().map_or_else(|_| what.to_owned(), |bytes| Digest::of(&made(bytes)).hex());
                    self.made.entry((name.to_owned(), output.to_owned())).or_default().insert(what);
                }
                _ => panic!("a payload noted {line:?}"),
            }
        }
    }
}

/// What `stages make` writes.
fn made(bytes: u32) -> Vec<u8> {
    (0..bytes).map(|at| (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect()
}

/// Looks at every payload of a run that has ended.
fn judge(site: &Site, run: RunId, noted: &Noted, struck: &[Victim]) {
    let spool = spool(site);
    let rows = spool.payloads(run, &[], None, 1000).expect("payloads");
    let told = || format!("{struck:?}: {:?}, {noted:?}", brief(&rows));
    for row in &rows {
        let detail = spool.detail(row.id).expect("detail").expect("a payload");
        judge_end(&detail, noted, struck).unwrap_or_else(|why| panic!("{} {why}: {}", row.name, told()));
        let reads: Vec<_> = STAGES.iter().filter(|stage| stage.3.contains(&row.name.as_str())).collect();
        if row.state != State::Succeeded || reads.is_empty() {
            continue;
        }
        let text = stdout(site, run, &row.name);
        for (input, producer, output, _) in &reads {
            let found: Vec<&str> =
                text.lines().filter_map(|line| line.strip_prefix(&format!("{input} "))).collect();
            let made = noted.made.get(&((*producer).to_owned(), (*output).to_owned()));
            let is_made = |digest: &&str| made.is_some_and(|made| made.contains(*digest));
            let same = found.windows(2).all(|pair| pair[0] == pair[1]);
            assert!(
                found.len() == 2 && same && found.iter().all(is_made),
                "{} found {input} as {found:?}: {}",
                row.name,
                told()
            );
        }
    }
}

fn judge_end(detail: &Detail, noted: &Noted, struck: &[Victim]) -> Result<(), String> {
    let Row { name, state, attempt, outcome, .. } = &detail.row;
    let end = outcome.as_ref().map(|outcome| outcome.conclusion.to_string()).unwrap_or_default();
    let started = noted.starts.get(name).copied().unwrap_or(0);
    if started > *attempt {
        return Err(format!("was started {started} times in {attempt} tries"));
    }
    if name == "once" && started > 1 {
        return Err("ran twice".to_owned());
    }
    let exhausted = detail.disrupted >= DISRUPTIONS;
    let fits = match (name.as_str(), state) {
        (_, State::Succeeded) => started > 0,
        ("once", State::Lost | State::Failed) => !struck.is_empty(),
        ("needs", State::Failed) => end.contains("may run only once") || exhausted,
        ("needs", State::Skipped) => true,
        (_, State::Skipped) => true,
        _ => exhausted,
    };
    if fits {
        Ok(())
    } else {
        Err(format!("ended as {state} ({end}), after {} disruptions", detail.disrupted))
    }
}

/// Memory of stages that some process still has a descriptor of.
fn memory() -> Vec<String> {
    let fds = pids_below(std::process::id()).into_iter().flat_map(|pid| {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        entries.filter_map(move |entry| {
            let link = std::fs::read_link(entry.path()).ok()?.display().to_string();
            Some(format!("{pid} {link}")).filter(|_| {
                STAGES.iter().any(|(_, _, output, _)| link.starts_with(&format!("/memfd:{output} ")))
            })
        })
    });
    fds.collect()
}

#[test]
fn whatever_is_killed_no_stage_changes_and_no_committed_file_is_lost() {
    let test = "whatever_is_killed_no_stage_changes_and_no_committed_file_is_lost";
    let Some(site) = Site::with_clients(test) else { return };
    let mut chance = Rounds::begin("stage chaos", ROUNDS);
    let notes = Notes::new(&site);
    let mut pilot = Service::new(&site, "p", &["--slots", "3", "-v"]);
    pilot.start();
    let work = load();
    let (mut done, mut runs, mut adopted, mut again) = (0, 0, 0, 0);
    let mut of_each = BTreeMap::new();
    let mut rest = Rest::default();
    while done < chance.count {
        let mut noted = Noted::default();
        let run = pilot.submit(&work);
        let mut struck = Vec::new();
        for _ in 0..(2 + chance.draw.below(KILLS_MAX - 1)).min(chance.count - done) {
            std::thread::sleep(Duration::from_millis(chance.draw.below(350)));
            let victim = VICTIMS[usize::try_from(chance.draw.below(VICTIMS.len() as u64)).unwrap_or(0)];
            adopted += strike(&mut pilot, victim, &mut chance.draw, || rest.look(&site, run));
            noted.take(&notes);
            struck.push(victim);
            *of_each.entry(format!("{victim:?}")).or_insert(0_u32) += 1;
        }
        again += pilot.wait(run).iter().map(|row| u64::from(row.attempt.saturating_sub(1))).sum::<u64>();
        noted.take(&notes);
        judge(&site, run, &noted, &struck);
        (done, runs) = (done + struck.len() as u64, runs + 1);
    }
    // Nothing is left of what was handed on, neither on disk nor in memory.
    let stages = site.path().join("scratch/pilots/p/stages");
    let gone = within(SOON * 2, || files(&stages).is_empty() && memory().is_empty());
    assert!(gone, "stages are left: {:?} {:?}", files(&stages), memory());
    pilot.stop().assert_code(0);
    pilot.reap();
    drop(notes);
    site.assert_baseline();
    note(&format!(
        "stage chaos: seed {}, {done} rounds ({of_each:?}) upon {runs} runs, {adopted} adoptions, {again} tries again, {} looks at \
         files at rest, {} s",
        chance.seed,
        rest.looked,
        chance.seconds()
    ));
}
