//! Writes a tree to a folder with several threads. Every name is created relative to an open directory, with
//! O_EXCL and O_NOFOLLOW, in a folder that only this process writes: nothing is ever followed.
//!
//! A directory is one job: its thread makes all entries in it, sets its time, and leaves its sub-directories
//! as jobs. Names of nodes with several names are made at the end by one thread, which knows the paths.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::entry::{Content, Mtime, shown};
use crate::objects::{ObjectError, Objects};
use crate::tree::{Node, NodeId, NodeKind, ROOT, Tree};

/// More threads than this only wait for the file system's locks.
const THREADS_MAX: usize = 8;

/// What files hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    /// Nothing but attributes that lead overlayfs to the object.
    Redirect,
    /// A copy of the object.
    Copy,
}

/// A tree on its way to a folder.
pub(crate) struct TreeWriter<'a> {
    pub(crate) tree: &'a Tree,
    objects: &'a Objects,
    contents: Contents,
    readable_by_all: bool,
    /// By node: whether it has several names.
    pub(crate) shared: Vec<bool>,
    no_reflink: AtomicBool,
    no_copy_range: AtomicBool,
}

/// A directory that is to be filled.
struct Job {
    parent: Arc<OwnedFd>,
    name: Box<[u8]>,
    node: NodeId,
}

/// Jobs and the number of those under way; with neither, the tree is done.
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    jobs: Vec<Job>,
    running: usize,
    error: Option<ObjectError>,
}

impl<'a> TreeWriter<'a> {
    pub(crate) fn new(
        tree: &'a Tree,
        objects: &'a Objects,
        contents: Contents,
        readable_by_all: bool,
    ) -> Self {
        let mut names = vec![0_u8; tree.len()];
        let mut open = vec![ROOT];
        while let Some(id) = open.pop() {
            for (_, child) in tree.children(id) {
                names[child as usize] = names[child as usize].saturating_add(1);
                open.push(child);
            }
        }
        let shared = names.into_iter().map(|names| names > 1).collect();
        let (no_reflink, no_copy_range) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { tree, objects, contents, readable_by_all, shared, no_reflink, no_copy_range }
    }

    /// Fills the empty folder `root`.
    pub(crate) fn write(&self, root: &Path) -> Result<(), ObjectError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root_fd = rustix::fs::open(root, flags, Mode::empty()).map_err(|e| ObjectError::of(root, e))?;
        let root_fd = Arc::new(root_fd);
        let mut state = QueueState::default();
        let fail = |name: &[u8], error| at(name, error);
        self.fill(&root_fd, ROOT, &mut state.jobs).map_err(|(name, error)| fail(&name, error))?;
        let queue = Queue { state: Mutex::new(state), changed: Condvar::new() };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|| self.work(&queue));
            }
            self.work(&queue);
        });
        let state = queue.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = state.error {
            return Err(error);
        }
        self.write_shared(&root_fd)
    }

    /// Takes jobs, deepest first (which bounds the open descriptors), until there are none and none can come.
    fn work(&self, queue: &Queue) {
        let mut children = Vec::new();
        let mut state = queue.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.error.is_some() || (state.jobs.is_empty() && state.running == 0) {
                queue.changed.notify_all();
                return;
            }
            let Some(job) = state.jobs.pop() else {
                state = queue.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.running += 1;
            drop(state);
            let result = self.fill_job(&job, &mut children);
            drop(job);
            state = queue.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.running -= 1;
            if !children.is_empty() {
                queue.changed.notify_all();
            }
            state.jobs.append(&mut children);
            if let Err((name, error)) = result {
                state.error.get_or_insert(at(&name, error));
            }
        }
    }

    fn fill_job(&self, job: &Job, jobs: &mut Vec<Job>) -> Result<(), (Box<[u8]>, WriteError)> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let dir = rustix::fs::openat(&job.parent, &*job.name, flags, Mode::empty())
            .map_err(|error| (job.name.clone(), error.into()))?;
        self.fill(&Arc::new(dir), job.node, jobs)
    }

    fn fill(
        &self,
        dir: &Arc<OwnedFd>,
        id: NodeId,
        jobs: &mut Vec<Job>,
    ) -> Result<(), (Box<[u8]>, WriteError)> {
        for (name, child) in self.tree.children(id) {
            let node = self.tree.node(child);
            let made = match &node.kind {
                NodeKind::Directory(_) => {
                    jobs.push(Job { parent: Arc::clone(dir), name: name.into(), node: child });
                    rustix::fs::mkdirat(dir, name, Mode::RWXU).map_err(WriteError::from)
                }
                _ if self.shared[child as usize] => Ok(()),
                _ => self.make(dir, name, node),
            };
            made.map_err(|error| (name.into(), error))?;
        }
        self.finish_directory(dir, self.tree.node(id)).map_err(|error| (Box::from(&b"."[..]), error))
    }

    pub(crate) fn finish_directory(&self, dir: &OwnedFd, node: &Node) -> Result<(), WriteError> {
        set_xattrs(dir, node)?;
        rustix::fs::fchmod(dir, self.mode(node))?;
        rustix::fs::futimens(dir, &times(node.mtime))?;
        Ok(())
    }

    /// Makes what isn't a directory.
    pub(crate) fn make(&self, dir: &OwnedFd, name: &[u8], node: &Node) -> Result<(), WriteError> {
        match &node.kind {
            NodeKind::File(content) => self.make_file(dir, name, node, content),
            NodeKind::Symlink(target) => {
                rustix::fs::symlinkat(&**target, dir, name)?;
                Ok(rustix::fs::utimensat(dir, name, &times(node.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
            }
            NodeKind::Directory(_) | NodeKind::Skipped => Ok(()),
        }
    }

    fn make_file(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        node: &Node,
        content: &Content,
    ) -> Result<(), WriteError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
        if content.size > 0 {
            match self.contents {
                Contents::Redirect => {
                    rustix::fs::ftruncate(&file, content.size)?;
                    let redirect = format!("/{}", Objects::name(&content.digest));
                    rustix::fs::fsetxattr(&file, "user.overlay.metacopy", b"", XattrFlags::empty())?;
                    let flags = XattrFlags::empty();
                    rustix::fs::fsetxattr(&file, "user.overlay.redirect", redirect.as_bytes(), flags)?;
                }
                Contents::Copy => self.copy(&file, content)?,
            }
        }
        set_xattrs(&file, node)?;
        rustix::fs::fchmod(&file, self.mode(node))?;
        Ok(rustix::fs::futimens(&file, &times(node.mtime))?)
    }

    /// By reflink, else inside the kernel, else through a buffer; what a file system refused once isn't tried
    /// again.
    fn copy(&self, file: &OwnedFd, content: &Content) -> Result<(), WriteError> {
        let object = self.objects.open_object(&content.digest, Some(content.size))?;
        if !self.no_reflink.load(Ordering::Relaxed) {
            if rustix::fs::ioctl_ficlone(file, &object).is_ok() {
                return Ok(());
            }
            self.no_reflink.store(true, Ordering::Relaxed);
        }
        let mut copied = 0;
        while copied < content.size && !self.no_copy_range.load(Ordering::Relaxed) {
            let most = usize::try_from(content.size - copied).unwrap_or(usize::MAX).min(1 << 30);
            match rustix::fs::copy_file_range(&object, None, file, None, most) {
                Ok(0) => return Err(ObjectError::Corrupt(content.digest).into()),
                Ok(bytes) => copied += bytes as u64,
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    self.no_copy_range.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if copied < content.size {
            copied += copy_through_buffer(object, file)?;
        }
        if copied == content.size { Ok(()) } else { Err(ObjectError::Corrupt(content.digest).into()) }
    }

    fn mode(&self, node: &Node) -> Mode {
        let mut mode = node.mode;
        if self.readable_by_all {
            let executable = matches!(node.kind, NodeKind::Directory(_)) || mode & 0o100 != 0;
            mode |= if executable { 0o055 } else { 0o044 };
        }
        Mode::from_raw_mode(mode)
    }
}

/// An error of the kernel, or of the store.
pub(crate) enum WriteError {
    Kernel(Errno),
    Object(ObjectError),
}

impl From<Errno> for WriteError {
    fn from(error: Errno) -> Self {
        Self::Kernel(error)
    }
}

impl From<ObjectError> for WriteError {
    fn from(error: ObjectError) -> Self {
        Self::Object(error)
    }
}

pub(crate) fn at(name: &[u8], error: WriteError) -> ObjectError {
    match error {
        WriteError::Kernel(error) => ObjectError::of(Path::new(&shown(name)), error),
        WriteError::Object(error) => error,
    }
}

fn set_xattrs(fd: &OwnedFd, node: &Node) -> Result<(), WriteError> {
    for xattr in &node.xattrs {
        match rustix::fs::fsetxattr(fd, &*xattr.name, &xattr.value, XattrFlags::empty()) {
            // An attribute that the file system can't hold (none at all, or too long) is not worth an image.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::TOOBIG | Errno::NOSPC | Errno::RANGE) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

const fn times(mtime: Mtime) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds as _ };
    Timestamps { last_access: time, last_modification: time }
}

fn copy_through_buffer(mut object: File, file: &OwnedFd) -> Result<u64, WriteError> {
    let io = |error: std::io::Error| {
        WriteError::Kernel(error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
    };
    let mut target = File::from(file.try_clone().map_err(io)?);
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        let read = object.read(&mut buffer).map_err(io)?;
        if read == 0 {
            return Ok(total);
        }
        target.write_all(&buffer[..read]).map_err(io)?;
        total += read as u64;
    }
}
