//! Carries out the steps of a plan, and decides nothing.
//!
//! Everything a step needs was turned into C strings ([`crate::prepare`]) before the clone; here are only system calls. First all sources on the host are opened, then the root is made, then everything is hung below it by
//! descriptor: no step sees the path of another, and no mount point on the host is needed.
//!
//! With privilege the *parent* opens the sources, as detached mounts, because the id inside may not reach them by
//! path (a store below somebody's 0700 home); the kernel then lets the child attach them.
//!
//! **Must not know:** what the mounts are for.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use crate::prepare::{LOCKED, MQUEUE, Place, Prepared, Source, SourceKind, Step};
use crate::sys::{self, MountAttributes};

/// A step that failed, by its place in the plan.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failed {
    pub(crate) step: usize,
    pub(crate) errno: Errno,
}

impl Prepared {
    /// Whether layers are to be shown as the container's own, so that it can write over what root has unpacked.
    pub(crate) fn is_writable_overlay(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Overlay { upper: Some(_), .. }))
    }

    /// Opens the sources from the parent, which has the privilege to make detached mounts of them; the layers below
    /// a writable one with the owners that `owners` maps, where their file system can do that.
    pub(crate) fn open_sources_detached(&mut self, owners: Option<BorrowedFd<'_>>) -> Result<(), Failed> {
        for source in &mut self.sources {
            let attributes = match source.kind {
                SourceKind::Mount(attributes) => attributes,
                SourceKind::Layer | SourceKind::UpperParent => LOCKED,
            };
            source.store(detached(&source.path, attributes))?;
            let (SourceKind::Layer, Some(owners), Some(layer)) = (source.kind, owners, &source.fd) else {
                continue;
            };
            if let Err(errno) = sys::mount_set_owners(layer.as_fd(), owners) {
                let layer = source.path.to_string_lossy();
                tracing::warn!(%layer, %errno, "no mapped owners here: root's files stay unwritable in the container");
            }
        }
        self.open_upper()
    }

    /// The descriptors that the child must not close.
    pub(crate) fn open_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let sources = self.sources.iter().filter_map(|source| source.fd.as_ref());
        sources.chain(&self.upper).chain(&self.work).map(OwnedFd::as_fd)
    }

    /// *Child*, before ids change: cuts the namespace off and opens what is not open.
    pub(crate) fn open_sources(&mut self) -> Result<(), Failed> {
        rustix::mount::mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(|errno| Failed { step: 0, errno })?;
        for source in &mut self.sources {
            if let Some(fd) = &source.fd {
                if matches!(source.kind, SourceKind::Layer | SourceKind::UpperParent) {
                    let attached = attach_at(fd, c"/dev");
                    attached.map_err(|errno| Failed { step: source.step, errno })?;
                }
            } else {
                source.store(match source.kind {
                    SourceKind::Mount(attributes) => detached(&source.path, attributes),
                    SourceKind::Layer | SourceKind::UpperParent => {
                        rustix::fs::open(&*source.path, folder(), Mode::empty())
                    }
                })?;
            }
        }
        self.open_upper()
    }

    /// Opens both writable folders through the mount of their parent, which overlayfs needs to be one.
    fn open_upper(&mut self) -> Result<(), Failed> {
        if self.upper.is_some() {
            return Ok(());
        }
        for (at, step) in self.steps.iter().enumerate() {
            let Step::Overlay { upper: Some((parent, upper, work)), .. } = step else { continue };
            let Some(parent) = &self.sources[*parent].fd else { continue };
            let open = |name: &CString| {
                rustix::fs::openat(parent, &**name, folder() | OFlags::NOFOLLOW, Mode::empty())
                    .map_err(|errno| Failed { step: at, errno })
            };
            self.upper = Some(open(upper)?);
            self.work = Some(open(work)?);
        }
        Ok(())
    }

    /// *Child*, with the container's ids: everything else, up to standing in the new root.
    pub(crate) fn apply(&mut self) -> Result<(), Failed> {
        for at in 0..self.steps.len() {
            self.step(at).map_err(|errno| Failed { step: at, errno })?;
        }
        Ok(())
    }

    fn step(&mut self, at: usize) -> Result<(), Errno> {
        match &self.steps[at] {
            Step::Private => Ok(()),
            Step::Overlay { lowers, data, .. } => {
                self.root = Some(self.overlay(lowers.clone(), *data)?);
                Ok(())
            }
            Step::RootBind { source } => {
                let root = self.sources[*source].fd.take().ok_or(Errno::NOENT)?;
                attach_at(&root, c"/")?;
                self.root = Some(root);
                Ok(())
            }
            Step::Dir { place, mode } => rustix::fs::mkdirat(self.parent_of(place)?, &*place.name, *mode),
            Step::File { place } => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::openat(self.parent_of(place)?, &*place.name, flags, Mode::from(0o644)).map(drop)
            }
            Step::Symlink { place, to } => rustix::fs::symlinkat(&**to, self.parent_of(place)?, &*place.name),
            Step::Mount { place, kind, options, attributes } => self.mount(place, kind, options, *attributes),
            Step::Bind { place, source } => self.bind(place, &self.sources[*source]),
            Step::ReadOnly { place } => {
                let set = MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into();
                let mount = self.resolve(&place.whole)?;
                sys::mount_setattr(mount.as_fd(), MountAttributes { set, ..MountAttributes::default() })
            }
            Step::Enter => self.enter(),
        }
    }

    fn mount(
        &self,
        place: &Place,
        kind: &CStr,
        options: &[(&'static CStr, CString)],
        attributes: MountAttrFlags,
    ) -> Result<(), Errno> {
        let target = self.resolve(&place.whole)?;
        let context = match rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC) {
            // A kernel without message queues: then there are none to be found.
            Err(Errno::NODEV) if kind == MQUEUE => return Ok(()),
            context => context?,
        };
        for (key, value) in options {
            rustix::mount::fsconfig_set_string(context.as_fd(), *key, &**value)?;
        }
        rustix::mount::fsconfig_create(context.as_fd())?;
        let mount = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        attach(&mount, &target)
    }

    fn bind(&self, place: &Place, source: &Source) -> Result<(), Errno> {
        let Some(mount) = &source.fd else { return Ok(()) };
        match self.resolve(&place.whole) {
            // An image may have a dangling link, or nothing, where an optional file would go.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) if source.optional => Ok(()),
            target => attach(mount, &target?),
        }
    }

    fn enter(&self) -> Result<(), Errno> {
        let root = self.root.as_ref().ok_or(Errno::NOENT)?;
        rustix::process::fchdir(root)?;
        // The old root lands on top of the new one and is taken away again, so no folder for it is needed.
        rustix::process::pivot_root(c".", c".")?;
        // Everything else of the host goes with it. One call, for each waits for all processors (0.1 ms).
        rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
        rustix::process::chdir(c"/")
    }

    /// Opens a place with every link inside taken relative to the new root.
    fn resolve(&self, path: &CString) -> Result<OwnedFd, Errno> {
        let root = self.root.as_ref().ok_or(Errno::NOENT)?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            let opened =
                rustix::fs::openat2(root, &**path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
            match opened {
                // The kernel gives up on a race with a rename elsewhere in the system and asks to try again.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    fn parent_of(&self, place: &Place) -> Result<OwnedFd, Errno> {
        self.resolve(&place.parent)
    }
}

impl Source {
    fn store(&mut self, opened: Result<OwnedFd, Errno>) -> Result<(), Failed> {
        match opened {
            Ok(fd) => self.fd = Some(fd),
            Err(Errno::NOENT | Errno::ACCESS | Errno::NOTDIR) if self.optional => {}
            Err(errno) => return Err(Failed { step: self.step, errno }),
        }
        Ok(())
    }

    pub(crate) fn number(&self) -> Result<u32, Errno> {
        self.fd.as_ref().map(number).ok_or(Errno::NOENT)
    }
}

pub(crate) fn number(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

pub(crate) fn folder() -> OFlags {
    OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC
}

/// A copy of what is mounted at `path`, attached nowhere, with `attributes` on all of it.
fn detached(path: &CString, attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let mount = rustix::mount::open_tree(CWD, &**path, flags)?;
    // A copy of a shared mount is shared too: without `private`, what is mounted on it would show on the host.
    let attributes = MountAttributes { set: attributes.bits().into(), private: true, recursive: true };
    sys::mount_setattr(mount.as_fd(), attributes)?;
    Ok(mount)
}

fn attach(mount: &OwnedFd, target: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", target, c"", flags)
}

/// Makes a mount part of this namespace, which overlayfs and pivot_root ask for. On `/`, our own root stays below it, so
/// no path changes its meaning; on `/dev`, of which nothing more is needed, it goes with the old root.
pub(crate) fn attach_at(mount: &OwnedFd, target: &CStr) -> Result<(), Errno> {
    rustix::mount::move_mount(mount, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}
