//! Memory pressure: which stages go to files, and who waits for the room.
//!
//! Clients that create an output wait, and so does the pilot with an output that it is about to lend by path: in one queue, so
//! that neither door is slower. Whoever waits is served or refused as soon as nothing more can be moved.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use wire::stage::Code;

use super::{Broker, Effect, Failure, Making, ObjectId, PeerId, SessionId, Ticket};
use crate::{Class, Medium, Reservation, ReserveError, StageName, StageUri};

/// Who waits until stages were spilled.
#[derive(Clone, Debug)]
pub(super) enum Parked {
    Create(ParkedCreate),
    Reserve { ticket: Ticket, asked: Reservation },
}

/// A client's question.
#[derive(Clone, Debug)]
pub(super) struct ParkedCreate {
    pub(super) peer: PeerId,
    pub(super) id: u32,
    pub(super) session: SessionId,
    pub(super) name: StageName,
    pub(super) bytes: u64,
    pub(super) huge_pages: bool,
}

impl Parked {
    fn bytes(&self) -> u64 {
        match self {
            Self::Create(create) => create.bytes,
            Self::Reserve { asked, .. } => asked.max_bytes,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// Memory that no living session may have mapped, oldest first.
    idle: BTreeMap<u64, StageUri>,
    idle_bytes: u64,
    /// One at a time: a disk does not get faster by two.
    spilling: Option<(ObjectId, StageUri)>,
    /// The disk refused; nothing is spilled until something is released.
    full: bool,
    parked: VecDeque<Parked>,
}

impl Pressure {
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.parked.retain(|parked| !matches!(parked, Parked::Create(create) if create.peer == peer));
    }

    pub(super) fn gone(&mut self, object: ObjectId) {
        if self.spilling.as_ref().is_some_and(|(spilling, _)| *spilling == object) {
            self.spilling = None;
        }
        self.full = false;
    }
}

impl Broker {
    /// Memory that is off the ledger, but of which these sessions may still have a descriptor: it counts until they end.
    pub(super) fn linger(&mut self, object: ObjectId, bytes: u64, holders: BTreeSet<SessionId>) {
        let holders: BTreeSet<SessionId> =
            holders.into_iter().filter(|holder| self.sessions.contains_key(holder)).collect();
        if bytes == 0 || holders.is_empty() {
            return;
        }
        self.ledger.charge(bytes);
        for holder in &holders {
            if let Some(session) = self.sessions.get_mut(holder) {
                session.lingers.insert(object);
            }
        }
        self.lingering.insert(object, (bytes, holders));
    }

    pub(super) fn stop_lingering(&mut self, session: SessionId, objects: BTreeSet<ObjectId>) {
        for object in objects {
            let Some((bytes, holders)) = self.lingering.get_mut(&object) else { continue };
            holders.remove(&session);
            if holders.is_empty() {
                self.ledger.uncharge(*bytes);
                self.lingering.remove(&object);
            }
        }
    }

    /// Memory of an abandoned output could not be taken back: its producer has sealed it, and breaks the protocol.
    pub fn stuck(&mut self, session: SessionId, object: ObjectId, bytes: u64) {
        self.linger(object, bytes, BTreeSet::from([session]));
    }

    /// Whether spilling all that may be spilled would make room.
    pub(super) fn could_free(&self, bytes: u64) -> bool {
        let idle = self.pressure.idle_bytes.min(self.ledger.free_bytes(Medium::Disk));
        self.limits.can_spill
            && !self.pressure.full
            && bytes <= self.ledger.free_bytes(Medium::Memory).saturating_add(idle)
    }

    pub(super) fn park(&mut self, parked: Parked) {
        self.pressure.parked.push_back(parked);
    }

    /// As [`Broker::reserve`], but where spilling can make the room that is lacking, it is waited for: the ticket says which
    /// [`Effect::Reserved`] is the answer.
    ///
    /// # Errors
    /// As [`crate::Ledger::reserve`], when waiting would not help.
    pub fn reserve_or_wait(&mut self, asked: Reservation) -> Result<Option<Ticket>, ReserveError> {
        let ticket = match self.ledger.reserve(asked.clone()) {
            Err(ReserveError::OverBudget { medium: Medium::Memory, .. })
                if self.could_free(asked.max_bytes) =>
            {
                let ticket = Ticket(self.fresh());
                self.park(Parked::Reserve { ticket, asked });
                Some(ticket)
            }
            reserved => {
                reserved?;
                None
            }
        };
        self.relieve();
        Ok(ticket)
    }

    /// Reservations that still wait are not wanted any more.
    pub(super) fn unpark(&mut self, unwanted: impl Fn(&StageUri) -> bool) {
        let parked = std::mem::take(&mut self.pressure.parked);
        for parked in parked {
            match parked {
                Parked::Reserve { ticket, asked } if unwanted(&asked.uri) => {
                    let result = Err(self.ledger.over_budget(&asked));
                    self.effects.push(Effect::Reserved { ticket, result });
                }
                other => self.pressure.parked.push_back(other),
            }
        }
    }

    /// What spilling could free at most.
    #[must_use]
    pub fn idle_bytes(&self) -> u64 {
        if self.limits.can_spill { self.pressure.idle_bytes } else { 0 }
    }

    /// The file of a stage left the disk for an object store, or came back; whoever opens it has seen to it that it is there.
    pub fn relocate(&mut self, uri: &StageUri, medium: Medium) {
        if self.ledger.relocate(uri, medium).is_ok() {
            // A disk that was full may not be any more.
            self.pressure.full = false;
            self.relieve();
        }
    }

    /// A stage came, went, or changed hands: whether it may be spilled.
    pub(super) fn reconsider(&mut self, uri: &StageUri) {
        let Some(stage) = self.stages.get(uri) else { return };
        let spillable = stage.class == Class::Mem && stage.bytes > 0 && stage.holders.is_empty();
        let (age, bytes) = (stage.age, stage.bytes);
        if spillable {
            if self.pressure.idle.insert(age, uri.clone()).is_none() {
                self.pressure.idle_bytes += bytes;
            }
        } else if self.pressure.idle.remove(&age).is_some() {
            self.pressure.idle_bytes -= bytes;
        }
    }

    /// Spills the oldest idle stage if memory is too full, and serves those that wait for room.
    pub(super) fn relieve(&mut self) {
        self.serve_parked();
        if !self.limits.can_spill || self.pressure.full || self.pressure.spilling.is_some() {
            return;
        }
        let budget = self.limits.budget.memory_bytes;
        let above = u128::from(budget) * u128::from(self.limits.spill_above_permille) / 1000;
        let crowded = u128::from(self.ledger.used_bytes(Medium::Memory)) > above;
        if !crowded && self.pressure.parked.is_empty() {
            return;
        }
        let free = self.ledger.free_bytes(Medium::Disk);
        let oldest = self.pressure.idle.iter().find_map(|(age, uri)| {
            let stage = self.stages.get(uri)?;
            (stage.bytes <= free).then(|| (*age, uri.clone(), stage.object))
        });
        let Some((_, uri, object)) = oldest else {
            return self.refuse_parked();
        };
        self.pressure.spilling = Some((object, uri));
        self.effects.push(Effect::Spill { object });
    }

    /// A copy was made, or not. It counts only if nobody was given the memory meanwhile.
    pub fn spilled(&mut self, object: ObjectId, result: Result<(), Failure>) {
        let Some((_, uri)) = self.pressure.spilling.take_if(|(spilling, _)| *spilling == object) else {
            return;
        };
        let idle = self.stages.get(&uri).is_some_and(|stage| stage.holders.is_empty());
        let moved = idle && result.is_ok();
        if moved {
            let _ = self.ledger.relocate(&uri, Medium::Disk);
            self.take_from_idle(&uri);
            if let Some(stage) = self.stages.get_mut(&uri) {
                stage.class = Class::File;
            }
            self.counts.spilled += 1;
        }
        self.pressure.full = result.is_err();
        self.effects.push(Effect::Settle { object, moved });
        if let Some(found) = self.lookup(&uri).filter(|_| moved) {
            self.effects.push(Effect::Moved { uri, bytes: found.bytes });
        }
        if self.pressure.full {
            self.refuse_parked();
        }
        self.relieve();
    }

    pub(super) fn take_from_idle(&mut self, uri: &StageUri) {
        let Some(stage) = self.stages.get(uri) else { return };
        if self.pressure.idle.remove(&stage.age).is_some() {
            self.pressure.idle_bytes -= stage.bytes;
        }
    }

    /// In order: a small one must not overtake a large one for ever.
    fn serve_parked(&mut self) {
        while let Some(first) = self.pressure.parked.front() {
            if first.bytes() > self.ledger.free_bytes(Medium::Memory) {
                return;
            }
            match self.pressure.parked.pop_front() {
                Some(Parked::Create(ParkedCreate { peer, id, session, name, bytes, huge_pages })) => {
                    self.set(session, &name, Making::Nothing);
                    self.begin_create(peer, id, session, &name, bytes, huge_pages);
                }
                Some(Parked::Reserve { ticket, asked }) => {
                    let result = self.ledger.reserve(asked);
                    self.effects.push(Effect::Reserved { ticket, result });
                }
                None => return,
            }
        }
    }

    #[cfg(test)]
    pub(super) fn pressure_is_worked_on(&self) -> bool {
        self.pressure.spilling.is_some()
    }

    fn refuse_parked(&mut self) {
        if self.pressure.spilling.is_some() {
            return;
        }
        while let Some(parked) = self.pressure.parked.pop_front() {
            let parked = match parked {
                Parked::Create(parked) => parked,
                Parked::Reserve { ticket, asked } => {
                    // A smaller one than the first may fit.
                    let result = self.ledger.reserve(asked);
                    self.effects.push(Effect::Reserved { ticket, result });
                    continue;
                }
            };
            self.set(parked.session, &parked.name, Making::Nothing);
            if let Some(peer) = self.peers.get_mut(&parked.peer) {
                peer.made.remove(&parked.name);
            }
            let text = format!(
                "create output \"{}\": {} bytes of memory are wanted and no stage could be moved to a file",
                parked.name, parked.bytes
            );
            self.refuse(parked.peer, parked.id, Code::OverBudget, text);
        }
    }
}
