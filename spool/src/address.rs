//! How people name a run or a payload: `7`, `7/fit`, `zpeak`, `zpeak/fit`.

use std::fmt;
use std::str::FromStr;

use crate::error::SpoolError;
use crate::query::{Row, Run};
use crate::spool::Spool;
use crate::words::RunId;

/// A run, or a payload or an array of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The run.
    pub run: RunRef,
    /// Name of a payload or an array within it.
    pub payload: Option<String>,
}

/// A run, as people name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunRef {
    /// By its number.
    Number(RunId),
    /// The newest one of that name.
    Newest(String),
}

/// Not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read {0:?}: it must be a run (7 or its name) or one of its payloads (7/fit)")]
pub struct AddressError(pub String);

/// What an address leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A run.
    Run(Run),
    /// A payload.
    Payload(Row),
    /// An array of a run.
    Family(Run, String),
}

/// An address leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// No such run.
    #[error("find run {0}: there is none; `pilot ls` shows what there is")]
    NoRun(RunRef),
    /// No such payload in the run.
    #[error("find {run}/{payload}: run {run} ({name}) has no payload of that name")]
    NoPayload {
        /// The run.
        run: RunId,
        /// The run's name.
        name: String,
        /// What was asked for.
        payload: String,
    },
    /// The spool can't be asked.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (run, payload) = match text.split_once('/') {
            Some((run, payload)) => (run, Some(payload)),
            None => (text, None),
        };
        let bad = |part: &str| part.is_empty() || part.contains('/') || part.chars().any(char::is_whitespace);
        if bad(run) || payload.is_some_and(bad) {
            return Err(AddressError(text.chars().take(100).collect()));
        }
        // A name of digits only is reached by its run's number.
        let run = match run.parse() {
            Ok(number) => RunRef::Number(RunId(number)),
            Err(_) => RunRef::Newest(run.to_owned()),
        };
        Ok(Self { run, payload: payload.map(str::to_owned) })
    }
}

impl fmt::Display for RunRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(run) => run.fmt(f),
            Self::Newest(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.run.fmt(f)?;
        self.payload.as_ref().map_or(Ok(()), |payload| write!(f, "/{payload}"))
    }
}

impl Spool {
    /// What an address leads to. A payload goes before an array of the same name.
    ///
    /// # Errors
    /// When it leads nowhere.
    pub fn find(&self, address: &Address) -> Result<Found, FindError> {
        let run = match &address.run {
            RunRef::Number(run) => self.run(*run)?,
            RunRef::Newest(name) => self.newest_run(name)?,
        };
        let run = run.ok_or_else(|| FindError::NoRun(address.run.clone()))?;
        let Some(payload) = &address.payload else { return Ok(Found::Run(run)) };
        if let Some(row) = self.payload(run.id, payload)? {
            return Ok(Found::Payload(row));
        }
        if self.has_family(run.id, payload)? {
            return Ok(Found::Family(run, payload.clone()));
        }
        Err(FindError::NoPayload { run: run.id, name: run.name, payload: payload.clone() })
    }
}
