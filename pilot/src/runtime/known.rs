//! What payloads' image references were found to mean, for as long as that may be believed.
//!
//! Payloads that name the same image with the same logins wait for one look. A failure is not remembered: the next payload
//! tries again. While a finding is fresh, a payload costs neither a request nor a thread.
//!
//! **Must not know:** what a look does, what is found.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pilot_core::{Fault, FaultClass};
use tokio::time::Instant;

use crate::payload::Payload;

/// Payloads whose image may be another by now that are remembered; far more than are ever bound or about to be.
const CHOSEN_MAX: usize = 8192;

/// An image as a payload asks for it: reference, and the auth file if it brings its own.
type Key = (String, Option<PathBuf>);

/// Findings by reference, and by payload where a reference may mean another image by now.
#[derive(Debug)]
pub(super) struct Known<T> {
    entries: Mutex<BTreeMap<Key, Arc<Entry<T>>>>,
    chosen: Mutex<Chosen<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    current: Mutex<Option<Current<T>>>,
    /// Held by the one that looks; the others wait for what it finds.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Current<T> {
    found: Arc<T>,
    /// When to look again; never if none.
    until: Option<Instant>,
}

/// What each payload was prepared with. The oldest go first.
#[derive(Debug)]
struct Chosen<T> {
    by_payload: HashMap<(String, String), Arc<T>>,
    order: VecDeque<(String, String)>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        let chosen = Chosen { by_payload: HashMap::new(), order: VecDeque::new() };
        Self { entries: Mutex::default(), chosen: Mutex::new(chosen) }
    }
}

impl<T> Known<T> {
    /// What the payload's reference means now. `look` is given what was found last, and says what there is and how long it
    /// may be believed; for ever if none.
    pub(super) async fn current<F, L>(&self, payload: &Payload, look: F) -> Result<Arc<T>, Fault>
    where
        F: FnOnce(Option<Arc<T>>) -> L,
        L: Future<Output = Result<(Arc<T>, Option<Duration>), Fault>>,
    {
        let entry = self.entry(payload);
        let found = match entry.fresh() {
            Some(found) => found,
            None => {
                let _looking = entry.looking.lock().await;
                match entry.fresh() {
                    Some(found) => found,
                    None => {
                        let before = locked(&entry.current).as_ref().map(|last| Arc::clone(&last.found));
                        let (found, lasts) = look(before).await?;
                        let until = lasts.map(|lasts| Instant::now() + lasts);
                        *locked(&entry.current) = Some(Current { found: Arc::clone(&found), until });
                        found
                    }
                }
            }
        };
        if locked(&entry.current).as_ref().is_some_and(|current| current.until.is_some()) {
            locked(&self.chosen).put(payload, &found);
        }
        Ok(found)
    }

    /// What a payload was prepared with.
    pub(super) fn chosen(&self, payload: &Payload) -> Result<Arc<T>, Fault> {
        if let Some(found) = locked(&self.chosen).get(payload) {
            return Ok(found);
        }
        let current = locked(&self.entry(payload).current).as_ref().map(|last| Arc::clone(&last.found));
        current
            .ok_or_else(|| Fault::new(FaultClass::Pilot, format!("image {} was not prepared", payload.image)))
    }

    fn entry(&self, payload: &Payload) -> Arc<Entry<T>> {
        let mut entries = locked(&self.entries);
        let key = (payload.image.clone(), payload.registry_auth.clone());
        let fresh = || Arc::new(Entry { current: Mutex::new(None), looking: tokio::sync::Mutex::default() });
        Arc::clone(entries.entry(key).or_insert_with(fresh))
    }
}

impl<T> Entry<T> {
    /// What is known and need not be looked up again.
    fn fresh(&self) -> Option<Arc<T>> {
        let current = locked(&self.current);
        let current = current.as_ref()?;
        let fresh = current.until.is_none_or(|until| Instant::now() < until);
        fresh.then(|| Arc::clone(&current.found))
    }
}

impl<T> Chosen<T> {
    fn key(payload: &Payload) -> (String, String) {
        (payload.workflow.as_str().to_owned(), payload.name.as_str().to_owned())
    }

    fn get(&self, payload: &Payload) -> Option<Arc<T>> {
        if self.by_payload.is_empty() { None } else { self.by_payload.get(&Self::key(payload)).cloned() }
    }

    fn put(&mut self, payload: &Payload, found: &Arc<T>) {
        let key = Self::key(payload);
        if self.by_payload.insert(key.clone(), Arc::clone(found)).is_some() {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > CHOSEN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_payload.remove(&oldest);
        }
    }
}
