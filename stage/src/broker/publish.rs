//! Stages that exist, whoever made them: the pilot by path, or a payload through its client library.

use std::collections::BTreeSet;

use super::{Broker, Effect, ObjectId, SessionId, Stage};
use crate::{Class, Fate, LedgerError, Medium, OBJECTS_MAX, Reservation, ReserveError, StageName, StageUri};

/// A stage that could not be put on the broker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InsertError {
    /// There is no room for it, or it exists.
    #[error(transparent)]
    Reserve(#[from] ReserveError),
    /// It was reserved, but not like that.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// A stage, for the pilot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What holds it.
    pub object: ObjectId,
    /// Its class.
    pub class: Class,
    /// Its size.
    pub bytes: u64,
}

impl Broker {
    /// Makes room for an output that the pilot lends by path, before anything of it exists.
    ///
    /// # Errors
    /// As [`crate::Ledger::reserve`].
    pub fn reserve(&mut self, asked: Reservation) -> Result<(), ReserveError> {
        self.ledger.reserve(asked)?;
        self.relieve();
        Ok(())
    }

    /// Puts a stage of the pilot's on the broker; what was reserved for it is settled. The caller has an object of that
    /// name ready when it applies the effects. `None` when nobody wants it any more: its readers were all released.
    ///
    /// # Errors
    /// When it exists, there is no room for it, or it is larger than was reserved.
    pub fn insert(
        &mut self,
        uri: &StageUri,
        class: Class,
        bytes: u64,
        readers: &BTreeSet<StageName>,
    ) -> Result<Option<ObjectId>, InsertError> {
        if self.ledger.object(uri).is_none() {
            let medium = if class == Class::File { Medium::Disk } else { Medium::Memory };
            let readers = readers.clone();
            self.ledger.reserve(Reservation {
                uri: uri.clone(),
                class,
                medium,
                max_bytes: bytes,
                readers,
            })?;
        }
        if self.ledger.commit(uri, bytes)? == Fate::Gone {
            self.wait_in_vain(uri);
            return Ok(None);
        }
        let object = ObjectId(self.fresh());
        self.publish(uri, object, class, bytes, None);
        self.relieve();
        Ok(Some(object))
    }

    /// One stage.
    #[must_use]
    pub fn lookup(&self, uri: &StageUri) -> Option<Found> {
        let stage = self.stages.get(uri)?;
        Some(Found { object: stage.object, class: stage.class, bytes: stage.bytes })
    }

    /// One stage, of which a process of `session` is about to get a descriptor by way of the pilot.
    pub fn hold(&mut self, uri: &StageUri, session: SessionId) -> Option<Found> {
        let found = self.lookup(uri)?;
        if let (Some(stage), Some(holder)) = (self.stages.get_mut(uri), self.sessions.get_mut(&session)) {
            stage.holders.insert(session);
            holder.holds.insert(uri.clone());
        }
        self.reconsider(uri);
        Some(found)
    }

    /// All stages.
    pub fn stages(&self) -> impl Iterator<Item = (&StageUri, Class, u64)> {
        self.stages.iter().map(|(uri, stage)| (uri, stage.class, stage.bytes))
    }

    /// A reader has finished, or will never come; its session has ended. The last one takes the stage with it.
    ///
    /// # Errors
    /// When it is no reader of this stage.
    pub fn release(&mut self, uri: &StageUri, reader: &StageName) -> Result<Fate, LedgerError> {
        let fate = self.ledger.release(uri, reader)?;
        if fate == Fate::Gone {
            self.take_away(uri);
            if self.released.len() >= OBJECTS_MAX {
                // Then those that ask for an old one are told that it is not there yet, and wait in vain.
                self.released.clear();
            }
            self.released.insert(uri.clone());
        }
        Ok(fate)
    }

    /// One more reader needs a stage; whether it is there.
    pub fn add_reader(&mut self, uri: &StageUri, reader: &StageName) -> bool {
        self.stages.contains_key(uri) && self.ledger.add_reader(uri, reader).is_ok()
    }

    /// Drops a stage, or a reservation of the pilot's; whether there was one.
    pub fn remove(&mut self, uri: &StageUri) -> bool {
        self.unpark(|parked| parked == uri);
        let was = self.ledger.discard(uri).is_ok();
        self.take_away(uri);
        was
    }

    /// Drops all of a workflow.
    pub fn end_workflow(&mut self, workflow: &StageName) -> usize {
        self.unpark(|parked| parked.workflow == *workflow);
        let gone = self.ledger.end_workflow(workflow);
        self.released.retain(|uri| uri.workflow != *workflow);
        for (uri, _) in &gone {
            self.take_away(uri);
        }
        gone.len()
    }

    /// Settles what a client's output takes; then it is a stage, unless nobody wants it.
    pub(super) fn settle_commit(
        &mut self,
        uri: &StageUri,
        object: ObjectId,
        class: Class,
        bytes: u64,
        producer: Option<SessionId>,
    ) {
        self.counts.committed += 1;
        match self.ledger.commit(uri, bytes) {
            Ok(Fate::Kept) => self.publish(uri, object, class, bytes, producer),
            Ok(Fate::Gone) | Err(_) => {
                self.effects.push(Effect::Free { object });
                self.wait_in_vain(uri);
            }
        }
    }

    fn publish(
        &mut self,
        uri: &StageUri,
        object: ObjectId,
        class: Class,
        bytes: u64,
        producer: Option<SessionId>,
    ) {
        let age = self.fresh();
        self.released.remove(uri);
        // A producer may have kept its writable descriptor: it can change nothing, but the memory lives as long.
        let holders: BTreeSet<SessionId> = producer.into_iter().collect();
        self.stages.insert(uri.clone(), Stage { object, class, bytes, age, holders });
        if let Some(session) = producer.and_then(|id| self.sessions.get_mut(&id)) {
            session.holds.insert(uri.clone());
        }
        self.reconsider(uri);
        for waiter in self.waiters.take(uri) {
            self.hand_out(waiter.peer, waiter.id, waiter.session, uri);
        }
    }

    fn take_away(&mut self, uri: &StageUri) {
        self.take_from_idle(uri);
        if let Some(stage) = self.stages.remove(uri) {
            self.pressure.gone(stage.object);
            self.effects.push(Effect::Free { object: stage.object });
            if stage.class == Class::Mem {
                self.linger(stage.object, stage.bytes, stage.holders);
            }
        }
        self.relieve();
    }
}
