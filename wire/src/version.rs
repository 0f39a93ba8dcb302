//! The protocol's version, exchanged in `Hello` and `Welcome`.
//!
//! Peers understand each other when their major numbers are equal. A minor number grows when variants or trailing
//! messages are added that an older peer may refuse without harm.

use serde::{Deserialize, Serialize};

/// Version of the messages in this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Changes when an old peer would misread a message.
    pub major: u16,
    /// Changes when messages are added.
    pub minor: u16,
}

/// What this build speaks.
pub const PROTOCOL: Version = Version { major: 1, minor: 3 };
/// Since when a shim keeps stages in memory for the pilot that comes after its own
/// ([`crate::slot::ToShim::Retain`], [`crate::slot::ToShim::Forget`], [`crate::slot::ToShim::Collect`]).
pub const RETAINS: Version = Version { major: 1, minor: 1 };
/// Since when a shim makes outputs readable to a pilot of another uid ([`crate::slot::ToShim::Reveal`]).
pub const REVEALS: Version = Version { major: 1, minor: 2 };
/// Since when a payload may inherit descriptors of inputs that are files in its slot ([`crate::slot::ToShim::Inherit`]).
pub const INHERITS: Version = Version { major: 1, minor: 3 };

impl Version {
    /// Whether a peer with version `other` reads our messages as we mean them.
    #[must_use]
    pub fn understands(self, other: Version) -> bool {
        self.major == other.major
    }

    /// Whether this version has what came with version `since`.
    #[must_use]
    pub fn has(self, since: Version) -> bool {
        self.major == since.major && self.minor >= since.minor
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}
