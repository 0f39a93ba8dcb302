//! Figures of the slot's memory cgroup, version 1 and 2.
//!
//! The directory is either given by the pilot or found through `/proc/self/cgroup` below `/sys/fs/cgroup`. A found one
//! counts only when nobody outside the slot is in it: a slot without a cgroup of its own sits in its pilot's, or in a
//! login session's, and those figures would be a lie about the payload. All that is decided once, when figures are first
//! asked for; from then on the files stay open and are read again from their beginning.
//!
//! **Must not know:** limits, who set them.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, pread};
use wire::slot::CgroupFigures;

use crate::processes::Processes;

/// Longest file that is read: `memory.stat` and friends are not; `cgroup.procs` of a large slot is cut, which only
/// hides strangers at its end.
const FILE_BYTES_MAX: usize = 16 * 1024;
/// What is looked for stands in the first lines.
const FIGURE_BYTES_MAX: usize = 1024;

/// Where the figures are.
#[derive(Debug)]
pub struct Cgroup {
    given: Option<OwnedFd>,
    /// What was decided.
    files: Option<Option<Files>>,
}

impl Cgroup {
    /// With the directory that the pilot gave, or none.
    #[must_use]
    pub fn new(given: Option<OwnedFd>) -> Self {
        Self { given, files: None }
    }

    /// Reads the figures; `None` when there is no cgroup of the slot's own.
    #[must_use]
    pub fn figures(&mut self, processes: &Processes) -> Option<CgroupFigures> {
        let given = &mut self.given;
        let files = self.files.get_or_insert_with(|| match given.take() {
            Some(folder) => Files::open(&folder, None),
            None if processes.is_init() => find(),
            None => None,
        });
        files.as_ref()?.figures()
    }
}

fn find() -> Option<Files> {
    let text = read(CWD, "/proc/self/cgroup")?;
    let folder = membership(&text, "memory").and_then(|path| open(&["memory"], path));
    if let Some(folder) = folder.filter(is_own) {
        let cpu = membership(&text, "cpuacct").and_then(|path| open(&["cpuacct", "cpu,cpuacct"], path));
        return Files::open(&folder, cpu.filter(is_own).as_ref());
    }
    let folder = membership(&text, "").and_then(|path| open(&["", "unified"], path))?;
    if is_own(&folder) { Files::open(&folder, None) } else { None }
}

/// The path of our cgroup in the hierarchy with `controller`; the empty name is version 2 (cgroups(7)).
fn membership<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

/// Without a cgroup namespace the path is the host's while the mount shows only our part: then the mount's root is it.
fn open(mounts: &[&str], path: &str) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &str| openat(CWD, path, flags, Mode::empty()).ok();
    mounts.iter().find_map(|mount| {
        let mount = format!("/sys/fs/cgroup/{mount}");
        let folder = open(&format!("{mount}{path}")).or_else(|| open(&mount))?;
        // A tmpfs with version 1 mounts is no cgroup.
        read(&folder, "cgroup.procs").map(|_| folder)
    })
}

/// Processes outside our PID namespace appear as 0.
fn is_own(folder: &OwnedFd) -> bool {
    read(folder, "cgroup.procs").is_some_and(|procs| holds_nobody_else(&procs))
}

fn holds_nobody_else(procs: &str) -> bool {
    !procs.is_empty() && procs.lines().all(|pid| pid != "0")
}

/// The open files of one cgroup.
#[derive(Debug)]
struct Files {
    version: u8,
    peak: Option<OwnedFd>,
    kills: Option<OwnedFd>,
    cpu: Option<OwnedFd>,
}

impl Files {
    /// `None` when it is no memory cgroup.
    fn open(memory: &OwnedFd, cpu: Option<&OwnedFd>) -> Option<Self> {
        if let Some(events) = open_file(memory, "memory.events") {
            let (peak, cpu) = (open_file(memory, "memory.peak"), open_file(memory, "cpu.stat"));
            return Some(Self { version: 2, peak, kills: Some(events), cpu });
        }
        let peak = open_file(memory, "memory.max_usage_in_bytes")?;
        let kills = open_file(memory, "memory.oom_control");
        let cpu = open_file(memory, "cpuacct.usage").or_else(|| open_file(cpu?, "cpuacct.usage"));
        Some(Self { version: 1, peak: Some(peak), kills, cpu })
    }

    fn figures(&self) -> Option<CgroupFigures> {
        let mut buffer = [0; FIGURE_BYTES_MAX];
        let peak = self.peak.as_ref().and_then(|file| again(file, &mut buffer)?.trim().parse().ok());
        if self.version == 1 && peak.is_none() {
            return None;
        }
        let kills = self.kills.as_ref().and_then(|file| field(again(file, &mut buffer)?, "oom_kill"));
        let cpu = self.cpu.as_ref().and_then(|file| {
            let text = again(file, &mut buffer)?;
            match self.version {
                1 => text.trim().parse().ok().map(|ns: u64| ns / 1000),
                _ => field(text, "usage_usec"),
            }
        });
        Some(CgroupFigures { version: self.version, memory_peak_bytes: peak, oom_kills: kills, cpu_us: cpu })
    }
}

/// Reads a file of figures from its beginning; the kernel writes it anew each time.
fn again<'a>(file: &OwnedFd, buffer: &'a mut [u8]) -> Option<&'a str> {
    let length = pread(file, &mut *buffer, 0).ok()?;
    std::str::from_utf8(buffer.get(..length)?).ok()
}

fn open_file(folder: impl AsFd, name: &str) -> Option<OwnedFd> {
    openat(folder, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn read(folder: impl AsFd, name: &str) -> Option<String> {
    let file = open_file(folder, name)?;
    let mut text = vec![0; FILE_BYTES_MAX];
    let mut length = 0;
    while let Some(rest) = text.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match rustix::io::read(&file, rest) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    text.truncate(length);
    String::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_figures(memory: &OwnedFd, cpu: Option<&OwnedFd>) -> Option<CgroupFigures> {
        let files = Files::open(memory, cpu)?;
        assert_eq!(files.figures(), files.figures(), "read twice");
        files.figures()
    }

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, OwnedFd) {
        let folder = tempfile::tempdir().expect("tempdir");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("write");
        }
        let fd = std::fs::File::open(folder.path()).expect("open").into();
        (folder, fd)
    }

    #[test]
    fn version_2_files_are_read() {
        let (_keep, fd) = folder(&[
            ("memory.events", "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 7\n"),
            ("memory.peak", "1234567\n"),
            ("cpu.stat", "usage_usec 42\nuser_usec 40\n"),
        ]);
        let expected = CgroupFigures {
            version: 2,
            memory_peak_bytes: Some(1_234_567),
            oom_kills: Some(1),
            cpu_us: Some(42),
        };
        assert_eq!(read_figures(&fd, None), Some(expected));
    }

    #[test]
    fn version_1_files_are_read_and_processor_time_may_come_from_elsewhere() {
        let (_keep, fd) = folder(&[
            ("memory.max_usage_in_bytes", "99\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"),
        ]);
        let (_keep_too, cpu) = folder(&[("cpuacct.usage", "7000\n")]);
        let expected =
            CgroupFigures { version: 1, memory_peak_bytes: Some(99), oom_kills: Some(5), cpu_us: Some(7) };
        assert_eq!(read_figures(&fd, Some(&cpu)), Some(expected));
        assert_eq!(read_figures(&cpu, None), None, "no memory controller, no figures");
    }

    #[test]
    fn our_place_is_found_in_both_versions_and_strangers_make_it_not_ours() {
        let text = "9:name=systemd:/\n4:cpu,memory:/slot:1\n0::/pod\n";
        assert_eq!(membership(text, "memory"), Some("/slot:1"));
        assert_eq!(membership(text, ""), Some("/pod"));
        assert_eq!(membership(text, "pids"), None);
        assert!(holds_nobody_else("1\n2\n17\n"));
        assert!(!holds_nobody_else("0\n1\n"));
        assert!(!holds_nobody_else(""));
    }
}
