//! The last tier: stages in files that no payload is about to read go to an object store when the volume is full (`leaving.rs`),
//! and come back before a payload that reads them is bound (`returning.rs`). Here is what is kept in mind of that.
//!
//! ```text
//!   on the volume ─ written down ─> put ─ written down as whole ─> the file is removed          (away)
//!   away ─ fetched, its digest compared ─> on the volume ─> the object is removed ─> struck off
//! ```
//! What is written down is what may be there: a pilot of this name takes up what is whole and removes the rest, and so does
//! whoever removes the folders of a pilot that nobody can follow.
//!
//! **Must not know:** slots, how an object store is reached.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use objects::{Digest, ObjectError, ObjectTier, ObjectUrl};
use serde::{Deserialize, Serialize};
use stage::{Medium, StageName, StageUri};

use super::Stages;
use crate::fault::chain;
use crate::payload::Payload;

/// In the folder of all stages, what may be in the object store. No workflow can have this name.
const JOURNAL: &str = ".far";

/// Whoever ends a pilot does not wait longer for an object store that does not answer.
const CLEAR_WAIT: Duration = Duration::from_secs(60);

/// An object that may be there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) url: ObjectUrl,
    /// The stage that it is, once nothing else has its bytes.
    #[serde(default)]
    pub(super) whole: Option<Whole>,
}

/// A stage that is there and nowhere else.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Whole {
    pub(super) stage: StageUri,
    pub(super) bytes: u64,
    /// As it is written in hexadecimal.
    pub(super) digest: String,
    pub(super) was_memory: bool,
    pub(super) readers: BTreeSet<StageName>,
}

/// Where a stage is that is away.
#[derive(Clone, Debug)]
pub(super) struct Away {
    pub(super) url: ObjectUrl,
    pub(super) digest: Digest,
}

/// A payload, by its workflow and name.
pub(super) type Owner = (StageName, StageName);

/// What is in the object store, and what must not go there.
#[derive(Debug)]
pub(super) struct Far {
    /// Below which name stages are put; without one, none are.
    to: Option<ObjectUrl>,
    journal: PathBuf,
    entries: Mutex<BTreeMap<ObjectUrl, Entry>>,
    /// Inputs of payloads that are bound, or about to be.
    pinned: Mutex<HashMap<Owner, BTreeSet<StageUri>>>,
    /// One stage at a time: a network does not get faster by two, and nobody takes the room that another has made.
    pub(super) turn: tokio::sync::Mutex<()>,
}

impl Far {
    /// What is written down below `root` is known again; `left` is what a dead pilot may have left there.
    pub(super) fn new(to: Option<ObjectUrl>, root: &Path, left: Vec<ObjectUrl>) -> Self {
        let journal = root.join(JOURNAL);
        let mut entries: BTreeMap<ObjectUrl, Entry> =
            read(&journal).into_iter().map(|entry| (entry.url.clone(), entry)).collect();
        entries.extend(left.into_iter().map(|url| (url.clone(), Entry { url, whole: None })));
        let (entries, pinned) = (Mutex::new(entries), Mutex::default());
        let far = Self { to, journal, entries, pinned, turn: tokio::sync::Mutex::default() };
        if !far.entries().is_empty()
            && let Err(error) = far.write(|_| ())
        {
            tracing::warn!(%error, "what dead pilots left in an object store can't be written down");
        }
        far
    }

    pub(super) fn entries(&self) -> MutexGuard<'_, BTreeMap<ObjectUrl, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pinned(&self) -> MutexGuard<'_, HashMap<Owner, BTreeSet<StageUri>>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_pinned(&self, uri: &StageUri) -> bool {
        self.pinned().values().any(|uris| uris.contains(uri))
    }

    /// A payload has run, or will not: what it reads may go again.
    pub(super) fn let_go(&self, payload: &Payload) {
        self.pinned().remove(&owner(payload));
    }

    /// Changes what is written down.
    pub(super) fn write(&self, change: impl FnOnce(&mut BTreeMap<ObjectUrl, Entry>)) -> io::Result<()> {
        let mut entries = self.entries();
        change(&mut entries);
        if entries.is_empty() {
            return match std::fs::remove_file(&self.journal) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let all: Vec<&Entry> = entries.values().collect();
        let fresh = self.journal.with_extension("new");
        std::fs::write(&fresh, serde_json::to_vec(&all)?)?;
        std::fs::rename(fresh, &self.journal)
    }

    /// Another name for each try: what one could not remove must not be taken for what another has put. One level deep, since
    /// no folder is made there.
    pub(super) fn url_for(&self, uri: &StageUri) -> Option<ObjectUrl> {
        let StageUri { workflow, payload, output } = uri;
        let to = self.to.as_ref()?;
        format!("{to}/{workflow}.{payload}.{output}.{:016x}", fastrand::u64(..)).parse().ok()
    }

    /// Removes an object that nobody needs, and strikes it off.
    pub(super) async fn remove(&self, tier: &ObjectTier, url: &ObjectUrl) {
        match tier.remove(url).await {
            // Where there is no bucket, nothing is in it.
            Ok(()) | Err(ObjectError::NoBucket(_)) => {
                if let Err(error) = self.write(|entries| drop(entries.remove(url))) {
                    tracing::warn!(%url, %error, "it can't be struck off that an object was removed");
                }
            }
            Err(error) => tracing::warn!(%url, error = chain(&error), "a stage is left in the object store"),
        }
    }
}

/// What may be in the object store of what lies below the folder `root` of a pilot's stages.
pub(in crate::runtime) fn left_far(root: &Path) -> Vec<ObjectUrl> {
    read(&root.join(JOURNAL)).into_iter().map(|entry| entry.url).collect()
}

fn read(journal: &Path) -> Vec<Entry> {
    let text = std::fs::read(journal).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

pub(super) fn owner(payload: &Payload) -> Owner {
    (payload.workflow.clone(), payload.name.clone())
}

impl Stages {
    /// Whether stages can leave the volume.
    pub(super) fn has_far(&self) -> bool {
        self.far.to.is_some()
    }

    pub(super) fn free_disk(&self) -> u64 {
        self.broker.ask(|broker| broker.ledger().free_bytes(Medium::Disk)).unwrap_or(0)
    }

    pub(super) fn relocate(&self, uri: &StageUri, medium: Medium) {
        let uri = uri.clone();
        let _ = self.broker.ask(move |broker| broker.relocate(&uri, medium));
    }

    /// A stage that is away is not wanted any more.
    pub(super) fn drop_away(&self, away: &Away) {
        self.drop_object(away.url.clone());
    }

    /// Removes an object that nobody needs, beside what else goes on. It is written down until that is done, and is tried again
    /// when the pilot ends, so that whoever does it may go.
    pub(super) fn drop_object(&self, url: ObjectUrl) {
        let nobodys = Entry { url: url.clone(), whole: None };
        if let Err(error) = self.far.write(|entries| drop(entries.insert(url.clone(), nobodys))) {
            tracing::warn!(%url, %error, "it can't be written down that an object is not needed");
        }
        if let (Ok(tier), Ok(threads)) = (self.objects.tier(), tokio::runtime::Handle::try_current()) {
            let (far, tier) = (Arc::clone(&self.far), tier.clone());
            threads.spawn(async move { far.remove(&tier, &url).await });
        }
    }

    /// Removes what nobody needs from the object store: when the pilot ends, and what an earlier one left.
    pub(in crate::runtime) async fn clear_far(&self) {
        let kept: BTreeSet<ObjectUrl> = if self.noted {
            let held = self.lock();
            held.values().filter_map(|lies| Some(lies.away.as_ref()?.url.clone())).collect()
        } else {
            BTreeSet::new()
        };
        let unwanted: Vec<ObjectUrl> =
            self.far.entries().keys().filter(|url| !kept.contains(url)).cloned().collect();
        let remove = async {
            for url in &unwanted {
                match self.objects.tier() {
                    Ok(tier) => self.far.remove(tier, url).await,
                    Err(fault) => tracing::warn!(%url, %fault, "a stage is left in the object store"),
                }
            }
        };
        if tokio::time::timeout(CLEAR_WAIT, remove).await.is_err() {
            let left = self.far.entries().len().saturating_sub(kept.len());
            tracing::warn!(left, "stages are left in the object store, which does not answer");
        }
    }
}
