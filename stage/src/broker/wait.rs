//! Who waits for which stage, and until when.

use std::collections::{BTreeMap, BTreeSet};

use wire::stage::Code;

use super::{Broker, PeerId, SessionId};
use crate::{StageName, StageUri};

#[derive(Clone, Debug)]
pub(super) struct Waiter {
    pub(super) peer: PeerId,
    pub(super) id: u32,
    pub(super) session: SessionId,
    pub(super) input: StageName,
    uri: StageUri,
    by_ms: u64,
}

/// Everyone that waits, in the order of arrival.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    all: BTreeMap<u64, Waiter>,
    by_uri: BTreeMap<StageUri, BTreeSet<u64>>,
    by_time: BTreeSet<(u64, u64)>,
    by_peer: BTreeSet<(PeerId, u64)>,
}

impl Waiters {
    fn insert(&mut self, order: u64, waiter: Waiter) {
        self.by_uri.entry(waiter.uri.clone()).or_default().insert(order);
        self.by_time.insert((waiter.by_ms, order));
        self.by_peer.insert((waiter.peer, order));
        self.all.insert(order, waiter);
    }

    fn remove(&mut self, order: u64) -> Option<Waiter> {
        let waiter = self.all.remove(&order)?;
        self.by_time.remove(&(waiter.by_ms, order));
        self.by_peer.remove(&(waiter.peer, order));
        if let Some(orders) = self.by_uri.get_mut(&waiter.uri) {
            orders.remove(&order);
            if orders.is_empty() {
                self.by_uri.remove(&waiter.uri);
            }
        }
        Some(waiter)
    }

    /// Takes those that wait for a stage.
    pub(super) fn take(&mut self, uri: &StageUri) -> Vec<Waiter> {
        let orders: Vec<u64> =
            self.by_uri.get(uri).map(|orders| orders.iter().copied().collect()).unwrap_or_default();
        orders.into_iter().filter_map(|order| self.remove(order)).collect()
    }

    pub(super) fn forget(&mut self, peer: PeerId) {
        let orders: Vec<u64> =
            self.by_peer.range((peer, 0)..=(peer, u64::MAX)).map(|(_, order)| *order).collect();
        for order in orders {
            self.remove(order);
        }
    }

    fn take_late(&mut self, now_ms: u64) -> Option<Waiter> {
        let (by_ms, order) = *self.by_time.first()?;
        if by_ms <= now_ms { self.remove(order) } else { None }
    }
}

impl Broker {
    /// When [`Broker::tick`] has something to do, in milliseconds of the caller's clock.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        self.waiters.by_time.first().map(|(by_ms, _)| *by_ms)
    }

    /// Time has passed: who has waited long enough is told.
    pub fn tick(&mut self, now_ms: u64) {
        while let Some(late) = self.waiters.take_late(now_ms) {
            let text = format!("open input \"{}\": it did not come in time; wait longer", late.input);
            self.refuse(late.peer, late.id, Code::NotThere, text);
        }
    }

    pub(super) fn wait_for(
        &mut self,
        (peer, id): (PeerId, u32),
        session: SessionId,
        input: StageName,
        uri: StageUri,
        by_ms: u64,
    ) {
        let order = self.fresh();
        self.waiters.insert(order, Waiter { peer, id, session, input, uri, by_ms });
    }

    pub(super) fn wait_in_vain(&mut self, uri: &StageUri) {
        for waiter in self.waiters.take(uri) {
            let text = format!("open input \"{}\": its producer ended without making it", waiter.input);
            self.refuse(waiter.peer, waiter.id, Code::Gone, text);
        }
    }
}
