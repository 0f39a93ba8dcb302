//! The asking end: what commands say to a pilot that serves.
//!
//! A pilot is no more believed than anyone else on a socket: what it sends is bounded too.
//!
//! **Must not know:** how pilots are found, what is shown.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use stage::StageUri;
use wire::pilot::{
    ExecEnd, FromPilot, ImageRow, PROTOCOL, PilotExec, PilotRow, ROWS_MAX, SlotRow, StageRow, ToPilot,
};

use super::link::{Link, LinkError};

/// A pilot answers within milliseconds, even when it is busy.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A pilot at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Itself, and its totals.
    pub pilot: PilotRow,
    /// Its slots.
    pub slots: Vec<SlotRow>,
    /// Images that it has prepared.
    pub images: Vec<ImageRow>,
    /// Stages that it holds.
    pub stages: Vec<StageRow>,
}

/// Why a program did not run beside a payload, or a stage was not opened.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The pilot said no, and why.
    #[error("{0}")]
    Refused(String),
    /// It could not be asked.
    #[error("ask the pilot")]
    Link(#[from] LinkError),
}

/// A connection to a pilot.
#[derive(Debug)]
pub struct Client {
    link: Link,
}

impl Client {
    /// Connects to the socket of a pilot, which must speak our protocol.
    ///
    /// # Errors
    /// When nobody listens there or the pilot does not answer. Needs a tokio runtime.
    pub async fn connect(socket: &Path) -> Result<Self, LinkError> {
        let link = Link::connect(socket).await?;
        link.send(&ToPilot::Hello { protocol: PROTOCOL }, &[]).await?;
        match link.receive_within(ANSWER_MAX).await? {
            (FromPilot::Hello { protocol }, _) if PROTOCOL.understands(protocol) => Ok(Self { link }),
            (FromPilot::Hello { protocol }, _) => Err(LinkError::Protocol { theirs: protocol }),
            _ => Err(LinkError::Unexpected),
        }
    }

    #[cfg(test)]
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// What the pilot does at this moment.
    ///
    /// # Errors
    /// When it can't tell yet, or does not answer as it should.
    pub async fn status(&self) -> Result<Status, LinkError> {
        self.link.send(&ToPilot::Status, &[]).await?;
        let mut status = Status::default();
        for _ in 0..=ROWS_MAX {
            match self.link.receive_within(ANSWER_MAX).await?.0 {
                FromPilot::Pilot(row) => status.pilot = row,
                FromPilot::Slot(row) => status.slots.push(row),
                FromPilot::Image(row) => status.images.push(row),
                FromPilot::Stage(row) => status.stages.push(row),
                FromPilot::End => return Ok(status),
                FromPilot::Refused { why } => return Err(LinkError::Refused(why)),
                FromPilot::Hello { .. }
                | FromPilot::Started
                | FromPilot::Ended(_)
                | FromPilot::StageOpened { .. } => return Err(LinkError::Unexpected),
            }
        }
        Err(LinkError::Unexpected)
    }

    /// Opens a stage for reading.
    ///
    /// # Errors
    /// When the pilot does not hold it, or does not answer as it should.
    pub async fn open_stage(&self, stage: &StageUri) -> Result<OwnedFd, ExecError> {
        self.link.send(&ToPilot::OpenStage { stage: stage.to_string() }, &[]).await?;
        match self.link.receive_within(ANSWER_MAX).await? {
            (FromPilot::StageOpened { .. }, mut fds) if fds.len() == 1 => {
                fds.pop().ok_or(ExecError::Link(LinkError::Unexpected))
            }
            (FromPilot::Refused { why }, _) => Err(ExecError::Refused(why)),
            _ => Err(LinkError::Unexpected.into()),
        }
    }

    /// Starts a program beside a payload, with these descriptors in the order of `exec.fds`.
    ///
    /// # Errors
    /// When the pilot refuses, or does not answer as it should.
    pub async fn exec<F: AsFd>(self, exec: PilotExec, fds: &[F]) -> Result<Session, ExecError> {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        self.link.send(&ToPilot::Exec(exec), &fds).await?;
        match self.link.receive_within(ANSWER_MAX).await?.0 {
            FromPilot::Started => Ok(Session { link: self.link }),
            FromPilot::Refused { why } => Err(ExecError::Refused(why)),
            _ => Err(LinkError::Unexpected.into()),
        }
    }
}

/// A program that runs beside a payload.
#[derive(Debug)]
pub struct Session {
    link: Link,
}

impl Session {
    /// Sends it a signal.
    ///
    /// # Errors
    /// When the pilot is gone.
    pub async fn signal(&self, signal: i32) -> Result<(), LinkError> {
        self.link.send(&ToPilot::Signal { signal }, &[]).await
    }

    /// Waits for its end. May be dropped and called again.
    ///
    /// # Errors
    /// When the pilot is gone, or can't pass on a signal that it was sent; the program then goes on by itself.
    pub async fn wait(&self) -> Result<ExecEnd, ExecError> {
        match self.link.receive().await?.0 {
            FromPilot::Ended(end) => Ok(end),
            FromPilot::Refused { why } => Err(ExecError::Refused(why)),
            _ => Err(LinkError::Unexpected.into()),
        }
    }
}
