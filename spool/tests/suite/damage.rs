//! Files that are no good: a clear word, and not a byte changed.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use spool::{NewPayload, OpenError, Spool, SpoolError};

use crate::common::{TestClock, many, open, payload, submission};

/// A spool at rest, as bytes.
fn sample() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    spool.submit(&many("w", 300)).expect("submit");
    drop(spool);
    assert!(!folder.path().join("spool.db-wal").exists(), "the log went with the last connection");
    std::fs::read(folder.path().join("spool.db")).expect("read")
}

/// Opens a folder with these bytes as database; both must be there afterwards as before.
fn refused(bytes: &[u8]) -> OpenError {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("spool.db");
    std::fs::write(&file, bytes).expect("write");
    let error = Spool::open(folder.path()).expect_err("damaged");
    assert!(std::fs::read(&file).expect("read") == bytes, "{error}: the file was changed");
    let text = error.to_string();
    assert!(!text.contains('\n') && text.contains("spool.db"), "{text:?}");
    error
}

#[test]
fn a_truncated_database_is_refused_and_left_alone() {
    let bytes = sample();
    let lengths = [0, 1, 15, 16, 99, 100, 101, 512, 4095, 4096, 4097, 8192, 40_000];
    let near_end = [1, 100, 4096, 5000].map(|short| bytes.len() - short);
    for length in lengths.into_iter().chain(near_end) {
        let error = refused(&bytes[..length]);
        assert!(matches!(error, OpenError::Damaged { .. }), "{length}: {error:?}");
    }
}

#[test]
fn garbage_is_refused_and_left_alone() {
    let bytes = sample();
    assert!(matches!(refused(&[b'x'; 5000]), OpenError::Damaged { .. }));
    assert!(matches!(refused(&vec![0; bytes.len()]), OpenError::Damaged { .. }));
    for page in [1, 2, 5, 11] {
        let mut broken = bytes.clone();
        let from = page * 4096;
        broken[from..from + 4096].fill(0xa5);
        let error = refused(&broken);
        assert!(matches!(error, OpenError::Damaged { .. }), "page {page}: {error:?}");
    }
    let mut no_schema = bytes.clone();
    no_schema[100..4096].fill(0xff);
    assert!(matches!(refused(&no_schema), OpenError::Damaged { .. }));
}

#[test]
fn a_later_version_and_another_programs_file_are_refused() {
    let bytes = sample();
    let mut later = bytes.clone();
    later[60..64].copy_from_slice(&3_u32.to_be_bytes());
    let error = refused(&later);
    assert!(matches!(error, OpenError::TooNew { found: 3, known: 2, .. }), "{error:?}");
    let mut other = bytes.clone();
    other[68..72].copy_from_slice(&7_u32.to_be_bytes());
    assert!(matches!(refused(&other), OpenError::NotASpool { .. }));
}

#[test]
fn a_missing_database_beside_its_log_is_not_made_anew() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("spool.db-wal"), "log").expect("write");
    let error = Spool::open(folder.path()).expect_err("damaged");
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
    assert!(!folder.path().join("spool.db").exists());
}

#[test]
fn what_is_not_there_is_made_only_when_asked_for() {
    let folder = tempfile::tempdir().expect("folder");
    let new = folder.path().join("a/b");
    assert!(matches!(Spool::open_existing(&new), Err(OpenError::Missing { .. })));
    assert!(!new.exists());
    drop(Spool::open(&new).expect("open"));
    let mode = |path: &Path| std::fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    assert_eq!((mode(&new), mode(&new.join("wake"))), (0o700, 0o700));
    Spool::open_existing(&new).expect("open");
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).expect("mkdir");
    assert!(matches!(Spool::open_existing(&empty), Err(OpenError::Missing { .. })));
}

#[test]
fn a_folder_in_which_others_may_write_or_that_is_none_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).expect("chmod");
    assert!(matches!(Spool::open(folder.path()), Err(OpenError::NotOurs { .. })));
    assert!(!folder.path().join("spool.db").exists());
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("write");
    assert!(matches!(Spool::open(&file), Err(OpenError::NotOurs { .. })));
    if rustix::process::geteuid().is_root() {
        let other = folder.path().join("other");
        std::fs::create_dir(&other).expect("mkdir");
        std::os::unix::fs::chown(&other, Some(12345), None).expect("chown");
        let error = Spool::open(&other).expect_err("not ours");
        assert!(error.to_string().contains("belongs to uid 12345"), "{error}");
    }
}

#[test]
fn damage_while_it_is_open_is_told_and_not_written_over() {
    let folder = tempfile::tempdir().expect("folder");
    let clock = TestClock::new();
    let mut spool = open(folder.path(), &clock);
    // So large that it is not read as a whole when it is opened.
    let long =
        (0..600).map(|index| NewPayload { spec: "x".repeat(16_000), ..payload(&format!("p{index}"), &[]) });
    spool.submit(&submission("w", long.collect())).expect("submit");
    drop(spool);
    let file = folder.path().join("spool.db");
    let mut bytes = std::fs::read(&file).expect("read");
    let mut spool = open(folder.path(), &clock);
    let from = 4096;
    bytes[from..].fill(0xa5);
    std::fs::write(&file, &bytes).expect("write");
    let error = spool.claim("p", 1, 1000).map(drop).expect_err("damaged");
    assert!(matches!(error, SpoolError::Damaged(_)), "{error:?}");
    drop(spool);
    assert!(std::fs::read(&file).expect("read") == bytes);
}
