//! `bench measure` and `bench table`: measures, and puts the results into the document. See `benches/run`.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, ValueEnum};
use pilot_benches::ground::Ground;
use pilot_benches::peers::command;
use pilot_benches::throughput::Amount;
use pilot_benches::{
    bind, csi, idle, kube, machine, pull, queue, report, shim, stages, throughput, tree, unpack,
};
use serde_json::{Value, json};

/// Whom the benchmark also runs as when root starts it: an id that owns nothing.
const USER: &str = "65533";

/// Measures Latebind beside its peers.
#[derive(Debug, Parser)]
enum Command {
    /// Measure and write the results
    Measure(Box<Measure>),
    /// Put the tables of results into a document
    Table {
        /// What `measure` wrote
        #[arg(long)]
        results: PathBuf,
        /// A Markdown file with the two marker lines
        #[arg(long)]
        doc: PathBuf,
    },
}

#[derive(Args, Clone, Debug)]
struct Measure {
    /// Folder with pilot and payload-shim, and csi-driver for its part
    #[arg(long)]
    dist: PathBuf,
    /// Folder with what is made from the C files: first, least and loop
    #[arg(long)]
    programs: PathBuf,
    /// Folder with HyperQueue's Python packages
    #[arg(long)]
    hyperqueue: Option<PathBuf>,
    /// Folder with vineyard's Python packages
    #[arg(long)]
    vineyard: Option<PathBuf>,
    /// Folder with Ray's Python packages, numpy included
    #[arg(long)]
    ray: Option<PathBuf>,
    /// Folder with our own Python client
    #[arg(long, default_value = "clients/python/src")]
    client: PathBuf,
    /// Where the results go
    #[arg(long)]
    out: PathBuf,
    /// What to measure; everything by default. Earlier results of the rest stay
    #[arg(long, value_enum)]
    only: Vec<What>,
    /// Starts of each competitor
    #[arg(long, default_value_t = 200)]
    rounds: u32,
    /// Times that each competitor pulls and unpacks each image
    #[arg(long, default_value_t = 3)]
    unpack_rounds: u32,
    /// Turns of each competitor in throughput, and of each length of the queue
    #[arg(long, default_value_t = 5)]
    turns: u32,
    /// Payloads of a turn of warm throughput; a tenth of it cold
    #[arg(long, default_value_t = 3000)]
    payloads: u32,
    /// Hand-offs of each way and each small size
    #[arg(long, default_value_t = 40)]
    stage_rounds: u32,
    /// Seconds for which an idle pilot is looked at
    #[arg(long, default_value_t = 30)]
    idle_s: u64,
    /// Folder of a Kubernetes node that tests/node/up started
    #[arg(long, env = "LATEBIND_NODE")]
    node: Option<PathBuf>,
    /// A layout written before
    #[arg(long, hide = true)]
    layout: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    Bind,
    Shim,
    Throughput,
    Queue,
    Idle,
    Stages,
    Csi,
    Unpack,
    Pull,
    Kube,
}

impl What {
    /// Whether it fills the disk, which slows down what comes after it.
    fn is_heavy(self) -> bool {
        matches!(self, Self::Unpack | Self::Pull)
    }

    /// Whether it is not measured as an ordinary user after root: a node is root's, and the peers' packages are in root's cache.
    fn is_once(self) -> bool {
        matches!(self, Self::Kube | Self::Stages)
    }
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Measure(arguments) => measure(*arguments),
        Command::Table { results, doc } => {
            let results = serde_json::from_slice(&fs::read(&results)?)?;
            let text = fs::read_to_string(&doc).with_context(|| format!("read {}", doc.display()))?;
            Ok(fs::write(&doc, report::put(&text, &results)?)?)
        }
    }
}

fn measure(mut arguments: Measure) -> anyhow::Result<()> {
    if arguments.only.is_empty() {
        arguments.only = What::value_variants().to_vec();
    }
    if arguments.only.contains(&What::Kube)
        && (arguments.node.is_none() || !rustix::process::geteuid().is_root())
    {
        skip_kube();
        arguments.only.retain(|what| *what != What::Kube);
        if arguments.only.is_empty() {
            return Ok(());
        }
    }
    // The pilot is started in folders of its own.
    arguments.dist = std::path::absolute(&arguments.dist)?;
    arguments.programs = std::path::absolute(&arguments.programs)?;
    arguments.client = std::path::absolute(&arguments.client)?;
    for packages in [&mut arguments.hyperqueue, &mut arguments.vineyard, &mut arguments.ray] {
        *packages = packages.take().map(std::path::absolute).transpose()?;
    }
    let shared = tempfile::Builder::new().prefix("latebind-bench-").tempdir()?;
    open(shared.path())?;
    if arguments.only.iter().any(|what| what.is_heavy()) && arguments.layout.is_none() {
        let layout = shared.path().join("layout");
        tree::write_layout(&layout, &arguments.programs.join("first"))?;
        open(&layout)?;
        arguments.layout = Some(layout);
    }
    let description = machine::describe(shared.path());
    // It stays until the end: deleting its files would slow down what comes next (see unpack.rs).
    let ground = Ground::new(&arguments.dist, &arguments.programs)?;
    let mut measured = kept(&arguments)?;
    // What fills the disk comes last, for both users; some is measured once, by whoever started it.
    let (once, rest): (Vec<What>, Vec<What>) = arguments.only.iter().partition(|what| what.is_once());
    let (heavy, light): (Vec<What>, Vec<What>) = rest.into_iter().partition(|what| what.is_heavy());
    if !once.is_empty() {
        measured.extend(sections(&Measure { only: once, ..arguments.clone() }, &ground)?);
    }
    for only in [light, heavy].into_iter().filter(|only| !only.is_empty()) {
        let part = Measure { only, ..arguments.clone() };
        measured.extend(sections(&part, &ground)?);
        if rustix::process::geteuid().is_root() {
            measured.extend(as_user(&part, shared.path())?);
        }
    }
    let results = json!({"machine": description, "sections": measured});
    fs::write(&arguments.out, results.to_string() + "\n")
        .with_context(|| format!("write {}", arguments.out.display()))
}

/// Earlier results of what is not measured now, each with the kernel that it was measured on.
fn kept(arguments: &Measure) -> anyhow::Result<Vec<Value>> {
    let Ok(earlier) = fs::read(&arguments.out) else { return Ok(Vec::new()) };
    let earlier: Value = serde_json::from_slice(&earlier).context("read the earlier results")?;
    let again = |section: &Value| {
        let names = arguments.only.iter().filter_map(ValueEnum::to_possible_value);
        names.into_iter().any(|name| section["section"] == name.get_name())
    };
    let mut kept: Vec<Value> = earlier["sections"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|section| !again(section))
        .cloned()
        .collect();
    for section in &mut kept {
        if section["kernel"].is_null() {
            section["kernel"] = earlier["machine"]["kernel"].clone();
        }
    }
    Ok(kept)
}

fn sections(arguments: &Measure, ground: &Ground) -> anyhow::Result<Vec<Value>> {
    let mut sections = Vec::new();
    let amount = Amount {
        turns: arguments.turns,
        warm: arguments.payloads,
        cold: arguments.payloads / 10,
        hyperqueue: arguments.hyperqueue.as_deref(),
    };
    for what in &arguments.only {
        sections.push(match (what, &arguments.layout) {
            (What::Bind, _) => bind::measure(ground, arguments.rounds).context("bind")?,
            (What::Shim, _) => shim::measure(ground, arguments.rounds).context("shim")?,
            (What::Throughput, _) => throughput::measure(ground, amount).context("throughput")?,
            (What::Queue, _) => queue::measure(ground, arguments.turns).context("queue")?,
            (What::Idle, _) => {
                idle::measure(ground, Duration::from_secs(arguments.idle_s)).context("idle")?
            }
            (What::Stages, _) => {
                let packages = stages::Packages {
                    vineyard: arguments.vineyard.as_deref(),
                    ray: arguments.ray.as_deref(),
                    ours: &arguments.client,
                };
                stages::measure(ground, packages, arguments.stage_rounds).context("stages")?
            }
            (What::Csi, _) => csi::measure(ground, arguments.rounds).context("csi")?,
            (What::Unpack, Some(layout)) => {
                unpack::measure(ground, layout, arguments.unpack_rounds).context("unpack")?
            }
            (What::Pull, Some(layout)) => {
                pull::measure(ground, layout, arguments.unpack_rounds).context("pull")?
            }
            (What::Kube, _) => {
                let node = arguments.node.as_deref().context("LATEBIND_NODE")?;
                let amount = kube::Amount {
                    rounds: (arguments.rounds / 5).max(1),
                    turns: arguments.turns,
                    payloads: arguments.payloads,
                    idle: Duration::from_secs(arguments.idle_s),
                };
                kube::measure(ground, node, amount).context("kube")?
            }
            (What::Unpack | What::Pull, None) => continue,
        });
    }
    Ok(sections)
}

/// Everything once more as an ordinary user, from copies that it can reach.
fn as_user(arguments: &Measure, shared: &Path) -> anyhow::Result<Vec<Value>> {
    let copy = |from: &Path, name: &str| -> anyhow::Result<PathBuf> {
        let to = shared.join(name);
        fs::copy(from, &to).with_context(|| format!("copy {}", from.display()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
        Ok(to)
    };
    let program = copy(&std::env::current_exe()?, "bench")?;
    for name in ["first", "least", "loop"] {
        copy(&arguments.programs.join(name), name)?;
    }
    for name in ["pilot", "payload-shim"] {
        copy(&arguments.dist.join(name), name)?;
    }
    if arguments.only.contains(&What::Csi) {
        copy(&arguments.dist.join("csi-driver"), "csi-driver")?;
    }
    let hyperqueue = arguments.hyperqueue.as_ref().map(|packages| {
        let to = shared.join("packages");
        let status = command("cp").arg("-rT").arg(packages).arg(&to).status();
        status.context("copy HyperQueue").map(|_| to)
    });
    let hyperqueue = hyperqueue.transpose()?;
    let home = shared.join("h");
    fs::create_dir_all(&home)?;
    std::os::unix::fs::chown(&home, Some(USER.parse()?), Some(USER.parse()?))?;
    let out = home.join("results.json");
    let mut user = command("setpriv");
    user.args(["--reuid", USER, "--regid", USER, "--clear-groups"]).arg(program).arg("measure");
    user.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
    for variable in ["HOME", "TMPDIR", "XDG_RUNTIME_DIR"] {
        user.env(variable, &home);
    }
    user.arg("--dist").arg(shared).arg("--programs").arg(shared).arg("--out").arg(&out);
    for what in arguments.only.iter().filter_map(ValueEnum::to_possible_value) {
        user.args(["--only", what.get_name()]);
    }
    user.args(["--rounds", &arguments.rounds.to_string()]);
    user.args(["--unpack-rounds", &arguments.unpack_rounds.to_string()]);
    user.args(["--turns", &arguments.turns.to_string(), "--payloads", &arguments.payloads.to_string()]);
    user.args(["--idle-s", &arguments.idle_s.to_string()]);
    for (flag, path) in [("--layout", &arguments.layout), ("--hyperqueue", &hyperqueue)] {
        if let Some(path) = path {
            user.arg(flag).arg(path);
        }
    }
    let status = user.current_dir(&home).status().context("start setpriv")?;
    anyhow::ensure!(status.success(), "as user {USER}: {status}");
    let results: Value = serde_json::from_slice(&fs::read(&out)?)?;
    fs::remove_file(&out)?;
    Ok(results["sections"].as_array().cloned().unwrap_or_default())
}

#[expect(clippy::print_stderr, reason = "a section that is missing must not go unseen")]
fn skip_kube() {
    eprintln!("SKIPPED: kube: no node, or not root: tests/node/with benches/run --only kube");
}

fn open(folder: &Path) -> anyhow::Result<()> {
    Ok(fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?)
}
