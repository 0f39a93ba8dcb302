//! Narrowing what a slot reaches of its neighbours: the containers of a pod share one network and one IPC namespace.
//!
//! | shared in a pod | closed by | what a payload meets |
//! |---|---|---|
//! | System V IPC, POSIX message queues | seccomp | `ENOSYS` |
//! | abstract unix sockets | Landlock, ABI 6 | `EPERM` for one that was made outside the slot |
//! | ports of loopback | nothing here | pods offer no control interface there |
//!
//! Everything is done in PID 1 before it starts anybody, so that holder, payloads and companions inherit it and are in
//! *one* Landlock domain: links to `/proc/<holder>/fd/N` give EACCES to a reader in a domain that the holder is not in.
//! What is set can't be taken off again (seccomp(2), landlock(7)), and no-new-privs, which both want, is set already.
//!
//! # Why `ENOSYS`
//! It is what a kernel answers that was built without these calls, so programs that have another way take it.
//! `EPERM` says "not this object" and makes some of them try the next key. PID 1 itself reads it as "nobody here can have
//! made any" when it cleans. Killing the caller would end programs that only probe.
//!
//! # Every ABI has a door
//! A 64-bit kernel serves 32-bit programs too, by other numbers, and on i386 by one call for all (`ipc`). 32-bit payloads
//! are fit to run, so a foreign ABI is not refused as a whole; each has its own list. x32 calls are those of x86-64 with
//! a bit set, which is masked. The filter looks at nothing but ABI and number, so the kernel knows beforehand what is always
//! allowed and does not run it for those (Linux 5.11).
//!
//! # What is left open, and why
//! - Queues can be made as *files* where their file system is mounted; without the calls nothing can be sent. Clean
//!   removes them.
//! - ptrace(2), process_vm_readv(2) and signals need a PID, and slots have their own PID namespaces and uids. Landlock
//!   could scope signals too, but PID 1 would be scoped with the rest, and could no longer end who came in from outside
//!   (`kubectl exec`): no launch would ever be over.
//! - keyctl(2): keyrings belong to a session, which is ours, or to a uid, which no other slot of the pod has; Clean needs the call.
//! - Who is put into the container from outside inherits nothing of this. A System V object that it makes stays until the
//!   pod goes: Clean does not look for any, and no payload can reach it.
//! - io_uring has no operation for any of this, and Landlock holds there.
//!
//! # Which kernels
//! seccomp: every one, and a slot without it is not started. Landlock: from Linux 6.12, where it is switched on; elsewhere
//! abstract sockets of the pod stay reachable, and nobody is told. Their names stay one space in any case: to bind one that a
//! neighbour has is EADDRINUSE. Pathname sockets and socketpairs are never touched.
//!
//! **Must not know:** who asks for it, and what the local backend has namespaces for.

use landlock::{Ruleset, RulesetAttr, RulesetCreated, Scope};
use libc::sock_filter;

use crate::sys;

/// A way into the kernel, and the ranges of calls that are refused there.
struct Abi {
    /// `AUDIT_ARCH_*` of linux/audit.h.
    audit: u32,
    refused: &'static [(u32, u32)],
}

/// What can be called on the machines that we build for; numbers from the kernel's tables.
const ABIS: [Abi; 4] = [
    // x86-64 and x32: shm, sem and msg, semtimedop, mq; mq_notify of x32.
    Abi { audit: 0xc000_003e, refused: &[(29, 31), (64, 71), (220, 220), (240, 245), (527, 527)] },
    // i386: ipc, mq, sem to msg, those with 64-bit time.
    Abi { audit: 0x4000_0003, refused: &[(117, 117), (277, 282), (393, 402), (418, 420)] },
    // AArch64: mq and msg, sem, shm without a gap.
    Abi { audit: 0xc000_00b7, refused: &[(180, 197)] },
    // 32-bit ARM: ipc of its old ABI, mq, sem to shm, semtimedop, those with 64-bit time.
    Abi { audit: 0x4000_0028, refused: &[(117, 117), (274, 279), (298, 308), (312, 312), (418, 420)] },
];

/// Set in the number of an x32 call; no number of another ABI has it.
const X32: u32 = 0x4000_0000;
/// Offsets in struct `seccomp_data`.
const NUMBER_AT: u32 = 0;
const ABI_AT: u32 = 4;

/// Closes what the module's table says, for this process and all that descend from it.
///
/// # Errors
/// When the kernel takes no filter. Without Landlock it is not an error, see "Which kernels".
pub fn narrow() -> std::io::Result<()> {
    let _ = Ruleset::default()
        .scope(Scope::AbstractUnixSocket)
        .and_then(Ruleset::create)
        .and_then(RulesetCreated::restrict_self);
    sys::filter_calls(&program())
}

/// One section for each ABI, jumped over by the others.
fn program() -> Vec<sock_filter> {
    let mut program = vec![load(ABI_AT)];
    for abi in &ABIS {
        let mut section = vec![load(NUMBER_AT), statement(libc::BPF_ALU | libc::BPF_AND, !X32)];
        for &(first, last) in abi.refused {
            section.push(jump(libc::BPF_JGT, last, 2, 0));
            section.push(jump(libc::BPF_JGE, first, 0, 1));
            section.push(statement(libc::BPF_RET, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned()));
        }
        section.push(statement(libc::BPF_RET, libc::SECCOMP_RET_ALLOW));
        // The kernel refuses a program that jumps past its end.
        let over = u8::try_from(section.len()).unwrap_or(u8::MAX);
        program.push(jump(libc::BPF_JEQ, abi.audit, 0, over));
        program.append(&mut section);
    }
    // There is no other on these machines; one of which we have no list would be a hole.
    program.push(statement(libc::BPF_RET, libc::SECCOMP_RET_KILL_PROCESS));
    program
}

fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn jump(condition: u32, operand: u32, when_true: u8, when_false: u8) -> sock_filter {
    sock_filter { jt: when_true, jf: when_false, ..statement(libc::BPF_JMP | condition, operand) }
}

fn statement(code: u32, operand: u32) -> sock_filter {
    // Operations are sums of bits below 256.
    sock_filter { code: code as u16, jt: 0, jf: 0, k: operand }
}

#[cfg(test)]
mod tests {
    use super::{X32, program};

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const NOSYS: u32 = libc::SECCOMP_RET_ERRNO | 38;

    /// Runs the program as the kernel does.
    fn answer(audit: u32, number: u32) -> u32 {
        let program = program();
        let (mut at, mut accumulator) = (0, 0_u32);
        loop {
            let step = program[at];
            at += 1;
            let taken = match u32::from(step.code) {
                0x20 => {
                    accumulator = [number, audit][step.k as usize / 4];
                    continue;
                }
                0x54 => {
                    accumulator &= step.k;
                    continue;
                }
                0x06 => return step.k,
                0x15 => accumulator == step.k,
                0x25 => accumulator > step.k,
                0x35 => accumulator >= step.k,
                other => panic!("operation {other:#x}"),
            };
            at += usize::from(if taken { step.jt } else { step.jf });
        }
    }

    fn refused(audit: u32, among: std::ops::Range<u32>) -> Vec<u32> {
        among.filter(|&number| answer(audit, number) == NOSYS).collect()
    }

    #[test]
    fn each_abi_loses_its_calls_and_no_other() {
        let x86_64: Vec<u32> = [29, 30, 31, 64, 65, 66, 67, 68, 69, 70, 71, 220]
            .into_iter()
            .chain(240..=245)
            .chain([527])
            .collect();
        assert_eq!(refused(0xc000_003e, 0..1000), x86_64);
        let i386: Vec<u32> =
            [117].into_iter().chain(277..=282).chain(393..=402).chain([418, 419, 420]).collect();
        assert_eq!(refused(0x4000_0003, 0..1000), i386);
        assert_eq!(refused(0xc000_00b7, 0..1000), (180..=197).collect::<Vec<_>>());
        let arm: Vec<u32> =
            [117].into_iter().chain(274..=279).chain(298..=308).chain([312, 418, 419, 420]).collect();
        assert_eq!(refused(0x4000_0028, 0..1000), arm);
    }

    #[test]
    fn x32_is_no_way_around_and_what_is_allowed_is_allowed_in_full() {
        assert_eq!(refused(0xc000_003e, X32..X32 + 600).len(), 19);
        for number in [0, 1, 28, 32, 63, 72, 219, 221, 239, 246, 435, u32::MAX] {
            assert_eq!(answer(0xc000_003e, number), ALLOW, "{number}");
        }
        assert_eq!(answer(0xc000_00f3, 0), libc::SECCOMP_RET_KILL_PROCESS, "an ABI without a list");
    }
}
