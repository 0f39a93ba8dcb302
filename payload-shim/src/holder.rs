//! The stage holder: a process that keeps stage descriptors open so that `/proc/<holder>/fd/N` leads to them.
//!
//! It must be dumpable, or those links give EACCES; so the payload, which has the same uid, can trace it and take what
//! it has. Therefore it is not a fork of PID 1 but executes the program anew: its memory never held the nonce, a
//! launch or a result. Its standard streams are the private socket, so that it holds nothing else.
//!
//! There is one only while stages are lent. It is ended by Clean, because a payload may have changed it; after a payload
//! with stages the next one is started at once, and waits.
//!
//! It dies with PID 1. It blocks every signal, so that a payload's `kill(-1, SIGTERM)` is not its end; SIGKILL is, and
//! PID 1 then ends the payload. PID 1 talks to it only while no payload runs and believes nothing but a number.
//!
//! **Must not know:** names, roles, messages of the pilot.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, set_dumpable_behavior,
    set_parent_process_death_signal, waitpid,
};
use wire::frame::{FRAME_FDS_MAX, receive, send};

use crate::clock::span_ms;
use crate::failure::Failure;
use crate::launch::{self, Started};
use crate::sys::{self, Program};

/// The argument that makes this program a holder.
pub const ARGUMENT: &str = "stage-holder";
/// A healthy holder answers in microseconds.
const ANSWER_MS_MAX: u64 = 2000;

/// PID 1's end.
#[derive(Debug)]
pub struct Holder {
    pid: Pid,
    socket: OwnedFd,
}

impl Holder {
    /// Starts one; does not wait until it can serve. `alone` as in [`crate::launch::start`].
    ///
    /// # Errors
    /// When there is no memory or no `/proc/self/exe`.
    pub(crate) fn start(alone: bool) -> Result<Self, Failure> {
        let flags = SocketFlags::CLOEXEC;
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(Failure::at("holder"))?;
        let program = Program {
            candidates: vec![c"/proc/self/exe".into()],
            argv: vec![c"payload-shim".into(), std::ffi::CString::new(ARGUMENT).unwrap_or_default()],
            env: Vec::new(),
            cwd: c"/".into(),
            umask: 0o077,
            rlimits: Vec::new(),
        };
        let places = [(theirs.as_fd(), 0), (theirs.as_fd(), 1), (theirs.as_fd(), 2)];
        let Started { pid, exec } = launch::spawn(&program, &places, alone)
            .map_err(|failure| Failure { step: "holder", ..failure })?;
        if let Some(Err(failure)) = exec.outcome() {
            return Err(Failure { step: "holder", ..failure });
        }
        Ok(Self { pid, socket })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Ends it and waits for that, so that the next payload does not meet it. One that hangs in the kernel is found by
    /// the next look at the process table.
    pub(crate) fn end(self) {
        self.kill();
        // Linux before 5.3 has no such descriptor; the loop reaps it then.
        let Ok(process) = pidfd_open(self.pid, PidfdFlags::empty()) else { return };
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        if matches!(poll(&mut ended, Some(&span_ms(ANSWER_MS_MAX))), Ok(1..)) {
            let _ = waitpid(Some(self.pid), WaitOptions::NOHANG);
        }
    }

    /// Ends it. The loop reaps.
    pub(crate) fn kill(&self) {
        // ESRCH can't be: it is our child and not reaped while this value exists. EPERM can't be: same uid.
        let _ = sys::kill(Some(self.pid), libc::SIGKILL);
    }

    /// Hands over descriptors; answers with the numbers under which it keeps them, in order.
    ///
    /// # Errors
    /// When it is gone or does not answer.
    pub(crate) fn hold(&self, fds: &[BorrowedFd<'_>]) -> Result<Vec<u32>, Failure> {
        let mut numbers = Vec::with_capacity(fds.len());
        for some in fds.chunks(FRAME_FDS_MAX) {
            send(self.socket.as_fd(), b"hold", some).map_err(|_| Failure::at("holder")(Errno::PIPE))?;
            let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut ready, Some(&span_ms(ANSWER_MS_MAX))).map_err(Failure::at("holder"))? {
                0 => return Err(Failure::at("holder")(Errno::TIMEDOUT)),
                _ => numbers.extend(self.answer(some.len())?),
            }
        }
        Ok(numbers)
    }

    fn answer(&self, count: usize) -> Result<Vec<u32>, Failure> {
        let frame = receive(self.socket.as_fd()).ok().flatten().ok_or(Failure::at("holder")(Errno::PIPE))?;
        let (numbers, []) = frame.bytes.as_chunks::<4>() else {
            return Err(Failure::at("holder")(Errno::PROTO));
        };
        if numbers.len() != count {
            return Err(Failure::at("holder")(Errno::PROTO));
        }
        Ok(numbers.iter().map(|bytes| u32::from_ne_bytes(*bytes)).collect())
    }
}

/// The holder's whole life. Ends when PID 1 closes its end or breaks the rules.
pub fn serve() {
    // Set at exec already, unless the program's file is not readable for us.
    if set_dumpable_behavior(DumpableBehavior::Dumpable).is_err()
        || set_parent_process_death_signal(Some(Signal::KILL)).is_err()
    {
        return;
    }
    let _ = rustix::thread::set_name(c"stage-holder");
    let stream = std::io::stdin();
    let mut held: Vec<OwnedFd> = Vec::new();
    while let Ok(Some(frame)) = receive(stream.as_fd()) {
        let mut answer = Vec::with_capacity(frame.fds.len() * 4);
        for fd in &frame.fds {
            answer.extend(number(fd).to_ne_bytes());
        }
        held.extend(frame.fds);
        if send(stream.as_fd(), &answer, &[]).is_err() {
            return;
        }
    }
}

fn number(fd: &OwnedFd) -> u32 {
    std::os::fd::AsRawFd::as_raw_fd(fd).cast_unsigned()
}
