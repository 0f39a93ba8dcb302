//! `payload-shim`: its size, its memory, and how soon after its start it says Hello.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, anyhow};
use oci_runner::{Container, Dir, IdMap, Network, Program, Root, Rootfs, Tmpfs, UID_BASE, caller};
use pilot::ports::Runtime;
use pilot::runtime::slots::SlotListener;
use pilot_core::{Epoch, SlotId};
use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use wire::slot::{Nonce, ToShim};
use wire::version::PROTOCOL;

use crate::clock::{now_ns, span_ms};
use crate::ground::Ground;
use crate::peers::command;
use crate::results::Section;

const NONCE: Nonce = Nonce([0x5a; 16]);
const CONTROL_FD: i32 = 3;
const SLOT: SlotId = SlotId(0);
/// Memory differs between starts by single pages.
const MEMORY_ROUNDS: u64 = 10;

/// Measures `rounds` starts of each kind.
///
/// # Errors
/// When a shim does not start.
pub fn measure(ground: &Ground, rounds: u32) -> anyhow::Result<Value> {
    let mut section = Section::begin("shim");
    section.fact("size_bytes", fs::metadata(ground.shim()).context("read payload-shim")?.len());
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    threads.block_on(async {
        let control = control_folder(ground)?;
        let listener = SlotListener::bind(&control)?;
        for _ in 0..rounds {
            as_process(ground, &control, &listener, &mut section).await?;
            in_container(ground, &control, &listener, &mut section).await?;
        }
        memory(ground, &mut section).await
    })?;
    Ok(section.end())
}

fn control_folder(ground: &Ground) -> anyhow::Result<PathBuf> {
    let control = ground.path("control");
    fs::create_dir_all(control.join("ran"))?;
    Ok(control)
}

fn nonce() -> String {
    NONCE.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Believes the shim, then lets it go.
async fn greet(listener: &SlotListener) -> anyhow::Result<u64> {
    let (connection, _state) = listener.accept_proven(NONCE).await?;
    let heard = now_ns();
    let welcome = ToShim::Welcome { protocol: PROTOCOL, epoch: 1, orphan_grace_ms: 0 };
    connection.send(&welcome, &[]).await?;
    connection.send(&ToShim::Retire, &[]).await?;
    Ok(heard)
}

/// Without a container: what is left is the program itself.
async fn as_process(
    ground: &Ground,
    control: &Path,
    listener: &SlotListener,
    section: &mut Section,
) -> anyhow::Result<()> {
    let mut command = command(ground.shim());
    command.env_clear().env("LATEBIND_CONTROL", control).env("LATEBIND_NONCE", nonce()).stdin(Stdio::null());
    let asked = now_ns();
    let mut child = command.spawn().context("start payload-shim")?;
    let heard = greet(listener).await?;
    let status = child.wait()?;
    anyhow::ensure!(status.success(), "payload-shim: {status}");
    section.add("shim", "fork, exec to Hello", span_ms(asked, heard));
    Ok(())
}

/// As PID 1 of a slot: from its exec, which is when `start` returns.
async fn in_container(
    ground: &Ground,
    control: &Path,
    listener: &SlotListener,
    section: &mut Section,
) -> anyhow::Result<()> {
    let program = Program::load(ground.shim())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let control = rustix::fs::open(control, flags, Mode::empty())?;
    let tmpfs = Tmpfs { target: "/tmp".into(), size_bytes: 1 << 20, inodes: 0, mode: 0o1777 };
    let container = Container {
        root: Root::Copy { tree: ground.root.clone() },
        rootfs: Rootfs::ReadOnly,
        ids: IdMap::choose(&caller(), (0, 0), UID_BASE, 0)?,
        hostname: "bench".into(),
        network: Network::Host,
        binds: Vec::new(),
        tmpfs: vec![tmpfs],
        dirs: vec![Dir { target: "/tmp/stage".into(), mode: 0o755 }],
        shm_bytes: 1 << 20,
        nested_user_namespaces: false,
        program: &program,
        argv: vec!["payload-shim".into()],
        env: vec![format!("LATEBIND_CONTROL=fd:{CONTROL_FD}"), format!("LATEBIND_NONCE={}", nonce())],
        fds: vec![(std::os::fd::AsFd::as_fd(&control), CONTROL_FD)],
        cgroup: None,
        dies_with_starting_thread: false,
    };
    let asked = now_ns();
    let mut running = oci_runner::start(&container)?;
    let executed = now_ns();
    let heard = greet(listener).await?;
    let ended = running.wait_for(10)?;
    anyhow::ensure!(ended == Some(oci_runner::Ended::Exited(0)), "payload-shim: {ended:?}");
    section.add("shim", "exec in a container to Hello", span_ms(executed, heard));
    section.add("shim", "request of a container to exec", span_ms(asked, executed));
    Ok(())
}

/// Of PID 1 and the stage holder, idle and after a payload.
async fn memory(ground: &Ground, section: &mut Section) -> anyhow::Result<()> {
    let runtime = ground.runtime()?;
    let payload = ground.payload(&ground.image)?;
    runtime.prepare(&payload).await.map_err(|fault| anyhow!("prepare: {fault}"))?;
    for epoch in 1..=MEMORY_ROUNDS {
        runtime.bind(SLOT, Epoch(epoch), &payload).await.map_err(|fault| anyhow!("bind: {fault}"))?;
        sizes("idle", section)?;
        runtime
            .launch(SLOT, crate::ground::grant(), &payload)
            .await
            .map_err(|fault| anyhow!("launch: {fault:?}"))?;
        sizes("after a payload", section)?;
        runtime.drain(SLOT, &payload, false).await;
        runtime.clean(SLOT).await.map_err(|fault| anyhow!("clean: {fault}"))?;
    }
    Ok(())
}

fn sizes(when: &str, section: &mut Section) -> anyhow::Result<()> {
    let own = std::process::id();
    let shim = children(own).into_iter().find(|pid| words(*pid).starts_with("payload-shim"));
    let shim = shim.context("find PID 1 of the slot")?;
    let holder = children(shim).into_iter().find(|pid| words(*pid).contains("stage-holder"));
    for (who, pid) in [("pid 1", Some(shim)), ("stage holder", holder)] {
        let Some(pid) = pid else { continue };
        for (what, file, key) in [
            ("rss", "status", "VmRSS"),
            ("rss anonymous", "status", "RssAnon"),
            ("pss", "smaps_rollup", "Pss"),
        ] {
            // An ordinary user may not look into the second file of a process that hides from tracers.
            let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let kib = text
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().split(' ').next());
            if let Some(kib) = kib.and_then(|kib| kib.parse().ok()) {
                section.add(who, &format!("{what}, {when} [KiB]"), kib);
            }
        }
    }
    Ok(())
}

/// proc(5): the fourth word of `stat`, behind the name in brackets, is the parent.
fn children(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit(") ").next().unwrap_or_default();
        fields.split(' ').nth(1).and_then(|ppid| ppid.parse().ok()) == Some(parent)
    })
    .collect()
}

fn words(pid: u32) -> String {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw).replace('\0', " ")
}
