//! A payload as the ports pass it: everything resolved, every unit typed.
//!
//! Queue adapters make these; runtime adapters follow them; a spool keeps them as JSON. `pilot-core` sees only the few facts it decides on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use objects::ObjectUrl;
use serde::{Deserialize, Serialize};
use stage::{StageName, StageUri};

use crate::mounts::Destination;

/// One payload of one submitter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// The workflow that it belongs to.
    pub workflow: StageName,
    /// Unique within its workflow; names its log files and stages.
    pub name: StageName,
    /// The array it is an element of, or its own name.
    pub family: StageName,
    /// Image reference as the submitter wrote it, made absolute.
    pub image: String,
    /// Replaces the image's ENTRYPOINT.
    pub command: Option<Vec<String>>,
    /// Replaces the image's CMD. Without command and args the image's own CMD holds.
    pub args: Option<Vec<String>>,
    /// Added to the image's ENV.
    pub env: BTreeMap<String, String>,
    /// Replaces the image's WORKDIR.
    pub cwd: Option<String>,
    /// Replaces the image's USER: user and group id.
    pub user: Option<(u32, u32)>,
    /// The submitter insists on the image's USER, and does not just take it where nothing else is said.
    #[serde(default)]
    pub needs_image_user: bool,
    /// What it may use.
    pub resources: Resources,
    /// Longest run in milliseconds; `None` is no limit.
    pub walltime_ms: Option<u64>,
    /// Between TERM and KILL, in milliseconds.
    pub grace_ms: u32,
    /// What it reads.
    pub inputs: Vec<Input>,
    /// What it writes.
    pub outputs: Vec<Output>,
    /// Whether its root file system may be written (and is thrown away).
    pub writable_root: bool,
    /// Whether it shares the host's network.
    pub host_network: bool,
    /// Folder for its log files, `<name>.stdout` and `<name>.stderr`; absolute.
    pub logs: PathBuf,
    /// Auth file (docker's or podman's format) with which its image is fetched; absolute. `None` is the pilot's own.
    #[serde(default)]
    pub registry_auth: Option<PathBuf>,
    /// Names of the payloads that it runs together with, in order, its own among them; none when it is for itself. They start
    /// together, and none of them is of use without the others.
    #[serde(default)]
    pub gang: Vec<StageName>,
}

impl Payload {
    /// How one of its outputs is called as a stage.
    #[must_use]
    pub fn stage(&self, output: &StageName) -> StageUri {
        StageUri { workflow: self.workflow.clone(), payload: self.name.clone(), output: output.clone() }
    }

    /// Most bytes that its slot is charged for its outputs in memory: by path, whoever writes pays, up to `max_bytes` each.
    /// Shared memory is not among them, because the pilot takes its pages before anyone writes; a value is a file until the
    /// pilot has copied it.
    #[must_use]
    pub fn output_memory_bytes(&self) -> u64 {
        let in_memory = self.outputs.iter().filter(|output| output.class == StageClass::Memory);
        in_memory.fold(0, |sum, output| sum.saturating_add(output.max_bytes))
    }

    /// Most bytes of memory that its slot is charged for while it runs: its own, and its outputs'.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.resources.memory_bytes.saturating_add(self.output_memory_bytes())
    }
}

/// Limits of one payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a processor.
    pub cpu_millis: u64,
    /// Bytes of memory, that of its outputs not counted: see [`Payload::memory_bytes`].
    pub memory_bytes: u64,
    /// Bytes in `/work`.
    pub disk_bytes: u64,
}

/// One input, `/stage/in/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Its name.
    pub name: StageName,
    /// Where it comes from.
    pub source: Source,
    /// Where else it is mounted in the payload's container, read-only. Never a stage in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Destination>,
}

/// Where an input comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A file or folder of the host, absolute.
    Host(PathBuf),
    /// An output of another payload of the workflow.
    Stage(StageUri),
    /// A persistent object, fetched once a machine.
    Object(ObjectUrl),
}

/// One output, `/stage/out/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Its name.
    pub name: StageName,
    /// How it is held.
    pub class: StageClass,
    /// Most bytes.
    pub max_bytes: u64,
    /// Where a copy goes when the payload has succeeded.
    pub save: Option<Save>,
    /// Payloads that will read it: it is released with the last of them, and without any at the workflow's end.
    pub readers: BTreeSet<StageName>,
}

/// Where a copy of an output goes. What is there is replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Save {
    /// A persistent object.
    Object(ObjectUrl),
    /// A file, absolute.
    File(PathBuf),
}

impl Save {
    /// The file, if it is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Object(_) => None,
        }
    }

    /// The folder of this machine that it is put into, if it is one.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::File(path) => path.parent(),
            Self::Object(url) => url.path().and_then(Path::parent),
        }
    }
}

impl fmt::Display for Save {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Object(url) => url.fmt(f),
        }
    }
}

/// Class of a stage (ARCHITECTURE.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageClass {
    /// A file, made immutable by a lease and a read-only link.
    File,
    /// Memory, made immutable by seals.
    Memory,
    /// A folder, of which each file is made immutable as for [`StageClass::File`].
    Folder,
    /// A few bytes that the pilot keeps a copy of.
    Value,
    /// A FIFO between two payloads that run together; never a stage.
    Pipe,
    /// Memory that payloads that run together write, of exactly `max_bytes`; never a stage.
    Shared,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_spool_holds_from_before_is_read() {
        let payload = crate::board::tests::payload("fit");
        let mut kept = serde_json::to_value(&payload).expect("json");
        for later in ["needs_image_user", "registry_auth"] {
            kept.as_object_mut().expect("an object").remove(later).expect("it is written");
        }
        assert_eq!(serde_json::from_value::<Payload>(kept).expect("it is read"), *payload);
    }

    #[test]
    fn outputs_in_memory_are_paid_by_whoever_writes_them() {
        let output = |class, max_bytes| Output {
            name: "x".parse().expect("name"),
            class,
            max_bytes,
            save: None,
            readers: BTreeSet::new(),
        };
        let mut payload = (*crate::board::tests::payload("fit")).clone();
        assert_eq!(payload.memory_bytes(), 64 << 20);
        use StageClass::{File, Folder, Memory, Pipe, Shared, Value};
        payload.outputs = [File, Folder, Pipe, Shared, Value].map(|class| output(class, 1 << 20)).to_vec();
        assert_eq!((payload.output_memory_bytes(), payload.memory_bytes()), (0, 64 << 20));
        payload.outputs.extend([output(Memory, 256 << 20), output(Memory, 1)]);
        assert_eq!(payload.memory_bytes(), (320 << 20) + 1);
        payload.outputs.push(output(Memory, u64::MAX));
        assert_eq!(payload.memory_bytes(), u64::MAX);
    }

    #[test]
    fn where_an_output_is_saved_is_written_as_one_word() {
        for (save, word) in [
            (Save::File("/data/out".into()), "/data/out"),
            (Save::Object("s3://data/out".parse().expect("a name")), "s3://data/out"),
        ] {
            assert_eq!(serde_json::to_value(&save).expect("json"), word);
            assert_eq!(serde_json::from_value::<Save>(word.into()).expect("it is read"), save);
        }
    }
}
