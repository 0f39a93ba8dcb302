//! The broker's own thread: it owns the sockets and the memory, and does what [`crate::broker::Broker`] decides.
//!
//! ```text
//!  pilot --ask--> inbox (eventfd) --> +--------+ --effects--> memory, files, values
//!  payload --frames--> epoll -------> | Broker |
//!  workers: allocate, seal, spill --> +--------+ --answers--> payload
//!                                         |------moved--> pilot
//! ```
//! Whatever takes long is done by a worker (taking and freeing pages, spilling, and sealing where it is more than a gigabyte or
//! where pages are pinned), so that a payload with many bytes delays nobody but others with many.
//!
//! # Guarantees
//! - A payload that stalls, lies or sends descriptors is cut off, alone. Its descriptors are closed unread.
//! - A connection has at most twice [`Limits::open_max`] descriptors on the way to it that it has not received.
//! - When the thread ends, every object of it is given back.
//!
//! **Must not know:** who may do what; containers, queues, where sockets lie.

mod apply;
mod engine;
mod line;
mod objects;
mod tiers;
mod work;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

use crate::broker::{Broker, Ended, Grant, GrantError, InsertError, Limits, SessionId};
use crate::{Class, MemoryStage, StageName, StageUri};

use engine::Engine;
use objects::Object;
use work::{Lane, Report};

pub use tiers::Watch;

/// How a broker is set up.
#[derive(Debug)]
pub struct Settings {
    /// What bounds it.
    pub limits: Limits,
    /// An empty folder for stages that are moved out of memory; without one, none are.
    pub spill_dir: Option<OwnedFd>,
    /// Told of each stage that was moved there.
    pub moved: Option<Watch>,
    /// Payloads have the uid that owns the files: they get none by descriptor (see [`wire::stage::Answer::ByPath`]).
    pub files_by_path: bool,
    /// How long a peer may leave an answer unread, or be silent before its Hello, in milliseconds.
    pub patience_ms: u64,
}

impl Settings {
    /// Patience of ten seconds, no spilling.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, spill_dir: None, moved: None, files_by_path: false, patience_ms: 10_000 }
    }
}

/// The broker's thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ask the stage broker: it has stopped")]
pub struct Stopped;

/// A session that could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The grant is impossible.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// Its socket can't be listened to.
    #[error("listen to a payload's stage socket")]
    Listen(#[source] io::Error),
    /// The broker has stopped.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// A stage that the pilot made by path.
#[derive(Debug)]
pub enum Made {
    /// A committed file. It stays the pilot's to remove.
    File {
        /// A folder: one for all files, since each costs a descriptor.
        dir: Arc<OwnedFd>,
        /// Where it lies below that folder, by way of folders that only the pilot may write.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A committed folder, which is read by path only: a descriptor of it would lead out of it. It stays the pilot's to remove.
    Folder {
        /// What its files have together.
        bytes: u64,
    },
    /// Sealed memory.
    Memory(MemoryStage),
    /// An inline value.
    Value(Vec<u8>),
}

impl Made {
    fn class(&self) -> Class {
        match self {
            Self::File { .. } | Self::Folder { .. } => Class::File,
            Self::Memory(_) => Class::Mem,
            Self::Value(_) => Class::Value,
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::File { bytes, .. } | Self::Folder { bytes } => *bytes,
            Self::Memory(stage) => stage.bytes(),
            Self::Value(value) => value.len() as u64,
        }
    }
}

/// A stage to read.
#[derive(Debug)]
pub enum Content {
    /// Sealed memory, read-only, with an offset of its own.
    Memory(OwnedFd),
    /// A file, read-only.
    File(OwnedFd),
    /// A value.
    Value(Vec<u8>),
}

enum Message {
    Ask(Box<dyn FnOnce(&mut Engine) + Send>),
    Worked(Report, Lane),
    Stop,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ask(_) => "Ask",
            Self::Worked(..) => "Worked",
            Self::Stop => "Stop",
        })
    }
}

/// The way into the broker's thread, for the pilot and for workers.
#[derive(Clone, Debug)]
struct Inbox {
    queue: SyncSender<Message>,
    wake: Arc<OwnedFd>,
}

impl Inbox {
    fn send(&self, message: Message) -> Result<(), Stopped> {
        self.queue.send(message).map_err(|_| Stopped)?;
        // Full means that it is awake already.
        let _ = rustix::io::write(self.wake.as_fd(), &1_u64.to_ne_bytes());
        Ok(())
    }
}

/// Most messages that wait for the broker's thread.
const INBOX_MAX: usize = 1024;

/// A running broker. Dropping it ends its thread, its connections and its stages.
#[derive(Debug)]
pub struct BrokerServer {
    inbox: Inbox,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl BrokerServer {
    /// Starts the broker's thread and its workers.
    ///
    /// # Errors
    /// When the kernel has no thread or descriptor left.
    pub fn start(mut settings: Settings) -> io::Result<Self> {
        settings.limits.can_spill = settings.spill_dir.is_some();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (queue, messages) = sync_channel(INBOX_MAX);
        let inbox = Inbox { queue, wake };
        let engine = Engine::new(settings, messages, &inbox)?;
        let thread = std::thread::Builder::new().name("stage-broker".into()).spawn(move || engine.run())?;
        Ok(Self { inbox, thread: Mutex::new(Some(thread)) })
    }

    /// Does something with the deciding part and applies what follows from it, between two events.
    ///
    /// # Errors
    /// When the broker has stopped.
    pub fn ask<R, F>(&self, question: F) -> Result<R, Stopped>
    where
        R: Send + 'static,
        F: FnOnce(&mut Broker) -> R + Send + 'static,
    {
        self.on_thread(move |engine| question(&mut engine.broker))
    }

    fn on_thread<R, F>(&self, question: F) -> Result<R, Stopped>
    where
        R: Send + 'static,
        F: FnOnce(&mut Engine) -> R + Send + 'static,
    {
        let (tell, told) = sync_channel(1);
        self.inbox.send(Message::Ask(Box::new(move |engine| {
            let answer = question(engine);
            engine.apply();
            let _ = tell.send(answer);
        })))?;
        told.recv().map_err(|_| Stopped)
    }

    /// Serves a payload's client libraries on `listener`, a listening `SOCK_SEQPACKET` socket that only its slot reaches.
    ///
    /// # Errors
    /// When the grant is impossible or the socket can't be listened to.
    pub fn open_session(&self, listener: OwnedFd, grant: Grant) -> Result<SessionId, SessionError> {
        self.on_thread(move |engine| engine.open_session(listener, grant))?
    }

    /// The payload has ended and no process of it is left; see [`Broker::end_session`].
    ///
    /// # Errors
    /// When the broker has stopped.
    pub fn end_session(&self, session: SessionId, keep: bool) -> Result<Ended, Stopped> {
        self.on_thread(move |engine| engine.end_session(session, keep))
    }

    /// Puts a stage that was made by path on the broker; `false` when nobody wants it any more.
    ///
    /// # Errors
    /// As [`Broker::insert`]. What was to be inserted is dropped then.
    pub fn insert(
        &self,
        uri: &StageUri,
        made: Made,
        readers: &BTreeSet<StageName>,
    ) -> Result<Result<bool, InsertError>, Stopped> {
        let (uri, readers) = (uri.clone(), readers.clone());
        self.on_thread(move |engine| {
            // The object is there before the effects ask for it: waiters are served by them.
            let object = engine.broker.insert(&uri, made.class(), made.bytes(), &readers)?;
            let Some(object) = object else { return Ok(false) };
            engine.objects.insert(
                object,
                match made {
                    Made::File { dir, path, .. } => Object::File { dir, path, ours: false },
                    Made::Folder { .. } => Object::Folder,
                    Made::Memory(stage) => Object::Memory(stage),
                    Made::Value(value) => Object::Value(value),
                },
            );
            Ok(true)
        })
    }

    /// Opens a stage for reading, for a process of `holder` where one is about to get it by way of the pilot; `None` when
    /// there is no such stage.
    ///
    /// # Errors
    /// When the broker has stopped.
    pub fn reader(
        &self,
        uri: &StageUri,
        holder: Option<SessionId>,
    ) -> Result<Option<io::Result<Content>>, Stopped> {
        let uri = uri.clone();
        self.on_thread(move |engine| {
            let found = match holder {
                Some(session) => engine.broker.hold(&uri, session),
                None => engine.broker.lookup(&uri),
            };
            found.map(|found| engine.objects.open(found.object))
        })
    }
}

impl BrokerServer {
    /// Ends its thread, its connections and its stages, and waits for that. It answers nothing any more then.
    pub fn stop(&self) {
        let _ = self.inbox.send(Message::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for BrokerServer {
    fn drop(&mut self) {
        self.stop();
    }
}
