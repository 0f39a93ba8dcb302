//! What the thread that owns the volumes does about each question.
//!
//! **Must not know:** gRPC, clocks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{RenameFlags, renameat_with};
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};

use super::{Ask, Figures, FileSystem, Settings};
use crate::apply::{self, Failed};
use crate::code::{PublishError, StatsError, UnpublishError};
use crate::gates::{self, Gates};
use crate::journal::{GONE, Journal, names, random_name};
use crate::metrics::Metrics;
use crate::plan::{self, Collect, Publish, Trace, Unpublish};
use crate::request::PublishRequest;
use crate::target::{Found, Pods, Target, look};
use crate::tenant::{Key, Tenant};
use crate::volume::{Backing, Known, RECORD_VERSION, Volume, VolumeId, Volumes};
use crate::work::{Measure, Removal, Work};

pub(super) struct Owner {
    pub(super) gates: Gates,
    pub(super) journal: Journal,
    pub(super) key: Key,
    pub(super) pods: Pods,
    pub(super) settings: Settings,
    pub(super) metrics: Arc<Metrics>,
    pub(super) work: Work,
    pub(super) volumes: Volumes,
    /// Who waits for a removal.
    pub(super) waiting: BTreeMap<VolumeId, oneshot::Sender<Result<(), UnpublishError>>>,
    /// Since when the kubelet has had no note of a volume.
    pub(super) unnoted: BTreeMap<VolumeId, Duration>,
}

impl Owner {
    pub(super) fn run(mut self, recorded: Vec<Volume>, mut asked: mpsc::Receiver<Ask>) {
        recorded.into_iter().for_each(|volume| self.recover(volume));
        self.forget_tenants();
        self.reopen_gates();
        self.metrics.recovered();
        self.count();
        while let Some(ask) = asked.blocking_recv() {
            match ask {
                // Who asked may have given up; what was done stays done, and is said again when asked again.
                Ask::Publish(request, answer) => {
                    let result = self.publish(*request);
                    // Who has an answer finds it in the figures.
                    self.count();
                    drop(answer.send(result));
                }
                Ask::Unpublish(id, target, answer) => self.unpublish(id, &target, answer),
                Ask::Stats(id, target, answer) => drop(answer.send(self.stats(&id, &target))),
                Ask::Collect(now) => self.collect(now),
                Ask::Removed { id: Some(id), result } => self.removed(id, result),
                Ask::Removed { id: None, result: Err(error) } => {
                    tracing::warn!(%error, "remove a tenant's folder")
                }
                Ask::Removed { id: None, result: Ok(()) } => {}
                Ask::Measured { id, bytes } => self.measured(&id, bytes),
            }
            self.count();
        }
    }

    /// What a driver left that was killed: a volume, one half made, or one half removed.
    fn recover(&mut self, volume: Volume) {
        let id = volume.id.clone();
        self.volumes.put(volume);
        let found = self.volumes.find(&id).map(|known| self.pods.look(&known.volume.target));
        let whole = match found {
            Some(Ok(found)) => self.volumes.find(&id).is_some_and(|known| {
                // What is in the way of a volume is for people to look at, and its record for the next request.
                !matches!(plan::unpublish(&id, &known.volume.target, &self.volumes, found), Unpublish::Forget)
                    && known.volume.birth.is_some()
            }),
            Some(Err(error)) => {
                tracing::warn!(volume = %id, %error, "look at a volume from before");
                true
            }
            None => true,
        };
        if !whole {
            tracing::info!(volume = %id, "a volume that was half made or half removed goes");
            self.leave(id, None);
        }
    }

    fn publish(&mut self, request: PublishRequest) -> Result<(), PublishError> {
        let io = |step| move |source| PublishError::Io { step, source };
        let parent = self.pods.parent(&request.target).map_err(io("open the target's folder"))?;
        let found = self.pods.look(&request.target).map_err(io("look at the target"))?;
        let decided = plan::publish(&request, &self.volumes, found, &self.settings.limits);
        let parent = match (decided, parent) {
            (Publish::Refuse(refusal), _) => return Err(refusal.into()),
            (_, None) => return Err(plan::Refusal::NoParent.into()),
            (Publish::Already, _) => {
                self.open_gate(&request.id);
                return Ok(());
            }
            (Publish::Mount, Some(parent)) => return self.mount(&request, &parent),
            (Publish::Make, Some(parent)) => parent,
        };
        let failed = |Failed { step, source }| PublishError::Io { step, source };
        let tenant = self.tenant(&request.tenant).map_err(io("make the tenant's folder"))?;
        let aside = match self.volumes.find(&request.id) {
            // What an earlier try left under it goes first.
            Some(known) => {
                let name = known.volume.aside.clone();
                crate::remove::remove(parent.as_fd(), &name, known.volume.birth)
                    .map_err(io("remove what is left"))?;
                name
            }
            None => format!(".latebind-{}", random_name().map_err(io("make a name"))?),
        };
        let PublishRequest { id, target, tenant: of, pod, wanted } = request;
        let volume =
            Volume { version: RECORD_VERSION, id, target, aside, birth: None, tenant: of, pod, wanted };
        let (id, of) = (volume.id.clone(), volume.tenant.clone());
        match apply::make(parent.as_fd(), &tenant, &self.journal, volume) {
            Ok(volume) => {
                tracing::info!(volume = %volume.id, pod = volume.pod, "published");
                self.volumes.put(volume);
                self.open_gate(&id);
                Ok(())
            }
            Err(error) => {
                match self.journal.read(&id) {
                    // What could not be undone is known as long as its record is there.
                    Ok(Some(left)) => self.volumes.put(left),
                    Ok(None) | Err(_) => drop(self.volumes.take(&id)),
                }
                self.part(&of);
                Err(failed(error))
            }
        }
    }

    /// What an earlier driver had on its exchange is gone with it.
    fn reopen_gates(&mut self) {
        let whole = self.volumes.iter().filter(|known| !known.leaving);
        let (ids, tenants): (Vec<VolumeId>, BTreeSet<String>) =
            whole.map(|known| (known.volume.id.clone(), self.key.folder(&known.volume.tenant))).unzip();
        for tenant in tenants {
            if let Err(error) = self.drop_stages(&tenant) {
                tracing::warn!(%error, "remove what a tenant had on the exchange of an earlier driver");
            }
        }
        ids.iter().for_each(|id| self.open_gate(id));
    }

    fn drop_stages(&self, tenant: &str) -> io::Result<()> {
        let (of, tenants) = (self.journal.tenant(tenant)?, self.journal.tenants());
        let gone = format!("{GONE}{}", random_name()?);
        match renameat_with(&of, gates::STAGES, tenants, &gone, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
        let parent = tenants.try_clone_to_owned()?;
        // If there are too many, the next start does it.
        let _ = self.work.remove(Removal { id: None, parent, name: gone, birth: None });
        Ok(())
    }

    /// Lets the pilots on a volume share stages. A volume is good for everything else without.
    fn open_gate(&mut self, id: &VolumeId) {
        let known = self.volumes.find(id).filter(|known| gates::has_gate(&known.volume));
        let Some(Known { volume, .. }) = known else { return };
        let mut open = || -> io::Result<()> {
            let Some(parent) = self.pods.parent(&volume.target)? else { return Ok(()) };
            let root = apply::open(parent.as_fd(), volume)?;
            let domain = self.key.folder(&volume.tenant);
            self.gates.open(volume, root, &self.journal.tenant(&domain)?, &domain)
        };
        if let Err(error) = open() {
            tracing::warn!(volume = %id, %error, "the pilots of a volume can't share stages");
        }
    }

    fn mount(&mut self, request: &PublishRequest, parent: &OwnedFd) -> Result<(), PublishError> {
        let tenant = self
            .tenant(&request.tenant)
            .map_err(|source| PublishError::Io { step: "make the tenant's folder", source })?;
        let Some(known) = self.volumes.find(&request.id) else { return Ok(()) };
        apply::mount(parent.as_fd(), &tenant, &known.volume)
            .map_err(|Failed { step, source }| PublishError::Io { step, source })
    }

    fn tenant(&self, tenant: &Tenant) -> io::Result<OwnedFd> {
        self.journal.tenant(&self.key.folder(tenant))
    }

    fn unpublish(
        &mut self,
        id: VolumeId,
        target: &Target,
        answer: oneshot::Sender<Result<(), UnpublishError>>,
    ) {
        let decided = match self.pods.look(target) {
            Ok(found) => plan::unpublish(&id, target, &self.volumes, found),
            // What is not ours need not be looked at.
            Err(_) if self.volumes.find(&id).is_none() => Unpublish::Nothing,
            Err(source) => {
                let _ = answer.send(Err(UnpublishError::Io { step: "look at the target", source }));
                return;
            }
        };
        match decided {
            Unpublish::Nothing => drop(answer.send(Ok(()))),
            Unpublish::Refuse(conflict) => drop(answer.send(Err(conflict.into()))),
            Unpublish::Forget | Unpublish::Remove => self.leave(id, Some(answer)),
        }
    }

    /// Moves a volume away from its target and orders its removal.
    fn leave(&mut self, id: VolumeId, answer: Option<oneshot::Sender<Result<(), UnpublishError>>>) {
        self.gates.close(&id);
        let Some(known) = self.volumes.find_mut(&id) else { return };
        let aside = match self.pods.parent(&known.volume.target) {
            Ok(Some(parent)) => apply::set_aside(parent.as_fd(), &known.volume).map(|()| Some(parent)),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        match aside {
            Ok(Some(parent)) => {
                known.leaving = true;
                let (name, birth) = (known.volume.aside.clone(), known.volume.birth);
                if let Some(answer) = answer {
                    self.waiting.insert(id.clone(), answer);
                }
                if self.work.remove(Removal { id: Some(id.clone()), parent, name, birth }).is_err() {
                    self.removed(id, Err(io::Error::other("too much is to be removed")));
                }
            }
            Ok(None) => {
                if let Some(answer) = answer {
                    self.waiting.insert(id.clone(), answer);
                }
                self.removed(id, Ok(()));
            }
            Err(source) => {
                // It stays, and so do its pilots.
                self.open_gate(&id);
                match answer {
                    Some(answer) => {
                        drop(answer.send(Err(UnpublishError::Io { step: "take it from the target", source })))
                    }
                    None => tracing::warn!(volume = %id, error = %source, "take a volume from its target"),
                }
            }
        }
    }

    fn removed(&mut self, id: VolumeId, result: io::Result<()>) {
        let result = result.and_then(|()| self.journal.forget(&id));
        let answer = self.waiting.remove(&id);
        let result = match result {
            Ok(()) => {
                tracing::info!(volume = %id, "unpublished");
                self.unnoted.remove(&id);
                if let Some(volume) = self.volumes.take(&id) {
                    self.part(&volume.tenant);
                }
                Ok(())
            }
            Err(source) => {
                if let Some(known) = self.volumes.find_mut(&id) {
                    known.leaving = false;
                }
                if answer.is_none() {
                    tracing::warn!(volume = %id, error = %source, "remove a volume");
                }
                Err(UnpublishError::Io { step: "remove the folder", source })
            }
        };
        self.count();
        if let Some(answer) = answer {
            let _ = answer.send(result);
        }
    }

    /// Removes a tenant's folder with its last volume. An empty one stays until the next collection: its tenant may be back soon.
    fn part(&self, tenant: &Tenant) {
        let name = self.key.folder(tenant);
        let is_empty = || {
            look(self.journal.tenants(), &name)
                .map(|found| matches!(found, Found::Folder { empty: true, .. }))
        };
        if self.volumes.held_by(tenant).volumes == 0 && !is_empty().unwrap_or(false) {
            self.remove_tenant(&name);
        }
    }

    fn remove_tenant(&self, name: &str) {
        let moved = || -> io::Result<Removal> {
            let tenants = self.journal.tenants();
            let gone =
                if name.starts_with(GONE) { name.to_owned() } else { format!("{GONE}{}", random_name()?) };
            if gone != name {
                // So that the tenant may have a new one at once.
                renameat_with(tenants, name, tenants, &gone, RenameFlags::NOREPLACE)?;
            }
            Ok(Removal { id: None, parent: tenants.try_clone_to_owned()?, name: gone, birth: None })
        };
        match moved() {
            // If there are too many, the next start does it.
            Ok(removal) => drop(self.work.remove(removal)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "remove a tenant's folder"),
        }
    }

    /// Removes the folders of tenants that have no volume.
    fn forget_tenants(&self) {
        let live: Vec<String> =
            self.volumes.iter().map(|known| self.key.folder(&known.volume.tenant)).collect();
        match names(self.journal.tenants()) {
            Ok(names) => {
                names.iter().filter(|name| !live.contains(name)).for_each(|name| self.remove_tenant(name))
            }
            Err(error) => tracing::warn!(%error, "read the tenants' folders"),
        }
    }

    fn stats(&mut self, id: &VolumeId, target: &Target) -> Result<Figures, StatsError> {
        let known = self.volumes.find(id).filter(|known| known.volume.target == *target && !known.leaving);
        let known = known.ok_or(StatsError::NotFound)?;
        let found = self.pods.look(target)?;
        if plan::unpublish(id, target, &self.volumes, found) != Unpublish::Remove {
            return Err(StatsError::NotFound);
        }
        let parent = self.pods.parent(target)?.ok_or(StatsError::NotFound)?;
        let folder = apply::open(parent.as_fd(), &known.volume)?;
        let file_system = FileSystem::of(&folder)?;
        if let Backing::Tmpfs { .. } = known.volume.wanted.backing {
            return Ok(Figures { file_system, content: None });
        }
        let folder = self.measurable(&known.volume, folder)?;
        let (answer, content) = oneshot::channel();
        if !self.work.measure(Measure { id: id.clone(), folder, answer: Some(answer) }) {
            return Err(StatsError::Stopping);
        }
        Ok(Figures { file_system, content: Some(content) })
    }

    /// What to walk to measure a volume. A mount that is walked could not be unmounted meanwhile.
    fn measurable(&self, volume: &Volume, folder: OwnedFd) -> io::Result<OwnedFd> {
        match volume.wanted.backing {
            Backing::Shared => apply::shared(&self.tenant(&volume.tenant)?),
            Backing::Folder | Backing::Tmpfs { .. } => Ok(folder),
        }
    }

    fn measured(&mut self, id: &VolumeId, bytes: u64) {
        let Some(tenant) = self.volumes.find(id).map(|known| known.volume.tenant.clone()) else { return };
        let shared = |volume: &Volume| volume.wanted.backing == Backing::Shared && volume.tenant == tenant;
        // What all of a tenant's shared volumes show counts for one of them.
        let first =
            self.volumes.iter().find(|known| shared(&known.volume)).map(|known| known.volume.id.clone());
        let counted = match self.volumes.find(id) {
            Some(known) if known.volume.wanted.backing == Backing::Shared => first,
            _ => Some(id.clone()),
        };
        if let Some(known) = counted.and_then(|id| self.volumes.find_mut(&id)) {
            known.used_bytes = bytes;
        }
    }

    fn collect(&mut self, now: Duration) {
        let mut gone = Vec::new();
        let mut unnoted = BTreeMap::new();
        for known in self.volumes.iter().filter(|known| !known.leaving) {
            let Volume { id, target, .. } = &known.volume;
            let look = || -> io::Result<Trace> {
                Ok(Trace { parent: self.pods.parent(target)?.is_some(), noted: self.pods.is_noted(target)? })
            };
            let trace = match look() {
                Ok(trace) => trace,
                Err(error) => {
                    tracing::warn!(volume = %id, %error, "look for the pod of a volume");
                    continue;
                }
            };
            let since = self.unnoted.get(id).copied().unwrap_or(now);
            if !trace.noted {
                unnoted.insert(id.clone(), since);
            }
            match plan::collect(now, trace, Some(since).filter(|_| !trace.noted), self.settings.grace) {
                Collect::Keep => self.look_how_full(&known.volume),
                Collect::Forget | Collect::Remove => gone.push(id.clone()),
            }
        }
        self.unnoted = unnoted;
        for id in gone {
            tracing::warn!(volume = %id, "the pod of a volume is gone, and nobody asked to unpublish it; it goes");
            self.metrics.collected();
            self.leave(id, None);
        }
        self.forget_tenants();
    }

    /// Measures a volume when there is time. That it can't be done now is no matter: the next round tries again.
    fn look_how_full(&self, volume: &Volume) {
        let folder = || -> io::Result<Option<OwnedFd>> {
            if let Backing::Tmpfs { .. } = volume.wanted.backing {
                return Ok(None);
            }
            let Some(parent) = self.pods.parent(&volume.target)? else { return Ok(None) };
            self.measurable(volume, apply::open(parent.as_fd(), volume)?).map(Some)
        };
        if let Ok(Some(folder)) = folder() {
            let _ = self.work.measure(Measure { id: volume.id.clone(), folder, answer: None });
        }
    }

    fn count(&self) {
        self.metrics.hold(&self.volumes);
        self.metrics.share(self.gates.counts());
    }
}
