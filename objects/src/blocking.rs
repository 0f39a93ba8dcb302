//! Work on files, which blocks, beside an async runtime: off its threads, and given up with who asked for it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::digest::Hashing;
use crate::{Digest, ObjectError, Source};

/// What is read or written at once.
pub(crate) const PIECE_BYTES: usize = 1 << 20;

/// Says to a thread that nobody waits for it any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Abandoned(Arc<AtomicBool>);

impl Abandoned {
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }
}

struct SetWhenDropped(Abandoned);

impl Drop for SetWhenDropped {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Does blocking work; when the future is dropped, what the work checks says so.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce(&Abandoned) -> T + Send + 'static) -> T {
    let abandoned = Abandoned::default();
    let _guard = SetWhenDropped(abandoned.clone());
    match tokio::task::spawn_blocking(move || work(&abandoned)).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime goes down, and this future with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// The digest of all of a source. `Err(Interrupted)` when it is abandoned.
pub(crate) fn digest_of(source: &Source, bytes: u64, abandoned: &Abandoned) -> io::Result<Digest> {
    each_piece(source, bytes, abandoned, |error| error, |_, _| Ok(()))
}

/// Which side of a copy failed.
#[derive(Debug)]
pub(crate) enum Uncopied {
    /// What is copied. `Interrupted` when it is abandoned.
    Unread(io::Error),
    /// What it is copied into.
    Unwritten(io::Error),
}

/// Copies all of a source to the start of a file, and gives its digest.
pub(crate) fn copy(
    source: &Source,
    bytes: u64,
    abandoned: &Abandoned,
    into: &File,
) -> Result<Digest, Uncopied> {
    let write = |at, piece: &[u8]| into.write_all_at(piece, at).map_err(Uncopied::Unwritten);
    each_piece(source, bytes, abandoned, Uncopied::Unread, write)
}

fn each_piece<E>(
    source: &Source,
    bytes: u64,
    abandoned: &Abandoned,
    unread: impl Fn(io::Error) -> E,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<Digest, E> {
    let mut hashing = Hashing::default();
    let mut offset = 0;
    while offset < bytes {
        abandoned.check().map_err(&unread)?;
        let length = usize::try_from(bytes - offset).unwrap_or(usize::MAX).min(PIECE_BYTES);
        let piece = source.piece(offset, length).map_err(&unread)?;
        hashing.update(&piece);
        each(offset, &piece)?;
        offset += length as u64;
    }
    Ok(hashing.finish())
}

/// Sets the file's size and pays for its pages, so that a full disk is known before anything comes. Blocks.
pub(crate) fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    use rustix::io::Errno;
    file.set_len(0)?;
    if bytes == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) | Ok(()) => file.set_len(bytes),
        Err(error) => Err(error.into()),
    }
}

/// Writes at a place of a file, off the runtime's threads.
pub(crate) async fn write_at(
    file: &Arc<File>,
    path: &Path,
    at: u64,
    bytes: Vec<u8>,
) -> Result<(), ObjectError> {
    let file = Arc::clone(file);
    let written = blocking(move |_| file.write_all_at(&bytes, at)).await;
    written.map_err(|error| ObjectError::local(path, &error))
}
