//! `pilot ls --watch`: in place on a terminal, else a line for each change.

use std::collections::HashMap;

use pilot_core::RunExit;
use spool::{Counts, Found, PayloadId, Row, Run, RunFilter, RunId, Spool, SpoolError, State};
use tokio::time::{Duration, Instant};

use super::{List, PAGE, Sink, Terms};
use crate::commands::grid::painted;
use crate::commands::spooled::{Face, Pace, Rows, failed, has_ended, print};
use crate::commands::standing::{outcome, payload_json, run_json, tone};
use crate::ui::{printable, size_of};

/// Between two looks at whether anything changed: cheap, it reads one page of the database.
const LOOK_MS: u64 = 200;
/// A view in place is drawn again so often all the same, for the ages in it.
const DRAW_MS: u64 = 1000;
/// Lines on the terminal that are kept free: the prompt, a heading and a line for what does not fit.
const ROWS_KEPT: u32 = 5;
/// Reading everything again takes at most this part of the time: a million rows are looked at less often than ten.
const SHARE: u32 = 10;

/// Goes on until everything that was named has ended, or until Ctrl-C.
pub(super) fn watch(spool: &mut Spool, terms: Terms<'_>, found: &[Found]) -> Result<RunExit, RunExit> {
    let mut pace = Pace::new()?;
    if terms.face.live {
        in_place(spool, terms, found, &mut pace)
    } else {
        lines(spool, terms, found, &mut pace)
    }
}

fn in_place(
    spool: &mut Spool,
    terms: Terms<'_>,
    found: &[Found],
    pace: &mut Pace,
) -> Result<RunExit, RunExit> {
    let mut height = 0;
    let mut drawn: Option<Instant> = None;
    loop {
        let changed = spool.changed().map_err(|error| failed(&error))?;
        let is_due = drawn.is_none_or(|drawn| drawn.elapsed() >= Duration::from_millis(DRAW_MS));
        if changed || is_due {
            drawn = Some(Instant::now());
            // First the look, then the view: what ends in between is in the view.
            let is_over = is_over(spool, found).map_err(|error| failed(&error))?;
            let text = view(spool, terms, found).map_err(|error| failed(&error))?;
            if !print(&redrawn(&text, height)) || is_over {
                return Ok(RunExit::Success);
            }
            height = text.lines().count();
        }
        if let Err(exit) = pace.pause(LOOK_MS) {
            // Below the view, after the terminal's own ^C.
            print("\n");
            return Err(exit);
        }
    }
}

/// The list as it is, no higher than the terminal.
fn view(spool: &Spool, terms: Terms<'_>, found: &[Found]) -> Result<String, SpoolError> {
    let rows = u32::from(size_of(std::io::stdout()).unwrap_or_default().rows);
    let tables = u32::try_from(found.len().max(1)).unwrap_or(u32::MAX);
    let limit = (rows / tables).saturating_sub(ROWS_KEPT).max(1).min(terms.limit);
    let mut text = String::new();
    Terms { limit, ..terms }.over(spool).all(found, &mut |part: &str| {
        text.push_str(part);
        true
    })?;
    Ok(text)
}

/// What writes `text` over the last view, which had `height` lines; one write, so that nothing flickers.
fn redrawn(text: &str, height: usize) -> String {
    let mut all = if height > 0 { format!("\r\x1b[{height}A") } else { String::new() };
    for line in text.lines() {
        all.push_str(line);
        all.push_str("\x1b[K\n");
    }
    all.push_str("\x1b[J");
    all
}

/// Whether all that was named has ended. The list of runs never does.
fn is_over(spool: &Spool, found: &[Found]) -> Result<bool, SpoolError> {
    for found in found {
        if !has_ended(spool, found)? {
            return Ok(false);
        }
    }
    Ok(!found.is_empty())
}

fn lines(spool: &mut Spool, terms: Terms<'_>, found: &[Found], pace: &mut Pace) -> Result<RunExit, RunExit> {
    let mut told = Told::default();
    // What changes between the two is told twice, and nothing is missed.
    told.look(&terms.over(spool), found, &mut |_| true).map_err(|error| failed(&error))?;
    if !terms.over(spool).all(found, &mut |text| print(text)).map_err(|error| failed(&error))? {
        return Ok(RunExit::Success);
    }
    loop {
        let began = Instant::now();
        let is_over = is_over(spool, found).map_err(|error| failed(&error))?;
        let list = terms.over(spool);
        let goes_on = told.look(&list, found, &mut |text| print(text)).map_err(|error| failed(&error))?;
        if !goes_on || is_over {
            return Ok(RunExit::Success);
        }
        let rest = u64::try_from((began.elapsed() * SHARE).as_millis()).unwrap_or(u64::MAX);
        pace.pause(rest.max(LOOK_MS))?;
        while !spool.changed().map_err(|error| failed(&error))? {
            pace.pause(LOOK_MS)?;
        }
    }
}

/// What a reader of lines knows already.
#[derive(Default)]
struct Told {
    runs: HashMap<RunId, Counts>,
    /// State, tries, whether it was told to end.
    payloads: HashMap<PayloadId, (State, u32, bool)>,
}

impl Told {
    /// Tells what has changed since the last look.
    fn look(&mut self, list: &List<'_>, found: &[Found], out: &mut Sink<'_>) -> Result<bool, SpoolError> {
        if found.is_empty() {
            return self.runs(list, out);
        }
        for found in found {
            let goes_on = match found {
                Found::Run(run) => self.payloads(list, run.id, None, out)? && self.end(list, run.id, out)?,
                Found::Family(run, family) => self.payloads(list, run.id, Some(family), out)?,
                Found::Payload(row) => match list.spool.detail(row.id)? {
                    Some(detail) => self.payload(list, &detail.row, out),
                    None => true,
                },
            };
            if !goes_on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Runs under way, those that were at the last look, and those that came since.
    fn runs(&mut self, list: &List<'_>, out: &mut Sink<'_>) -> Result<bool, SpoolError> {
        let spool = list.spool;
        let newest = self.runs.keys().max().copied();
        let mut seen: Vec<Run> = Vec::new();
        for (filter, until) in [(RunFilter::Open, None), (RunFilter::Ended, newest)] {
            let mut before = None;
            loop {
                let page = spool.runs(filter, before, PAGE)?;
                let Some(last) = page.last().map(|run| run.id) else { break };
                before = Some(last);
                seen.extend(page.into_iter().filter(|run| until.is_none_or(|until| run.id > until)));
                if until.is_some_and(|until| last <= until) {
                    break;
                }
            }
        }
        let was_open = |(id, counts): (&RunId, &Counts)| (counts.open() > 0).then_some(*id);
        let known: Vec<RunId> = self.runs.iter().filter_map(was_open).collect();
        for id in known {
            if !seen.iter().any(|run| run.id == id) {
                seen.extend(spool.run(id)?);
            }
        }
        seen.sort_unstable_by_key(|run| run.id);
        for run in &seen {
            if self.runs.insert(run.id, run.counts) != Some(run.counts) && !out(&run_line(list, run)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Tells when a run has come to its end.
    fn end(&mut self, list: &List<'_>, id: RunId, out: &mut Sink<'_>) -> Result<bool, SpoolError> {
        let Some(run) = list.spool.run(id)? else { return Ok(true) };
        let had_ended = self.runs.insert(id, run.counts).is_some_and(|counts| counts.open() == 0);
        Ok(run.counts.open() > 0 || had_ended || out(&run_line(list, &run)))
    }

    fn payloads(
        &mut self,
        list: &List<'_>,
        run: RunId,
        family: Option<&str>,
        out: &mut Sink<'_>,
    ) -> Result<bool, SpoolError> {
        let mut all = Rows::new(list.spool, run, family, list.states)?;
        while let Some(rows) = all.page(PAGE)? {
            if !rows.iter().all(|row| self.payload(list, row, out)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn payload(&mut self, list: &List<'_>, row: &Row, out: &mut Sink<'_>) -> bool {
        let standing = (row.state, row.attempt, row.cancel_asked);
        self.payloads.insert(row.id, standing) == Some(standing) || out(&payload_line(row, list.face))
    }
}

fn run_line(list: &List<'_>, run: &Run) -> String {
    if list.face.json { format!("{}\n", run_json(run)) } else { list.head(run) }
}

fn payload_line(row: &Row, face: Face) -> String {
    if face.json {
        return format!("{}\n", payload_json(row));
    }
    let by = match (&row.pilot, row.state) {
        (Some(pilot), State::Claimed) => format!(" by {}", printable(pilot)),
        _ => String::new(),
    };
    let why = match outcome(row) {
        words if words.is_empty() => words,
        words => format!(": {}", printable(&words)),
    };
    let state = painted(row.state.name(), tone(row.state), face);
    format!("{}/{}: {state}{by}{why}\n", row.run, printable(&row.name))
}
