//! Images of registries in the store: shared layers, a killed pull, a full disk, a store that can't be written.

use std::error::Error;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use image_store::layout::{Compression, ImageSpec, LayerBlob, LayerBuilder};
use image_store::{Options, Patience, Reference, RegistryAccess, Store};
use pilot_tests::registry::{Fault, Misbehaving};

fn access() -> RegistryAccess {
    let mut access = RegistryAccess::anonymous();
    access.patience =
        Patience { tries: 2, first_wait: std::time::Duration::from_millis(5), ..Patience::default() };
    access.certificate_folders.clear();
    access
}

fn open(path: &Path) -> Store {
    Store::open_with(path, Options { lazy_sync: true, ..Options::default() }).expect("store")
}

/// A layer that no compressor makes shorter.
fn layer(seed: u64, bytes: usize) -> LayerBlob {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let noise = (0..bytes).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    });
    let noise: Vec<u8> = noise.collect();
    let builder =
        LayerBuilder::new().file(format!("data/{seed}"), 0o644, noise).file("same", 0o644, seed.to_string());
    builder.finish(Compression::Gzip).expect("layer")
}

fn reference(registry: &Misbehaving, tag: &str) -> Reference {
    format!("docker://{}/t:{tag}", registry.host()).parse().expect("reference")
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    assert!(!text.contains('\n'), "{text}");
    text
}

#[test]
fn a_shared_layer_is_neither_fetched_nor_decoded_twice() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(&dir.path().join("store"));
    let registry = Misbehaving::start();
    let (base, one, two) = (layer(1, 50_000), layer(2, 1000), layer(3, 1000));
    registry.add("1", &ImageSpec::default(), vec![base.clone(), one]);
    registry.add("2", &ImageSpec::default(), vec![base.clone(), two.clone()]);
    let first = store.ingest(&reference(&registry, "1"), &access(), &|_| {}).expect("pull");
    // What an upper layer hides stays for the next image, also over a collection.
    assert_eq!(store.collect().expect("collect").objects, 0);
    registry.seen();
    let preflight = store.preflight(&reference(&registry, "2"), &access()).expect("preflight");
    assert_eq!(preflight.bytes_missing, two.bytes.len() as u64);
    let second = store.ingest(&reference(&registry, "2"), &access(), &|_| {}).expect("pull");
    let seen = registry.seen();
    let of_base: Vec<_> = seen.iter().filter(|seen| seen.path.contains(&base.digest().to_string())).collect();
    assert!(of_base.iter().all(|seen| seen.method == "HEAD"), "{of_base:?}");
    assert!(store.verify_all().expect("verify").damages.is_empty());
    // The tree is the same as if all had been read.
    let alone = open(&dir.path().join("alone"));
    alone.ingest(&reference(&registry, "2"), &access(), &|_| {}).expect("pull");
    let tree = |store: &Store| {
        let chain = second;
        let record =
            std::fs::read(store.path().join("images").join(format!("{}.json", chain.digest().hex())));
        let record: serde_json::Value = serde_json::from_slice(&record.expect("record")).expect("JSON");
        let name = record["chain"].as_str().expect("chain").trim_start_matches("sha256:").to_owned();
        std::fs::read(store.path().join("trees").join(format!("{name}.tree"))).expect("tree")
    };
    assert_eq!(tree(&store), tree(&alone));
    // Each counts what is its own, and removing one leaves the other whole.
    let usage = store.usage().expect("usage");
    assert_eq!(usage.images.len(), 2);
    assert!(
        usage.images.iter().all(|image| image.shared_bytes >= 50_000 && image.unique_bytes <= 1100),
        "{usage:?}"
    );
    assert_eq!((usage.unused_bytes, usage.part_bytes), (0, 0));
    let object_bytes: u64 = usage.images.iter().map(|image| image.unique_bytes).sum();
    assert_eq!(object_bytes + usage.images[0].shared_bytes, usage.object_bytes);
    store.remove(&first).expect("remove");
    let freed = store.collect().expect("collect");
    let own = usage.images.iter().find(|image| image.image == first).expect("image");
    assert!(freed.bytes >= own.unique_bytes, "{freed:?} {own:?}");
    assert!(store.verify_all().expect("verify").damages.is_empty());
}

#[test]
fn damage_is_found_wherever_it_is() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(&dir.path().join("store"));
    let registry = Misbehaving::start();
    registry.add("1", &ImageSpec::default(), vec![layer(1, 5000)]);
    let image = store.ingest(&reference(&registry, "1"), &access(), &|_| {}).expect("pull");
    for (folder, word) in
        [("files", "content"), ("blobs/sha256", "document"), ("trees", "tree"), ("layers", "layer")]
    {
        let mut open = vec![store.path().join(folder)];
        let file = loop {
            let path = open.pop().expect("a file");
            if path.is_file() {
                break path;
            }
            open.extend(std::fs::read_dir(&path).expect("folder").map(|entry| entry.expect("entry").path()));
        };
        let right = std::fs::read(&file).expect("read");
        let mut wrong = right.clone();
        let middle = wrong.len() / 2;
        wrong[middle] ^= 1;
        std::fs::remove_file(&file).expect("remove");
        std::fs::write(&file, wrong).expect("write");
        let damages = store.verify_all().expect("verify").damages;
        assert!(damages.iter().any(|damage| damage.what.starts_with(word)), "{word}: {damages:?}");
        if word == "content" {
            assert_eq!(damages[0].images, [image]);
        }
        std::fs::write(&file, right).expect("write");
        assert!(store.verify_all().expect("verify").damages.is_empty());
    }
}

/// Runs this test binary again as a process that pulls and kills itself half-way; `orders` are store and reference.
#[expect(clippy::disallowed_methods, reason = "the test waits for it")]
fn child(orders: &str) -> std::process::ExitStatus {
    Command::new(std::env::current_exe().expect("program"))
        .args(["--exact", "the_child_that_is_started_by_the_others", "--nocapture"])
        .env("LATEBIND_TEST_CHILD", orders)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .status()
        .expect("child")
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the parent speaks to its child through the environment")]
fn the_child_that_is_started_by_the_others() {
    let Ok(orders) = std::env::var("LATEBIND_TEST_CHILD") else { return };
    let orders: Vec<&str> = orders.lines().collect();
    let reference: Reference = orders[1].parse().expect("reference");
    let path = Path::new(orders[0]);
    let progress = |progress: image_store::Progress| {
        if progress.bytes_done >= progress.bytes_total / 2 {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    };
    let _ = open(path).ingest(&reference, &access(), &progress);
}

#[test]
fn a_pull_that_was_killed_goes_on_where_it_was() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("store");
    let registry = Misbehaving::start();
    let blob = layer(1, 2_000_000);
    registry.add("1", &ImageSpec::default(), vec![blob.clone()]);
    // It gets a bit more than half and then waits, so that where it is killed is known.
    let sent = blob.bytes.len() * 3 / 4;
    registry.fault(blob.digest().to_string(), Fault::Stall(sent), 1);
    let status = child(&format!("{}\n{}", path.display(), reference(&registry, "1")));
    assert_eq!(status.signal(), Some(9));
    let store = open(&path);
    assert!(store.list().expect("list").is_empty());
    let part = std::fs::metadata(path.join("parts").join(blob.digest().hex())).expect("part").len();
    assert!(part >= blob.bytes.len() as u64 / 2 && part <= sent as u64, "{part}");
    registry.seen();
    let image = store.ingest(&reference(&registry, "1"), &access(), &|_| {}).expect("pull");
    let asked: Vec<_> = registry.fetched(&blob.digest()).into_iter().map(|seen| seen.range).collect();
    assert_eq!(asked, [Some(format!("bytes={part}-"))], "only the rest is fetched");
    assert!(store.verify(&image).expect("verify").damaged.is_empty());
    assert_eq!(std::fs::read_dir(path.join("ingest")).expect("ingest").count(), 0);
}

#[test]
fn parts_that_nobody_goes_on_with_are_collected() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(&dir.path().join("store"));
    let parts = store.path().join("parts");
    for (name, age_s) in [("old", 8 * 24 * 3600), ("new", 3600)] {
        let file = std::fs::File::create(parts.join(name)).expect("part");
        let now = file.metadata().and_then(|meta| meta.modified()).expect("time");
        file.set_modified(now - std::time::Duration::from_secs(age_s)).expect("time");
    }
    store.collect().expect("collect");
    assert!(!parts.join("old").exists() && parts.join("new").exists());
}

/// Gives this test's thread mounts of its own, which go with it.
#[expect(deprecated, reason = "mounts alone are unshared, which breaks no promise of the standard library")]
fn own_mounts() -> rustix::io::Result<()> {
    use rustix::mount::MountPropagationFlags as Flags;
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS)?;
    rustix::mount::mount_change("/", Flags::PRIVATE | Flags::REC)
}

/// A mount that goes at the end of its test, however that ends.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_is_one_clear_line_and_leaves_room() {
    let name = "a_full_disk_is_one_clear_line_and_leaves_room";
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("small");
    std::fs::create_dir(&path).expect("mkdir");
    if !rustix::process::geteuid().is_root() {
        return pilot_tests::skipped(name, "root, to mount a small file system");
    }
    let none = rustix::mount::MountFlags::empty();
    let mounted =
        own_mounts().and_then(|()| rustix::mount::mount("tmpfs", &path, "tmpfs", none, Some(c"size=3m")));
    if let Err(error) = mounted {
        return pilot_tests::skipped(name, &format!("a small file system: {error}"));
    }
    let _mounted = Mounted(path.clone());
    let registry = Misbehaving::start();
    registry.add("1", &ImageSpec::default(), vec![layer(1, 4_000_000)]);
    registry.add("2", &ImageSpec::default(), vec![layer(2, 500_000)]);
    let store = open(&path.join("store"));
    let error = store.ingest(&reference(&registry, "1"), &access(), &|_| {}).expect_err("full");
    let text = chain(&error);
    assert!(error.is_store_fault() && text.contains("no space is left"), "{text}");
    // What is half there does not keep others out.
    store.ingest(&reference(&registry, "2"), &access(), &|_| {}).expect("a smaller image");
}

#[test]
fn a_read_only_store_gives_what_it_has_and_says_why_not_more() {
    let name = "a_read_only_store_gives_what_it_has_and_says_why_not_more";
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("store");
    let registry = Misbehaving::start();
    registry.add("1", &ImageSpec::default(), vec![layer(1, 1000)]);
    registry.add("2", &ImageSpec::default(), vec![layer(2, 1000)]);
    open(&path).ingest(&reference(&registry, "1"), &access(), &|_| {}).expect("pull");
    if !rustix::process::geteuid().is_root() {
        return pilot_tests::skipped(name, "root, to mount the store read-only");
    }
    use rustix::mount::{MountFlags, mount_bind, mount_remount};
    let mounted = own_mounts()
        .and_then(|()| mount_bind(&path, &path))
        .and_then(|()| mount_remount(&path, MountFlags::BIND | MountFlags::RDONLY, c""));
    let _mounted = Mounted(path.clone());
    if let Err(error) = mounted {
        return pilot_tests::skipped(name, &format!("a read-only mount: {error}"));
    }
    let store = open(&path);
    store.ingest(&reference(&registry, "1"), &access(), &|_| {}).expect("what is stored");
    let error = store.ingest(&reference(&registry, "2"), &access(), &|_| {}).expect_err("read-only");
    let text = chain(&error);
    assert!(error.is_store_fault() && text.contains("read-only"), "{text}");
}
