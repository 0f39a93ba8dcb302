//! Sessions: what the payload in a slot may make and read, from its launch to its end.

use std::collections::{BTreeMap, BTreeSet};

use wire::stage::{Code, ROWS_MAX};

use super::{Broker, Effect, Making, Output, PeerId, Session, SessionId};
use crate::{Class, StageName, StageUri};

/// What the payload of a session may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its workflow.
    pub workflow: StageName,
    /// Its name.
    pub payload: StageName,
    /// What it may make.
    pub outputs: Vec<GrantOutput>,
    /// What it may read.
    pub inputs: Vec<GrantInput>,
}

/// A declared output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantOutput {
    /// Its name.
    pub name: StageName,
    /// [`Class::Mem`] or [`Class::Value`]; the others are made by path.
    pub class: Class,
    /// The most it may have.
    pub max_bytes: u64,
    /// Those that will read it; it goes with the last of them.
    pub readers: BTreeSet<StageName>,
}

/// A declared input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantInput {
    /// What the payload calls it.
    pub name: StageName,
    /// Which stage it is.
    pub uri: StageUri,
    /// Whether its producer runs at the same time, so that it may come later.
    pub live: bool,
}

/// A session that can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// More than fit a message.
    #[error(
        "open a session for {workflow}/{payload}: at most {ROWS_MAX} inputs and {ROWS_MAX} outputs are possible"
    )]
    TooMany {
        /// Its workflow.
        workflow: StageName,
        /// The payload.
        payload: StageName,
    },
    /// Files and folders are made by path.
    #[error("open a session for output \"{output}\": only memory and values are made through the broker")]
    Class {
        /// Which output.
        output: StageName,
    },
    /// Two of one name.
    #[error("open a session: \"{name}\" is declared twice")]
    Twice {
        /// The name.
        name: StageName,
    },
}

/// What a session left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Its committed outputs: name, class and bytes. They are stages if they were to be kept, else they are gone.
    pub committed: Vec<(StageUri, Class, u64)>,
    /// Outputs that were created and never committed; they are gone.
    pub dropped: usize,
}

impl Session {
    pub(super) fn uri(&self, output: &StageName) -> StageUri {
        StageUri { workflow: self.workflow.clone(), payload: self.payload.clone(), output: output.clone() }
    }
}

impl Broker {
    /// Lets a payload make and read stages. An output that was [reserved](Broker::reserve) before has its room whatever
    /// clients do with it: they never hear that the budget is exceeded, and the reservation is the pilot's to drop.
    ///
    /// # Errors
    /// See [`GrantError`].
    pub fn open_session(&mut self, grant: Grant) -> Result<SessionId, GrantError> {
        let Grant { workflow, payload, outputs: declared, inputs: readable } = grant;
        if declared.len() > ROWS_MAX || readable.len() > ROWS_MAX {
            return Err(GrantError::TooMany { workflow, payload });
        }
        let mut outputs = BTreeMap::new();
        for declared in declared {
            let name = declared.name.clone();
            if declared.class == Class::File {
                return Err(GrantError::Class { output: name });
            }
            let output = Output { declared, making: Making::Nothing };
            if outputs.insert(name.clone(), output).is_some() {
                return Err(GrantError::Twice { name });
            }
        }
        let mut inputs = BTreeMap::new();
        for input in readable {
            let name = input.name.clone();
            if inputs.insert(name.clone(), input).is_some() {
                return Err(GrantError::Twice { name });
            }
        }
        let id = SessionId(self.fresh());
        let (peers, holds, lingers) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let reserved = BTreeSet::new();
        let mut session =
            Session { workflow, payload, outputs, inputs, reserved, peers, holds, lingers, dropped: 0 };
        let has_room = |name: &&StageName| {
            self.ledger.object(&session.uri(name)).is_some_and(|object| !object.committed)
        };
        session.reserved = session.outputs.keys().filter(has_room).cloned().collect();
        self.sessions.insert(id, session);
        Ok(id)
    }

    /// The payload has ended, and no process of it is left. Its connections are cut, half-written outputs dropped;
    /// committed ones stay as stages if `keep`, else they go too.
    pub fn end_session(&mut self, id: SessionId, keep: bool) -> Ended {
        let peers: Vec<PeerId> =
            self.sessions.get(&id).map(|session| session.peers.iter().copied().collect()).unwrap_or_default();
        for peer in peers {
            self.cut(peer, Code::Ended, "ask: the payload has ended".into());
        }
        let Some(session) = self.sessions.remove(&id) else { return Ended::default() };
        self.stop_lingering(id, session.lingers.clone());
        for uri in &session.holds {
            if let Some(stage) = self.stages.get_mut(uri) {
                stage.holders.remove(&id);
            }
            self.reconsider(uri);
        }
        let mut ended = Ended { committed: Vec::new(), dropped: session.dropped };
        for (name, output) in &session.outputs {
            let uri = session.uri(name);
            match output.making {
                Making::Committed { bytes } => {
                    ended.committed.push((uri.clone(), output.declared.class, bytes));
                    if !keep {
                        self.remove(&uri);
                    }
                }
                // Whoever waits for it waits in vain. A producer that is not kept may be run again.
                _ if keep => self.wait_in_vain(&uri),
                _ => {}
            }
        }
        self.relieve();
        ended
    }

    /// Gives back what a half-made output took; whether there was one.
    pub(super) fn drop_output(&mut self, id: SessionId, name: &StageName) -> bool {
        let Some(session) = self.sessions.get_mut(&id) else { return false };
        let uri = session.uri(name);
        let Some(output) = session.outputs.get_mut(name) else { return false };
        if output.making.owner().is_none() {
            return false;
        }
        let was = std::mem::replace(&mut output.making, Making::Nothing);
        if let Some((object, bytes)) = was.object() {
            self.making.remove(&object);
            if !session.reserved.contains(name) {
                let _ = self.ledger.discard(&uri);
            }
            self.effects.push(Effect::Revoke { object, session: id, bytes });
        }
        true
    }
}
