//! Sockets that only root, or the driver's own user, can connect to, and that come back when somebody wipes their folder: so a
//! restarted kubelet finds its plugins again.
//!
//! **Must not know:** what is said on them.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

/// Connections that wait: the kubelet has one or two.
const BACKLOG: i32 = 16;
/// How often is looked whether the socket is still there. A restarted kubelet takes longer to ask.
const LOOK: Duration = Duration::from_secs(1);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[error("listen on {}: {source}", path.display())]
pub struct SocketError {
    path: PathBuf,
    source: io::Error,
}

/// A listening socket and which inode it is.
#[derive(Debug)]
pub struct Bound {
    listener: UnixListener,
    inode: (u64, u64),
}

/// Takes a path. A socket that a dead driver left there goes; the lock of the state folder says that it is dead.
///
/// # Errors
/// When there is no folder for it, or something else has its name.
pub fn take(path: &Path) -> Result<Bound, SocketError> {
    bind_private(path).map_err(|source| SocketError { path: path.to_owned(), source })
}

fn bind_private(path: &Path) -> io::Result<Bound> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {}
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Before it has a name: nobody else connects in between.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    // It gets its name when it can be connected to. The kubelet does not look at names that begin with a point.
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    let fresh = path.with_file_name(name);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    bind(&socket, &SocketAddrUnix::new(&fresh)?)?;
    listen(&socket, BACKLOG)?;
    let listener = UnixListener::from_std(StdListener::from(socket))?;
    let inode = inode(&fresh)?;
    std::fs::rename(&fresh, path)?;
    Ok(Bound { listener, inode })
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let meta = std::fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// Passes connections on until the end is told, and takes the path again whenever it is not this socket's any more. At the end the
/// path is free.
pub async fn keep(
    path: PathBuf,
    bound: Bound,
    connections: mpsc::Sender<io::Result<UnixStream>>,
    mut ended: watch::Receiver<bool>,
) {
    let mut bound = Some(bound);
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = false;
    loop {
        tokio::select! {
            () = end(&mut ended) => break,
            () = connections.closed() => break,
            stream = accept(bound.as_ref()) => match stream {
                Ok(stream) => {
                    if connections.send(Ok(stream)).await.is_err() {
                        break;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "a connection can't be accepted");
                    tokio::time::sleep(LOOK).await;
                }
            },
            _ = look.tick() => {
                if bound.as_ref().is_some_and(|bound| inode(&path).is_ok_and(|inode| inode == bound.inode)) {
                    continue;
                }
                // Its folder may come later.
                match take(&path) {
                    Ok(again) => {
                        tracing::warn!(path = %path.display(), "the socket was gone and is there again");
                        (bound, told) = (Some(again), false);
                    }
                    Err(error) if !told => {
                        tracing::warn!(%error, "the socket is gone; it is tried again every second");
                        (bound, told) = (None, true);
                    }
                    Err(_) => {}
                }
            }
        }
    }
    if bound.is_some_and(|bound| inode(&path).is_ok_and(|inode| inode == bound.inode)) {
        // Else the next start does it.
        let _ = std::fs::remove_file(&path);
    }
}

/// Waits until the end is told, or nobody is left to tell it.
pub async fn end(ended: &mut watch::Receiver<bool>) {
    drop(ended.wait_for(|ended| *ended).await);
}

async fn accept(bound: Option<&Bound>) -> io::Result<UnixStream> {
    match bound {
        Some(bound) => bound.listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}
