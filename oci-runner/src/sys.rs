//! All unsafe code of this crate: the kernel calls that rustix does not offer, each behind one safe function.
//!
//! Functions marked *child* are called between `clone3` and `execveat`, in a copy of a process whose other threads
//! are gone in the middle of whatever they did. They make raw system calls on memory prepared before, allocate
//! nothing and take no lock.

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;

/// A process made by [`spawn`].
#[derive(Debug)]
pub(crate) struct Spawned {
    /// Its number in our pid namespace.
    pub(crate) pid: i32,
    /// Its pidfd, close-on-exec.
    pub(crate) pidfd: OwnedFd,
}

/// Starts a process with new namespaces (`CLONE_NEW*` in `flags`) and a copy of our memory, that runs `body` and
/// exits with what it returns. It begins in the v2 cgroup behind `cgroup` (Linux >= 5.7), or in ours. All signals are blocked across the call, so that no handler of ours ever runs in the
/// child; the child begins with default actions and everything still blocked ([`unblock_signals`]).
///
/// `body` is bound by the *child* rule of this module.
pub(crate) fn spawn(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    body: impl FnOnce() -> i32,
) -> io::Result<Spawned> {
    let mut pidfd: c_int = -1;
    let into_cgroup = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    let mut args = CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND | into_cgroup,
        cgroup: cgroup.map_or(0, |cgroup| u64::from(cgroup.as_raw_fd().unsigned_abs())),
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    let before = set_signal_mask(u64::MAX);
    // SAFETY: `args` is a valid struct clone_args of the size given, and without CLONE_VM the child has its own copy
    // of memory and stack, so it returns here as after fork(2).
    let pid = unsafe { libc::syscall(libc::SYS_clone3, ptr::from_mut(&mut args), size_of::<CloneArgs>()) };
    if pid == 0 {
        // A panic must not unwind into the caller, of whom this is a copy.
        let _no_way_back = ExitOnDrop;
        default_signal_actions();
        let code = body();
        exit(code);
    }
    let result = if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    set_signal_mask(before);
    result?;
    // SAFETY: the kernel has just stored a new descriptor there, which nobody else knows of.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Spawned { pid: i32::try_from(pid).map_err(io::Error::other)?, pidfd })
}

struct ExitOnDrop;

impl Drop for ExitOnDrop {
    fn drop(&mut self) {
        exit(libc::EXIT_FAILURE);
    }
}

/// `CLONE_CLEAR_SIGHAND` (Linux >= 5.5), which libc declares as an out-of-range int.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// `CLONE_INTO_CGROUP` (Linux >= 5.7), likewise.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` in the form of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Kernel signal sets are 64 bits wide on every architecture of ours.
const SIGSET_BYTES: usize = 8;

fn set_signal_mask(mask: u64) -> u64 {
    let mut before = 0u64;
    // SAFETY: both pointers lead to 8 bytes, the size given.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            ptr::from_ref(&mask),
            ptr::from_mut(&mut before),
            SIGSET_BYTES,
        )
    };
    before
}

/// *Child*: lets signals in again, just before exec.
pub(crate) fn unblock_signals() {
    set_signal_mask(0);
}

/// *Child*: CLONE_CLEAR_SIGHAND spares what is ignored (Rust ignores SIGPIPE), and so would exec.
fn default_signal_actions() {
    // struct sigaction of the kernel: handler (0 = default), flags, restorer, mask.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: `default` is as large as the kernel's struct sigaction on all 64-bit architectures, and the old
        // action is not asked for. SIGKILL and SIGSTOP answer EINVAL, which is as good.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null::<u64>(), SIGSET_BYTES)
        };
    }
}

/// *Child*: ends this process without running anything of ours.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: takes an integer, does not return.
    unsafe { libc::_exit(code) }
}

/// Argument vectors in the form execve wants, built before the clone.
#[derive(Debug)]
pub(crate) struct Strings {
    pointers: Vec<*const c_char>,
    /// Keeps alive what `pointers` lead to.
    _strings: Vec<CString>,
}

impl Strings {
    pub(crate) fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        Self { pointers, _strings: strings }
    }
}

/// *Child*: becomes the program behind `program`, or the one at `path` when that is not empty. Returns only on failure.
pub(crate) fn exec(program: BorrowedFd<'_>, path: &CStr, argv: &Strings, env: &Strings) -> Errno {
    // SAFETY: both vectors end in a null pointer and lead to strings that `Strings` keeps alive.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            path.as_ptr(),
            argv.pointers.as_ptr(),
            env.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    last_errno()
}

fn last_errno() -> Errno {
    // libc::syscall leaves the number in a thread-local, which the child has a copy of.
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

/// What [`mount_setattr`] changes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MountAttributes {
    /// `MOUNT_ATTR_*` to be set.
    pub(crate) set: u64,
    /// Detach from propagation, so that nothing mounted below is seen elsewhere.
    pub(crate) private: bool,
    /// Also on every mount below.
    pub(crate) recursive: bool,
}

/// *Child*: changes the mount that `mount` is the root of (Linux >= 5.12).
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, attributes: MountAttributes) -> Result<(), Errno> {
    let attr: [u64; 4] = [attributes.set, 0, if attributes.private { libc::MS_PRIVATE } else { 0 }, 0];
    let flags = libc::AT_EMPTY_PATH | if attributes.recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attr` has the layout and the size of struct mount_attr.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            attr.as_ptr(),
            size_of_val(&attr),
        )
    };
    check(result).map(drop)
}

/// Shows the files of a detached mount with the owners that user namespace `owners` maps theirs to (Linux >= 5.12;
/// which file systems can do it grows with the version).
pub(crate) fn mount_set_owners(mount: BorrowedFd<'_>, owners: BorrowedFd<'_>) -> Result<(), Errno> {
    let owners = u64::from(owners.as_raw_fd().unsigned_abs());
    let attr: [u64; 4] = [libc::MOUNT_ATTR_IDMAP, 0, 0, owners];
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: `attr` has the layout and the size of struct mount_attr.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            attr.as_ptr(),
            size_of_val(&attr),
        )
    };
    check(result).map(drop)
}

/// *Child*: sleeps until killed.
pub(crate) fn sleep_for_ever() -> ! {
    loop {
        // SAFETY: takes nothing.
        unsafe { libc::syscall(libc::SYS_pause) };
    }
}

/// *Child*: closes every descriptor from `first` to `last`, both included.
///
/// The caller's own `OwnedFd`s in that range are void afterwards; the child ends in exec or exit, so none of them is
/// ever dropped.
pub(crate) fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: takes integers. Descriptors of the parent are not touched, the table is the child's own copy.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// *Child*: lets exec close every descriptor from `first` on (Linux >= 5.11).
pub(crate) fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: takes integers, and closes nothing yet.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    check(result).map(drop)
}

/// *Child*: a copy of `fd` with a number of at least `least`, close-on-exec and never closed by us.
pub(crate) fn duplicate_at_least(fd: RawFd, least: RawFd) -> Result<RawFd, Errno> {
    // SAFETY: takes integers and makes a new descriptor.
    let result = unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, least) };
    check(result).and_then(|fd| RawFd::try_from(fd).map_err(|_| Errno::OVERFLOW))
}

/// *Child*: makes `number` a copy of `fd` that survives exec, whatever it was before.
pub(crate) fn duplicate_onto(fd: RawFd, number: RawFd) -> Result<(), Errno> {
    // SAFETY: takes integers; the descriptor replaced is one that the child no longer uses.
    check(unsafe { libc::syscall(libc::SYS_dup3, fd, number, 0) }).map(drop)
}

/// *Child*: a descriptor number as something to call with.
pub(crate) fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: called in the child with numbers that it keeps open until exec.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// *Child*: empties the capability bounding set, so that no exec can ever give a capability back.
pub(crate) fn drop_bounding_set() -> Result<(), Errno> {
    for capability in 0..64u64 {
        // SAFETY: takes integers.
        let result = unsafe { libc::syscall(libc::SYS_prctl, libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match check(result) {
            // Past the last capability this kernel knows.
            Err(Errno::INVAL) if capability > 0 => return Ok(()),
            other => other?,
        };
    }
    Ok(())
}

/// *Child*: sets the loopback interface of a new network namespace up.
pub(crate) fn bring_up_loopback() -> Result<(), Errno> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // struct ifreq: 16 bytes of name, then a union of which the flags are the first 16 bits.
    let mut request = [0u8; 40];
    request[..2].copy_from_slice(b"lo");
    let up = u16::try_from(libc::IFF_UP | libc::IFF_RUNNING).map_err(|_| Errno::OVERFLOW)?;
    request[16..18].copy_from_slice(&up.to_ne_bytes());
    // SAFETY: `request` is as large as struct ifreq and initialised.
    let result =
        unsafe { libc::syscall(libc::SYS_ioctl, socket.as_raw_fd(), libc::SIOCSIFFLAGS, request.as_ptr()) };
    check(result).map(drop)
}

/// The version of Landlock that the kernel offers; `None` without Landlock.
pub(crate) fn landlock_abi() -> Option<u32> {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the call reads no memory and makes no descriptor.
    let result =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0usize, VERSION) };
    check(result).ok().and_then(|abi| u32::try_from(abi).ok())
}

/// Whether a seccomp filter may kill a thread, which every kernel with filters can.
pub(crate) fn seccomp_filters() -> bool {
    const GET_ACTION_AVAIL: c_int = 2;
    let action: u32 = libc::SECCOMP_RET_ERRNO;
    // SAFETY: reads four bytes behind the pointer.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, ptr::from_ref(&action)) };
    result == 0
}

/// Whether a read lease can be had on `file`; it is given back at once.
pub(crate) fn read_lease(file: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: takes integers.
    check(unsafe { libc::syscall(libc::SYS_fcntl, file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) })?;
    // SAFETY: takes integers.
    check(unsafe { libc::syscall(libc::SYS_fcntl, file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) })
        .map(drop)
}
