//! What payloads of a gang share while they run: FIFOs and memory. Each makes what it is the producer of; then they meet, so
//! that everything is there before any of them starts; and what they share goes with the last of them.
//!
//! ```text
//!   enter ──> make its pipes and memory ──> meet (waits for all) ──> take the others' ──> launched ──> leave
//! ```
//! One that leaves may have a mate that waits, or will wait, to open a pipe whose other end nobody opens any more: as long
//! as that mate is there, the pilot opens it for a moment every now and then ([`stage::Pipe::stand_in`]).
//!
//! **Must not know:** slots, containers, why a payload ends.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pilot_core::{Fault, FaultClass};
use rustix::fs::Mode;
use stage::{Pipe, PipeEnd, SharedMemory, StageName, StageUri};
use tokio::sync::Notify;

use super::launching::slot_fault;
use super::stages::open_folder;
use crate::fault::chain;
use crate::payload::{Output, Payload};

/// All of a gang is launched at the same moment, and none of it has more to do before they meet than to make files.
const MEET_WAIT: Duration = Duration::from_secs(30);
/// Between two looks after mates that may wait for one who has left: two system calls for each such pipe.
const STAND_IN_PAUSE: Duration = Duration::from_millis(100);

/// What the gangs of a pilot share.
#[derive(Debug)]
pub(super) struct Together {
    /// Where FIFOs have their first names; on the file system of the slots' folders.
    folder: PathBuf,
    rooms: Mutex<BTreeMap<RoomKey, Room>>,
    /// Somebody entered, is ready or left.
    moved: Notify,
}

/// Workflow and first member.
type RoomKey = (StageName, StageName);

#[derive(Debug, Default)]
struct Room {
    members: BTreeMap<StageName, Step>,
    pipes: BTreeMap<StageUri, StageName>,
    /// Memory that is on the ledger; where another life of this pilot made it, only the payloads have it.
    memory: BTreeMap<StageUri, Option<SharedMemory>>,
    /// Somebody looks after mates of those who left.
    attended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Entered,
    Ready,
    Left,
}

impl Together {
    pub(super) fn new(folder: PathBuf) -> Arc<Self> {
        Arc::new(Self { folder, rooms: Mutex::default(), moved: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RoomKey, Room>> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first thing that a payload does. Whatever of its gang is here from an earlier run is over; the answer is the memory
    /// that it had.
    pub(super) fn enter(&self, payload: &Payload) -> Vec<StageUri> {
        let Some(key) = key(payload) else { return Vec::new() };
        let mut rooms = self.lock();
        let former = match rooms.get(&key) {
            Some(room) if room.members.contains_key(&payload.name) => rooms.remove(&key),
            Some(_) | None => None,
        };
        rooms.entry(key).or_default().members.insert(payload.name.clone(), Step::Entered);
        former.map(|room| self.clear(room)).unwrap_or_default()
    }

    /// Makes a pipe and gives it its name in the producer's folder.
    pub(super) fn make_pipe(
        &self,
        payload: &Payload,
        output: &Output,
        out: &OwnedFd,
        mode: Mode,
    ) -> Result<(), Fault> {
        let make = || -> Result<(), Fault> {
            std::fs::create_dir_all(&self.folder).map_err(|error| slot_fault(&error))?;
            let (uri, folder) = (payload.stage(&output.name), open_folder(&self.folder)?);
            let name = file_name(&uri);
            let pipe = Pipe { folder: folder.as_fd(), name: &name };
            pipe.make(mode).map_err(|error| slot_fault(&error))?;
            pipe.lend(out.as_fd(), &output.name).map_err(|error| slot_fault(&error))
        };
        make()?;
        self.know_pipe(payload, output);
        Ok(())
    }

    fn know_pipe(&self, payload: &Payload, output: &Output) {
        let Some((key, reader)) = key(payload).zip(output.readers.first()) else { return };
        if let Some(room) = self.lock().get_mut(&key) {
            room.pipes.insert(payload.stage(&output.name), reader.clone());
        }
    }

    /// Makes memory that the whole gang may write; gives the producer's descriptor.
    pub(super) fn make_memory(&self, payload: &Payload, output: &Output) -> Result<OwnedFd, Fault> {
        let retry = |error: &dyn std::error::Error| Fault::new(FaultClass::Retry, chain(error));
        let memory = SharedMemory::create(&output.name, output.max_bytes).map_err(|error| retry(&error))?;
        let lent = memory.lend().map_err(|error| retry(&error))?;
        if let Some(key) = key(payload)
            && let Some(room) = self.lock().get_mut(&key)
        {
            room.memory.insert(payload.stage(&output.name), Some(memory));
        }
        Ok(lent)
    }

    /// Memory of a payload is on the ledger, to be taken off with the last of its gang.
    pub(super) fn know_memory(&self, payload: &Payload, output: &Output) {
        if let Some(key) = key(payload)
            && let Some(room) = self.lock().get_mut(&key)
        {
            room.memory.insert(payload.stage(&output.name), None);
        }
    }

    /// Waits until all of the gang have made what is theirs.
    pub(super) async fn meet(&self, payload: &Payload) -> Result<(), Fault> {
        let Some(key) = key(payload) else { return Ok(()) };
        self.step(&key, payload, Step::Ready);
        let all = async {
            loop {
                let moved = self.moved.notified();
                tokio::pin!(moved);
                // Before the look: what happens after it counts.
                moved.as_mut().enable();
                if let Some(met) = self.have_met(&key, payload) {
                    return met;
                }
                moved.await;
            }
        };
        let late = || Fault::new(FaultClass::Retry, "the others of its gang were not launched in time");
        tokio::time::timeout(MEET_WAIT, all).await.unwrap_or_else(|_| Err(late()))
    }

    fn have_met(&self, key: &RoomKey, payload: &Payload) -> Option<Result<(), Fault>> {
        let rooms = self.lock();
        let step = |name: &StageName| rooms.get(key)?.members.get(name).copied();
        if let Some(gone) = payload.gang.iter().find(|name| step(name) == Some(Step::Left)) {
            let text = format!("{:?} of its gang could not be launched", gone.as_str());
            return Some(Err(Fault::new(FaultClass::Retry, text)));
        }
        payload.gang.iter().all(|name| step(name) == Some(Step::Ready)).then_some(Ok(()))
    }

    fn step(&self, key: &RoomKey, payload: &Payload, step: Step) {
        if let Some(room) = self.lock().get_mut(key) {
            room.members.insert(payload.name.clone(), step);
        }
        self.moved.notify_waiters();
    }

    /// Gives a mate's pipe its name in the consumer's folder; `false` when it is none.
    pub(super) fn lend_pipe(&self, from: &StageUri, into: &OwnedFd, name: &StageName) -> Result<bool, Fault> {
        if !self.lock().values().any(|room| room.pipes.contains_key(from)) {
            return Ok(false);
        }
        let (folder, first) = (open_folder(&self.folder)?, file_name(from));
        let pipe = Pipe { folder: folder.as_fd(), name: &first };
        pipe.lend(into.as_fd(), name).map_err(|error| slot_fault(&error))?;
        Ok(true)
    }

    /// A descriptor of a mate's memory, if it is some.
    pub(super) fn lend_memory(&self, from: &StageUri) -> Option<std::io::Result<OwnedFd>> {
        let rooms = self.lock();
        let memory = rooms.values().find_map(|room| room.memory.get(from)?.as_ref());
        memory.map(SharedMemory::lend)
    }

    /// A payload that another life of this pilot launched is still here.
    pub(super) fn enter_again(&self, payload: &Payload) {
        let _nothing_was_here = self.enter(payload);
        if let Some(key) = key(payload) {
            self.step(&key, payload, Step::Ready);
        }
    }

    /// A pipe of such a payload is still where it was.
    pub(super) fn find_pipe(&self, payload: &Payload, output: &Output) -> bool {
        let Ok(folder) = open_folder(&self.folder) else { return false };
        let found = Pipe { folder: folder.as_fd(), name: &file_name(&payload.stage(&output.name)) }.exists();
        if found {
            self.know_pipe(payload, output);
        }
        found
    }

    /// Removes the FIFOs of gangs of which nothing was found.
    pub(super) fn sweep(&self) {
        let rooms = self.lock();
        let known: Vec<String> = rooms.values().flat_map(|room| room.pipes.keys().map(file_name)).collect();
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if !entry.file_name().to_str().is_some_and(|name| known.iter().any(|known| known == name)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// A payload has ended, or will not be launched. The answer is the memory that the gang had, when it was the last to leave.
    pub(super) fn leave(self: &Arc<Self>, payload: &Payload) -> Vec<StageUri> {
        let Some(key) = key(payload) else { return Vec::new() };
        let mut rooms = self.lock();
        let Some(room) = rooms.get_mut(&key) else { return Vec::new() };
        room.members.insert(payload.name.clone(), Step::Left);
        self.moved.notify_waiters();
        if room.members.values().any(|step| *step != Step::Left) {
            let needed = !room.pipes.is_empty() && !std::mem::replace(&mut room.attended, true);
            drop(rooms);
            if needed {
                self.attend(key);
            }
            return Vec::new();
        }
        rooms.remove(&key).map(|room| self.clear(room)).unwrap_or_default()
    }

    fn clear(&self, room: Room) -> Vec<StageUri> {
        if let Ok(folder) = open_folder(&self.folder) {
            for uri in room.pipes.keys() {
                Pipe { folder: folder.as_fd(), name: &file_name(uri) }.remove();
            }
        }
        room.memory.into_keys().collect()
    }

    /// Looks after those who stay, until the last has left.
    #[expect(clippy::disallowed_methods, reason = "it ends with the gang, or with the runtime")]
    fn attend(self: &Arc<Self>, key: RoomKey) {
        let here = Arc::downgrade(self);
        tokio::spawn(async move {
            while here.upgrade().is_some_and(|here| here.stand_in(&key)) {
                tokio::time::sleep(STAND_IN_PAUSE).await;
            }
        });
    }

    /// `false` when the gang is gone.
    fn stand_in(&self, key: &RoomKey) -> bool {
        let rooms = self.lock();
        let Some(room) = rooms.get(key) else { return false };
        let Ok(folder) = open_folder(&self.folder) else { return false };
        let left = |name: &StageName| room.members.get(name) == Some(&Step::Left);
        for (uri, reader) in &room.pipes {
            let name = file_name(uri);
            let pipe = Pipe { folder: folder.as_fd(), name: &name };
            match (left(&uri.payload), left(reader)) {
                (true, false) => pipe.stand_in(PipeEnd::Writer),
                (false, true) => pipe.stand_in(PipeEnd::Reader),
                (true, true) | (false, false) => {}
            }
        }
        true
    }
}

fn key(payload: &Payload) -> Option<RoomKey> {
    Some((payload.workflow.clone(), payload.gang.first()?.clone()))
}

/// At most 194 bytes: each part has at most 64. None of them has a colon, so no two stages share a file.
fn file_name(uri: &StageUri) -> String {
    let StageUri { workflow, payload, output } = uri;
    format!("{workflow}:{payload}:{output}")
}
