//! What holds of objects on a server that is well.

use std::sync::Arc;

use objects::{Class, Digest, Expect, ObjectError, ObjectTier, Put, Settings, Source};

use crate::server::{Server, content, names, put_of, quick, settings, url};

#[tokio::test(flavor = "multi_thread")]
async fn objects_come_back_as_they_were_put() {
    let Some(server) = Server::start("objects_come_back_as_they_were_put") else { return };
    let tier = server.tier();
    let folder = tempfile::tempdir().expect("folder");
    let into = folder.path().join("object");
    for (seed, bytes) in [0, 1, 5 << 20, (5 << 20) + 1, (17 << 20) + 3].into_iter().enumerate() {
        let whole = content(seed as u64, bytes);
        let name = url(&format!("s3://data/a b/ü+%41={bytes}"));
        let mut file = tempfile::tempfile().expect("file");
        std::io::Write::write_all(&mut file, &whole).expect("write");
        let put = Put { digest: Some(Digest::of(&whole)), ..put_of(&whole) };
        let stored = tier.put(&name, file.into(), put).await.expect("put");
        assert_eq!((stored.bytes, stored.digest, stored.already), (bytes as u64, Digest::of(&whole), false));
        let head = tier.head(&name).await.expect("head");
        assert_eq!((head.bytes, head.digest), (bytes as u64, Some(Digest::of(&whole))));
        assert_eq!(head.etag, stored.etag);
        let fetched = tier.fetch(&name, &into, Expect::default()).await.expect("fetch");
        assert_eq!(
            (fetched.bytes, fetched.digest, fetched.verified),
            (bytes as u64, Digest::of(&whole), true)
        );
        assert!(std::fs::read(&into).expect("read") == whole);
    }
    assert_eq!(names(folder.path()), ["object"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_again_is_a_success_and_another_is_refused_unless_it_may_replace() {
    let test = "the_same_again_is_a_success_and_another_is_refused_unless_it_may_replace";
    let Some(server) = Server::start(test) else { return };
    let tier = server.tier();
    for bytes in [1000, 11 << 20] {
        let name = url(&format!("s3://data/same/{bytes}"));
        let (one, two) = (content(1, bytes), content(2, bytes));
        assert!(!tier.put(&name, one.clone().into(), put_of(&one)).await.expect("put").already);
        assert!(tier.put(&name, one.clone().into(), put_of(&one)).await.expect("again").already);
        let refused = tier.put(&name, two.clone().into(), put_of(&two)).await.expect_err("another");
        assert!(matches!(refused, ObjectError::Exists(_)), "{refused}");
        assert_eq!(refused.class(), Class::Payload);
        assert_eq!(tier.head(&name).await.expect("head").digest, Some(Digest::of(&one)));
        let over = Put { overwrite: true, ..put_of(&two) };
        assert!(!tier.put(&name, two.clone().into(), over).await.expect("over").already);
        assert_eq!(tier.head(&name).await.expect("head").digest, Some(Digest::of(&two)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_that_put_different_contents_at_once_one_wins() {
    let Some(server) = Server::start("of_several_that_put_different_contents_at_once_one_wins") else {
        return;
    };
    let tier = server.tier();
    for bytes in [1000, 6 << 20] {
        let name = url(&format!("s3://data/race/{bytes}"));
        let all = (0..4).map(|seed| {
            let (tier, name, one) = (tier.clone(), name.clone(), content(seed, bytes));
            async move { tier.put(&name, one.clone().into(), put_of(&one)).await }
        });
        let ended: Vec<_> = futures_util::future::join_all(all).await;
        let won: Vec<_> = ended.iter().flatten().collect();
        assert_eq!(won.len(), 1, "{ended:?}");
        assert!(ended.iter().all(|one| matches!(one, Ok(_) | Err(ObjectError::Exists(_)))), "{ended:?}");
        assert_eq!(tier.head(&name).await.expect("head").digest, Some(won[0].digest));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_fails_or_is_dropped_leaves_no_parts() {
    let Some(server) = Server::start("an_upload_that_fails_or_is_dropped_leaves_no_parts") else { return };
    let tier = server.tier();
    let one = content(1, 22 << 20);
    let wrong = Put { digest: Some(Digest::of(b"something else")), ..put_of(&one) };
    let refused = tier.put(&url("s3://data/x"), one.clone().into(), wrong).await.expect_err("digest");
    assert!(matches!(refused, ObjectError::Source { .. }), "{refused}");
    assert_eq!(server.files(), Vec::<std::path::PathBuf>::new());

    // Dropped as soon as the server has a part.
    let name = url("s3://data/y");
    let mut put = Box::pin(tier.put(&name, one.clone().into(), put_of(&one)));
    loop {
        tokio::select! {
            biased;
            ended = &mut put => panic!("it was too quick: {ended:?}"),
            () = tokio::time::sleep(std::time::Duration::from_millis(1)) => {}
        }
        if !server.files().is_empty() {
            break;
        }
    }
    drop(put);
    tier.settle().await;
    assert_eq!(server.files(), Vec::<std::path::PathBuf>::new());
    assert!(!tier.exists(&name).await.expect("exists"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_had_is_told_apart() {
    let Some(server) = Server::start("what_can_not_be_had_is_told_apart") else { return };
    let tier = server.tier();
    let folder = tempfile::tempdir().expect("folder");
    let into = folder.path().join("object");
    let fetch = async |name: &str| tier.fetch(&url(name), &into, Expect::default()).await.expect_err(name);
    assert!(matches!(fetch("s3://data/none").await, ObjectError::NotFound(_)));
    assert!(matches!(fetch("s3://nobucket/none").await, ObjectError::NoBucket(_)));
    let one = b"x".to_vec();
    let lost = tier.put(&url("s3://nobucket/x"), one.clone().into(), put_of(&one)).await.expect_err("bucket");
    assert!(matches!(lost, ObjectError::NoBucket(_)), "{lost}");

    let mut wrong = settings(server.address, quick());
    if let Some(who) = &mut wrong.credentials {
        who.secret_access_key = "hunter2".to_owned();
    }
    let stranger = ObjectTier::new(wrong).expect("tier");
    let nobody = ObjectTier::new(Settings { credentials: None, ..settings(server.address, quick()) });
    for tier in [stranger, nobody.expect("tier")] {
        for refused in [
            tier.fetch(&url("s3://data/none"), &into, Expect::default()).await.map(drop),
            tier.put(&url("s3://data/x"), one.clone().into(), put_of(&one)).await.map(drop),
            tier.remove(&url("s3://data/x")).await,
            tier.list(&url("s3://data/x"), 1).await.map(drop),
        ] {
            let refused = refused.expect_err("stranger");
            assert!(matches!(refused, ObjectError::Forbidden(_)), "{refused}");
            let text = format!("{refused} {refused:?} {tier:?}");
            assert!(!text.contains("hunter2") && !text.contains(crate::server::SECRET), "{text}");
        }
    }
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_listed_and_removed() {
    let Some(server) = Server::start("objects_are_listed_and_removed") else { return };
    let tier = server.tier();
    for name in ["l/b", "l/a", "l/c/d", "lx"] {
        let one = name.as_bytes().to_vec();
        let name = url(&format!("s3://data/{name}"));
        tier.put(&name, one.clone().into(), put_of(&one)).await.expect("put");
    }
    let listed = tier.list(&url("s3://data/l"), 3).await.expect("list");
    let listed: Vec<_> = listed.iter().map(|one| (one.url.to_string(), one.bytes)).collect();
    let expected = [("s3://data/l/a", 3), ("s3://data/l/b", 3), ("s3://data/l/c/d", 5)];
    assert_eq!(listed, expected.map(|(name, bytes)| (name.to_owned(), bytes)));
    assert!(matches!(tier.list(&url("s3://data/l"), 2).await, Err(ObjectError::TooMuch { .. })));
    assert_eq!(tier.list(&url("s3://data/none"), 9).await.expect("list"), []);
    let name = url("s3://data/l/a");
    assert!(tier.exists(&name).await.expect("exists"));
    tier.remove(&name).await.expect("remove");
    tier.remove(&name).await.expect("again");
    assert!(!tier.exists(&name).await.expect("exists"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_file_is_filled_and_emptied_on_failure() {
    let Some(server) = Server::start("an_open_file_is_filled_and_emptied_on_failure") else { return };
    let tier = server.tier();
    let name = url("s3://data/open");
    let one = content(1, 6 << 20);
    tier.put(&name, Source::from(one.clone()), put_of(&one)).await.expect("put");
    let file = Arc::new(tempfile::tempfile().expect("file"));
    tier.fetch_into(&name, Arc::clone(&file), Expect::default()).await.expect("fetch");
    assert_eq!(file.metadata().expect("metadata").len(), 6 << 20);
    for expect in [
        Expect { digest: Some(Digest::of(b"other")), ..Expect::default() },
        Expect { bytes_max: Some(6), ..Expect::default() },
    ] {
        let refused = tier.fetch_into(&name, Arc::clone(&file), expect).await.expect_err("expect");
        assert_eq!(refused.class(), Class::Payload, "{refused}");
        assert_eq!(file.metadata().expect("metadata").len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_only_a_trusted_server_is_spoken_to() {
    let Some((server, ca)) = Server::start_tls("over_tls_only_a_trusted_server_is_spoken_to") else { return };
    let endpoint = Some(format!("https://{}", server.address));
    let settings = Settings { endpoint, ..settings(server.address, quick()) };
    let one = content(1, 6 << 20);
    let name = url("s3://data/tls");
    let stranger = ObjectTier::new(settings.clone()).expect("tier");
    let refused = stranger.put(&name, one.clone().into(), put_of(&one)).await.expect_err("no trust");
    assert!(matches!(refused, ObjectError::Refused { .. }), "{refused}");
    assert!(refused.to_string().contains("certificate"), "{refused}");
    let tier = ObjectTier::new(Settings { ca: Some(ca), ..settings.clone() }).expect("tier");
    tier.put(&name, one.clone().into(), put_of(&one)).await.expect("put");
    let into = tempfile::NamedTempFile::new().expect("file");
    assert!(tier.fetch(&name, into.path(), Expect::default()).await.expect("fetch").verified);
    assert!(ObjectTier::new(Settings { ca: Some(b"none".to_vec()), ..settings }).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_memory_is_put_and_memory_is_filled() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let Some(server) = Server::start("sealed_memory_is_put_and_memory_is_filled") else { return };
    // Also for servers that refuse headers which they don't know.
    let plain = Settings { without_checksums: true, ..settings(server.address, quick()) };
    let tier = ObjectTier::new(plain).expect("tier");
    let one = content(1, 11 << 20);
    let memory = || {
        let fd = memfd_create("object", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memory");
        std::fs::File::from(fd)
    };
    let mut sealed = memory();
    std::io::Write::write_all(&mut sealed, &one).expect("write");
    fcntl_add_seals(&sealed, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW).expect("seal");
    let name = url("s3://data/memory");
    tier.put(&name, sealed.into(), put_of(&one)).await.expect("put");
    let filled = Arc::new(memory());
    tier.fetch_into(&name, Arc::clone(&filled), Expect::default()).await.expect("fetch");
    let mut found = vec![0; 11 << 20];
    std::os::unix::fs::FileExt::read_exact_at(&*filled, &mut found, 0).expect("read");
    assert!(found == one);
}
