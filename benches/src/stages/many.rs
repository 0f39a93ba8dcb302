//! Ten thousand stages at once: whether lookup, commit and release take longer than with few, and what it costs in memory.

use std::path::Path;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use stage::broker::{Grant, GrantInput, GrantOutput, Limits};
use stage::client::Client;
use stage::server::{BrokerServer, Settings};
use stage::{Budget, Class, StageName, StageUri};

use super::place::listener;
use crate::clock::{now_ns, span_ms};
use crate::results::Section;
use crate::site::kib;

/// Stages alive.
const ALIVE: [u32; 3] = [100, 1000, 10_000];
/// Stages of one payload.
const AT_ONCE: u32 = 100;
/// Payloads whose calls are timed.
const TIMED: u32 = 5;

/// Measures: the calls of a payload and of the pilot with so many stages alive, and this process, which is broker and client.
///
/// # Errors
/// When the broker fails.
pub fn measure(section: &mut Section) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let folder = tempfile::tempdir()?;
    let budget = Budget { memory_bytes: 1 << 30, disk_bytes: 0 };
    let broker = BrokerServer::start(Settings::new(Limits::new(budget)))?;
    let mut alive = 0;
    for stages in ALIVE {
        while alive < stages {
            batch(&broker, folder.path(), &format!("p{alive}"), None)?;
            alive += AT_ONCE;
        }
        section.add(
            "broker",
            &format!("rss, {stages} stages [KiB]"),
            kib(std::process::id(), "status", "VmRSS")?,
        );
        for payload in 0..TIMED {
            batch(&broker, folder.path(), &format!("timed{payload}"), Some((stages, section)))?;
        }
    }
    Ok(())
}

/// Stages of one payload, read by another: kept, or timed and released.
fn batch(
    broker: &BrokerServer,
    folder: &Path,
    name: &str,
    mut timed: Option<(u32, &mut Section)>,
) -> anyhow::Result<()> {
    let (workflow, payload, reader) =
        (StageName::new("many")?, StageName::new(name)?, StageName::new("reader")?);
    let names: Vec<StageName> =
        (0..AT_ONCE).map(|n| StageName::new(&format!("o{n}"))).collect::<Result<_, _>>()?;
    let uri = |output: &StageName| StageUri {
        workflow: workflow.clone(),
        payload: payload.clone(),
        output: output.clone(),
    };
    let output = |name: &StageName| GrantOutput {
        name: name.clone(),
        class: Class::Mem,
        max_bytes: 4096,
        readers: [reader.clone()].into(),
    };
    let input = |name: &StageName| GrantInput { name: name.clone(), uri: uri(name), live: true };
    let session = |payload: &StageName, outputs, inputs| -> anyhow::Result<_> {
        let path = folder.join(payload.as_str());
        let grant = Grant { workflow: workflow.clone(), payload: payload.clone(), outputs, inputs };
        Ok((broker.open_session(listener(&path)?, grant)?, Client::connect(&path)?))
    };
    let (producing, producer) = session(&payload, names.iter().map(output).collect(), Vec::new())?;
    let (reading, consumer) = session(&reader, Vec::new(), names.iter().map(input).collect())?;
    let release = timed.is_some();
    let mut took = |what: &str, began: u64| {
        let us = span_ms(began, now_ns()) * 1e3;
        if let Some((stages, section)) = &mut timed {
            section.add("broker", &format!("{what}, {stages} stages [us]"), us);
        }
    };
    for name in &names {
        let mut made = producer.create(name.as_str(), 64)?;
        made.write_at(0, &[7; 64])?;
        let began = now_ns();
        made.commit()?;
        took("commit", began);
        let began = now_ns();
        consumer.open(name.as_str())?;
        took("open", began);
        let (began, stage) = (now_ns(), uri(name));
        broker.ask(move |broker| broker.lookup(&stage).map(|_| ()))?.context("a stage is not there")?;
        took("lookup", began);
    }
    drop((producer, consumer));
    let _ = broker.end_session(producing, true)?;
    let _ = broker.end_session(reading, true)?;
    if release {
        for name in &names {
            let (began, stage, reader) = (now_ns(), uri(name), reader.clone());
            let _ = broker.ask(move |broker| broker.release(&stage, &reader))?;
            took("release", began);
        }
    }
    Ok(())
}
