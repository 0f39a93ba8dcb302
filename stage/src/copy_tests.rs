use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use super::*;

fn dir(path: &std::path::Path) -> File {
    File::open(path).expect("open folder")
}

/// Past the test harness, which keeps the output of tests that pass to itself.
fn skipped(test: &str, missing: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {missing}");
}

#[test]
fn a_named_copy_is_published_whole_and_its_temporary_name_goes() {
    let folder = tempfile::tempdir().expect("folder");
    let open = dir(folder.path());
    let name = StageName::new("x").expect("name");
    // What an earlier crash left must not be in the way.
    fs::write(folder.path().join(".copying.x"), "old").expect("write");
    let target = Unnamed::create_named(open.as_fd(), &name).expect("temporary file");
    pwrite(&target.fd, b"whole", 0).expect("write");
    assert!(!folder.path().join("x").exists());
    target.publish(&name).expect("publish");
    assert_eq!(fs::read(folder.path().join("x")).expect("read"), b"whole");
    assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1);
}

#[test]
fn a_copy_that_fails_leaves_no_name() {
    let folder = tempfile::tempdir().expect("folder");
    let open = dir(folder.path());
    let name = StageName::new("x").expect("name");
    drop(Unnamed::create_named(open.as_fd(), &name).expect("temporary file"));
    let source = folder.path().join("source");
    fs::write(&source, [7; 100]).expect("write");
    let source = File::open(source).expect("open");
    let refused = copy(source.as_fd(), open.as_fd(), &name, 99).expect_err("too large");
    assert!(matches!(refused, CommitReason::TooLarge { bytes: 100, max: 99 }), "{refused}");
    assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1, "only the source");
}

#[test]
fn a_copy_never_replaces_what_is_there() {
    let folder = tempfile::tempdir().expect("folder");
    let open = dir(folder.path());
    fs::write(folder.path().join("x"), "first").expect("write");
    fs::write(folder.path().join("source"), "second").expect("write");
    let source = File::open(folder.path().join("source")).expect("open");
    let refused = copy(source.as_fd(), open.as_fd(), &StageName::new("x").expect("name"), 99);
    assert!(matches!(refused, Err(CommitReason::Exists { .. })), "{refused:?}");
    assert_eq!(fs::read(folder.path().join("x")).expect("read"), b"first");
}

#[test]
fn a_copy_into_memory_has_no_holes() {
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else {
        skipped("a_copy_into_memory_has_no_holes", "/dev/shm");
        return;
    };
    let open = dir(memory.path());
    if !is_memory(open.as_fd()).expect("statfs") {
        skipped("a_copy_into_memory_has_no_holes", "a tmpfs on /dev/shm");
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let source = File::create_new(folder.path().join("source")).expect("create");
    source.set_len(3 << 20).expect("grow");
    let source = File::open(folder.path().join("source")).expect("open");
    let bytes =
        copy(source.as_fd(), open.as_fd(), &StageName::new("x").expect("name"), u64::MAX).expect("copy");
    let made = fs::metadata(memory.path().join("x")).expect("stat");
    assert_eq!((bytes, made.len()), (3 << 20, 3 << 20));
    assert!(made.blocks() * 512 >= made.len(), "{} blocks", made.blocks());
    assert_eq!(made.mode() & 0o7777, 0o444);
}
