//! The pilot in a pod, on a real node: what a bind costs beside a pod for each payload, beside the paper's way and beside
//! containerd alone; what bind-ahead, warm slots and fetching ahead save; how often the API server is asked.
//!
//! One pod is made by `pilot pod` and driven from here, with a token that is bound to it: the same code with the same rights
//! and the same volume, and a clock that its payloads share (`outside`). Another one's pilot serves by itself (`served`).
//!
//! **Must not know:** how the node came to be.

mod large;
mod outside;
mod peers;
mod place;
mod rounds;
mod served;
mod watch;

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use self::place::Place;
use crate::ground::Ground;
use crate::results::Section;

/// How long a slot is idle before each bind: the kubelet has then seen all that happened before.
const IDLE: Duration = Duration::from_millis(2500);

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// Starts of each competitor; a third of it by Jobs.
    pub rounds: u32,
    /// Turns of warm throughput.
    pub turns: u32,
    /// Payloads of a turn.
    pub payloads: u32,
    /// How long an idle pilot is looked at.
    pub idle: Duration,
}

/// Measures beside the node whose folder is `state`.
///
/// # Errors
/// When our own part fails. `ctr` that fails is skipped; a cluster that does not make a pod, or a Job, is an error.
pub fn measure(ground: &Ground, state: &Path, amount: Amount) -> anyhow::Result<Value> {
    let mut section = Section::begin("kube");
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    threads.block_on(async {
        let place = Place::new(ground, state).await?;
        section.fact("node", place.describe());
        rounds::measure(&place, amount.rounds, &mut section).await.context("rounds")?;
        large::measure(&place, amount.rounds, &mut section).await.context("large images")?;
        served::ahead(&place, amount.rounds, &mut section).context("bind-ahead")?;
        served::warm(ground, &place, amount, &mut section).await.context("warm slots")
    })?;
    Ok(section.end())
}
