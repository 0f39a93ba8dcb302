//! Two threads for what may take long: one removes what pods left, one measures. Neither decides anything.
//!
//! They take orders from bounded queues and tell the driver when they are done.
//!
//! **Must not know:** records, requests.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use tokio::sync::{mpsc::WeakSender, oneshot};

use crate::driver::Ask;
use crate::remove::{Content, measure, remove};
use crate::volume::{Birth, VolumeId};

/// A thread here recurses nowhere.
pub(crate) const STACK_BYTES: usize = 256 << 10;
/// Volumes measured in one go; more wait for the next round.
const MEASURES_MAX: usize = 1024;

/// A folder to be removed.
#[derive(Debug)]
pub struct Removal {
    /// The volume that it was; none for a tenant's folder.
    pub id: Option<VolumeId>,
    /// The folder that it is in.
    pub parent: OwnedFd,
    /// Its name there.
    pub name: String,
    /// Which folder it must be.
    pub birth: Option<Birth>,
}

/// A folder to be measured.
#[derive(Debug)]
pub struct Measure {
    /// The volume.
    pub id: VolumeId,
    /// What it shows.
    pub folder: OwnedFd,
    /// Who asked, if anybody waits.
    pub answer: Option<oneshot::Sender<io::Result<Content>>>,
}

/// The queues of both threads, which end when this does.
#[derive(Debug)]
pub struct Work {
    removals: SyncSender<Removal>,
    measures: SyncSender<Measure>,
}

impl Work {
    /// Starts both threads. `removals_max` is the number of volumes that there can be.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn start(removals_max: usize, driver: &WeakSender<Ask>) -> io::Result<Self> {
        let (removals, orders) = sync_channel(removals_max.saturating_add(1));
        let tell = driver.clone();
        named("csi-remove").spawn(move || remove_all(&orders, &tell))?;
        let (measures, orders) = sync_channel(MEASURES_MAX);
        let tell = driver.clone();
        named("csi-measure").spawn(move || measure_all(&orders, &tell))?;
        Ok(Self { removals, measures })
    }

    /// Orders a removal.
    ///
    /// # Errors
    /// The order back, when there are too many.
    pub fn remove(&self, removal: Removal) -> Result<(), Removal> {
        self.removals.try_send(removal).map_err(|error| match error {
            TrySendError::Full(removal) | TrySendError::Disconnected(removal) => removal,
        })
    }

    /// Orders a measurement; false when there are too many.
    #[must_use]
    pub fn measure(&self, measure: Measure) -> bool {
        self.measures.try_send(measure).is_ok()
    }
}

fn named(name: &str) -> thread::Builder {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES)
}

fn remove_all(orders: &Receiver<Removal>, driver: &WeakSender<Ask>) {
    for Removal { id, parent, name, birth } in orders {
        let result = remove(parent.as_fd(), &name, birth);
        let Some(driver) = driver.upgrade() else { return };
        // The driver is gone if this fails, and nobody waits.
        let _ = driver.blocking_send(Ask::Removed { id, result });
    }
}

fn measure_all(orders: &Receiver<Measure>, driver: &WeakSender<Ask>) {
    for Measure { id, folder, answer } in orders {
        let content = measure(&folder);
        let Some(driver) = driver.upgrade() else { return };
        if let Ok(content) = &content {
            let _ = driver.blocking_send(Ask::Measured { id, bytes: content.bytes });
        }
        if let Some(answer) = answer {
            // Who asked may have given up.
            let _ = answer.send(content);
        }
    }
}
