//! What payloads hand each other while they run: FIFOs, and memory that all of them write.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, Mode, fallocate, fcntl_get_seals, ftruncate};
use rustix::io::Errno;
use stage::{Pipe, PipeEnd, SharedMemory, StageName};

fn name(text: &str) -> StageName {
    StageName::new(text).expect("name")
}

#[test]
fn every_name_of_a_pipe_is_the_same_pipe() {
    let (own, other) = (tempfile::tempdir().expect("own"), tempfile::tempdir().expect("other"));
    let (folder, into) = (File::open(own.path()).expect("open"), File::open(other.path()).expect("open"));
    let pipe = Pipe { folder: folder.as_fd(), name: "x" };
    pipe.make(Mode::from_raw_mode(0o666)).expect("make");
    pipe.lend(into.as_fd(), &name("y")).expect("lend");
    let (read, write) = (other.path().join("y"), own.path().join("x"));
    let reader = std::thread::spawn(move || std::fs::read(read).expect("read"));
    std::fs::write(write, "through").expect("write");
    assert_eq!(reader.join().expect("reader"), b"through");
    pipe.remove();
    assert!(!pipe.exists());
}

#[test]
fn who_waits_for_an_end_that_nobody_opens_any_more_is_let_go() {
    let own = tempfile::tempdir().expect("own");
    let folder = File::open(own.path()).expect("open");
    let pipe = Pipe { folder: folder.as_fd(), name: "x" };
    pipe.make(Mode::from_raw_mode(0o600)).expect("make");
    let path = own.path().join("x");
    // It may not wait yet when the other end is opened for the first time.
    let let_go = |end, done: &dyn Fn() -> bool| {
        while !done() {
            pipe.stand_in(end);
            std::thread::yield_now();
        }
    };
    let read = path.clone();
    let reader = std::thread::spawn(move || std::fs::read(read).expect("read"));
    let_go(PipeEnd::Writer, &|| reader.is_finished());
    assert_eq!(reader.join().expect("reader"), b"");
    let writer = std::thread::spawn(move || {
        let mut into = std::fs::OpenOptions::new().write(true).open(path).expect("open");
        // One write may still find the end that was opened for a moment.
        (0..2).find_map(|_| into.write_all(&[0; 70_000]).err()).map(|error| error.kind())
    });
    let_go(PipeEnd::Reader, &|| writer.is_finished());
    assert_eq!(writer.join().expect("writer"), Some(std::io::ErrorKind::BrokenPipe));
}

#[test]
fn shared_memory_is_written_by_all_and_resized_by_none() {
    let memory = SharedMemory::create(&name("grid"), 8192).expect("memory");
    let one = File::from(memory.lend().expect("fd"));
    let mut other = File::from(memory.lend().expect("fd"));
    one.write_all_at(b"here", 8188).expect("write");
    let mut bytes = Vec::new();
    other.read_to_end(&mut bytes).expect("read");
    assert_eq!((bytes.len(), &bytes[8188..]), (8192, &b"here"[..]));
    assert_eq!(ftruncate(&one, 4096), Err(Errno::PERM));
    assert_eq!(fallocate(&one, FallocateFlags::empty(), 0, 16_384), Err(Errno::PERM));
    assert!(!fcntl_get_seals(&one).expect("seals").contains(rustix::fs::SealFlags::WRITE));
    let pages = std::os::unix::fs::MetadataExt::blocks(&one.metadata().expect("stat")) * 512;
    assert_eq!(pages, 8192, "all of it is paid for before anybody writes");
}
