//! A slot as oci-runner makes it, from unshare(1) and a shell: user, mount, PID and IPC namespaces, a root of its own.
//! The test is the pilot.
#![expect(dead_code, reason = "each test file uses its part")]

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};
use wire::slot::*;

pub(crate) const NONCE: Nonce = Nonce([0xa5; 16]);
const NOBODY: u32 = 65534;
/// Far above anything that is waited for; only a hang meets it.
const PATIENCE_S: i64 = 20;

const ROOT_SCRIPT: &str = r#"
set -e
mount -t tmpfs -o mode=755 slot "$BASE/root"
cd "$BASE/root"
mkdir usr proc dev dev/shm tmp var var/tmp work stage
mkfifo idle
chmod 1777 tmp var/tmp dev/shm
mount --rbind /usr usr
for name in bin sbin lib lib64; do
  if [ -L "/$name" ]; then cp -P "/$name" "$name"; elif [ -d "/$name" ]; then mkdir "$name"; mount --rbind "/$name" "$name"; fi
done
if [ "$OWN_PIDS" = yes ]; then mount -t proc proc proc; else mount --rbind /proc proc; fi
for name in null zero urandom; do : > "dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
: > shim
mount --bind "$BASE/shim" shim
exec 9<"$BASE/control" 8<"$BASE/control"
eval "$EXTRA"
exec env -i LATEBIND_CONTROL=fd:9 LATEBIND_NONCE=$NONCE $SETTINGS /usr/sbin/chroot . /shim
"#;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// Host uid of everything in the slot; `None` is our own.
    pub(crate) uid: Option<u32>,
    /// Shell lines run before the shim, in its root.
    pub(crate) extra: &'static str,
    pub(crate) nonce: Nonce,
    /// `NAME=value` words that come last in the shim's environment.
    pub(crate) settings: &'static str,
    /// Whether the slot is a PID namespace.
    pub(crate) own_pids: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { uid: None, extra: "", nonce: NONCE, settings: "", own_pids: true }
    }
}

pub(crate) struct Slot {
    child: Child,
    setup: Setup,
    base: tempfile::TempDir,
    listener: OwnedFd,
    pilot: Option<OwnedFd>,
    launches: u8,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.end();
    }
}

impl Slot {
    fn end(&mut self) {
        // PID 1 first, so that unshare(1) waits for it; with it its namespace ends. --kill-child is for our own end.
        let ended =
            self.find_shim().is_some_and(|shim| rustix::process::kill_process(shim, Signal::KILL).is_ok());
        if !ended {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Runs the test in a slot of our own uid and, when that is root, in one of an unprivileged uid.
pub(crate) fn in_slots(name: &str, setup: Setup, test: impl Fn(&mut Slot)) {
    let mut uids = vec![None];
    if rustix::process::geteuid().is_root() {
        uids.push(Some(NOBODY));
    }
    for uid in uids {
        if let Some(missing) = missing(uid) {
            skip(name, &missing);
            continue;
        }
        let mut slot = Slot::start(Setup { uid, ..setup });
        test(&mut slot);
    }
}

/// Says on standard error that a test could not be made, and why.
#[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
pub(crate) fn skip(name: &str, missing: &str) {
    eprintln!("SKIPPED: {name}: {missing}");
}

/// The same with the greeting done and ten seconds of orphan grace.
pub(crate) fn in_greeted_slots(name: &str, test: impl Fn(&mut Slot)) {
    in_slots(name, Setup::default(), |slot| {
        slot.greet(10_000);
        test(slot);
    });
}

pub(crate) fn python() -> Option<&'static str> {
    Path::new("/usr/bin/python3").exists().then_some("/usr/bin/python3")
}

fn missing(uid: Option<u32>) -> Option<String> {
    let mut probe = command(uid);
    probe.args([
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "true",
    ]);
    match probe.stderr(Stdio::null()).status() {
        Ok(status) if status.success() => None,
        Ok(_) => Some(format!("user namespaces for uid {uid:?}")),
        Err(error) => Some(format!("unshare(1) or setpriv(1): {error}")),
    }
}

#[expect(clippy::disallowed_methods, reason = "the slot owns its process and ends it in Drop")]
fn command(uid: Option<u32>) -> Command {
    let mut command = Command::new("/usr/bin/env");
    if let Some(uid) = uid {
        let uid = uid.to_string();
        command.args(["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups"]);
    }
    command
}

fn listen(base: &Path) -> OwnedFd {
    let socket = base.join("control/sock");
    let listener =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .expect("socket");
    rustix::net::bind(&listener, &SocketAddrUnix::new(&socket).expect("address")).expect("bind");
    rustix::net::listen(&listener, 8).expect("listen");
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o777)).expect("chmod");
    listener
}

fn start(setup: &Setup, base: &Path) -> Child {
    let mut command = command(setup.uid);
    command.args(["unshare", "--user", "--map-root-user", "--mount", "--ipc", "--fork", "--kill-child"]);
    if setup.own_pids {
        command.arg("--pid");
    }
    command.args(["sh", "-c", ROOT_SCRIPT]);
    command.env("BASE", base).env("EXTRA", setup.extra).env("SETTINGS", setup.settings);
    command.env("NONCE", setup.nonce.to_hex());
    command.env("OWN_PIDS", if setup.own_pids { "yes" } else { "no" }).stdin(Stdio::null());
    command.stderr(Stdio::piped()).spawn().expect("spawn")
}

impl Slot {
    pub(crate) fn start(setup: Setup) -> Self {
        let base = tempfile::tempdir().expect("tempdir");
        let open = |mode| std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(base.path(), open(0o711)).expect("chmod");
        for folder in ["root", "control", "control/ran"] {
            let folder = base.path().join(folder);
            std::fs::create_dir(&folder).expect("mkdir");
            std::fs::set_permissions(&folder, open(0o777)).expect("chmod");
        }
        let binary = std::env::var_os("LATEBIND_TEST_SHIM")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_payload-shim").into());
        std::fs::copy(binary, base.path().join("shim")).expect("copy shim");
        let (listener, child) = (listen(base.path()), start(&setup, base.path()));
        Self { child, setup, base, listener, pilot: None, launches: 0 }
    }

    /// Kills the shim and starts another in a new container on the same control folder.
    pub(crate) fn start_again(&mut self) {
        self.end();
        self.pilot = None;
        self.child = start(&self.setup, self.base.path());
    }

    /// Another socket under the same name, as a pilot makes that was started again.
    pub(crate) fn listen_again(&mut self) {
        self.stop_listening();
        self.listener = listen(self.base.path());
    }

    /// Takes the socket's name away; who tries finds nothing.
    pub(crate) fn stop_listening(&mut self) {
        std::fs::remove_file(self.base.path().join("control/sock")).expect("remove");
    }

    /// Accepts a connection and takes its Hello.
    pub(crate) fn accept(&mut self) -> ShimState {
        wait_readable(self.listener.as_fd(), "connection");
        let socket = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC).expect("accept");
        self.pilot = Some(socket);
        match self.hear() {
            FromShim::Hello { protocol, nonce, state } => {
                assert_eq!(protocol, wire::version::PROTOCOL);
                assert_eq!(nonce, self.setup.nonce);
                state
            }
            other => panic!("not a Hello: {other:?}"),
        }
    }

    pub(crate) fn welcome(&mut self, orphan_grace_ms: u32) {
        self.tell(&ToShim::Welcome { protocol: wire::version::PROTOCOL, epoch: 1, orphan_grace_ms }, &[]);
    }

    pub(crate) fn greet(&mut self, orphan_grace_ms: u32) {
        assert_eq!(self.accept(), ShimState::Idle);
        self.welcome(orphan_grace_ms);
    }

    pub(crate) fn hang_up(&mut self) {
        self.pilot = None;
    }

    pub(crate) fn tell(&mut self, message: &ToShim, fds: &[BorrowedFd<'_>]) {
        let bytes = wire::encode(message).expect("encode");
        self.tell_bytes(&bytes, fds);
    }

    pub(crate) fn tell_bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let pilot = self.pilot.as_ref().expect("connected");
        wire::frame::send(pilot.as_fd(), bytes, fds).expect("send");
    }

    pub(crate) fn hear(&mut self) -> FromShim {
        self.try_hear().expect("the shim hung up")
    }

    pub(crate) fn try_hear(&mut self) -> Option<FromShim> {
        Some(self.try_receive()?.0)
    }

    pub(crate) fn hear_with_fds(&mut self) -> (FromShim, Vec<OwnedFd>) {
        self.try_receive().expect("the shim hung up")
    }

    fn try_receive(&mut self) -> Option<(FromShim, Vec<OwnedFd>)> {
        let pilot = self.pilot.as_ref().expect("connected").as_fd();
        wait_readable(pilot, "message");
        let frame = wire::frame::receive(pilot).expect("receive")?;
        Some((wire::decode(&frame.bytes).expect("decode"), frame.fds))
    }

    /// A launch of `argv` with a fresh id.
    pub(crate) fn launch(&mut self, argv: &[&str]) -> Launch {
        self.launches += 1;
        Launch {
            id: LaunchId([self.launches; 16]),
            argv: argv.iter().map(|argument| argument.as_bytes().to_vec()).collect(),
            env: vec![b"PATH=/usr/bin:/bin".to_vec()],
            cwd: b"/work".to_vec(),
            umask: 0o022,
            rlimits: Vec::new(),
            fds: Vec::new(),
            links: Vec::new(),
        }
    }

    pub(crate) fn shell(&mut self, script: &str) -> Launch {
        self.launch(&["sh", "-c", script])
    }

    /// Launches and waits for Launched.
    pub(crate) fn begin(&mut self, launch: &Launch, fds: &[BorrowedFd<'_>]) -> u32 {
        self.tell(&ToShim::Launch(launch.clone()), fds);
        match self.hear() {
            FromShim::Launched { launch: id, pid } => {
                assert_eq!(id, launch.id);
                pid
            }
            other => panic!("not Launched: {other:?}"),
        }
    }

    pub(crate) fn exited(&mut self) -> ExitReport {
        match self.hear() {
            FromShim::Exited(report) => report,
            other => panic!("not Exited: {other:?}"),
        }
    }

    /// Runs to the end with stdout and stderr in one pipe; gives both.
    pub(crate) fn run(&mut self, launch: &Launch) -> (ExitReport, String) {
        let mut launch = launch.clone();
        let (reader, writer) = pipe();
        launch.fds.splice(0..0, [FdRole::Stdout, FdRole::Stderr]);
        self.begin(&launch, &[writer.as_fd(), writer.as_fd()]);
        drop(writer);
        let report = self.exited();
        (report, read_all(reader))
    }

    /// Runs a shell script that must succeed; gives what it wrote.
    pub(crate) fn run_shell(&mut self, script: &str) -> String {
        let launch = self.shell(script);
        let (report, output) = self.run(&launch);
        assert_eq!(report.status, WaitStatus::Exited(0), "{output}");
        output
    }

    pub(crate) fn refused(&mut self, launch: &Launch, fds: &[BorrowedFd<'_>]) -> LaunchRefusal {
        self.tell(&ToShim::Launch(launch.clone()), fds);
        match self.hear() {
            FromShim::LaunchRefused { launch: id, refusal } => {
                assert_eq!(id, launch.id);
                refusal
            }
            other => panic!("not refused: {other:?}"),
        }
    }

    pub(crate) fn clean(&mut self) -> CleanReport {
        self.tell(&ToShim::Clean, &[]);
        match self.hear() {
            FromShim::Cleaned(report) => report,
            other => panic!("not Cleaned: {other:?}"),
        }
    }

    /// The shim's exit code; what it wrote to standard error follows.
    pub(crate) fn exit(&mut self) -> (Option<i32>, String) {
        let code = self.child.wait().expect("wait").code();
        let mut text = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            stderr.read_to_string(&mut text).expect("utf-8");
        }
        (code, text)
    }

    /// Signals the shim from outside of its namespaces.
    pub(crate) fn signal_from_outside(&self, signal: Signal) {
        rustix::process::kill_process(self.shim(), signal).expect("kill");
    }

    /// PID of the shim as we see it.
    pub(crate) fn shim(&self) -> Pid {
        self.find_shim().expect("the shim's process")
    }

    fn find_shim(&self) -> Option<Pid> {
        let unshare = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
        Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
    }

    /// Starts a shell in the slot's PID namespace that descends from nobody there; gives it and its output.
    #[expect(clippy::disallowed_methods, reason = "the test waits for it")]
    pub(crate) fn enter(&self, script: &str) -> (Child, OwnedFd) {
        let shim = self.shim().as_raw_nonzero().to_string();
        let mut command = Command::new("/usr/bin/nsenter");
        command.args(["--target", &shim, "--pid"]);
        if let Some(uid) = self.setup.uid {
            let uid = uid.to_string();
            command.args(["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups"]);
        }
        command.args(["sh", "-c", script]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("spawn");
        let output = child.stdout.take().expect("piped").into();
        (child, output)
    }

    pub(crate) fn base(&self) -> &Path {
        self.base.path()
    }
}

/// A shell script as a helper.
pub(crate) fn exec(id: u32, script: &str) -> Exec {
    Exec {
        id,
        argv: vec![b"sh".to_vec(), b"-c".to_vec(), script.as_bytes().to_vec()],
        env: vec![b"PATH=/usr/bin:/bin".to_vec()],
        cwd: b"/".to_vec(),
        fds: Vec::new(),
    }
}

pub(crate) fn wait_readable(fd: BorrowedFd<'_>, what: &str) {
    let patience = rustix::time::Timespec { tv_sec: PATIENCE_S, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&patience)).expect("poll");
    assert!(ready > 0, "no {what} within {PATIENCE_S} s");
}

pub(crate) fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe")
}

pub(crate) fn read_all(fd: OwnedFd) -> String {
    let mut text = Vec::new();
    std::fs::File::from(fd).read_to_end(&mut text).expect("read");
    String::from_utf8_lossy(&text).into_owned()
}

/// One line; the payload says where it is.
pub(crate) fn read_line(fd: &OwnedFd) -> String {
    let mut line = Vec::new();
    let mut byte = [0; 1];
    loop {
        wait_readable(fd.as_fd(), "line");
        match rustix::io::read(fd, &mut byte).expect("read") {
            0 => break,
            _ if byte[0] == b'\n' => break,
            _ => line.push(byte[0]),
        }
    }
    String::from_utf8(line).expect("utf-8")
}

pub(crate) fn memory(content: &[u8], mode: u32) -> OwnedFd {
    let fd = rustix::fs::memfd_create(c"stage", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    rustix::fs::fchmod(&fd, rustix::fs::Mode::from(mode)).expect("chmod");
    std::fs::File::from(fd.try_clone().expect("dup")).write_all(content).expect("write");
    fd
}
