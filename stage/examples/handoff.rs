//! How long a hand-off takes, from one process to another: a stage through the broker, and what programs use otherwise.
//!
//! ```text
//! cargo run --release -p stage --example handoff [-- LARGEST_MIB [METHOD]]
//! ```
//! Three processes: this one has the broker, one produces, one consumes. The clock starts when the producer has its bytes
//! ready and says so (commit, write), and stops when the consumer has all of them at an address of its own: *mapped*. The
//! second figure is when it has also read each of them. Medians; for a stage, sealing is part of both, and shown apart: what is
//! left of *mapped* without it is the *hand-off*.
#![expect(clippy::disallowed_methods, reason = "a benchmark has processes and arguments of its own")]
#![expect(clippy::print_stdout, reason = "a table is what it is for")]

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::time::{ClockId, clock_gettime};
use stage::broker::{Grant, GrantInput, GrantOutput, Limits, SessionId};
use stage::client::Client;
use stage::server::{BrokerServer, Settings};
use stage::{Budget, Class, StageName, StageUri};

type Outcome<T> = Result<T, Box<dyn Error>>;

const METHODS: [&str; 5] = ["stage", "pipe", "unix", "tcp", "tmpfs"];
const SIZES: [usize; 7] = [4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20, 256 << 20, 1 << 30];

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("produce") => produce(Path::new(&args[2]), &args[3]),
        Some("consume") => consume(Path::new(&args[2])),
        largest => measure(largest.map_or(Ok(1024), str::parse)?, args.get(2).map(String::as_str)),
    }
}

/// A child and the lines to and from it.
struct Peer {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Peer {
    fn start(args: &[&str]) -> Outcome<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let to = child.stdin.take().ok_or("stdin")?;
        let from = BufReader::new(child.stdout.take().ok_or("stdout")?);
        Ok(Self { child, to, from })
    }

    fn say(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.to, "{line}")
    }

    fn hear(&mut self) -> Outcome<Vec<u64>> {
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 {
            return Err("a child has ended".into());
        }
        Ok(line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One round, in microseconds.
struct Round {
    mapped: f64,
    read: f64,
    seal: f64,
}

fn measure(largest_mib: usize, only: Option<&str>) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let limits = Limits::new(Budget { memory_bytes: 4 << 30, disk_bytes: 0 });
    let broker = BrokerServer::start(Settings::new(limits))?;
    let place = folder.path().to_str().ok_or("a folder")?;
    let mut consumer = Peer::start(&["consume", place])?;
    let port = consumer.hear()?[0].to_string();
    let mut producer = Peer::start(&["produce", place, &port])?;

    println!("     bytes method   mapped us    +read us   seal us hand-off us");
    for size in SIZES.into_iter().filter(|size| *size <= largest_mib << 20) {
        let rounds = (1 << 30) / size.max(8 << 20) + 3;
        for method in METHODS.into_iter().filter(|method| only.is_none_or(|only| only == *method)) {
            let mut all = Vec::with_capacity(rounds);
            for round in 0..rounds {
                let sessions = if method == "stage" {
                    Some(open_sessions(&broker, folder.path(), round, size)?)
                } else {
                    None
                };
                let line = format!("{method} {size} {round}");
                consumer.say(&line)?;
                // It is to be waiting when the producer begins.
                thread::sleep(Duration::from_millis(3));
                producer.say(&line)?;
                let (sent, got) = (producer.hear()?, consumer.hear()?);
                let since = |at: u64| at.saturating_sub(sent[0]) as f64 / 1000.0;
                all.push(Round { mapped: since(got[0]), read: since(got[1]), seal: sent[1] as f64 });
                for session in sessions.into_iter().flatten() {
                    broker.end_session(session, false)?;
                }
            }
            let median = |of: fn(&Round) -> f64| {
                let mut sorted: Vec<f64> = all.iter().map(of).collect();
                sorted.sort_by(f64::total_cmp);
                sorted[sorted.len() / 2]
            };
            print!("{size:>10} {method:>6} {:>11.1} {:>11.1}", median(|r| r.mapped), median(|r| r.read));
            if method == "stage" {
                print!(" {:>9.1} {:>11.1}", median(|r| r.seal), median(|r| r.mapped - r.seal));
            }
            println!();
        }
    }
    Ok(())
}

fn open_sessions(broker: &BrokerServer, folder: &Path, round: usize, size: usize) -> Outcome<[SessionId; 2]> {
    let (workflow, x) = (StageName::new("bench")?, StageName::new("x")?);
    let payload = StageName::new("producer")?;
    let uri = StageUri { workflow: workflow.clone(), payload: payload.clone(), output: x.clone() };
    let (readers, max_bytes) = (BTreeSet::from([StageName::new("consumer")?]), size as u64);
    let outputs = vec![GrantOutput { name: x.clone(), class: Class::Mem, max_bytes, readers }];
    let inputs = vec![GrantInput { name: x, uri, live: true }];
    let produces = Grant { workflow: workflow.clone(), payload, outputs, inputs: Vec::new() };
    let consumes = Grant { workflow, payload: StageName::new("consumer")?, outputs: Vec::new(), inputs };
    Ok([
        broker.open_session(listener(&folder.join(format!("p{round}")))?, produces)?,
        broker.open_session(listener(&folder.join(format!("c{round}")))?, consumes)?,
    ])
}

fn listener(path: &Path) -> Outcome<OwnedFd> {
    let _ = fs::remove_file(path);
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, 8)?;
    Ok(socket)
}

/// `method size round`
fn order(line: &str) -> Outcome<(String, usize, String)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [method, size, round] = words[..] else { return Err("an order".into()) };
    Ok((method.into(), size.parse()?, round.into()))
}

fn shm_file() -> PathBuf {
    Path::new("/dev/shm").join(format!(
        "latebind-handoff-{}",
        rustix::process::getppid().map_or(0, |p| p.as_raw_nonzero().get())
    ))
}

fn produce(folder: &Path, port: &str) -> Outcome<()> {
    let mut pipe = File::options().write(true).open(folder.join("fifo"))?;
    let _ = rustix::pipe::fcntl_setpipe_size(&pipe, 1 << 20);
    let mut unix = UnixStream::connect(folder.join("unix"))?;
    let mut tcp = TcpStream::connect(("127.0.0.1", port.parse()?))?;
    tcp.set_nodelay(true)?;
    let mut bytes = Vec::new();
    for line in io::stdin().lines() {
        let (method, size, round) = order(&line?)?;
        if bytes.len() != size {
            bytes = vec![7_u8; size];
        }
        let (mut began, mut seal_us) = (now_ns(), 0);
        match method.as_str() {
            "stage" => {
                let client = Client::connect(&folder.join(format!("p{round}")))?;
                let mut output = client.create("x", size as u64)?;
                output.write_at(0, &bytes)?;
                began = now_ns();
                seal_us = output.commit_timed(size as u64)?.1;
            }
            "pipe" => pipe.write_all(&bytes)?,
            "unix" => unix.write_all(&bytes)?,
            "tcp" => tcp.write_all(&bytes)?,
            _ => {
                fs::write(shm_file(), &bytes)?;
                unix.write_all(b"x")?;
            }
        }
        println!("{began} {seal_us}");
    }
    Ok(())
}

fn consume(folder: &Path) -> Outcome<()> {
    let unix = UnixListener::bind(folder.join("unix"))?;
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    mkfifoat(CWD, folder.join("fifo"), Mode::RUSR | Mode::WUSR)?;
    println!("{}", tcp.local_addr()?.port());
    let mut pipe = File::open(folder.join("fifo"))?;
    let (mut unix, mut tcp) = (unix.accept()?.0, tcp.accept()?.0);
    let mut room = Vec::new();
    for line in io::stdin().lines() {
        let (method, size, round) = order(&line?)?;
        if room.len() != size {
            room = vec![1_u8; size];
        }
        let mapped;
        let sum = match method.as_str() {
            "stage" => {
                let client = Client::connect(&folder.join(format!("c{round}")))?;
                let input = client.wait("x", Duration::from_secs(60))?;
                let bytes = input.bytes()?;
                std::hint::black_box(bytes[0]);
                mapped = now_ns();
                input.populate();
                add_up(bytes)
            }
            other => {
                match other {
                    "pipe" => pipe.read_exact(&mut room)?,
                    "unix" => unix.read_exact(&mut room)?,
                    "tcp" => tcp.read_exact(&mut room)?,
                    _ => {
                        unix.read_exact(&mut [0])?;
                        File::open(shm_file())?.read_exact(&mut room)?;
                        fs::remove_file(shm_file())?;
                    }
                }
                mapped = now_ns();
                add_up(&room)
            }
        };
        println!("{mapped} {}", now_ns());
        if sum != 7 * size as u64 {
            return Err(format!("{method} of {size} bytes gave {sum}").into());
        }
    }
    Ok(())
}

fn add_up(bytes: &[u8]) -> u64 {
    std::hint::black_box(bytes.iter().map(|byte| u64::from(*byte)).sum())
}
