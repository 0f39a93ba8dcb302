//! What must be known of a payload to decide about it. It must not know how one is run: command, environment, mounts
//! and files stay with whoever offers it.

use std::fmt;
use std::sync::Arc;

/// Who must not share a warm slot with whom; by default the submitter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustGroup(pub Arc<str>);

/// An image: a reference as the user wrote it, and after preflight what must be equal for a warm slot to do, which is the
/// digest and the shape of the container around it. Opaque here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageKey(pub Arc<str>);

/// An input by any name under which this machine may hold it, such as a stage's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InputKey(pub Arc<str>);

/// What a payload takes of the pilot's share while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Thousandths of a processor.
    pub cpu_millis: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

impl Demand {
    /// Whether all of it is there in `free`.
    pub const fn fits(&self, free: &Self) -> bool {
        self.cpu_millis <= free.cpu_millis && self.memory_bytes <= free.memory_bytes
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }

    /// What is left after `other` was taken; nothing where `other` is more.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
        }
    }
}

/// One unit of the user's work, as far as decisions need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// For messages: which one it is.
    pub name: Arc<str>,
    /// What it is one of: all members of an array share it. Failures of one family say nothing about the machine.
    pub family: Arc<str>,
    /// What it takes while it runs.
    pub demand: Demand,
    /// Whose it is.
    pub trust: TrustGroup,
    /// What it runs in.
    pub image: ImageKey,
    /// What it reads, for locality only.
    pub inputs: Arc<[InputKey]>,
    /// How long a slot may take to bind it, in milliseconds.
    pub bind_timeout_ms: u64,
    /// How long it may run, in milliseconds.
    pub walltime_ms: u64,
    /// Between TERM and KILL, in milliseconds.
    pub grace_ms: u64,
    /// Whether it must never be launched a second time, whatever became of the first.
    pub at_most_once: bool,
    /// Whether it leaves the image's root as it was, so that the slot may stay warm after it.
    pub reusable: bool,
}

impl From<&str> for TrustGroup {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl From<&str> for ImageKey {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl From<&str> for InputKey {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for TrustGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ImageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for InputKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} millicpu and {} bytes of memory", self.cpu_millis, self.memory_bytes)
    }
}
