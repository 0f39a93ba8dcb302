//! Surroundings whose stop requests a test sends.

use pilot::ports::{Cluster, ClusterStatus, StopRequest};
use tokio::sync::mpsc;

/// Stop requests that may wait: the gentle one and the hard one, and a few for impatient tests.
const REQUESTS_MAX: usize = 8;

/// Asks for nothing until its [`StopButton`] is pressed.
#[derive(Debug)]
pub struct FakeCluster {
    requests: mpsc::Receiver<StopRequest>,
}

/// The test's end.
#[derive(Clone, Debug)]
pub struct StopButton {
    requests: mpsc::Sender<StopRequest>,
}

impl FakeCluster {
    /// Surroundings and their button.
    #[must_use]
    pub fn new() -> (Self, StopButton) {
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        (Self { requests }, StopButton { requests: sender })
    }
}

impl StopButton {
    /// Sends a stop request.
    ///
    /// # Panics
    /// When the pilot is gone.
    pub async fn press(&self, request: StopRequest) {
        self.requests.send(request).await.expect("a pilot that listens");
    }
}

impl Cluster for FakeCluster {
    async fn status(&self) -> ClusterStatus {
        ClusterStatus { backend: "fake" }
    }

    async fn watch_stop(&mut self) -> StopRequest {
        match self.requests.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }
}
