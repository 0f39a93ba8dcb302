//! A pod as its node sees it: processes and folders. It is there when the API is not, and lets a test do what no user may.
//!
//! The pilot's processes and those of each slot have a uid of their own (`pilot pod`), so they are told apart without asking
//! anybody which container is which.
//!
//! **Must not know:** the API.

use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use super::{Answer, Node, command};

/// Who the pilot is; slot n is the n-th after it.
const PILOT_UID: u32 = 10_000;

/// A process of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Outside.
    pub pid: u32,
    /// In its container.
    pub inner: u32,
    /// Its name (proc(5), comm).
    pub name: String,
    /// Who it is.
    pub uid: u32,
    /// Resident memory.
    pub rss_kib: u64,
}

/// A pod on this machine.
#[derive(Clone, Debug)]
pub struct Host {
    uid: String,
    folder: PathBuf,
}

impl Host {
    pub(super) fn new(node: &Node, uid: &str) -> Self {
        Self { uid: uid.to_owned(), folder: node.state().join("kubelet/pods").join(uid) }
    }

    /// One of its volumes.
    #[must_use]
    pub fn volume(&self, kind: &str, name: &str) -> PathBuf {
        self.folder.join("volumes").join(format!("kubernetes.io~{kind}")).join(name)
    }

    /// The volume that pilot and slots share.
    #[must_use]
    pub fn share(&self) -> PathBuf {
        self.volume("empty-dir", "share")
    }

    /// `/work` of a slot.
    #[must_use]
    pub fn work(&self, slot: u32) -> PathBuf {
        self.share().join("slots").join(slot.to_string()).join("work")
    }

    /// What stands in a file of a slot's `/work`; nothing when it is not there.
    #[must_use]
    pub fn read_work(&self, slot: u32, name: &str) -> String {
        std::fs::read_to_string(self.work(slot).join(name)).unwrap_or_default()
    }

    /// Makes a file in a slot's `/work`, which its payload may wait for; as the payload's own, since a shim removes no other's.
    ///
    /// # Panics
    /// When the pod has gone.
    pub fn touch_work(&self, slot: u32, name: &str) {
        let (file, uid) = (self.work(slot).join(name), PILOT_UID + 1 + slot);
        std::fs::write(&file, b"").expect("touch");
        std::os::unix::fs::chown(&file, Some(uid), Some(uid)).expect("chown");
    }

    /// All its processes.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| self.holds(*pid)).filter_map(look).collect()
    }

    fn holds(&self, pid: u32) -> bool {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        // The systemd driver writes underscores.
        groups.contains(&self.uid) || groups.contains(&self.uid.replace('-', "_"))
    }

    /// PID 1 of the pilot's container.
    #[must_use]
    pub fn pilot(&self) -> Option<Process> {
        self.processes().into_iter().find(|process| process.uid == PILOT_UID && process.inner == 1)
    }

    /// All processes of a slot; PID 1 is its shim.
    #[must_use]
    pub fn slot(&self, slot: u32) -> Vec<Process> {
        let own = |process: &Process| process.uid == PILOT_UID + 1 + slot;
        self.processes().into_iter().filter(own).collect()
    }

    /// The shim of a slot.
    #[must_use]
    pub fn shim(&self, slot: u32) -> Option<Process> {
        self.slot(slot).into_iter().find(|process| process.inner == 1)
    }

    /// `pilot ARGUMENTS` in the pilot's container, without the API.
    ///
    /// # Panics
    /// When there is no such container.
    #[must_use]
    pub fn ask(&self, arguments: &[&str]) -> Answer {
        let pid = self.pilot().expect("a pilot").pid;
        let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).expect("environment");
        let (target, uid) = (pid.to_string(), PILOT_UID.to_string());
        let mut all = vec!["-i"];
        all.extend(environment.split_terminator('\0'));
        let namespaces =
            ["--mount", "--uts", "--ipc", "--net", "--pid", "--setuid", &uid, "--setgid", &uid, "--"];
        all.extend(["/usr/bin/nsenter", "--target", &target]);
        all.extend(namespaces);
        all.push("/latebind/pilot");
        all.extend(arguments);
        command(Path::new("/usr/bin/env"), &all, "")
    }
}

/// A pod that can't reach the API server, while everybody else can. It can again when this goes.
#[derive(Debug)]
pub struct CutOff {
    pid: String,
}

impl Host {
    /// Cuts the pod off.
    ///
    /// # Panics
    /// When it has no pilot.
    #[must_use]
    pub fn cut_off(&self) -> CutOff {
        let cut = CutOff { pid: self.pilot().expect("a pilot").pid.to_string() };
        let _cut = cut.route("add").good();
        cut
    }
}

impl CutOff {
    /// A route of the pod's own network.
    fn route(&self, verb: &str) -> Answer {
        let to = ["ip", "route", verb, "unreachable", "10.96.0.1/32"];
        command(Path::new("/usr/bin/nsenter"), &[&["--target", &self.pid, "--net"], &to[..]].concat(), "")
    }
}

impl Drop for CutOff {
    fn drop(&mut self) {
        let _ = self.route("del");
    }
}

/// Kills a process, whoever's it is.
pub fn kill(process: &Process) {
    if let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn look(pid: u32) -> Option<Process> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = |word: &str| status.lines().find_map(|line| line.strip_prefix(word)).map(str::trim);
    if line("State:")?.starts_with('Z') {
        return None;
    }
    Some(Process {
        pid,
        inner: line("NSpid:")?.split_whitespace().next_back()?.parse().ok()?,
        name: line("Name:")?.to_owned(),
        uid: line("Uid:")?.split_whitespace().next()?.parse().ok()?,
        rss_kib: line("VmRSS:").and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or(0),
    })
}
