//! The tier: every operation on an object, by its URL. Knows which kind of place does it, and its deadline.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::blocking::{blocking, digest_of, reserve};
use crate::s3::Buckets;
use crate::settings::{Settings, SettingsError};
use crate::unfinished::Unfinished;
use crate::url::Place;
use crate::{Digest, Limits, ObjectError, ObjectUrl, Source, local};

/// Where objects are put to and fetched from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ObjectTier {
    buckets: Arc<Buckets>,
    limits: Limits,
}

/// What a put is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Put {
    /// How long the content is.
    pub bytes: u64,
    /// Its digest; without one the source is read twice.
    pub digest: Option<Digest>,
    /// A different object of that name is replaced.
    pub overwrite: bool,
}

/// What a fetch insists on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expect {
    /// The content's digest.
    pub digest: Option<Digest>,
    /// The most bytes that are taken.
    pub bytes_max: Option<u64>,
}

/// An object that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its length.
    pub bytes: u64,
    /// Its digest.
    pub digest: Digest,
    /// What its place calls this version of it.
    pub etag: Option<String>,
    /// It had been there before.
    pub already: bool,
}

/// An object that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its length.
    pub bytes: u64,
    /// The digest of what came.
    pub digest: Digest,
    /// Somebody had said this digest before: who asked, or who put the object.
    pub verified: bool,
}

/// What a place says about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its length.
    pub bytes: u64,
    /// What its place calls this version of it.
    pub etag: Option<String>,
    /// Its digest, if it was kept when the object was put.
    pub digest: Option<Digest>,
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub url: ObjectUrl,
    /// Its length.
    pub bytes: u64,
}

/// A put whose digest is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planned {
    pub(crate) bytes: u64,
    pub(crate) digest: Digest,
    pub(crate) overwrite: bool,
}

impl Planned {
    pub(crate) fn check(&self, url: &ObjectUrl, found: Digest) -> Result<(), ObjectError> {
        if found == self.digest {
            return Ok(());
        }
        let reason = format!("its content is {found}, announced was {}", self.digest);
        Err(ObjectError::Source { url: url.clone(), reason })
    }

    pub(crate) fn unreadable(&self, url: &ObjectUrl, error: &io::Error) -> ObjectError {
        let reason = match error.kind() {
            io::ErrorKind::UnexpectedEof => format!("its content is shorter than {} bytes", self.bytes),
            _ => format!("its content can't be read: {error}"),
        };
        ObjectError::Source { url: url.clone(), reason }
    }
}

impl ObjectTier {
    /// A tier with these settings. Nothing is connected yet.
    ///
    /// # Errors
    /// [`SettingsError`] for settings that can't be used.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        settings.check()?;
        let limits = settings.limits;
        Ok(Self { buckets: Arc::new(Buckets::new(settings)?), limits })
    }

    /// Puts an object. The same content again is a success; another one is refused unless `overwrite` is set.
    ///
    /// Guarantees: a whole object is visible under the name or none; the server checks each part's digest.
    ///
    /// Caveats: a server that knows no conditions on writes lets two at once with different contents both succeed;
    /// the later one is there then. When the process is killed in an upload, S3 keeps its parts until a rule of the
    /// bucket removes them.
    ///
    /// # Errors
    /// [`ObjectError`]; nothing has changed then, but after `Timeout` and `Server` the object may be there, whole.
    pub async fn put(&self, url: &ObjectUrl, source: Source, put: Put) -> Result<Stored, ObjectError> {
        self.within(url, async {
            let plan = plan(url, &source, put).await?;
            match url.place() {
                Place::S3 { bucket, key } => self.buckets.put(url, bucket, key, &source, &plan).await,
                Place::File(path) => {
                    let (url, path) = (url.clone(), path.clone());
                    blocking(move |abandoned| local::put(&url, &path, &source, &plan, abandoned)).await
                }
            }
        })
        .await
    }

    /// Fetches an object into a new file at `into`, which replaces what is there once it is whole and verified.
    ///
    /// # Errors
    /// [`ObjectError`]; what was at `into` is untouched then, and nothing is left beside it.
    pub async fn fetch(&self, url: &ObjectUrl, into: &Path, expect: Expect) -> Result<Fetched, ObjectError> {
        self.within(url, async {
            let known = self.head_unbounded(url).await?;
            let path = into.to_path_buf();
            let made = blocking(move |_| Unfinished::beside(&path)).await;
            let unfinished = made.map_err(|error| ObjectError::local(into, &error))?;
            let file = Arc::clone(unfinished.file());
            let fetched = self.fetch_known(url, &known, &file, into, expect).await?;
            let path = into.to_path_buf();
            let published = blocking(move |_| unfinished.publish(&path, true)).await;
            published.map_err(|error| ObjectError::local(into, &error))?;
            Ok(fetched)
        })
        .await
    }

    /// Fetches an object into a file that is open for reading and writing; it has the object's length afterwards.
    ///
    /// # Errors
    /// [`ObjectError`]; the file is empty then. It may hold anything when the future was dropped.
    pub async fn fetch_into(
        &self,
        url: &ObjectUrl,
        file: Arc<File>,
        expect: Expect,
    ) -> Result<Fetched, ObjectError> {
        let name = Path::new("the file that was given");
        self.within(url, async {
            let known = self.head_unbounded(url).await?;
            self.fetch_known(url, &known, &file, name, expect).await
        })
        .await
        .inspect_err(|_| drop(file.set_len(0)))
    }

    /// What the place says about an object.
    ///
    /// # Errors
    /// [`ObjectError`], `NotFound` and `NoBucket` among them.
    pub async fn head(&self, url: &ObjectUrl) -> Result<Head, ObjectError> {
        self.within(url, self.head_unbounded(url)).await
    }

    /// Whether there is such an object.
    ///
    /// # Errors
    /// [`ObjectError`] if it can't be known.
    pub async fn exists(&self, url: &ObjectUrl) -> Result<bool, ObjectError> {
        match self.head(url).await {
            Ok(_) => Ok(true),
            Err(ObjectError::NotFound(_)) => Ok(false),
            Err(other) => Err(other),
        }
    }

    /// Removes an object; it is a success if there is none.
    ///
    /// # Errors
    /// [`ObjectError`]; the object may or may not be there after `Timeout` and `Server`.
    pub async fn remove(&self, url: &ObjectUrl) -> Result<(), ObjectError> {
        self.within(url, async {
            match url.place() {
                Place::S3 { bucket, key } => self.buckets.remove(url, bucket, key).await,
                Place::File(path) => {
                    let (url, path) = (url.clone(), path.clone());
                    blocking(move |_| local::remove(&url, &path)).await
                }
            }
        })
        .await
    }

    /// The objects below a name (`s3://bucket/a` lists `a/b` and `a/c/d`, not `ab`), at most `max`, sorted by name.
    /// Keys that are no [`ObjectUrl`] are left out.
    ///
    /// # Errors
    /// [`ObjectError::TooMuch`] if there are more; others if the place can't be read.
    pub async fn list(&self, prefix: &ObjectUrl, max: usize) -> Result<Vec<Listed>, ObjectError> {
        self.within(prefix, async {
            match prefix.place() {
                Place::S3 { bucket, key } => self.buckets.list(prefix, bucket, key, max).await,
                Place::File(path) => {
                    let (url, path) = (prefix.clone(), path.clone());
                    blocking(move |_| local::list(&url, &path, max)).await
                }
            }
        })
        .await
    }

    /// Waits until uploads that were given up are taken back, each for as long as some requests may take. Those who
    /// don't wait to the end leave parts behind.
    pub async fn settle(&self) {
        self.buckets.settle().await;
    }

    /// The server of `s3://` objects.
    pub(crate) fn server(&self) -> &str {
        self.buckets.server()
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) async fn within<T>(
        &self,
        url: &ObjectUrl,
        operation: impl Future<Output = Result<T, ObjectError>>,
    ) -> Result<T, ObjectError> {
        let after = self.limits.operation;
        match tokio::time::timeout(after, operation).await {
            Ok(done) => done,
            Err(_) => {
                let missed = format!("not done within {} s", after.as_secs_f32());
                Err(ObjectError::Timeout { url: url.clone(), missed })
            }
        }
    }

    pub(crate) async fn head_unbounded(&self, url: &ObjectUrl) -> Result<Head, ObjectError> {
        match url.place() {
            Place::S3 { bucket, key } => self.buckets.head(url, bucket, key).await,
            Place::File(path) => {
                let (url, path) = (url.clone(), path.clone());
                blocking(move |_| local::head(&url, &path)).await
            }
        }
    }

    /// Fetches the version that `known` tells of into a file at `name`; on failure the file is empty.
    pub(crate) async fn fetch_known(
        &self,
        url: &ObjectUrl,
        known: &Head,
        file: &Arc<File>,
        name: &Path,
        expect: Expect,
    ) -> Result<Fetched, ObjectError> {
        if let Some(max) = expect.bytes_max.filter(|max| known.bytes > *max) {
            let reason = format!("it has {} bytes, at most {max} are allowed", known.bytes);
            return Err(ObjectError::TooMuch { url: url.clone(), reason });
        }
        let fetched = self.bring(url, known, file, name).await.and_then(|digest| {
            for expected in [expect.digest, known.digest].into_iter().flatten() {
                if expected != digest {
                    return Err(ObjectError::WrongDigest { url: url.clone(), expected, found: digest });
                }
            }
            let verified = expect.digest.or(known.digest).is_some();
            Ok(Fetched { bytes: known.bytes, digest, verified })
        });
        fetched.inspect_err(|_| drop(file.set_len(0)))
    }

    async fn bring(
        &self,
        url: &ObjectUrl,
        known: &Head,
        file: &Arc<File>,
        name: &Path,
    ) -> Result<Digest, ObjectError> {
        let (bytes, target) = (known.bytes, Arc::clone(file));
        let reserved = blocking(move |_| reserve(&target, bytes)).await;
        reserved.map_err(|error| ObjectError::local(name, &error))?;
        match url.place() {
            Place::S3 { bucket, key } => {
                self.buckets.fetch(url, bucket, key, known, file, name).await?;
                // Ranges come in any order, so they are hashed where they are: what is on the disk is what counts.
                let source = Source::File(Arc::clone(file));
                let hashed = blocking(move |a| digest_of(&source, bytes, a)).await;
                hashed.map_err(|error| ObjectError::local(name, &error))
            }
            Place::File(path) => {
                let (url, path, known) = (url.clone(), path.clone(), known.clone());
                let (file, name) = (Arc::clone(file), name.to_path_buf());
                blocking(move |abandoned| local::fetch(&url, &path, &known, &file, &name, abandoned)).await
            }
        }
    }
}

/// Looks at the source before anything is touched.
async fn plan(url: &ObjectUrl, source: &Source, put: Put) -> Result<Planned, ObjectError> {
    let Put { bytes, digest, overwrite } = put;
    let known = Planned { bytes, digest: digest.unwrap_or(Digest::of(b"")), overwrite };
    let found = source.bytes().map_err(|error| known.unreadable(url, &error))?;
    if found != bytes {
        let reason = format!("its content has {found} bytes, announced were {bytes}");
        return Err(ObjectError::Source { url: url.clone(), reason });
    }
    if digest.is_some() {
        return Ok(known);
    }
    let source = source.clone();
    let hashed = blocking(move |abandoned| digest_of(&source, bytes, abandoned)).await;
    Ok(Planned { digest: hashed.map_err(|error| known.unreadable(url, &error))?, ..known })
}
