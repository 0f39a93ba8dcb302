//! What the surroundings ask of a pilot: the third port's local adapter.
//!
//! On a bare machine the surroundings are the person at the terminal and whoever sends signals. The first SIGINT or SIGTERM
//! asks every payload to end and gives it its grace; the second one gives none.
//!
//! **Must not know:** slots, payloads, what a stop means for them.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::ports::{Cluster, ClusterStatus, StopRequest};

/// Signals of this process.
#[derive(Debug)]
pub struct LocalCluster {
    interrupt: Signal,
    terminate: Signal,
    asked: u32,
}

impl LocalCluster {
    /// Starts to listen; from here on SIGINT and SIGTERM no longer end the process by themselves.
    ///
    /// # Errors
    /// When the handlers can't be installed.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            asked: 0,
        })
    }
}

impl Cluster for LocalCluster {
    async fn status(&self) -> ClusterStatus {
        ClusterStatus { backend: "local" }
    }

    async fn watch_stop(&mut self) -> StopRequest {
        let interrupted = tokio::select! {
            Some(()) = self.interrupt.recv() => true,
            Some(()) = self.terminate.recv() => false,
            else => std::future::pending().await,
        };
        self.asked += 1;
        let signal = if interrupted { 2 } else { 15 };
        if self.asked == 1 { StopRequest::Grace { signal } } else { StopRequest::Kill { signal } }
    }
}
