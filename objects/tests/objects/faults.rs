//! What holds when the network or the server is not well.

use std::sync::Mutex;
use std::time::Duration;

use objects::{Class, Digest, Expect, Limits, ObjectError, Put};

use crate::proxy::{Fault, Proxy};
use crate::server::{Server, content, names, put_of, quick, tier, url};

/// The size of the ranges in these tests.
const FIVE_MIB: u64 = 5 << 20;

/// What a fetch of 12 MiB through a proxy with this plan ends as, and whether the target holds the content.
async fn fetched(server: &Server, proxy: &Proxy, limits: Limits) -> Result<(), ObjectError> {
    let one = content(7, 12 << 20);
    let name = url("s3://data/fetched");
    server.tier().put(&name, one.clone().into(), put_of(&one)).await.expect("put");
    let folder = tempfile::tempdir().expect("folder");
    let into = folder.path().join("object");
    std::fs::write(&into, "before").expect("write");
    let ended = tier(proxy.address, limits).fetch(&name, &into, Expect::default()).await;
    let found = std::fs::read(&into).expect("read");
    assert!(found == if ended.is_ok() { one } else { b"before".to_vec() });
    assert_eq!(names(folder.path()), ["object"]);
    ended.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_cut_off_goes_on_from_there() {
    let Some(server) = Server::start("a_fetch_that_is_cut_off_goes_on_from_there") else { return };
    // The first two of three ranges, as long as they are asked for from their beginning.
    let proxy = Proxy::start(server.address, |seen, _| {
        let cut = matches!(seen.range, Some((0 | FIVE_MIB, _))) && seen.is("GET", "fetched");
        cut.then_some(Fault::Cut(3 << 20))
    });
    fetched(&server, &proxy, quick()).await.expect("fetch");
    let gets: Vec<_> = proxy.seen().into_iter().filter(|seen| seen.is("GET", "fetched")).collect();
    assert_eq!(gets.len(), 5, "{gets:?}");
    assert!(gets.iter().all(|seen| seen.if_match.is_some()), "{gets:?}");
    let resumed = gets.iter().filter_map(|seen| seen.range).filter(|(from, _)| from % FIVE_MIB != 0);
    let lengths: Vec<u64> = resumed.map(|(from, to)| to - from).collect();
    assert_eq!(lengths, [2 << 20; 2], "{gets:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_outlives_what_passes_and_gives_up_on_what_stays() {
    let Some(server) = Server::start("a_fetch_outlives_what_passes_and_gives_up_on_what_stays") else {
        return;
    };
    for fault in
        [Fault::Status(503, "SlowDown"), Fault::Status(500, "InternalError"), Fault::Cut(0), Fault::Short(9)]
    {
        let passing = fault.clone();
        let proxy = Proxy::start(server.address, move |seen, number| {
            (seen.is("GET", "fetched") && number < 3).then(|| passing.clone())
        });
        fetched(&server, &proxy, quick()).await.expect("fetch");
        if matches!(fault, Fault::Short(_)) {
            // It brings something each time, so it is only given up when nothing is left to bring.
            continue;
        }
        let staying = fault.clone();
        let proxy =
            Proxy::start(server.address, move |seen, _| seen.is("GET", "fetched").then(|| staying.clone()));
        let failed = fetched(&server, &proxy, quick()).await.expect_err("fetch");
        assert!(matches!(failed, ObjectError::Server { .. }), "{failed}");
        assert_eq!(failed.class(), Class::Retry);
        assert!(!failed.to_string().contains('\n'), "{failed}");
        // Each range is tried once and three times again; the first that fails ends them all.
        assert!(proxy.count("GET", "fetched") <= 3 * 4, "{}", proxy.count("GET", "fetched"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_falls_silent_is_given_up_at_the_deadline() {
    let Some(server) = Server::start("a_server_that_falls_silent_is_given_up_at_the_deadline") else {
        return;
    };
    let silent = || {
        Proxy::start(server.address, |seen, _| {
            (seen.is("GET", "fetched") || seen.is("PUT", "silent")).then_some(Fault::Stall(0))
        })
    };
    let proxy = silent();
    let limits = Limits { stall: Duration::from_millis(200), retries: 1, ..quick() };
    let failed = fetched(&server, &proxy, limits).await.expect_err("fetch");
    assert!(matches!(failed, ObjectError::Timeout { .. } | ObjectError::Server { .. }), "{failed}");
    assert_eq!(failed.class(), Class::Retry);

    let limits = Limits { operation: Duration::from_millis(500), ..quick() };
    let failed = fetched(&server, &proxy, limits).await.expect_err("fetch");
    assert!(matches!(failed, ObjectError::Timeout { .. }), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_change_on_the_way_are_found_out() {
    let Some(server) = Server::start("bytes_that_change_on_the_way_are_found_out") else { return };
    let proxy = Proxy::start(server.address, |seen, number| {
        (seen.is("GET", "fetched") && number == 1).then_some(Fault::WrongByte)
    });
    let failed = fetched(&server, &proxy, quick()).await.expect_err("fetch");
    let expected = Digest::of(&content(7, 12 << 20));
    assert!(matches!(failed, ObjectError::WrongDigest { expected: e, .. } if e == expected), "{failed}");

    let proxy = Proxy::start(server.address, |seen, _| {
        // A signed part that arrives changed is refused by the server; the proxy changes what it answers only.
        seen.is("PUT", "up").then_some(Fault::Status(400, "BadDigest"))
    });
    let one = content(1, 6 << 20);
    let refused =
        tier(proxy.address, quick()).put(&url("s3://data/up"), one.clone().into(), put_of(&one)).await;
    let refused = refused.expect_err("put");
    assert!(matches!(refused, ObjectError::Refused { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_replaced_between_two_ranges_is_found_out() {
    let Some(server) = Server::start("an_object_that_is_replaced_between_two_ranges_is_found_out") else {
        return;
    };
    let other = Mutex::new(Some(server.tier()));
    let proxy = Proxy::start(server.address, move |seen, number| {
        if seen.is("GET", "fetched") && number == 1 {
            let tier = other.lock().expect("lock").take().expect("once");
            let two = content(8, 12 << 20);
            let over = Put { overwrite: true, ..put_of(&two) };
            let put = async move { tier.put(&url("s3://data/fetched"), two.into(), over).await };
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(put).expect("put");
        }
        None
    });
    let failed = fetched(&server, &proxy, Limits { parts_at_once: 1, ..quick() }).await.expect_err("fetch");
    assert!(matches!(failed, ObjectError::Changed(_)), "{failed}");
    assert_eq!(failed.class(), Class::Retry);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_outlives_what_passes_and_leaves_nothing_of_what_stays() {
    let test = "an_upload_outlives_what_passes_and_leaves_nothing_of_what_stays";
    let Some(server) = Server::start(test) else { return };
    for (seed, fault) in
        [Fault::CutUpload(100_000), Fault::Status(503, "SlowDown"), Fault::LoseAnswer].into_iter().enumerate()
    {
        for bytes in [100_000 + 1, 12 << 20] {
            let one = content(seed as u64, bytes);
            let name = url(&format!("s3://data/up/{seed}/{bytes}"));
            let passing = fault.clone();
            // Each kind of request fails once: creating and completing an upload too.
            let proxy = Proxy::start(server.address, move |seen, number| {
                let sends = matches!(seen.method.as_str(), "PUT" | "POST");
                let cut = matches!(passing, Fault::CutUpload(_)) && seen.method == "POST";
                (sends && number == 0 && !cut).then(|| passing.clone())
            });
            let stored = tier(proxy.address, quick()).put(&name, one.clone().into(), put_of(&one)).await;
            assert_eq!(stored.expect("put").digest, Digest::of(&one));
            assert_eq!(server.tier().head(&name).await.expect("head").digest, Some(Digest::of(&one)));
        }
    }
    let before = server.files();
    let one = content(9, 12 << 20);
    for fault in [Fault::CutUpload(100_000), Fault::Status(503, "SlowDown")] {
        let proxy = Proxy::start(server.address, move |seen, number| {
            (seen.method == "PUT" && number > 0).then(|| fault.clone())
        });
        let name = url("s3://data/down");
        let failed = tier(proxy.address, quick()).put(&name, one.clone().into(), put_of(&one)).await;
        let failed = failed.expect_err("put");
        assert!(matches!(failed, ObjectError::Server { .. }), "{failed}");
        assert!(proxy.count("DELETE", "uploadId") > 0, "the upload is not given up");
        assert!(!server.tier().exists(&name).await.expect("exists"));
    }
    // A part that was cut off may end on the server a moment after the upload was given up.
    let left = || server.files().iter().filter(|file| !before.contains(file)).count();
    for _ in 0..200 {
        if left() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(left(), 0, "{:?}", server.files());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_dropped_leaves_nothing() {
    let Some(server) = Server::start("a_fetch_that_is_dropped_leaves_nothing") else { return };
    let one = content(7, 12 << 20);
    let name = url("s3://data/fetched");
    server.tier().put(&name, one.clone().into(), put_of(&one)).await.expect("put");
    let proxy =
        Proxy::start(server.address, |seen, _| seen.is("GET", "fetched").then_some(Fault::Stall(2 << 20)));
    let tier = tier(proxy.address, quick());
    let folder = tempfile::tempdir().expect("folder");
    let into = folder.path().join("object");
    let mut fetch = Box::pin(tier.fetch(&name, &into, Expect::default()));
    while proxy.count("GET", "fetched") < 3 {
        tokio::select! {
            biased;
            ended = &mut fetch => panic!("it can't end: {ended:?}"),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    }
    assert_eq!(names(folder.path()).len(), 1);
    drop(fetch);
    assert_eq!(names(folder.path()), Vec::<String>::new());
}
