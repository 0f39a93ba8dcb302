//! `links PLACE SHAPE ITEMS BYTES`: a stage broker for the programs of workflow.c, until its standard input ends.
//!
//! Node `k` finds it at `PLACE/n<k>`, makes `o<item>` and reads `i<item>`. A session lists at most 256 of each.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::path::PathBuf;

use anyhow::{Context, ensure};
use pilot_benches::stages::place::listener;
use stage::broker::{Grant, GrantInput, GrantOutput, Limits};
use stage::server::{BrokerServer, Settings};
use stage::{Budget, Class, StageName, StageUri};

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [place, shape, items, bytes] = &words[..] else { anyhow::bail!("links PLACE SHAPE ITEMS BYTES") };
    let (place, items, max_bytes) = (PathBuf::from(place), items.parse::<u32>()?, bytes.parse::<u64>()?);
    ensure!(items <= 256, "a session lists at most 256 items");
    // Who reads what a node makes.
    let readers: Vec<Vec<usize>> = match shape.as_str() {
        "pair" => vec![vec![1], vec![]],
        "chain" => vec![vec![1], vec![2], vec![3], vec![]],
        "fan" => vec![vec![1, 2, 3, 4], vec![], vec![], vec![], vec![]],
        _ => anyhow::bail!("SHAPE is pair, chain or fan"),
    };
    let name = |node: usize| StageName::new(&format!("n{node}"));
    let workflow = StageName::new("links")?;
    let limits = Limits::new(Budget { memory_bytes: 8 << 30, disk_bytes: 0 });
    let broker = BrokerServer::start(Settings::new(limits))?;
    for node in 0..readers.len() {
        let (mut outputs, mut inputs) = (Vec::new(), Vec::new());
        let from = readers.iter().position(|readers| readers.contains(&node));
        for item in 0..items {
            let output = StageName::new(&format!("o{item}"))?;
            if let Some(from) = from {
                let uri =
                    StageUri { workflow: workflow.clone(), payload: name(from)?, output: output.clone() };
                inputs.push(GrantInput { name: StageName::new(&format!("i{item}"))?, uri, live: true });
            }
            if !readers[node].is_empty() {
                let readers = readers[node].iter().map(|reader| name(*reader)).collect::<Result<_, _>>()?;
                outputs.push(GrantOutput { name: output, class: Class::Mem, max_bytes, readers });
            }
        }
        let grant = Grant { workflow: workflow.clone(), payload: name(node)?, outputs, inputs };
        broker.open_session(listener(&place.join(format!("n{node}")))?, grant).context("open a session")?;
    }
    writeln!(std::io::stdout(), "ready")?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
