//! Cleaning of real folders.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use wire::slot::CleanReport;

use super::{Root, folders, markers};

fn clean(root: Root<'_>) -> CleanReport {
    let mut report = CleanReport::default();
    folders(&[root], &mut report);
    report
}

fn path(folder: &Path) -> &str {
    folder.to_str().expect("utf-8")
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).expect("read").next().is_none()
}

#[test]
fn everything_goes_and_nothing_is_followed() {
    let base = tempfile::tempdir().expect("tempdir");
    let (slot, precious) = (base.path().join("slot"), base.path().join("precious"));
    fs::create_dir_all(slot.join("a/b/c")).expect("mkdir");
    fs::create_dir(&precious).expect("mkdir");
    fs::write(precious.join("file"), "x").expect("write");
    fs::write(slot.join("a/b/file"), "x").expect("write");
    symlink(&precious, slot.join("a/link")).expect("symlink");
    symlink("../../precious/file", slot.join("a/b/link")).expect("symlink");
    let report = clean(Root::all(path(&slot)));
    assert_eq!(report, CleanReport { files: 6, ..CleanReport::default() });
    assert!(is_empty(&slot));
    assert!(precious.join("file").exists());
}

#[test]
fn folders_without_any_permission_are_opened_up_and_removed() {
    let base = tempfile::tempdir().expect("tempdir");
    let locked = base.path().join("locked");
    fs::create_dir_all(locked.join("deeper")).expect("mkdir");
    fs::write(locked.join("deeper/file"), "x").expect("write");
    for folder in [locked.join("deeper"), locked] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o000)).expect("chmod");
    }
    assert_eq!(clean(Root::all(path(base.path()))), CleanReport { files: 3, ..CleanReport::default() });
    assert!(is_empty(base.path()));
}

#[test]
fn a_tree_deeper_than_any_path_is_removed_with_few_descriptors() {
    let base = tempfile::tempdir().expect("tempdir");
    let mut at = rustix::fs::open(base.path(), super::FOLDER, rustix::fs::Mode::empty()).expect("open");
    let depth = 3000;
    for _ in 0..depth {
        rustix::fs::mkdirat(&at, c"deep", rustix::fs::Mode::RWXU).expect("mkdir");
        at = rustix::fs::openat(&at, c"deep", super::FOLDER, rustix::fs::Mode::empty()).expect("open");
    }
    assert_eq!(clean(Root::all(path(base.path()))), CleanReport { files: depth, ..CleanReport::default() });
    assert!(is_empty(base.path()));
}

#[test]
fn many_entries_are_removed_in_one_go() {
    let base = tempfile::tempdir().expect("tempdir");
    for number in 0..3000 {
        fs::write(base.path().join(format!("{number}")), "").expect("write");
    }
    assert_eq!(clean(Root::all(path(base.path()))).files, 3000);
    assert!(is_empty(base.path()));
}

#[test]
fn kept_names_and_outputs_stay() {
    let base = tempfile::tempdir().expect("tempdir");
    for name in ["in", "other"] {
        fs::create_dir(base.path().join(name)).expect("mkdir");
        fs::write(base.path().join(name).join("in"), "x").expect("write");
    }
    clean(Root { keep: &["in"], ..Root::all(path(base.path())) });
    assert!(base.path().join("in/in").exists());
    assert!(!base.path().join("other").exists());

    symlink("in", base.path().join("link")).expect("symlink");
    let report = clean(Root { links_only: true, ..Root::all(path(base.path())) });
    assert_eq!(report.files, 1);
    assert!(base.path().join("in/in").exists());
    assert!(!base.path().join("link").exists());
}

#[test]
fn a_root_that_is_missing_or_a_link_is_left_alone() {
    let base = tempfile::tempdir().expect("tempdir");
    fs::write(base.path().join("file"), "x").expect("write");
    symlink(".", base.path().join("link")).expect("symlink");
    assert_eq!(clean(Root::all(path(&base.path().join("none")))), CleanReport::default());
    assert_eq!(clean(Root::all(path(&base.path().join("link")))), CleanReport::default());
    assert!(base.path().join("file").exists());
}

#[test]
fn among_the_markers_only_the_record_of_launches_stays() {
    let base = tempfile::tempdir().expect("tempdir");
    let control = fs::File::open(base.path()).expect("open");
    let clean = || {
        let mut report = CleanReport::default();
        markers(std::os::fd::AsFd::as_fd(&control), &mut report);
        report
    };
    assert_eq!(clean(), CleanReport::default(), "without a folder");
    let ran = base.path().join("ran");
    fs::create_dir(&ran).expect("mkdir");
    fs::write(ran.join("latest"), "x").expect("write");
    fs::write(base.path().join("sock"), "").expect("write");
    assert_eq!(clean(), CleanReport::default());
    fs::create_dir_all(ran.join("deep/latest")).expect("mkdir");
    fs::write(ran.join("deep/latest/latest"), "x").expect("write");
    fs::set_permissions(ran.join("deep"), fs::Permissions::from_mode(0o000)).expect("chmod");
    assert_eq!(clean(), CleanReport { files: 3, ..CleanReport::default() });
    assert!(ran.join("latest").exists() && base.path().join("sock").exists());
    // In place of the record.
    fs::remove_file(ran.join("latest")).expect("remove");
    fs::create_dir_all(ran.join("latest/deep")).expect("mkdir");
    assert_eq!(clean(), CleanReport { files: 2, ..CleanReport::default() });
    assert!(is_empty(&ran));
    symlink("../sock", ran.join("latest")).expect("symlink");
    assert_eq!(clean(), CleanReport { files: 1, ..CleanReport::default() });
    assert!(base.path().join("sock").exists());
}
