//! The database: how it is made, and how one that exists is judged before anything is written to it.
//!
//! A new one is made under another name and then linked to its own: `spool.db` is never there half made, so one that is
//! empty or short is damaged, and is left as it is.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use rustix::fs::{FlockOperation, flock};

use crate::error::OpenError;
use crate::folder::{self, DATABASE, MAKING};

/// The schema's number, kept in `user_version`. A later program migrates; an earlier one refuses.
pub(crate) const VERSION: i64 = 2;
/// Kept in `application_id`: "LBsp".
const APPLICATION: i64 = 0x4c42_7370;
/// Up to this size a whole check takes some ten milliseconds.
const CHECKED_BYTES: u64 = 4 << 20;
const HEADER_BYTES: usize = 100;

const TABLES: &str = "
CREATE TABLE facts (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  boot TEXT NOT NULL                       -- in whose time leases and pauses are counted
) STRICT;
INSERT INTO facts VALUES (1, '');

CREATE TABLE runs (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL,
  key TEXT UNIQUE,
  origin TEXT NOT NULL,
  out TEXT NOT NULL,
  submitted_wall_ms INTEGER NOT NULL,
  ended_wall_ms INTEGER,
  hands_stages INTEGER NOT NULL,
  home TEXT NOT NULL DEFAULT '',           -- the pilot that holds its stages
  -- payloads in each state; kept with every change of state, never counted
  n0 INTEGER NOT NULL DEFAULT 0, n1 INTEGER NOT NULL DEFAULT 0, n2 INTEGER NOT NULL DEFAULT 0,
  n3 INTEGER NOT NULL DEFAULT 0, n4 INTEGER NOT NULL DEFAULT 0, n5 INTEGER NOT NULL DEFAULT 0,
  n6 INTEGER NOT NULL DEFAULT 0, n7 INTEGER NOT NULL DEFAULT 0, n8 INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX runs_by_name ON runs(name, id);
CREATE INDEX runs_open ON runs(id) WHERE ended_wall_ms IS NULL;
CREATE INDEX runs_ended ON runs(id) WHERE ended_wall_ms IS NOT NULL;
CREATE INDEX runs_ready ON runs(home, id) WHERE n1 > 0;
CREATE INDEX runs_at_home ON runs(home) WHERE ended_wall_ms IS NULL AND home <> '';

CREATE TABLE payloads (
  id INTEGER PRIMARY KEY,                  -- run << 32 | index
  run INTEGER NOT NULL REFERENCES runs(id),
  name TEXT NOT NULL,
  family TEXT NOT NULL,
  image TEXT NOT NULL,
  trust_group TEXT NOT NULL,
  cpu_millis INTEGER NOT NULL,
  memory_bytes INTEGER NOT NULL,
  retries INTEGER NOT NULL,
  at_most_once INTEGER NOT NULL,
  state INTEGER NOT NULL,
  pending INTEGER NOT NULL,                -- producers that have not succeeded, while it waits
  not_before_ms INTEGER NOT NULL DEFAULT 0,
  tries INTEGER NOT NULL DEFAULT 0,
  failed INTEGER NOT NULL DEFAULT 0,
  disrupted INTEGER NOT NULL DEFAULT 0,
  because INTEGER,
  claimed_wall_ms INTEGER,
  ended_wall_ms INTEGER,
  outcome TEXT,
  gang INTEGER NOT NULL DEFAULT 0          -- the first of those that it runs together with; 0: it is for itself
) STRICT;
CREATE INDEX payloads_by_state ON payloads(state);
CREATE INDEX payloads_delayed ON payloads(not_before_ms) WHERE state = 8;
CREATE UNIQUE INDEX payloads_by_name ON payloads(run, name);
CREATE INDEX payloads_by_gang ON payloads(gang) WHERE gang <> 0;

-- apart from the rows that change, because they are long
CREATE TABLE specs (id INTEGER PRIMARY KEY REFERENCES payloads(id), spec TEXT NOT NULL) STRICT;

CREATE TABLE edges (
  producer INTEGER NOT NULL REFERENCES payloads(id),
  consumer INTEGER NOT NULL REFERENCES payloads(id),
  outputs TEXT NOT NULL,                   -- names of outputs that the consumer reads, each followed by a blank
  PRIMARY KEY (producer, consumer)
) STRICT, WITHOUT ROWID;
CREATE INDEX edges_by_consumer ON edges(consumer);

CREATE TABLE claims (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  payload INTEGER NOT NULL UNIQUE REFERENCES payloads(id),
  pilot TEXT NOT NULL,
  lease_until_ms INTEGER NOT NULL,
  cancelled INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX claims_by_lease ON claims(lease_until_ms);
CREATE INDEX claims_by_pilot ON claims(pilot, cancelled);

CREATE TABLE pilots (
  name TEXT PRIMARY KEY,
  pid INTEGER NOT NULL,
  start_ticks INTEGER NOT NULL,
  boot TEXT NOT NULL,
  api_socket TEXT NOT NULL,
  started_wall_ms INTEGER NOT NULL,
  seen_wall_ms INTEGER NOT NULL,
  slots INTEGER NOT NULL
) STRICT;
";

/// From each version to the next, the first from 1 to 2.
const STEPS: [&str; 1] = ["
ALTER TABLE payloads ADD COLUMN gang INTEGER NOT NULL DEFAULT 0;
CREATE INDEX payloads_by_gang ON payloads(gang) WHERE gang <> 0;
"];

/// Opens the folder's database; makes one when there is none and `create` says so.
pub(crate) fn connect(folder: &Path, create: bool, busy: Duration) -> Result<Connection, OpenError> {
    let file = folder.join(DATABASE);
    match std::fs::symlink_metadata(&file) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound && create => make(folder, &file)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(OpenError::Missing { folder: folder.to_path_buf() });
        }
        Err(source) => return Err(folder::io("look at", &file, source)),
    }
    judge_header(&file)?;
    open(&file, busy)
}

/// Makes the database under another name, then gives it its own.
fn make(folder: &Path, file: &Path) -> Result<(), OpenError> {
    let wal = beside(file, "-wal");
    if std::fs::metadata(&wal).is_ok_and(|wal| wal.len() > 0) {
        let why = "it is gone, and the log beside it is not".to_owned();
        return Err(OpenError::Damaged { file: file.to_path_buf(), why });
    }
    let making = folder.join(MAKING);
    let lock = File::create(&making).map_err(|source| folder::io("make", &making, source))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|e| folder::io("lock", &making, e.into()))?;
    if file.exists() {
        return Ok(());
    }
    let new = folder.join("spool.db.new");
    for old in [new.clone(), beside(&new, "-wal"), beside(&new, "-shm"), beside(&new, "-journal")] {
        match std::fs::remove_file(&old) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(folder::io("remove", &old, error));
            }
            _ => {}
        }
    }
    fill(&new).map_err(|source| OpenError::sql(&new, source))?;
    // Linking never takes the place of a file that is there.
    std::fs::hard_link(&new, file).map_err(|source| folder::io("make", file, source))?;
    std::fs::remove_file(&new).map_err(|source| folder::io("remove", &new, source))
}

fn fill(new: &Path) -> rusqlite::Result<()> {
    let connection = Connection::open(new)?;
    connection.pragma_update(None, "auto_vacuum", "incremental")?;
    connection.execute_batch(&format!("BEGIN IMMEDIATE;{TABLES}COMMIT;"))?;
    connection.pragma_update(None, "application_id", APPLICATION)?;
    connection.pragma_update(None, "user_version", VERSION)?;
    connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get::<_, String>(0))?;
    connection.close().map_err(|(_, error)| error)
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Looks at the first bytes before SQLite does, which takes an empty file for a new database.
fn judge_header(file: &Path) -> Result<(), OpenError> {
    let mut header = [0; HEADER_BYTES];
    let mut opened = File::open(file).map_err(|source| folder::io("read", file, source))?;
    let damaged = |why: &str| OpenError::Damaged { file: file.to_path_buf(), why: why.to_owned() };
    match opened.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            let short = opened.metadata().map(|metadata| metadata.len()).unwrap_or(0);
            return Err(damaged(&format!("it ends after {short} bytes")));
        }
        Err(source) => return Err(folder::io("read", file, source)),
    }
    if !header.starts_with(b"SQLite format 3\0") {
        return Err(damaged("its first bytes are not those of a database"));
    }
    Ok(())
}

fn open(file: &Path, busy: Duration) -> Result<Connection, OpenError> {
    let sql = |source| OpenError::sql(file, source);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags).map_err(sql)?;
    connection.busy_timeout(busy).map_err(sql)?;
    // Until it is found good, nothing of the log goes into the file.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(sql)?;
    judge(&connection, file)?;
    migrate(&connection).map_err(sql)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map_err(sql)?;
    connection.pragma_update(None, "synchronous", "normal").map_err(sql)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(sql)?;
    // A burst's log does not stay that large for ever.
    connection.pragma_update(None, "journal_size_limit", 16 << 20).map_err(sql)?;
    // In KiB: what a pilot with a large spool keeps in memory.
    connection.pragma_update(None, "cache_size", -8192).map_err(sql)?;
    // Plans don't depend on what is bound: else SQLite prepares a statement anew for nearly every payload.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(sql)?;
    connection.set_prepared_statement_cache_capacity(128);
    Ok(connection)
}

/// Brings an earlier version's tables up to date, in one transaction: whoever opens them at the same time waits, and finds it
/// done.
fn migrate(connection: &Connection) -> rusqlite::Result<()> {
    let version = || connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
    if version()? == VERSION {
        return Ok(());
    }
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let steps = || {
        let done = usize::try_from(version()? - 1).unwrap_or(0);
        for step in STEPS.iter().skip(done) {
            connection.execute_batch(step)?;
        }
        connection.pragma_update(None, "user_version", VERSION)
    };
    match steps() {
        Ok(()) => connection.execute_batch("COMMIT"),
        Err(error) => {
            let _ = connection.execute_batch("ROLLBACK");
            Err(error)
        }
    }
}

fn judge(connection: &Connection, file: &Path) -> Result<(), OpenError> {
    let sql = |source| OpenError::sql(file, source);
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let damaged = |why: String| OpenError::Damaged { file: file.to_path_buf(), why };
    if number("application_id").map_err(sql)? != APPLICATION {
        return Err(OpenError::NotASpool { file: file.to_path_buf() });
    }
    let found = number("user_version").map_err(sql)?;
    if found > VERSION {
        return Err(OpenError::TooNew { file: file.to_path_buf(), found, known: VERSION });
    }
    if found < 1 {
        return Err(damaged(format!("it has version {found}")));
    }
    if connection.is_readonly("main").map_err(sql)? {
        return Err(OpenError::ReadOnly { file: file.to_path_buf() });
    }
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let (pages, page) = (number("page_count").map_err(sql)?, number("page_size").map_err(sql)?);
    let (pages, page) = (pages.unsigned_abs(), page.unsigned_abs().max(1));
    // What the file lacks has to be in the log, in frames of a page and 24 bytes.
    let (there, logged) = (length(file) / page, length(&beside(file, "-wal")) / (page + 24));
    if there + logged < pages {
        return Err(damaged(format!("it has {there} pages of {pages}")));
    }
    if pages * page <= CHECKED_BYTES {
        let verdict: String =
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(sql)?;
        if verdict != "ok" {
            return Err(damaged(verdict.replace('\n', ": ")));
        }
    }
    let one: i64 = connection.query_row("SELECT count(*) FROM facts", [], |row| row.get(0)).map_err(sql)?;
    if one == 1 { Ok(()) } else { Err(damaged("a table is empty that never is".to_owned())) }
}
