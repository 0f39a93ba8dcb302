//! The local backend's folders, and what a dead pilot left in them.
//!
//! ```text
//! <state-dir>/                          memory where possible: sockets and metadata only
//!   trees/                              image-store's materialised trees, shared by all pilots of this user
//!   pilots/<id>/lock                    locked while that pilot lives
//!   pilots/<id>/serves                  there when its payloads may outlive it: only a pilot of that name may tidy up
//!   pilots/<id>/slots/<n>/control/      sock, ran/<launch id>
//!   pilots/<id>/slots/<n>/{stdout,stderr,record,keeping}
//! <scratch-dir>/
//!   objects/                            fetched objects, shared by all pilots of this user
//!   pilots/<id>/serves
//!   pilots/<id>/slots/<n>/{work,out,in,upper,overlay}
//!   pilots/<id>/stages/<workflow>/<payload>/<output>
//!   pilots/<id>/stages/.spill/          stages that are just leaving memory
//!   pilots/<id>/pipes/<workflow>:<payload>:<output>
//! ```
//! `<id>` is random, or the name of a pilot that serves a spool and may come back. A pilot is alive exactly while it holds
//! its lock: no PID is compared, so a reused PID or another PID namespace can't fool the sweep. Work, outputs, inputs and stages lie on one file system so that a stage is handed on
//! by hard link.
//!
//! **Must not know:** containers, sockets' messages, images.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_runner::remove_tree;

use crate::runtime::stages::{left_far, prune};

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
    /// A pilot of that name lives.
    #[error(
        "serve as \"{name}\": a pilot of that name is running already; stop it, or choose another --name"
    )]
    Taken {
        /// The name.
        name: String,
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

/// What a pilot was forking when it was killed has its lock (flock(2)) until it executes its program, or sees that it is alone:
/// for so long the next one tries to get it.
const FORKED_TRIES: u32 = 40;
const FORKED_PAUSE: Duration = Duration::from_millis(50);

/// The folders of one running pilot. Dropping it removes them.
#[derive(Debug)]
pub struct PilotFolders {
    id: String,
    state: PathBuf,
    scratch: PathBuf,
    shared: PathBuf,
    /// Stages of unfinished runs stay for the next pilot of this name.
    serves: bool,
    new: bool,
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
    /// The FIFOs of the payload's standard output and error.
    pub streams: [PathBuf; 2],
    /// What another pilot must know to adopt what runs here.
    pub record: PathBuf,
    /// There from when the outputs of what was launched are first touched: what is not in `out` then was not forgotten by
    /// its payload.
    pub keeping: PathBuf,
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
    /// What their stages may have left in an object store.
    pub far: Vec<objects::ObjectUrl>,
}

impl PilotFolders {
    /// Makes this pilot's folders, after removing those of pilots that are dead.
    ///
    /// # Errors
    /// When a folder can't be made or belongs to someone else.
    pub fn create(state_dir: &Path, scratch_dir: &Path, id: &str) -> Result<(Self, Swept), FolderError> {
        let (state, scratch, swept) = places(state_dir, scratch_dir, id)?;
        // Order matters to a sweep in another process: it skips a state folder without a lock file (being born), and takes a
        // scratch folder without a state folder (its machine has restarted). So state, lock, scratch.
        private_folder(&state, "state-dir")?;
        let lock =
            locked_file(&state).map_err(|source| FolderError::Make { path: state.join("lock"), source })?;
        private_folder(&scratch, "scratch-dir")?;
        let shared = state_dir.to_path_buf();
        Ok((Self { id: id.to_owned(), state, scratch, shared, serves: false, new: true, _lock: lock }, swept))
    }

    /// Takes the folders of the pilot called `name`, with what a pilot of that name left in them.
    ///
    /// # Errors
    /// When one of that name lives, or a folder can't be made or belongs to someone else.
    pub fn take(state_dir: &Path, scratch_dir: &Path, name: &str) -> Result<(Self, Swept), FolderError> {
        let (state, scratch, swept) = places(state_dir, scratch_dir, name)?;
        let new = !state.join(SERVES).exists();
        private_folder(&state, "state-dir")?;
        let path = state.join("lock");
        let fail = |source| FolderError::Make { path: path.clone(), source };
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(fail)?;
        let mut tries = FORKED_TRIES;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if tries > 0 => std::thread::sleep(FORKED_PAUSE),
                Err(TryLockError::WouldBlock) => return Err(FolderError::Taken { name: name.to_owned() }),
                Err(TryLockError::Error(source)) => return Err(fail(source)),
            }
            tries -= 1;
        }
        private_folder(&scratch, "scratch-dir")?;
        for folder in [&state, &scratch] {
            let path = folder.join(SERVES);
            fs::write(&path, b"").map_err(|source| FolderError::Make { path, source })?;
        }
        let shared = state_dir.to_path_buf();
        // Cgroups have one common folder: pilots of one name with different state folders must not take each other's.
        let own = fs::metadata(&state).map_err(|source| FolderError::Make { path: state.clone(), source })?;
        let id = format!("{name}-{:x}.{:x}", own.dev(), own.ino());
        Ok((Self { id, state, scratch, shared, serves: true, new, _lock: lock }, swept))
    }

    /// Whether another pilot of this name may come after this one.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.serves
    }

    /// Whether no pilot of this name was here before.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.new
    }

    /// Where what is known only while the machine runs is written down.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Where its API socket goes.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.state.join("api.sock")
    }

    /// The slots that an earlier pilot of this name left, by their numbers.
    #[must_use]
    pub fn left(&self) -> Vec<u32> {
        let mut left: Vec<u32> = [&self.state, &self.scratch]
            .iter()
            .flat_map(|root| names(&root.join("slots")))
            .filter_map(|name| name.parse().ok())
            .collect();
        left.sort_unstable();
        left.dedup();
        left
    }

    /// The folder below which the stages of this pilot lie.
    #[must_use]
    pub fn stages_root(&self) -> PathBuf {
        self.scratch.join("stages")
    }

    /// Where FIFOs between payloads have their first names.
    #[must_use]
    pub fn pipes(&self) -> PathBuf {
        self.scratch.join("pipes")
    }

    /// The word in the names of this pilot's cgroups: no other pilot has it, and the next one of its name has it again.
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
    pub fn stages(&self, workflow: &str, payload: &str) -> Result<PathBuf, FolderError> {
        let path = self.stages_root().join(workflow).join(payload);
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
        let slot = self.places_of(index);
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

    /// Where slot `index` has its folders; makes none.
    #[must_use]
    pub fn places_of(&self, index: u32) -> SlotFolders {
        let name = index.to_string();
        let (state, scratch) = (self.state.join("slots").join(&name), self.scratch.join("slots").join(&name));
        SlotFolders {
            control: state.join("control"),
            work: scratch.join("work"),
            out: scratch.join("out"),
            inputs: scratch.join("in"),
            streams: [state.join("stdout"), state.join("stderr")],
            record: state.join("record"),
            keeping: state.join("keeping"),
            upper: scratch.join("upper"),
            overlay: scratch.join("overlay"),
            state,
            scratch,
        }
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
        if self.serves {
            // Folders go when they are empty: stages that unfinished runs will read keep theirs.
            prune(&self.stages_root(), 2);
            let _ = remove_tree(&self.scratch.join("slots"));
            let _ = remove_tree(&self.pipes());
            if !self.stages_root().exists() {
                let _ = remove_tree(&self.scratch);
            }
            if let Err(error) = remove_tree(&self.state) {
                tracing::warn!(path = %self.state.display(), %error, "a folder of this pilot is left behind");
            }
            return;
        }
        for path in [&self.scratch, &self.state] {
            if let Err(error) = remove_tree(path) {
                tracing::warn!(path = %path.display(), %error, "a folder of this pilot is left behind");
            }
        }
    }
}

/// Marks the folders of a pilot whose payloads, or stages, may outlive it.
const SERVES: &str = "serves";

/// Makes the common folders, removes those of dead pilots, and says where pilot `id` has its own.
fn places(state_dir: &Path, scratch_dir: &Path, id: &str) -> Result<(PathBuf, PathBuf, Swept), FolderError> {
    private_folder(state_dir, "state-dir")?;
    private_folder(scratch_dir, "scratch-dir")?;
    private_folder(&state_dir.join("pilots"), "state-dir")?;
    private_folder(&scratch_dir.join("pilots"), "scratch-dir")?;
    let swept = sweep(state_dir, scratch_dir);
    Ok((state_dir.join("pilots").join(id), scratch_dir.join("pilots").join(id), swept))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
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
    let mut ids = names(&state_dir.join("pilots"));
    ids.extend(names(&scratch_dir.join("pilots")));
    ids.sort();
    ids.dedup();
    for id in ids {
        let state = state_dir.join("pilots").join(&id);
        let scratch = scratch_dir.join("pilots").join(&id);
        // What it left may be running, and a pilot of its name may come for it.
        if state.join(SERVES).exists() || scratch.join(SERVES).exists() {
            continue;
        }
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
        let far = left_far(&scratch.join("stages"));
        let gone = [scratch, state].iter().all(|path| remove_tree(path).is_ok());
        if gone {
            swept.pilots.push(id);
            swept.far.extend(far);
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
        assert_eq!(swept, Swept { pilots: vec!["dead".into()], far: Vec::new() });
        assert!(!state.join("pilots/dead").exists() && !scratch.join("pilots/dead").exists());
        assert!(state.join("pilots/alive").exists() && scratch.join("pilots/alive").exists());
        drop(alive);
        assert!(!state.join("pilots/alive").exists() && !scratch.join("pilots/alive").exists());
    }

    #[test]
    fn a_name_is_taken_once_and_what_it_left_waits_for_that_name() {
        let root = tempfile::tempdir().expect("tempdir");
        let (state, scratch) = (root.path().join("state"), root.path().join("scratch"));
        let (first, _) = PilotFolders::take(&state, &scratch, "one").expect("take");
        assert!(PilotFolders::take(&state, &scratch, "one").is_err(), "it lives");
        first.slot(2, false, false).expect("slot");
        let moved = std::mem::ManuallyDrop::new(first);
        moved._lock.unlock().expect("unlock");
        let (_other, swept) = PilotFolders::create(&state, &scratch, "other").expect("create");
        assert_eq!(swept, Swept::default(), "another pilot leaves it alone");
        let (second, _) = PilotFolders::take(&state, &scratch, "one").expect("take again");
        assert_eq!(second.left(), [2]);
        let stages = second.stages("flow.1", "make").expect("stages");
        std::fs::write(stages.join("data"), b"x").expect("write");
        drop(second);
        assert!(!state.join("pilots/one").exists());
        assert!(scratch.join("pilots/one/stages/flow.1/make/data").exists(), "an unfinished run reads it");
        let (third, _) = PilotFolders::take(&state, &scratch, "one").expect("third");
        std::fs::remove_file(scratch.join("pilots/one/stages/flow.1/make/data")).expect("remove");
        drop(third);
        assert!(!scratch.join("pilots/one").exists());
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
