//! What people ask: runs, payloads, one payload. Reads only; no transaction, no lock that anyone waits for.

use pilot_core::{ClaimId, Outcome};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params_from_iter};

use crate::claim::Claimant;
use crate::error::SpoolError;
use crate::spool::Spool;
use crate::words::{Code, Counts, PayloadId, RunFilter, RunId, RunStatus, State, run_of_workflow};
use crate::work::{self, Upcoming};

/// A run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its number.
    pub id: RunId,
    /// Its workflow's name.
    pub name: String,
    /// The key it was submitted under.
    pub key: Option<String>,
    /// Where it comes from.
    pub origin: String,
    /// Where its outputs and logs go.
    pub out: String,
    /// When it was submitted, wall clock in milliseconds.
    pub submitted_wall_ms: u64,
    /// When its last payload came to its end.
    pub ended_wall_ms: Option<u64>,
    /// The pilot that holds its stages and therefore all of it.
    pub home: Option<String>,
    /// How its payloads stand.
    pub counts: Counts,
}

impl Run {
    /// How it stands as a whole.
    #[must_use]
    pub fn status(&self) -> RunStatus {
        RunStatus::of(&self.counts)
    }
}

/// A payload in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its number.
    pub id: PayloadId,
    /// Its run.
    pub run: RunId,
    /// Its run's name.
    pub run_name: String,
    /// Its name.
    pub name: String,
    /// The array it is an element of, or its own name.
    pub family: String,
    /// Its image.
    pub image: String,
    /// How it stands.
    pub state: State,
    /// Tries so far.
    pub attempt: u32,
    /// The pilot that has it.
    pub pilot: Option<String>,
    /// When ready: how much of a pause is left, in milliseconds.
    pub retry_in_ms: Option<u64>,
    /// When claimed: its user does not want it any more.
    pub cancel_asked: bool,
    /// When it was claimed last, wall clock in milliseconds.
    pub claimed_wall_ms: Option<u64>,
    /// When it came to its end.
    pub ended_wall_ms: Option<u64>,
    /// Thousandths of a processor.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// How its last try ended.
    pub outcome: Option<Outcome>,
}

/// All there is to say of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detail {
    /// As in a listing.
    pub row: Row,
    /// Its spec as it was submitted.
    pub spec: String,
    /// Name of the payload for which it was skipped.
    pub because: Option<String>,
    /// Where its run's outputs and logs go.
    pub out: String,
    /// How often it may fail.
    pub retries: u32,
    /// How often it failed by its own doing and was to be run again.
    pub failed: u32,
    /// How often it was disrupted and was to be run again.
    pub disrupted: u32,
    /// Never run it twice.
    pub at_most_once: bool,
    /// Its trust group.
    pub trust_group: String,
    /// When claimed: the claim.
    pub claim: Option<ClaimId>,
}

const RUN: &str = "SELECT id, name, key, origin, out, submitted_wall_ms, ended_wall_ms, home,
  n0, n1, n2, n3, n4, n5, n6, n7, n8 FROM runs";

const ROW: &str =
    "SELECT p.id, r.name, p.name, p.family, p.image, p.state, p.tries, c.pilot, p.not_before_ms,
  coalesce(c.cancelled, 0), p.claimed_wall_ms, p.ended_wall_ms, p.cpu_millis, p.memory_bytes, p.outcome
  FROM payloads AS p JOIN runs AS r ON r.id = p.run LEFT JOIN claims AS c ON c.payload = p.id";

impl Spool {
    /// Runs, the newest first; those before `before`, at most `limit`.
    ///
    /// # Errors
    /// When the database can't be read.
    pub fn runs(&self, filter: RunFilter, before: Option<RunId>, limit: u32) -> Result<Vec<Run>, SpoolError> {
        let condition = match filter {
            RunFilter::All => "",
            RunFilter::Open => "AND ended_wall_ms IS NULL",
            RunFilter::Ended => "AND ended_wall_ms IS NOT NULL",
        };
        let text = format!("{RUN} WHERE id < ?1 {condition} ORDER BY id DESC LIMIT ?2");
        let mut find = self.connection.prepare_cached(&text)?;
        let before = before.map_or(i64::MAX, RunId::sql);
        let runs = find.query_map((before, limit), read_run)?;
        Ok(runs.collect::<Result<_, _>>()?)
    }

    /// One run.
    ///
    /// # Errors
    /// When the database can't be read.
    pub fn run(&self, run: RunId) -> Result<Option<Run>, SpoolError> {
        self::run(&self.connection, run)
    }

    /// The newest run of a name.
    ///
    /// # Errors
    /// When the database can't be read.
    pub fn newest_run(&self, name: &str) -> Result<Option<Run>, SpoolError> {
        let text = format!("{RUN} WHERE id = (SELECT max(id) FROM runs WHERE name = ?1)");
        let mut find = self.connection.prepare_cached(&text)?;
        Ok(find.query_row([name], read_run).optional()?)
    }

    /// Payloads of a run in any of these states (in any state when none is named), in the order of submission: those after
    /// `after`, at most `limit`.
    ///
    /// # Errors
    /// When the database can't be read.
    pub fn payloads(
        &self,
        run: RunId,
        states: &[State],
        after: Option<PayloadId>,
        limit: u32,
    ) -> Result<Vec<Row>, SpoolError> {
        let (first, last) = run.span();
        let from = after.map_or(first, |after| after.0.saturating_add(1).max(first));
        if states.is_empty() {
            let text = format!("{ROW} WHERE p.id BETWEEN ?1 AND ?2 ORDER BY p.id LIMIT ?3");
            return self.rows(&text, &[from, last, i64::from(limit)]);
        }
        // Each state's own range of the index, so that few among many are found at once.
        let mut rows = Vec::new();
        for code in states.iter().flat_map(|state| state.codes()) {
            let text = format!(
                "{ROW} WHERE p.id IN (SELECT id FROM payloads INDEXED BY payloads_by_state
                   WHERE state = {} AND id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3) ORDER BY p.id",
                code.sql()
            );
            rows.extend(self.rows(&text, &[from, last, i64::from(limit)])?);
        }
        rows.sort_by_key(|row: &Row| row.id);
        rows.dedup_by_key(|row| row.id);
        rows.truncate(limit as usize);
        Ok(rows)
    }

    /// A payload of a run by its name.
    ///
    /// # Errors
    /// When the database can't be read.
    pub fn payload(&self, run: RunId, name: &str) -> Result<Option<Row>, SpoolError> {
        let text = format!("{ROW} WHERE p.run = ?1 AND p.name = ?2");
        let mut find = self.connection.prepare_cached(&text)?;
        let now = self.now_ms();
        let row = find.query_row((run.sql(), name), |row| read_row(row, now));
        Ok(row.optional()?)
    }

    /// Whether a run has an array of that name.
    pub(crate) fn has_family(&self, run: RunId, family: &str) -> Result<bool, SpoolError> {
        let mut find = self
            .connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM payloads WHERE run = ?1 AND family = ?2)")?;
        Ok(find.query_row((run.sql(), family), |row| row.get(0))?)
    }

    /// All there is to say of a payload.
    ///
    /// # Errors
    /// When the database can't be read.
    pub fn detail(&self, id: PayloadId) -> Result<Option<Detail>, SpoolError> {
        let text = format!("{ROW} WHERE p.id = ?1");
        let Some(row) = self.rows(&text, &[id.0])?.pop() else { return Ok(None) };
        let mut read = self.connection.prepare_cached(
            "SELECT spec, (SELECT name FROM payloads AS b WHERE b.id = p.because), r.out, p.retries, p.failed, p.disrupted,
             p.at_most_once, p.trust_group, (SELECT c.id FROM claims AS c WHERE c.payload = p.id)
             FROM payloads AS p JOIN specs USING (id) JOIN runs AS r ON r.id = p.run WHERE p.id = ?1",
        )?;
        let detail = read.query_row([id.0], |found| {
            Ok(Detail {
                row,
                spec: found.get(0)?,
                because: found.get(1)?,
                out: found.get(2)?,
                retries: found.get(3)?,
                failed: found.get(4)?,
                disrupted: found.get(5)?,
                at_most_once: found.get(6)?,
                trust_group: found.get(7)?,
                claim: found.get::<_, Option<i64>>(8)?.map(crate::claim::from_sql),
            })
        });
        Ok(detail.optional()?)
    }

    /// Names of a run's payloads that have not come to their end; the run by the name that [`crate::workflow_of`] gave it.
    /// Empty when there is no such run.
    ///
    /// # Errors
    /// When the database can't be read.
    pub fn unfinished(&self, workflow: &str) -> Result<std::collections::BTreeSet<String>, SpoolError> {
        let Some(run) = run_of_workflow(workflow) else { return Ok(Default::default()) };
        let (first, last) = run.span();
        let mut find = self.connection.prepare_cached(
            "SELECT name FROM payloads INDEXED BY payloads_by_state
             WHERE state IN (0, 1, 2, 8) AND id BETWEEN ?1 AND ?2",
        )?;
        let names = find.query_map((first, last), |row| row.get(0))?;
        Ok(names.collect::<Result<_, _>>()?)
    }

    /// As [`crate::Work::upcoming`], without waiting for a writer.
    ///
    /// # Errors
    /// When the database can't be read.
    pub fn upcoming<'a>(&self, pilot: impl Into<Claimant<'a>>) -> Result<Upcoming, SpoolError> {
        work::upcoming(&self.connection, self.now_ms(), pilot.into())
    }

    /// As [`crate::Work::cancelled_claims`], without waiting for a writer.
    ///
    /// # Errors
    /// When the database can't be read.
    pub fn cancelled_claims(&self, pilot: &str) -> Result<Vec<ClaimId>, SpoolError> {
        crate::claim::cancelled_claims(&self.connection, pilot)
    }

    fn now_ms(&self) -> i64 {
        i64::try_from(self.clock.boot_ms()).unwrap_or(i64::MAX)
    }

    fn rows(&self, text: &str, values: &[i64]) -> Result<Vec<Row>, SpoolError> {
        let now = self.now_ms();
        let mut find = self.connection.prepare_cached(text)?;
        let values = params_from_iter(values.iter().map(|value| Value::Integer(*value)));
        let rows = find.query_map(values, |row| read_row(row, now))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

pub(crate) fn run(connection: &Connection, run: RunId) -> Result<Option<Run>, SpoolError> {
    let text = format!("{RUN} WHERE id = ?1");
    Ok(connection.prepare_cached(&text)?.query_row([run.sql()], read_run).optional()?)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn read_run(row: &rusqlite::Row<'_>) -> rusqlite::Result<Run> {
    let mut counts = Counts::default();
    for (column, code) in (8..).zip(Code::ALL) {
        *counts.slot(code.state()) += unsigned(row.get(column)?);
    }
    let home: String = row.get(7)?;
    Ok(Run {
        id: RunId::from_sql(row.get(0)?),
        name: row.get(1)?,
        key: row.get(2)?,
        origin: row.get(3)?,
        out: row.get(4)?,
        submitted_wall_ms: unsigned(row.get(5)?),
        ended_wall_ms: row.get::<_, Option<i64>>(6)?.map(unsigned),
        home: (!home.is_empty()).then_some(home),
        counts,
    })
}

fn read_row(row: &rusqlite::Row<'_>, now_ms: i64) -> rusqlite::Result<Row> {
    let id = PayloadId(row.get(0)?);
    let code: i64 = row.get(5)?;
    let code = Code::from_sql(code).ok_or(rusqlite::Error::IntegralValueOutOfRange(5, code))?;
    let not_before: i64 = row.get(8)?;
    let outcome: Option<String> = row.get(14)?;
    Ok(Row {
        id,
        run: id.run(),
        run_name: row.get(1)?,
        name: row.get(2)?,
        family: row.get(3)?,
        image: row.get(4)?,
        state: code.state(),
        attempt: row.get(6)?,
        pilot: row.get(7)?,
        retry_in_ms: (code == Code::Delayed).then(|| unsigned(not_before.saturating_sub(now_ms))),
        cancel_asked: row.get(9)?,
        claimed_wall_ms: row.get::<_, Option<i64>>(10)?.map(unsigned),
        ended_wall_ms: row.get::<_, Option<i64>>(11)?.map(unsigned),
        cpu_millis: unsigned(row.get(12)?),
        memory_bytes: unsigned(row.get(13)?),
        // A later program may have more words for it; the rest of the row is good.
        outcome: outcome.and_then(|text| serde_json::from_str(&text).ok()),
    })
}
