//! Stages that leave the volume for an object store.
//!
//! **Must not know:** who wants the room.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use objects::{Digest, ObjectUrl, Put, Source as Content};
use pilot_core::{Fault, FaultClass};
use stage::broker::Broker;
use stage::{Medium, StageUri};

use super::far::{Away, Entry, Whole};
use super::folders::tidy;
use super::{Lies, Stages};
use crate::fault::chain;

/// Smaller files are not worth the requests.
const WORTH_BYTES: u64 = 64 << 10;

impl Stages {
    /// Makes room on the volume; whether any was made.
    pub(super) async fn make_disk_room(&self, bytes: u64) -> bool {
        let _turn = self.far.turn.lock().await;
        self.move_out(bytes).await
    }

    /// Moves so many bytes to the object store, the oldest stages first; whether it moved any. One at a time.
    pub(super) async fn move_out(&self, bytes: u64) -> bool {
        let mut moved: u64 = 0;
        for (uri, lies) in self.movable() {
            if moved >= bytes {
                break;
            }
            match self.put_away(&uri, &lies).await {
                Ok(put) => moved += put,
                Err(fault) => {
                    tracing::warn!(stage = %uri, %fault, "a stage can't leave the volume");
                    break;
                }
            }
        }
        moved > 0
    }

    /// Files that nobody has open or linked, or is about to; the oldest first.
    fn movable(&self) -> Vec<(StageUri, Lies)> {
        if !self.has_far() {
            return Vec::new();
        }
        let held = self.lock();
        let idle = held.iter().filter(|(uri, lies)| self.may_leave(uri, lies));
        let mut idle: Vec<_> = idle
            .filter_map(|(uri, lies)| {
                let meta = std::fs::symlink_metadata(&lies.path).ok()?;
                Some(((meta.ctime(), meta.ctime_nsec()), (uri.clone(), lies.clone())))
            })
            .collect();
        idle.sort_by_key(|(age, _)| *age);
        idle.into_iter().map(|(_, found)| found).collect()
    }

    fn may_leave(&self, uri: &StageUri, lies: &Lies) -> bool {
        // One that is linked is in a slot.
        let alone = std::fs::symlink_metadata(&lies.path)
            .is_ok_and(|meta| meta.is_file() && meta.nlink() == 1 && meta.len() >= WORTH_BYTES);
        let asked = uri.clone();
        // Until its producer is settled, it is being saved.
        let settled = move |broker: &mut Broker| {
            broker.ledger().object(&asked).is_some_and(|object| !object.readers.contains(&asked.payload))
        };
        lies.away.is_none() && alone && !self.far.is_pinned(uri) && self.broker.ask(settled).unwrap_or(false)
    }

    /// Puts one there and removes its file; gives the bytes that are free now.
    async fn put_away(&self, uri: &StageUri, lies: &Lies) -> Result<u64, Fault> {
        let failed = |error: &dyn std::error::Error| Fault::new(FaultClass::Retry, chain(error));
        let Some(url) = self.far.url_for(uri) else { return Ok(0) };
        let tier = self.objects.tier()?;
        let file = File::open(&lies.path).map_err(|error| failed(&error))?;
        let bytes = file.metadata().map_err(|error| failed(&error))?.len();
        // Before anything is there.
        let begun = Entry { url: url.clone(), whole: None };
        self.far.write(|entries| drop(entries.insert(url.clone(), begun))).map_err(|error| failed(&error))?;
        let put = Put { bytes, digest: None, overwrite: false };
        let stored = tier.put(&url, Content::from(file), put).await;
        let gone = match stored {
            Ok(stored) => self.let_file_go(uri, lies, &url, stored.digest),
            Err(error) => Err(failed(&error)),
        };
        if !matches!(gone, Ok(true)) {
            self.far.remove(tier, &url).await;
        }
        gone.map(|gone| if gone { bytes } else { 0 })
    }

    /// The object takes the file's place, unless somebody has come for that meanwhile.
    fn let_file_go(
        &self,
        uri: &StageUri,
        was: &Lies,
        url: &ObjectUrl,
        digest: Digest,
    ) -> Result<bool, Fault> {
        let mut held = self.lock();
        let same = held.get(uri).is_some_and(|lies| lies.path == was.path && self.may_leave(uri, lies));
        let asked = uri.clone();
        let known = self.broker.ask(move |broker| {
            broker.ledger().object(&asked).map(|object| (object.bytes, object.readers.clone()))
        });
        let (true, Ok(Some((bytes, readers)))) = (same, known) else { return Ok(false) };
        let (stage, was_memory) = (uri.clone(), was.was_memory);
        let whole = Whole { stage, bytes, digest: digest.hex(), was_memory, readers };
        let entry = Entry { url: url.clone(), whole: Some(whole) };
        self.far
            .write(|entries| drop(entries.insert(url.clone(), entry)))
            .map_err(|error| Fault::new(FaultClass::Retry, error.to_string()))?;
        if let Some(lies) = held.get_mut(uri) {
            lies.away = Some(Away { url: url.clone(), digest });
        }
        self.relocate(uri, Medium::Object);
        self.counting.spilled(bytes);
        let folder = self.folder_of(uri);
        if self.noted {
            self.note_held(&held, (&uri.workflow, &uri.payload), &folder);
        }
        let _ = std::fs::remove_file(&was.path);
        tidy(&folder);
        Ok(true)
    }
}
