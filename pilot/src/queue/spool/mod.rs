//! Payloads from a spool that other pilots may serve, too.
//!
//! ```text
//!  claim, renew, report, release --requests--> desk (a thread with the database) --one transaction for all that is there
//!        ^                                       |
//!        +-----------answers, after the commit---+--> wakes who waits here, and pokes the other pilots
//! ```
//! Whoever waits looks when it is poked, when the next pause or lease is over, and once a second in any case: a lost poke
//! costs a second.
//!
//! **Must not know:** slots, containers, tables and SQL.

mod desk;
mod spec;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use pilot_core::{ClaimId, Fault, FaultClass, Jitter, Outcome, ReleaseWhy};
use spool::{Claimant, Clock, Ear, OpenError, Options, PayloadId, Spool, SpoolError, Want};
use stage::{StageName, StageUri};
use tokio::net::UnixDatagram;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::fault::chain;
use crate::ports::{Claimed, LeaseSpan, Offer, Queue, Renewed, Reported};
use desk::{Ask, Desk, Recover};

pub use spec::submission;

/// A lease outlives a pilot that is swapped out, or stopped for a look, for most of a minute; and after a crash no payload
/// waits for longer. Renewed at its half, it stands one renewal that goes wrong.
pub const LEASE: LeaseSpan = LeaseSpan { renew_after_ms: 30_000, expires_after_ms: 60_000 };

/// Longest wait for another process that holds the database, in milliseconds. Shorter than any lease needs; who asked
/// is told to try again.
const BUSY_MS: u64 = 1_000;
/// Between two looks when no one pokes.
const LOOK: Duration = Duration::from_secs(1);
/// Requests under way: pilot-core has a few for each slot.
const REQUESTS: usize = 1_024;

/// How a pilot serves a spool.
#[derive(Clone, Debug)]
pub struct SpoolQueueConfig {
    /// Its name; two pilots of one name must not serve at the same time ([`spool::Registration`]).
    pub pilot: String,
    /// The same for all pilots that can have each other's stages; none when this one shares them with nobody.
    pub domain: Option<String>,
    /// For how long it claims.
    pub lease: LeaseSpan,
    /// Whether the queue is closed once no payload of any run is open. A pilot that serves until it is told to stop says
    /// no.
    pub closes: bool,
}

impl SpoolQueueConfig {
    /// Serves until told otherwise, with leases of a minute.
    #[must_use]
    pub fn new(pilot: &str) -> Self {
        Self { pilot: pilot.to_owned(), domain: None, lease: LEASE, closes: false }
    }

    fn claimant(&self) -> Claimant<'_> {
        Claimant { pilot: &self.pilot, domain: self.domain.as_deref() }
    }
}

/// What came of a pilot's return ([`spool::Recovered`]), its claims as offers.
#[derive(Debug)]
pub struct SpoolRecovery {
    /// The claims that go on.
    pub offers: Vec<Offer>,
    /// Claims whose payloads were lost.
    pub given_up: u64,
    /// Claims whose payloads had not begun.
    pub given_back: u64,
    /// Payloads that have to make their stages again.
    pub made_again: Vec<PayloadId>,
    /// Payloads that will never get a stage that they read.
    pub failed: Vec<PayloadId>,
}

/// A spool as a queue.
#[derive(Debug)]
pub struct SpoolQueue {
    config: SpoolQueueConfig,
    folder: PathBuf,
    clock: Arc<dyn Clock>,
    requests: Option<mpsc::Sender<Ask>>,
    desk: Option<JoinHandle<()>>,
    /// Told by the desk when it changed something that someone here may wait for.
    stirred: Arc<Notify>,
    socket: UnixDatagram,
    /// Holds the socket's name.
    _ear: Ear,
    /// Cancelled claims that were told already.
    told: Mutex<BTreeSet<ClaimId>>,
    /// The last claim came upon a gang that it had too little room for.
    held_up: AtomicBool,
}

impl SpoolQueue {
    /// Opens the spool in a folder; makes it when it is not there. Within a tokio runtime.
    ///
    /// # Errors
    /// When the folder or the spool can't be used.
    pub fn open(folder: &Path, config: SpoolQueueConfig) -> Result<Self, Fault> {
        let jitter = || Jitter::from_thousandths(fastrand::u16(0..=1000));
        let options = Options::system().map_err(|error| open_fault(&error))?;
        Self::open_with(folder, config, Options { jitter, busy_ms: BUSY_MS, ..options })
    }

    /// As [`SpoolQueue::open`], with another clock or other patience.
    ///
    /// # Errors
    /// As [`SpoolQueue::open`].
    pub fn open_with(folder: &Path, config: SpoolQueueConfig, options: Options) -> Result<Self, Fault> {
        let clock = Arc::clone(&options.clock);
        let spool = Spool::open_with(folder, options).map_err(|error| open_fault(&error))?;
        let io = |error: std::io::Error| {
            let text = format!("listen in {}: {error}", folder.display());
            Fault::new(FaultClass::Pilot, text)
        };
        let ear = Ear::bind(folder, &config.pilot).map_err(io)?;
        let socket = ear.socket().try_clone().and_then(UnixDatagram::from_std).map_err(io)?;
        let stirred = Arc::new(Notify::new());
        let (requests, inbox) = mpsc::channel(REQUESTS);
        let desk = Desk::new(spool, config.clone(), Arc::clone(&stirred));
        let desk = std::thread::Builder::new()
            .name("spool".to_owned())
            .spawn(move || desk.run(inbox))
            .map_err(io)?;
        Ok(Self {
            config,
            folder: folder.to_path_buf(),
            clock,
            requests: Some(requests),
            desk: Some(desk),
            stirred,
            socket,
            _ear: ear,
            told: Mutex::default(),
            held_up: AtomicBool::new(false),
        })
    }

    /// The spool's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Takes this pilot's claims up again. Of those in `running` the payloads still run; of the others, those in
    /// `launched` may have begun (all of them, when it is `None`). Comes before the first claim.
    ///
    /// # Errors
    /// When the spool can't be used; then nothing was changed.
    pub async fn recover(
        &self,
        running: Vec<ClaimId>,
        launched: Option<Vec<ClaimId>>,
        has_stage: impl FnMut(&StageUri) -> bool + Send + 'static,
    ) -> Result<SpoolRecovery, Fault> {
        let recover = Recover { running, launched, has_stage: Box::new(has_stage) };
        self.ask(|answer| Ask::Recover(recover, answer)).await
    }

    /// Lets producers whose stages are lost run again, while this pilot goes on; see [`spool::Work::restore`].
    ///
    /// # Errors
    /// When the spool can't be used; then nothing was changed.
    pub async fn restore(
        &self,
        has_stage: impl FnMut(&StageUri) -> bool + Send + 'static,
    ) -> Result<SpoolRecovery, Fault> {
        self.ask(|answer| Ask::Restore(Box::new(has_stage), answer)).await
    }

    /// Names of the payloads of a run (as in [`crate::payload::Payload::workflow`]) that have not come to their end.
    ///
    /// # Errors
    /// When the spool can't be read.
    pub async fn unfinished(&self, workflow: &StageName) -> Result<BTreeSet<String>, Fault> {
        let workflow = workflow.clone();
        self.ask(|answer| Ask::Unfinished(workflow, answer)).await
    }

    /// Notes in the spool that this pilot lives.
    ///
    /// # Errors
    /// When the spool can't be written.
    pub async fn beat(&self) -> Result<(), Fault> {
        self.ask(Ask::Beat).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(Answer<T>) -> Ask) -> Result<T, Fault> {
        let gone = || Fault::new(FaultClass::Pilot, "the spool's thread is gone");
        let (answer, answered) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or_else(gone)?;
        requests.send(ask(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Waits until something was changed by anyone, or for this long.
    async fn wait_stirred(&self, stirred: impl Future<Output = ()>, at_most: Duration) {
        tokio::select! {
            () = stirred => {}
            readable = self.socket.readable() => {
                if readable.is_ok() {
                    while self.socket.try_recv(&mut [0; 1]).is_ok() {}
                }
                // Whoever else waits looks, too.
                self.stirred.notify_waiters();
            }
            () = tokio::time::sleep(at_most) => {}
        }
    }
}

/// Where an answer goes.
type Answer<T> = oneshot::Sender<Result<T, Fault>>;

impl Queue for SpoolQueue {
    async fn claim(&self, at_most: u32, slots: u32) -> Result<Claimed, Fault> {
        let (claimed, held_up) = self.ask(|answer| Ask::Claim(Want { at_most, slots }, answer)).await?;
        self.held_up.store(held_up, Ordering::Relaxed);
        Ok(claimed)
    }

    async fn report_together(&self, ends: Vec<(ClaimId, Outcome)>) -> Result<Vec<Reported>, Fault> {
        self.ask(|answer| Ask::ReportTogether(ends, answer)).await
    }

    async fn renew(&self, claim: ClaimId) -> Result<Renewed, Fault> {
        self.ask(|answer| Ask::Renew(claim, answer)).await
    }

    async fn report(&self, claim: ClaimId, outcome: Outcome) -> Result<Reported, Fault> {
        self.ask(|answer| Ask::Report(claim, Box::new(outcome), answer)).await
    }

    async fn release(&self, claim: ClaimId, _why: ReleaseWhy) -> Result<(), Fault> {
        self.ask(|answer| Ask::Release(claim, answer)).await
    }

    async fn wait_ready(&self) {
        // What is there was there when this pilot asked, and is too large for it just now. When it has more room it asks by
        // itself.
        if self.held_up.swap(false, Ordering::Relaxed) {
            self.wait_stirred(self.stirred.notified(), LOOK).await;
            return;
        }
        loop {
            // Before the look: what is changed after it wakes us.
            let stirred = self.stirred.notified();
            let mut pause = LOOK;
            if let Ok(upcoming) = self.ask(Ask::Upcoming).await {
                let now = self.clock.boot_ms();
                let due = upcoming.at_ms.is_some_and(|at| at <= now);
                if upcoming.now || due || (self.config.closes && !upcoming.open) {
                    return;
                }
                if let Some(at) = upcoming.at_ms {
                    pause = pause.min(Duration::from_millis(at - now));
                }
            }
            self.wait_stirred(stirred, pause).await;
        }
    }

    async fn wait_cancelled(&self) -> ClaimId {
        loop {
            let stirred = self.stirred.notified();
            if let Ok(cancelled) = self.ask(Ask::Cancelled).await {
                let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                told.retain(|claim| cancelled.contains(claim));
                if let Some(&new) = cancelled.iter().find(|claim| !told.contains(claim)) {
                    told.insert(new);
                    return new;
                }
            }
            self.wait_stirred(stirred, LOOK).await;
        }
    }
}

impl Drop for SpoolQueue {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(desk) = self.desk.take() {
            // Finishes what was asked; then the database is closed.
            let _ = desk.join();
        }
    }
}

fn open_fault(error: &OpenError) -> Fault {
    Fault::new(error.class(), chain(error))
}

fn fault(error: &SpoolError) -> Fault {
    Fault::new(error.class(), chain(error))
}
