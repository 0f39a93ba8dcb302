//! The competitors: other programs that start a container on the same root file system.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde_json::json;

use crate::clock::now_ns;
use crate::ground::Ground;

/// What crun calls its container.
const CONTAINER: &str = "bench";

/// A program that is run for its duration.
#[derive(Debug)]
pub struct Peer {
    /// Its name in the results.
    pub name: &'static str,
    /// Takes part in each so many rounds.
    pub every: u32,
    argv: Vec<String>,
}

/// When the payload was there and when its peer had ended, on [`now_ns`]'s clock.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The request.
    pub asked: u64,
    /// The payload's own first reading of the clock.
    pub first: u64,
    /// Everything has ended.
    pub ended: u64,
}

impl Peer {
    /// Runs it once.
    ///
    /// # Errors
    /// When it fails or its payload did not answer; the text has what it said.
    pub fn once(&self) -> anyhow::Result<Times> {
        let [program, arguments @ ..] = &self.argv[..] else { bail!("no program") };
        let mut command = command(program);
        command.args(arguments).stdin(Stdio::null());
        let asked = now_ns();
        let output = command.output().with_context(|| format!("start {program}"))?;
        let ended = now_ns();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", output.status, said.lines().last().unwrap_or_default());
        let first = stamp(&output.stdout)?;
        ensure!((asked..=ended).contains(&first), "its payload answered {first} between {asked} and {ended}");
        Ok(Times { asked, first, ended })
    }

    /// Runs it once, beside others whose `number` is another.
    ///
    /// # Errors
    /// When it fails; the text has what it said.
    pub fn silent(&self, number: u32) -> anyhow::Result<()> {
        let words: Vec<String> = self
            .argv
            .iter()
            .map(|word| if word == CONTAINER { format!("{word}-{number}") } else { word.clone() })
            .collect();
        let [program, arguments @ ..] = &words[..] else { bail!("no program") };
        let output = command(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).output();
        let output = output.with_context(|| format!("start {program}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", output.status, said.lines().last().unwrap_or_default());
        Ok(())
    }
}

/// The number that `first.c` and `loop.c` print.
///
/// # Errors
/// When it is something else.
pub fn stamp(output: &[u8]) -> anyhow::Result<u64> {
    let text = String::from_utf8_lossy(output);
    text.trim().parse().with_context(|| format!("the payload answered {text:?}"))
}

/// All peers, each with the namespaces and mounts that come nearest to ours; they start `program` of the ground's root.
///
/// # Errors
/// When crun's bundle can't be written.
pub fn all(ground: &Ground, program: &str) -> anyhow::Result<Vec<Peer>> {
    let (root, work) = (ground.root.display().to_string(), ground.path("work").display().to_string());
    let bundle = ground.path(&format!("bundle-{program}"));
    std::fs::create_dir_all(&bundle)?;
    std::fs::write(bundle.join("config.json"), crun_config(&root, &work, program).to_string())?;
    // Whole paths: looking a name up costs a failed exec for each folder of PATH.
    let words = |line: &str| {
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        if let Some(path) = words.first().and_then(|name| find(name)) {
            words[0] = path;
        }
        words
    };
    let at = |name: &str| ground.path(name).display().to_string();
    let bwrap = format!(
        "bwrap --unshare-user --unshare-pid --unshare-ipc --unshare-uts --die-with-parent --ro-bind {root} / \
         --proc /proc --dev /dev --tmpfs /tmp --bind {work} /work /{program}"
    );
    let crun = format!(
        "crun --cgroup-manager=disabled --root {} run -b {} {CONTAINER}",
        at("crun"),
        bundle.display()
    );
    // Its run folder may have 50 letters at most. Limits that root may lack the right to raise are named, so that podman does not try.
    let podman = format!(
        "podman --root {} --runroot {} --tmpdir {} run --network=none --rm --cgroups=disabled \
         --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --rootfs {root} /{program}",
        at("pg"),
        at("pr"),
        at("pt"),
    );
    let peer = |name, every, argv| Peer { name, every, argv };
    Ok(vec![
        peer("fork+exec", 1, vec![ground.root.join(program).display().to_string()]),
        peer("bwrap", 1, words(&bwrap)),
        peer("crun", 1, words(&crun)),
        peer("podman", 10, words(&podman)),
    ])
}

/// Ends what podman leaves: as an ordinary user a process that holds its namespaces, as root after a failure a mount.
pub fn leave(ground: &Ground) {
    let at = |name: &str| ground.path(name).display().to_string();
    let folders = ["--root", &at("pg"), "--runroot", &at("pr"), "--tmpdir", &at("pt")];
    let (program, arguments) = if rustix::process::geteuid().is_root() {
        ("umount", vec![at("pg/overlay")])
    } else {
        ("podman", folders.iter().chain(&["system", "migrate"]).map(|&word| word.to_owned()).collect())
    };
    // Often there is nothing to end.
    let _ = command(program).args(arguments).stdin(Stdio::null()).output();
}

/// Where a program is installed.
#[must_use]
pub fn find(program: &str) -> Option<String> {
    let folders = ["/usr/bin", "/bin", "/usr/sbin", "/usr/local/bin"];
    let paths = folders.iter().map(|folder| format!("{folder}/{program}"));
    paths.into_iter().find(|path| Path::new(path).is_file())
}

/// The bundle: our namespaces, one id, no capabilities, the usual mounts.
fn crun_config(root: &str, work: &str, program: &str) -> serde_json::Value {
    let own = rustix::process::geteuid();
    let (uid, gid) = if own.is_root() {
        (oci_runner::UID_BASE, oci_runner::UID_BASE)
    } else {
        (own.as_raw(), rustix::process::getegid().as_raw())
    };
    let map = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 1}]);
    let tmpfs = |at: &str| json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]});
    let namespaces: Vec<_> =
        ["user", "pid", "mount", "ipc", "uts"].iter().map(|kind| json!({"type": kind})).collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {"terminal": false, "user": {"uid": 0, "gid": 0}, "args": [format!("/{program}")], "env": ["PATH=/"],
            "cwd": "/work", "noNewPrivileges": true, "capabilities": {}},
        "root": {"path": root, "readonly": true},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            tmpfs("/dev/shm"), tmpfs("/tmp"),
            {"destination": "/work", "type": "bind", "source": work, "options": ["rbind", "nosuid", "nodev"]},
        ],
        "linux": {"uidMappings": map(uid), "gidMappings": map(gid), "namespaces": namespaces},
    })
}

/// The first line that a program says of its version; `None` when it is not there.
#[must_use]
pub fn version(program: &str) -> Option<String> {
    let output = command(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(str::to_owned)
}

/// A program to run; its caller waits for it.
#[must_use]
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    #[expect(
        clippy::disallowed_methods,
        reason = "peers are other programs; each is waited for where it is started"
    )]
    Command::new(program)
}

/// Runs a program to its end.
///
/// # Errors
/// When it can't be started or fails; the text has what it said last.
pub fn run(program: &str, arguments: &[&str], folder: &Path) -> anyhow::Result<()> {
    let output = command(program).args(arguments).current_dir(folder).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("start {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program}: {}: {}",
        output.status,
        said.lines().last().unwrap_or_default()
    );
    Ok(())
}
