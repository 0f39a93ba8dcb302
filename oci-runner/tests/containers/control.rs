//! Starting, ending and failing.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};

use oci_runner::cgroup::{Cgroup, Delegation, Guard, Limits};
use oci_runner::{Container, Ended};

use crate::harness::{LIMIT_S, Slot, bind, chain, quiet, run, start, test_name};

#[test]
fn the_end_of_pid_1_is_told_exactly() {
    quiet(|| {
        let slot = Slot::new();
        assert_eq!(run(slot.container("exit 7")).ended, Ended::Exited(7));
        let (mut running, _reader) = start(slot.container("sleep 1000; true")).expect("a container");
        assert_eq!(running.try_wait().expect("an answer"), None);
        running.kill().expect("a signal");
        let killed = Ended::Killed { signal: 9, core: false };
        assert_eq!(running.wait_for(LIMIT_S).expect("an answer"), Some(killed));
        assert_eq!(running.try_wait().expect("an answer"), Some(killed), "the answer stays");
        running.kill().expect("killing what has ended is no error");
    });
}

#[test]
fn everything_dies_with_pid_1() {
    quiet(|| {
        let slot = Slot::new();
        let script = "for i in 1 2 3; do (trap '' TERM HUP; sleep 1000; true) & done; echo ready; read x < /tmp/none; sleep 1000; true";
        let (running, reader) = start(slot.container(script)).expect("a container");
        let mut reader = BufReader::new(reader);
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        drop(running);
        // Each of them holds the pipe: it ends when the last one is gone.
        reader.read_to_string(&mut line).expect("the end of the pipe");
    });
}

#[test]
fn the_host_sees_an_unprivileged_process() {
    quiet(|| {
        let slot = Slot::new();
        let (running, reader) = start(slot.container("echo up; sleep 1000; true")).expect("a container");
        let mut line = String::new();
        BufReader::new(reader).read_line(&mut line).expect("a line");
        let status = fs::read_to_string(format!("/proc/{}/status", running.pid())).expect("its status");
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim().to_owned()
        };
        let four = |id: u32| [id; 4].map(|id| id.to_string()).join("\t");
        assert_eq!(field("Uid:"), four(slot.ids.host_uid));
        assert_eq!(field("Gid:"), four(slot.ids.host_gid));
        assert_ne!(slot.ids.host_uid, 0);
        if crate::harness::is_root() {
            assert_eq!(field("Groups:"), "", "groups of root are kept");
        }
    });
}

#[test]
fn a_missing_source_is_named_and_nothing_is_left() {
    quiet(|| {
        let slot = Slot::new();
        let missing = slot.path("missing");
        let container = Container { binds: vec![bind(&missing, "/work", true)], ..slot.container("true") };
        let error = start(container).expect_err("a missing source");
        let text = chain(&error);
        assert!(text.contains(&missing.display().to_string()) && text.contains("No such file"), "{text}");
        assert!(text.contains("missing on the host"), "{text}");
    });
}

#[test]
fn a_missing_mount_point_is_named_and_nothing_is_left() {
    quiet(|| {
        let slot = Slot::new();
        let work = slot.owned("work");
        let container = Container { binds: vec![bind(&work, "/nowhere", true)], ..slot.container("true") };
        let text = chain(&start(container).expect_err("a missing mount point"));
        assert!(text.contains("on /nowhere") && text.contains("missing in the image"), "{text}");
        fs::remove_dir(slot.path("tree/proc")).expect("removal");
        let text = chain(&start(slot.container("true")).expect_err("a missing mount point"));
        assert!(text.contains("mount proc on /proc") && text.contains("missing in the image"), "{text}");
    });
}

#[test]
fn a_program_that_is_none_is_an_error_and_not_an_exit_code() {
    quiet(|| {
        let slot = Slot::new();
        let program =
            oci_runner::Program::load(&slot.file("text", "no program")).expect("any bytes can be loaded");
        let text =
            chain(&start(Container { program: &program, ..slot.container("") }).expect_err("no program"));
        assert!(text.contains("execute the program of PID 1") && text.contains("Exec format"), "{text}");
    });
}

#[test]
fn containers_start_from_many_threads_at_once() {
    quiet(|| {
        let slot = Slot::new();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let slot = &slot;
                scope.spawn(move || {
                    for round in 0..10 {
                        let said = format!("{thread}-{round}");
                        assert_eq!(run(slot.container(&format!("echo {said}"))).text, format!("{said}\n"));
                    }
                });
            }
        });
    });
}

#[test]
fn a_container_can_be_bound_to_the_thread_that_started_it() {
    quiet(|| {
        let slot = Slot::new();
        let container = Container { dies_with_starting_thread: true, ..slot.container("sleep 1000; true") };
        let (mut running, _reader) = std::thread::scope(|scope| {
            scope.spawn(|| start(container).expect("a container")).join().expect("the thread's result")
        });
        let ended = running.wait_for(LIMIT_S).expect("an answer");
        assert_eq!(ended, Some(Ended::Killed { signal: 9, core: false }));
    });
}

#[test]
fn a_delegated_cgroup_limits_memory_and_processes() {
    quiet(|| {
        let delegation = Delegation::find();
        let limits = Limits { memory_bytes: Some(32 << 20), cpu_millis: Some(500), pids: Some(20) };
        let name = format!("latebind-test-{}", std::process::id());
        let (mut cgroup, enforced) = Cgroup::create(&delegation, &name, &limits).expect("an answer");
        if [enforced.memory, enforced.cpu, enforced.pids] != [Guard::Cgroup; 3] {
            eprintln!(
                "SKIPPED: {}: a delegated cgroup with memory, cpu and pids ({enforced:?})",
                test_name()
            );
            return;
        }
        let slot = Slot::new();
        let limited = |script: &str| run(Container { cgroup: Some(&cgroup), ..slot.container(script) });
        let output = limited("i=0; while [ $i -lt 40 ]; do sleep 1000 & i=$((i+1)); done; echo none-refused");
        assert!(!output.text.contains("none-refused") && output.text.contains("fork"), "{}", output.text);
        // A pipe into `tail` that has no newline is kept in memory as a whole.
        let output = limited("head -c 200000000 /dev/zero | /bin/busybox tail; echo over");
        let figures = cgroup.figures();
        assert!(figures.oom_kills > Some(0), "{figures:?} {output:?}");
        assert!(
            figures.memory_peak_bytes.is_some_and(|peak| peak > 16 << 20 && peak <= 32 << 20),
            "{figures:?}"
        );
        assert!(cgroup.dir_fd().is_some());
        let (running, reader) =
            start(Container { cgroup: Some(&cgroup), ..slot.container("sleep 1000 & sleep 1000; true") })
                .expect("a container");
        assert!(cgroup.figures().pids > Some(0));
        cgroup.kill().expect("a kill");
        drop((running, reader));
        cgroup.remove().expect("nothing is left in it");
    });
}
