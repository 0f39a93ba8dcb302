//! Pilots that go away and come back, or don't.

mod common;

use std::os::fd::AsFd;

use common::{Setup, in_greeted_slots, in_slots, memory, pipe, read_all, read_line};
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

#[test]
fn a_pilot_that_was_started_again_finds_its_payload_within_a_second_and_rules_it() {
    in_greeted_slots("adoption", |slot| {
        let (reader, writer) = pipe();
        let mut launch =
            slot.shell("trap 'echo term; exit 9' TERM; echo up; while :; do read x <> /idle; done");
        launch.fds = vec![FdRole::Stdout];
        slot.begin(&launch, &[writer.as_fd()]);
        drop(writer);
        assert_eq!(read_line(&reader), "up");
        for _ in 0..5 {
            slot.hang_up();
            slot.listen_again();
            let from = now_ms();
            assert_eq!(slot.accept(), ShimState::Running(launch.id));
            assert!(now_ms() - from < 1000, "it took {} ms", now_ms() - from);
            slot.welcome(10_000);
        }
        slot.tell(&ToShim::Stop { grace_ms: 10_000 }, &[]);
        let report = slot.exited();
        assert_eq!((report.status, report.stopped), (WaitStatus::Exited(9), true));
        assert_eq!(read_all(reader), "term\n");
        slot.hang_up();
        slot.listen_again();
        assert_eq!(slot.accept(), ShimState::Ended(report));
        slot.welcome(10_000);
        assert_eq!(slot.clean(), CleanReport::default());
        slot.run_shell("true");
    });
}

#[test]
fn nothing_of_what_the_old_pilot_had_begun_reaches_the_new_one() {
    in_greeted_slots("leftovers", |slot| {
        let stage = memory(b"old", 0o444);
        slot.tell(&ToShim::Lend { fds: vec![FdRole::StageIn("old".into())] }, &[stage.as_fd()]);
        slot.tell(&ToShim::Lend { fds: vec![FdRole::StageIn("none".into())] }, &[]);
        slot.hang_up();
        slot.listen_again();
        assert_eq!(slot.accept(), ShimState::Idle);
        slot.welcome(10_000);
        assert_eq!(slot.run_shell("ls /stage/in; env | grep LATEBIND; true"), "");
    });
}

#[test]
fn a_clean_that_nobody_heard_of_is_told_by_the_greeting_alone() {
    in_greeted_slots("lost Cleaned", |slot| {
        slot.run_shell("true");
        slot.tell(&ToShim::Clean, &[]);
        slot.hang_up();
        slot.listen_again();
        let state = slot.accept();
        slot.welcome(10_000);
        // The order may have been lost with the line; then the result still waits.
        if state != ShimState::Idle {
            assert!(matches!(state, ShimState::Ended(_)), "{state:?}");
            slot.clean();
        }
        slot.run_shell("true");
    });
}

#[test]
fn a_pilot_that_comes_back_after_the_grace_finds_nobody() {
    in_slots("too late", Setup::default(), |slot| {
        slot.greet(100);
        let (reader, writer) = pipe();
        let mut launch = slot.shell("echo up; while :; do read x <> /idle; done");
        launch.fds = vec![FdRole::Stdout];
        slot.begin(&launch, &[writer.as_fd()]);
        drop(writer);
        assert_eq!(read_line(&reader), "up");
        slot.stop_listening();
        slot.hang_up();
        // The payload's end of the pipe goes with it, the shim after it.
        assert_eq!(read_all(reader), "");
        let (code, text) = slot.exit();
        assert_eq!(code, Some(71), "{text}");
    });
}

fn now_ms() -> u64 {
    payload_shim::clock::now_us() / 1000
}
