//! One connection from its Hello to its end.
//!
//! **Must not know:** how a status comes about, how a program is started.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use stage::UriError;
use wire::pilot::{ExecEnd, FromPilot, PROTOCOL, PilotExec, ToPilot};

use super::link::{Link, LinkError};
use super::{Beside, Companion, Control, rows};
use crate::board::LiveBoard;

/// From connecting to Hello.
const HELLO_MAX: Duration = Duration::from_secs(2);
/// Between two questions; a live view asks every second.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Slots that look empty now may turn out to have something that runs.
const LOOKS_BACK: &str = "it looks for what ran before it was started again; ask once more in a moment";
/// What a program is sent whose caller has gone (SIGHUP).
const HANGUP: i32 = 1;

pub(super) async fn visit<C: Control>(link: Link, board: LiveBoard, control: Arc<C>) {
    match link.peer_uid() {
        // Nothing is read from anyone else, and nothing told.
        Ok(uid) if uid != 0 && uid != rustix::process::geteuid().as_raw() => {
            tracing::warn!(uid, "another user connected to the pilot's socket");
        }
        Ok(_) => match converse(&link, &board, &*control).await {
            Ok(()) | Err(LinkError::Gone) => {}
            Err(error) => {
                tracing::debug!(
                    error = crate::fault::chain(&error),
                    "a connection to the pilot's socket ends"
                )
            }
        },
        Err(error) => tracing::warn!(%error, "a peer of the pilot's socket can't be identified"),
    }
}

async fn converse<C: Control>(link: &Link, board: &LiveBoard, control: &C) -> Result<(), LinkError> {
    let (ToPilot::Hello { protocol }, _) = link.receive_within(HELLO_MAX).await? else {
        return Err(LinkError::Unexpected);
    };
    link.send(&FromPilot::Hello { protocol: PROTOCOL }, &[]).await?;
    if !PROTOCOL.understands(protocol) {
        return Err(LinkError::Protocol { theirs: protocol });
    }
    loop {
        // Descriptors that come with anything but Exec are closed here.
        match link.receive_within(IDLE_MAX).await? {
            (ToPilot::Status | ToPilot::Exec(_), _) if board.read(|_, board| board.looks_back()) => {
                link.send(&FromPilot::Refused { why: LOOKS_BACK.to_owned() }, &[]).await?;
            }
            (ToPilot::Status, _) => {
                for row in rows::status(board, control) {
                    link.send(&row, &[]).await?;
                }
                link.send(&FromPilot::End, &[]).await?;
            }
            (ToPilot::OpenStage { stage }, _) => open_stage(link, control, &stage).await?,
            (ToPilot::Exec(exec), fds) => return run_beside(link, board, control, exec, fds).await,
            (ToPilot::Hello { .. } | ToPilot::Signal { .. }, _) => return Err(LinkError::Unexpected),
        }
    }
}

async fn open_stage<C: Control>(link: &Link, control: &C, stage: &str) -> Result<(), LinkError> {
    let opened = match stage.parse() {
        Ok(uri) => control.open_stage(&uri).await,
        Err(error) => Err(UriError::to_string(&error)),
    };
    match opened {
        Ok((fd, bytes)) => link.send(&FromPilot::StageOpened { bytes }, &[fd.as_fd()]).await,
        Err(why) => link.send(&FromPilot::Refused { why: rows::short(&why) }, &[]).await,
    }
}

async fn run_beside<C: Control>(
    link: &Link,
    board: &LiveBoard,
    control: &C,
    exec: PilotExec,
    fds: Vec<OwnedFd>,
) -> Result<(), LinkError> {
    match start(board, control, exec, fds) {
        Ok(companion) => {
            link.send(&FromPilot::Started, &[]).await?;
            follow(link, companion).await
        }
        Err(why) => link.send(&FromPilot::Refused { why: rows::short(&why) }, &[]).await,
    }
}

fn start<C: Control>(
    board: &LiveBoard,
    control: &C,
    exec: PilotExec,
    fds: Vec<OwnedFd>,
) -> Result<Companion, String> {
    let PilotExec { workflow, payload, argv, env, cwd, fds: roles } = exec;
    if roles.len() != fds.len() {
        return Err(format!("{} descriptors came for {} roles", fds.len(), roles.len()));
    }
    let running = board.read(|_, board| {
        let slot = board.slot_running(&workflow, &payload)?;
        let (payload, _) = board.seats().get(slot.0 as usize)?.payload.as_ref()?;
        Some((slot, Arc::clone(payload)))
    });
    let Some((slot, payload)) = running else {
        return Err(format!("{payload} of {workflow} does not run here just now"));
    };
    let fds = roles.into_iter().zip(fds).collect();
    tracing::info!(%slot, payload = %payload.name, "starting a program beside a payload");
    control.exec(slot, &payload, Beside { argv, env, cwd, fds })
}

/// Until the program ends. When its caller goes first, the program is told so and left to itself; it ends with the payload
/// at the latest.
async fn follow(link: &Link, companion: Companion) -> Result<(), LinkError> {
    let Companion { mut ended, signals } = companion;
    // Full or closed: it has been told often enough, or has ended.
    let signal = |number| signals.as_ref().map(|signals| signals.try_send(number).is_ok());
    loop {
        tokio::select! {
            biased;
            ended = &mut ended => {
                let end = match ended {
                    Ok(Ok(status)) => ExecEnd::Ran(status),
                    Ok(Err(errno)) => ExecEnd::NotStarted(errno),
                    Err(_dropped) => ExecEnd::PayloadEnded,
                };
                return link.send(&FromPilot::Ended(end), &[]).await;
            }
            message = link.receive() => match message {
                Ok((ToPilot::Signal { signal: number }, _)) if signal(number).is_some() => {}
                Ok((ToPilot::Signal { .. }, _)) => {
                    let why = "programs beside a payload can't be sent signals here; it ends with the payload";
                    return link.send(&FromPilot::Refused { why: why.to_owned() }, &[]).await;
                }
                other => {
                    let _told = signal(HANGUP);
                    return Err(other.err().unwrap_or(LinkError::Unexpected));
                }
            }
        }
    }
}
