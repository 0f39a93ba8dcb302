//! Every unsafe block of the shim: system calls that rustix does not wrap, and the way from fork to exec.
//!
//! **Must not know:** messages, stages, policy. Each function is one system call or one unbroken sequence of them.
//!
//! # From fork to exec
//! Every pointer array is built before the fork. The child touches only memory that exists already and calls only
//! functions of signal-safety(7). [`spawn`]'s child runs on a copy of our memory; [`spawn_alone`]'s runs on our memory
//! itself, on a stack of its own, while we stand still (vfork(2)): no page tables are copied and torn down again, which
//! is most of what a fork costs.

use std::ffi::CString;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

/// One more than the largest signal number.
const SIGNALS_END: i32 = 65;
/// Where the child keeps the pipe on which it tells why exec failed; below every descriptor of a payload's stages.
const REPORT_FD: RawFd = 3;

/// Room for the child of [`spawn_alone`] before its exec; only touched pages cost.
const STACK_BYTES: usize = 64 * 1024;

/// What a child does before exec, in the order in which it happens. The numbers are told when one fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// setsid(2).
    Session = 1,
    /// Putting descriptors in their places.
    Descriptors = 2,
    /// chdir(2).
    Chdir = 3,
    /// setrlimit(2).
    Rlimit = 4,
    /// execve(2), every candidate.
    Exec = 5,
}

/// A program with everything its child needs, made before the fork.
#[derive(Debug)]
pub(crate) struct Program {
    /// Paths to try in order.
    pub(crate) candidates: Vec<CString>,
    /// Arguments, the program's name included.
    pub(crate) argv: Vec<CString>,
    /// The whole environment.
    pub(crate) env: Vec<CString>,
    /// Working directory.
    pub(crate) cwd: CString,
    /// File mode creation mask.
    pub(crate) umask: u32,
    /// `RLIMIT_*` number and value; soft and hard alike.
    pub(crate) rlimits: Vec<(u32, u64)>,
}

fn check(result: libc::c_int) -> Result<libc::c_int> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

/// Blocks every signal but those that the kernel raises for a fault of our own: blocking these would turn a crash into
/// an endless loop (sigprocmask(2), "Notes"). What was inherited as ignored, and what the runtime of Rust ignores, gets
/// its default disposition, which children inherit; handlers need not be undone, exec does it.
pub fn block_signals() {
    for signal in 1..SIGNALS_END {
        unignore(signal);
    }
    // SAFETY: sigset_t is plain data for which all zeros is a value; sigfillset then sets it in full.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a live local.
    unsafe { libc::sigfillset(&raw mut set) };
    for signal in
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS, libc::SIGABRT]
    {
        // SAFETY: `set` was initialised above.
        unsafe { libc::sigdelset(&raw mut set, signal) };
    }
    // SAFETY: `set` is initialised; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) };
}

/// signal(3) would refuse the two numbers that the C library keeps for itself; hence the kernel's own structure:
/// handler, flags, restorer, mask. All zeros is the default disposition.
fn unignore(signal: libc::c_int) {
    let size = size_of::<u64>();
    let mut old = [0_u64; 4];
    // SAFETY: `old` is a live local of the size that the kernel writes; nothing is set.
    let got = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, 0_usize, &raw mut old, size) };
    if got == 0 && old[0] == libc::SIG_IGN as u64 {
        let default = [0_u64; 4];
        // SAFETY: `default` is a live local of the size that the kernel reads; no handler runs anything of ours.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, 0_usize, size) };
    }
}

/// A non-blocking descriptor that becomes readable when one of `signals`, which must be blocked, is pending.
pub(crate) fn signal_descriptor(signals: &[i32]) -> Result<OwnedFd> {
    // SAFETY: as in block_signals.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a live local.
    unsafe { libc::sigemptyset(&raw mut set) };
    for &signal in signals {
        // SAFETY: `set` was initialised above; a bad number is an error return, not undefined.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    // SAFETY: `set` is initialised; -1 asks for a new descriptor.
    let fd = check(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })?;
    // SAFETY: signalfd just made it, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes a descriptor that was inherited under a number that the environment named.
///
/// # Errors
/// `EBADF` when it is not open, `EINVAL` for the standard streams.
pub(crate) fn adopt_descriptor(number: RawFd) -> Result<OwnedFd> {
    if number <= 2 {
        return Err(Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: F_SETFD takes an integer; an unknown number is EBADF.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open (F_SETFD succeeded) and above the standard streams; called once per name at start, before
    // anything else was opened, so no other owner exists.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes descriptors 3 and up except `keep`. For the start of the process only: what std or a library holds would be
/// closed under it.
pub(crate) fn close_inherited(keep: &[BorrowedFd<'_>]) {
    let mut kept: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
    kept.sort_unstable();
    let mut from = 3;
    for fd in kept {
        if fd > from {
            close_range(from, fd - 1);
        }
        from = fd + 1;
    }
    close_range(from, u32::MAX);
}

/// `close_range(2)`; on kernels before 5.9 one by one, up to the limit on open descriptors.
fn close_range(first: u32, last: u32) {
    // SAFETY: numbers only; the callers name descriptors that nothing in this process owns.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0 {
        return;
    }
    // SAFETY: sysconf only reads.
    let open_max = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
    let end = u32::try_from(open_max).unwrap_or(1024).min(last.saturating_add(1)).min(65_536);
    for fd in first..end {
        // SAFETY: as above; closing a number that is not open is EBADF.
        unsafe { libc::close(fd.cast_signed()) };
    }
}

unsafe extern "C" {
    static mut environ: *mut *mut libc::c_char;
}

/// Overwrites the initial environment with zeros, so that neither a copy of this process nor `/proc/<pid>/environ`
/// tells what was in it, and makes it empty. The shim has one thread and keeps no pointer into it.
pub(crate) fn wipe_environment() {
    // SAFETY: one thread, so nobody changes the pointer while it is read.
    let list = unsafe { environ };
    if list.is_null() {
        return;
    }
    let mut at = list;
    loop {
        // SAFETY: `list` is a NULL-terminated array and we stop at its NULL.
        let text = unsafe { *at };
        if text.is_null() {
            break;
        }
        // SAFETY: each entry is a NUL-terminated string.
        let length = unsafe { libc::strlen(text) };
        // SAFETY: `length` bytes at `text` belong to the process's own writable stack (execve(2)) or heap.
        unsafe { std::ptr::write_bytes(text, 0, length) };
        // SAFETY: stays within the array, whose NULL was not reached.
        at = unsafe { at.add(1) };
    }
    // SAFETY: the array has at least its NULL entry.
    unsafe { *list = std::ptr::null_mut() };
}

/// Sends `signal` to one process, or to every process that may be signalled when `pid` is `None`.
///
/// # Errors
/// As kill(2).
pub(crate) fn kill(pid: Option<Pid>, signal: i32) -> Result<()> {
    // SAFETY: numbers only. The callers pass None only as PID 1 of a namespace, which kill(-1) spares.
    check(unsafe { libc::kill(pid.map_or(-1, |pid| pid.as_raw_nonzero().get()), signal) }).map(|_| ())
}

/// Any child that has ended: who, the raw wait status, and what it used. `None` when no child has.
pub(crate) fn wait_any() -> Option<(Pid, i32, libc::rusage)> {
    let mut status = 0;
    // SAFETY: rusage is plain data for which all zeros is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are live locals of the right types.
    let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG | libc::__WALL, &raw mut usage) };
    (pid > 0).then(|| Pid::from_raw(pid).map(|pid| (pid, status, usage))).flatten()
}

/// Scheduling policy and I/O priority of this process; an error's -1 is a number like others.
pub(crate) fn policies() -> (i64, i64) {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: a number.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
    // SAFETY: numbers.
    (policy, unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) })
}

/// Gives memory that the allocator keeps for later back to the kernel.
pub(crate) fn trim_heap() {
    // SAFETY: takes a number of bytes to keep; touches only free memory.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Puts a filter over the system calls of this process and of all that descend from it; no-new-privs must be set.
///
/// Before Linux 5.16 a filter also switches a mitigation on that slows programs down (speculative store bypass). It is
/// meant for code that runs beside a secret in one process, which a payload's does not: it stays as it was.
///
/// # Errors
/// As seccomp(2).
pub(crate) fn filter_calls(program: &[libc::sock_filter]) -> Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| Error::from_raw_os_error(libc::E2BIG))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW);
    // SAFETY: the kernel reads `len` instructions at `filter`, which the slice outlives, and copies them.
    check_long(unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) })
}

/// Kinds of System V IPC objects.
#[derive(Clone, Copy, Debug)]
pub(crate) enum IpcKind {
    /// Shared memory.
    Shm,
    /// Semaphore sets.
    Sem,
    /// Message queues.
    Msg,
}

/// How many objects of a kind the IPC namespace has, whoever owns them; one call instead of reading a table.
///
/// # Errors
/// As shmctl(2), semctl(2), msgctl(2).
pub(crate) fn count_ipc(kind: IpcKind) -> Result<i32> {
    // From the kernel's headers; the bindings do not have them all.
    const MSG_INFO: libc::c_int = 12;
    const SHM_INFO: libc::c_int = 14;
    const SEM_INFO: libc::c_int = 19;
    // Longer than each of the three structures; as words, so that all are aligned.
    let mut words = [0_u64; 32];
    let info = (&raw mut words).cast::<libc::c_void>();
    let at = match kind {
        // SAFETY: SHM_INFO writes a struct shm_info of 48 bytes.
        IpcKind::Shm => check(unsafe { libc::shmctl(0, SHM_INFO, info.cast()) }).map(|_| 0),
        // SAFETY: SEM_INFO writes a struct seminfo of ten int.
        IpcKind::Sem => check(unsafe { libc::semctl(0, 0, SEM_INFO, info) }).map(|_| 7),
        // SAFETY: MSG_INFO writes a struct msginfo of 32 bytes.
        IpcKind::Msg => check(unsafe { libc::msgctl(0, MSG_INFO, info.cast()) }).map(|_| 0),
    }?;
    // used_ids is the first int of the first, semusz the eighth of the second, msgpool the first of the third.
    let bytes = words[at / 2].to_ne_bytes();
    let (ints, _) = bytes.as_chunks::<4>();
    Ok(ints.get(at % 2).copied().map_or(0, i32::from_ne_bytes))
}

/// Removes a System V IPC object.
///
/// # Errors
/// As shmctl(2), semctl(2), msgctl(2).
pub(crate) fn remove_ipc(kind: IpcKind, id: i32) -> Result<()> {
    let null = std::ptr::null_mut();
    check(match kind {
        // SAFETY: IPC_RMID does not look at the buffer.
        IpcKind::Shm => unsafe { libc::shmctl(id, libc::IPC_RMID, null) },
        // SAFETY: IPC_RMID takes no fourth argument.
        IpcKind::Sem => unsafe { libc::semctl(id, 0, libc::IPC_RMID) },
        // SAFETY: IPC_RMID does not look at the buffer.
        IpcKind::Msg => unsafe { libc::msgctl(id, libc::IPC_RMID, null.cast()) },
    })
    .map(|_| ())
}

/// Gives this process a session keyring of its own, in place of the one that its pilot was started with (session-keyring(7)).
///
/// # Errors
/// As keyctl(2).
pub(crate) fn join_session_keyring() -> Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: a null name is what asks for an anonymous keyring; nothing is read or written.
    check_long(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, anonymous) })
}

/// Empties the keyrings that processes of this session and user share (keyrings(7)).
pub(crate) fn clear_keyrings() {
    const CLEAR: libc::c_int = 7;
    const SESSION: libc::c_int = -3;
    const USER: libc::c_int = -4;
    const USER_SESSION: libc::c_int = -5;
    for keyring in [SESSION, USER, USER_SESSION] {
        // SAFETY: plain numbers. A kernel or a filter without keyrings leaves nothing to clear.
        let _ = unsafe { libc::syscall(libc::SYS_keyctl, CLEAR, keyring) };
    }
}

fn check_long(answer: libc::c_long) -> Result<()> {
    if answer < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Everything the child needs, as pointers and numbers.
struct Child<'a> {
    candidates: &'a [*const libc::c_char],
    argv: *const *const libc::c_char,
    env: *const *const libc::c_char,
    cwd: *const libc::c_char,
    umask: libc::mode_t,
    rlimits: &'a [(u32, u64)],
    /// From, to. All different in the second; room to move the first. The pipe for failures, if any, comes first.
    places: &'a mut [(RawFd, RawFd)],
    /// Whether the first place is a pipe on which to tell a failure; else it is told in `failed`.
    piped: bool,
    /// Step and errno.
    failed: Option<(i32, i32)>,
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Forks and executes `program` with exactly the descriptors in `places`, each under the number beside it (which must
/// differ, and be below 3 or from 10). `report` is the close-on-exec end of a pipe: a failed step is written there as
/// two native `i32`, step and errno; success closes it.
///
/// # Errors
/// When fork fails.
pub(crate) fn spawn(
    program: &Program,
    places: &[(BorrowedFd<'_>, i32)],
    report: BorrowedFd<'_>,
) -> Result<Pid> {
    // First, so that whatever fails later can be told.
    let first = Some((report.as_raw_fd(), REPORT_FD));
    with_child(program, places, first, |child| {
        // SAFETY: the process has one thread; the child runs `run_child` only, which keeps to signal-safety(7).
        match check(unsafe { libc::fork() })? {
            0 => run_child(child),
            pid => Pid::from_raw(pid).ok_or_else(|| Error::from_raw_os_error(libc::ESRCH)),
        }
    })
}

/// The same without a copy of our memory and without a pipe: comes back when the program was executed or a step has
/// failed, and says which step and errno that was; the child is then to be waited for like any other.
///
/// Nothing but SIGKILL reaches us meanwhile, so nobody may be there who could stop the child on its way.
///
/// # Errors
/// When clone(2) fails.
pub(crate) fn spawn_alone(
    program: &Program,
    places: &[(BorrowedFd<'_>, i32)],
) -> Result<(Pid, Option<(i32, i32)>)> {
    let mut stack: Vec<u8> = Vec::with_capacity(STACK_BYTES);
    // SAFETY: one past the end of the allocation; the child writes below it only, into memory that nobody reads.
    let top = unsafe { stack.as_mut_ptr().add(STACK_BYTES) };
    with_child(program, places, None, |child| {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: CLONE_VFORK keeps this thread, the only one, from running until the child has left our memory, so
        // `stack` and `child` outlive its use of them and nothing changes at the same time. It runs `run_child` only,
        // which neither allocates nor unwinds; its signals are blocked as ours are until just before the exec.
        let pid = unsafe { libc::clone(enter_child, top.cast(), flags, (&raw mut *child).cast()) };
        let pid = Pid::from_raw(check(pid)?).ok_or_else(|| Error::from_raw_os_error(libc::ESRCH))?;
        Ok((pid, child.failed))
    })
}

extern "C" fn enter_child(child: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `spawn_alone` passes its `Child`, which nobody else uses while this runs.
    run_child(unsafe { &mut *child.cast::<Child<'_>>() })
}

fn with_child<T>(
    program: &Program,
    places: &[(BorrowedFd<'_>, i32)],
    pipe: Option<(RawFd, RawFd)>,
    start: impl FnOnce(&mut Child<'_>) -> T,
) -> T {
    let candidates: Vec<_> = program.candidates.iter().map(|s| s.as_ptr()).collect();
    let (argv, env) = (pointers(&program.argv), pointers(&program.env));
    let given = places.iter().map(|(fd, to)| (fd.as_raw_fd(), *to));
    let mut places: Vec<(RawFd, RawFd)> = pipe.into_iter().chain(given).collect();
    start(&mut Child {
        candidates: &candidates,
        argv: argv.as_ptr(),
        env: env.as_ptr(),
        cwd: program.cwd.as_ptr(),
        umask: program.umask,
        rlimits: &program.rlimits,
        places: &mut places,
        piped: pipe.is_some(),
        failed: None,
    })
}

/// Only reads a thread-local: `last_os_error` wraps the number without allocating.
fn errno() -> i32 {
    Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn fail(child: &mut Child<'_>, step: Step, errno: i32) -> ! {
    if child.piped {
        let report = child.places.first().map_or(REPORT_FD, |place| place.0);
        let message = [step as i32, errno];
        // SAFETY: writes eight bytes of a live local.
        unsafe { libc::write(report, message.as_ptr().cast(), size_of_val(&message)) };
    }
    child.failed = Some((step as i32, errno));
    // SAFETY: leaves without running anything of the parent's.
    unsafe { libc::_exit(127) }
}

fn run_child(child: &mut Child<'_>) -> ! {
    // SAFETY: no arguments.
    if unsafe { libc::setsid() } < 0 {
        fail(child, Step::Session, errno());
    }
    if let Err(errno) = place_descriptors(child.places) {
        fail(child, Step::Descriptors, errno);
    }
    let end = child.places.iter().map(|place| place.1).max().unwrap_or(REPORT_FD);
    // Up to 9 there is the pipe, if any, and nothing else.
    let first = if child.piped { REPORT_FD + 1 } else { REPORT_FD };
    if end < 10 {
        close_range(first.cast_unsigned(), u32::MAX);
    } else {
        close_range(first.cast_unsigned(), 9);
        close_range(end.cast_unsigned() + 1, u32::MAX);
    }
    // SAFETY: `cwd` is a CString that the parent keeps until after the fork.
    if unsafe { libc::chdir(child.cwd) } < 0 {
        fail(child, Step::Chdir, errno());
    }
    // SAFETY: a number.
    unsafe { libc::umask(child.umask) };
    for &(resource, value) in child.rlimits {
        let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
        // SAFETY: `limit` is a live local.
        if unsafe { libc::setrlimit(resource, &raw const limit) } < 0 {
            fail(child, Step::Rlimit, errno());
        }
    }
    // SAFETY: sigset_t is plain data for which all zeros is the empty set on Linux.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is initialised.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
    let errno = exec(child);
    fail(child, Step::Exec, errno)
}

/// Tries every candidate; comes back with the errno to report, chosen as execvp(3) does.
fn exec(child: &Child<'_>) -> i32 {
    let mut answer = libc::ENOENT;
    for &path in child.candidates {
        // SAFETY: NUL-terminated strings and NULL-terminated arrays made before the fork.
        unsafe { libc::execve(path, child.argv, child.env) };
        match errno() {
            libc::EACCES => answer = libc::EACCES,
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV => {}
            other => return other,
        }
    }
    answer
}

/// Puts each descriptor under its number. A source that sits where another must go is moved up first; each source is
/// closed after its last use, so that the table grows by the moved ones only.
fn place_descriptors(places: &mut [(RawFd, RawFd)]) -> std::result::Result<(), i32> {
    let above = places.iter().map(|place| place.1).max().unwrap_or(REPORT_FD) + 1;
    for at in 0..places.len() {
        let (_, to) = places[at];
        let mut moved = -1;
        for later in places.iter_mut().skip(at + 1).filter(|later| later.0 == to) {
            if moved < 0 {
                // SAFETY: numbers only.
                moved = unsafe { libc::fcntl(to, libc::F_DUPFD_CLOEXEC, above) };
                if moved < 0 {
                    return Err(errno());
                }
            }
            later.0 = moved;
        }
        let from = places[at].0;
        let flags = if to == REPORT_FD { libc::FD_CLOEXEC } else { 0 };
        if from != to {
            // SAFETY: numbers only; what sat at `to` was moved or is not wanted in this child.
            if unsafe { libc::dup2(from, to) } < 0 {
                return Err(errno());
            }
            if from > 2 && !places.iter().skip(at + 1).any(|later| later.0 == from) {
                // SAFETY: this child's own copy, not used again.
                unsafe { libc::close(from) };
            }
        }
        places[at].0 = to;
        // SAFETY: numbers only; the descriptor was just placed.
        if unsafe { libc::fcntl(to, libc::F_SETFD, flags) } < 0 {
            return Err(errno());
        }
    }
    Ok(())
}
