//! Maps of sparse tar members: GNU's old format and the three PAX forms. Pure; hostile input.

use std::io::Read;

use tar::{GnuExtSparseHeader, GnuSparseHeader};

use crate::entry::EntryError;
use crate::pax::number;

/// More data runs than this in one file is no honest archive; 16 bytes each are held.
const RUNS_MAX: usize = 1 << 18;

/// Where a sparse file has data, and how far a reader has come.
#[derive(Debug)]
pub(crate) struct SparseMap {
    /// Offset and length of each data run, ascending, without overlap.
    runs: Vec<(u64, u64)>,
    real_size: u64,
    position: u64,
    /// The run that `position` is in or before.
    next: usize,
}

impl SparseMap {
    pub(crate) const fn new(real_size: u64) -> Self {
        Self { runs: Vec::new(), real_size, position: 0, next: 0 }
    }

    pub(crate) const fn real_size(&self) -> u64 {
        self.real_size
    }

    pub(crate) fn extend_from(&mut self, headers: &[GnuSparseHeader]) -> Result<(), EntryError> {
        for header in headers.iter().filter(|header| !header.is_empty()) {
            let offset = header.offset().map_err(|_| EntryError::Sparse)?;
            let length = header.length().map_err(|_| EntryError::Sparse)?;
            self.push(offset, length)?;
        }
        Ok(())
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<(), EntryError> {
        let end = offset.checked_add(length).ok_or(EntryError::Sparse)?;
        let floor = self.runs.last().map_or(0, |(offset, length)| offset + length);
        if offset < floor || end > self.real_size || self.runs.len() >= RUNS_MAX {
            return Err(EntryError::Sparse);
        }
        if length > 0 {
            self.runs.push((offset, length));
        }
        Ok(())
    }

    /// The runs must hold exactly the bytes that the archive stores.
    pub(crate) fn check(&self, stored: u64) -> Result<(), EntryError> {
        let data: u64 = self.runs.iter().map(|(_, length)| length).sum();
        if data == stored { Ok(()) } else { Err(EntryError::Sparse) }
    }

    /// What comes next, at most `most` bytes: `(hole, 0)` or `(0, data)`. A hole is counted as read at once;
    /// data is counted by [`SparseMap::advance`].
    pub(crate) fn next_run(&mut self, most: usize) -> (usize, usize) {
        let bounded = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX).min(most);
        let until = match self.runs.get(self.next) {
            Some((offset, length)) if self.position >= *offset => {
                return (0, bounded(offset + length - self.position));
            }
            Some((offset, _)) => *offset,
            None => self.real_size,
        };
        let hole = bounded(until - self.position);
        self.position += hole as u64;
        (hole, 0)
    }

    pub(crate) fn advance(&mut self, bytes: usize) {
        self.position += bytes as u64;
        if let Some((offset, length)) = self.runs.get(self.next)
            && self.position >= offset + length
        {
            self.next += 1;
        }
    }
}

/// One continuation block of the old format; answers whether another follows.
pub(crate) fn parse_gnu_ext(block: &[u8; 512], map: &mut SparseMap) -> Result<bool, EntryError> {
    let mut ext = GnuExtSparseHeader::new();
    ext.as_mut_bytes().copy_from_slice(block);
    let before = map.runs.len();
    map.extend_from(ext.sparse())?;
    // A block that adds nothing and asks for more would let a bomb run for ever.
    if ext.is_extended() && map.runs.len() == before {
        return Err(EntryError::Sparse);
    }
    Ok(ext.is_extended())
}

/// PAX 0.0 and 0.1: `offset,length,offset,length,..`.
pub(crate) fn parse_map_text(text: &[u8], real_size: u64) -> Result<SparseMap, EntryError> {
    let mut map = SparseMap::new(real_size);
    if text.is_empty() {
        return Ok(map);
    }
    let mut numbers = text.split(|byte| *byte == b',');
    while let Some(offset) = numbers.next() {
        let length = numbers.next().ok_or(EntryError::Sparse)?;
        let pair = number(offset).zip(number(length)).ok_or(EntryError::Sparse)?;
        map.push(pair.0, pair.1)?;
    }
    Ok(map)
}

/// PAX 1.0: decimal lines in front of the data, padded to 512. Answers how many stored bytes they took.
pub(crate) fn read_map_prefix(
    input: &mut impl Read,
    stored: u64,
    real_size: u64,
) -> Result<(SparseMap, u64), EntryError> {
    let mut map = SparseMap::new(real_size);
    let mut used = 0;
    let mut block = [0; 512];
    let mut at = block.len();
    let mut line = || -> Result<u64, EntryError> {
        let mut digits = Vec::with_capacity(20);
        loop {
            if at == block.len() {
                if used + 512 > stored {
                    return Err(EntryError::Sparse);
                }
                input.read_exact(&mut block).map_err(EntryError::Read)?;
                (used, at) = (used + 512, 0);
            }
            let byte = block[at];
            at += 1;
            if byte == b'\n' {
                return number(&digits).ok_or(EntryError::Sparse);
            }
            if digits.len() >= 20 {
                return Err(EntryError::Sparse);
            }
            digits.push(byte);
        }
    };
    let count = line()?;
    if count > RUNS_MAX as u64 {
        return Err(EntryError::Sparse);
    }
    for _ in 0..count {
        let (offset, length) = (line()?, line()?);
        map.push(offset, length)?;
    }
    Ok((map, used))
}
