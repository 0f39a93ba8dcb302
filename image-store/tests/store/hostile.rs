//! Layers that bite: each is either taken in the one right way or refused with one clear line, and nothing
//! of a refused image stays in the store.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::common::{Place, chain, count_files, skipped};
use image_store::layout::{Compression, EntryAttributes, EntryType, Header, LayerBlob, LayerBuilder, header};
use image_store::{Attach, Digest, Limits, RegistryAccess, Root};

#[track_caller]
fn refused_with(limits: Limits, layers: Vec<LayerBlob>, says: &str) {
    let mut place = Place::new();
    place.add("t", layers);
    let store = place.store_with(limits);
    let error = store.ingest(&place.reference("t"), &RegistryAccess::anonymous(), &|_| {}).expect_err(says);
    let text = chain(&error);
    assert!(text.contains(says), "{text:?} should say {says:?}");
    assert!(!text.contains('\n'), "{text:?} is more than a line");
    assert!(store.list().unwrap().is_empty());
    for folder in ["files", "blobs", "trees", "images", "refs", "ingest"] {
        assert_eq!(count_files(&place.path("store").join(folder)), 0, "{folder} after {says:?}");
    }
}

#[track_caller]
fn refused(layer: LayerBuilder, says: &str) {
    refused_with(Limits::default(), vec![layer.finish(Compression::None).unwrap()], says);
}

fn raw_file(name: &str, content: &[u8]) -> (Header, Vec<u8>) {
    let header = header(EntryType::Regular, name.as_bytes(), 0o644, 0, content.len() as u64, b"");
    (header, content.to_vec())
}

#[test]
fn names_that_leave_the_image_are_refused() {
    for name in ["../../x", "a/../../x", ".."] {
        let (header, content) = raw_file(name, b"x");
        refused(LayerBuilder::in_order().file("before", 0o644, "kept?").raw(&header, &content), "\"..\"");
    }
    refused(LayerBuilder::in_order().hard_link("h", "../../../etc/passwd"), "\"..\"");
    refused(LayerBuilder::in_order().hard_link("h", "/etc/shadow"), "not in the image");
}

#[test]
fn each_refusal_names_the_entry_and_the_layer() {
    let layer = LayerBuilder::in_order().hard_link("some/name", "gone").finish(Compression::Gzip).unwrap();
    let digest = layer.digest().to_string();
    refused_with(Limits::default(), vec![layer.clone()], "some/name");
    refused_with(Limits::default(), vec![layer], &digest);
}

#[test]
fn a_path_through_links_stays_inside_the_image() {
    let mut place = Place::new();
    let victim = place.path("victim");
    std::fs::create_dir(&victim).unwrap();
    let layer = LayerBuilder::in_order()
        .symlink("out", &victim)
        .file("out/written", 0o644, "inside")
        .symlink("up", "../../../../..")
        .file("up/escaped", 0o644, "inside")
        .file("/absolute", 0o644, "inside")
        .finish(Compression::Gzip)
        .unwrap();
    let (store, image) = place.ingest(vec![layer]).unwrap();
    let root = store.materialise(&image, Attach::Copy, &place.path("local"), false).unwrap();
    let Root::Copy { tree } = root else { panic!("{root:?}") };
    assert_eq!(count_files(&victim), 0, "nothing was written outside");
    let inside = tree.join(victim.strip_prefix("/").unwrap()).join("written");
    for path in [inside, tree.join("escaped"), tree.join("absolute")] {
        assert_eq!(std::fs::read(path).unwrap(), b"inside");
    }
}

#[test]
fn what_a_plain_user_can_not_have_is_left_out_and_counted() {
    let mut place = Place::new();
    let device = header(EntryType::Char, b"dev/null", 0o666, 0, 0, b"");
    let fifo = header(EntryType::Fifo, b"fifo", 0o666, 0, 0, b"");
    let attributes = EntryAttributes {
        xattrs: [
            ("user.kept", "a\nb=c"),
            ("user.overlay.redirect", "/00/evil"),
            ("security.capability", "x"),
            ("trusted.overlay.opaque", "y"),
        ]
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
        .to_vec(),
        ..EntryAttributes::default()
    };
    let layer = LayerBuilder::in_order()
        .raw(&device, b"")
        .raw(&fifo, b"")
        .hard_link("fifo2", "fifo")
        .file("su", 0o6755, "su")
        .dir("closed", 0)
        .file("closed/unreadable", 0, "content")
        .dir("sticky", 0o1777)
        .entry(EntryType::Regular, "attributes", 0o644, &attributes, b"x", None)
        .finish(Compression::Zstd)
        .unwrap();
    let (store, image) = place.ingest(vec![layer]).unwrap();
    let left_out = store.image(&image).unwrap().left_out;
    assert_eq!((left_out.special_files, left_out.setid_bits, left_out.xattrs), (2, 1, 3));
    let Ok(Root::Copy { tree }) = store.materialise(&image, Attach::Copy, &place.path("local"), false) else {
        panic!("no copy")
    };
    let mode = |name: &str| tree.join(name).symlink_metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("su"), 0o755);
    assert_eq!((mode("closed"), mode("closed/unreadable"), mode("sticky")), (0o700, 0o600, 0o1777));
    assert!(!tree.join("fifo").exists() && !tree.join("fifo2").exists() && !tree.join("dev/null").exists());
    let mut value = [0; 32];
    let attribute =
        |name: &str, value: &mut [u8]| rustix::fs::lgetxattr(tree.join("attributes"), name, value);
    match attribute("user.kept", &mut value) {
        Ok(length) => assert_eq!(&value[..length], b"a\nb=c"),
        Err(error) => skipped("what_a_plain_user_can_not_have: user attributes", &error.to_string()),
    }
    assert!(attribute("user.overlay.redirect", &mut value).is_err());
    assert!(attribute("security.capability", &mut value).is_err());
}

#[test]
fn blobs_that_are_not_what_they_should_be_are_named() {
    let good = LayerBuilder::new().file("f", 0o644, "x".repeat(5000)).finish(Compression::Gzip).unwrap();
    let mut place = Place::new();
    let written = place.add("t", vec![good.clone()]);
    let store = place.store();
    let blob = place.layout.blob_path(&good.digest());
    let try_with = |bytes: &[u8], says: &str| {
        std::fs::write(&blob, bytes).unwrap();
        let error = chain(
            &store.ingest(&place.reference("t"), &RegistryAccess::anonymous(), &|_| {}).expect_err(says),
        );
        assert!(error.contains(says) && error.contains(&good.digest().hex()), "{error:?}: {says:?}");
    };
    let mut flipped = good.bytes.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    try_with(&flipped, "its bytes have the digest");
    try_with(&good.bytes[..good.bytes.len() - 1], "bytes are stated");
    std::fs::remove_file(&blob).unwrap();
    let error = chain(&store.preflight(&place.reference("t"), &RegistryAccess::anonymous()).unwrap_err());
    assert!(error.contains("the image is incomplete"), "{error}");
    std::fs::write(&blob, &good.bytes).unwrap();
    let image = store.ingest(&place.reference("t"), &RegistryAccess::anonymous(), &|_| {}).unwrap();
    assert_eq!(image.digest(), written.manifest);
}

#[test]
fn a_packed_layer_that_is_damaged_with_a_right_digest_is_refused() {
    let content: Vec<u8> =
        (0..200_000_u32).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let good = LayerBuilder::new().file("f", 0o644, &content).finish(compression).unwrap();
        let mut corrupt = good.clone();
        let middle = corrupt.bytes.len() / 2;
        corrupt.bytes[middle..middle + 64].fill(0xa5);
        let mut cut = good.clone();
        cut.bytes.truncate(cut.bytes.len() / 2);
        for layer in [corrupt, cut] {
            let digest = layer.digest().to_string();
            refused_with(Limits::default(), vec![layer], &digest);
        }
    }
    let mut tar = LayerBuilder::new().file("f", 0o644, &content).tar();
    tar.truncate(100_000);
    refused_with(
        Limits::default(),
        vec![LayerBlob::from_tar(&tar, Compression::Gzip).unwrap()],
        "entry \"f\"",
    );
}

#[test]
fn content_that_the_configuration_does_not_state_is_refused() {
    let mut layer = LayerBuilder::new().file("f", 0o644, "x").finish(Compression::Gzip).unwrap();
    layer.diff_id = Digest::of(b"something else");
    refused_with(Limits::default(), vec![layer], "configuration states");
}

#[test]
fn a_bomb_is_stopped_at_its_limit() {
    let bomb = LayerBuilder::new().file("zeros", 0o644, vec![0; 8 << 20]).finish(Compression::Gzip).unwrap();
    let limits = Limits { ratio_free_bytes: 1 << 20, ..Limits::default() };
    refused_with(limits.clone(), vec![bomb], "decompression bomb");
    let bomb = LayerBuilder::new().file("zeros", 0o644, vec![0; 8 << 20]).finish(Compression::Zstd).unwrap();
    refused_with(limits.clone(), vec![bomb], "decompression bomb");
    for (size, says) in [("68719476736", "decompression bomb"), ("1099511627776", "unpack more than")] {
        let sparse = EntryAttributes {
            pax: [("GNU.sparse.realsize", size), ("GNU.sparse.map", "0,4")]
                .map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec()))
                .to_vec(),
            ..EntryAttributes::default()
        };
        let layer = LayerBuilder::new().entry(EntryType::Regular, "hole", 0o644, &sparse, b"data", None);
        refused_with(limits.clone(), vec![layer.finish(Compression::None).unwrap()], says);
    }
}

#[test]
fn every_limit_has_its_own_line() {
    let layer = |builder: LayerBuilder| vec![builder.finish(Compression::None).unwrap()];
    let files = || LayerBuilder::new().file("a", 0o644, "x").file("b", 0o644, "y");
    refused_with(Limits { entries: 1, ..Limits::default() }, layer(files()), "more than 1 entries");
    refused_with(
        Limits { unpacked_bytes: 1, ..Limits::default() },
        layer(files()),
        "unpack more than 1 bytes",
    );
    let long = "n".repeat(200);
    let named = LayerBuilder::new().file(&long, 0o644, "x");
    refused_with(Limits { name_bytes: 100, ..Limits::default() }, layer(named), "has 200 bytes");
    let named = LayerBuilder::new().file(&long, 0o644, "x");
    refused_with(Limits { extension_bytes: 100, ..Limits::default() }, layer(named), "extension header");
    let big = header(EntryType::XHeader, b"pax", 0o644, 0, 1 << 40, b"");
    refused(LayerBuilder::in_order().raw(&big, b""), "extension header of 1099511627776 bytes");
    let big = header(EntryType::GNULongName, b"././@LongLink", 0o644, 0, 1 << 30, b"");
    refused(LayerBuilder::in_order().raw(&big, b""), "extension header");
    let many = EntryAttributes {
        xattrs: (0..100).map(|n| (format!("user.{n}"), b"x".to_vec())).collect(),
        ..EntryAttributes::default()
    };
    let many = LayerBuilder::new().entry(EntryType::Regular, "f", 0o644, &many, b"", None);
    refused(many, "more than 64 extended attributes");
    let layers =
        (0..3).map(|n| LayerBuilder::new().file(format!("f{n}"), 0o644, "").finish(Compression::None));
    let layers = layers.map(Result::unwrap).collect();
    refused_with(Limits { layers: 2, ..Limits::default() }, layers, "over the limit of 2");
}

#[test]
fn malformed_headers_are_refused() {
    let (mut header, content) = raw_file("f", b"x");
    header.as_mut_bytes()[0] = b'g';
    refused(LayerBuilder::in_order().raw(&header, &content), "checksum");
    let mut unknown = raw_file("f", b"").0;
    unknown.as_mut_bytes()[156] = b'V';
    unknown.set_cksum();
    refused(LayerBuilder::in_order().raw(&unknown, b""), "unknown type");
    let pax = header_of_pax(b"30 path=x\n");
    refused(LayerBuilder::in_order().raw(&pax.0, &pax.1), "PAX");
    refused(LayerBuilder::in_order().symlink("l", ""), "symbolic link");
}

fn header_of_pax(records: &[u8]) -> (Header, Vec<u8>) {
    (header(EntryType::XHeader, b"pax", 0o644, 0, records.len() as u64, b""), records.to_vec())
}

#[test]
fn honest_oddities_are_taken() {
    let mut place = Place::new();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let gnu_long = format!("{}/{}", "g".repeat(200), "h".repeat(200));
    let gnu_header =
        header(EntryType::GNULongName, b"././@LongLink", 0o644, 0, gnu_long.len() as u64 + 1, b"");
    let (cut, content) = raw_file("cut", b"gnu");
    let sparse = EntryAttributes {
        pax: [("GNU.sparse.realsize", "10"), ("GNU.sparse.map", "2,3,8,1"), ("GNU.sparse.name", "sparse")]
            .map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec()))
            .to_vec(),
        ..EntryAttributes::default()
    };
    let first = LayerBuilder::in_order()
        .dir(".", 0o755)
        .file(&long, 0o644, "pax")
        .raw(&gnu_header, &[gnu_long.as_bytes(), b"\0"].concat())
        .raw(&cut, &content)
        .file("twice", 0o644, "first")
        .file("twice", 0o600, "second")
        .symlink("dangling", "nowhere")
        .hard_link("dangling2", "dangling")
        .file("linked", 0o640, "linked")
        .hard_link("a/linked2", "linked")
        .entry(EntryType::Regular, "GNUSparseFile.0/sparse", 0o644, &sparse, b"abcd", None)
        .finish(Compression::Gzip)
        .unwrap();
    // Two gzip members in a row are one stream.
    let tar = LayerBuilder::new().file("members", 0o644, "x".repeat(3000)).tar();
    let (head, tail) = tar.split_at(1000);
    let mut members = LayerBlob::from_tar(head, Compression::Gzip).unwrap();
    members.bytes.extend(LayerBlob::from_tar(tail, Compression::Gzip).unwrap().bytes);
    members.diff_id = Digest::of(&tar);
    // As `umoci insert` writes it: nothing behind the last file's bytes.
    let mut bare = LayerBuilder::new().file("bare", 0o644, "y".repeat(700)).tar();
    bare.truncate(bare.len() - bare.iter().rev().take_while(|byte| **byte == 0).count());
    assert!(bare.ends_with(b"yy") && !bare.len().is_multiple_of(512));
    let bare = LayerBlob::from_tar(&bare, Compression::Gzip).unwrap();
    let empty = LayerBlob::from_tar(b"", Compression::None).unwrap();
    let (store, image) = place.ingest(vec![first, members, bare, empty.clone(), empty]).unwrap();
    let Ok(Root::Copy { tree }) = store.materialise(&image, Attach::Copy, &place.path("local"), false) else {
        panic!("no copy")
    };
    let read = |name: &str| std::fs::read(tree.join(name)).unwrap();
    assert_eq!((read(&long), read(&gnu_long)), (b"pax".to_vec(), b"gnu".to_vec()));
    assert_eq!(read("twice"), b"second");
    assert_eq!(read("sparse"), b"\0\0abc\0\0\0d\0");
    assert_eq!((read("members").len(), read("bare").len()), (3000, 700));
    assert_eq!(std::fs::read_link(tree.join("dangling2")).unwrap(), Path::new("nowhere"));
    let inode = |name: &str| tree.join(name).symlink_metadata().unwrap().ino();
    assert_eq!(inode("linked"), inode("a/linked2"));
    assert_eq!(inode("dangling"), inode("dangling2"));
}

#[test]
fn six_hundred_layers_merge() {
    let mut place = Place::new();
    let layer = |n: u32| {
        let builder = LayerBuilder::new().file(format!("f{n}"), 0o644, n.to_string());
        let builder = if n > 0 { builder.whiteout(format!("f{}", n - 1)) } else { builder };
        builder.finish(Compression::None).unwrap()
    };
    let (store, image) = place.ingest((0..600).map(layer).collect()).unwrap();
    let Ok(Root::Copy { tree }) = store.materialise(&image, Attach::Copy, &place.path("local"), false) else {
        panic!("no copy")
    };
    assert_eq!(std::fs::read(tree.join("f599")).unwrap(), b"599");
    assert!(!tree.join("f598").exists());
}

#[test]
fn an_image_that_can_not_be_mounted_over_is_refused_at_ingest() {
    refused(LayerBuilder::new().file("proc", 0o644, "x"), "mount over \"/proc\"");
    refused(LayerBuilder::new().dir("etc/hosts", 0o755), "mount over \"/etc/hosts\"");
    refused(LayerBuilder::new().symlink("work", "work"), "never end");
}
