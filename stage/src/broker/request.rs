//! What clients ask for, and how it ends.

use std::collections::BTreeSet;

use wire::stage::{Answer, Code, Request};

use super::pressure::{Parked, ParkedCreate};
use super::{Broker, Class, Effect, Failure, Making, ObjectId, PeerId, Sealed, SessionId};
use crate::{Medium, Reservation, ReserveError, StageName, StageUri};

/// Room for an output, or why there is none.
enum Room {
    Reserved(ObjectId),
    /// There will be, when stages that nobody has mapped are spilled.
    Later,
    No(Failure),
}

impl Broker {
    pub(super) fn asked(&mut self, peer: PeerId, id: u32, request: Request, now_ms: u64) {
        let Some(session) = self.peers.get(&peer).map(|peer| peer.session) else { return };
        // Names were checked when the message was read; a caller that did not is answered all the same.
        let named = |name: &str| StageName::new(name).map_err(|error| error.to_string());
        match request {
            Request::Create { output, bytes, huge_pages } => match named(&output) {
                Ok(name) => {
                    self.begin_create(peer, id, session, &name, bytes, huge_pages);
                    self.relieve();
                }
                Err(text) => self.refuse(peer, id, Code::Malformed, text),
            },
            Request::Commit { output, bytes } => match named(&output) {
                Ok(name) => self.commit(peer, id, session, &name, bytes),
                Err(text) => self.refuse(peer, id, Code::Malformed, text),
            },
            Request::Abandon { output } => match named(&output) {
                Ok(name) => self.abandon(peer, id, session, &name),
                Err(text) => self.refuse(peer, id, Code::Malformed, text),
            },
            Request::Open { input, wait_ms } => match named(&input) {
                Ok(name) => self.open(peer, id, session, name, now_ms, wait_ms),
                Err(text) => self.refuse(peer, id, Code::Malformed, text),
            },
            Request::Put { output, value } => match named(&output) {
                Ok(name) => self.put(peer, id, session, &name, value),
                Err(text) => self.refuse(peer, id, Code::Malformed, text),
            },
            Request::List => {
                let listing = self.listing(session).unwrap_or_default();
                self.answer(peer, id, Answer::Listed { listing });
            }
        }
    }

    /// Whether an output may be begun: declared, of that class, not too large, not begun.
    fn may_begin(
        &self,
        session: SessionId,
        name: &StageName,
        class: Class,
        bytes: u64,
    ) -> Result<StageUri, Failure> {
        let no = |code, why: String| Err(Failure { code, text: format!("create output \"{name}\": {why}") });
        let Some(session) = self.sessions.get(&session) else {
            return no(Code::Ended, "the payload has ended".into());
        };
        let Some(output) = session.outputs.get(name) else {
            return no(
                Code::Undeclared,
                "the payload declares no such output of class mem or value; look at its outputs".into(),
            );
        };
        let declared = &output.declared;
        if declared.class != class {
            let why = match declared.class {
                Class::Value => "it is declared as a value; put it",
                _ => "it is declared as memory; create it, write it and commit it",
            };
            return no(Code::WrongClass, why.into());
        }
        if bytes > declared.max_bytes {
            let why =
                format!("{bytes} bytes are more than its max_size of {}; declare more", declared.max_bytes);
            return no(Code::TooLarge, why);
        }
        match output.making {
            Making::Nothing => Ok(session.uri(name)),
            Making::Committed { .. } => no(Code::Exists, "it is committed already".into()),
            _ => no(Code::Exists, "it is being made already".into()),
        }
    }

    fn readers(&self, session: SessionId, name: &StageName) -> BTreeSet<StageName> {
        let output = self.sessions.get(&session).and_then(|session| session.outputs.get(name));
        output.map(|output| output.declared.readers.clone()).unwrap_or_default()
    }

    fn reserve_room(&mut self, session: SessionId, uri: &StageUri, class: Class, bytes: u64) -> Room {
        if self.sessions.get(&session).is_some_and(|session| session.reserved.contains(&uri.output)) {
            return Room::Reserved(ObjectId(self.fresh()));
        }
        let readers = self.readers(session, &uri.output);
        let asked =
            Reservation { uri: uri.clone(), class, medium: Medium::Memory, max_bytes: bytes, readers };
        match self.ledger.reserve(asked) {
            Ok(()) => Room::Reserved(ObjectId(self.fresh())),
            Err(ReserveError::OverBudget { free_bytes, budget_bytes, .. }) => {
                if self.could_free(bytes) {
                    return Room::Later;
                }
                let text = format!(
                    "create output \"{}\": {bytes} bytes of memory are wanted, {free_bytes} of {budget_bytes} are free; wait \
                     until stages were read, use class file, or give the pilot more memory",
                    uri.output
                );
                Room::No(Failure { code: Code::OverBudget, text })
            }
            Err(error @ ReserveError::Exists { .. }) => {
                Room::No(Failure { code: Code::Exists, text: error.to_string() })
            }
            Err(error @ ReserveError::TooMany { .. }) => {
                Room::No(Failure { code: Code::TooMany, text: error.to_string() })
            }
        }
    }

    pub(super) fn begin_create(
        &mut self,
        peer: PeerId,
        id: u32,
        session: SessionId,
        name: &StageName,
        bytes: u64,
        huge_pages: bool,
    ) {
        let uri = match self.may_begin(session, name, Class::Mem, bytes) {
            Ok(uri) => uri,
            Err(failure) => return self.refuse(peer, id, failure.code, failure.text),
        };
        match self.reserve_room(session, &uri, Class::Mem, bytes) {
            Room::Reserved(object) => {
                self.set(session, name, Making::Allocating { by: peer, id, object, bytes });
                self.making.insert(object, (session, name.clone()));
                self.effects.push(Effect::Allocate { object, name: name.clone(), bytes, huge_pages });
            }
            Room::Later => {
                self.set(session, name, Making::Parked { by: peer });
                let name = name.clone();
                self.park(Parked::Create(ParkedCreate { peer, id, session, name, bytes, huge_pages }));
            }
            Room::No(failure) => return self.refuse(peer, id, failure.code, failure.text),
        }
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.made.insert(name.clone());
        }
    }

    pub(super) fn set(&mut self, session: SessionId, name: &StageName, making: Making) {
        let output = self.sessions.get_mut(&session).and_then(|session| session.outputs.get_mut(name));
        if let Some(output) = output {
            output.making = making;
        }
    }

    fn making(&self, session: SessionId, name: &StageName) -> Option<Making> {
        let output = self.sessions.get(&session)?.outputs.get(name)?;
        Some(output.making.clone())
    }

    /// Its owner no longer has it to lose.
    fn disown(&mut self, peer: PeerId, name: &StageName) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.made.remove(name);
        }
    }

    /// Memory was taken, with a note about what could not be had; or not.
    pub fn allocated(&mut self, object: ObjectId, result: Result<Option<String>, Failure>) {
        let Some((session, name)) = self.making.get(&object).cloned() else { return };
        let Some(Making::Allocating { by, id, bytes, .. }) = self.making(session, &name) else { return };
        match result {
            Ok(note) => {
                self.set(session, &name, Making::Lent { by, object, bytes });
                if self.close(by) {
                    self.effects.push(Effect::Lend { peer: by, id, object, bytes, note });
                }
            }
            Err(failure) => {
                self.drop_output(session, &name);
                self.disown(by, &name);
                self.refuse(by, id, failure.code, failure.text);
            }
        }
    }

    fn commit(&mut self, peer: PeerId, id: u32, session: SessionId, name: &StageName, bytes: u64) {
        let no = |why: &str| format!("commit output \"{name}\": {why}");
        match self.making(session, name) {
            None => {
                let text = no("the payload declares no such output; add it to its outputs");
                self.refuse(peer, id, Code::Undeclared, text);
            }
            Some(Making::Committed { .. }) => {
                self.refuse(peer, id, Code::Exists, no("it is committed already"));
            }
            Some(Making::Lent { by, object, bytes: created }) if by == peer => {
                if bytes > created {
                    let text = no(&format!("{bytes} bytes are more than the {created} it was created with"));
                    return self.refuse(peer, id, Code::TooLarge, text);
                }
                self.set(session, name, Making::Sealing { by, id, object, bytes: created });
                self.effects.push(Effect::Seal { object, session, bytes });
            }
            Some(making) if making.owner() == Some(peer) => {
                self.refuse(peer, id, Code::Busy, no("it is still being worked on; try again"));
            }
            Some(_) => self.refuse(peer, id, Code::NotCreated, no("this connection did not create it")),
        }
    }

    /// Memory was sealed, or not; an output that was busy may be committed again.
    pub fn sealed(&mut self, object: ObjectId, result: Result<Sealed, Failure>) {
        let Some((session, name)) = self.making.get(&object).cloned() else { return };
        let Some(Making::Sealing { by, id, bytes: created, .. }) = self.making(session, &name) else {
            return;
        };
        let sealed = match result {
            Ok(sealed) => sealed,
            Err(failure) => {
                self.set(session, &name, Making::Lent { by, object, bytes: created });
                return self.refuse(by, id, failure.code, failure.text);
            }
        };
        let Some(uri) = self.sessions.get(&session).map(|session| session.uri(&name)) else { return };
        self.making.remove(&object);
        self.disown(by, &name);
        self.set(session, &name, Making::Committed { bytes: sealed.bytes });
        // Consumers first: they have waited longer.
        self.settle_commit(&uri, object, Class::Mem, sealed.bytes, Some(session));
        self.answer(by, id, Answer::Committed { bytes: sealed.bytes, seal_us: sealed.seal_us });
        self.relieve();
    }

    fn abandon(&mut self, peer: PeerId, id: u32, session: SessionId, name: &StageName) {
        match self.making(session, name) {
            Some(Making::Lent { by, .. }) if by == peer => {
                self.drop_output(session, name);
                self.disown(peer, name);
                self.answer(peer, id, Answer::Abandoned);
                self.relieve();
            }
            Some(making) if making.owner() == Some(peer) => {
                let text = format!("abandon output \"{name}\": it is still being worked on; try again");
                self.refuse(peer, id, Code::Busy, text);
            }
            _ => {
                let text = format!("abandon output \"{name}\": this connection has not created it");
                self.refuse(peer, id, Code::NotCreated, text);
            }
        }
    }

    fn put(&mut self, peer: PeerId, id: u32, session: SessionId, name: &StageName, value: Vec<u8>) {
        let bytes = value.len() as u64;
        let uri = match self.may_begin(session, name, Class::Value, bytes) {
            Ok(uri) => uri,
            Err(failure) => return self.refuse(peer, id, failure.code, failure.text),
        };
        match self.reserve_room(session, &uri, Class::Value, bytes) {
            Room::Reserved(object) => {
                self.set(session, name, Making::Committed { bytes });
                self.effects.push(Effect::Keep { object, value });
                self.settle_commit(&uri, object, Class::Value, bytes, None);
                self.answer(peer, id, Answer::Committed { bytes, seal_us: 0 });
            }
            // A value is too small to wait for.
            Room::Later => {
                let text = format!("put output \"{name}\": memory for stages is short; try again");
                self.refuse(peer, id, Code::OverBudget, text);
            }
            Room::No(failure) => self.refuse(peer, id, failure.code, failure.text),
        }
        self.relieve();
    }

    fn open(
        &mut self,
        peer: PeerId,
        id: u32,
        session: SessionId,
        name: StageName,
        now_ms: u64,
        wait_ms: u64,
    ) {
        let known = self.sessions.get(&session).and_then(|session| session.inputs.get(&name));
        let Some(input) = known.cloned() else {
            let text =
                format!("open input \"{name}\": the payload declares no such input; add it to its inputs");
            return self.refuse(peer, id, Code::Undeclared, text);
        };
        if self.stages.contains_key(&input.uri) {
            return self.hand_out(peer, id, session, &input.uri);
        }
        if !input.live || self.released.contains(&input.uri) {
            let text = format!("open input \"{name}\": {} was released, or never made", input.uri);
            return self.refuse(peer, id, Code::Gone, text);
        }
        if wait_ms == 0 {
            let text = format!("open input \"{name}\": {} is not there yet; wait for it", input.uri);
            return self.refuse(peer, id, Code::NotThere, text);
        }
        self.wait_for((peer, id), session, name, input.uri, now_ms.saturating_add(wait_ms));
    }

    /// Gives a stage that exists to a consumer.
    pub(super) fn hand_out(&mut self, peer: PeerId, id: u32, session: SessionId, uri: &StageUri) {
        let Some(stage) = self.stages.get_mut(uri) else { return };
        let (object, class, bytes) = (stage.object, stage.class.into(), stage.bytes);
        stage.holders.insert(session);
        if let Some(session) = self.sessions.get_mut(&session) {
            session.holds.insert(uri.clone());
        }
        self.reconsider(uri);
        self.counts.opened += 1;
        if self.close(peer) {
            self.effects.push(Effect::Open { peer, id, object, class, bytes });
        }
    }
}
