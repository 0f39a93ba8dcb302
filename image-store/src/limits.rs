//! What a single layer or image may cost. Every number is a bound against hostile input, wide enough for
//! any image seen in the field.

/// Bounds for reading images. [`Limits::default`] is meant for production; tests lower single fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Entries of all layers together. The largest public images have about 10^6.
    pub entries: u64,
    /// Unpacked bytes of all layers together; holes of sparse files count.
    pub unpacked_bytes: u64,
    /// Unpacked bytes of one layer per byte of its blob. Applies past `ratio_free_bytes` only: zeros pack
    /// 1:1000 in honest images too.
    pub expansion_ratio: u64,
    /// Unpacked bytes of one layer that are never held against it.
    pub ratio_free_bytes: u64,
    /// Bytes of a path from the image's root. Linux takes 4095 at a time.
    pub path_bytes: usize,
    /// Bytes of one name. Linux takes 255.
    pub name_bytes: usize,
    /// Directories above an entry.
    pub path_depth: usize,
    /// Bytes of one PAX header or GNU long name.
    pub extension_bytes: u64,
    /// Bytes of one extended attribute, name included. Linux takes 65,536 for the value.
    pub xattr_bytes: usize,
    /// Extended attributes of one entry.
    pub xattrs: usize,
    /// Layers of an image. Docker stops at 127; tools that flatten late make more.
    pub layers: usize,
    /// Bytes of an index, a manifest or a configuration. Registries refuse manifests over 4 MiB.
    pub document_bytes: u64,
    /// Members of an archive file (`oci-archive:`, `docker-archive:`).
    pub archive_members: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 4_000_000,
            unpacked_bytes: 256 << 30,
            expansion_ratio: 200,
            ratio_free_bytes: 1 << 30,
            path_bytes: 4095,
            name_bytes: 255,
            path_depth: 256,
            extension_bytes: 1 << 20,
            xattr_bytes: 65_536,
            xattrs: 64,
            layers: 1024,
            document_bytes: 4 << 20,
            archive_members: 100_000,
        }
    }
}
