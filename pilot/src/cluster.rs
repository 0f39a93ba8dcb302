//! What the surroundings ask of a pilot: the third port's adapters.
//!
//! On a bare machine the surroundings are the person at the terminal and whoever sends signals. The first SIGINT or SIGTERM
//! asks every payload to end and gives it its grace; the second one gives none.
//!
//! In a pod a SIGTERM means that the pod goes: its node is drained, it was evicted or deleted. The kubelet counts the pod's
//! grace period from there and kills everything at its end, so the second word comes from a clock ([`PodCluster`]).
//!
//! **Must not know:** slots, payloads, what a stop means for them.

use std::time::Duration;

use pilot_core::StopCause;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

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

    async fn next_signal(&mut self) -> i32 {
        tokio::select! {
            Some(()) = self.interrupt.recv() => 2,
            Some(()) = self.terminate.recv() => 15,
            else => std::future::pending().await,
        }
    }
}

impl Cluster for LocalCluster {
    async fn status(&self) -> ClusterStatus {
        ClusterStatus { backend: "local" }
    }

    async fn watch_stop(&mut self) -> StopRequest {
        let (signal, cause) = (self.next_signal().await, StopCause::PilotStopping);
        self.asked += 1;
        if self.asked == 1 {
            StopRequest::Grace { signal, cause }
        } else {
            StopRequest::Kill { signal, cause }
        }
    }
}

/// The pod that this process is in.
#[derive(Debug)]
pub struct PodCluster {
    signals: LocalCluster,
    grace: Duration,
    /// When what still runs must be ended, so that there is time left to report it.
    kill_at: Option<Instant>,
}

/// What is kept of a pod's grace period for outcomes, outputs and the way out.
const LAST_WORDS: Duration = Duration::from_secs(5);

impl PodCluster {
    /// The same signals, in a pod with this grace period.
    #[must_use]
    pub fn new(signals: LocalCluster, grace: Duration) -> Self {
        Self { signals, grace, kill_at: None }
    }
}

impl Cluster for PodCluster {
    async fn status(&self) -> ClusterStatus {
        ClusterStatus { backend: "kubernetes" }
    }

    async fn watch_stop(&mut self) -> StopRequest {
        let cause = StopCause::Evicted;
        match self.kill_at {
            None => {
                let signal = self.signals.next_signal().await;
                // Of a short grace period half is kept.
                self.kill_at = Some(Instant::now() + self.grace - LAST_WORDS.min(self.grace / 2));
                StopRequest::Grace { signal, cause }
            }
            Some(at) => {
                let signal = tokio::select! {
                    signal = self.signals.next_signal() => signal,
                    () = tokio::time::sleep_until(at) => 15,
                };
                // Once is enough.
                self.kill_at = Some(Instant::now() + self.grace + LAST_WORDS);
                StopRequest::Kill { signal, cause }
            }
        }
    }
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
