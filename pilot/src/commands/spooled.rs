//! What all commands on the spool share: opening it, finding what was named, saying what went wrong, and going on until
//! something has ended.
//!
//! **Must not know:** what any of the commands is for.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use pilot_core::{FaultClass, RunExit};
use spool::{Address, Found, OpenError, PayloadId, Row, RunId, Spool, SpoolError, State};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::{OutputFormat, complain, refuse};
use crate::config::{Settings, Surroundings, spool_folder};
use crate::fault::chain;
use crate::ui::size_of;

/// A spool and where it is.
pub(crate) struct Opened {
    /// The spool.
    pub(crate) spool: Spool,
    /// Its folder.
    pub(crate) folder: PathBuf,
}

/// Opens the spool that is there; says why not.
pub(crate) fn open(settings: Settings, around: &Surroundings) -> Result<Opened, RunExit> {
    opened(settings, around, Spool::open_existing)
}

/// Opens the spool, and makes it when there is none; says why not.
pub(crate) fn open_or_make(settings: Settings, around: &Surroundings) -> Result<Opened, RunExit> {
    opened(settings, around, Spool::open)
}

fn opened(
    settings: Settings,
    around: &Surroundings,
    open: fn(&std::path::Path) -> Result<Spool, OpenError>,
) -> Result<Opened, RunExit> {
    let folder = spool_folder(settings.spool, around).map_err(|error| refuse(&error))?;
    match open(&folder) {
        Ok(spool) => Ok(Opened { spool, folder }),
        Err(OpenError::Missing { folder }) => {
            complain(&format!("no spool at {}; `pilot submit` or `pilot serve` makes it", folder.display()));
            Err(RunExit::BadInput)
        }
        Err(error) => Err(refuse(&error)),
    }
}

impl Opened {
    /// Finds what was named; says what is wrong with the name.
    pub(crate) fn find(&self, address: &Address) -> Result<Found, RunExit> {
        self.spool.find(address).map_err(|error| refuse(&error))
    }

    /// Whether a pilot serves the spool; when that can't be known, nothing is to be said about it.
    pub(crate) fn is_served(&self) -> bool {
        self.spool.pilots().map_or(true, |pilots| pilots.iter().any(|pilot| pilot.alive))
    }
}

/// Says what went wrong with an open spool; gives the code for it.
pub(crate) fn failed(error: &SpoolError) -> RunExit {
    complain(&chain(error));
    match error.class() {
        FaultClass::Retry | FaultClass::Slot => RunExit::OwnFault,
        FaultClass::Payload | FaultClass::Pilot => RunExit::BadInput,
    }
}

/// Whether all of what was named has come to its end; what is gone has.
pub(crate) fn has_ended(spool: &Spool, found: &Found) -> Result<bool, SpoolError> {
    let (run, family) = match found {
        Found::Run(run) => (run.id, None),
        Found::Family(run, family) => (run.id, Some(family)),
        Found::Payload(row) => {
            return Ok(spool.detail(row.id)?.is_none_or(|detail| detail.row.state.is_final()));
        }
    };
    let open = spool.run(run)?.map_or(0, |run| run.counts.open());
    if family.is_none() || open == 0 {
        return Ok(open == 0);
    }
    Ok(Rows::new(spool, run, family.map(String::as_str), &OPEN)?.page(1)?.is_none())
}

/// The payloads of a run, or of one array in it, page by page in the order of their submission.
pub(crate) struct Rows<'a> {
    spool: &'a Spool,
    run: RunId,
    family: Option<&'a str>,
    states: &'a [State],
    after: Option<PayloadId>,
}

impl<'a> Rows<'a> {
    /// Those that stand so; without states all.
    pub(crate) fn new(
        spool: &'a Spool,
        run: RunId,
        family: Option<&'a str>,
        states: &'a [State],
    ) -> Result<Self, SpoolError> {
        // The elements of an array lie together: from the first one on there is nothing to pass over.
        let first = match family {
            Some(family) => spool.payload(run, &format!("{family}-0"))?,
            None => None,
        };
        let after = first.map(|row| PayloadId(row.id.0 - 1));
        Ok(Self { spool, run, family, states, after })
    }

    /// The next ones; `None` at the end.
    pub(crate) fn page(&mut self, at_most: u32) -> Result<Option<Vec<Row>>, SpoolError> {
        let mut rows = self.spool.payloads(self.run, self.states, self.after, at_most.min(PAGE))?;
        let Some(last) = rows.last() else { return Ok(None) };
        self.after = Some(last.id);
        if let Some(family) = self.family {
            rows.retain(|row| row.family == family);
        }
        Ok((!rows.is_empty()).then_some(rows))
    }
}

/// The states that something may still come of.
const OPEN: [State; 3] = [State::Waiting, State::Ready, State::Claimed];
/// Rows that are read at once.
const PAGE: u32 = 1000;

/// How to tell it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Face {
    /// One JSON object a line.
    pub(crate) json: bool,
    /// Lines may be cut to the width, and drawn again in place.
    pub(crate) live: bool,
    /// In colours.
    pub(crate) colour: bool,
}

impl Face {
    /// As was asked for, and as standard output allows.
    pub(crate) fn new(output: OutputFormat, around: &Surroundings) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let json = output == OutputFormat::Json;
        Self {
            json,
            live: terminal && output == OutputFormat::Auto,
            colour: terminal && !json && !around.no_color,
        }
    }

    /// Columns that a line may have. One less than there are: some terminals wrap when the last one is written.
    pub(crate) fn columns(self) -> Option<usize> {
        let size = self.live.then(|| size_of(std::io::stdout()).unwrap_or_default());
        size.map(|size| usize::from(size.columns).saturating_sub(1))
    }
}

/// Prints to standard output. `false` when nobody reads it any more (`| head`): then there is no more to do.
pub(crate) fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// Milliseconds since 1970, for ages that are shown.
pub(crate) fn wall_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1000) + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000
}

/// The pauses of a command that goes on until something has ended, or until Ctrl-C.
pub(crate) struct Pace {
    runtime: tokio::runtime::Runtime,
    interrupt: Signal,
}

impl Pace {
    /// Starts to listen for Ctrl-C; says why not.
    pub(crate) fn new() -> Result<Self, RunExit> {
        let listening = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let interrupt = {
                let _inside = runtime.enter();
                signal(SignalKind::interrupt())?
            };
            Ok(Self { runtime, interrupt })
        };
        listening().map_err(|error: std::io::Error| {
            complain(&format!("listen for signals: {error}"));
            RunExit::OwnFault
        })
    }

    /// Waits so long; [`RunExit::Interrupted`] when Ctrl-C came.
    pub(crate) fn pause(&mut self, ms: u64) -> Result<(), RunExit> {
        let interrupt = &mut self.interrupt;
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                _ = interrupt.recv() => Err(RunExit::Interrupted),
                () = tokio::time::sleep(Duration::from_millis(ms)) => Ok(()),
            }
        })
    }
}
