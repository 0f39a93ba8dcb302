//! A slot that shares a pod: what it must not reach, and that all else goes on as ever.

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

use common::{Setup, Slot, exec, in_slots, memory, pipe, python, read_all, read_line, skip};
use rustix::process::Signal;
use wire::slot::*;

const IN_POD: Setup = Setup {
    uid: None,
    extra: "mkdir outside dev/mqueue; mount --bind \"$BASE/control\" outside; mount -t mqueue mqueue dev/mqueue",
    nonce: common::NONCE,
    settings: "LATEBIND_CONFINE=pod",
    own_pids: true,
};

/// Runs the test in a greeted slot of a pod.
fn in_pod(name: &str, test: impl Fn(&mut Slot)) {
    in_slots(name, IN_POD, |slot| {
        slot.greet(10_000);
        test(slot);
    });
}

fn run_python(slot: &mut Slot, program: &str) -> String {
    let launch = slot.launch(&["/usr/bin/python3", "-c", program]);
    let (report, output) = slot.run(&launch);
    assert_eq!(report.status, WaitStatus::Exited(0), "{output}");
    output
}

/// Every call by its number on this machine, with arguments that it would otherwise answer by another error, or take.
const CALLS: &str = r#"
import ctypes, errno, platform
libc = ctypes.CDLL(None, use_errno=True)
names = 'shmget shmat shmctl shmdt semget semop semctl semtimedop msgget msgsnd msgrcv msgctl mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr'.split()
numbers = {
    'x86_64': [29, 30, 31, 67, 64, 65, 66, 220, 68, 69, 70, 71, 240, 241, 242, 243, 244, 245],
    'aarch64': [194, 196, 195, 197, 190, 193, 191, 192, 186, 189, 188, 187, 180, 181, 182, 183, 184, 185],
}[platform.machine()]
def tell(name, answer):
    print(name, errno.errorcode[ctypes.get_errno()] if answer < 0 else 'got through')
for name, number in zip(names, numbers):
    tell(name, libc.syscall(number, 0, 0, 0, 0, 0))
tell('shmget', libc.shmget(5, 4096, 0o1600))
tell('semget', libc.semget(5, 1, 0o1600))
tell('msgget', libc.msgget(5, 0o1600))
tell('mq_open', libc.mq_open(b'/x', 0o102, 0o600, None))
"#;

#[test]
fn there_is_no_system_v_ipc_and_no_message_queue() {
    if python().is_none() {
        return skip("calls", "no /usr/bin/python3");
    }
    in_pod("calls", |slot| {
        let told = run_python(slot, CALLS);
        assert_eq!((told.lines().count(), told.matches(" ENOSYS\n").count()), (22, 22), "{told}");
        assert_eq!(slot.clean(), CleanReport::default());
    });
    in_slots("calls without a pod", Setup { settings: "", ..IN_POD }, |slot| {
        slot.greet(0);
        let told = run_python(slot, CALLS);
        assert!(!told.contains("ENOSYS"), "{told}");
        let report = slot.clean();
        assert!(report.ipc_objects >= 4 && report.failures == 0, "{report:?}");
    });
}

/// As a 32-bit program would, by `int 0x80`: first getpid(2), whether the kernel serves such programs at all.
const CALLS_32: &str = r#"
import ctypes, errno, mmap, os
# push rbx; mov eax, edi; mov ebx, esi; mov ecx, edx; xor edx, edx; xor esi, esi; xor edi, edi; int 0x80; pop rbx; ret
code = bytes.fromhex('5389f889f389d131d231f631ffcd805bc3')
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(code)
call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
child = os.fork()
if child == 0:
    os._exit(0 if call(20, 0, 0) == os.getpid() else 1)
if os.waitpid(child, 0)[1] != 0:
    print('not served')
else:
    # ipc: MSGGET of key 0; mq_unlink; semget; msgget.
    for number, first in ((117, 13), (278, 0), (393, 0), (399, 0), (20, 0)):
        print(number, errno.errorcode.get(-call(number, first, 0), 'got through'))
"#;

#[test]
fn the_calls_of_32_bit_programs_are_no_way_around_and_the_programs_run() {
    if python().is_none() || !cfg!(target_arch = "x86_64") {
        return skip("32-bit calls", "no /usr/bin/python3, or another processor than x86-64");
    }
    in_pod("32-bit calls", |slot| {
        let told = run_python(slot, CALLS_32);
        if told == "not served\n" {
            return skip("32-bit calls", "the kernel runs no 32-bit programs");
        }
        assert_eq!(told, "117 ENOSYS\n278 ENOSYS\n393 ENOSYS\n399 ENOSYS\n20 got through\n");
    });
}

#[test]
fn a_queue_that_was_made_as_a_file_goes_with_clean() {
    in_pod("queue file", |slot| {
        slot.run_shell(": > /dev/mqueue/x");
        let report = slot.clean();
        assert_eq!((report.ipc_objects, report.failures), (1, 0));
        assert_eq!(slot.run_shell("ls /dev/mqueue"), "");
    });
}

/// The version of Landlock, then what becomes of each socket.
const SOCKETS: &str = r#"
import ctypes, errno, os, socket, sys
print(ctypes.CDLL(None).syscall(444, None, 0, 1), flush=True)
def attempt(name, act):
    try:
        act()
        print(name, 'ok', flush=True)
    except OSError as error:
        print(name, errno.errorcode[error.errno], flush=True)
stream = lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
attempt('stream', lambda: stream().connect('\0' + sys.argv[1]))
attempt('datagram', lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', '\0' + sys.argv[2]))
attempt('path', lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect('/outside/sock'))
listener = stream()
listener.bind('\0' + sys.argv[3])
listener.listen()
if os.fork() == 0:
    os.setsid()
    attempt('inside', lambda: stream().connect('\0' + sys.argv[3]))
    os._exit(0)
os.wait()
listener.accept()
print('up', flush=True)
# From outside.
listener.accept()
"#;

fn sockets(slot: &mut Slot) -> (i32, String) {
    let name = slot.base().display().to_string();
    let [stream, datagram, inside] = ["stream", "datagram", "inside"].map(|kind| format!("{name}/{kind}"));
    let address = |name: &str| SocketAddr::from_abstract_name(name).expect("address");
    let _listener = UnixListener::bind_addr(&address(&stream)).expect("bind");
    let _receiver = UnixDatagram::bind_addr(&address(&datagram)).expect("bind");
    let mut launch = slot.launch(&["/usr/bin/python3", "-c", SOCKETS, &stream, &datagram, &inside]);
    let (reader, writer) = pipe();
    launch.fds = vec![FdRole::Stdout, FdRole::Stderr];
    slot.begin(&launch, &[writer.as_fd(), writer.as_fd()]);
    drop(writer);
    let landlock = read_line(&reader).parse().expect("version");
    let lines: Vec<String> = std::iter::repeat_with(|| read_line(&reader)).take(5).collect();
    UnixStream::connect_addr(&address(&inside)).expect("a pilot may connect into a slot");
    assert_eq!(read_all(reader), "");
    assert_eq!(slot.exited().status, WaitStatus::Exited(0));
    (landlock, lines.join(", "))
}

#[test]
fn abstract_sockets_outside_are_out_of_reach_and_those_inside_are_not() {
    if python().is_none() {
        return skip("sockets", "no /usr/bin/python3");
    }
    let open = "stream ok, datagram ok, path ok, inside ok, up";
    in_pod("sockets", |slot| {
        let (landlock, told) = sockets(slot);
        if landlock < 6 {
            assert_eq!(told, open);
            return skip("sockets", "Landlock is off, or older than Linux 6.12");
        }
        assert_eq!(told, "stream EPERM, datagram EPERM, path ok, inside ok, up");
    });
    in_slots("sockets without a pod", Setup { settings: "", ..IN_POD }, |slot| {
        slot.greet(0);
        assert_eq!(sockets(slot).1, open);
    });
}

#[test]
fn abstract_sockets_of_another_slot_are_out_of_reach() {
    if python().is_none() {
        return skip("another slot", "no /usr/bin/python3");
    }
    in_pod("another slot", |slot| {
        let name = slot.base().display().to_string();
        let mut other = Slot::start(IN_POD);
        other.greet(10_000);
        let listen = "import socket, sys, time\ns = socket.socket(socket.AF_UNIX)\ns.bind('\\0' + sys.argv[1])\ns.listen()\nprint('up', flush=True)\ntime.sleep(1000)";
        let (reader, writer) = pipe();
        let mut launch = other.launch(&["/usr/bin/python3", "-c", listen, &name]);
        launch.fds = vec![FdRole::Stdout];
        other.begin(&launch, &[writer.as_fd()]);
        assert_eq!(read_line(&reader), "up");
        let attempt = format!(
            "import ctypes, socket\nprint(ctypes.CDLL(None).syscall(444, None, 0, 1))\nprint(socket.socket(socket.AF_UNIX).connect_ex('\\0{name}'))"
        );
        let told = run_python(slot, &attempt);
        let (landlock, errno) = told.trim().split_once('\n').expect("two lines");
        let expected = if landlock.parse::<i32>().expect("version") < 6 { "0" } else { "1" };
        assert_eq!(errno, expected, "Landlock {landlock}");
    });
}

#[test]
fn files_can_be_moved_and_linked_between_folders_as_before() {
    in_pod("files", |slot| {
        slot.run_shell("mkdir a b; : > a/x; ln a/x b/y; mv a/x b/x; mkfifo a/f");
        assert_eq!(slot.clean().failures, 0);
    });
}

fn with_stages(slot: &mut Slot, script: &str) -> (ExitReport, String, OwnedFd) {
    let (input, output) = (memory(b"hits", 0o444), memory(b"", 0o666));
    let mut launch = slot.shell(script);
    launch.fds = vec![FdRole::StageIn("x".into()), FdRole::StageOut("y".into()), FdRole::Stdout];
    let (reader, writer) = pipe();
    slot.begin(&launch, &[input.as_fd(), output.as_fd(), writer.as_fd()]);
    drop(writer);
    (slot.exited(), read_all(reader), output)
}

#[test]
fn stages_are_reached_from_payload_after_payload_and_clean_leaves_nothing() {
    in_pod("stages", |slot| {
        for _ in 0..3 {
            let script = "setsid -w sh -c 'cat /stage/in/x; echo fit > /stage/out/y'; echo > /tmp/z; (setsid sleep 1000 &)";
            let (report, said, output) = with_stages(slot, script);
            assert_eq!((report.status, said.as_str()), (WaitStatus::Exited(0), "hits"));
            assert_eq!(report.leftover_processes, 1);
            let mut text = [0; 8];
            let length = rustix::io::pread(&output, &mut text, 0).expect("read");
            assert_eq!(&text[..length], b"fit\n");
            let cleaned = slot.clean();
            assert_eq!((cleaned.files, cleaned.failures), (3, 0), "two links and a file");
        }
    });
}

#[test]
fn the_ladder_helpers_and_sigterm_go_on_as_ever() {
    in_pod("ladder", |slot| {
        let (reader, writer) = pipe();
        let forever = "while :; do read x <> /idle; done";
        let mut launch = slot.shell(&format!("trap 'echo term' TERM; echo up; {forever}"));
        launch.fds = vec![FdRole::Stdout];
        slot.begin(&launch, &[writer.as_fd()]);
        drop(writer);
        assert_eq!(read_line(&reader), "up");
        slot.tell(&ToShim::Exec(exec(1, "kill -0 1")), &[]);
        assert_eq!(slot.hear(), FromShim::ExecEnded { id: 1, status: Ok(WaitStatus::Exited(0)) });
        slot.tell(&ToShim::Stop { grace_ms: 200 }, &[]);
        let report = slot.exited();
        assert_eq!((report.status, report.stopped), (WaitStatus::Signaled { signal: 9, core: false }, true));
        assert_eq!(read_all(reader), "term\n");
        assert_eq!(slot.clean(), CleanReport::default());
        slot.signal_from_outside(Signal::TERM);
        assert_eq!(slot.exit(), (Some(143), String::new()));
    });
}

/// As `kubectl exec` does. This is why signals are not scoped.
#[test]
fn who_came_in_from_outside_does_not_keep_a_payload_from_being_over() {
    if !rustix::process::geteuid().is_root() || !Path::new("/usr/bin/nsenter").exists() {
        return skip("outsiders in a pod", "entering a PID namespace needs root and nsenter(1)");
    }
    in_pod("outsiders in a pod", |slot| {
        let (mut outsider, output) = slot.enter("echo in; exec sleep 1000");
        assert_eq!(read_line(&output), "in");
        let launch = slot.shell("true");
        assert_eq!(slot.run(&launch).0.leftover_processes, 1);
        assert!(!outsider.wait().expect("wait").success());
        assert_eq!(slot.clean(), CleanReport::default());
    });
}

#[test]
fn a_word_that_is_not_known_starts_nothing() {
    in_slots("word", Setup { settings: "LATEBIND_CONFINE=node", ..IN_POD }, |slot| {
        let (code, text) = slot.exit();
        assert_eq!(code, Some(70));
        assert!(text.contains("LATEBIND_CONFINE") && !text.contains("node"), "{text}");
    });
}
