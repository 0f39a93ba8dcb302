//! A broker with payloads' sockets in a folder.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use stage::broker::{Counts, Grant, GrantInput, GrantOutput, Limits, SessionId};
use stage::client::{Client, ClientError};
use stage::server::{BrokerServer, Settings};
use stage::{Budget, Class, Medium, StageName, StageUri};
use wire::frame;
use wire::stage::{Answer, Code, FromBroker, PROTOCOL, Request, ToBroker};

use crate::common::name;

/// Long enough for a busy machine; nothing waits for it unless something is wrong.
pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) struct Room {
    pub(crate) server: BrokerServer,
    pub(crate) folder: tempfile::TempDir,
    sockets: AtomicU32,
}

pub(crate) fn budget(memory_bytes: u64) -> Limits {
    Limits::new(Budget { memory_bytes, disk_bytes: 1 << 40 })
}

pub(crate) fn settings(memory_bytes: u64) -> Settings {
    Settings::new(budget(memory_bytes))
}

pub(crate) fn uri(payload: &str, output: &str) -> StageUri {
    StageUri { workflow: name("w"), payload: name(payload), output: name(output) }
}

/// What a payload may do: outputs as `name`, `mem`, inputs as `name = payload/output`, live.
pub(crate) fn grant(payload: &str, outputs: &[(&str, Class, u64)], inputs: &[(&str, &str, &str)]) -> Grant {
    Grant {
        workflow: name("w"),
        payload: name(payload),
        outputs: outputs
            .iter()
            .map(|(output, class, max_bytes)| GrantOutput {
                name: name(output),
                class: *class,
                max_bytes: *max_bytes,
                readers: BTreeSet::from([name("reader")]),
            })
            .collect(),
        inputs: inputs
            .iter()
            .map(|(input, payload, output)| GrantInput {
                name: name(input),
                uri: uri(payload, output),
                live: true,
            })
            .collect(),
    }
}

impl Room {
    pub(crate) fn new(settings: Settings) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let server = BrokerServer::start(settings).expect("broker");
        Self { server, folder, sockets: AtomicU32::new(0) }
    }

    /// A broker of a megabyte and more, a producer with outputs `x`, `y` (memory) and `v` (value), and its consumer.
    pub(crate) fn pair() -> (Self, Session, Session) {
        let room = Self::new(settings(64 << 20));
        let (producer, consumer) = room.producer_and_consumer();
        (room, producer, consumer)
    }

    pub(crate) fn producer_and_consumer(&self) -> (Session, Session) {
        let outputs = [("x", Class::Mem, 32 << 20), ("y", Class::Mem, 32 << 20), ("v", Class::Value, 65_536)];
        let producer = self.session(grant("producer", &outputs, &[]));
        let inputs = [("x", "producer", "x"), ("y", "producer", "y"), ("v", "producer", "v")];
        let consumer = self.session(grant("consumer", &[], &inputs));
        (producer, consumer)
    }

    pub(crate) fn session(&self, grant: Grant) -> Session {
        let path = self.folder.path().join(format!("s{}", self.sockets.fetch_add(1, Ordering::Relaxed)));
        let id = self.server.open_session(listener(&path), grant).expect("session");
        Session { id, path }
    }

    pub(crate) fn used(&self) -> u64 {
        self.server.ask(|broker| broker.ledger().used_bytes(Medium::Memory)).expect("ask")
    }

    pub(crate) fn peers(&self) -> usize {
        self.server.ask(|broker| broker.peers()).expect("ask")
    }

    pub(crate) fn counts(&self) -> Counts {
        self.server.ask(|broker| broker.counts()).expect("ask")
    }

    /// Waits until something holds of the broker.
    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        for _ in 0..SOON.as_millis() {
            if holds(self) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("never: {what}");
    }
}

pub(crate) fn listener(path: &Path) -> OwnedFd {
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("socket");
    bind(&socket, &SocketAddrUnix::new(path).expect("address")).expect("bind");
    listen(&socket, 4096).expect("listen");
    socket
}

pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) path: PathBuf,
}

impl Session {
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.path).expect("connect")
    }

    pub(crate) fn raw(&self) -> Raw {
        let raw = self.silent();
        raw.say(&ToBroker::Hello { protocol: PROTOCOL });
        assert!(matches!(raw.hear(), Some((FromBroker::Welcome { .. }, _))));
        raw
    }

    /// Connected, without a Hello.
    pub(crate) fn silent(&self) -> Raw {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .expect("socket");
        connect(&socket, &SocketAddrUnix::new(&self.path).expect("address")).expect("connect");
        Raw { socket }
    }
}

/// A client that says what it likes.
pub(crate) struct Raw {
    pub(crate) socket: OwnedFd,
}

impl Raw {
    pub(crate) fn say(&self, message: &ToBroker) {
        self.bytes(&wire::encode(message).expect("encode"));
    }

    pub(crate) fn bytes(&self, bytes: &[u8]) {
        frame::send(self.socket.as_fd(), bytes, &[]).expect("send");
    }

    pub(crate) fn hear(&self) -> Option<(FromBroker, Vec<OwnedFd>)> {
        let frame = frame::receive(self.socket.as_fd()).expect("receive")?;
        Some((wire::decode(&frame.bytes).expect("decode"), frame.fds))
    }

    pub(crate) fn ask(&self, id: u32, request: Request) -> (Answer, Vec<OwnedFd>) {
        self.say(&ToBroker::Ask { id, request });
        match self.hear().expect("an answer") {
            (FromBroker::Tell { id: of, answer }, fds) => {
                assert_eq!(of, id, "{answer:?}");
                (answer, fds)
            }
            other => panic!("{other:?}"),
        }
    }

    /// That it is told why, and that this is the end.
    pub(crate) fn is_cut_off(&self, code: Code) -> String {
        let text = match self.hear() {
            Some((FromBroker::Tell { id: 0, answer: Answer::Refused { code: given, text } }, _)) => {
                assert_eq!(given, code, "{text}");
                text
            }
            other => panic!("{other:?}"),
        };
        assert!(self.hear().is_none(), "the connection ends");
        text
    }
}

pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>, code: Code) -> String {
    match result {
        Err(ClientError::Refused { code: given, text }) => {
            assert_eq!(given, code, "{text}");
            assert!(!text.contains('\n'), "one line: {text}");
            text
        }
        other => panic!("{other:?}"),
    }
}

/// Makes a whole output through a client.
pub(crate) fn make(client: &Client, output: &str, bytes: &[u8]) {
    let mut made = client.create(output, bytes.len() as u64).expect("create");
    made.write_at(0, bytes).expect("write");
    made.commit().expect("commit");
}

pub(crate) fn reader() -> StageName {
    name("reader")
}
