//! Payloads a second, of a program that only exits: what the pilot itself costs.
//!
//! Warm: the slots' containers stay. Cold: each payload gets a fresh one. Every competitor has the same program. Where a
//! program has to be started first, a small amount of work is timed too, and the rate is that of the difference.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::clock::{now_ns, span_ms};
use crate::ground::Ground;
use crate::peers::{self, Peer, command};
use crate::results::Section;
use crate::site::{PROCESSORS, Site, forget_spool};

/// The small amount of work that is taken off.
const FEW: u32 = 100;
const FEW_COLD: u32 = 10;
/// The loop gets more, so that its turn is as long as ours: its pace changes with where the scheduler puts its children.
const LOOP_SHARE: u32 = 4;
/// HyperQueue gets fewer: it takes its time.
const HYPERQUEUE_SHARE: u32 = 4;
/// Podman takes a tenth of a second each.
const PODMAN_SHARE: u32 = 10;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Amount<'a> {
    /// Times that each competitor has its turn.
    pub turns: u32,
    /// Payloads of a warm turn.
    pub warm: u32,
    /// Payloads of a cold turn.
    pub cold: u32,
    /// Folder with HyperQueue's Python packages.
    pub hyperqueue: Option<&'a Path>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Run,
    RunFour,
    Serve,
    ServeFour,
    Loop,
    TwoLoops,
    HyperQueue,
}

impl Who {
    // The loop stands between those that are compared with it.
    const ALL: [Self; 7] = [
        Self::Run,
        Self::RunFour,
        Self::Loop,
        Self::Serve,
        Self::ServeFour,
        Self::TwoLoops,
        Self::HyperQueue,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Run => "latebind run",
            Self::RunFour => "latebind run, four slots",
            Self::Serve => "latebind submit and serve",
            Self::ServeFour => "latebind submit and serve, four slots",
            Self::Loop => "bare loop",
            Self::TwoLoops => "two bare loops at once",
            Self::HyperQueue => "hyperqueue",
        }
    }
}

/// Measures both kinds.
///
/// # Errors
/// When our own part fails. A peer that fails is skipped.
pub fn measure(ground: &Ground, amount: Amount<'_>) -> anyhow::Result<Value> {
    let mut section = Section::begin("throughput");
    let site = Site::new(ground, "throughput")?;
    let four = Site::new(ground, "throughput")?.with_slots(4);
    let warm_up = site.workflow(&ground.image, "/least", FEW)?;
    site.seconds(&["run", &warm_up])?;
    warm(ground, [&site, &four], amount, &mut section)?;
    cold(ground, &site, amount, &mut section)?;
    Ok(section.end())
}

fn warm(ground: &Ground, sites: [&Site; 2], amount: Amount<'_>, section: &mut Section) -> anyhow::Result<()> {
    let mut competitors = Who::ALL.to_vec();
    if amount.hyperqueue.is_none() {
        section.skip(Who::HyperQueue.name(), "it is not installed");
        competitors.pop();
    }
    for turn in 0..amount.turns as usize {
        for at in 0..competitors.len() {
            let who = competitors[(turn + at) % competitors.len()];
            match rate(who, ground, sites, amount) {
                Ok(rate) => section.add(who.name(), "warm", rate),
                Err(error) if who == Who::HyperQueue => section.skip(who.name(), &format!("{error:#}")),
                Err(error) => return Err(error.context(who.name())),
            }
        }
    }
    Ok(())
}

fn rate(who: Who, ground: &Ground, [two, four]: [&Site; 2], amount: Amount<'_>) -> anyhow::Result<f64> {
    let many = amount.warm;
    let site = if matches!(who, Who::RunFour | Who::ServeFour) { four } else { two };
    let (few_s, many_s, between) = match who {
        Who::Run | Who::RunFour => {
            (run(ground, site, FEW, "true")?, run(ground, site, many, "true")?, many - FEW)
        }
        Who::Serve | Who::ServeFour => (serve(ground, site, FEW)?, serve(ground, site, many)?, many - FEW),
        Who::Loop => (0.0, loops(ground, LOOP_SHARE * many, 1)?, LOOP_SHARE * many),
        Who::TwoLoops => (0.0, loops(ground, LOOP_SHARE * many, 2)?, 2 * LOOP_SHARE * many),
        Who::HyperQueue => {
            let packages = amount.hyperqueue.context("it is not installed")?;
            let many = many / HYPERQUEUE_SHARE;
            let [few_s, many_s] = hyperqueue(ground, packages, many)?;
            (few_s, many_s, many - FEW)
        }
    };
    ensure!(many_s > few_s, "{many_s} s for more, {few_s} s for less: the machine is too busy");
    Ok(f64::from(between) / (many_s - few_s))
}

fn run(ground: &Ground, site: &Site, count: u32, reuse: &str) -> anyhow::Result<f64> {
    let file = site.workflow(&ground.image, "/least", count)?;
    site.seconds(&["run", &file, "--reuse", reuse])
}

/// Only the serving is timed; submitting is another figure.
fn serve(ground: &Ground, site: &Site, count: u32) -> anyhow::Result<f64> {
    let file = site.workflow(&ground.image, "/least", count)?;
    let path = site.path("spool");
    let spool = path.display().to_string();
    site.seconds(&["submit", &file, "--spool", &spool])?;
    let took = site.seconds(&["serve", "--until-empty", "--spool", &spool])?;
    forget_spool(&path)?;
    Ok(took)
}

/// The seconds that `at_once` loops of `count` take, side by side.
fn loops(ground: &Ground, count: u32, at_once: usize) -> anyhow::Result<f64> {
    let start = || {
        let mut command = command(ground.program("loop"));
        command.arg(ground.program("least")).arg(count.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start the loop")
    };
    let children: Vec<_> = (0..at_once).map(|_| start()).collect::<Result<_, _>>()?;
    let mut longest_ns = 0;
    for child in children {
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "the loop: {}", output.status);
        longest_ns = longest_ns.max(peers::stamp(&output.stdout)?);
    }
    Ok(span_ms(0, longest_ns) / 1e3)
}

fn hyperqueue(ground: &Ground, packages: &Path, many: u32) -> anyhow::Result<[f64; 2]> {
    let script = ground.path("tasks.py");
    std::fs::write(&script, include_str!("../tasks.py"))?;
    // What its server leaves in TMPDIR goes with the ground.
    let mut command = command("python3");
    command.arg(script).arg(ground.program("least")).args([FEW, many, 1].map(|number| number.to_string()));
    command
        .env("PYTHONPATH", packages)
        .env("TMPDIR", ground.path(""))
        .env("HOME", ground.path(""))
        .current_dir(ground.path(""))
        .stdin(Stdio::null());
    let output = command.output().context("start python")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    ensure!(output.status.success(), "{}: {last}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let took = text.lines().find_map(|line| line.strip_prefix("took "));
    let numbers = took.and_then(|line| line.split_once(' ')).context("it told no figures")?;
    Ok([numbers.0.parse()?, numbers.1.parse()?])
}

/// A fresh container each, [`PROCESSORS`] at a time for everyone.
fn cold(ground: &Ground, site: &Site, amount: Amount<'_>, section: &mut Section) -> anyhow::Result<()> {
    let mut peers = peers::all(ground, "least")?;
    // The host's own exec is no container.
    peers.retain(|peer| peer.name != "fork+exec");
    peers.retain(|peer| match peer.silent(0) {
        Ok(()) => true,
        Err(error) => {
            section.skip(peer.name, &format!("{error:#}"));
            false
        }
    });
    for turn in 0..amount.turns as usize {
        for at in 0..=peers.len() {
            match peers.get((turn + at) % (peers.len() + 1)) {
                None => {
                    let few_s = run(ground, site, FEW_COLD, "false")?;
                    let many_s = run(ground, site, amount.cold, "false")?;
                    let rate = f64::from(amount.cold - FEW_COLD) / (many_s - few_s);
                    section.add("latebind run", "cold", rate);
                }
                Some(peer) => match side_by_side(peer, amount.cold) {
                    Ok(rate) => section.add(peer.name, "cold", rate),
                    Err(error) => section.skip(peer.name, &format!("one turn: {error:#}")),
                },
            }
        }
    }
    peers::leave(ground);
    Ok(())
}

fn side_by_side(peer: &Peer, count: u32) -> anyhow::Result<f64> {
    let each = if peer.name == "podman" { count / PODMAN_SHARE } else { count } / PROCESSORS;
    let began = now_ns();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..PROCESSORS)
            .map(|thread| {
                let numbers = thread * each..(thread + 1) * each;
                scope.spawn(move || numbers.into_iter().try_for_each(|number| peer.silent(number)))
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("starting it panicked")))
        })
    })?;
    Ok(f64::from(each * PROCESSORS) / (span_ms(began, now_ns()) / 1e3))
}
