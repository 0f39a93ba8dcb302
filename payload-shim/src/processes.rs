//! Which processes are the payload's, and killing them until none is left.
//!
//! As PID 1 of a PID namespace: all in `/proc` but ourselves and the holder. Otherwise (tests, a pod with a shared PID
//! namespace): all that descend from us; as subreaper we inherit every orphan, so the tree is complete.
//!
//! # Looking costs little when nobody is there
//! `/proc` lists what is not a process first, then the processes in the order of their PIDs, PID 1 before all others. Its
//! place is remembered, and a look starts there: one seek, one read of a few bytes. That the listing begins with PID 1 is
//! checked each time; if it does not, everything is read. Not "no children are left" (ECHILD): who entered the namespace
//! from outside is nobody's child here, but must not be left either (pid_namespaces(7)).
//!
//! # Against processes that multiply
//! A pass lists and kills; what was forked between the two is in the next pass. From the second pass on everybody is
//! stopped before anybody is killed, so that nobody forks while others die. If new ones still turn up after
//! `PASSES_MAX` passes, `kill(-1)` ends all in one step of the kernel, the holder too.
//!
//! **Must not know:** payloads, launches, who asked.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Dir, Mode, OFlags, RawDir, SeekFrom, openat, readlinkat, seek};
use rustix::io::Errno;
use rustix::process::{Pid, getpid};

use crate::sys;

/// Passes with newcomers before the last resort.
const PASSES_MAX: u32 = 50;
/// Room for a part of a listing; 24 bytes and more a process.
const LISTING_BYTES: usize = 2048;

/// One line of the process table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Who.
    pub pid: Pid,
    /// Its parent's PID; 0 when that is outside the namespace.
    pub parent: i32,
    /// Dead, but not waited for. A group leader that has left its threads behind looks like this too.
    pub zombie: bool,
}

/// A view of the process table.
#[derive(Debug)]
pub struct Processes {
    own: Pid,
    proc: Option<OwnedFd>,
    /// Where in the listing we are, as PID 1.
    from: Option<u64>,
}

impl Processes {
    /// Looks at `/proc`.
    #[must_use]
    pub fn open() -> Self {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let own = getpid();
        let proc = openat(CWD, c"/proc", flags, Mode::empty()).ok();
        let from = proc.as_ref().filter(|_| own.is_init()).and_then(|proc| place_of(proc, own));
        Self { own, proc, from }
    }

    /// Whether this is PID 1 of a namespace, so that all processes but two are the payload's.
    #[must_use]
    pub fn is_init(&self) -> bool {
        self.own.is_init()
    }

    /// Whether `/proc` is there and belongs to our PID namespace.
    ///
    /// # Errors
    /// `ENOENT` or what else the kernel says; `ESRCH` when it is of another namespace.
    pub fn check(&self) -> Result<(), Errno> {
        let link = readlinkat(self.proc()?, c"self", Vec::new())?;
        if parse_number(link.to_bytes()) == Some(self.own.as_raw_nonzero().get()) {
            Ok(())
        } else {
            Err(Errno::SRCH)
        }
    }

    /// The payload's processes, zombies included, without `holder`.
    ///
    /// # Errors
    /// When `/proc` can't be read.
    pub fn list(&self, holder: Option<Pid>) -> Result<Vec<Process>, Errno> {
        let mut all = Vec::new();
        let pids = match self.from.and_then(|from| self.others(from)) {
            Some(pids) => pids,
            None => self.everybody()?,
        };
        // The holder's line would be read for nothing where it is not needed for the family.
        let wanted =
            pids.into_iter().filter(|&pid| pid != self.own && (!self.is_init() || Some(pid) != holder));
        all.extend(wanted.filter_map(|pid| self.read(pid)));
        if !self.is_init() {
            keep_descendants(&mut all, self.own.as_raw_nonzero().get());
        }
        all.retain(|process| Some(process.pid) != holder);
        Ok(all)
    }

    /// Every PID but our own, from the place where ours is listed; `None` when it is not there.
    fn others(&self, from: u64) -> Option<Vec<Pid>> {
        let proc = self.proc.as_ref()?;
        seek(proc, SeekFrom::Start(from)).ok()?;
        let mut space = [MaybeUninit::uninit(); LISTING_BYTES];
        let mut entries = RawDir::new(proc, &mut space);
        if number_in(entries.next()?.ok()?.file_name().to_bytes()) != Some(self.own) {
            return None;
        }
        let mut pids = Vec::new();
        while let Some(entry) = entries.next() {
            pids.extend(number_in(entry.ok()?.file_name().to_bytes()));
        }
        Some(pids)
    }

    fn everybody(&self) -> Result<Vec<Pid>, Errno> {
        let mut pids = Vec::new();
        // A fresh open file each time: directory offsets are shared with the descriptor.
        for entry in Dir::read_from(self.proc()?)? {
            pids.extend(number_in(entry?.file_name().to_bytes()));
        }
        Ok(pids)
    }

    fn proc(&self) -> Result<&OwnedFd, Errno> {
        self.proc.as_ref().ok_or(Errno::NOENT)
    }

    /// `None` when it has gone meanwhile.
    fn read(&self, pid: Pid) -> Option<Process> {
        let path = format!("{}/stat", pid.as_raw_nonzero());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(self.proc.as_ref()?, path, flags, Mode::empty()).ok()?;
        let mut text = [0; 256];
        let length = rustix::io::read(&file, &mut text).ok()?;
        let (zombie, parent) = parse_stat(text.get(..length)?)?;
        Some(Process { pid, parent, zombie })
    }
}

/// The place of `own` in the listing: what the entry before it says comes next.
fn place_of(proc: &OwnedFd, own: Pid) -> Option<u64> {
    let mut space = [MaybeUninit::uninit(); LISTING_BYTES];
    let mut entries = RawDir::new(proc, &mut space);
    let mut before = None;
    while let Some(entry) = entries.next() {
        let entry = entry.ok()?;
        if number_in(entry.file_name().to_bytes()) == Some(own) {
            return before;
        }
        before = Some(entry.next_entry_cookie());
    }
    None
}

fn number_in(text: &[u8]) -> Option<Pid> {
    parse_number(text).and_then(Pid::from_raw)
}

fn parse_number(text: &[u8]) -> Option<i32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// State and parent from `/proc/<pid>/stat`. The name before them may hold anything, `)` too (proc(5)).
fn parse_stat(text: &[u8]) -> Option<(bool, i32)> {
    let end = text.iter().rposition(|&byte| byte == b')')?;
    let mut fields = text.get(end + 1..)?.split(|&byte| byte == b' ').filter(|field| !field.is_empty());
    let state = fields.next()?;
    Some((matches!(state, b"Z" | b"X"), parse_number(fields.next()?)?))
}

fn keep_descendants(all: &mut Vec<Process>, ancestor: i32) {
    let mut family = vec![ancestor];
    loop {
        let before = family.len();
        for process in all.iter() {
            let pid = process.pid.as_raw_nonzero().get();
            if family.contains(&process.parent) && !family.contains(&pid) {
                family.push(pid);
            }
        }
        if family.len() == before {
            break;
        }
    }
    all.retain(|process| family.contains(&process.pid.as_raw_nonzero().get()));
}

/// Killing in passes; one pass a turn of the loop, so that orphans are reaped between them.
#[derive(Debug, Default)]
pub struct Sweep {
    passes: u32,
    struck: Vec<Pid>,
    /// Living processes that were killed, the `known` of each pass left out.
    killed: u32,
    known_killed: u32,
    hot: bool,
    last_resort: bool,
}

/// What a pass found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Nobody is left.
    Done,
    /// Newcomers were killed: make another pass at once.
    Again,
    /// All have their SIGKILL; SIGCHLD tells when they are gone.
    Dying,
}

impl Sweep {
    /// Kills everybody but the holder. `known` are the payload's first process and helpers, counted apart.
    ///
    /// # Errors
    /// When `/proc` can't be read; as PID 1 everybody was then killed by `kill(-1)`.
    pub fn pass(&mut self, processes: &Processes, holder: Option<Pid>, known: &[Pid]) -> Result<Pass, Errno> {
        let found = match processes.list(holder) {
            Ok(found) => found,
            Err(errno) => {
                self.last_resort(processes);
                return Err(errno);
            }
        };
        let zombie_of_holder =
            |p: &Process| p.zombie && holder.is_some_and(|holder| holder.as_raw_nonzero().get() == p.parent);
        if found.iter().all(zombie_of_holder) {
            return Ok(Pass::Done);
        }
        let fresh = found.iter().filter(|process| !self.struck.contains(&process.pid));
        let mut newcomers = false;
        for process in fresh.filter(|process| !process.zombie) {
            newcomers = true;
            let count = if known.contains(&process.pid) { &mut self.known_killed } else { &mut self.killed };
            *count = count.saturating_add(1);
        }
        if newcomers && self.passes > 0 {
            strike(&found, libc::SIGSTOP);
        }
        strike(&found, libc::SIGKILL);
        self.struck = found.iter().map(|process| process.pid).collect();
        self.hot = newcomers;
        if !newcomers {
            return Ok(Pass::Dying);
        }
        self.passes = self.passes.saturating_add(1);
        if self.passes > PASSES_MAX {
            self.last_resort(processes);
        }
        Ok(Pass::Again)
    }

    /// Whether everybody was killed at once, the holder too.
    #[must_use]
    pub fn was_last_resort(&self) -> bool {
        self.last_resort
    }

    /// Whether the last pass found newcomers, so that the next must not wait.
    #[must_use]
    pub fn is_hot(&self) -> bool {
        self.hot
    }

    /// How many were killed that nobody had asked for.
    #[must_use]
    pub fn leftovers(&self) -> u32 {
        self.killed
    }

    /// How many were killed in all.
    #[must_use]
    pub fn killed(&self) -> u32 {
        self.killed.saturating_add(self.known_killed)
    }

    /// Only as PID 1: elsewhere -1 is every process of the uid.
    fn last_resort(&mut self, processes: &Processes) {
        if processes.is_init() {
            self.last_resort = true;
            // ESRCH: nobody was left.
            let _ = sys::kill(None, libc::SIGKILL);
        }
    }
}

fn strike(processes: &[Process], signal: i32) {
    for process in processes {
        // ESRCH: it has gone meanwhile. EPERM: another uid's, put here from outside; not ours to end.
        let _ = sys::kill(Some(process.pid), signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32) -> Process {
        Process { pid: Pid::from_raw(pid).expect("pid"), parent, zombie: false }
    }

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_confuse_the_parser() {
        assert_eq!(parse_stat(b"12 (a) S 1 (x) Z 77 12 12 0"), Some((true, 77)));
        assert_eq!(parse_stat(b"12 (sh) S 5 12 12 0"), Some((false, 5)));
        assert_eq!(parse_stat(b"12 (sh"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn descendants_are_found_in_any_order_and_strangers_are_not() {
        let mut all = vec![process(9, 8), process(8, 5), process(7, 1), process(6, 5), process(10, 7)];
        keep_descendants(&mut all, 5);
        let pids: Vec<i32> = all.iter().map(|p| p.pid.as_raw_nonzero().get()).collect();
        assert_eq!(pids, [9, 8, 6]);
    }
}
