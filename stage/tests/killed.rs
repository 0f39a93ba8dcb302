//! Clients that are killed. A suite of its own, so that the descriptors of this process are those of the broker.

#[expect(dead_code, reason = "each suite uses a part of it")]
mod common;
#[path = "broker/room.rs"]
#[expect(dead_code, reason = "each suite uses a part of it")]
mod room;

use std::process::{Command, Stdio};
use std::time::Duration;

use stage::Class;

use room::{Room, grant, settings};

/// Started by the test below, not by people: writes until it is killed.
#[test]
fn a_child_that_is_killed() {
    let Some(path) = std::env::var_os("STAGE_TEST_CHILD") else { return };
    let client = stage::client::Client::connect(path.as_ref()).expect("connect");
    for round in 0.. {
        let mut output = client.create("x", 1 << 20).expect("create");
        let window = output.window().expect("map");
        output.write_at(round % 1000, b"half").expect("write");
        drop(window);
        if round % 3 == 0 {
            // Maps it again and asks for a commit: the kill may come in the middle of the seal.
            let map = memmap2::MmapOptions::new().map_raw(&output.fd().expect("fd")).expect("map");
            let _ = output.commit_first(5);
            drop(map);
        }
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test that kills its children")]
fn clients_that_are_killed_at_any_moment_leave_nothing_charged() {
    let room = Room::new(settings(64 << 20));
    let fds = || std::fs::read_dir("/proc/self/fd").expect("list").count();
    room.used();
    let before = fds();
    for round in 0..100_u64 {
        let session = room.session(grant("victim", &[("x", Class::Mem, 1 << 20)], &[]));
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "a_child_that_is_killed", "--nocapture"])
            .env("STAGE_TEST_CHILD", &session.path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start");
        room.until("it works", |room| room.used() > 0);
        std::thread::sleep(Duration::from_micros(round * 211 % 7000));
        child.kill().expect("kill");
        child.wait().expect("wait");
        // A seal may have been faster than the kill, and free of the mapping: then it is a stage, of five bytes.
        room.until("it is dropped", |room| room.peers() == 0 && [0, 5].contains(&room.used()));
        room.server.end_session(session.id, false).expect("end");
        assert_eq!(room.used(), 0, "round {round}");
        std::fs::remove_file(&session.path).expect("socket");
        room.until("descriptors are as before", |_| fds() == before);
    }
}
