//! Gates: listening, and a thread for each connection. There is one for each pilot, so they are few.
//!
//! **Must not know:** what is said on a connection.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{AtFlags, Mode, unlinkat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, shutdown,
    socket_with, sockopt,
};

use super::connection;
use super::hub::{Counts, Hub};
use crate::memory::now_us;

/// What a tenant may have in an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Stages.
    pub objects: usize,
    /// Bytes of all of them together.
    pub bytes: u64,
}

/// A volume's way in, as it is asked for.
#[derive(Debug)]
pub struct Gate {
    /// Whose its pilots are. It is told to them, so it must not be guessable.
    pub domain: String,
    /// The volume's root: offered and fetched files lie below it.
    pub root: OwnedFd,
    /// The folder in which the socket is made. Only we may write to it, and only the volume's pilots can reach it: whoever
    /// does is taken for one.
    pub socket_in: OwnedFd,
    /// What the socket is called.
    pub socket: String,
    /// The tenant's folder, on the file system of its volumes and reached through the same mount.
    pub objects: Arc<OwnedFd>,
    /// What the tenant may have.
    pub quota: Quota,
}

/// What the threads of a gate know of it.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) gate: Gate,
    pub(super) hub: Arc<Hub>,
    pub(super) began_us: u64,
    listener: OwnedFd,
    closed: AtomicBool,
    connections: AtomicUsize,
    /// Kept to end them with the gate.
    sockets: Mutex<Vec<Weak<OwnedFd>>>,
}

impl Open {
    fn sockets(&self) -> MutexGuard<'_, Vec<Weak<OwnedFd>>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// Most connections of one gate: a pilot has one, and makes a new one when it lost that.
const CONNECTIONS_MAX: usize = 8;
/// How long a pilot may leave an answer unread, or be in the middle of nothing before its Hello.
const PATIENCE: Duration = Duration::from_secs(10);
/// A connection holds one frame and calls nothing deep but the walk through a folder.
const STACK_BYTES: usize = 512 * 1024;
const STOP: u64 = 0;

type Gates = BTreeMap<u64, Arc<Open>>;

#[derive(Debug)]
struct Shared {
    hub: Arc<Hub>,
    gates: Mutex<Gates>,
    epoll: OwnedFd,
    stop: OwnedFd,
    began_us: u64,
}

impl Shared {
    fn gates(&self) -> MutexGuard<'_, Gates> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running exchange. Dropping it closes all gates.
#[derive(Debug)]
pub struct Exchange {
    shared: Arc<Shared>,
    last: AtomicUsize,
    thread: Option<JoinHandle<()>>,
}

impl Exchange {
    /// Starts the thread that accepts connections.
    ///
    /// # Errors
    /// When the kernel has no thread or descriptor left.
    pub fn start() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        epoll::add(&epoll, &stop, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
        let shared = Arc::new(Shared {
            hub: Arc::default(),
            gates: Mutex::default(),
            epoll,
            stop,
            began_us: now_us(),
        });
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("exchange".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn(move || accept_all(&own))?;
        Ok(Self { shared, last: AtomicUsize::new(0), thread: Some(thread) })
    }

    /// Opens a gate; gives its number. A socket of that name is replaced.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn open(&self, gate: Gate) -> io::Result<u64> {
        let listener = listen_at(&gate)?;
        let number = self.last.fetch_add(1, Ordering::Relaxed) as u64 + 1;
        let open = Arc::new(Open {
            hub: Arc::clone(&self.shared.hub),
            began_us: self.shared.began_us,
            listener,
            closed: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            sockets: Mutex::default(),
            gate,
        });
        self.shared.hub.enter(&open.gate.domain);
        let data = epoll::EventData::new_u64(number);
        let mut gates = self.shared.gates();
        if let Err(errno) = epoll::add(&self.shared.epoll, &open.listener, data, epoll::EventFlags::IN) {
            self.shared.hub.leave(&open.gate.domain);
            return Err(errno.into());
        }
        gates.insert(number, open);
        Ok(number)
    }

    /// Closes a gate: its connections end, its socket goes, and with the tenant's last one the tenant's objects.
    pub fn close(&self, number: u64) {
        let gone = self.shared.gates().remove(&number);
        if let Some(open) = gone {
            close(&self.shared, &open);
        }
    }

    /// What there is.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.hub.counts()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.shared.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let gates = std::mem::take(&mut *self.shared.gates());
        for open in gates.values() {
            close(&self.shared, open);
        }
    }
}

fn close(shared: &Shared, open: &Open) {
    open.closed.store(true, Ordering::Release);
    let _ = epoll::delete(&shared.epoll, &open.listener);
    let _ = unlinkat(&open.gate.socket_in, open.gate.socket.as_str(), AtFlags::empty());
    for socket in open.sockets().iter().filter_map(Weak::upgrade) {
        let _ = shutdown(socket.as_fd(), Shutdown::Both);
    }
    shared.hub.leave(&open.gate.domain);
}

/// Listens under the gate's name, by way of the folder's descriptor: a path may be longer than an address.
fn listen_at(gate: &Gate) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    match unlinkat(&gate.socket_in, gate.socket.as_str(), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let through = format!("/proc/self/fd/{}/{}", gate.socket_in.as_raw_fd(), gate.socket);
    bind(&listener, &SocketAddrUnix::new(Path::new(&through))?)?;
    let finish = || {
        rustix::fs::chmod(through.as_str(), Mode::from_raw_mode(0o666))?;
        listen(&listener, 8)
    };
    finish().inspect_err(|_| {
        let _ = unlinkat(&gate.socket_in, gate.socket.as_str(), AtFlags::empty());
    })?;
    Ok(listener)
}

fn accept_all(shared: &Arc<Shared>) {
    let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
    loop {
        events.clear();
        match epoll::wait(&shared.epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        for event in &events {
            let number = event.data.u64();
            if number == STOP {
                return;
            }
            let open = shared.gates().get(&number).map(Arc::clone);
            if open.is_some_and(|open| !accept_one(&open)) {
                // No descriptor or thread is left: others may give some back.
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Takes one connection; `false` when the kernel has no room for it.
fn accept_one(open: &Arc<Open>) -> bool {
    let socket = match accept_with(&open.listener, SocketFlags::CLOEXEC) {
        Ok(socket) => Arc::new(socket),
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return true,
        Err(_) => return false,
    };
    if open.connections.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
        open.connections.fetch_sub(1, Ordering::AcqRel);
        connection::refuse_as_full(&socket);
        return true;
    }
    let _ = sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE));
    let _ = sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE));
    let mut sockets = open.sockets();
    sockets.retain(|socket| socket.strong_count() > 0);
    sockets.push(Arc::downgrade(&socket));
    drop(sockets);
    let own = Arc::clone(open);
    let thread = std::thread::Builder::new().name("exchange-pilot".into()).stack_size(STACK_BYTES);
    let served = thread.spawn(move || {
        if !own.is_closed() {
            connection::serve(&own, &socket);
        }
        drop(socket);
        own.connections.fetch_sub(1, Ordering::AcqRel);
    });
    if served.is_err() {
        open.connections.fetch_sub(1, Ordering::AcqRel);
    }
    served.is_ok()
}
