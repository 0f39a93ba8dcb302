//! What a broker with many stages costs: `cargo run --release -p stage --example many`.
//!
//! Medians of one payload's calls (create and commit, open, both to the end) and of the pilot's (lookup, release), and the
//! memory of the process, which here is broker and client at once, with so many stages alive.
#![expect(clippy::print_stdout, reason = "a table is what it is for")]

use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use stage::broker::{Grant, GrantInput, GrantOutput, Limits};
use stage::client::Client;
use stage::server::{BrokerServer, Settings};
use stage::{Budget, Class, StageName, StageUri};

type Outcome<T> = Result<T, Box<dyn Error>>;

const AT_ONCE: usize = 100;

fn now_us() -> f64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as f64 * 1e6 + now.tv_nsec as f64 / 1e3
}

#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn of<T>(&mut self, call: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        let began = now_us();
        let result = call();
        self.0.push(now_us() - began);
        result
    }

    fn median(mut self) -> f64 {
        self.0.sort_by(f64::total_cmp);
        self.0.get(self.0.len() / 2).copied().unwrap_or(0.0)
    }
}

fn main() -> Outcome<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let folder = tempfile::tempdir()?;
    let broker =
        BrokerServer::start(Settings::new(Limits::new(Budget { memory_bytes: 1 << 30, disk_bytes: 0 })))?;
    println!(
        "{:>7} {:>10} {:>10} {:>10} {:>10} {:>9}",
        "stages", "commit us", "open us", "lookup us", "release us", "RSS KiB"
    );
    let mut alive = 0;
    for stages in [100, 1000, 10_000] {
        while alive < stages {
            batch(&broker, folder.path(), alive / AT_ONCE, true)?;
            alive += AT_ONCE;
        }
        let [commit, open, lookup, release] = batch(&broker, folder.path(), 1_000_000, false)?;
        let rss = std::fs::read_to_string("/proc/self/status")?;
        let rss = rss.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        let rss = rss.trim().trim_end_matches(" kB");
        println!("{stages:>7} {commit:>10.1} {open:>10.1} {lookup:>10.1} {release:>10.1} {rss:>9}");
    }
    Ok(())
}

/// A hundred stages of one payload, read by another; kept, or released again.
fn batch(broker: &BrokerServer, folder: &Path, number: usize, keep: bool) -> Outcome<[f64; 4]> {
    let (workflow, payload) = (StageName::new("many")?, StageName::new(&format!("p{number}"))?);
    let reader = StageName::new("reader")?;
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
        readers: BTreeSet::from([reader.clone()]),
    };
    let input = |name: &StageName| GrantInput { name: name.clone(), uri: uri(name), live: true };
    let session = |payload: &StageName, outputs, inputs| -> Outcome<_> {
        let path = folder.join(payload.as_str());
        let _ = std::fs::remove_file(&path);
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrUnix::new(&path)?)?;
        listen(&socket, 8)?;
        let grant = Grant { workflow: workflow.clone(), payload: payload.clone(), outputs, inputs };
        Ok((broker.open_session(socket, grant)?, Client::connect(&path)?))
    };
    let (producing, producer) = session(&payload, names.iter().map(output).collect(), Vec::new())?;
    let (reading, consumer) = session(&reader, Vec::new(), names.iter().map(input).collect())?;
    let [mut commit, mut open, mut lookup, mut release] = [(); 4].map(|()| Times::default());
    for name in &names {
        let mut made = producer.create(name.as_str(), 64)?;
        made.write_at(0, &[7; 64])?;
        commit.of(|| Ok(made.commit()?))?;
        open.of(|| Ok(consumer.open(name.as_str())?))?;
        let stage = uri(name);
        lookup.of(|| Ok(broker.ask(move |broker| broker.lookup(&stage))?))?;
    }
    drop((producer, consumer));
    let _ = broker.end_session(producing, true)?;
    let _ = broker.end_session(reading, true)?;
    for name in names.iter().filter(|_| !keep) {
        let (stage, reader) = (uri(name), reader.clone());
        let _ = release.of(|| Ok(broker.ask(move |broker| broker.release(&stage, &reader))??))?;
    }
    Ok([commit, open, lookup, release].map(Times::median))
}
