//! Outputs in memory that a pilot which comes back can have again.
//!
//! ```text
//!   launch ── own ── Clean: closed         Retain ── kept ── Forget, or the shim's end: closed
//! ```
//! They are with PID 1 and not with the stage holder, which a payload can take over, and which is ended by Clean. The memory stays
//! charged to whoever wrote it first, as long as anyone has it; so the pilot says when it is not wanted any more.
//!
//! **Must not know:** what is in them, who reads them.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::fcntl_get_seals;
use wire::slot::{Held, LaunchId};

use crate::stages::{Stage, Way};

/// Most outputs of payloads that are clean already. The oldest make way: they are made again if need be.
pub(crate) const KEPT_MAX: usize = 256;

#[derive(Debug)]
struct Kept {
    held: Held,
    fd: OwnedFd,
}

/// All that there is.
#[derive(Debug, Default)]
pub(crate) struct Retained {
    /// Of the payload that is there.
    own: Vec<Kept>,
    kept: VecDeque<Kept>,
}

impl Retained {
    /// A payload was launched with these stages.
    pub(crate) fn begin(&mut self, launch: LaunchId, stages: Vec<Stage>) {
        // Only memory has seals, taken or not.
        let outputs =
            stages.into_iter().filter(|stage| stage.way == Way::Out && fcntl_get_seals(&stage.fd).is_ok());
        self.own =
            outputs.map(|stage| Kept { held: Held { launch, output: stage.name }, fd: stage.fd }).collect();
    }

    /// The payload is clean, or never ran.
    pub(crate) fn end(&mut self) {
        self.own.clear();
    }

    /// Keeps outputs; those of the same names are replaced.
    pub(crate) fn keep(&mut self, launch: LaunchId, outputs: Vec<String>, fds: Vec<OwnedFd>) {
        self.forget(launch, &outputs);
        let new = outputs.into_iter().zip(fds);
        self.kept.extend(new.map(|(output, fd)| Kept { held: Held { launch, output }, fd }));
        while self.kept.len() > KEPT_MAX {
            self.kept.pop_front();
        }
    }

    /// Closes outputs.
    pub(crate) fn forget(&mut self, launch: LaunchId, outputs: &[String]) {
        self.kept.retain(|kept| kept.held.launch != launch || !outputs.contains(&kept.held.output));
    }

    /// What there is, the payload's own last.
    pub(crate) fn all(&self) -> Vec<(Held, BorrowedFd<'_>)> {
        self.kept.iter().chain(&self.own).map(|kept| (kept.held.clone(), kept.fd.as_fd())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").expect("open").into()
    }

    fn names(retained: &Retained) -> Vec<(u8, String)> {
        retained.all().into_iter().map(|(held, _)| (held.launch.0[0], held.output)).collect()
    }

    #[test]
    fn what_is_kept_is_kept_once_until_it_is_forgotten_and_never_more_than_so_much() {
        let id = |number: u8| LaunchId([number; 16]);
        let mut retained = Retained::default();
        retained.keep(id(1), vec!["a".into(), "b".into()], vec![null(), null()]);
        retained.keep(id(2), vec!["a".into()], vec![null()]);
        retained.keep(id(1), vec!["a".into()], vec![null()]);
        assert_eq!(names(&retained), [(1, "b".into()), (2, "a".into()), (1, "a".into())]);
        retained.forget(id(1), &["a".into(), "none".into()]);
        assert_eq!(names(&retained), [(1, "b".into()), (2, "a".into())]);
        for number in 0..KEPT_MAX {
            retained.keep(id(3), vec![format!("n{number}")], vec![null()]);
        }
        assert_eq!(retained.all().len(), KEPT_MAX);
        assert_eq!(names(&retained)[0], (3, "n0".into()));
    }

    #[test]
    fn only_outputs_in_memory_are_a_launchs_own() {
        let memory = |name| rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        let stage = |way, name: &str, fd| Stage { way, name: name.into(), fd };
        let stages = vec![
            stage(Way::In, "i", memory(c"i")),
            stage(Way::Out, "m", memory(c"m")),
            stage(Way::Out, "n", null()),
        ];
        let mut retained = Retained::default();
        retained.begin(LaunchId([7; 16]), stages);
        assert_eq!(names(&retained), [(7, "m".into())]);
        retained.end();
        assert_eq!(names(&retained), []);
    }
}
