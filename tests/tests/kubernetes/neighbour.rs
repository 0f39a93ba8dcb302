//! A payload that runs in one slot while something goes wrong in another.

use std::time::Duration;

use pilot_tests::kube::{Namespace, Pod, SOON};
use pilot_tests::run::within;
use serde_json::Value;

use crate::basics::{flow, sh};

/// It goes on until it is told to end, and must not notice anything.
pub(crate) struct Neighbour<'a> {
    pod: &'a Pod<'a>,
    run: String,
    slot: String,
    restarts: u64,
}

impl<'a> Neighbour<'a> {
    /// Starts it; returns when it runs.
    pub(crate) fn start(namespace: &Namespace, pod: &'a Pod<'a>) -> Self {
        let script = "echo runs; until [ -e /work/end ]; do sleep 0.2; done; echo undisturbed";
        let run = pod.submit(&flow(&[sh(namespace, "neighbour", script, "walltime: 300s")]));
        let runs = within(SOON, || pod.output(&run, "neighbour").contains("runs"));
        assert!(runs, "it does not start: {}", pod.pilot_log());
        let slot = slot_of(pod, "neighbour");
        let restarts = restarts(pod, &slot);
        Self { pod, run, slot, restarts }
    }

    /// The slot that is left for others; the pod has two.
    pub(crate) fn other_slot(&self) -> &'static str {
        if self.slot == "slot-0" { "slot-1" } else { "slot-0" }
    }

    /// Ends it; it must have run all the time, once.
    pub(crate) fn end_undisturbed(self) {
        let address = format!("{}/neighbour", self.run);
        let _told = self.pod.pilot(&["exec", &address, "--", "/bin/sh", "-c", ": > /work/end"], "").good();
        let _ended = self.pod.wait(&self.run, Duration::from_secs(60)).good();
        assert_eq!(self.pod.output(&self.run, "neighbour"), "runs\nundisturbed\n");
        assert_eq!(self.pod.payloads(&self.run)[0]["tries"], 1);
        assert_eq!(restarts(self.pod, &self.slot), self.restarts);
    }
}

/// How often a slot's container was replaced, as the API has it.
pub(crate) fn restarts(pod: &Pod<'_>, slot: &str) -> u64 {
    pod.container(slot)["restartCount"].as_u64().unwrap_or_default()
}

/// The slot that runs a payload of this name.
fn slot_of(pod: &Pod<'_>, payload: &str) -> String {
    let text = pod.pilot(&["top", "--once", "--output", "json"], "").good();
    let top: Value = serde_json::from_str(&text).expect("json");
    let slots = top["pilots"][0]["slots"].as_array().cloned().unwrap_or_default();
    let slot = slots.iter().find(|slot| slot["payload"]["name"] == payload).expect("a slot that runs it");
    format!("slot-{}", slot["slot"])
}
