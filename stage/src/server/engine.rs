//! The loop: one event after the other, each decided by the broker and applied at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use wire::frame;
use wire::stage::{Answer, Code, FromBroker, ToBroker};

use super::line::{Line, Sent};
use super::objects::Objects;
use super::tiers::{Asker, Watch};
use super::work::{Lane, Worker};
use super::{Inbox, Message, SessionError, Settings};
use crate::broker::{Broker, Ended, Failure, Grant, PeerId, SessionId, Ticket};
use crate::memory::now_us;

/// Whose readiness epoll reports. Ids of sessions and peers are never the same number.
#[derive(Debug)]
enum Source {
    Listener(SessionId),
    Peer(PeerId),
}

#[derive(Debug)]
pub(super) struct Engine {
    pub(super) broker: Broker,
    pub(super) objects: Objects,
    inbox: Receiver<Message>,
    wake: Arc<OwnedFd>,
    epoll: OwnedFd,
    sources: BTreeMap<u64, Source>,
    listeners: BTreeMap<SessionId, (u64, OwnedFd)>,
    pub(super) lines: BTreeMap<PeerId, (u64, Line)>,
    next_token: u64,
    pages: Worker,
    seals: Worker,
    disk: Worker,
    pub(super) spill_dir: Option<Arc<OwnedFd>>,
    pub(super) moved: Option<Watch>,
    /// Who waits for room that the pilot asked for.
    pub(super) askers: BTreeMap<Ticket, Asker>,
    pub(super) files_by_path: bool,
    patience_ms: u64,
    fds_max: usize,
    /// Sessions whose seals took too long to be waited for here.
    pub(super) slow: BTreeSet<SessionId>,
    /// Peers of which something is expected.
    watched: BTreeSet<PeerId>,
    /// Since when listeners can't accept for want of descriptors.
    starved_ms: Option<u64>,
    stopping: bool,
}

const WAKE: u64 = 0;
/// Frames and connections taken of one source before the others have their turn.
const TURN: usize = 16;
/// How often a peer is looked at that has not taken its answers.
const LOOK_MS: u64 = 20;

impl Engine {
    pub(super) fn new(settings: Settings, inbox: Receiver<Message>, way_in: &Inbox) -> io::Result<Self> {
        let Settings { limits, spill_dir, moved, files_by_path, patience_ms } = settings;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = Arc::clone(&way_in.wake);
        epoll::add(&epoll, &*wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        Ok(Self {
            broker: Broker::new(limits),
            objects: Objects::default(),
            inbox,
            wake,
            epoll,
            sources: BTreeMap::new(),
            listeners: BTreeMap::new(),
            lines: BTreeMap::new(),
            next_token: WAKE + 1,
            pages: Worker::start("stage-pages", way_in)?,
            seals: Worker::start("stage-seals", way_in)?,
            disk: Worker::start("stage-disk", way_in)?,
            spill_dir: spill_dir.map(Arc::new),
            moved,
            askers: BTreeMap::new(),
            files_by_path,
            patience_ms,
            fds_max: limits.open_max,
            slow: BTreeSet::new(),
            watched: BTreeSet::new(),
            starved_ms: None,
            stopping: false,
        })
    }

    pub(super) fn run(mut self) {
        let mut ready = Vec::with_capacity(64);
        while !self.stopping {
            let wait = self.wait_ms().map(|ms| Timespec {
                tv_sec: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
                tv_nsec: i64::try_from(ms % 1000 * 1_000_000).unwrap_or(0),
            });
            match epoll::wait(&self.epoll, spare_capacity(&mut ready), wait.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => break,
            }
            for event in ready.drain(..) {
                let (token, flags) = (event.data.u64(), event.flags);
                self.on_ready(token, flags);
            }
            self.on_time();
        }
        self.lines.clear();
        self.listeners.clear();
        for worker in [&mut self.pages, &mut self.seals, &mut self.disk] {
            worker.stop();
        }
        while let Ok(message) = self.inbox.try_recv() {
            if let Message::Worked(report, _) = message {
                self.on_report(report);
            }
        }
        if let Some(dir) = &self.spill_dir {
            self.objects.drop_copies(dir);
        }
        self.objects.free_all();
    }

    fn on_ready(&mut self, token: u64, flags: epoll::EventFlags) {
        match self.sources.get(&token) {
            None if token == WAKE => self.on_inbox(),
            // Gone since epoll said so.
            None => {}
            Some(Source::Listener(session)) => self.on_connection(*session),
            Some(Source::Peer(peer)) => {
                let peer = *peer;
                if flags.contains(epoll::EventFlags::OUT) {
                    self.flush(peer);
                }
                if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                    self.on_frames(peer, flags);
                }
            }
        }
    }

    fn on_inbox(&mut self) {
        let _ = rustix::io::read(&*self.wake, &mut [0_u8; 8][..]);
        while let Ok(message) = self.inbox.try_recv() {
            match message {
                Message::Ask(question) => question(self),
                Message::Worked(report, lane) => {
                    self.worker(lane).done();
                    self.on_report(report);
                    self.apply();
                }
                Message::Stop => self.stopping = true,
            }
        }
    }

    pub(super) fn worker(&mut self, lane: Lane) -> &mut Worker {
        match lane {
            Lane::Pages => &mut self.pages,
            Lane::Seals => &mut self.seals,
            Lane::Disk => &mut self.disk,
        }
    }

    pub(super) fn open_session(
        &mut self,
        listener: OwnedFd,
        grant: Grant,
    ) -> Result<SessionId, SessionError> {
        let session = self.broker.open_session(grant)?;
        let token = self.token();
        let listens = rustix::io::ioctl_fionbio(&listener, true).and_then(|()| {
            epoll::add(&self.epoll, &listener, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
        });
        if let Err(errno) = listens {
            let _ = self.broker.end_session(session, false);
            return Err(SessionError::Listen(errno.into()));
        }
        self.sources.insert(token, Source::Listener(session));
        self.listeners.insert(session, (token, listener));
        Ok(session)
    }

    pub(super) fn end_session(&mut self, session: SessionId, keep: bool) -> Ended {
        if let Some((token, listener)) = self.listeners.remove(&session) {
            self.sources.remove(&token);
            let _ = epoll::delete(&self.epoll, &listener);
        }
        self.slow.remove(&session);
        self.broker.end_session(session, keep)
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn on_connection(&mut self, session: SessionId) {
        for _ in 0..TURN {
            let Some((_, listener)) = self.listeners.get(&session) else { return };
            match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => self.take_in(session, socket),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    // No descriptor is left. Epoll would report the listener for ever.
                    self.starved_ms = Some(now_ms());
                    self.listen(false);
                    return;
                }
            }
        }
    }

    fn listen(&self, on: bool) {
        let flags = if on { epoll::EventFlags::IN } else { epoll::EventFlags::empty() };
        for (token, listener) in self.listeners.values() {
            let _ = epoll::modify(&self.epoll, listener, epoll::EventData::new_u64(*token), flags);
        }
    }

    fn take_in(&mut self, session: SessionId, socket: OwnedFd) {
        let peer = match self.broker.came(session) {
            Ok(peer) => peer,
            Err(Failure { code, text }) => {
                let refused = FromBroker::Tell { id: 0, answer: Answer::Refused { code, text } };
                if let Ok(bytes) = wire::encode(&refused) {
                    let _ = frame::send(socket.as_fd(), &bytes, &[]);
                }
                return;
            }
        };
        let token = self.token();
        let data = epoll::EventData::new_u64(token);
        if epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN).is_err() {
            return self.broker.gone(peer);
        }
        self.sources.insert(token, Source::Peer(peer));
        self.lines.insert(peer, (token, Line::new(socket, now_ms())));
        self.watched.insert(peer);
    }

    fn on_frames(&mut self, peer: PeerId, flags: epoll::EventFlags) {
        for _ in 0..TURN {
            let Some((_, line)) = self.lines.get_mut(&peer) else { return };
            let hung_up = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            if !line.may_ask(self.fds_max) && !hung_up {
                return self.look_after(peer);
            }
            match frame::receive(line.fd.as_fd()) {
                Ok(Some(frame)) => {
                    line.greeted = true;
                    self.on_frame(peer, &frame);
                }
                Ok(None) => return self.hang_up(peer),
                Err(error) if error.is_would_block() => break,
                Err(error) => self.cut(peer, error.to_string()),
            }
            self.apply();
        }
        self.look_after(peer);
    }

    fn on_frame(&mut self, peer: PeerId, frame: &frame::Frame) {
        if !frame.fds.is_empty() {
            return self.cut(peer, "ask: the broker takes no descriptors".into());
        }
        match wire::decode::<ToBroker>(&frame.bytes) {
            Ok(message) => self.broker.said(peer, message, now_ms()),
            Err(error) => self.cut(peer, format!("ask: {}", chain(&error))),
        }
    }

    fn cut(&mut self, peer: PeerId, text: String) {
        self.broker.cut(peer, Code::Malformed, text);
    }

    fn hang_up(&mut self, peer: PeerId) {
        self.disconnect(peer);
        self.broker.gone(peer);
        self.apply();
    }

    pub(super) fn disconnect(&mut self, peer: PeerId) {
        self.watched.remove(&peer);
        if let Some((token, line)) = self.lines.remove(&peer) {
            self.sources.remove(&token);
            let _ = epoll::delete(&self.epoll, &line.fd);
        }
    }

    fn flush(&mut self, peer: PeerId) {
        let Some((_, line)) = self.lines.get_mut(&peer) else { return };
        match line.flush() {
            Sent::Never => self.hang_up(peer),
            Sent::Now | Sent::Later => self.look_after(peer),
        }
    }

    /// Listens for what a line can do next, and remembers since when it has not taken its answers.
    pub(super) fn look_after(&mut self, peer: PeerId) {
        let Some((token, line)) = self.lines.get_mut(&peer) else { return };
        let (free, clogged) = (line.may_ask(self.fds_max), line.is_clogged());
        if free && line.greeted && !line.owes() {
            line.since_ms = None;
            self.watched.remove(&peer);
        } else {
            line.since_ms = line.since_ms.or_else(|| Some(now_ms()));
            self.watched.insert(peer);
        }
        if line.interest == (free, clogged) {
            return;
        }
        line.interest = (free, clogged);
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, free);
        flags.set(epoll::EventFlags::OUT, clogged);
        let _ = epoll::modify(&self.epoll, &line.fd, epoll::EventData::new_u64(*token), flags);
    }

    fn waiting(&self) -> impl Iterator<Item = (PeerId, u64, bool)> {
        self.watched.iter().filter_map(|peer| {
            let (_, line) = self.lines.get(peer)?;
            Some((*peer, line.since_ms?, line.greeted))
        })
    }

    fn wait_ms(&self) -> Option<u64> {
        let now = now_ms();
        let mut wait = self.broker.deadline_ms().map(|by| by.saturating_sub(now));
        let mut sooner = |ms: u64| wait = Some(wait.map_or(ms, |wait| wait.min(ms)));
        if self.starved_ms.is_some() {
            sooner(LOOK_MS);
        }
        for (_, since, greeted) in self.waiting() {
            // A stalled peer is looked at often; one that has not spoken yet wakes us when it speaks.
            sooner(if greeted { LOOK_MS } else { (since + self.patience_ms).saturating_sub(now) });
        }
        wait
    }

    fn on_time(&mut self) {
        let now = now_ms();
        if self.starved_ms.take_if(|since| now.saturating_sub(*since) >= LOOK_MS).is_some() {
            self.listen(true);
        }
        self.broker.tick(now);
        let waiting: Vec<_> = self.waiting().collect();
        for (peer, since, greeted) in waiting {
            if now.saturating_sub(since) >= self.patience_ms {
                let why = if greeted { "left its answers unread" } else { "said nothing" };
                self.cut(peer, format!("ask: the client {why} for {} ms", self.patience_ms));
            } else if greeted {
                if let Some((_, line)) = self.lines.get_mut(&peer) {
                    line.look();
                }
                self.flush(peer);
            }
        }
        self.apply();
    }
}

pub(super) fn now_ms() -> u64 {
    now_us() / 1000
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}
