//! A file that has no name of its own yet. It goes when it is dropped, unless it is published.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How names of unfinished files begin; they are no objects.
pub(crate) const PREFIX: &str = ".latebind-";

/// A file under a name that nobody takes for an object's.
#[derive(Debug)]
pub(crate) struct Unfinished {
    path: PathBuf,
    file: Arc<File>,
    published: bool,
}

impl Unfinished {
    /// A new file in the folder of `target`. Blocks.
    pub(crate) fn beside(target: &Path) -> io::Result<Self> {
        let path = target.with_file_name(format!("{PREFIX}{:016x}.part", fastrand::u64(..)));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self { path, file: Arc::new(file), published: false })
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Makes the content durable, then gives it its name in one step. Blocks.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken and may not be `replace`d.
    pub(crate) fn publish(mut self, target: &Path, replace: bool) -> io::Result<()> {
        self.file.sync_all()?;
        if replace {
            std::fs::rename(&self.path, target)?;
            self.published = true;
        } else {
            // A link, unlike a rename, never replaces, on network file systems too; some others have no links.
            match std::fs::hard_link(&self.path, target) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    use rustix::fs::{CWD, RenameFlags, renameat_with};
                    renameat_with(CWD, &self.path, CWD, target, RenameFlags::NOREPLACE).map_err(|_| error)?;
                    self.published = true;
                }
                linked => linked?,
            }
        }
        sync_folder(target)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.published {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Makes a file's name durable. Blocks.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    match File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all() {
        // Not every file system can.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}
