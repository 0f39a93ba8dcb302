//! Stages that leave memory when it is short. The broker decides which and makes the file; from here on that is a stage on the
//! volume like any other: it has its place below the root, is noted, and outlives its pilot.
//!
//! ```text
//!   in memory ─ the broker copies ─> .spill/<n> ─ take over ─> <workflow>/<payload>/<output> ─> noted ─> forgotten by its shim
//! ```
//! Between the steps the file is read all the same, by descriptor. What is in `.spill` when a pilot dies is of no use: its shim
//! still has the memory.
//!
//! **Must not know:** which stages are moved, and when.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use stage::server::Watch;
use stage::{Class, StageName, StageUri};

use super::figures::Counting;
use super::folders::{open_folder, tidy};
use super::{Lies, Stages};

/// Where the broker makes its files. No workflow can have this name.
pub(super) const SPILL: &str = ".spill";

/// Most moves that wait to be taken over.
const WORDS_MAX: usize = 1024;

/// What the broker's thread says to the one that takes over.
enum Word {
    Moved(StageUri),
    Enough,
}

/// The thread that takes over what was moved.
#[derive(Debug)]
pub(super) struct Mover {
    words: SyncSender<Word>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What is heard of moves before there is anybody to take over.
#[derive(Debug)]
pub(super) struct Heard(Receiver<Word>);

impl Mover {
    pub(super) fn new() -> (Self, Heard) {
        let (words, heard) = sync_channel(WORDS_MAX);
        (Self { words, thread: Mutex::default() }, Heard(heard))
    }

    /// What the broker is to tell of each move.
    pub(super) fn watch(&self, counting: &Arc<Counting>) -> Watch {
        let (words, counting) = (self.words.clone(), Arc::clone(counting));
        Watch::new(move |uri, bytes| {
            counting.spilled(bytes);
            // The broker waits for nobody. It copies one after the other, which takes longer than taking over.
            if words.try_send(Word::Moved(uri.clone())).is_err() {
                tracing::warn!(stage = %uri, "a stage that left memory will not survive this pilot");
            }
        })
    }

    /// Begins to take over; a thread, because a slow disk must keep neither the broker nor payloads waiting.
    pub(super) fn start(&self, stages: &Arc<Stages>, heard: Heard) -> io::Result<()> {
        let stages = Arc::downgrade(stages);
        let thread = std::thread::Builder::new().name("stage-moves".into());
        let thread = thread.spawn(move || take_over(&stages, &heard.0))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }
}

fn take_over(stages: &Weak<Stages>, heard: &Receiver<Word>) {
    while let Ok(Word::Moved(uri)) = heard.recv() {
        let Some(stages) = stages.upgrade() else { return };
        stages.take_over(&uri);
    }
}

impl Stages {
    /// Nothing is taken over any more: what the broker moves from here on goes with it.
    pub(in crate::runtime) fn rest(&self) {
        let _ = self.mover.words.send(Word::Enough);
        let thread = self.mover.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    /// Gives the file of a stage that left memory its place, and lets go of what else was kept of it.
    fn take_over(&self, uri: &StageUri) {
        let folder = self.folder_of(uri);
        let mut held = self.lock();
        match self.give_place(uri, &folder) {
            Ok(true) => {
                let path = folder.join(uri.output.as_str());
                held.insert(uri.clone(), Lies { path, was_memory: true, away: None });
                if self.noted {
                    self.note_held(&held, (&uri.workflow, &uri.payload), &folder);
                }
            }
            Ok(false) => tidy(&folder),
            Err(error) => {
                tidy(&folder);
                tracing::warn!(stage = %uri, %error, "a stage that left memory will not survive this pilot");
            }
        }
        drop(held);
        self.retain_what_is_in_memory(uri);
        self.share_again(uri);
    }

    fn give_place(&self, uri: &StageUri, folder: &Path) -> io::Result<bool> {
        let dir = self.root_dir().map_err(|fault| io::Error::other(fault.to_string()))?;
        let path: PathBuf = below_root(uri);
        let mut tries = 0;
        loop {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            match self.broker.give_place(uri, &dir, path.clone()) {
                // Whoever tidied up found it empty.
                Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound && tries < 3 => tries += 1,
                Ok(given) => return given,
                Err(stopped) => return Err(io::Error::other(stopped)),
            }
        }
    }

    pub(super) fn folder_of(&self, uri: &StageUri) -> PathBuf {
        self.root.join(uri.workflow.as_str()).join(uri.payload.as_str())
    }

    /// Whether a stage is held, and takes memory.
    pub(super) fn is_in_memory(&self, uri: &StageUri) -> bool {
        let uri = uri.clone();
        let class = self.broker.ask(move |broker| broker.lookup(&uri).map(|found| found.class));
        class.ok().flatten().is_some_and(|class| class != Class::File)
    }
}

/// Where a stage on the volume lies below the folder of all.
pub(super) fn below_root(uri: &StageUri) -> PathBuf {
    [&uri.workflow, &uri.payload, &uri.output].map(StageName::as_str).iter().collect()
}

/// An empty folder below that of all files, for stages that are moved; `None` where files are memory themselves.
pub(super) fn spill_folder(root: &Path) -> io::Result<Option<OwnedFd>> {
    let path = root.join(SPILL);
    match std::fs::read_dir(&path) {
        // What a pilot of this name left when it was killed.
        Ok(left) => left.flatten().for_each(|entry| drop(std::fs::remove_file(entry.path()))),
        Err(_) => DirBuilder::new().recursive(true).mode(0o700).create(&path)?,
    }
    let folder = open_folder(&path).map_err(|fault| io::Error::other(fault.to_string()))?;
    if stage::lies_in_memory(folder.as_fd()) {
        tracing::debug!(folder = %root.display(), "stages stay in memory: so would their files");
        let _ = std::fs::remove_dir(&path);
        return Ok(None);
    }
    Ok(Some(folder))
}

/// Takes that folder away at the end.
pub(super) fn remove_spill_folder(root: &Path) {
    let path = root.join(SPILL);
    for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
        let _ = std::fs::remove_file(entry.path());
    }
    let _ = std::fs::remove_dir(&path);
}
