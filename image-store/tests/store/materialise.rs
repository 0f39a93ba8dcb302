//! Trees in a local folder: their forms, their modes, and what overlayfs shows of them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use image_store::layout::{Compression, EntryAttributes, EntryType, ImageSpec, LayerBlob, LayerBuilder};
use image_store::{Attach, ImageId, MOUNT_FILES, MOUNT_POINTS, RegistryAccess, Root, Store};

use crate::common::{Place, chain, count_files, skipped};

fn sample() -> Vec<LayerBlob> {
    let late = EntryAttributes { mtime: 1_700_000_000, ..EntryAttributes::default() };
    let below = LayerBuilder::new()
        .dir("usr/lib", 0o755)
        .symlink("lib", "usr/lib")
        .file("usr/lib/gone", 0o644, "gone")
        .entry(EntryType::Regular, "big", 0o640, &late, &vec![7; 3 << 20], None)
        .file("empty", 0o600, "");
    let above = LayerBuilder::new()
        .whiteout("usr/lib/gone")
        .file("lib/tool", 0o700, "#!tool")
        .hard_link("lib/tool2", "usr/lib/tool")
        .dir("secret", 0o700)
        .file("secret/key", 0o600, "key");
    vec![below.finish(Compression::Gzip).unwrap(), above.finish(Compression::Zstd).unwrap()]
}

fn tree(root: &Root) -> PathBuf {
    match root {
        Root::Copy { tree } => tree.clone(),
        Root::DataOnly { lowers, .. } | Root::Overlay { lowers } => lowers[0].clone(),
    }
}

#[test]
fn a_plain_tree_has_contents_modes_times_and_links() {
    let mut place = Place::new();
    let (store, image) = place.ingest(sample()).unwrap();
    for attach in [Attach::Copy, Attach::Overlay] {
        let tree = tree(&store.materialise(&image, attach, &place.path("local"), false).unwrap());
        let meta = |name: &str| tree.join(name).symlink_metadata().unwrap();
        assert_eq!(fs::read(tree.join("big")).unwrap(), vec![7; 3 << 20]);
        assert_eq!((meta("big").mtime(), meta("big").permissions().mode() & 0o7777), (1_700_000_000, 0o640));
        assert_eq!(fs::read_link(tree.join("lib")).unwrap(), Path::new("usr/lib"));
        assert_eq!(meta("usr/lib/tool").ino(), meta("usr/lib/tool2").ino());
        assert_eq!((meta("usr/lib").mtime(), meta("empty").len()), (0, 0));
        assert!(!tree.join("usr/lib/gone").exists());
        for point in MOUNT_POINTS {
            assert!(tree.join(&point[1..]).is_dir(), "{point}");
        }
        for point in MOUNT_FILES {
            assert!(tree.join(&point[1..]).is_file(), "{point}");
        }
    }
}

#[test]
fn readable_by_all_opens_what_the_owner_can_read_and_no_more() {
    let mut place = Place::new();
    let (store, image) = place.ingest(sample()).unwrap();
    let tree = tree(&store.materialise(&image, Attach::Copy, &place.path("local"), true).unwrap());
    let mode = |name: &str| tree.join(name).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("."), mode("secret"), mode("secret/key")), (0o755, 0o755, 0o644));
    assert_eq!((mode("usr/lib/tool"), mode("big"), mode("empty")), (0o755, 0o644, 0o644));
}

#[test]
fn an_image_asks_for_its_workdir_and_gets_it() {
    let mut place = Place::new();
    let spec = ImageSpec { workdir: "/srv/app".to_owned(), ..ImageSpec::default() };
    place.layout.add_image("with", &spec, sample()).unwrap();
    place.add("without", sample());
    let store = place.store();
    let local = place.path("local");
    let attach = |tag: &str| {
        let image = store.ingest(&place.reference(tag), &RegistryAccess::anonymous(), &|_| {}).unwrap();
        tree(&store.materialise(&image, Attach::Copy, &local, false).unwrap())
    };
    let (with, without) = (attach("with"), attach("without"));
    assert!(with.join("srv/app").is_dir() && !without.join("srv").exists());
    let image = store.ingest(&place.reference("with"), &RegistryAccess::anonymous(), &|_| {}).unwrap();
    let points = store.image(&image).unwrap().mount_points;
    assert!(points.iter().any(|point| point.path == "/srv/app" && point.made && !point.file));
}

#[test]
fn places_that_the_image_lacks_are_made_beside_the_shared_tree() {
    let mut place = Place::new();
    let (store, image) = place.ingest(sample()).unwrap();
    let local = place.path("local");
    let wanted = |path: &str, file| image_store::Place { path: path.to_owned(), file };
    let places = [wanted("/lib/data/sub", false), wanted("/secret/cfg", true), wanted("/usr", false)];
    let shared = tree(&store.materialise(&image, Attach::Copy, &local, false).unwrap());
    for attach in [Attach::Copy, Attach::Overlay] {
        let (root, points) = store.materialise_with(&image, attach, &local, false, &places).unwrap();
        let resolved: Vec<_> = points.iter().map(|point| (&*point.resolved, point.made)).collect();
        assert_eq!(resolved, [("/usr/lib/data/sub", true), ("/secret/cfg", true), ("/usr", false)]);
        let top = tree(&root);
        assert!(top.join("usr/lib/data/sub").is_dir() && top.join("secret/cfg").is_file());
        assert_eq!(top.join("secret").metadata().unwrap().permissions().mode() & 0o777, 0o700);
        if let Root::Overlay { lowers } = &root {
            assert_eq!(lowers[1..], *std::slice::from_ref(&shared));
            assert!(!top.join("big").exists() && !top.join("lib").exists(), "only what is on the way");
        } else {
            assert!(top.join("big").exists());
        }
        assert_eq!(store.materialise_with(&image, attach, &local, false, &places).unwrap().0, root);
    }
    assert!(!shared.join("usr/lib/data").exists() && !shared.join("secret/cfg").exists());
    let there = store.materialise_with(&image, Attach::Overlay, &local, false, &places[2..]).unwrap().0;
    assert_eq!(tree(&there), shared);
}

#[test]
fn a_place_of_another_kind_is_refused_and_nothing_is_made() {
    let mut place = Place::new();
    let (store, image) = place.ingest(sample()).unwrap();
    for (path, file, says) in [
        ("/big", false, "not a directory"),
        ("/big/x", true, "not a directory"),
        ("/usr", true, "not a regular"),
    ] {
        let places = [image_store::Place { path: path.to_owned(), file }];
        let made = store.materialise_with(&image, Attach::Copy, &place.path("local"), false, &places);
        let error = chain(&made.unwrap_err());
        assert!(error.contains(says) && error.contains(path), "{error}");
        assert!(!place.path("local/trees").exists());
    }
}

#[test]
fn a_second_attach_changes_nothing_and_many_at_once_make_one_tree() {
    let mut place = Place::new();
    let (store, image) = place.ingest(sample()).unwrap();
    let local = place.path("local");
    std::thread::scope(|scope| {
        let attach = || store.materialise(&image, Attach::Copy, &local, false).unwrap();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(attach)).collect();
        let roots: Vec<Root> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(roots.windows(2).all(|pair| pair[0] == pair[1]));
    });
    assert_eq!(fs::read_dir(local.join("trees")).unwrap().count(), 1, "losers clean up");
    let inode = |root: &Root| tree(root).join("big").metadata().unwrap().ino();
    let before = inode(&store.materialise(&image, Attach::Copy, &local, false).unwrap());
    assert_eq!(inode(&store.materialise(&image, Attach::Copy, &local, false).unwrap()), before);
}

#[test]
fn a_missing_or_torn_object_stops_a_copy_and_leaves_nothing() {
    let mut place = Place::new();
    let (store, image) = place.ingest(sample()).unwrap();
    let digest = image_store::Digest::of(b"key");
    let object = place.path("store/files").join(&digest.hex()[..2]).join(digest.hex());
    fs::remove_file(&object).unwrap();
    for says in ["find object", "torn"] {
        let error = chain(&store.materialise(&image, Attach::Copy, &place.path("local"), false).unwrap_err());
        assert!(error.contains(says) && error.contains(&digest.to_string()), "{error}");
        assert_eq!(fs::read_dir(place.path("local/trees")).unwrap().count(), 0);
        fs::write(&object, "k").unwrap();
    }
}

/// A folder for trees that has user attributes: the temporary folder, or shared memory.
fn attach_data_only(store: &Store, image: &ImageId, place: &Place) -> Option<(PathBuf, PathBuf)> {
    match store.materialise(image, Attach::DataOnly, &place.path("local"), false) {
        Ok(Root::DataOnly { mut lowers, objects }) => lowers.pop().map(|tree| (tree, objects)),
        Ok(other) => panic!("{other:?}"),
        Err(error) => {
            skipped("data-only trees", &chain(&error));
            None
        }
    }
}

#[test]
fn a_data_only_tree_has_sizes_and_no_contents() {
    let mut place = Place::new();
    let (store, image) = place.ingest(sample()).unwrap();
    let Some((tree, objects)) = attach_data_only(&store, &image, &place) else { return };
    let big = tree.join("big").metadata().unwrap();
    // At most a block for the attributes.
    assert!(big.len() == 3 << 20 && big.blocks() <= 8);
    let mut value = [0; 128];
    let length = rustix::fs::getxattr(tree.join("big"), "user.overlay.redirect", &mut value).unwrap();
    let redirect = std::str::from_utf8(&value[..length]).unwrap();
    assert_eq!(fs::read(objects.join(redirect.trim_start_matches('/'))).unwrap(), vec![7; 3 << 20]);
    assert_eq!(rustix::fs::getxattr(tree.join("big"), "user.overlay.metacopy", &mut value), Ok(0));
    assert!(rustix::fs::getxattr(tree.join("empty"), "user.overlay.redirect", &mut value).is_err());
}

#[test]
fn overlayfs_shows_the_contents_of_a_data_only_tree_to_a_plain_user() {
    let test = "overlayfs_shows_the_contents_of_a_data_only_tree_to_a_plain_user";
    let mut place = Place::new();
    let (store, image) = place.ingest(sample()).unwrap();
    let Some((tree, objects)) = attach_data_only(&store, &image, &place) else { return };
    let mount_point = place.path("m");
    fs::create_dir(&mount_point).unwrap();
    let options = format!("lowerdir={}::{},userxattr", tree.display(), objects.display());
    let script = "mount -t overlay overlay -o \"$1\" \"$2\" || exit 99
        cd \"$2\" && sha256sum < big && cat lib/tool secret/key && stat -c %h.%s usr/lib/tool2 empty";
    let mut command = unshare();
    command.args(["sh", "-c", script, "sh", &options]).arg(&mount_point);
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return skipped(test, &format!("unshare: {error}")),
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && (output.status.code() == Some(99) || errors.contains("unshare")) {
        return skipped(test, errors.trim());
    }
    assert!(output.status.success(), "{errors}");
    let digest = image_store::Digest::of(&vec![7; 3 << 20]).hex();
    let expected = format!("{digest}  -\n#!toolkey2.6\n1.0\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    assert_eq!(count_files(&mount_point), 0, "the mount went with its namespace");
}

/// A command in a user and mount namespace of its own.
#[expect(clippy::disallowed_methods, reason = "the test needs a namespace and waits for its process")]
fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount"]);
    command.current_dir(Path::new("/"));
    command
}
