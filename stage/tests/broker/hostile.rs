//! Payloads that lie, stall, attack stages, or die.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{FallocateFlags, Mode, OFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, open};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use stage::server::BrokerServer;
use wire::frame;
use wire::stage::{Answer, Code, FromBroker, PROTOCOL, Request, ToBroker};
use wire::version::Version;

use crate::common::{alone, root, skipped};
use crate::room::{Room, Session, make, settings};

fn open_x(id: u32, wait_ms: u64) -> ToBroker {
    ToBroker::Ask { id, request: Request::Open { input: "x".into(), wait_ms } }
}

/// That the broker serves others as before.
fn others_go_on(producer: &Session, consumer: &Session) {
    make(&producer.client(), "y", b"fine");
    assert_eq!(consumer.client().open("y").expect("open").bytes().expect("bytes"), b"fine");
}

#[test]
fn who_breaks_the_protocol_is_told_and_cut_off_alone() {
    let (room, producer, consumer) = Room::pair();
    let hello = wire::encode(&ToBroker::Hello { protocol: PROTOCOL }).expect("encode");
    let list = wire::encode(&ToBroker::Ask { id: 1, request: Request::List }).expect("encode");
    let cut = list.get(..1).expect("half");
    let doubled = [list.clone(), list.clone()].concat();
    let long_name = [&[1, 7, 3][..], &[0x80, 0x20], &[b'x'; 4096], &[0]].concat();
    for bytes in [
        &[0xff][..],
        cut,
        &doubled,
        &hello,
        &[1, 0, 5],                         // id 0
        &[1, 7, 3, 3, b'a', b'/', b'b', 0], // names that are none
        &[1, 7, 3, 2, b'.', b'.', 0],
        &[1, 7, 3, 3, b'a', 0, b'b', 0],
        &[1, 7, 3, 0, 0],
        &long_name,
        &[1, 7, 9], // an unknown request
    ] {
        let raw = producer.raw();
        raw.bytes(bytes);
        raw.is_cut_off(Code::Malformed);
    }
    let early = producer.silent();
    early.bytes(&list);
    early.is_cut_off(Code::Malformed);
    let other = producer.silent();
    other.say(&ToBroker::Hello { protocol: Version { major: 2, minor: 0 } });
    other.is_cut_off(Code::Version);
    room.until("all of them are gone", |room| room.peers() == 0);
    others_go_on(&producer, &consumer);
}

#[test]
fn a_frame_that_is_too_long_is_cut_off() {
    let (_room, producer, consumer) = Room::pair();
    let raw = producer.raw();
    let long = vec![1; frame::FRAME_BYTES_MAX + 1];
    rustix::net::send(&raw.socket, &long, rustix::net::SendFlags::empty()).expect("send");
    raw.is_cut_off(Code::Malformed);
    others_go_on(&producer, &consumer);
}

#[test]
fn descriptors_from_a_payload_are_closed_unread() {
    let (_room, producer, consumer) = Room::pair();
    let list = wire::encode(&ToBroker::Ask { id: 1, request: Request::List }).expect("encode");
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("pair");
    for count in [1, 16] {
        let raw = producer.raw();
        frame::send(raw.socket.as_fd(), &list, &vec![theirs.as_fd(); count]).expect("send");
        raw.is_cut_off(Code::Malformed);
    }
    let raw = producer.raw();
    let many = vec![theirs.as_fd(); 17];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(17))];
    let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&many)));
    let parts = [std::io::IoSlice::new(&list)];
    rustix::net::sendmsg(&raw.socket, &parts, &mut ancillary, rustix::net::SendFlags::empty()).expect("send");
    raw.is_cut_off(Code::Malformed);
    drop(theirs);
    // With every copy closed our end is at its end.
    assert_eq!(rustix::io::read(&ours, &mut [0_u8; 1][..]).expect("read"), 0);
    others_go_on(&producer, &consumer);
}

#[test]
fn a_client_that_ends_between_question_and_answer_costs_nothing() {
    let (room, producer, consumer) = Room::pair();
    for _ in 0..50 {
        let raw = producer.raw();
        let request = Request::Create { output: "x".into(), bytes: 1 << 20, huge_pages: false };
        raw.say(&ToBroker::Ask { id: 1, request });
        drop(raw);
        // Its end may be seen only after the next one asks: that is refused then, and no more than that.
        room.until("it is gone", |room| room.peers() == 0 && room.used() == 0);
    }
    others_go_on(&producer, &consumer);
}

#[test]
fn open_questions_have_a_bound() {
    let (_room, producer, consumer) = Room::pair();
    let raw = consumer.raw();
    for id in 1..=17 {
        raw.say(&open_x(id, 60_000));
    }
    let Some((FromBroker::Tell { id: 17, answer: Answer::Refused { code: Code::TooMany, .. } }, _)) =
        raw.hear()
    else {
        panic!("the seventeenth is refused")
    };
    make(&producer.client(), "x", b"hello");
    for _ in 1..=16 {
        let Some((FromBroker::Tell { answer: Answer::Opened { .. }, .. }, fds)) = raw.hear() else {
            panic!("the others are served")
        };
        assert_eq!(fds.len(), 1);
    }
}

/// How many descriptors wait in a socket's queue.
fn waiting_fds(raw: &crate::room::Raw) -> usize {
    rustix::io::ioctl_fionbio(&raw.socket, true).expect("non-blocking");
    let mut count = 0;
    while let Ok(Some(frame)) = frame::receive(raw.socket.as_fd()) {
        count += frame.fds.len();
    }
    count
}

#[test]
fn descriptors_on_the_way_have_a_bound_and_who_does_not_take_them_is_cut_off() {
    let mut patient = settings(1 << 20);
    patient.patience_ms = 300;
    let room = Room::new(patient);
    let (producer, consumer) = room.producer_and_consumer();
    make(&producer.client(), "x", b"hello");
    let raw = consumer.raw();
    rustix::io::ioctl_fionbio(&raw.socket, true).expect("non-blocking");
    for id in 1..=2000 {
        let question = wire::encode(&open_x(id, 0)).expect("encode");
        if frame::send(raw.socket.as_fd(), &question, &[]).is_err() {
            break;
        }
    }
    room.until("it is cut off", |room| room.peers() == 0);
    let waiting = waiting_fds(&raw);
    assert!((16..=32).contains(&waiting), "{waiting} descriptors were on the way");
    others_go_on(&producer, &consumer);
}

#[test]
fn who_asks_no_more_and_leaves_a_descriptor_unread_is_cut_off_too() {
    let mut impatient = settings(1 << 20);
    impatient.patience_ms = 100;
    let room = Room::new(impatient);
    let (producer, consumer) = room.producer_and_consumer();
    let reads = consumer.client();
    let raw = consumer.raw();
    raw.say(&open_x(1, 60_000));
    make(&producer.client(), "x", b"hello");
    let input = reads.wait("x", crate::room::SOON).expect("another one of the same payload");
    room.until("it is cut off", |room| room.peers() == 1);
    assert_eq!(waiting_fds(&raw), 1);
    assert_eq!(input.bytes().expect("bytes"), b"hello");
    reads.list().expect("and who takes its answers stays");
}

#[test]
fn a_client_that_takes_its_answers_may_ask_as_often_as_it_likes() {
    let (_room, producer, consumer) = Room::pair();
    make(&producer.client(), "x", b"hello");
    let client = consumer.client();
    for _ in 0..500 {
        client.open("x").expect("open");
    }
}

#[test]
fn who_says_nothing_is_cut_off_and_who_has_said_hello_may_be_silent() {
    let mut impatient = settings(1 << 20);
    impatient.patience_ms = 50;
    let room = Room::new(impatient);
    let (producer, _) = room.producer_and_consumer();
    let polite = producer.client();
    let silent = producer.silent();
    silent.is_cut_off(Code::Malformed);
    polite.list().expect("still there");
}

#[test]
fn a_session_has_a_bound_on_connections_and_another_is_not_touched() {
    let (room, producer, consumer) = Room::pair();
    let kept: Vec<_> = (0..64).map(|_| producer.raw()).collect();
    let more = producer.silent();
    more.is_cut_off(Code::TooMany);
    others_go_on_for(&consumer);
    drop(kept);
    room.until("they are gone", |room| room.peers() == 0);
    others_go_on(&producer, &consumer);
}

fn others_go_on_for(session: &Session) {
    session.client().list().expect("list");
}

#[test]
fn a_consumer_can_change_nothing() {
    let (_room, producer, consumer) = Room::pair();
    make(&producer.client(), "x", &[7; 8192]);
    let client = consumer.client();
    let input = client.open("x").expect("open");
    let fd = input.fd().expect("memory");
    assert_eq!(rustix::io::pwrite(fd, b"x", 0), Err(Errno::BADF), "it is read-only");
    assert!(ftruncate(fd, 0).is_err());
    assert!(fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096).is_err());
    assert_eq!(fcntl_add_seals(fd, SealFlags::SEAL), Err(Errno::PERM));
    assert!(memmap2::MmapOptions::new().map_raw(&fd).is_err(), "no writable mapping");
    let again = open(format!("/proc/self/fd/{}", fd.as_raw_fd()), OFlags::RDWR, Mode::empty());
    if let Ok(again) = again {
        // Root passes the mode, and meets the seal.
        assert_eq!(rustix::io::pwrite(&again, b"x", 0), Err(Errno::PERM));
        assert_eq!(ftruncate(&again, 0), Err(Errno::PERM));
    }
    let one = client.open("x").expect("open");
    rustix::fs::seek(one.fd().expect("fd"), rustix::fs::SeekFrom::End(0)).expect("seek");
    assert_eq!(rustix::fs::tell(fd).expect("tell"), 0, "each has an offset of its own");
    assert_eq!(input.bytes().expect("bytes"), [7; 8192]);
}

#[test]
fn another_user_can_not_reopen_a_stage_for_writing() {
    let _alone = alone();
    if !root() {
        return skipped("another_user_can_not_reopen_a_stage_for_writing", "root, for a second uid");
    }
    let (_room, producer, consumer) = Room::pair();
    make(&producer.client(), "x", b"hello");
    let client = consumer.client();
    let input = client.open("x").expect("open");
    let lent = crate::common::Inherited::new(input.fd().expect("fd"));
    let told = crate::common::sh(
        &format!("cat {0}; (exec 9>>{0}) || echo refused", lent.path()),
        Some(crate::common::OTHER_UID),
    );
    assert_eq!(String::from_utf8_lossy(&told.stdout), "hellorefused\n");
}

#[test]
fn a_producer_can_change_nothing_after_its_commit() {
    let (_room, producer, consumer) = Room::pair();
    let client = producer.client();
    let mut output = client.create("x", 8192).expect("create");
    let old: OwnedFd = output.fd().expect("fd").try_clone_to_owned().expect("dup");
    output.commit().expect("commit");
    assert_eq!(ftruncate(&old, 0), Err(Errno::PERM));
    assert_eq!(ftruncate(&old, 1 << 20), Err(Errno::PERM));
    assert_eq!(rustix::io::pwrite(&old, b"x", 0), Err(Errno::PERM));
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert_eq!(fallocate(&old, punch, 0, 4096), Err(Errno::PERM));
    assert_eq!(consumer.client().open("x").expect("open").bytes().expect("bytes"), [0; 8192]);
}

#[test]
fn a_producer_that_punches_holes_gets_them_filled() {
    let (_room, producer, consumer) = Room::pair();
    let client = producer.client();
    let mut output = client.create("x", 1 << 20).expect("create");
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(output.fd().expect("fd"), punch, 0, 1 << 20).expect("punch");
    output.commit().expect("commit");
    let input = consumer.client().open("x").expect("open");
    let stat = rustix::fs::fstat(input.fd().expect("fd")).expect("stat");
    assert!(stat.st_blocks * 512 >= 1 << 20);
}

#[test]
fn pages_that_are_pinned_are_busy_and_others_go_on_meanwhile() {
    let (_room, producer, consumer) = Room::pair();
    let client = producer.client();
    let mut output = client.create("x", 8192).expect("create");
    // A page that nobody wrote is not the one that a pipe gets.
    output.write_at(0, &[7; 8192]).expect("write");
    let (from, into) = rustix::pipe::pipe().expect("pipe");
    let flags = rustix::pipe::SpliceFlags::empty();
    let fd = output.fd().expect("fd");
    assert_eq!(rustix::pipe::splice(fd, Some(&mut 0), &into, None, 4096, flags), Ok(4096));
    let busy = std::thread::scope(|scope| {
        let commits = scope.spawn(|| (output.commit().map_err(|error| error.code()), output));
        others_go_on(&producer, &consumer);
        commits.join().expect("thread")
    });
    let (refused, mut output) = busy;
    assert_eq!(refused, Err(Some(Code::Busy)));
    rustix::io::read(&from, &mut [0_u8; 4096][..]).expect("let go of the page");
    output.commit().expect("commit");
}

#[test]
fn memory_that_was_abandoned_is_taken_from_a_producer_that_kept_its_descriptor() {
    let (room, producer, _consumer) = Room::pair();
    let client = producer.client();
    let output = client.create("x", 1 << 20).expect("create");
    let old: OwnedFd = output.fd().expect("fd").try_clone_to_owned().expect("dup");
    drop(output);
    room.until("it is given back", |room| room.used() == 0);
    let emptied = |old: &OwnedFd| rustix::fs::fstat(old).is_ok_and(|stat| stat.st_blocks == 0);
    room.until("its pages are gone", |_| emptied(&old));
    room.until("and can't come back", |_| ftruncate(&old, 1 << 20) == Err(Errno::PERM));
}

#[test]
fn memory_that_can_not_be_taken_back_counts_until_its_payload_ends() {
    let (room, producer, _consumer) = Room::pair();
    let client = producer.client();
    let output = client.create("x", 1 << 20).expect("create");
    let old: OwnedFd = output.fd().expect("fd").try_clone_to_owned().expect("dup");
    fcntl_add_seals(&old, SealFlags::SHRINK | SealFlags::WRITE).expect("seal");
    drop(output);
    client.list().expect("answered after it");
    room.until("it counts on", |room| room.used() == 1 << 20);
    room.server.end_session(producer.id, false).expect("end");
    assert_eq!(room.used(), 0);
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("list").count()
}

#[test]
fn nothing_is_left_of_a_broker_that_was_stopped() {
    let _alone = alone();
    let before = open_fds();
    let (room, producer, consumer) = Room::pair();
    let client = producer.client();
    make(&client, "x", b"hello");
    let half = client.create("y", 1 << 20).expect("create");
    let reads = consumer.client();
    let input = reads.open("x").expect("open");
    drop(room);
    assert!(reads.list().is_err() && client.list().is_err());
    assert_eq!(input.bytes().expect("bytes"), b"hello", "what is mapped stays");
    drop((half, input, reads));
    drop(client);
    // Other tests of this binary open and close theirs meanwhile: it is no more than a look at the order of magnitude.
    assert!(open_fds() < before + 200);
    let started = BrokerServer::start(settings(1)).expect("another one");
    drop(started);
}
