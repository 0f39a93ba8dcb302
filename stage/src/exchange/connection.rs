//! One connection of a pilot: questions in, answers out, one after the other.
//!
//! **Must not know:** how it came to be.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2, statat};
use rustix::net::sockopt;
use wire::exchange::{
    Answer, Code, Content, Fetched, FromExchange, PROTOCOL, Request, TEXT_BYTES_MAX, ToExchange,
};
use wire::frame;

use super::hub::{Kept, Key, Link, Object, Refusal};
use super::server::Open;
use crate::folder::lend_folder_within;
use crate::memory::now_us;
use crate::reader::size;
use crate::{CommitReason, FolderLimits, MemoryStage, StageName, StageUri, lend_file, lend_folder};

/// Tells one that there is no room for it.
pub(super) fn refuse_as_full(socket: &OwnedFd) {
    tell(socket, 0, refused(Refusal::new(Code::TooMany, "connect: this pilot has connections enough")), None);
}

/// Serves until the pilot goes, or breaks the protocol, or the gate is closed.
pub(super) fn serve(open: &Open, socket: &OwnedFd) {
    let scope: Arc<str> = match receive(socket) {
        Ok(Some((ToExchange::Hello { protocol, scope }, _))) if PROTOCOL.understands(protocol) => {
            let age_ms = now_us().saturating_sub(open.began_us) / 1000;
            let domain = open.gate.domain.clone();
            say(socket, &FromExchange::Welcome { protocol: PROTOCOL, domain, age_ms }, None);
            scope.into()
        }
        Ok(Some((ToExchange::Hello { .. }, _))) => {
            let text = format!("connect: this exchange speaks {PROTOCOL:?}; use programs of one version");
            tell(socket, 0, refused(Refusal::new(Code::Version, text)), None);
            return;
        }
        Ok(Some(_)) => return malformed(socket, "no Hello"),
        Ok(None) => return,
        Err(what) => return malformed(socket, what),
    };
    // A pilot may be silent for as long as it likes.
    let _ = sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, None);
    loop {
        match receive(socket) {
            Ok(Some((ToExchange::Ask { id, request }, fd))) if id != 0 => {
                let (answer, fd) =
                    answer(open, &scope, request, fd).unwrap_or_else(|refusal| (refused(refusal), None));
                if !tell(socket, id, answer, fd) || open.is_closed() {
                    return;
                }
            }
            Ok(Some(_)) => return malformed(socket, "no question"),
            Ok(None) => return,
            Err(what) => return malformed(socket, what),
        }
    }
}

fn malformed(socket: &OwnedFd, what: &str) {
    tell(socket, 0, refused(Refusal::new(Code::Malformed, format!("hear a pilot: {what}"))), None);
}

fn refused(refusal: Refusal) -> Answer {
    let Refusal { code, mut text } = refusal;
    while text.len() > TEXT_BYTES_MAX {
        text.pop();
    }
    Answer::Refused { code, text }
}

/// One frame; with as many descriptors as it says.
fn receive(socket: &OwnedFd) -> Result<Option<(ToExchange, Option<OwnedFd>)>, &'static str> {
    let Some(frame) = frame::receive(socket.as_fd()).map_err(|_| "a frame that was cut")? else {
        return Ok(None);
    };
    let message: ToExchange = wire::decode(&frame.bytes).map_err(|_| "no message")?;
    if frame.fds.len() != message.fds() {
        return Err("a wrong number of descriptors");
    }
    Ok(Some((message, frame.fds.into_iter().next())))
}

fn say(socket: &OwnedFd, message: &FromExchange, fd: Option<OwnedFd>) -> bool {
    let Ok(bytes) = wire::encode(message) else { return false };
    let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
    frame::send(socket.as_fd(), &bytes, &fds).is_ok()
}

fn tell(socket: &OwnedFd, id: u32, answer: Answer, fd: Option<OwnedFd>) -> bool {
    say(socket, &FromExchange::Tell { id, answer }, fd)
}

type Answered = Result<(Answer, Option<OwnedFd>), Refusal>;

fn answer(open: &Open, scope: &Arc<str>, request: Request, fd: Option<OwnedFd>) -> Answered {
    let parse = |stage: &str| parse(scope, stage);
    let domain = &open.gate.domain;
    match request {
        Request::Offer { stage, content } => offer(open, &parse(&stage)?, content, fd),
        Request::Fetch { stage, into } => fetch(open, &parse(&stage)?, &into),
        Request::Withdraw { stages } => {
            let keys = stages.iter().map(|stage| parse(stage)).collect::<Result<Vec<_>, _>>()?;
            open.hub.withdraw(domain, &keys);
            Ok((Answer::Withdrawn, None))
        }
        Request::Find { stages } => {
            let mut there = Vec::new();
            for stage in stages {
                if open.hub.find(domain, &parse(&stage)?).is_some() {
                    there.push(stage);
                }
            }
            Ok((Answer::Found { stages: there }, None))
        }
        Request::List { after } => {
            let after = after.map(|after| parse(&after)).transpose()?.map(|(_, uri)| uri);
            let listed = open.hub.list(domain, scope, after.as_ref());
            Ok((Answer::Found { stages: listed.iter().map(ToString::to_string).collect() }, None))
        }
    }
}

fn parse(scope: &Arc<str>, stage: &str) -> Result<Key, Refusal> {
    let uri = stage.parse().map_err(|error| Refusal::new(Code::Malformed, format!("{error}")))?;
    Ok((Arc::clone(scope), uri))
}

fn offer(open: &Open, key: &Key, content: Content, fd: Option<OwnedFd>) -> Answered {
    let (gate, uri) = (&open.gate, &key.1);
    let reserve = |bytes| open.hub.reserve(&gate.domain, key, bytes, gate.quota);
    let unfit = |why: &dyn std::error::Error| {
        let source = why.source().map(|source| format!(": {source}")).unwrap_or_default();
        Refusal::new(Code::Unfit, format!("offer {uri}: {why}{source}"))
    };
    let (room, kept) = match (content, fd) {
        (Content::Memory, Some(fd)) => {
            let stat =
                rustix::fs::fstat(&fd).map_err(|errno| Refusal::io("look at memory", &errno.into()))?;
            let stage = MemoryStage::found(&uri.output, fd, size(&stat)).map_err(|error| unfit(&error))?;
            (reserve(stage.bytes())?, Kept::Memory(stage))
        }
        (Content::Memory, None) => return Err(Refusal::new(Code::Malformed, "no descriptor came")),
        (Content::Value { value }, _) => (reserve(value.len() as u64)?, Kept::Value(value)),
        (Content::File { path }, _) => {
            let (folder, name) = place(open, &path)?;
            let stat = statat(&folder, name.as_str(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
            let stat =
                stat.map_err(|errno| Refusal::io(&format!("offer {uri}: look at {path}"), &errno.into()))?;
            if stat.st_mode & 0o222 != 0 {
                let text = format!("offer {uri}: {path} can be written; commit it first");
                return Err(Refusal::new(Code::Unfit, text));
            }
            let room = reserve(size(&stat))?;
            let link = Link { folder: gate.objects.clone(), name: next(open)? };
            lend_file(folder.as_fd(), &name, gate.objects.as_fd(), &link.name)
                .map_err(|error| unfit(&error))?;
            (room, Kept::File(link))
        }
        (Content::Folder { path }, _) => {
            let (folder, name) = place(open, &path)?;
            let link = Link { folder: gate.objects.clone(), name: next(open)? };
            let limits = FolderLimits::new(gate.quota.bytes);
            let lent = lend_folder_within(folder.as_fd(), &name, gate.objects.as_fd(), &link.name, limits);
            // What its files have is known once they are linked; without room the links go again.
            (reserve(lent.map_err(|error| unfit(&error))?.bytes)?, Kept::Folder(link))
        }
    };
    open.hub.put(room, key, kept)?;
    Ok((Answer::Offered, None))
}

fn next(open: &Open) -> Result<StageName, Refusal> {
    open.hub.next_name().ok_or_else(|| Refusal::new(Code::Io, "name a stage: no number is left"))
}

fn fetch(open: &Open, key: &Key, into: &str) -> Answered {
    let uri = &key.1;
    let missing = || Refusal::new(Code::NotThere, format!("fetch {uri}: nobody offers it here"));
    let object = open.hub.find(&open.gate.domain, key).ok_or_else(missing)?;
    let Object { bytes, kept } = &*object;
    let (what, fd) = match kept {
        Kept::Memory(stage) => {
            let reader = stage.reader().map_err(|error| Refusal::io("open memory", &error.source))?;
            (Fetched::Memory, Some(reader))
        }
        Kept::Value(value) => (Fetched::Value { value: value.clone() }, None),
        Kept::File(link) => {
            let (folder, name) = place(open, into)?;
            lend_file(link.folder.as_fd(), &link.name, folder.as_fd(), &name)
                .map_err(|error| unlent(uri, into, &error.reason))?;
            (Fetched::File, None)
        }
        Kept::Folder(link) => {
            let (folder, name) = place(open, into)?;
            lend_folder(link.folder.as_fd(), &link.name, folder.as_fd(), &name)
                .map_err(|error| unlent(uri, into, &error.reason))?;
            (Fetched::Folder, None)
        }
    };
    open.hub.fetched();
    Ok((Answer::Fetched { bytes: *bytes, what }, fd))
}

fn unlent(uri: &StageUri, into: &str, reason: &CommitReason) -> Refusal {
    let code = match reason {
        CommitReason::Exists { .. } => Code::Exists,
        CommitReason::NotProduced => Code::NotThere,
        _ => Code::Io,
    };
    let source = std::error::Error::source(reason).map(|source| format!(": {source}")).unwrap_or_default();
    Refusal::new(code, format!("fetch {uri} to {into}: {reason}{source}"))
}

/// The folder of a path on the gate's volume, and the name in it. No link is followed, and nothing above the volume's root is
/// reached.
fn place(open: &Open, path: &str) -> Result<(OwnedFd, StageName), Refusal> {
    let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
    let name =
        StageName::new(name).map_err(|error| Refusal::new(Code::Unfit, format!("use {path}: {error}")))?;
    let opened = open_below(open.gate.root.as_fd(), Path::new(folder));
    let opened = opened.map_err(|error| {
        let code = if error.kind() == io::ErrorKind::NotFound { Code::NotThere } else { Code::Unfit };
        Refusal::new(code, format!("use {path}: open its folder: {error}"))
    })?;
    Ok((opened, name))
}

fn open_below(root: BorrowedFd<'_>, folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    Ok(openat2(root, folder, flags, Mode::empty(), resolve)?)
}
