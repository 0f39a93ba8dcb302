//! Following a launched payload until nothing of it runs.
//!
//! One loop hears everything that can happen meanwhile: the shim's messages, the payload's output, signals from the driver,
//! helpers to start beside it, its folders and its outputs growing too large, a KILL that the shim does not carry out, and the end of PID 1
//! itself. For a payload that another pilot launched, the loop is all there is.
//!
//! **Must not know:** what a slot is made of, why a signal is sent, what happens to the outputs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pilot_core::{ExitStatus, Fault, FaultClass, Signal, StopCause};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval};
use wire::slot::{ExitReport, FromShim, LaunchRefusal, ToShim, WaitStatus};

use super::exec::{Companions, Word};
use super::growth::Growth;
use super::launching::disk_limit;
use super::logs::LogStream;
use super::slots::Connection;
use super::usage::bytes_below;
use crate::payload::Payload;

/// Longest wait for anything that a healthy shim does within milliseconds.
pub(super) const SHIM_WAIT: Duration = Duration::from_secs(10);
/// How often what a payload wrote is measured. A payload can be above its limit for about this long.
const DISK_LOOK: Duration = Duration::from_secs(1);
/// How often outputs are looked at.
const GROWTH_LOOK: Duration = Duration::from_millis(100);
/// A shim carries out a KILL in milliseconds; then its container goes instead.
const KILL_WAIT: Duration = Duration::from_secs(3);

/// What a launch stands on: the container as the loop knows it.
pub(super) trait Ground {
    /// Called about every second.
    fn look(&mut self);
    /// Folders on disk that the payload can write to.
    fn written(&self) -> Vec<PathBuf>;
    /// Resolves when PID 1 is known to have ended.
    fn died(&self) -> impl Future<Output = ()> + Send;
}

/// How following came to its end.
#[derive(Debug)]
pub(super) enum Followed {
    /// The shim says that nothing of the payload runs any more.
    Exited {
        report: ExitReport,
        /// Why the pilot ended it, if it did.
        cause: Option<StopCause>,
        note: Option<String>,
    },
    /// It was not started.
    Refused(LaunchRefusal),
    /// The connection or PID 1 is gone.
    Lost { started: bool },
    /// The shim does not do what it should.
    Stuck(Fault),
}

/// Hears everything until the payload is gone.
pub(super) async fn follow(
    connection: &Connection,
    [out, err]: &mut [LogStream; 2],
    ground: &mut (impl Ground + Sync),
    (payload, growth): (&Payload, &Growth),
    words: &mut mpsc::Receiver<Word>,
    mut started: bool,
) -> Followed {
    let mut cause = None;
    let mut note = None;
    let mut companions = Companions::default();
    let mut give_up: Option<Instant> = (!started).then(|| Instant::now() + SHIM_WAIT);
    let (mut disk, mut outputs) = (every(DISK_LOOK), every(GROWTH_LOOK));
    loop {
        tokio::select! {
            // The shim's own words come first: they say more than its end.
            biased;
            message = connection.receive() => match message {
                Ok(Some(FromShim::Launched { pid, .. })) => {
                    tracing::debug!(payload = %payload.name, pid, "launched");
                    (started, give_up) = (true, None);
                }
                Ok(Some(FromShim::LaunchRefused { refusal, .. })) => return Followed::Refused(refusal),
                Ok(Some(FromShim::Exited(report))) => {
                    if note.is_none() && !status(&report).is_success() {
                        // It may be what the memory limit, or a full disk, has ended first.
                        note = growth.overgrown().await.map(|overgrown| overgrown.to_string());
                    }
                    return Followed::Exited { report, cause, note };
                }
                Ok(Some(FromShim::HolderLost)) => {
                    note = Some("it killed the stage holder of its slot".to_owned());
                }
                Ok(Some(FromShim::ExecEnded { id, status })) => companions.ended(id, status),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Followed::Lost { started },
            },
            Some(word) = words.recv() => {
                if pass_on(word, connection, &mut companions).await {
                    give_up = Some(Instant::now() + KILL_WAIT);
                }
            }
            signal = companions.next_signal() => {
                let _ = connection.send(&signal, &[]).await;
            }
            // Not matched for an error: a branch whose pattern does not match is not polled again before another one is done.
            pumped = out.pump() => if let Err(error) = pumped { return unreadable(&error) },
            pumped = err.pump() => if let Err(error) = pumped { return unreadable(&error) },
            _ = disk.tick(), if cause.is_none() => {
                ground.look();
                if bytes_in(ground.written()).await > disk_limit(payload) {
                    cause = Some(StopCause::DiskExceeded);
                    give_up = Some(Instant::now() + KILL_WAIT);
                    let _ = connection.send(&ToShim::Stop { grace_ms: 0 }, &[]).await;
                }
            }
            _ = outputs.tick(), if cause.is_none() && growth.watches() => {
                if let Some(overgrown) = growth.overgrown().await {
                    (cause, note) = (Some(StopCause::OutputExceeded), Some(overgrown.to_string()));
                    give_up = Some(Instant::now() + KILL_WAIT);
                    let _ = connection.send(&ToShim::Stop { grace_ms: 0 }, &[]).await;
                }
            }
            () = at(give_up) => {
                let what = if started { "carry out a KILL" } else { "launch" };
                let text = format!("the shim did not {what} in time");
                return Followed::Stuck(Fault::new(FaultClass::Slot, text));
            }
            () = ground.died() => return Followed::Lost { started },
        }
    }
}

/// How the payload's first process ended.
pub(super) fn status(report: &ExitReport) -> ExitStatus {
    match report.status {
        WaitStatus::Exited(code) => ExitStatus::Code(code),
        WaitStatus::Signaled { signal, core } => ExitStatus::Signal { signal, core },
    }
}

/// What to say of processes that outlived their payload.
pub(super) fn outlived(report: &ExitReport) -> Option<String> {
    let left = report.leftover_processes;
    (left > 0).then(|| format!("{left} processes outlived the payload and were killed"))
}

fn unreadable(error: &std::io::Error) -> Followed {
    Followed::Stuck(Fault::new(FaultClass::Slot, format!("read the payload's output: {error}")))
}

/// Passes a word on to the shim; says whether it was to kill.
async fn pass_on(word: Word, connection: &Connection, companions: &mut Companions) -> bool {
    let (grace_ms, kills) = match word {
        Word::Signal(Signal::Term { grace_ms }) => {
            (u32::try_from(grace_ms).unwrap_or(u32::MAX).min(wire::slot::GRACE_MS_MAX), false)
        }
        Word::Signal(Signal::Kill) => (0, true),
        Word::Exec(request) => {
            companions.start(connection, *request).await;
            return false;
        }
    };
    if let Err(error) = connection.send(&ToShim::Stop { grace_ms }, &[]).await {
        tracing::debug!(%error, "the shim can't be told to stop");
    }
    kills
}

/// Bytes that the payload has on disk.
async fn bytes_in(folders: Vec<PathBuf>) -> u64 {
    let look = move || folders.iter().map(|folder| bytes_below(Path::new(folder))).sum::<u64>();
    tokio::task::spawn_blocking(look).await.unwrap_or(0)
}

/// Ticks that begin after the first pause.
fn every(pause: Duration) -> Interval {
    let mut ticks = tokio::time::interval_at(Instant::now() + pause, pause);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
