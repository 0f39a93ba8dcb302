//! `pilot wait RUN...`: until runs have ended; then the code that `pilot run` would have given.

use std::path::Path;

use pilot_core::RunExit;
use spool::{Counts, Found, Row, Run, RunId, RunStatus, SpoolError, State};
use tokio::time::{Duration, Instant};

use crate::cli::{OutputFormat, WaitArgs, complain};
use crate::commands::grid::painted;
use crate::commands::spooled::{Face, Opened, Pace, failed, open, print};
use crate::commands::standing::{counts_words, run_json, run_tone, words};
use crate::config::{Settings, Surroundings};
use crate::ui::{cut, duration, elapsed, printable};

/// Between two looks at whether anything changed.
const LOOK_MS: u64 = 100;
/// A live line is drawn again so often, for the time in it.
const DRAW_MS: u64 = 1000;
/// Most failures that are told singly.
const FAILURES_MAX: u32 = 20;
/// Rows that are read at once.
const PAGE: u32 = 1000;

/// Waits.
pub fn wait(
    settings: Settings,
    around: &Surroundings,
    arguments: &WaitArgs,
    output: OutputFormat,
) -> RunExit {
    waited(settings, around, arguments, output).unwrap_or_else(|exit| exit)
}

fn waited(
    settings: Settings,
    around: &Surroundings,
    arguments: &WaitArgs,
    output: OutputFormat,
) -> Result<RunExit, RunExit> {
    let mut opened = open(settings, around)?;
    let mut runs = Vec::new();
    for address in &arguments.runs {
        match opened.find(address)? {
            Found::Run(run) => runs.push(run),
            Found::Payload(_) | Found::Family(..) => {
                complain(&format!("wait {address}: runs are waited for; name the run alone"));
                return Err(RunExit::BadInput);
            }
        }
    }
    let is_open = runs.iter().any(|run| run.counts.open() > 0);
    if is_open && !opened.is_served() {
        complain(NOT_SERVED);
    }
    let runs: Vec<RunId> = runs.iter().map(|run| run.id).collect();
    until_ended(&mut opened, &runs, arguments.timeout.map(|timeout| timeout.0), Face::new(output, around))
}

/// What is said when nobody would do the work.
pub(crate) const NOT_SERVED: &str = "no pilot serves the spool just now; start one with `pilot serve`";

/// Waits for these runs, at most so long; tells how they ended.
pub(crate) fn until_ended(
    opened: &mut Opened,
    runs: &[RunId],
    timeout_ms: Option<u64>,
    face: Face,
) -> Result<RunExit, RunExit> {
    let began = Instant::now();
    let mut pace = Pace::new()?;
    let mut drawn: Option<Instant> = None;
    loop {
        let changed = opened.spool.changed().map_err(|error| failed(&error))?;
        let is_due = drawn.is_none_or(|drawn| drawn.elapsed() >= Duration::from_millis(DRAW_MS));
        if changed || is_due {
            drawn = Some(Instant::now());
            let standing = standing(opened, runs)?;
            if standing.iter().all(|run| run.counts.open() == 0) {
                clear(face);
                return tell(opened, &standing, face).map_err(|error| failed(&error));
            }
            draw(&standing, began.elapsed(), face);
            if timeout_ms.is_some_and(|timeout| began.elapsed() >= Duration::from_millis(timeout)) {
                clear(face);
                return Ok(out_of_time(&standing, face, began.elapsed()));
            }
        }
        let left_ms = timeout_ms.map_or(u64::MAX, |timeout| timeout.saturating_sub(millis(began.elapsed())));
        if left_ms < LOOK_MS {
            drawn = None;
        }
        if let Err(exit) = pace.pause(LOOK_MS.min(left_ms)) {
            clear(face);
            complain(&format!("{} on; `pilot cancel` ends it", subject(runs)));
            return Err(exit);
        }
    }
}

fn subject(runs: &[RunId]) -> String {
    match runs {
        [run] => format!("run {run} goes"),
        _ => "the runs go".to_owned(),
    }
}

fn standing(opened: &Opened, runs: &[RunId]) -> Result<Vec<Run>, RunExit> {
    let mut standing = Vec::new();
    for id in runs {
        match opened.spool.run(*id).map_err(|error| failed(&error))? {
            Some(run) => standing.push(run),
            None => {
                complain(&format!("run {id} is no longer in the spool: it ended and was forgotten"));
                return Err(RunExit::BadInput);
            }
        }
    }
    Ok(standing)
}

/// The live line, on a terminal only.
fn draw(standing: &[Run], since: Duration, face: Face) {
    let Some(columns) = face.columns() else { return };
    let mut all = Counts::default();
    for counts in standing.iter().map(|run| &run.counts) {
        all.waiting += counts.waiting;
        all.ready += counts.ready;
        all.claimed += counts.claimed;
        all.succeeded += counts.succeeded;
        all.failed += counts.failed;
        all.skipped += counts.skipped;
        all.cancelled += counts.cancelled;
        all.lost += counts.lost;
    }
    let name = match standing {
        [run] => format!("run {}: {}", run.id, printable(&run.name)),
        _ => format!("{} runs", standing.len()),
    };
    let since = elapsed(millis(since));
    let line = format!("{name}: {}, {since}", counts_words(&all));
    print(&format!("\r{}\x1b[K", cut(&line, columns)));
}

fn clear(face: Face) {
    if face.live {
        print("\r\x1b[K");
    }
}

fn out_of_time(standing: &[Run], face: Face, since: Duration) -> RunExit {
    for run in standing.iter().filter(|run| run.counts.open() > 0) {
        if face.json {
            print(&format!("{}\n", run_json(run)));
        }
        let words = counts_words(&run.counts);
        complain(&format!("run {} has not ended after {}: {words}", run.id, duration(millis(since))));
    }
    RunExit::PayloadFailed
}

/// How each run ended, and the worst of it.
fn tell(opened: &Opened, standing: &[Run], face: Face) -> Result<RunExit, SpoolError> {
    let mut worst = RunExit::Success;
    for run in standing {
        let exit = exit_of(opened, run)?;
        worst = worst.max(exit);
        if face.json {
            let mut line = run_json(run);
            line["exit_code"] = exit.code().into();
            print(&format!("{line}\n"));
            continue;
        }
        print(&failures(opened, run)?);
        let status = run.status();
        let state = painted(status.name(), run_tone(status), face);
        let took = run.ended_wall_ms.map_or(0, |ended| ended.saturating_sub(run.submitted_wall_ms));
        let (name, words) = (printable(&run.name), counts_words(&run.counts));
        print(&format!("run {}: {name}, {state}: {words} in {}\n", run.id, duration(took)));
    }
    Ok(worst)
}

/// What `pilot run` would have ended with.
fn exit_of(opened: &Opened, run: &Run) -> Result<RunExit, SpoolError> {
    let mut worst = match run.status() {
        RunStatus::Succeeded => return Ok(RunExit::Success),
        RunStatus::Failed | RunStatus::Cancelled | RunStatus::Queued | RunStatus::Running => {
            RunExit::PayloadFailed
        }
    };
    let mut after = None;
    // Nothing that a payload comes to is worse than our own fault.
    while worst < RunExit::OwnFault {
        let page = opened.spool.payloads(run.id, &[State::Failed], after, PAGE)?;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        let of = |row: &Row| row.outcome.as_ref().map_or(RunExit::PayloadFailed, RunExit::of);
        worst = page.iter().map(of).max().unwrap_or(worst).max(worst);
    }
    Ok(worst)
}

/// A line for each payload that failed.
fn failures(opened: &Opened, run: &Run) -> Result<String, SpoolError> {
    let rows = opened.spool.payloads(run.id, &[State::Failed, State::Lost], None, FAILURES_MAX)?;
    let mut text = String::new();
    for row in &rows {
        let name = printable(&row.name);
        let why = row.outcome.as_ref().map_or_else(|| row.state.name().to_owned(), words);
        let tries = if row.attempt > 1 { format!(" (after {} tries)", row.attempt) } else { String::new() };
        let log = Path::new(&run.out).join("logs").join(format!("{}.stderr", row.name));
        let log = if log.exists() { format!("; see `pilot logs {}/{name}`", run.id) } else { String::new() };
        text.push_str(&format!("{}/{name}: {}{tries}{log}\n", run.id, printable(&why)));
    }
    let all = run.counts.failed + run.counts.lost;
    let more = all.saturating_sub(rows.len() as u64);
    if more > 0 {
        text.push_str(&format!("... and {more} more; `pilot ls {} --state failed` lists them\n", run.id));
    }
    Ok(text)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
