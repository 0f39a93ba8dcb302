//! `pilot logs RUN/PAYLOAD`: what a payload wrote, from the files that the pilot keeps.
//!
//! The files are made at a payload's first byte and replaced when it is tried again; following survives both.
//!
//! **Must not know:** how the files are written.

mod stream;

use std::io::{self, IsTerminal};

use pilot_core::RunExit;
use spool::{Found, Row, State};

use self::stream::{PumpError, Stream};
use crate::cli::{LogsArgs, OutputFormat, complain};
use crate::commands::ls::log_path;
use crate::commands::spooled::{Face, Opened, Pace, failed, open};
use crate::config::{Settings, Surroundings};
use crate::payload::Payload;
use crate::ui::printable;

/// Between two looks at the files and at the payload.
const LOOK_MS: u64 = 100;

/// Prints logs.
pub fn logs(
    settings: Settings,
    around: &Surroundings,
    arguments: &LogsArgs,
    output: OutputFormat,
) -> RunExit {
    printed(settings, around, arguments, output).unwrap_or_else(|exit| exit)
}

fn printed(
    settings: Settings,
    around: &Surroundings,
    arguments: &LogsArgs,
    output: OutputFormat,
) -> Result<RunExit, RunExit> {
    let opened = open(settings, around)?;
    let row = only_payload(&opened, arguments)?;
    let detail = opened.spool.detail(row.id).map_err(|error| failed(&error))?;
    let payload: Option<Payload> = detail.and_then(|detail| serde_json::from_str(&detail.spec).ok());
    let Some(payload) = payload else {
        complain(&format!("read {}/{}: this program does not understand its description", row.run, row.name));
        return Err(RunExit::BadInput);
    };
    let is_json = Face::new(output, around).json;
    let both = !arguments.stdout && !arguments.stderr;
    let stream =
        |name, to_stderr| Stream::new(log_path(&payload, name), name, to_stderr, is_json, arguments.tail);
    let mut streams = Vec::new();
    if !arguments.stderr {
        streams.push(stream("stdout", false));
    }
    if !arguments.stdout {
        streams.push(stream("stderr", both));
    }
    let last = if arguments.follow {
        follow(&opened, row, &mut streams)?
    } else {
        pump(&row, &mut streams)?;
        row
    };
    let text = streams.iter_mut().try_for_each(Stream::finish);
    let is_silent = streams.iter().all(|stream| stream.written == 0);
    if text.is_ok() && is_silent && io::stderr().is_terminal() {
        complain(&silence(&last));
    }
    Ok(RunExit::Success)
}

/// The payload that was named. A run with one payload is that payload.
fn only_payload(opened: &Opened, arguments: &LogsArgs) -> Result<Row, RunExit> {
    let (run, family) = match opened.find(&arguments.address)? {
        Found::Payload(row) => return Ok(row),
        Found::Run(run) => (run, None),
        Found::Family(run, family) => (run, Some(family)),
    };
    let mut rows = opened.spool.payloads(run.id, &[], None, 2).map_err(|error| failed(&error))?;
    if rows.len() == 1
        && let Some(row) = rows.pop()
    {
        return Ok(row);
    }
    let (id, name) = (run.id, printable(&run.name).into_owned());
    complain(&match family {
        Some(family) => {
            let family = printable(&family).into_owned();
            format!("{id}/{family} is an array; name one of its payloads, such as {id}/{family}-0")
        }
        None => {
            format!(
                "run {id} ({name}) has {} payloads; name one, as `pilot ls {id}` shows them",
                run.counts.total()
            )
        }
    });
    Err(RunExit::BadInput)
}

/// Prints what there is; `false` when there is nothing new.
fn pump(row: &Row, streams: &mut [Stream]) -> Result<bool, RunExit> {
    let mut is_more = false;
    // Before its first try, a file of that name is of another run into the same folder.
    if row.attempt == 0 {
        return Ok(false);
    }
    for stream in streams {
        match stream.pump() {
            Ok(more) => is_more |= more,
            // Who closed our output (`| head`) has what was wanted.
            Err(PumpError::Write) => return Err(RunExit::Success),
            Err(PumpError::Read(error)) => {
                complain(&format!("read {}: {error}", stream.path.display()));
                return Err(RunExit::OwnFault);
            }
        }
    }
    Ok(is_more)
}

/// Goes on until the payload has ended; gives its last standing.
fn follow(opened: &Opened, mut row: Row, streams: &mut [Stream]) -> Result<Row, RunExit> {
    let mut pace = Pace::new()?;
    loop {
        // First its end, then its log: what was written before the end is in the file by then.
        let is_final = row.state.is_final();
        let is_more = pump(&row, streams)?;
        if is_final && !is_more {
            return Ok(row);
        }
        if !is_more {
            pace.pause(LOOK_MS)?;
        }
        match opened.spool.payload(row.run, &row.name).map_err(|error| failed(&error))? {
            Some(now) => row = now,
            None => return Ok(row),
        }
    }
}

/// Why nothing was printed.
fn silence(row: &Row) -> String {
    let name = format!("{}/{}", row.run, printable(&row.name));
    match (row.attempt, row.state) {
        (0, state) if state.is_final() => format!("{name} was never started: {state}"),
        (0, _) => format!("{name} has not started yet; -f waits for it"),
        (_, State::Claimed) => format!("{name} has written nothing so far; -f waits for it"),
        _ => format!("{name} has written nothing"),
    }
}
