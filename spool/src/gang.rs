//! Gangs: payloads that are claimed together, and whose claims end together, in one transaction.
//!
//! A member's claim may go back alone, unused; then the gang is offered again when all its members are ready. It must not
//! know why payloads run together.

use pilot_core::retry::{Member, decide_together};
use pilot_core::{ClaimId, Decision, Outcome};

use crate::claim::{Held, Report, Want, from_sql, lost};
use crate::error::SpoolError;
use crate::words::{Code, RunId};
use crate::work::Work;

/// What comes next of a run: payloads that are for themselves, singly, and gangs.
#[derive(Debug, Default)]
pub(crate) struct Next {
    pub(crate) found: Vec<Vec<i64>>,
    /// See [`crate::Granted::held_up`].
    pub(crate) held_up: bool,
}

/// Rows that are looked at in one go, where the first of them were not enough: they are of gangs that are not all ready.
const LOOK: i64 = 64;

impl Work<'_> {
    /// What may be claimed of a run, in order, as long as there is room.
    pub(crate) fn next_of(&self, run: RunId, want: Want) -> Result<Next, SpoolError> {
        let (mut first, last) = run.span();
        let mut find = self.sql.prepare_cached(
            "SELECT id, gang FROM payloads INDEXED BY payloads_by_state
             WHERE state = 1 AND id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3",
        )?;
        let (mut next, mut room) = (Next::default(), want.at_most as usize);
        let mut seen = std::collections::BTreeSet::new();
        let mut any = false;
        while room > 0 {
            let wanted = i64::try_from(room).unwrap_or(i64::MAX);
            let limit = if any { wanted.max(LOOK) } else { wanted };
            let rows: Vec<(i64, i64)> = find
                .query_map((first, last, limit), |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<Result<_, _>>()?;
            let Some((furthest, _)) = rows.last() else { break };
            (first, any) = (furthest + 1, true);
            let is_all = i64::try_from(rows.len()).is_ok_and(|rows| rows < limit);
            for (id, gang) in rows {
                if room == 0 {
                    break;
                }
                if gang == 0 {
                    next.found.push(vec![id]);
                    room -= 1;
                } else if seen.insert(gang) {
                    let Some(members) = self.ready_gang(gang)? else { continue };
                    if members.len() > room && members.len() <= want.slots as usize {
                        next.held_up = true;
                        return Ok(next);
                    }
                    room = room.saturating_sub(members.len());
                    next.found.push(members);
                }
            }
            if is_all {
                break;
            }
        }
        if any || want.at_most == 0 {
            return Ok(next);
        }
        Err(SpoolError::Damaged(format!("run {run} counts a payload as ready and has none")))
    }

    /// The members of a gang, if all of them are ready.
    fn ready_gang(&self, gang: i64) -> Result<Option<Vec<i64>>, SpoolError> {
        let mut find = self
            .sql
            .prepare_cached("SELECT id, state FROM payloads WHERE gang = ?1 AND gang <> 0 ORDER BY id")?;
        let members: Vec<(i64, i64)> =
            find.query_map([gang], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        let ready = members.iter().all(|(_, state)| *state == Code::Ready.sql());
        Ok(ready.then(|| members.into_iter().map(|(id, _)| id).collect()))
    }

    /// Ends the claims of a gang with their outcomes, all of them or none. What is said of one gang ends every claim of it: who
    /// says nothing of a member has lost it.
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn report_together(&self, ends: &[(ClaimId, Outcome)]) -> Result<Vec<(ClaimId, Report)>, SpoolError> {
        let mut gang = None;
        for (claim, _) in ends {
            match self.held(*claim)? {
                Some(held) if held.gang != 0 && gang.is_none_or(|gang| gang == held.gang) => {
                    gang = Some(held.gang);
                }
                Some(_) | None => {
                    return Ok(ends.iter().map(|(claim, _)| (*claim, Report::NotHeld)).collect());
                }
            }
        }
        gang.map_or(Ok(Vec::new()), |gang| self.conclude_gang(gang, ends))
    }

    pub(crate) fn conclude_gang(
        &self,
        gang: i64,
        ends: &[(ClaimId, Outcome)],
    ) -> Result<Vec<(ClaimId, Report)>, SpoolError> {
        let held = self.claims_of_gang(gang)?;
        let unsaid = lost();
        let outcome =
            |claim: ClaimId| ends.iter().find(|(of, _)| *of == claim).map_or(&unsaid, |(_, outcome)| outcome);
        let member = |held: &Held| Member {
            outcome: outcome(held.claim),
            attempts: held.attempts,
            retries: held.retries,
            at_most_once: held.at_most_once,
        };
        let mut decisions = decide_together(&held.iter().map(member).collect::<Vec<_>>(), (self.jitter)());
        if held.iter().any(|held| held.cancelled) || self.gang_is_over(gang)? {
            // Who cancelled one does not want another try, and without that one there is none.
            decisions.fill(Decision::Final);
        }
        let mut reports = Vec::with_capacity(held.len());
        for (held, decision) in held.iter().zip(decisions) {
            reports.push((held.claim, self.settle(held, outcome(held.claim), decision)?));
        }
        Ok(reports)
    }

    /// All claims of the gang that a claim belongs to, its own among them; none when it is for itself. A member that was given
    /// back is not there.
    pub(crate) fn mates(&self, held: &Held) -> Result<Vec<ClaimId>, SpoolError> {
        Ok(self.claims_of_gang(held.gang)?.into_iter().map(|held| held.claim).collect())
    }

    fn claims_of_gang(&self, gang: i64) -> Result<Vec<Held>, SpoolError> {
        let mut find = self.sql.prepare_cached(
            "SELECT claims.id FROM payloads JOIN claims ON claims.payload = payloads.id
             WHERE gang = ?1 AND gang <> 0 ORDER BY payloads.id",
        )?;
        let claims: Vec<i64> = find.query_map([gang], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut held = Vec::with_capacity(claims.len());
        for claim in claims {
            held.extend(self.held(from_sql(claim))?);
        }
        Ok(held)
    }

    /// Whether one of a gang will not run again, so that the others are of no use.
    pub(crate) fn gang_is_over(&self, gang: i64) -> Result<bool, SpoolError> {
        if gang == 0 {
            return Ok(false);
        }
        let mut find = self.sql.prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM payloads WHERE gang = ?1 AND gang <> 0 AND state IN (4, 5, 6, 7))",
        )?;
        Ok(find.query_row([gang], |row| row.get(0))?)
    }

    /// All that run together with a payload; none when it is for itself.
    pub(crate) fn gang_with(&self, id: i64) -> Result<Vec<i64>, SpoolError> {
        let mut find = self.sql.prepare_cached(
            "SELECT id FROM payloads WHERE gang = (SELECT gang FROM payloads WHERE id = ?1) AND gang <> 0 AND id <> ?1",
        )?;
        let mates = find.query_map([id], |row| row.get(0))?;
        Ok(mates.collect::<Result<_, _>>()?)
    }

    /// Those that would have run together with a payload, and were not claimed, will not run. They are in no claim's way.
    pub(crate) fn skip_mates(&self, id: i64) -> Result<Vec<i64>, SpoolError> {
        let mut skip = self.sql.prepare_cached(
            "UPDATE payloads SET state = 5, because = ?1, ended_wall_ms = ?2
             WHERE gang = (SELECT gang FROM payloads WHERE id = ?1) AND gang <> 0 AND state = ?3 RETURNING id",
        )?;
        let mut skipped = Vec::new();
        for from in [Code::Waiting, Code::Ready, Code::Delayed] {
            let ids: Vec<i64> = skip
                .query_map((id, self.wall_ms, from.sql()), |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            self.shift(crate::words::PayloadId(id).run(), from, Code::Skipped, ids.len())?;
            skipped.extend(ids);
        }
        Ok(skipped)
    }
}
