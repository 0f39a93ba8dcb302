//! `pilot forget RUN... | --ended`: takes ended runs out of the spool. What they wrote stays where it is.

use pilot_core::RunExit;
use spool::{Found, Run, RunFilter, SpoolError};

use crate::cli::{ForgetArgs, OutputFormat, complain};
use crate::commands::spooled::{Face, Opened, failed, open, print, wall_ms};
use crate::commands::standing::payloads;
use crate::config::{Settings, Surroundings};
use crate::ui::printable;

/// Runs that are read at once.
const PAGE: u32 = 1000;

/// Forgets.
pub fn forget(
    settings: Settings,
    around: &Surroundings,
    arguments: &ForgetArgs,
    output: OutputFormat,
) -> RunExit {
    forgotten(settings, around, arguments, output).unwrap_or_else(|exit| exit)
}

fn forgotten(
    settings: Settings,
    around: &Surroundings,
    arguments: &ForgetArgs,
    output: OutputFormat,
) -> Result<RunExit, RunExit> {
    let mut opened = open(settings, around)?;
    let face = Face::new(output, around);
    let runs = if arguments.ended {
        let age_ms = arguments.older_than.map_or(0, |age| age.0);
        ended(&opened, wall_ms().saturating_sub(age_ms)).map_err(|error| failed(&error))?
    } else {
        named(&opened, arguments)?
    };
    if runs.is_empty() && !face.json {
        print("no such run has ended; nothing was forgotten\n");
    }
    let mut exit = RunExit::Success;
    for run in runs {
        match opened.spool.forget(run.id) {
            Ok(_) if face.json => {
                let line = serde_json::json!({"kind": "forgotten", "run": run.id.0, "name": run.name, "out": run.out});
                print(&format!("{line}\n"));
            }
            Ok(_) => {
                let (name, count) = (printable(&run.name), payloads(run.counts.total()));
                let out = printable(&run.out);
                print(&format!("forgot run {}: {name}, {count}; what it wrote stays in {out}\n", run.id));
            }
            // Another one forgot it at the same time.
            Err(SpoolError::NoRun(_)) => {}
            Err(error @ SpoolError::Unfinished { .. }) => exit = failed(&error),
            Err(error) => return Err(failed(&error)),
        }
    }
    Ok(exit)
}

fn named(opened: &Opened, arguments: &ForgetArgs) -> Result<Vec<Run>, RunExit> {
    let mut runs = Vec::new();
    for address in &arguments.runs {
        match opened.find(address)? {
            Found::Run(run) => runs.push(run),
            Found::Payload(row) => return Err(only_runs(&row.run.to_string())),
            Found::Family(run, _) => return Err(only_runs(&run.id.to_string())),
        }
    }
    Ok(runs)
}

fn only_runs(run: &str) -> RunExit {
    complain(&format!("runs are forgotten as a whole; name the run: {run}"));
    RunExit::BadInput
}

/// Those that ended before that moment.
fn ended(opened: &Opened, before_wall_ms: u64) -> Result<Vec<Run>, SpoolError> {
    let (mut runs, mut before) = (Vec::new(), None);
    loop {
        let page = opened.spool.runs(RunFilter::Ended, before, PAGE)?;
        let Some(last) = page.last() else { return Ok(runs) };
        before = Some(last.id);
        let is_old = |run: &Run| run.ended_wall_ms.is_some_and(|ended| ended <= before_wall_ms);
        runs.extend(page.into_iter().filter(is_old));
    }
}
