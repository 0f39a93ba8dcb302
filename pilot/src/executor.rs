//! Carries out what `pilot-core` decided: one task a slot, which does that slot's orders one after the other and sends back
//! what came of them, each answer with the epoch of its order.
//!
//! An order that comes while another is under way means that the other's time is over: its future is dropped, and the
//! runtime promises that the next call finds the slot as it was left. Signals are passed on beside it.
//!
//! **Must not know:** why an order is given, queues, what the user sees.

use std::sync::Arc;

use pilot_core::{Claim, Epoch, Event, Input, Order, SlotId};
use tokio::sync::mpsc;
use tracing::{Instrument, Span, info_span};

use crate::driver::News;
use crate::payload::Payload;
use crate::ports::{Grant, LaunchFault, Runtime};

/// Orders that may wait for one slot: one under way, its Signal twice, Drain and Clean.
pub(crate) const ORDERS_MAX: usize = 8;

/// How long a launch that is over time may take to say how it ended, before it is given up.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(1);

/// An order with all that carrying it out needs.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) epoch: Epoch,
    pub(crate) order: Order,
    pub(crate) payload: Arc<Payload>,
    /// All that is done for the payload.
    pub(crate) span: Span,
}

fn step(job: &Job) -> Span {
    match &job.order {
        Order::Bind(_) => info_span!(parent: &job.span, "bind"),
        Order::Launch(_) => info_span!(parent: &job.span, "launch"),
        Order::Drain { .. } => info_span!(parent: &job.span, "drain"),
        Order::Clean => info_span!(parent: &job.span, "clean"),
        Order::Signal(_) => Span::none(),
    }
}

/// Does one slot's orders until the driver drops its end of the channel.
pub(crate) async fn serve_slot<R: Runtime>(
    runtime: Arc<R>,
    slot: SlotId,
    mut jobs: mpsc::Receiver<Job>,
    news: mpsc::Sender<News>,
) {
    let mut next = jobs.recv().await;
    while let Some(job) = next.take() {
        if let Order::Signal(signal) = &job.order {
            runtime.signal(slot, *signal);
            next = jobs.recv().await;
            continue;
        }
        let mut work = std::pin::pin!(perform(&*runtime, slot, &job, &news).instrument(step(&job)));
        loop {
            tokio::select! {
                // A finished order's answer counts even when the next order is already there.
                biased;
                event = &mut work => {
                    tell(&news, slot, job.epoch, event).await;
                    break;
                }
                newer = jobs.recv() => match newer {
                    Some(Job { order: Order::Signal(signal), .. }) => runtime.signal(slot, signal),
                    Some(newer) => {
                        // A payload that was just killed ends within milliseconds, and how it ended is worth telling.
                        let last_words = matches!(job.order, Order::Launch(_));
                        if last_words && let Ok(event) = tokio::time::timeout(LAST_WORDS, &mut work).await {
                            tell(&news, slot, job.epoch, event).await;
                        }
                        next = Some(newer);
                        break;
                    }
                    None => return,
                },
            }
        }
        if next.is_none() {
            next = jobs.recv().await;
        }
    }
}

async fn tell(news: &mpsc::Sender<News>, slot: SlotId, epoch: Epoch, event: Event) {
    // The driver is gone only when the pilot ends.
    let _ = news.send(News::Input(Input::Slot { slot, epoch, event })).await;
}

fn grant(epoch: Epoch, claim: &Claim) -> Grant {
    Grant { epoch, claim: claim.id, key: claim.payload.image.0.to_string() }
}

async fn perform<R: Runtime>(runtime: &R, slot: SlotId, job: &Job, news: &mpsc::Sender<News>) -> Event {
    let payload = &*job.payload;
    match &job.order {
        Order::Bind(_) => match runtime.bind(slot, job.epoch, payload).await {
            Ok(()) => Event::Bound,
            Err(fault) => Event::BindFailed(fault),
        },
        Order::Launch(claim) => match runtime.launch(slot, grant(job.epoch, claim), payload).await {
            Ok(ended) => {
                if let Some(note) = ended.note {
                    let _ = news.send(News::Note { claim: claim.id, note }).await;
                }
                Event::Exited(ended.exit)
            }
            Err(LaunchFault::NotStarted(fault)) => Event::LaunchFailed(fault),
            Err(LaunchFault::SlotLost(fault)) => Event::SlotLost(fault),
            Err(LaunchFault::OutOfMemory(exit)) => Event::Exited(exit),
        },
        Order::Drain { commit } => Event::Drained(runtime.drain(slot, payload, *commit).await),
        // `serve_slot` passes signals on without coming here.
        Order::Signal(_) => Event::Tick,
        Order::Clean => match runtime.clean(slot).await {
            Ok(warm) => Event::Cleaned { warm },
            Err(fault) => Event::CleanFailed(fault),
        },
    }
}
