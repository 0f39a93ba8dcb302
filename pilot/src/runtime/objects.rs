//! Persistent objects of payloads: inputs fetched once a machine before a slot is touched, outputs put when they are saved.
//!
//! What a payload reads is held from its [`Objects::prepare`] until it has run, so that nobody makes room with it.
//!
//! **Must not know:** slots, stages, how a container sees a file.

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use objects::{Class, Expect, Held, ObjectError, ObjectTier, ObjectUrl, OncePerNode, Put, Source as Content};
use pilot_core::{Fault, FaultClass};
use stage::StageName;

use crate::object_access::ObjectAccess;
use crate::payload::{Payload, Source};

/// The objects of a pilot.
#[derive(Debug)]
pub(super) struct Objects {
    access: Mutex<ObjectAccess>,
    folder: PathBuf,
    bytes_max: u64,
    /// Made when the first object is asked for.
    tier: OnceLock<ObjectTier>,
    /// Made when the first one is fetched: those who want the same one wait for each other in it.
    cache: OnceLock<OncePerNode>,
    held: Mutex<HashMap<Owner, HashMap<ObjectUrl, Arc<Held>>>>,
}

/// A payload, by its workflow and name.
type Owner = (StageName, StageName);

impl Objects {
    /// Keeps what it fetches in `folder`, at most so many bytes. Nothing is done yet.
    pub(super) fn new(access: ObjectAccess, folder: PathBuf, bytes_max: u64) -> Self {
        Self {
            access: Mutex::new(access),
            folder,
            bytes_max,
            tier: OnceLock::new(),
            cache: OnceLock::new(),
            held: Mutex::default(),
        }
    }

    /// Says how objects are reached, before the first is asked for.
    pub(super) fn reach(&self, access: ObjectAccess) {
        *locked(&self.access) = access;
    }

    pub(super) fn tier(&self) -> Result<&ObjectTier, Fault> {
        if let Some(tier) = self.tier.get() {
            return Ok(tier);
        }
        let made = ObjectTier::new(locked(&self.access).settings());
        let made = made.map_err(|error| Fault::new(FaultClass::Pilot, error.to_string()))?;
        Ok(self.tier.get_or_init(|| made))
    }

    /// Fetches what a payload reads, unless this machine has it; gives the bytes that came.
    pub(super) async fn prepare(&self, payload: &Payload) -> Result<u64, Fault> {
        let wanted = payload.inputs.iter().filter_map(|input| match &input.source {
            Source::Object(url) => Some(url),
            Source::Host(_) | Source::Stage(_) => None,
        });
        let (mut held, mut came) = (HashMap::new(), 0);
        for url in wanted {
            if held.contains_key(url) {
                continue;
            }
            let got = self.cache()?.get(url, Expect::default()).await.map_err(|error| fault(&error))?;
            if got.was_fetched() {
                came += got.bytes();
            }
            held.insert(url.clone(), Arc::new(got));
        }
        if !held.is_empty() {
            locked(&self.held).insert(owner(payload), held);
        }
        Ok(came)
    }

    fn cache(&self) -> Result<&OncePerNode, Fault> {
        if let Some(cache) = self.cache.get() {
            return Ok(cache);
        }
        // Nobody else has to see what a payload may read.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        let made =
            made.and_then(|()| std::fs::set_permissions(&self.folder, PermissionsExt::from_mode(0o700)));
        made.map_err(|error| {
            Fault::new(FaultClass::Pilot, format!("make folder {}: {error}", self.folder.display()))
        })?;
        let opened = OncePerNode::open(self.tier()?.clone(), &self.folder, self.bytes_max);
        let opened = opened.map_err(|error| fault(&error))?;
        Ok(self.cache.get_or_init(|| opened))
    }

    /// Where an object that a payload was prepared with lies.
    pub(super) fn path(&self, payload: &Payload, url: &ObjectUrl) -> Result<PathBuf, Fault> {
        self.held(payload, url).map(|held| held.path().to_owned())
    }

    fn held(&self, payload: &Payload, url: &ObjectUrl) -> Result<Arc<Held>, Fault> {
        let found = locked(&self.held).get(&owner(payload)).and_then(|held| held.get(url)).cloned();
        found.ok_or_else(|| Fault::new(FaultClass::Retry, format!("{url} was not fetched for this try")))
    }

    /// Gives a payload's object another name in a slot's folder; a copy where that is on another file system.
    pub(super) fn show(&self, payload: &Payload, url: &ObjectUrl, at: &Path) -> Result<(), Fault> {
        let held = self.held(payload, url)?;
        if held.link(at).is_ok() {
            return Ok(());
        }
        copy(held.path(), at)
            .map_err(|error| Fault::new(FaultClass::Slot, format!("show {url} at {}: {error}", at.display())))
    }

    /// A payload has run, or will not: what it read may make room.
    pub(super) fn let_go(&self, payload: &Payload) {
        locked(&self.held).remove(&owner(payload));
    }

    /// Puts a copy of an output under its name. Blocks; in a thread of a runtime only.
    pub(super) fn put(&self, content: Content, bytes: u64, url: &ObjectUrl) -> Result<(), Fault> {
        let (tier, put) = (self.tier()?, Put { bytes, digest: None, overwrite: true });
        let put = tokio::runtime::Handle::current().block_on(tier.put(url, content, put));
        put.map(drop).map_err(|error| fault(&error))
    }

    /// Waits until uploads that were given up are taken back.
    pub(super) async fn settle(&self) {
        if let Some(tier) = self.tier.get() {
            tier.settle().await;
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn owner(payload: &Payload) -> Owner {
    (payload.workflow.clone(), payload.name.clone())
}

fn copy(from: &Path, at: &Path) -> io::Result<()> {
    let mut into = File::create_new(at)?;
    io::copy(&mut File::open(from)?, &mut into)?;
    into.set_permissions(PermissionsExt::from_mode(0o444))
}

/// What can't go better next time is the payload's.
fn fault(error: &ObjectError) -> Fault {
    let class = match error.class() {
        Class::Retry => FaultClass::Retry,
        Class::Payload => FaultClass::Payload,
    };
    Fault::new(class, crate::fault::chain(error))
}
