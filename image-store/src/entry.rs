//! A layer's entries as the tree takes them, and everything that can be wrong with one. Knows no file.

use std::io;

use crate::digest::Digest;

/// Time of last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mtime {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

impl Mtime {
    /// Past what any file system stores, short of what overflows arithmetic on nanoseconds in 128 bits.
    const SECONDS_MAX: i64 = 1 << 48;

    pub(crate) fn from_seconds(seconds: u64) -> Self {
        let seconds = i64::try_from(seconds).unwrap_or(0).min(Self::SECONDS_MAX);
        Self { seconds, nanoseconds: 0 }
    }

    /// PAX writes `-12.5`, `1700000000.123456789` and the like; digits past nanoseconds are dropped.
    pub(crate) fn from_decimal(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let seconds: i64 = whole.parse().ok()?;
        if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let nanoseconds = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
        let nanoseconds = nanoseconds.fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
        let seconds = seconds.clamp(-Self::SECONDS_MAX, Self::SECONDS_MAX);
        if whole.starts_with('-') && nanoseconds > 0 {
            return Some(Self { seconds: seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds });
        }
        Some(Self { seconds, nanoseconds })
    }
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Xattr {
    pub(crate) name: Box<[u8]>,
    pub(crate) value: Box<[u8]>,
}

/// What an entry puts at its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Directory,
    File(Content),
    Symlink(Box<[u8]>),
    /// Another name of the entry at this path.
    HardLink(Box<[u8]>),
    /// A device node or FIFO: hides what was there, and is not made.
    Skipped,
}

/// A regular file's content. The digest of nothing is never an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) size: u64,
    pub(crate) digest: Digest,
}

/// One entry of a layer, in the layer's order.
#[derive(Debug, Clone)]
pub(crate) struct LayerEntry {
    pub(crate) path: Box<[u8]>,
    pub(crate) kind: EntryKind,
    pub(crate) mode: u32,
    pub(crate) mtime: Mtime,
    pub(crate) xattrs: Vec<Xattr>,
}

/// What was left out of an image, because an unprivileged user can't have it or must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct LeftOut {
    /// Device nodes and FIFOs that were not made.
    pub special_files: u64,
    /// Files and directories that lost their setuid or setgid bit.
    pub setid_bits: u64,
    /// Extended attributes outside `user.`, and `user.overlay.`, that were dropped.
    pub xattrs: u64,
}

impl LeftOut {
    pub(crate) const fn add(&mut self, other: Self) {
        self.special_files += other.special_files;
        self.setid_bits += other.setid_bits;
        self.xattrs += other.xattrs;
    }
}

/// What is wrong with an entry of a layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// The layer could not be read on.
    #[error("read the layer's tar")]
    Read(#[source] io::Error),
    /// A tar header that is none.
    #[error("read a tar header: its {0} is wrong")]
    Header(&'static str),
    /// A PAX header whose records lie about their length or hold no number where one must be.
    #[error("read a PAX header: its records are malformed")]
    Pax,
    /// A sparse map that overlaps, runs past the end or doesn't fit the stored bytes.
    #[error("read a sparse file: its map is malformed")]
    Sparse,
    /// A type of entry that no image has.
    #[error("read an entry of unknown type {:?}", char::from(*.0))]
    UnknownType(u8),
    /// A PAX header or long name over the limit.
    #[error("read an extension header of {bytes} bytes: the limit is {limit}")]
    ExtensionTooLong {
        /// Bytes stated.
        bytes: u64,
        /// [`crate::Limits::extension_bytes`].
        limit: u64,
    },
    /// An extended attribute over the limit.
    #[error("read an extended attribute of {bytes} bytes: the limit is {limit}")]
    XattrTooLong {
        /// Bytes of name and value.
        bytes: usize,
        /// [`crate::Limits::xattr_bytes`].
        limit: usize,
    },
    /// Too many extended attributes on one entry.
    #[error("read more than {limit} extended attributes of one entry")]
    TooManyXattrs {
        /// [`crate::Limits::xattrs`].
        limit: usize,
    },
    /// More entries than an image may have.
    #[error("read more than {limit} entries")]
    TooManyEntries {
        /// [`crate::Limits::entries`].
        limit: u64,
    },
    /// More bytes than an image may have.
    #[error("unpack more than {limit} bytes")]
    TooManyBytes {
        /// [`crate::Limits::unpacked_bytes`].
        limit: u64,
    },
    /// A layer that unpacks to far more than it takes packed.
    #[error("unpack a layer of {packed} bytes to more than {limit} bytes (a decompression bomb?)")]
    Expansion {
        /// Bytes of the blob.
        packed: u64,
        /// Where unpacking stopped.
        limit: u64,
    },
    /// A name with `..` in it.
    #[error("place an entry whose name has \"..\" in it")]
    DotDot,
    /// A name with a NUL.
    #[error("place an entry whose name has a NUL in it")]
    Nul,
    /// A path over the limit.
    #[error("place an entry whose path has {bytes} bytes: the limit is {limit}")]
    PathTooLong {
        /// Bytes of the path.
        bytes: usize,
        /// [`crate::Limits::path_bytes`].
        limit: usize,
    },
    /// A name over the limit.
    #[error("place an entry one of whose names has {bytes} bytes: the limit is {limit}")]
    NameTooLong {
        /// Bytes of the name.
        bytes: usize,
        /// [`crate::Limits::name_bytes`].
        limit: usize,
    },
    /// More directories above an entry than the limit.
    #[error("place an entry below more than {limit} directories")]
    TooDeep {
        /// [`crate::Limits::path_depth`].
        limit: usize,
    },
    /// An entry below something that is no directory.
    #[error("place an entry below \"{0}\", which is not a directory")]
    NotADirectory(String),
    /// Symbolic links on the way that never end.
    #[error("place an entry: more than 40 symbolic links on the way")]
    SymlinkLoop,
    /// An entry that would replace the image's root by something else.
    #[error("replace the image's root by something that is not a directory")]
    RootNotADirectory,
    /// A symbolic link to nothing, or to more than a path can hold.
    #[error("make a symbolic link to {bytes} bytes: 1 to 4095 are possible")]
    SymlinkTarget {
        /// Bytes of the target.
        bytes: usize,
    },
    /// A hard link to what no layer so far has.
    #[error("make a hard link to \"{0}\", which is not in the image")]
    HardLinkTarget(String),
    /// A hard link to a directory.
    #[error("make a hard link to \"{0}\", which is a directory")]
    HardLinkToDirectory(String),
    /// `.wh.` with nothing, `.` or `..` after it.
    #[error("apply a whiteout that names no file")]
    Whiteout,
    /// An object could not be written.
    #[error("store the entry's content")]
    Store(#[source] crate::objects::ObjectError),
}

/// A name from an image, fit for one line of a message.
pub(crate) fn shown(name: &[u8]) -> String {
    const SHOWN_MAX: usize = 200;
    let text: String = String::from_utf8_lossy(name).chars().flat_map(char::escape_debug).collect();
    if text.chars().count() <= SHOWN_MAX {
        return text;
    }
    text.chars().take(SHOWN_MAX).chain("...".chars()).collect()
}
