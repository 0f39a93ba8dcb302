//! What a program finds when it starts, and why it may not start.

mod common;

use std::os::fd::AsFd;

use common::{Setup, in_greeted_slots, in_slots, pipe, read_all};
use wire::slot::*;

const ENOENT: i32 = 2;
const E2BIG: i32 = 7;
const EACCES: i32 = 13;

fn failed(step: &str, errno: i32) -> LaunchRefusal {
    LaunchRefusal::Failed { step: step.into(), errno }
}

fn is_bad_request(refusal: &LaunchRefusal, part: &str) -> bool {
    matches!(refusal, LaunchRefusal::BadRequest(text) if text.contains(part))
}

#[test]
fn argv_and_env_arrive_byte_for_byte_and_nothing_is_added() {
    in_greeted_slots("bytes", |slot| {
        let mut launch = slot.launch(&["/usr/bin/od", "-An", "-c", "/proc/self/cmdline"]);
        launch.argv.push(vec![b'-', b'N', b'9', b'9', b'9']);
        launch.argv.push(b"--".to_vec());
        let tail = vec![0xff, 0xfe, b'\n', b' '];
        launch.argv = vec![
            b"sh".to_vec(),
            b"-c".to_vec(),
            b"printf %s \"$1\" | od -An -tx1; env".to_vec(),
            b"x".to_vec(),
            tail,
        ];
        launch.env = vec![b"PATH=/usr/bin:/bin".to_vec(), b"ODD=a=b".to_vec()];
        let (report, output) = slot.run(&launch);
        assert_eq!(report.status, WaitStatus::Exited(0), "{output}");
        let mut lines: Vec<&str> =
            output.lines().filter(|line| !line.starts_with("_=") && !line.starts_with("PWD=")).collect();
        lines.sort_unstable();
        assert_eq!(lines, [" ff fe 0a 20", "ODD=a=b", "PATH=/usr/bin:/bin"]);
    });
}

#[test]
fn a_payload_starts_with_clean_signals_no_privileges_and_no_strange_descriptors() {
    in_greeted_slots("clean start", |slot| {
        let mut launch = slot.shell("umask; pwd; ulimit -n; grep -E '^(Sig(Blk|Ign)|Cap|NoNew)' /proc/self/status; ls /proc/$$/fd; cut -d' ' -f6 /proc/$$/stat; echo $$");
        launch.umask = 0o027;
        launch.cwd = b"/tmp".to_vec();
        launch.rlimits = vec![Rlimit::OpenFiles(123)];
        let (_, output) = slot.run(&launch);
        let words: Vec<&str> = output.split_whitespace().collect();
        assert_eq!(words[..3], ["0027", "/tmp", "123"]);
        for set in ["SigBlk:", "SigIgn:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            let at = words.iter().position(|word| *word == set).expect(set);
            assert_eq!(words[at + 1], "0000000000000000", "{set}");
        }
        assert!(output.contains("NoNewPrivs:\t1"), "{output}");
        let end = words.len();
        // dash keeps a copy of its script's source nowhere: 0, 1, 2 and no more; then session and PID, alike.
        assert_eq!(words[end - 5..end - 2], ["0", "1", "2"], "{output}");
        assert_eq!(words[end - 1], words[end - 2], "not a session leader");
    });
}

#[test]
fn absent_standard_streams_are_the_null_device() {
    in_greeted_slots("null", |slot| {
        let (reader, writer) = pipe();
        let mut launch = slot.shell("(ls -l /proc/$$/fd/0 /proc/$$/fd/1 >&2); cat");
        launch.fds = vec![FdRole::Stderr];
        slot.begin(&launch, &[writer.as_fd()]);
        drop(writer);
        assert_eq!(slot.exited().status, WaitStatus::Exited(0));
        let listing = read_all(reader);
        assert_eq!(listing.matches("-> /dev/null").count(), 2, "{listing}");
    });
}

#[test]
fn a_missing_or_false_null_device_is_named() {
    for (extra, errno) in [
        ("umount dev/null; rm dev/null", ENOENT),
        ("umount dev/null; rm dev/null; echo > dev/null", 19),
        ("umount dev/null; rm dev/null; ln -s zero dev/null", 19),
    ] {
        in_slots("no null", Setup { extra, ..Setup::default() }, |slot| {
            slot.greet(0);
            let launch = slot.shell("true");
            assert_eq!(slot.refused(&launch, &[]), failed("/dev/null", errno), "{extra}");
        });
    }
}

#[test]
fn a_program_that_cannot_be_executed_is_refused_with_its_errno() {
    let setup = Setup {
        extra: "echo > tmp/text; echo '#!/none' > tmp/script; chmod +x tmp/script; echo x > tmp/noise; chmod +x tmp/noise",
        ..Setup::default()
    };
    in_slots("exec", setup, |slot| {
        slot.greet(0);
        for (program, errno) in [
            ("no-such-program", ENOENT),
            ("/no/such/program", ENOENT),
            ("", ENOENT),
            ("/tmp/text", EACCES),
            ("/tmp", EACCES),
            ("/tmp/script", ENOENT),
            ("/tmp/noise", 8),
        ] {
            let launch = slot.launch(&[program]);
            assert_eq!(slot.refused(&launch, &[]), failed("exec", errno), "{program}");
        }
        let mut launch = slot.launch(&["text"]);
        launch.env = vec![b"PATH=/none:/tmp:/usr/bin".to_vec()];
        assert_eq!(slot.refused(&launch, &[]), failed("exec", EACCES), "found, but not executable");
        launch = slot.shell("true");
        launch.cwd = b"/nowhere".to_vec();
        assert_eq!(slot.refused(&launch, &[]), failed("chdir", ENOENT));
        launch = slot.shell("true");
        launch.rlimits = vec![Rlimit::OpenFiles(u64::MAX - 1)];
        assert_eq!(slot.refused(&launch, &[]), failed("rlimit", 1));
        // None of this needed a Clean.
        slot.run_shell("true");
    });
}

#[test]
fn a_launch_that_contradicts_itself_is_a_bad_request() {
    in_greeted_slots("bad requests", |slot| {
        let (reader, writer) = pipe();
        let (fd, fd_too) = (reader.as_fd(), writer.as_fd());
        let mut launch = slot.shell("true");
        launch.cwd = b"work".to_vec();
        assert!(is_bad_request(&slot.refused(&launch, &[]), "working directory"));
        launch = slot.shell("true");
        launch.links = vec![InputLink { name: "x".into(), target: b"y".to_vec() }];
        assert!(is_bad_request(&slot.refused(&launch, &[]), "input x"));
        launch = slot.shell("true");
        assert!(is_bad_request(&slot.refused(&launch, &[fd]), "1 descriptors for 0 roles"));
        launch.fds = vec![FdRole::Stdin, FdRole::Stdin];
        assert!(is_bad_request(&slot.refused(&launch, &[fd, fd_too]), "stdin"));
        launch.fds = vec![FdRole::Launch];
        assert!(is_bad_request(&slot.refused(&launch, &[fd]), "launch"));
        slot.tell(&ToShim::Lend { fds: vec![FdRole::StageIn("a".into())] }, &[]);
        launch = slot.shell("true");
        assert!(is_bad_request(&slot.refused(&launch, &[]), "0 descriptors for 1 roles"));
        slot.run_shell("true");
    });
}

#[test]
fn three_megabytes_travel_in_sealed_memory() {
    in_greeted_slots("memory", |slot| {
        let mut launch = slot.shell("echo $#; echo ${#1}; echo ok");
        launch.argv.push(b"name".to_vec());
        launch.argv.extend(std::iter::repeat_n(vec![b'a'; 100_000], 30));
        let (reader, writer) = pipe();
        launch.fds = vec![FdRole::Stdout];
        for (stack, expected) in [(64 << 20, None), (1 << 20, Some(failed("exec", E2BIG)))] {
            launch.rlimits = vec![Rlimit::Stack(stack)];
            launch.id.0[0] ^= 0x80;
            let (memory, bytes) = wire::write_launch_memory(&launch).expect("write");
            let order = ToShim::LaunchInMemory { bytes, fds: vec![FdRole::Launch, FdRole::Stdout] };
            slot.tell(&order, &[memory.as_fd(), writer.as_fd()]);
            match (slot.hear(), expected) {
                (FromShim::Launched { launch: id, .. }, None) => {
                    assert_eq!(id, launch.id);
                    assert_eq!(slot.exited().status, WaitStatus::Exited(0));
                    slot.clean();
                    let path = format!("/proc/{}/status", slot.shim().as_raw_nonzero());
                    let status = std::fs::read_to_string(path).expect("status");
                    let line =
                        status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
                    let kib: u32 = line.trim().trim_end_matches(" kB").parse().expect("KiB");
                    assert!(kib < 1024, "{kib} KiB stay with the shim");
                }
                (FromShim::LaunchRefused { launch: id, refusal }, Some(expected)) => {
                    assert_eq!((id, refusal), (launch.id, expected));
                }
                (other, _) => panic!("{other:?}"),
            }
        }
        drop(writer);
        assert_eq!(read_all(reader), "30\n100000\nok\n");
    });
}

#[test]
fn memory_that_is_no_launch_is_a_bad_request_without_an_id() {
    in_greeted_slots("no launch", |slot| {
        for loose in [common::memory(b"loose", 0o600), pipe().0] {
            let order = ToShim::LaunchInMemory { bytes: 5, fds: vec![FdRole::Launch] };
            slot.tell(&order, &[loose.as_fd()]);
            match slot.hear() {
                FromShim::LaunchRefused { launch, refusal } => {
                    assert_eq!(launch, LaunchId([0; 16]));
                    assert!(is_bad_request(&refusal, "sealed"), "{refusal:?}");
                }
                other => panic!("{other:?}"),
            }
        }
        slot.run_shell("true");
    });
}

#[test]
fn without_a_process_table_there_is_no_slot() {
    in_slots("no proc", Setup { extra: "umount -l proc", ..Setup::default() }, |slot| {
        let (code, text) = slot.exit();
        assert_eq!(code, Some(70));
        assert!(text.contains("process table"), "{text}");
    });
}
