//! A pilot comes back: what of its claims goes on, what is given up, and which lost stages have to be made again.

use std::collections::{BTreeMap, BTreeSet};

use pilot_core::retry::{self, NotAgain};
use pilot_core::{Attempts, ClaimId, Conclusion, Fault, FaultClass, Outcome};

use crate::claim::{self, Claimant, Offer};
use crate::error::SpoolError;
use crate::words::{Code, PayloadId, RunId, workflow_of};
use crate::work::Work;

/// What a pilot knows when it comes back.
#[derive(Clone, Copy, Debug)]
pub struct Recovery<'a> {
    /// Who it is.
    pub claimant: Claimant<'a>,
    /// Claims whose payloads still run.
    pub running: &'a [ClaimId],
    /// Of the claims that don't run any more: those whose payload's code may have run. `None` when no one knows: then any
    /// may have.
    pub launched: Option<&'a [ClaimId]>,
    /// For how long those that go on are claimed, in milliseconds.
    pub lease_ms: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The claims that go on. A claim that runs and is not among them belongs to someone else by now, or to no one.
    pub kept: Vec<Offer>,
    /// Claims that were given up: their payloads were lost.
    pub given_up: u64,
    /// Claims whose payloads had not begun: they are ready again.
    pub given_back: u64,
    /// Payloads that have to make their stages again.
    pub made_again: Vec<PayloadId>,
    /// Payloads that will never get a stage that they read.
    pub failed: Vec<PayloadId>,
}

/// A stage that someone still has to read: consumer, producer, outputs.
pub(crate) type Need = (i64, i64, String);

/// Payloads that would have to run again.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    /// Each with a stage that is lost: its own, or one of another that it runs together with.
    all: BTreeMap<i64, String>,
    /// Those of which a stage is lost.
    own: BTreeSet<i64>,
}

impl Lost {
    /// Whether a payload would have to run again.
    pub(crate) fn holds(&self, payload: i64) -> bool {
        self.all.contains_key(&payload)
    }
}

impl Work<'_> {
    /// Takes a pilot's claims up again, gives up those that no longer run, and lets payloads of the runs at home with it
    /// run again when a stage of theirs is needed and `has_stage` (by its URI) does not know it. That takes one of their retries.
    /// A stage that can't be made again, because that needs a payload that may run only once or has no retry left, fails those
    /// who need it.
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn recover(
        &self,
        recovery: &Recovery<'_>,
        has_stage: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Recovered, SpoolError> {
        let mut recovered = Recovered::default();
        self.settle_claims(recovery, &mut recovered)?;
        self.make_lost(recovery.claimant, has_stage, &mut recovered)?;
        self.stir();
        Ok(recovered)
    }

    /// What [`Work::recover`] does about stages, for a pilot that goes on: others of its domain may have gone, and what they had.
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn restore<'a>(
        &self,
        pilot: impl Into<Claimant<'a>>,
        has_stage: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Recovered, SpoolError> {
        let mut recovered = Recovered::default();
        self.make_lost(pilot.into(), has_stage, &mut recovered)?;
        if !recovered.made_again.is_empty() || !recovered.failed.is_empty() {
            self.stir();
        }
        Ok(recovered)
    }

    fn make_lost(
        &self,
        claimant: Claimant<'_>,
        has_stage: &mut dyn FnMut(&str) -> bool,
        recovered: &mut Recovered,
    ) -> Result<(), SpoolError> {
        let mut runs = self.at_home(claimant.pilot)?;
        if let Some(shared) = claimant.shared_home() {
            runs.extend(self.at_home(&shared)?);
        }
        for (run, name) in runs {
            self.make_lost_stages(run, &name, has_stage, recovered)?;
        }
        Ok(())
    }

    fn settle_claims(&self, recovery: &Recovery<'_>, recovered: &mut Recovered) -> Result<(), SpoolError> {
        let mut find = self.sql.prepare_cached(
            "SELECT claims.id, payload, runs.name FROM claims JOIN runs ON runs.id = payload >> 32
             WHERE pilot = ?1 ORDER BY claims.id",
        )?;
        let claims: Vec<(i64, i64, String)> = find
            .query_map([recovery.claimant.pilot], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<_, _>>()?;
        let running: BTreeSet<ClaimId> = recovery.running.iter().copied().collect();
        for (id, payload, run_name) in claims {
            let id = claim::from_sql(id);
            // It may have gone with another one of its gang.
            let Some(held) = self.held(id)? else { continue };
            let mates = self.mates(&held)?;
            let whole = mates.iter().all(|mate| running.contains(mate));
            if running.contains(&id) && whole {
                self.renew(id, recovery.lease_ms)?;
                let gang =
                    mates.first().map(|first| (*first, u32::try_from(mates.len()).unwrap_or(u32::MAX)));
                recovered.kept.push(Offer { gang, ..self.offer(id, payload, &run_name)? });
                continue;
            }
            let launched =
                |claim: &ClaimId| recovery.launched.is_none_or(|launched| launched.contains(claim));
            if !whole && mates.iter().any(|mate| running.contains(mate) || launched(mate)) {
                // What is left of a gang is of no use. Of one that was being launched all may have run.
                recovered.given_up += self.conclude_gang(held.gang, &[])?.len() as u64;
            } else if launched(&id) {
                self.conclude(&held, &claim::lost())?;
                recovered.given_up += 1;
            } else {
                self.give_back(&held)?;
                recovered.given_back += 1;
            }
        }
        Ok(())
    }

    fn at_home(&self, pilot: &str) -> Result<Vec<(RunId, String)>, SpoolError> {
        let mut find = self.sql.prepare_cached(
            "SELECT id, name FROM runs INDEXED BY runs_at_home
             WHERE home = ?1 AND ended_wall_ms IS NULL AND home <> '' ORDER BY id",
        )?;
        let runs = find.query_map([pilot], |row| Ok((RunId::from_sql(row.get(0)?), row.get(1)?)))?;
        Ok(runs.collect::<Result<_, _>>()?)
    }

    fn make_lost_stages(
        &self,
        run: RunId,
        name: &str,
        has_stage: &mut dyn FnMut(&str) -> bool,
        recovered: &mut Recovered,
    ) -> Result<(), SpoolError> {
        let (first, last) = run.span();
        // Those that a pilot has hold what they read.
        let mut find = self.sql.prepare_cached(
            "SELECT e.consumer, e.producer, e.outputs FROM edges AS e
             JOIN payloads AS p ON p.id = e.producer JOIN payloads AS c ON c.id = e.consumer
             WHERE e.producer BETWEEN ?1 AND ?2 AND e.outputs <> '' AND p.state = 3 AND c.state IN (0, 1, 8)",
        )?;
        let open: Vec<Need> = find
            .query_map((first, last), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<_, _>>()?;
        let (lost, needs) = self.find_lost(&workflow_of(name, run), open, has_stage)?;
        let hopeless = self.hopeless(&lost, &needs)?;
        for (consumer, producer, _) in &needs {
            if let (Some(why), false) = (hopeless.get(producer), lost.all.contains_key(consumer)) {
                let uri = lost.all.get(producer).map_or("", String::as_str);
                self.fail_reader(*consumer, uri, *why, recovered)?;
            }
        }
        let again = self.wanted(&lost, &needs)?;
        for id in again.iter().filter(|id| lost.own.contains(id)) {
            self.sql
                .prepare_cached("UPDATE payloads SET failed = failed + 1 WHERE id = ?1")?
                .execute([id])?;
        }
        self.make_again(run, &again)?;
        recovered.made_again.extend(again.into_iter().map(PayloadId));
        Ok(())
    }

    /// From each stage that is needed and lost on to what its producer reads; and of the needs those that are not met.
    pub(crate) fn find_lost(
        &self,
        workflow: &str,
        mut open: Vec<Need>,
        has_stage: &mut dyn FnMut(&str) -> bool,
    ) -> Result<(Lost, Vec<Need>), SpoolError> {
        let mut lost = Lost::default();
        let mut needs: Vec<Need> = Vec::new();
        while let Some(need) = open.pop() {
            let (_, producer, outputs) = &need;
            if !lost.own.contains(producer)
                && let Some(uri) = self.lost_stage(workflow, *producer, outputs, has_stage)?
            {
                // It runs again with all of its gang.
                for mate in self.gang_with(*producer)? {
                    open.extend(self.reads_of(mate)?);
                    lost.all.entry(mate).or_insert_with(|| uri.clone());
                }
                open.extend(self.reads_of(*producer)?);
                lost.all.insert(*producer, uri);
                lost.own.insert(*producer);
            }
            needs.push(need);
        }
        needs.retain(|(_, producer, _)| lost.all.contains_key(producer));
        Ok((lost, needs))
    }

    /// The first of these outputs that is not there.
    fn lost_stage(
        &self,
        workflow: &str,
        producer: i64,
        outputs: &str,
        has_stage: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Option<String>, SpoolError> {
        let name = self.name_of(producer)?;
        let uris = outputs.split_whitespace().map(|output| format!("stage://{workflow}/{name}/{output}"));
        Ok(uris.into_iter().find(|uri| !has_stage(uri)))
    }

    pub(crate) fn name_of(&self, id: i64) -> Result<String, SpoolError> {
        let mut find = self.sql.prepare_cached("SELECT name FROM payloads WHERE id = ?1")?;
        Ok(find.query_row([id], |row| row.get(0))?)
    }

    fn reads_of(&self, consumer: i64) -> Result<Vec<Need>, SpoolError> {
        let mut find = self.sql.prepare_cached(
            "SELECT consumer, producer, outputs FROM edges JOIN payloads ON payloads.id = producer
             WHERE consumer = ?1 AND outputs <> '' AND state = 3",
        )?;
        let reads = find.query_map([consumer], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        Ok(reads.collect::<Result<_, _>>()?)
    }

    /// Whether a payload may run again; one that only runs together with such as have lost a stage is not charged for it.
    pub(crate) fn may_run_again(&self, id: i64, is_own: bool) -> Result<Option<NotAgain>, SpoolError> {
        let mut find = self
            .sql
            .prepare_cached("SELECT failed, disrupted, retries, at_most_once FROM payloads WHERE id = ?1")?;
        let (attempts, retries, once) = find.query_row([id], |row| {
            let attempts = Attempts { failed: row.get(0)?, disrupted: row.get(1)? };
            Ok((attempts, row.get(2)?, row.get(3)?))
        })?;
        let why = retry::make_again(attempts, retries, once).err();
        Ok(why.filter(|why| is_own || *why == NotAgain::Once))
    }

    /// Of the producers whose stages are lost, those that can't run again, each with the one because of which, and why that one.
    fn hopeless(&self, lost: &Lost, needs: &[Need]) -> Result<BTreeMap<i64, (i64, NotAgain)>, SpoolError> {
        let mut hopeless = BTreeMap::new();
        let mut readers: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        for (consumer, producer, _) in needs {
            readers.entry(*producer).or_default().push(*consumer);
        }
        for &producer in lost.all.keys() {
            let Some(why) = self.may_run_again(producer, lost.own.contains(&producer))? else { continue };
            let mut open = vec![producer];
            while let Some(id) = open.pop() {
                if hopeless.insert(id, (producer, why)).is_none() {
                    let next = readers.get(&id).into_iter().flatten();
                    let mates = self.gang_with(id)?;
                    open.extend(next.chain(&mates).filter(|id| lost.all.contains_key(id)));
                }
            }
        }
        Ok(hopeless)
    }

    /// Those that have to run again: what they make is read by someone who can run, or by another one of them. Comes after those
    /// who can't run have failed, and who needs them has been skipped.
    pub(crate) fn wanted(&self, lost: &Lost, needs: &[Need]) -> Result<Vec<i64>, SpoolError> {
        let mut open = Vec::new();
        let mut reads: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        for (consumer, producer, _) in needs {
            let is_open = |state: Code| !state.state().is_final();
            if lost.all.contains_key(consumer) {
                reads.entry(*consumer).or_default().push(*producer);
            } else if self.state_of(*consumer)?.is_some_and(is_open) {
                open.push(*producer);
            }
        }
        let mut wanted = BTreeSet::new();
        while let Some(id) = open.pop() {
            if wanted.insert(id) {
                let mates = self.gang_with(id)?;
                let next = reads.get(&id).into_iter().flatten().chain(&mates);
                open.extend(next.filter(|id| lost.all.contains_key(id)));
            }
        }
        Ok(wanted.into_iter().collect())
    }

    fn state_of(&self, id: i64) -> Result<Option<Code>, SpoolError> {
        let mut find = self.sql.prepare_cached("SELECT state FROM payloads WHERE id = ?1")?;
        Ok(Code::from_sql(find.query_row([id], |row| row.get(0))?))
    }

    fn fail_reader(
        &self,
        id: i64,
        uri: &str,
        (who, why): (i64, NotAgain),
        recovered: &mut Recovered,
    ) -> Result<(), SpoolError> {
        let from = match self.state_of(id)? {
            Some(from @ (Code::Waiting | Code::Ready | Code::Delayed)) => from,
            // It failed or was skipped for another stage.
            _ => return Ok(()),
        };
        let why = match why {
            NotAgain::Once => "may run only once",
            NotAgain::Spent => {
                "has no retry left to make it again; give it more retries, or keep the stage in a file"
            }
        };
        let text = format!("its input {uri} was lost with the pilot, and {} {why}", self.name_of(who)?);
        let fault = Fault::new(FaultClass::Payload, text);
        self.keep_outcome(id, &Outcome::before_launch(Conclusion::Failed(fault)))?;
        self.move_to(id, from, Code::Failed)?;
        self.skip_after(id)?;
        recovered.failed.push(PayloadId(id));
        Ok(())
    }

    /// Lets producers run again, and those who read of them wait again.
    pub(crate) fn make_again(&self, run: RunId, again: &[i64]) -> Result<(), SpoolError> {
        let mut waiting: BTreeSet<i64> = BTreeSet::new();
        for &producer in again {
            self.move_to(producer, Code::Succeeded, Code::Waiting)?;
            waiting.insert(producer);
        }
        for &producer in again {
            for (consumer, state, outputs) in self.consumers_of(producer)? {
                match Code::from_sql(state) {
                    Some(from @ (Code::Ready | Code::Delayed)) if !outputs.is_empty() => {
                        self.move_to(consumer, from, Code::Waiting)?;
                    }
                    Some(Code::Waiting) => {}
                    _ => continue,
                }
                waiting.insert(consumer);
            }
        }
        let mut count = self.sql.prepare_cached(
            "UPDATE payloads SET pending = (SELECT count(*) FROM edges JOIN payloads AS p ON p.id = producer
               WHERE consumer = ?1 AND p.state <> 3) WHERE id = ?1 RETURNING pending",
        )?;
        let mut free = Vec::new();
        for &id in &waiting {
            let pending: i64 = count.query_row([id], |row| row.get(0))?;
            if pending == 0 {
                free.push(id);
            }
        }
        let mut ready = self.sql.prepare_cached("UPDATE payloads SET state = 1 WHERE id = ?1")?;
        for id in &free {
            ready.execute([id])?;
        }
        self.shift(run, Code::Waiting, Code::Ready, free.len())
    }

    pub(crate) fn consumers_of(&self, producer: i64) -> Result<Vec<(i64, i64, String)>, SpoolError> {
        let mut find = self.sql.prepare_cached(
            "SELECT consumer, state, outputs FROM edges JOIN payloads ON payloads.id = consumer WHERE producer = ?1",
        )?;
        let rows = find.query_map([producer], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
