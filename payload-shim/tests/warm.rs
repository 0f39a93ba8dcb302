//! One payload after the other in one slot: what stays between them, and what must not.

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use common::{Setup, exec, in_greeted_slots, in_slots, memory, pipe, python, read_all, read_line};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use wire::slot::*;

const FOREVER: &str = "while :; do read x <> /idle; done";

#[test]
fn each_payload_has_its_own_largest_memory() {
    in_greeted_slots("max rss", |slot| {
        let big = slot.shell("head -c 80000000 /dev/zero | tail -c 80000000 | wc -c");
        let (report, output) = slot.run(&big);
        assert_eq!((report.status, output.as_str()), (WaitStatus::Exited(0), "80000000\n"));
        assert!(report.usage.max_rss_kib > 70_000, "{report:?}");
        let big_us = report.usage.user_us + report.usage.system_us;
        slot.clean();
        let small = slot.shell("true");
        let usage = slot.run(&small).0.usage;
        assert!((100..16_000).contains(&usage.max_rss_kib), "{usage:?}");
        assert!(usage.user_us + usage.system_us < big_us, "{usage:?} after {big_us} us");
    });
}

#[test]
fn a_long_launch_does_not_make_the_payloads_after_it_look_large() {
    in_greeted_slots("max rss after a long launch", |slot| {
        let mut long = slot.shell("true");
        long.argv.extend(std::iter::repeat_n(vec![b'a'; 100_000], 40));
        long.rlimits = vec![Rlimit::Stack(64 << 20)];
        let (memory, bytes) = wire::write_launch_memory(&long).expect("write");
        slot.tell(&ToShim::LaunchInMemory { bytes, fds: vec![FdRole::Launch] }, &[memory.as_fd()]);
        assert!(matches!(slot.hear(), FromShim::Launched { .. }));
        slot.exited();
        slot.clean();
        let small = slot.shell("true");
        let usage = slot.run(&small).0.usage;
        assert!(usage.max_rss_kib < 6_000, "{usage:?}");
    });
}

#[test]
fn thousands_of_payloads_leave_the_shim_as_it_was() {
    in_greeted_slots("many", |slot| {
        let shim = slot.shim().as_raw_nonzero();
        let look = || {
            let status = std::fs::read_to_string(format!("/proc/{shim}/status")).expect("status");
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("KiB")
        };
        let mut before = 0;
        let mut launch = slot.launch(&["/bin/true"]);
        for number in 0..2200_u32 {
            launch.id.0[..4].copy_from_slice(&number.to_be_bytes());
            slot.begin(&launch, &[]);
            assert_eq!(slot.exited().status, WaitStatus::Exited(0));
            assert_eq!(slot.clean(), CleanReport::default());
            if number == 200 {
                before = look();
            }
        }
        assert!(look() <= before + 64, "{before} KiB became {} KiB", look());
        let marks = slot.base().join("control/ran/latest");
        assert!(std::fs::metadata(marks).expect("stat").len() <= 1024 * 32);
    });
}

fn fifo(path: &Path, flags: OFlags) -> OwnedFd {
    rustix::fs::openat(CWD, path, OFlags::RDWR | OFlags::CLOEXEC | flags, Mode::empty()).expect("open")
}

#[test]
fn what_was_written_into_a_fifo_stays_until_clean_though_nobody_reads() {
    in_greeted_slots("fifo", |slot| {
        let path = slot.base().join("out");
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from(0o600), 0).expect("mkfifo");
        let given = fifo(&path, OFlags::empty());
        let mut launch = slot.shell("echo kept; echo too >&2");
        launch.fds = vec![FdRole::Stdout, FdRole::Stderr];
        slot.begin(&launch, &[given.as_fd(), given.as_fd()]);
        drop(given);
        slot.exited();
        slot.hang_up();
        assert!(matches!(slot.accept(), ShimState::Ended(_)));
        slot.welcome(10_000);
        // A helper gets none of it.
        let (reader, writer) = pipe();
        let mut helper = exec(1, "ls -l /proc/$$/fd | grep -c out; true");
        helper.fds = vec![FdRole::Stdout];
        slot.tell(&ToShim::Exec(helper), &[writer.as_fd()]);
        drop(writer);
        assert_eq!(read_all(reader), "0\n");
        slot.hear();
        let again = fifo(&path, OFlags::NONBLOCK);
        let mut text = [0; 64];
        let length = rustix::io::read(&again, &mut text).expect("read");
        assert_eq!(&text[..length], b"kept\ntoo\n");
        rustix::io::write(&again, b"late").expect("write");
        drop(again);
        slot.clean();
        let fresh = fifo(&path, OFlags::NONBLOCK);
        let left = rustix::io::read(&fresh, &mut text);
        assert_eq!(left, Err(rustix::io::Errno::AGAIN), "somebody kept it after Clean");
        assert_eq!(slot.run_shell("ls -l /proc/$$/fd | grep -c /out; true"), "0\n");
    });
}

#[test]
fn a_pipe_has_its_end_when_the_payload_has() {
    in_greeted_slots("pipe", |slot| {
        let (reader, writer) = pipe();
        let mut launch = slot.shell("echo text");
        launch.fds = vec![FdRole::Stdout];
        slot.begin(&launch, &[writer.as_fd()]);
        drop(writer);
        slot.exited();
        assert_eq!(read_all(reader), "text\n");
    });
}

#[test]
fn what_a_payload_does_to_the_standing_of_pid_1_makes_clean_fail_and_nothing_runs_after_it() {
    if python().is_none() {
        return common::skip("standing", "no /usr/bin/python3");
    }
    for deed in [
        "os.setpriority(os.PRIO_PROCESS, 1, 5)",
        "os.sched_setscheduler(1, os.SCHED_BATCH, os.sched_param(0))",
        "os.sched_setaffinity(1, {min(os.sched_getaffinity(0))})",
    ] {
        in_greeted_slots("standing", |slot| {
            if deed.contains("affinity") && std::thread::available_parallelism().map_or(1, usize::from) < 2 {
                return common::skip("affinity", "one processor");
            }
            let launch = slot.launch(&["/usr/bin/python3", "-c", &format!("import os; {deed}")]);
            let (report, output) = slot.run(&launch);
            assert_eq!(report.status, WaitStatus::Exited(0), "{output}");
            assert_eq!(slot.clean().failures, 1, "{deed}");
            let launch = slot.shell("true");
            let refusal = slot.refused(&launch, &[]);
            assert!(matches!(refusal, LaunchRefusal::Failed { step, .. } if step == "clean"));
        });
    }
}

#[test]
fn what_a_payload_makes_among_the_launch_markers_is_cleaned_and_the_record_of_launches_stays() {
    let setup = Setup { extra: "mkdir ran; mount --bind $BASE/control/ran ran", ..Setup::default() };
    in_slots("markers", setup, |slot| {
        slot.greet(10_000);
        let launch = slot.shell("mkdir -p /ran/a/b; echo x > /ran/a/b/c; chmod 0 /ran/a; echo x > /ran/d");
        let (report, output) = slot.run(&launch);
        assert_eq!(report.status, WaitStatus::Exited(0), "{output}");
        assert_eq!(slot.clean(), CleanReport { files: 4, ..CleanReport::default() });
        assert_eq!(slot.run_shell("ls -A /ran"), "latest\n");
        slot.clean();
        assert_eq!(slot.refused(&launch, &[]), LaunchRefusal::AlreadyRun);
        // One that puts something else in place of the record does not keep the next from running.
        slot.run_shell("rm /ran/latest; mkdir /ran/latest; echo x > /ran/latest/e");
        assert_eq!(slot.clean(), CleanReport { files: 2, ..CleanReport::default() });
        assert_eq!(slot.run_shell("ls -A /ran"), "");
        slot.clean();
        assert_eq!(slot.refused(&launch, &[]), LaunchRefusal::AlreadyRun);
    });
}

#[test]
fn a_holder_is_there_for_stages_only_and_never_the_same_twice() {
    in_greeted_slots("holders", |slot| {
        // By the shell alone: a pipe's programs do not start at the same moment.
        let count = "set -- /proc/[0-9]*; echo $#";
        assert_eq!(slot.run_shell(count), "2\n", "shim, sh");
        slot.clean();
        let mut seen = Vec::new();
        for _ in 0..3 {
            let stage = memory(b"x", 0o444);
            slot.tell(&ToShim::Lend { fds: vec![FdRole::StageIn("x".into())] }, &[stage.as_fd()]);
            seen.push(slot.run_shell("cat /stage/in/x >&2; readlink /stage/in/x"));
            slot.clean();
        }
        assert_eq!(slot.run_shell("ls /stage/in"), "");
        slot.clean();
        assert_eq!(slot.run_shell(count), "2\n", "a holder that nobody wanted stayed");
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 3, "{seen:?}");
    });
}

#[test]
fn a_slot_with_helpers_starts_its_payloads_all_the_same() {
    in_greeted_slots("after helpers", |slot| {
        slot.tell(&ToShim::Exec(exec(1, "(setsid sleep 1000 &)")), &[]);
        assert_eq!(slot.hear(), FromShim::ExecEnded { id: 1, status: Ok(WaitStatus::Exited(0)) });
        let missing = slot.launch(&["/no/such"]);
        let expected = LaunchRefusal::Failed { step: "exec".into(), errno: 2 };
        assert_eq!(slot.refused(&missing, &[]), expected);
        assert_eq!(slot.run_shell("echo ran"), "ran\n");
        slot.clean();
        assert_eq!(slot.refused(&missing, &[]), LaunchRefusal::AlreadyRun);
    });
}

#[test]
fn helpers_have_streams_environment_and_folder_and_end_with_clean_at_the_latest() {
    in_greeted_slots("helpers", |slot| {
        slot.run_shell("true");
        // After Exited and before Clean there is still something to look at.
        let [(input, feed), (reader, writer), (errors, error_writer)] = [pipe(), pipe(), pipe()];
        let mut helper = exec(4, "read line; echo $line $NAME; pwd >&2; exit 3");
        helper.env.push(b"NAME=value".to_vec());
        helper.cwd = b"/tmp".to_vec();
        helper.fds = vec![FdRole::Stderr, FdRole::Stdin, FdRole::Stdout];
        let fds = [error_writer.as_fd(), input.as_fd(), writer.as_fd()];
        slot.tell(&ToShim::Exec(helper), &fds);
        rustix::io::write(&feed, b"line\n").expect("write");
        assert_eq!(slot.hear(), FromShim::ExecEnded { id: 4, status: Ok(WaitStatus::Exited(3)) });
        drop((writer, error_writer));
        assert_eq!((read_all(reader), read_all(errors)), ("line value\n".into(), "/tmp\n".into()));
        slot.tell(&ToShim::Exec(exec(5, FOREVER)), &[]);
        slot.tell(&ToShim::Clean, &[]);
        let killed = WaitStatus::Signaled { signal: 9, core: false };
        assert_eq!(slot.hear(), FromShim::ExecEnded { id: 5, status: Ok(killed) });
        assert!(matches!(slot.hear(), FromShim::Cleaned(CleanReport { processes: 1, failures: 0, .. })));
    });
}

#[test]
fn who_came_in_from_outside_does_not_stay() {
    if !rustix::process::geteuid().is_root() || !Path::new("/usr/bin/nsenter").exists() {
        return common::skip("outsiders", "entering a PID namespace needs root and nsenter(1)");
    }
    in_greeted_slots("outsiders", |slot| {
        let (mut outsider, output) = slot.enter("echo in; exec sleep 1000");
        assert_eq!(read_line(&output), "in");
        let launch = slot.shell("true");
        assert_eq!(slot.run(&launch).0.leftover_processes, 1);
        assert!(!outsider.wait().expect("wait").success());
        assert_eq!(slot.clean(), CleanReport::default());
    });
}
