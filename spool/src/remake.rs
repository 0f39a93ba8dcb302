//! A stage that is held and that someone wants made anew: its producer runs again, and those who still have to read it wait.
//!
//! It is what happens when a stage is lost (`recover.rs`), at someone's wish: so it takes no retry, and it is refused where it
//! would cost anybody anything.
//!
//! **Must not know:** where stages lie.

use crate::error::SpoolError;
use crate::recover::{Lost, Need};
use crate::words::{Code, PayloadId, run_of_workflow};
use crate::work::Work;

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remade {
    /// These payloads run again: its producer, those it runs together with, and those before it whose stages are gone.
    Again(Vec<PayloadId>),
    /// No payload of the spool has made it.
    Unknown,
    /// Nobody will read it any more.
    Unread,
    /// This payload has what would be made anew, or may have begun to read it.
    Reading(String),
    /// This payload would have to run again, and may run only once.
    Once(String),
}

impl Work<'_> {
    /// Lets the producer of `stage` (its URI, as a pilot holds it) run again. `has_stage` says of others whether they are held.
    /// Nothing is changed unless the answer is [`Remade::Again`].
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn remake(&self, stage: &str, has_stage: &mut dyn FnMut(&str) -> bool) -> Result<Remade, SpoolError> {
        let parts = stage.strip_prefix("stage://").map(|rest| rest.split('/').collect::<Vec<_>>());
        let Some([workflow, payload, output]) = parts.as_deref() else { return Ok(Remade::Unknown) };
        let Some(run) = run_of_workflow(workflow) else { return Ok(Remade::Unknown) };
        let mut find =
            self.sql.prepare_cached("SELECT id FROM payloads WHERE run = ?1 AND name = ?2 AND state = 3")?;
        let producer = find.query_map((run.sql(), payload), |row| row.get(0))?.next().transpose()?;
        let Some(producer): Option<i64> = producer else { return Ok(Remade::Unknown) };
        let reads = |outputs: &str| outputs.split_whitespace().any(|read| read == *output);
        let consumers = self.consumers_of(producer)?;
        let open: Vec<Need> = consumers
            .into_iter()
            .filter(|(_, state, outputs)| is_open(*state) && reads(outputs))
            .map(|(consumer, _, outputs)| (consumer, producer, outputs))
            .collect();
        if open.is_empty() {
            return Ok(Remade::Unread);
        }
        let mut has_others = |uri: &str| uri != stage && has_stage(uri);
        let (lost, needs) = self.find_lost(workflow, open, &mut has_others)?;
        let again = self.wanted(&lost, &needs)?;
        if let Some(refused) = self.objection(&lost, &again)? {
            return Ok(refused);
        }
        self.make_again(run, &again)?;
        self.stir();
        Ok(Remade::Again(again.into_iter().map(PayloadId).collect()))
    }

    /// What a producer makes is dropped when it starts again, all of it: nobody may be about to read any.
    fn objection(&self, lost: &Lost, again: &[i64]) -> Result<Option<Remade>, SpoolError> {
        for &id in again {
            // No retry is taken, so none can be lacking.
            if lost.holds(id) && self.may_run_again(id, false)?.is_some() {
                return Ok(Some(Remade::Once(self.name_of(id)?)));
            }
            for (consumer, state, outputs) in self.consumers_of(id)? {
                if !outputs.is_empty() && Code::from_sql(state) == Some(Code::Claimed) {
                    return Ok(Some(Remade::Reading(self.name_of(consumer)?)));
                }
            }
        }
        Ok(None)
    }
}

fn is_open(state: i64) -> bool {
    Code::from_sql(state).is_some_and(|code| !code.state().is_final())
}
