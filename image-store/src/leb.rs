//! Numbers and byte strings as the store's own formats write them: LEB128, lengths in front. What is read is
//! hostile.

use crate::digest::Digest;
use crate::tree_format::TreeFormatError;

pub(crate) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(0x80 | (number & 0x7f) as u8);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Bytes that are being read.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    pub(crate) rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn byte(&mut self) -> Result<u8, TreeFormatError> {
        let (byte, rest) = self.rest.split_first().ok_or(TreeFormatError::Malformed)?;
        self.rest = rest;
        Ok(*byte)
    }

    pub(crate) fn number(&mut self) -> Result<u64, TreeFormatError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(TreeFormatError::Malformed);
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(TreeFormatError::Malformed)
    }

    /// A number of things that each take at least a byte.
    pub(crate) fn count(&mut self) -> Result<usize, TreeFormatError> {
        let count = usize::try_from(self.number()?).map_err(|_| TreeFormatError::Malformed)?;
        if count > self.rest.len() { Err(TreeFormatError::Malformed) } else { Ok(count) }
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], TreeFormatError> {
        let length = self.count()?;
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(bytes)
    }

    pub(crate) fn digest(&mut self) -> Result<Digest, TreeFormatError> {
        let (bytes, rest) = self.rest.split_first_chunk::<32>().ok_or(TreeFormatError::Malformed)?;
        self.rest = rest;
        Ok(Digest::from_bytes(*bytes))
    }
}
