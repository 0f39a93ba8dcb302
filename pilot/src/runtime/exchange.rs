//! The exchange of stages with other pilots, as a pilot that serves looks after it. Asking it may block, and does so on a thread
//! that may.
//!
//! **Must not know:** any runtime, queues.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pilot_core::{Fault, FaultClass};
use stage::StageUri;

use super::stages::{self, Stages};

/// Whether pilots share stages on a volume.
pub(crate) fn has_exchange(volume: &Path) -> bool {
    stages::has_exchange(volume)
}

/// A runtime's stages and what it shares of them.
#[derive(Clone, Debug)]
pub struct StageExchange(Arc<Stages>);

impl StageExchange {
    pub(super) fn new(stages: &Arc<Stages>) -> Self {
        Self(Arc::clone(stages))
    }

    /// Joins the exchange on a volume, for the stages of one spool; gives the name that all pilots have in common whose stages
    /// can be had here.
    ///
    /// # Errors
    /// When nobody serves it, or this pilot's folders lie elsewhere.
    pub async fn join(&self, volume: PathBuf, spool: String) -> Result<String, Fault> {
        self.on_thread(move |stages| stages.join(&volume, &spool)).await?
    }

    /// All that is on it of this spool.
    pub async fn stages(&self) -> Vec<StageUri> {
        self.on_thread(Stages::shared).await.unwrap_or_default()
    }

    /// Takes stages from it that nobody will want any more, whoever offered them: that pilot may be gone.
    pub async fn withdraw(&self, uris: Vec<StageUri>) {
        let _ = self.on_thread(move |stages| stages.withdraw_shared(&uris)).await;
    }

    /// Keeps the connection; whether a stage that somebody reads may be lost.
    pub async fn tend(&self) -> bool {
        self.on_thread(Stages::tend_sharing).await.unwrap_or(false)
    }

    async fn on_thread<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Stages) -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let stages = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || ask(&stages)).await;
        done.map_err(|error| Fault::new(FaultClass::Pilot, error.to_string()))
    }
}
