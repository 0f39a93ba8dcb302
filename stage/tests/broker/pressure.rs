//! Memory pressure: stages move to files, and nobody notices.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use stage::server::{Content, Settings, Watch};
use stage::{Budget, Class, Medium, Reservation, ReserveError, StageUri, lend_open};
use wire::stage::Code;

use crate::common::{name, open_dir};
use crate::room::{Room, SOON, budget, grant, make, refused, uri};

const MIB: u64 = 1 << 20;

struct Spilling {
    room: Room,
    folder: tempfile::TempDir,
    moved: Receiver<(StageUri, u64)>,
}

impl Spilling {
    fn new(memory_bytes: u64, disk_bytes: u64) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let mut limits = budget(memory_bytes);
        limits.budget = Budget { memory_bytes, disk_bytes };
        let mut settings = Settings::new(limits);
        settings.spill_dir = Some(OwnedFd::from(open_dir(folder.path())));
        let (tell, moved) = std::sync::mpsc::sync_channel(64);
        settings.moved = Some(Watch::new(move |uri, bytes| drop(tell.send((uri.clone(), bytes)))));
        Self { room: Room::new(settings), folder, moved }
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.folder.path()).expect("list").count()
    }

    /// A payload makes `x` of that many bytes, each of them `byte`, and ends.
    fn made(&self, payload: &str, bytes: u64, byte: u8) {
        let session = self.room.session(grant(payload, &[("x", Class::Mem, bytes)], &[]));
        make(&session.client(), "x", &vec![byte; usize::try_from(bytes).expect("size")]);
        self.room.server.end_session(session.id, true).expect("end");
    }

    fn disk(&self) -> u64 {
        self.room.server.ask(|broker| broker.ledger().used_bytes(Medium::Disk)).expect("ask")
    }
}

#[test]
fn the_oldest_stages_move_to_files_and_read_the_same() {
    let spilling = Spilling::new(10 * MIB, 1 << 40);
    for (payload, byte) in [("a", 1), ("b", 2), ("c", 3)] {
        spilling.made(payload, 3 * MIB, byte);
    }
    // 9 of 10 MiB are more than four fifths: the oldest goes.
    spilling.room.until("one is moved", |_| spilling.files() == 1 && spilling.disk() == 3 * MIB);
    spilling.room.until("and its memory free", |room| room.used() == 6 * MIB);
    let file = std::fs::read_dir(spilling.folder.path()).expect("list").next().expect("file").expect("file");
    assert_eq!(file.metadata().expect("stat").mode() & 0o777, 0o444);
    let client = spilling.room.session(grant("r", &[], &[("a", "a", "x"), ("c", "c", "x")])).client();
    for (input, byte, in_place) in [("a", 1, false), ("c", 3, true)] {
        let input = client.open(input).expect("open");
        assert_eq!(input.is_in_place(), in_place);
        assert!(input.len() == 3 * MIB && input.bytes().expect("bytes").iter().all(|b| *b == byte));
    }
    assert!(spilling.room.server.ask(|broker| broker.remove(&uri("a", "x"))).expect("ask"));
    spilling.room.until("its file is gone", |_| spilling.files() == 0 && spilling.disk() == 0);
}

#[test]
fn a_stage_that_someone_may_have_mapped_stays_in_memory() {
    let spilling = Spilling::new(10 * MIB, 1 << 40);
    spilling.made("a", 4 * MIB, 1);
    let reads = spilling.room.session(grant("r", &[], &[("a", "a", "x")]));
    let client = reads.client();
    let input = client.open("a").expect("open");
    spilling.made("b", 3 * MIB, 2);
    spilling.made("c", 3 * MIB, 3);
    // The oldest is held, so that the next one goes.
    spilling.room.until("another is moved", |room| room.used() == 7 * MIB);
    assert!(input.is_in_place() && client.open("a").expect("open").is_in_place());
    drop((input, client));
    spilling.room.server.end_session(reads.id, true).expect("end");
    spilling.made("d", 2 * MIB, 4);
    spilling.room.until("with its reader gone it may go", |room| room.used() == 5 * MIB);
}

#[test]
fn a_create_waits_for_the_room_that_spilling_makes() {
    let spilling = Spilling::new(8 * MIB, 1 << 40);
    spilling.made("a", 3 * MIB, 1);
    spilling.made("b", 3 * MIB, 2);
    spilling.made("c", 8 * MIB, 3);
    // The third fills all of it, so that it is moved too, sooner or later.
    assert!([6 * MIB, 14 * MIB].contains(&spilling.disk()), "{}", spilling.disk());
    let session = spilling.room.session(grant("r", &[("x", Class::Mem, 9 * MIB)], &[]));
    refused(session.client().create("x", 9 * MIB), Code::OverBudget);
}

#[test]
fn a_create_is_refused_when_the_disk_has_no_room_either() {
    let spilling = Spilling::new(8 * MIB, 2 * MIB);
    spilling.made("a", 6 * MIB, 1);
    let session = spilling.room.session(grant("r", &[("x", Class::Mem, 8 * MIB)], &[]));
    refused(session.client().create("x", 3 * MIB), Code::OverBudget);
    assert_eq!((spilling.files(), spilling.room.used()), (0, 6 * MIB));
    make(&session.client(), "x", &[1; 1024]);
}

#[test]
fn what_was_spilled_goes_with_the_broker() {
    let spilling = Spilling::new(4 * MIB, 1 << 40);
    spilling.made("a", 4 * MIB, 1);
    spilling.room.until("it is moved", |_| spilling.files() == 1 && spilling.disk() > 0);
    let Spilling { room, folder, .. } = spilling;
    drop(room);
    assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 0);
}

#[test]
fn readers_that_were_released_before_the_commit_leave_nothing() {
    let spilling = Spilling::new(4 * MIB, 1 << 40);
    let session = spilling.room.session(grant("a", &[("x", Class::Mem, MIB)], &[]));
    let client = session.client();
    let mut output = client.create("x", MIB).expect("create");
    let released = spilling.room.server.ask(|broker| broker.release(&uri("a", "x"), &crate::room::reader()));
    assert!(released.expect("ask").is_ok());
    output.commit().expect("commit");
    let stages: BTreeSet<_> = spilling
        .room
        .server
        .ask(|broker| broker.stages().map(|(uri, ..)| uri.clone()).collect())
        .expect("ask");
    assert!(stages.is_empty());
    spilling.room.server.end_session(session.id, true).expect("end");
    assert_eq!(spilling.room.used(), 0);
}

/// Room for an output of the payload `path`, as a pilot asks for it that lends it by path.
fn reserve(spilling: &Spilling, output: &str, max_bytes: u64) -> Receiver<Result<(), ReserveError>> {
    let (tell, told) = sync_channel(1);
    let asked = Reservation {
        uri: uri("path", output),
        class: Class::Mem,
        medium: Medium::Memory,
        max_bytes,
        readers: BTreeSet::from([crate::room::reader()]),
    };
    spilling.room.server.reserve(asked, move |result| drop(tell.send(result))).expect("ask");
    told
}

#[test]
fn a_pilot_gives_what_was_moved_its_place_and_readers_find_it_before_and_after() {
    let spilling = Spilling::new(4 * MIB, 1 << 40);
    spilling.made("a", 4 * MIB, 1);
    assert_eq!(spilling.moved.recv_timeout(SOON).expect("told"), (uri("a", "x"), 4 * MIB));
    let server = &spilling.room.server;
    let open = || match server.reader(&uri("a", "x"), None).expect("ask").expect("there").expect("open") {
        Content::File(fd) => fd,
        other => panic!("{other:?}"),
    };
    let before = open();
    let own = tempfile::tempdir_in(spilling.folder.path()).expect("folder");
    let dir = Arc::new(OwnedFd::from(open_dir(own.path())));
    assert!(server.give_place(&uri("a", "x"), &dir, "none/x".into()).expect("ask").is_err());
    assert!(server.give_place(&uri("a", "x"), &dir, "x".into()).expect("ask").expect("moved"));
    assert!(!server.give_place(&uri("a", "x"), &dir, "y".into()).expect("ask").expect("it has one"));
    assert!(!server.give_place(&uri("b", "x"), &dir, "y".into()).expect("ask").expect("there is none"));
    // Whatever its name is by now, it is lent by descriptor, and nobody can write it.
    let slot = tempfile::tempdir_in(spilling.folder.path()).expect("folder");
    let into = OwnedFd::from(open_dir(slot.path()));
    lend_open(before.as_fd(), &name("x"), into.as_fd(), &name("input")).expect("lend");
    let mut bytes = Vec::new();
    std::fs::File::from(open()).read_to_end(&mut bytes).expect("read");
    assert!(bytes.len() as u64 == 4 * MIB && bytes.iter().all(|byte| *byte == 1));
    let meta = std::fs::metadata(slot.path().join("input")).expect("lent");
    assert_eq!((meta.len(), meta.mode() & 0o777, meta.nlink()), (4 * MIB, 0o444, 2));
    // It is the pilot's to remove.
    assert!(server.ask(|broker| broker.remove(&uri("a", "x"))).expect("ask"));
    assert!(own.path().join("x").exists());
}

#[test]
fn a_reservation_waits_for_the_room_that_spilling_makes() {
    let spilling = Spilling::new(8 * MIB, 1 << 40);
    spilling.made("a", 3 * MIB, 1);
    spilling.made("b", 3 * MIB, 2);
    reserve(&spilling, "x", 7 * MIB).recv_timeout(SOON).expect("told").expect("room");
    assert_eq!((spilling.disk(), spilling.room.used()), (6 * MIB, 7 * MIB));
    // What is reserved can't be moved.
    let refused = reserve(&spilling, "y", 2 * MIB).recv_timeout(SOON).expect("told");
    assert!(matches!(refused, Err(ReserveError::OverBudget { free_bytes: MIB, .. })), "{refused:?}");
    assert!(spilling.room.server.ask(|broker| broker.remove(&uri("path", "x"))).expect("ask"));
    reserve(&spilling, "y", 8 * MIB).recv_timeout(SOON).expect("told").expect("room");
}

#[test]
fn a_reservation_is_refused_when_the_disk_has_no_room_either() {
    let spilling = Spilling::new(8 * MIB, 2 * MIB);
    spilling.made("a", 6 * MIB, 1);
    assert!(reserve(&spilling, "x", 3 * MIB).recv_timeout(SOON).expect("told").is_err());
    reserve(&spilling, "x", 2 * MIB).recv_timeout(SOON).expect("told").expect("room");
}

#[test]
fn whoever_waits_when_the_broker_stops_is_let_go() {
    let spilling = Spilling::new(200 * MIB, 1 << 40);
    spilling.made("a", 150 * MIB, 1);
    let told = reserve(&spilling, "x", 200 * MIB);
    spilling.room.server.stop();
    // Answered in time, or never: not waited for.
    drop(told.recv_timeout(SOON));
    assert!(spilling.room.server.ask(|_| ()).is_err());
    assert_eq!(spilling.files(), 0, "half of it, too, is gone");
}
