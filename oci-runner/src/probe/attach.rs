//! Tries each way to attach an image, best first, on files of its own.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;

use crate::container::Rootfs;
use crate::error::StartError;
use crate::idmap::IdMap;
use crate::launch::try_out;
use crate::plan::plan_root_only;
use image_store::{Attach, Root};

const CONTENT: &[u8] = b"latebind attach probe\n";
const OBJECT: &str = "/ab/object";

/// One way tried.
#[derive(Debug)]
pub struct AttachTrial {
    /// Which way.
    pub attach: Attach,
    /// Whether an image attached so could be read.
    pub outcome: Result<(), StartError>,
}

/// Tries every way to attach images of `store` with their trees below `local`, best first: the first that is `Ok` is
/// the one to use. Both folders must exist and be writable.
pub fn probe_attach(store: &Path, local: &Path, ids: IdMap) -> Vec<AttachTrial> {
    let one = |attach: Attach| {
        let made = Ground::make(store).and_then(|store| Ok((store, Ground::make(local)?)));
        let outcome = made
            .and_then(|(store, local)| {
                let root = root(attach, &store, &local)?;
                Ok(try_root(&root, ids))
            })
            .unwrap_or_else(|source| {
                Err(StartError::Setup {
                    what: "make the probe's files in the store and local folders",
                    source,
                })
            });
        AttachTrial { attach, outcome }
    };
    [Attach::DataOnly, Attach::Overlay, Attach::Copy].map(one).into()
}

fn try_root(root: &Root, ids: IdMap) -> Result<(), StartError> {
    try_out(&plan_root_only(root, &Rootfs::ReadOnly)?, ids, c"/probe", CONTENT)
}

fn root(attach: Attach, store: &Ground, local: &Ground) -> io::Result<Root> {
    let tree = local.folder("tree")?;
    Ok(match attach {
        Attach::DataOnly => {
            let objects = store.folder("objects")?;
            fs::DirBuilder::new().mode(0o755).create(objects.join("ab"))?;
            write(&store.path.join(format!("objects{OBJECT}")), CONTENT)?;
            let file = tree.join("probe");
            write(&file, b"")?;
            fs::OpenOptions::new().write(true).open(&file)?.set_len(CONTENT.len() as u64)?;
            // The metadata layer of overlayfs.rst: "metadata only copy up" with a redirect into the data layer.
            rustix::fs::setxattr(&file, "user.overlay.metacopy", b"", XattrFlags::empty())?;
            rustix::fs::setxattr(&file, "user.overlay.redirect", OBJECT.as_bytes(), XattrFlags::empty())?;
            Root::DataOnly { lowers: vec![tree], objects }
        }
        Attach::Overlay => {
            let lower = store.folder("layer")?;
            write(&lower.join("probe"), CONTENT)?;
            Root::Overlay { lowers: vec![tree, lower] }
        }
        Attach::Copy => {
            write(&tree.join("probe"), CONTENT)?;
            Root::Copy { tree }
        }
    })
}

/// A folder of our own, removed when done.
#[derive(Debug)]
pub(super) struct Ground {
    path: PathBuf,
}

impl Ground {
    pub(super) fn make(below: &Path) -> io::Result<Self> {
        let pid = std::process::id();
        for attempt in 0..100 {
            let path = below.join(format!(".probe-{pid}-{attempt}"));
            // Open to all, because the container's id may be another.
            match fs::DirBuilder::new().mode(0o755).create(&path) {
                Ok(()) => {
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
                    return Ok(Self { path });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    pub(super) fn folder(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    pub(super) fn file(&self, name: &str, bytes: &[u8]) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        write(&path, bytes)?;
        Ok(path)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a probe's folder is left behind");
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(path, bytes)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}
