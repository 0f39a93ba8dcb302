//! A pilot that serves in its pod: slots bound ahead, warm slots, what it asks the API server, what it weighs.
//!
//! **Must not know:** how slots are bound.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use pilot_tests::kube::Answer;
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::Amount;
use super::peers::Objects;
use super::place::{Place, REQUESTS};
use crate::clock::{now_ns, span_ms};
use crate::ground::Ground;
use crate::results::Section;
use crate::site::{Site, cpu_ms, forget_spool, kib};

/// Payloads that pass before the pace is measured: the slots are warm then.
const FIRST: usize = 100;
/// What each warm slot is promised, in thousandths of a processor.
const WARM_REQUESTS: u32 = 500;
/// Jobs that are made at once.
const JOBS: u32 = 10;
/// Of a payload that is bound ahead of, in milliseconds.
const SPAN_MS: u32 = 2000;
/// Longest wait for a run, in seconds.
const PATIENCE: &str = "600s";
/// Threads that only worked for the payloads are gone by then (tokio keeps them for 10 s).
const SETTLE: Duration = Duration::from_secs(12);
/// Verbs that a pilot has no right to, and no need of.
const OTHER_VERBS: [&str; 3] = ["watch", "list", "get"];

/// Payloads one at a time in two slots: one runs while the next is bound.
pub(super) fn ahead(place: &Place, rounds: u32, section: &mut Section) -> anyhow::Result<()> {
    // Each payload asks for more than half of what the slots have together, so two never run at once.
    let pilot = Serving::new(place, "gap", &[1500, 1000], REQUESTS)?;
    let mut text = header(1300);
    for number in 0..=rounds {
        let image = place.image(1000 + number)?;
        text += &format!("  - {{name: p{number}, image: {image:?}, command: [/span, \"{SPAN_MS}\"]}}\n");
    }
    let before = pilot.requests().len();
    let run = pilot.submit(&text, "gap")?;
    pilot.wait(&run)?;
    let requests = pilot.requests().len() - before;
    section.add("served", "API requests a payload, cold [1]", requests as f64 / f64::from(rounds + 1));
    let rows = pilot.rows(&run)?;
    // What the spool's clock is ahead of the payloads'.
    let wall = clock_gettime(ClockId::Realtime);
    let offset_ms = wall.tv_sec as f64 * 1e3 + wall.tv_nsec as f64 / 1e6 - span_ms(0, now_ns());
    let mut spans = Vec::new();
    for row in &rows {
        let name = row["payload"].as_str().context("a payload's name")?;
        let path = pilot.share.join(format!("pilot/gap/logs/{name}.stdout"));
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let (began, ended) = text.trim().split_once(' ').context("two moments")?;
        let (began, ended): (u64, u64) = (began.parse()?, ended.parse()?);
        spans.push((began, ended));
        let known_ms = row["ended_unix_ms"].as_f64().context("ended_unix_ms")?;
        section.add("served", "end in the spool", known_ms - (span_ms(0, ended) + offset_ms));
    }
    spans.sort_unstable();
    for pair in spans.windows(2) {
        ensure!(pair[1].0 > pair[0].1, "two ran at once");
        section.add("served", "gap between two, bound ahead", span_ms(pair[0].1, pair[1].0));
    }
    pilot.end();
    Ok(())
}

/// Payloads that follow each other in warm slots, beside the local backend and beside Jobs; then nothing at all.
pub(super) async fn warm(
    ground: &Ground,
    place: &Place,
    amount: Amount,
    section: &mut Section,
) -> anyhow::Result<()> {
    let image = place.image(0)?;
    let pilot = Serving::new(place, "warm", &[1000, 1000], WARM_REQUESTS)?;
    let array = |count: u32| {
        format!("{}  - {{name: p, image: {image:?}, command: [/least], count: {count}}}\n", header(1000))
    };
    pilot.wait(&pilot.submit(&array(FIRST as u32), "first")?)?;
    let site = Site::new(ground, "kube")?;
    let (few, many) = (FIRST as u32, amount.payloads);
    let files = [few, many].map(|count| site.workflow(&ground.image, "/least", count));
    let [few_file, many_file] = files;
    let (few_file, many_file) = (few_file?, many_file?);
    let before = pilot.requests().len();
    let mut objects = Objects::new(place)?;
    for turn in 0..amount.turns {
        for at in 0..3 {
            match (turn + at) % 3 {
                0 => {
                    let run = pilot.submit(&array(many), &format!("warm-{turn}"))?;
                    pilot.wait(&run)?;
                    section.add("served", "warm payloads a second [/s]", rate(&pilot.rows(&run)?)?);
                }
                1 => section.add("local serve", "warm payloads a second [/s]", local(&site, &many_file)?),
                _ => {
                    let less = site.seconds(&["run", &few_file])?;
                    let more = site.seconds(&["run", &many_file])?;
                    section.add(
                        "local run",
                        "warm payloads a second [/s]",
                        f64::from(many - few) / (more - less),
                    );
                }
            }
        }
        section.add("Job", "payloads a second, 10 at once [/s]", objects.jobs(&image, JOBS).await?);
    }
    let requests = pilot.requests().len() - before;
    let payloads = f64::from(amount.turns) * f64::from(many);
    section.add("served", "API requests a payload, warm [1]", requests as f64 / payloads);
    let others = |event: &&Value| event["verb"].as_str().is_some_and(|verb| OTHER_VERBS.contains(&verb));
    let others = pilot.requests().iter().filter(others).count();
    section.add("served", "API requests to watch, list or get, in all [1]", others as f64);
    idle(&pilot, amount.idle, section)?;
    pilot.end();
    Ok(())
}

/// A pilot whose slots are warm, and nothing to do.
fn idle(pilot: &Serving<'_>, span: Duration, section: &mut Section) -> anyhow::Result<()> {
    let pid = pilot.pid()?;
    std::thread::sleep(SETTLE);
    let (began, cpu) = (now_ns(), cpu_ms(pid)?);
    std::thread::sleep(span);
    let share = (cpu_ms(pid)? - cpu) / span_ms(began, now_ns());
    section.add("served", "idle, share of a processor [%]", share * 100.0);
    section.add("served", "idle, rss [KiB]", kib(pid, "status", "VmRSS")?);
    section.add("served", "idle, rss at most [KiB]", kib(pid, "status", "VmHWM")?);
    Ok(())
}

/// The same payloads by `serve` without a pod.
fn local(site: &Site, file: &str) -> anyhow::Result<f64> {
    let path = site.path("spool");
    let spool = path.display().to_string();
    site.seconds(&["submit", file, "--spool", &spool])?;
    site.seconds(&["serve", "--until-empty", "--spool", &spool])?;
    let mut list = site.command(&["ls", "1", "--output", "json", "--spool", &spool]);
    let output = list.stderr(Stdio::null()).output().context("start pilot ls")?;
    forget_spool(&path)?;
    rate(&rows(&String::from_utf8_lossy(&output.stdout)))
}

/// Payloads a second, of all but the first ones, by the spool's own times.
fn rate(rows: &[Value]) -> anyhow::Result<f64> {
    let mut ended: Vec<u64> = rows.iter().filter_map(|row| row["ended_unix_ms"].as_u64()).collect();
    ended.sort_unstable();
    ensure!(
        rows.len() == ended.len() && ended.len() > 2 * FIRST,
        "{} of {} have ended",
        ended.len(),
        rows.len()
    );
    let count = ended.len() - FIRST;
    Ok(count as f64 / ((ended[ended.len() - 1] - ended[FIRST - 1]) as f64 / 1e3))
}

fn rows(text: &str) -> Vec<Value> {
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let rows = lines.flat_map(|line| line["payloads"].as_array().cloned().unwrap_or_else(|| vec![line]));
    rows.filter(|row| row["kind"] == "payload").collect()
}

fn header(cpu_millis: u32) -> String {
    format!(
        "apiVersion: latebind/v1\nmetadata: {{name: bench}}\ndefaults: {{walltime: 60s, resources: {{cpu: {cpu_millis}m, memory: \
         64Mi}}}}\npayloads:\n"
    )
}

/// The pod.
struct Serving<'p> {
    place: &'p Place,
    name: &'static str,
    uid: String,
    share: PathBuf,
}

impl<'p> Serving<'p> {
    fn new(place: &'p Place, name: &'static str, slots: &[u64], requests: u32) -> anyhow::Result<Self> {
        let pod = place.start(&place.manifest(name, slots, requests)?)?;
        let uid = pod["metadata"]["uid"].as_str().context("the pod's uid")?.to_owned();
        let serving = Self { place, name, uid, share: place.share(&pod)? };
        let serves = || serving.pilot(&["top", "--once", "--output", "json"], "").code == 0;
        ensure!(
            pilot_tests::run::within(Duration::from_secs(60), serves),
            "the pilot in pod {name} does not serve"
        );
        Ok(serving)
    }

    fn pilot(&self, arguments: &[&str], stdin: &str) -> Answer {
        let mut all = vec!["exec", "-i", self.name, "-c", "pilot", "--", "/latebind/pilot"];
        all.extend(arguments);
        self.place.namespace.kubectl(&all, stdin)
    }

    fn submit(&self, workflow: &str, out: &str) -> anyhow::Result<String> {
        let out = format!("/latebind/share/pilot/{out}");
        let answer = self.pilot(&["submit", "/dev/stdin", "--quiet", "--out", &out], workflow);
        ensure!(answer.code == 0, "submit: {}", answer.stderr);
        Ok(answer.stdout.trim().to_owned())
    }

    fn wait(&self, run: &str) -> anyhow::Result<()> {
        let answer = self.pilot(&["wait", run, "--timeout", PATIENCE], "");
        ensure!(answer.code == 0, "wait: {}{}", answer.stdout, answer.stderr);
        Ok(())
    }

    fn rows(&self, run: &str) -> anyhow::Result<Vec<Value>> {
        let answer = self.pilot(&["ls", run, "--output", "json"], "");
        ensure!(answer.code == 0, "ls: {}", answer.stderr);
        Ok(rows(&answer.stdout))
    }

    /// All that pilots of this namespace asked the API server.
    fn requests(&self) -> Vec<Value> {
        self.place.node().requests_of(self.place.namespace.name())
    }

    /// The pilot's process, as this machine has it.
    fn pid(&self) -> anyhow::Result<u32> {
        let read =
            |pid: u32, name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let entries = fs::read_dir("/proc")?.flatten();
        let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let is_its =
            |pid: &u32| read(*pid, "comm").trim() == "pilot" && read(*pid, "cgroup").contains(&self.uid);
        pids.find(is_its).context("the pilot's process")
    }

    fn end(self) {
        self.place.remove(self.name);
    }
}
