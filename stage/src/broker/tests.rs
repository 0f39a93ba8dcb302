//! The broker against random payloads, random effects, and what must hold whatever they do.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use wire::stage::{Answer, Code, FromBroker, PROTOCOL, Request, ToBroker};

use super::*;
use crate::{Budget, Medium, Reservation};

fn name(text: &str) -> StageName {
    StageName::new(text).expect("name")
}

fn grant(payload: &str, outputs: &[&str], inputs: &[(&str, bool)]) -> Grant {
    let (workflow, payload) = (name("w"), name(payload));
    let made = |output: &&str| GrantOutput {
        name: name(output),
        class: if *output == "v" { Class::Value } else { Class::Mem },
        max_bytes: 60,
        readers: BTreeSet::from([name("c")]),
    };
    let uri = |output: &str| StageUri { workflow: name("w"), payload: name("p"), output: name(output) };
    let read = |(input, live): &(&str, bool)| GrantInput { name: name(input), uri: uri(input), live: *live };
    Grant {
        workflow,
        payload,
        outputs: outputs.iter().map(made).collect(),
        inputs: inputs.iter().map(read).collect(),
    }
}

fn limits(memory_bytes: u64, can_spill: bool) -> Limits {
    let budget = Budget { memory_bytes, disk_bytes: 1000 };
    Limits { can_spill, session_peers_max: 3, open_max: 4, ..Limits::new(budget) }
}

/// What a server would hold and owe.
struct World {
    broker: Broker,
    sessions: [SessionId; 2],
    peers: Vec<(PeerId, bool)>,
    /// Questions without an answer.
    open: BTreeSet<(PeerId, u32)>,
    /// Objects that a server would have.
    alive: BTreeSet<ObjectId>,
    work: Vec<Effect>,
    /// Reservations of the pilot's that wait, and those that it has.
    waiting: BTreeMap<Ticket, StageUri>,
    reserved: BTreeSet<StageUri>,
    last: u32,
    now: u64,
}

impl World {
    fn new(limits: Limits) -> Self {
        let mut broker = Broker::new(limits);
        let sessions = Self::sessions(&mut broker).map(|session| session.expect("session"));
        let (peers, work) = (Vec::new(), Vec::new());
        let (open, alive) = (BTreeSet::new(), BTreeSet::new());
        let (waiting, reserved) = (BTreeMap::new(), BTreeSet::new());
        Self { broker, sessions, peers, open, alive, work, waiting, reserved, last: 0, now: 0 }
    }

    fn sessions(broker: &mut Broker) -> [Result<SessionId, GrantError>; 2] {
        let outputs = ["a", "b", "v"];
        let inputs = [("a", true), ("b", true), ("v", false)];
        [broker.open_session(grant("p", &outputs, &[])), broker.open_session(grant("c", &[], &inputs))]
    }

    fn connect(&mut self, which: usize) -> Option<PeerId> {
        let peer = self.broker.came(self.sessions[which]).ok()?;
        self.peers.push((peer, which == 0));
        self.broker.said(peer, ToBroker::Hello { protocol: PROTOCOL }, self.now);
        self.apply();
        Some(peer)
    }

    fn ask(&mut self, peer: PeerId, request: Request) -> u32 {
        self.last += 1;
        self.open.insert((peer, self.last));
        self.broker.said(peer, ToBroker::Ask { id: self.last, request }, self.now);
        self.apply();
        self.last
    }

    fn gone(&mut self, peer: PeerId) {
        self.open.retain(|(of, _)| *of != peer);
        self.peers.retain(|(of, _)| *of != peer);
        self.broker.gone(peer);
        self.apply();
    }

    fn answered(&mut self, peer: PeerId, id: u32) {
        assert!(self.open.remove(&(peer, id)), "{peer:?} was answered {id}, which is not open");
    }

    fn apply(&mut self) {
        for effect in self.broker.effects() {
            match effect {
                Effect::Tell { peer, message: FromBroker::Tell { id, .. } } if id != 0 => {
                    self.answered(peer, id)
                }
                Effect::Tell { .. } => {}
                Effect::Lend { peer, id, object, .. } | Effect::Open { peer, id, object, .. } => {
                    assert!(self.alive.contains(&object));
                    self.answered(peer, id);
                }
                Effect::Keep { object, .. } => assert!(self.alive.insert(object)),
                Effect::Allocate { object, .. } => {
                    assert!(self.alive.insert(object));
                    self.work.push(effect);
                }
                Effect::Seal { object, .. } | Effect::Spill { object } => {
                    assert!(self.alive.contains(&object));
                    self.work.push(effect);
                }
                Effect::Settle { object, .. } => assert!(self.alive.contains(&object)),
                Effect::Moved { uri, bytes } => {
                    let found = self.broker.lookup(&uri).expect("it is there");
                    assert_eq!((found.class, found.bytes), (Class::File, bytes));
                }
                Effect::Reserved { ticket, result } => {
                    let uri = self.waiting.remove(&ticket).expect("it is answered once");
                    if result.is_ok() {
                        self.reserved.insert(uri);
                    }
                }
                Effect::Free { object } | Effect::Revoke { object, .. } => {
                    assert!(self.alive.remove(&object), "{object:?} is given back once");
                }
                Effect::Cut { peer } => {
                    self.open.retain(|(of, _)| *of != peer);
                    self.peers.retain(|(of, _)| *of != peer);
                }
            }
        }
    }

    /// A worker reports; late reports about what is gone are told too.
    fn done(&mut self, which: usize, well: bool) {
        if self.work.is_empty() {
            return;
        }
        let failure = || Failure { code: Code::Busy, text: "not now".into() };
        match self.work.remove(which % self.work.len()) {
            Effect::Allocate { object, .. } => {
                self.broker.allocated(object, if well { Ok(None) } else { Err(failure()) });
            }
            Effect::Seal { object, bytes, .. } => {
                self.broker
                    .sealed(object, if well { Ok(Sealed { bytes, seal_us: 0 }) } else { Err(failure()) });
            }
            Effect::Spill { object } => {
                self.broker.spilled(object, if well { Ok(()) } else { Err(failure()) })
            }
            other => panic!("no work: {other:?}"),
        }
        self.apply();
    }

    /// The pilot makes room for an output that it lends by path.
    fn reserve(&mut self, output: &str, max_bytes: u64) {
        let uri = StageUri { workflow: name("w"), payload: name("path"), output: name(output) };
        let (class, medium) = (Class::Mem, Medium::Memory);
        let readers = BTreeSet::from([name("c")]);
        let asked = Reservation { uri: uri.clone(), class, medium, max_bytes, readers };
        match self.broker.reserve_or_wait(asked) {
            Ok(Some(ticket)) => drop(self.waiting.insert(ticket, uri)),
            Ok(None) => drop(self.reserved.insert(uri)),
            Err(_) => {}
        }
        self.apply();
    }

    fn unreserve(&mut self, output: &str) {
        let uri = StageUri { workflow: name("w"), payload: name("path"), output: name(output) };
        assert_eq!(self.broker.remove(&uri), self.reserved.remove(&uri));
        self.apply();
        assert!(!self.waiting.values().any(|waits| *waits == uri), "it waits no more");
    }

    fn end(&mut self, which: usize, keep: bool) {
        let _ = self.broker.end_session(self.sessions[which], keep);
        self.apply();
    }

    fn used(&self, medium: Medium) -> u64 {
        self.broker.ledger().used_bytes(medium)
    }

    /// What holds between any two events.
    fn check(&self) {
        let broker = &self.broker;
        let reserved = broker.ledger().objects().count();
        let known = broker.stages.len() + broker.making.len() + self.reserved.len();
        assert_eq!(reserved, known, "the ledger has what there is");
        let spills = broker.pressure_is_worked_on();
        assert!(self.waiting.is_empty() || spills, "nobody waits for nothing");
        for output in broker.sessions.values().flat_map(|session| session.outputs.values()) {
            let owner = output.making.owner();
            assert!(
                owner.is_none_or(|owner| broker.peers.contains_key(&owner)),
                "{output:?} has an owner that lives"
            );
            assert!(output.making.object().is_none_or(|(object, _)| broker.making.contains_key(&object)));
        }
        assert_eq!(self.peers.len(), broker.peers.len());
        // Lingering memory counts too, and is what alone may exceed the budget.
        let lingering: u64 = broker.lingering.values().map(|(bytes, _)| *bytes).sum();
        assert!(self.used(Medium::Memory) <= 100 + lingering);
    }

    /// Everyone ends, and everything is removed: nothing may be left.
    fn close(mut self) {
        while !self.work.is_empty() {
            self.done(0, true);
        }
        self.now = u64::MAX;
        self.broker.tick(self.now);
        self.apply();
        assert!(self.open.is_empty(), "unanswered: {:?}", self.open);
        self.end(0, true);
        self.end(1, true);
        let _ = self.broker.end_workflow(&name("w"));
        self.reserved.clear();
        self.apply();
        while !self.work.is_empty() {
            self.done(0, true);
        }
        assert!(self.waiting.is_empty() && self.reserved.is_empty(), "unanswered: {:?}", self.waiting);
        assert_eq!((self.used(Medium::Memory), self.used(Medium::Disk)), (0, 0));
        assert!(self.alive.is_empty() && self.broker.making.is_empty() && self.broker.lingering.is_empty());
        assert_eq!((self.broker.peers(), self.broker.deadline_ms()), (0, None));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Connect(usize),
    Ask(usize, Request),
    Gone(usize),
    Done(usize, bool),
    Tick(u64),
    Release(&'static str),
    Remove(&'static str),
    Restart(usize, bool),
    Reserve(&'static str, u64),
    Unreserve(&'static str),
}

fn step() -> impl Strategy<Value = Step> {
    let output = prop::sample::select(vec!["a", "b", "v", "none"]);
    let path = prop::sample::select(vec!["x", "y"]);
    let request = (0_usize..6, output.clone(), 0_u64..70).prop_map(|(kind, output, n)| {
        let output = output.to_owned();
        match kind {
            0 => Request::Create { output, bytes: n, huge_pages: false },
            1 => Request::Commit { output, bytes: n.min(30) },
            2 => Request::Abandon { output },
            3 => Request::Open { input: output, wait_ms: n % 3 * 100 },
            4 => Request::Put { output, value: vec![0; usize::try_from(n).unwrap_or(0)] },
            _ => Request::List,
        }
    });
    prop_oneof![
        2 => (0_usize..2).prop_map(Step::Connect),
        8 => (any::<usize>(), request).prop_map(|(peer, request)| Step::Ask(peer, request)),
        1 => any::<usize>().prop_map(Step::Gone),
        6 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(which, well)| Step::Done(which, well)),
        1 => (0_u64..200).prop_map(Step::Tick),
        1 => output.clone().prop_map(Step::Release),
        1 => output.prop_map(Step::Remove),
        1 => (0_usize..2, any::<bool>()).prop_map(|(which, keep)| Step::Restart(which, keep)),
        2 => (path.clone(), 0_u64..120).prop_map(|(output, bytes)| Step::Reserve(output, bytes)),
        1 => path.prop_map(Step::Unreserve),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn every_question_is_answered_once_and_nothing_is_left(
        steps in prop::collection::vec(step(), 0..120),
        can_spill in any::<bool>(),
    ) {
        let mut world = World::new(limits(100, can_spill));
        for step in steps {
            match step {
                Step::Connect(which) => drop(world.connect(which)),
                Step::Ask(which, request) if !world.peers.is_empty() => {
                    let peer = world.peers[which % world.peers.len()].0;
                    world.ask(peer, request);
                }
                Step::Gone(which) if !world.peers.is_empty() => {
                    let peer = world.peers[which % world.peers.len()].0;
                    world.gone(peer);
                }
                Step::Ask(..) | Step::Gone(_) => {}
                Step::Done(which, well) => world.done(which, well),
                Step::Tick(more) => {
                    world.now += more;
                    world.broker.tick(world.now);
                    world.apply();
                }
                Step::Release(output) => {
                    let uri = StageUri { workflow: name("w"), payload: name("p"), output: name(output) };
                    let _ = world.broker.release(&uri, &name("c"));
                    world.apply();
                }
                Step::Remove(output) => {
                    let uri = StageUri { workflow: name("w"), payload: name("p"), output: name(output) };
                    // A pilot removes stages, not what its payloads are writing.
                    if world.broker.lookup(&uri).is_some() {
                        world.broker.remove(&uri);
                        world.apply();
                    }
                }
                Step::Reserve(output, bytes) => world.reserve(output, bytes),
                Step::Unreserve(output) => world.unreserve(output),
                Step::Restart(which, keep) => {
                    world.end(which, keep);
                    let fresh = World::sessions(&mut world.broker);
                    let (kept, unused) = if which == 0 { (0, 1) } else { (1, 0) };
                    let fresh = fresh.map(|session| session.expect("session"));
                    let _ = world.broker.end_session(fresh[unused], false);
                    world.sessions[which] = fresh[kept];
                    world.apply();
                }
            }
            world.check();
        }
        world.close();
    }
}

/// A stage of 60 of 100 bytes that may be spilled, and a Create of 60 that waits for it.
fn crowded() -> (World, PeerId) {
    let mut world = World::new(limits(100, true));
    let maker = world.connect(0).expect("peer");
    world.ask(maker, Request::Create { output: "a".into(), bytes: 60, huge_pages: false });
    world.done(0, true);
    world.ask(maker, Request::Commit { output: "a".into(), bytes: 60 });
    world.done(0, true);
    world.end(0, true);
    let session = world.broker.open_session(grant("q", &["a", "b"], &[])).expect("session");
    world.sessions[0] = session;
    let peer = world.connect(0).expect("peer");
    let waits = world.ask(peer, Request::Create { output: "a".into(), bytes: 60, huge_pages: false });
    assert!(world.open.contains(&(peer, waits)), "it waits");
    assert!(matches!(world.work.as_slice(), [Effect::Spill { .. }]));
    (world, peer)
}

#[test]
fn a_create_that_waits_for_room_goes_with_its_connection() {
    let (mut world, peer) = crowded();
    world.gone(peer);
    world.done(0, true);
    assert!(world.work.is_empty(), "{:?}", world.work);
    world.check();
    world.close();
}

#[test]
fn a_create_waits_until_a_stage_was_moved() {
    let (mut world, _) = crowded();
    world.done(0, true);
    assert!(matches!(world.work.as_slice(), [Effect::Allocate { bytes: 60, .. }]));
    assert_eq!((world.used(Medium::Memory), world.used(Medium::Disk)), (60, 60));
    world.close();
}

#[test]
fn a_reservation_waits_until_a_stage_was_moved_and_is_refused_when_none_can_be() {
    for well in [true, false] {
        let (mut world, peer) = crowded();
        world.gone(peer);
        world.reserve("x", 70);
        assert_eq!((world.waiting.len(), world.reserved.len()), (1, 0));
        world.done(0, well);
        assert_eq!((world.waiting.len(), world.reserved.len()), (0, usize::from(well)));
        world.check();
        // More than there is in all is refused at once.
        world.reserve("y", 101);
        assert!(world.waiting.is_empty() && world.reserved.len() == usize::from(well));
        world.close();
    }
}

#[test]
fn a_reservation_that_waits_is_taken_back_with_its_output() {
    let (mut world, _) = crowded();
    world.reserve("x", 70);
    world.unreserve("x");
    world.done(0, true);
    assert!(world.reserved.is_empty());
    world.close();
}

#[test]
fn a_late_report_about_something_that_is_gone_changes_nothing() {
    let mut world = World::new(limits(100, false));
    let peer = world.connect(0).expect("peer");
    world.ask(peer, Request::Create { output: "a".into(), bytes: 10, huge_pages: false });
    world.gone(peer);
    assert_eq!((world.used(Medium::Memory), world.broker.counts().dropped), (0, 1));
    world.done(0, true);
    assert_eq!(world.used(Medium::Memory), 0);
    world.close();
}

#[test]
fn memory_off_the_ledger_counts_until_the_last_that_may_hold_it_ends() {
    let mut world = World::new(limits(100, false));
    let [maker, reader] = [0, 1].map(|which| world.connect(which).expect("peer"));
    world.ask(maker, Request::Create { output: "a".into(), bytes: 10, huge_pages: false });
    world.done(0, true);
    world.ask(maker, Request::Commit { output: "a".into(), bytes: 10 });
    world.done(0, true);
    world.ask(reader, Request::Open { input: "a".into(), wait_ms: 0 });
    let _ = world.broker.end_workflow(&name("w"));
    world.apply();
    assert_eq!(world.used(Medium::Memory), 10);
    world.end(0, true);
    assert_eq!(world.used(Medium::Memory), 10, "its reader may still have it mapped");
    world.end(1, true);
    assert_eq!(world.used(Medium::Memory), 0);
    world.close();
}

#[test]
fn an_output_that_the_pilot_made_room_for_keeps_it_whatever_clients_do() {
    let mut world = World::new(limits(100, false));
    let uri = StageUri { workflow: name("w"), payload: name("p"), output: name("a") };
    let asked = Reservation {
        uri: uri.clone(),
        class: Class::Mem,
        medium: Medium::Memory,
        max_bytes: 60,
        readers: BTreeSet::from([name("c")]),
    };
    assert!(world.broker.end_session(world.sessions[0], true).committed.is_empty());
    world.broker.reserve(asked.clone()).expect("room");
    let other =
        Reservation { uri: StageUri { output: name("other"), ..uri.clone() }, max_bytes: 40, ..asked };
    world.broker.reserve(other.clone()).expect("room");
    world.sessions[0] = world.broker.open_session(grant("p", &["a", "b"], &[])).expect("session");
    let peer = world.connect(0).expect("peer");
    for request in [
        Request::Create { output: "a".into(), bytes: 60, huge_pages: false },
        Request::Abandon { output: "a".into() },
        Request::Create { output: "a".into(), bytes: 50, huge_pages: false },
    ] {
        world.ask(peer, request);
        world.done(0, true);
        assert_eq!(world.used(Medium::Memory), 100);
    }
    world.ask(peer, Request::Commit { output: "a".into(), bytes: 20 });
    world.done(0, true);
    assert_eq!(
        (world.used(Medium::Memory), world.broker.lookup(&uri).map(|found| found.bytes)),
        (60, Some(20))
    );
    let ended = world.broker.end_session(world.sessions[0], false);
    world.apply();
    assert_eq!(ended.committed, [(uri, Class::Mem, 20)]);
    assert!(world.broker.remove(&other.uri));
    assert_eq!((world.used(Medium::Memory), world.alive.len()), (0, 0));
}

#[test]
fn refusals_are_for_the_one_who_asked() {
    let mut world = World::new(limits(100, false));
    let peer = world.connect(0).expect("peer");
    world.broker.said(
        peer,
        ToBroker::Ask { id: 9, request: Request::Open { input: "a".into(), wait_ms: 0 } },
        0,
    );
    let effects = world.broker.effects();
    let [
        Effect::Tell { peer: to, message: FromBroker::Tell { id: 9, answer: Answer::Refused { code, .. } } },
    ] = &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!((*to, *code), (peer, Code::Undeclared));
}
