//! What tests with kills at random have in common: how many rounds, from which seed; and where payloads note what they do.
//!
//! **Must not know:** what is killed, what is right.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use crate::chaos::Draw;
use crate::run::Site;

/// How far a test with kills at random goes.
#[derive(Debug)]
pub struct Rounds {
    /// Where its chances come from; `LATEBIND_CHAOS_SEED` repeats one, as far as a schedule of processes can be repeated.
    pub seed: u64,
    /// How many kills; `LATEBIND_CHAOS_ROUNDS` makes more of it (see `tests/long`).
    pub count: u64,
    /// The chances.
    pub draw: Draw,
    began: std::time::Instant,
}

#[expect(clippy::disallowed_methods, reason = "the long form's settings")]
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

impl Rounds {
    /// Begins, with so many rounds where nothing else is asked for, and says the seed.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the result says how long it took, and chance seeds it")]
    pub fn begin(what: &str, usual: u64) -> Self {
        let count = setting("LATEBIND_CHAOS_ROUNDS").unwrap_or(usual);
        let chance =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |now| now.as_secs());
        let seed = setting("LATEBIND_CHAOS_SEED").unwrap_or(chance).max(1);
        crate::note(&format!("{what}: seed {seed}, {count} rounds"));
        let draw = Draw(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { seed, count, draw, began: std::time::Instant::now() }
    }

    /// Seconds since it began.
    #[must_use]
    pub fn seconds(&self) -> u64 {
        self.began.elapsed().as_secs()
    }
}

/// Where payloads note lines: a FIFO in an input folder, which may be written though the folder may not (open(2): EROFS is for
/// files).
#[derive(Debug)]
pub struct Notes(OwnedFd);

impl Notes {
    /// Makes `notes/fifo` in a site.
    ///
    /// # Panics
    /// When it can't.
    #[must_use]
    pub fn new(site: &Site) -> Self {
        let path = site.path().join("notes");
        std::fs::create_dir(&path).expect("mkdir");
        let path = path.join("fifo");
        mknodat(CWD, &path, FileType::Fifo, Mode::empty(), 0).expect("mkfifo");
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o666)).expect("chmod");
        // Open for both, so that no writer ever waits for a reader.
        Self(
            rustix::fs::open(&path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
                .expect("open"),
        )
    }

    /// The lines noted since the last look.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
        while let Ok(read @ 1..) = rustix::io::read(&self.0, &mut chunk) {
            text.extend_from_slice(&chunk[..read]);
        }
        String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
    }
}
