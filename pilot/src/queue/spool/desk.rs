//! The thread that owns the database: takes all requests that are there, does them in one transaction, answers after the
//! commit.
//!
//! One commit for many is what makes the spool fast; no answer before it is what makes it right.

use std::collections::BTreeSet;
use std::sync::Arc;

use pilot_core::{ClaimId, Fault, FaultClass, Outcome};
use spool::{Recovered, Recovery, Report, Spool, SpoolError, Upcoming, Want, Work};
use stage::{StageName, StageUri};
use tokio::sync::{Notify, mpsc};

use super::{Answer, SpoolQueueConfig, SpoolRecovery, fault, spec};
use crate::ports::{Claimed, Offer, Renewed, Reported};

/// Requests in one transaction. Others who want the database wait no longer than for these.
const BATCH: usize = 256;

/// What is known when a pilot comes back.
pub(super) struct Recover {
    pub(super) running: Vec<ClaimId>,
    pub(super) launched: Option<Vec<ClaimId>>,
    pub(super) has_stage: HasStage,
}

/// Whether a stage can be had.
pub(super) type HasStage = Box<dyn FnMut(&StageUri) -> bool + Send>;

/// A request with the place for its answer.
pub(super) enum Ask {
    /// The answer says also whether a gang was in the way.
    Claim(Want, Answer<(Claimed, bool)>),
    Renew(ClaimId, Answer<Renewed>),
    Report(ClaimId, Box<Outcome>, Answer<Reported>),
    ReportTogether(Vec<(ClaimId, Outcome)>, Answer<Vec<Reported>>),
    Release(ClaimId, Answer<()>),
    Recover(Recover, Answer<SpoolRecovery>),
    Restore(HasStage, Answer<SpoolRecovery>),
    Beat(Answer<()>),
    Upcoming(Answer<Upcoming>),
    Cancelled(Answer<Vec<ClaimId>>),
    Unfinished(StageName, Answer<BTreeSet<String>>),
}

/// See the module.
pub(super) struct Desk {
    spool: Spool,
    config: SpoolQueueConfig,
    stirred: Arc<Notify>,
    /// What was read last, and holds until someone changes the spool.
    known: Known,
}

#[derive(Default)]
struct Known {
    upcoming: Option<Upcoming>,
    cancelled: Option<Vec<ClaimId>>,
}

/// An answer that waits for the commit.
type Due = Box<dyn FnOnce(Result<(), Fault>)>;

impl Desk {
    pub(super) fn new(spool: Spool, config: SpoolQueueConfig, stirred: Arc<Notify>) -> Self {
        Self { spool, config, stirred, known: Known::default() }
    }

    /// Works until no one can ask any more.
    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<Ask>) {
        while let Some(first) = inbox.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH
                && let Ok(next) = inbox.try_recv()
            {
                batch.push(next);
            }
            let (reads, writes): (Vec<Ask>, Vec<Ask>) = batch.into_iter().partition(Ask::only_reads);
            if !writes.is_empty() {
                self.write(writes);
            }
            for ask in reads {
                self.read(ask);
            }
        }
    }

    fn write(&mut self, asks: Vec<Ask>) {
        self.known = Known::default();
        let mut due: Vec<Due> = Vec::with_capacity(asks.len());
        let mut stirred = false;
        let config = &self.config;
        let mut left = asks.into_iter();
        let done = self.spool.transact(|work| {
            for ask in left.by_ref() {
                serve(work, config, ask, &mut due)?;
            }
            stirred |= work.stirred();
            Ok(())
        });
        // Whatever went wrong, no one may wait for ever.
        due.extend(left.map(refuse));
        if let Err(error) = &done {
            tracing::warn!(error = %crate::fault::chain(error), "the spool can't be used just now");
        }
        let verdict = done.map_err(|error| fault(&error));
        // Who waits for the end of all work looks after everything.
        if verdict.is_ok() && (stirred || self.config.closes) {
            self.stirred.notify_waiters();
        }
        if verdict.is_ok() && stirred {
            spool::poke_others(self.spool.folder(), &self.config.pilot);
        }
        for answer in due {
            answer(verdict.clone());
        }
    }

    fn read(&mut self, ask: Ask) {
        match self.spool.changed() {
            Ok(true) => self.known = Known::default(),
            Ok(false) => {}
            Err(error) => {
                refuse(ask)(Err(fault(&error)));
                return;
            }
        }
        match ask {
            Ask::Upcoming(answer) => {
                let upcoming = match self.known.upcoming {
                    Some(known) => Ok(known),
                    None => self.spool.upcoming(self.config.claimant()),
                };
                self.known.upcoming = upcoming.as_ref().ok().copied();
                let _ = answer.send(upcoming.map_err(|error| fault(&error)));
            }
            Ask::Cancelled(answer) => {
                let cancelled = match self.known.cancelled.take() {
                    Some(known) => Ok(known),
                    None => self.spool.cancelled_claims(&self.config.pilot),
                };
                self.known.cancelled = cancelled.as_ref().ok().cloned();
                let _ = answer.send(cancelled.map_err(|error| fault(&error)));
            }
            Ask::Unfinished(workflow, answer) => {
                let names = self.spool.unfinished(workflow.as_str());
                let _ = answer.send(names.map_err(|error| fault(&error)));
            }
            other => refuse(other)(Err(Fault::new(FaultClass::Pilot, "a request went the wrong way"))),
        }
    }
}

impl Ask {
    fn only_reads(&self) -> bool {
        matches!(self, Self::Upcoming(_) | Self::Cancelled(_) | Self::Unfinished(..))
    }
}

/// Does one request. Its answer is made now and sent after the commit.
fn serve(work: &Work<'_>, config: &SpoolQueueConfig, ask: Ask, due: &mut Vec<Due>) -> Result<(), SpoolError> {
    let lease_ms = config.lease.expires_after_ms;
    match ask {
        Ask::Claim(want, answer) => settle(due, answer, claim(work, config, want)),
        Ask::Renew(claim, answer) => {
            let renewed = work
                .renew(claim, lease_ms)
                .map(|held| Ok(if held { Renewed::Extended(Some(config.lease)) } else { Renewed::Lost }));
            settle(due, answer, renewed)
        }
        Ask::Report(claim, outcome, answer) => {
            settle(due, answer, work.report(claim, &outcome).map(|report| reported(claim, &report)))
        }
        Ask::ReportTogether(ends, answer) => {
            let all = work.report_together(&ends).map(|reports| {
                let of = |(claim, _): &(ClaimId, Outcome)| {
                    let report = reports.iter().find(|(of, _)| of == claim);
                    report.map_or_else(|| Err(not_held(*claim)), |(claim, report)| reported(*claim, report))
                };
                ends.iter().map(of).collect()
            });
            settle(due, answer, all)
        }
        Ask::Release(claim, answer) => {
            let released = work.release(claim).map(|held| if held { Ok(()) } else { Err(not_held(claim)) });
            settle(due, answer, released)
        }
        Ask::Recover(recover, answer) => settle(due, answer, self::recover(work, config, recover).map(Ok)),
        Ask::Restore(mut has_stage, answer) => {
            let restored =
                work.restore(config.claimant(), &mut |uri| uri.parse().is_ok_and(|uri| has_stage(&uri)));
            settle(due, answer, restored.map(|restored| Ok(of(restored, Vec::new()))))
        }
        Ask::Beat(answer) => settle(due, answer, work.beat(&config.pilot).map(Ok)),
        other => {
            due.push(refuse(other));
            Ok(())
        }
    }
}

fn reported(claim: ClaimId, report: &Report) -> Result<Reported, Fault> {
    match report {
        Report::Final { skipped } => {
            let skipped = skipped.iter().filter_map(|skipped| {
                spec::payload(&skipped.spec, &skipped.run_name, skipped.payload.run()).ok()
            });
            Ok(Reported::Final { skipped: skipped.map(Arc::new).collect() })
        }
        Report::Retried => Ok(Reported::Retried),
        Report::NotHeld => Err(not_held(claim)),
    }
}

fn not_held(claim: ClaimId) -> Fault {
    Fault::new(FaultClass::Pilot, format!("{claim} is not held by this pilot any more"))
}

fn settle<T: 'static>(
    due: &mut Vec<Due>,
    answer: Answer<T>,
    result: Result<Result<T, Fault>, SpoolError>,
) -> Result<(), SpoolError> {
    // An error ends the transaction; its words come with the verdict.
    let (value, error) = match result {
        Ok(value) => (value, None),
        Err(error) => (Err(fault(&error)), Some(error)),
    };
    due.push(Box::new(move |verdict| {
        let _ = answer.send(verdict.and(value));
    }));
    error.map_or(Ok(()), Err)
}

/// The answer to a request that was not done.
fn refuse(ask: Ask) -> Due {
    fn to<T: 'static>(answer: Answer<T>) -> Due {
        Box::new(move |verdict| {
            let undone = || Fault::new(FaultClass::Retry, "the spool did not come to it");
            let _ = answer.send(Err(verdict.err().unwrap_or_else(undone)));
        })
    }
    match ask {
        Ask::Claim(_, answer) => to(answer),
        Ask::Renew(_, answer) => to(answer),
        Ask::Report(_, _, answer) => to(answer),
        Ask::ReportTogether(_, answer) => to(answer),
        Ask::Release(_, answer) | Ask::Beat(answer) => to(answer),
        Ask::Recover(_, answer) => to(answer),
        Ask::Restore(_, answer) => to(answer),
        Ask::Upcoming(answer) => to(answer),
        Ask::Cancelled(answer) => to(answer),
        Ask::Unfinished(_, answer) => to(answer),
    }
}

/// Claims until enough can be read: what can't is reported failed at once.
fn claim(
    work: &Work<'_>,
    config: &SpoolQueueConfig,
    want: Want,
) -> Result<Result<(Claimed, bool), Fault>, SpoolError> {
    let mut offers: Vec<Offer> = Vec::new();
    let mut held_up = false;
    loop {
        let at_most = want.at_most.saturating_sub(u32::try_from(offers.len()).unwrap_or(u32::MAX));
        if at_most == 0 || held_up {
            break;
        }
        let granted =
            work.claim_for(config.claimant(), Want { at_most, ..want }, config.lease.expires_after_ms)?;
        held_up = granted.held_up;
        if granted.offers.is_empty() {
            break;
        }
        for offer in granted.offers {
            match spec::offer(&offer, config.lease) {
                Ok(offer) => offers.push(offer),
                Err(outcome) => drop(work.report(offer.claim, &outcome)?),
            }
        }
        // With one of a gang that can't be read, the others have ended, too.
        let mut ended = Vec::new();
        for offer in &offers {
            if offer.terms.gang.is_some() && !work.is_held(offer.claim)? {
                ended.push(offer.claim);
            }
        }
        offers.retain(|offer| !ended.contains(&offer.claim));
    }
    if !offers.is_empty() {
        return Ok(Ok((Claimed::Offers(offers), held_up)));
    }
    let closed = config.closes && !work.upcoming(config.claimant())?.open;
    Ok(Ok((if closed { Claimed::Closed } else { Claimed::Empty }, held_up)))
}

fn recover(
    work: &Work<'_>,
    config: &SpoolQueueConfig,
    recover: Recover,
) -> Result<SpoolRecovery, SpoolError> {
    let Recover { running, launched, mut has_stage } = recover;
    let recovery = Recovery {
        claimant: config.claimant(),
        running: &running,
        launched: launched.as_deref(),
        lease_ms: config.lease.expires_after_ms,
    };
    let mut recovered = work.recover(&recovery, &mut |uri| uri.parse().is_ok_and(|uri| has_stage(&uri)))?;
    let mut offers = Vec::new();
    for offer in std::mem::take(&mut recovered.kept) {
        match spec::offer(&offer, config.lease) {
            Ok(offer) => offers.push(offer),
            Err(outcome) => drop(work.report(offer.claim, &outcome)?),
        }
    }
    Ok(of(recovered, offers))
}

fn of(recovered: Recovered, offers: Vec<Offer>) -> SpoolRecovery {
    let Recovered { kept: _, given_up, given_back, made_again, failed } = recovered;
    SpoolRecovery { offers, given_up, given_back, made_again, failed }
}
