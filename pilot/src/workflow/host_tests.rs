use std::path::{Path, PathBuf};

use super::{Disk, FileKind, HostFiles, is_pattern, matches, name_matches};

#[test]
fn stars_and_question_marks_match_within_one_name() {
    for (pattern, name, fits) in [
        ("*", "a", true),
        ("*", ".hidden", false),
        (".*", ".hidden", true),
        ("*.txt", "a.txt", true),
        ("*.txt", "a.txt.gz", false),
        ("a*b*c", "a-b-b-c", true),
        ("a*b*c", "a-b-b-", false),
        ("?", "é", true),
        ("?", "ab", false),
        ("a", "a", true),
        ("a", "", false),
        ("**", "", true),
    ] {
        assert_eq!(name_matches(pattern, name), fits, "{pattern} {name}");
    }
    assert!(is_pattern("a/*/b") && !is_pattern("a/[b]"));
}

#[test]
fn a_pattern_with_many_stars_takes_no_exponential_time() {
    let pattern = "a*".repeat(200);
    assert!(!name_matches(&format!("{pattern}b"), &"a".repeat(5000)));
}

#[test]
fn matches_are_sorted_and_leave_out_what_does_not_exist() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["b", "a", "c"] {
        std::fs::create_dir(folder.path().join(name)).expect("a folder");
    }
    for name in ["c/copyright", "a/copyright", "b/other"] {
        std::fs::write(folder.path().join(name), "x").expect("a file");
    }
    let found = matches(&Disk, folder.path(), "./*/copyright").expect("two match");
    let expected: Vec<PathBuf> = ["a", "c"].map(|name| folder.path().join(name).join("copyright")).into();
    assert_eq!(found, expected);
    let absolute = folder.path().join("?");
    let found =
        matches(&Disk, Path::new("/nowhere"), absolute.to_str().expect("UTF-8")).expect("three match");
    assert_eq!(found.len(), 3);
    let nothing = matches(&Disk, folder.path(), "*/absent").expect_err("nothing matches");
    assert_eq!(nothing.to_string(), "no file or folder matches");
}

#[test]
fn a_folder_whose_own_name_has_a_star_is_no_pattern() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let starred = folder.path().join("a*");
    std::fs::create_dir_all(&starred).expect("a folder");
    std::fs::create_dir_all(folder.path().join("ab")).expect("a folder");
    std::fs::write(folder.path().join("ab/x"), "").expect("a file");
    std::fs::write(starred.join("y"), "").expect("a file");
    assert_eq!(matches(&Disk, &starred, "*").expect("one matches"), [starred.join("y")]);
}

#[test]
fn the_disk_tells_files_folders_and_the_rest_apart() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    std::fs::write(folder.path().join("file"), "").expect("a file");
    assert_eq!(Disk.kind(&folder.path().join("file")).ok(), Some(FileKind::File));
    assert_eq!(Disk.kind(folder.path()).ok(), Some(FileKind::Folder));
    assert_eq!(Disk.kind(&socket).ok(), Some(FileKind::Other));
    assert!(Disk.kind(&folder.path().join("absent")).is_err());
    assert_eq!(Disk.names(folder.path(), 1).map(|names| names.len()).ok(), Some(1));
}
