//! Images as the pilot of a pod sees them: looked up in their registry before a slot is touched, and named so that the
//! kubelet takes them for new each time.
//!
//! The pilot reads manifests and configurations only; layers are the kubelet's. Whoever may not have an image is refused by
//! the registry here, with the payload's own credentials.
//!
//! **Must not know:** slots, the API.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use image_store::{ImageConfig, ImageId, Logins, Reference, RegistryAccess, Repository, Store, Transport};
use pilot_core::{Epoch, Fault, FaultClass};

use super::view::SlotShape;
use crate::fault::chain;
use crate::payload::Payload;
use crate::runtime::known::Known;
use crate::runtime::launching::{invocation, nothing_to_run};
use crate::runtime::local::images::{TAG_LASTS, access_of, preflight_fault};
use crate::ui::bytes;

/// How long a payload's own login is taken on trust, as the image store does.
const LOGIN_LASTS: Duration = Duration::from_secs(24 * 3600);

/// The images.
pub(super) struct Images {
    store: Arc<Store>,
    access: RegistryAccess,
    known: Known<PodImage>,
}

/// An image that can be bound.
#[derive(Debug)]
pub(super) struct PodImage {
    repository: Repository,
    pub(super) id: ImageId,
    pub(super) config: ImageConfig,
    /// Of its layers, as the registry has them.
    pub(super) bytes: u64,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").field("store", &self.store.path()).finish_non_exhaustive()
    }
}

impl Images {
    pub(super) fn new(store: &Path, access: RegistryAccess) -> Result<Self, image_store::StoreError> {
        Ok(Self { store: Arc::new(Store::open(store)?), access, known: Known::default() })
    }

    /// Checks that the payload's image is there, for this platform and this asker, and that there is something to run.
    pub(super) async fn prepare(&self, payload: &Payload) -> Result<Arc<PodImage>, Fault> {
        let image = self.known.current(payload, |before| self.look(payload, before)).await?;
        let (argv, ..) = invocation(payload, &image.config);
        if argv.is_empty() { Err(nothing_to_run()) } else { Ok(image) }
    }

    /// What a payload was prepared with.
    pub(super) fn chosen(&self, payload: &Payload) -> Result<Arc<PodImage>, Fault> {
        self.known.chosen(payload)
    }

    /// The auth file that a payload brings; that of the pilot itself is none.
    pub(super) fn login_of<'p>(&self, payload: &'p Payload) -> Option<&'p Path> {
        let own = |file: &Path| matches!(&self.access.logins, Logins::File(own) if own == file);
        payload.registry_auth.as_deref().filter(|file| !own(file))
    }

    /// Whether a login is known for a payload's image: that which it brings, or the pilot's own.
    pub(super) fn takes_login(&self, payload: &Payload, image: &PodImage) -> bool {
        let own = || self.access.excerpt([&image.repository]).is_ok_and(|excerpt| !excerpt.is_empty());
        self.login_of(payload).is_some() || own()
    }

    async fn look(
        &self,
        payload: &Payload,
        before: Option<Arc<PodImage>>,
    ) -> Result<(Arc<PodImage>, Option<Duration>), Fault> {
        let reference: Reference =
            payload.image.parse().map_err(|error| Fault::new(FaultClass::Payload, chain(&error)))?;
        let Some(repository) = reference.repository().cloned() else {
            let text = format!(
                "image {} is in a folder or file; on Kubernetes images come from a registry (docker://..): push it, or \
                 let `pilot run` do it with --push",
                payload.image
            );
            return Err(Fault::new(FaultClass::Payload, text));
        };
        let tag = reference.transport() == Transport::Docker && reference.digest().is_none();
        let (store, access) = (Arc::clone(&self.store), access_of(payload, &self.access));
        let found = tokio::task::spawn_blocking(move || store.preflight(&reference, &access)).await;
        let panicked = |_| Fault::new(FaultClass::Pilot, "looking at an image panicked");
        let found = found.map_err(panicked)?.map_err(|error| preflight_fault(&error))?;
        let login = self.login_of(payload).map(|_| LOGIN_LASTS);
        let lasts = tag.then_some(TAG_LASTS).or(login);
        if let Some(before) = before.filter(|before| before.id == found.image) {
            return Ok((before, lasts));
        }
        let bytes = found.layers.iter().map(|layer| layer.bytes).sum();
        Ok((Arc::new(PodImage { repository, id: found.image, config: found.config, bytes }), lasts))
    }
}

impl PodImage {
    /// The reference for one bind. The digest decides which image it is; the tag, which need not exist, makes it new to the
    /// kubelet, which restarts the container without a pull and without the back-off of what ran there before.
    pub(super) fn salted(&self, epoch: Epoch) -> String {
        format!("{}:{}@{}", self.repository, salt(epoch), self.id)
    }

    /// The reference without salt.
    pub(super) fn pinned(&self) -> String {
        format!("{}@{}", self.repository, self.id)
    }

    /// The registry that it is in.
    pub(super) fn host(&self) -> &str {
        self.repository.host()
    }
}

/// A tag that no earlier life of the pilot used.
fn salt(epoch: Epoch) -> String {
    format!("x{}-{:06x}", epoch.0, fastrand::u32(..) & 0x00ff_ffff)
}

/// The idle image for one bind. Without a digest it can't be salted: a tag means another image.
pub(super) fn salted_idle(idle: &str, epoch: Epoch) -> String {
    let Some((name, digest)) = idle.split_once('@') else { return idle.to_owned() };
    // A colon before the last slash is a port's.
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    let name = match name[slash..].find(':') {
        Some(colon) => &name[..slash + colon],
        None => name,
    };
    format!("{name}:{}@{digest}", salt(epoch))
}

/// What a slot of a pod can't do for a payload, whatever the image.
pub(super) fn objection(payload: &Payload, slot: &SlotShape, resizes: bool) -> Option<String> {
    let Payload { user, needs_image_user, resources, writable_root, host_network, .. } = payload;
    let wanted = match user {
        Some((uid, _)) if Some(i64::from(*uid)) != slot.uid => Some(format!("user {uid}")),
        None if *needs_image_user => Some("its image's user".to_owned()),
        Some(_) | None => None,
    };
    if let Some(wanted) = wanted {
        let own = slot.uid.map_or("the pod's".to_owned(), |uid| uid.to_string());
        return Some(format!(
            "it asks to be {wanted}, and in a pod every payload is its slot's user ({own}); leave user out"
        ));
    }
    if !host_network {
        return Some(
            "it asks for no network, and the slots of a pod share the pod's; leave network out".into(),
        );
    }
    if *writable_root && slot.root_is_read_only {
        return Some(
            "it asks for a writable root, and this pod's slots are read-only; make the pod with `pilot pod --writable-root`"
                .into(),
        );
    }
    let too_much = |asked: u64, has: Option<u64>, words: fn(u64) -> String, sum: &str| {
        let has = words(has.filter(|has| asked > *has && !resizes)?);
        let asked = words(asked);
        let todo = "make the pod with fewer slots or more for them";
        Some(format!("it asks for {asked}{sum}, and a slot of this pod has {has}; {todo}"))
    };
    let memory = |amount| format!("{} of memory", bytes(amount));
    let cpu = |millis| format!("{} cpu", millis as f64 / 1000.0);
    let sum = match payload.output_memory_bytes() {
        0 => String::new(),
        outputs => {
            format!(" ({} and {} for outputs in memory)", bytes(resources.memory_bytes), bytes(outputs))
        }
    };
    too_much(payload.memory_bytes(), slot.memory_bytes, memory, &sum)
        .or_else(|| too_much(resources.cpu_millis, slot.cpu_millis, cpu, ""))
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
