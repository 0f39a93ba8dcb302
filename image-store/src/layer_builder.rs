//! Writes one image layer: a tar that is the same for the same content (sorted, owner 0, time 0 unless
//! told). It can also write what no honest tool writes, because tests need layers that bite.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use tar::{EntryType, Header};

use crate::digest::Digest;

/// How a layer's tar is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar.
    None,
    /// gzip, one member.
    Gzip,
    /// One zstd frame.
    Zstd,
}

/// A finished layer: the blob, and the digest of its uncompressed tar.
#[derive(Debug, Clone)]
pub struct LayerBlob {
    /// The bytes as they are stored in the layout.
    pub bytes: Vec<u8>,
    /// Digest of the uncompressed tar, as `rootfs.diff_ids` wants it.
    pub diff_id: Digest,
    /// The OCI media type of `bytes`.
    pub media_type: String,
}

impl LayerBlob {
    /// Compresses a ready tar.
    ///
    /// # Errors
    /// Only if an encoder fails, which needs memory to run out.
    pub fn from_tar(tar: &[u8], compression: Compression) -> io::Result<Self> {
        const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
        let (bytes, suffix) = match compression {
            Compression::None => (tar.to_vec(), ""),
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
                encoder.write_all(tar)?;
                (encoder.finish()?, "+gzip")
            }
            Compression::Zstd => (zstd::encode_all(tar, 3)?, "+zstd"),
        };
        Ok(Self { bytes, diff_id: Digest::of(tar), media_type: format!("{TAR}{suffix}") })
    }

    /// Digest of the compressed bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }
}

/// Attributes of an entry that most callers leave as they are.
#[derive(Debug, Clone, Default)]
pub struct EntryAttributes {
    /// Seconds since 1970.
    pub mtime: u64,
    /// Extended attributes, written as `SCHILY.xattr.` PAX records.
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// More PAX records, written as they are.
    pub pax: Vec<(String, Vec<u8>)>,
}

#[derive(Debug)]
struct Item {
    /// Hard links come after everything else, so that their targets precede them.
    rank: u8,
    path: Vec<u8>,
    bytes: Vec<u8>,
}

/// Collects the entries of a layer. Entries are sorted by path at the end unless [`LayerBuilder::in_order`]
/// made the builder.
#[derive(Debug, Default)]
pub struct LayerBuilder {
    items: Vec<Item>,
    in_order: bool,
}

impl LayerBuilder {
    /// An empty layer whose entries will be sorted.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty layer that keeps the order of the calls.
    #[must_use]
    pub fn in_order() -> Self {
        Self { items: Vec::new(), in_order: true }
    }

    /// A directory.
    #[must_use]
    pub fn dir(self, path: impl AsRef<Path>, mode: u32) -> Self {
        self.entry(EntryType::Directory, path, mode, &EntryAttributes::default(), b"", None)
    }

    /// A regular file.
    #[must_use]
    pub fn file(self, path: impl AsRef<Path>, mode: u32, content: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, path, mode, &EntryAttributes::default(), content.as_ref(), None)
    }

    /// A symbolic link at `path` to `target`.
    #[must_use]
    pub fn symlink(self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Self {
        let none = EntryAttributes::default();
        self.entry(EntryType::Symlink, path, 0o777, &none, b"", Some(target.as_ref()))
    }

    /// A hard link at `path` to the earlier entry `target`.
    #[must_use]
    pub fn hard_link(self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Self {
        let none = EntryAttributes::default();
        self.entry(EntryType::Link, path, 0o644, &none, b"", Some(target.as_ref()))
    }

    /// A whiteout: hides `path` of the layers below.
    #[must_use]
    pub fn whiteout(self, path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        let mut name = b".wh.".to_vec();
        name.extend_from_slice(path.file_name().unwrap_or_default().as_bytes());
        let marker = path.with_file_name(std::ffi::OsStr::from_bytes(&name));
        self.file(marker, 0o644, b"")
    }

    /// Hides everything that the layers below have in the directory `path`.
    #[must_use]
    pub fn opaque(self, path: impl AsRef<Path>) -> Self {
        self.file(path.as_ref().join(".wh..wh..opq"), 0o644, b"")
    }

    /// Any entry. Names and link targets over 100 bytes, and everything in `attributes`, become PAX records.
    #[must_use]
    pub fn entry(
        mut self,
        kind: EntryType,
        path: impl AsRef<Path>,
        mode: u32,
        attributes: &EntryAttributes,
        content: &[u8],
        link: Option<&Path>,
    ) -> Self {
        let path = path.as_ref().as_os_str().as_bytes().to_vec();
        let link = link.map_or(&b""[..], |link| link.as_os_str().as_bytes());
        let mut records = Vec::new();
        if path.len() > 100 {
            pax_record(&mut records, "path", &path);
        }
        if link.len() > 100 {
            pax_record(&mut records, "linkpath", link);
        }
        for (name, value) in &attributes.xattrs {
            pax_record(&mut records, &format!("SCHILY.xattr.{name}"), value);
        }
        for (name, value) in &attributes.pax {
            pax_record(&mut records, name, value);
        }
        let mut bytes = Vec::new();
        if !records.is_empty() {
            let header = header(EntryType::XHeader, b"pax", 0o644, 0, records.len() as u64, b"");
            append_member(&mut bytes, &header, &records);
        }
        let header = header(kind, &path, mode, attributes.mtime, content.len() as u64, link);
        append_member(&mut bytes, &header, content);
        self.items.push(Item { rank: u8::from(kind == EntryType::Link), path, bytes });
        self
    }

    /// A member exactly as given: header (its checksum is not touched) and data, which is padded to 512.
    #[must_use]
    pub fn raw(mut self, header: &Header, data: &[u8]) -> Self {
        let mut bytes = Vec::new();
        append_member(&mut bytes, header, data);
        self.items.push(Item { rank: 0, path: header.path_bytes().to_vec(), bytes });
        self
    }

    /// Everything below the folder `host` of this machine, placed below `at`: directories, regular files and
    /// symbolic links with their modes; hard links become separate files, special files are left out.
    ///
    /// # Errors
    /// Whatever reading the folder answers.
    pub fn tree(mut self, at: impl AsRef<Path>, host: &Path) -> io::Result<Self> {
        let mut open = vec![(at.as_ref().to_path_buf(), host.to_path_buf())];
        while let Some((at, host)) = open.pop() {
            for child in std::fs::read_dir(&host)? {
                let child = child?;
                let (path, meta) = (at.join(child.file_name()), child.metadata()?);
                let mode = meta.permissions().mode() & 0o7777;
                let attributes =
                    EntryAttributes { mtime: meta.mtime().max(0).unsigned_abs(), ..Default::default() };
                if meta.is_dir() {
                    self = self.entry(EntryType::Directory, &path, mode, &attributes, b"", None);
                    open.push((path, child.path()));
                } else if meta.is_symlink() {
                    let target = std::fs::read_link(child.path())?;
                    self = self.entry(EntryType::Symlink, &path, 0o777, &attributes, b"", Some(&target));
                } else if meta.is_file() {
                    let content = std::fs::read(child.path())?;
                    self = self.entry(EntryType::Regular, &path, mode, &attributes, &content, None);
                }
            }
        }
        Ok(self)
    }

    /// The uncompressed tar with its two closing blocks.
    #[must_use]
    pub fn tar(mut self) -> Vec<u8> {
        if !self.in_order {
            self.items.sort_by(|a, b| (a.rank, &a.path).cmp(&(b.rank, &b.path)));
        }
        let mut tar =
            Vec::with_capacity(self.items.iter().map(|item| item.bytes.len()).sum::<usize>() + 1024);
        for item in &self.items {
            tar.extend_from_slice(&item.bytes);
        }
        tar.resize(tar.len() + 1024, 0);
        tar
    }

    /// The finished layer.
    ///
    /// # Errors
    /// As [`LayerBlob::from_tar`].
    pub fn finish(self, compression: Compression) -> io::Result<LayerBlob> {
        LayerBlob::from_tar(&self.tar(), compression)
    }
}

/// A header with owner 0 and a right checksum; `name` and `link` are cut to the 100 bytes that fit, and are
/// not judged: `..` and absolute names are written as they are.
#[must_use]
pub fn header(kind: EntryType, name: &[u8], mode: u32, mtime: u64, size: u64, link: &[u8]) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(mtime);
    header.set_size(size);
    let old = header.as_old_mut();
    let fit = name.len().min(100);
    old.name[..fit].copy_from_slice(&name[..fit]);
    let fit = link.len().min(100);
    old.linkname[..fit].copy_from_slice(&link[..fit]);
    header.set_cksum();
    header
}

fn append_member(tar: &mut Vec<u8>, header: &Header, data: &[u8]) {
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(data);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

/// One PAX record, `<length> <key>=<value>\n`, where the length counts its own digits.
fn pax_record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}
