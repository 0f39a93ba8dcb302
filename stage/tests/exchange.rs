//! The exchange against the kernel: two tenants' pilots, real sockets, real links, and peers that lie.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use stage::exchange::{Exchange, ExchangeClient, ExchangeError, Fetched, Gate, Offered, Quota};
use stage::{Lending, MemoryStage, MemoryWriter, SealedMap, StageName, StageUri};
use tempfile::TempDir;
use wire::exchange::{Answer, Code, Content, FromExchange, PROTOCOL, Request, ToExchange};
use wire::frame;

const QUOTA: Quota = Quota { objects: 8, bytes: 1 << 20 };

/// A node with an exchange.
struct Node {
    folder: TempDir,
    exchange: Exchange,
}

/// A volume of it, with a gate.
struct Volume {
    root: PathBuf,
    gate: u64,
}

fn open_folder(path: &Path) -> OwnedFd {
    rustix::fs::openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).expect("open a folder")
}

fn uri(text: &str) -> StageUri {
    format!("stage://w/{text}").parse().expect("a name")
}

fn memory(bytes: &[u8]) -> MemoryStage {
    let writer = MemoryWriter::create(&StageName::new("x").expect("name"), Lending::ByFd).expect("memory");
    rustix::io::pwrite(writer.lend(), bytes, 0).expect("write");
    writer.commit(1 << 20).expect("commit")
}

fn reader(stage: &MemoryStage) -> OwnedFd {
    stage.reader().expect("reader")
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        Self { exchange: Exchange::start().expect("exchange"), folder }
    }

    fn volume(&self, tenant: &str, name: &str) -> Volume {
        self.volume_with(tenant, name, QUOTA)
    }

    fn volume_with(&self, tenant: &str, name: &str, quota: Quota) -> Volume {
        let root = self.folder.path().join("volumes").join(name);
        let objects = self.folder.path().join("tenants").join(tenant);
        for folder in [&root.join("exchange"), &root.join("stages"), &objects] {
            fs::create_dir_all(folder).expect("a folder");
        }
        let gate = Gate {
            domain: tenant.to_owned(),
            root: open_folder(&root),
            socket_in: open_folder(&root.join("exchange")),
            socket: "sock".into(),
            objects: Arc::new(open_folder(&objects)),
            quota,
        };
        Volume { gate: self.exchange.open(gate).expect("a gate"), root }
    }

    fn objects(&self, tenant: &str) -> usize {
        fs::read_dir(self.folder.path().join("tenants").join(tenant)).map_or(0, Iterator::count)
    }
}

impl Volume {
    fn pilot(&self) -> ExchangeClient {
        self.connect("spool").expect("connect")
    }

    fn connect(&self, scope: &str) -> Result<ExchangeClient, ExchangeError> {
        ExchangeClient::connect(&self.root.join("exchange/sock"), scope)
    }

    fn file(&self, path: &str, text: &str) {
        fs::write(self.root.join(path), text).expect("write");
        fs::set_permissions(self.root.join(path), fs::Permissions::from_mode(0o444)).expect("chmod");
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).expect("read")
    }

    fn raw(&self) -> OwnedFd {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let socket = socket.expect("socket");
        let folder = open_folder(&self.root.join("exchange"));
        let path = format!("/proc/self/fd/{}/sock", std::os::fd::AsRawFd::as_raw_fd(&folder));
        connect(&socket, &SocketAddrUnix::new(Path::new(&path)).expect("address")).expect("connect");
        socket
    }
}

fn code(error: &ExchangeError) -> Option<Code> {
    match error {
        ExchangeError::Refused { code, .. } => Some(*code),
        _ => None,
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, ExchangeError>, wanted: Code) {
    let error = result.expect_err("refused");
    assert_eq!(code(&error), Some(wanted), "{error}");
    let text = error.to_string();
    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
}

fn within(what: &str, mut there: impl FnMut() -> bool) {
    let mut looks = 6000;
    while !there() {
        assert!(looks > 0, "{what}");
        looks -= 1;
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn stages_of_each_class_go_from_volume_to_volume_and_none_is_copied() {
    let node = Node::new();
    let (a, b) = (node.volume("t", "a"), node.volume("t", "b"));
    let (maker, taker) = (a.pilot(), b.pilot());
    assert_eq!((maker.domain(), taker.domain()), ("t", "t"));

    let stage = memory(b"in memory");
    maker.offer(&uri("p/m"), &Offered::Memory(&reader(&stage))).expect("offer");
    maker.offer(&uri("p/v"), &Offered::Value(b"a value")).expect("offer");
    a.file("stages/f", "in a file");
    maker.offer(&uri("p/f"), &Offered::File("stages/f")).expect("offer");
    fs::create_dir_all(a.root.join("stages/d/sub")).expect("a folder");
    a.file("stages/d/sub/g", "in a folder");
    maker.offer(&uri("p/d"), &Offered::Folder("stages/d")).expect("offer");

    let Ok(Fetched::Memory(found)) = taker.fetch(&uri("p/m"), "stages/m") else { panic!("no memory") };
    let same = |one: &dyn AsFd, other: &dyn AsFd| {
        let stat = |fd: &dyn AsFd| rustix::fs::fstat(fd.as_fd()).expect("stat");
        (stat(one).st_ino, stat(one).st_dev) == (stat(other).st_ino, stat(other).st_dev)
    };
    assert!(same(&found, &stage));
    assert_eq!(&*SealedMap::open(found.reader().expect("reader")).expect("map"), b"in memory");
    assert!(matches!(taker.fetch(&uri("p/v"), "stages/v"), Ok(Fetched::Value(value)) if value == b"a value"));
    assert!(matches!(taker.fetch(&uri("p/f"), "stages/f"), Ok(Fetched::File(9))));
    assert!(matches!(taker.fetch(&uri("p/d"), "stages/d"), Ok(Fetched::Folder(11))));
    assert_eq!((b.text("stages/f"), b.text("stages/d/sub/g")), ("in a file".into(), "in a folder".into()));
    let inode = |volume: &Volume, path: &str| fs::metadata(volume.root.join(path)).expect("stat").ino();
    for path in ["stages/f", "stages/d/sub/g"] {
        assert_eq!(inode(&a, path), inode(&b, path), "{path} was copied");
    }

    let all: Vec<StageUri> = ["p/m", "p/none", "p/f"].map(uri).into();
    assert_eq!(taker.find(&all).expect("find"), ["p/m", "p/f"].map(uri));
    assert_eq!(node.exchange.counts().bytes, 9 + 7 + 9 + 11);
    taker.withdraw(&["p/m", "p/none", "p/f", "p/d", "p/v"].map(uri)).expect("withdraw");
    refused(taker.fetch(&uri("p/f"), "stages/again"), Code::NotThere);
    assert_eq!((node.objects("t"), node.exchange.counts().bytes), (0, 0));
    // What was fetched is the taker's own.
    assert_eq!(b.text("stages/f"), "in a file");
}

#[test]
fn a_stage_outlives_the_pilot_and_the_volume_that_offered_it() {
    let node = Node::new();
    let (a, b) = (node.volume("t", "a"), node.volume("t", "b"));
    let maker = a.pilot();
    a.file("stages/f", "kept");
    maker.offer(&uri("p/f"), &Offered::File("stages/f")).expect("offer");
    maker.offer(&uri("p/m"), &Offered::Memory(&reader(&memory(b"kept")))).expect("offer");
    node.exchange.close(a.gate);
    assert!(maker.find(&[uri("p/f")]).expect_err("closed").is_lost());
    assert!(!a.root.join("exchange/sock").exists());
    fs::remove_dir_all(&a.root).expect("remove");
    let taker = b.pilot();
    assert!(matches!(taker.fetch(&uri("p/f"), "stages/f"), Ok(Fetched::File(4))));
    assert!(matches!(taker.fetch(&uri("p/m"), "stages/m"), Ok(Fetched::Memory(_))));
    assert_eq!(b.text("stages/f"), "kept");
    // With the tenant's last volume all of it goes.
    node.exchange.close(b.gate);
    within("its objects go", || node.objects("t") == 0);
    assert_eq!(node.exchange.counts().tenants, 0);
}

#[test]
fn tenants_can_neither_have_nor_see_nor_change_each_others_stages() {
    let node = Node::new();
    let (ours, theirs) = (node.volume("t", "a"), node.volume("u", "b"));
    let (owner, other) = (ours.pilot(), theirs.pilot());
    ours.file("stages/f", "ours");
    owner.offer(&uri("p/f"), &Offered::File("stages/f")).expect("offer");
    assert_ne!(owner.domain(), other.domain());
    refused(other.fetch(&uri("p/f"), "stages/f"), Code::NotThere);
    assert!(other.find(&[uri("p/f")]).expect("find").is_empty());
    other.withdraw(&[uri("p/f")]).expect("withdraw");
    theirs.file("stages/f", "theirs");
    other.offer(&uri("p/f"), &Offered::File("stages/f")).expect("a name of its own");
    assert!(matches!(owner.fetch(&uri("p/f"), "stages/back"), Ok(Fetched::File(4))));
    // Nor by a path that leads out of its volume.
    symlink(&ours.root, theirs.root.join("stages/out")).expect("link");
    symlink(ours.root.join("stages/f"), theirs.root.join("stages/link")).expect("link");
    for path in ["stages/out/stages/f", "stages/link"] {
        refused(other.offer(&uri("p/stolen"), &Offered::File(path)), Code::Unfit);
    }
    refused(other.fetch(&uri("p/f"), "stages/out/stages/planted"), Code::Unfit);
    assert_eq!(fs::read_dir(ours.root.join("stages")).expect("list").count(), 2);
    assert_eq!(ours.text("stages/back"), "ours");
}

#[test]
fn what_could_still_change_or_is_no_stage_is_refused() {
    let node = Node::new();
    let a = node.volume("t", "a");
    let pilot = a.pilot();
    let offer = |what: &Offered<'_>| pilot.offer(&uri("p/x"), what);
    let writer = MemoryWriter::create(&StageName::new("x").expect("name"), Lending::ByFd).expect("memory");
    rustix::io::pwrite(writer.lend(), b"not sealed", 0).expect("write");
    refused(offer(&Offered::Memory(&writer.lend().try_clone_to_owned().expect("dup"))), Code::Unfit);
    let (pipe, _end) = rustix::pipe::pipe().expect("pipe");
    refused(offer(&Offered::Memory(&pipe)), Code::Unfit);
    fs::write(a.root.join("stages/w"), "writable").expect("write");
    refused(offer(&Offered::File("stages/w")), Code::Unfit);
    refused(offer(&Offered::File("stages/none")), Code::Io);
    refused(offer(&Offered::File("none/none")), Code::NotThere);
    fs::create_dir_all(a.root.join("stages/d")).expect("a folder");
    let no_writes = fs::Permissions::from_mode(0o555);
    fs::set_permissions(a.root.join("stages/d"), no_writes).expect("chmod");
    refused(offer(&Offered::File("stages/d")), Code::Unfit);
    a.file("stages/f", "a file");
    refused(offer(&Offered::Folder("stages/f")), Code::Unfit);
    for path in ["", "/etc/passwd", "../b", "stages/../../b", "stages/.hidden"] {
        assert!(offer(&Offered::File(path)).is_err(), "{path}");
    }
    assert_eq!((node.objects("t"), node.exchange.counts().bytes), (0, 0));
    pilot.offer(&uri("p/x"), &Offered::File("stages/f")).expect("the connection goes on");
    refused(pilot.fetch(&uri("p/x"), "stages/f"), Code::Exists);
    refused(pilot.fetch(&uri("p/x"), "nowhere/f"), Code::NotThere);
}

#[test]
fn each_scope_has_names_of_its_own_and_they_are_listed_in_order() {
    let node = Node::new();
    let a = node.volume_with("t", "a", Quota { objects: 2000, bytes: 1 << 20 });
    let (one, two) = (a.pilot(), a.connect("another spool").expect("connect"));
    let all: Vec<StageUri> = (0..600).map(|n| uri(&format!("p{n:04}/x"))).collect();
    for uri in all.iter().rev() {
        one.offer(uri, &Offered::Value(b"one")).expect("offer");
    }
    two.offer(&all[3], &Offered::Value(b"two")).expect("offer");
    assert_eq!(one.list().expect("list"), all);
    assert_eq!(two.list().expect("list"), all[3..4]);
    assert!(matches!(two.fetch(&all[3], "x"), Ok(Fetched::Value(value)) if value == b"two"));
    two.withdraw(&all).expect("withdraw");
    assert_eq!((one.list().expect("list").len(), two.list().expect("list").len()), (600, 0));
    assert_eq!(node.exchange.counts().bytes, 1800);
}

#[test]
fn a_tenant_has_a_quota_and_replacing_gives_room_back() {
    let node = Node::new();
    let quota = Quota { objects: 2, bytes: 100 };
    let (a, b) = (node.volume_with("t", "a", quota), node.volume_with("t", "b", quota));
    let (one, two) = (a.pilot(), b.pilot());
    one.offer(&uri("p/x"), &Offered::Value(&[0; 60])).expect("offer");
    refused(two.offer(&uri("p/y"), &Offered::Value(&[0; 41])), Code::OverQuota);
    one.offer(&uri("p/x"), &Offered::Value(&[0; 90])).expect("it takes its own place");
    a.file("stages/f", "more than ten bytes");
    refused(one.offer(&uri("p/y"), &Offered::File("stages/f")), Code::OverQuota);
    fs::create_dir_all(a.root.join("stages/d")).expect("a folder");
    a.file("stages/d/f", "more than ten bytes");
    refused(one.offer(&uri("p/y"), &Offered::Folder("stages/d")), Code::OverQuota);
    assert_eq!(node.objects("t"), 0);
    two.offer(&uri("p/y"), &Offered::Value(&[0; 10])).expect("what is left");
    refused(two.offer(&uri("p/z"), &Offered::Value(&[])), Code::TooMany);
    // Another tenant has a quota of its own.
    let other = node.volume_with("u", "c", quota);
    other.pilot().offer(&uri("p/x"), &Offered::Value(&[0; 100])).expect("offer");
    one.withdraw(&[uri("p/x"), uri("p/y")]).expect("withdraw");
    one.offer(&uri("p/x"), &Offered::Value(&[0; 100])).expect("all of it");
}

#[test]
fn an_exchange_that_is_started_again_takes_the_place_of_the_socket() {
    let node = Node::new();
    let a = node.volume("t", "a");
    let old = a.pilot();
    let Node { folder, exchange } = node;
    drop(exchange);
    assert!(old.find(&[]).is_ok() || old.find(&[uri("p/x")]).expect_err("it has ended").is_lost());
    // One that was killed leaves its socket behind.
    fs::write(a.root.join("exchange/sock"), "").expect("write");
    let node = Node { folder, exchange: Exchange::start().expect("exchange") };
    let a = node.volume("t", "a");
    let new = a.pilot();
    assert!(new.age_ms() < 60_000);
    new.offer(&uri("p/x"), &Offered::Value(b"again")).expect("offer");
}

fn say(socket: &OwnedFd, message: &ToExchange, fds: &[&OwnedFd]) {
    let bytes = wire::encode(message).expect("encode");
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    let _ = frame::send(socket.as_fd(), &bytes, &fds);
}

fn hear(socket: &OwnedFd) -> Option<FromExchange> {
    let frame = frame::receive(socket.as_fd()).ok()??;
    Some(wire::decode(&frame.bytes).expect("a message"))
}

#[test]
fn peers_that_break_the_protocol_are_cut_off_and_nobody_else_is() {
    let node = Node::new();
    let a = node.volume("t", "a");
    let good = a.pilot();
    good.offer(&uri("p/x"), &Offered::Value(b"there")).expect("offer");
    let hello = ToExchange::Hello { protocol: PROTOCOL, scope: String::new() };
    let find = |id| ToExchange::Ask { id, request: Request::Find { stages: Vec::new() } };
    let offer = |content| ToExchange::Ask {
        id: 1,
        request: Request::Offer { stage: uri("p/y").to_string(), content },
    };
    let (pipe, _end) = rustix::pipe::pipe().expect("pipe");
    type Lie<'a> = Box<dyn Fn(&OwnedFd) + 'a>;
    let lies: Vec<(&str, Lie<'_>)> = vec![
        ("no Hello", Box::new(|socket| say(socket, &find(1), &[]))),
        ("Hello with a descriptor", Box::new(|socket| say(socket, &hello, &[&pipe]))),
        ("garbage", Box::new(|socket| drop(frame::send(socket.as_fd(), &[0xff; 40], &[])))),
        (
            "two Hellos",
            Box::new(|socket| [&hello, &hello].into_iter().for_each(|message| say(socket, message, &[]))),
        ),
        (
            "an id of zero",
            Box::new(|socket| [&hello, &find(0)].into_iter().for_each(|message| say(socket, message, &[]))),
        ),
        (
            "memory without a descriptor",
            Box::new(|socket| {
                say(socket, &hello, &[]);
                say(socket, &offer(Content::Memory), &[]);
            }),
        ),
        (
            "too many descriptors",
            Box::new(|socket| {
                say(socket, &hello, &[]);
                say(socket, &offer(Content::Memory), &[&pipe, &pipe]);
            }),
        ),
        (
            "a descriptor with a value",
            Box::new(|socket| {
                say(socket, &hello, &[]);
                say(socket, &offer(Content::Value { value: Vec::new() }), &[&pipe]);
            }),
        ),
    ];
    for _ in 0..4 {
        for (what, lie) in &lies {
            let socket = a.raw();
            lie(&socket);
            let mut last = None;
            while let Some(message) = hear(&socket) {
                last = Some(message);
            }
            let Some(FromExchange::Tell { id: 0, answer: Answer::Refused { code, .. } }) = last else {
                panic!("{what}: {last:?}");
            };
            assert_eq!(code, Code::Malformed, "{what}");
        }
    }
    assert_eq!(good.find(&[uri("p/x")]).expect("the others go on").len(), 1);
}

#[test]
fn another_major_version_is_told_so() {
    let node = Node::new();
    let a = node.volume("t", "a");
    let other = ToExchange::Hello {
        protocol: wire::version::Version { major: PROTOCOL.major + 1, minor: 0 },
        scope: String::new(),
    };
    let socket = a.raw();
    say(&socket, &other, &[]);
    assert!(matches!(
        hear(&socket),
        Some(FromExchange::Tell { answer: Answer::Refused { code: Code::Version, .. }, .. })
    ));
    assert!(hear(&socket).is_none());
}

#[test]
fn a_pilot_has_a_bound_on_connections_and_gets_them_back() {
    let node = Node::new();
    let a = node.volume("t", "a");
    let mut many: Vec<ExchangeClient> = (0..8).map(|_| a.pilot()).collect();
    let error = a.connect("spool").expect_err("one too many");
    assert_eq!(code(&error), Some(Code::TooMany), "{error}");
    many.pop();
    within("its place is given back", || a.connect("spool").is_ok());
    assert!(many.iter().all(|pilot| pilot.find(&[uri("p/x")]).is_ok()));
}

#[test]
fn many_pilots_at_once_leave_nothing_behind() {
    let node = Node::new();
    let volumes: Vec<Volume> =
        (0..4).map(|n| node.volume(if n < 2 { "t" } else { "u" }, &n.to_string())).collect();
    std::thread::scope(|scope| {
        for (n, volume) in volumes.iter().enumerate() {
            scope.spawn(move || {
                let pilot = volume.pilot();
                for round in 0..100 {
                    let own = uri(&format!("p{n}/x"));
                    let file = format!("stages/{round}");
                    volume.file(&file, &file);
                    pilot.offer(&own, &Offered::File(&file)).expect("offer");
                    fs::remove_file(volume.root.join(&file)).expect("remove");
                    // Another one of the tenant's may have withdrawn it by now.
                    let neighbour = uri(&format!("p{}/x", n ^ 1));
                    let into = format!("stages/from-{round}");
                    match pilot.fetch(&neighbour, &into) {
                        Ok(Fetched::File(bytes)) => {
                            assert_eq!(volume.text(&into).len() as u64, bytes);
                            fs::remove_file(volume.root.join(&into)).expect("remove");
                        }
                        other => assert!(other.as_ref().is_err_and(ExchangeError::is_missing), "{other:?}"),
                    }
                    if round % 3 == 0 {
                        pilot.withdraw(&[own]).expect("withdraw");
                    }
                }
                pilot.withdraw(&[uri(&format!("p{n}/x"))]).expect("withdraw");
            });
        }
    });
    for volume in &volumes {
        assert_eq!(fs::read_dir(volume.root.join("stages")).expect("list").count(), 0);
    }
    within("no object is left", || node.objects("t") + node.objects("u") == 0);
    let counts = node.exchange.counts();
    assert_eq!((counts.objects, counts.bytes, counts.offered), (0, 0, 400));
}

#[test]
fn memory_that_was_fetched_can_be_read_and_not_changed() {
    let node = Node::new();
    let (a, b) = (node.volume("t", "a"), node.volume("t", "b"));
    a.pilot().offer(&uri("p/m"), &Offered::Memory(&reader(&memory(b"sealed")))).expect("offer");
    let Ok(Fetched::Memory(found)) = b.pilot().fetch(&uri("p/m"), "stages/m") else { panic!("no memory") };
    let mut file = fs::File::from(found.reader().expect("reader"));
    let mut text = String::new();
    file.read_to_string(&mut text).expect("read");
    assert_eq!(text, "sealed");
    assert!(file.write_all(b"x").is_err() && file.set_len(0).is_err());
}
