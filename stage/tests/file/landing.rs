//! What is linked and what is copied.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use stage::{CommitReason, FileStage, Landing, OutputFile, WhyCopied, lend_file};

use crate::common::{OTHER_UID, alone, name, open_dir, root, sh, skipped};
use crate::room::{Room, memory_room};

#[test]
fn a_written_output_becomes_a_stage_without_moving_a_byte() {
    let _alone = alone();
    let room = Room::new();
    fs::write(room.x(), "hello").expect("write");
    let inode = fs::metadata(room.x()).expect("stat").ino();
    assert_eq!(room.commit().expect("commit"), FileStage { bytes: 5, how: Landing::Linked });
    let stage = fs::metadata(room.stage()).expect("stat");
    assert_eq!((stage.ino(), stage.nlink(), stage.mode() & 0o7777), (inode, 1, 0o444));
    assert!(!room.x().exists(), "the payload's name for it is gone");
}

#[test]
fn a_prepared_file_is_exactly_as_ordered() {
    let room = Room::new();
    let stat = fs::metadata(room.x()).expect("stat");
    assert_eq!((stat.len(), stat.mode() & 0o7777), (0, 0o666));
    let out = open_dir(&room.out);
    let again = OutputFile::prepare(out.as_fd(), &name("x"), 0o666).expect_err("a slot that is not clean");
    assert_eq!(again.source.kind(), std::io::ErrorKind::AlreadyExists);
}

#[test]
fn a_file_renamed_over_the_output_is_linked_when_it_is_ours() {
    let _alone = alone();
    let room = Room::new();
    fs::write(room.out.join("tmp"), "renamed").expect("write");
    fs::set_permissions(room.out.join("tmp"), PermissionsExt::from_mode(0o000)).expect("chmod");
    fs::rename(room.out.join("tmp"), room.x()).expect("rename");
    assert_eq!(room.commit().expect("commit"), FileStage { bytes: 7, how: Landing::Linked });
    assert_eq!(fs::read(room.stage()).expect("read"), b"renamed");
}

#[test]
fn another_users_write_is_linked_and_its_rename_is_copied() {
    let _alone = alone();
    if !root() {
        return skipped("another_users_write_is_linked_and_its_rename_is_copied", "root, for a second uid");
    }
    let room = Room::new();
    assert!(sh(&format!("echo hello > {}", room.x().display()), Some(OTHER_UID)).status.success());
    assert_eq!(room.commit().expect("commit"), FileStage { bytes: 6, how: Landing::Linked });
    let again = sh(&format!("chmod 666 {0} || echo x >> {0}", room.stage().display()), Some(OTHER_UID));
    assert!(!again.status.success(), "who wrote it can't change it any more");

    let room = Room::new();
    let script = format!("cd {}; echo mine > tmp; chmod 600 tmp; mv -f tmp x", room.out.display());
    assert!(sh(&script, Some(OTHER_UID)).status.success());
    let landed = room.commit().expect("commit");
    assert_eq!(landed, FileStage { bytes: 5, how: Landing::Copied(WhyCopied::OtherOwner) });
    let stage = fs::metadata(room.stage()).expect("stat");
    assert_eq!((stage.uid(), stage.mode() & 0o7777, stage.nlink()), (0, 0o444, 1));
}

#[test]
fn holes_are_filled_where_files_are_memory_and_kept_where_they_are_disk() {
    let _alone = alone();
    let disk = Room::new();
    File::create(disk.x()).and_then(|file| file.set_len(4 << 20)).expect("grow");
    assert_eq!(disk.commit_below(4 << 20).expect("commit").how, Landing::Linked);
    let Some(memory) = memory_room("holes_are_filled_where_files_are_memory_and_kept_where_they_are_disk")
    else {
        return;
    };
    File::create(memory.x()).and_then(|file| file.set_len(4 << 20)).expect("grow");
    assert_eq!(memory.commit_below(4 << 20).expect("commit").how, Landing::Linked);
    assert!(fs::metadata(memory.stage()).expect("stat").blocks() * 512 >= 4 << 20);
}

#[test]
fn across_file_systems_it_is_copied() {
    let _alone = alone();
    let Some(memory) = memory_room("across_file_systems_it_is_copied") else { return };
    let disk = Room::new();
    fs::write(disk.x(), "hello").expect("write");
    let (out, stages) = (open_dir(&disk.out), open_dir(&memory.stages));
    let landed = disk.prepared.commit(out.as_fd(), 100, stages.as_fd(), &name("stage-x")).expect("commit");
    assert_eq!(landed, FileStage { bytes: 5, how: Landing::Copied(WhyCopied::OtherFileSystem) });
    assert_eq!(fs::read(memory.stage()).expect("read"), b"hello");
    let into = open_dir(&disk.stages);
    let lent = lend_file(stages.as_fd(), &name("stage-x"), into.as_fd(), &name("events-0")).expect("lend");
    assert_eq!(lent.how, Landing::Copied(WhyCopied::OtherFileSystem));
    assert_eq!(fs::read(disk.stages.join("events-0")).expect("read"), b"hello");
}

#[test]
fn a_stage_is_never_replaced() {
    let _alone = alone();
    let room = Room::new();
    fs::write(room.x(), "second").expect("write");
    fs::write(room.stage(), "first").expect("write");
    let refused = room.commit().expect_err("taken");
    assert!(matches!(refused.reason, CommitReason::Exists { .. }), "{refused}");
    assert_eq!(fs::read(room.stage()).expect("read"), b"first");
}

#[test]
fn consumers_get_links_to_one_inode() {
    let _alone = alone();
    let room = Room::new();
    fs::write(room.x(), "hello").expect("write");
    room.commit().expect("commit");
    let input = room.out.with_file_name("in");
    fs::create_dir(&input).expect("in");
    let (stages, into) = (open_dir(&room.stages), open_dir(&input));
    let lent = lend_file(stages.as_fd(), &name("stage-x"), into.as_fd(), &name("events-0")).expect("lend");
    assert_eq!(lent, FileStage { bytes: 5, how: Landing::Linked });
    assert_eq!(
        fs::metadata(input.join("events-0")).expect("stat").ino(),
        fs::metadata(room.stage()).expect("stat").ino()
    );
    let taken =
        lend_file(stages.as_fd(), &name("stage-x"), into.as_fd(), &name("events-0")).expect_err("taken");
    assert!(matches!(taken.reason, CommitReason::Exists { .. }));
    let unknown = lend_file(stages.as_fd(), &name("nothing"), into.as_fd(), &name("y")).expect_err("unknown");
    assert!(matches!(unknown.reason, CommitReason::NotProduced));
    symlink("/etc/passwd", room.stages.join("link")).expect("symlink");
    let link = lend_file(stages.as_fd(), &name("link"), into.as_fd(), &name("y")).expect_err("no file");
    assert!(matches!(link.reason, CommitReason::NotRegular(_) | CommitReason::Symlink));
}
