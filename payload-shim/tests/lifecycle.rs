//! From the greeting to the exit code.

mod common;

use std::os::fd::AsFd;

use common::{Setup, in_greeted_slots, in_slots, pipe, read_line};
use rustix::process::Signal;
use wire::slot::*;

#[test]
fn a_payload_runs_and_its_end_is_told_with_what_it_used() {
    in_greeted_slots("lifecycle", |slot| {
        let launch = slot.shell("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; exit 7");
        let (report, output) = slot.run(&launch);
        assert_eq!(output, "done\n");
        assert_eq!(report.launch, launch.id);
        assert_eq!(report.status, WaitStatus::Exited(7));
        assert!(report.usage.user_us + report.usage.system_us > 0, "{report:?}");
        assert!(report.usage.wall_us > 0 && report.usage.max_rss_kib > 100, "{report:?}");
        assert_eq!((report.leftover_processes, report.stopped), (0, false));
    });
}

#[test]
fn what_descendants_used_counts_too() {
    in_greeted_slots("descendants", |slot| {
        // The parent leaves its child behind as an orphan that PID 1 reaps.
        let loops = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo over >&9";
        let script = format!("mkfifo /tmp/f; (sh -c '{loops}' 9>/tmp/f &) ; read line < /tmp/f");
        let launch = slot.shell(&script);
        let (report, output) = slot.run(&launch);
        assert_eq!(report.status, WaitStatus::Exited(0), "{output}");
        assert!(report.usage.user_us > 20_000, "{report:?}");
    });
}

#[test]
fn the_signal_that_ended_a_payload_is_told() {
    in_greeted_slots("signals", |slot| {
        for (name, number) in [("KILL", 9), ("SEGV", 11), ("TERM", 15)] {
            let mut launch = slot.shell(&format!("kill -{name} $$"));
            launch.rlimits = vec![Rlimit::Core(0)];
            let (report, _) = slot.run(&launch);
            assert_eq!(report.status, WaitStatus::Signaled { signal: number, core: false });
            slot.clean();
        }
    });
}

#[test]
fn a_launch_id_runs_once_also_after_the_shim_started_again() {
    in_greeted_slots("launch id", |slot| {
        let launch = slot.shell("true");
        slot.run(&launch);
        assert_eq!(slot.refused(&launch, &[]), LaunchRefusal::Busy, "before Clean");
        slot.clean();
        assert_eq!(slot.refused(&launch, &[]), LaunchRefusal::AlreadyRun);
        slot.run_shell("true");
        slot.clean();
        slot.start_again();
        slot.greet(0);
        assert_eq!(slot.refused(&launch, &[]), LaunchRefusal::AlreadyRun, "by another shim");
        slot.run_shell("true");
        let files = std::fs::read_dir(slot.base().join("control/ran")).expect("read").count();
        assert_eq!(files, 1, "markers pile up");
    });
}

#[test]
fn sigterm_from_outside_ends_an_idle_shim_at_once_with_143() {
    in_greeted_slots("SIGTERM idle", |slot| {
        slot.signal_from_outside(Signal::TERM);
        assert_eq!(slot.exit(), (Some(143), String::new()));
    });
}

#[test]
fn sigterm_from_outside_waits_for_clean_while_a_payload_runs() {
    in_greeted_slots("SIGTERM running", |slot| {
        let (output, writer) = pipe();
        let (input, feed) = pipe();
        let mut launch = slot.shell("echo up; read line; echo $line");
        launch.fds = vec![FdRole::Stdout, FdRole::Stdin];
        slot.begin(&launch, &[writer.as_fd(), input.as_fd()]);
        assert_eq!(read_line(&output), "up");
        slot.signal_from_outside(Signal::TERM);
        rustix::io::write(&feed, b"still here\n").expect("write");
        assert_eq!(read_line(&output), "still here");
        assert_eq!(slot.exited().status, WaitStatus::Exited(0));
        slot.clean();
        assert_eq!(slot.exit().0, Some(143));
    });
}

#[test]
fn sigterm_and_sigkill_from_inside_do_nothing_to_pid_1() {
    in_greeted_slots("SIGTERM inside", |slot| {
        slot.run_shell("kill -TERM 1; kill -INT 1; kill -KILL 1; kill -STOP 1; true");
        assert_eq!(slot.clean().failures, 0);
        if common::python().is_none() {
            common::skip("forged sender", "no /usr/bin/python3");
            return;
        }
        // sigqueue(3) lets the sender choose si_pid: 0 would look like a signal from outside.
        let forge = "import ctypes, struct\nlibc = ctypes.CDLL(None, use_errno=True)\n\
            info = struct.pack('iiiiii', 15, 0, -1, 0, 0, 0) + bytes(128)\n\
            print(libc.syscall(129, 1, 15, info), ctypes.get_errno())\n";
        let launch = slot.launch(&["/usr/bin/python3", "-c", forge]);
        let (report, output) = slot.run(&launch);
        assert_eq!((report.status, output.as_str()), (WaitStatus::Exited(0), "0 0\n"));
        slot.clean();
        slot.run_shell("true");
    });
}

#[test]
fn retire_exits_0() {
    in_greeted_slots("retire", |slot| {
        slot.run_shell("true");
        slot.clean();
        slot.tell(&ToShim::Retire, &[]);
        assert_eq!(slot.exit(), (Some(0), String::new()));
    });
}

#[test]
fn retire_ends_a_payload_that_runs() {
    in_greeted_slots("retire running", |slot| {
        let launch = slot.shell("trap '' TERM; while :; do read x <> /idle; done");
        slot.begin(&launch, &[]);
        slot.tell(&ToShim::Retire, &[]);
        assert_eq!(slot.exit().0, Some(0));
    });
}

#[test]
fn a_pilot_that_hangs_up_on_the_greeting_means_71() {
    in_slots("hung up", Setup::default(), |slot| {
        slot.accept();
        slot.hang_up();
        let (code, text) = slot.exit();
        assert_eq!(code, Some(71));
        assert_eq!(text, "payload-shim: the pilot hung up on our greeting\n");
    });
}

#[test]
fn a_pilot_of_another_major_version_means_71() {
    in_slots("version", Setup::default(), |slot| {
        slot.accept();
        let protocol = wire::version::Version { major: 99, minor: 0 };
        slot.tell(&ToShim::Welcome { protocol, epoch: 1, orphan_grace_ms: 0 }, &[]);
        let (code, text) = slot.exit();
        assert_eq!(code, Some(71));
        assert!(text.contains("version"), "{text}");
    });
}

#[test]
fn rubbish_instead_of_an_order_means_71_and_the_payload_ends() {
    in_greeted_slots("rubbish", |slot| {
        let launch = slot.shell("while :; do read x <> /idle; done");
        slot.begin(&launch, &[]);
        slot.tell_bytes(&[0xff; 100], &[]);
        let (code, text) = slot.exit();
        assert_eq!(code, Some(71));
        assert!(text.contains("no message"), "{text}");
    });
}

#[test]
fn an_order_before_welcome_means_71() {
    in_slots("early order", Setup::default(), |slot| {
        slot.accept();
        slot.tell(&ToShim::Clean, &[]);
        assert_eq!(slot.exit().0, Some(71));
    });
}

#[test]
fn a_wrong_setting_means_70_and_names_it() {
    for (settings, named) in [
        ("LATEBIND_NONCE=abc", "LATEBIND_NONCE"),
        ("LATEBIND_CONTROL=fd:77", "LATEBIND_CONTROL"),
        ("LATEBIND_CONTROL=fd:1", "LATEBIND_CONTROL"),
        ("LATEBIND_CONTROL=relative", "LATEBIND_CONTROL"),
        ("LATEBIND_CONTROL=/nowhere", "LATEBIND_CONTROL"),
    ] {
        in_slots("settings", Setup { settings, ..Setup::default() }, |slot| {
            let (code, text) = slot.exit();
            assert_eq!(code, Some(70), "{settings}: {text}");
            assert!(text.contains(named), "{settings}: {text}");
            assert!(!text.contains("abc"), "a secret was told: {text}");
        });
    }
}

#[test]
fn the_control_folder_may_be_a_path() {
    let setup = Setup {
        extra: r#"mkdir control; mount --bind "$BASE/control" control"#,
        settings: "LATEBIND_CONTROL=/control",
        ..Setup::default()
    };
    in_slots("control path", setup, |slot| {
        slot.greet(0);
        slot.run_shell("true");
    });
}

#[test]
fn the_given_cgroup_is_read() {
    let setup = Setup {
        extra: "mkdir cg; echo oom_kill 3 > cg/memory.events; echo 4096 > cg/memory.peak; exec 7<cg",
        settings: "LATEBIND_CGROUP=fd:7",
        ..Setup::default()
    };
    in_slots("cgroup", setup, |slot| {
        slot.greet(0);
        let launch = slot.shell("true");
        let figures = slot.run(&launch).0.cgroup.expect("figures");
        let expected =
            CgroupFigures { version: 2, memory_peak_bytes: Some(4096), oom_kills: Some(3), cpu_us: None };
        assert_eq!(figures, expected);
    });
}
