//! An image's file tree in memory: layers are merged into it, names are resolved in it. No path is ever
//! resolved on disk while layers are applied, so neither `..` nor a symbolic link can lead out of the image.
//! Knows no file and no store.
//!
//! Rules of the merge, entry by entry in the layer's order, as if each layer were unpacked as root of the
//! tree below it:
//! - parents are followed through symbolic links *of the image*; missing ones are made (0755);
//! - the last name is never followed: what is there is replaced, only a directory over a directory merges;
//! - a whiteout hides what *lower* layers brought, never what its own layer brings, whatever the order.

use std::collections::BTreeMap;

use crate::entry::{Content, EntryError, EntryKind, LayerEntry, Mtime, Xattr, shown};
use crate::limits::Limits;
use crate::walk::{Lost, Stop, Walk, split};

pub(crate) type NodeId = u32;
pub(crate) const ROOT: NodeId = 0;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS_PRIVATE: &[u8] = b".wh..wh.";

/// One inode of the image. Hard links are several names of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: NodeKind,
    pub(crate) mode: u32,
    pub(crate) mtime: Mtime,
    pub(crate) xattrs: Vec<Xattr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodeKind {
    Directory(BTreeMap<Box<[u8]>, Child>),
    File(Content),
    Symlink(Box<[u8]>),
    /// Something that isn't made (device, FIFO), but hides what lower layers have.
    Skipped,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Child {
    pub(crate) node: NodeId,
    /// The layer that brought the name last; whiteouts of the same layer spare it.
    layer: u32,
}

impl Child {
    /// A name that no layer is known to have brought.
    pub(crate) const fn of(node: NodeId) -> Self {
        Self { node, layer: 0 }
    }
}

/// The merged tree. Nodes that lost their last name stay in `nodes` and are never reached.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
}

impl Node {
    pub(crate) const fn directory(mode: u32) -> Self {
        let mtime = Mtime { seconds: 0, nanoseconds: 0 };
        Self { kind: NodeKind::Directory(BTreeMap::new()), mode, mtime, xattrs: Vec::new() }
    }
}

impl Tree {
    /// A root without children.
    pub(crate) fn new() -> Self {
        Self { nodes: vec![Node::directory(0o755)] }
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    pub(crate) const fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The names in a directory; nothing for anything else.
    pub(crate) fn children(&self, id: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        let children = match &self.node(id).kind {
            NodeKind::Directory(children) => Some(children),
            NodeKind::File(_) | NodeKind::Symlink(_) | NodeKind::Skipped => None,
        };
        children.into_iter().flatten().map(|(name, child)| (&**name, child.node))
    }

    /// Every file content that a name leads to, with repeats.
    pub(crate) fn contents(&self) -> impl Iterator<Item = Content> {
        let mut open = vec![ROOT];
        std::iter::from_fn(move || {
            while let Some(id) = open.pop() {
                match &self.node(id).kind {
                    NodeKind::Directory(children) => open.extend(children.values().map(|child| child.node)),
                    NodeKind::File(content) => return Some(*content),
                    NodeKind::Symlink(_) | NodeKind::Skipped => {}
                }
            }
            None
        })
    }

    /// How many names the tree has.
    pub(crate) fn names(&self) -> u64 {
        let mut names = 0;
        let mut open = vec![ROOT];
        while let Some(id) = open.pop() {
            for (_, child) in self.children(id) {
                names += 1;
                open.push(child);
            }
        }
        names
    }

    /// Adds a node without a name.
    pub(crate) fn add(&mut self, node: Node) -> NodeId {
        // Entries are limited to far fewer than 2^32, and an entry adds at most `path_depth` nodes.
        let id = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        self.nodes.push(node);
        id
    }

    /// Gives a node a name in a directory, replacing what had it.
    pub(crate) fn set_child(&mut self, directory: NodeId, name: &[u8], node: NodeId, layer: u32) {
        if let NodeKind::Directory(children) = &mut self.node_mut(directory).kind {
            children.insert(name.into(), Child { node, layer });
        }
    }

    pub(crate) fn child(&self, directory: NodeId, name: &[u8]) -> Option<Child> {
        match &self.node(directory).kind {
            NodeKind::Directory(children) => children.get(name).copied(),
            NodeKind::File(_) | NodeKind::Symlink(_) | NodeKind::Skipped => None,
        }
    }

    pub(crate) fn is_directory(&self, id: NodeId) -> bool {
        matches!(self.node(id).kind, NodeKind::Directory(_))
    }

    /// Applies one entry of the layer numbered `layer`. Layers are numbered upwards from 0.
    pub(crate) fn apply(&mut self, layer: u32, entry: LayerEntry, limits: &Limits) -> Result<(), EntryError> {
        check_path(&entry.path, limits)?;
        let mut names: Vec<&[u8]> = split(&entry.path).collect();
        let Some(name) = names.pop() else {
            return self.apply_root(entry);
        };
        let parent = &*names.join(&b'/');
        if name == OPAQUE || name.starts_with(WHITEOUT) {
            return self.apply_whiteout(layer, parent, name);
        }
        let walk = self
            .walk_making(parent, layer, limits.path_depth)
            .map_err(|lost| entry_error(lost, parent, limits))?;
        if walk.way.len() > limits.path_depth {
            return Err(EntryError::TooDeep { limit: limits.path_depth });
        }
        let name: Box<[u8]> = name.into();
        self.place(layer, walk.here(), &name, entry)
    }

    fn apply_root(&mut self, entry: LayerEntry) -> Result<(), EntryError> {
        if entry.kind != EntryKind::Directory {
            return Err(EntryError::RootNotADirectory);
        }
        let root = self.node_mut(ROOT);
        (root.mode, root.mtime, root.xattrs) = (entry.mode, entry.mtime, entry.xattrs);
        Ok(())
    }

    fn place(
        &mut self,
        layer: u32,
        directory: NodeId,
        name: &[u8],
        entry: LayerEntry,
    ) -> Result<(), EntryError> {
        let LayerEntry { kind, mode, mtime, xattrs, .. } = entry;
        let kind = match kind {
            EntryKind::Directory => {
                if let Some(old) = self.child(directory, name).filter(|old| self.is_directory(old.node)) {
                    let node = self.node_mut(old.node);
                    (node.mode, node.mtime, node.xattrs) = (mode, mtime, xattrs);
                    self.set_child(directory, name, old.node, layer);
                    return Ok(());
                }
                NodeKind::Directory(BTreeMap::new())
            }
            EntryKind::File(content) => NodeKind::File(content),
            EntryKind::Symlink(target) => NodeKind::Symlink(target),
            EntryKind::Skipped => NodeKind::Skipped,
            EntryKind::HardLink(target) => {
                let node = self.link_target(&target)?;
                self.set_child(directory, name, node, layer);
                return Ok(());
            }
        };
        let node = self.add(Node { kind, mode, mtime, xattrs });
        self.set_child(directory, name, node, layer);
        Ok(())
    }

    /// The target of a hard link: parents are followed, the last name isn't, so a link to a dangling
    /// symbolic link is one more name of that link.
    fn link_target(&mut self, target: &[u8]) -> Result<NodeId, EntryError> {
        if split(target).any(|name| name == b"..") {
            return Err(EntryError::DotDot);
        }
        let mut walk = Walk::new(target, false);
        let Ok(Stop::Arrived) = walk.run(self) else {
            return Err(EntryError::HardLinkTarget(shown(target)));
        };
        let node = walk.here();
        if self.is_directory(node) {
            return Err(EntryError::HardLinkToDirectory(shown(target)));
        }
        Ok(node)
    }

    fn apply_whiteout(&mut self, layer: u32, parent: &[u8], name: &[u8]) -> Result<(), EntryError> {
        // A whiteout in a directory that isn't there hides nothing.
        let Ok(directory) = self.find(parent, true) else { return Ok(()) };
        if name == OPAQUE {
            self.hide_children(layer, directory);
            return Ok(());
        }
        if name.starts_with(AUFS_PRIVATE) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(EntryError::Whiteout);
        }
        if let Some(child) = self.child(directory, hidden)
            && !self.hide(layer, child)
            && let NodeKind::Directory(children) = &mut self.node_mut(directory).kind
        {
            children.remove(hidden);
        }
        Ok(())
    }

    /// Removes what lower layers brought to a directory; answers whether anything is left.
    fn hide_children(&mut self, layer: u32, directory: NodeId) -> bool {
        let NodeKind::Directory(children) = &mut self.node_mut(directory).kind else { return false };
        let mut children = std::mem::take(children);
        children.retain(|_, child| self.hide(layer, *child));
        let left = !children.is_empty();
        self.node_mut(directory).kind = NodeKind::Directory(children);
        left
    }

    /// Hides a name; answers whether it stays, because its layer is this one or something below it is.
    fn hide(&mut self, layer: u32, child: Child) -> bool {
        // Depth is bounded by `Limits::path_depth`, and so is this recursion.
        let below = self.is_directory(child.node) && self.hide_children(layer, child.node);
        below || child.layer == layer
    }
}

fn check_path(path: &[u8], limits: &Limits) -> Result<(), EntryError> {
    if path.len() > limits.path_bytes {
        return Err(EntryError::PathTooLong { bytes: path.len(), limit: limits.path_bytes });
    }
    if path.contains(&0) {
        return Err(EntryError::Nul);
    }
    let mut depth = 0;
    for name in split(path) {
        if name == b".." {
            return Err(EntryError::DotDot);
        }
        if name.len() > limits.name_bytes {
            return Err(EntryError::NameTooLong { bytes: name.len(), limit: limits.name_bytes });
        }
        depth += 1;
    }
    if depth > limits.path_depth {
        return Err(EntryError::TooDeep { limit: limits.path_depth });
    }
    Ok(())
}

fn entry_error(lost: Lost, parent: &[u8], limits: &Limits) -> EntryError {
    match lost {
        Lost::Missing | Lost::NotADirectory | Lost::NotAFile => EntryError::NotADirectory(shown(parent)),
        Lost::Loop => EntryError::SymlinkLoop,
        Lost::TooDeep => EntryError::TooDeep { limit: limits.path_depth },
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
