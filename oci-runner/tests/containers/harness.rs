//! Makes small containers out of Debian's busybox and proves after each test that nothing is left.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use oci_runner::{
    Authority, Bind, Container, Ended, IdMap, Network, Program, Root, Rootfs, Running, StartError, Tmpfs,
    caller,
};

/// More than any of these containers needs; reached only when one hangs.
pub(crate) const LIMIT_S: i64 = 30;

/// A folder for one test, with a root tree in it.
pub(crate) struct Slot {
    pub(crate) home: tempfile::TempDir,
    pub(crate) ids: IdMap,
}

/// What a container did.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) text: String,
    pub(crate) ended: Ended,
}

static ALONE: Mutex<()> = Mutex::new(());

/// Runs `test` alone in this process and compares mounts, descriptors and children before and after.
pub(crate) fn quiet(test: impl FnOnce()) {
    if busybox().is_none() {
        eprintln!("SKIPPED: {}: a static busybox (Debian: busybox-static)", test_name());
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    program();
    let before = Baseline::take();
    test();
    assert_eq!(before, Baseline::take(), "something is left");
}

pub(crate) fn test_name() -> String {
    std::thread::current().name().unwrap_or("?").to_owned()
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[derive(Debug, PartialEq, Eq)]
struct Baseline {
    mounts: String,
    fds: BTreeSet<String>,
    children: String,
}

impl Baseline {
    fn take() -> Self {
        let fds = fs::read_dir("/proc/self/fd").expect("own descriptors");
        let fds = fds
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .map(|path| path.display().to_string())
            .filter(|path| !path.starts_with("/proc/"))
            .collect();
        let tasks = fs::read_dir("/proc/self/task").expect("own threads");
        let children =
            tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok()).collect();
        Self { mounts: fs::read_to_string("/proc/self/mountinfo").expect("own mounts"), fds, children }
    }
}

pub(crate) fn busybox() -> Option<&'static Path> {
    ["/bin/busybox", "/usr/bin/busybox"].into_iter().map(Path::new).find(|path| path.exists())
}

pub(crate) fn program() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| Program::load(busybox().expect("checked by quiet")).expect("a loadable program"))
}

impl Slot {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().expect("a folder");
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("an open folder");
        let slot = Self { home, ids: ids() };
        slot.make_tree("tree");
        slot
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A folder that the container's id owns.
    pub(crate) fn owned(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("a folder");
        if self.ids.authority == Authority::Privileged {
            chown(&path, Some(self.ids.host_uid), Some(self.ids.host_gid)).expect("a new owner");
        }
        path
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("a readable file");
        path
    }

    pub(crate) fn make_tree(&self, name: &str) -> PathBuf {
        let tree = self.path(name);
        for folder in ["bin", "proc", "dev", "sys", "tmp", "work", "stage", "etc", ".latebind", "var/tmp"] {
            fs::create_dir_all(tree.join(folder)).expect("a folder");
        }
        fs::copy(busybox().expect("checked by quiet"), tree.join("bin/busybox")).expect("a copy of busybox");
        for name in [
            "sh", "cat", "ls", "echo", "mount", "umount", "unshare", "sleep", "env", "ip", "id", "grep",
            "head",
        ] {
            symlink("busybox", tree.join("bin").join(name)).expect("a link");
        }
        tree
    }

    pub(crate) fn container(&self, script: &str) -> Container<'static> {
        container_of(self.path("tree"), self.ids, script)
    }
}

/// The id of every container here.
pub(crate) fn ids() -> IdMap {
    IdMap::choose(&caller(), (0, 0), oci_runner::UID_BASE, 7).expect("an id for the payload")
}

/// A container with this tree as its root, made by [`Slot::make_tree`].
pub(crate) fn container_of(tree: PathBuf, ids: IdMap, script: &str) -> Container<'static> {
    Container {
        root: Root::Copy { tree },
        rootfs: Rootfs::ReadOnly,
        ids,
        hostname: "slot-7".into(),
        network: Network::Host,
        binds: Vec::new(),
        tmpfs: vec![Tmpfs { target: "/tmp".into(), size_bytes: 1 << 20, inodes: 0, mode: 0o1777 }],
        dirs: Vec::new(),
        shm_bytes: 1 << 20,
        nested_user_namespaces: false,
        program: program(),
        argv: ["sh", "-c", script].map(str::to_owned).into(),
        env: vec!["PATH=/bin".into()],
        fds: Vec::new(),
        cgroup: None,
        dies_with_starting_thread: false,
    }
}

pub(crate) fn bind(source: &Path, target: &str, read_only: bool) -> Bind {
    Bind {
        source: source.into(),
        target: target.into(),
        read_only,
        is_file: source.is_file(),
        optional: false,
    }
}

/// Starts it with a pipe as stdout and stderr.
pub(crate) fn start<'a>(container: Container<'a>) -> Result<(Running, std::io::PipeReader), StartError> {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut container: Container<'_> = container;
    let mut fds = std::mem::take(&mut container.fds);
    fds.extend([(writer.as_fd(), 1), (writer.as_fd(), 2)]);
    let running = oci_runner::start(&Container { fds, ..container })?;
    Ok((running, reader))
}

pub(crate) fn run(container: Container<'_>) -> Output {
    let (mut running, mut reader) = start(container).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("text from the container");
    let ended = running.wait_for(LIMIT_S).expect("an answer").expect("an end");
    Output { text, ended }
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
