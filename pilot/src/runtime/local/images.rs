//! Images of this pilot: checked and stored before a slot is touched, attached once for all slots.
//!
//! What was looked at is known for a while: an image by digest or in a folder for as long as the right to it lasts, a tag of
//! a registry for a minute ([`TAG_LASTS`]).
//!
//! **Must not know:** slots, containers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use image_store::{
    Attach, Hold, ImageConfig, ImageId, IngestError, Logins, MaterialiseError, MountPoint, Place, Preflight,
    PreflightError, Progress, Reference, RegistryAccess, Root, SourceError, Store, Transport,
};
use pilot_core::{Fault, FaultClass};

use super::mounted::may_bring;
use crate::fault::chain;
use crate::payload::Payload;
use crate::ports::Prepared;
use crate::runtime::known::Known;
use crate::runtime::launching::{invocation, nothing_to_run};

/// How long a tag means what it meant: as long as one waits for a nightly build to be seen, and once a minute is no load
/// on a registry.
pub(in crate::runtime) const TAG_LASTS: Duration = Duration::from_secs(60);
/// Programs that are remembered as being in an image; more are looked up again.
const PROGRAMS_MAX: usize = 1024;
/// Sets of mounts that are remembered of an image; more are looked up again.
const FITTED_MAX: usize = 64;
/// Tries when an image that is there is looked up again: what is stored serves too.
const TRIES_AGAIN: u32 = 2;

/// Told how far the ingest of an image has come: its reference, and bytes of layers.
pub(crate) type OnProgress = Arc<dyn Fn(&str, Progress) + Send + Sync>;

/// The images.
pub(crate) struct Images {
    store: Arc<Store>,
    attach: Attach,
    local: PathBuf,
    readable_by_all: bool,
    access: RegistryAccess,
    on_progress: Option<OnProgress>,
    known: Known<Stored>,
}

/// An image that can be bound.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) id: ImageId,
    pub(crate) config: ImageConfig,
    pub(crate) root: Root,
    pub(crate) bytes_brought: u64,
    /// Programs that were found in it: program, PATH and working directory.
    programs: Mutex<BTreeSet<String>>,
    /// Its root with further places to mount over.
    fitted: Mutex<BTreeMap<Vec<Place>, Arc<Fitted>>>,
    /// Keeps other processes from removing it.
    _hold: Hold,
}

/// An image's root that has what a payload wants to mount over.
#[derive(Debug)]
pub(crate) struct Fitted {
    pub(crate) root: Root,
    /// Where each place is.
    pub(crate) points: Vec<MountPoint>,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images")
            .field("store", &self.store.path())
            .field("attach", &self.attach)
            .finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Images {
    pub(super) fn new(
        store: Arc<Store>,
        attach: Attach,
        local: PathBuf,
        readable_by_all: bool,
        access: RegistryAccess,
    ) -> Self {
        Self { store, attach, local, readable_by_all, access, on_progress: None, known: Known::default() }
    }

    /// The same, with somebody who is told of progress, from threads that must not be kept.
    #[expect(dead_code, reason = "offered to the live view, which does not ask for it yet")]
    pub(super) fn telling(mut self, on_progress: OnProgress) -> Self {
        self.on_progress = Some(on_progress);
        self
    }

    /// Checks that the payload's image is there, whole, for this platform, for this payload, and with the payload's program,
    /// and stores and attaches it.
    pub(super) async fn prepare(&self, payload: &Payload) -> Result<Prepared, Fault> {
        let stored = self.current(payload).await?;
        let (argv, env, cwd) = invocation(payload, &stored.config);
        let program = argv.into_iter().next().ok_or_else(nothing_to_run)?;
        let path = env.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default();
        let asked = format!("{program}\0{path}\0{cwd}");
        let is_mounted = may_bring(payload, &program, path, &cwd);
        if !is_mounted && !locked(&stored.programs).contains(&asked) {
            self.find_program(Arc::clone(&stored), program, path.to_owned(), cwd).await?;
            let mut programs = locked(&stored.programs);
            if programs.len() < PROGRAMS_MAX {
                programs.insert(asked);
            }
        }
        Ok(Prepared { image: stored.id.to_string(), bytes_brought: stored.bytes_brought })
    }

    /// The image with places to mount over. The tree that slots share stays as it is.
    pub(super) async fn fitted(
        &self,
        stored: &Arc<Stored>,
        places: Vec<Place>,
    ) -> Result<Arc<Fitted>, Fault> {
        if let Some(known) = locked(&stored.fitted).get(&places) {
            return Ok(Arc::clone(known));
        }
        let (store, attach, local) = (Arc::clone(&self.store), self.attach, self.local.clone());
        let (id, readable, wanted) = (stored.id, self.readable_by_all, places.clone());
        let made = tokio::task::spawn_blocking(move || {
            store
                .materialise_with(&id, attach, &local, readable, &wanted)
                .map_err(|error| fitting_fault(&error))
        });
        let panicked = |_| Fault::new(FaultClass::Pilot, "making places to mount over panicked");
        let (root, points) = made.await.map_err(panicked)??;
        let fitted = Arc::new(Fitted { root, points });
        let mut known = locked(&stored.fitted);
        if known.len() < FITTED_MAX {
            known.insert(places, Arc::clone(&fitted));
        }
        Ok(fitted)
    }

    async fn find_program(
        &self,
        stored: Arc<Stored>,
        program: String,
        path: String,
        cwd: String,
    ) -> Result<(), Fault> {
        let store = Arc::clone(&self.store);
        let found = tokio::task::spawn_blocking(move || {
            store.has_program(&stored.id, &program, &path, Path::new(&cwd)).map_err(|error| {
                let text = format!("{}; name a program of its image in command", chain(&error));
                Fault::new(FaultClass::Payload, text)
            })
        });
        found.await.unwrap_or_else(|_| Err(Fault::new(FaultClass::Pilot, "checking an image panicked")))
    }

    /// The image that the payload's reference means now.
    async fn current(&self, payload: &Payload) -> Result<Arc<Stored>, Fault> {
        self.known.current(payload, |before| self.look(payload, before)).await
    }

    async fn look(
        &self,
        payload: &Payload,
        before: Option<Arc<Stored>>,
    ) -> Result<(Arc<Stored>, Option<Duration>), Fault> {
        let image = payload.image.clone();
        let mut access = access_of(payload, &self.access);
        if before.is_some() {
            access.patience.tries = TRIES_AGAIN;
        }
        let bringing = Bringing {
            store: Arc::clone(&self.store),
            attach: self.attach,
            local: self.local.clone(),
            readable_by_all: self.readable_by_all,
            access,
            on_progress: self.on_progress.clone(),
        };
        let brought = tokio::task::spawn_blocking(move || bringing.bring(&image, before));
        brought.await.unwrap_or_else(|_| Err(Fault::new(FaultClass::Pilot, "reading an image panicked")))
    }

    /// The image that a payload was prepared with.
    pub(super) fn stored(&self, payload: &Payload) -> Result<Arc<Stored>, Fault> {
        self.known.chosen(payload)
    }

    /// A copy of an image's tree below `folder`, for one payload to write in.
    pub(super) fn private_copy(
        &self,
        image: &ImageId,
        folder: &Path,
        places: &[Place],
    ) -> Result<PathBuf, Fault> {
        match self.store.materialise_with(image, Attach::Copy, folder, self.readable_by_all, places) {
            Ok((Root::Copy { tree }, _)) => Ok(tree),
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

/// How a payload's image is reached: with the payload's own logins if it brings any.
pub(in crate::runtime) fn access_of(payload: &Payload, access: &RegistryAccess) -> RegistryAccess {
    let mut access = access.clone();
    access.logins = payload.registry_auth.clone().map_or(access.logins, Logins::File);
    access
}

/// One look at an image, on a thread that may block.
struct Bringing {
    store: Arc<Store>,
    attach: Attach,
    local: PathBuf,
    readable_by_all: bool,
    access: RegistryAccess,
    on_progress: Option<OnProgress>,
}

impl Bringing {
    /// The image, and how long one need not look again. What was there `before` is kept if it is still meant.
    fn bring(
        &self,
        image: &str,
        before: Option<Arc<Stored>>,
    ) -> Result<(Arc<Stored>, Option<Duration>), Fault> {
        let reference: Reference =
            image.parse().map_err(|error| Fault::new(FaultClass::Payload, chain(&error)))?;
        let preflight =
            self.store.preflight(&reference, &self.access).map_err(|error| preflight_fault(&error))?;
        if let Some(note) = &preflight.note {
            tracing::warn!(image, note, "registry is away");
        }
        let ingested =
            self.store.ingest_preflight(&reference, &preflight, &|progress| self.told(image, progress));
        let ingested = ingested.map_err(|error| ingest_fault(&error))?;
        let tag = reference.transport() == Transport::Docker && reference.digest().is_none();
        let lasts =
            if tag { Some(ingested.lasts.map_or(TAG_LASTS, |l| l.min(TAG_LASTS))) } else { ingested.lasts };
        if let Some(before) = before.filter(|before| before.id == ingested.image) {
            return Ok((before, lasts));
        }
        Ok((Arc::new(self.attach(preflight, ingested.image)?), lasts))
    }

    fn attach(&self, preflight: Preflight, id: ImageId) -> Result<Stored, Fault> {
        let hold = self.store.hold(&id).map_err(|error| store_fault(&error))?;
        let root = self
            .store
            .materialise(&id, self.attach, &self.local, self.readable_by_all)
            .map_err(|error| store_fault(&error))?;
        let (config, bytes_brought) = (preflight.config, preflight.bytes_missing);
        Ok(Stored {
            id,
            config,
            root,
            bytes_brought,
            programs: Mutex::default(),
            fitted: Mutex::default(),
            _hold: hold,
        })
    }

    fn told(&self, image: &str, progress: Progress) {
        tracing::trace!(image, done = progress.bytes_done, total = progress.bytes_total, "image is read");
        if progress.bytes_done == progress.bytes_total {
            tracing::debug!(image, bytes = progress.bytes_total, "image is read");
        }
        if let Some(on_progress) = &self.on_progress {
            on_progress(image, progress);
        }
    }
}

fn store_fault(error: &dyn std::error::Error) -> Fault {
    Fault::new(FaultClass::Pilot, chain(error))
}

/// What the image has in the way is for the payload to go round.
fn fitting_fault(error: &MaterialiseError) -> Fault {
    match error {
        MaterialiseError::MountPoint { source, .. } => {
            Fault::new(FaultClass::Payload, format!("{source}; choose another path for \"at\""))
        }
        _ => store_fault(error),
    }
}

/// A bad image, or one that its asker may not have, is the payload's; a registry that is away is nobody's.
pub(in crate::runtime) fn preflight_fault(error: &PreflightError) -> Fault {
    let class = match error {
        PreflightError::Store(_) => FaultClass::Pilot,
        PreflightError::Source(SourceError::Registry(registry)) if registry.is_transient() => {
            FaultClass::Retry
        }
        _ => FaultClass::Payload,
    };
    Fault::new(class, chain(error))
}

/// As [`preflight_fault`]; a disk that is full is the pilot's.
fn ingest_fault(error: &IngestError) -> Fault {
    let class = if error.is_store_fault() {
        FaultClass::Pilot
    } else if error.is_transient() {
        FaultClass::Retry
    } else {
        FaultClass::Payload
    };
    Fault::new(class, chain(error))
}
