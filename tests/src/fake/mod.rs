//! Stand-ins for the three ports: a queue, a runtime and surroundings that do what a test's script says and keep a ledger
//! of everything that is alive.
//!
//! A ledger ends with `assert_quiet`: nothing is left, no call came that the port's contract forbids, and every scripted
//! play was played. Time is tokio's, so a test with a paused clock runs a day in a moment.
//!
//! **Must not know:** the driver, nor any real adapter but the entry type of the workflow queue.

pub mod cluster;
pub mod queue;
pub mod runtime;
pub mod script;

mod ledger;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pilot::payload::{Input, Output, Payload, Resources, Source, StageClass};
use pilot::queue::workflow::Entry;
use stage::{StageName, StageUri};

pub use cluster::{FakeCluster, StopButton};
pub use queue::FakeQueue;
pub use runtime::FakeRuntime;
pub use script::{Deed, Play};

/// The workflow that payloads made here belong to.
pub const WORKFLOW: &str = "suite";

/// A name that is known to be one.
///
/// # Panics
/// When it isn't.
#[must_use]
pub fn name(text: &str) -> StageName {
    StageName::new(text).expect("a stage's name")
}

/// The smallest payload: one processor, 64 MiB, no limit in time, a second of grace.
#[must_use]
pub fn payload(text: &str) -> Payload {
    Payload {
        workflow: name(WORKFLOW),
        name: name(text),
        family: name(text),
        image: "oci:fake".into(),
        command: None,
        args: None,
        env: BTreeMap::new(),
        cwd: None,
        user: None,
        needs_image_user: false,
        resources: Resources { cpu_millis: 1000, memory_bytes: 64 << 20, disk_bytes: 64 << 20 },
        walltime_ms: None,
        grace_ms: 1000,
        inputs: Vec::new(),
        outputs: Vec::new(),
        writable_root: false,
        host_network: false,
        logs: std::path::PathBuf::new(),
        registry_auth: None,
        gang: Vec::new(),
    }
}

/// A payload of which the queue knows nothing special: no retries, nothing before it.
#[must_use]
pub fn entry(payload: Payload) -> Entry {
    Entry {
        payload: Arc::new(payload),
        trust_group: "user".into(),
        at_most_once: false,
        retries: 0,
        after: Vec::new(),
    }
}

/// An output of at most 1 MiB that `readers` will read.
#[must_use]
pub fn output(text: &str, class: StageClass, readers: &[&str]) -> Output {
    let readers: BTreeSet<StageName> = readers.iter().map(|reader| name(reader)).collect();
    Output { name: name(text), class, max_bytes: 1 << 20, save: None, readers }
}

/// An input `text` that is `producer`'s output of the same name.
#[must_use]
pub fn input(text: &str, producer: &str) -> Input {
    let uri = StageUri { workflow: name(WORKFLOW), payload: name(producer), output: name(text) };
    Input { name: name(text), source: Source::Stage(uri), at: None }
}
