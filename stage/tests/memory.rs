//! Class `mem` against the kernel: seals, holes, writers that stay, other users.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals};
use rustix::io::Errno;
use stage::{CommitReason, Lending, MapError, MemoryStage, MemoryWriter, SealedMap};

#[expect(dead_code, reason = "each suite uses a part of it")]
mod common;
use common::{Inherited, OTHER_UID, alone, name, root, sh, skipped};

fn writer(lending: Lending) -> MemoryWriter {
    MemoryWriter::create(&name("masses"), lending).expect("memory")
}

fn producer(writer: &MemoryWriter) -> File {
    File::from(writer.lend().try_clone_to_owned().expect("duplicate"))
}

fn written(bytes: &[u8]) -> MemoryStage {
    let writer = writer(Lending::ByFd);
    producer(&writer).write_all(bytes).expect("write");
    writer.commit(1 << 20).expect("commit")
}

/// A shared writable mapping of which no slice is made.
fn raw_map(file: &File) -> memmap2::MmapRaw {
    memmap2::MmapOptions::new().map_raw(file).expect("map for writing")
}

#[test]
fn what_was_written_is_read_in_place() {
    let stage = written(b"hello");
    assert_eq!(stage.bytes(), 5);
    let map = SealedMap::open(stage.reader().expect("reader")).expect("map");
    drop(stage);
    assert_eq!(&*map, b"hello", "the mapping keeps the memory");
}

#[test]
fn each_reader_has_an_offset_of_its_own() {
    let stage = written(b"hello");
    let (mut one, mut two) =
        (File::from(stage.reader().expect("reader")), File::from(stage.reader().expect("reader")));
    one.seek(SeekFrom::End(0)).expect("seek");
    let mut text = String::new();
    two.read_to_string(&mut text).expect("read");
    assert_eq!(text, "hello");
}

#[test]
fn no_one_changes_a_stage_any_more_not_even_through_an_old_descriptor() {
    let writer = writer(Lending::ByPath);
    let mut old = producer(&writer);
    old.write_all(b"hello").expect("write");
    let stage = writer.commit(100).expect("commit");
    let refused = |result: std::io::Result<()>| {
        assert_eq!(result.expect_err("refused").raw_os_error(), Some(Errno::PERM.raw_os_error()));
    };
    refused(old.write_all_at(b"x", 0));
    refused(old.set_len(0));
    refused(old.set_len(4096));
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert_eq!(fallocate(&old, punch, 0, 4096), Err(Errno::PERM));
    assert!(memmap2::MmapOptions::new().map_raw(&old).is_err(), "no new writable mapping");
    let seals = fcntl_get_seals(&stage).expect("seals");
    assert!(seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL));
}

#[test]
fn a_live_writable_mapping_makes_it_busy_and_the_retry_passes() {
    // A fork in another test would copy the mapping.
    let _alone = alone();
    let writer = writer(Lending::ByFd);
    let file = producer(&writer);
    file.set_len(4096).expect("grow");
    let map = raw_map(&file);
    let refused = writer.commit(4096).expect_err("mapped");
    assert!(matches!(refused.error.reason, CommitReason::Busy), "{}", refused.error);
    file.write_all_at(b"late", 0).expect("not sealed by half");
    drop(map);
    let stage = refused.writer.commit(4096).expect("free now");
    assert_eq!(&SealedMap::open(&stage).expect("map")[..4], b"late");
}

#[test]
fn a_producer_does_the_long_part_of_a_seal_itself_and_the_commit_the_rest() {
    let writer = writer(Lending::ByFd);
    writer.allocate(8192).expect("allocate");
    let mut lent = producer(&writer);
    lent.write_all(b"hello").expect("write");
    let map = raw_map(&lent);
    assert!(MemoryWriter::forbid_writing(&lent).is_err() && !writer.is_written(), "it is mapped");
    drop(map);
    MemoryWriter::forbid_writing(&lent).expect("seal");
    assert!(writer.is_written() && lent.write_all(b"!").is_err());
    // What it is cut to is still open, and everything else of the commit.
    let stage = writer.commit_exactly(5).expect("commit");
    assert_eq!(&*SealedMap::open(stage.reader().expect("reader")).expect("map"), b"hello");
    assert!(lent.set_len(3).is_err() && fcntl_add_seals(&lent, SealFlags::WRITE).is_err());
}

#[test]
fn holes_are_filled_so_that_no_reader_pays_for_them() {
    let writer = writer(Lending::ByFd);
    let file = producer(&writer);
    file.set_len(8 << 20).expect("grow");
    file.write_all_at(b"end", (8 << 20) - 3).expect("write");
    assert!(file.metadata().expect("stat").blocks() * 512 < 8 << 20);
    let stage = writer.commit(8 << 20).expect("commit");
    let stat = File::from(stage.reader().expect("reader")).metadata().expect("stat");
    assert!(stat.blocks() * 512 >= 8 << 20);
    let map = SealedMap::open(&stage).expect("map");
    assert_eq!((map[0], &map[(8 << 20) - 3..]), (0, &b"end"[..]));
}

#[test]
fn an_output_above_its_limit_is_refused_and_may_shrink() {
    let writer = writer(Lending::ByFd);
    let file = producer(&writer);
    file.set_len(101).expect("grow");
    let refused = writer.commit(100).expect_err("too large");
    assert!(matches!(refused.error.reason, CommitReason::TooLarge { bytes: 101, max: 100 }));
    assert_eq!(refused.error.to_string(), "commit output \"masses\": it has 101 bytes, max_size is 100");
    file.set_len(100).expect("shrink");
    refused.writer.commit(100).expect("fits");
}

#[test]
fn an_enormous_sparse_output_is_refused_without_allocating_it() {
    let writer = writer(Lending::ByFd);
    producer(&writer).set_len(1 << 50).expect("grow");
    let refused = writer.commit(1 << 20).expect_err("too large");
    assert!(matches!(refused.error.reason, CommitReason::TooLarge { .. }));
}

#[test]
fn memory_that_nobody_wrote_is_not_produced_but_an_empty_write_is() {
    let refused = writer(Lending::ByFd).commit(100).expect_err("untouched");
    assert!(matches!(refused.error.reason, CommitReason::NotProduced));
    let path = format!("/proc/self/fd/{}", refused.writer.lend().as_raw_fd());
    File::create(path).expect("open with O_TRUNC");
    let stage = refused.writer.commit(100).expect("produced, empty");
    assert_eq!(&*SealedMap::open(&stage).expect("map"), b"");
}

#[test]
fn allocated_memory_has_its_pages_before_anyone_writes() {
    let writer = writer(Lending::ByFd);
    writer.allocate(3 << 20).expect("allocate");
    let stat = producer(&writer).metadata().expect("stat");
    assert_eq!(stat.len(), 3 << 20);
    assert!(stat.blocks() * 512 >= 3 << 20);
}

#[test]
fn a_producer_that_locks_the_seals_gains_nothing() {
    let half = writer(Lending::ByFd);
    producer(&half).write_all(b"x").expect("write");
    fcntl_add_seals(half.lend(), SealFlags::SHRINK | SealFlags::SEAL).expect("seal");
    let refused = half.commit(100).expect_err("not sealable");
    assert!(matches!(refused.error.reason, CommitReason::SealsLocked));
    let whole = writer(Lending::ByFd);
    producer(&whole).write_all(b"x").expect("write");
    let all = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(whole.lend(), all).expect("seal");
    whole.commit(100).expect("sealed as we would have done");
}

#[test]
fn only_memory_that_we_found_sealed_becomes_a_slice() {
    let file = tempfile::tempfile().expect("file");
    assert!(matches!(SealedMap::open(&file), Err(MapError::NotSealed)));
    let (pipe, _other) = std::io::pipe().expect("pipe");
    assert!(matches!(SealedMap::open(&pipe), Err(MapError::NotSealed)));
    for missing in [SealFlags::WRITE, SealFlags::SHRINK, SealFlags::GROW] {
        let writer = writer(Lending::ByFd);
        producer(&writer).write_all(b"x").expect("write");
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE;
        fcntl_add_seals(writer.lend(), seals.difference(missing)).expect("seal");
        assert!(matches!(SealedMap::open(writer.lend()), Err(MapError::NotSealed)), "without {missing:?}");
    }
    let sparse = writer(Lending::ByFd);
    producer(&sparse).set_len(1 << 20).expect("grow");
    fcntl_add_seals(sparse.lend(), SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW).expect("seal");
    assert!(matches!(SealedMap::open(sparse.lend()), Err(MapError::Sparse { bytes: 1_048_576, .. })));
}

#[test]
fn descriptors_do_not_survive_an_exec() {
    let writer = writer(Lending::ByFd);
    producer(&writer).write_all(b"x").expect("write");
    let closes =
        |fd: &OwnedFd| rustix::io::fcntl_getfd(fd).expect("flags").contains(rustix::io::FdFlags::CLOEXEC);
    assert!(rustix::io::fcntl_getfd(writer.lend()).expect("flags").contains(rustix::io::FdFlags::CLOEXEC));
    let stage = writer.commit(100).expect("commit");
    assert!(closes(&stage.reader().expect("reader")));
}

#[test]
fn an_unmodified_program_writes_by_path_and_another_reads_by_path() {
    let _alone = alone();
    let writer = writer(Lending::ByPath);
    let uid = root().then_some(OTHER_UID);
    {
        let lent = Inherited::new(writer.lend());
        let wrote = sh(&format!("echo first > {0}; echo second > {0}", lent.path()), uid);
        assert!(wrote.status.success(), "{wrote:?}");
    }
    let stage = writer.commit(100).expect("commit");
    let reader = stage.reader().expect("reader");
    let lent = Inherited::new(reader.as_fd());
    let read = sh(&format!("wc -c < {0}; cat {0}", lent.path()), uid);
    assert_eq!(String::from_utf8_lossy(&read.stdout).trim(), "7\nsecond");
    let wrote = sh(&format!("echo x > {}", lent.path()), uid);
    assert!(!wrote.status.success(), "a stage can't be opened with O_TRUNC");
}

#[test]
fn another_user_can_neither_reopen_a_stage_for_writing_nor_change_its_mode() {
    let _alone = alone();
    if !root() {
        return skipped(
            "another_user_can_neither_reopen_a_stage_for_writing_nor_change_its_mode",
            "root, for a second uid",
        );
    }
    let stage = written(b"hello");
    let reader = stage.reader().expect("reader");
    assert_eq!(
        File::from(stage.reader().expect("r")).metadata().expect("stat").permissions().mode() & 0o777,
        0o444
    );
    let lent = Inherited::new(reader.as_fd());
    let script =
        format!("exec 9>>{0} || echo reopen refused; chmod 666 {0} || echo chmod refused", lent.path());
    // A failed redirection of exec ends the shell, so each in a subshell.
    let script = script.replace("exec 9>>", "(exec 9>>").replacen(" ||", ") ||", 1);
    let told = sh(&script, Some(OTHER_UID));
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert_eq!(told, "reopen refused\nchmod refused\n");
}

#[test]
fn seals_hold_for_root() {
    if !root() {
        return skipped("seals_hold_for_root", "root");
    }
    let stage = written(b"hello");
    let path = format!("/proc/self/fd/{}", stage.as_fd().as_raw_fd());
    let by_root = File::options().write(true).open(path).expect("root passes the mode");
    let refused = by_root.write_all_at(b"x", 0).expect_err("but not the seal");
    assert_eq!(refused.raw_os_error(), Some(Errno::PERM.raw_os_error()));
}

#[test]
fn without_by_path_another_user_can_not_open_the_memory() {
    let _alone = alone();
    if !root() {
        return skipped("without_by_path_another_user_can_not_open_the_memory", "root, for a second uid");
    }
    let writer = writer(Lending::ByFd);
    let lent = Inherited::new(writer.lend());
    let reopened = sh(&format!("cat {}", lent.path()), Some(OTHER_UID));
    assert!(!reopened.status.success());
}
