//! Makes a stored image's tree visible in a local folder, in the form that a runner can mount or bind. Mounts
//! nothing itself and knows no namespaces.
//!
//! - **data-only**: every file is an empty inode with the right size, mode and time, and two attributes
//!   (`user.overlay.metacopy`, `user.overlay.redirect`) that lead overlayfs to the object. No content is
//!   copied. Needs Linux 6.16 to be mounted without privilege, and user attributes on the local folder.
//! - **overlay** and **copy**: a plain tree with all contents, reflinked where the file system can.
//!
//! A tree appears by rename when it is finished; of two processes that make it, one's is kept. Making it
//! again is one look at its name.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::digest::Digest;
use crate::mount_points::{self, MountPoint, MountPointError, Place};
use crate::objects::ObjectError;
use crate::record::{ImageId, Record};
use crate::scratch::{self, Scratch};
use crate::store::Store;
use crate::store_format::StoreError;
use crate::tree::Tree;
use crate::tree_writer::{Contents, TreeWriter};

/// Part of a tree's name that changes when the way of writing trees does.
const WRITER_VERSION: u32 = 1;

/// How a root file system is put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Attach {
    /// Overlay with a data-only lower layer.
    DataOnly,
    /// Overlay over unpacked trees.
    Overlay,
    /// A plain tree.
    Copy,
}

/// A root file system that a runner can mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// `lowerdir=<lowers joined by :>::<objects>,userxattr`.
    DataOnly {
        /// Trees of empty files with attributes that name objects, topmost first.
        lowers: Vec<PathBuf>,
        /// The store's `files` folder.
        objects: PathBuf,
    },
    /// `lowerdir=<lowers joined by :>`.
    Overlay {
        /// Trees, topmost first.
        lowers: Vec<PathBuf>,
    },
    /// A plain tree to be bound read-only; all slots share it.
    Copy {
        /// The tree.
        tree: PathBuf,
    },
}

/// Why a tree could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MaterialiseError {
    /// The image isn't stored, or its tree is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A place that must be mounted over can't be.
    #[error("make the tree of image {image}")]
    MountPoint {
        /// The image.
        image: ImageId,
        /// Which place and why.
        #[source]
        source: MountPointError,
    },
    /// The local folder has no user attributes (tmpfs before Linux 6.6, some network file systems).
    #[error("make a data-only tree in \"{}\": its file system has no user attributes", .0.display())]
    NoAttributes(PathBuf),
    /// The local folder can't be written, or an object can't be read.
    #[error("make the tree of image {image} in \"{}\"", .local.display())]
    Write {
        /// The image.
        image: ImageId,
        /// The local folder.
        local: PathBuf,
        /// What was refused.
        #[source]
        source: ObjectError,
    },
}

impl Store {
    /// Makes an image's tree in `local`/trees unless it is there.
    ///
    /// `readable_by_all` lets every user read what the owner can: needed when the payload's host uid is
    /// another than the pilot's.
    ///
    /// # Errors
    /// [`MaterialiseError`]; nothing is left in `local` then.
    pub fn materialise(
        &self,
        image: &ImageId,
        attach: Attach,
        local: &Path,
        readable_by_all: bool,
    ) -> Result<Root, MaterialiseError> {
        let record = self.record(image)?;
        let trees = local.join("trees");
        let tree = trees.join(tree_name(&record, form(attach), readable_by_all, &[]));
        if !tree.is_dir() {
            let (content, _) = self.mountable(image, &record, &[])?;
            self.write_tree(image, &content, attach, &trees, &tree, readable_by_all)?;
        }
        Ok(self.root(attach, tree))
    }

    /// As [`Store::materialise`], with `places` to mount over as well; says where each of them is. The tree that all slots
    /// share never changes: what the image lacks is made in a small layer on top, or for copies in another tree.
    ///
    /// # Errors
    /// [`MaterialiseError`]; nothing is left in `local` then.
    pub fn materialise_with(
        &self,
        image: &ImageId,
        attach: Attach,
        local: &Path,
        readable_by_all: bool,
        places: &[Place],
    ) -> Result<(Root, Vec<MountPoint>), MaterialiseError> {
        let record = self.record(image)?;
        let (content, points) = self.mountable(image, &record, places)?;
        let lacking: Vec<&MountPoint> = points.iter().filter(|point| point.made).collect();
        if lacking.is_empty() {
            return Ok((self.materialise(image, attach, local, readable_by_all)?, points));
        }
        let trees = local.join("trees");
        let name = if attach == Attach::Copy { form(attach) } else { "top" };
        let tree = trees.join(tree_name(&record, name, readable_by_all, &lacking));
        let way = || content.skeleton(lacking.iter().map(|point| point.resolved.as_bytes()));
        if !tree.is_dir() {
            let content = if attach == Attach::Copy { &content } else { &way() };
            self.write_tree(image, content, attach, &trees, &tree, readable_by_all)?;
        }
        let mut root = match attach {
            Attach::Copy => return Ok((self.root(attach, tree), points)),
            Attach::DataOnly | Attach::Overlay => self.materialise(image, attach, local, readable_by_all)?,
        };
        if let Root::DataOnly { lowers, .. } | Root::Overlay { lowers } = &mut root {
            lowers.insert(0, tree);
        }
        Ok((root, points))
    }

    /// The image's tree with all that is mounted over.
    fn mountable(
        &self,
        image: &ImageId,
        record: &Record,
        places: &[Place],
    ) -> Result<(Tree, Vec<MountPoint>), MaterialiseError> {
        let mut tree = self.tree(image, record)?.as_ref().clone();
        let made = mount_points::ensure(&mut tree, &record.extra_directories)
            .and_then(|_| mount_points::ensure_places(&mut tree, places));
        let points = made.map_err(|source| MaterialiseError::MountPoint { image: *image, source })?;
        Ok((tree, points))
    }

    fn root(&self, attach: Attach, tree: PathBuf) -> Root {
        match attach {
            Attach::DataOnly => {
                Root::DataOnly { lowers: vec![tree], objects: self.files.path().to_path_buf() }
            }
            Attach::Overlay => Root::Overlay { lowers: vec![tree] },
            Attach::Copy => Root::Copy { tree },
        }
    }

    fn write_tree(
        &self,
        image: &ImageId,
        tree: &Tree,
        attach: Attach,
        trees: &Path,
        target: &Path,
        readable_by_all: bool,
    ) -> Result<(), MaterialiseError> {
        let failed = |source| match source {
            ObjectError::Io { source, .. }
                if source.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) =>
            {
                MaterialiseError::NoAttributes(trees.to_path_buf())
            }
            source => MaterialiseError::Write { image: *image, local: trees.to_path_buf(), source },
        };
        let io = |error: std::io::Error| failed(ObjectError::of(trees, error));
        let _hold = self.hold(image)?;
        DirBuilder::new().recursive(true).mode(0o700).create(trees).map_err(io)?;
        let _ = scratch::sweep(trees);
        let scratch = Scratch::create(trees).map_err(io)?;
        let contents = match attach {
            Attach::DataOnly => Contents::Redirect,
            Attach::Overlay | Attach::Copy => Contents::Copy,
        };
        let root = scratch.path().join("root");
        DirBuilder::new().mode(0o700).create(&root).map_err(io)?;
        TreeWriter::new(tree, &self.files, contents, readable_by_all).write(&root).map_err(failed)?;
        match rustix::fs::rename(&root, target) {
            // Another process was quicker.
            Ok(()) | Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(()),
            Err(error) => Err(failed(ObjectError::of(target, error))),
        }
    }
}

/// How a tree of this kind is written.
fn form(attach: Attach) -> &'static str {
    match attach {
        Attach::DataOnly => "data",
        Attach::Overlay | Attach::Copy => "full",
    }
}

/// The name says all that the tree depends on: layers, places made in it, form, modes.
fn tree_name(record: &Record, form: &str, readable_by_all: bool, more: &[&MountPoint]) -> String {
    let places = [&mount_points::MOUNT_POINTS[..], &mount_points::MOUNT_FILES[..]].concat().join("\n");
    let extra = record.extra_directories.join("\n");
    let mut made = format!("{WRITER_VERSION}\n{places}\n\n{extra}");
    for point in more {
        made.push_str(&format!("\n{} {:?}", point.file, point.resolved));
    }
    let made = Digest::of(made.as_bytes()).hex();
    let readable = if readable_by_all { "-r" } else { "" };
    // Places of a user's choosing must not meet by chance.
    let length = if more.is_empty() { 8 } else { 32 };
    format!("{}-{}-{form}{readable}", record.chain.hex(), &made[..length])
}
