//! Who may use an image of a registry that is stored already: whoever the registry let in with the same login,
//! for a while; everybody, if it let in somebody who showed none.
//!
//! # Guarantees
//! A grant is a file whose name is a hash of registry, repository, image and login, keyed with a key of this
//! store: neither the login nor what it opens can be read from it, nor guessed without the key. It counts on
//! the boot that wrote it, by a clock that nobody sets; after that the registry is asked again.

use std::path::PathBuf;
use std::time::Duration;

use rustix::time::ClockId;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::record::ImageId;
use crate::registry::Shown;
use crate::scratch::Scratch;
use crate::store::Store;

/// How long a login that was let in is taken on trust: a day's work; a revoked one ends with it.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The right to use a stored image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    Everybody,
    /// For so long.
    Until(Duration),
}

impl Right {
    pub(crate) const fn lasts(self) -> Option<Duration> {
        match self {
            Self::Everybody => None,
            Self::Until(left) => Some(left),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Grant {
    /// So that it goes when the image goes.
    image: ImageId,
    boot: String,
    at_s: u64,
}

impl Store {
    /// The right that one of these logins has to an image, as far as it is known here.
    pub(crate) fn right(&self, image: &ImageId, logins: impl Iterator<Item = Shown>) -> Option<Right> {
        let key = self.grant_key()?;
        if self.grant_path(&key, image, None).exists() {
            return Some(Right::Everybody);
        }
        let (boot, now_s) = moment()?;
        let remaining = |shown: Shown| {
            shown.login.as_ref()?;
            let text = std::fs::read(self.grant_path(&key, image, Some(&shown))).ok()?;
            let grant: Grant = serde_json::from_slice(&text).ok()?;
            let age = now_s.checked_sub(grant.at_s).filter(|_| grant.boot == boot)?;
            LIFETIME.checked_sub(Duration::from_secs(age))
        };
        logins.filter_map(remaining).max().map(Right::Until)
    }

    /// Remembers that a registry gave an image to who showed this. A store that can't be written remembers
    /// nothing, and asks each time.
    pub(crate) fn grant(&self, image: &ImageId, shown: &Shown) -> Right {
        let public = shown.login.is_none();
        let right = if public { Right::Everybody } else { Right::Until(LIFETIME) };
        let remember = || {
            let key = self.grant_key()?;
            let path = self.grant_path(&key, image, Some(shown).filter(|_| !public));
            if public && path.exists() {
                return Some(());
            }
            let (boot, at_s) = moment()?;
            let text = serde_json::to_vec(&Grant { image: *image, boot, at_s }).ok()?;
            let scratch: Scratch = self.scratch().ok()?;
            self.replace(&scratch, &path, &text).ok()
        };
        if remember().is_none() {
            tracing::debug!(%image, "grant not remembered");
        }
        right
    }

    /// Removes the grants of images that are not stored any more.
    pub(crate) fn collect_grants(&self) {
        for path in self.json_files("grants").unwrap_or_default() {
            let text = std::fs::read(&path).ok();
            let grant: Option<Grant> = text.and_then(|text| serde_json::from_slice(&text).ok());
            if grant.is_none_or(|grant| !self.contains(&grant.image)) {
                let _ = std::fs::remove_file(&path);
            }
        }
    }

    fn grant_path(&self, key: &[u8], image: &ImageId, shown: Option<&Shown>) -> PathBuf {
        let message = match shown.and_then(|shown| Some((&shown.repository, shown.login.as_ref()?))) {
            Some((repository, login)) => format!("login\n{repository}\n{image}\n{}", login.material()),
            None => format!("everybody\n{image}"),
        };
        // Two rounds, as HMAC does it, so that a message can't be lengthened; the key has a fixed length.
        let inner = Digest::of(&[key, message.as_bytes()].concat());
        let name = Digest::of(&[key, inner.as_bytes()].concat());
        self.root.join("grants").join(format!("{}.json", name.hex()))
    }

    /// The store's own key, made when it is needed first.
    fn grant_key(&self) -> Option<Vec<u8>> {
        const KEY_BYTES: usize = 32;
        let path = self.root.join("grants/key");
        let read = || std::fs::read(&path).ok().filter(|key| key.len() == KEY_BYTES);
        if let Some(key) = read() {
            return Some(key);
        }
        let mut key = [0; KEY_BYTES];
        let filled = rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty()).ok()?;
        if filled != KEY_BYTES {
            return None;
        }
        let _ = std::fs::create_dir(self.root.join("grants"));
        let scratch = self.scratch().ok()?;
        let temporary = scratch.path().join("key");
        std::fs::write(&temporary, key).ok()?;
        // A link, not a rename: of two processes one makes the key, and both read that one.
        let _ = std::fs::hard_link(&temporary, &path);
        read()
    }
}

/// This boot, and seconds since it began.
fn moment() -> Option<(String, u64)> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    Some((boot.trim().to_owned(), u64::try_from(now.tv_sec).ok()?))
}
