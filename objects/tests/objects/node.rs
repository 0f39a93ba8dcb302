//! What holds of a cache that the processes of a machine share.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use objects::{Digest, Expect, ObjectError, ObjectTier, OncePerNode, Put, Settings};

use crate::proxy::{Fault, Proxy};
use crate::server::{Server, content, names, put_of, quick, tier, url};

const MIB: u64 = 1 << 20;

fn cache(tier: ObjectTier, folder: &Path, bytes_max: u64) -> OncePerNode {
    OncePerNode::open(tier, folder, bytes_max).expect("cache")
}

fn found(folder: &Path) -> (Vec<String>, Vec<String>) {
    (names(&folder.join("content")), names(&folder.join("unfinished")))
}

/// A process that fetches through the cache and says what it did.
#[expect(clippy::disallowed_methods, reason = "the test owns the child and waits for it")]
fn child(server: &str, folder: &Path) -> Running {
    let child = Command::new(std::env::current_exe().expect("program"))
        .args(["--exact", "node::the_child_that_is_started_by_the_others", "--nocapture", "--test-threads=1"])
        .env("OBJECTS_TEST_CHILD", format!("{server}\n{}", folder.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("child");
    Running(Some(child))
}

/// A process that does not outlive its test.
struct Running(Option<Child>);

impl Running {
    /// Waits for it and gives what it said, if it ended well.
    async fn said(mut self) -> String {
        let child = self.0.take().expect("child");
        let ended =
            tokio::task::spawn_blocking(|| child.wait_with_output().expect("wait")).await.expect("join");
        assert!(ended.status.success(), "{ended:?}");
        String::from_utf8_lossy(&ended.stdout).into_owned()
    }

    fn is_running(&mut self) -> bool {
        self.0.as_mut().is_some_and(|child| child.try_wait().expect("wait").is_none())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the parent speaks to its child through the environment")]
async fn the_child_that_is_started_by_the_others() {
    let Ok(orders) = std::env::var("OBJECTS_TEST_CHILD") else { return };
    let (server, folder) = orders.split_once('\n').expect("orders");
    let tier = tier(server.parse().expect("address"), quick());
    let (cache, name) = (cache(tier, Path::new(folder), 64 * MIB), url("s3://data/shared"));
    let held = cache.get(&name, Expect::default()).await.expect("get");
    let digest = Digest::of(&std::fs::read(format!("/proc/self/fd/{}", fd(&held))).expect("read"));
    crate::server::say(&format!("fetched={} {digest}", held.was_fetched()));
}

fn fd(held: &objects::Held) -> i32 {
    use std::os::fd::AsRawFd;
    held.file().as_raw_fd()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_that_want_the_same_share_one_fetch() {
    let Some(server) = Server::start("many_that_want_the_same_share_one_fetch") else { return };
    let one = content(1, 12 << 20);
    let name = url("s3://data/shared");
    server.tier().put(&name, one.clone().into(), put_of(&one)).await.expect("put");
    let proxy = Proxy::start(server.address, |_, _| None);
    let folder = crate::server::disk();
    let children: Vec<_> = (0..3).map(|_| child(&proxy.address.to_string(), folder.path())).collect();
    let cache = cache(tier(proxy.address, quick()), folder.path(), 64 * MIB);
    let all = (0..8).map(|_| cache.get(&name, Expect::default()));
    let held = futures_util::future::join_all(all).await;
    let mut fetched = 0;
    for held in &held {
        let held = held.as_ref().expect("get");
        fetched += usize::from(held.was_fetched());
        assert_eq!((held.bytes(), held.digest()), (12 * MIB, Some(Digest::of(&one))));
        let metadata = held.file().metadata().expect("metadata");
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o444);
        assert_eq!(metadata.ino(), held_ino(&held_file(folder.path())));
    }
    for child in children {
        let said = child.said().await;
        assert!(said.contains(&Digest::of(&one).to_string()), "{said}");
        fetched += usize::from(said.contains("fetched=true"));
    }
    assert_eq!(fetched, 1);
    // 12 MiB in ranges of 5 MiB, once.
    assert_eq!(proxy.seen().iter().filter(|seen| seen.method == "GET").count(), 3);
    assert_eq!(found(folder.path()).1, Vec::<String>::new());
}

fn held_file(folder: &Path) -> PathBuf {
    let names = names(&folder.join("content"));
    assert_eq!(names.len(), 1, "{names:?}");
    folder.join("content").join(&names[0])
}

fn held_ino(path: &Path) -> u64 {
    path.metadata().expect("metadata").ino()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetching_process_that_is_killed_leaves_nothing_that_is_taken_for_whole() {
    let test = "a_fetching_process_that_is_killed_leaves_nothing_that_is_taken_for_whole";
    let Some(server) = Server::start(test) else { return };
    let one = content(1, 12 << 20);
    let name = url("s3://data/shared");
    server.tier().put(&name, one.clone().into(), put_of(&one)).await.expect("put");
    // The last range does not come whole as long as the first process lives.
    let alive = Arc::new(AtomicBool::new(true));
    let stalls = Arc::clone(&alive);
    let proxy = Proxy::start(server.address, move |seen, _| {
        let last = seen.range.is_some_and(|(from, _)| from == 10 << 20);
        (last && stalls.load(Ordering::SeqCst)).then_some(Fault::Stall(1 << 20))
    });
    let folder = crate::server::disk();
    let mut killed = child(&proxy.address.to_string(), folder.path());
    while proxy.seen().iter().filter(|seen| seen.range.is_some()).count() < 3 {
        assert!(killed.is_running(), "the child ended");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // While it lives, who else wants the object waits for it.
    let cache = cache(tier(proxy.address, quick()), folder.path(), 64 * MIB);
    let mut waiting = Box::pin(cache.get(&name, Expect::default()));
    tokio::select! {
        ended = &mut waiting => panic!("did not wait: {ended:?}"),
        () = tokio::time::sleep(Duration::from_millis(300)) => {}
    }
    assert_eq!(found(folder.path()).0, Vec::<String>::new());
    alive.store(false, Ordering::SeqCst);
    drop(killed);
    let held = waiting.await.expect("get");
    assert!(held.was_fetched());
    assert!(std::fs::read(held_file(folder.path())).expect("read") == one);
    assert_eq!(found(folder.path()).1, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_goes_first_and_what_is_held_or_linked_stays() {
    let folder = crate::server::disk();
    let tier = ObjectTier::new(Settings::default()).expect("tier");
    let cache = cache(tier.clone(), &folder.path().join("cache"), 4 * MIB);
    let name = |seed: u64| url(&format!("file://{}/o{seed}", folder.path().display()));
    for seed in 0..8 {
        let one = content(seed, 1 << 20);
        tier.put(&name(seed), one.clone().into(), put_of(&one)).await.expect("put");
    }
    let get = async |seed: u64| cache.get(&name(seed), Expect::default()).await;
    let linked = folder.path().join("linked");
    get(0).await.expect("get").link(&linked).expect("link");
    let held = get(1).await.expect("get");
    for seed in [2, 3] {
        assert!(get(seed).await.expect("get").was_fetched());
    }
    // 2 is used again, so that 3 is the oldest that may go.
    assert!(!get(2).await.expect("get").was_fetched());
    assert!(get(4).await.expect("get").was_fetched());
    for (seed, fetched) in [(0, false), (1, false), (2, false), (4, false), (3, true)] {
        assert_eq!(get(seed).await.expect("get").was_fetched(), fetched, "{seed}");
    }
    assert_eq!(found(&folder.path().join("cache")).0.len(), 4);

    let (two, three) = (get(5).await.expect("get"), get(6).await.expect("get"));
    let full = get(7).await.expect_err("all is held or linked");
    assert!(matches!(full, ObjectError::DiskFull { .. }), "{full}");
    drop((held, two, three));
    get(7).await.expect("get");
    assert!(std::fs::read(&linked).expect("read") == content(0, 1 << 20));
    assert_eq!(found(&folder.path().join("cache")).1, Vec::<String>::new());
}

#[tokio::test]
async fn another_version_is_fetched_anew_and_wrong_bytes_are_never_kept() {
    let folder = crate::server::disk();
    let tier = ObjectTier::new(Settings::default()).expect("tier");
    let place = folder.path().join("cache");
    let cache = cache(tier.clone(), &place, 4 * MIB);
    let name = url(&format!("file://{}/x", folder.path().display()));
    let mut seen = Vec::new();
    for seed in 0..2 {
        let one = content(seed, 1000);
        tier.put(&name, one.clone().into(), Put { overwrite: true, ..put_of(&one) }).await.expect("put");
        let held = cache.get(&name, Expect::default()).await.expect("get");
        assert!(held.was_fetched());
        seen.push(held.digest());
    }
    assert_ne!(seen[0], seen[1]);
    let before = found(&place);
    let expect = Expect { digest: Some(Digest::of(b"other")), ..Expect::default() };
    assert!(matches!(cache.get(&name, expect).await, Err(ObjectError::WrongDigest { .. })));
    let expect = Expect { bytes_max: Some(999), ..Expect::default() };
    assert!(matches!(cache.get(&name, expect).await, Err(ObjectError::TooMuch { .. })));
    assert_eq!(found(&place), before);

    // Who expects of an object what another one is does not get that one, and costs nobody that one.
    let one = content(1, 1000);
    let expect = Expect { digest: Some(Digest::of(&one)), ..Expect::default() };
    assert!(!cache.get(&name, expect).await.expect("get").was_fetched());
    let other = url(&format!("file://{}/y", folder.path().display()));
    for two in [content(2, 1000), content(2, 900)] {
        let over = Put { overwrite: true, ..put_of(&two) };
        tier.put(&other, two.clone().into(), over).await.expect("put");
        assert!(matches!(cache.get(&other, expect).await, Err(ObjectError::WrongDigest { .. })));
    }
    assert!(!cache.get(&name, expect).await.expect("get").was_fetched());
    assert_eq!(found(&place), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_ever_for_a_process_that_was_stopped() {
    let folder = crate::server::disk();
    let limits = objects::Limits { request: Duration::from_millis(200), ..quick() };
    let tier = ObjectTier::new(Settings { limits, ..Settings::default() }).expect("tier");
    let place = folder.path().join("cache");
    let cache = cache(tier.clone(), &place, 4 * MIB);
    let name = url(&format!("file://{}/x", folder.path().display()));
    let one = content(1, 1000);
    tier.put(&name, one.clone().into(), put_of(&one)).await.expect("put");
    let expect = Expect { digest: Some(Digest::of(&one)), ..Expect::default() };
    drop(cache.get(&name, expect).await.expect("get"));
    // What a fetcher that goes on no more looks like.
    let shown = held_file(&place);
    let stopped = place.join("unfinished").join(shown.file_name().expect("name"));
    std::fs::rename(&shown, &stopped).expect("rename");
    let file = std::fs::File::open(&stopped).expect("file");
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).expect("lock");
    assert!(cache.get(&name, expect).await.expect("get").was_fetched());
    assert!(!cache.get(&name, expect).await.expect("get").was_fetched());
    assert!(std::fs::read(held_file(&place)).expect("read") == one);
}
