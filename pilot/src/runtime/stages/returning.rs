//! Stages that come back from an object store, for a payload that reads them, for the user, or to a pilot that was started again.
//!
//! **Must not know:** why they went there.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use objects::{Digest, Expect, ObjectError, ObjectUrl};
use pilot_core::{Fault, FaultClass};
use stage::{Class, Medium, Reservation, StageUri};

use super::far::{Away, Entry, Whole, owner};
use super::moving::{SPILL, below_root};
use super::{Lies, Stages};
use crate::fault::chain;
use crate::payload::{Payload, Source};

impl Stages {
    /// Keeps what a payload reads on the volume, and brings back what is not there. To be called before it is bound.
    pub(in crate::runtime) async fn bring_back(&self, payload: &Payload) -> Result<(), Fault> {
        let uris: BTreeSet<StageUri> = payload
            .inputs
            .iter()
            .filter_map(|input| match &input.source {
                Source::Stage(uri) => Some(uri.clone()),
                Source::Host(_) | Source::Object(_) => None,
            })
            .collect();
        if uris.is_empty() {
            return Ok(());
        }
        let away: Vec<StageUri> = {
            let held = self.lock();
            self.far.pinned().insert(owner(payload), uris.clone());
            uris.into_iter().filter(|uri| held.get(uri).is_some_and(|lies| lies.away.is_some())).collect()
        };
        for uri in away {
            // What can't be had now must not keep others from leaving.
            self.bring(&uri).await.inspect_err(|_| self.far.let_go(payload))?;
        }
        Ok(())
    }

    async fn bring(&self, uri: &StageUri) -> Result<(), Fault> {
        let _turn = self.far.turn.lock().await;
        let Some((away, bytes)) = self.away(uri) else { return Ok(()) };
        if self.free_disk() < bytes {
            self.move_out(bytes - self.free_disk()).await;
        }
        if self.free_disk() < bytes {
            let text = format!(
                "fetch {uri}: there is no room for its {bytes} bytes; give the pilot more --stage-disk"
            );
            return Err(Fault::new(FaultClass::Retry, text));
        }
        let fetched = self.root.join(SPILL).join(format!("fetched-{:016x}", fastrand::u64(..)));
        let came = loop {
            match self.fetch(&away, bytes, &fetched).await {
                // The volume may be full without a limit of ours.
                Err(ObjectError::DiskFull { .. }) if self.move_out(bytes).await => {}
                came => break came,
            }
        };
        came.map_err(|error| {
            // What is damaged there stays so.
            let class = match error.class() {
                objects::Class::Retry => FaultClass::Retry,
                objects::Class::Payload => FaultClass::Payload,
            };
            Fault::new(class, format!("fetch {uri}: {}", chain(&error)))
        })?;
        let placed = self.place_fetched(uri, &fetched);
        let _ = std::fs::remove_file(&fetched);
        placed.map_err(|error| Fault::new(FaultClass::Retry, format!("fetch {uri}: {error}")))?;
        self.far.remove(self.objects.tier()?, &away.url).await;
        Ok(())
    }

    async fn fetch(&self, away: &Away, bytes: u64, into: &Path) -> Result<(), ObjectError> {
        let local =
            |error: io::Error| ObjectError::Local { path: into.to_owned(), reason: error.to_string() };
        let tier = self
            .objects
            .tier()
            .map_err(|fault| ObjectError::Server { url: away.url.clone(), reason: fault.to_string() })?;
        if let Some(folder) = into.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(local)?;
        }
        let expect = Expect { digest: Some(away.digest), bytes_max: Some(bytes) };
        tier.fetch(&away.url, into, expect).await?;
        std::fs::set_permissions(into, Permissions::from_mode(0o444)).map_err(local)
    }

    fn place_fetched(&self, uri: &StageUri, fetched: &Path) -> io::Result<()> {
        let (folder, mut held) = (self.folder_of(uri), self.lock());
        // Its last reader may have been released meanwhile.
        let Some(lies) = held.get_mut(uri) else { return Ok(()) };
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        std::fs::rename(fetched, &lies.path)?;
        lies.away = None;
        self.relocate(uri, Medium::Disk);
        if self.noted {
            self.note_held(&held, (&uri.workflow, &uri.payload), &folder);
        }
        Ok(())
    }

    fn away(&self, uri: &StageUri) -> Option<(Away, u64)> {
        let away = self.lock().get(uri)?.away.clone()?;
        let asked = uri.clone();
        let bytes = self.broker.ask(move |broker| broker.lookup(&asked).map(|found| found.bytes)).ok()??;
        Some((away, bytes))
    }

    /// Takes up again what an earlier pilot of this name had put away, and is still wanted.
    pub(super) fn recover_away(&self) {
        let entries: Vec<Entry> = self.far.entries().values().cloned().collect();
        for Entry { url, whole } in entries {
            let taken = whole.is_some_and(|whole| self.take_up(&url, whole));
            if !taken {
                self.drop_object(url);
            }
        }
    }

    fn take_up(&self, url: &ObjectUrl, whole: Whole) -> bool {
        let Whole { stage, bytes, digest, was_memory, readers } = whole;
        let Some(digest) = Digest::from_hex(&digest) else { return false };
        let mut held = self.lock();
        // Its file was not removed yet, or has come back.
        if held.contains_key(&stage) || readers.is_empty() {
            return false;
        }
        let asked = Reservation {
            uri: stage.clone(),
            class: Class::File,
            medium: Medium::Object,
            max_bytes: bytes,
            readers: readers.clone(),
        };
        let Ok(Ok(())) = self.broker.ask(move |broker| broker.reserve(asked)) else { return false };
        let Ok(made) = self.made(&stage, bytes) else { return false };
        let Ok(Ok(true)) = self.broker.insert(&stage, made, &readers) else { return false };
        let path = self.root.join(below_root(&stage));
        held.insert(stage, Lies { path, was_memory, away: Some(Away { url: url.clone(), digest }) });
        true
    }

    /// A copy of a stage that is away, without a name, for the pilot's own user; `None` when it is not.
    pub(super) async fn copy_of_away(&self, uri: &StageUri) -> Option<Result<File, String>> {
        let (away, bytes) = self.away(uri)?;
        let into = self.root.join(SPILL).join(format!("shown-{:016x}", fastrand::u64(..)));
        let fetched = self.fetch(&away, bytes, &into).await.map_err(|error| chain(&error));
        let opened = fetched.and_then(|()| File::open(&into).map_err(|error| error.to_string()));
        let _ = std::fs::remove_file(&into);
        Some(opened)
    }
}
