//! Which pilots serve this spool. A row says what they told; a lock, not a process number, says whether they live.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::SpoolError;
use crate::folder::PILOTS;
use crate::spool::Spool;

/// What a pilot says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPilot {
    /// Its name; letters, digits and `._-`.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// When that process started, in ticks since boot (proc(5), stat).
    pub start_ticks: u64,
    /// Path of the socket that it answers on.
    pub api_socket: String,
    /// How many slots it has.
    pub slots: u32,
}

/// A pilot that serves this spool, or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PilotRow {
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// When that process started, in ticks since boot.
    pub start_ticks: u64,
    /// In which boot.
    pub boot: String,
    /// Path of the socket that it answers on.
    pub api_socket: String,
    /// When it began to serve, wall clock in milliseconds.
    pub started_wall_ms: u64,
    /// When it was heard of last, wall clock in milliseconds.
    pub seen_wall_ms: u64,
    /// How many slots it has.
    pub slots: u32,
    /// Whether it lives.
    pub alive: bool,
}

/// A pilot's place. As long as it is held, the pilot is alive to others; it ends with the process at the latest.
#[derive(Debug)]
pub struct Registration {
    _lock: File,
}

impl Spool {
    /// Takes a pilot's place and tells others of it.
    ///
    /// # Errors
    /// [`SpoolError::PilotLives`] when another process has it; when it can't be written.
    pub fn register(&mut self, pilot: &NewPilot) -> Result<Registration, SpoolError> {
        let path = lock_path(&self.folder, &pilot.name)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = lock.map_err(|source| SpoolError::File { action: "make", path: path.clone(), source })?;
        // What a pilot was forking when it was killed has its lock until it executes its program.
        let mut tries = 40;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if tries > 0 => std::thread::sleep(Duration::from_millis(50)),
                Err(Errno::WOULDBLOCK) => {
                    return Err(SpoolError::PilotLives { name: pilot.name.clone() });
                }
                Err(error) => {
                    return Err(SpoolError::File { action: "lock", path, source: error.into() });
                }
            }
            tries -= 1;
        }
        let boot = self.clock.boot_id();
        self.transact(|work| {
            work.sql.execute(
                "INSERT OR REPLACE INTO pilots (name, pid, start_ticks, boot, api_socket, started_wall_ms,
                 seen_wall_ms, slots) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7)",
                (
                    &pilot.name,
                    pilot.pid,
                    i64::try_from(pilot.start_ticks).unwrap_or(i64::MAX),
                    &*boot,
                    &pilot.api_socket,
                    work.wall_ms,
                    pilot.slots,
                ),
            )?;
            Ok(())
        })?;
        Ok(Registration { _lock: lock })
    }

    /// Notes that a pilot was heard of.
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn beat(&mut self, name: &str) -> Result<(), SpoolError> {
        self.transact(|work| work.beat(name))
    }

    /// Takes a pilot off the list; its registration ends where it is dropped.
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn unregister(&mut self, name: &str) -> Result<(), SpoolError> {
        self.transact(|work| {
            work.sql.execute("DELETE FROM pilots WHERE name = ?1", [name])?;
            Ok(())
        })
    }

    /// The pilots that serve this spool, or did and were not taken off the list.
    ///
    /// # Errors
    /// When the database can't be read.
    pub fn pilots(&self) -> Result<Vec<PilotRow>, SpoolError> {
        let mut find = self.connection.prepare_cached(
            "SELECT name, pid, start_ticks, boot, api_socket, started_wall_ms, seen_wall_ms, slots
             FROM pilots ORDER BY name",
        )?;
        let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
        let rows = find.query_map([], |row| {
            let name: String = row.get(0)?;
            Ok(PilotRow {
                alive: self.is_alive(&name),
                name,
                pid: row.get(1)?,
                start_ticks: unsigned(row.get(2)?),
                boot: row.get(3)?,
                api_socket: row.get(4)?,
                started_wall_ms: unsigned(row.get(5)?),
                seen_wall_ms: unsigned(row.get(6)?),
                slots: row.get(7)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Whether a pilot of that name lives.
    #[must_use]
    pub fn is_alive(&self, name: &str) -> bool {
        let Ok(path) = lock_path(&self.folder, name) else { return false };
        let Ok(lock) = File::open(path) else { return false };
        // A shared lock: two who ask at once don't take each other for the pilot.
        flock(&lock, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
    }
}

impl crate::Work<'_> {
    /// Notes that a pilot was heard of.
    ///
    /// # Errors
    /// When the database can't be used.
    pub fn beat(&self, name: &str) -> Result<(), SpoolError> {
        self.sql
            .prepare_cached("UPDATE pilots SET seen_wall_ms = ?2 WHERE name = ?1")?
            .execute((name, self.wall_ms))?;
        Ok(())
    }
}

/// A name that is one file name, and not a hidden one.
pub(crate) fn file_name(name: &str) -> std::io::Result<&str> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first && name.len() <= 64 && name.bytes().all(good) {
        return Ok(name);
    }
    let text =
        "a pilot's name has 1 to 64 letters, digits, '.', '_' or '-', and begins with a letter or digit";
    Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, text))
}

fn lock_path(folder: &Path, name: &str) -> Result<PathBuf, SpoolError> {
    let path = folder.join(PILOTS);
    match file_name(name) {
        Ok(name) => Ok(path.join(name)),
        Err(source) => Err(SpoolError::File { action: "name a pilot's lock in", path, source }),
    }
}
