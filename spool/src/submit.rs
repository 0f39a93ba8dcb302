//! Submission: a run with all its payloads, in one transaction.

use std::collections::BTreeSet;

use rusqlite::OptionalExtension;

use crate::error::SpoolError;
use crate::words::{Code, PayloadId, RunId};
use crate::work::Work;

/// A run to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// The workflow's name; many runs may share it.
    pub name: String,
    /// Who submits the same key again gets the same run, and nothing is added.
    pub key: Option<String>,
    /// Where it comes from, for people: the workflow file.
    pub origin: String,
    /// Where its outputs and logs go.
    pub out: String,
    /// Its payloads.
    pub payloads: Vec<NewPayload>,
}

/// One payload of a run to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPayload {
    /// Unique within its run.
    pub name: String,
    /// The array it is an element of, or its own name.
    pub family: String,
    /// What to do, as the pilot writes and reads it.
    pub spec: String,
    /// Its image, for people.
    pub image: String,
    /// Indices of payloads that must have succeeded before.
    pub after: Vec<usize>,
    /// Stages that it reads. Their producers come before it, too.
    pub reads: Vec<Read>,
    /// How often it may fail and be run again.
    pub retries: u32,
    /// Never run it twice.
    pub at_most_once: bool,
    /// Payloads of different groups never share a warm slot.
    pub trust_group: String,
    /// Thousandths of a processor.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Index of the first of the payloads that it runs together with, which may be itself: all of them are claimed at once, or
    /// none. All come after the same payloads.
    pub gang: Option<usize>,
}

/// An output of another payload of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Index of that payload.
    pub producer: usize,
    /// The output's name; without blanks.
    pub output: String,
}

/// What came of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// The run.
    pub run: RunId,
    /// Whether this submission made it; otherwise one of the same key did.
    pub new: bool,
}

impl Submission {
    /// Whether it makes sense; asked before the database is.
    pub(crate) fn check(&self) -> Result<(), SpoolError> {
        let bad = |text: String| Err(SpoolError::BadSubmission(text));
        if u32::try_from(self.payloads.len()).is_err() {
            return bad("it has too many payloads".to_owned());
        }
        let mut names: Vec<&str> = self.payloads.iter().map(|payload| payload.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return bad(format!("payload {:?} is there twice", twice[0]));
        }
        let count = self.payloads.len();
        for payload in &self.payloads {
            if payload.producers().any(|producer| producer >= count) {
                return bad(format!("payload {:?} comes after one that is not there", payload.name));
            }
            if payload.reads.iter().any(|read| read.output.is_empty() || read.output.contains(' ')) {
                return bad(format!("payload {:?} reads an output without a proper name", payload.name));
            }
        }
        for (index, payload) in self.payloads.iter().enumerate() {
            let Some(first) = payload.gang else { continue };
            let leads =
                self.payloads.get(first).filter(|leader| leader.gang == Some(first) && first <= index);
            let before = |payload: &NewPayload| payload.producers().collect::<BTreeSet<usize>>();
            if leads.is_none_or(|leader| before(leader) != before(payload)) {
                return bad(format!(
                    "payload {:?} can't run together with the others of its gang",
                    payload.name
                ));
            }
        }
        match self.circle() {
            Some(name) => bad(format!("payload {name:?} waits for itself")),
            None => Ok(()),
        }
    }

    /// A payload that can never run, because it waits for itself or for one that does.
    fn circle(&self) -> Option<&str> {
        let mut consumers = vec![Vec::new(); self.payloads.len()];
        let mut pending = vec![0_usize; self.payloads.len()];
        for (index, payload) in self.payloads.iter().enumerate() {
            for producer in payload.producers() {
                consumers[producer].push(index);
                pending[index] += 1;
            }
        }
        let mut free: Vec<usize> = (0..pending.len()).filter(|&index| pending[index] == 0).collect();
        while let Some(index) = free.pop() {
            for &consumer in &consumers[index] {
                pending[consumer] -= 1;
                if pending[consumer] == 0 {
                    free.push(consumer);
                }
            }
        }
        let stuck = pending.iter().position(|&pending| pending > 0)?;
        self.payloads.get(stuck).map(|payload| payload.name.as_str())
    }
}

impl NewPayload {
    fn producers(&self) -> impl Iterator<Item = usize> {
        self.after.iter().copied().chain(self.reads.iter().map(|read| read.producer))
    }

    /// Each producer once, with the outputs of it that are read.
    fn edges(&self) -> std::collections::BTreeMap<usize, String> {
        let mut edges = std::collections::BTreeMap::new();
        for &producer in &self.after {
            edges.entry(producer).or_insert_with(String::new);
        }
        for read in &self.reads {
            let outputs = edges.entry(read.producer).or_default();
            outputs.push_str(&read.output);
            outputs.push(' ');
        }
        edges
    }
}

impl Work<'_> {
    /// Adds a run with all its payloads; or finds the one that was added under the same key.
    ///
    /// # Errors
    /// When it makes no sense or can't be written.
    pub fn submit(&self, submission: &Submission) -> Result<Submitted, SpoolError> {
        if let Some(key) = &submission.key {
            let mut find = self.sql.prepare_cached("SELECT id FROM runs WHERE key = ?1")?;
            let known: Option<i64> = find.query_row([key], |row| row.get(0)).optional()?;
            if let Some(id) = known {
                return Ok(Submitted { run: RunId::from_sql(id), new: false });
            }
        }
        let run = self.add_run(submission)?;
        let mut ready = 0;
        for (index, payload) in submission.payloads.iter().enumerate() {
            let edges = payload.edges();
            ready += usize::from(edges.is_empty());
            self.add_payload(run, index, payload, edges.len())?;
        }
        // Edges name payloads that are there, whatever their order.
        let number = |index: usize| PayloadId::new(run, u32::try_from(index).unwrap_or(u32::MAX)).0;
        let mut add =
            self.sql.prepare_cached("INSERT INTO edges (producer, consumer, outputs) VALUES (?1, ?2, ?3)")?;
        for (index, payload) in submission.payloads.iter().enumerate() {
            for (producer, outputs) in payload.edges() {
                add.execute((number(producer), number(index), outputs))?;
            }
        }
        let total = i64::try_from(submission.payloads.len()).unwrap_or(i64::MAX);
        let ready = i64::try_from(ready).unwrap_or(i64::MAX);
        self.sql
            .prepare_cached(
                "UPDATE runs SET n0 = ?2, n1 = ?3, ended_wall_ms = CASE WHEN ?2 + ?3 = 0 THEN ?4 END WHERE id = ?1",
            )?
            .execute((run.sql(), total - ready, ready, self.wall_ms))?;
        self.stir();
        Ok(Submitted { run, new: true })
    }

    fn add_run(&self, submission: &Submission) -> Result<RunId, SpoolError> {
        let hands_stages = submission.payloads.iter().any(|payload| !payload.reads.is_empty());
        self.sql
            .prepare_cached(
                "INSERT INTO runs (name, key, origin, out, submitted_wall_ms, hands_stages)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute((
                &submission.name,
                &submission.key,
                &submission.origin,
                &submission.out,
                self.wall_ms,
                hands_stages,
            ))?;
        let run = RunId::from_sql(self.sql.last_insert_rowid());
        if run.0 > RunId::MAX {
            return Err(SpoolError::BadSubmission("the spool has no numbers left".to_owned()));
        }
        Ok(run)
    }

    fn add_payload(
        &self,
        run: RunId,
        index: usize,
        payload: &NewPayload,
        pending: usize,
    ) -> Result<(), SpoolError> {
        let id = PayloadId::new(run, u32::try_from(index).unwrap_or(u32::MAX)).0;
        let state = if pending == 0 { Code::Ready } else { Code::Waiting };
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let number_in_run = |index: usize| PayloadId::new(run, u32::try_from(index).unwrap_or(u32::MAX)).0;
        self.sql
            .prepare_cached(
                "INSERT INTO payloads (id, run, name, family, image, trust_group, cpu_millis, memory_bytes, retries,
                 at_most_once, state, pending, gang)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            )?
            .execute((
                id,
                run.sql(),
                &payload.name,
                &payload.family,
                &payload.image,
                &payload.trust_group,
                number(payload.cpu_millis),
                number(payload.memory_bytes),
                payload.retries,
                payload.at_most_once,
                state.sql(),
                number(pending as u64),
                payload.gang.map_or(0, number_in_run),
            ))?;
        self.sql
            .prepare_cached("INSERT INTO specs (id, spec) VALUES (?1, ?2)")?
            .execute((id, &payload.spec))?;
        Ok(())
    }
}
