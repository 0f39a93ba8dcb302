//! Payloads that do not want to end, helpers, and Clean.

mod common;

use std::os::fd::AsFd;

use common::{Setup, exec, in_greeted_slots, in_slots, pipe, python, read_all, read_line};
use wire::slot::*;

/// Blocks in a call that a trapped signal interrupts.
const FOREVER: &str = "while :; do read x <> /idle; done";

#[test]
fn processes_that_fork_away_are_killed_and_counted() {
    in_greeted_slots("fork away", |slot| {
        let (reader, writer) = pipe();
        let script = format!(
            "mkfifo /tmp/f; for i in 1 2 3; do (setsid sh -c 'trap \"\" TERM HUP; echo up > /tmp/f; {FOREVER}' &); read x < /tmp/f; done; exit 3"
        );
        let mut launch = slot.shell(&script);
        launch.fds = vec![FdRole::Stdout];
        slot.begin(&launch, &[writer.as_fd()]);
        drop(writer);
        let report = slot.exited();
        assert_eq!((report.status, report.leftover_processes), (WaitStatus::Exited(3), 3), "{report:?}");
        // They had our pipe: when it is at its end they are gone.
        assert_eq!(read_all(reader), "");
        assert_eq!(slot.clean().processes, 0);
    });
}

#[test]
fn stop_gives_grace_and_then_kills_what_ignores_it() {
    in_greeted_slots("stop", |slot| {
        for (trap, grace_ms, expected) in [
            ("exit 5", 10_000, WaitStatus::Exited(5)),
            ("", 100, WaitStatus::Signaled { signal: 9, core: false }),
            ("", 0, WaitStatus::Signaled { signal: 9, core: false }),
        ] {
            let (reader, writer) = pipe();
            let mut launch = slot.shell(&format!("trap '{trap}' TERM; exec 2>&-; echo up; {FOREVER}"));
            launch.fds = vec![FdRole::Stdout];
            slot.begin(&launch, &[writer.as_fd()]);
            assert_eq!(read_line(&reader), "up");
            slot.tell(&ToShim::Stop { grace_ms }, &[]);
            let report = slot.exited();
            assert_eq!((report.status, report.stopped), (expected, true));
            slot.clean();
        }
    });
}

#[test]
fn stop_reaches_every_process_and_a_second_stop_only_shortens() {
    in_greeted_slots("stop all", |slot| {
        let (reader, writer) = pipe();
        let child = format!("trap \"echo child; exit\" TERM; echo up; {FOREVER}");
        let mut launch = slot
            .shell(&format!("trap '' TERM; (trap - TERM; exec setsid sh -c '{child}') & wait; {FOREVER}"));
        launch.fds = vec![FdRole::Stdout];
        slot.begin(&launch, &[writer.as_fd()]);
        assert_eq!(read_line(&reader), "up");
        slot.tell(&ToShim::Stop { grace_ms: 3_600_000 }, &[]);
        assert_eq!(read_line(&reader), "child");
        slot.tell(&ToShim::Stop { grace_ms: 7_200_000 }, &[]);
        slot.tell(&ToShim::Stop { grace_ms: 1 }, &[]);
        assert_eq!(slot.exited().status, WaitStatus::Signaled { signal: 9, core: false });
    });
}

#[test]
fn a_payload_that_closes_its_streams_is_still_waited_for() {
    in_greeted_slots("closed streams", |slot| {
        let (reader, writer) = pipe();
        let (input, feed) = pipe();
        let mut launch = slot.shell("exec 1>&- 2>&-; read x; exit 4");
        launch.fds = vec![FdRole::Stdout, FdRole::Stdin];
        slot.begin(&launch, &[writer.as_fd(), input.as_fd()]);
        drop(writer);
        assert_eq!(read_all(reader), "");
        rustix::io::write(&feed, b"go\n").expect("write");
        assert_eq!(slot.exited().status, WaitStatus::Exited(4));
    });
}

#[test]
fn one_signal_reaches_the_first_process_only() {
    in_greeted_slots("signal", |slot| {
        let (reader, writer) = pipe();
        let mut launch = slot.shell(&format!("trap 'echo usr1; exit 6' USR1; echo up; {FOREVER}"));
        launch.fds = vec![FdRole::Stdout];
        slot.begin(&launch, &[writer.as_fd()]);
        assert_eq!(read_line(&reader), "up");
        slot.tell(&ToShim::Signal { signal: 10 }, &[]);
        assert_eq!(read_line(&reader), "usr1");
        assert_eq!(slot.exited().status, WaitStatus::Exited(6));
        slot.tell(&ToShim::Signal { signal: 9 }, &[]);
        slot.clean();
    });
}

#[test]
fn processes_that_multiply_lose() {
    if python().is_none() {
        return common::skip("multiply", "no /usr/bin/python3");
    }
    in_greeted_slots("multiply", |slot| {
        // A chain in which each link forks the next and dies: no list of processes is ever up to date.
        let chain = "import os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
            for i in range(8):\n  child = None\n  while child is None:\n    try: child = os.fork()\n    except OSError: pass\n  if child == 0:\n    os.setsid()\n    while True:\n      try:\n        if os.fork(): os._exit(0)\n      except OSError: pass\n\
            print('up', flush=True)\n";
        let mut launch = slot.launch(&["/usr/bin/python3", "-c", chain]);
        launch.rlimits = vec![Rlimit::Processes(300)];
        let (report, output) = slot.run(&launch);
        assert_eq!((report.status, output.as_str()), (WaitStatus::Exited(0), "up\n"));
        assert!(report.leftover_processes > 0);
        slot.clean();
        assert_eq!(
            slot.run_shell("ls /proc | grep -c '^[0-9]'").trim().parse::<u32>().expect("count"),
            4,
            "shim, sh, ls, grep"
        );
    });
}

#[test]
fn helpers_run_beside_the_payload_and_die_with_it() {
    in_greeted_slots("helpers", |slot| {
        slot.tell(&ToShim::Exec(exec(1, "exit 9")), &[]);
        assert_eq!(slot.hear(), FromShim::ExecEnded { id: 1, status: Ok(WaitStatus::Exited(9)) });
        let (input, feed) = pipe();
        let mut launch = slot.shell("echo 5 > /tmp/seen; read x");
        launch.fds = vec![FdRole::Stdin];
        slot.begin(&launch, &[input.as_fd()]);
        let (reader, writer) = pipe();
        let mut helper = exec(2, &format!("echo helper; {FOREVER}"));
        helper.fds = vec![FdRole::Stdout];
        slot.tell(&ToShim::Exec(helper), &[writer.as_fd()]);
        drop(writer);
        assert_eq!(read_line(&reader), "helper");
        rustix::io::write(&feed, b"go\n").expect("write");
        assert_eq!(
            slot.hear(),
            FromShim::ExecEnded { id: 2, status: Ok(WaitStatus::Signaled { signal: 9, core: false }) }
        );
        let report = slot.exited();
        assert_eq!((report.status, report.leftover_processes), (WaitStatus::Exited(0), 0));
    });
}

#[test]
fn a_helper_that_cannot_start_tells_its_errno() {
    in_greeted_slots("bad helpers", |slot| {
        let mut missing = exec(1, "");
        missing.argv = vec![b"/no/such".to_vec()];
        let mut relative = exec(2, "true");
        relative.cwd = b"here".to_vec();
        let mut roles = exec(3, "true");
        roles.fds = vec![FdRole::Stdin];
        for (helper, errno) in [(missing, 2), (relative, 22), (roles, 22)] {
            let id = helper.id;
            slot.tell(&ToShim::Exec(helper), &[]);
            assert_eq!(slot.hear(), FromShim::ExecEnded { id, status: Err(errno) });
        }
    });
}

#[test]
fn clean_leaves_nothing_and_the_next_payload_finds_a_new_slot() {
    in_greeted_slots("clean", |slot| {
        slot.run_shell(
            "mkdir -p /work/a/b /tmp/.x /var/tmp/y; echo > /work/a/b/c; chmod 0 /work/a/b; chmod 0 /work/a; echo > /dev/shm/z; mkfifo /tmp/.x/f
             ln -s / /tmp/root; ln -s /work /stage/out/link; echo > /stage/stray; mkdir /work/space\\ and\\ \"quote\"",
        );
        let report = slot.clean();
        assert_eq!((report.failures, report.processes), (0, 0), "{report:?}");
        assert_eq!(report.files, 11, "{report:?}");
        let left = slot.run_shell("find /work /tmp /var/tmp /dev/shm /stage -mindepth 1 | sort");
        assert_eq!(left, "/stage/in\n/stage/out\n");
    });
}

#[test]
fn clean_removes_system_v_ipc_objects() {
    if python().is_none() {
        return common::skip("ipc", "no /usr/bin/python3");
    }
    in_greeted_slots("ipc", |slot| {
        let make = "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.shmget(5, 4096, 0o1600) >= 0\nassert libc.semget(5, 1, 0o1600) >= 0\nassert libc.msgget(5, 0o1600) >= 0\n";
        let launch = slot.launch(&["/usr/bin/python3", "-c", make]);
        let (report, output) = slot.run(&launch);
        assert_eq!(report.status, WaitStatus::Exited(0), "{output}");
        let report = slot.clean();
        assert_eq!((report.ipc_objects, report.failures), (3, 0));
        assert_eq!(slot.run_shell("cat /proc/sysvipc/* | wc -l").trim(), "3", "headings only");
    });
}

#[test]
fn clean_kills_a_payload_that_runs_and_a_helper_that_stayed() {
    in_greeted_slots("clean running", |slot| {
        let launch = slot.shell(FOREVER);
        slot.begin(&launch, &[]);
        slot.tell(&ToShim::Clean, &[]);
        let report = slot.exited();
        assert_eq!((report.status, report.stopped), (WaitStatus::Signaled { signal: 9, core: false }, true));
        assert!(matches!(slot.hear(), FromShim::Cleaned(CleanReport { processes: 1, .. })));
        slot.tell(&ToShim::Exec(exec(7, FOREVER)), &[]);
        slot.tell(&ToShim::Clean, &[]);
        assert!(matches!(slot.hear(), FromShim::ExecEnded { id: 7, .. }));
        assert!(matches!(slot.hear(), FromShim::Cleaned(CleanReport { processes: 1, .. })));
    });
}

#[test]
fn a_payload_that_lowers_the_limits_of_pid_1_makes_clean_fail() {
    in_greeted_slots("prlimit", |slot| {
        slot.run_shell("prlimit --pid 1 --nproc=1000:1000");
        assert_eq!(slot.clean().failures, 1);
    });
}

#[test]
fn without_a_pid_namespace_only_descendants_are_killed_and_none_escapes() {
    let setup = Setup { own_pids: false, ..Setup::default() };
    in_slots("no PID namespace", setup, |slot| {
        slot.greet(0);
        let (reader, writer) = pipe();
        let script = format!(
            "mkfifo /tmp/f; (setsid sh -c 'trap \"\" TERM HUP; echo up > /tmp/f; {FOREVER}' &); read x < /tmp/f"
        );
        let mut launch = slot.shell(&script);
        launch.fds = vec![FdRole::Stdout];
        slot.begin(&launch, &[writer.as_fd()]);
        drop(writer);
        let report = slot.exited();
        assert_eq!((report.status, report.leftover_processes), (WaitStatus::Exited(0), 1));
        assert_eq!(read_all(reader), "");
        assert_eq!(slot.clean().failures, 0);
        slot.tell(&ToShim::Retire, &[]);
        assert_eq!(slot.exit().0, Some(0));
    });
}
