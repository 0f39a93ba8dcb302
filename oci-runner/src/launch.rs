//! Starts a container and hands out the handle to it.
//!
//! ```text
//!  parent                                child (PID 1 of new user, mount, pid, ipc, uts [, net] namespaces)
//!  plan, strings, [sources]
//!  clone3 ─────────────────────────────> close, open sources
//!  uid_map, gid_map
//!  one byte ───────────────────────────> ids, mounts, enter, drop privileges
//!  end of the report pipe <───────────── exec
//! ```
//! **Guarantees:** when [`start`] returns `Ok`, PID 1 runs its program; when it returns `Err`, nothing is left of the
//! attempt. Everything in the container dies with PID 1.
//!
//! **Assumptions:** Linux >= 5.12 (mount_setattr), a `/proc` on the host. The call blocks for about 2 ms; it may be
//! made from several threads at once.
//!
//! **Must not know:** what the program says or does.

use std::ffi::{CString, NulError};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use crate::apply::Failed;
use crate::cgroup::Cgroup;
use crate::child::{self, ChildPlan, Finish, REPORT_BYTES, Report, Stage};
use crate::container::{Container, Network};
use crate::error::{StartError, step_failed};
use crate::idmap::{Authority, IdMap};
use crate::mounts::MountStep;
use crate::plan::{PROGRAM_PATH, plan};
use crate::prepare::Prepared;
use crate::program::Program;
use crate::running::Running;
use crate::sys::{self, Spawned, Strings};

/// How long a start may take. It is 2 ms of work; a network file system that hangs is what this is for.
const START_LIMIT_S: i64 = 30;

/// Starts `container`. Blocks until its PID 1 runs, for at most 30 s.
pub fn start(container: &Container<'_>) -> Result<Running, StartError> {
    let steps = plan(container)?;
    let mounts = Prepared::new(&steps)?;
    let (program, path) = match container.program {
        Program::Sealed { memory } => (Some(memory.as_raw_fd()), c"".to_owned()),
        Program::File { .. } => (None, CString::new(PROGRAM_PATH)?),
    };
    let finish = Finish::Exec {
        program,
        path,
        argv: Strings::new(strings(&container.argv)?),
        env: Strings::new(strings(&container.env)?),
    };
    let pass: Vec<(i32, i32)> = container.fds.iter().map(|(fd, number)| (fd.as_raw_fd(), *number)).collect();
    if let Some((_, number)) = pass.iter().find(|(_, number)| *number < 0) {
        return Err(StartError::DescriptorNumber { number: *number });
    }
    let cgroup_error = |source| StartError::Cgroup { source };
    let birthplace = container.cgroup.map_or(Ok(None), Cgroup::birthplace).map_err(cgroup_error)?;
    let entrances = container.cgroup.map_or(Ok(Vec::new()), Cgroup::entrances).map_err(cgroup_error)?;
    let cgroups: Vec<i32> = entrances.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect();
    let mut keep: Vec<i32> = pass.iter().map(|(ours, _)| *ours).collect();
    keep.extend(program);
    keep.extend(&cgroups);
    let stay = ascending(pass.iter().map(|(_, number)| *number).chain(0..=2).collect());
    let child = ChildPlan {
        mounts,
        ids: container.ids,
        hostname: container.hostname.clone().into_bytes(),
        loopback: container.network == Network::None,
        nested_user_namespaces: container.nested_user_namespaces,
        dies_with_starting_thread: container.dies_with_starting_thread,
        pass,
        cgroups,
        keep,
        stay,
        go: -1,
        report: -1,
        finish,
    };
    let network = if container.network == Network::None { libc::CLONE_NEWNET } else { 0 };
    let mut launch = Launch::new(child, &steps, container.ids);
    let spawned = launch.spawn(network, birthplace.as_ref().map(OwnedFd::as_fd))?;
    launch.complete(spawned)
}

/// Makes the namespaces and the mounts of `steps`, and reads `path` inside: a probe's way to ask by doing.
pub(crate) fn try_out(
    steps: &[MountStep],
    ids: IdMap,
    path: &std::ffi::CStr,
    begins: &'static [u8],
) -> Result<(), StartError> {
    let child = ChildPlan {
        mounts: Prepared::new(steps)?,
        ids,
        hostname: Vec::new(),
        loopback: false,
        nested_user_namespaces: false,
        dies_with_starting_thread: false,
        pass: Vec::new(),
        cgroups: Vec::new(),
        keep: Vec::new(),
        stay: Vec::new(),
        go: -1,
        report: -1,
        finish: Finish::Check { path: path.to_owned(), begins },
    };
    let mut launch = Launch::new(child, steps, ids);
    let spawned = launch.spawn(0, None)?;
    launch.complete(spawned).map(drop)
}

/// One attempt.
struct Launch<'a> {
    child: ChildPlan,
    steps: &'a [MountStep],
    ids: IdMap,
    pipes: Option<Pipes>,
}

struct Pipes {
    go: OwnedFd,
    go_child: OwnedFd,
    report: OwnedFd,
    report_child: OwnedFd,
}

impl<'a> Launch<'a> {
    fn new(child: ChildPlan, steps: &'a [MountStep], ids: IdMap) -> Self {
        Self { child, steps, ids, pipes: None }
    }

    fn spawn(&mut self, more_flags: i32, cgroup: Option<BorrowedFd<'_>>) -> Result<Spawned, StartError> {
        if self.ids.authority == Authority::Privileged {
            let owners = self.child.mounts.is_writable_overlay().then(|| owners(self.ids)).transpose()?;
            let opened = self.child.mounts.open_sources_detached(owners.as_ref().map(OwnedFd::as_fd));
            opened.map_err(|Failed { step, errno }| {
                step_failed(self.steps, &Report { stage: Stage::Sources, step, errno })
            })?;
        }
        let pipe = || {
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
                .map_err(|errno| StartError::Pipe { source: errno.into() })
        };
        let ((go_child, go), (report, report_child)) = (pipe()?, pipe()?);
        self.child.go = go_child.as_raw_fd();
        self.child.report = report_child.as_raw_fd();
        self.child.keep.extend([self.child.go, self.child.report]);
        self.child.keep.extend(self.child.mounts.open_fds().map(|fd| fd.as_raw_fd()));
        self.child.keep = ascending(std::mem::take(&mut self.child.keep));
        self.pipes = Some(Pipes { go, go_child, report, report_child });
        let namespaces = libc::CLONE_NEWUSER
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | more_flags;
        let child = &mut self.child;
        sys::spawn(namespaces as u64, cgroup, || child::run(child)).map_err(|source| {
            match Errno::from_io_error(&source) {
                // clone(2) knows these for CLONE_INTO_CGROUP alone.
                Some(Errno::ACCESS | Errno::BUSY | Errno::OPNOTSUPP | Errno::NODEV) if cgroup.is_some() => {
                    StartError::Cgroup { source }
                }
                _ => StartError::Namespaces { source },
            }
        })
    }

    fn complete(mut self, Spawned { pid, pidfd }: Spawned) -> Result<Running, StartError> {
        // From here on, every return without success drops this and so ends the child.
        let running = Running::new(pid, pidfd);
        let Some(Pipes { go, go_child, report, report_child }) = self.pipes.take() else {
            return Err(StartError::Vanished);
        };
        drop((go_child, report_child));
        if let Err(error) = write_maps(pid, self.ids) {
            // A child that has failed already has no maps to write; what it says of itself is the reason.
            drop(go);
            return Err(match read_report(&report) {
                Ok(Some(report)) if report.stage != Stage::Wait => step_failed(self.steps, &report),
                _ => error,
            });
        }
        match rustix::io::write(&go, &[1]) {
            Ok(_) | Err(Errno::PIPE) => {}
            Err(errno) => return Err(StartError::Pipe { source: errno.into() }),
        }
        match read_report(&report)? {
            None => Ok(running),
            Some(report) => Err(step_failed(self.steps, &report)),
        }
    }
}

/// A user namespace that says: what is root's on disk is the container's. Only its descriptor is needed, so its one
/// process ends here.
fn owners(ids: IdMap) -> Result<OwnedFd, StartError> {
    let spawned = sys::spawn(libc::CLONE_NEWUSER as u64, None, || sys::sleep_for_ever());
    let Spawned { pid, pidfd } = spawned.map_err(|source| StartError::Namespaces { source })?;
    let _ends_here = Running::new(pid, pidfd);
    write_maps(pid, IdMap { inside_uid: 0, inside_gid: 0, ..ids })?;
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/user"));
    namespace.map(OwnedFd::from).map_err(|source| StartError::Map { name: "ns/user", source })
}

fn write_maps(pid: i32, ids: IdMap) -> Result<(), StartError> {
    let write = |name: &'static str, text: &str| {
        OpenOptions::new()
            .write(true)
            .open(format!("/proc/{pid}/{name}"))
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|source| StartError::Map { name, source })
    };
    // Privileged maps need no such promise; the child then clears its groups itself.
    if ids.authority == Authority::Own {
        write("setgroups", "deny")?;
    }
    write("uid_map", &ids.uid_line())?;
    write("gid_map", &ids.gid_line())
}

/// What the child reports; `None` when it became its program.
fn read_report(pipe: &OwnedFd) -> Result<Option<Report>, StartError> {
    let pipe_error = |errno: Errno| StartError::Pipe { source: errno.into() };
    let mut bytes = [0u8; REPORT_BYTES];
    loop {
        let limit = Timespec { tv_sec: START_LIMIT_S, tv_nsec: 0 };
        match rustix::event::poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&limit)) {
            Ok(0) => return Err(StartError::TooSlow { limit_s: START_LIMIT_S }),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(pipe_error(errno)),
        }
        return match rustix::io::read(pipe, &mut bytes) {
            Ok(0) => Ok(None),
            // Written at once and below PIPE_BUF, so it can't be in pieces.
            Ok(REPORT_BYTES) => Report::decode(&bytes).map(Some).ok_or(StartError::Vanished),
            Ok(_) => Err(StartError::Vanished),
            Err(Errno::INTR) => continue,
            Err(errno) => Err(pipe_error(errno)),
        };
    }
}

fn ascending(mut numbers: Vec<i32>) -> Vec<i32> {
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

fn strings(strings: &[String]) -> Result<Vec<CString>, NulError> {
    strings.iter().map(|string| CString::new(string.as_str())).collect()
}
