//! `pilot ls`: how runs and payloads in the spool stand.
//!
//! However many there are, what is read and shown at once is bounded: lists are paged, and people get at most
//! a hundred lines unless they ask for more.

pub(crate) use one::log_path;

mod one;
mod watch;

use pilot_core::RunExit;
use spool::{Counts, Found, Row, Run, RunFilter, RunId, Spool, SpoolError, State};

use crate::cli::{LsArgs, OutputFormat};
use crate::commands::grid::{Cell, Grid, painted};
use crate::commands::spooled::{Face, Opened, Rows, failed, open, print, wall_ms};
use crate::commands::standing::{
    PAYLOAD_COLUMNS, RUN_COLUMNS, counts_words, payload_cells, payload_json, run_cells, run_json, run_tone,
};
use crate::config::{Settings, Surroundings};

/// Lines for people, unless they say otherwise.
const LIMIT: u32 = 100;
/// Rows that are read at once.
const PAGE: u32 = 1000;
/// When not all fit: what people want to see first.
const INTERESTING: [&[State]; 5] = [
    &[State::Claimed],
    &[State::Failed, State::Lost],
    &[State::Ready, State::Waiting],
    &[State::Cancelled, State::Skipped],
    &[State::Succeeded],
];

/// Lists.
pub fn ls(settings: Settings, around: &Surroundings, arguments: &LsArgs, output: OutputFormat) -> RunExit {
    listed(settings, around, arguments, output).unwrap_or_else(|exit| exit)
}

fn listed(
    settings: Settings,
    around: &Surroundings,
    arguments: &LsArgs,
    output: OutputFormat,
) -> Result<RunExit, RunExit> {
    let mut opened = open(settings, around)?;
    let face = Face::new(output, around);
    let found = find_all(&opened, arguments)?;
    let limit = match arguments.limit {
        Some(limit) => limit,
        None if arguments.all || face.json => u32::MAX,
        None => LIMIT,
    };
    let terms = Terms { states: &arguments.state, limit, face };
    if arguments.watch {
        return watch::watch(&mut opened.spool, terms, &found);
    }
    terms
        .over(&opened.spool)
        .all(&found, &mut |text: &str| print(text))
        .map(|_| RunExit::Success)
        .map_err(|error| failed(&error))
}

fn find_all(opened: &Opened, arguments: &LsArgs) -> Result<Vec<Found>, RunExit> {
    arguments.addresses.iter().map(|address| opened.find(address)).collect()
}

/// Takes text; `false` when there is no use for more.
type Sink<'a> = dyn FnMut(&str) -> bool + 'a;

/// What is wanted, and how.
#[derive(Clone, Copy)]
struct Terms<'a> {
    /// Only these; empty is all.
    states: &'a [State],
    /// Most lines of one table.
    limit: u32,
    face: Face,
}

impl<'a> Terms<'a> {
    /// A list of what is there now.
    fn over(self, spool: &'a Spool) -> List<'a> {
        let Self { states, limit, face } = self;
        List { spool, states, limit, face, now_ms: wall_ms() }
    }
}

/// A look at the spool.
struct List<'a> {
    spool: &'a Spool,
    states: &'a [State],
    limit: u32,
    face: Face,
    now_ms: u64,
}

impl List<'_> {
    /// Everything that was named, or the runs. `false` when the reader has gone.
    fn all(&self, found: &[Found], out: &mut Sink<'_>) -> Result<bool, SpoolError> {
        if found.is_empty() {
            return self.runs(out);
        }
        for (index, found) in found.iter().enumerate() {
            if index > 0 && !self.face.json && !out("\n") {
                return Ok(false);
            }
            let goes_on = match found {
                Found::Run(run) => self.run(run.id, None, out)?,
                Found::Family(run, family) => self.run(run.id, Some(family), out)?,
                Found::Payload(row) => self.one(row.id, out)?,
            };
            if !goes_on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The runs: those under way first, then the others, newest first.
    fn runs(&self, out: &mut Sink<'_>) -> Result<bool, SpoolError> {
        let mut grid = Grid::new(RUN_COLUMNS);
        let mut left = self.limit as usize;
        let mut is_more = false;
        // Printed when it is a page, so that the columns of few runs fit all of them.
        let mut waiting: Vec<Run> = Vec::new();
        for filter in [RunFilter::Open, RunFilter::Ended] {
            let mut before = None;
            while !is_more {
                let page = self.spool.runs(filter, before, PAGE)?;
                let Some(last) = page.last() else { break };
                before = Some(last.id);
                let mut runs: Vec<Run> = page.into_iter().filter(|run| self.has_such(&run.counts)).collect();
                is_more = runs.len() > left;
                runs.truncate(left);
                left -= runs.len();
                waiting.extend(runs);
                if waiting.len() >= PAGE as usize {
                    if !out(&self.run_lines(&waiting, &mut grid)) {
                        return Ok(false);
                    }
                    waiting.clear();
                }
            }
        }
        if !out(&self.run_lines(&waiting, &mut grid)) {
            return Ok(false);
        }
        Ok(match (is_more, left == self.limit as usize) {
            _ if self.face.json => true,
            (true, _) => out("... and more; --all lists them\n"),
            (false, true) if self.states.is_empty() => {
                out("the spool is empty; `pilot submit FILE` puts work into it\n")
            }
            (false, true) => out("no run has such payloads\n"),
            (false, false) => true,
        })
    }

    fn has_such(&self, counts: &Counts) -> bool {
        self.states.is_empty() || self.states.iter().any(|state| counts.of(*state) > 0)
    }

    fn run_lines(&self, runs: &[Run], grid: &mut Grid) -> String {
        if self.face.json {
            return runs.iter().map(|run| format!("{}\n", run_json(run))).collect();
        }
        let cells: Vec<Vec<Cell>> = runs.iter().map(|run| run_cells(run, self.now_ms)).collect();
        grid.page(&cells, self.face)
    }

    /// A run and its payloads, or those of one array.
    fn run(&self, id: RunId, family: Option<&str>, out: &mut Sink<'_>) -> Result<bool, SpoolError> {
        let Some(run) = self.spool.run(id)? else { return Ok(out(&gone(id))) };
        let head = if self.face.json { format!("{}\n", run_json(&run)) } else { self.head(&run) };
        if !out(&head) {
            return Ok(false);
        }
        let total = match (family, self.states) {
            (Some(_), _) => u64::MAX,
            (None, []) => run.counts.total(),
            (None, states) => states.iter().map(|state| run.counts.of(*state)).sum(),
        };
        let mut table =
            Table { grid: Grid::new(PAYLOAD_COLUMNS), left: self.limit, waiting: Vec::new(), list: self };
        let by_interest = !self.face.json && self.states.is_empty() && total > u64::from(self.limit);
        let groups: &[&[State]] = if by_interest { &INTERESTING } else { &[self.states] };
        for states in groups {
            if table.left > 0 && !table.group(id, family, states, out)? {
                return Ok(false);
            }
        }
        if !table.flush(out) {
            return Ok(false);
        }
        let shown = u64::from(self.limit - table.left);
        if self.face.json || table.left > 0 || total <= shown {
            return Ok(true);
        }
        let more = if family.is_some() { String::new() } else { format!(" {}", total - shown) };
        Ok(out(&format!("... and{more} more; --all lists them, --state picks some\n")))
    }

    /// One line on a run as a whole.
    fn head(&self, run: &Run) -> String {
        let status = run.status();
        let state = painted(status.name(), run_tone(status), self.face);
        let name = crate::ui::printable(&run.name);
        format!("run {}: {name}, {state}: {}\n", run.id, counts_words(&run.counts))
    }
}

fn gone(run: RunId) -> String {
    format!("run {run} is no longer in the spool\n")
}

/// The payloads of one run as they are written.
struct Table<'a> {
    grid: Grid,
    /// Lines that may still come.
    left: u32,
    /// Printed when they are a page, so that the columns of few rows fit all of them.
    waiting: Vec<Row>,
    list: &'a List<'a>,
}

impl Table<'_> {
    /// Those that stand so, in the order of their submission, as many as are left to be shown.
    fn group(
        &mut self,
        run: RunId,
        family: Option<&str>,
        states: &[State],
        out: &mut Sink<'_>,
    ) -> Result<bool, SpoolError> {
        let mut all = Rows::new(self.list.spool, run, family, states)?;
        while self.left > 0 {
            let Some(rows) = all.page(self.left)? else { break };
            self.left -= rows.len() as u32;
            self.waiting.extend(rows);
            if self.waiting.len() >= PAGE as usize && !self.flush(out) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Prints what waits.
    fn flush(&mut self, out: &mut Sink<'_>) -> bool {
        let rows = std::mem::take(&mut self.waiting);
        if self.list.face.json {
            return out(&rows.iter().map(|row| format!("{}\n", payload_json(row))).collect::<String>());
        }
        let cells: Vec<Vec<Cell>> = rows.iter().map(|row| payload_cells(row, self.list.now_ms)).collect();
        out(&self.grid.page(&cells, self.list.face))
    }
}
