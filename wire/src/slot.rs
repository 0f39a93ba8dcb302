//! The slot's messages: between the pilot and the `payload-shim` that is PID 1 of a slot.
//!
//! ```text
//!   shim                                   pilot
//!    |-- Hello(nonce, state) ------------->|   connects; proves itself with the nonce of this epoch
//!    |<------------- Welcome(epoch, grace) |
//!    |<-- Lend(roles)  [fds] ------------- |   0..n times: more stage descriptors than one frame holds
//!    |<------------------ Inherit(inputs) |   0..n times: file inputs that are also given by descriptor
//!    |<-- Launch(..)   [fds] ------------- |   or LaunchInMemory when longer than a frame
//!    |-- Launched / LaunchRefused -------->|
//!    |<------------------ Stop(grace) -----|   TERM, grace, KILL for everything in the slot
//!    |-- Exited(report) ------------------>|   every process of the payload is gone when this is sent
//!    |<---------------- Exec(..) [fds] ----|   a helper in the slot, at any time after Welcome
//!    |<-------- SignalExec(id, signal) ----|
//!    |-- ExecEnded(id, status) ----------->|
//!    |<-- Retain(launch, outputs) [fds] ---|   stages in memory, kept beyond Clean for the next life of the pilot
//!    |<------------ Forget(launch, outputs)|
//!    |<-------------------------- Collect -|   by a pilot that has come back
//!    |-- Collected(outputs, more)  [fds] ->|
//!    |<------------------ Reveal(outputs) -|   the pilot has another uid, and may not read them
//!    |-- Revealed ------------------------>|
//!    |<---------------------- Clean -------|
//!    |-- Cleaned(report) ----------------->|
//!    |<---------------------- Retire ------|   the shim exits 0
//! ```
//! A shim that has lost its pilot connects again and says in `Hello` what became of its payload; `Ended` carries the
//! report until a `Clean` acknowledges it.

use serde::{Deserialize, Serialize};

use crate::frame::FRAME_FDS_MAX;
use crate::limits::{Check, Violation, c_string, count, range, stage_name};
use crate::version::Version;

/// Longest encoded launch in bytes. `execve(2)` takes at most a quarter of the stack limit for argv and environment
/// (2 MiB by default); twice that leaves room for everything else.
pub const LAUNCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest single argument or variable in bytes: the kernel's `MAX_ARG_STRLEN` (32 pages), NUL included.
pub const STRING_BYTES_MAX: usize = 128 * 1024 - 1;
/// Most strings in argv, and in the environment.
pub const STRINGS_MAX: usize = 65_536;
/// Longest path in bytes: `PATH_MAX` without its NUL.
pub const PATH_BYTES_MAX: usize = 4095;
/// Most stages that a payload may have, inputs and outputs together.
pub const STAGES_MAX: usize = 512;
/// Longest grace period in milliseconds: one day.
pub const GRACE_MS_MAX: u32 = 86_400_000;

/// Proof that a shim belongs to one epoch of one slot. Secret until that shim has said Hello.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nonce(pub [u8; 16]);

impl Nonce {
    /// That of a shim that belongs to no epoch: it waits in a pod's slot until the slot is bound. It proves nothing, so
    /// nothing is ever launched on its word; it may be told to clean and to retire.
    pub const IDLE: Self = Self([0; 16]);

    /// Whether it is [`Nonce::IDLE`].
    #[must_use]
    pub fn is_idle(self) -> bool {
        self == Self::IDLE
    }

    /// 32 hexadecimal digits, as a shim finds them in its environment.
    #[must_use]
    pub fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl std::fmt::Debug for Nonce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nonce(..)")
    }
}

/// Names one launch for ever: a shim runs it at most once, also after its container restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchId(pub [u8; 16]);

impl std::fmt::Display for LaunchId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a descriptor in a [`ToShim::Launch`] or [`ToShim::Lend`] frame is for; one role a descriptor, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FdRole {
    /// The payload's descriptor 0. `/dev/null` when absent.
    Stdin,
    /// The payload's descriptor 1. `/dev/null` when absent.
    Stdout,
    /// The payload's descriptor 2. `/dev/null` when absent.
    Stderr,
    /// A stage the payload reads: `/stage/in/<name>` is made a link to it.
    StageIn(String),
    /// A stage the payload writes: `/stage/out/<name>` is made a link to it.
    StageOut(String),
    /// The launch itself; only in [`ToShim::LaunchInMemory`], and there the first.
    Launch,
}

/// A stage that is a path in the slot, not a descriptor: `/stage/in/<name>` is made a link to `target`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputLink {
    /// Name of the input.
    pub name: String,
    /// Absolute path in the slot.
    pub target: Vec<u8>,
}

/// A resource limit for the payload, as setrlimit(2) takes it. Soft and hard are set alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rlimit {
    /// Bytes of address space.
    AddressSpace(u64),
    /// Bytes of one file.
    FileSize(u64),
    /// Open descriptors.
    OpenFiles(u64),
    /// Bytes of a core file.
    Core(u64),
    /// Seconds of processor time of one process.
    CpuSeconds(u64),
    /// Processes of the real uid.
    Processes(u64),
    /// Bytes of stack.
    Stack(u64),
    /// Bytes of private writable memory of one process (`RLIMIT_DATA`, since Linux 4.7 anonymous mappings included).
    Data(u64),
}

/// One payload to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Runs at most once.
    pub id: LaunchId,
    /// Program and arguments. A program without `/` is looked up in the environment's `PATH`.
    pub argv: Vec<Vec<u8>>,
    /// The whole environment, `NAME=value`.
    pub env: Vec<Vec<u8>>,
    /// Absolute working directory in the slot.
    pub cwd: Vec<u8>,
    /// File mode creation mask.
    pub umask: u32,
    /// Limits set in the payload before exec.
    pub rlimits: Vec<Rlimit>,
    /// Roles of the descriptors in this frame (after the launch's own, if that is in memory).
    pub fds: Vec<FdRole>,
    /// Inputs that are paths.
    pub links: Vec<InputLink>,
}

/// Asks for a helper process beside the payload (`pilot exec`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Chosen by the pilot; comes back in [`FromShim::ExecEnded`].
    pub id: u32,
    /// Program and arguments.
    pub argv: Vec<Vec<u8>>,
    /// The whole environment.
    pub env: Vec<Vec<u8>>,
    /// Absolute working directory.
    pub cwd: Vec<u8>,
    /// Stdin, Stdout or Stderr, a role a descriptor.
    pub fds: Vec<FdRole>,
}

/// An output in memory of which a shim has a descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The launch that made it.
    pub launch: LaunchId,
    /// Its name there.
    pub output: String,
}

/// What the pilot says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToShim {
    /// Answer to a Hello that was believed.
    Welcome {
        /// The pilot's protocol.
        protocol: Version,
        /// The slot's epoch, for logs only.
        epoch: u64,
        /// How long a payload may go on without its pilot before the shim ends it and exits. 0: end it at once.
        orphan_grace_ms: u32,
    },
    /// More stage descriptors for the launch that follows.
    Lend {
        /// One role a descriptor.
        fds: Vec<FdRole>,
    },
    /// Run a payload.
    Launch(Launch),
    /// Run the payload whose launch is in the first descriptor, a sealed memfd.
    LaunchInMemory {
        /// Its length.
        bytes: u32,
        /// Roles of the descriptors in this frame; the first is [`FdRole::Launch`].
        fds: Vec<FdRole>,
    },
    /// Send one signal to the payload's first process.
    Signal {
        /// Signal number, 1 to 64.
        signal: i32,
    },
    /// End the payload and everything it left: TERM, the grace period, KILL.
    Stop {
        /// Between TERM and KILL.
        grace_ms: u32,
    },
    /// Run a helper in the slot.
    Exec(Exec),
    /// The report was kept: forget the payload and remove what it left.
    Clean,
    /// Exit with code 0.
    Retire,
    /// Send one signal to a helper. Nothing happens when it has ended.
    SignalExec {
        /// As in [`Exec::id`].
        id: u32,
        /// Signal number, 1 to 64.
        signal: i32,
    },
    /// Keep these committed outputs until told otherwise, or until this shim ends. One descriptor each, in order. Not before
    /// [`crate::version::RETAINS`], as the two that follow.
    Retain {
        /// The launch that made them.
        launch: LaunchId,
        /// Their names.
        outputs: Vec<String>,
    },
    /// They are not wanted any more. Unknown ones do no harm.
    Forget {
        /// The launch that made them.
        launch: LaunchId,
        /// Their names.
        outputs: Vec<String>,
    },
    /// Send all that is retained, and what the payload that is there has for outputs in memory.
    Collect,
    /// Make these outputs of the payload that has ended readable to everyone, with all that is in them, as far as they belong to
    /// the slot's own user. Not before [`crate::version::REVEALS`].
    Reveal {
        /// Their names.
        outputs: Vec<String>,
    },
    /// The payload of the launch that follows inherits descriptors of these inputs, too, which are links to files: the shim opens
    /// them where the payload sees them, so that nothing can be done through them that the mount forbids. Not before
    /// [`crate::version::INHERITS`].
    Inherit {
        /// Their names.
        inputs: Vec<String>,
    },
}

/// What a shim is doing, told at each Hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShimState {
    /// Nothing was launched since the last Clean.
    Idle,
    /// A payload runs.
    Running(LaunchId),
    /// A payload has ended and its report was not yet acknowledged by Clean.
    Ended(ExitReport),
}

/// How a process ended (wait(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WaitStatus {
    /// It called exit.
    Exited(u8),
    /// A signal ended it.
    Signaled {
        /// Which.
        signal: i32,
        /// Whether a core was written.
        core: bool,
    },
}

/// What a payload used (getrusage(2)): its first process as wait4(2) tells it, and what the shim reaped beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Wall time from exec to the end of the first process, in microseconds.
    pub wall_us: u64,
    /// Processor time in user mode, in microseconds.
    pub user_us: u64,
    /// Processor time in the kernel, in microseconds.
    pub system_us: u64,
    /// Largest resident set of one process, in KiB.
    pub max_rss_kib: u64,
}

/// Figures of the slot's cgroup. `None` means that this host does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupFigures {
    /// 1 or 2.
    pub version: u8,
    /// Highest memory use in bytes (`memory.peak`, or v1 `memory.max_usage_in_bytes`).
    pub memory_peak_bytes: Option<u64>,
    /// Processes killed for memory since the slot was made (`memory.events` oom_kill, v1 `memory.oom_control`).
    pub oom_kills: Option<u64>,
    /// Processor time in microseconds.
    pub cpu_us: Option<u64>,
}

/// The end of a payload. When this is sent, no process of it is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// Which launch.
    pub launch: LaunchId,
    /// How its first process ended.
    pub status: WaitStatus,
    /// What it used.
    pub usage: Usage,
    /// The slot's cgroup, if one can be read.
    pub cgroup: Option<CgroupFigures>,
    /// Processes that were still alive after the first one ended and had to be killed.
    pub leftover_processes: u32,
    /// Whether a Stop had been asked for before it ended.
    pub stopped: bool,
}

/// Why a launch did not become a process. The payload's code never ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LaunchRefusal {
    /// This id was run before.
    AlreadyRun,
    /// A payload runs or waits for Clean.
    Busy,
    /// The message is wrong; what is wrong with it.
    BadRequest(String),
    /// The program could not be executed: the step that failed and its errno.
    Failed {
        /// Which step: `exec`, `chdir`, `rlimit`, `link`, `fork` and so on.
        step: String,
        /// The kernel's error number.
        errno: i32,
    },
}

/// What Clean did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanReport {
    /// Processes found and killed.
    pub processes: u32,
    /// Files, links and directories removed.
    pub files: u32,
    /// System V and POSIX IPC objects removed.
    pub ipc_objects: u32,
    /// Things that could not be removed. Not zero: retire the slot.
    pub failures: u32,
}

/// What the shim says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromShim {
    /// First frame of each connection.
    Hello {
        /// The shim's protocol.
        protocol: Version,
        /// Proof of the epoch.
        nonce: Nonce,
        /// What became of the payload.
        state: ShimState,
    },
    /// The payload's program was executed.
    Launched {
        /// Which launch.
        launch: LaunchId,
        /// PID of the payload's first process in the slot's PID namespace.
        pid: u32,
    },
    /// The payload's program was not executed.
    LaunchRefused {
        /// Which launch.
        launch: LaunchId,
        /// Why.
        refusal: LaunchRefusal,
    },
    /// The payload has ended and nothing of it is left.
    Exited(ExitReport),
    /// A helper has ended.
    ExecEnded {
        /// As in [`Exec::id`].
        id: u32,
        /// How; `Err` is the errno of the step that kept it from starting.
        status: Result<WaitStatus, i32>,
    },
    /// The slot is clean.
    Cleaned(CleanReport),
    /// The stage holder was killed from inside the slot: links to memory stages are dead. The payload is ended.
    HolderLost,
    /// Answer to [`ToShim::Collect`], in as many frames as it takes. One descriptor each, in order.
    Collected {
        /// What they are.
        stages: Vec<Held>,
        /// Whether another frame follows.
        more: bool,
    },
    /// Answer to [`ToShim::Reveal`]: what could be done is done.
    Revealed,
}

impl Check for FdRole {
    fn check(&self) -> Result<(), Violation> {
        match self {
            Self::StageIn(name) | Self::StageOut(name) => stage_name(name),
            Self::Stdin | Self::Stdout | Self::Stderr | Self::Launch => Ok(()),
        }
    }
}

fn check_roles(roles: &[FdRole]) -> Result<(), Violation> {
    count("descriptor roles", roles.len(), FRAME_FDS_MAX)?;
    roles.iter().try_for_each(Check::check)
}

pub(crate) fn check_process(argv: &[Vec<u8>], env: &[Vec<u8>], cwd: &[u8]) -> Result<(), Violation> {
    if argv.is_empty() {
        return Err(Violation::Empty { what: "argv" });
    }
    count("arguments", argv.len(), STRINGS_MAX)?;
    count("environment variables", env.len(), STRINGS_MAX)?;
    argv.iter().try_for_each(|argument| c_string("argument", argument, STRING_BYTES_MAX))?;
    env.iter().try_for_each(|variable| c_string("environment variable", variable, STRING_BYTES_MAX))?;
    c_string("working directory", cwd, PATH_BYTES_MAX)
}

impl Check for Launch {
    fn check(&self) -> Result<(), Violation> {
        check_process(&self.argv, &self.env, &self.cwd)?;
        range("umask", i64::from(self.umask), 0, 0o777)?;
        count("rlimits", self.rlimits.len(), 16)?;
        check_roles(&self.fds)?;
        count("input links", self.links.len(), STAGES_MAX)?;
        self.links.iter().try_for_each(|link| {
            stage_name(&link.name)?;
            c_string("link target", &link.target, PATH_BYTES_MAX)
        })
    }
}

impl Check for ToShim {
    fn check(&self) -> Result<(), Violation> {
        match self {
            Self::Welcome { orphan_grace_ms: grace_ms, .. } | Self::Stop { grace_ms } => {
                range("grace", i64::from(*grace_ms), 0, i64::from(GRACE_MS_MAX))
            }
            Self::Lend { fds } => check_roles(fds),
            Self::Launch(launch) => launch.check(),
            Self::LaunchInMemory { bytes, fds } => {
                range("launch length", i64::from(*bytes), 1, LAUNCH_BYTES_MAX as i64)?;
                if fds.first() != Some(&FdRole::Launch) {
                    return Err(Violation::Empty { what: "role of the launch's own descriptor" });
                }
                check_roles(fds)
            }
            Self::Signal { signal } | Self::SignalExec { signal, .. } => {
                range("signal", i64::from(*signal), 1, 64)
            }
            Self::Exec(exec) => {
                check_process(&exec.argv, &exec.env, &exec.cwd)?;
                check_roles(&exec.fds)
            }
            Self::Retain { outputs, .. } | Self::Forget { outputs, .. } => {
                count("outputs", outputs.len(), FRAME_FDS_MAX)?;
                outputs.iter().try_for_each(|output| stage_name(output))
            }
            Self::Reveal { outputs } => {
                count("outputs", outputs.len(), STAGES_MAX)?;
                outputs.iter().try_for_each(|output| stage_name(output))
            }
            Self::Inherit { inputs } => {
                count("inputs", inputs.len(), STAGES_MAX)?;
                inputs.iter().try_for_each(|input| stage_name(input))
            }
            Self::Clean | Self::Retire | Self::Collect => Ok(()),
        }
    }
}

impl Check for FromShim {
    fn check(&self) -> Result<(), Violation> {
        match self {
            Self::LaunchRefused { refusal: LaunchRefusal::BadRequest(text), .. }
            | Self::LaunchRefused { refusal: LaunchRefusal::Failed { step: text, .. }, .. } => {
                c_string("reason", text.as_bytes(), 1024)
            }
            Self::Collected { stages, .. } => {
                count("outputs", stages.len(), FRAME_FDS_MAX)?;
                stages.iter().try_for_each(|held| stage_name(&held.output))
            }
            Self::Hello { .. }
            | Self::Launched { .. }
            | Self::LaunchRefused { .. }
            | Self::Exited(_)
            | Self::ExecEnded { .. }
            | Self::Cleaned(_)
            | Self::HolderLost
            | Self::Revealed => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "slot_tests.rs"]
mod tests;
