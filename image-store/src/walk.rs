//! Following paths in a tree: links are followed in the image's own root, `..` never leads above it, and
//! a path may be made where it is missing. No path of this machine is involved.

use std::collections::BTreeMap;

use crate::digest::Digest;
use crate::entry::Content;
use crate::tree::{Node, NodeId, NodeKind, ROOT, Tree};

/// As Linux: a name with more links than this on its way is a loop.
const SYMLINKS_MAX: u32 = 40;

/// Why a path leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lost {
    Missing,
    NotADirectory,
    NotAFile,
    Loop,
    TooDeep,
}

/// A path that is being followed.
pub(crate) struct Walk {
    /// Directories from the root to here, and what a path ends at.
    pub(crate) way: Vec<(Vec<u8>, NodeId)>,
    /// Names still to follow, the next one last.
    ahead: Vec<Vec<u8>>,
    follow_last: bool,
    links: u32,
}

pub(crate) enum Stop {
    Arrived,
    /// No such name; the walk goes on after [`Walk::enter`].
    Missing(Vec<u8>),
}

impl Walk {
    pub(crate) fn new(path: &[u8], follow_last: bool) -> Self {
        let ahead = split(path).rev().map(<[u8]>::to_vec).collect();
        Self { way: Vec::new(), ahead, follow_last, links: 0 }
    }

    pub(crate) fn here(&self) -> NodeId {
        self.way.last().map_or(ROOT, |(_, node)| *node)
    }

    /// The way so far, as an absolute path without links.
    pub(crate) fn path(&self) -> Vec<u8> {
        self.way.iter().flat_map(|(name, _)| [&b"/"[..], name]).flatten().copied().collect()
    }

    pub(crate) fn enter(&mut self, name: Vec<u8>, node: NodeId) {
        self.way.push((name, node));
    }

    pub(crate) fn run(&mut self, tree: &Tree) -> Result<Stop, Lost> {
        while let Some(name) = self.ahead.pop() {
            if !tree.is_directory(self.here()) {
                return Err(Lost::NotADirectory);
            }
            if name == b".." {
                self.way.pop();
                continue;
            }
            let Some(child) = tree.child(self.here(), &name) else { return Ok(Stop::Missing(name)) };
            match &tree.node(child.node).kind {
                NodeKind::Symlink(target) if self.follow_last || !self.ahead.is_empty() => {
                    self.links += 1;
                    if self.links > SYMLINKS_MAX {
                        return Err(Lost::Loop);
                    }
                    if target.starts_with(b"/") {
                        self.way.clear();
                    }
                    self.ahead.extend(split(target).rev().map(<[u8]>::to_vec));
                }
                _ => self.enter(name, child.node),
            }
        }
        Ok(Stop::Arrived)
    }
}

impl Tree {
    /// The node that `path` leads to in the image, as if the image were `/`.
    pub(crate) fn find(&self, path: &[u8], follow_last: bool) -> Result<NodeId, Lost> {
        let mut walk = Walk::new(path, follow_last);
        match walk.run(self)? {
            Stop::Arrived if self.node(walk.here()).kind == NodeKind::Skipped => Err(Lost::Missing),
            Stop::Arrived => Ok(walk.here()),
            Stop::Missing(_) => Err(Lost::Missing),
        }
    }

    /// Follows `path` and makes missing directories on it, as names of `layer`.
    pub(crate) fn walk_making(&mut self, path: &[u8], layer: u32, depth_max: usize) -> Result<Walk, Lost> {
        let mut walk = Walk::new(path, true);
        while let Stop::Missing(name) = walk.run(self)? {
            if walk.way.len() > depth_max {
                return Err(Lost::TooDeep);
            }
            let made = self.add(Node::directory(0o755));
            self.set_child(walk.here(), &name, made, layer);
            walk.enter(name, made);
        }
        if !self.is_directory(walk.here()) {
            return Err(Lost::NotADirectory);
        }
        Ok(walk)
    }

    /// Follows `path` to a directory and makes what is missing. Answers the path without links, and whether
    /// anything was missing.
    pub(crate) fn make_directory(&mut self, path: &[u8], depth_max: usize) -> Result<(Vec<u8>, bool), Lost> {
        let before = self.len();
        let walk = self.walk_making(path, u32::MAX, depth_max)?;
        Ok((walk.path(), self.len() > before))
    }

    /// Follows `path` to a regular file and makes an empty one (and directories) if nothing is there, also
    /// behind dangling symbolic links. Answers as [`Tree::make_directory`].
    pub(crate) fn make_file(&mut self, path: &[u8], depth_max: usize) -> Result<(Vec<u8>, bool), Lost> {
        let mut path = path.to_vec();
        for _ in 0..SYMLINKS_MAX {
            let mut names: Vec<&[u8]> = split(&path).collect();
            let name = names.pop().unwrap_or_default().to_vec();
            if name.is_empty() || name == b".." {
                return Err(Lost::NotAFile);
            }
            let parent = names.join(&b'/');
            let walk = self.walk_making(&parent, u32::MAX, depth_max)?;
            let resolved = [walk.path(), b"/".to_vec(), name.clone()].concat();
            let kind = self.child(walk.here(), &name).map(|child| &self.node(child.node).kind);
            match kind {
                Some(NodeKind::Symlink(target)) if target.starts_with(b"/") => path = target.to_vec(),
                Some(NodeKind::Symlink(target)) => path = [&parent, &b"/"[..], target].concat(),
                Some(NodeKind::File(_)) => return Ok((resolved, false)),
                Some(NodeKind::Directory(_)) => return Err(Lost::NotAFile),
                Some(NodeKind::Skipped) | None => {
                    let kind = NodeKind::File(Content { size: 0, digest: Digest::of(b"") });
                    let node = Node { kind, ..Node::directory(0o644) };
                    let node = self.add(node);
                    self.set_child(walk.here(), &name, node, u32::MAX);
                    return Ok((resolved, true));
                }
            }
        }
        Err(Lost::Loop)
    }

    /// A tree of nothing but what lies on the way to `paths`, which have no links in them.
    pub(crate) fn skeleton<'p>(&self, paths: impl Iterator<Item = &'p [u8]>) -> Self {
        let bare = |id: NodeId| {
            let Node { kind, mode, mtime, xattrs } = self.node(id);
            let kind = match kind {
                NodeKind::Directory(_) => NodeKind::Directory(BTreeMap::new()),
                other => other.clone(),
            };
            Node { kind, mode: *mode, mtime: *mtime, xattrs: xattrs.clone() }
        };
        let mut skeleton = Self::new();
        *skeleton.node_mut(ROOT) = bare(ROOT);
        for path in paths {
            let (mut here, mut there) = (ROOT, ROOT);
            for name in split(path) {
                let Some(child) = self.child(here, name) else { break };
                here = child.node;
                there = match skeleton.child(there, name) {
                    Some(known) => known.node,
                    None => {
                        let added = skeleton.add(bare(here));
                        skeleton.set_child(there, name, added, 0);
                        added
                    }
                };
            }
        }
        skeleton
    }
}

/// The names of a path, without empty ones and `.`.
pub(crate) fn split(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".")
}
