//! The loop: select an event, let `pilot-core` decide, apply what it says.
//!
//! Only this task holds the [`Pilot`]; everything else sends it `News`. Waiting, I/O and time live here and in the
//! tasks it starts; decisions don't.
//!
//! **Must not know:** any adapter, how anything is shown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pilot_core::{
    Claim, ClaimId, Conclusion, DoneWhy, Epoch, Event, Fault, FaultClass, ImageKey, Input, Lease, Moment,
    Order, Outcome, Output, PhaseName, Pilot, PilotConfig, ReleaseWhy, SlotId, StopCause, StopKind, Why,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{Instrument, Span, info_span};

use crate::executor::{Job, ORDERS_MAX, serve_slot};
use crate::payload::Payload;
use crate::ports::{
    Claimed, Cluster, LeaseSpan, Offer, Prepared, Queue, Renewed, Reported, Runtime, StopRequest,
};
pub use crate::progress::Progress;

/// News that may wait for the driver. Each slot has at most two answers under way, each claim two; beyond this senders wait.
const NEWS_MAX: usize = 1024;

/// Between two tries to report.
const REPORT_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);
/// How long a pilot that is done waits for its queue to take what it was told.
const HAND_BACK: std::time::Duration = std::time::Duration::from_secs(10);

/// What tasks tell the driver.
#[derive(Debug)]
pub(crate) enum News {
    Input(Input),
    /// Leases count from `asked`, when the question left: the pilot gives up before the queue does.
    Claimed {
        asked: Moment,
        claimed: Result<Claimed, Fault>,
    },
    Renewed {
        claim: ClaimId,
        asked: Moment,
        renewed: Result<Renewed, Fault>,
    },
    Prepared {
        claim: ClaimId,
        prepared: Result<Prepared, Fault>,
    },
    Reported {
        claim: ClaimId,
        outcome: Outcome,
        reported: Result<Reported, Fault>,
    },
    /// Answers in the order of the ends.
    ReportedTogether {
        ends: Vec<(ClaimId, Outcome)>,
        reported: Result<Vec<Reported>, Fault>,
    },
    Note {
        claim: ClaimId,
        note: String,
    },
    /// A claim that its user does not want any more.
    Cancelled(ClaimId),
    /// The queue may have something again.
    Ready,
}

/// How a pilot came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Why.
    pub why: DoneWhy,
    /// The signal that stopped it, if one did.
    pub signal: Option<i32>,
}

/// Drives one pilot.
#[derive(Debug)]
pub struct Driver<Q, R, C> {
    queue: Arc<Q>,
    runtime: Arc<R>,
    cluster: C,
    pilot: Pilot,
    start: Instant,
    claims: BTreeMap<ClaimId, Held>,
    slots: Vec<Seat>,
    tasks: JoinSet<()>,
    /// What each task is for, in case it panics.
    errands: BTreeMap<tokio::task::Id, Errand>,
    news: mpsc::Sender<News>,
    inbox: mpsc::Receiver<News>,
    /// The queue said that it has nothing, and is waited for.
    hungry: bool,
    images_told: BTreeSet<String>,
    signal: Option<i32>,
    /// What is decided first.
    first: Vec<Input>,
    /// Whether somebody watches who wants to see time pass.
    ticks: bool,
}

/// A payload that an earlier life of this pilot launched, with the right to go on.
#[derive(Clone, Debug)]
pub struct Adoption {
    /// Where it runs.
    pub slot: SlotId,
    /// The epoch in which it was launched.
    pub epoch: Epoch,
    /// See [`Prepared::image`].
    pub key: String,
    /// How long it has run, in milliseconds; its walltime goes on.
    pub ran_ms: u64,
    /// The claim, with a new lease.
    pub offer: Offer,
}

/// What a task was started for.
#[derive(Clone, Debug)]
enum Errand {
    Slot(SlotId),
    Preflight(ClaimId),
    /// Something said to the queue about these claims, if about any.
    Queue(Vec<ClaimId>),
    /// Waiting for what the queue has to say; never done before the pilot is.
    Watch,
}

/// A slot's task, and the payload that its orders are about.
#[derive(Debug)]
struct Seat {
    jobs: mpsc::Sender<Job>,
    payload: Option<(Arc<Payload>, Span)>,
}

#[derive(Debug)]
struct Held {
    offer: Offer,
    note: Option<String>,
    /// All that is done for the payload under this claim.
    span: Span,
}

impl Held {
    fn new(offer: Offer) -> Self {
        let payload = &offer.payload;
        let span = tracing::info_span!(
            "payload",
            workflow = %payload.workflow,
            payload = %payload.name,
            claim = offer.claim.0,
            attempt = offer.terms.attempt,
            image = %payload.image,
            slot = tracing::field::Empty,
        );
        Self { offer, note: None, span }
    }
}

impl<Q: Queue, R: Runtime, C: Cluster> Driver<Q, R, C> {
    /// A pilot with its adapters; needs a tokio runtime.
    pub fn new(config: PilotConfig, queue: Arc<Q>, runtime: Arc<R>, cluster: C) -> Self {
        let (news, inbox) = mpsc::channel(NEWS_MAX);
        let slots = config.slots;
        let mut driver = Self {
            queue,
            runtime,
            cluster,
            pilot: Pilot::new(config),
            start: Instant::now(),
            claims: BTreeMap::new(),
            slots: Vec::new(),
            tasks: JoinSet::new(),
            errands: BTreeMap::new(),
            news,
            inbox,
            hungry: false,
            images_told: BTreeSet::new(),
            signal: None,
            first: Vec::new(),
            ticks: false,
        };
        for slot in 0..slots {
            let jobs = driver.serve(SlotId(slot));
            driver.slots.push(Seat { jobs, payload: None });
        }
        driver
    }

    /// Starts a slot's task.
    fn serve(&mut self, slot: SlotId) -> mpsc::Sender<Job> {
        let (orders, jobs) = mpsc::channel(ORDERS_MAX);
        let task = self.tasks.spawn(serve_slot(Arc::clone(&self.runtime), slot, jobs, self.news.clone()));
        self.errands.insert(task.id(), Errand::Slot(slot));
        orders
    }

    /// Says [`Progress::Tick`] every second.
    #[must_use]
    pub fn with_ticks(mut self) -> Self {
        self.ticks = true;
        self
    }

    /// Goes on with what runs already. To be called before [`Driver::run`].
    pub fn adopt(&mut self, adoptions: Vec<Adoption>) {
        let now = self.now();
        for Adoption { slot, epoch, key, ran_ms, offer } in adoptions {
            let mut payload = offer.facts(self.runtime.bind_wait());
            payload.walltime_ms = payload.walltime_ms.saturating_sub(ran_ms);
            let lease = offer.lease.map(|span| lease(now, span));
            let claim = Box::new(Claim { id: offer.claim, payload, lease, gang: offer.terms.gang });
            self.claims.insert(offer.claim, Held::new(offer));
            self.first.push(Input::Adopted { slot, epoch, claim, image: ImageKey(key.into()) });
        }
    }

    /// Runs until the pilot is done.
    pub async fn run(mut self, mut show: impl FnMut(Progress)) -> Done {
        self.watch_cancelled();
        let mut inputs = std::mem::take(&mut self.first);
        inputs.push(Input::Tick);
        loop {
            for input in std::mem::take(&mut inputs) {
                let now = self.now();
                if let Some(why) = self.decide(now, input, &mut show).await {
                    let runtime = Arc::clone(&self.runtime);
                    tokio::join!(runtime.close(), self.hand_back(&mut show));
                    return Done { why, signal: self.signal };
                }
            }
            inputs = self.select(&mut show).await;
        }
    }

    /// One input, with all that follows from it; says when the pilot is done.
    async fn decide(
        &mut self,
        now: Moment,
        input: Input,
        show: &mut impl FnMut(Progress),
    ) -> Option<DoneWhy> {
        let mut done = None;
        for output in self.pilot.handle(now, input) {
            match output {
                Output::Done(why) => done = Some(why),
                output => self.apply(output, show).await,
            }
        }
        done
    }

    /// Lets what was said to the queue reach it, takes down what slots hold, and gives back claims whose grant was on its way when the pilot ended.
    async fn hand_back(&mut self, show: &mut impl FnMut(Progress)) {
        let until = Instant::now() + HAND_BACK;
        loop {
            while let Ok(news) = self.inbox.try_recv() {
                for input in self.on_news(news, show) {
                    let now = self.now();
                    let _already_done = self.decide(now, input, show).await;
                }
            }
            if !self.errands.values().any(|errand| matches!(errand, Errand::Queue(_))) {
                return;
            }
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => drop(self.on_task_end(ended)),
                () = tokio::time::sleep_until(until) => return,
            }
        }
    }

    fn now(&self) -> Moment {
        Moment(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Waits, beside the loop, for the next claim that is cancelled.
    fn watch_cancelled(&mut self) {
        let queue = Arc::clone(&self.queue);
        self.effect(Errand::Watch, async move { Some(News::Cancelled(queue.wait_cancelled().await)) });
    }

    /// Waits, beside the loop, until asking again may help.
    fn watch_ready(&mut self) {
        if !std::mem::replace(&mut self.hungry, true) {
            let queue = Arc::clone(&self.queue);
            self.effect(Errand::Watch, async move {
                queue.wait_ready().await;
                Some(News::Ready)
            });
        }
    }

    /// Waits for the next thing that happens.
    async fn select(&mut self, show: &mut impl FnMut(Progress)) -> Vec<Input> {
        let due = self.pilot.deadline().map(|at| self.start + std::time::Duration::from_millis(at.0));
        let wake = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // A stop must not wait behind a thousand answers; deadlines must be seen before what came too late for them.
            biased;
            request = self.cluster.watch_stop() => {
                show(Progress::Stopping);
                vec![self.on_stop(request)]
            }
            () = wake => vec![Input::Tick],
            Some(ended) = self.tasks.join_next_with_id() => self.on_task_end(ended),
            Some(news) = self.inbox.recv() => self.on_news(news, show),
            () = tokio::time::sleep(std::time::Duration::from_secs(1)), if self.ticks => {
                show(Progress::Tick);
                Vec::new()
            }
        }
    }

    fn on_stop(&mut self, request: StopRequest) -> Input {
        let (kind, signal, cause) = match request {
            StopRequest::Grace { signal, cause } => (StopKind::Grace, signal, cause),
            StopRequest::Kill { signal, cause } => (StopKind::Kill, signal, cause),
        };
        tracing::info!(?kind, signal, "told to stop");
        self.signal.get_or_insert(signal);
        Input::Stop { kind, cause }
    }

    /// Tasks end when their work is done. One that panicked is a fault of the pilot itself: everything is stopped, and what
    /// the task owed is answered for it, so that nothing waits for it.
    fn on_task_end(&mut self, ended: Result<(tokio::task::Id, ()), tokio::task::JoinError>) -> Vec<Input> {
        let error = match ended {
            Ok((task, ())) => {
                self.errands.remove(&task);
                return Vec::new();
            }
            Err(error) => error,
        };
        tracing::error!(%error, "a task of the pilot failed; stopping everything");
        let fault =
            Fault::new(FaultClass::Pilot, "the pilot itself failed (a task panicked); please report it");
        let mut inputs = match self.errands.remove(&error.id()) {
            Some(Errand::Slot(slot)) => {
                let jobs = self.serve(slot);
                if let Some(seat) = self.slots.get_mut(slot.0 as usize) {
                    seat.jobs = jobs;
                }
                let epoch = self.pilot.slot(slot).map(pilot_core::Slot::epoch).unwrap_or_default();
                vec![Input::Slot { slot, epoch, event: Event::SlotLost(fault) }]
            }
            Some(Errand::Preflight(claim)) => answered(vec![claim], &fault),
            Some(Errand::Queue(claims)) => answered(claims, &fault),
            Some(Errand::Watch) | None => Vec::new(),
        };
        inputs.push(Input::Stop { kind: StopKind::Kill, cause: StopCause::PilotStopping });
        inputs
    }

    fn on_news(&mut self, news: News, show: &mut impl FnMut(Progress)) -> Vec<Input> {
        match news {
            News::Input(input) => vec![input],
            News::Cancelled(claim) => {
                self.watch_cancelled();
                vec![Input::StopClaim { claim, cause: StopCause::Cancelled }]
            }
            News::Ready => {
                self.hungry = false;
                vec![Input::QueueFilled]
            }
            News::Note { claim, note } => {
                if let Some(held) = self.claims.get_mut(&claim) {
                    held.note = Some(note);
                }
                Vec::new()
            }
            News::Claimed { asked, claimed } => vec![self.on_claimed(asked, claimed, show)],
            News::Renewed { claim, asked, renewed } => on_renewed(claim, asked, renewed),
            News::Prepared { claim, prepared } => vec![self.on_prepared(claim, prepared, show)],
            News::Reported { claim, outcome, reported } => {
                self.on_reported(claim, outcome, reported, show);
                vec![Input::ReportDone { claim }]
            }
            News::ReportedTogether { ends, reported } => {
                let claims: Vec<ClaimId> = ends.iter().map(|(claim, _)| *claim).collect();
                let mut answers = reported.map(Vec::into_iter);
                for (claim, outcome) in ends {
                    let one = match &mut answers {
                        Ok(answers) => Ok(answers.next().unwrap_or(Reported::Retried)),
                        Err(fault) => Err(fault.clone()),
                    };
                    self.on_reported(claim, outcome, one, show);
                }
                claims.into_iter().map(|claim| Input::ReportDone { claim }).collect()
            }
        }
    }

    fn on_claimed(
        &mut self,
        asked: Moment,
        claimed: Result<Claimed, Fault>,
        show: &mut impl FnMut(Progress),
    ) -> Input {
        match claimed {
            Ok(Claimed::Offers(offers)) => {
                show(Progress::Claimed { claims: u32::try_from(offers.len()).unwrap_or(u32::MAX) });
                self.on_offers(asked, offers)
            }
            Ok(Claimed::Closed) => Input::QueueClosed,
            Ok(Claimed::Empty) => {
                self.watch_ready();
                Input::QueueEmpty
            }
            Err(fault) => {
                tracing::warn!(%fault, "the queue can't be asked");
                Input::QueueEmpty
            }
        }
    }

    fn on_offers(&mut self, asked: Moment, offers: Vec<Offer>) -> Input {
        let claims = offers.iter().map(|offer| Claim {
            id: offer.claim,
            payload: offer.facts(self.runtime.bind_wait()),
            lease: offer.lease.map(|span| lease(asked, span)),
            gang: offer.terms.gang,
        });
        let input = Input::Offered(claims.collect());
        self.claims.extend(offers.into_iter().map(|offer| (offer.claim, Held::new(offer))));
        input
    }

    fn on_prepared(
        &mut self,
        claim: ClaimId,
        prepared: Result<Prepared, Fault>,
        show: &mut impl FnMut(Progress),
    ) -> Input {
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(fault) => return Input::PrepareFailed { claim, fault },
        };
        if let Some(held) = self.claims.get(&claim)
            && self.images_told.insert(held.offer.payload.image.clone())
        {
            show(Progress::Prepared {
                image: held.offer.payload.image.clone(),
                bytes: prepared.bytes_brought,
            });
        }
        // Whatever was missing has been brought in by now.
        Input::Prepared { claim, image: ImageKey(prepared.image.into()), bytes_missing: 0 }
    }

    fn on_reported(
        &mut self,
        claim: ClaimId,
        outcome: Outcome,
        reported: Result<Reported, Fault>,
        show: &mut impl FnMut(Progress),
    ) {
        let Some(held) = self.claims.remove(&claim) else { return };
        let payload = held.offer.payload;
        let (retry, skipped) = match reported {
            Ok(Reported::Retried) => (true, Vec::new()),
            Ok(Reported::Final { skipped }) => (false, skipped),
            Err(fault) => {
                tracing::error!(payload = %payload.name, %fault, "the queue did not take a report");
                (false, Vec::new())
            }
        };
        if !retry {
            self.runtime.settle(&payload);
        }
        let ended = Progress::Ended {
            payload: Arc::clone(&payload),
            attempt: held.offer.terms.attempt,
            outcome,
            note: held.note,
            retry,
        };
        show(ended);
        for lost in skipped {
            self.runtime.settle(&lost);
            show(Progress::Skipped { payload: lost, because: Arc::clone(&payload) });
        }
    }

    async fn apply(&mut self, output: Output, show: &mut impl FnMut(Progress)) {
        match output {
            Output::AskClaims(at_most) => {
                let (queue, asked) = (Arc::clone(&self.queue), self.now());
                let usable = self.pilot.slots().filter(|slot| slot.phase != PhaseName::Retired).count();
                let slots = u32::try_from(usable).unwrap_or(u32::MAX);
                self.effect(Errand::Queue(Vec::new()), async move {
                    Some(News::Claimed { asked, claimed: queue.claim(at_most, slots).await })
                });
            }
            Output::Prepare(claim) => self.prepare(claim.id),
            Output::Slot { slot, epoch, claim, order } => self.order(slot, epoch, claim, order).await,
            Output::Renew(claim) => {
                let (queue, asked) = (Arc::clone(&self.queue), self.now());
                self.effect(Errand::Queue(vec![claim]), async move {
                    Some(News::Renewed { claim, asked, renewed: queue.renew(claim).await })
                });
            }
            Output::Report { claim, outcome } => self.report(claim, outcome),
            Output::ReportTogether(ends) => self.report_together(ends),
            // Given back it would be offered again, and never fit.
            Output::Release { claim, why: ReleaseWhy::NeverFits { total } } => {
                let fault =
                    Fault::new(FaultClass::Payload, format!("it asks for more than the pilot has: {total}"));
                self.report(claim, Outcome::before_launch(Conclusion::Failed(fault)));
            }
            Output::Release { claim, why } => {
                tracing::debug!(%claim, ?why, "released");
                self.claims.remove(&claim);
                let queue = Arc::clone(&self.queue);
                self.effect(Errand::Queue(vec![claim]), async move {
                    if let Err(fault) = queue.release(claim, why).await {
                        tracing::warn!(%claim, %fault, "the queue did not take a claim back");
                    }
                    None
                });
            }
            Output::Moved { slot, epoch, claim, from, to, event } => {
                let held = self.claims.get(&claim);
                if let (PhaseName::Idle, Some(held)) = (from, held) {
                    held.span.record("slot", slot.0);
                }
                let span = held.map_or_else(Span::none, |held| held.span.clone());
                span.in_scope(|| tracing::info!(%slot, %epoch, %from, %to, %event, "moved"));
                let known = held.map(|held| (Arc::clone(&held.offer.payload), held.offer.terms.attempt));
                show(Progress::Moved { slot, epoch, claim, from, to, event, payload: known });
                if let (PhaseName::Running, Some(held)) = (to, held) {
                    let (payload, attempt) = (Arc::clone(&held.offer.payload), held.offer.terms.attempt);
                    show(Progress::Started { payload, slot, attempt });
                }
            }
            Output::Ignored { slot, epoch, event, why: Why::NotInThisPhase } => {
                tracing::error!(%slot, %epoch, %event, "an event made no sense");
            }
            Output::Ignored { slot, epoch, event, why } => {
                tracing::debug!(%slot, %epoch, %event, ?why, "ignored");
            }
            // `run` ends on it before it comes here.
            Output::Done(_) => {}
        }
    }

    /// As [`Driver::report`], for the claims of a gang.
    fn report_together(&mut self, ends: Vec<(ClaimId, Outcome)>) {
        let queue = Arc::clone(&self.queue);
        let claims: Vec<ClaimId> = ends.iter().map(|(claim, _)| *claim).collect();
        let work = async move {
            let reported = insist("a gang", || queue.report_together(ends.clone())).await;
            Some(News::ReportedTogether { ends, reported })
        };
        self.effect(Errand::Queue(claims), work);
    }

    fn report(&mut self, claim: ClaimId, outcome: Outcome) {
        let queue = Arc::clone(&self.queue);
        let span = self.claims.get(&claim).map(|held| info_span!(parent: &held.span, "report"));
        let work = async move {
            let reported =
                insist(&format!("the payload of {claim}"), || queue.report(claim, outcome.clone())).await;
            Some(News::Reported { claim, outcome, reported })
        };
        self.effect(Errand::Queue(vec![claim]), work.instrument(span.unwrap_or_else(Span::none)));
    }

    fn prepare(&mut self, claim: ClaimId) {
        let Some(held) = self.claims.get(&claim) else { return };
        let (runtime, payload) = (Arc::clone(&self.runtime), Arc::clone(&held.offer.payload));
        let span = info_span!(parent: &held.span, "prepare");
        let work = async move {
            let prepared = runtime.prepare(&payload).await;
            Some(News::Prepared { claim, prepared })
        };
        self.effect(Errand::Preflight(claim), work.instrument(span));
    }

    async fn order(&mut self, slot: SlotId, epoch: pilot_core::Epoch, claim: ClaimId, order: Order) {
        let Some(seat) = self.slots.get_mut(slot.0 as usize) else { return };
        if let Some(held) = self.claims.get(&claim) {
            seat.payload = Some((Arc::clone(&held.offer.payload), held.span.clone()));
        }
        // Cleaning goes on after its claim was reported.
        let Some((payload, span)) = seat.payload.clone() else {
            tracing::error!(%slot, %claim, "an order for a claim that nobody knows");
            return;
        };
        if seat.jobs.send(Job { epoch, order, payload, span }).await.is_err() {
            tracing::error!(%slot, "the slot's task is gone");
        }
    }

    /// Starts a task whose news, if any, comes back to the loop. Bounded by what pilot-core has under way: a few for each
    /// claim that it holds.
    fn effect(&mut self, errand: Errand, work: impl Future<Output = Option<News>> + Send + 'static) {
        let news = self.news.clone();
        let task = self.tasks.spawn(async move {
            if let Some(item) = work.await {
                let _ = news.send(item).await;
            }
        });
        self.errands.insert(task.id(), errand);
    }
}

/// Tells the queue how something ended until it can be told. Leases are renewed meanwhile, so that the outcome is still wanted
/// then.
async fn insist<T, F: Future<Output = Result<T, Fault>>>(
    who: &str,
    mut tell: impl FnMut() -> F,
) -> Result<T, Fault> {
    loop {
        match tell().await {
            Err(Fault { class: FaultClass::Retry, message }) => {
                tracing::warn!(%message, "the queue can't be told how {who} ended; trying again");
                tokio::time::sleep(REPORT_PAUSE).await;
            }
            told => return told,
        }
    }
}

/// Whichever of the two it is that the pilot waits for; it ignores the other.
fn answered(claims: Vec<ClaimId>, fault: &Fault) -> Vec<Input> {
    let both = |claim| [Input::PrepareFailed { claim, fault: fault.clone() }, Input::ReportDone { claim }];
    claims.into_iter().flat_map(both).collect()
}

fn lease(asked: Moment, span: LeaseSpan) -> Lease {
    Lease { renew_at: asked.after_ms(span.renew_after_ms), expires_at: asked.after_ms(span.expires_after_ms) }
}

/// A queue that could not be asked is asked again, until the lease itself is over.
fn on_renewed(claim: ClaimId, asked: Moment, renewed: Result<Renewed, Fault>) -> Vec<Input> {
    match renewed {
        Ok(Renewed::Extended(Some(span))) => vec![Input::LeaseRenewed { claim, lease: lease(asked, span) }],
        Ok(Renewed::Extended(None)) => Vec::new(),
        Ok(Renewed::Lost) => vec![Input::LeaseLost { claim }],
        Err(fault) => {
            tracing::warn!(%claim, %fault, "a lease can't be renewed just now");
            Vec::new()
        }
    }
}
