//! Several processes and threads on one store, one of them killed at any moment: nothing that was stored is
//! lost, nothing half-stored is visible, and what is left is swept.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use image_store::layout::{Compression, LayerBlob, LayerBuilder};
use image_store::{Attach, ImageId, Options, Progress, Reference, RegistryAccess, Store};

use crate::common::{Place, chain, count_files, skipped};

const FILES: usize = 600;

fn layers(seed: u64) -> Vec<LayerBlob> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut shared = LayerBuilder::new();
    let mut own = LayerBuilder::new();
    for number in 0..FILES {
        shared = shared.file(format!("shared/{}/{number}", number % 20), 0o644, format!("shared {number}"));
        let noise: Vec<u8> = (0..random.usize(1..3000)).map(|_| random.u8(..)).collect();
        own = own.file(format!("own/{}/{number}", number % 20), 0o644, noise);
    }
    [shared, own].map(|layer| layer.finish(Compression::Gzip).unwrap()).to_vec()
}

/// Runs this test binary again as a process that ingests and materialises. With `die_at` it kills itself,
/// as with kill -9, when so many thousandths of the layers are read.
#[expect(clippy::disallowed_methods, reason = "the test owns the child and waits for it")]
fn child(reference: &Reference, store: &Path, local: &Path, die_at: Option<u64>) -> Child {
    let die_at = die_at.map(|at| at.to_string()).unwrap_or_default();
    let orders = format!("{reference}\n{}\n{}\n{die_at}\n.", store.display(), local.display());
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "races::the_child_that_is_started_by_the_others", "--nocapture"])
        .env("IMAGE_STORE_TEST_CHILD", orders)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the parent speaks to its child through the environment")]
fn the_child_that_is_started_by_the_others() {
    let Ok(orders) = std::env::var("IMAGE_STORE_TEST_CHILD") else { return };
    let orders: Vec<&str> = orders.lines().collect();
    let die_at: Option<u64> = orders[3].parse().ok();
    let options = Options { lazy_sync: true, ..Options::default() };
    let store = Store::open_with(Path::new(orders[1]), options).unwrap();
    let progress = |progress: Progress| {
        if die_at.is_some_and(|at| progress.bytes_done * 1000 >= progress.bytes_total * at) {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    };
    let image = store.ingest(&orders[0].parse().unwrap(), &RegistryAccess::anonymous(), &progress).unwrap();
    store.materialise(&image, Attach::Copy, Path::new(orders[2]), false).unwrap();
}

fn check_whole(store: &Store, image: &ImageId, local: &Path) {
    let verified = store.verify(image).unwrap();
    assert!(verified.damaged.is_empty());
    store.materialise(image, Attach::Copy, local, false).unwrap();
    let tree = fs::read_dir(local.join("trees")).unwrap().map(|entry| entry.unwrap().path());
    let names: Vec<usize> = tree.map(|tree| count_files(&tree.join("own"))).collect();
    assert!(!names.is_empty() && names.iter().all(|count| *count == FILES), "{names:?}");
}

#[test]
fn a_process_killed_at_any_moment_loses_nothing_and_leaves_nothing() {
    let mut place = Place::new();
    let stored = ImageId::new(place.add("stored", layers(1)).manifest);
    let killed = place.add("killed", layers(2));
    let (path, local) = (place.path("store"), place.path("local"));
    place.store().ingest(&place.reference("stored"), &RegistryAccess::anonymous(), &|_| {}).unwrap();
    for die_at in [1, 200, 400, 600, 800, 999] {
        let mut child = child(&place.reference("killed"), &path, &local, Some(die_at));
        assert!(!child.wait().unwrap().success(), "killed at {die_at}");
        assert_eq!(fs::read_dir(path.join("ingest")).unwrap().count(), 1, "left by the child at {die_at}");
        let store = place.store();
        assert_eq!(fs::read_dir(path.join("ingest")).unwrap().count(), 0, "swept after {die_at}");
        assert_eq!(store.list().unwrap().len(), 1);
        assert!(store.verify(&stored).unwrap().damaged.is_empty());
    }
    // Later moments, by what is to be seen of them: the tree, the record, the copy under way.
    let later = [path.join("trees"), path.join("images"), local.join("trees")];
    for (folder, entries) in later.iter().zip([2, 2, 1]) {
        let mut child = child(&place.reference("killed"), &path, &local, None);
        while fs::read_dir(folder).map_or(0, Iterator::count) < entries && child.try_wait().unwrap().is_none()
        {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let store = place.store();
        for image in store.list().unwrap() {
            assert!(store.verify(&image.image).unwrap().damaged.is_empty());
        }
        let _ = store.remove(&ImageId::new(killed.manifest));
        store.collect().unwrap();
        assert!(store.verify(&stored).unwrap().damaged.is_empty());
    }
    let store = place.store();
    let image = store.ingest(&place.reference("killed"), &RegistryAccess::anonymous(), &|_| {}).unwrap();
    check_whole(&store, &image, &local);
    assert_eq!(fs::read_dir(local.join("trees")).unwrap().count(), 1, "no rubbish beside the tree");
}

#[test]
fn processes_and_threads_that_ingest_at_once_agree() {
    let mut place = Place::new();
    let written = place.add("1", layers(1));
    place.add("2", layers(2));
    place.add("3", layers(3));
    let (path, local) = (place.path("store"), place.path("local"));
    let tags = ["1", "2", "3", "1"];
    let mut children: Vec<Child> = tags
        .iter()
        .map(|tag| child(&place.reference(tag), &path, &place.path(&format!("local-{tag}")), None))
        .collect();
    let store = place.store();
    std::thread::scope(|scope| {
        for tag in tags {
            let (store, place) = (&store, &place);
            scope.spawn(move || {
                store.ingest(&place.reference(tag), &RegistryAccess::anonymous(), &|_| {}).unwrap()
            });
        }
    });
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(store.list().unwrap().len(), 3);
    for image in store.list().unwrap() {
        assert!(store.verify(&image.image).unwrap().damaged.is_empty());
    }
    check_whole(&store, &ImageId::new(written.manifest), &local);
    assert_eq!(fs::read_dir(path.join("ingest")).unwrap().count(), 0);
    assert_eq!(store.collect().unwrap().objects, 0, "nothing that no image needs");
    assert_eq!(fs::read_dir(place.path("local-1/trees")).unwrap().count(), 1);
}

#[test]
fn a_collection_waits_for_nobody_and_takes_nothing_from_an_ingest() {
    let mut place = Place::new();
    place.add("1", layers(1));
    let store = place.store();
    let other = place.store();
    let image = store
        .ingest(&place.reference("1"), &RegistryAccess::anonymous(), &|progress| {
            assert!(progress.bytes_done <= progress.bytes_total);
            assert!(matches!(other.collect(), Err(image_store::StoreError::Busy)));
        })
        .unwrap();
    check_whole(&store, &image, &place.path("local"));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the parent speaks to its child through the environment")]
fn the_child_with_a_small_disk() {
    let Ok(orders) = std::env::var("IMAGE_STORE_TEST_SMALL_DISK") else { return };
    let orders: Vec<&str> = orders.lines().collect();
    let options = Options { lazy_sync: true, ..Options::default() };
    let store = Store::open_with(&Path::new(orders[1]).join("store"), options).unwrap();
    let error = store.ingest(&orders[0].parse().unwrap(), &RegistryAccess::anonymous(), &|_| {}).unwrap_err();
    assert!(store.list().unwrap().is_empty());
    assert_eq!(count_files(&store.path().join("files")), 0, "what was written is collected");
    std::fs::write(orders[2], chain(&error)).unwrap();
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test owns the child and waits for it")]
fn a_full_disk_is_said_plainly_and_left_as_it_was() {
    let test = "a_full_disk_is_said_plainly_and_left_as_it_was";
    let mut place = Place::new();
    let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(400_000).collect();
    let layer = (0..20).fold(LayerBuilder::new(), |layer, n| {
        layer.file(format!("f{n}"), 0o644, [&noise[..], &[n]].concat())
    });
    place.add("t", vec![layer.finish(Compression::None).unwrap()]);
    let (disk, said) = (place.path("disk"), place.path("said"));
    fs::create_dir(&disk).unwrap();
    let script = "mount -t tmpfs -o size=4m none \"$1\" || exit 99; shift; exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(&disk)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "races::the_child_with_a_small_disk", "--nocapture"])
        .env(
            "IMAGE_STORE_TEST_SMALL_DISK",
            format!("{}\n{}\n{}", place.reference("t"), disk.display(), said.display()),
        )
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => return skipped(test, &format!("unshare: {error}")),
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(99) || (!said.exists() && errors.contains("unshare")) {
        return skipped(test, errors.trim());
    }
    assert!(output.status.success(), "{errors}");
    let said = fs::read_to_string(said).unwrap();
    assert!(said.contains("no space is left there") && !said.contains('\n'), "{said}");
}
