//! What the broker decided is done, and how it ended is told to it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use wire::stage::{Answer, Code, FromBroker};

use super::Content;
use super::engine::Engine;
use super::line::Sent;
use super::objects::Object;
use super::work::{Report, Work, seal};
use crate::StageName;
use crate::broker::{Effect, Failure, ObjectId, PeerId, SessionId};
use crate::memory::now_us;

/// Up to this size the broker's thread seals (13 ms at 1 GiB): on a busy machine a worker gets its turn later than that, and
/// taking the same pages took ten times as long, so that seals have at most a tenth of this thread.
const SEAL_HERE_BYTES: u64 = 1 << 30;
/// A seal that takes longer than this waited for pages that someone has pinned; the kernel waits for 150 ms.
const SEAL_HERE_US: u64 = 100_000;

impl Engine {
    fn begin(&mut self, work: Work) {
        self.worker(work.lane()).push(work);
    }

    pub(super) fn on_report(&mut self, report: Report) {
        match report {
            Report::Allocated { object, result: Ok((writer, note)) } => {
                // Whoever asked for it may have gone meanwhile.
                if !self.objects.holds(object) {
                    return self.begin(Work::Free(Object::Lent(writer)));
                }
                self.objects.insert(object, Object::Lent(writer));
                self.broker.allocated(object, Ok(note));
            }
            Report::Allocated { object, result: Err(failure) } => {
                self.objects.remove(object);
                self.broker.allocated(object, Err(failure));
            }
            Report::Sealed { object, result } => {
                if !self.objects.holds(object) {
                    let unwanted = result
                        .map_or_else(|(writer, _)| Object::Lent(writer), |(stage, _)| Object::Memory(stage));
                    return self.begin(Work::Free(unwanted));
                }
                match result {
                    Ok((stage, sealed)) => {
                        self.objects.insert(object, Object::Memory(stage));
                        self.broker.sealed(object, Ok(sealed));
                    }
                    Err((writer, failure)) => {
                        self.objects.insert(object, Object::Lent(writer));
                        self.broker.sealed(object, Err(failure));
                    }
                }
            }
            Report::Spilled { object, result } => {
                let result = result.map(|name| {
                    if let (false, Some(dir)) = (self.objects.holds(object), &self.spill_dir) {
                        Object::spilled(dir, &name).free();
                    } else {
                        self.objects.copies.insert(object, name);
                    }
                });
                self.broker.spilled(object, result);
            }
            Report::Revoked { object, session, bytes, freed } => {
                if !freed {
                    self.broker.stuck(session, object, bytes);
                }
            }
            Report::Freed => {}
        }
    }

    /// Does what the broker decided, until it has nothing more to say.
    pub(super) fn apply(&mut self) {
        loop {
            let effects = self.broker.effects();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                self.effect(effect);
            }
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Tell { peer, message } => self.tell(peer, &message, None),
            Effect::Allocate { object, name, bytes, huge_pages } => {
                self.objects.insert(object, Object::Away);
                self.begin(Work::Allocate { object, name, bytes, huge_pages });
            }
            Effect::Lend { peer, id, object, bytes, note } => {
                let writer = self.objects.lent(object).map(|writer| writer.lend().try_clone_to_owned());
                match writer {
                    Some(Ok(fd)) => self.tell_id(peer, id, Answer::Lent { bytes, note }, Some(fd)),
                    Some(Err(error)) => self.tell_io(peer, id, "lend output", &error),
                    None => self.tell_io(peer, id, "lend output", &io::ErrorKind::NotFound.into()),
                }
            }
            Effect::Seal { object, session, bytes } => self.seal(object, session, bytes),
            Effect::Keep { object, value } => drop(self.objects.insert(object, Object::Value(value))),
            Effect::Open { peer, id, object, class, bytes } => match self.objects.open(object) {
                Ok(Content::Value(value)) => self.tell_id(peer, id, Answer::Value { value }, None),
                Ok(Content::File(_)) if self.files_by_path => {
                    self.tell_id(peer, id, Answer::ByPath { bytes }, None);
                }
                Ok(Content::Memory(fd) | Content::File(fd)) => {
                    self.tell_id(peer, id, Answer::Opened { class, bytes }, Some(fd));
                }
                Err(error) => self.tell_io(peer, id, "open input", &error),
            },
            Effect::Spill { object } => self.spill(object),
            Effect::Settle { object, moved } => self.settle(object, moved),
            Effect::Moved { uri, bytes } => {
                if let Some(watch) = &self.moved {
                    watch.tell(&uri, bytes);
                }
            }
            Effect::Reserved { ticket, result } => {
                if let Some(asker) = self.askers.remove(&ticket) {
                    asker.tell(result);
                }
            }
            Effect::Free { object } => {
                if let Some(object) = self.objects.remove(object) {
                    if object.is_light() { object.free() } else { self.begin(Work::Free(object)) }
                }
            }
            Effect::Revoke { object, session, bytes } => {
                if let Some(Object::Lent(writer)) = self.objects.remove(object) {
                    self.begin(Work::Revoke { object, session, writer, bytes });
                }
            }
            Effect::Cut { peer } => self.disconnect(peer),
        }
    }

    fn seal(&mut self, object: ObjectId, session: SessionId, bytes: u64) {
        let Some(writer) = self.objects.take_lent(object) else { return };
        // A client library has done the long part itself.
        let long = bytes > SEAL_HERE_BYTES || self.slow.contains(&session);
        if long && !writer.is_written() {
            return self.begin(Work::Seal { object, writer, bytes });
        }
        let began = now_us();
        let result = seal(writer, bytes, |writer, bytes| writer.commit_within(bytes, 1));
        // Whoever pins pages pays for the next ones.
        let slow = now_us().saturating_sub(began) > SEAL_HERE_US;
        if slow {
            self.slow.insert(session);
        }
        match result {
            Err((writer, failure)) if slow && failure.code == Code::Busy => {
                self.begin(Work::Seal { object, writer, bytes });
            }
            result => self.on_report(Report::Sealed { object, result }),
        }
    }

    fn spill(&mut self, object: ObjectId) {
        let name = StageName::new(&format!("spilled-{object}")).ok();
        let memory = self.objects.memory(object).map(|stage| (stage.reader(), stage.bytes()));
        match (name, memory, &self.spill_dir) {
            (Some(name), Some((Ok(memory), bytes)), Some(dir)) => {
                let dir = Arc::clone(dir);
                self.begin(Work::Spill { object, memory, dir, name, bytes });
            }
            _ => {
                let failure = Failure { code: Code::Io, text: "move a stage to a file".into() };
                self.broker.spilled(object, Err(failure));
            }
        }
    }

    fn settle(&mut self, object: ObjectId, moved: bool) {
        let (Some(name), Some(dir)) = (self.objects.copies.remove(&object), &self.spill_dir) else { return };
        let copy = Object::spilled(dir, &name);
        let unwanted = if moved { self.objects.insert(object, copy) } else { Some(copy) };
        if let Some(unwanted) = unwanted {
            self.begin(Work::Free(unwanted));
        }
    }

    fn tell_io(&mut self, peer: PeerId, id: u32, doing: &str, error: &io::Error) {
        self.tell_id(peer, id, Answer::Refused { code: Code::Io, text: format!("{doing}: {error}") }, None);
    }

    fn tell_id(&mut self, peer: PeerId, id: u32, answer: Answer, fd: Option<OwnedFd>) {
        self.tell(peer, &FromBroker::Tell { id, answer }, fd);
    }

    fn tell(&mut self, peer: PeerId, message: &FromBroker, fd: Option<OwnedFd>) {
        let Some((_, line)) = self.lines.get_mut(&peer) else { return };
        let Ok(bytes) = wire::encode(message) else { return };
        match line.send(bytes, fd) {
            Sent::Now if !line.owes() => {}
            // Until it has taken the descriptor, it is watched.
            Sent::Now | Sent::Later => self.look_after(peer),
            // In the middle of other effects: what follows from it is applied after these.
            Sent::Never => {
                self.disconnect(peer);
                self.broker.gone(peer);
            }
        }
    }
}
