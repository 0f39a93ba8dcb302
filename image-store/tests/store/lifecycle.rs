//! A store over its life: opening, listing, holding, removing, collecting, verifying, and what it says about
//! users and programs of an image.

use std::fs;
use std::path::Path;

use image_store::layout::{Compression, LayerBlob, LayerBuilder};
use image_store::{RegistryAccess, Store};

use crate::common::{Place, chain, count_files, skipped};

fn layer(builder: LayerBuilder) -> Vec<LayerBlob> {
    vec![builder.finish(Compression::Gzip).unwrap()]
}

#[test]
fn a_store_of_an_unknown_format_is_refused_and_untouched() {
    let place = Place::new();
    let path = place.path("store");
    drop(place.store());
    fs::write(path.join("FORMAT"), "{\"version\":2}\n").unwrap();
    let rubbish = path.join("ingest/rubbish");
    fs::create_dir(&rubbish).unwrap();
    let before = count_files(&path);
    let error = chain(&Store::open(&path).unwrap_err());
    assert!(error.contains("{\\\"version\\\":2}") && error.contains("not known"), "{error}");
    assert!(count_files(&path) == before && rubbish.exists());
}

#[test]
fn a_folder_with_something_else_in_it_is_not_made_a_store() {
    let place = Place::new();
    let path = place.path("home");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("thesis.tex"), "x").unwrap();
    let error = chain(&Store::open(&path).unwrap_err());
    assert!(error.contains("not empty"), "{error}");
    assert_eq!(count_files(&path), 1);
}

#[test]
fn a_store_that_was_half_made_is_finished() {
    let place = Place::new();
    let path = place.path("store");
    fs::create_dir_all(path.join("files/ab")).unwrap();
    fs::write(path.join(".FORMAT-0123"), "{").unwrap();
    Store::open(&path).unwrap();
    assert!(path.join("FORMAT").exists() && path.join("blobs/sha256").is_dir());
}

#[test]
fn images_share_contents_and_a_collection_takes_only_what_no_one_needs() {
    let mut place = Place::new();
    let one = LayerBuilder::new().file("shared", 0o644, "shared").file("one", 0o644, "only in one");
    let two = LayerBuilder::new().file("shared", 0o755, "shared").file("two", 0o644, "only in two");
    place.add("1", layer(one));
    place.add("2", layer(two));
    let store = Store::open(&place.path("store")).unwrap();
    let first = store.ingest(&place.reference("1"), &RegistryAccess::anonymous(), &|_| {}).unwrap();
    let second = store.ingest(&place.reference("2"), &RegistryAccess::anonymous(), &|_| {}).unwrap();
    assert_eq!(count_files(&place.path("store/files")), 3);
    let listed = store.list().unwrap();
    assert_eq!(listed.len(), 2);
    let listed = listed.iter().find(|image| image.image == first).unwrap();
    assert_eq!(listed.references, [place.reference("1").to_string()]);
    assert_eq!(listed.unpacked_bytes, 17);
    assert_eq!(store.resolve(&place.reference("1").to_string()).unwrap(), first);
    assert_eq!(store.resolve(&first.to_string()).unwrap(), first);
    assert_eq!(store.resolve(&first.digest().hex()[..12]).unwrap(), first);
    assert!(store.resolve("oci:gone").is_err());

    let hold = store.hold(&first).unwrap();
    let error = chain(&place.store().remove(&first).unwrap_err());
    assert!(error.contains("in use"), "{error}");
    drop(hold);
    store.remove(&first).unwrap();
    assert!(store.remove(&first).is_err() && store.hold(&first).is_err());
    let collected = store.collect().unwrap();
    assert_eq!(collected.objects, 3, "a content, a manifest, a configuration");
    assert_eq!(count_files(&place.path("store/files")), 2);
    assert_eq!(count_files(&place.path("store/trees")), 1);
    assert!(store.verify(&second).unwrap().damaged.is_empty());
    assert_eq!(store.collect().unwrap().objects, 0);
}

#[test]
fn damage_is_found_and_repaired_by_a_new_ingest() {
    let mut place = Place::new();
    let (store, image) = place.ingest(layer(LayerBuilder::new().file("f", 0o644, "content"))).unwrap();
    let digest = image_store::Digest::of(b"content");
    let object = place.path("store/files").join(&digest.hex()[..2]).join(digest.hex());
    fs::remove_file(&object).unwrap();
    fs::write(&object, "changed").unwrap();
    assert_eq!(store.verify(&image).unwrap().damaged, [digest]);
    let tree = fs::read_dir(place.path("store/trees")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&tree).unwrap();
    bytes[5] ^= 1;
    fs::write(&tree, bytes).unwrap();
    let store = place.store();
    let error = chain(&store.verify(&image).unwrap_err());
    assert!(error.contains("ingest it again"), "{error}");
    fs::write(&object, "torn").unwrap();
    store.ingest(&place.reference("t"), &RegistryAccess::anonymous(), &|_| {}).unwrap();
    assert!(place.store().verify(&image).unwrap().damaged.is_empty());
}

#[test]
fn a_user_is_found_in_the_accounts_of_the_image() {
    let mut place = Place::new();
    let builder = LayerBuilder::new()
        .file("usr/etc/passwd", 0o644, "root:x:0:0::/root:/bin/sh\nworker:x:1000:100::/:\nbroken\n")
        .symlink("etc/passwd", "../usr/etc/passwd")
        .file("etc/group", 0o644, "root:x:0:\nusers:x:100:\nwheel:x:10:worker\n");
    let (store, image) = place.ingest(layer(builder)).unwrap();
    for (user, ids) in [
        ("", (0, 0)),
        ("root", (0, 0)),
        ("worker", (1000, 100)),
        ("1000", (1000, 100)),
        ("4000", (4000, 0)),
        ("worker:wheel", (1000, 10)),
        ("4000:users", (4000, 100)),
        ("7:8", (7, 8)),
        ("7:", (7, 0)),
    ] {
        assert_eq!(store.resolve_user(&image, user).unwrap(), ids, "{user:?}");
    }
    for user in ["nobody", "worker:nogroup", "4294967295", "99999999999", "1:4294967295", "-1"] {
        let error = chain(&store.resolve_user(&image, user).unwrap_err());
        assert!(error.contains(&image.to_string()), "{error}");
    }
}

#[test]
fn a_program_that_is_not_in_the_image_is_refused_in_one_line() {
    let mut place = Place::new();
    let builder = LayerBuilder::new()
        .dir("usr/bin", 0o755)
        .symlink("bin", "usr/bin")
        .file("usr/bin/tool", 0o755, "x")
        .file("usr/bin/data", 0o644, "x")
        .symlink("usr/bin/sh", "/bin/tool")
        .symlink("usr/bin/broken", "/gone")
        .file("app/run", 0o755, "x");
    let (store, image) = place.ingest(layer(builder)).unwrap();
    let path = "/usr/local/bin:/bin";
    let ask = |program: &str, cwd: &str| store.has_program(&image, program, path, Path::new(cwd));
    for (program, cwd) in [
        ("tool", "/"),
        ("sh", "/"),
        ("/bin/tool", "/"),
        ("./run", "/app"),
        ("app/run", "/"),
        ("/stage/in/x", "/"),
        ("./x", "/work"),
    ] {
        ask(program, cwd).unwrap_or_else(|error| panic!("{program}: {error}"));
    }
    for (program, says) in [
        ("nothing", "no folder of PATH=/usr/local/bin:/bin has it"),
        ("data", "not executable"),
        ("broken", "no folder of PATH"),
        ("/app", "a directory"),
        ("/gone", "it is not there"),
        ("./run", "it is not there"),
        ("", "names no command"),
    ] {
        let error = ask(program, "/").unwrap_err().to_string();
        assert!(error.contains(says) && error.contains(&image.to_string()), "{error}");
        assert!(!error.contains('\n'));
    }
}

#[test]
fn a_store_that_can_not_be_written_says_so() {
    use std::os::unix::fs::PermissionsExt;
    if rustix::process::geteuid().is_root() {
        return skipped("a_store_that_can_not_be_written_says_so", "a user whom modes stop");
    }
    let mut place = Place::new();
    place.add("t", layer(LayerBuilder::new().file("f", 0o644, "x")));
    let store = place.store();
    let ingest = place.path("store/ingest");
    fs::set_permissions(&ingest, fs::Permissions::from_mode(0o500)).unwrap();
    let error =
        chain(&store.ingest(&place.reference("t"), &RegistryAccess::anonymous(), &|_| {}).unwrap_err());
    fs::set_permissions(&ingest, fs::Permissions::from_mode(0o700)).unwrap();
    assert!(error.contains("read-only for this user"), "{error}");
}
