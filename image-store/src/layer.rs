//! Takes one layer apart: contents of files go to the store as objects, the list of entries stays in memory.
//! The tar is read by the caller's thread, small files are hashed and written by a few others; a large file
//! is streamed by the reader itself. Places nothing: names are judged when layers are merged.

use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use sha2::{Digest as _, Sha256};

use crate::blob_stream;
use crate::digest::Digest;
use crate::entry::{Content, EntryError, EntryKind, LayerEntry, LeftOut, shown};
use crate::limits::Limits;
use crate::objects::{ObjectError, ObjectWriter, Objects};
use crate::tar_stream::{Kind, RawEntry, TarStream};

/// Files up to this length are handed to the writers whole.
const SMALL_BYTES: u64 = 512 << 10;
/// Files in the writers' queue; with `SMALL_BYTES` this bounds it to 16 MiB a layer.
const QUEUE_FILES: usize = 32;
/// One decodes, one writes, one spare for waits on the disk.
const WRITERS: usize = 2;

/// What all layers of an image may cost together.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    entries: AtomicU64,
    bytes: AtomicU64,
}

/// A layer that was taken apart.
#[derive(Debug, Clone)]
pub(crate) struct LayerParts {
    pub(crate) entries: Vec<LayerEntry>,
    pub(crate) left_out: LeftOut,
    /// Logical bytes of its files.
    pub(crate) bytes: u64,
}

/// Why a layer can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The blob could not be read from its source.
    #[error("read layer {layer}")]
    Read {
        /// Digest of the layer.
        layer: Digest,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The blob's bytes don't have the digest that the manifest states.
    #[error("use layer {layer}: its bytes have the digest {found}")]
    WrongDigest {
        /// Digest by the manifest.
        layer: Digest,
        /// Digest of the bytes.
        found: Digest,
    },
    /// The blob is what the manifest states, but what is packed in it isn't what the configuration states.
    #[error(
        "use layer {layer}: its content has the digest {found}, the image's configuration states {diff_id}"
    )]
    WrongDiffId {
        /// Digest of the layer.
        layer: Digest,
        /// By the configuration.
        diff_id: Digest,
        /// Of the content.
        found: Digest,
    },
    /// The blob can't be decompressed.
    #[error("decompress layer {layer}")]
    Decode {
        /// Digest of the layer.
        layer: Digest,
        /// What is wrong.
        #[source]
        source: EntryError,
    },
    /// Something is wrong with an entry, or behind it.
    #[error("unpack layer {layer}, entry \"{entry}\"")]
    Entry {
        /// Digest of the layer.
        layer: Digest,
        /// The entry, or the one before if its header can't be read; empty at the start.
        entry: String,
        /// What is wrong.
        #[source]
        source: EntryError,
    },
    /// An object could not be written.
    #[error("store the files of layer {layer}")]
    Store {
        /// Digest of the layer.
        layer: Digest,
        /// What is wrong.
        #[source]
        source: ObjectError,
    },
}

/// Where a layer's parts go and what they may cost.
pub(crate) struct LayerReader<'a> {
    pub(crate) objects: &'a Objects,
    pub(crate) writer: &'a ObjectWriter<'a>,
    pub(crate) limits: &'a Limits,
    pub(crate) budget: &'a Budget,
}

/// A small file on its way to a writer.
struct SmallFile {
    entry: usize,
    bytes: Vec<u8>,
}

/// What the writers share with the reader.
#[derive(Default)]
struct Written {
    digests: Mutex<Vec<(usize, Digest)>>,
    error: Mutex<Option<ObjectError>>,
    failed: AtomicBool,
}

impl LayerReader<'_> {
    /// Reads a whole layer. `digest` is the blob's by the manifest, if it states one.
    pub(crate) fn read(
        &self,
        blob: impl Read + Send,
        size: u64,
        digest: Option<Digest>,
        diff_id: Digest,
        on_read: impl Fn(u64) + Send,
    ) -> Result<LayerParts, LayerError> {
        let layer = digest.unwrap_or(diff_id);
        let written = Written::default();
        let (files_out, files_in) = sync_channel(QUEUE_FILES);
        let files_in = Mutex::new(files_in);
        let mut last = Vec::new();
        let (parsed, report) = std::thread::scope(|scope| {
            let (threads, tar) = blob_stream::start(scope, blob, size, self.limits, on_read);
            for _ in 0..WRITERS {
                scope.spawn(|| self.write_small_files(&files_in, &written));
            }
            let stream = TarStream::new(tar, self.limits.clone());
            let parsed = self.parse(stream, files_out, &written, &mut last, size);
            (parsed, threads.wait())
        });
        // The blob is judged first: if it is not what was asked for, what is in it is nobody's fault.
        let (found, bytes) = report.blob.map_err(|source| LayerError::Read { layer, source })?;
        if bytes != size || digest.is_some_and(|digest| digest != found) {
            return Err(LayerError::WrongDigest { layer, found });
        }
        report.decoded.map_err(|source| LayerError::Decode { layer, source })?;
        let entry = shown(&last);
        let mut parts = parsed.map_err(|source| LayerError::Entry { layer, entry, source })?;
        let Written { digests, error, .. } = written;
        if let Some(source) = error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            return Err(LayerError::Store { layer, source });
        }
        if report.diff_id != diff_id {
            return Err(LayerError::WrongDiffId { layer, diff_id, found: report.diff_id });
        }
        for (entry, digest) in digests.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            if let EntryKind::File(content) = &mut parts.entries[entry].kind {
                content.digest = digest;
            }
        }
        Ok(parts)
    }

    fn parse(
        &self,
        mut stream: TarStream<impl Read>,
        files: SyncSender<SmallFile>,
        written: &Written,
        last: &mut Vec<u8>,
        packed: u64,
    ) -> Result<LayerParts, EntryError> {
        let mut parts = LayerParts { entries: Vec::new(), left_out: LeftOut::default(), bytes: 0 };
        let expanded_max =
            packed.saturating_mul(self.limits.expansion_ratio).max(self.limits.ratio_free_bytes);
        while let Some(raw) = stream.next_entry()? {
            last.clone_from(&raw.path);
            let (size, sparse, kind) = (raw.size, raw.sparse, raw.kind);
            self.budget.take(size, self.limits)?;
            parts.bytes = parts.bytes.saturating_add(size);
            if parts.bytes > expanded_max {
                return Err(EntryError::Expansion { packed, limit: expanded_max });
            }
            parts.entries.push(normalise(raw, &mut parts.left_out)?);
            if kind == Kind::Regular && size > 0 {
                let entry = parts.entries.len() - 1;
                if size <= SMALL_BYTES {
                    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
                    stream.read_exact(&mut bytes).map_err(EntryError::Read)?;
                    if files.send(SmallFile { entry, bytes }).is_err() {
                        break;
                    }
                } else {
                    let digest = self.write_large_file(&mut stream, sparse)?;
                    parts.entries[entry].kind = EntryKind::File(Content { size, digest });
                }
            }
            if written.failed.load(Ordering::Relaxed) {
                return Ok(parts);
            }
        }
        // Padding behind the end belongs to the diff_id.
        stream.drain().map_err(EntryError::Read)?;
        Ok(parts)
    }

    fn write_small_files(&self, files: &Mutex<Receiver<SmallFile>>, written: &Written) {
        let mut digests = Vec::new();
        loop {
            let next = files.lock().map_or(None, |files| files.recv().ok());
            let Some(SmallFile { entry, bytes }) = next else { break };
            // After a failure the queue is emptied, so that the reader never waits for a writer that is gone.
            if written.failed.load(Ordering::Relaxed) {
                continue;
            }
            match self.objects.put(self.writer, &bytes) {
                Ok(digest) => digests.push((entry, digest)),
                Err(error) => {
                    written.failed.store(true, Ordering::Relaxed);
                    if let Ok(mut first) = written.error.lock() {
                        first.get_or_insert(error);
                    }
                }
            }
        }
        if let Ok(mut all) = written.digests.lock() {
            all.append(&mut digests);
        }
    }

    fn write_large_file(&self, content: &mut impl Read, sparse: bool) -> Result<Digest, EntryError> {
        let mut file = self.writer.start().map_err(EntryError::Store)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = content.read(&mut buffer).map_err(EntryError::Read)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            if sparse && buffer[..read].iter().all(|byte| *byte == 0) {
                file.skip(read as u64).map_err(EntryError::Store)?;
            } else {
                file.write(&buffer[..read]).map_err(EntryError::Store)?;
            }
        }
        let digest = Digest::from_bytes(hasher.finalize().into());
        self.objects.publish(file, &digest).map_err(EntryError::Store)?;
        Ok(digest)
    }
}

impl Budget {
    fn take(&self, bytes: u64, limits: &Limits) -> Result<(), EntryError> {
        if self.entries.fetch_add(1, Ordering::Relaxed) >= limits.entries {
            return Err(EntryError::TooManyEntries { limit: limits.entries });
        }
        let limit = limits.unpacked_bytes;
        // Checked before it is added, so that the sum can't wrap.
        if bytes > limit || self.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > limit {
            return Err(EntryError::TooManyBytes { limit });
        }
        Ok(())
    }
}

/// What an unprivileged user can have of an entry: no setuid, no setgid, always readable by its owner, and
/// only `user.` attributes. `user.overlay.` would let an image redirect its files to objects of other images.
pub(crate) fn normalise(raw: RawEntry, left_out: &mut LeftOut) -> Result<LayerEntry, EntryError> {
    const SYMLINK_BYTES_MAX: usize = 4095;
    let kind = match raw.kind {
        Kind::Directory => EntryKind::Directory,
        // The digest is filled in when the content is known.
        Kind::Regular => EntryKind::File(Content { size: raw.size, digest: Digest::of(b"") }),
        Kind::Symlink => EntryKind::Symlink(raw.link.into()),
        Kind::HardLink => EntryKind::HardLink(raw.link.into()),
        Kind::Special => EntryKind::Skipped,
    };
    if let EntryKind::Symlink(target) = &kind {
        if target.is_empty() || target.len() > SYMLINK_BYTES_MAX {
            return Err(EntryError::SymlinkTarget { bytes: target.len() });
        }
        if target.contains(&0) {
            return Err(EntryError::Nul);
        }
    }
    left_out.special_files += u64::from(kind == EntryKind::Skipped);
    left_out.setid_bits += u64::from(raw.mode & 0o6000 != 0 && kind != EntryKind::Skipped);
    let before = raw.xattrs.len();
    let keeps = matches!(kind, EntryKind::Directory | EntryKind::File(_));
    let mut xattrs = raw.xattrs;
    xattrs.retain(|xattr| {
        keeps && xattr.name.starts_with(b"user.") && !xattr.name.starts_with(b"user.overlay.")
    });
    left_out.xattrs += (before - xattrs.len()) as u64;
    let mode = match kind {
        EntryKind::Directory => raw.mode & 0o1777 | 0o700,
        EntryKind::Symlink(_) => 0o777,
        _ => raw.mode & 0o777 | 0o600,
    };
    Ok(LayerEntry { path: raw.path.into(), kind, mode, mtime: raw.mtime, xattrs })
}
