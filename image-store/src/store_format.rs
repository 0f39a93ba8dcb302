//! The store's format: its version, its folders, and why a store can't be used.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::objects::{ObjectError, Objects};
use crate::record::ImageId;
use crate::tree_format::TreeFormatError;

const FORMAT: &str = "{\"version\":1,\"algo\":\"sha256\"}\n";

/// Why the store itself can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file system refuses.
    #[error("use the image store \"{}\"", .path.display())]
    Access {
        /// The store's folder.
        path: PathBuf,
        /// What was refused.
        #[source]
        source: ObjectError,
    },
    /// Made by another version of this program.
    #[error("open the image store \"{}\": its format {found} is not known to this version", .path.display())]
    Format {
        /// The store's folder.
        path: PathBuf,
        /// What FORMAT says.
        found: String,
    },
    /// A folder that holds something else.
    #[error("make an image store in \"{}\": the folder is not empty and not a store", .0.display())]
    NotAStore(PathBuf),
    /// No such image.
    #[error("find image {0} in the store")]
    NoImage(String),
    /// The image's tree is damaged.
    #[error("load the tree of image {image}: remove the image and ingest it again")]
    Tree {
        /// The image.
        image: ImageId,
        /// What is wrong with it.
        #[source]
        source: TreeFormatError,
    },
    /// A document of the store is damaged.
    #[error("read {what} of image {image}: remove the image and ingest it again")]
    Document {
        /// Which document.
        what: &'static str,
        /// The image.
        image: ImageId,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// Someone holds the image.
    #[error("remove image {0}: it is in use")]
    InUse(ImageId),
    /// An ingest is under way, perhaps in another process.
    #[error("collect garbage: an image is being ingested")]
    Busy,
}

/// Makes the folders of a new store, or checks the version of an old one. FORMAT is written last, so a
/// half-made store has none; it holds nothing but our folders and is made anew.
pub(crate) fn prepare(root: &Path) -> Result<(), StoreError> {
    const FOLDERS: [&str; 9] =
        ["trees", "images", "refs", "ingest", "claims", "blobs", "layers", "parts", "grants"];
    let access = |source| StoreError::Access { path: root.to_path_buf(), source };
    let io = |error| access(ObjectError::of(root, error));
    match fs::read_to_string(root.join("FORMAT")) {
        Ok(found) if found == FORMAT => return Ok(()),
        Ok(found) => {
            let found = found.trim().escape_debug().take(80).collect();
            return Err(StoreError::Format { path: root.to_path_buf(), found });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(error)),
    }
    DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(io)?;
    let entries = fs::read_dir(root).map_err(io)?;
    let names: Vec<_> = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>().map_err(io)?;
    if names.iter().any(|name| name == "FORMAT") {
        // Somebody else has finished the store since we looked.
        return prepare(root);
    }
    let ours = |name: &str| FOLDERS.contains(&name) || name == "files" || name.starts_with(".FORMAT");
    if !names.iter().all(|name| name.to_str().is_some_and(ours)) {
        return Err(StoreError::NotAStore(root.to_path_buf()));
    }
    for folder in FOLDERS {
        DirBuilder::new().recursive(true).mode(0o700).create(root.join(folder)).map_err(io)?;
    }
    Objects::prepare(&root.join("files")).map_err(access)?;
    Objects::prepare(&root.join("blobs/sha256")).map_err(access)?;
    let temporary = root.join(format!(".FORMAT-{:016x}", fastrand::u64(..)));
    fs::write(&temporary, FORMAT).map_err(io)?;
    fs::rename(&temporary, root.join("FORMAT")).map_err(io)
}
