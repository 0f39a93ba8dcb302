//! `pilot cancel RUN[/PAYLOAD]...`: what waits ends now, what runs is told to end.

use pilot_core::RunExit;
use spool::{Cancelled, Found, Selection};

use crate::cli::{CancelArgs, OutputFormat, complain};
use crate::commands::spooled::{Face, Opened, Pace, failed, has_ended, open, print};
use crate::config::{Settings, Surroundings};
use crate::ui::printable;

/// Between two looks at whether it has ended.
const LOOK_MS: u64 = 100;

/// Cancels.
pub fn cancel(
    settings: Settings,
    around: &Surroundings,
    arguments: &CancelArgs,
    output: OutputFormat,
) -> RunExit {
    cancelled(settings, around, arguments, output).unwrap_or_else(|exit| exit)
}

fn cancelled(
    settings: Settings,
    around: &Surroundings,
    arguments: &CancelArgs,
    output: OutputFormat,
) -> Result<RunExit, RunExit> {
    let mut opened = open(settings, around)?;
    let face = Face::new(output, around);
    // All names are looked up before anything is done: half a command is worse than none.
    let found: Result<Vec<Found>, RunExit> =
        arguments.addresses.iter().map(|address| opened.find(address)).collect();
    let found = found?;
    let mut told = 0;
    for found in &found {
        let done = opened.spool.cancel(&Selection::from(found)).map_err(|error| failed(&error))?;
        told += done.flagged;
        print(&line(found, &done, face));
    }
    spool::poke(&opened.folder);
    if told > 0 && !opened.is_served() {
        complain("no pilot serves the spool just now: what is claimed ends when one does");
    }
    if arguments.wait { wait(&opened, &found) } else { Ok(RunExit::Success) }
}

fn wait(opened: &Opened, found: &[Found]) -> Result<RunExit, RunExit> {
    let mut pace = Pace::new()?;
    for found in found {
        while !has_ended(&opened.spool, found).map_err(|error| failed(&error))? {
            pace.pause(LOOK_MS)?;
        }
    }
    Ok(RunExit::Success)
}

fn line(found: &Found, done: &Cancelled, face: Face) -> String {
    let Cancelled { ended, flagged, skipped, already } = *done;
    let (run, name) = match found {
        Found::Run(run) => (run.id, None),
        Found::Payload(row) => (row.run, Some(&row.name)),
        Found::Family(run, family) => (run.id, Some(family)),
    };
    if face.json {
        let line = serde_json::json!({
            "kind": "cancelled", "run": run.0, "payload": name,
            "cancelled": ended, "told_to_end": flagged, "skipped": skipped, "ended_before": already,
        });
        return format!("{line}\n");
    }
    let subject = match name {
        Some(name) => format!("{run}/{}", printable(name)),
        None => format!("run {run}"),
    };
    if ended + flagged + skipped == 0 {
        return format!("{subject}: has ended already\n");
    }
    let is_one = matches!(found, Found::Payload(_));
    let mut said = Vec::new();
    for (count, word) in [(ended, "cancelled"), (flagged, "told to end")] {
        match count {
            0 => {}
            _ if is_one => said.push(word.to_owned()),
            _ => said.push(format!("{count} {word}")),
        }
    }
    if skipped > 0 {
        said.push(format!("{skipped} skipped, because they need what was cancelled"));
    }
    if already > 0 {
        said.push(format!("{already} ended before"));
    }
    format!("{subject}: {}\n", said.join(", "))
}
