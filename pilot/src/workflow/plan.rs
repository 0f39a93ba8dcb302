//! What a valid workflow file amounts to: every payload singly, all references resolved, all units numbers.
//!
//! Must not know: YAML, where results are kept, who runs what.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::located::Position;
use crate::mounts::Destination;

use super::model::{Network, OutputClass, Rootfs};

/// A workflow that can be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the workflow.
    pub workflow: String,
    /// Folder of the workflow file, absolute when the caller's was. Relative paths in image references begin here.
    pub folder: PathBuf,
    /// All payloads in the order of the file, the elements of an array one after the other. A payload's `id` is its
    /// index here.
    pub payloads: Vec<PlannedPayload>,
}

/// One payload: its own part, and what it shares with the other elements of its array.
#[derive(Clone, Debug)]
pub struct PlannedPayload {
    /// Index in [`Plan::payloads`].
    pub id: usize,
    /// Unique name: as in the file, or `<name>-<index>` in an array.
    pub name: String,
    /// Its place, when it is an element of an array.
    pub element: Option<Element>,
    /// What the file says about it.
    pub spec: Arc<PayloadSpec>,
    /// What it reads, in the order of the file. Names are unique.
    pub inputs: Vec<PlannedInput>,
    /// Payloads that must have succeeded before, because of data or `after`. Sorted, without repetition, no cycles.
    pub needs: Vec<usize>,
    /// Payloads that it runs together with, its own index among them, sorted; none when it is for itself. They need the same
    /// payloads.
    pub gang: Vec<usize>,
}

/// A place in an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    /// From 0.
    pub index: u32,
    /// How many elements the array has.
    pub count: u32,
}

/// What all elements of an array have in common.
#[derive(Clone, Debug)]
pub struct PayloadSpec {
    /// Name in the file, without an index.
    pub name: String,
    /// Image reference as written; not empty. Its grammar is the image store's.
    pub image: String,
    /// Where the reference stands, for what the image store says about it.
    pub image_at: Position,
    /// In place of the image's ENTRYPOINT; never empty. Then the image's CMD does not count either.
    pub command: Option<Vec<String>>,
    /// In place of the image's CMD.
    pub args: Option<Vec<String>>,
    /// Environment variables of the file (defaults included), without [`PlannedPayload::environment`]'s own.
    pub env: BTreeMap<String, String>,
    /// Absolute working directory.
    pub cwd: Option<String>,
    /// Who it is in its container.
    pub user: User,
    /// What it may use.
    pub resources: PlannedResources,
    /// Longest run time in milliseconds.
    pub walltime_ms: Option<u64>,
    /// Between SIGTERM and SIGKILL, in milliseconds; at most a day.
    pub grace_ms: u32,
    /// How often it is started again after a failure of its own.
    pub retries: u32,
    /// What it writes. Names are unique.
    pub outputs: Vec<PlannedOutput>,
    /// Trust group, if the file names one.
    pub trust_group: Option<String>,
    /// Never started twice; `retries` is 0 then.
    pub at_most_once: bool,
    /// Whether the image's files are writable.
    pub rootfs: Rootfs,
    /// Which network it sees.
    pub network: Network,
    /// Where it stands in the file.
    pub at: Position,
}

/// Who a payload is in its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// The image's USER, or who its slot is where a slot has one user only.
    Unsaid,
    /// The image's USER, and nobody else.
    Image,
    /// These ids.
    Ids {
        /// User id.
        uid: u32,
        /// Group id; as the user id when absent.
        gid: Option<u32>,
    },
}

/// What a payload may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedResources {
    /// Thousandths of a processor; at least 1.
    pub cpu_millicores: u64,
    /// Bytes of memory; at least 1.
    pub memory_bytes: u64,
    /// Bytes of disk.
    pub disk_bytes: u64,
}

/// One input of one payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedInput {
    /// File name below `/stage/in`.
    pub name: String,
    /// Where it comes from.
    pub source: InputSource,
    /// Where it is mounted beside. Those of a payload lie side by side; never for an output of class `mem`.
    pub at: Option<Destination>,
}

/// Where an input comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputSource {
    /// A file or folder of this machine; it existed when the file was checked. Absolute when the caller's folder was.
    Host(PathBuf),
    /// A persistent object, by its URL.
    Object(String),
    /// The output of another payload.
    Stage {
        /// Index in [`Plan::payloads`].
        producer: usize,
        /// Index in the producer's [`PayloadSpec::outputs`].
        output: usize,
    },
}

/// One output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedOutput {
    /// File name below `/stage/out`.
    pub name: String,
    /// How it is kept.
    pub class: OutputClass,
    /// Most bytes it may have.
    pub max_bytes: u64,
    /// Where to copy it afterwards; see [`PlannedPayload::save_to`].
    pub save: Option<String>,
}

impl Plan {
    /// `stage://<workflow>/<payload>/<output>`. `None` when there is no such payload or output.
    pub fn stage_name(&self, producer: usize, output: usize) -> Option<String> {
        let payload = self.payloads.get(producer)?;
        let output = payload.spec.outputs.get(output)?;
        Some(format!("stage://{}/{}/{}", self.workflow, payload.name, output.name))
    }
}

impl PlannedPayload {
    /// Its environment variables beyond the image's: those of the file and, in an array, LATEBIND_INDEX and
    /// LATEBIND_COUNT.
    pub fn environment(&self) -> BTreeMap<String, String> {
        let mut env = self.spec.env.clone();
        if let Some(element) = self.element {
            env.insert("LATEBIND_INDEX".to_owned(), element.index.to_string());
            env.insert("LATEBIND_COUNT".to_owned(), element.count.to_string());
        }
        env
    }

    /// Where an output is to be copied, with this element's number in it: a relative path without `..`, or a URL.
    pub fn save_to(&self, output: &PlannedOutput) -> Option<String> {
        let to = output.save.as_deref()?;
        let index = self.element.map(|element| element.index.to_string()).unwrap_or_default();
        Some(to.replace(INDEX_PLACE, &index))
    }
}

/// What stands for an element's number in `save`.
pub(super) const INDEX_PLACE: &str = "{index}";
