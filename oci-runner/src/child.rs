//! What the new process does between the clone and its program: one path, no way back.
//!
//! ```text
//!  close what is not ours -> enter the cgroup -> own session -> open sources (Own) -> wait for the maps -> ids -> mounts -> enter
//!     -> no namespaces below -> name, loopback -> no privileges -> descriptors -> exec
//! ```
//! It is PID 1 of its pid namespace. A failure is written to the report pipe as one [`Report`] and ends it; success
//! closes the pipe, which is close-on-exec.
//!
//! **Must not know:** what the program is. Must not allocate, lock or panic (see [`crate::sys`]).

use std::ffi::{CStr, CString};
use std::os::fd::AsRawFd;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use crate::apply::Failed;
use crate::idmap::{Authority, IdMap};
use crate::prepare::Prepared;
use crate::sys::{self, Strings};

/// Exit code of a child that could not become its program; the reason went through the pipe.
const EXIT_FAILED: i32 = 70;

/// Where in the child's path something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Descriptors,
    Cgroup,
    Wait,
    Ids,
    Sources,
    Mounts,
    NestedNamespaces,
    Hostname,
    Loopback,
    Privileges,
    Passing,
    Exec,
    /// A probe's own question had another answer than expected.
    Check,
}

const STAGES: [Stage; 13] = [
    Stage::Descriptors,
    Stage::Cgroup,
    Stage::Wait,
    Stage::Ids,
    Stage::Sources,
    Stage::Mounts,
    Stage::NestedNamespaces,
    Stage::Hostname,
    Stage::Loopback,
    Stage::Privileges,
    Stage::Passing,
    Stage::Exec,
    Stage::Check,
];

/// One failure, as it travels through the pipe.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Report {
    pub(crate) stage: Stage,
    /// Step of the plan, for [`Stage::Sources`] and [`Stage::Mounts`].
    pub(crate) step: usize,
    pub(crate) errno: Errno,
}

/// Bytes of an encoded [`Report`]; below PIPE_BUF, so it arrives whole.
pub(crate) const REPORT_BYTES: usize = 12;

impl Report {
    fn encode(self) -> [u8; REPORT_BYTES] {
        let mut bytes = [0; REPORT_BYTES];
        bytes[..4].copy_from_slice(&(self.stage as u32).to_ne_bytes());
        bytes[4..8].copy_from_slice(&(self.step as u32).to_ne_bytes());
        bytes[8..].copy_from_slice(&self.errno.raw_os_error().to_ne_bytes());
        bytes
    }

    /// `None` when the bytes are no report.
    pub(crate) fn decode(bytes: &[u8; REPORT_BYTES]) -> Option<Self> {
        let word = |at: usize| bytes[at..at + 4].try_into().map(u32::from_ne_bytes).ok();
        Some(Self {
            stage: *STAGES.get(word(0)? as usize)?,
            step: word(4)? as usize,
            errno: Errno::from_raw_os_error(word(8)? as i32),
        })
    }
}

/// What the child ends in.
#[derive(Debug)]
pub(crate) enum Finish {
    /// Become a program: behind the descriptor, or at the path when that is not empty.
    Exec { program: Option<i32>, path: CString, argv: Strings, env: Strings },
    /// Answer a probe: the file must be readable and begin with these bytes.
    Check { path: CString, begins: &'static [u8] },
}

/// Everything the child needs, made by the parent.
#[derive(Debug)]
pub(crate) struct ChildPlan {
    pub(crate) mounts: Prepared,
    pub(crate) ids: IdMap,
    pub(crate) hostname: Vec<u8>,
    pub(crate) loopback: bool,
    pub(crate) nested_user_namespaces: bool,
    pub(crate) dies_with_starting_thread: bool,
    /// Descriptors to pass on: ours, theirs.
    pub(crate) pass: Vec<(i32, i32)>,
    /// Files that take who writes "0" to them into a cgroup.
    pub(crate) cgroups: Vec<i32>,
    /// What stays open at first, ascending and without doubles.
    pub(crate) keep: Vec<i32>,
    /// What is open in the end: 0, 1, 2 and the numbers of `pass`, ascending and without doubles.
    pub(crate) stay: Vec<i32>,
    /// A byte arrives here when the parent has written the maps.
    pub(crate) go: i32,
    /// Where a [`Report`] goes.
    pub(crate) report: i32,
    pub(crate) finish: Finish,
}

/// The child's whole life; returns its exit code.
pub(crate) fn run(plan: &mut ChildPlan) -> i32 {
    let Err(report) = steps(plan) else { return 0 };
    // Nobody is left to tell when even this fails.
    let _ = rustix::io::write(sys::borrow(plan.report), &report.encode());
    EXIT_FAILED
}

fn steps(plan: &mut ChildPlan) -> Result<(), Report> {
    close_all_but(&plan.keep).map_err(at(Stage::Descriptors))?;
    for entrance in &plan.cgroups {
        rustix::io::write(sys::borrow(*entrance), b"0").map_err(at(Stage::Cgroup))?;
    }
    rustix::process::setsid().map_err(at(Stage::Descriptors))?;
    rustix::process::umask(Mode::empty());
    plan.mounts.open_sources().map_err(in_plan(Stage::Sources))?;
    wait_for_maps(plan.go).map_err(at(Stage::Wait))?;
    take_ids(plan.ids).map_err(at(Stage::Ids))?;
    plan.mounts.apply().map_err(in_plan(Stage::Mounts))?;
    if let Finish::Check { path, begins } = &plan.finish {
        return check(path, begins).map_err(at(Stage::Check));
    }
    if !plan.nested_user_namespaces {
        forbid_namespaces().map_err(at(Stage::NestedNamespaces))?;
    }
    rustix::system::sethostname(&plan.hostname).map_err(at(Stage::Hostname))?;
    if plan.loopback {
        sys::bring_up_loopback().map_err(at(Stage::Loopback))?;
    }
    drop_privileges(plan.dies_with_starting_thread).map_err(at(Stage::Privileges))?;
    exec(plan)
}

fn at(stage: Stage) -> impl Fn(Errno) -> Report {
    move |errno| Report { stage, step: 0, errno }
}

fn in_plan(stage: Stage) -> impl Fn(Failed) -> Report {
    move |Failed { step, errno }| Report { stage, step, errno }
}

/// The copy of the parent's table holds sockets and pipes whose other ends wait for them to close: ours go first.
fn close_all_but(keep: &[i32]) -> Result<(), Errno> {
    let above = close_gaps(keep)?;
    sys::close_range(above, u32::MAX)
}

/// Closes what lies between the numbers of `keep`; answers the first number above them.
fn close_gaps(keep: &[i32]) -> Result<u32, Errno> {
    let mut first = 0;
    for number in keep.iter().map(|number| number.unsigned_abs()) {
        if number > first {
            sys::close_range(first, number - 1)?;
        }
        first = number + 1;
    }
    Ok(first)
}

/// The end of the pipe without a byte means that the parent gave up or died.
fn wait_for_maps(go: i32) -> Result<(), Errno> {
    loop {
        match rustix::io::read(sys::borrow(go), &mut [0u8; 1]) {
            Ok(0) => return Err(Errno::PIPE),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// With the caller's own id, the map alone has renamed us. With a foreign one we still are the host's root, now
/// unmapped. The capabilities over the new namespace survive the change, because uid 0 of *this* namespace was never
/// ours, and they are needed for the mounts.
fn take_ids(ids: IdMap) -> Result<(), Errno> {
    if ids.authority == Authority::Own {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(ids.inside_uid), Gid::from_raw(ids.inside_gid));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// The limit belongs to our user namespace and can only be changed with a capability in it, which is gone at exec.
fn forbid_namespaces() -> Result<(), Errno> {
    let limit = rustix::fs::openat(
        CWD,
        c"/proc/sys/user/max_user_namespaces",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::io::write(&limit, b"0").map(drop)
}

fn drop_privileges(dies_with_starting_thread: bool) -> Result<(), Errno> {
    sys::drop_bounding_set()?;
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: none, permitted: none, inheritable: none },
    )?;
    if dies_with_starting_thread {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    }
    Ok(())
}

fn check(path: &CStr, begins: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut read = [0u8; 64];
    let count = rustix::io::read(&file, &mut read)?;
    if read[..count].starts_with(begins) { Ok(()) } else { Err(Errno::NODATA) }
}

fn exec(plan: &mut ChildPlan) -> Result<(), Report> {
    let Finish::Exec { program, path, argv, env } = &plan.finish else { return Ok(()) };
    let above = plan.stay.last().map_or(0, |last| last + 1);
    let moved = pass_descriptors(&mut plan.pass, &plan.stay, *program, plan.report, above);
    let (program, report) = moved.map_err(at(Stage::Passing))?;
    plan.report = report;
    rustix::process::umask(Mode::from(0o022));
    sys::unblock_signals();
    let errno = sys::exec(sys::borrow(program), path, argv, env);
    Err(Report { stage: Stage::Exec, step: 0, errno })
}

/// Puts each descriptor under its number and nothing under any other. The program and the pipe may sit on such a
/// number, and one source on another's: so first all go above the highest, where close-on-exec ends them.
fn pass_descriptors(
    pass: &mut [(i32, i32)],
    stay: &[i32],
    program: Option<i32>,
    report: i32,
    above: i32,
) -> Result<(i32, i32), Errno> {
    let report = sys::duplicate_at_least(report, above)?;
    let program = match program {
        Some(program) => sys::duplicate_at_least(program, above)?,
        None => CWD.as_raw_fd(),
    };
    let null = {
        // Gone again before numbers are dealt out: it may well sit on one of them.
        let null = rustix::fs::openat(CWD, c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        sys::duplicate_at_least(null.as_raw_fd(), above)?
    };
    for (ours, _) in pass.iter_mut() {
        *ours = sys::duplicate_at_least(*ours, above)?;
    }
    for number in 0..=2 {
        sys::duplicate_onto(null, number)?;
    }
    for (copy, number) in pass.iter() {
        sys::duplicate_onto(*copy, *number)?;
    }
    close_gaps(stay)?;
    sys::close_on_exec_from(above.unsigned_abs())?;
    Ok((program, report))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_report_arrives_as_it_was_sent() {
        for stage in STAGES {
            let sent = Report { stage, step: 7, errno: Errno::PERM };
            let arrived = Report::decode(&sent.encode()).expect("a report");
            assert_eq!((arrived.stage, arrived.step, arrived.errno), (stage, 7, Errno::PERM));
        }
    }
}
