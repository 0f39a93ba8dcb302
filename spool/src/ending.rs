//! What one payload's end means for those that come after it.

use pilot_core::Outcome;

use crate::claim::Skipped;
use crate::error::SpoolError;
use crate::words::{Code, PayloadId};
use crate::work::Work;

impl Work<'_> {
    pub(crate) fn keep_outcome(&self, id: i64, outcome: &Outcome) -> Result<(), SpoolError> {
        // Plain data: it always has a text.
        let text = serde_json::to_string(outcome).unwrap_or_default();
        self.sql.prepare_cached("UPDATE payloads SET outcome = ?2 WHERE id = ?1")?.execute((id, text))?;
        Ok(())
    }

    /// A payload succeeded: those that waited for it alone are ready.
    pub(crate) fn free_after(&self, id: i64) -> Result<(), SpoolError> {
        let mut count = self.sql.prepare_cached(
            "UPDATE payloads SET pending = pending - 1
             WHERE id IN (SELECT consumer FROM edges WHERE producer = ?1) AND state = 0 RETURNING id, pending",
        )?;
        let counted: Vec<(i64, i64)> =
            count.query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        let free: Vec<i64> =
            counted.into_iter().filter(|(_, pending)| *pending <= 0).map(|(id, _)| id).collect();
        let mut ready = self.sql.prepare_cached("UPDATE payloads SET state = 1 WHERE id = ?1")?;
        for consumer in &free {
            ready.execute([consumer])?;
        }
        self.shift(PayloadId(id).run(), Code::Waiting, Code::Ready, free.len())
    }

    /// A payload ended badly: what would have run together with it, what waits for it, and for that, will not run.
    pub(crate) fn skip_after(&self, id: i64) -> Result<Vec<Skipped>, SpoolError> {
        let run = PayloadId(id).run();
        let mut skip = self.sql.prepare_cached(
            "UPDATE payloads SET state = 5, because = ?1, ended_wall_ms = ?2
             WHERE id IN (SELECT consumer FROM edges WHERE producer = ?1) AND state = 0 RETURNING id",
        )?;
        let mut ids = Vec::new();
        let mates = self.skip_mates(id)?;
        let mut open = vec![id];
        open.extend(&mates);
        while let Some(because) = open.pop() {
            let lost: Vec<i64> =
                skip.query_map((because, self.wall_ms), |row| row.get(0))?.collect::<Result<_, _>>()?;
            open.extend(&lost);
            ids.extend(lost);
        }
        self.shift(run, Code::Waiting, Code::Skipped, ids.len())?;
        ids.extend(mates);
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let run_name: String = self
            .sql
            .prepare_cached("SELECT name FROM runs WHERE id = ?1")?
            .query_row([run.sql()], |row| row.get(0))?;
        let mut read = self.sql.prepare_cached("SELECT spec FROM specs WHERE id = ?1")?;
        let skipped = ids.into_iter().map(|id| {
            let spec = read.query_row([id], |row| row.get(0))?;
            Ok(Skipped { payload: PayloadId(id), run_name: run_name.clone(), spec })
        });
        skipped.collect()
    }
}
