//! From one process to another: a stage between two of the pilot's containers, and what programs use otherwise.
//!
//! Each round everyone has a turn, and each round begins with another one. The programs are handoff.c and handoff.py: what is
//! compared with one another is in the same language.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::fs::{CWD, Mode, mkfifoat};
use stage::Budget;
use stage::broker::Limits;
use stage::server::{BrokerServer, Settings};

use super::Packages;
use super::party::{Meeting, Party};
use super::place::{sessions, slots};
use super::stores::{self, Server};
use crate::clock::span_ms;
use crate::ground::Ground;
use crate::peers::command;
use crate::results::Section;

/// Bytes handed over, what they are called, and each how many-th round has them.
pub const SIZES: [(usize, &str, u32); 6] = [
    (4 << 10, "4 KiB", 1),
    (64 << 10, "64 KiB", 1),
    (1 << 20, "1 MiB", 1),
    (64 << 20, "64 MiB", 4),
    (512 << 20, "512 MiB", 12),
    (1 << 30, "1 GiB", 12),
];
/// More than a value of Redis may have.
const REDIS_MOST: usize = 512 << 20;
/// So that a consumer waits when its producer begins.
const SETTLE: Duration = Duration::from_millis(3);

/// Who hands over, and which pair of programs does it: ours first.
pub const METHODS: [(&str, &str); 12] = [
    ("stage", "slots"),
    ("stage-huge", "slots"),
    ("pipe", "peers"),
    ("unix", "peers"),
    ("tcp", "peers"),
    ("tmpfs", "peers"),
    ("redis", "peers"),
    ("python", "python"),
    ("huge", "python"),
    ("redis-python", "python"),
    ("vineyard", "vineyard"),
    ("ray", "ray"),
];

/// What is compared with what: each in one language.
pub const COMPARED: [(&str, &[&str]); 4] =
    [("stage", &C), ("stage-huge", &C), ("python", &PYTHON), ("huge", &PYTHON)];
const C: [&str; 5] = ["pipe", "unix", "tcp", "tmpfs", "redis"];
const PYTHON: [&str; 3] = ["redis-python", "vineyard", "ray"];

/// The two ends; Ray's are one.
#[derive(Debug)]
struct Pair {
    producer: Party,
    consumer: Option<Party>,
    port: u16,
}

/// Everything that takes part.
struct Arena {
    place: PathBuf,
    broker: BrokerServer,
    pairs: BTreeMap<&'static str, Pair>,
    children: Vec<Child>,
    redis: Option<Server>,
    _vineyard: Option<Server>,
}

/// Measures.
///
/// # Errors
/// When our own part fails. A peer that fails is skipped from then on.
pub fn measure(
    ground: &Ground,
    packages: Packages<'_>,
    rounds: u32,
    section: &mut Section,
) -> anyhow::Result<()> {
    let mut arena = Arena::open(ground, packages, section)?;
    let mut number = 0;
    let pages = HugePages::found();
    for (bytes, size, every) in SIZES {
        let mut out = BTreeSet::new();
        // The first round makes connections and warms memory, and is not counted.
        for round in 0..=(rounds / every).max(3) {
            for turn in 0..METHODS.len() {
                let (method, pair) = METHODS[(turn + round as usize) % METHODS.len()];
                let too_large = method.starts_with("redis") && bytes > REDIS_MOST;
                if too_large || out.contains(method) || !arena.pairs.contains_key(pair) {
                    continue;
                }
                if !pages.give(method.ends_with("huge")) {
                    section.skip(method, &format!("{size}: can't write {}", HugePages::SETTING));
                    out.insert(method);
                    continue;
                }
                number += 1;
                match arena.once(method, pair, bytes, number) {
                    Ok(figures) if round > 0 => {
                        for (what, value) in figures {
                            section.add(method, &format!("{what}, {size} [us]"), value);
                        }
                    }
                    Ok(_) => {}
                    Err(error) if method == "stage" => return Err(error.context(size)),
                    Err(error) => {
                        section.skip(method, &format!("{size}: {error:#}"));
                        out.insert(method);
                        // Its ends are in the middle of something.
                        arena.pairs.remove(pair);
                    }
                }
            }
        }
    }
    arena.close()
}

/// Whether the kernel gives shared memory huge pages to those that ask: to the parts that are measured with them, and to no
/// other. As it was found when this is dropped.
struct HugePages {
    found: Option<String>,
}

impl HugePages {
    const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

    fn found() -> Self {
        let text = fs::read_to_string(Self::SETTING).ok();
        Self { found: text.and_then(|text| Some(text.split(['[', ']']).nth(1)?.to_owned())) }
    }

    /// Whether it could be had so.
    fn give(&self, huge: bool) -> bool {
        let wanted = if huge { "advise" } else { "never" };
        let is_so = self.found.as_deref().map_or(!huge, |found| found == wanted);
        fs::write(Self::SETTING, wanted).is_ok() || is_so
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Some(found) = &self.found {
            // Who could not change it need not change it back.
            let _ = fs::write(Self::SETTING, found);
        }
    }
}

impl Arena {
    fn open(ground: &Ground, packages: Packages<'_>, section: &mut Section) -> anyhow::Result<Self> {
        let place = ground.memory().join("place");
        fs::create_dir(&place)?;
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755))?;
        mkfifoat(CWD, place.join("fifo"), Mode::RUSR | Mode::WUSR)?;
        let limits = Limits::new(Budget { memory_bytes: 4 << 30, disk_bytes: 0 });
        let broker = BrokerServer::start(Settings::new(limits))?;
        let meeting = Meeting::open(&place)?;
        let mut arena = Self {
            place,
            broker,
            pairs: BTreeMap::new(),
            children: Vec::new(),
            redis: None,
            _vineyard: None,
        };
        let slots = slots(ground, &arena.place)?;
        arena.pair("slots", vec![slots], &meeting).context("payloads in two slots")?;
        let program = |part: &str| {
            let mut program = command(ground.program("handoff"));
            program.arg(part).arg(&arena.place).arg("peers").stdin(Stdio::null());
            program.spawn().context("start handoff")
        };
        let children = vec![program("produce")?, program("consume")?];
        arena.pair("peers", children, &meeting)?;
        match stores::redis(&arena.place) {
            Ok(server) => arena.redis = Some(server),
            Err(error) => section.skip("redis", &format!("{error:#}")),
        }
        let script = arena.place.join("handoff.py");
        fs::write(&script, include_str!("../../handoff.py"))?;
        let python = |arena: &mut Self, name: &'static str, folder: Option<&Path>, parts: &[&str]| {
            folder.context("its packages are not installed").and_then(|folder| {
                let path = std::env::join_paths([folder, packages.ours])?;
                let start = |part: &&str| {
                    let mut python = command("python3");
                    python.arg(&script).arg(part).arg(&arena.place).arg(name).env("PYTHONPATH", &path);
                    python.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("start python3")
                };
                let children = parts.iter().map(start).collect::<Result<_, _>>()?;
                arena.pair(name, children, &meeting)
            })
        };
        let mut tried = vec![("python", python(&mut arena, "python", packages.ray, &["produce", "consume"]))];
        let server = packages.vineyard.map(|folder| stores::vineyard(&arena.place, folder)).transpose();
        match server {
            Ok(server) => {
                arena._vineyard = server;
                let parts = ["produce", "consume"];
                tried.push(("vineyard", python(&mut arena, "vineyard", packages.vineyard, &parts)));
            }
            Err(error) => section.skip("vineyard", &format!("{error:#}")),
        }
        tried.push(("ray", python(&mut arena, "ray", packages.ray, &["both"])));
        for (name, attempt) in tried {
            if let Err(error) = attempt {
                section.skip(name, &format!("{error:#}"));
            }
        }
        Ok(arena)
    }

    /// Waits for the ends that these children are, or start.
    fn pair(
        &mut self,
        name: &'static str,
        mut children: Vec<Child>,
        meeting: &Meeting,
    ) -> anyhow::Result<()> {
        let (mut producer, mut consumer, mut port) = (None, None, 0);
        let both = children.len() == 1 && name == "ray";
        while producer.is_none() || (consumer.is_none() && !both) {
            let alive = || children.iter_mut().all(|child| matches!(child.try_wait(), Ok(None)));
            let (who, party) = meeting.next(alive)?;
            let (who, its_port) = who.split_once(' ').context("its port")?;
            if who.starts_with("consume") {
                (consumer, port) = (Some(party), its_port.parse()?);
            } else {
                producer = Some(party);
            }
        }
        self.children.extend(children);
        let producer = producer.context("no producer")?;
        self.pairs.insert(name, Pair { producer, consumer, port });
        Ok(())
    }

    /// One hand-off, in microseconds.
    fn once(
        &mut self,
        method: &str,
        pair: &str,
        bytes: usize,
        number: u32,
    ) -> anyhow::Result<Vec<(&'static str, f64)>> {
        let is_stage = matches!(method, "stage" | "stage-huge" | "python" | "huge");
        let sessions =
            if is_stage { sessions(&self.broker, &self.place, number, bytes)? } else { Vec::new() };
        let pair = self.pairs.get_mut(pair).context("its programs have ended")?;
        let redis = self.redis.as_ref().map_or(0, |server| server.port);
        ensure!(redis > 0 || !method.starts_with("redis"), "there is no server");
        let port = if method.starts_with("redis") { redis } else { pair.port };
        let name = if method == "redis-python" { "redis" } else { method };
        let order = format!("{name} {bytes} {number} {port}");
        if let Some(consumer) = &mut pair.consumer {
            consumer.say(&order)?;
            ensure!(consumer.hear()? == "ready", "the consumer is not ready");
            std::thread::sleep(SETTLE);
        }
        pair.producer.say(&order)?;
        let mut told = pair.producer.numbers()?;
        if let Some(consumer) = &mut pair.consumer {
            told.extend(consumer.numbers()?);
        }
        for session in sessions {
            let _ = self.broker.end_session(session, false)?;
        }
        for end in ["p", "c"] {
            let _ = fs::remove_file(self.place.join(format!("{end}{number}")));
        }
        let [began, seal_us, asked, mapped, read] = told[..] else { anyhow::bail!("it told {told:?}") };
        let us = |at| span_ms(began, at) * 1e3;
        let mut figures = vec![("mapped", us(mapped)), ("read", us(read))];
        if is_stage {
            figures.push(("seal", seal_us as f64));
        }
        if method.starts_with("stage") {
            // Python's commit unmaps without telling when it has.
            figures.push(("unmap", us(asked)));
            figures.push(("hand-off", us(mapped) - us(asked) - seal_us as f64));
        }
        Ok(figures)
    }

    fn close(mut self) -> anyhow::Result<()> {
        // The ends of their sockets end them.
        self.pairs.clear();
        for mut child in std::mem::take(&mut self.children) {
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.pairs.clear();
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
