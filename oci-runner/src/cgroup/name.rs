//! How cgroups are named, so that who finds one knows whose it is: `latebind-<owner>-<part>`.
//!
//! An owner's name may hold `-`, a part's must not, so a name is split at its last one: `latebind-a-b-0` is part `0` of `a-b`
//! and never something of `a`.
//!
//! **Must not know:** which owners are alive.

use std::fmt::Display;

const PREFIX: &str = "latebind-";

/// The name of cgroup `part` of `owner`. `part` must hold no `-`.
#[must_use]
pub fn cgroup_name(owner: &str, part: impl Display) -> String {
    format!("{PREFIX}{owner}-{part}")
}

/// Whose cgroup has this name; `None` when the name is none of [`cgroup_name`]'s.
#[must_use]
pub fn cgroup_owner(name: &str) -> Option<&str> {
    let (owner, part) = name.strip_prefix(PREFIX)?.rsplit_once('-')?;
    (!owner.is_empty() && !part.is_empty()).then_some(owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_found_whatever_its_name() {
        for owner in ["a", "a-b", "a-b-0", "a_b", "latebind", "latebind-a", "pilot", "-"] {
            for part in ["0", "17", "probe"] {
                assert_eq!(cgroup_owner(&cgroup_name(owner, part)), Some(owner), "{owner} {part}");
            }
        }
    }

    #[test]
    fn names_of_others_have_no_owner() {
        for name in ["", "latebind", "latebind-", "latebind-pilot", "latebind--0", "latebind-a-", "user-a-0"]
        {
            assert_eq!(cgroup_owner(name), None, "{name:?}");
        }
    }
}
