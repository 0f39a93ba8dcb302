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
use crate::mount_points::{self, MountPointError};
use crate::objects::ObjectError;
use crate::record::{ImageId, Record};
use crate::scratch::{self, Scratch};
use crate::store::Store;
use crate::store_format::StoreError;
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
    /// `lowerdir=<tree>::<objects>,userxattr`.
    DataOnly {
        /// Empty files with attributes that name objects.
        tree: PathBuf,
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
        let tree = trees.join(tree_name(&record, attach, readable_by_all));
        if !tree.is_dir() {
            let _hold = self.hold(image)?;
            self.write_tree(image, &record, attach, &trees, &tree, readable_by_all)?;
        }
        Ok(match attach {
            Attach::DataOnly => Root::DataOnly { tree, objects: self.files.path().to_path_buf() },
            Attach::Overlay => Root::Overlay { lowers: vec![tree] },
            Attach::Copy => Root::Copy { tree },
        })
    }

    fn write_tree(
        &self,
        image: &ImageId,
        record: &Record,
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
        let mut tree = self.tree(image, record)?.as_ref().clone();
        mount_points::ensure(&mut tree, &record.extra_directories)
            .map_err(|source| MaterialiseError::MountPoint { image: *image, source })?;
        DirBuilder::new().recursive(true).mode(0o700).create(trees).map_err(io)?;
        let _ = scratch::sweep(trees);
        let scratch = Scratch::create(trees).map_err(io)?;
        let contents = match attach {
            Attach::DataOnly => Contents::Redirect,
            Attach::Overlay | Attach::Copy => Contents::Copy,
        };
        let root = scratch.path().join("root");
        DirBuilder::new().mode(0o700).create(&root).map_err(io)?;
        TreeWriter::new(&tree, &self.files, contents, readable_by_all).write(&root).map_err(failed)?;
        match rustix::fs::rename(&root, target) {
            // Another process was quicker.
            Ok(()) | Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(()),
            Err(error) => Err(failed(ObjectError::of(target, error))),
        }
    }
}

/// The name says all that the tree depends on: layers, places made in it, form, modes.
fn tree_name(record: &Record, attach: Attach, readable_by_all: bool) -> String {
    let places = [&mount_points::MOUNT_POINTS[..], &mount_points::MOUNT_FILES[..]].concat().join("\n");
    let extra = record.extra_directories.join("\n");
    let made = Digest::of(format!("{WRITER_VERSION}\n{places}\n\n{extra}").as_bytes()).hex();
    let form = match attach {
        Attach::DataOnly => "data",
        Attach::Overlay | Attach::Copy => "full",
    };
    let readable = if readable_by_all { "-r" } else { "" };
    format!("{}-{}-{form}{readable}", record.chain.hex(), &made[..8])
}
