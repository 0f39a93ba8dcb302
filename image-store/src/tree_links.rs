//! The last step of writing a tree: files with several names. One thread makes them, because it has to know
//! the path of each first name.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};

use crate::objects::ObjectError;
use crate::tree::{Node, NodeId, NodeKind, ROOT};
use crate::tree_writer::{TreeWriter, WriteError, at};

impl TreeWriter<'_> {
    /// Makes the nodes that have several names, then those names.
    pub(crate) fn write_shared(&self, root: &OwnedFd) -> Result<(), ObjectError> {
        if !self.shared.contains(&true) {
            return Ok(());
        }
        let mut first: Vec<Option<Vec<u8>>> = vec![None; self.shared.len()];
        let mut open: Vec<(NodeId, Vec<u8>)> = vec![(ROOT, Vec::new())];
        while let Some((id, path)) = open.pop() {
            let mut touched = None;
            for (name, child) in self.tree.children(id) {
                let node = self.tree.node(child);
                let child_path = [&path, name].join(&b'/');
                if matches!(node.kind, NodeKind::Directory(_)) {
                    open.push((child, child_path));
                } else if self.shared[child as usize] {
                    let result = self.make_shared(root, &path, name, node, first[child as usize].as_deref());
                    touched = Some(result.map_err(|error| at(&child_path, error))?);
                    first[child as usize].get_or_insert(child_path);
                }
            }
            if let Some(dir) = touched {
                self.finish_directory(&dir, self.tree.node(id)).map_err(|error| at(&path, error))?;
            }
        }
        Ok(())
    }

    /// Answers the directory that has one more name.
    fn make_shared(
        &self,
        root: &OwnedFd,
        parent: &[u8],
        name: &[u8],
        node: &Node,
        first: Option<&[u8]>,
    ) -> Result<OwnedFd, WriteError> {
        let dir = open_beneath(root, parent)?;
        match first {
            None => self.make(&dir, name, node)?,
            Some(first) => {
                let slash = first.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                let first_dir = open_beneath(root, &first[..slash])?;
                rustix::fs::linkat(&first_dir, &first[slash + 1..], &dir, name, AtFlags::empty())?;
            }
        }
        Ok(dir)
    }
}

/// A directory by its path from the root. Paths may be longer than the kernel takes at once.
fn open_beneath(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, WriteError> {
    const PIECE_BYTES: usize = 2048;
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let mut dir = rustix::io::fcntl_dupfd_cloexec(root, 0)?;
    let mut piece: Vec<u8> = Vec::new();
    let mut names = crate::walk::split(path).peekable();
    while let Some(name) = names.next() {
        piece.extend_from_slice(name);
        if names.peek().is_none() || piece.len() > PIECE_BYTES {
            dir = rustix::fs::openat2(dir.as_fd(), &*piece, flags, Mode::empty(), resolve)?;
            piece.clear();
        } else {
            piece.push(b'/');
        }
    }
    Ok(dir)
}
