//! Claims: who has which payload, until when, and how it ends. Every answer is fenced by the claim's number.

use pilot_core::{Attempts, ClaimId, Conclusion, Decision, Outcome, retry};
use rusqlite::OptionalExtension;

use crate::error::SpoolError;
use crate::words::{Code, PayloadId, RunId};
use crate::work::Work;

/// Overdue leases that one claim ends, and pauses over that it sees: a claim stays short after a long absence.
const OVERDUE_PER_CLAIM: i64 = 256;

/// A payload with the right to run it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The right.
    pub claim: ClaimId,
    /// Which payload.
    pub payload: PayloadId,
    /// Of which run.
    pub run: RunId,
    /// The run's name.
    pub run_name: String,
    /// The payload's spec as it was submitted.
    pub spec: String,
    /// Its trust group.
    pub trust_group: String,
    /// Never run it a second time.
    pub at_most_once: bool,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// Of how many that were claimed at once it is one, and under which claim the first of them; `None` when it is for
    /// itself.
    pub gang: Option<(ClaimId, u32)>,
}

/// How much a pilot can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// So many payloads now.
    pub at_most: u32,
    /// So many at once, ever. A gang that is larger is handed out all the same, for the pilot to fail it.
    pub slots: u32,
}

/// What a claim gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// Payloads.
    pub offers: Vec<Offer>,
    /// A gang is next, and larger than what was wanted. What is behind it waits with it, so that it comes to its turn.
    pub held_up: bool,
}

/// What was done with a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The payload is done with, and so are those that will never run because of it.
    Final {
        /// They.
        skipped: Vec<Skipped>,
    },
    /// It will be offered again.
    Retried,
    /// The claim is over: nothing was changed.
    NotHeld,
}

/// A payload that will not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Which.
    pub payload: PayloadId,
    /// Its run's name.
    pub run_name: String,
    /// Its spec as it was submitted.
    pub spec: String,
}

/// A claim's row, and what of its payload matters at its end.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) claim: ClaimId,
    pub(crate) payload: i64,
    pub(crate) cancelled: bool,
    pub(crate) retries: u32,
    pub(crate) at_most_once: bool,
    pub(crate) attempts: Attempts,
    pub(crate) gang: i64,
}

/// A pilot that claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimant<'a> {
    /// Its name.
    pub pilot: &'a str,
    /// The same for all pilots that can have each other's stages; none when it shares them with nobody.
    pub domain: Option<&'a str>,
}

impl<'a> From<&'a str> for Claimant<'a> {
    fn from(pilot: &'a str) -> Self {
        Self { pilot, domain: None }
    }
}

impl Claimant<'_> {
    /// The second home of its runs. No pilot is called so: names have no colon.
    pub(crate) fn shared_home(&self) -> Option<String> {
        self.domain.map(|domain| format!("{SHARED}{domain}"))
    }
}

/// How homes begin that several pilots have.
pub(crate) const SHARED: &str = "shared:";

impl Work<'_> {
    /// Claims up to `at_most` payloads for a pilot, for `lease_ms` from now: the oldest run first, in the order of
    /// submission within. A run whose payloads hand each other stages stays with the first pilot that claims from it, and with
    /// those that it shares stages with. Ends overdue leases before.
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn claim<'a>(
        &self,
        pilot: impl Into<Claimant<'a>>,
        at_most: u32,
        lease_ms: u64,
    ) -> Result<Vec<Offer>, SpoolError> {
        Ok(self.claim_for(pilot, Want { at_most, slots: u32::MAX }, lease_ms)?.offers)
    }

    /// As [`Work::claim`]. Gangs are claimed whole or not at all.
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn claim_for<'a>(
        &self,
        pilot: impl Into<Claimant<'a>>,
        want: Want,
        lease_ms: u64,
    ) -> Result<Granted, SpoolError> {
        let claimant = pilot.into();
        let (pilot, shared) = (claimant.pilot, claimant.shared_home());
        self.end_overdue()?;
        self.end_pauses()?;
        let mut granted = Granted::default();
        let mut after = 0;
        while granted.offers.len() < want.at_most as usize && !granted.held_up {
            let Some((run, name, homeless)) = self.next_run(pilot, shared.as_deref(), after)? else { break };
            after = run.sql();
            let left = want.at_most - u32::try_from(granted.offers.len()).unwrap_or(want.at_most);
            let next = self.next_of(run, Want { at_most: left, ..want })?;
            granted.held_up = next.held_up;
            if next.found.is_empty() {
                continue;
            }
            if homeless {
                self.sql
                    .prepare_cached("UPDATE runs SET home = ?2 WHERE id = ?1")?
                    .execute((run.sql(), shared.as_deref().unwrap_or(pilot)))?;
            }
            for ids in &next.found {
                let mut offers: Vec<Offer> = Vec::with_capacity(ids.len());
                for &id in ids {
                    offers.push(self.take(id, &name, pilot, lease_ms)?);
                }
                if let Some(first) = offers.first().map(|offer| offer.claim).filter(|_| offers.len() > 1) {
                    let size = u32::try_from(offers.len()).unwrap_or(u32::MAX);
                    offers.iter_mut().for_each(|offer| offer.gang = Some((first, size)));
                }
                granted.offers.append(&mut offers);
            }
            self.shift(run, Code::Ready, Code::Claimed, next.found.iter().map(Vec::len).sum())?;
        }
        Ok(granted)
    }

    /// The oldest run after `after` with a payload for this pilot; whether it is about to get its home.
    fn next_run(
        &self,
        pilot: &str,
        shared: Option<&str>,
        after: i64,
    ) -> Result<Option<(RunId, String, bool)>, SpoolError> {
        let mut find = self.sql.prepare_cached(
            "SELECT id, name, hands_stages AND home = '' FROM runs WHERE id = (SELECT min(id) FROM (
               SELECT * FROM (SELECT id FROM runs INDEXED BY runs_ready
                              WHERE home = '' AND n1 > 0 AND id > ?2 ORDER BY id LIMIT 1)
               UNION ALL
               SELECT * FROM (SELECT id FROM runs INDEXED BY runs_ready
                              WHERE home = ?1 AND n1 > 0 AND id > ?2 ORDER BY id LIMIT 1)
               UNION ALL
               SELECT * FROM (SELECT id FROM runs INDEXED BY runs_ready
                              WHERE home = ?3 AND n1 > 0 AND id > ?2 ORDER BY id LIMIT 1)))",
        )?;
        let row = find.query_row((pilot, after, shared), |row| {
            Ok((RunId::from_sql(row.get(0)?), row.get(1)?, row.get(2)?))
        });
        Ok(row.optional()?)
    }

    fn take(&self, id: i64, run_name: &str, pilot: &str, lease_ms: u64) -> Result<Offer, SpoolError> {
        self.sql
            .prepare_cached("INSERT INTO claims (payload, pilot, lease_until_ms) VALUES (?1, ?2, ?3)")?
            .execute((id, pilot, self.until(lease_ms)))?;
        let claim = ClaimId(u64::try_from(self.sql.last_insert_rowid()).unwrap_or(0));
        self.sql
            .prepare_cached(
                "UPDATE payloads SET state = 2, tries = tries + 1, claimed_wall_ms = ?2, ended_wall_ms = NULL
                 WHERE id = ?1",
            )?
            .execute((id, self.wall_ms))?;
        self.offer(claim, id, run_name)
    }

    /// The offer of a claim that is there.
    pub(crate) fn offer(&self, claim: ClaimId, id: i64, run_name: &str) -> Result<Offer, SpoolError> {
        let mut read = self.sql.prepare_cached(
            "SELECT trust_group, at_most_once, tries, spec FROM payloads JOIN specs USING (id) WHERE id = ?1",
        )?;
        Ok(read.query_row([id], |row| {
            Ok(Offer {
                gang: None,
                claim,
                payload: PayloadId(id),
                run: PayloadId(id).run(),
                run_name: run_name.to_owned(),
                trust_group: row.get(0)?,
                at_most_once: row.get(1)?,
                attempt: row.get(2)?,
                spec: row.get(3)?,
            })
        })?)
    }

    pub(crate) fn until(&self, lease_ms: u64) -> i64 {
        self.now_ms.saturating_add(i64::try_from(lease_ms).unwrap_or(i64::MAX))
    }

    /// Prolongs a claim to `lease_ms` from now; `false` when it is over. One that is overdue and that no one took goes on.
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn renew(&self, claim: ClaimId, lease_ms: u64) -> Result<bool, SpoolError> {
        let mut renew = self.sql.prepare_cached("UPDATE claims SET lease_until_ms = ?2 WHERE id = ?1")?;
        Ok(renew.execute((sql(claim), self.until(lease_ms)))? == 1)
    }

    /// Ends a claim with its outcome.
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn report(&self, claim: ClaimId, outcome: &Outcome) -> Result<Report, SpoolError> {
        match self.held(claim)? {
            Some(held) => self.conclude(&held, outcome),
            None => Ok(Report::NotHeld),
        }
    }

    /// Gives a claim back unused: it was no try. `false` when it is over.
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn release(&self, claim: ClaimId) -> Result<bool, SpoolError> {
        match self.held(claim)? {
            Some(held) => self.give_back(&held).map(|()| true),
            None => Ok(false),
        }
    }

    /// Whether a claim is not over.
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn is_held(&self, claim: ClaimId) -> Result<bool, SpoolError> {
        Ok(self.held(claim)?.is_some())
    }

    pub(crate) fn held(&self, claim: ClaimId) -> Result<Option<Held>, SpoolError> {
        let mut find = self.sql.prepare_cached(
            "SELECT payload, cancelled, retries, at_most_once, failed, disrupted, gang
             FROM claims JOIN payloads ON payloads.id = claims.payload WHERE claims.id = ?1",
        )?;
        let held = find.query_row([sql(claim)], |row| {
            Ok(Held {
                claim,
                payload: row.get(0)?,
                cancelled: row.get(1)?,
                retries: row.get(2)?,
                at_most_once: row.get(3)?,
                attempts: Attempts { failed: row.get(4)?, disrupted: row.get(5)? },
                gang: row.get(6)?,
            })
        });
        Ok(held.optional()?)
    }

    pub(crate) fn drop_claim(&self, claim: ClaimId) -> Result<(), SpoolError> {
        self.sql.prepare_cached("DELETE FROM claims WHERE id = ?1")?.execute([sql(claim)])?;
        Ok(())
    }

    pub(crate) fn give_back(&self, held: &Held) -> Result<(), SpoolError> {
        self.drop_claim(held.claim)?;
        self.sql
            .prepare_cached("UPDATE payloads SET tries = max(tries - 1, 0) WHERE id = ?1")?
            .execute([held.payload])?;
        let end = match held.cancelled {
            true => Code::Cancelled,
            false if self.gang_is_over(held.gang)? => Code::Skipped,
            false => return self.move_to(held.payload, Code::Claimed, Code::Ready),
        };
        self.move_to(held.payload, Code::Claimed, end)?;
        self.skip_after(held.payload).map(drop)
    }

    /// Ends a claim: the payload is done with, or comes back after a pause. With one claim of a gang all end.
    pub(crate) fn conclude(&self, held: &Held, outcome: &Outcome) -> Result<Report, SpoolError> {
        if held.gang != 0 {
            let reports = self.conclude_gang(held.gang, &[(held.claim, outcome.clone())])?;
            let own = reports.into_iter().find(|(claim, _)| *claim == held.claim);
            return Ok(own.map_or(Report::NotHeld, |(_, report)| report));
        }
        // Who cancelled it does not want another try.
        let decision = match held.cancelled && !outcome.is_success() {
            true => Decision::Final,
            false => retry::decide(outcome, held.attempts, held.retries, held.at_most_once, (self.jitter)()),
        };
        self.settle(held, outcome, decision)
    }

    /// Writes down how a claim ended and what was decided about its payload.
    pub(crate) fn settle(
        &self,
        held: &Held,
        outcome: &Outcome,
        decision: Decision,
    ) -> Result<Report, SpoolError> {
        self.drop_claim(held.claim)?;
        let id = held.payload;
        self.keep_outcome(id, outcome)?;
        match decision {
            Decision::Final if outcome.is_success() => {
                self.move_to(id, Code::Claimed, Code::Succeeded)?;
                self.free_after(id)?;
                Ok(Report::Final { skipped: Vec::new() })
            }
            Decision::Retry { after_ms, attempts } => {
                let from = self.until(after_ms);
                self.sql
                    .prepare_cached(
                        "UPDATE payloads SET failed = ?2, disrupted = ?3, not_before_ms = ?4 WHERE id = ?1",
                    )?
                    .execute((id, attempts.failed, attempts.disrupted, from))?;
                self.move_to(id, Code::Claimed, Code::Delayed)?;
                Ok(Report::Retried)
            }
            Decision::Final => {
                let cancelled =
                    matches!(outcome.conclusion, Conclusion::Stopped(pilot_core::StopCause::Cancelled));
                let end = match outcome.conclusion {
                    _ if held.cancelled || cancelled => Code::Cancelled,
                    Conclusion::Lost => Code::Lost,
                    _ => Code::Failed,
                };
                self.move_to(id, Code::Claimed, end)?;
                Ok(Report::Final { skipped: self.skip_after(id)? })
            }
        }
    }

    /// Gives up the claims whose leases are over: no one may say any more how they ended.
    fn end_overdue(&self) -> Result<(), SpoolError> {
        let mut find = self.sql.prepare_cached(
            "SELECT id FROM claims INDEXED BY claims_by_lease WHERE lease_until_ms <= ?1 ORDER BY lease_until_ms LIMIT ?2",
        )?;
        let overdue: Vec<i64> =
            find.query_map((self.now_ms, OVERDUE_PER_CLAIM), |row| row.get(0))?.collect::<Result<_, _>>()?;
        for id in overdue {
            if let Some(held) = self.held(from_sql(id))? {
                self.conclude(&held, &lost())?;
            }
        }
        Ok(())
    }

    /// Those whose pause is over may be claimed.
    fn end_pauses(&self) -> Result<(), SpoolError> {
        let mut find = self.sql.prepare_cached(
            "SELECT id FROM payloads INDEXED BY payloads_delayed WHERE state = 8 AND not_before_ms <= ?1
             ORDER BY not_before_ms LIMIT ?2",
        )?;
        let over: Vec<i64> =
            find.query_map((self.now_ms, OVERDUE_PER_CLAIM), |row| row.get(0))?.collect::<Result<_, _>>()?;
        for id in over {
            self.move_to(id, Code::Delayed, Code::Ready)?;
        }
        Ok(())
    }

    /// Claims of a pilot whose payloads their users do not want any more.
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn cancelled_claims(&self, pilot: &str) -> Result<Vec<ClaimId>, SpoolError> {
        cancelled_claims(self.sql, pilot)
    }
}

pub(crate) fn cancelled_claims(sql: &rusqlite::Connection, pilot: &str) -> Result<Vec<ClaimId>, SpoolError> {
    let mut find = sql.prepare_cached("SELECT id FROM claims WHERE pilot = ?1 AND cancelled = 1")?;
    let claims = find.query_map([pilot], |row| row.get(0).map(from_sql))?;
    Ok(claims.collect::<Result<_, _>>()?)
}

/// How a claim ends that no one speaks for: its code may have run.
pub(crate) fn lost() -> Outcome {
    Outcome { launched: true, ..Outcome::before_launch(Conclusion::Lost) }
}

/// Claims that no spool gave find nothing.
pub(crate) fn sql(claim: ClaimId) -> i64 {
    i64::try_from(claim.0).unwrap_or(-1)
}

pub(crate) fn from_sql(id: i64) -> ClaimId {
    ClaimId(u64::try_from(id).unwrap_or(0))
}
