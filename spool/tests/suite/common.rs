//! A clock that tests move, and short ways to make submissions.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use pilot_core::{Conclusion, ExitStatus, Jitter, Outcome, Usage};
use spool::{Clock, NewPayload, Options, Spool, Submission};

/// Stands still until it is moved.
#[derive(Debug)]
pub(crate) struct TestClock {
    boot_ms: AtomicU64,
    wall_ms: AtomicU64,
    boot_id: Mutex<Arc<str>>,
}

impl TestClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            boot_ms: AtomicU64::new(1_000_000),
            wall_ms: AtomicU64::new(1_700_000_000_000),
            boot_id: Mutex::new("first".into()),
        })
    }

    pub(crate) fn advance(&self, ms: u64) {
        self.boot_ms.fetch_add(ms, Ordering::SeqCst);
    }

    pub(crate) fn set_wall(&self, ms: u64) {
        self.wall_ms.store(ms, Ordering::SeqCst);
    }

    /// The machine starts again: boot time begins anew.
    pub(crate) fn reboot(&self, id: &str) {
        self.boot_ms.store(100, Ordering::SeqCst);
        *self.boot_id.lock().expect("lock") = id.into();
    }
}

impl Clock for TestClock {
    fn boot_ms(&self) -> u64 {
        self.boot_ms.load(Ordering::SeqCst)
    }

    fn boot_id(&self) -> Arc<str> {
        self.boot_id.lock().expect("lock").clone()
    }

    fn wall_ms(&self) -> u64 {
        self.wall_ms.load(Ordering::SeqCst)
    }
}

pub(crate) fn open(folder: &Path, clock: &Arc<TestClock>) -> Spool {
    let clock: Arc<dyn Clock> = clock.clone();
    let options = Options { clock, jitter: || Jitter::NONE, busy_ms: 2000, create: true };
    Spool::open_with(folder, options).expect("open spool")
}

pub(crate) fn payload(name: &str, after: &[usize]) -> NewPayload {
    NewPayload {
        name: name.to_owned(),
        family: name.split('-').next().unwrap_or(name).to_owned(),
        spec: format!("spec of {name}"),
        image: "oci:image".to_owned(),
        after: after.to_vec(),
        reads: Vec::new(),
        retries: 0,
        at_most_once: false,
        trust_group: "user".to_owned(),
        cpu_millis: 1000,
        memory_bytes: 1 << 20,
        gang: None,
    }
}

pub(crate) fn submission(name: &str, payloads: Vec<NewPayload>) -> Submission {
    Submission {
        name: name.to_owned(),
        key: None,
        origin: "file".to_owned(),
        out: "out".to_owned(),
        payloads,
    }
}

/// `count` payloads that nothing joins.
pub(crate) fn many(name: &str, count: usize) -> Submission {
    submission(name, (0..count).map(|index| payload(&format!("p-{index}"), &[])).collect())
}

pub(crate) fn exit(code: u8) -> Outcome {
    let status = ExitStatus::Code(code);
    let conclusion = if code == 0 { Conclusion::Succeeded } else { Conclusion::Exited(status) };
    Outcome { conclusion, launched: true, status: Some(status), usage: Usage::default() }
}
