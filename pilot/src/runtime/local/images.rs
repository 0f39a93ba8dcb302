//! Images of this pilot: checked and stored before a slot is touched, attached once for all slots.
//!
//! Payloads that name the same image wait for one ingest. A failure is not remembered: the next payload tries again.
//!
//! **Must not know:** slots, containers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use image_store::{Attach, Hold, ImageConfig, ImageId, IngestError, LayerError, Reference, Root, Store};
use pilot_core::{Fault, FaultClass};
use tokio::sync::OnceCell;

use super::launch::invocation;
use crate::fault::chain;
use crate::payload::Payload;
use crate::ports::Prepared;

/// The images.
#[derive(Debug)]
pub(crate) struct Images {
    store: Arc<Store>,
    attach: Attach,
    local: PathBuf,
    readable_by_all: bool,
    /// By reference. A cell is filled once its image is attached.
    known: Mutex<BTreeMap<String, Arc<OnceCell<Arc<Stored>>>>>,
}

/// An image that can be bound.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) id: ImageId,
    pub(crate) config: ImageConfig,
    pub(crate) root: Root,
    pub(crate) bytes_brought: u64,
    /// Keeps other processes from removing it.
    _hold: Hold,
}

impl Images {
    pub(super) fn new(store: Arc<Store>, attach: Attach, local: PathBuf, readable_by_all: bool) -> Self {
        Self { store, attach, local, readable_by_all, known: Mutex::default() }
    }

    /// Checks that the payload's image is there, whole, for this platform and with the payload's program, and stores and
    /// attaches it.
    pub(super) async fn prepare(&self, payload: &Payload) -> Result<Prepared, Fault> {
        let cell = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(known.entry(payload.image.clone()).or_default())
        };
        let stored = cell.get_or_try_init(|| self.bring(&payload.image)).await?;
        let (store, stored) = (Arc::clone(&self.store), Arc::clone(stored));
        let (argv, env, cwd) = invocation(payload, &stored);
        tokio::task::spawn_blocking(move || {
            let Some(program) = argv.first() else {
                let text = "its image has neither ENTRYPOINT nor CMD; give the payload a command";
                return Err(Fault::new(FaultClass::Payload, text));
            };
            let path = env.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default();
            store.has_program(&stored.id, program, path, Path::new(&cwd)).map_err(|error| {
                Fault::new(
                    FaultClass::Payload,
                    format!("{}; name a program of its image in command", chain(&error)),
                )
            })?;
            Ok(Prepared { image: stored.id.to_string(), bytes_brought: stored.bytes_brought })
        })
        .await
        .unwrap_or_else(|_| Err(Fault::new(FaultClass::Pilot, "checking an image panicked")))
    }

    async fn bring(&self, image: &str) -> Result<Arc<Stored>, Fault> {
        let reference: Reference =
            image.parse().map_err(|error| Fault::new(FaultClass::Payload, chain(&error)))?;
        let (store, attach, local, all) =
            (Arc::clone(&self.store), self.attach, self.local.clone(), self.readable_by_all);
        let brought = tokio::task::spawn_blocking(move || {
            let preflight = store.preflight(&reference).map_err(|error| payload_fault(&error))?;
            store.ingest(&reference, &|_| {}).map_err(|error| ingest_fault(&error))?;
            let hold = store.hold(&preflight.image).map_err(|error| store_fault(&error))?;
            let root = store
                .materialise(&preflight.image, attach, &local, all)
                .map_err(|error| store_fault(&error))?;
            Ok(Arc::new(Stored {
                id: preflight.image,
                config: preflight.config,
                root,
                bytes_brought: preflight.bytes_missing,
                _hold: hold,
            }))
        });
        brought.await.unwrap_or_else(|_| Err(Fault::new(FaultClass::Pilot, "reading an image panicked")))
    }

    /// An image that was prepared.
    pub(super) fn stored(&self, image: &str) -> Result<Arc<Stored>, Fault> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stored = known.get(image).and_then(|cell| cell.get().cloned());
        stored.ok_or_else(|| Fault::new(FaultClass::Pilot, format!("image {image} was not prepared")))
    }

    /// A copy of an image's tree below `folder`, for one payload to write in.
    pub(super) fn private_copy(&self, image: &ImageId, folder: &Path) -> Result<PathBuf, Fault> {
        match self.store.materialise(image, Attach::Copy, folder, self.readable_by_all) {
            Ok(Root::Copy { tree }) => Ok(tree),
            Ok(_) => Err(Fault::new(FaultClass::Pilot, format!("image {image} was not copied"))),
            Err(error) => Err(store_fault(&error)),
        }
    }

    /// Who the payload is inside: its own choice, else the image's USER.
    pub(super) fn user(&self, image: &Stored, payload: &Payload) -> Result<(u32, u32), Fault> {
        match payload.user {
            Some(ids) => Ok(ids),
            None => self.store.resolve_user(&image.id, &image.config.user).map_err(|error| {
                Fault::new(FaultClass::Payload, format!("{}; set user to a number", chain(&error)))
            }),
        }
    }
}

fn payload_fault(error: &dyn std::error::Error) -> Fault {
    Fault::new(FaultClass::Payload, chain(error))
}

fn store_fault(error: &dyn std::error::Error) -> Fault {
    Fault::new(FaultClass::Pilot, chain(error))
}

/// A bad image is the payload's; a disk that is full is not.
fn ingest_fault(error: &IngestError) -> Fault {
    let class = match error {
        IngestError::Layer(LayerError::Store { .. })
        | IngestError::Store { .. }
        | IngestError::Damaged(_) => FaultClass::Pilot,
        _ => FaultClass::Payload,
    };
    Fault::new(class, chain(error))
}
