//! Bad images, and the commands that need no container: `images`, `schema`.

use std::path::Path;

use image_store::layout::{Compression, EntryAttributes, EntryType, ImageSpec, LayerBlob, LayerBuilder};
use pilot_tests::images::{busybox_layer, image, shell};
use pilot_tests::run::{Site, flow, good, payload, sh};

/// Writes an image that is busybox and one more layer; gives the paths of its manifest and layers.
fn two_layers(site: &Site, name: &str, second: LayerBlob) -> Vec<std::path::PathBuf> {
    let first = busybox_layer(LayerBuilder::new()).and_then(|layer| Ok(layer.finish(Compression::None)?));
    image(&site.path().join(name), &shell(), vec![first.expect("busybox"), second]).expect("image")
}

fn small_layer() -> LayerBlob {
    // Long enough, and random enough, that a cut or a flipped byte falls in its data.
    let noise: Vec<u8> = (0..20_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    LayerBuilder::new().file("etc/noise", 0o644, noise).finish(Compression::Gzip).expect("layer")
}

fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).expect("blob");
    change(&mut bytes);
    std::fs::write(path, bytes).expect("blob");
}

#[test]
fn a_damaged_image_costs_its_payload_alone() {
    let Some(site) = Site::new("a_damaged_image_costs_its_payload_alone") else { return };
    let flip = |bytes: &mut Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x40;
    };
    damage(&two_layers(&site, "flipped", small_layer())[2], flip);
    damage(&two_layers(&site, "cut", small_layer())[2], |bytes| bytes.truncate(bytes.len() / 2));
    damage(&two_layers(&site, "longer", small_layer())[2], |bytes| bytes.push(0));
    damage(&two_layers(&site, "manifest", small_layer())[0], flip);
    std::fs::remove_file(&two_layers(&site, "missing", small_layer())[2]).expect("remove");
    // Digests that are right, for bytes that are no gzip, and for gzip whose tar is another than the configuration says.
    let mut garbage = small_layer();
    flip(&mut garbage.bytes);
    two_layers(&site, "garbage", garbage);
    let mut half = small_layer();
    half.bytes.truncate(half.bytes.len() / 2);
    two_layers(&site, "half", half);
    let other = LayerBuilder::new().file("etc/other", 0o644, "x").finish(Compression::Gzip).expect("layer");
    two_layers(&site, "diff-id", LayerBlob { diff_id: other.diff_id, ..small_layer() });
    let bad = ["flipped", "cut", "longer", "manifest", "missing", "garbage", "half", "diff-id"];
    let mut payloads: Vec<String> =
        bad.iter().map(|name| payload(name, &format!("image: oci:{name}, command: [/bin/true]"))).collect();
    payloads.push(payload("nowhere", "image: oci:no-such-folder, command: [/bin/true]"));
    payloads.push(payload("tag", "image: oci:busybox:no-such-tag, command: [/bin/true]"));
    payloads.push(good());
    let ran = site.run(&flow(&payloads));
    ran.assert_code(1);
    ran.assert_good(&site);
    for name in bad {
        ran.assert_failed(name, &[]);
        assert!(
            ran.outcome(name).contains("sha256:") || ran.outcome(name).contains(name),
            "{name}: {}",
            ran.outcome(name)
        );
        assert_eq!(ran.row(name)["tries"], 1, "{name} is tried again: {}", ran.stdout);
    }
    for (name, word) in [
        ("flipped", "digest"),
        ("longer", ""),
        ("diff-id", "configuration states"),
        ("nowhere", "no-such-folder"),
        ("tag", "no-such-tag"),
    ] {
        ran.assert_failed(name, &[word]);
    }
    let listed = site.ask(&["images", "ls", "--output", "json"]);
    assert_eq!(listed.stdout.lines().count(), 1, "a damaged image is in the store: {}", listed.stdout);
    site.assert_baseline();
}

#[test]
fn hostile_layers_reach_nothing_outside_of_the_image() {
    let Some(site) = Site::new("hostile_layers_reach_nothing_outside_of_the_image") else { return };
    let target = site.path().join("outside");
    std::fs::write(&target, "untouched").expect("write");
    let up = "../".repeat(40);
    let outside = target.to_str().expect("utf-8").trim_start_matches('/').to_owned();
    let none = EntryAttributes::default();
    let layers: Vec<(&str, LayerBuilder)> = vec![
        ("dots", LayerBuilder::in_order().file(format!("{up}{outside}"), 0o644, "hit")),
        ("inner-dots", LayerBuilder::in_order().file(format!("etc/{up}{outside}"), 0o644, "hit")),
        ("absolute", LayerBuilder::in_order().file(&target, 0o644, "hit")),
        ("through", LayerBuilder::in_order().symlink("way", site.path()).file("way/outside", 0o644, "hit")),
        ("hard", LayerBuilder::in_order().hard_link("etc/taken", format!("{up}{outside}"))),
        (
            "whiteout",
            LayerBuilder::in_order().file(
                format!("{up}{}/.wh.outside", site.path().to_str().expect("utf-8")),
                0o644,
                "",
            ),
        ),
        ("device", LayerBuilder::in_order().entry(EntryType::Block, "etc/disk", 0o666, &none, b"", None)),
        ("setuid", LayerBuilder::in_order().file("bin/su", 0o6755, "#!/bin/sh\nid -u\n")),
    ];
    let mut payloads: Vec<String> = Vec::new();
    for (name, layer) in layers {
        two_layers(&site, name, layer.finish(Compression::Gzip).expect("layer"));
        let look = "ls -l /etc/disk /etc/taken 2>/dev/null; stat -c %a /bin/su 2>/dev/null; cat /etc/taken 2>/dev/null; true";
        let look = serde_json::Value::from(look);
        payloads.push(payload(name, &format!("image: oci:{name}, command: [/bin/sh, -c, {look}]")));
    }
    payloads.push(good());
    let ran = site.run(&flow(&payloads));
    assert!(ran.code == 0 || ran.code == 1, "{}", ran.stderr);
    ran.assert_good(&site);
    assert_eq!(site.read("outside"), "untouched");
    for name in ["dots", "inner-dots", "hard"] {
        ran.assert_failed(name, &[]);
    }
    // What is let in is made harmless.
    for name in ["dots", "inner-dots", "absolute", "through", "hard", "whiteout", "device"] {
        assert_eq!(site.log(name, "stdout"), "", "{name}");
    }
    assert_eq!(site.log("setuid", "stdout"), "755\n");
    site.assert_baseline();
}

#[test]
fn an_image_must_fit_the_machine_and_hold_the_program() {
    let Some(site) = Site::new("an_image_must_fit_the_machine_and_hold_the_program") else { return };
    let layer = || {
        busybox_layer(LayerBuilder::new())
            .and_then(|layer| Ok(layer.finish(Compression::None)?))
            .expect("layer")
    };
    let foreign = ImageSpec { architecture: "s390x".into(), ..shell() };
    image(&site.path().join("foreign"), &foreign, vec![layer()]).expect("image");
    let windows = ImageSpec { os: "windows".into(), ..shell() };
    image(&site.path().join("windows"), &windows, vec![layer()]).expect("image");
    image(&site.path().join("silent"), &ImageSpec::default(), vec![layer()]).expect("image");
    let stranger = ImageSpec { user: "nobody-here".into(), ..shell() };
    image(&site.path().join("stranger"), &stranger, vec![layer()]).expect("image");
    let ran = site.run(&flow(&[
        payload("foreign", "image: oci:foreign, retries: 3"),
        payload("windows", "image: oci:windows"),
        payload("silent", "image: oci:silent"),
        payload("stranger", "image: oci:stranger, command: [/bin/true]"),
        payload("program", "image: oci:busybox, command: [/opt/analysis, --fast], retries: 3"),
        payload("folder", "image: oci:busybox, command: [/etc]"),
        good(),
    ]));
    ran.assert_code(1);
    ran.assert_good(&site);
    for (name, words) in [
        ("foreign", &["s390x"][..]),
        ("windows", &["windows"]),
        ("silent", &["ENTRYPOINT", "CMD"]),
        ("stranger", &["nobody-here"]),
        ("program", &["/opt/analysis"]),
        ("folder", &["/etc"]),
    ] {
        ran.assert_failed(name, words);
        assert_eq!(ran.row(name)["tries"], 1, "{name} is tried again");
        assert!(ran.events_of("payload_started", name).is_empty(), "{name} was started");
    }
    site.assert_baseline();
}

#[test]
fn stored_images_are_listed_and_removed() {
    let Some(site) = Site::new("stored_images_are_listed_and_removed") else { return };
    let empty = site.ask(&["images", "ls"]);
    empty.assert_code(0);
    assert_eq!(empty.stdout.lines().count(), 1, "{}", empty.stdout);
    two_layers(&site, "two", small_layer());
    site.run(&flow(&[good(), payload("two", "image: oci:two, command: [/bin/true]")])).assert_code(0);
    let listed = site.ask(&["images", "ls", "--output", "json"]);
    listed.assert_code(0);
    let images = listed.events();
    assert_eq!(images.len(), 2);
    let of = |name: &str| {
        let named = |image: &&serde_json::Value| image["references"].to_string().contains(name);
        images.iter().find(named).and_then(|image| image["image"].as_str()).expect("digest").to_owned()
    };
    let (busybox, two) = (of("busybox"), of("two"));
    let people = site.ask(&["images", "ls"]);
    assert!(people.stdout.contains(&busybox[..19]) && people.stdout.contains("IMAGE"), "{}", people.stdout);
    let removed = site.ask(&["images", "rm", &two[..19]]);
    removed.assert_code(0);
    assert!(removed.stdout.contains(&two) && removed.stdout.contains("freed"), "{}", removed.stdout);
    let unknown = site.ask(&["images", "rm", &two]);
    unknown.assert_code(64);
    assert_eq!(unknown.stderr.lines().count(), 1, "{}", unknown.stderr);
    let left = site.ask(&["images", "ls", "--output", "json"]).events();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["image"], busybox.as_str());
    // What is left still runs, although its layer was shared with what is gone; and what is gone can come back.
    let ran = site.run(&flow(&[good(), payload("two", "image: oci:two, command: [/bin/cat, /etc/motto]")]));
    ran.assert_code(0);
    ran.assert_good(&site);
    assert_eq!(site.log("two", "stdout"), "as it was\n");
    site.assert_baseline();
}

#[test]
fn an_image_in_use_is_not_removed() {
    let Some(site) = Site::new("an_image_in_use_is_not_removed") else { return };
    std::fs::create_dir(site.path().join("go")).expect("mkdir");
    let wait = "echo ready; while [ ! -e /stage/in/go/now ]; do sleep 0.02; done; cat /etc/motto";
    let child = site.start(&flow(&[sh("holds", wait, "inputs: [{name: go, from: ./go}]")]));
    site.wait_for("holds", "ready");
    let listed = site.ask(&["images", "ls", "--output", "json"]).events();
    let removed = site.ask(&["images", "rm", listed[0]["image"].as_str().expect("digest")]);
    site.write("go/now", "");
    let ran = pilot_tests::run::Ran::of(child);
    ran.assert_code(0);
    assert_eq!(site.log("holds", "stdout"), "ready\nas it was\n", "{removed:?}");
    assert_ne!(removed.code, 0, "{removed:?}");
    site.assert_baseline();
}

#[test]
fn the_schema_is_json_and_knows_every_field() {
    let Some(site) = Site::new("the_schema_is_json_and_knows_every_field") else { return };
    let ran = site.ask(&["schema"]);
    ran.assert_code(0);
    let schema: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert!(schema["properties"]["payloads"].is_object());
    for word in ["walltime", "at_most_once", "scatter", "max_size", "trust_group"] {
        assert!(ran.stdout.contains(word), "{word}");
    }
    site.assert_baseline();
}

#[test]
fn images_of_a_registry_are_pulled_run_counted_and_verified() {
    let Some(site) = Site::new("images_of_a_registry_are_pulled_run_counted_and_verified") else { return };
    let registry = pilot_tests::registry::Misbehaving::start();
    let base = busybox_layer(LayerBuilder::new()).and_then(|layer| Ok(layer.finish(Compression::Gzip)?));
    let base = base.expect("busybox");
    registry.add("1", &shell(), vec![base.clone()]);
    registry.add("2", &shell(), vec![base, small_layer()]);
    let name = |tag: &str| format!("docker://{}/t:{tag}", registry.host());
    let pulled = site.ask(&["images", "pull", &name("1"), &name("2"), "--output", "json"]);
    pulled.assert_code(0);
    assert_eq!(pulled.events().len(), 2, "{}", pulled.stdout);
    assert!(pulled.events().iter().all(|event| event["private"] == false), "{}", pulled.stdout);
    let again = site.ask(&["images", "pull", &name("1")]);
    again.assert_code(0);
    assert!(again.stdout.contains("was stored"), "{}", again.stdout);
    let df = site.ask(&["images", "df", "--output", "json"]);
    df.assert_code(0);
    let usage = &df.events()[0];
    assert_eq!(usage["images"].as_array().map(Vec::len), Some(2));
    assert!(
        usage["images"]
            .as_array()
            .expect("images")
            .iter()
            .all(|image| image["shared_bytes"].as_u64() > Some(0))
    );
    assert_eq!(usage["part_bytes"], 0);
    assert!(site.ask(&["images", "df"]).stdout.contains("RM FREES"));
    site.ask(&["images", "verify"]).assert_code(0);
    let ran = site.run(&flow(&[
        good(),
        payload("far", &format!("image: \"{}\", command: [/bin/cat, /etc/motto]", name("2"))),
    ]));
    ran.assert_code(0);
    assert_eq!(site.log("far", "stdout"), "as it was\n");
    let none = site.ask(&["images", "pull", &name("3")]);
    none.assert_code(64);
    assert!(none.stderr.lines().count() == 1 && none.stderr.contains("podman login"), "{}", none.stderr);
    registry.fault_any(
        "",
        pilot_tests::registry::Fault::Status(503, vec![("Retry-After", "999".to_owned())]),
        99,
    );
    site.ask(&["images", "pull", &name("4")]).assert_code(69);
    // One byte of one content is turned.
    let files = site.path().join("store/files");
    let fan = std::fs::read_dir(&files).expect("files").next().expect("a folder").expect("entry").path();
    let object = std::fs::read_dir(&fan).expect("folder").next().expect("a file").expect("entry").path();
    let bytes = std::fs::read(&object).expect("read");
    std::fs::remove_file(&object).expect("remove");
    std::fs::write(&object, [&bytes[..bytes.len() - 1], &[!bytes[bytes.len() - 1]]].concat()).expect("write");
    let verified = site.ask(&["images", "verify"]);
    verified.assert_code(1);
    assert!(verified.stdout.contains("damaged: content sha256:"), "{}", verified.stdout);
    drop(registry);
    site.assert_baseline();
}
