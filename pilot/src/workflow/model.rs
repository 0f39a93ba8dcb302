//! The workflow file as it is written: one type for each mapping, one field for each key.
//!
//! The documentation of these types is the documentation of the format: `pilot schema` prints it. Fields that a person
//! may get wrong are [`Located`], so that every complaint has a line and a column.
//!
//! Must not know: whether names, units and references make sense (that is `validate`), what runs a payload.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::located::{Located, Text};

/// Payloads to run, and the data that they hand to each other.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Workflow {
    /// Version of this format. Always `latebind/v1`.
    #[serde(rename = "apiVersion")]
    pub api_version: ApiVersion,
    /// What the file describes. Always `Workflow`; may be left out.
    #[serde(default)]
    pub kind: Option<Kind>,
    /// How the workflow is called.
    pub metadata: Metadata,
    /// Values for every payload that does not say otherwise.
    #[serde(default)]
    pub defaults: Option<Defaults>,
    /// What to run. The order does not matter: a payload starts when its inputs are there.
    #[schemars(length(min = 1))]
    pub payloads: Located<Vec<Located<Payload>>>,
}

/// Versions of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ApiVersion {
    /// The first version.
    #[serde(rename = "latebind/v1")]
    V1,
}

/// Kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Kind {
    /// A workflow.
    Workflow,
}

/// Names the workflow.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Name of the workflow: 1 to 64 letters, digits, `.`, `_` or `-`, beginning with a letter or digit. It is the first
    /// part of stage names: `stage://<workflow>/<payload>/<output>`.
    pub name: Located<String>,
}

/// Values for every payload that does not say otherwise.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// Container image, as for a payload.
    #[serde(default)]
    pub image: Option<Located<String>>,
    /// Resources, as for a payload. A payload may replace each of them singly.
    #[serde(default)]
    pub resources: Option<Resources>,
    /// Longest run time, as for a payload.
    #[serde(default)]
    pub walltime: Option<Located<Text>>,
    /// How often a failed payload is started again, as for a payload.
    #[serde(default)]
    #[schemars(range(max = 100))]
    pub retries: Option<u32>,
    /// Environment variables. Those of a payload win.
    #[serde(default)]
    pub env: BTreeMap<String, Located<Text>>,
    /// Trust group, as for a payload.
    #[serde(default)]
    pub trust_group: Option<Located<String>>,
}

/// One unit of work, or with `count` an array of them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Payload {
    /// Name, unique in the workflow: 1 to 64 letters, digits, `.`, `_` or `-`, beginning with a letter or digit.
    pub name: Located<String>,
    /// Container image: `docker://[<registry>/]<name>[:<tag>][@<digest>]`, `oci:<folder>[:<tag>]`, `oci-archive:<file>[:<tag>]`, `docker-archive:<file>[:<name>:<tag>]`,
    /// or a path with `/`, `./` or `../` in front. A relative path begins at the workflow file's folder. Needed here or
    /// in `defaults`.
    #[serde(default)]
    pub image: Option<Located<String>>,
    /// Program and its first arguments, in place of the image's ENTRYPOINT (and of its CMD).
    #[serde(default)]
    pub command: Option<Located<Vec<Located<Text>>>>,
    /// Arguments, in place of the image's CMD. Without `command` they follow the image's ENTRYPOINT.
    #[serde(default)]
    pub args: Option<Vec<Located<Text>>>,
    /// Environment variables, added to the image's. Names that begin with `LATEBIND_` are taken.
    #[serde(default)]
    pub env: BTreeMap<String, Located<Text>>,
    /// Working directory, absolute. Default: the image's WORKDIR, else the payload's own folder.
    #[serde(default)]
    pub cwd: Option<Located<String>>,
    /// Who the payload is in its container: a number, `<uid>:<gid>`, or `image` (the image's USER, which a pod refuses). Default: the image's USER; in a pod the slot's user.
    #[serde(default)]
    pub user: Option<Located<Text>>,
    /// What the payload may use.
    #[serde(default)]
    pub resources: Option<Resources>,
    /// Longest run time, such as `90s`, `5m`, `2h` or `1h30m`. Default: no limit.
    #[serde(default)]
    pub walltime: Option<Located<Text>>,
    /// Time between SIGTERM and SIGKILL when the payload is stopped, at most a day. Default: `10s`.
    #[serde(default)]
    pub grace: Option<Located<Text>>,
    /// How often a failed payload is started again. Default: 0.
    #[serde(default)]
    #[schemars(range(max = 100))]
    pub retries: Option<Located<u32>>,
    /// Makes an array of this many payloads, `<name>-0` to `<name>-<count - 1>`, which find their own number in
    /// LATEBIND_INDEX and the count in LATEBIND_COUNT.
    #[serde(default)]
    #[schemars(range(min = 1, max = 100_000))]
    pub count: Option<Located<u32>>,
    /// Data that the payload reads, below `/stage/in`.
    #[serde(default)]
    pub inputs: Vec<Located<Input>>,
    /// Data that the payload writes, below `/stage/out`.
    #[serde(default)]
    pub outputs: Vec<Located<Output>>,
    /// Payloads of one trust group may follow each other in one container. Default: who runs the workflow.
    #[serde(default)]
    pub trust_group: Option<Located<String>>,
    /// Never start this payload a second time, also when its machine is lost. Default: false.
    #[serde(default)]
    pub at_most_once: bool,
    /// Whether the payload may write to its image's files. Default: `read-only`.
    #[serde(default)]
    pub rootfs: Rootfs,
    /// Which network the payload sees. Default: `host`.
    #[serde(default)]
    pub network: Network,
    /// Payloads that must have succeeded before, beyond those whose outputs are inputs here.
    #[serde(default)]
    pub after: Vec<Located<String>>,
}

/// What a payload may use.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Processors: `2`, `0.5` or `500m`. Default: 1.
    #[serde(default)]
    pub cpu: Option<Located<Text>>,
    /// Memory: bytes, or a number with Ki, Mi, Gi, Ti, k, M, G or T. Default: 1Gi. Outputs of class `mem` come on top: their
    /// `max_size` is added to what the payload needs and to its limit.
    #[serde(default)]
    pub memory: Option<Located<Text>>,
    /// Space for files outside of outputs, spelled like memory. Default: 1Gi.
    #[serde(default)]
    pub disk: Option<Located<Text>>,
}

/// Data that a payload reads.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Name of the input: the payload finds it at `/stage/in/<name>`. Where `from` stands for several, `-0`, `-1` and so
    /// on are added.
    pub name: Located<String>,
    /// Where the data comes from. `stage://<payload>/<output>` is the output of another payload, of an array all its
    /// elements' (`stage://<payload>-<i>/<output>` is one). `./path`, `/path` and `file:path` are a file or a folder
    /// of this machine, read-only; a path without `/` in front begins at the workflow file's folder, and `*` and `?` in
    /// it stand for all that match, in sorted order. `s3://<bucket>/<key>` is an object, fetched once a machine; in an array
    /// `{index}` in it is the element's number.
    pub from: Located<String>,
    /// In an array, deal out what `from` stands for: element i gets the i-th and then every `count`-th. An array's output
    /// dealt to an array of the same count keeps the plain name; otherwise `-0`, `-1` count within the element.
    /// Default: false, every element gets all.
    #[serde(default)]
    pub scatter: Option<Located<bool>>,
    /// Show it at this path of the payload's container as well, read-only: an absolute path, made if the image lacks it and
    /// covering what the image has there. Neither in nor above what is the slot's own, such as `/tmp`, `/work`, `/stage` or
    /// `/etc/hosts`. For a single file or folder of this machine, an object, or a single output of class `file` or `folder`.
    #[serde(default)]
    pub at: Option<Located<String>>,
}

/// Data that a payload writes.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Name of the output: the payload writes it to `/stage/out/<name>`.
    pub name: Located<String>,
    /// How it is kept. Default: `file`.
    #[serde(default)]
    pub class: OutputClass,
    /// Most bytes it may have, spelled like memory. Default: 1Gi; 256Mi of class `mem`; 64Ki for a value, which is its most. Of class `shared` it
    /// is the size, and must be given; of class `pipe` there is none.
    #[serde(default)]
    pub max_size: Option<Located<Text>>,
    /// Copy it there when the payload has succeeded: a path relative to the folder where results go, without `..`; or
    /// `s3://<bucket>/<key>`; or `file:///<path>`, below a folder that `--save-under` allows. What is there is replaced; a folder
    /// can't be saved to `s3://`. In an
    /// array it contains `{index}`.
    #[serde(default)]
    pub save: Option<Located<String>>,
}

/// How an output is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OutputClass {
    /// A real file; works with every program and may exceed memory.
    #[default]
    File,
    /// Sealed memory; handed on without a copy.
    Mem,
    /// A folder with all that is in it; `max_size` is that of its files together.
    Folder,
    /// At most 64Ki that the pilot keeps; a client library gets it inside a message.
    Value,
    /// A pipe to the one payload that reads it, which runs at the same time. Nothing of it is kept.
    Pipe,
    /// Memory of `max_size` that the payload and all that read it write at the same time. Nothing of it is kept.
    Shared,
}

/// Whether a payload may write to its image's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Rootfs {
    /// Only /tmp, /var/tmp, /dev/shm, /work and the outputs are writable.
    #[default]
    ReadOnly,
    /// Changes go to the payload's own copy and are thrown away with it.
    Writable,
}

/// Which network a payload sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// The machine's.
    #[default]
    Host,
    /// None but its own loopback.
    None,
}
