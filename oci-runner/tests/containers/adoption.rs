//! Taking over what another process started.

use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use oci_runner::{Container, Ended, Running};

use crate::harness::{LIMIT_S, Slot, busybox, container_of, ids, quiet, start};

/// Set for the copy of this test program that plays the pilot that dies; holds the root of its container.
const STARTER: &str = "LATEBIND_TEST_STARTER";

/// What it prints before its container's identity.
const STARTED: &str = "started: ";

#[test]
fn a_container_outlives_its_starter_and_is_adopted() {
    if let Some(tree) = std::env::var_os(STARTER) {
        die_with_a_container(tree.into());
    }
    quiet(|| {
        let slot = Slot::new();
        let (mut starter, identity) = starter(&slot);
        starter.kill().expect("a signal");
        assert_eq!(starter.wait().expect("its end").signal(), Some(9));
        let (pid, ticks) = identity;
        Running::adopt(pid, ticks + 1).expect_err("another start time is another process");
        let mut running = Running::adopt(pid, ticks).expect("the container");
        assert_eq!(running.try_wait().expect("an answer"), None, "it runs");
        assert_eq!(running.identity().expect("its identity"), identity);
        running.kill().expect("a signal");
        assert_eq!(running.wait_for(LIMIT_S).expect("an answer"), Some(Ended::Unknown));
        assert_eq!(running.try_wait().expect("an answer"), Some(Ended::Unknown), "the answer stays");
        let error = Running::adopt(pid, ticks).expect_err("it has ended");
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
    });
}

#[test]
fn dropping_an_adopted_container_ends_it() {
    quiet(|| {
        let slot = Slot::new();
        let (mut starter, (pid, ticks)) = starter(&slot);
        starter.kill().expect("a signal");
        starter.wait().expect("its end");
        let running = Running::adopt(pid, ticks).expect("the container");
        let watched = running.as_fd().try_clone_to_owned().expect("a copy");
        drop(running);
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut watched = [rustix::event::PollFd::new(&watched, rustix::event::PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut watched, Some(&now)), Ok(1), "it has ended");
    });
}

#[test]
fn an_adopted_child_is_reaped_like_any_other() {
    quiet(|| {
        let slot = Slot::new();
        let (running, _reader) = start(slot.container("exit 7")).expect("a container");
        let (pid, ticks) = running.identity().expect("its identity");
        match Running::adopt(pid, ticks) {
            Ok(mut adopted) => {
                assert_eq!(adopted.wait_for(LIMIT_S).expect("an answer"), Some(Ended::Exited(7)));
            }
            // It was faster.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
        }
        drop(running);
        Running::adopt(pid, ticks).expect_err("it was reaped");
    });
}

#[test]
fn what_has_ended_and_was_not_reaped_is_not_adopted() {
    quiet(|| {
        let Some(busybox) = busybox() else { return };
        #[expect(clippy::disallowed_methods, reason = "any process will do")]
        let mut child = Command::new(busybox).args(["sleep", "1000"]).spawn().expect("busybox");
        let ticks = |pid: u32| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its figures");
            let field = text.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(19));
            field.expect("field 22").parse::<u64>().expect("a number")
        };
        let ticks = ticks(child.id());
        let mut adopted = Running::adopt(child.id(), ticks).expect("it runs");
        child.kill().expect("a signal");
        let mut ended = [rustix::event::PollFd::new(&adopted, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut ended, None).expect("its end");
        let error = Running::adopt(child.id(), ticks).expect_err("a zombie");
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
        child.wait().expect("its end");
        assert_eq!(
            adopted.try_wait().expect("an answer"),
            Some(Ended::Unknown),
            "somebody else has reaped it"
        );
    });
}

/// Starts a copy of this program that starts a container in `slot`, and reads what to adopt.
fn starter(slot: &Slot) -> (Child, (u32, u64)) {
    let own = std::env::current_exe().expect("this program");
    #[expect(clippy::disallowed_methods, reason = "a pilot that dies has to be a process of its own")]
    let mut starter = Command::new(own)
        .args(["--exact", "adoption::a_container_outlives_its_starter_and_is_adopted", "--nocapture"])
        .env(STARTER, slot.path("tree"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program once more");
    let mut lines = BufReader::new(starter.stdout.take().expect("its stdout")).lines();
    let identity = lines.find_map(|line| {
        let line = line.expect("text");
        let (_, identity) = line.split_once(STARTED)?;
        let (pid, ticks) = identity.split_once(' ')?;
        Some((pid.parse().ok()?, ticks.parse().ok()?))
    });
    (starter, identity.expect("a container"))
}

/// The other process: it never returns.
fn die_with_a_container(tree: PathBuf) -> ! {
    let null = std::fs::File::open("/dev/null").expect("/dev/null");
    let container = Container {
        fds: vec![(null.as_fd(), 1), (null.as_fd(), 2)],
        ..container_of(tree, ids(), "sleep 1000; true")
    };
    let running = oci_runner::start(&container).expect("a container");
    let (pid, ticks) = running.identity().expect("its identity");
    #[expect(clippy::print_stdout, reason = "the test reads it")]
    {
        println!("\n{STARTED}{pid} {ticks}");
    }
    loop {
        std::thread::park();
    }
}
