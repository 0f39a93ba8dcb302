//! `pilot attend`: the pod's side of a run from a workstation. And `pilot stand`, which holds the pod meanwhile.
//!
//! **Must not know:** the workstation's files, how anything is shown.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pilot_core::{PilotConfig, RunExit, StopCause};
use tokio::io::{Stdin, Stdout};
use tokio::sync::mpsc;

use super::files::{Receiving, pieces, send};
use super::frame::{Frame, FrameError, read, write};
use super::{FromPod, PROTOCOL, Piece, PieceKind, RUN_FOLDER, SentRow, ToPod};
use crate::cluster::{LocalCluster, PodCluster};
use crate::commands::run::exit_of;
use crate::config::Config;
use crate::driver::{Driver, Progress};
use crate::fault::chain;
use crate::payload::Payload;
use crate::ports::{Cluster, ClusterStatus, Runtime as _, StopRequest};
use crate::queue::workflow::{Entry, WorkflowQueue};
use crate::runtime::adoption::Standing as _;
use crate::runtime::kubernetes::KubernetesRuntime;
use crate::show::{End, ends};

/// News that may wait for the stream: each payload has a handful a try. The driver waits when it is full.
const NEWS_MAX: usize = 4096;
/// How long a pod is held for a workstation that does not come.
const ALONE: Duration = Duration::from_secs(120);
/// How often the one that holds the pod looks.
const LOOK: Duration = Duration::from_millis(500);

/// Holds the pod until a run has been attended to, or nobody came; then lets the slots end, so that the pod does.
pub(crate) async fn stand(config: &Config, runtime: KubernetesRuntime) -> RunExit {
    let Ok(mut signals) = LocalCluster::listen() else { return RunExit::OwnFault };
    let attended = private(config).join("attended");
    let mut alone = Duration::ZERO;
    loop {
        tokio::select! {
            // The pod goes. The kubelet tells its first process only, and that is this one.
            _ = signals.watch_stop() => match attending(&attended) {
                Some(pid) => drop(rustix::process::kill_process(pid, rustix::process::Signal::TERM)),
                None => return RunExit::Success,
            },
            () = tokio::time::sleep(LOOK) => {}
        }
        if attended.exists() {
            if attending(&attended).is_none() {
                break;
            }
        } else {
            alone += LOOK;
            if alone >= ALONE {
                break;
            }
        }
    }
    runtime.close().await;
    RunExit::Success
}

/// Who attends to a run, if anybody does: whoever does has the file locked, and the kernel unlocks it however that ends.
fn attending(file: &Path) -> Option<rustix::process::Pid> {
    let locked = File::open(file).is_ok_and(|file| file.try_lock().is_err());
    let pid = std::fs::read_to_string(file).ok().filter(|_| locked)?;
    rustix::process::Pid::from_raw(pid.trim().parse().ok()?)
}

fn private(config: &Config) -> PathBuf {
    let share = config.place.as_ref().and_then(|place| place.share.clone()).unwrap_or_default();
    crate::runtime::kubernetes::private_folder(&share)
}

/// Runs what the workstation sends.
pub(crate) async fn attend(
    config: &Config,
    runtime: Result<KubernetesRuntime, (String, RunExit)>,
) -> RunExit {
    let (mut stdin, mut stdout) = (tokio::io::stdin(), tokio::io::stdout());
    match begin(config, runtime, &mut stdin, &mut stdout).await {
        Ok(run) => run.go(stdin, stdout).await,
        Err(refusal) => {
            let exit = refusal.exit;
            let told = FromPod::Refused { line: refusal.line, exit: exit.code() };
            // A workstation that has gone does not want to know.
            let _ = write(&mut stdout, &told).await;
            exit
        }
    }
}

struct Refusal {
    line: String,
    exit: RunExit,
}

impl Refusal {
    fn bad(error: &dyn std::error::Error) -> Self {
        Self { line: chain(error), exit: RunExit::BadInput }
    }
}

struct Run {
    runtime: Arc<KubernetesRuntime>,
    entries: Vec<Entry>,
    out: PathBuf,
    config: PilotConfig,
    _attended: File,
}

async fn begin(
    config: &Config,
    runtime: Result<KubernetesRuntime, (String, RunExit)>,
    stdin: &mut Stdin,
    stdout: &mut Stdout,
) -> Result<Run, Refusal> {
    let runtime = Arc::new(runtime.map_err(|(line, exit)| Refusal { line, exit })?);
    let folder = private(config);
    let attended = OpenOptions::new().create(true).truncate(false).write(true).open(folder.join("attended"));
    let attended = attended.map_err(|error| Refusal::bad(&error))?;
    if attended.try_lock().is_err() {
        return Err(Refusal {
            line: "somebody else's workflow runs in this pod".into(),
            exit: RunExit::BadInput,
        });
    }
    (&attended).write_all(std::process::id().to_string().as_bytes()).map_err(|error| Refusal::bad(&error))?;
    let run = folder.join(RUN_FOLDER);
    let _ = std::fs::remove_dir_all(&run);
    let (inputs, out) = (run.join("inputs"), run.join("out"));
    for path in [&inputs, &out.join("logs")] {
        std::fs::create_dir_all(path).map_err(|error| Refusal::bad(&error))?;
    }
    let entries = match read::<ToPod>(stdin).await.map_err(|error| Refusal::bad(&error))? {
        Some(Frame::Message(ToPod::Begin { protocol: PROTOCOL, entries, objects })) => {
            if let Some(access) = objects {
                runtime.reach_objects(access);
            }
            entries
        }
        Some(Frame::Message(ToPod::Begin { protocol, .. })) => {
            let line = format!(
                "the workstation speaks protocol {protocol}, the pilot's image {PROTOCOL}; use images of the same version"
            );
            return Err(Refusal { line, exit: RunExit::BadInput });
        }
        _ => return Err(Refusal { line: "the workstation did not begin".into(), exit: RunExit::BadInput }),
    };
    let welcome = FromPod::Welcome { slots: runtime.slot_count() };
    write(stdout, &welcome).await.map_err(|error| Refusal::bad(&error))?;
    receive_inputs(stdin, &inputs).await.map_err(|error| Refusal::bad(&error))?;
    let total = runtime.total();
    let pilot =
        PilotConfig { bind_ahead: config.bind_ahead, ..PilotConfig::new(runtime.slot_count(), total) };
    let entries = entries.into_iter().map(Entry::from).collect();
    Ok(Run { runtime, entries, out, config: pilot, _attended: attended })
}

async fn receive_inputs(stdin: &mut Stdin, inputs: &Path) -> Result<(), FrameError> {
    let mut receiving: Option<Receiving> = None;
    loop {
        match (read::<ToPod>(stdin).await?, receiving.take()) {
            (Some(Frame::Message(ToPod::Input(piece))), None) => {
                receiving = Receiving::begin(inputs, &piece).await?;
            }
            (Some(Frame::Data(data)), Some(file)) => receiving = file.data(&data).await?,
            (Some(Frame::Message(ToPod::Go)), None) => return Ok(()),
            _ => return Err(std::io::Error::other("the workstation stopped half-way").into()),
        }
    }
}

impl Run {
    async fn go(self, stdin: Stdin, stdout: Stdout) -> RunExit {
        let Self { runtime, entries, out, config, _attended } = self;
        let index: HashMap<String, usize> = entries
            .iter()
            .enumerate()
            .map(|(index, entry)| (entry.payload.name.to_string(), index))
            .collect();
        let queue = Arc::new(WorkflowQueue::new(entries));
        let (news, told) = mpsc::channel(NEWS_MAX);
        let (stop, stops) = mpsc::channel(4);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(listen(stdin, stop));
        let mut saying = tokio::task::JoinSet::new();
        saying.spawn(say(stdout, told, out));
        if let Some(lack) = runtime.unenforced() {
            let _ = news.try_send(Told::plain(FromPod::Note { text: lack }));
        }
        let Ok(signals) = LocalCluster::listen() else { return RunExit::OwnFault };
        let pod = PodCluster::new(signals, runtime.grace());
        let driver = Driver::new(config, Arc::clone(&queue), Arc::clone(&runtime), Stops { stops, pod });
        let done = driver
            .run(|progress| {
                if let Some(told) = told_of(progress, &index) {
                    // Full means that the stream stands still: it is about to break, and the run with it.
                    let _ = news.try_send(told);
                }
            })
            .await;
        let exit = exit_of(&done, &queue);
        let row = |End { state, tries, outcome, .. }| SentRow { state, tries, outcome };
        let rows = ends(&queue).map(row).collect();
        let stages = runtime.stage_figures();
        let last = Told::plain(FromPod::Done { exit: exit.code(), rows, stages });
        let _ = news.send(last).await;
        drop(news);
        saying.join_next().await;
        exit
    }
}

/// Something to say, and the payload whose files are to follow.
struct Told {
    message: FromPod,
    files_of: Option<Arc<Payload>>,
}

impl Told {
    fn plain(message: FromPod) -> Self {
        Self { message, files_of: None }
    }
}

fn told_of(progress: Progress, index: &HashMap<String, usize>) -> Option<Told> {
    let of = |payload: &Payload| index.get(payload.name.as_str()).copied();
    let message = match progress {
        Progress::Prepared { image, bytes } => FromPod::Prepared { image, bytes },
        Progress::Started { payload, slot, attempt } => {
            FromPod::Started { index: of(&payload)?, slot: slot.0, attempt }
        }
        Progress::Ended { payload, attempt, outcome, note, retry } => {
            let message = FromPod::Ended { index: of(&payload)?, attempt, outcome, note, retry };
            return Some(Told { message, files_of: Some(payload) });
        }
        Progress::Skipped { payload, because } => {
            FromPod::Skipped { index: of(&payload)?, because: of(&because)? }
        }
        Progress::Claimed { .. } | Progress::Moved { .. } | Progress::Stopping | Progress::Tick => {
            return None;
        }
    };
    Some(Told::plain(message))
}

/// Says what there is to say; a payload's files come before the word that it has ended.
async fn say(mut stdout: Stdout, mut told: mpsc::Receiver<Told>, out: PathBuf) {
    while let Some(Told { message, files_of }) = told.recv().await {
        let said = async {
            if let Some(payload) = &files_of {
                send_files(&mut stdout, payload, &out).await?;
            }
            write(&mut stdout, &message).await
        };
        if let Err(error) = said.await {
            tracing::warn!(error = chain(&error), "the workstation can't be told");
            return;
        }
    }
}

async fn send_files(stdout: &mut Stdout, payload: &Payload, out: &Path) -> Result<(), FrameError> {
    let logs = ["stdout", "stderr"].map(|stream| payload.logs.join(format!("{}.{stream}", payload.name)));
    let saved = payload.outputs.iter().filter_map(|output| output.save.as_ref()?.file().map(Path::to_owned));
    for path in logs.into_iter().chain(saved) {
        let Some(name) = path.strip_prefix(out).ok().and_then(Path::to_str).map(str::to_owned) else {
            continue;
        };
        if !path.exists() {
            continue;
        }
        for (source, piece) in pieces(&path, &name)? {
            if let Some(piece) = without_link(&source, piece) {
                send(stdout, &source, piece, FromPod::File).await?;
            }
        }
        // The workstation has it; a try that comes after this one makes its own.
        let _ = std::fs::remove_file(&path).or_else(|_| oci_runner::remove_tree(&path));
    }
    Ok(())
}

/// A workstation takes no links: what one leads to is sent, if it is a file. In a stage no link leads out.
fn without_link(source: &Path, piece: Piece) -> Option<Piece> {
    if !matches!(piece.kind, PieceKind::Link { .. }) {
        return Some(piece);
    }
    let meta = std::fs::metadata(source).ok().filter(|meta| meta.is_file())?;
    Some(Piece { kind: PieceKind::File { mode: meta.mode() & 0o777, bytes: meta.len() }, ..piece })
}

/// Hears what the workstation wants meanwhile; that it has gone is a wish too.
async fn listen(mut stdin: Stdin, stop: mpsc::Sender<StopRequest>) {
    let cause = StopCause::PilotStopping;
    loop {
        let request = match read::<ToPod>(&mut stdin).await {
            Ok(Some(Frame::Message(ToPod::Stop { signal, kill: false }))) => {
                StopRequest::Grace { signal, cause }
            }
            Ok(Some(Frame::Message(ToPod::Stop { signal, kill: true }))) => {
                StopRequest::Kill { signal, cause }
            }
            Ok(Some(_)) => continue,
            // Hung up.
            Ok(None) | Err(_) => {
                let _ = stop.send(StopRequest::Kill { signal: 1, cause }).await;
                return;
            }
        };
        if stop.send(request).await.is_err() {
            return;
        }
    }
}

/// The surroundings of this pilot are its workstation, and its pod's.
struct Stops {
    stops: mpsc::Receiver<StopRequest>,
    pod: PodCluster,
}

impl Cluster for Stops {
    async fn status(&self) -> ClusterStatus {
        self.pod.status().await
    }

    async fn watch_stop(&mut self) -> StopRequest {
        tokio::select! {
            Some(request) = self.stops.recv() => request,
            request = self.pod.watch_stop() => request,
        }
    }
}
