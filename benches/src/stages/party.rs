//! The two ends of a hand-off: processes that take orders from a socket in the place where they meet.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};

/// Longest answer: a gibibyte through the slowest peer on a busy machine, and Ray's start.
const ANSWER: Duration = Duration::from_secs(120);

/// Where parties say that they are there.
#[derive(Debug)]
pub(super) struct Meeting(UnixListener);

impl Meeting {
    pub(super) fn open(place: &Path) -> anyhow::Result<Self> {
        let path = place.join("control");
        let listener = UnixListener::bind(&path)?;
        // Whoever is in a container has another uid.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// The next one that comes, and what it is called; `alive` says whether it still may.
    pub(super) fn next(&self, mut alive: impl FnMut() -> bool) -> anyhow::Result<(String, Party)> {
        for _ in 0..ANSWER.as_millis() / 10 {
            match self.0.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    stream.set_read_timeout(Some(ANSWER))?;
                    let mut party = Party(BufReader::new(stream));
                    let line = party.hear()?;
                    let (name, port) = line.split_once(' ').context("it did not say who it is")?;
                    let name = format!("{name} {port}");
                    return Ok((name, party));
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    ensure!(alive(), "it ended before it came");
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error.into()),
            }
        }
        anyhow::bail!("it did not come in {} s", ANSWER.as_secs())
    }
}

/// One end.
#[derive(Debug)]
pub(super) struct Party(BufReader<UnixStream>);

impl Party {
    pub(super) fn say(&mut self, order: &str) -> anyhow::Result<()> {
        Ok(writeln!(self.0.get_mut(), "{order}")?)
    }

    pub(super) fn hear(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(self.0.read_line(&mut line)? > 0, "it has ended");
        Ok(line.trim().to_owned())
    }

    pub(super) fn numbers(&mut self) -> anyhow::Result<Vec<u64>> {
        let line = self.hear()?;
        let numbers = line.split(' ').map(str::parse).collect::<Result<_, _>>();
        numbers.with_context(|| format!("it said {line:?}"))
    }
}
