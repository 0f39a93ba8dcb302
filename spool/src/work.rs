//! What is done within one transaction.
//!
//! The methods stand by subject: `submit.rs`, `claim.rs`, `ending.rs`, `recover.rs`, `cancel.rs`. Here is what they share:
//! the time, the counts, and the way from one state to another.

use std::cell::Cell;

use pilot_core::Jitter;
use rusqlite::{Connection, OptionalExtension, Transaction};

use crate::claim::Claimant;
use crate::clock::Clock;
use crate::error::SpoolError;
use crate::words::{Code, RunId};

/// One transaction's work on a spool.
#[derive(Debug)]
pub struct Work<'a> {
    pub(crate) sql: &'a Connection,
    /// Boot time at which it began, in milliseconds.
    pub(crate) now_ms: i64,
    /// Wall clock at which it began, to be shown.
    pub(crate) wall_ms: i64,
    pub(crate) jitter: fn() -> Jitter,
    stirred: Cell<bool>,
}

/// What a pilot has to look forward to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upcoming {
    /// A claim would find something, or has an overdue lease to end.
    pub now: bool,
    /// Boot time in milliseconds at which that becomes so without anyone doing anything.
    pub at_ms: Option<u64>,
    /// Whether any payload of any run has not come to its end.
    pub open: bool,
}

impl<'a> Work<'a> {
    pub(crate) fn new(transaction: &'a Transaction<'_>, clock: &dyn Clock, jitter: fn() -> Jitter) -> Self {
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        Self {
            sql: transaction,
            now_ms: signed(clock.boot_ms()),
            wall_ms: signed(clock.wall_ms()),
            jitter,
            stirred: Cell::new(false),
        }
    }

    /// Whether something became ready, or was cancelled, that a pilot should hear of.
    #[must_use]
    pub fn stirred(&self) -> bool {
        self.stirred.get()
    }

    pub(crate) fn stir(&self) {
        self.stirred.set(true);
    }

    /// Times of another boot mean nothing in this one: leases are over, pauses too.
    pub(crate) fn enter_boot(&self, boot: &str) -> Result<(), SpoolError> {
        let known: String = self.sql.query_row("SELECT boot FROM facts", [], |row| row.get(0))?;
        if known == boot {
            return Ok(());
        }
        self.sql.execute("UPDATE claims SET lease_until_ms = 0", [])?;
        self.sql.execute(
            "UPDATE payloads INDEXED BY payloads_delayed SET not_before_ms = 0 WHERE state = 8",
            [],
        )?;
        self.sql.execute("UPDATE facts SET boot = ?1", [boot])?;
        Ok(())
    }

    /// Books that `count` payloads of a run went from one state to another.
    pub(crate) fn shift(&self, run: RunId, from: Code, to: Code, count: usize) -> Result<(), SpoolError> {
        if count == 0 || from == to {
            return Ok(());
        }
        if to == Code::Ready {
            self.stir();
        }
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let (f, t) = (from.sql(), to.sql());
        let text = format!("UPDATE runs SET n{f} = n{f} - ?2, n{t} = n{t} + ?2 WHERE id = ?1");
        self.sql.prepare_cached(&text)?.execute((run.sql(), count))?;
        let (was_open, is_open) = (!from.state().is_final(), !to.state().is_final());
        if was_open != is_open {
            // An ended run comes back to life when a lost stage has to be made again, and only then.
            let mut end = self.sql.prepare_cached(
                "UPDATE runs SET ended_wall_ms = CASE WHEN n0 + n1 + n2 + n8 = 0 THEN ?2 END WHERE id = ?1
                 AND (ended_wall_ms IS NULL) = (n0 + n1 + n2 + n8 = 0)",
            )?;
            end.execute((run.sql(), self.wall_ms))?;
        }
        Ok(())
    }

    /// Moves one payload to another state.
    pub(crate) fn move_to(&self, id: i64, from: Code, to: Code) -> Result<(), SpoolError> {
        let ended = to.state().is_final().then_some(self.wall_ms);
        let mut go =
            self.sql.prepare_cached("UPDATE payloads SET state = ?2, ended_wall_ms = ?3 WHERE id = ?1")?;
        go.execute((id, to.sql(), ended))?;
        self.shift(crate::words::PayloadId(id).run(), from, to, 1)
    }

    /// What a pilot may look forward to.
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn upcoming<'p>(&self, pilot: impl Into<Claimant<'p>>) -> Result<Upcoming, SpoolError> {
        upcoming(self.sql, self.now_ms, pilot.into())
    }
}

/// As [`Work::upcoming`]; also without a transaction of its own, as a reader.
pub(crate) fn upcoming(
    sql: &Connection,
    now_ms: i64,
    claimant: Claimant<'_>,
) -> Result<Upcoming, SpoolError> {
    let ready: bool = sql
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM runs INDEXED BY runs_ready WHERE home = '' AND n1 > 0)
             OR EXISTS (SELECT 1 FROM runs INDEXED BY runs_ready WHERE home = ?1 AND n1 > 0)
             OR EXISTS (SELECT 1 FROM runs INDEXED BY runs_ready WHERE home = ?2 AND n1 > 0)",
        )?
        .query_row((claimant.pilot, claimant.shared_home()), |row| row.get(0))?;
    let next: Option<i64> = sql
        .prepare_cached(
            "SELECT min(at) FROM (
               SELECT min(lease_until_ms) AS at FROM claims
               UNION ALL
               SELECT * FROM (SELECT not_before_ms FROM payloads INDEXED BY payloads_delayed
                              WHERE state = 8 ORDER BY not_before_ms LIMIT 1))",
        )?
        .query_row([], |row| row.get(0))
        .optional()?
        .flatten();
    let open: bool = sql
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM runs INDEXED BY runs_open WHERE ended_wall_ms IS NULL)",
        )?
        .query_row([], |row| row.get(0))?;
    let due = next.is_some_and(|at| at <= now_ms);
    Ok(Upcoming { now: ready || due, at_ms: next.and_then(|at| u64::try_from(at).ok()), open })
}
