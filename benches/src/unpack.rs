//! Storing and attaching a large image, beside `umoci unpack` of the same layout on the same file system.
//!
//! Before each turn everything dirty is written out. Each turn is timed twice: until its caller may go on, and until all it
//! wrote is on disk. The layout's bytes are in the page cache for everyone. Nothing is deleted between turns: ext4 creates
//! files slowly for minutes after many were deleted (it won't reuse an inode so soon, and looks at each of them).

use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow};
use image_store::{Attach, ImageId, Reference, RegistryAccess, Store};
use oci_runner::{IdMap, UID_BASE, caller};
use pilot::ports::Runtime;
use pilot_core::{Epoch, SlotId};
use rustix::fs::{Mode, OFlags};
use serde_json::Value;

use crate::clock::{now_ns, span_ms};
use crate::ground::Ground;
use crate::peers::{run, version};
use crate::results::Section;

const TAGS: [&str; 2] = ["one", "four"];
const SLOT: SlotId = SlotId(0);
/// Binds of the large image once it is stored.
const BINDS: u64 = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Latebind,
    LatebindCopy,
    Umoci,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Latebind => "latebind",
            Self::LatebindCopy => "latebind, plain tree",
            Self::Umoci => "umoci",
        }
    }
}

/// Measures `rounds` rounds with the images of [`crate::tree::write_layout`].
///
/// # Errors
/// When our own part fails.
pub fn measure(ground: &Ground, layout: &Path, rounds: u32) -> anyhow::Result<Value> {
    let mut section = Section::begin("unpack");
    let mut competitors = vec![Who::Latebind, Who::LatebindCopy, Who::Umoci];
    if version("umoci").is_none() {
        section.skip("umoci", "it is not installed");
        competitors.pop();
    }
    let folder = ground.path("unpack");
    let attach = best_attach(&folder)?;
    section.fact("attach", format!("{attach:?}"));
    // Not the runtime's own state folder: this one is emptied after each turn.
    let memory = ground.memory().join("trees");
    fs::create_dir_all(&memory)?;
    for round in 0..rounds as usize {
        for turn in 0..competitors.len() {
            let who = competitors[(round + turn) % competitors.len()];
            for tag in TAGS {
                let folder = folder.join(format!("{round}-{turn}-{tag}"));
                fs::create_dir_all(&folder)?;
                let at = (layout, folder.as_path(), memory.as_path());
                one(who, tag, at, attach, &mut section)
                    .with_context(|| format!("{} of {tag}", who.name()))?;
            }
        }
    }
    through_the_port(ground, layout, &mut section)?;
    Ok(section.end())
}

/// What the pilot would choose here.
fn best_attach(folder: &Path) -> anyhow::Result<Attach> {
    let (store, local) = (folder.join("store"), folder.join("local"));
    fs::create_dir_all(&store)?;
    fs::create_dir_all(&local)?;
    let ids = IdMap::choose(&caller(), (0, 0), UID_BASE, 0)?;
    let trials = oci_runner::probe_attach(&store, &local, ids);
    oci_runner::remove_tree(folder)?;
    trials
        .into_iter()
        .find(|trial| trial.outcome.is_ok())
        .map(|trial| trial.attach)
        .context("attach an image here")
}

fn one(
    who: Who,
    tag: &str,
    (layout, folder, memory): (&Path, &Path, &Path),
    attach: Attach,
    section: &mut Section,
) -> anyhow::Result<()> {
    rustix::fs::sync();
    let reference = format!("{}:{tag}", layout.display());
    let began = now_ns();
    let stored = match who {
        Who::Umoci => {
            umoci(&reference, folder)?;
            None
        }
        // By default the pilot keeps metadata trees in memory; a plain tree is as large as the image.
        Who::Latebind => Some(store(&reference, folder, memory, attach)?),
        Who::LatebindCopy => Some(store(&reference, folder, &folder.join("local"), Attach::Copy)?),
    };
    let returned = now_ns();
    let open = rustix::fs::open(folder, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::syncfs(&open)?;
    let durable = now_ns();
    section.add(who.name(), &format!("{tag}, returned [s]"), span_ms(began, returned) / 1e3);
    section.add(who.name(), &format!("{tag}, on disk [s]"), span_ms(began, durable) / 1e3);
    let Some((store, image)) = stored else { return Ok(()) };
    if who == Who::Latebind {
        let about = store.image(&image)?;
        section.fact("unpacked_bytes", about.unpacked_bytes);
        section.fact("names", about.entries);
        let second = memory.join("second");
        // For another slot of this pilot; for another pilot with an empty state folder.
        for (what, local) in [("attach again [ms]", memory), ("attach in an empty folder [ms]", &second)] {
            fs::create_dir_all(local)?;
            let began = now_ns();
            store.materialise(&image, attach, local, open_to_all())?;
            section.add(who.name(), what, span_ms(began, now_ns()));
        }
        oci_runner::remove_tree(memory)?;
        fs::create_dir(memory)?;
    }
    Ok(())
}

fn umoci(reference: &str, folder: &Path) -> anyhow::Result<()> {
    let bundle = folder.join("bundle").display().to_string();
    let mut arguments = vec!["unpack", "--image", reference, &bundle];
    if !open_to_all() {
        arguments.insert(1, "--rootless");
    }
    run("umoci", &arguments, folder)
}

fn store(reference: &str, folder: &Path, local: &Path, attach: Attach) -> anyhow::Result<(Store, ImageId)> {
    let store = Store::open(&folder.join("store"))?;
    let reference: Reference = format!("oci:{reference}").parse()?;
    let image = store.ingest(&reference, &RegistryAccess::anonymous(), &|_| {})?;
    store.materialise(&image, attach, local, open_to_all())?;
    Ok((store, image))
}

/// As root payloads have other ids than the pilot.
fn open_to_all() -> bool {
    rustix::process::geteuid().is_root()
}

/// The large image through the pilot's port: stored once, then bound again and again.
fn through_the_port(ground: &Ground, layout: &Path, section: &mut Section) -> anyhow::Result<()> {
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let runtime = ground.runtime()?;
    let payload = ground.payload(&format!("oci:{}:one", layout.display()))?;
    threads.block_on(async {
        let began = now_ns();
        runtime.prepare(&payload).await.map_err(|fault| anyhow!("prepare: {fault}"))?;
        section.add("latebind", "prepare [s]", span_ms(began, now_ns()) / 1e3);
        for epoch in 1..=BINDS {
            let began = now_ns();
            runtime.bind(SLOT, Epoch(epoch), &payload).await.map_err(|fault| anyhow!("bind: {fault}"))?;
            section.add("latebind", "bind of the stored image [ms]", span_ms(began, now_ns()));
            runtime
                .launch(SLOT, crate::ground::grant(), &payload)
                .await
                .map_err(|fault| anyhow!("launch: {fault:?}"))?;
            runtime.drain(SLOT, &payload, false).await;
            runtime.clean(SLOT).await.map_err(|fault| anyhow!("clean: {fault}"))?;
        }
        Ok(())
    })
}
