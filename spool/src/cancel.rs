//! Cancelling and forgetting: what users do to runs.

use pilot_core::{Conclusion, Outcome, StopCause};

use crate::address::Found;
use crate::error::SpoolError;
use crate::words::{Code, PayloadId, RunId};
use crate::work::Work;

/// What to cancel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of a run.
    Run(RunId),
    /// One payload; those after it are skipped.
    Payload(PayloadId),
    /// Every element of an array of a run; those after them are skipped.
    Family(RunId, String),
}

impl From<&Found> for Selection {
    fn from(found: &Found) -> Self {
        match found {
            Found::Run(run) => Self::Run(run.id),
            Found::Payload(row) => Self::Payload(row.id),
            Found::Family(run, family) => Self::Family(run.id, family.clone()),
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cancelled {
    /// They had not begun and are cancelled.
    pub ended: u64,
    /// A pilot has them and will end them.
    pub flagged: u64,
    /// They wait for one that was cancelled and will not run.
    pub skipped: u64,
    /// They had come to their end before.
    pub already: u64,
}

impl Work<'_> {
    /// Cancels: what has not begun ends at once, with what waits for it; what a pilot has is flagged for it.
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn cancel(&self, selection: &Selection) -> Result<Cancelled, SpoolError> {
        let (run, (first, last), family) = match selection {
            Selection::Run(run) => (*run, run.span(), None),
            Selection::Payload(id) => (id.run(), (id.0, id.0), None),
            Selection::Family(run, family) => (*run, run.span(), Some(family.as_str())),
        };
        let mut cancelled = Cancelled::default();
        let outcome = Outcome::before_launch(Conclusion::Stopped(StopCause::Cancelled));
        let text = serde_json::to_string(&outcome).unwrap_or_default();
        let mut ended = Vec::new();
        let mut end = self.sql.prepare_cached(
            "UPDATE payloads SET state = 6, ended_wall_ms = ?4, outcome = coalesce(outcome, ?6)
             WHERE state = ?3 AND id BETWEEN ?1 AND ?2 AND (?5 IS NULL OR family = ?5) RETURNING id",
        )?;
        for from in [Code::Waiting, Code::Ready, Code::Delayed] {
            let ids = end
                .query_map((first, last, from.sql(), self.wall_ms, family, &text), |row| {
                    row.get::<_, i64>(0)
                })?
                .collect::<Result<Vec<_>, _>>()?;
            self.shift(run, from, Code::Cancelled, ids.len())?;
            ended.extend(ids);
        }
        cancelled.ended = ended.len() as u64;
        for id in ended {
            cancelled.skipped += self.skip_after(id)?.len() as u64;
        }
        let flagged = self
            .sql
            .prepare_cached(
                "UPDATE claims SET cancelled = 1 WHERE payload BETWEEN ?1 AND ?2
                 AND (?3 IS NULL OR ?3 = (SELECT family FROM payloads WHERE id = payload))",
            )?
            .execute((first, last, family))?;
        cancelled.flagged = flagged as u64;
        let all: i64 = self
            .sql
            .prepare_cached(
                "SELECT count(*) FROM payloads WHERE id BETWEEN ?1 AND ?2 AND (?3 IS NULL OR family = ?3)",
            )?
            .query_row((first, last, family), |row| row.get(0))?;
        cancelled.already = all.unsigned_abs().saturating_sub(cancelled.ended + cancelled.flagged);
        self.stir();
        Ok(cancelled)
    }

    pub(crate) fn forget(&self, run: RunId) -> Result<u64, SpoolError> {
        let known = crate::query::run(self.sql, run)?.ok_or(SpoolError::NoRun(run))?;
        let open = known.counts.open();
        if open > 0 {
            return Err(SpoolError::Unfinished { run, open });
        }
        let (first, last) = run.span();
        for text in [
            "DELETE FROM edges WHERE producer BETWEEN ?1 AND ?2",
            "DELETE FROM specs WHERE id BETWEEN ?1 AND ?2",
        ] {
            self.sql.prepare_cached(text)?.execute((first, last))?;
        }
        let rows = self
            .sql
            .prepare_cached("DELETE FROM payloads WHERE id BETWEEN ?1 AND ?2")?
            .execute((first, last))?;
        self.sql.prepare_cached("DELETE FROM runs WHERE id = ?1")?.execute([run.sql()])?;
        Ok(rows as u64)
    }
}
