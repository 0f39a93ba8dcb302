//! The broker decides who may make, read and keep which stage, before anything is allocated.
//!
//! ```text
//!  Nothing --Create--> Making --Allocated--> Lent --Commit--> Sealing --Sealed--> Committed --end_session--> a stage of the
//!     ^  room: reserved | parked until a spill    |                |  busy: Lent again                       pilot, or dropped
//!     +-------- Abandon, the connection's end, a failure ----------+
//! ```
//! It is told what peers say and how effects ended, and answers with [`Effect`]s in the order in which they are to be
//! applied. Names, quotas, who may do what to whose output, who waits for what: all of it is here; [`crate::server`]
//! owns the sockets and the memory.
//!
//! # Guarantees
//! - Each question of a peer is answered once, if the peer lives.
//! - What is reserved is given back when its output is abandoned, its connection ends, or its session does.
//! - A stage that a living session may have mapped is never spilled.
//!
//! **Must not know:** descriptors, sockets, threads, the clock. Milliseconds of a monotonic clock are an argument.

mod grant;
mod pressure;
mod publish;
mod request;
mod wait;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use wire::stage::{
    Answer, Code, FromBroker, InputRow, Listing, OutputRow, PROTOCOL, TEXT_BYTES_MAX, ToBroker,
};

use crate::{Budget, Class, Ledger, ReserveError, StageName, StageUri};

pub use grant::{Ended, Grant, GrantError, GrantInput, GrantOutput};
pub use publish::{Found, InsertError};

use pressure::Pressure;
use wait::Waiters;

/// One payload's right to make and read stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u64);

/// One connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub(crate) u64);

/// Something that holds memory, a file or a value. Never used twice, so that a late report meets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(u64);

/// A reservation that waits for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What bounds a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most that all stages together may take.
    pub budget: Budget,
    /// Stages are spilled when memory is fuller than this many thousandths of its budget.
    pub spill_above_permille: u16,
    /// Whether there is a folder to spill to.
    pub can_spill: bool,
    /// Most connections of one session.
    pub session_peers_max: usize,
    /// Most connections of all sessions: each costs a descriptor.
    pub peers_max: usize,
    /// Most questions of one connection that are not answered yet, and so most descriptors on the way to it.
    pub open_max: usize,
}

impl Limits {
    /// The usual limits for a budget.
    #[must_use]
    pub fn new(budget: Budget) -> Self {
        Self {
            budget,
            spill_above_permille: 800,
            can_spill: false,
            session_peers_max: 64,
            peers_max: 1024,
            open_max: wire::frame::FRAME_FDS_MAX,
        }
    }
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what they are called")]
pub enum Effect {
    /// Say something without a descriptor.
    Tell { peer: PeerId, message: FromBroker },
    /// Take memory for an output, then report [`Broker::allocated`].
    Allocate { object: ObjectId, name: StageName, bytes: u64, huge_pages: bool },
    /// Answer with a writable descriptor.
    Lend { peer: PeerId, id: u32, object: ObjectId, bytes: u64, note: Option<String> },
    /// Make it a stage of `bytes` bytes, then report [`Broker::sealed`].
    Seal { object: ObjectId, session: SessionId, bytes: u64 },
    /// Keep an inline value.
    Keep { object: ObjectId, value: Vec<u8> },
    /// Answer with a read-only descriptor, or with the value.
    Open { peer: PeerId, id: u32, object: ObjectId, class: wire::stage::Class, bytes: u64 },
    /// Copy sealed memory to a file, then report [`Broker::spilled`].
    Spill { object: ObjectId },
    /// From now on the copy is the stage (`moved`), or it is dropped.
    Settle { object: ObjectId, moved: bool },
    /// Say that this stage is a file from now on: what else was kept of its memory may go.
    Moved { uri: StageUri, bytes: u64 },
    /// Answer the reservation that waited.
    Reserved { ticket: Ticket, result: Result<(), ReserveError> },
    /// Give everything of it back.
    Free { object: ObjectId },
    /// Give back memory that a producer may still write; report [`Broker::stuck`] if it can't be taken from it.
    Revoke { object: ObjectId, session: SessionId, bytes: u64 },
    /// End the connection, after what was said on it.
    Cut { peer: PeerId },
}

/// How sealing ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Its size.
    pub bytes: u64,
    /// How long sealing took, in microseconds.
    pub seal_us: u64,
}

/// Why an effect failed, as the peer is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For programs.
    pub code: Code,
    /// For people.
    pub text: String,
}

/// What has been counted since the broker began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Outputs committed through client libraries.
    pub committed: u64,
    /// Times that a stage was handed to a consumer.
    pub opened: u64,
    /// Half-written outputs dropped.
    pub dropped: u64,
    /// Stages spilled to files.
    pub spilled: u64,
    /// Questions refused.
    pub refused: u64,
}

#[derive(Debug)]
struct Session {
    workflow: StageName,
    payload: StageName,
    outputs: BTreeMap<StageName, Output>,
    inputs: BTreeMap<StageName, GrantInput>,
    /// Outputs that the pilot made room for before: what becomes of clients' tries does not change that.
    reserved: BTreeSet<StageName>,
    peers: BTreeSet<PeerId>,
    /// Stages of which a process of this session may have a descriptor.
    holds: BTreeSet<StageUri>,
    /// Memory that is off the ledger and still counts because of it.
    lingers: BTreeSet<ObjectId>,
    /// Half-written outputs dropped.
    dropped: usize,
}

#[derive(Debug)]
struct Output {
    declared: GrantOutput,
    making: Making,
}

/// How far an output is. Whoever created it owns it until it is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Making {
    Nothing,
    Parked { by: PeerId },
    Allocating { by: PeerId, id: u32, object: ObjectId, bytes: u64 },
    Lent { by: PeerId, object: ObjectId, bytes: u64 },
    Sealing { by: PeerId, id: u32, object: ObjectId, bytes: u64 },
    Committed { bytes: u64 },
}

impl Making {
    fn owner(&self) -> Option<PeerId> {
        match self {
            Self::Parked { by }
            | Self::Allocating { by, .. }
            | Self::Lent { by, .. }
            | Self::Sealing { by, .. } => Some(*by),
            Self::Nothing | Self::Committed { .. } => None,
        }
    }

    fn object(&self) -> Option<(ObjectId, u64)> {
        match self {
            Self::Allocating { object, bytes, .. }
            | Self::Lent { object, bytes, .. }
            | Self::Sealing { object, bytes, .. } => Some((*object, *bytes)),
            Self::Nothing | Self::Parked { .. } | Self::Committed { .. } => None,
        }
    }
}

#[derive(Debug)]
struct Peer {
    session: SessionId,
    greeted: bool,
    /// Questions without an answer.
    open: usize,
    /// Outputs that go with the connection.
    made: BTreeSet<StageName>,
}

/// A committed stage.
#[derive(Debug)]
struct Stage {
    object: ObjectId,
    class: Class,
    bytes: u64,
    /// Order of arrival.
    age: u64,
    /// Sessions that were given it, its producer's among them.
    holders: BTreeSet<SessionId>,
}

/// Decides about stages. See the [module](self).
#[derive(Debug)]
pub struct Broker {
    limits: Limits,
    ledger: Ledger,
    sessions: BTreeMap<SessionId, Session>,
    peers: BTreeMap<PeerId, Peer>,
    stages: BTreeMap<StageUri, Stage>,
    /// Outputs that are being made: whose, and which.
    making: BTreeMap<ObjectId, (SessionId, StageName)>,
    /// Memory off the ledger that these sessions may still hold.
    lingering: BTreeMap<ObjectId, (u64, BTreeSet<SessionId>)>,
    /// Stages that went with their last reader: nobody waits for them any more.
    released: BTreeSet<StageUri>,
    waiters: Waiters,
    pressure: Pressure,
    counts: Counts,
    effects: Vec<Effect>,
    next: u64,
}

impl Broker {
    /// An empty broker.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ledger: Ledger::new(limits.budget),
            sessions: BTreeMap::new(),
            peers: BTreeMap::new(),
            stages: BTreeMap::new(),
            making: BTreeMap::new(),
            lingering: BTreeMap::new(),
            released: BTreeSet::new(),
            waiters: Waiters::default(),
            pressure: Pressure::default(),
            counts: Counts::default(),
            effects: Vec::new(),
            next: 0,
        }
    }

    /// What is to be done because of what was said since the last call.
    #[must_use = "what is not applied never happens"]
    pub fn effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// What exists and what it takes.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What was counted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How many connections there are.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.peers.len()
    }

    /// Someone has connected to a session's socket; the answer is its name, or `None` with what it is to be told.
    ///
    /// # Errors
    /// When the session has ended or there are too many connections.
    pub fn came(&mut self, session: SessionId) -> Result<PeerId, Failure> {
        let full =
            |what: &str, max: usize| failure(Code::TooMany, format!("connect: {what} has {max} connections"));
        let peer = PeerId(self.fresh());
        let (limits, all) = (self.limits, self.peers.len());
        let Some(known) = self.sessions.get_mut(&session) else {
            return Err(failure(Code::Ended, "connect: the payload's session has ended".into()));
        };
        if known.peers.len() >= limits.session_peers_max {
            return Err(full("the payload", limits.session_peers_max));
        }
        if all >= limits.peers_max {
            return Err(full("the broker", limits.peers_max));
        }
        known.peers.insert(peer);
        self.peers.insert(peer, Peer { session, greeted: false, open: 0, made: BTreeSet::new() });
        Ok(peer)
    }

    /// A peer has said something.
    pub fn said(&mut self, peer: PeerId, message: ToBroker, now_ms: u64) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        match message {
            ToBroker::Hello { protocol } if !known.greeted => {
                if !PROTOCOL.understands(protocol) {
                    let text =
                        format!("connect: the client speaks protocol {protocol}, the broker {PROTOCOL}");
                    return self.cut(peer, Code::Version, text);
                }
                known.greeted = true;
                let session = known.session;
                let Some(listing) = self.listing(session) else { return };
                let payload = self.whose(session);
                let message = FromBroker::Welcome { protocol: PROTOCOL, payload, listing };
                self.effects.push(Effect::Tell { peer, message });
            }
            ToBroker::Ask { id, request } if known.greeted && id != 0 => {
                if known.open >= self.limits.open_max {
                    let text =
                        format!("ask: {} questions are open; wait for an answer first", self.limits.open_max);
                    return self.refuse_unopened(peer, id, Code::TooMany, text);
                }
                known.open += 1;
                self.asked(peer, id, request, now_ms);
            }
            ToBroker::Hello { .. } => {
                self.cut(peer, Code::Malformed, "ask: there was a Hello already".into());
            }
            ToBroker::Ask { .. } => {
                self.cut(peer, Code::Malformed, "ask: Hello comes first, and a question has an id".into());
            }
        }
    }

    /// A peer breaks the protocol: it is told and cut off, alone.
    pub fn cut(&mut self, peer: PeerId, code: Code, text: String) {
        self.refuse_unopened(peer, 0, code, text);
        self.effects.push(Effect::Cut { peer });
        self.gone(peer);
    }

    /// A connection has ended: what it has not committed goes with it.
    pub fn gone(&mut self, peer: PeerId) {
        let Some(gone) = self.peers.remove(&peer) else { return };
        self.waiters.forget(peer);
        self.pressure.forget(peer);
        for output in gone.made {
            if self.drop_output(gone.session, &output) {
                self.counts.dropped += 1;
                if let Some(session) = self.sessions.get_mut(&gone.session) {
                    session.dropped += 1;
                }
            }
        }
        if let Some(session) = self.sessions.get_mut(&gone.session) {
            session.peers.remove(&peer);
        }
        self.relieve();
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn listing(&self, session: SessionId) -> Option<Listing> {
        let session = self.sessions.get(&session)?;
        let inputs = session.inputs.values().map(|input| InputRow {
            name: input.name.to_string(),
            there: self.stages.get(&input.uri).map(|stage| (stage.class.into(), stage.bytes)),
            live: input.live,
        });
        let outputs = session.outputs.values().map(|output| OutputRow {
            name: output.declared.name.to_string(),
            class: output.declared.class.into(),
            max_bytes: output.declared.max_bytes,
            committed: match output.making {
                Making::Committed { bytes } => Some(bytes),
                _ => None,
            },
        });
        Some(Listing { inputs: inputs.collect(), outputs: outputs.collect() })
    }

    fn whose(&self, session: SessionId) -> String {
        self.sessions
            .get(&session)
            .map(|session| format!("{}/{}", session.workflow, session.payload))
            .unwrap_or_default()
    }

    /// Answers a question, if its peer still lives.
    fn answer(&mut self, peer: PeerId, id: u32, answer: Answer) {
        if self.close(peer) {
            self.effects.push(Effect::Tell { peer, message: FromBroker::Tell { id, answer } });
        }
    }

    fn refuse(&mut self, peer: PeerId, id: u32, code: Code, text: String) {
        if self.close(peer) {
            self.refuse_unopened(peer, id, code, text);
        }
    }

    fn refuse_unopened(&mut self, peer: PeerId, id: u32, code: Code, mut text: String) {
        self.counts.refused += 1;
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        let message = FromBroker::Tell { id, answer: Answer::Refused { code, text } };
        self.effects.push(Effect::Tell { peer, message });
    }

    /// One question less is open; whether the peer still lives.
    fn close(&mut self, peer: PeerId) -> bool {
        self.peers.get_mut(&peer).map(|peer| peer.open = peer.open.saturating_sub(1)).is_some()
    }
}

fn failure(code: Code, text: String) -> Failure {
    Failure { code, text }
}

impl From<Class> for wire::stage::Class {
    fn from(class: Class) -> Self {
        match class {
            Class::Mem => Self::Mem,
            Class::File => Self::File,
            Class::Value => Self::Value,
        }
    }
}

#[cfg(test)]
mod tests;
