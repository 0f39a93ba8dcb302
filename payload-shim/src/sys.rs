//! Every unsafe block of the shim: system calls that rustix does not wrap, and the way from fork to exec.
//!
//! **Must not know:** messages, stages, policy. Each function is one system call or one unbroken sequence of them.
//!
//! # From fork to exec
//! [`spawn`] builds every pointer array before it forks. The child touches only memory that exists already and calls
//! only functions of signal-safety(7), because it runs on a copy of a heap whose state nobody vouches for.

use std::ffi::CString;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

/// One more than the largest signal number.
const SIGNALS_END: i32 = 65;
/// Where the child keeps the pipe on which it tells why exec failed; below every descriptor of a payload's stages.
const REPORT_FD: RawFd = 3;

/// What a child does before exec, in the order in which it happens. Numbers are what [`spawn`]'s pipe carries.
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
/// an endless loop (sigprocmask(2), "Notes").
pub fn block_signals() {
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

/// Gives memory that the allocator keeps for later back to the kernel.
pub(crate) fn trim_heap() {
    // SAFETY: takes a number of bytes to keep; touches only free memory.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
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

/// Everything the child needs, as pointers and numbers.
struct Child<'a> {
    candidates: &'a [*const libc::c_char],
    argv: *const *const libc::c_char,
    env: *const *const libc::c_char,
    cwd: *const libc::c_char,
    umask: libc::mode_t,
    rlimits: &'a [(u32, u64)],
    /// From, to. All different in the second; room to move the first.
    /// The pipe for failures comes first.
    places: &'a mut [(RawFd, RawFd)],
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Forks and executes `program` with exactly the descriptors in `places`, each under the number beside it (which must
/// differ, and from 3). `report` is the close-on-exec end of a pipe: a failed step is written there as two native
/// `i32`, step and errno; success closes it.
///
/// # Errors
/// When fork fails.
pub(crate) fn spawn(
    program: &Program,
    places: &[(BorrowedFd<'_>, i32)],
    report: BorrowedFd<'_>,
) -> Result<Pid> {
    let candidates: Vec<_> = program.candidates.iter().map(|s| s.as_ptr()).collect();
    let (argv, env) = (pointers(&program.argv), pointers(&program.env));
    let mut places: Vec<(RawFd, RawFd)> = places.iter().map(|(fd, to)| (fd.as_raw_fd(), *to)).collect();
    // First, so that whatever fails later can be told.
    places.insert(0, (report.as_raw_fd(), REPORT_FD));
    let mut child = Child {
        candidates: &candidates,
        argv: argv.as_ptr(),
        env: env.as_ptr(),
        cwd: program.cwd.as_ptr(),
        umask: program.umask,
        rlimits: &program.rlimits,
        places: &mut places,
    };
    // SAFETY: the process has one thread; the child runs `run_child` only, which keeps to signal-safety(7).
    match check(unsafe { libc::fork() })? {
        0 => run_child(&mut child),
        pid => Pid::from_raw(pid).ok_or_else(|| Error::from_raw_os_error(libc::ESRCH)),
    }
}

/// Only reads a thread-local: `last_os_error` wraps the number without allocating.
fn errno() -> i32 {
    Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn fail(child: &Child<'_>, step: Step, errno: i32) -> ! {
    let report = child.places.first().map_or(REPORT_FD, |place| place.0);
    let message = [step as i32, errno];
    // SAFETY: writes eight bytes of a live local.
    unsafe { libc::write(report, message.as_ptr().cast(), size_of_val(&message)) };
    // SAFETY: leaves without running anything of the parent's.
    unsafe { libc::_exit(127) }
}

fn run_child(child: &mut Child<'_>) -> ! {
    // SAFETY: no arguments.
    if unsafe { libc::setsid() } < 0 {
        fail(child, Step::Session, errno());
    }
    // The kernel's own structure (handler, flags, restorer, mask), all zeros: default, no flags. signal(3) would refuse
    // the two numbers that the C library keeps for itself, and an inherited "ignore" would stay.
    let default = [0_u64; 4];
    for signal in 1..SIGNALS_END {
        // SAFETY: `default` is a live local of the size that the kernel reads; EINVAL for KILL and STOP is meant to be
        // ignored.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, 0_usize, size_of::<u64>())
        };
    }
    if let Err(errno) = place_descriptors(child.places) {
        fail(child, Step::Descriptors, errno);
    }
    let end = child.places.iter().map(|place| place.1).max().unwrap_or(REPORT_FD);
    // 4..10 lie between the pipe and the stages; nothing is placed there.
    close_range(4, 9);
    close_range(end.cast_unsigned().max(9) + 1, u32::MAX);
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
    fail(child, Step::Exec, exec(child))
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
