//! Which of the known settings stands against user namespaces, and the command that changes it. The judgement is pure.
//!
//! Facts: namespaces(7) and user_namespaces(7) for the limit, Debian's patch for `unprivileged_userns_clone`,
//! AppArmor's "unprivileged user namespace restriction" of Ubuntu 23.10 and later.

use std::fs;

use super::chain;
use crate::error::StartError;

/// The settings, as far as this kernel has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Gates {
    /// `user.max_user_namespaces`.
    pub(super) namespaces_max: Option<u64>,
    /// `kernel.unprivileged_userns_clone`.
    pub(super) userns_clone: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns`.
    pub(super) apparmor_restricts: Option<u64>,
    /// The calling process runs under a seccomp filter.
    pub(super) filtered: bool,
}

impl Gates {
    pub(super) fn read() -> Self {
        let number = |name| fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            namespaces_max: number("user/max_user_namespaces"),
            userns_clone: number("kernel/unprivileged_userns_clone"),
            apparmor_restricts: number("kernel/apparmor_restrict_unprivileged_userns"),
            filtered: status.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"])),
        }
    }

    /// What was found and what changes it, for a container that failed with `error`.
    pub(super) fn explain(&self, error: &StartError) -> (String, String) {
        let (found, remedy) = match self.closed(error) {
            Some((found, remedy)) => (found, remedy),
            None => (chain(error), String::new()),
        };
        (found, remedy)
    }

    fn closed(&self, error: &StartError) -> Option<(String, String)> {
        let gate = |found: &str, remedy: &str| Some((found.to_owned(), remedy.to_owned()));
        let refused = matches!(error, StartError::Namespaces { .. });
        match error.errno() {
            Some(libc::ENOSPC) if refused && self.namespaces_max == Some(0) => {
                gate("user.max_user_namespaces is 0", "sudo sysctl -w user.max_user_namespaces=15000")
            }
            Some(libc::ENOSPC) if refused => gate(
                "the limit on user namespaces (user.max_user_namespaces, or 32 nested) is reached",
                "sudo sysctl -w user.max_user_namespaces=15000",
            ),
            Some(libc::EPERM) if refused && self.userns_clone == Some(0) => gate(
                "kernel.unprivileged_userns_clone is 0",
                "sudo sysctl -w kernel.unprivileged_userns_clone=1",
            ),
            // The namespace is made but powerless: its first mount, or its map, is refused.
            Some(libc::EPERM | libc::EACCES) if self.apparmor_restricts.is_some_and(|value| value > 0) => {
                gate(
                    "kernel.apparmor_restrict_unprivileged_userns is 1",
                    "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with `userns,` for the pilot",
                )
            }
            Some(libc::EPERM | libc::ENOSYS) if refused && self.filtered => gate(
                "a seccomp filter on the pilot forbids clone3 with namespaces (usual inside a container)",
                "run the pilot outside the container, or give the container a seccomp profile that allows user namespaces",
            ),
            Some(libc::ENOSYS) if refused => gate("the kernel has no clone3", "Linux 5.12 or later"),
            Some(libc::EINVAL) if refused => {
                gate("the kernel is built without user namespaces", "a kernel with CONFIG_USER_NS")
            }
            Some(libc::EPERM) if refused => gate(
                "the pilot runs in a chroot, or a security module forbids user namespaces",
                "run the pilot outside the chroot, or ask the administrator to allow user namespaces",
            ),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn refused(errno: i32) -> StartError {
        StartError::Namespaces { source: io::Error::from_raw_os_error(errno) }
    }

    fn mount(errno: i32) -> StartError {
        StartError::Mount {
            step: "make every mount private".to_owned(),
            advice: None,
            source: io::Error::from_raw_os_error(errno),
        }
    }

    #[test]
    fn each_gate_is_named_with_the_command_that_opens_it() {
        let open = Gates::default();
        for (gates, error, found, remedy) in [
            (
                Gates { namespaces_max: Some(0), ..open.clone() },
                refused(libc::ENOSPC),
                "max_user_namespaces is 0",
                "user.max_user_namespaces=",
            ),
            (
                Gates { namespaces_max: Some(9), ..open.clone() },
                refused(libc::ENOSPC),
                "is reached",
                "user.max_user_namespaces=",
            ),
            (
                Gates { userns_clone: Some(0), ..open.clone() },
                refused(libc::EPERM),
                "unprivileged_userns_clone is 0",
                "unprivileged_userns_clone=1",
            ),
            (
                Gates { apparmor_restricts: Some(1), ..open.clone() },
                mount(libc::EACCES),
                "apparmor_restrict",
                "apparmor_restrict_unprivileged_userns=0",
            ),
            (
                Gates { filtered: true, ..open.clone() },
                refused(libc::EPERM),
                "seccomp filter",
                "seccomp profile",
            ),
            (
                Gates { filtered: true, ..open.clone() },
                refused(libc::ENOSYS),
                "seccomp filter",
                "seccomp profile",
            ),
            (open.clone(), refused(libc::ENOSYS), "no clone3", "5.12"),
            (open.clone(), refused(libc::EINVAL), "without user namespaces", "CONFIG_USER_NS"),
            (open.clone(), refused(libc::EPERM), "chroot", "administrator"),
        ] {
            let explained = gates.explain(&error);
            assert!(explained.0.contains(found) && explained.1.contains(remedy), "{gates:?}: {explained:?}");
        }
    }

    #[test]
    fn an_unknown_refusal_is_shown_as_it_came() {
        let (found, remedy) = Gates::default().explain(&mount(libc::EIO));
        assert!(found.contains("make every mount private") && found.contains("Input/output"), "{found}");
        assert_eq!(remedy, "");
    }
}
