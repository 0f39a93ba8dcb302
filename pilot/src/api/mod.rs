//! The socket of a pilot that serves: what `pilot top` reads and where `pilot exec` asks.
//!
//! ```text
//!   commands ── client ──  api.sock (SOCK_SEQPACKET)  ── serve ──> LiveBoard   status
//!                                                          └─────> Control     a program beside a payload
//! ```
//! # Guarantees
//! - Only processes of the pilot's own user and of root are answered; the kernel says who a peer is.
//! - Each connection is a task of its own with bounds on everything it may send and on how long it may stall; there are at
//!   most `VISITS_MAX`. Nothing here wakes up while nobody is connected.
//!
//! **Must not know:** the driver, any runtime, what commands print.

pub mod client;

mod link;
mod rows;
mod visit;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pilot_core::SlotId;
use stage::StageUri;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use wire::pilot::StageRow;
use wire::slot::{FdRole, WaitStatus};

use self::link::Door;
pub use self::link::LinkError;
use crate::board::LiveBoard;
use crate::payload::Payload;

/// Connections at once; more wait in the kernel's queue.
const VISITS_MAX: usize = 32;
/// After a failed accept, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What a pilot can do for those who ask on its socket.
pub trait Control: Send + Sync + 'static {
    /// Starts a program beside the payload that runs in a slot.
    ///
    /// # Errors
    /// Why not, in one line for people: the payload does not run there any more, too many programs run beside it.
    fn exec(&self, slot: SlotId, payload: &Payload, program: Beside) -> Result<Companion, String>;

    /// Bytes of memory that a slot uses just now, if that can be told at once.
    fn memory_bytes(&self, _slot: SlotId) -> Option<u64> {
        None
    }

    /// The stages that are held.
    fn stages(&self) -> Vec<StageRow> {
        Vec::new()
    }

    /// A stage to read, and its size.
    ///
    /// # Errors
    /// Why not, in one line for people.
    fn open_stage(&self, stage: &StageUri) -> impl Future<Output = Result<(OwnedFd, u64), String>> + Send {
        std::future::ready(Err(format!("{stage} is not held here")))
    }
}

/// A program to run beside a payload.
#[derive(Debug)]
pub struct Beside {
    /// Program and arguments.
    pub argv: Vec<Vec<u8>>,
    /// Added to the payload's environment, in place of variables of the same name; `NAME=value`.
    pub env: Vec<Vec<u8>>,
    /// Absolute working directory in the slot; the payload's when absent.
    pub cwd: Option<Vec<u8>>,
    /// Standard descriptors.
    pub fds: Vec<(FdRole, OwnedFd)>,
}

/// A program that was started beside a payload.
#[derive(Debug)]
pub struct Companion {
    /// How it ended; `Err` is the errno of what kept it from starting. Dropped unsaid when the payload ended first.
    pub ended: oneshot::Receiver<Result<WaitStatus, i32>>,
    /// Signals for it, where it can be sent any.
    pub signals: Option<mpsc::Sender<i32>>,
}

/// Answers until it is closed or dropped; then the socket is gone.
#[derive(Debug)]
pub struct Serving {
    stop: oneshot::Sender<()>,
    tasks: JoinSet<()>,
}

impl Serving {
    /// Ends every connection and waits until nothing uses the control any more. A drop only tells them to end.
    pub async fn close(mut self) {
        // It has gone already when nobody hears this.
        let _ = self.stop.send(());
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Answers on a socket. One that a dead pilot left at `path` is replaced: whoever calls this holds the pilot's lock.
///
/// # Errors
/// When the socket can't be made. Needs a tokio runtime.
pub fn serve<C: Control>(path: &Path, board: LiveBoard, control: Arc<C>) -> Result<Serving, LinkError> {
    let door = Door::bind(path)?;
    let (stop, stopped) = oneshot::channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(keep_door(door, board, control, stopped));
    Ok(Serving { stop, tasks })
}

async fn keep_door<C: Control>(
    door: Door,
    board: LiveBoard,
    control: Arc<C>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut visits = JoinSet::new();
    loop {
        tokio::select! {
            // Said, or dropped.
            _ = &mut stopped => return visits.shutdown().await,
            Some(ended) = visits.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a task of the pilot's socket failed");
                }
            }
            accepted = door.accept(), if visits.len() < VISITS_MAX => match accepted {
                Ok(link) => {
                    visits.spawn(visit::visit(link, board.clone(), Arc::clone(&control)));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection to the pilot's socket can't be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
