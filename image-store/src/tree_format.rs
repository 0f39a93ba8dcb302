//! The stored form of a tree: one zstd frame, then the SHA-256 of that frame. Bytes from disk are checked
//! against the digest and still read as hostile.
//!
//! Inside the frame: `LBTREE`, a version byte, then nodes in preorder. Numbers are LEB128, byte strings
//! carry their length in front. A node is
//! ```text
//! kind  0 directory  1 file  2 symlink  3 one more name of a node that came before
//! 0-2:  mode, mtime seconds (zigzag), nanoseconds, xattr count, (name, value)*
//! 0:    child count, (name, node)*      children ascend by name
//! 1:    size, digest (32 bytes) if size > 0
//! 2:    target
//! 3:    ordinal of the node, counting kinds 1 and 2 from 0
//! ```

use std::collections::{BTreeMap, HashMap};
use std::io::Read;

use crate::digest::Digest;
use crate::entry::{Content, Mtime, Xattr};
use crate::leb::{Cursor, put, put_bytes};
use crate::tree::{Child, Node, NodeId, NodeKind, ROOT, Tree};

const MAGIC: &[u8; 7] = b"LBTREE\x01";
/// Decoded size past which a tree is refused: 4 million entries take about 600 MB.
const DECODED_BYTES_MAX: u64 = 2 << 30;
/// Twice what [`crate::Limits::path_depth`] is by default; it bounds the recursion.
const DEPTH_MAX: usize = 512;

/// Why bytes are no stored tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeFormatError {
    /// The digest at the end doesn't fit: a torn or changed file.
    #[error("check the tree's digest")]
    Digest,
    /// Another version of the format.
    #[error("read the tree: it is in a format that this version does not know")]
    Version,
    /// The frame or what is in it makes no sense.
    #[error("read the tree: it is malformed")]
    Malformed,
}

/// The stored form of `tree`. The same tree always gives the same bytes.
pub(crate) fn encode(tree: &Tree) -> std::io::Result<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    let mut ordinals = HashMap::new();
    encode_node(tree, ROOT, &mut ordinals, &mut bytes);
    let mut frame = zstd::encode_all(&bytes[..], 1)?;
    let digest = Digest::of(&frame);
    frame.extend_from_slice(digest.as_bytes());
    Ok(frame)
}

/// Reads what [`encode`] wrote.
pub(crate) fn decode(stored: &[u8]) -> Result<Tree, TreeFormatError> {
    let (frame, digest) = stored.split_last_chunk::<32>().ok_or(TreeFormatError::Malformed)?;
    if Digest::of(frame).as_bytes() != digest {
        return Err(TreeFormatError::Digest);
    }
    decode_frame(frame)
}

/// The part of [`decode`] behind the digest, for fuzzing.
pub(crate) fn decode_frame(frame: &[u8]) -> Result<Tree, TreeFormatError> {
    let decoder = zstd::Decoder::new(frame).map_err(|_| TreeFormatError::Malformed)?;
    let mut bytes = Vec::new();
    decoder.take(DECODED_BYTES_MAX).read_to_end(&mut bytes).map_err(|_| TreeFormatError::Malformed)?;
    decode_nodes(&bytes)
}

pub(crate) fn decode_nodes(bytes: &[u8]) -> Result<Tree, TreeFormatError> {
    let (magic, rest) = bytes.split_first_chunk::<7>().ok_or(TreeFormatError::Malformed)?;
    if magic[..6] != MAGIC[..6] {
        return Err(TreeFormatError::Malformed);
    }
    if magic != MAGIC {
        return Err(TreeFormatError::Version);
    }
    let mut reader = Reader { cursor: Cursor { rest }, tree: Tree::new(), named: Vec::new() };
    let root = reader.node(0)?.ok_or(TreeFormatError::Malformed)?;
    if !matches!(root.kind, NodeKind::Directory(_)) || !reader.cursor.rest.is_empty() {
        return Err(TreeFormatError::Malformed);
    }
    *reader.tree.node_mut(ROOT) = root;
    Ok(reader.tree)
}

fn encode_node(tree: &Tree, id: NodeId, ordinals: &mut HashMap<NodeId, u64>, out: &mut Vec<u8>) {
    let node = tree.node(id);
    if let Some(ordinal) = ordinals.get(&id) {
        out.push(3);
        return put(out, *ordinal);
    }
    match &node.kind {
        NodeKind::Directory(_) => {
            out.push(0);
            put_attributes(out, node);
            let made = || tree.children(id).filter(|(_, id)| tree.node(*id).kind != NodeKind::Skipped);
            put(out, made().count() as u64);
            for (name, child) in made() {
                put_bytes(out, name);
                encode_node(tree, child, ordinals, out);
            }
        }
        NodeKind::File(content) => {
            ordinals.insert(id, ordinals.len() as u64);
            out.push(1);
            put_attributes(out, node);
            put(out, content.size);
            if content.size > 0 {
                out.extend_from_slice(content.digest.as_bytes());
            }
        }
        NodeKind::Symlink(target) => {
            ordinals.insert(id, ordinals.len() as u64);
            out.push(2);
            put_attributes(out, node);
            put_bytes(out, target);
        }
        NodeKind::Skipped => {}
    }
}

fn put_attributes(out: &mut Vec<u8>, node: &Node) {
    put_metadata(out, node.mode, node.mtime, &node.xattrs);
}

pub(crate) fn put_metadata(out: &mut Vec<u8>, mode: u32, mtime: Mtime, xattrs: &[Xattr]) {
    put(out, u64::from(mode));
    let seconds = mtime.seconds;
    put(out, ((seconds << 1) ^ (seconds >> 63)).cast_unsigned());
    put(out, u64::from(mtime.nanoseconds));
    put(out, xattrs.len() as u64);
    for xattr in xattrs {
        put_bytes(out, &xattr.name);
        put_bytes(out, &xattr.value);
    }
}

struct Reader<'a> {
    cursor: Cursor<'a>,
    tree: Tree,
    /// Nodes of kinds 1 and 2 by ordinal.
    named: Vec<NodeId>,
}

impl Reader<'_> {
    /// A node that is to be added, or `None` for kind 3, whose ordinal follows.
    fn node(&mut self, depth: usize) -> Result<Option<Node>, TreeFormatError> {
        let kind = self.cursor.byte()?;
        if kind > 2 || depth > DEPTH_MAX {
            return if kind == 3 { Ok(None) } else { Err(TreeFormatError::Malformed) };
        }
        let mut node = self.attributes()?;
        node.kind = match kind {
            0 => {
                let count = self.cursor.count()?;
                let mut children = BTreeMap::new();
                let mut before: &[u8] = b"";
                for _ in 0..count {
                    let name = self.cursor.bytes()?;
                    if name <= before
                        || name == b"."
                        || name == b".."
                        || name.iter().any(|b| b"/\0".contains(b))
                    {
                        return Err(TreeFormatError::Malformed);
                    }
                    before = name;
                    let child = self.child(depth)?;
                    children.insert(name.into(), Child::of(child));
                }
                NodeKind::Directory(children)
            }
            1 => {
                let size = self.cursor.number()?;
                let digest = if size > 0 { self.cursor.digest()? } else { Digest::of(b"") };
                NodeKind::File(Content { size, digest })
            }
            _ => {
                let target = self.cursor.bytes()?;
                if target.is_empty() || target.contains(&0) {
                    return Err(TreeFormatError::Malformed);
                }
                NodeKind::Symlink(target.into())
            }
        };
        Ok(Some(node))
    }

    fn child(&mut self, depth: usize) -> Result<NodeId, TreeFormatError> {
        if let Some(node) = self.node(depth + 1)? {
            let counted = !matches!(node.kind, NodeKind::Directory(_));
            let id = self.tree.add(node);
            if counted {
                self.named.push(id);
            }
            return Ok(id);
        }
        let ordinal = usize::try_from(self.cursor.number()?).map_err(|_| TreeFormatError::Malformed)?;
        self.named.get(ordinal).copied().ok_or(TreeFormatError::Malformed)
    }

    fn attributes(&mut self) -> Result<Node, TreeFormatError> {
        let (mode, mtime, xattrs) = metadata(&mut self.cursor)?;
        Ok(Node { mode, mtime, xattrs, ..Node::directory(0) })
    }
}

/// What [`put_metadata`] wrote.
pub(crate) fn metadata(cursor: &mut Cursor<'_>) -> Result<(u32, Mtime, Vec<Xattr>), TreeFormatError> {
    let mode = u32::try_from(cursor.number()?).map_err(|_| TreeFormatError::Malformed)?;
    let zigzag = cursor.number()?;
    let seconds = (zigzag >> 1).cast_signed() ^ -((zigzag & 1).cast_signed());
    let nanoseconds = u32::try_from(cursor.number()?).map_err(|_| TreeFormatError::Malformed)?;
    if mode & !0o7777 != 0 || nanoseconds >= 1_000_000_000 {
        return Err(TreeFormatError::Malformed);
    }
    let mut xattrs = Vec::new();
    for _ in 0..cursor.count()? {
        let (name, value) = (cursor.bytes()?, cursor.bytes()?);
        xattrs.push(Xattr { name: name.into(), value: value.into() });
    }
    let mtime = Mtime { seconds, nanoseconds };
    Ok((mode, mtime, xattrs))
}
