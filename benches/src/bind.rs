//! From the request to the payload's first instruction: the pilot's own `Runtime` port beside other programs.
//!
//! Ours: `bind` makes the container and waits for its shim's Hello, `launch` starts the payload in it, `drain` and
//! `clean` take everything down. A peer is one program that does all that; it is timed from its own start.

use std::time::Duration;

use anyhow::{Context, anyhow};
use pilot::payload::Payload;
use pilot::ports::Runtime;
use pilot::runtime::adoption::Standing;
use pilot::runtime::local::LocalRuntime;
use pilot_core::{Epoch, SlotId};
use serde_json::Value;

use crate::clock::{now_ns, span_ms};
use crate::ground::Ground;
use crate::peers::{Peer, Times, all, leave, stamp};
use crate::results::Section;

/// Between two starts, so that no one pays for what the one before has left to the kernel, and no one profits from it.
const PAUSE: Duration = Duration::from_millis(20);
const SLOT: SlotId = SlotId(0);

/// Measures `rounds` rounds, in each of which everyone starts once, in turn.
///
/// # Errors
/// When our own part fails. A peer that fails is skipped.
pub fn measure(ground: &Ground, rounds: u32) -> anyhow::Result<Value> {
    let mut section = Section::begin("bind");
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let runtime = ground.runtime()?;
    section.fact("not_enforced", runtime.unenforced());
    let payload = ground.payload(&ground.image)?;
    threads
        .block_on(runtime.prepare(&payload))
        .map_err(|fault| anyhow!("{fault}"))
        .context("store the image")?;
    let mut peers = all(ground, "first")?;
    peers.retain(|peer| match peer.once() {
        Ok(_) => true,
        Err(error) => {
            section.skip(peer.name, &format!("{error:#}"));
            false
        }
    });
    let mut epoch = 0;
    for round in 0..rounds {
        // Each round begins with another competitor.
        for turn in 0..=peers.len() {
            let turn = (turn + round as usize) % (peers.len() + 1);
            std::thread::sleep(PAUSE);
            match peers.get(turn) {
                None => {
                    epoch += 1;
                    threads.block_on(ours(&runtime, &payload, epoch, ground, &mut section))?;
                }
                Some(peer) if round % peer.every == 0 => theirs(peer, &mut section),
                Some(_) => {}
            }
        }
    }
    leave(ground);
    Ok(section.end())
}

fn theirs(peer: &Peer, section: &mut Section) {
    match peer.once() {
        Ok(Times { asked, first, ended }) => {
            section.add(peer.name, "first", span_ms(asked, first));
            section.add(peer.name, "whole", span_ms(asked, ended));
        }
        Err(error) => section.skip(peer.name, &format!("one start: {error:#}")),
    }
}

async fn ours(
    runtime: &LocalRuntime,
    payload: &Payload,
    epoch: u64,
    ground: &Ground,
    section: &mut Section,
) -> anyhow::Result<()> {
    let asked = now_ns();
    runtime.bind(SLOT, Epoch(epoch), payload).await.map_err(|fault| anyhow!("bind: {fault}"))?;
    let bound = now_ns();
    let ended = runtime
        .launch(SLOT, crate::ground::grant(), payload)
        .await
        .map_err(|fault| anyhow!("launch: {fault:?}"))?;
    let exited = now_ns();
    let drained = runtime.drain(SLOT, payload, false).await;
    let flushed = now_ns();
    runtime.clean(SLOT).await.map_err(|fault| anyhow!("clean: {fault}"))?;
    let cleaned = now_ns();
    anyhow::ensure!(ended.exit.status.is_success() && drained.fault.is_none(), "{ended:?} {drained:?}");
    let first = stamp(&std::fs::read(ground.logs().join("first.stdout"))?)?;
    anyhow::ensure!((bound..=exited).contains(&first), "the payload's clock is not ours");
    for (what, from, to) in [
        ("first", asked, first),
        ("whole", asked, cleaned),
        ("bind", asked, bound),
        ("launch to first instruction", bound, first),
        ("first instruction to exit report", first, exited),
        ("drain", exited, flushed),
        ("clean", flushed, cleaned),
    ] {
        section.add("latebind", what, span_ms(from, to));
    }
    Ok(())
}
