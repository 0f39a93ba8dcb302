//! Pilots that go away and come back, or don't.

mod common;

use std::os::fd::AsFd;

use common::{Setup, in_greeted_slots, in_slots, pipe, read_all, read_line};
use wire::slot::*;

#[test]
fn a_running_payload_goes_on_and_is_found_running() {
    in_greeted_slots("running", |slot| {
        let (reader, writer) = pipe();
        let (input, feed) = pipe();
        let mut launch = slot.shell("echo up; read x; echo $x; exit 2");
        launch.fds = vec![FdRole::Stdout, FdRole::Stdin];
        slot.begin(&launch, &[writer.as_fd(), input.as_fd()]);
        assert_eq!(read_line(&reader), "up");
        for _ in 0..3 {
            slot.hang_up();
            assert_eq!(slot.accept(), ShimState::Running(launch.id));
            slot.welcome(10_000);
        }
        rustix::io::write(&feed, b"on\n").expect("write");
        assert_eq!(read_line(&reader), "on");
        assert_eq!(slot.exited().status, WaitStatus::Exited(2));
    });
}

#[test]
fn a_result_is_kept_and_told_until_it_is_acknowledged() {
    in_greeted_slots("result", |slot| {
        let (reader, writer) = pipe();
        let (input, feed) = pipe();
        let mut launch = slot.shell("read x; exit 2");
        launch.fds = vec![FdRole::Stdout, FdRole::Stdin];
        slot.begin(&launch, &[writer.as_fd(), input.as_fd()]);
        drop(writer);
        slot.hang_up();
        // It greets while the payload runs; the end comes before the welcome and is told after it.
        assert_eq!(slot.accept(), ShimState::Running(launch.id));
        rustix::io::write(&feed, b"on\n").expect("write");
        assert_eq!(read_all(reader), "");
        slot.welcome(10_000);
        let report = slot.exited();
        assert_eq!(report.status, WaitStatus::Exited(2));
        for _ in 0..2 {
            slot.hang_up();
            assert_eq!(slot.accept(), ShimState::Ended(report.clone()));
            slot.welcome(10_000);
        }
        slot.clean();
        slot.hang_up();
        assert_eq!(slot.accept(), ShimState::Idle);
    });
}

#[test]
fn after_the_grace_the_payload_is_killed_and_the_code_is_71() {
    for grace_ms in [0, 50] {
        in_slots("grace", Setup::default(), |slot| {
            slot.greet(grace_ms);
            let (reader, writer) = pipe();
            let mut launch = slot.shell("trap '' TERM; echo up; while :; do read x <> /idle; done");
            launch.fds = vec![FdRole::Stdout];
            slot.begin(&launch, &[writer.as_fd()]);
            drop(writer);
            assert_eq!(read_line(&reader), "up");
            slot.hang_up();
            // A pilot that is there but does not welcome is no pilot.
            assert_eq!(read_all(reader), "");
            let (code, text) = slot.exit();
            assert_eq!(code, Some(71));
            assert!(text.contains("left its payload"), "{text}");
        });
    }
}

#[test]
fn an_idle_shim_whose_pilot_stays_away_exits_0() {
    in_slots("idle", Setup::default(), |slot| {
        slot.greet(30);
        slot.hang_up();
        assert_eq!(slot.exit(), (Some(0), String::new()));
    });
}

#[test]
fn what_helpers_did_meanwhile_is_told_later() {
    in_greeted_slots("helpers", |slot| {
        let (reader, writer) = pipe();
        let (input, feed) = pipe();
        let exec = Exec {
            id: 5,
            argv: vec![b"/bin/sh".to_vec(), b"-c".to_vec(), b"echo up; read x; exit 8".to_vec()],
            env: Vec::new(),
            cwd: b"/".to_vec(),
            fds: vec![FdRole::Stdout, FdRole::Stdin],
        };
        slot.tell(&ToShim::Exec(exec), &[writer.as_fd(), input.as_fd()]);
        drop(writer);
        assert_eq!(read_line(&reader), "up");
        slot.hang_up();
        assert_eq!(slot.accept(), ShimState::Idle);
        rustix::io::write(&feed, b"on\n").expect("write");
        assert_eq!(read_all(reader), "");
        slot.welcome(10_000);
        assert_eq!(slot.hear(), FromShim::ExecEnded { id: 5, status: Ok(WaitStatus::Exited(8)) });
    });
}
