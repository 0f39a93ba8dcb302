//! Slots in cgroups, as far as they are delegated here.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::AsFd as _;

use oci_runner::cgroup::{Cgroup, Delegation, Guard, Limits, cgroup_name};
use oci_runner::{Container, Ended, Running};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::time::{ClockId, clock_gettime};

use crate::harness::{LIMIT_S, Slot, quiet, run, start, test_name};

/// Little, because an emulated machine fills it slowly.
const MEMORY_BYTES: u64 = 16 << 20;

/// Processes as an owner: tests of several users may run at a time.
fn owner() -> String {
    format!("test-{}", std::process::id())
}

/// A cgroup with all three limits, or word of its absence.
fn limited(cpu_millis: u64) -> Option<(Delegation, Cgroup)> {
    let delegation = Delegation::find();
    let limits = Limits { memory_bytes: Some(MEMORY_BYTES), cpu_millis: Some(cpu_millis), pids: Some(20) };
    let name = cgroup_name(&owner(), "0");
    let (cgroup, enforced) = Cgroup::create(&delegation, &name, &limits).expect("an answer");
    if [enforced.memory, enforced.cpu, enforced.pids] == [Guard::Cgroup; 3] {
        return Some((delegation, cgroup));
    }
    eprintln!("SKIPPED: {}: a delegated cgroup with memory, cpu and pids ({enforced:?})", test_name());
    None
}

fn start_in(cgroup: &Cgroup, slot: &Slot, script: &str) -> (Running, std::io::PipeReader) {
    start(Container { cgroup: Some(cgroup), ..slot.container(script) }).expect("a container")
}

#[test]
fn a_cgroup_is_taken_over_with_what_is_inside() {
    quiet(|| {
        let Some((delegation, made)) = limited(1000) else { return };
        let slot = Slot::new();
        let (mut running, reader) = start_in(&made, &slot, "sleep 1000 & echo up; sleep 1000; true");
        let mut line = String::new();
        BufReader::new(reader).read_line(&mut line).expect("a line");
        // As its maker's death leaves it: nothing of it is dropped.
        let mut cgroup = Cgroup::reopen(&delegation, &cgroup_name(&owner(), "0")).expect("the cgroup");
        assert!(cgroup.exists() && cgroup.dir_fd().is_some());
        let processes = cgroup.processes().expect("processes");
        assert!(processes.contains(&running.pid().unsigned_abs()), "{processes:?} {}", running.pid());
        assert!(processes.len() >= 2, "{processes:?}");
        assert!(cgroup.figures().memory_bytes > Some(0));
        cgroup.kill_all().expect("an end");
        assert!(cgroup.processes().expect("processes").is_empty());
        let killed = Ended::Killed { signal: 9, core: false };
        assert_eq!(running.wait_for(LIMIT_S).expect("an answer"), Some(killed));
        cgroup.remove().expect("nothing is left in it");
        assert!(!Cgroup::reopen(&delegation, &cgroup_name(&owner(), "0")).expect("an answer").exists());
        drop(made);
    });
}

#[test]
fn limits_are_changed_while_a_container_runs() {
    quiet(|| {
        let Some((_, cgroup)) = limited(1000) else { return };
        let slot = Slot::new();
        let hungry = "head -c 24000000 /dev/zero | /bin/busybox tail | head -c 1 >/dev/null; echo over";
        let raised = Limits { memory_bytes: Some(128 << 20), cpu_millis: Some(1000), pids: Some(20) };
        assert_eq!(cgroup.set_limits(&raised).memory, Guard::Cgroup);
        let output = run(Container { cgroup: Some(&cgroup), ..slot.container(hungry) });
        assert_eq!((output.text.as_str(), cgroup.figures().oom_kills), ("over\n", Some(0)));
        let lowered = Limits { memory_bytes: Some(MEMORY_BYTES), ..raised };
        assert_eq!(cgroup.set_limits(&lowered).memory, Guard::Cgroup);
        run(Container { cgroup: Some(&cgroup), ..slot.container(hungry) });
        assert!(cgroup.figures().oom_kills > Some(0), "{:?}", cgroup.figures());
        let lifted = cgroup.set_limits(&Limits::default());
        assert_eq!([lifted.memory, lifted.cpu, lifted.pids], [Guard::NotAsked; 3]);
        let before = cgroup.figures().oom_kills;
        let output = run(Container { cgroup: Some(&cgroup), ..slot.container(hungry) });
        assert_eq!((output.text.as_str(), cgroup.figures().oom_kills), ("over\n", before));
    });
}

#[test]
fn a_peak_is_begun_anew_where_the_kernel_can() {
    quiet(|| {
        let Some((_, cgroup)) = limited(1000) else { return };
        if cgroup.figures().memory_peak_bytes.is_none() {
            eprintln!("SKIPPED: {}: a kernel that keeps a peak", test_name());
            return;
        }
        let slot = Slot::new();
        let allocate = |bytes: u32| {
            let script = format!("head -c {bytes} /dev/zero | /bin/busybox tail >/dev/null; echo over");
            let output = run(Container { cgroup: Some(&cgroup), ..slot.container(&script) });
            assert_eq!(output.text, "over\n");
        };
        allocate(8 << 20);
        let first = cgroup.figures();
        assert!(first.memory_peak_bytes > Some(8 << 20) && !first.peak_since_reset, "{first:?}");
        let can = cgroup.reset_peak();
        allocate(1 << 20);
        let second = cgroup.figures();
        assert_eq!(second.peak_since_reset, can);
        if can {
            assert!(second.memory_peak_bytes < first.memory_peak_bytes, "{first:?} {second:?}");
            assert!(cgroup.reset_peak(), "again");
        } else {
            assert_eq!(second.memory_peak_bytes, first.memory_peak_bytes);
        }
    });
}

#[test]
fn on_v2_a_slot_that_runs_out_of_memory_goes_as_a_whole_and_says_so() {
    quiet(|| {
        let Some((delegation, cgroup)) = limited(1000) else { return };
        if delegation.version() != "v2" {
            eprintln!("SKIPPED: {}: cgroup v2 ({} here)", test_name(), delegation.version());
            return;
        }
        let slot = Slot::new();
        let script = "sleep 1000 & head -c 200000000 /dev/zero | /bin/busybox tail; echo survived";
        let (mut running, mut reader) = start_in(&cgroup, &slot, script);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("the end of the pipe");
        let killed = Ended::Killed { signal: 9, core: false };
        assert_eq!((running.wait_for(LIMIT_S).expect("an answer"), text.as_str()), (Some(killed), ""));
        let figures = cgroup.figures();
        assert!(figures.oom_kills > Some(0), "{figures:?}");
        // Killed by hand, the figure stays: that is how the two are told apart.
        let (running, _reader) = start_in(&cgroup, &slot, "sleep 1000; true");
        cgroup.kill_all().expect("an end");
        drop(running);
        assert_eq!(cgroup.figures().oom_kills, figures.oom_kills);
    });
}

#[test]
fn a_slot_gets_no_more_processor_time_than_its_share() {
    quiet(|| {
        let Some((_, cgroup)) = limited(200) else { return };
        let slot = Slot::new();
        let before_us = now_us();
        let (running, _reader) = start_in(&cgroup, &slot, "while :; do :; done");
        let used_us = || cgroup.figures().cpu_us;
        if used_us().is_none() {
            eprintln!("SKIPPED: {}: a count of processor time", test_name());
            return;
        }
        // A fifth of a processor: 0.4 s of it take 2 s, less one period that was free at the beginning.
        while used_us() < Some(400_000) {
            let pause = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
            let mut ended = [PollFd::new(&running, PollFlags::IN)];
            assert_eq!(rustix::event::poll(&mut ended, Some(&pause)), Ok(0), "it runs on");
        }
        let took_us = now_us() - before_us;
        assert!(took_us > 1_500_000, "0.4 s of processor time in {took_us} us");
        let _still_open = running.as_fd();
    });
}

#[test]
fn without_a_delegated_cgroup_limits_are_said_not_to_hold() {
    quiet(|| {
        let delegation = Delegation::find();
        if !delegation.is_empty() {
            eprintln!("SKIPPED: {}: no delegated cgroup ({} here)", test_name(), delegation.version());
            return;
        }
        let limits = Limits { memory_bytes: Some(1 << 20), cpu_millis: Some(1), pids: Some(1) };
        let (cgroup, enforced) =
            Cgroup::create(&delegation, &cgroup_name(&owner(), "0"), &limits).expect("an answer");
        assert_eq!(
            [enforced.memory, enforced.cpu, enforced.pids],
            [Guard::Rlimit, Guard::Nobody, Guard::Rlimit]
        );
        assert!(
            !cgroup.exists() && !cgroup.reset_peak() && cgroup.processes().expect("an answer").is_empty()
        );
        let slot = Slot::new();
        let output = run(Container { cgroup: Some(&cgroup), ..slot.container("echo runs; sleep 0; true") });
        assert_eq!((output.text.as_str(), output.ended), ("runs\n", Ended::Exited(0)));
    });
}

fn now_us() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}
