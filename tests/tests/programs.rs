//! Which programs, unmodified, can write an output and read an input of which class: the tables of docs/reference/programs.md,
//! each cell by a run.
//!
//! A program's row is two scripts for each class: one writes `$O` (or reads `$I`), the other sees whether what came is right.
//! A cell says `yes`, or the letter of the message that its user gets.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use pilot_tests::run::{Ran, Site, as_root, flow, payload};
use pilot_tests::skipped;
use serde_json::Value;

#[path = "programs/ways.rs"]
mod ways;

use ways::{READS, WRITES, Way};

const PAGE: &str = include_str!("../../docs/reference/programs.md");
/// What the page says where no one is told that bytes went elsewhere.
const LOST: &str = "the reader finds something else";
/// What it says where a program waits for ever.
const WAITS: &str = "walltime exceeded";
/// What it says where it depends on who is faster.
const DEPENDS: &str = "depends";
const CLASSES: [&str; 5] = ["file", "mem", "value", "pipe", "shared"];
/// A value's most, and so everyone's: what `data` gives is exactly as long, so that it fills shared memory.
const BYTES: &str = "64Ki";
const PRELUDE: &str = "set -e; export LC_ALL=C; data() { seq -f %07.0f 1 8192; }; \
    no() { echo 'not a plain file' >&2; exit 1; }; ";

/// Where the image is kept, made the first time; or why there is none.
fn programs() -> Result<PathBuf, String> {
    let home = |name: &str| std::env::var_os(name).map(PathBuf::from);
    if let Some(image) = home("LATEBIND_TEST_PROGRAMS").filter(|image| image.is_dir()) {
        return Ok(image);
    }
    let cache = home("XDG_CACHE_HOME").or_else(|| Some(home("HOME")?.join(".cache"))).ok_or("no HOME")?;
    let image = cache.join("latebind-tools/programs");
    if !image.join("index.json").is_file() {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let script = folder.path().join("image");
        std::fs::write(&script, include_str!("../programs/image")).map_err(|error| error.to_string())?;
        #[expect(clippy::disallowed_methods, reason = "makes the payloads' image, once")]
        let made =
            Command::new("bash").arg(&script).arg(&image).output().map_err(|error| error.to_string())?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr);
            return Err(format!("tests/programs/image: {}", said.lines().last().unwrap_or_default()));
        }
    }
    Ok(image)
}

/// Producer and consumer of a cell.
fn pair(key: &str, class: &str, way: &Way, writes: &str, waits: bool) -> [String; 2] {
    let (stage, reads) = (way.stage, way.reads);
    let sh = |name: &str, script: &str, fields: &str| {
        let put = into(class);
        let script = Value::from(format!(
            "{PRELUDE}put() {{ data {put}; }}; O=/stage/out/{stage} I=/stage/in/{stage}; {script}"
        ));
        let fields = format!("image: oci:programs, command: [/bin/sh, -c, {script}], {fields}");
        payload(name, &if waits { format!("{fields}, walltime: 3s, grace: 1s") } else { fields })
            .replace("500m", "250m")
    };
    let size = if class == "pipe" { String::new() } else { format!(", max_size: {BYTES}") };
    let mut outputs = format!("{{name: {stage}, class: {class}{size}}}");
    let mut inputs = format!("{{name: {stage}, from: 'stage://{key}-p/{stage}'}}");
    let (mut writes, mut reads) = (writes.to_owned(), reads.to_owned());
    if class == "shared" {
        // Nothing else tells the reader when the bytes are there.
        outputs.push_str(", {name: go, class: pipe}");
        inputs.push_str(&format!(", {{name: go, from: 'stage://{key}-p/go'}}"));
        writes.push_str("; echo > /stage/out/go");
        reads.insert_str(0, "read -r go < /stage/in/go || exit 9; ");
    }
    [
        sh(&format!("{key}-p"), &writes, &format!("outputs: [{outputs}]")),
        sh(&format!("{key}-c"), &reads, &format!("inputs: [{inputs}]")),
    ]
}

/// Opens an output of this class in the way that it takes.
fn into(class: &str) -> &'static str {
    if class == "shared" { "1<> $O" } else { "> $O" }
}

/// `None` when both did well; else what the user is told.
fn refusal(site: &Site, ran: &Ran, key: &str, of_reader: bool) -> Option<String> {
    let [writer, reader] = ["p", "c"].map(|end| {
        let name = format!("{key}-{end}");
        let row = ran.row(&name);
        let outcome = row["outcome"].as_str().unwrap_or_default().to_owned();
        let said = format!("{}{outcome}", site.log(&name, "stderr"));
        (row["state"] == "done", outcome.contains("with its gang"), said)
    });
    match (writer, reader) {
        ((true, ..), (true, ..)) => None,
        ((false, false, said), _) if !of_reader => Some(said),
        (_, (.., said)) if of_reader || said.contains(WAITS) => Some(said),
        (_, (.., said)) => Some(format!("{LOST}\n{said}")),
    }
}

/// The rows below a heading of the page, in cells.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let section = PAGE.split("\n## ").find(|section| section.starts_with(heading)).expect("section");
    let cells = |line: &str| line.trim_matches(['|', ' ']).split(" | ").map(str::to_owned).collect();
    section.lines().filter(|line| line.starts_with("| ")).skip(1).map(cells).collect()
}

/// What each letter stands for: any of some texts.
fn letters() -> BTreeMap<String, Vec<String>> {
    let lines = PAGE.lines().filter_map(|line| line.strip_prefix("- **"));
    let letter = |line: &str| {
        let (letter, rest) = line.split_once("** ")?;
        let texts = rest.split_once(": ")?.0.split('`').skip(1).step_by(2);
        Some((letter.to_owned(), texts.map(str::to_owned).collect()))
    };
    lines.filter_map(letter).collect()
}

/// What the page says of a cell: the texts of its letters, none for `yes`. A letter with a star is for root's pilot alone.
fn promised(cell: &str) -> Vec<String> {
    if cell.ends_with('*') && !as_root() {
        return Vec::new();
    }
    let all = letters();
    let texts = cell.trim_end_matches('*').split(" or ").filter_map(|letter| all.get(letter));
    texts.flatten().cloned().collect()
}

#[test]
fn each_cell_of_the_page_is_what_a_run_gives() {
    let test = "each_cell_of_the_page_is_what_a_run_gives";
    let Some(site) = Site::new(test) else { return };
    match programs() {
        Ok(image) => std::os::unix::fs::symlink(image, site.path().join("programs")).expect("symlink"),
        Err(why) => return skipped(test, &why),
    }
    let tables = [("Writing an output", 'w', WRITES), ("Reading an input", 'r', READS)];
    let mut payloads = Vec::new();
    for (heading, table, ways) in tables {
        let page = rows(heading);
        let named: Vec<&str> = ways.iter().map(|way| way.name).collect();
        let listed: Vec<&str> = page.iter().map(|row| row[0].as_str()).collect();
        assert_eq!(listed, named, "the rows of {heading:?}");
        for ((n, way), row) in ways.iter().enumerate().zip(&page) {
            for (class, cell) in CLASSES.iter().zip(&row[1..]) {
                let writes = if table == 'w' {
                    way.writes.to_owned()
                } else {
                    format!("{}; cat /tmp/d {}", way.writes, into(class))
                };
                payloads.extend(pair(
                    &format!("{table}{n}-{class}"),
                    class,
                    way,
                    &writes,
                    promised(cell).iter().any(|text| text == WAITS),
                ));
            }
        }
    }
    let ran = site.run_with(&flow(&payloads), &["--slots", "4"]);
    let mut wrong = Vec::new();
    for (heading, table, ways) in tables {
        for ((n, way), row) in ways.iter().enumerate().zip(rows(heading)) {
            for (class, cell) in CLASSES.iter().zip(&row[1..]) {
                let told = refusal(&site, &ran, &format!("{table}{n}-{class}"), table == 'r');
                let promised = promised(cell);
                let holds = cell == DEPENDS
                    || match &told {
                        None => promised.is_empty() && (cell == "yes" || cell.ends_with('*')),
                        Some(said) => promised.iter().any(|text| said.contains(text)),
                    };
                if !holds {
                    wrong.push(format!(
                        "{heading}: {}, {class}: the page says {cell}, the run {told:?}",
                        way.name
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    site.assert_baseline();
}
