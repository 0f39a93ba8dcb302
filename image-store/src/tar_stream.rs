//! Reads a tar as a stream of entries: ustar, GNU (long names, sparse files) and PAX. Every length is
//! checked before anything is allocated. It doesn't judge names and knows no tree and no file system.
//!
//! Field decoding is the `tar` crate's; its iterator isn't used, because it reads long names and PAX records
//! of any length into memory and splits PAX records at line breaks, which extended attributes may contain.

use std::io::{self, Read};

use tar::{EntryType, Header};

use crate::entry::{EntryError, Mtime, Xattr};
use crate::limits::Limits;
use crate::pax::{PaxRecords, parse_pax};
use crate::sparse::{SparseMap, parse_gnu_ext, parse_map_text, read_map_prefix};

const BLOCK: u64 = 512;

/// What kind of thing an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    Regular,
    Symlink,
    HardLink,
    /// A device node or FIFO.
    Special,
}

/// One entry, extension headers applied.
#[derive(Debug)]
pub(crate) struct RawEntry {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) mtime: Mtime,
    /// Length of the file as a reader sees it, holes included.
    pub(crate) size: u64,
    pub(crate) sparse: bool,
    pub(crate) xattrs: Vec<Xattr>,
}

/// A tar that is being read. After [`TarStream::next_entry`] the entry's content comes from [`Read`].
#[derive(Debug)]
pub(crate) struct TarStream<R> {
    input: R,
    limits: Limits,
    /// Stored bytes of the current entry that are still to be read.
    stored: u64,
    /// Padding after them.
    padding: u64,
    /// Holes of the current entry; `None` if it is not sparse.
    map: Option<SparseMap>,
    ended: bool,
}

/// Extension headers in front of an entry.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: PaxRecords,
}

impl<R: Read> TarStream<R> {
    pub(crate) fn new(input: R, limits: Limits) -> Self {
        Self { input, limits, stored: 0, padding: 0, map: None, ended: false }
    }

    /// The next entry, or `None` at the end of the archive. Content of the entry before that wasn't read is
    /// skipped.
    pub(crate) fn next_entry(&mut self) -> Result<Option<RawEntry>, EntryError> {
        if self.ended {
            return Ok(None);
        }
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.read_header()? else {
                self.ended = true;
                return Ok(None);
            };
            let stored = header.entry_size().map_err(|_| EntryError::Header("size"))?;
            match header.entry_type() {
                EntryType::GNULongName => extensions.path = Some(self.read_long_name(stored)?),
                EntryType::GNULongLink => extensions.link = Some(self.read_long_name(stored)?),
                EntryType::XHeader => {
                    let bytes = self.read_extension(stored)?;
                    extensions.pax = parse_pax(&bytes, &self.limits)?;
                }
                // Global records are comments in practice (git archive); docker ignores them too.
                EntryType::XGlobalHeader => {
                    self.read_extension(stored)?;
                }
                kind => return self.start_entry(&header, kind, stored, extensions).map(Some),
            }
        }
    }

    /// Reads what follows the archive's end; answers how many bytes that were.
    pub(crate) fn drain(&mut self) -> io::Result<u64> {
        io::copy(&mut self.input, &mut io::sink())
    }

    /// For inputs that can seek: the content and padding that follow will be skipped by the caller. Answers
    /// how many bytes that are.
    pub(crate) const fn forget_stored(&mut self) -> u64 {
        let bytes = self.stored + self.padding;
        (self.stored, self.padding) = (0, 0);
        bytes
    }

    fn start_entry(
        &mut self,
        header: &Header,
        kind: EntryType,
        stored: u64,
        extensions: Extensions,
    ) -> Result<RawEntry, EntryError> {
        let Extensions { path, link, pax } = extensions;
        let mut entry = RawEntry {
            kind: Kind::Regular,
            path: pax.path.or(path).unwrap_or_else(|| header.path_bytes().into_owned()),
            link: pax.link.or(link).unwrap_or_else(|| {
                header.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default()
            }),
            mode: header.mode().unwrap_or(0o644),
            mtime: pax.mtime.unwrap_or_else(|| Mtime::from_seconds(header.mtime().unwrap_or(0))),
            size: 0,
            sparse: false,
            xattrs: pax.xattrs,
        };
        entry.kind = match kind {
            EntryType::Regular if entry.path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::Regular,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            EntryType::Char | EntryType::Block | EntryType::Fifo => Kind::Special,
            other => return Err(EntryError::UnknownType(other.as_byte())),
        };
        // Only regular files have content; some writers put the size of the target into links.
        if entry.kind != Kind::Regular {
            return Ok(entry);
        }
        self.set_stored(pax.size.unwrap_or(stored))?;
        entry.size = self.stored;
        let map = if kind == EntryType::GNUSparse {
            Some(self.read_gnu_map(header)?)
        } else if let Some(real_size) = pax.sparse.real_size {
            if pax.sparse.map_in_data {
                let (map, used) = read_map_prefix(&mut self.input, self.stored, real_size)?;
                self.stored -= used;
                Some(map)
            } else {
                Some(parse_map_text(&pax.sparse.map, real_size)?)
            }
        } else {
            None
        };
        if let Some(map) = map {
            map.check(self.stored)?;
            entry.size = map.real_size();
            entry.sparse = true;
            self.map = Some(map);
        }
        if let Some(name) = pax.sparse.name {
            entry.path = name;
        }
        Ok(entry)
    }

    fn set_stored(&mut self, stored: u64) -> Result<(), EntryError> {
        let padded = stored.checked_next_multiple_of(BLOCK).ok_or(EntryError::Header("size"))?;
        (self.stored, self.padding, self.map) = (stored, padded - stored, None);
        Ok(())
    }

    /// `None` at the two zero blocks that close an archive, or at a clean end of input.
    fn read_header(&mut self) -> Result<Option<Header>, EntryError> {
        let mut block = [0; BLOCK as usize];
        if !read_block(&mut self.input, &mut block)? {
            return Ok(None);
        }
        if block.iter().all(|byte| *byte == 0) {
            if read_block(&mut self.input, &mut block)? && block.iter().any(|byte| *byte != 0) {
                return Err(EntryError::Header("magic (a lone zero block)"));
            }
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let stated = header.cksum().map_err(|_| EntryError::Header("checksum"))?;
        let others = block[..148].iter().chain(&block[156..]);
        let unsigned: u32 = others.clone().map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
        // Old writers summed signed bytes.
        let signed: i32 = others.map(|byte| i32::from(byte.cast_signed())).sum::<i32>() + 8 * 32;
        if stated != unsigned && i64::from(stated) != i64::from(signed) {
            return Err(EntryError::Header("checksum"));
        }
        Ok(Some(header))
    }

    fn read_extension(&mut self, stored: u64) -> Result<Vec<u8>, EntryError> {
        if stored > self.limits.extension_bytes {
            let limit = self.limits.extension_bytes;
            return Err(EntryError::ExtensionTooLong { bytes: stored, limit });
        }
        self.set_stored(stored)?;
        let mut bytes = vec![0; usize::try_from(stored).map_err(|_| EntryError::Header("size"))?];
        self.read_exact(&mut bytes).map_err(EntryError::Read)?;
        Ok(bytes)
    }

    fn read_long_name(&mut self, stored: u64) -> Result<Vec<u8>, EntryError> {
        let mut name = self.read_extension(stored)?;
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn read_gnu_map(&mut self, header: &Header) -> Result<SparseMap, EntryError> {
        let gnu = header.as_gnu().ok_or(EntryError::Sparse)?;
        let mut map = SparseMap::new(gnu.real_size().map_err(|_| EntryError::Sparse)?);
        map.extend_from(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = [0; BLOCK as usize];
            self.input.read_exact(&mut block).map_err(EntryError::Read)?;
            more = parse_gnu_ext(&block, &mut map)?;
        }
        Ok(map)
    }

    fn skip_rest(&mut self) -> Result<(), EntryError> {
        let rest = self.stored + self.padding;
        if rest > 0 {
            let skipped =
                io::copy(&mut self.input.by_ref().take(rest), &mut io::sink()).map_err(EntryError::Read)?;
            // Some writers end an archive with the last file's bytes (umoci insert): there was nothing left to lose.
            if skipped < self.stored {
                return Err(EntryError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        (self.stored, self.padding, self.map) = (0, 0, None);
        Ok(())
    }
}

/// The current entry's content; zeros where a sparse file has holes.
impl<R: Read> Read for TarStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let data = match &mut self.map {
            Some(map) => {
                let (hole, data) = map.next_run(buffer.len());
                if hole > 0 {
                    buffer[..hole].fill(0);
                    return Ok(hole);
                }
                data
            }
            None => buffer.len(),
        };
        let most = usize::try_from(self.stored).unwrap_or(usize::MAX).min(data);
        if most == 0 {
            return Ok(0);
        }
        let read = self.input.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.stored -= read as u64;
        if let Some(map) = &mut self.map {
            map.advance(read);
        }
        Ok(read)
    }
}

/// Fills `block`; `false` if the input ended before its first byte.
fn read_block(input: &mut impl Read, block: &mut [u8; BLOCK as usize]) -> Result<bool, EntryError> {
    let mut filled = 0;
    while filled < block.len() {
        match input.read(&mut block[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(EntryError::Read(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(EntryError::Read(error)),
        }
    }
    Ok(true)
}
