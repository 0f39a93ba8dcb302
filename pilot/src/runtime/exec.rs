//! Helpers beside a running payload (`pilot exec`): who asked for which, and what is said to the loop that follows it.
//!
//! **Must not know:** who asks, containers.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::Poll;

use pilot_core::Signal;
use tokio::sync::{mpsc, oneshot};
use wire::slot::{Exec, FdRole, ToShim, WaitStatus};

use super::slots::Connection;

/// What may be said to a launch that is under way.
#[derive(Debug)]
pub enum Word {
    /// End the payload.
    Signal(Signal),
    /// Start a helper beside it.
    Exec(Box<ExecRequest>),
}

/// A helper to start in a slot.
#[derive(Debug)]
pub struct ExecRequest {
    /// Program and arguments.
    pub argv: Vec<Vec<u8>>,
    /// The whole environment, `NAME=value`.
    pub env: Vec<Vec<u8>>,
    /// Absolute working directory in the slot.
    pub cwd: Vec<u8>,
    /// Its descriptors.
    pub fds: Vec<(FdRole, OwnedFd)>,
    /// How it ended; `Err` is the errno of what kept it from starting. Dropped when the payload ends first.
    pub ended: oneshot::Sender<Result<WaitStatus, i32>>,
    /// Signals for it.
    pub signals: mpsc::Receiver<i32>,
}

/// Most helpers beside one payload: they are for people who look.
pub const HELPERS_MAX: usize = 16;
/// What one more is answered (EAGAIN).
const TOO_MANY: i32 = 11;
/// What one is answered that the shim can't be told of (EIO).
const NOT_SENT: i32 = 5;

/// The helpers of one payload.
#[derive(Debug, Default)]
pub(crate) struct Companions {
    last: u32,
    waiting: BTreeMap<u32, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    ended: oneshot::Sender<Result<WaitStatus, i32>>,
    signals: mpsc::Receiver<i32>,
}

impl Companions {
    /// Passes a request on.
    pub(crate) async fn start(&mut self, connection: &Connection, request: ExecRequest) {
        let ExecRequest { argv, env, cwd, fds, ended, signals } = request;
        if self.waiting.len() >= HELPERS_MAX {
            let _ = ended.send(Err(TOO_MANY));
            return;
        }
        self.last = self.last.wrapping_add(1);
        let roles = fds.iter().map(|(role, _)| role.clone()).collect();
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(|(_, fd)| fd.as_fd()).collect();
        let message = ToShim::Exec(Exec { id: self.last, argv, env, cwd, fds: roles });
        match connection.send(&message, &borrowed).await {
            Ok(()) => drop(self.waiting.insert(self.last, Waiting { ended, signals })),
            Err(error) => {
                tracing::debug!(%error, "a helper can't be asked for");
                let _ = ended.send(Err(NOT_SENT));
            }
        }
    }

    /// The next signal for one of them, with its number; never comes while nobody sends one.
    pub(crate) async fn next_signal(&mut self) -> ToShim {
        std::future::poll_fn(|context| {
            for (id, waiting) in &mut self.waiting {
                // A closed channel is for ever ready with nothing: whoever asked has gone.
                if let Poll::Ready(Some(signal)) = waiting.signals.poll_recv(context) {
                    return Poll::Ready(ToShim::SignalExec { id: *id, signal });
                }
            }
            Poll::Pending
        })
        .await
    }

    /// One has ended.
    pub(crate) fn ended(&mut self, id: u32, status: Result<WaitStatus, i32>) {
        if let Some(waiting) = self.waiting.remove(&id) {
            // Whoever asked may have gone.
            let _ = waiting.ended.send(status);
        }
    }
}
