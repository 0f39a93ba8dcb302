//! From a message to a running program: everything that can be checked or made before the fork.
//!
//! **Must not know:** the loop, the pilot's line, what runs already.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fstat, major, minor, openat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use wire::slot::{Launch, Rlimit};

use crate::failure::Failure;
use crate::holder::Holder;
use crate::stages::{FIRST_FD, Link, Sorted, Stage, VARIABLE_PREFIX, Way};
use crate::sys::{self, Program, Step};

/// What execvp(3) would search, were there a shell to set it.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A forked process that has not been seen to execute its program.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: Pid,
    pub(crate) exec: Execution,
}

/// How it is known whether a child's program was executed.
#[derive(Debug)]
pub(crate) enum Execution {
    /// It is known already.
    Known(Result<(), Failure>),
    /// The child tells on this pipe.
    Awaited(OwnedFd),
}

impl Execution {
    /// `None` while it is undecided.
    pub(crate) fn outcome(&self) -> Option<Result<(), Failure>> {
        let pipe = match self {
            Self::Known(outcome) => return Some(*outcome),
            Self::Awaited(pipe) => pipe,
        };
        let mut message = [0; 8];
        match rustix::io::read(pipe, &mut message) {
            Ok(0) => Some(Ok(())),
            Ok(_) => {
                let (numbers, _) = message.as_chunks::<4>();
                let number = |at: usize| numbers.get(at).copied().map_or(0, i32::from_ne_bytes);
                Some(Err(Failure { step: step_name(number(0)), errno: number(1) }))
            }
            Err(Errno::AGAIN | Errno::INTR) => None,
            Err(errno) => Some(Err(Failure::at("exec")(errno))),
        }
    }

    /// What to poll while it is undecided.
    pub(crate) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Known(_) => None,
            Self::Awaited(pipe) => Some(pipe.as_fd()),
        }
    }
}

fn step_name(number: i32) -> &'static str {
    let named = [
        (Step::Session, "setsid"),
        (Step::Descriptors, "descriptors"),
        (Step::Chdir, "chdir"),
        (Step::Rlimit, "rlimit"),
        (Step::Exec, "exec"),
    ];
    named.into_iter().find(|(step, _)| *step as i32 == number).map_or("child", |(_, name)| name)
}

/// Puts the null device in place of the standard streams that were not given.
pub(crate) fn fill(stdio: &mut [Option<OwnedFd>; 3]) -> Result<(), Failure> {
    for place in stdio.iter_mut().filter(|place| place.is_none()) {
        *place = Some(null()?);
    }
    Ok(())
}

/// The null device, and only that: an image may bring a file of that name, which would grow. Opened anew for each, so
/// that no two payloads share an open file description, on which locks and flags would stay.
fn null() -> Result<OwnedFd, Failure> {
    let at = Failure::at("/dev/null");
    let fd = openat(CWD, c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
        .map_err(&at)?;
    let stat = fstat(&fd).map_err(&at)?;
    let device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if device && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3) {
        Ok(fd)
    } else {
        Err(at(Errno::NODEV))
    }
}

/// Gives the stages to the holder and says which links lead there; links to paths come after.
pub(crate) fn links(
    launch: &Launch,
    stages: &[Stage],
    holder: &mut Option<Holder>,
    alone: bool,
) -> Result<Vec<Link>, Failure> {
    let mut links = Vec::with_capacity(stages.len() + launch.links.len());
    if !stages.is_empty() {
        let holder = match holder {
            Some(holder) => holder,
            None => holder.insert(Holder::start(alone)?),
        };
        let fds: Vec<BorrowedFd<'_>> = stages.iter().map(|stage| stage.fd.as_fd()).collect();
        let numbers = holder.hold(&fds)?;
        links.extend(stages.iter().zip(numbers).map(|(stage, number)| {
            let target = format!("/proc/{}/fd/{number}", holder.pid().as_raw_nonzero()).into_bytes();
            Link { way: stage.way, name: stage.name.clone(), target }
        }));
    }
    let paths = launch.links.iter();
    links.extend(paths.map(|link| Link {
        way: Way::In,
        name: link.name.clone(),
        target: link.target.clone(),
    }));
    Ok(links)
}

/// What is wrong with a launch that its limits do not cover.
pub(crate) fn objection(launch: &Launch) -> Option<String> {
    if !launch.cwd.starts_with(b"/") {
        return Some("the working directory is not absolute".into());
    }
    let relative = launch.links.iter().find(|link| !link.target.starts_with(b"/"));
    relative.map(|link| format!("the target of input {} is not absolute", link.name))
}

/// Starts the payload's first process. `alone` is whether no process that is not ours can be in the slot.
pub(crate) fn start(launch: Launch, sorted: &Sorted, alone: bool) -> Result<Started, Failure> {
    let mut env = launch.env;
    env.retain(|variable| !variable.starts_with(VARIABLE_PREFIX.as_bytes()));
    let mut places = stdio(&sorted.stdio);
    for (stage, number) in sorted.stages.iter().chain(&sorted.files).zip(FIRST_FD..) {
        env.push(format!("{}={number}", stage.variable()).into_bytes());
        places.push((stage.fd.as_fd(), number));
    }
    let rlimits = launch.rlimits.iter().map(|limit| number_of(*limit)).collect();
    let program = program(launch.argv, env, launch.cwd, launch.umask, rlimits)?;
    spawn(&program, &places, alone)
}

/// Forks; when `alone`, without copying our memory, and comes back when the exec is decided.
pub(crate) fn spawn(
    program: &Program,
    places: &[(BorrowedFd<'_>, i32)],
    alone: bool,
) -> Result<Started, Failure> {
    if !alone {
        return fork(program, places);
    }
    let (pid, failed) = sys::spawn_alone(program, places).map_err(|error| Failure::of("fork", &error))?;
    let outcome = failed.map_or(Ok(()), |(step, errno)| Err(Failure { step: step_name(step), errno }));
    Ok(Started { pid, exec: Execution::Known(outcome) })
}

/// Forks a helper.
pub(crate) fn start_helper(exec: wire::slot::Exec, sorted: &Sorted) -> Result<Started, Failure> {
    fork(&program(exec.argv, exec.env, exec.cwd, 0o022, Vec::new())?, &stdio(&sorted.stdio))
}

/// The payload's output streams that must not be closed before Clean: a FIFO that is open both ways has no end of file
/// to wait for, and what is in it is lost when the last who has it open goes, while the pilot is away.
pub(crate) fn lossy(stdio: [Option<OwnedFd>; 3]) -> Vec<OwnedFd> {
    let is_lossy = |fd: &OwnedFd| {
        fcntl_getfl(fd).is_ok_and(|flags| flags & OFlags::RWMODE == OFlags::RDWR)
            && fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
    };
    stdio.into_iter().skip(1).flatten().filter(is_lossy).collect()
}

fn stdio(given: &[Option<OwnedFd>; 3]) -> Vec<(BorrowedFd<'_>, i32)> {
    given.iter().zip(0..).filter_map(|(fd, number)| Some((fd.as_ref()?.as_fd(), number))).collect()
}

fn fork(program: &Program, places: &[(BorrowedFd<'_>, i32)]) -> Result<Started, Failure> {
    let (reader, writer) =
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(Failure::at("pipe"))?;
    let pid = sys::spawn(program, places, writer.as_fd()).map_err(|error| Failure::of("fork", &error))?;
    Ok(Started { pid, exec: Execution::Awaited(reader) })
}

fn program(
    argv: Vec<Vec<u8>>,
    env: Vec<Vec<u8>>,
    cwd: Vec<u8>,
    umask: u32,
    rlimits: Vec<(u32, u64)>,
) -> Result<Program, Failure> {
    let candidates = candidates(argv.first().map_or(&[], Vec::as_slice), &env);
    Ok(Program {
        candidates: strings(candidates)?,
        argv: strings(argv)?,
        env: strings(env)?,
        cwd: string(cwd)?,
        umask,
        rlimits,
    })
}

/// Where to look for a program, as execvp(3): a name with a slash is a path, others are sought along `PATH`.
fn candidates(program: &[u8], env: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if program.is_empty() || program.contains(&b'/') {
        return vec![program.to_vec()];
    }
    let path = env.iter().find_map(|variable| variable.strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
    path.split(|&byte| byte == b':')
        .map(|folder| {
            let folder: &[u8] = if folder.is_empty() { b"." } else { folder };
            [folder, b"/", program].concat()
        })
        .collect()
}

fn strings(bytes: Vec<Vec<u8>>) -> Result<Vec<CString>, Failure> {
    bytes.into_iter().map(string).collect()
}

/// The message's limits exclude NUL already.
fn string(bytes: Vec<u8>) -> Result<CString, Failure> {
    CString::new(bytes).map_err(|_| Failure::at("strings")(Errno::INVAL))
}

fn number_of(limit: Rlimit) -> (u32, u64) {
    match limit {
        Rlimit::AddressSpace(bytes) => (libc::RLIMIT_AS, bytes),
        Rlimit::FileSize(bytes) => (libc::RLIMIT_FSIZE, bytes),
        Rlimit::OpenFiles(count) => (libc::RLIMIT_NOFILE, count),
        Rlimit::Core(bytes) => (libc::RLIMIT_CORE, bytes),
        Rlimit::CpuSeconds(seconds) => (libc::RLIMIT_CPU, seconds),
        Rlimit::Processes(count) => (libc::RLIMIT_NPROC, count),
        Rlimit::Data(bytes) => (libc::RLIMIT_DATA, bytes),
        Rlimit::Stack(bytes) => (libc::RLIMIT_STACK, bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::candidates;

    fn sought(program: &str, path: Option<&str>) -> Vec<String> {
        let env: Vec<Vec<u8>> = path.map(|path| format!("PATH={path}").into_bytes()).into_iter().collect();
        let found = candidates(program.as_bytes(), &env).into_iter();
        found.map(|path| String::from_utf8(path).expect("utf-8")).collect()
    }

    #[test]
    fn a_name_is_sought_along_the_path_and_a_path_is_taken_as_it_is() {
        assert_eq!(sought("fit", Some("/a:/b")), ["/a/fit", "/b/fit"]);
        assert_eq!(sought("fit", Some(":/b")), ["./fit", "/b/fit"]);
        assert_eq!(sought("./fit", Some("/a")), ["./fit"]);
        assert_eq!(sought("fit", None).first().map(String::as_str), Some("/usr/local/sbin/fit"));
        assert_eq!(sought("", Some("/a")), [""]);
    }
}
