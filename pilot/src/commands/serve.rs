//! `pilot serve`: works for a spool until it is told to stop, and takes up what an earlier pilot of its name left.
//!
//! ```text
//!   folders and lock ─> spool ─> what runs already? ─> claims that go on ─> driver ─> (told to stop) ─> all taken down
//! ```
//! **Must not know:** what is decided, how payloads run, tables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pilot_core::{ClaimId, Demand, DoneWhy, Fault, Lifetime, PilotConfig, RunExit};
use spool::{NewPilot, Registration, Spool};
use stage::{StageName, StageUri};

use crate::board::{Going, Identity, LiveBoard, StagesHeld};
use crate::cli::{OutputFormat, ServeArgs, complain, refuse, say};
use crate::cluster::{LocalCluster, PodCluster};
use crate::commands::run::local_exit;
use crate::config::{Config, Settings, Surroundings, spool_folder};
use crate::driver::{Adoption, Driver, Progress};
use crate::fault::chain;
use crate::ports::{Cluster, Offer, StageFigures};
use crate::queue::spool::{SpoolQueue, SpoolQueueConfig};
use crate::runtime::adoption::{Found, Standing};
use crate::runtime::exchange::has_exchange;
use crate::runtime::local::{LocalRuntime, Name, start_ticks};

/// How often the spool hears of a pilot, and stages are looked through for such as nobody will read.
const TEND: Duration = Duration::from_secs(30);

/// What is to be served, checked.
struct Wanted {
    config: Config,
    spool: std::path::PathBuf,
    name: String,
    metrics: Option<SocketAddr>,
    until_empty: bool,
    output: OutputFormat,
}

/// Serves.
pub fn serve(
    settings: Settings,
    around: &Surroundings,
    arguments: &ServeArgs,
    output: OutputFormat,
) -> RunExit {
    let wanted = spool_folder(settings.spool.clone(), around).and_then(|spool| {
        let metrics = settings.metrics;
        let config = Config::new(settings, around)?;
        let name = config.name.clone();
        Ok(Wanted { config, spool, name, metrics, until_empty: arguments.until_empty, output })
    });
    let wanted = match wanted {
        Ok(wanted) => wanted,
        Err(error) => return refuse(&error),
    };
    let threads = super::threads();
    match threads {
        Ok(threads) => threads.block_on(run(wanted)),
        Err(error) => {
            complain(&format!("start: {error}"));
            RunExit::OwnFault
        }
    }
}

async fn run(wanted: Wanted) -> RunExit {
    // Listening comes first: a Ctrl-C from here on must leave nothing behind.
    let signals = match LocalCluster::listen() {
        Ok(signals) => signals,
        Err(error) => {
            complain(&format!("listen for signals: {error}"));
            return RunExit::OwnFault;
        }
    };
    let total = Demand { cpu_millis: wanted.config.cpu_millis, memory_bytes: wanted.config.memory_bytes };
    if wanted.config.place.is_some() {
        return match super::in_pod::runtime(&wanted.config, true).await {
            Ok(runtime) => {
                let cluster = PodCluster::new(signals, runtime.grace());
                let share = Share { slots: runtime.slot_count(), total: runtime.total() };
                serve_with(&wanted, share, Arc::new(runtime), cluster).await
            }
            Err((line, exit)) => {
                complain(&line);
                exit
            }
        };
    }
    let (config, name) = (wanted.config.clone(), wanted.name.clone());
    let made = tokio::task::spawn_blocking(move || LocalRuntime::new(&config, Name::Fixed(&name))).await;
    match made {
        Ok(Ok(runtime)) => {
            let share = Share { slots: wanted.config.slots, total };
            serve_with(&wanted, share, Arc::new(runtime), signals).await
        }
        Ok(Err(error)) => local_exit(&error),
        Err(error) => {
            complain(&format!("start: {error}"));
            RunExit::OwnFault
        }
    }
}

/// What the pilot has to hand out.
#[derive(Clone, Copy)]
struct Share {
    slots: u32,
    total: Demand,
}

async fn serve_with<R: Standing>(
    wanted: &Wanted,
    share: Share,
    runtime: Arc<R>,
    cluster: impl Cluster,
) -> RunExit {
    let exit = match begin(wanted, share, &runtime).await {
        Ok(service) => service.drive(wanted, share, Arc::clone(&runtime), cluster).await,
        Err((line, exit)) => {
            complain(&line);
            exit
        }
    };
    // Its folders go with it, which may take a while.
    let _ = tokio::task::spawn_blocking(move || drop(runtime)).await;
    exit
}

/// All that serves beside the driver.
struct Service {
    queue: Arc<SpoolQueue>,
    board: LiveBoard,
    adoptions: Vec<Adoption>,
    spool: Spool,
    _registration: Registration,
    api: crate::api::Serving,
    _metrics: Option<crate::metrics::Serving>,
    sharing: bool,
}

type Refusal = (String, RunExit);

async fn begin<R: Standing>(wanted: &Wanted, share: Share, runtime: &Arc<R>) -> Result<Service, Refusal> {
    let Wanted { spool: folder, name, metrics, until_empty, .. } = wanted;
    let bad = |error: &dyn std::error::Error| (chain(error), RunExit::BadInput);
    let mut spool = Spool::open(folder).map_err(|error| bad(&error))?;
    let Share { slots, total } = share;
    let identity = Identity {
        name: name.clone(),
        slots,
        cpu_millis: total.cpu_millis,
        memory_bytes: total.memory_bytes,
    };
    let looked_at = Arc::downgrade(runtime);
    let board = LiveBoard::new(identity).with_stages(move || held(&looked_at)).looking_back();
    let socket = runtime.api_socket();
    let api = crate::api::serve(&socket, board.clone(), Arc::clone(runtime)).map_err(|error| bad(&error))?;
    let metrics = metrics.map(|address| crate::metrics::serve(address, board.clone())).transpose();
    let metrics = metrics.map_err(|error| bad(&error))?;
    let own = std::process::id();
    let new = NewPilot {
        name: name.clone(),
        pid: own,
        start_ticks: start_ticks(own).unwrap_or(0),
        api_socket: socket.display().to_string(),
        slots,
    };
    let registration = spool.register(&new).map_err(|error| bad(&error))?;
    let unusable = |fault: Fault| (fault.to_string(), RunExit::BadInput);
    let domain = match shared_volume(&wanted.config) {
        Some(volume) => {
            let identity = spool.identity().map_err(|error| bad(&error))?;
            Some(runtime.exchange().join(volume, identity).await.map_err(unusable)?)
        }
        None => None,
    };
    let sharing = domain.is_some();
    let closes = SpoolQueueConfig { closes: *until_empty, domain, ..SpoolQueueConfig::new(name) };
    let queue = Arc::new(SpoolQueue::open(folder, closes).map_err(unusable)?);
    let adoptions = recover(&queue, runtime).await.map_err(unusable)?;
    free_stages(&queue, &**runtime).await;
    board.found(adoptions.iter().map(|Adoption { slot, epoch, offer, .. }| Going {
        slot: *slot,
        epoch: *epoch,
        payload: Arc::clone(&offer.payload),
        attempt: offer.terms.attempt,
    }));
    Ok(Service {
        queue,
        board,
        adoptions,
        spool,
        _registration: registration,
        api,
        _metrics: metrics,
        sharing,
    })
}

/// What the board says of stages.
fn held<R: Standing>(runtime: &std::sync::Weak<R>) -> StagesHeld {
    let Some(runtime) = runtime.upgrade() else { return StagesHeld::default() };
    let rows = runtime.stages();
    let bytes = rows.iter().map(|row| row.bytes).sum();
    let StageFigures { spilled, spilled_bytes, .. } = runtime.stage_figures();
    let (stages, dropped) = (rows.len() as u64, runtime.dropped_outputs());
    StagesHeld { stages, bytes, dropped, spilled, spilled_bytes }
}

/// Brings together what was found in slots and what the spool says of it.
async fn recover<R: Standing>(queue: &SpoolQueue, runtime: &Arc<R>) -> Result<Vec<Adoption>, Fault> {
    let inventory = runtime.recover().await;
    for (slot, fault) in &inventory.dirty {
        tracing::error!(%slot, %fault, "what an earlier pilot left in a slot can't be removed");
    }
    let running: Vec<ClaimId> = inventory.found.iter().map(|found| found.claim).collect();
    // Whoever lost its records can't tell what was launched.
    let launched = (!runtime.is_new()).then(|| inventory.lost.clone());
    let stages = Arc::clone(runtime);
    let recovered = queue.recover(running, launched, move |stage| stages.holds(stage)).await?;
    let lost = recovered.given_up;
    let mut offers = recovered.offers;
    let mut adoptions = Vec::new();
    for Found { slot, epoch, claim, key, ran_ms, payload } in inventory.found {
        // A claim of another spool may have the same number.
        let is_its = |offer: &Offer| {
            offer.claim == claim
                && (&offer.payload.workflow, &offer.payload.name) == (&payload.workflow, &payload.name)
        };
        match offers.iter().position(is_its) {
            Some(index) => {
                let offer = offers.swap_remove(index);
                tracing::info!(%slot, payload = %payload.name, "adopted");
                adoptions.push(Adoption { slot, epoch, key, ran_ms, offer });
            }
            None => {
                tracing::info!(%slot, payload = %payload.name, "nobody wants what runs here any more");
                runtime.disown(slot).await?;
            }
        }
    }
    if !adoptions.is_empty() || lost > 0 || !recovered.made_again.is_empty() {
        let again = recovered.made_again.len();
        complain(&format!(
            "went on where the last pilot stopped: {} adopted, {lost} lost, {again} to be made again",
            adoptions.len()
        ));
    }
    Ok(adoptions)
}

/// The volume whose exchange is to be joined: the one that was named, or the pod's, if it has one.
fn shared_volume(config: &Config) -> Option<PathBuf> {
    let of_pod = || config.place.as_ref()?.share.clone().filter(|share| has_exchange(share));
    config.exchange.clone().or_else(of_pod)
}

/// Frees stages whose readers ended elsewhere, or were cancelled.
async fn free_stages(queue: &SpoolQueue, runtime: &impl Standing) {
    for workflow in runtime.workflows() {
        let Ok(unfinished) = queue.unfinished(&workflow).await else { return };
        let names: BTreeSet<StageName> =
            unfinished.iter().filter_map(|name| StageName::new(name).ok()).collect();
        runtime.keep_stages(&workflow, &names);
    }
}

impl Service {
    async fn drive<R: Standing>(
        mut self,
        wanted: &Wanted,
        share: Share,
        runtime: Arc<R>,
        cluster: impl Cluster,
    ) -> RunExit {
        let Wanted { config, spool: folder, name, output, .. } = wanted;
        let teller = Teller { output: *output };
        teller.began(name, folder, share.slots, self.adoptions.len());
        if let Some(lack) = runtime.unenforced() {
            complain(&lack);
        }
        let pilot = PilotConfig {
            bind_ahead: config.bind_ahead,
            idle_ms: config.idle_ms,
            lifetime: config.lifetime_ms.map(lifetime),
            ..PilotConfig::new(share.slots, share.total)
        };
        let mut driver = Driver::new(pilot, Arc::clone(&self.queue), Arc::clone(&runtime), cluster);
        driver.adopt(std::mem::take(&mut self.adoptions));
        let tending = tend(Arc::clone(&self.queue), Arc::clone(&runtime));
        let sharing = async {
            if !self.sharing {
                std::future::pending::<()>().await;
            }
            tend_sharing(Arc::clone(&self.queue), Arc::clone(&runtime)).await
        };
        let board = self.board.clone();
        let driven = driver.run(|progress| {
            board.take(&progress);
            teller.progress(&progress);
        });
        let done = tokio::select! {
            done = driven => done,
            never = tending => match never {},
            never = sharing => match never {},
        };
        if self.sharing {
            free_shared(&self.queue, &*runtime).await;
        }
        // Its tasks hold the runtime.
        self.api.close().await;
        if let Err(error) = self.spool.unregister(name) {
            tracing::warn!(error = chain(&error), "the spool still lists this pilot");
        }
        match done.why {
            DoneWhy::AllRetired => {
                complain(
                    "every slot had to be retired, because what payloads left could not be removed; see -v",
                );
                RunExit::OwnFault
            }
            DoneWhy::BlackHole(why) => {
                complain(&format!("gave up on this machine: {why}; `pilot check` says what it lacks"));
                RunExit::HostUnable
            }
            DoneWhy::QueueClosed | DoneWhy::Idle | DoneWhy::Lifetime | DoneWhy::Stopped(_) => {
                RunExit::Success
            }
        }
    }
}

/// What has to be done now and then beside the driver.
async fn tend(queue: Arc<SpoolQueue>, runtime: Arc<impl Standing>) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(TEND).await;
        if let Err(fault) = queue.beat().await {
            tracing::debug!(%fault, "the spool can't be told that this pilot lives");
        }
        free_stages(&queue, &*runtime).await;
    }
}

/// How often the exchange is looked after, and stages are freed whose readers ended in other pilots.
const TEND_SHARING: Duration = Duration::from_secs(5);

/// Frees stages whose readers ended elsewhere, and those of ended runs on the exchange, whose makers may be gone.
async fn free_shared(queue: &SpoolQueue, runtime: &impl Standing) {
    free_stages(queue, runtime).await;
    let exchange = runtime.exchange();
    let mut shared: BTreeMap<StageName, Vec<StageUri>> = BTreeMap::new();
    for uri in exchange.stages().await {
        shared.entry(uri.workflow.clone()).or_default().push(uri);
    }
    let mut ended = Vec::new();
    for (workflow, uris) in shared {
        match queue.unfinished(&workflow).await {
            Ok(unfinished) if unfinished.is_empty() => ended.extend(uris),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    exchange.withdraw(ended).await;
}

/// What has to be done where stages are shared.
async fn tend_sharing(queue: Arc<SpoolQueue>, runtime: Arc<impl Standing>) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(TEND_SHARING).await;
        free_shared(&queue, &*runtime).await;
        if !runtime.exchange().tend().await {
            continue;
        }
        let stages = Arc::clone(&runtime);
        match queue.restore(move |stage| stages.holds(stage)).await {
            Ok(restored) if restored.made_again.is_empty() && restored.failed.is_empty() => {}
            Ok(restored) => complain(&format!(
                "stages of other pilots are gone: {} payloads make them again, {} fail for want of them",
                restored.made_again.len(),
                restored.failed.len()
            )),
            Err(fault) => tracing::warn!(%fault, "lost stages are looked for again"),
        }
    }
}

/// The last tenth, at most ten minutes, takes no new work; the last thirtieth ends what runs.
fn lifetime(total_ms: u64) -> Lifetime {
    Lifetime {
        total_ms,
        retire_before_ms: (total_ms / 10).min(600_000),
        stop_before_ms: (total_ms / 30).min(200_000),
    }
}

/// Tells people, or programs, what is going on.
struct Teller {
    output: OutputFormat,
}

impl Teller {
    fn began(&self, name: &str, folder: &std::path::Path, slots: u32, adopted: usize) {
        if self.output == OutputFormat::Json {
            let line = serde_json::json!({
                "event": "serving", "pilot": name, "spool": folder.display().to_string(),
                "slots": slots, "adopted": adopted,
            });
            say(&format!("{line}\n"));
        } else {
            say(&format!("{name} serves {} with {} slots\n", folder.display(), slots));
        }
    }

    fn progress(&self, progress: &Progress) {
        let Progress::Ended { payload, attempt, outcome, note, retry } = progress else { return };
        if self.output == OutputFormat::Json {
            let line = serde_json::json!({
                "event": "payload_ended", "workflow": payload.workflow.as_str(), "name": payload.name.as_str(),
                "attempt": attempt, "ok": outcome.is_success(), "retry": retry,
                "outcome": outcome.conclusion.to_string(), "note": note,
            });
            say(&format!("{line}\n"));
        } else {
            let note = note.as_deref().map(|note| format!(": {note}")).unwrap_or_default();
            tracing::info!(workflow = %payload.workflow, payload = %payload.name, "{}{note}", outcome.conclusion);
        }
    }
}
