//! Waking pilots: an empty datagram to each one's socket. Best effort; pilots look for themselves once a second.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use crate::folder::WAKE;
use crate::pilots::file_name;

/// A pilot's socket in a spool.
#[derive(Debug)]
pub struct Ear {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Ear {
    /// Makes the pilot's socket; takes the place of one that a dead pilot of that name left. The caller holds the pilot's
    /// [`crate::Registration`], or is the only one of that name otherwise.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn bind(folder: &Path, pilot: &str) -> io::Result<Self> {
        let path = folder.join(WAKE).join(file_name(pilot)?);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let wake = File::open(folder.join(WAKE))?;
        let socket = UnixDatagram::bind(short(&wake, pilot))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path })
    }

    /// The socket, which does not block: readable when the pilot was poked.
    #[must_use]
    pub fn socket(&self) -> &UnixDatagram {
        &self.socket
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A path through the folder's descriptor: a socket's path may have 107 bytes only, a spool's folder more.
fn short(wake: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", wake.as_raw_fd()))
}

/// Pokes every pilot that serves the spool in this folder. Removes sockets that no one holds.
pub fn poke(folder: &Path) {
    poke_all_but(folder, None);
}

/// Pokes every pilot but the one that does it.
pub fn poke_others(folder: &Path, pilot: &str) {
    poke_all_but(folder, Some(pilot));
}

fn poke_all_but(folder: &Path, but: Option<&str>) {
    let wake = folder.join(WAKE);
    let Ok(held) = File::open(&wake) else { return };
    let Ok(entries) = std::fs::read_dir(&wake) else { return };
    let Ok(socket) = UnixDatagram::unbound() else { return };
    // A pilot that does not read has been poked enough.
    if socket.set_nonblocking(true).is_err() {
        return;
    }
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| Some(*name) != but) else { continue };
        if let Err(error) = socket.send_to(&[], short(&held, name))
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
