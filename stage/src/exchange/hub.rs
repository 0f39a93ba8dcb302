//! Tenants and their objects. The lock is held for looking and counting; links are made outside of it.
//!
//! **Must not know:** sockets, messages.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, unlinkat};
use wire::exchange::{Code, NAMES_MAX};

use super::Quota;
use crate::{MemoryStage, StageName, StageUri, remove_folder};

/// Why something was not done.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: Code,
    pub(super) text: String,
}

impl Refusal {
    pub(super) fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    pub(super) fn io(doing: &str, error: &io::Error) -> Self {
        Self::new(Code::Io, format!("{doing}: {error}"))
    }
}

/// What holds an object's bytes.
#[derive(Debug)]
pub(super) enum Kept {
    Memory(MemoryStage),
    Value(Vec<u8>),
    File(Link),
    Folder(Link),
}

/// A name in the tenant's folder. It goes with this.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) folder: Arc<OwnedFd>,
    pub(super) name: StageName,
}

impl Drop for Link {
    fn drop(&mut self) {
        let gone = unlinkat(&self.folder, self.name.as_str(), AtFlags::empty());
        if gone.is_err() {
            // A folder; or it is away already, with everything else.
            let _ = remove_folder(self.folder.as_fd(), &self.name);
        }
    }
}

/// One stage of a tenant.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) bytes: u64,
    pub(super) kept: Kept,
}

#[derive(Debug, Default)]
struct Tenant {
    objects: BTreeMap<Key, Arc<Object>>,
    gates: usize,
    /// Of all objects, and of those that are being made.
    bytes: u64,
    making: usize,
}

/// The scope and the name in it.
pub(super) type Key = (Arc<str>, StageUri);

/// What there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tenants with a gate.
    pub tenants: usize,
    /// Gates.
    pub gates: usize,
    /// Stages that can be had.
    pub objects: usize,
    /// What they have together.
    pub bytes: u64,
    /// Stages offered since the start.
    pub offered: u64,
    /// Stages fetched since the start.
    pub fetched: u64,
}

/// All tenants.
#[derive(Debug, Default)]
pub(super) struct Hub {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tenants: BTreeMap<String, Tenant>,
    offered: u64,
    fetched: u64,
    last: u64,
}

/// Room in a tenant's quota, given back when it is not used.
#[derive(Debug)]
pub(super) struct Room<'hub> {
    hub: &'hub Hub,
    domain: &'hub str,
    bytes: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let mut state = self.hub.lock();
        if let Some(tenant) = state.tenants.get_mut(self.domain) {
            tenant.bytes = tenant.bytes.saturating_sub(self.bytes);
            tenant.making = tenant.making.saturating_sub(1);
        }
    }
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(&self, domain: &str) {
        self.lock().tenants.entry(domain.to_owned()).or_default().gates += 1;
    }

    /// The last gate takes the objects along.
    pub(super) fn leave(&self, domain: &str) {
        let mut state = self.lock();
        let last = state.tenants.get_mut(domain).is_some_and(|tenant| {
            tenant.gates = tenant.gates.saturating_sub(1);
            tenant.gates == 0
        });
        let gone = if last { state.tenants.remove(domain) } else { None };
        drop(state);
        // Links are removed outside of the lock.
        drop(gone);
    }

    /// A name that no object ever had.
    pub(super) fn next_name(&self) -> Option<StageName> {
        let mut state = self.lock();
        state.last += 1;
        StageName::new(&format!("o{}", state.last)).ok()
    }

    /// Takes room for one more object, before anything is made.
    pub(super) fn reserve<'hub>(
        &'hub self,
        domain: &'hub str,
        key: &Key,
        bytes: u64,
        quota: Quota,
    ) -> Result<Room<'hub>, Refusal> {
        let uri = &key.1;
        let mut state = self.lock();
        let ended = || Refusal::new(Code::Ended, "the volume is gone");
        let tenant = state.tenants.get_mut(domain).ok_or_else(ended)?;
        let replaced = tenant.objects.get(key);
        let objects = tenant.objects.len() + tenant.making + usize::from(replaced.is_none());
        if objects > quota.objects {
            let text = format!("offer {uri}: {} stages are all that a tenant may have here", quota.objects);
            return Err(Refusal::new(Code::TooMany, text));
        }
        let held = tenant.bytes - replaced.map_or(0, |object| object.bytes);
        if held.checked_add(bytes).is_none_or(|all| all > quota.bytes) {
            let text = format!(
                "offer {uri}: {bytes} bytes are more than is left of {}; its readers must run where it was made",
                quota.bytes
            );
            return Err(Refusal::new(Code::OverQuota, text));
        }
        tenant.bytes = tenant.bytes.saturating_add(bytes);
        tenant.making += 1;
        Ok(Room { hub: self, domain, bytes })
    }

    /// Puts an object in, or in the place of the one of its name; `room` was taken for it.
    pub(super) fn put(&self, room: Room<'_>, key: &Key, kept: Kept) -> Result<(), Refusal> {
        let mut state = self.lock();
        state.offered += 1;
        let tenant = state.tenants.get_mut(room.domain);
        let Some(tenant) = tenant else { return Err(Refusal::new(Code::Ended, "the volume is gone")) };
        let object = Object { bytes: room.bytes, kept };
        // The room's bytes are given back when it is dropped; now they are the object's.
        tenant.bytes = tenant.bytes.saturating_add(object.bytes);
        let old = tenant.objects.insert(key.clone(), Arc::new(object));
        tenant.bytes = tenant.bytes.saturating_sub(old.as_ref().map_or(0, |old| old.bytes));
        drop(state);
        drop((old, room));
        Ok(())
    }

    pub(super) fn find(&self, domain: &str, key: &Key) -> Option<Arc<Object>> {
        self.lock().tenants.get(domain)?.objects.get(key).map(Arc::clone)
    }

    /// Names of a scope in order, after one of them.
    pub(super) fn list(&self, domain: &str, scope: &Arc<str>, after: Option<&StageUri>) -> Vec<StageUri> {
        let state = self.lock();
        let Some(tenant) = state.tenants.get(domain) else { return Vec::new() };
        let from =
            after.map_or(Bound::Unbounded, |after| Bound::Excluded((Arc::clone(scope), after.clone())));
        let rest = tenant.objects.range((from, Bound::Unbounded)).map(|(key, _)| key);
        let own = rest.skip_while(|(of, _)| of < scope).take_while(|(of, _)| of == scope);
        own.take(NAMES_MAX).map(|(_, uri)| uri.clone()).collect()
    }

    pub(super) fn fetched(&self) {
        self.lock().fetched += 1;
    }

    pub(super) fn withdraw(&self, domain: &str, keys: &[Key]) {
        let mut state = self.lock();
        let Some(tenant) = state.tenants.get_mut(domain) else { return };
        let gone: Vec<Arc<Object>> = keys.iter().filter_map(|key| tenant.objects.remove(key)).collect();
        let bytes = gone.iter().map(|object| object.bytes).sum();
        tenant.bytes = tenant.bytes.saturating_sub(bytes);
        drop(state);
        drop(gone);
    }

    pub(super) fn counts(&self) -> Counts {
        let state = self.lock();
        let of = |count: fn(&Tenant) -> u64| state.tenants.values().map(count).sum::<u64>();
        let number = |count: fn(&Tenant) -> usize| state.tenants.values().map(count).sum::<usize>();
        Counts {
            tenants: state.tenants.len(),
            gates: number(|tenant| tenant.gates),
            objects: number(|tenant| tenant.objects.len()),
            bytes: of(|tenant| tenant.bytes),
            offered: state.offered,
            fetched: state.fetched,
        }
    }
}
