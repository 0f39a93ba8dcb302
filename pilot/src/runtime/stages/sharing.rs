//! Stages that other pilots of the same tenant on this node can have, and those of theirs that are wanted here.
//!
//! What is held here for readers is offered as soon as it is committed, and again to each exchange that takes the place of an
//! earlier one. What is wanted and not held is fetched into the place that it would have if it had been made here, and goes with
//! its reader; only who made a stage withdraws it.
//!
//! **Must not know:** which payload runs where, queues.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pilot_core::{Fault, FaultClass};
use stage::exchange::{ExchangeClient, ExchangeError, Fetched, Offered};
use stage::server::{Content, Made};
use stage::{StageName, StageUri};

use super::folders::drop_file;
use super::{Lies, Stages};
use crate::fault::chain;
use crate::payload::{Payload, Source};

/// Where a volume's root has its exchange.
const SOCKET: &str = "exchange/sock";
/// How often a call is tried again on a new connection, and how long it waits in between: a driver that is replaced is away
/// for some seconds.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(250);
/// How old an exchange must be before what it does not know counts as lost: until then others may still have to offer it again.
pub(super) const SETTLED_MS: u64 = 10_000;

/// Whether a volume has an exchange.
pub(in crate::runtime) fn has_exchange(volume: &Path) -> bool {
    volume.join(SOCKET).exists()
}

/// A pilot's place in an exchange.
#[derive(Debug)]
pub(super) struct Sharing {
    /// The volume's root.
    volume: PathBuf,
    /// Names are those of one spool.
    scope: String,
    domain: String,
    line: Mutex<Line>,
    /// What this pilot offers, and has not withdrawn.
    offered: Mutex<BTreeSet<StageUri>>,
    /// What others made, and is held here.
    fetched: Mutex<BTreeSet<StageUri>>,
    /// One at a time fetches.
    fetching: Mutex<()>,
}

#[derive(Debug, Default)]
struct Line {
    client: Option<Arc<ExchangeClient>>,
    /// Something was wanted and not there.
    missed: bool,
}

impl Sharing {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offered(&self) -> MutexGuard<'_, BTreeSet<StageUri>> {
        self.offered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetched(&self) -> MutexGuard<'_, BTreeSet<StageUri>> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, if there is one.
    fn client(&self) -> Option<Arc<ExchangeClient>> {
        self.line().client.clone()
    }

    /// A path below the volume's root.
    fn relative(&self, path: &Path) -> Option<String> {
        path.strip_prefix(&self.volume).ok()?.to_str().map(str::to_owned)
    }
}

/// A stage that is held here, as it is offered.
enum Held {
    Memory(OwnedFd),
    Value(Vec<u8>),
    File(String),
    Folder(String),
}

impl Stages {
    /// Joins the exchange of a volume, on which this pilot's stages lie; gives the name that all pilots share which can have each
    /// other's stages. Blocks for some seconds at most.
    ///
    /// # Errors
    /// When nobody serves it, or this pilot's folders lie elsewhere.
    pub(in crate::runtime) fn join(&self, volume: &Path, scope: &str) -> Result<String, Fault> {
        let failed = |text: String| Fault::new(FaultClass::Pilot, text);
        if !self.root.starts_with(volume) {
            return Err(failed(format!(
                "share stages on {}: they lie at {}, which is not below it; put --state-dir and --scratch-dir there",
                volume.display(),
                self.root.display()
            )));
        }
        let client = connect(volume, scope, TRIES)
            .map_err(|error| failed(format!("share stages: {}", chain(&error))))?;
        let domain = client.domain().to_owned();
        let sharing = Sharing {
            volume: volume.to_path_buf(),
            scope: scope.to_owned(),
            domain: domain.clone(),
            line: Mutex::new(Line { client: Some(Arc::new(client)), missed: false }),
            offered: Mutex::default(),
            fetched: Mutex::default(),
            fetching: Mutex::default(),
        };
        // Joined once, before anything is run.
        let _ = self.sharing.set(sharing);
        Ok(domain)
    }

    /// Asks the exchange, on a new connection when the old one is over; everything is offered again on that one first.
    fn ask_exchange<T>(
        &self,
        sharing: &Sharing,
        ask: impl Fn(&ExchangeClient) -> Result<T, ExchangeError>,
    ) -> Result<T, ExchangeError> {
        let mut tries = TRIES;
        loop {
            let asked = self.exchange(sharing).and_then(|client| {
                ask(&client).inspect_err(|error| {
                    if error.is_lost() {
                        let mut line = sharing.line();
                        line.client.take_if(|known| Arc::ptr_eq(known, &client));
                    }
                })
            });
            match asked {
                Err(error) if error.is_lost() && tries > 0 => std::thread::sleep(PAUSE),
                done => return done,
            }
            tries -= 1;
        }
    }

    fn exchange(&self, sharing: &Sharing) -> Result<Arc<ExchangeClient>, ExchangeError> {
        if let Some(client) = sharing.client() {
            return Ok(client);
        }
        let client = Arc::new(connect(&sharing.volume, &sharing.scope, 0)?);
        if client.domain() != sharing.domain {
            return Err(ExchangeError::Protocol { what: "another domain than before" });
        }
        for uri in self.made_here(sharing) {
            if let Err(error) = self.offer_on(&client, sharing, &uri)
                && error.is_lost()
            {
                return Err(error);
            }
        }
        sharing.line().client = Some(Arc::clone(&client));
        Ok(client)
    }

    /// Everything committed that was made here.
    fn made_here(&self, sharing: &Sharing) -> Vec<StageUri> {
        let all = self.broker.ask(|broker| broker.stages().map(|(uri, ..)| uri.clone()).collect::<Vec<_>>());
        let fetched = sharing.fetched();
        all.unwrap_or_default().into_iter().filter(|uri| !fetched.contains(uri)).collect()
    }

    fn offer_on(
        &self,
        client: &ExchangeClient,
        sharing: &Sharing,
        uri: &StageUri,
    ) -> Result<(), ExchangeError> {
        let held = match self.file(uri) {
            Some(path) => sharing
                .relative(&path)
                .map(|relative| if path.is_dir() { Held::Folder(relative) } else { Held::File(relative) }),
            None => match self.broker.reader(uri, None) {
                Ok(Some(Ok(Content::Memory(fd)))) => Some(Held::Memory(fd)),
                Ok(Some(Ok(Content::Value(value)))) => Some(Held::Value(value)),
                Ok(Some(Ok(Content::File(_)) | Err(_)) | None) | Err(_) => None,
            },
        };
        let Some(held) = held else { return Ok(()) };
        client.offer(
            uri,
            &match &held {
                Held::Memory(fd) => Offered::Memory(fd),
                Held::Value(value) => Offered::Value(value),
                Held::File(path) => Offered::File(path),
                Held::Folder(path) => Offered::Folder(path),
            },
        )?;
        sharing.offered().insert(uri.clone());
        Ok(())
    }

    /// A stage has left memory: as long as the exchange had it there, it would stay.
    pub(super) fn share_again(&self, uri: &StageUri) {
        let Some(sharing) = self.sharing.get() else { return };
        let client = sharing.client();
        if let Some(client) = client.filter(|_| sharing.offered().contains(uri)) {
            let _ = self.offer_on(&client, sharing, uri);
        }
    }

    /// Lets others have what a payload made, before anyone is told that it has ended.
    pub(super) fn share(&self, payload: &Payload) -> Result<(), Fault> {
        let Some(sharing) = self.sharing.get() else { return Ok(()) };
        for output in &payload.outputs {
            // Its gang runs here, and so do those that only it waits for.
            if output.readers.iter().all(|reader| payload.gang.contains(reader)) {
                continue;
            }
            let uri = payload.stage(&output.name);
            if !self.holds_here(&uri) {
                continue;
            }
            let offered = self.ask_exchange(sharing, |client| self.offer_on(client, sharing, &uri));
            offered.map_err(|error| {
                let class = if error.is_lost() { FaultClass::Retry } else { FaultClass::Payload };
                Fault::new(class, format!("share output \"{}\": {}", output.name, chain(&error)))
            })?;
        }
        Ok(())
    }

    /// Brings here what a payload reads and other pilots have.
    pub(in crate::runtime) async fn bring_shared(self: &Arc<Self>, payload: &Payload) -> Result<(), Fault> {
        let Some(sharing) = self.sharing.get() else { return Ok(()) };
        let wanted: Vec<StageUri> = (payload.inputs.iter())
            .filter_map(|input| match &input.source {
                Source::Stage(uri) if !payload.gang.contains(&uri.payload) => Some(uri.clone()),
                Source::Stage(_) | Source::Host(_) | Source::Object(_) => None,
            })
            .filter(|uri| sharing.fetched().contains(uri) || !self.holds_here(uri))
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let (own, reader) = (Arc::clone(self), payload.name.clone());
        let brought = tokio::task::spawn_blocking(move || {
            wanted.iter().try_for_each(|uri| own.fetch_shared(uri, &reader).map(drop))
        });
        brought.await.unwrap_or_else(|error| Err(Fault::new(FaultClass::Pilot, error.to_string())))
    }

    /// Brings a stage here for one reader. Whether it is here now.
    fn fetch_shared(&self, uri: &StageUri, reader: &StageName) -> Result<bool, Fault> {
        let Some(sharing) = self.sharing.get() else { return Ok(false) };
        let retry = |text: String| Fault::new(FaultClass::Retry, text);
        let folder = self.folder_of(uri);
        let path = folder.join(uri.output.as_str());
        let Some(into) = sharing.relative(&path) else { return Ok(false) };
        // Two who want the same take turns: the second one finds it here.
        let _turn = sharing.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        let (asked, one_more) = (uri.clone(), reader.clone());
        let is_here =
            self.broker.ask(move |broker| broker.add_reader(&asked, &one_more)).map_err(super::stopped)?;
        if is_here {
            return Ok(true);
        }
        std::fs::create_dir_all(&folder)
            .map_err(|error| retry(format!("fetch {uri}: make {}: {error}", folder.display())))?;
        let asked = loop {
            let young = std::cell::Cell::new(false);
            let asked = self.ask_exchange(sharing, |client| {
                young.set(client.age_ms() < SETTLED_MS);
                client.fetch(uri, &into)
            });
            match asked {
                // Who made it may have to offer it again, still.
                Err(error) if error.is_missing() && young.get() => std::thread::sleep(PAUSE),
                asked => break asked,
            }
        };
        let fetched = match asked {
            Ok(fetched) => fetched,
            Err(error) => {
                super::folders::tidy(&folder);
                if error.is_missing() {
                    sharing.line().missed = true;
                    return Ok(false);
                }
                return Err(retry(chain(&error)));
            }
        };
        let (made, lies) = match fetched {
            Fetched::Memory(stage) => (Made::Memory(stage), false),
            Fetched::Value(value) => (Made::Value(value), false),
            Fetched::File(bytes) => (self.made(uri, bytes)?, true),
            Fetched::Folder(bytes) => (Made::Folder { bytes }, true),
        };
        let readers = BTreeSet::from([reader.clone()]);
        let mut held = self.lock();
        sharing.fetched().insert(uri.clone());
        match self.broker.insert(uri, made, &readers) {
            Ok(Ok(true)) => {
                if lies {
                    held.insert(uri.clone(), Lies { path, was_memory: false, away: None });
                } else {
                    super::folders::tidy(&folder);
                }
                Ok(true)
            }
            other => {
                if lies {
                    drop_file(&path);
                }
                sharing.fetched().remove(uri);
                Err(retry(match other {
                    Ok(Err(error)) => format!("keep {uri}: {}", chain(&error)),
                    _ => format!("keep {uri}: it is here in another way"),
                }))
            }
        }
    }

    /// A stage is no longer held here: if it was made here, nobody needs it any more.
    pub(super) fn withdraw(&self, uris: &[StageUri]) {
        let Some(sharing) = self.sharing.get() else { return };
        let mut fetched = sharing.fetched();
        for uri in uris {
            fetched.remove(uri);
        }
        drop(fetched);
        let mut offered = sharing.offered();
        let own: Vec<StageUri> = uris.iter().filter(|uri| offered.remove(uri)).cloned().collect();
        drop(offered);
        if own.is_empty() {
            return;
        }
        // An exchange that is away has nothing to forget: to the next one it is not offered.
        let client = sharing.client();
        let _ = client.map(|client| client.withdraw(&own));
    }

    /// Whether another pilot may have a stage. An exchange that is away, or young, has not said that it is lost: then it is
    /// looked for again later ([`Stages::tend_sharing`]).
    pub(super) fn others_may_have(&self, uri: &StageUri) -> bool {
        let Some(sharing) = self.sharing.get() else { return false };
        let asked = self.exchange(sharing).and_then(|client| {
            let there = !client.find(std::slice::from_ref(uri))?.is_empty();
            Ok(there.then_some(true).or_else(|| (client.age_ms() >= SETTLED_MS).then_some(false)))
        });
        asked.ok().flatten().unwrap_or_else(|| {
            sharing.line().missed = true;
            true
        })
    }

    /// All that is on the exchange.
    pub(in crate::runtime) fn shared(&self) -> Vec<StageUri> {
        let client = self.sharing.get().and_then(Sharing::client);
        client.and_then(|client| client.list().ok()).unwrap_or_default()
    }

    /// Takes stages from it, whoever offered them.
    pub(in crate::runtime) fn withdraw_shared(&self, uris: &[StageUri]) {
        let client = self.sharing.get().and_then(Sharing::client);
        let _ = client.map(|client| client.withdraw(uris));
    }

    /// Keeps the connection; says whether a stage that somebody needs may be lost, now that the exchange would know it.
    pub(in crate::runtime) fn tend_sharing(&self) -> bool {
        let Some(sharing) = self.sharing.get() else { return false };
        let Ok(client) = self.exchange(sharing) else { return false };
        // Its end shows when it is asked.
        if let Err(error) = client.find(&[])
            && error.is_lost()
        {
            sharing.line().client = None;
            // What it had is offered again to the next one, and whatever others had may be gone.
            sharing.line().missed = true;
            return false;
        }
        let mut line = sharing.line();
        line.missed && client.age_ms() >= SETTLED_MS && std::mem::take(&mut line.missed)
    }
}

fn connect(volume: &Path, scope: &str, mut tries: u32) -> Result<ExchangeClient, ExchangeError> {
    loop {
        match ExchangeClient::connect(&volume.join(SOCKET), scope) {
            Err(error) if error.is_lost() && tries > 0 => std::thread::sleep(PAUSE),
            connected => return connected,
        }
        tries -= 1;
    }
}
