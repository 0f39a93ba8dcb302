//! The downloads of one pull: several blobs at once, in the order in which they were asked for. One thread
//! drives them all; the threads that take layers apart read behind them.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use super::part::Part;
use super::session::Session;

/// See the module's doc.
#[derive(Debug)]
pub(crate) struct Downloads<'a> {
    session: &'a Session,
    /// None once stopped: what would be started then ends at once.
    tasks: Mutex<Option<JoinSet<()>>>,
    permits: Arc<Semaphore>,
    stop: Notify,
}

/// Ends a part when its download ends in whatever way, also when it is dropped.
struct Ending(Arc<Part>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl<'a> Downloads<'a> {
    pub(crate) fn new(session: &'a Session) -> Self {
        let permits = Arc::new(Semaphore::new(session.registry.downloads_at_once().max(1)));
        Self { session, tasks: Mutex::new(Some(JoinSet::new())), permits, stop: Notify::new() }
    }

    /// Places that can be tried.
    pub(crate) fn places(&self) -> usize {
        self.session.registry.endpoints()
    }

    /// Fetches what is missing of a part, beginning with the place `first`.
    pub(crate) fn start(&self, part: &Arc<Part>, first: usize) {
        let ending = Ending(Arc::clone(part));
        let Some(runtime) = self.session.runtime() else { return };
        let (registry, permits) = (Arc::clone(&self.session.registry), Arc::clone(&self.permits));
        let download = async move {
            let Ok(_permit) = permits.acquire_owned().await else { return };
            let result = registry.download(&ending.0, first).await;
            ending.0.finish(result);
        };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tasks) = tasks.as_mut() {
            tasks.spawn_on(download, runtime.handle());
        }
    }

    /// Runs the downloads until [`Downloads::stop`].
    pub(crate) fn drive(&self) {
        let Some(runtime) = self.session.runtime() else { return };
        runtime.block_on(async {
            self.stop.notified().await;
            let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(mut tasks) = tasks {
                tasks.shutdown().await;
            }
        });
    }

    /// Ends what is still under way; who reads behind it is told.
    pub(crate) fn stop(&self) {
        self.stop.notify_one();
    }
}
