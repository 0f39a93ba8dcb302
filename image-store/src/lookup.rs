//! Questions about what is in an image, answered from its tree before anything is started: who is USER, and
//! is there such a program. Symbolic links are followed in the image, never on this machine.

use std::path::Path;

use crate::entry::shown;
use crate::mount_points::MOUNT_POINTS;
use crate::objects::ObjectError;
use crate::record::ImageId;
use crate::store::Store;
use crate::store_format::StoreError;
use crate::tree::{NodeKind, Tree};
use crate::walk::split;

/// /etc/passwd of a large site, exported whole; more is no honest image.
const ACCOUNTS_BYTES_MAX: u64 = 16 << 20;

/// Why an image's USER means nobody.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserError {
    /// A name that the image's accounts don't have.
    #[error("find {kind} \"{name}\" in {file} of image {image}")]
    Unknown {
        /// `user` or `group`.
        kind: &'static str,
        /// The name.
        name: String,
        /// `/etc/passwd` or `/etc/group`.
        file: &'static str,
        /// The image.
        image: ImageId,
    },
    /// A number past 2^32 - 2.
    #[error("use {kind} id {number} of image {image}: it is out of range")]
    Range {
        /// `user` or `group`.
        kind: &'static str,
        /// As written.
        number: String,
        /// The image.
        image: ImageId,
    },
    /// The store is damaged or the image isn't there.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The accounts can't be read.
    #[error("read {file} of image {image}")]
    Read {
        /// `/etc/passwd` or `/etc/group`.
        file: &'static str,
        /// The image.
        image: ImageId,
        /// Why.
        #[source]
        source: ObjectError,
    },
}

/// Why an image can't run a program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoSuchProgram {
    /// Nothing to run.
    #[error("run image {image}: it names no command; give one")]
    Empty {
        /// The image.
        image: ImageId,
    },
    /// A path that leads nowhere.
    #[error("run \"{program}\" in image {image}: it is not there")]
    Path {
        /// The program.
        program: String,
        /// The image.
        image: ImageId,
    },
    /// It is there, and is no program.
    #[error("run \"{program}\" in image {image}: \"{found}\" is {what}")]
    NotExecutable {
        /// The program.
        program: String,
        /// The image.
        image: ImageId,
        /// Where it was found.
        found: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// No folder of PATH has it.
    #[error("run \"{program}\" in image {image}: no folder of PATH={path} has it")]
    NotInPath {
        /// The program.
        program: String,
        /// The image.
        image: ImageId,
        /// What was searched.
        path: String,
    },
    /// The store is damaged or the image isn't there.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a path leads to, seen as a program.
enum Found {
    Program,
    /// Below something that is mounted over: only the running container knows.
    Hidden,
    NotExecutable(&'static str),
    Nothing,
}

impl Store {
    /// The ids of a USER as images write it: empty, `uid`, `name`, either with `:gid` or `:group`. Without a
    /// group it is the account's, or 0 for a uid without account, as with docker.
    ///
    /// # Errors
    /// [`UserError`].
    pub fn resolve_user(&self, image: &ImageId, user: &str) -> Result<(u32, u32), UserError> {
        let (name, group) = user.split_once(':').map_or((user, None), |(name, group)| (name, Some(group)));
        let group = group.filter(|group| !group.is_empty());
        let name = if name.is_empty() { "0" } else { name };
        let record = self.record(image)?;
        let tree = self.tree(image, &record)?;
        let uid = number(name, "user", image)?;
        let account = if uid.is_some() && group.is_some() {
            None
        } else {
            let accounts = self.accounts(&tree, image, "/etc/passwd")?;
            let field = if uid.is_some() { 2 } else { 0 };
            accounts.into_iter().find(|account| account.get(field).is_some_and(|value| value == name))
        };
        let id = |at: usize| account.as_ref()?.get(at)?.parse::<u32>().ok();
        let unknown = |kind, name: &str, file| {
            let name = name.escape_debug().take(80).collect();
            UserError::Unknown { kind, name, file, image: *image }
        };
        let uid = uid.or_else(|| id(2)).ok_or_else(|| unknown("user", name, "/etc/passwd"))?;
        let gid = match group {
            None => id(3).unwrap_or(0),
            Some(group) => match number(group, "group", image)? {
                Some(gid) => gid,
                None => {
                    let groups = self.accounts(&tree, image, "/etc/group")?;
                    let found = groups.iter().find(|fields| fields.first().is_some_and(|name| name == group));
                    found
                        .and_then(|fields| fields.get(2)?.parse().ok())
                        .ok_or_else(|| unknown("group", group, "/etc/group"))?
                }
            },
        };
        Ok((uid, gid))
    }

    /// Whether the image can run `argv0` from the directory `cwd`, searched in `path_env` if it has no slash.
    /// A program below a place that is mounted over ([`MOUNT_POINTS`] but /etc) is taken on trust.
    ///
    /// # Errors
    /// [`NoSuchProgram`].
    pub fn has_program(
        &self,
        image: &ImageId,
        argv0: &str,
        path_env: &str,
        cwd: &Path,
    ) -> Result<(), NoSuchProgram> {
        use std::os::unix::ffi::OsStrExt;
        let image = *image;
        let record = self.record(&image)?;
        let tree = self.tree(&image, &record)?;
        let cwd = cwd.as_os_str().as_bytes();
        let program = shown(argv0.as_bytes());
        let absolute =
            |path: &[u8]| if path.starts_with(b"/") { path.to_vec() } else { [cwd, path].join(&b'/') };
        if argv0.is_empty() {
            return Err(NoSuchProgram::Empty { image });
        }
        let not_executable = |found: &[u8], what| {
            let (program, found) = (program.clone(), shown(found));
            NoSuchProgram::NotExecutable { program, image, found, what }
        };
        if argv0.contains('/') {
            let path = absolute(argv0.as_bytes());
            return match judge(&tree, &path) {
                Found::Program | Found::Hidden => Ok(()),
                Found::NotExecutable(what) => Err(not_executable(&path, what)),
                Found::Nothing => Err(NoSuchProgram::Path { program, image }),
            };
        }
        let mut refused = None;
        for folder in path_env.split(':') {
            let folder = if folder.is_empty() { "." } else { folder };
            let path = [absolute(folder.as_bytes()), argv0.as_bytes().to_vec()].join(&b'/');
            match judge(&tree, &path) {
                Found::Program => return Ok(()),
                Found::NotExecutable(what) => refused = refused.or_else(|| Some(not_executable(&path, what))),
                // A folder of PATH that is mounted over is no promise.
                Found::Hidden | Found::Nothing => {}
            }
        }
        let path = shown(path_env.as_bytes());
        Err(refused.unwrap_or(NoSuchProgram::NotInPath { program, image, path }))
    }

    /// The colon-separated lines of an accounts file; none if the image lacks it.
    fn accounts(
        &self,
        tree: &Tree,
        image: &ImageId,
        file: &'static str,
    ) -> Result<Vec<Vec<String>>, UserError> {
        let Ok(node) = tree.find(file.as_bytes(), true) else { return Ok(Vec::new()) };
        let NodeKind::File(content) = tree.node(node).kind else { return Ok(Vec::new()) };
        if content.size == 0 {
            return Ok(Vec::new());
        }
        let bytes = self
            .files
            .read(&content.digest, ACCOUNTS_BYTES_MAX)
            .map_err(|source| UserError::Read { file, image: *image, source })?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect())
    }
}

/// A numeric id; `None` if it is a name. 2^32 - 1 means "unchanged" to the kernel and is nobody's.
fn number(text: &str, kind: &'static str, image: &ImageId) -> Result<Option<u32>, UserError> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(id) if id < u32::MAX => Ok(Some(id)),
        _ => Err(UserError::Range { kind, number: text.chars().take(40).collect(), image: *image }),
    }
}

fn judge(tree: &Tree, path: &[u8]) -> Found {
    let joined = [b"/".to_vec(), split(path).collect::<Vec<_>>().join(&b'/')].concat();
    let below = |point: &str| {
        point != "/etc" && joined.strip_prefix(point.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"))
    };
    if MOUNT_POINTS.into_iter().any(below) {
        return Found::Hidden;
    }
    let Ok(node) = tree.find(path, true) else { return Found::Nothing };
    let node = tree.node(node);
    match &node.kind {
        NodeKind::File(_) if node.mode & 0o111 != 0 => Found::Program,
        NodeKind::File(_) => Found::NotExecutable("not executable"),
        NodeKind::Directory(_) => Found::NotExecutable("a directory"),
        NodeKind::Symlink(_) | NodeKind::Skipped => Found::Nothing,
    }
}
