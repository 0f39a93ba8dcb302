//! What holds of objects that are files.

use std::path::Path;
use std::process::Command;

use objects::{Class, Digest, Expect, ObjectError, ObjectTier, ObjectUrl, Put, Settings};

use crate::server::{content, names, put_of, say, skipped, url};

fn tier() -> ObjectTier {
    ObjectTier::new(Settings::default()).expect("tier")
}

fn below(folder: &Path, name: &str) -> ObjectUrl {
    url(&format!("file://{}/{name}", folder.display()))
}

#[tokio::test]
async fn files_come_back_as_they_were_put() {
    let folder = tempfile::tempdir().expect("folder");
    let tier = tier();
    let into = folder.path().join("into");
    for (seed, bytes) in [0, 1, (3 << 20) + 1].into_iter().enumerate() {
        let one = content(seed as u64, bytes);
        let name = below(folder.path(), &format!("o{bytes}"));
        let stored = tier.put(&name, one.clone().into(), put_of(&one)).await.expect("put");
        assert_eq!((stored.digest, stored.already), (Digest::of(&one), false));
        assert_eq!(tier.head(&name).await.expect("head").etag, stored.etag);
        let fetched = tier.fetch(&name, &into, Expect::default()).await.expect("fetch");
        // A file keeps no digest.
        assert_eq!((fetched.digest, fetched.verified), (Digest::of(&one), false));
        let expect = Expect { digest: Some(Digest::of(&one)), ..Expect::default() };
        assert!(tier.fetch(&name, &into, expect).await.expect("fetch").verified);
        assert!(std::fs::read(&into).expect("read") == one);
    }
    assert_eq!(names(folder.path()), ["into", "o0", "o1", "o3145729"]);
}

#[tokio::test]
async fn a_different_file_is_only_replaced_when_that_is_said() {
    let folder = tempfile::tempdir().expect("folder");
    let (tier, name) = (tier(), below(folder.path(), "x"));
    let put = async |text: &str, overwrite: bool| {
        let one = text.as_bytes().to_vec();
        tier.put(&name, one.clone().into(), Put { overwrite, ..put_of(&one) }).await
    };
    assert!(!put("one", false).await.expect("put").already);
    assert!(put("one", false).await.expect("again").already);
    for other in ["two", "three"] {
        assert!(matches!(put(other, false).await, Err(ObjectError::Exists(_))));
        assert_eq!(std::fs::read(folder.path().join("x")).expect("read"), b"one");
    }
    assert!(!put("two", true).await.expect("over").already);
    assert_eq!(std::fs::read(folder.path().join("x")).expect("read"), b"two");
    assert_eq!(names(folder.path()), ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_that_put_different_files_at_once_one_wins() {
    let folder = tempfile::tempdir().expect("folder");
    let (tier, name) = (tier(), below(folder.path(), "x"));
    let all = (0..8).map(|seed| {
        let (tier, name, one) = (tier.clone(), name.clone(), content(seed, 100_000));
        async move { tier.put(&name, one.clone().into(), put_of(&one)).await }
    });
    let ended = futures_util::future::join_all(all).await;
    assert_eq!(ended.iter().filter(|one| one.is_ok()).count(), 1, "{ended:?}");
    assert!(ended.iter().all(|one| matches!(one, Ok(_) | Err(ObjectError::Exists(_)))), "{ended:?}");
    assert_eq!(names(folder.path()), ["x"]);
}

#[tokio::test]
async fn what_fails_leaves_nothing_and_touches_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let (tier, name) = (tier(), below(folder.path(), "x"));
    let one = content(1, 100_000);
    for put in [
        Put { digest: Some(Digest::of(b"other")), ..put_of(&one) },
        Put { bytes: 100_001, ..put_of(&one) },
        Put { bytes: 99_999, ..put_of(&one) },
    ] {
        let refused = tier.put(&name, one.clone().into(), put).await.expect_err("put");
        assert!(matches!(refused, ObjectError::Source { .. }), "{refused}");
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }
    tier.put(&name, one.clone().into(), put_of(&one)).await.expect("put");
    let into = folder.path().join("into");
    std::fs::write(&into, "before").expect("write");
    for expect in [
        Expect { digest: Some(Digest::of(b"other")), ..Expect::default() },
        Expect { bytes_max: Some(99_999), ..Expect::default() },
    ] {
        assert_eq!(tier.fetch(&name, &into, expect).await.expect_err("fetch").class(), Class::Payload);
        assert_eq!(std::fs::read(&into).expect("read"), b"before");
    }
    assert_eq!(names(folder.path()), ["into", "x"]);
}

#[tokio::test]
async fn what_is_no_object_is_refused_at_once() {
    let folder = tempfile::tempdir().expect("folder");
    let tier = tier();
    std::fs::create_dir(folder.path().join("sub")).expect("folder");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        folder.path().join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .expect("fifo");
    let into = folder.path().join("into");
    for name in ["sub", "fifo"] {
        let name = below(folder.path(), name);
        let refused = tier.fetch(&name, &into, Expect::default()).await.expect_err("fetch");
        assert!(matches!(refused, ObjectError::NotAFile(_)), "{refused}");
        assert!(matches!(tier.remove(&name).await, Err(ObjectError::NotAFile(_))));
        let over = Put { overwrite: true, ..put_of(b"x") };
        let refused = tier.put(&name, b"x".to_vec().into(), over).await.expect_err("put");
        assert!(matches!(refused, ObjectError::NotAFile(_)), "{refused}");
    }
    let missing = below(folder.path(), "none/x");
    assert!(matches!(
        tier.put(&missing, b"x".to_vec().into(), put_of(b"x")).await,
        Err(ObjectError::NoBucket(_))
    ));
    assert!(matches!(tier.fetch(&missing, &into, Expect::default()).await, Err(ObjectError::NoBucket(_))));
    let none = below(folder.path(), "none");
    assert!(matches!(tier.fetch(&none, &into, Expect::default()).await, Err(ObjectError::NotFound(_))));
    assert_eq!(names(folder.path()), ["fifo", "sub"]);
}

#[tokio::test]
async fn files_are_listed_and_removed() {
    let folder = tempfile::tempdir().expect("folder");
    let tier = tier();
    std::fs::create_dir(folder.path().join("sub")).expect("folder");
    for name in ["b", "sub/a", ".latebind-0.part"] {
        std::fs::write(folder.path().join(name), name).expect("write");
    }
    std::os::unix::fs::symlink("/", folder.path().join("link")).expect("link");
    let all = url(&format!("file://{}", folder.path().display()));
    let listed: Vec<_> =
        tier.list(&all, 2).await.expect("list").into_iter().map(|one| (one.url, one.bytes)).collect();
    assert_eq!(listed, [(below(folder.path(), "b"), 1), (below(folder.path(), "sub/a"), 5)]);
    assert!(matches!(tier.list(&all, 1).await, Err(ObjectError::TooMuch { .. })));
    let name = below(folder.path(), "b");
    tier.remove(&name).await.expect("remove");
    tier.remove(&name).await.expect("again");
    assert!(!tier.exists(&name).await.expect("exists"));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test needs a small disk and waits for its process")]
fn a_full_disk_is_said_plainly_and_left_as_it_was() {
    let test = "a_full_disk_is_said_plainly_and_left_as_it_was";
    let folder = tempfile::tempdir().expect("folder");
    let child = |word: &str| {
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
            .arg(format!("mount -t tmpfs -o size=1m none \"$0\" || exit 9; {word}"))
            .arg(folder.path())
            .arg(std::env::current_exe().expect("program"))
            .env("OBJECTS_TEST_SMALL_DISK", folder.path())
            .output()
    };
    if !child("exit 0").is_ok_and(|ended| ended.status.success()) {
        skipped(test, "unshare(1) and user namespaces");
        return;
    }
    let ended = child("exec \"$1\" --exact files::the_child_with_a_small_disk --nocapture").expect("child");
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success() && said.contains("the disk was full"), "{said}");
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the parent speaks to its child through the environment")]
async fn the_child_with_a_small_disk() {
    let Ok(folder) = std::env::var("OBJECTS_TEST_SMALL_DISK") else { return };
    let folder = Path::new(&folder);
    let tier = tier();
    let (small, large) = (content(1, 600 << 10), content(2, 2 << 20));
    let name = below(folder, "small");
    tier.put(&name, small.clone().into(), put_of(&small)).await.expect("put");
    let failed = [
        tier.put(&below(folder, "large"), large.clone().into(), put_of(&large)).await.map(drop),
        tier.fetch(&name, &folder.join("into"), Expect::default()).await.map(drop),
    ];
    for failed in failed {
        let failed = failed.expect_err("no room");
        assert!(matches!(failed, ObjectError::DiskFull { .. }) && failed.class() == Class::Retry, "{failed}");
    }
    assert_eq!(names(folder), ["small"]);
    say("the disk was full");
}
