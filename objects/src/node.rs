//! One fetch a machine: those who want the same version of an object share a file, in one process and between them.
//!
//! A folder of the cache:
//! - `content/<name>`: whole, verified, 0444; named by its server, URL, etag and length. Shown by a rename.
//! - `unfinished/<name>`: what somebody fetches. Who fetches holds a lock on the file, which its death lets go of.
//! - `room`: the lock under which room is counted and made.
//!
//! Locks only spare work: a name in `content` is right whoever held what. Readers hold a shared lock on the file and
//! may link it elsewhere; what is locked or linked is never removed.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;

use crate::blocking::{Abandoned, blocking, digest_of, reserve};
use crate::tier::{Expect, Head, ObjectTier};
use crate::unfinished::sync_folder;
use crate::{Digest, ObjectError, ObjectUrl, Source};

mod room;

/// Between looks at a fetch of another process, which has no way to call.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// A folder in which a machine's fetched objects are kept for all that want them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OncePerNode {
    tier: ObjectTier,
    folder: Arc<PathBuf>,
    bytes_max: u64,
    under_way: Arc<Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>>,
}

/// An object in the cache. It stays there as long as this, or a link that was made of it, exists.
#[derive(Debug)]
pub struct Held {
    file: File,
    path: PathBuf,
    bytes: u64,
    digest: Option<Digest>,
    fetched: bool,
}

impl Held {
    /// The content, open for reading.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it lies in the cache, for mounting it read-only.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its digest; not known of what had been there, when nobody has said it.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// It had to be fetched for this.
    #[must_use]
    pub fn was_fetched(&self) -> bool {
        self.fetched
    }

    /// Gives the content another name, on the cache's file system. It is the same file, mode 0444: who owns it must
    /// not change it. Blocks for a moment.
    ///
    /// # Errors
    /// [`ObjectError::Local`] if that name exists or is on another file system.
    pub fn link(&self, to: &Path) -> Result<(), ObjectError> {
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
        let linked = rustix::fs::linkat(rustix::fs::CWD, own, rustix::fs::CWD, to, follow);
        linked.map_err(|error| ObjectError::local(to, &error.into()))
    }
}

/// How an attempt to begin a fetch ended.
enum Begun {
    There(File),
    Mine(Mine),
    /// Somebody else is at it, and last wrote then.
    Others(Option<SystemTime>),
}

/// Whether a content is there.
enum Content {
    There(File),
    Missing,
    /// Somebody has it locked: who has just shown it, or who looks whether it may go. Neither takes long.
    Busy,
}

/// A file under `unfinished` that this process has the lock of. It goes when it is dropped.
struct Mine {
    file: Arc<File>,
    path: PathBuf,
    shown: bool,
}

impl Drop for Mine {
    fn drop(&mut self) {
        if !self.shown {
            // Still under the lock, so nobody else's file has this name.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl OncePerNode {
    /// A cache in `folder`, which is made if it is missing; all who use it should give the same `bytes_max`. Blocks.
    ///
    /// # Errors
    /// [`ObjectError::Local`] if the folder can't be made.
    pub fn open(tier: ObjectTier, folder: &Path, bytes_max: u64) -> Result<Self, ObjectError> {
        for part in ["content", "unfinished"] {
            let path = folder.join(part);
            std::fs::create_dir_all(&path).map_err(|error| ObjectError::local(&path, &error))?;
        }
        let folder = Arc::new(folder.to_path_buf());
        Ok(Self { tier, folder, bytes_max, under_way: Arc::default() })
    }

    /// The object as it is at its place at this moment, fetched if no one on this machine has this version.
    ///
    /// # Errors
    /// [`ObjectError`]; `DiskFull` if what is held and linked leaves no room.
    pub async fn get(&self, url: &ObjectUrl, expect: Expect) -> Result<Held, ObjectError> {
        self.tier.within(url, self.get_unbounded(url, expect)).await
    }

    async fn get_unbounded(&self, url: &ObjectUrl, expect: Expect) -> Result<Held, ObjectError> {
        let known = self.tier.head_unbounded(url).await?;
        if let (Some(expected), Some(found)) = (expect.digest, known.digest)
            && expected != found
        {
            return Err(ObjectError::WrongDigest { url: url.clone(), expected, found });
        }
        if let Some(max) = [expect.bytes_max, Some(self.bytes_max)].into_iter().flatten().min()
            && known.bytes > max
        {
            let reason = format!("it has {} bytes, at most {max} are allowed here", known.bytes);
            return Err(ObjectError::TooMuch { url: url.clone(), reason });
        }
        let digest = expect.digest.or(known.digest);
        let name = name(self.tier.server(), url, &known);
        let turn = self.turn(&name);
        let _mine = turn.lock().await;
        let (mut last_wrote, mut waited) = (None, Duration::ZERO);
        loop {
            let (cache, wanted, bytes) = (self.clone(), name.clone(), known.bytes);
            // Who does not go on for as long as a range may take was stopped, or hangs.
            let alone = waited > self.tier.limits().request;
            let begun = blocking(move |abandoned| cache.begin(&wanted, bytes, alone, abandoned)).await;
            let path = self.content(&name);
            let held = |file, digest, fetched| Held { file, path, bytes, digest, fetched };
            match begun? {
                Begun::There(file) => {
                    let held = held(file, digest, false);
                    let Some(expected) = expect.digest.filter(|_| known.digest.is_none()) else {
                        return Ok(held);
                    };
                    let url = url.clone();
                    return blocking(move |a| verify(&url, &held, expected, a).map(|()| held)).await;
                }
                Begun::Others(wrote) => {
                    waited = if wrote == last_wrote { waited + LOOK_AGAIN } else { Duration::ZERO };
                    last_wrote = wrote;
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Begun::Mine(mine) => {
                    let fetched = self.tier.fetch_known(url, &known, &mine.file, &mine.path, expect).await?;
                    let (cache, wanted) = (self.clone(), name.clone());
                    // Nothing, if it was removed in the moment between two locks.
                    if let Some(file) = blocking(move |_| cache.show(&wanted, mine)).await? {
                        return Ok(held(file, Some(fetched.digest), true));
                    }
                }
            }
        }
    }

    /// Those of this process wait here, without asking the file system again and again.
    fn turn(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = under_way.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(tokio::sync::Mutex::new(()));
        under_way.insert(name.to_owned(), Arc::downgrade(&turn));
        turn
    }

    fn content(&self, name: &str) -> PathBuf {
        self.folder.join("content").join(name)
    }

    /// Takes the right to fetch, unless it is there or somebody else has the right. `alone` does not ask for others.
    fn begin(
        &self,
        name: &str,
        bytes: u64,
        alone: bool,
        abandoned: &Abandoned,
    ) -> Result<Begun, ObjectError> {
        let unfinished = self.folder.join("unfinished");
        let path = if alone {
            unfinished.join(format!("{name}-{:016x}", fastrand::u64(..)))
        } else {
            unfinished.join(name)
        };
        let failed = |error: io::Error| ObjectError::local(&path, &error);
        match self.there(name, bytes)? {
            Content::There(file) => return Ok(Begun::There(file)),
            Content::Busy if !alone => return Ok(Begun::Others(None)),
            Content::Busy | Content::Missing => {}
        }
        let made = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // What a dead process has left is in nobody's way any more at the next look.
                let removed = room::remove_if_unlocked(&path, |_| true);
                let wrote = || std::fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
                return Ok(Begun::Others(if removed { None } else { wrote() }));
            }
            made => made.map_err(failed)?,
        };
        if !locked(&file, FlockOperation::NonBlockingLockExclusive).map_err(failed)? {
            return Ok(Begun::Others(None));
        }
        if !is_at(&file, &path) {
            // Who makes room has taken it for a dead one's.
            return Ok(Begun::Others(None));
        }
        let mine = Mine { file: Arc::new(file), path: path.clone(), shown: false };
        match self.there(name, bytes)? {
            Content::There(file) => return Ok(Begun::There(file)),
            Content::Busy if !alone => return Ok(Begun::Others(None)),
            Content::Busy | Content::Missing => {}
        }
        self.make_room(bytes, abandoned)?;
        reserve(&mine.file, bytes).map_err(failed)?;
        Ok(Begun::Mine(mine))
    }

    /// The content of that name, under a shared lock, marked as used.
    fn there(&self, name: &str, bytes: u64) -> Result<Content, ObjectError> {
        let path = self.content(name);
        let failed = |error: io::Error| ObjectError::local(&path, &error);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::Missing),
            Err(error) => return Err(failed(error)),
        };
        if !locked(&file, FlockOperation::NonBlockingLockShared).map_err(failed)? || !is_at(&file, &path) {
            return Ok(Content::Busy);
        }
        if file.metadata().map_err(failed)?.len() != bytes {
            // Nobody of ours makes such a thing, so it is damaged: out of the way with it.
            std::fs::remove_file(&path).map_err(failed)?;
            return Ok(Content::Missing);
        }
        room::mark_used(&file);
        Ok(Content::There(file))
    }

    /// Gives a whole and verified file its name.
    fn show(&self, name: &str, mut mine: Mine) -> Result<Option<File>, ObjectError> {
        let path = self.content(name);
        let failed = |error: io::Error| ObjectError::local(&path, &error);
        mine.file.set_permissions(Permissions::from_mode(0o444)).map_err(failed)?;
        mine.file.sync_all().map_err(failed)?;
        std::fs::rename(&mine.path, &path).map_err(failed)?;
        mine.shown = true;
        sync_folder(&path).map_err(failed)?;
        // Opened again: a lock is given up with its description, and this one can't write.
        let file = File::open(&path).ok();
        drop(mine);
        let file = file.filter(|file| {
            matches!(locked(file, FlockOperation::NonBlockingLockShared), Ok(true)) && is_at(file, &path)
        });
        Ok(file)
    }
}

/// What a version of an object is called in the cache: by its place, not by its digest, so that who may not read an
/// object can't have it by naming its digest.
fn name(server: &str, url: &ObjectUrl, known: &Head) -> String {
    let bytes = known.bytes;
    let version = known.etag.clone().or_else(|| known.digest.map(|digest| digest.to_string()));
    match version {
        Some(version) => {
            format!("{}-{bytes}", Digest::of(format!("{server}\n{url}\n{version}").as_bytes()).hex())
        }
        // Nothing says that two are the same.
        None => format!("once-{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..)),
    }
}

/// Compares what had been there with the digest that nobody compared it with so far. Blocks.
fn verify(url: &ObjectUrl, held: &Held, expected: Digest, abandoned: &Abandoned) -> Result<(), ObjectError> {
    let failed = |error: io::Error| ObjectError::local(Path::new("the cached file"), &error);
    let source = Source::from(held.file.try_clone().map_err(failed)?);
    let found = digest_of(&source, held.bytes, abandoned).map_err(failed)?;
    if found == expected {
        return Ok(());
    }
    Err(ObjectError::WrongDigest { url: url.clone(), expected, found })
}

/// Takes a lock without waiting; says whether it worked.
fn locked(file: &File, how: FlockOperation) -> io::Result<bool> {
    match rustix::fs::flock(file, how) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether a name still leads to this file.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), std::fs::symlink_metadata(path)) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}
