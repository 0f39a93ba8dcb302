//! What has no name of its own yet, in a folder that is the user's. It goes when it is dropped, unless it is published; when
//! its maker was killed, whoever comes next to that folder removes it ([`sweep`]).
//!
//! Its maker holds a lock on it (`flock(2)`), which death lets go of: so the two are told apart on any machine that shares
//! the folder, without clocks. Where a file system has no locks, nothing is swept.
//!
//! **Must not know:** what it will be.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

/// How names of unfinished files begin; they are no objects.
pub(crate) const PREFIX: &str = ".latebind-";
const SUFFIX: &str = ".part";

/// How often a name is tried again that a sweep took away between its making and its lock.
const TRIES: usize = 8;

/// A name beside `target` that nobody takes for an object's.
#[must_use]
pub fn beside(target: &Path) -> PathBuf {
    target.with_file_name(format!("{PREFIX}{:016x}{SUFFIX}", fastrand::u64(..)))
}

/// Locks what has such a name, or will get one, as long as `file` is open. That a file system has no locks is no error:
/// there nobody sweeps.
pub fn hold(file: &File) {
    let _ = file.try_lock();
}

/// Makes and holds what has such a name.
///
/// # Errors
/// Those of `make` and `open`.
pub fn make(
    target: &Path,
    make: impl Fn(&Path) -> io::Result<()>,
    open: impl Fn(&Path) -> io::Result<File>,
) -> io::Result<(PathBuf, File)> {
    let mut tries = TRIES;
    loop {
        let path = beside(target);
        make(&path)?;
        let file = match open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries > 0 => None,
            opened => Some(opened?),
        };
        if let Some(file) = file {
            hold(&file);
            // Nobody removes it any more; somebody may have done so before it was locked.
            if tries == 0 || std::fs::symlink_metadata(&path).is_ok() {
                return Ok((path, file));
            }
        }
        tries -= 1;
    }
}

/// Removes from a folder what nobody finishes any more; gives how much that was. Blocks.
pub fn sweep(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let unfinished = entries.filter(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
    });
    unfinished.filter(|entry| is_left(&entry.path()) && remove(&entry.path()).is_ok()).count()
}

/// Whether nobody holds it. What can't be opened or locked is not ours to remove.
fn is_left(path: &Path) -> bool {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    // Over NFS a lock needs a file that is open for writing; a folder can't be.
    let open =
        |write| OpenOptions::new().read(true).write(write).custom_flags(flags.cast_signed()).open(path);
    let Ok(file) = open(true).or_else(|_| open(false)) else { return false };
    let own = file.metadata().is_ok_and(|meta| {
        (meta.is_file() || meta.is_dir()) && meta.uid() == rustix::process::geteuid().as_raw()
    });
    // The lock goes with `file`, and nobody else takes such a name up again.
    own && match file.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => false,
    }
}

fn remove(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path).or_else(|_| std::fs::remove_dir_all(path))
}

/// A file under a name that nobody takes for an object's.
#[derive(Debug)]
pub struct Unfinished {
    path: PathBuf,
    file: Arc<File>,
    published: bool,
}

impl Unfinished {
    /// A new file in the folder of `target`. Blocks.
    ///
    /// # Errors
    /// When it can't be made there.
    pub fn beside(target: &Path) -> io::Result<Self> {
        let new = |path: &Path| File::create_new(path).map(drop);
        let (path, file) = make(target, new, |path| OpenOptions::new().read(true).write(true).open(path))?;
        Ok(Self { path, file: Arc::new(file), published: false })
    }

    /// What is to be written.
    #[must_use]
    pub const fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Makes the content durable, then gives it its name in one step. Blocks.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken and may not be `replace`d.
    pub fn publish(mut self, target: &Path, replace: bool) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_holds_is_swept_and_nothing_else_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path(".latebind-dead.part"), "half").expect("a file");
        std::fs::create_dir_all(path(".latebind-folder.part/copy")).expect("a folder");
        std::fs::write(path(".latebind-folder.part/copy/f"), "half").expect("a file");
        for kept in [".latebind-other", "latebind-.part", "result"] {
            std::fs::write(path(kept), "mine").expect("a file");
        }
        std::os::unix::fs::symlink(path("result"), path(".latebind-link.part")).expect("a link");
        let alive = Unfinished::beside(&path("alive")).expect("a file");
        assert_eq!(sweep(folder.path()), 2);
        assert!(alive.path.exists());
        let mut left: Vec<_> = std::fs::read_dir(folder.path())
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        left.retain(|name| *name != alive.path.file_name().expect("a name"));
        left.sort();
        assert_eq!(left, [".latebind-link.part", ".latebind-other", "latebind-.part", "result"]);
        alive.publish(&path("alive"), false).expect("published");
        assert!(path("alive").exists());
        assert_eq!(sweep(&path("missing")), 0);
    }

    /// Two that sweep while others make: whoever makes keeps what was made.
    #[test]
    fn a_sweep_beside_a_maker_costs_it_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    sweep(folder.path());
                }
            });
            for round in 0..500 {
                let target = folder.path().join(format!("{round}"));
                let made = Unfinished::beside(&target).and_then(|made| made.publish(&target, round % 2 == 0));
                made.unwrap_or_else(|error| panic!("round {round}: {error}"));
                assert!(target.exists());
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
