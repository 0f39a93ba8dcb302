//! What takes long: pages are taken, sealed, copied and freed beside the broker's thread.
//!
//! One thread a kind, so that a spill to a slow disk delays no commit. Each has one piece of work at a time; what waits,
//! waits with the broker's thread, whose limits bound it.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use wire::stage::Code;

use super::objects::Object;
use super::{Inbox, Message};
use crate::broker::{Failure, ObjectId, Sealed, SessionId};
use crate::copy::copy;
use crate::memory::{Lending, now_us};
use crate::{CommitReason, MemoryStage, MemoryWriter, NotCommitted, StageName};

/// Something that may take milliseconds.
#[derive(Debug)]
pub(super) enum Work {
    Allocate { object: ObjectId, name: StageName, bytes: u64, huge_pages: bool },
    Seal { object: ObjectId, writer: MemoryWriter, bytes: u64 },
    Spill { object: ObjectId, memory: OwnedFd, dir: Arc<OwnedFd>, name: StageName, bytes: u64 },
    Revoke { object: ObjectId, session: SessionId, writer: MemoryWriter, bytes: u64 },
    Free(Object),
}

/// How it ended.
#[derive(Debug)]
pub(super) enum Report {
    Allocated { object: ObjectId, result: Result<(MemoryWriter, Option<String>), Failure> },
    Sealed { object: ObjectId, result: Result<(MemoryStage, Sealed), (MemoryWriter, Failure)> },
    Spilled { object: ObjectId, result: Result<StageName, Failure> },
    Revoked { object: ObjectId, session: SessionId, bytes: u64, freed: bool },
    Freed,
}

/// Which worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Pages,
    Seals,
    Disk,
}

impl Work {
    pub(super) fn lane(&self) -> Lane {
        match self {
            Self::Allocate { .. } | Self::Revoke { .. } | Self::Free(_) => Lane::Pages,
            Self::Seal { .. } => Lane::Seals,
            Self::Spill { .. } => Lane::Disk,
        }
    }

    pub(super) fn run(self) -> Report {
        match self {
            Self::Allocate { object, name, bytes, huge_pages } => {
                let result = allocate(&name, bytes, huge_pages).map_err(|error| Failure {
                    code: Code::Io,
                    text: format!("create output \"{name}\": {error}"),
                });
                Report::Allocated { object, result }
            }
            Self::Seal { object, writer, bytes } => {
                Report::Sealed { object, result: seal(writer, bytes, MemoryWriter::commit_exactly) }
            }
            Self::Spill { object, memory, dir, name, bytes } => {
                let result = copy(memory.as_fd(), dir.as_fd(), &name, bytes);
                let result = result.map(|_| name).map_err(|reason| Failure {
                    code: Code::Io,
                    text: format!("move a stage to a file: {reason}"),
                });
                Report::Spilled { object, result }
            }
            Self::Revoke { object, session, writer, bytes } => {
                Report::Revoked { object, session, bytes, freed: writer.revoke() }
            }
            Self::Free(object) => {
                object.free();
                Report::Freed
            }
        }
    }
}

/// A thread and what waits for it.
#[derive(Debug)]
pub(super) struct Worker {
    waiting: VecDeque<Work>,
    busy: bool,
    work: Option<SyncSender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(super) fn start(name: &str, inbox: &Inbox) -> io::Result<Self> {
        let (work, todo) = sync_channel(1);
        let inbox = inbox.clone();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || serve(&todo, &inbox))?;
        Ok(Self { waiting: VecDeque::new(), busy: false, work: Some(work), thread: Some(thread) })
    }

    pub(super) fn push(&mut self, work: Work) {
        self.waiting.push_back(work);
        self.next();
    }

    /// It has reported.
    pub(super) fn done(&mut self) {
        self.busy = false;
        self.next();
    }

    fn next(&mut self) {
        if self.busy {
            return;
        }
        if let (Some(work), Some(to)) = (self.waiting.pop_front(), &self.work) {
            // Room for one, and it has none: this does not wait.
            self.busy = to.send(work).is_ok();
        }
    }

    /// Waits for what it is at; the rest is dropped.
    pub(super) fn stop(&mut self) {
        self.waiting.clear();
        self.work = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(todo: &Receiver<Work>, inbox: &Inbox) {
    while let Ok(work) = todo.recv() {
        let lane = work.lane();
        if inbox.send(Message::Worked(work.run(), lane)).is_err() {
            return;
        }
    }
}

fn allocate(
    name: &StageName,
    bytes: u64,
    huge_pages: bool,
) -> Result<(MemoryWriter, Option<String>), io::Error> {
    let failed = |error: crate::MemoryError| {
        io::Error::new(error.source.kind(), format!("{}: {}", error.doing, error.source))
    };
    let writer = MemoryWriter::create(name, Lending::ByFd).map_err(failed)?;
    let lack = if huge_pages || bytes >= HUGE_PAGE { take_huge_pages(&writer, bytes) } else { None };
    let note = lack.filter(|_| huge_pages);
    // Pages that are there already are left alone.
    writer.allocate(bytes).map_err(failed)?;
    writer.fix_size().map_err(failed)?;
    Ok((writer, note))
}

/// A huge page where small ones have 4 KiB (x86-64, arm64).
const HUGE_PAGE: u64 = 2 << 20;

/// Takes huge pages where the node gives them to shared memory; else says why not. They stay usable at any size, which
/// memory from the node's reserve (hugetlb) is not. Not for what is left beyond the last whole one: it would take more than
/// was reserved.
fn take_huge_pages(writer: &MemoryWriter, bytes: u64) -> Option<String> {
    const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let setting = fs::read_to_string(SETTING).unwrap_or_default();
    let chosen = setting.split(['[', ']']).nth(1).unwrap_or("never");
    let whole = bytes / HUGE_PAGE * HUGE_PAGE;
    match chosen {
        "always" | "within_size" | "force" => None,
        "advise" if whole == 0 => None,
        "advise" => advise(writer, whole).err().map(|error| format!("in small pages: {error}")),
        other => Some(format!(
            "in small pages: this node gives shared memory no huge ones (transparent_hugepage/shmem_enabled is {other})"
        )),
    }
}

fn advise(writer: &MemoryWriter, bytes: u64) -> io::Result<()> {
    let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
    rustix::fs::ftruncate(writer.lend(), bytes)?;
    let map = memmap2::MmapOptions::new().len(length).map_raw(&writer.lend())?;
    map.advise(memmap2::Advice::HugePage)?;
    map.advise(memmap2::Advice::PopulateWrite)
}

type Seal = fn(MemoryWriter, u64) -> Result<MemoryStage, NotCommitted>;

pub(super) fn seal(
    writer: MemoryWriter,
    bytes: u64,
    how: Seal,
) -> Result<(MemoryStage, Sealed), (MemoryWriter, Failure)> {
    let began = now_us();
    match how(writer, bytes) {
        Ok(stage) => Ok((stage, Sealed { bytes, seal_us: now_us().saturating_sub(began) })),
        Err(NotCommitted { writer, error }) => {
            let code = match &error.reason {
                CommitReason::Busy => Code::Busy,
                CommitReason::TooSmall { .. } => Code::TooSmall,
                CommitReason::TooLarge { .. } => Code::TooLarge,
                _ => Code::Io,
            };
            let more = if code == Code::Busy { "; unmap it and commit again" } else { "" };
            Err((writer, Failure { code, text: format!("{error}{more}") }))
        }
    }
}
