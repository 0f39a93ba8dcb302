//! `bench measure` and `bench table`: measures, and puts the results into the document. See `benches/run`.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Parser, ValueEnum};
use pilot_benches::ground::Ground;
use pilot_benches::peers::command;
use pilot_benches::{bind, machine, report, shim, tree, unpack};
use serde_json::{Value, json};

/// Whom the benchmark also runs as when root starts it: an id that owns nothing.
const USER: &str = "65533";

/// Measures Latebind beside its peers.
#[derive(Debug, Parser)]
enum Command {
    /// Measure and write the results
    Measure(Measure),
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
    /// Folder with payload-shim
    #[arg(long)]
    dist: PathBuf,
    /// The static program made from first.c
    #[arg(long)]
    first: PathBuf,
    /// Where the results go
    #[arg(long)]
    out: PathBuf,
    /// What to measure; everything by default. Earlier results of the rest stay
    #[arg(long, value_enum)]
    only: Vec<What>,
    /// Starts of each competitor
    #[arg(long, default_value_t = 200)]
    rounds: u32,
    /// Times that each competitor unpacks each image
    #[arg(long, default_value_t = 3)]
    unpack_rounds: u32,
    /// A layout written before
    #[arg(long, hide = true)]
    layout: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    Bind,
    Shim,
    Unpack,
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Measure(arguments) => measure(arguments),
        Command::Table { results, doc } => {
            let results = serde_json::from_slice(&fs::read(&results)?)?;
            let text = fs::read_to_string(&doc).with_context(|| format!("read {}", doc.display()))?;
            Ok(fs::write(&doc, report::put(&text, &results)?)?)
        }
    }
}

fn measure(mut arguments: Measure) -> anyhow::Result<()> {
    if arguments.only.is_empty() {
        arguments.only = vec![What::Bind, What::Shim, What::Unpack];
    }
    let shared = tempfile::Builder::new().prefix("latebind-bench-").tempdir()?;
    open(shared.path())?;
    if arguments.only.contains(&What::Unpack) && arguments.layout.is_none() {
        let layout = shared.path().join("layout");
        tree::write_layout(&layout, &arguments.first)?;
        open(&layout)?;
        arguments.layout = Some(layout);
    }
    let description = machine::describe(shared.path());
    // It stays until the end: deleting its files would slow down what comes next (see unpack.rs).
    let ground = Ground::new(&arguments.dist, &arguments.first)?;
    let mut measured = kept(&arguments)?;
    // What fills the disk comes last, for both users.
    let (heavy, light): (Vec<What>, Vec<What>) =
        arguments.only.iter().partition(|what| **what == What::Unpack);
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

/// Earlier results of what is not measured now.
fn kept(arguments: &Measure) -> anyhow::Result<Vec<Value>> {
    let Ok(earlier) = fs::read(&arguments.out) else { return Ok(Vec::new()) };
    let earlier: Value = serde_json::from_slice(&earlier).context("read the earlier results")?;
    let again = |section: &Value| {
        let names = arguments.only.iter().filter_map(ValueEnum::to_possible_value);
        names.into_iter().any(|name| section["section"] == name.get_name())
    };
    Ok(earlier["sections"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|section| !again(section))
        .cloned()
        .collect())
}

fn sections(arguments: &Measure, ground: &Ground) -> anyhow::Result<Vec<Value>> {
    let mut sections = Vec::new();
    for what in &arguments.only {
        sections.push(match (what, &arguments.layout) {
            (What::Bind, _) => bind::measure(ground, arguments.rounds).context("bind")?,
            (What::Shim, _) => shim::measure(ground, arguments.rounds).context("shim")?,
            (What::Unpack, Some(layout)) => {
                unpack::measure(ground, layout, arguments.unpack_rounds).context("unpack")?
            }
            (What::Unpack, None) => continue,
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
    let first = copy(&arguments.first, "first")?;
    copy(&arguments.dist.join("payload-shim"), "payload-shim")?;
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
    user.arg("--dist").arg(shared).arg("--first").arg(first).arg("--out").arg(&out);
    for what in arguments.only.iter().filter_map(ValueEnum::to_possible_value) {
        user.args(["--only", what.get_name()]);
    }
    user.args(["--rounds", &arguments.rounds.to_string()]);
    user.args(["--unpack-rounds", &arguments.unpack_rounds.to_string()]);
    if let Some(layout) = &arguments.layout {
        user.arg("--layout").arg(layout);
    }
    let status = user.current_dir(&home).status().context("start setpriv")?;
    anyhow::ensure!(status.success(), "as user {USER}: {status}");
    let results: Value = serde_json::from_slice(&fs::read(&out)?)?;
    fs::remove_file(&out)?;
    Ok(results["sections"].as_array().cloned().unwrap_or_default())
}

fn open(folder: &Path) -> anyhow::Result<()> {
    Ok(fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?)
}
