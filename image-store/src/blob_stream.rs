//! One layer's way from a blob to its tar: three threads that read and hash the blob, decode it, and hash
//! what comes out, so that the reader of the tar shares no core with them where there are enough.
//!
//! ```text
//! blob --chunks--> decoder --chunks--> tar reader (the caller)
//!   \ sha256(blob)     \-----chunks--> sha256(diff_id)
//! ```
//! All queues are bounded: a layer holds at most 3 x 8 chunks of 256 KiB. Knows no tar and no store.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::entry::EntryError;
use crate::limits::Limits;

const CHUNK_BYTES: usize = 256 << 10;
const QUEUE_CHUNKS: usize = 8;

type Chunk = Arc<Vec<u8>>;

/// The tar of a layer while it is being decoded.
#[derive(Debug)]
pub(crate) struct TarBytes {
    chunks: Receiver<Chunk>,
    current: Option<Chunk>,
    at: usize,
}

/// The threads behind a [`TarBytes`].
#[derive(Debug)]
pub(crate) struct BlobThreads<'scope> {
    reader: ScopedJoinHandle<'scope, io::Result<(Digest, u64)>>,
    decoder: ScopedJoinHandle<'scope, Result<(), EntryError>>,
    hasher: ScopedJoinHandle<'scope, Digest>,
}

/// What the threads found out.
#[derive(Debug)]
pub(crate) struct BlobReport {
    /// Digest and length of the blob.
    pub(crate) blob: io::Result<(Digest, u64)>,
    /// Whether the blob could be decoded (as far as the tar was read).
    pub(crate) decoded: Result<(), EntryError>,
    /// Digest of what came out.
    pub(crate) diff_id: Digest,
}

/// Starts the threads for a blob of `size` bytes. `on_read` is told of bytes read.
pub(crate) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    blob: impl Read + Send + 'scope,
    size: u64,
    limits: &Limits,
    on_read: impl Fn(u64) + Send + 'scope,
) -> (BlobThreads<'scope>, TarBytes) {
    let (blob_out, blob_in) = sync_channel(QUEUE_CHUNKS);
    let (tar_out, tar_in) = sync_channel(QUEUE_CHUNKS);
    let (hash_out, hash_in) = sync_channel(QUEUE_CHUNKS);
    let limit = size.saturating_mul(limits.expansion_ratio).max(limits.ratio_free_bytes);
    let reader = scope.spawn(move || read_blob(blob, &blob_out, on_read));
    let decoder = scope.spawn(move || {
        let input = TarBytes::new(blob_in);
        decode(BufReader::with_capacity(CHUNK_BYTES, input), &tar_out, &hash_out, size, limit)
    });
    let hasher = scope.spawn(move || hash(&hash_in));
    (BlobThreads { reader, decoder, hasher }, TarBytes::new(tar_in))
}

impl BlobThreads<'_> {
    /// Waits for the threads. The [`TarBytes`] must have been dropped, or read to its end.
    pub(crate) fn wait(self) -> BlobReport {
        let panicked = |_| io::Error::other("a thread of the unpacker panicked");
        let decoded = self.decoder.join().map_err(panicked);
        BlobReport {
            blob: self.reader.join().map_err(panicked).and_then(|result| result),
            decoded: decoded.map_err(EntryError::Read).and_then(|result| result),
            diff_id: self.hasher.join().unwrap_or(Digest::from_bytes([0; 32])),
        }
    }
}

impl TarBytes {
    const fn new(chunks: Receiver<Chunk>) -> Self {
        Self { chunks, current: None, at: 0 }
    }
}

impl Read for TarBytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(chunk) = &self.current
                && self.at < chunk.len()
            {
                let read = buffer.len().min(chunk.len() - self.at);
                buffer[..read].copy_from_slice(&chunk[self.at..self.at + read]);
                self.at += read;
                return Ok(read);
            }
            let Ok(chunk) = self.chunks.recv() else { return Ok(0) };
            (self.current, self.at) = (Some(chunk), 0);
        }
    }
}

fn read_blob(
    mut blob: impl Read,
    out: &SyncSender<Chunk>,
    on_read: impl Fn(u64),
) -> io::Result<(Digest, u64)> {
    let mut hasher = Sha256::new();
    let mut total = 0;
    loop {
        let chunk = read_chunk(&mut blob).map_err(|(_, error)| error)?;
        if chunk.is_empty() {
            return Ok((Digest::from_bytes(hasher.finalize().into()), total));
        }
        hasher.update(&chunk);
        total += chunk.len() as u64;
        on_read(chunk.len() as u64);
        // A decoder that gave up needs no more; the digest still tells whether the blob or its maker is wrong.
        let _ = out.send(Arc::new(chunk));
    }
}

fn decode(
    mut input: BufReader<TarBytes>,
    tar: &SyncSender<Chunk>,
    hash: &SyncSender<Chunk>,
    packed: u64,
    limit: u64,
) -> Result<(), EntryError> {
    let magic: [u8; 4] = {
        let head = input.fill_buf().map_err(EntryError::Read)?;
        std::array::from_fn(|at| head.get(at).copied().unwrap_or(0))
    };
    let mut decoder: Box<dyn Read> = match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        // A frame, or one of the 16 skippable frames that may stand in front.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            Box::new(zstd::Decoder::with_buffer(input).map_err(EntryError::Read)?)
        }
        _ => Box::new(input),
    };
    let mut total = 0;
    loop {
        let (chunk, error) = match read_chunk(&mut decoder) {
            Ok(chunk) => (chunk, None),
            Err((chunk, error)) => (chunk, Some(error)),
        };
        total += chunk.len() as u64;
        if total > limit {
            return Err(EntryError::Expansion { packed, limit });
        }
        if !chunk.is_empty() {
            let chunk = Arc::new(chunk);
            if hash.send(Arc::clone(&chunk)).is_err() || tar.send(chunk).is_err() {
                // The tar reader gave up; its error says why.
                return Ok(());
            }
        } else if error.is_none() {
            return Ok(());
        }
        if let Some(error) = error {
            return Err(EntryError::Read(error));
        }
    }
}

fn hash(chunks: &Receiver<Chunk>) -> Digest {
    let mut hasher = Sha256::new();
    while let Ok(chunk) = chunks.recv() {
        hasher.update(&chunk[..]);
    }
    Digest::from_bytes(hasher.finalize().into())
}

/// A full chunk, or less at the end; on an error what came before it.
fn read_chunk(input: &mut impl Read) -> Result<Vec<u8>, (Vec<u8>, io::Error)> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut filled = 0;
    while filled < chunk.len() {
        match input.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                chunk.truncate(filled);
                return Err((chunk, error));
            }
        }
    }
    chunk.truncate(filled);
    Ok(chunk)
}
