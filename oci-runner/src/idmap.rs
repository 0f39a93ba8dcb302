//! Which ids a container's processes have, inside and outside. Pure.
//!
//! There is exactly one mapping: no setuid helper is needed for it, and on a network file system no server has to
//! know of subordinate ids. Without privilege the host id is the caller's own; with privilege it is one that nobody
//! else has, so that a payload is never root anywhere.
//!
//! **Must not know:** how the maps are written, what an image's `USER` says.

use std::fmt::Write as _;

/// First host id handed out to slots when the pilot is root: far above what `/etc/login.defs`, `/etc/subuid` and
/// systemd (which reserves up to 1_879_048_191) give away, and below 2^31.
pub const UID_BASE: u32 = 2_000_000_000;

/// One id inside, one outside, for user and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    /// User id that processes see as their own.
    pub inside_uid: u32,
    /// Group id that processes see as their own.
    pub inside_gid: u32,
    /// User id that the host sees.
    pub host_uid: u32,
    /// Group id that the host sees.
    pub host_gid: u32,
    /// Who makes the mapping.
    pub authority: Authority,
}

/// By which right the mapping is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// Anyone may map their own id, once `setgroups` is denied.
    Own,
    /// `CAP_SETUID`, `CAP_SETGID` and `CAP_SYS_ADMIN`: the host id is foreign to the caller, supplementary groups
    /// are cleared, and mount sources are opened by the caller, who may reach what that id may not.
    Privileged,
}

/// What the calling process may do, as read by [`crate::caller`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Effective user id.
    pub euid: u32,
    /// Effective group id.
    pub egid: u32,
    /// `CAP_SETUID`, `CAP_SETGID` and `CAP_SYS_ADMIN` are all effective.
    pub may_map_others: bool,
    /// `/proc/self/uid_map`: which ids exist in the caller's own user namespace.
    pub uid_map: String,
    /// `/proc/self/gid_map`.
    pub gid_map: String,
}

/// Why no safe mapping exists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdMapError {
    /// The machine's root without the capabilities to become anyone else: mapping it would make payloads root.
    #[error(
        "give the payload an unprivileged user id: the pilot is the host's root but lacks CAP_SETUID, CAP_SETGID or \
         CAP_SYS_ADMIN; start the pilot as an ordinary user, or with these capabilities"
    )]
    RootWithoutCapabilities,
    /// The id is outside what the caller's own user namespace knows.
    #[error(
        "map host id {0}: it does not exist in the pilot's own user namespace; choose a uid base inside /proc/self/uid_map"
    )]
    Unmapped(u32),
}

impl IdMap {
    /// The mapping for slot `slot` of a pilot with the rights of `caller`, whose payload wants to be
    /// `inside_uid:inside_gid`.
    pub fn choose(
        caller: &Caller,
        (inside_uid, inside_gid): (u32, u32),
        uid_base: u32,
        slot: u32,
    ) -> Result<Self, IdMapError> {
        let own = Self {
            inside_uid,
            inside_gid,
            host_uid: caller.euid,
            host_gid: caller.egid,
            authority: Authority::Own,
        };
        // Root of a user namespace that holds no foreign ids is an ordinary user in disguise.
        let disguised = !covers(&caller.uid_map, 1) || !covers(&caller.gid_map, 1);
        if caller.euid != 0 || disguised {
            return Ok(own);
        }
        if !caller.may_map_others {
            return Err(IdMapError::RootWithoutCapabilities);
        }
        let host = uid_base.saturating_add(slot);
        if !covers(&caller.uid_map, host) || !covers(&caller.gid_map, host) {
            return Err(IdMapError::Unmapped(host));
        }
        Ok(Self { host_uid: host, host_gid: host, authority: Authority::Privileged, ..own })
    }

    /// The line for `/proc/<pid>/uid_map`.
    pub fn uid_line(&self) -> String {
        line(self.inside_uid, self.host_uid)
    }

    /// The line for `/proc/<pid>/gid_map`.
    pub fn gid_line(&self) -> String {
        line(self.inside_gid, self.host_gid)
    }
}

fn line(inside: u32, host: u32) -> String {
    let mut line = String::new();
    // Writing to a String can't fail.
    let _ = writeln!(line, "{inside} {host} 1");
    line
}

/// Whether a map in the form of user_namespaces(7) (inside, outside, length) knows `id`.
fn covers(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        (first..first.saturating_add(count)).contains(&u64::from(id))
    })
}

#[cfg(test)]
#[path = "idmap_tests.rs"]
mod tests;
