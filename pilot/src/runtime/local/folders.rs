//! The local backend's folders, and what a dead pilot left in them.
//!
//! ```text
//! <state-dir>/                          memory where possible: sockets and metadata only
//!   trees/                              image-store's materialised trees, shared by all pilots of this user
//!   pilots/<id>/lock                    locked while that pilot lives
//!   pilots/<id>/slots/<n>/control/      sock, ran/<launch id>
//! <scratch-dir>/
//!   pilots/<id>/slots/<n>/{work,out,in,upper,overlay}
//!   pilots/<id>/stages/<payload>/<output>
//! ```
//! `<id>` is random. A pilot is alive exactly while it holds its lock: no PID is compared, so a reused PID or another PID
//! namespace can't fool the sweep. Work, outputs, inputs and stages lie on one file system so that a stage is handed on
//! by hard link.
//!
//! **Must not know:** containers, sockets' messages, images.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use oci_runner::remove_tree;

/// Why the folders can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A folder can't be made.
    #[error("make folder {}", path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The folder belongs to another user, who could change what runs in it.
    #[error("use folder {}: it belongs to uid {owner}; name another with --{setting}", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The setting that chooses another.
        setting: &'static str,
    },
    /// A folder can't be removed.
    #[error("remove folder {}", path.display())]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The folders of one running pilot. Dropping it removes them.
#[derive(Debug)]
pub struct PilotFolders {
    id: String,
    state: PathBuf,
    scratch: PathBuf,
    shared: PathBuf,
    _lock: File,
}

/// The folders of one slot for one epoch.
#[derive(Clone, Debug)]
pub struct SlotFolders {
    /// Holds the pilot's socket and the launch markers; never mounted in the container.
    pub control: PathBuf,
    /// The payload's own folder, `/work`.
    pub work: PathBuf,
    /// `/stage/out`.
    pub out: PathBuf,
    /// `/.latebind/in`.
    pub inputs: PathBuf,
    /// Upper folder of a writable root.
    pub upper: PathBuf,
    /// Work folder of its overlay.
    pub overlay: PathBuf,
    state: PathBuf,
    /// The slot's folder on disk; a writable copy of an image lies here too.
    pub scratch: PathBuf,
}

/// What a sweep removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// IDs of pilots that died without tidying up.
    pub pilots: Vec<String>,
}

impl PilotFolders {
    /// Makes this pilot's folders, after removing those of pilots that are dead.
    ///
    /// # Errors
    /// When a folder can't be made or belongs to someone else.
    pub fn create(state_dir: &Path, scratch_dir: &Path, id: &str) -> Result<(Self, Swept), FolderError> {
        private_folder(state_dir, "state-dir")?;
        private_folder(scratch_dir, "scratch-dir")?;
        private_folder(&state_dir.join("pilots"), "state-dir")?;
        private_folder(&scratch_dir.join("pilots"), "scratch-dir")?;
        let swept = sweep(state_dir, scratch_dir);
        let state = state_dir.join("pilots").join(id);
        let scratch = scratch_dir.join("pilots").join(id);
        // Order matters to a sweep in another process: it skips a state folder without a lock file (being born), and takes a
        // scratch folder without a state folder (its machine has restarted). So state, lock, scratch.
        private_folder(&state, "state-dir")?;
        let lock =
            locked_file(&state).map_err(|source| FolderError::Make { path: state.join("lock"), source })?;
        private_folder(&scratch, "scratch-dir")?;
        Ok((Self { id: id.to_owned(), state, scratch, shared: state_dir.to_path_buf(), _lock: lock }, swept))
    }

    /// This pilot's ID; also the word in the names of its cgroups.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The state folder that all pilots of this user share; image-store puts its trees below it.
    #[must_use]
    pub fn shared(&self) -> &Path {
        &self.shared
    }

    /// The folder of a payload's committed file stages; made on demand.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn stages(&self, payload: &str) -> Result<PathBuf, FolderError> {
        let path = self.scratch.join("stages").join(payload);
        make(&path, 0o700)?;
        Ok(path)
    }

    /// Makes fresh folders for slot `index`. `foreign_uid` says that the payload has another host uid than the pilot: the
    /// folders that it writes are then open to all, behind our own closed ones. Folders for a writable root are made only
    /// when asked for: on a busy ext4 each costs a good part of a bind.
    ///
    /// # Errors
    /// When a folder can't be made.
    pub fn slot(
        &self,
        index: u32,
        foreign_uid: bool,
        writable_root: bool,
    ) -> Result<SlotFolders, FolderError> {
        let name = index.to_string();
        let (state, scratch) = (self.state.join("slots").join(&name), self.scratch.join("slots").join(&name));
        let slot = SlotFolders {
            control: state.join("control"),
            work: scratch.join("work"),
            out: scratch.join("out"),
            inputs: scratch.join("in"),
            upper: scratch.join("upper"),
            overlay: scratch.join("overlay"),
            state,
            scratch,
        };
        let open = if foreign_uid { 0o777 } else { 0o700 };
        for (path, mode) in [
            (&slot.control, if foreign_uid { 0o711 } else { 0o700 }),
            (&slot.control.join("ran"), open),
            (&slot.work, open),
            (&slot.out, open),
            (&slot.inputs, if foreign_uid { 0o755 } else { 0o700 }),
        ] {
            make(path, mode)?;
        }
        if writable_root {
            make(&slot.upper, if foreign_uid { 0o755 } else { 0o700 })?;
            make(&slot.overlay, open)?;
        }
        Ok(slot)
    }
}

impl SlotFolders {
    /// The folders on disk that the payload can write to.
    #[must_use]
    pub fn written(&self) -> [&Path; 3] {
        [&self.work, &self.out, &self.upper]
    }

    /// Removes the slot's folders and everything that a payload left in them.
    ///
    /// # Errors
    /// When something can't be removed: the slot is dirty then.
    pub fn remove(&self) -> Result<(), FolderError> {
        for path in [&self.state, &self.scratch] {
            remove_tree(path).map_err(|source| FolderError::Remove { path: path.clone(), source })?;
        }
        Ok(())
    }
}

impl Drop for PilotFolders {
    fn drop(&mut self) {
        for path in [&self.scratch, &self.state] {
            if let Err(error) = remove_tree(path) {
                tracing::warn!(path = %path.display(), %error, "a folder of this pilot is left behind");
            }
        }
    }
}

/// Makes `lock` so that nobody ever sees it unlocked while its pilot lives: locked first, named then.
fn locked_file(state: &Path) -> io::Result<File> {
    let unnamed = state.join("lock.new");
    let file = OpenOptions::new().create_new(true).write(true).open(&unnamed)?;
    file.lock()?;
    fs::rename(unnamed, state.join("lock"))?;
    Ok(file)
}

/// Removes the folders of pilots that no longer hold their lock.
fn sweep(state_dir: &Path, scratch_dir: &Path) -> Swept {
    let mut swept = Swept::default();
    let names = |root: &Path| -> Vec<String> {
        let entries = fs::read_dir(root.join("pilots")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let mut ids = names(state_dir);
    ids.extend(names(scratch_dir));
    ids.sort();
    ids.dedup();
    for id in ids {
        let state = state_dir.join("pilots").join(&id);
        // No lock file: either that pilot is being born, or the machine restarted and its memory is gone. A new-born has made its
        // state folder and nothing else, so a scratch folder without a state folder is dead for certain.
        let lock = match OpenOptions::new().write(true).open(state.join("lock")) {
            Ok(lock) => Some(lock),
            Err(_) if state.exists() => continue,
            Err(_) => None,
        };
        if lock.as_ref().is_some_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock))) {
            continue;
        }
        let gone = [scratch_dir.join("pilots").join(&id), state].iter().all(|path| remove_tree(path).is_ok());
        if gone {
            swept.pilots.push(id);
        }
    }
    swept
}

fn private_folder(path: &Path, setting: &'static str) -> Result<(), FolderError> {
    make(path, 0o700)?;
    let owner = fs::symlink_metadata(path)
        .map(|meta| std::os::unix::fs::MetadataExt::uid(&meta))
        .map_err(|source| FolderError::Make { path: path.to_owned(), source })?;
    if owner == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(FolderError::Foreign { path: path.to_owned(), owner, setting })
}

/// Makes a folder and its parents; the mode holds for the last one, whatever the umask.
fn make(path: &Path, mode: u32) -> Result<(), FolderError> {
    let made = || -> io::Result<()> {
        let existed = path.is_dir();
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        if existed { Ok(()) } else { fs::set_permissions(path, fs::Permissions::from_mode(mode)) }
    };
    made().map_err(|source| FolderError::Make { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::{PilotFolders, Swept};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_dead_pilots_folders_are_swept_and_a_living_ones_are_not() {
        let root = tempfile::tempdir().expect("tempdir");
        let (state, scratch) = (root.path().join("state"), root.path().join("scratch"));
        let (alive, _) = PilotFolders::create(&state, &scratch, "alive").expect("create");
        let (dead, _) = PilotFolders::create(&state, &scratch, "dead").expect("create");
        let slot = dead.slot(0, false, false).expect("slot");
        std::fs::create_dir(slot.work.join("closed")).expect("mkdir");
        std::fs::write(slot.work.join("closed/file"), b"x").expect("write");
        std::fs::set_permissions(slot.work.join("closed"), std::fs::Permissions::from_mode(0o0))
            .expect("chmod");
        // As after kill -9: the lock is gone with the process, the folders are not.
        let moved = std::mem::ManuallyDrop::new(dead);
        moved._lock.unlock().expect("unlock");
        let (_third, swept) = PilotFolders::create(&state, &scratch, "third").expect("create");
        assert_eq!(swept, Swept { pilots: vec!["dead".into()] });
        assert!(!state.join("pilots/dead").exists() && !scratch.join("pilots/dead").exists());
        assert!(state.join("pilots/alive").exists() && scratch.join("pilots/alive").exists());
        drop(alive);
        assert!(!state.join("pilots/alive").exists() && !scratch.join("pilots/alive").exists());
    }

    #[test]
    fn a_slots_folders_are_removed_with_what_was_left_in_them() {
        let root = tempfile::tempdir().expect("tempdir");
        let (pilot, _) =
            PilotFolders::create(&root.path().join("a"), &root.path().join("b"), "p").expect("create");
        let slot = pilot.slot(3, true, true).expect("slot");
        std::fs::create_dir_all(slot.overlay.join("work/work")).expect("mkdir");
        std::fs::set_permissions(slot.overlay.join("work/work"), std::fs::Permissions::from_mode(0o0))
            .expect("chmod");
        slot.remove().expect("remove");
        assert!(!slot.work.exists() && !slot.control.exists());
        slot.remove().expect("remove twice");
    }
}
