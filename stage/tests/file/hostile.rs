//! Outputs that are no outputs, and writers that stay.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use stage::{CommitReason, FileLease, Kind, Landing, LeaseError};

use crate::common::{alone, root, skipped};
use crate::room::{Room, memory_room};

#[test]
fn an_untouched_output_is_not_produced() {
    let _alone = alone();
    assert!(matches!(Room::new().refused(), CommitReason::NotProduced));
}

#[test]
fn a_removed_output_is_not_produced() {
    let _alone = alone();
    let room = Room::new();
    fs::remove_file(room.x()).expect("remove");
    assert!(matches!(room.refused(), CommitReason::NotProduced));
}

#[test]
fn an_output_that_was_written_as_empty_is_produced() {
    let _alone = alone();
    let room = Room::new();
    File::create(room.x()).expect("open with O_TRUNC at once, within the same clock tick");
    assert_eq!(room.commit().expect("commit").bytes, 0);
}

#[test]
fn hostile_outputs_are_refused_by_name() {
    let _alone = alone();
    type Make = fn(&Room);
    type Is = fn(&CommitReason) -> bool;
    let cases: [(&str, Make, Is); 8] = [
        (
            "a symlink to a host file",
            |room| symlink("/etc/passwd", room.x()).expect("symlink"),
            |reason| matches!(reason, CommitReason::Symlink),
        ),
        (
            "a symlink beside",
            |room| {
                fs::write(room.out.join("real"), "x").expect("write");
                symlink("real", room.x()).expect("symlink");
            },
            |reason| matches!(reason, CommitReason::Symlink),
        ),
        (
            "a FIFO that nobody writes",
            |room| make_node(&room.x(), rustix::fs::FileType::Fifo),
            |reason| matches!(reason, CommitReason::NotRegular(Kind::Fifo)),
        ),
        (
            "a socket",
            |room| drop(std::os::unix::net::UnixListener::bind(room.x()).expect("bind")),
            |reason| matches!(reason, CommitReason::NotRegular(Kind::Socket)),
        ),
        (
            "a folder",
            |room| fs::create_dir(room.x()).expect("mkdir"),
            |reason| matches!(reason, CommitReason::NotRegular(Kind::Directory)),
        ),
        (
            "a hard link to a file elsewhere",
            |room| {
                fs::write(room.stages.with_file_name("elsewhere"), "x").expect("write");
                fs::hard_link(room.stages.with_file_name("elsewhere"), room.x()).expect("link");
            },
            |reason| matches!(reason, CommitReason::HardLinked { links: 2 }),
        ),
        (
            "a file that is too large",
            |room| fs::write(room.x(), [0; 101]).expect("write"),
            |reason| matches!(reason, CommitReason::TooLarge { bytes: 101, max: 100 }),
        ),
        (
            "a sparse file that says it is too large",
            |room| File::create(room.x()).and_then(|file| file.set_len(1 << 40)).expect("grow"),
            |reason| matches!(reason, CommitReason::TooLarge { .. }),
        ),
    ];
    for (case, make, is) in cases {
        let room = Room::new();
        fs::remove_file(room.x()).expect("make way");
        make(&room);
        let reason = room.refused();
        assert!(is(&reason), "{case}: {reason}");
    }
}

fn make_node(path: &Path, kind: rustix::fs::FileType) {
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, rustix::fs::makedev(1, 5)).expect("make node");
}

#[test]
fn a_device_is_refused_unopened() {
    let _alone = alone();
    if !root() {
        return skipped("a_device_is_refused_unopened", "root, to make a device");
    }
    let room = Room::new();
    fs::remove_file(room.x()).expect("make way");
    make_node(&room.x(), rustix::fs::FileType::CharacterDevice);
    assert!(matches!(room.refused(), CommitReason::NotRegular(Kind::CharacterDevice)));
}

#[test]
fn a_writer_that_stays_keeps_it_from_becoming_a_stage() {
    let _alone = alone();
    for room in [Some(Room::new()), memory_room("a_writer_that_stays_keeps_it_from_becoming_a_stage")] {
        let Some(room) = room else { continue };
        fs::write(room.x(), "hello").expect("write");
        let writer = File::options().append(true).open(room.x()).expect("open");
        assert!(matches!(room.refused(), CommitReason::StillWritten));
        drop(writer);
        assert_eq!(room.commit().expect("free now").how, Landing::Linked);
    }
}

#[test]
fn a_writable_mapping_whose_descriptor_is_closed_is_a_writer_too() {
    let _alone = alone();
    for room in
        [Some(Room::new()), memory_room("a_writable_mapping_whose_descriptor_is_closed_is_a_writer_too")]
    {
        let Some(room) = room else { continue };
        fs::write(room.x(), "hello").expect("write");
        let file = File::options().read(true).write(true).open(room.x()).expect("open");
        let map = memmap2::MmapOptions::new().map_raw(&file).expect("map");
        drop(file);
        assert!(matches!(room.refused(), CommitReason::StillWritten));
        drop(map);
        room.commit().expect("free now");
    }
}

#[test]
fn an_open_for_writing_during_the_lease_breaks_it_and_harms_no_one() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("x");
    fs::write(&path, "hello").expect("write");
    let file = File::open(&path).expect("open");
    let lease = FileLease::take(&file).expect("no writer");
    assert!(lease.is_unbroken().expect("ask"));
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
    let refused = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).expect_err("leased");
    assert_eq!(refused, rustix::io::Errno::WOULDBLOCK);
    assert!(!lease.is_unbroken().expect("ask"), "and this process still lives");
    drop(lease);
    let writer = File::options().write(true).open(&path).expect("free");
    assert!(matches!(FileLease::take(&file), Err(LeaseError::Writer)));
    drop(writer);
}

#[test]
fn an_error_is_one_line_that_names_output_and_reason() {
    let _alone = alone();
    let room = Room::new();
    let refused = room.commit().expect_err("untouched");
    assert_eq!(refused.to_string(), "commit output \"x\": the payload did not write it");
}
