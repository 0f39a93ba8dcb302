//! A payload that wants what PID 1 has. Same uid, same namespaces: only "not dumpable" stands between them.

mod common;

use std::os::fd::AsFd;

use common::{in_greeted_slots, memory, python};
use wire::slot::*;

const ROBBER: &str = r#"
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
DENIED = (errno.EPERM, errno.EACCES)
def refused(name, call):
    try:
        value = call()
    except OSError as error:
        code = error.errno
    else:
        code = ctypes.get_errno() if value is not None and value < 0 else 0
    absent = code == errno.ENOENT and ' fd ' in name
    print(name, 'refused' if code in DENIED or absent else 'GOT THROUGH errno %d' % code)
def robbery(pid, who):
    for name in ('mem', 'environ', 'maps', 'auxv', 'syscall'):
        refused(who + ' ' + name, lambda: os.close(os.open('/proc/%d/%s' % (pid, name), os.O_RDONLY)) or len(open('/proc/%d/%s' % (pid, name), 'rb').read(1)))
    refused(who + ' mem write', lambda: os.open('/proc/%d/mem' % pid, os.O_RDWR))
    for fd in range(0, 12):
        refused('%s fd %d' % (who, fd), lambda: os.open('/proc/%d/fd/%d' % (pid, fd), os.O_RDONLY))
    refused(who + ' cwd', lambda: len(os.readlink('/proc/%d/cwd' % pid)))
    refused(who + ' ptrace', lambda: libc.ptrace(16, pid, 0, 0))
    refused(who + ' seize', lambda: libc.ptrace(0x4206, pid, 0, 0))
    pidfd = os.pidfd_open(pid)
    for fd in range(0, 12):
        refused('%s pidfd_getfd %d' % (who, fd), lambda: libc.syscall(438, pidfd, fd, 0))
    local = ctypes.create_string_buffer(8)
    iov = (ctypes.c_size_t * 2)(ctypes.addressof(local), 8)
    remote = (ctypes.c_size_t * 2)(0x400000, 8)
    refused(who + ' vm_readv', lambda: libc.syscall(310, pid, iov, 1, remote, 1, 0))
robbery(1, 'pid 1')
holder = int(os.readlink('/stage/in/x').split('/')[2])
print('holder holds', sorted(os.readlink('/proc/%d/fd/%s' % (holder, fd)).split(':')[0].split(' ')[0] for fd in os.listdir('/proc/%d/fd' % holder)))
print('holder environ', open('/proc/%d/environ' % holder, 'rb').read())
hunt = bytes([0xa5]) * 16
found = 0
with open('/proc/%d/mem' % holder, 'rb', 0) as memory:
    for line in open('/proc/%d/maps' % holder):
        low, high = (int(part, 16) for part in line.split()[0].split('-'))
        if line.split()[1][0] != 'r' or '[v' in line: continue
        try:
            memory.seek(low); data = memory.read(high - low)
        except OSError: continue
        found += data.count(hunt) + data.count(b'a5' * 16)
print('nonce in holder', found)
"#;

#[test]
fn nothing_can_be_taken_from_pid_1_and_the_holder_has_stages_only() {
    if python().is_none() {
        return common::skip("robbery", "no /usr/bin/python3");
    }
    in_greeted_slots("robbery", |slot| {
        let stage = memory(b"x", 0o444);
        for round in ["first holder", "holder after Clean"] {
            slot.tell(&ToShim::Lend { fds: vec![FdRole::StageIn("x".into())] }, &[stage.as_fd()]);
            let launch = slot.launch(&["/usr/bin/python3", "-c", ROBBER]);
            let (report, output) = slot.run(&launch);
            assert_eq!(report.status, WaitStatus::Exited(0), "{output}");
            assert!(!output.contains("GOT THROUGH"), "{output}");
            assert_eq!(output.matches("refused").count(), 34, "{output}");
            let holds = "holder holds ['/memfd', 'socket', 'socket', 'socket']";
            assert!(output.contains(holds), "{round}: {output}");
            assert!(output.contains("holder environ b''"), "{round}: {output}");
            assert!(output.contains("nonce in holder 0"), "{round}: {output}");
            slot.clean();
        }
    });
}

#[test]
fn the_environment_of_pid_1_is_wiped() {
    in_greeted_slots("environment", |slot| {
        if !rustix::process::geteuid().is_root() {
            return common::skip("environment", "reading it needs root");
        }
        let path = format!("/proc/{}/environ", slot.shim().as_raw_nonzero());
        let environ = std::fs::read(path).expect("read");
        assert!(environ.iter().all(|&byte| byte == 0), "{}", String::from_utf8_lossy(&environ));
    });
}

/// Makes the holder fork a child that waits for ever, every 20 ms, for ever.
const TAKE_OVER: &str = r#"
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long
holder = int(os.readlink('/stage/in/x').split('/')[2])
if libc.ptrace(16, holder, None, None) < 0:
    print('not allowed')
else:
    os.waitpid(holder, 0x40000000)
    at = libc.ptrace(3, holder, 128, None)
    # The call it was in begins anew two bytes before, or not; four bytes do nothing.
    code = bytes.fromhex('90909090b8390000000f0585c07412488d3d1400000031f6b8230000000f05ebe3b8220000000f05ebf70000000000000000002d310100000000')
    with open('/proc/%d/mem' % holder, 'r+b', 0) as memory:
        memory.seek(at - 2)
        memory.write(code)
    libc.ptrace(17, holder, None, None)
    while not os.path.exists('/proc/%d/task/%d/children' % (holder, holder)) or not open('/proc/%d/task/%d/children' % (holder, holder)).read(): pass
    print('taken over')
"#;

#[test]
fn a_holder_that_was_taken_over_leaves_nobody_behind() {
    if python().is_none() || !cfg!(target_arch = "x86_64") {
        return common::skip("taken over", "no /usr/bin/python3, or another processor than x86-64");
    }
    in_greeted_slots("taken over", |slot| {
        let stage = memory(b"x", 0o444);
        slot.tell(&ToShim::Lend { fds: vec![FdRole::StageIn("x".into())] }, &[stage.as_fd()]);
        let launch = slot.launch(&["/usr/bin/python3", "-c", TAKE_OVER]);
        let (report, output) = slot.run(&launch);
        assert_eq!(report.status, WaitStatus::Exited(0), "{output}");
        if output == "not allowed\n" {
            return common::skip("taken over", "ptrace(2) is not allowed here");
        }
        assert_eq!(output, "taken over\n");
        assert_eq!(slot.clean().failures, 0);
        let count = "readlink /stage/in/x; ls /proc | grep -c '^[0-9]'";
        assert_eq!(slot.run_shell(count), "5\n", "shim, a fresh holder, sh, ls, grep");
    });
}
