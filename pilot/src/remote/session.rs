//! The workstation's side of a run: sends the workflow and its inputs, shows what comes back, keeps logs and outputs.
//!
//! **Must not know:** pods, the API.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pilot_core::{RunExit, SlotId};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::files::{Receiving, pieces, send};
use super::frame::{Frame, FrameError, read, write};
use super::{FromPod, PROTOCOL, Piece, PieceKind, RUN_FOLDER, SentEntry, SentRow, ToPod};
use crate::driver::Progress;
use crate::object_access::ObjectAccess;
use crate::payload::{Payload, Source, StageClass};
use crate::pod::SHARE;
use crate::ports::{StageFigures, StopRequest};
use crate::queue::workflow::Entry;
use crate::show::End;

/// A workflow in both views.
pub(crate) struct Session {
    /// As it is here.
    here: Vec<Entry>,
    /// As it is there.
    there: Vec<SentEntry>,
    /// What payloads read of this machine, by its name there.
    inputs: Vec<(PathBuf, String)>,
    /// How objects are reached, if any payload needs one.
    objects: Option<ObjectAccess>,
    /// Where results go.
    out: PathBuf,
    /// What may come back, and whether it is a folder.
    expected: BTreeMap<String, bool>,
}

/// What a session tells whoever shows it.
pub(crate) enum News {
    /// As from a driver here.
    Progress(Progress),
    /// Worth knowing.
    Note(String),
}

/// How a session ended.
pub(crate) struct Ended {
    pub(crate) exit: RunExit,
    /// Nothing when the pod's side did not get that far.
    pub(crate) ends: Vec<End>,
    pub(crate) stages: StageFigures,
}

/// Where results are kept in the pod.
pub(crate) fn out_there() -> PathBuf {
    Path::new(SHARE).join("pilot").join(RUN_FOLDER).join("out")
}

impl Session {
    /// `there` are the same entries as `here`, with [`out_there`] for the folder of results.
    pub(crate) fn new(
        here: Vec<Entry>,
        there: &[Entry],
        out: PathBuf,
        objects: Option<ObjectAccess>,
    ) -> Self {
        let mut names: BTreeMap<PathBuf, String> = BTreeMap::new();
        let folder = Path::new(SHARE).join("pilot").join(RUN_FOLDER).join("inputs");
        let mut sent: Vec<SentEntry> = there.iter().map(SentEntry::from).collect();
        for input in sent.iter_mut().flat_map(|entry| &mut entry.payload.inputs) {
            if let Source::Host(path) = &mut input.source {
                let number = names.len();
                let name = names.entry(path.clone()).or_insert_with(|| number.to_string());
                *path = folder.join(name);
            }
        }
        let relative = |path: &Path| path.strip_prefix(&out).ok()?.to_str().map(str::to_owned);
        let results = here.iter().flat_map(|entry| results(&entry.payload));
        let expected = results.filter_map(|(path, is_folder)| Some((relative(&path)?, is_folder))).collect();
        Self { here, there: sent, inputs: names.into_iter().collect(), objects, out, expected }
    }

    /// Runs it to its end. `stops` are the user's wishes.
    pub(crate) async fn run(
        self,
        stdin: impl AsyncWrite + Send + Unpin + 'static,
        mut stdout: impl AsyncRead + Unpin,
        mut stops: mpsc::Receiver<StopRequest>,
        mut told: impl FnMut(News),
    ) -> Result<Ended, FrameError> {
        let Self { here, there, inputs, objects, out, expected } = self;
        let mut sending = tokio::task::JoinSet::new();
        let (stop, wishes) = mpsc::channel(4);
        sending.spawn(speak(stdin, (there, objects), inputs, wishes));
        let mut receiving: Option<Receiving> = None;
        let of = |index: usize| here.get(index).map(|entry| Arc::clone(&entry.payload));
        // Not dropped half-way: a frame that is being read is read.
        let (frames, mut heard) = mpsc::channel(8);
        let hearing = async move {
            loop {
                let frame = read::<FromPod>(&mut stdout).await;
                let last = !matches!(frame, Ok(Some(_)));
                if frames.send(frame).await.is_err() || last {
                    return;
                }
            }
        };
        tokio::pin!(hearing);
        let mut hears = true;
        let mut failed = None;
        loop {
            let frame = tokio::select! {
                () = &mut hearing, if hears => {
                    hears = false;
                    continue;
                }
                Some(request) = stops.recv() => {
                    let _ = stop.send(request).await;
                    continue;
                }
                Some(Ok(Err(error))) = sending.join_next() => {
                    // What the pod says about it, if it does, is worth more: it is heard first.
                    failed.get_or_insert(error);
                    continue;
                }
                frame = heard.recv() => frame.unwrap_or(Ok(None))?,
            };
            match (frame, receiving.take()) {
                (None, _) => {
                    let gone = || std::io::Error::other("the pod, or the way to it, is gone").into();
                    return Err(failed.unwrap_or_else(gone));
                }
                (Some(Frame::Data(data)), Some(file)) => receiving = file.data(&data).await?,
                (Some(Frame::Message(FromPod::File(piece))), None) => {
                    receiving = begin(&out, &piece, &expected).await?;
                }
                (Some(Frame::Message(FromPod::Refused { line, exit })), _) => {
                    told(News::Note(line));
                    return Ok(Ended {
                        exit: exit_of(exit),
                        ends: Vec::new(),
                        stages: StageFigures::default(),
                    });
                }
                (Some(Frame::Message(FromPod::Done { exit, rows, stages })), None) => {
                    return Ok(Ended { exit: exit_of(exit), ends: ends(&here, rows), stages });
                }
                (Some(Frame::Message(message)), None) => {
                    if let Some(news) = news(message, of) {
                        told(news);
                    }
                }
                _ => return Err(std::io::Error::other("the pod mixes up its words").into()),
            }
        }
    }
}

/// The files and folders that may come of a payload, and which is a folder.
fn results(payload: &Payload) -> Vec<(PathBuf, bool)> {
    let log = |stream| (payload.logs.join(format!("{}.{stream}", payload.name)), false);
    let saved = payload.outputs.iter().filter_map(|output| {
        Some((output.save.as_ref()?.file()?.to_owned(), output.class == StageClass::Folder))
    });
    ["stdout", "stderr"].map(log).into_iter().chain(saved).collect()
}

/// Whether a piece is of what may come back; which folder begins with it. No link may: what comes after it could go through.
fn expects(expected: &BTreeMap<String, bool>, piece: &Piece) -> Option<bool> {
    match (expected.get(&piece.path), &piece.kind) {
        (_, PieceKind::Link { .. }) => None,
        (Some(true), PieceKind::Folder) => Some(true),
        (Some(false), PieceKind::File { .. }) => Some(false),
        (Some(_), _) => None,
        (None, _) => {
            let mut above = Path::new(&piece.path).ancestors().skip(1).filter_map(Path::to_str);
            above.any(|path| expected.get(path) == Some(&true)).then_some(false)
        }
    }
}

async fn begin(
    out: &Path,
    piece: &Piece,
    expected: &BTreeMap<String, bool>,
) -> Result<Option<Receiving>, FrameError> {
    match expects(expected, piece) {
        None => {
            let text = format!("the pod sends {}, which nobody asked for", piece.path);
            return Err(std::io::Error::other(text).into());
        }
        Some(false) => {}
        Some(true) => {
            // As on this machine: what is there is replaced.
            let old = out.join(&piece.path);
            match std::fs::symlink_metadata(&old) {
                Ok(meta) if meta.is_dir() => oci_runner::remove_tree(&old)?,
                Ok(_) => std::fs::remove_file(&old)?,
                Err(_) => {}
            }
        }
    }
    Ok(Receiving::begin(out, piece).await?)
}

/// Says all there is to say, then the user's wishes as they come.
async fn speak(
    mut stdin: impl AsyncWrite + Unpin,
    (entries, objects): (Vec<SentEntry>, Option<ObjectAccess>),
    inputs: Vec<(PathBuf, String)>,
    mut wishes: mpsc::Receiver<StopRequest>,
) -> Result<(), FrameError> {
    write(&mut stdin, &ToPod::Begin { protocol: PROTOCOL, entries, objects }).await?;
    for (path, name) in inputs {
        for (source, piece) in pieces(&path, &name)? {
            send(&mut stdin, &source, piece, ToPod::Input).await?;
        }
    }
    write(&mut stdin, &ToPod::Go).await?;
    while let Some(request) = wishes.recv().await {
        let (signal, kill) = match request {
            StopRequest::Grace { signal, .. } => (signal, false),
            StopRequest::Kill { signal, .. } => (signal, true),
        };
        write(&mut stdin, &ToPod::Stop { signal, kill }).await?;
    }
    stdin.shutdown().await?;
    Ok(())
}

fn news(message: FromPod, of: impl Fn(usize) -> Option<Arc<Payload>>) -> Option<News> {
    let progress = match message {
        FromPod::Prepared { image, bytes } => Progress::Prepared { image, bytes },
        FromPod::Started { index, slot, attempt } => {
            Progress::Started { payload: of(index)?, slot: SlotId(slot), attempt }
        }
        FromPod::Ended { index, attempt, outcome, note, retry } => {
            Progress::Ended { payload: of(index)?, attempt, outcome, note, retry }
        }
        FromPod::Skipped { index, because } => {
            Progress::Skipped { payload: of(index)?, because: of(because)? }
        }
        FromPod::Note { text } => return Some(News::Note(text)),
        FromPod::Welcome { .. } | FromPod::Refused { .. } | FromPod::File(_) | FromPod::Done { .. } => {
            return None;
        }
    };
    Some(News::Progress(progress))
}

fn ends(here: &[Entry], rows: Vec<SentRow>) -> Vec<End> {
    let end = |(entry, SentRow { state, tries, outcome }): (&Entry, SentRow)| End {
        payload: Arc::clone(&entry.payload),
        state,
        tries,
        outcome,
    };
    here.iter().zip(rows).map(end).collect()
}

fn exit_of(code: u8) -> RunExit {
    RunExit::ALL.into_iter().find(|exit| exit.code() == code).unwrap_or(RunExit::OwnFault)
}
