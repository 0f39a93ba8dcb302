//! What a pilot has to do with stages that move from memory to disk: it hears of them, gives their files the places that it
//! wants, and waits for the room that they make.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::{BrokerServer, Stopped};
use crate::{Reservation, ReserveError, StageUri};

type Told = dyn Fn(&StageUri, u64) + Send;

/// Told on the broker's own thread of each stage that was moved, and of its bytes: it must not wait for anything.
pub struct Watch(Box<Told>);

impl Watch {
    /// Calls this.
    pub fn new(told: impl Fn(&StageUri, u64) + Send + 'static) -> Self {
        Self(Box::new(told))
    }

    pub(super) fn tell(&self, uri: &StageUri, bytes: u64) {
        (self.0)(uri, bytes);
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

/// Who waits for room.
pub(super) struct Asker(Box<dyn FnOnce(Result<(), ReserveError>) + Send>);

impl Asker {
    pub(super) fn tell(self, result: Result<(), ReserveError>) {
        (self.0)(result);
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asker")
    }
}

impl BrokerServer {
    /// Makes room for an output that the pilot lends by path, and waits for it where spilling makes some; see
    /// [`crate::broker::Broker::reserve_or_wait`]. `told` is called once, on the broker's thread, unless that ends before: it
    /// must not wait for anything.
    ///
    /// # Errors
    /// When the broker has stopped.
    pub fn reserve(
        &self,
        asked: Reservation,
        told: impl FnOnce(Result<(), ReserveError>) + Send + 'static,
    ) -> Result<(), Stopped> {
        self.on_thread(move |engine| match engine.broker.reserve_or_wait(asked) {
            Ok(Some(ticket)) => drop(engine.askers.insert(ticket, Asker(Box::new(told)))),
            Ok(None) => told(Ok(())),
            Err(error) => told(Err(error)),
        })
    }

    /// Moves the file of a stage that was spilled to `path` below `dir`, on the same file system; from then on it is the
    /// caller's to remove, as one that was [inserted](BrokerServer::insert). `false` when it is no such stage, or none any more.
    ///
    /// # Errors
    /// When the broker has stopped; inside, when the file can't be moved: it stays where it was.
    pub fn give_place(
        &self,
        uri: &StageUri,
        dir: &Arc<OwnedFd>,
        path: PathBuf,
    ) -> Result<io::Result<bool>, Stopped> {
        let (uri, dir) = (uri.clone(), Arc::clone(dir));
        self.on_thread(move |engine| match engine.broker.lookup(&uri) {
            Some(found) => engine.objects.give_place(found.object, dir, path),
            None => Ok(false),
        })
    }
}
