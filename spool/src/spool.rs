//! An open spool: the connection, and one transaction around every piece of work.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pilot_core::{ClaimId, Jitter, Outcome};
use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::cancel::{Cancelled, Selection};
use crate::claim::{Claimant, Offer, Report};
use crate::clock::{Clock, SystemClock};
use crate::error::{OpenError, SpoolError};
use crate::recover::{Recovered, Recovery};
use crate::remake::Remade;
use crate::submit::{Submission, Submitted};
use crate::words::RunId;
use crate::work::Work;
use crate::{folder, schema};

/// How long a call waits for another process that holds the database, in milliseconds: far longer than any transaction
/// takes, short enough for who sits before a terminal.
const BUSY_MS: u64 = 5_000;

/// How a spool is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// Draws what is left out of a pause before a retry.
    pub jitter: fn() -> Jitter,
    /// Longest wait for another process that holds the database, in milliseconds.
    pub busy_ms: u64,
    /// Whether a spool that is not there is made.
    pub create: bool,
}

impl Options {
    /// The machine's clocks, no jitter, five seconds, made when it is not there.
    ///
    /// # Errors
    /// When the kernel does not tell which boot this is.
    pub fn system() -> Result<Self, OpenError> {
        let clock = SystemClock::new()
            .map_err(|source| folder::io("read the boot's id below", Path::new("/proc"), source))?;
        Ok(Self { clock: Arc::new(clock), jitter: || Jitter::NONE, busy_ms: BUSY_MS, create: true })
    }
}

/// An open spool. Every call blocks: for a fraction of a millisecond when no one else is there, for at most
/// [`Options::busy_ms`] when another process holds the database. For one thread.
#[derive(Debug)]
pub struct Spool {
    pub(crate) connection: Connection,
    pub(crate) folder: PathBuf,
    pub(crate) clock: Arc<dyn Clock>,
    jitter: fn() -> Jitter,
    /// The boot that the spool's times are known to be of.
    boot: Option<Arc<str>>,
    /// SQLite's count of others' changes when it was last asked.
    pub(crate) seen: Option<i64>,
}

impl Spool {
    /// Opens the spool in a folder; makes both when they are not there.
    ///
    /// # Errors
    /// When the folder is not ours, or what is in it is not a spool that this program can use.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        Self::open_with(folder, Options::system()?)
    }

    /// Opens a spool that is there.
    ///
    /// # Errors
    /// As [`Spool::open`], and [`OpenError::Missing`].
    pub fn open_existing(folder: &Path) -> Result<Self, OpenError> {
        Self::open_with(folder, Options { create: false, ..Options::system()? })
    }

    /// Opens a spool with another clock, or other patience.
    ///
    /// # Errors
    /// As [`Spool::open`].
    pub fn open_with(folder: &Path, options: Options) -> Result<Self, OpenError> {
        let Options { clock, jitter, busy_ms, create } = options;
        folder::ready(folder, create)?;
        let connection = schema::connect(folder, create, Duration::from_millis(busy_ms))?;
        Ok(Self { connection, folder: folder.to_path_buf(), clock, jitter, boot: None, seen: None })
    }

    /// The spool's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Changes the longest wait for another process, in milliseconds.
    ///
    /// # Errors
    /// When SQLite can't.
    pub fn set_busy_ms(&self, busy_ms: u64) -> Result<(), SpoolError> {
        Ok(self.connection.busy_timeout(Duration::from_millis(busy_ms))?)
    }

    /// Does several things in one transaction: all of them, or none when one fails.
    ///
    /// # Errors
    /// What `body` says, and what the database says when it begins or commits.
    pub fn transact<T>(
        &mut self,
        body: impl FnOnce(&Work<'_>) -> Result<T, SpoolError>,
    ) -> Result<T, SpoolError> {
        let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        // Read when the lock is ours: it may have taken a while.
        let work = Work::new(&transaction, &*self.clock, self.jitter);
        let boot = self.clock.boot_id();
        if self.boot.as_ref() != Some(&boot) {
            work.enter_boot(&boot)?;
        }
        let done = body(&work)?;
        transaction.commit()?;
        self.boot = Some(boot);
        Ok(done)
    }

    /// Whether another connection changed the spool since this was last asked; `true` the first time. Reads no page.
    ///
    /// # Errors
    /// When the database can't be asked.
    pub fn changed(&mut self) -> Result<bool, SpoolError> {
        let mut ask = self.connection.prepare_cached("PRAGMA data_version")?;
        let version: i64 = ask.query_row([], |row| row.get(0))?;
        Ok(self.seen.replace(version) != Some(version))
    }

    /// See [`Work::submit`].
    ///
    /// # Errors
    /// When the submission makes no sense or can't be written; then nothing of it is there.
    pub fn submit(&mut self, submission: &Submission) -> Result<Submitted, SpoolError> {
        submission.check()?;
        self.transact(|work| work.submit(submission))
    }

    /// See [`Work::claim`].
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn claim<'a>(
        &mut self,
        pilot: impl Into<Claimant<'a>>,
        at_most: u32,
        lease_ms: u64,
    ) -> Result<Vec<Offer>, SpoolError> {
        self.transact(|work| work.claim(pilot, at_most, lease_ms))
    }

    /// See [`Work::renew`].
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn renew(&mut self, claim: ClaimId, lease_ms: u64) -> Result<bool, SpoolError> {
        self.transact(|work| work.renew(claim, lease_ms))
    }

    /// See [`Work::report`].
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn report(&mut self, claim: ClaimId, outcome: &Outcome) -> Result<Report, SpoolError> {
        self.transact(|work| work.report(claim, outcome))
    }

    /// See [`Work::release`].
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn release(&mut self, claim: ClaimId) -> Result<bool, SpoolError> {
        self.transact(|work| work.release(claim))
    }

    /// See [`Work::recover`].
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn recover(
        &mut self,
        recovery: &Recovery<'_>,
        has_stage: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Recovered, SpoolError> {
        self.transact(|work| work.recover(recovery, has_stage))
    }

    /// What tells this spool from every other, on all machines: 32 hexadecimal digits, made when it is first asked for.
    ///
    /// # Errors
    /// When its folder can't be written.
    pub fn identity(&self) -> Result<String, SpoolError> {
        let folder = self.folder();
        folder::identity(folder).map_err(|source| SpoolError::File {
            action: "name",
            path: folder.to_path_buf(),
            source,
        })
    }

    /// See [`Work::restore`].
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn restore(
        &mut self,
        claimant: Claimant<'_>,
        has_stage: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Recovered, SpoolError> {
        self.transact(|work| work.restore(claimant, has_stage))
    }

    /// See [`Work::cancel`].
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn cancel(&mut self, selection: &Selection) -> Result<Cancelled, SpoolError> {
        self.transact(|work| work.cancel(selection))
    }

    /// As [`Work::remake`].
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn remake(
        &mut self,
        stage: &str,
        has_stage: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Remade, SpoolError> {
        self.transact(|work| work.remake(stage, has_stage))
    }

    /// Removes an ended run and gives its room back to the disk. Says how many payloads it had.
    ///
    /// # Errors
    /// [`SpoolError::Unfinished`], [`SpoolError::NoRun`], or when the database can't be used.
    pub fn forget(&mut self, run: RunId) -> Result<u64, SpoolError> {
        let rows = self.transact(|work| work.forget(run))?;
        // Outside of the transaction, a part at a time, so that no one waits long for it.
        self.connection.execute_batch("PRAGMA incremental_vacuum(20000)")?;
        Ok(rows)
    }
}
