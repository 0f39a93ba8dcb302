//! A blob on its way out: its bytes by pieces, from any place as often as it takes, and whether they are what
//! their digest says.
//!
//! # Guarantees
//! Each byte is hashed once, when it is read for the first time. A file that changes between two reads of one
//! place escapes that, and not the registry, which hashes what it was given.
//!
//! # What it must not know
//! Whom the bytes go to.

use std::io::Read;

use sha2::{Digest as _, Sha256};

use crate::archive_file::Range;
use crate::digest::Digest;

/// See the module's doc.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    /// Layer or configuration.
    kind: &'static str,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    content: Content<'a>,
    hasher: Sha256,
    hashed: u64,
}

#[derive(Debug)]
enum Content<'a> {
    Memory(&'a [u8]),
    File(Range),
}

impl<'a> Outgoing<'a> {
    /// A document in memory.
    pub(crate) fn document(kind: &'static str, digest: Digest, bytes: &'a [u8]) -> Self {
        Self::new(kind, digest, bytes.len() as u64, Content::Memory(bytes))
    }

    /// A blob of `size` bytes by its descriptor.
    pub(crate) fn file(kind: &'static str, digest: Digest, size: u64, range: Range) -> Self {
        Self::new(kind, digest, size, Content::File(range))
    }

    fn new(kind: &'static str, digest: Digest, size: u64, content: Content<'a>) -> Self {
        Self { kind, digest, size, content, hasher: Sha256::new(), hashed: 0 }
    }

    /// As errors name it.
    pub(crate) fn what(&self) -> String {
        format!("{} {}", self.kind, self.digest)
    }

    /// How far it was read.
    pub(crate) const fn read(&self) -> u64 {
        self.hashed
    }

    /// The bytes from `at` on, `most` at most; `at` lies within what was read. The error is one line.
    pub(crate) fn piece(&mut self, at: u64, most: u64) -> Result<Vec<u8>, String> {
        let length = usize::try_from(most.min(self.size - at)).map_err(|_| "a piece exceeds the memory")?;
        let mut bytes = vec![0; length];
        let read = match &self.content {
            Content::Memory(all) => all.get(usize::try_from(at).unwrap_or(usize::MAX)..).map_or_else(
                || Err(std::io::ErrorKind::UnexpectedEof.into()),
                |mut rest| rest.read_exact(&mut bytes),
            ),
            Content::File(range) => range.behind(at).read_exact(&mut bytes),
        };
        read.map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => format!("its file has less than {} bytes", self.size),
            _ => format!("its file can't be read: {error}"),
        })?;
        let known = usize::try_from(self.hashed.saturating_sub(at)).unwrap_or(usize::MAX);
        if let Some(fresh) = bytes.get(known..) {
            self.hasher.update(fresh);
            self.hashed += fresh.len() as u64;
        }
        Ok(bytes)
    }

    /// Whether the bytes, all of which were read, are those of the digest. The error is one line.
    pub(crate) fn check(&self) -> Result<(), String> {
        let found = Digest::from_bytes(self.hasher.clone().finalize().into());
        if found == self.digest && self.hashed == self.size {
            return Ok(());
        }
        Err(format!("its bytes have the digest {found}"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn file(bytes: &[u8]) -> Range {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Range::new(Arc::new(file), 0, bytes.len() as u64)
    }

    #[test]
    fn a_blob_that_is_not_what_it_says_is_found_out_at_its_end() {
        let wrong = b"what others than the digest says";
        for content in [Content::Memory(wrong), Content::File(file(wrong))] {
            let mut blob = Outgoing::new("layer", Digest::of(b"x"), wrong.len() as u64, content);
            assert_eq!(blob.piece(0, 1 << 20).unwrap(), wrong);
            assert!(blob.check().unwrap_err().contains(&Digest::of(wrong).to_string()));
        }
        let mut short = Outgoing::file("layer", Digest::of(b"12345"), 5, file(b"1234"));
        assert!(short.piece(0, 9).unwrap_err().contains("less than 5 bytes"));
        let mut short = Outgoing::document("configuration", Digest::of(b"12345"), b"1234");
        short.size = 5;
        assert!(short.piece(0, 9).unwrap_err().contains("less than 5 bytes"));
    }

    #[test]
    fn nothing_is_a_blob_too() {
        assert_eq!(Outgoing::document("layer", Digest::of(b""), b"").check(), Ok(()));
    }

    proptest! {
        /// Wherever one has to go back to, the digest is that of the whole.
        #[test]
        fn what_is_read_twice_counts_once(
            bytes in proptest::collection::vec(any::<u8>(), 1..200),
            reads in proptest::collection::vec((0.0..1.0_f64, 1..80_u64), 0..20),
        ) {
            let size = bytes.len() as u64;
            let mut blob = Outgoing::file("layer", Digest::of(&bytes), size, file(&bytes));
            for (place, most) in reads {
                let at = (blob.read() as f64 * place) as u64;
                let piece = blob.piece(at, most).unwrap();
                prop_assert_eq!(&piece[..], &bytes[at as usize..][..piece.len()]);
            }
            while blob.read() < size {
                blob.piece(blob.read(), 7).unwrap();
            }
            prop_assert_eq!(blob.check(), Ok(()));
        }
    }
}
