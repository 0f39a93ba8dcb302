//! Every adapter keeps its port's promises: the fakes and the real ones run the same suites.
//!
//! The real runtime needs user namespaces, busybox and the built programs; without the first two its tests are skipped.

use std::path::{Path, PathBuf};

use pilot::config::{AttachChoice, Config};
use pilot::object_access::ObjectAccess;
use pilot::payload::Payload;
use pilot::queue::workflow::WorkflowQueue;
use pilot::runtime::local::{LocalRuntime, Name};
use pilot_tests::baseline::{cgroups, descendants};
use pilot_tests::conformance::{
    queue,
    runtime::{self, Stand, Trial},
    stages,
};
use pilot_tests::fake::{Deed, FakeQueue, FakeRuntime};
use pilot_tests::run::{Site, dist};
use pilot_tests::spooled::SpooledEntries;

/// One test for each promise, for one queue adapter; its time is tokio's, which stands still, or the machine's.
macro_rules! queue_keeps {
    ($adapter:ident, $make:expr, $paused:literal, [$($promise:ident),* $(,)?]) => {
        mod $adapter {
            use super::*;
            $(#[tokio::test(start_paused = $paused)]
            async fn $promise() {
                queue::$promise($make).await;
            })*
        }
    };
}

macro_rules! every_queue {
    ($promises:tt) => {
        queue_keeps!(fake_queue, FakeQueue::new, true, $promises);
        queue_keeps!(workflow_queue, WorkflowQueue::new, true, $promises);
        // Its pauses are counted in boot time, by a thread.
        queue_keeps!(spool_queue, SpooledEntries::new, false, $promises);
    };
}

every_queue!([
    a_claim_is_bounded_and_gives_nothing_twice,
    a_claim_has_one_answer,
    a_released_payload_is_offered_again,
    a_failed_payload_comes_back_until_its_retries_are_spent,
    a_final_failure_skips_what_comes_after,
    at_most_once_holds_once_it_was_launched,
    what_comes_after_waits_for_all_before_it,
    closed_is_said_only_at_the_end,
    a_wait_ends_when_there_may_be_something,
    a_gang_is_given_whole_or_not_at_all,
    who_has_no_room_for_a_gang_is_not_kept_awake_by_it,
    a_gang_succeeds_as_a_whole,
    a_gang_comes_back_whole_until_one_has_no_try_left,
    at_most_once_holds_for_a_gang,
]);

/// The fake does deeds by itself.
struct FakeStand(FakeRuntime);

impl Stand for FakeStand {
    type Runtime = FakeRuntime;

    fn runtime(&self) -> &FakeRuntime {
        &self.0
    }

    fn image(&self) -> String {
        "oci:fake".into()
    }

    fn command(&self, deed: &Deed) -> Vec<String> {
        deed.words()
    }

    async fn until_running(&self, payload: &Payload) {
        let launch = format!("launch 0 {}", payload.name);
        while self.0.calls().last() != Some(&launch) {
            tokio::task::yield_now().await;
        }
    }

    fn leftovers(&self) -> Vec<String> {
        self.0.assert_quiet();
        Vec::new()
    }
}

/// Deeds are shell scripts in busybox.
struct LocalStand {
    runtime: LocalRuntime,
    /// After the runtime, which cleans up in it.
    site: Site,
}

impl LocalStand {
    fn new(test: &str) -> Option<Self> {
        let site = Site::new(test)?;
        let folder = |name: &str| site.path().join(name);
        std::fs::create_dir(folder("logs")).expect("mkdir");
        let config = Config {
            place: None,
            store: folder("store"),
            registry_access: image_store::RegistryAccess::anonymous(),
            object_access: ObjectAccess::default(),
            object_cache_bytes: 1 << 20,
            stage_disk_bytes: None,
            spill_to: None,
            exchange: None,
            save_under: Vec::new(),
            state_dir: folder("state"),
            scratch_dir: folder("scratch"),
            shim: dist().join("payload-shim"),
            attach: AttachChoice::Auto,
            uid_base: 2_000_000_000,
            slots: 2,
            cpu_millis: 2000,
            memory_bytes: 256 << 20,
            log_max_bytes: 1 << 20,
            reuse: false,
            orphan_grace_ms: 0,
            name: "test".into(),
            bind_ahead: 0,
            idle_ms: None,
            lifetime_ms: None,
        };
        let runtime = LocalRuntime::new(&config, Name::Any).expect("local runtime");
        Some(Self { runtime, site })
    }

    /// Ends the runtime; the machine must be as it was before.
    fn end(self) {
        drop(self.runtime);
        self.site.assert_baseline();
    }
}

fn names_below(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

impl Stand for LocalStand {
    type Runtime = LocalRuntime;

    fn runtime(&self) -> &LocalRuntime {
        &self.runtime
    }

    fn logs(&self) -> PathBuf {
        self.site.path().join("logs")
    }

    fn image(&self) -> String {
        format!("oci:{}", self.site.path().join("busybox").display())
    }

    fn command(&self, deed: &Deed) -> Vec<String> {
        deed.in_busybox()
    }

    async fn until_running(&self, payload: &Payload) {
        runtime::until_ready(&self.logs(), payload).await;
    }

    fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = descendants(std::process::id()).into_iter().collect();
        for pilot in names_below(&self.site.path().join("state/pilots")) {
            let id = pilot.file_name().unwrap_or_default().to_string_lossy().into_owned();
            left.extend(cgroups(&format!("latebind-{id}")).iter().map(|path| path.display().to_string()));
        }
        for root in ["state", "scratch"] {
            for pilot in names_below(&self.site.path().join(root).join("pilots")) {
                let slots = names_below(&pilot.join("slots"));
                left.extend(slots.iter().map(|path| path.display().to_string()));
            }
        }
        left
    }
}

macro_rules! every_runtime {
    ([$($kind:ident::$promise:ident),* $(,)?]) => {
        mod fake_runtime {
            use super::*;
            $(#[tokio::test]
            async fn $promise() {
                let trial = Trial::new(FakeStand(FakeRuntime::new()));
                $kind::$promise(&trial).await;
                trial.into_stand().0.assert_quiet();
            })*
        }
        mod local_runtime {
            use super::*;
            $(#[tokio::test]
            async fn $promise() {
                if let Some(stand) = LocalStand::new(concat!("local_runtime::", stringify!($promise))) {
                    let trial = Trial::new(stand);
                    $kind::$promise(&trial).await;
                    trial.into_stand().end();
                }
            })*
        }
    };
}

pilot_tests::runtime_promises!(every_runtime);
