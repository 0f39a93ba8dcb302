//! Large numbers: stages, connections, deaths.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use stage::server::Made;
use stage::{Class, Fate};
use wire::stage::{Answer, FromBroker, PROTOCOL, ToBroker};

use crate::common::{alone, skipped};
use crate::room::{Room, grant, make, reader, settings, uri};

/// Raises the soft limit on descriptors to what is needed, if the hard one allows it.
fn descriptors(needed: u64) -> bool {
    let now = getrlimit(Resource::Nofile);
    if now.current.is_none_or(|current| current >= needed) {
        return true;
    }
    let current = now.maximum.map_or(needed, |maximum| maximum.min(needed));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: now.maximum });
    raised.is_ok() && current >= needed
}

#[test]
fn ten_thousand_connections_are_survived() {
    if !descriptors(16_384) {
        return skipped("ten_thousand_connections_are_survived", "16,384 descriptors");
    }
    let (room, producer, consumer) = Room::pair();
    let hello = wire::encode(&ToBroker::Hello { protocol: PROTOCOL }).expect("encode");
    let mut all = Vec::new();
    let mut refused = 0;
    for _ in 0..10_000 {
        let raw = producer.silent();
        // Who has no room is told so and cut off, perhaps before it could say anything.
        let _ = wire::frame::send(raw.socket.as_fd(), &hello, &[]);
        all.push(raw);
    }
    for raw in &all {
        match raw.hear() {
            Some((FromBroker::Welcome { .. }, _)) => {}
            Some((FromBroker::Tell { id: 0, answer: Answer::Refused { .. } }, _)) | None => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 10_000 - 64);
    let others = consumer.client();
    others.list().expect("another payload is served");
    drop(all);
    room.until("they are gone", |room| room.peers() == 1);
    make(&producer.client(), "x", b"fine");
    assert_eq!(others.open("x").expect("open").bytes().expect("bytes"), b"fine");
}

#[test]
fn ten_thousand_stages_live_at_once_and_all_go() {
    const STAGES: u32 = 10_000;
    let _alone = alone();
    if !descriptors(16_384) {
        return skipped("ten_thousand_stages_live_at_once_and_all_go", "16,384 descriptors");
    }
    let room = Room::new(settings(1 << 30));
    let readers = BTreeSet::from([reader()]);
    for first in (0..STAGES).step_by(250) {
        let names: Vec<String> = (first..first + 250).map(|n| format!("o{n}")).collect();
        let outputs: Vec<(&str, Class, u64)> = names.iter().map(|n| (n.as_str(), Class::Mem, 16)).collect();
        let session = room.session(grant("many", &outputs, &[]));
        let client = session.client();
        for name in &names {
            make(&client, name, name.as_bytes());
        }
        drop(client);
        assert_eq!(room.server.end_session(session.id, true).expect("end").committed.len(), 250);
    }
    let last = [("x", "many", "o9999"), ("y", "many", "o0")];
    let client = room.session(grant("reader", &[], &last)).client();
    assert_eq!(client.open("x").expect("open").bytes().expect("bytes"), b"o9999");
    let value = room.server.insert(&uri("many", "v"), Made::Value(vec![1]), &readers);
    assert!(value.expect("ask").expect("insert"));
    for n in 0..STAGES {
        let stage = uri("many", &format!("o{n}"));
        let fate = room.server.ask(move |broker| broker.release(&stage, &reader())).expect("ask");
        assert_eq!(fate, Ok(Fate::Gone));
    }
    let left = room.server.ask(|broker| broker.stages().count()).expect("ask");
    assert_eq!(left, 1, "the value");
}
