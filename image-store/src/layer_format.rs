//! The stored form of one layer that was taken apart: its entries in their order, so that another image with
//! the same layer needs neither its bytes nor a decoder. One zstd frame, then the SHA-256 of that frame, as
//! trees have it; read as hostile.
//!
//! Inside: `LBLAYR`, a version byte, what was left out (three numbers), then entries until the end:
//! ```text
//! kind  0 directory  1 file  2 symlink  3 hard link  4 skipped
//! path, mode, mtime, xattrs
//! 1:    size, digest (32 bytes) if size > 0
//! 2, 3: target
//! ```

use std::io::Read;

use crate::digest::Digest;
use crate::entry::{Content, EntryKind, LayerEntry, LeftOut};
use crate::layer::LayerParts;
use crate::leb::{Cursor, put, put_bytes};
use crate::tree_format::{self, TreeFormatError};

const MAGIC: &[u8; 7] = b"LBLAYR\x01";
/// As for trees: 4 million entries.
const DECODED_BYTES_MAX: u64 = 2 << 30;

/// The stored form of a layer's parts.
pub(crate) fn encode(parts: &LayerParts) -> std::io::Result<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    let left_out = &parts.left_out;
    for number in [left_out.special_files, left_out.setid_bits, left_out.xattrs] {
        put(&mut bytes, number);
    }
    for entry in &parts.entries {
        bytes.push(match entry.kind {
            EntryKind::Directory => 0,
            EntryKind::File(_) => 1,
            EntryKind::Symlink(_) => 2,
            EntryKind::HardLink(_) => 3,
            EntryKind::Skipped => 4,
        });
        put_bytes(&mut bytes, &entry.path);
        tree_format::put_metadata(&mut bytes, entry.mode, entry.mtime, &entry.xattrs);
        match &entry.kind {
            EntryKind::File(content) => {
                put(&mut bytes, content.size);
                if content.size > 0 {
                    bytes.extend_from_slice(content.digest.as_bytes());
                }
            }
            EntryKind::Symlink(target) | EntryKind::HardLink(target) => put_bytes(&mut bytes, target),
            EntryKind::Directory | EntryKind::Skipped => {}
        }
    }
    let mut frame = zstd::encode_all(&bytes[..], 1)?;
    let digest = Digest::of(&frame);
    frame.extend_from_slice(digest.as_bytes());
    Ok(frame)
}

/// Reads what [`encode`] wrote.
pub(crate) fn decode(stored: &[u8]) -> Result<LayerParts, TreeFormatError> {
    let (frame, digest) = stored.split_last_chunk::<32>().ok_or(TreeFormatError::Malformed)?;
    if Digest::of(frame).as_bytes() != digest {
        return Err(TreeFormatError::Digest);
    }
    let decoder = zstd::Decoder::new(frame).map_err(|_| TreeFormatError::Malformed)?;
    let mut bytes = Vec::new();
    decoder.take(DECODED_BYTES_MAX).read_to_end(&mut bytes).map_err(|_| TreeFormatError::Malformed)?;
    decode_entries(&bytes)
}

/// The part of [`decode`] behind the digest and the frame.
pub(crate) fn decode_entries(bytes: &[u8]) -> Result<LayerParts, TreeFormatError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(TreeFormatError::Version)?;
    let mut cursor = Cursor { rest };
    let (special_files, setid_bits, xattrs) = (cursor.number()?, cursor.number()?, cursor.number()?);
    let left_out = LeftOut { special_files, setid_bits, xattrs };
    let mut parts = LayerParts { entries: Vec::new(), left_out, bytes: 0 };
    while !cursor.rest.is_empty() {
        let kind = cursor.byte()?;
        let path = cursor.bytes()?.into();
        let (mode, mtime, xattrs) = tree_format::metadata(&mut cursor)?;
        let kind = match kind {
            0 => EntryKind::Directory,
            1 => {
                let size = cursor.number()?;
                let digest = if size > 0 { cursor.digest()? } else { Digest::of(b"") };
                parts.bytes = parts.bytes.saturating_add(size);
                EntryKind::File(Content { size, digest })
            }
            2 => EntryKind::Symlink(target(cursor.bytes()?)?),
            3 => EntryKind::HardLink(cursor.bytes()?.into()),
            4 => EntryKind::Skipped,
            _ => return Err(TreeFormatError::Malformed),
        };
        parts.entries.push(LayerEntry { path, kind, mode, mtime, xattrs });
    }
    Ok(parts)
}

fn target(bytes: &[u8]) -> Result<Box<[u8]>, TreeFormatError> {
    if bytes.is_empty() || bytes.contains(&0) { Err(TreeFormatError::Malformed) } else { Ok(bytes.into()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entry::{Mtime, Xattr};

    fn entry() -> impl Strategy<Value = LayerEntry> {
        let bytes = || proptest::collection::vec(1_u8.., 1..9).prop_map(Vec::into_boxed_slice);
        let kind = prop_oneof![
            Just(EntryKind::Directory),
            Just(EntryKind::Skipped),
            bytes().prop_map(EntryKind::Symlink),
            bytes().prop_map(EntryKind::HardLink),
            any::<u64>().prop_map(|size| {
                let digest = if size > 0 { Digest::of(&size.to_le_bytes()) } else { Digest::of(b"") };
                EntryKind::File(Content { size, digest })
            }),
        ];
        let xattr = (bytes(), bytes()).prop_map(|(name, value)| Xattr { name, value });
        let mtime = (any::<i64>(), 0_u32..1_000_000_000);
        (bytes(), kind, 0_u32..0o10000, mtime, proptest::collection::vec(xattr, 0..3)).prop_map(
            |(path, kind, mode, (seconds, nanoseconds), xattrs)| {
                let mtime = Mtime { seconds, nanoseconds };
                LayerEntry { path, kind, mode, mtime, xattrs }
            },
        )
    }

    proptest! {
        #[test]
        fn a_layer_survives_its_stored_form(entries in proptest::collection::vec(entry(), 0..20), left in any::<u64>()) {
            let left_out = LeftOut { xattrs: left, ..LeftOut::default() };
            let parts = LayerParts { entries, left_out, bytes: 0 };
            let read = decode(&encode(&parts).unwrap()).unwrap();
            prop_assert_eq!(format!("{:?}", read.entries), format!("{:?}", parts.entries));
            prop_assert_eq!(read.left_out, parts.left_out);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            let _ = decode_entries(&[&MAGIC[..], &bytes].concat());
        }
    }
}
