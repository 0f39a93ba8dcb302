//! The broker through real sockets: what payloads may do, what they may not, and what it costs them.

#[path = "../common/mod.rs"]
mod common;
mod hostile;
mod many;
mod pressure;
mod room;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use stage::broker::GrantError;
use stage::server::{Content, Made, SessionError};
use stage::{Class, Fate, Lending, MemoryWriter, OutputFile};
use wire::stage::{Answer, Code, Request};

use common::{alone, name, open_dir};
use room::{Room, SOON, grant, listener, make, reader, refused, settings, uri};

#[test]
fn what_one_payload_commits_another_reads_in_place() {
    let (room, producer, consumer) = Room::pair();
    let (producer, consumer) = (producer.client(), consumer.client());
    assert_eq!(producer.payload(), "w/producer");
    make(&producer, "x", b"hello");
    let input = consumer.open("x").expect("open");
    input.populate();
    assert_eq!(input.bytes().expect("bytes"), b"hello");
    assert!(input.is_in_place());
    assert_eq!(room.used(), 5);
}

#[test]
fn a_consumer_waits_while_it_asks_for_something_else() {
    let (_room, producer, consumer) = Room::pair();
    let (producer, consumer) = (producer.client(), consumer.client());
    thread::scope(|scope| {
        let waits = scope.spawn(|| consumer.wait("x", SOON).map(|input| input.bytes().map(<[u8]>::to_vec)));
        producer.put("v", b"early").expect("put");
        let value = consumer.wait("v", SOON).expect("value");
        assert_eq!(value.bytes().expect("bytes"), b"early");
        assert!(
            consumer.list().expect("list").inputs.iter().any(|row| row.name == "v" && row.there.is_some())
        );
        make(&producer, "x", b"late");
        assert_eq!(waits.join().expect("thread").expect("input").expect("bytes"), b"late");
    });
}

#[test]
fn an_output_is_written_by_copy_through_a_window_or_through_its_descriptor() {
    let (_room, producer, consumer) = Room::pair();
    let (producer, consumer) = (producer.client(), consumer.client());
    let mut output = producer.create("x", 10).expect("create");
    write!(output, "one").expect("write");
    output.write_at(3, b"two").expect("write");
    assert!(output.write_at(8, b"beyond").is_err());
    assert!(output.write_at(u64::MAX, b"beyond").is_err());
    {
        let window = output.window().expect("map");
        assert_eq!(window.len(), 10);
        assert!(!window.as_mut_ptr().is_null());
    }
    assert_eq!(output.commit_first(6).expect("commit"), 6);
    assert_eq!(consumer.open("x").expect("open").bytes().expect("bytes"), b"onetwo");
}

#[test]
fn an_empty_output_is_a_stage() {
    let (_room, producer, consumer) = Room::pair();
    let (producer, consumer) = (producer.client(), consumer.client());
    make(&producer, "x", b"");
    let input = consumer.open("x").expect("open");
    assert!(input.is_empty() && input.bytes().expect("bytes").is_empty());
    let mut output = producer.create("y", 100).expect("create");
    output.commit_first(0).expect("commit");
    assert!(consumer.open("y").expect("open").is_empty());
}

#[test]
fn the_broker_pays_for_the_pages_before_it_lends_them() {
    let (room, producer, _consumer) = Room::pair();
    let client = producer.client();
    let output = client.create("x", 3 << 20).expect("create");
    assert_eq!(room.used(), 3 << 20);
    let stat = rustix::fs::fstat(output.fd().expect("fd")).expect("stat");
    assert_eq!((stat.st_size, stat.st_blocks >= 6 << 10), (3 << 20, true));
    // Not a page more than was asked for, but where the node gives huge pages to all, and beyond the end.
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    let generous = setting.is_ok_and(|text| text.contains("[always]") || text.contains("[force]"));
    assert!(generous || stat.st_blocks == 6 << 10, "{}", stat.st_blocks);
    drop(output);
    room.until("it is given back", |room| room.used() == 0);
    assert_eq!(room.counts().dropped, 0, "what is abandoned is not counted as lost");
}

#[test]
fn huge_pages_are_had_or_the_reason_is_said() {
    let (_room, producer, consumer) = Room::pair();
    let client = producer.client();
    let mut output = client.create_huge("x", 4 << 20).expect("create");
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    let has = setting.is_ok_and(|text| !text.contains("[never]") && !text.contains("[deny]"));
    assert_eq!(output.note().is_none(), has, "{:?}", output.note());
    output.commit_first((4 << 20) - 1).expect("any size will do");
    assert_eq!(consumer.client().open("x").expect("open").len(), (4 << 20) - 1);
}

#[test]
fn a_value_travels_inline_and_has_a_limit() {
    let (room, producer, consumer) = Room::pair();
    let (producer, consumer) = (producer.client(), consumer.client());
    assert!(producer.put("v", &vec![7; 65_537]).is_err());
    producer.put("v", &vec![7; 65_536]).expect("put");
    let input = consumer.open("v").expect("open");
    assert_eq!((input.bytes().expect("bytes"), input.fd().is_none()), (&vec![7; 65_536][..], true));
    refused(producer.put("v", b"again"), Code::Exists);
    assert_eq!(room.used(), 65_536);
}

#[test]
fn what_is_not_declared_or_not_there_is_refused() {
    let (_room, producer, consumer) = Room::pair();
    let (producer, consumer) = (producer.client(), consumer.client());
    refused(producer.create("other", 1), Code::Undeclared);
    refused(producer.put("other", b""), Code::Undeclared);
    refused(producer.create("x", (32 << 20) + 1), Code::TooLarge);
    refused(producer.create("v", 1), Code::WrongClass);
    refused(producer.put("x", b""), Code::WrongClass);
    refused(producer.open("x"), Code::Undeclared);
    refused(consumer.open("other"), Code::Undeclared);
    refused(consumer.open("x"), Code::NotThere);
    refused(consumer.wait("x", Duration::from_millis(5)), Code::NotThere);
    assert!(producer.create("../x", 1).expect_err("a name").to_string().contains("create output"));
}

#[test]
fn an_input_that_was_released_is_gone() {
    let (room, producer, consumer) = Room::pair();
    make(&producer.client(), "x", b"hello");
    room.server.end_session(producer.id, true).expect("end");
    let client = consumer.client();
    let kept = client.open("x").expect("open");
    let fate = room.server.ask(|broker| broker.release(&uri("producer", "x"), &reader())).expect("ask");
    assert_eq!(fate, Ok(Fate::Gone));
    refused(client.open("x"), Code::Gone);
    refused(client.wait("x", SOON), Code::Gone);
    assert_eq!(kept.bytes().expect("bytes"), b"hello", "a mapping outlives the name");
    assert_eq!(room.used(), 5, "and counts while its holder lives");
    room.server.end_session(consumer.id, true).expect("end");
    assert_eq!(room.used(), 0);
    let mut again = grant("late", &[], &[("x", "producer", "x")]);
    again.inputs.iter_mut().for_each(|input| input.live = false);
    refused(room.session(again).client().wait("x", SOON), Code::Gone);
}

#[test]
fn an_output_is_made_once_by_whoever_created_it() {
    let (_room, producer, _consumer) = Room::pair();
    let (one, two) = (producer.client(), producer.raw());
    let mut output = one.create("x", 4).expect("create");
    refused(one.create("x", 4), Code::Exists);
    let commit = || Request::Commit { output: "x".into(), bytes: 4 };
    let no = |answer: Answer, code: Code| match answer {
        Answer::Refused { code: given, text } => assert_eq!(given, code, "{text}"),
        other => panic!("{other:?}"),
    };
    no(two.ask(1, commit()).0, Code::NotCreated);
    no(two.ask(2, Request::Abandon { output: "x".into() }).0, Code::NotCreated);
    no(two.ask(3, Request::Commit { output: "y".into(), bytes: 0 }).0, Code::NotCreated);
    no(two.ask(4, Request::Commit { output: "z".into(), bytes: 0 }).0, Code::Undeclared);
    output.commit().expect("commit");
    no(two.ask(5, commit()).0, Code::Exists);
    refused(one.create("x", 4), Code::Exists);
}

#[test]
fn a_commit_of_more_than_was_created_is_refused_and_a_retry_passes() {
    let (_room, producer, _consumer) = Room::pair();
    let client = producer.client();
    let mut output = client.create("x", 4).expect("create");
    let lost = output.commit_first(5).expect_err("too much");
    assert_eq!(lost.code(), Some(Code::TooLarge));
    output.commit().expect("commit");
}

#[test]
fn a_commit_while_it_is_mapped_for_writing_is_busy() {
    let _alone = alone();
    let (_room, producer, consumer) = Room::pair();
    let client = producer.client();
    let mut output = client.create("x", 4096).expect("create");
    let map = memmap2::MmapOptions::new().map_raw(&output.fd().expect("fd")).expect("map");
    let lost = output.commit().expect_err("mapped");
    assert_eq!(lost.code(), Some(Code::Busy), "{lost}");
    assert!(lost.to_string().ends_with("unmap it and commit again"), "{lost}");
    drop(map);
    output.commit().expect("free now");
    assert_eq!(consumer.client().open("x").expect("open").len(), 4096);
}

#[test]
fn memory_that_its_producer_cut_is_refused() {
    let (_room, producer, _consumer) = Room::pair();
    let client = producer.client();
    let mut output = client.create("x", 8192).expect("create");
    rustix::fs::ftruncate(output.fd().expect("fd"), 4096).expect("cut");
    assert!(rustix::fs::ftruncate(output.fd().expect("fd"), 8192).is_err(), "and can't grow again");
    let lost = output.commit().expect_err("too small");
    assert_eq!(lost.code(), Some(Code::TooSmall));
    output.commit_first(4096).expect("what is there");
}

#[test]
fn quota_is_asked_before_anything_is_allocated() {
    let room = Room::new(settings(1 << 20));
    let (producer, _) = room.producer_and_consumer();
    let client = producer.client();
    let kept = client.create("x", 1 << 19).expect("create");
    let text = refused(client.create("y", (1 << 19) + 1), Code::OverBudget);
    assert!(text.contains("524288 of 1048576 are free"), "{text}");
    drop(kept);
    room.until("it is given back", |room| room.used() == 0);
    client.create("y", 1 << 20).expect("fits");
}

#[test]
fn the_end_of_a_session_keeps_or_drops_what_was_committed_and_drops_the_rest() {
    for keep in [true, false] {
        let (room, producer, consumer) = Room::pair();
        let client = producer.client();
        make(&client, "x", b"hello");
        client.put("v", b"value").expect("put");
        let half = client.create("y", 1 << 20).expect("create");
        let ended = room.server.end_session(producer.id, keep).expect("end");
        let committed = [(uri("producer", "v"), Class::Value, 5), (uri("producer", "x"), Class::Mem, 5)];
        assert_eq!((ended.committed, ended.dropped), (committed.to_vec(), 1));
        assert!(client.list().is_err(), "the connection has ended");
        drop(half);
        room.until("the half-written one is gone", |room| room.used() == if keep { 10 } else { 0 });
        assert_eq!(room.counts().dropped, 1);
        assert_eq!(consumer.client().open("x").is_ok(), keep);
        assert_eq!(room.server.reader(&uri("producer", "x"), None).expect("ask").is_some(), keep);
    }
}

#[test]
fn those_that_wait_for_an_output_that_will_never_come_are_told() {
    let (room, producer, consumer) = Room::pair();
    let (first, second) = (consumer.raw(), consumer.client());
    first.say(&wire::stage::ToBroker::Ask {
        id: 1,
        request: Request::Open { input: "x".into(), wait_ms: 60_000 },
    });
    refused(second.open("x"), Code::NotThere);
    room.server.end_session(producer.id, true).expect("end");
    let told = first.hear().expect("an answer").0;
    assert!(format!("{told:?}").contains("Gone"), "{told:?}");
}

#[test]
fn stages_that_the_pilot_made_by_path_are_read_through_the_client_library_too() {
    let _alone = alone();
    let room = Room::new(settings(1 << 20));
    let inputs = [("f", "p", "file"), ("m", "p", "memory"), ("v", "p", "value")];
    let client = room.session(grant("consumer", &[], &inputs)).client();
    let readers = BTreeSet::from([reader()]);
    let insert = |output: &str, made: Made| {
        room.server.insert(&uri("p", output), made, &readers).expect("ask").expect("insert")
    };
    let memory = MemoryWriter::create(&name("memory"), Lending::ByPath).expect("memory");
    File::from(memory.lend().try_clone_to_owned().expect("dup")).write_all(b"in memory").expect("write");
    assert!(insert("memory", Made::Memory(memory.commit(100).expect("commit"))));
    assert!(insert("value", Made::Value(b"inline".to_vec())));
    let (out, stages) = (room.folder.path().join("out"), room.folder.path().join("stages"));
    for folder in [&out, &stages] {
        std::fs::create_dir(folder).expect("folder");
    }
    let file = OutputFile::prepare(open_dir(&out).as_fd(), &name("file"), 0o600).expect("prepare");
    std::fs::write(out.join("file"), b"in a file").expect("write");
    let into = open_dir(&stages);
    let done = file.commit(open_dir(&out).as_fd(), 100, into.as_fd(), &name("file")).expect("commit");
    let made = Made::File { dir: Arc::new(into.into()), path: "file".into(), bytes: done.bytes };
    assert!(insert("file", made));

    for (input, bytes, in_place) in
        [("f", &b"in a file"[..], false), ("m", b"in memory", true), ("v", b"inline", false)]
    {
        let input = client.open(input).expect("open");
        assert_eq!((input.bytes().expect("bytes"), input.is_in_place()), (bytes, in_place));
    }
    let content = room.server.reader(&uri("p", "file"), None).expect("ask").expect("there").expect("open");
    let Content::File(fd) = content else { panic!("{content:?}") };
    let mut text = String::new();
    File::from(fd).read_to_string(&mut text).expect("read");
    assert_eq!(text, "in a file");
    assert!(room.server.ask(|broker| broker.remove(&uri("p", "file"))).expect("ask"));
    assert!(stages.join("file").exists(), "the pilot's file is the pilot's to remove");
    refused(client.open("f"), Code::NotThere);
}

#[test]
fn a_socket_may_lie_deeper_than_an_address_is_long() {
    let (room, _producer, _consumer) = Room::pair();
    let deep = room.folder.path().join("d".repeat(200));
    std::fs::create_dir(&deep).expect("folder");
    let folder = open_dir(&deep);
    let short = std::path::PathBuf::from(format!("/proc/self/fd/{}/socket", folder.as_raw_fd()));
    room.server.open_session(listener(&short), grant("deep", &[], &[])).expect("session");
    let client = stage::client::Client::connect(&deep.join("socket")).expect("connect");
    assert_eq!(client.payload(), "w/deep");
}

#[test]
fn a_grant_that_can_not_be_is_refused() {
    let room = Room::new(settings(1 << 20));
    let path = room.folder.path().join("refused");
    let refused = |grant| match room.server.open_session(listener(&path), grant) {
        Err(SessionError::Grant(error)) => {
            std::fs::remove_file(&path).expect("socket");
            error
        }
        other => panic!("{other:?}"),
    };
    let twice = [("x", Class::Mem, 1), ("x", Class::Mem, 1)];
    assert!(matches!(refused(grant("p", &twice, &[])), GrantError::Twice { .. }));
    assert!(matches!(refused(grant("p", &[("x", Class::File, 1)], &[])), GrantError::Class { .. }));
    let mut many = grant("p", &[], &[]);
    many.inputs = (0..257).flat_map(|n| grant("p", &[], &[(&format!("i{n}"), "q", "x")]).inputs).collect();
    assert!(matches!(refused(many), GrantError::TooMany { .. }));
}
