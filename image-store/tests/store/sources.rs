//! Where images come from, and what is refused before anything is read or written.

use std::process::{Command, Stdio};

use image_store::layout::{Compression, ImageSpec, LayerBlob, LayerBuilder, config_json};
use image_store::{Attach, Digest, Limits, Reference, RegistryAccess, Store};
use serde_json::json;

use crate::common::{Place, chain, count_files, skipped};

fn layer(content: &str) -> LayerBlob {
    LayerBuilder::new().file("f", 0o644, content).finish(Compression::Gzip).unwrap()
}

#[track_caller]
fn refused(store: &Store, reference: &Reference, says: &str) {
    let error = chain(&store.preflight(reference, &RegistryAccess::anonymous()).expect_err(says));
    assert!(error.contains(says), "{error:?} should say {says:?}");
    assert!(!error.contains('\n'));
    let error = chain(&store.ingest(reference, &RegistryAccess::anonymous(), &|_| {}).expect_err(says));
    assert!(error.contains(says), "{error:?} should say {says:?}");
}

#[test]
fn a_preflight_tells_what_an_image_is_and_writes_nothing() {
    let mut place = Place::new();
    let spec = ImageSpec {
        entrypoint: vec!["/bin/entry".to_owned()],
        cmd: vec!["argument".to_owned()],
        env: vec!["A=b".to_owned()],
        workdir: "/app".to_owned(),
        user: "daemon".to_owned(),
        ..ImageSpec::default()
    };
    let blob = layer("x");
    let (digest, bytes) = (blob.digest(), blob.bytes.len() as u64);
    let written = place.layout.add_image("t", &spec, vec![blob]).unwrap();
    let store = place.store();
    let found = store.preflight(&place.reference("t"), &RegistryAccess::anonymous()).unwrap();
    assert_eq!((found.image.digest(), found.config_digest), (written.manifest, written.config));
    assert_eq!((&found.config.entrypoint, &found.config.cmd), (&spec.entrypoint, &spec.cmd));
    assert_eq!((&found.config.env, &found.config.workdir), (&spec.env, &spec.workdir));
    assert_eq!(found.config.user, spec.user);
    assert_eq!((found.layers[0].digest, found.layers[0].bytes, found.bytes_missing), (digest, bytes, bytes));
    assert_eq!(count_files(&place.path("store")), 1, "only FORMAT");
    store.ingest(&place.reference("t"), &RegistryAccess::anonymous(), &|_| {}).unwrap();
    assert_eq!(
        store.preflight(&place.reference("t"), &RegistryAccess::anonymous()).unwrap().bytes_missing,
        0
    );
}

#[test]
fn tags_choose_and_digests_pin() {
    let mut place = Place::new();
    let first = place.add("1", vec![layer("one")]);
    let second = place.add("2", vec![layer("two")]);
    let store = place.store();
    let layout = place.path("layout");
    let parse = |text: String| text.parse::<Reference>().unwrap();
    let found = |reference: &Reference| {
        store.preflight(reference, &RegistryAccess::anonymous()).unwrap().image.digest()
    };
    assert_eq!(found(&place.reference("2")), second.manifest);
    assert_eq!(found(&parse(format!("{}:1", layout.display()))), first.manifest);
    assert_eq!(found(&parse(format!("oci:{}@{}", layout.display(), second.manifest))), second.manifest);
    refused(&store, &parse(format!("oci:{}", layout.display())), "add a tag, one of 1, 2");
    refused(&store, &place.reference("3"), "it has 1, 2");
    refused(&store, &parse(format!("oci:{}:1@{}", layout.display(), second.manifest)), "it has the digest");
    refused(&store, &parse(format!("oci:{}", place.path("gone").display())), "no such file or folder");
    refused(&store, &parse(format!("oci:{}", place.dir.path().display())), "no index.json");
    refused(&store, &parse(format!("oci-archive:{}", layout.display())), "write oci:");
}

#[test]
fn indexes_are_descended_to_this_platform() {
    let mut place = Place::new();
    let mine = place.add("mine", vec![layer("mine")]);
    let other_spec = ImageSpec { architecture: "s390x".to_owned(), ..ImageSpec::default() };
    let other = place.layout.add_image("other", &other_spec, vec![layer("other")]).unwrap();
    let host = ImageSpec::default();
    let manifest = "application/vnd.docker.distribution.manifest.v2+json";
    let descriptor = |digest: Digest, size: u64, arch: &str, os: &str| json!({"mediaType": manifest, "digest": digest, "size": size, "platform": {"architecture": arch, "os": os}});
    let inner = json!({"schemaVersion": 2, "manifests": [
        descriptor(Digest::of(b"attestation"), 1, "unknown", "unknown"),
        descriptor(other.manifest, other.manifest_bytes, "s390x", "linux"),
        descriptor(mine.manifest, mine.manifest_bytes, &host.architecture, "linux"),
    ]});
    let (digest, size) = place.layout.add_blob(inner.to_string().as_bytes()).unwrap();
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    place.layout.add_manifest("multi", json!({"mediaType": list, "digest": digest, "size": size})).unwrap();
    let foreign = json!({"schemaVersion": 2, "manifests": [
        descriptor(other.manifest, other.manifest_bytes, "s390x", "linux"),
    ]});
    let (digest, size) = place.layout.add_blob(foreign.to_string().as_bytes()).unwrap();
    place.layout.add_manifest("foreign", json!({"mediaType": list, "digest": digest, "size": size})).unwrap();
    let untold = json!({"mediaType": manifest, "digest": other.manifest, "size": other.manifest_bytes});
    place.layout.add_manifest("untold", untold).unwrap();
    let store = place.store();
    assert_eq!(
        store.preflight(&place.reference("multi"), &RegistryAccess::anonymous()).unwrap().image.digest(),
        mine.manifest
    );
    refused(&store, &place.reference("foreign"), "it is made for linux/s390x");
    refused(&store, &place.reference("untold"), "it is made for linux/s390x");
    refused(&store, &place.reference("other"), "it is made for linux/s390x");
}

#[test]
fn documents_that_lie_or_are_none_are_refused() {
    let mut place = Place::new();
    let good = place.add("t", vec![layer("x")]);
    let store = place.store_with(Limits { document_bytes: 4096, ..Limits::default() });
    let manifest_path = place.layout.blob_path(&good.manifest);
    let manifest = std::fs::read_to_string(&manifest_path).unwrap();
    std::fs::write(&manifest_path, manifest.replacen('{', "{ ", 1)).unwrap();
    refused(&store, &place.reference("t"), "its bytes have the digest");
    let mut add = |tag: &str, text: String| {
        let (digest, size) = place.layout.add_blob(text.as_bytes()).unwrap();
        let descriptor = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
        });
        place.layout.add_manifest(tag, descriptor).unwrap();
    };
    add("garbage", "not json".to_owned());
    add("long", format!("{:>5000}", "{}"));
    add("schema1", manifest.replace("\"schemaVersion\":2", "\"schemaVersion\":1"));
    add("unknown", manifest.replace("application/vnd.oci.image.manifest.v1+json", "application/x"));
    add("nolayers", {
        let mut parsed: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        parsed["layers"] = json!([]);
        parsed.to_string()
    });
    add("nottar", manifest.replace("layer.v1.tar+gzip", "layer.v1.wasm"));
    add("sha512", manifest.replace("sha256:", "sha512:"));
    add("foreign", {
        let mut parsed: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        parsed["layers"][0]["digest"] = json!(Digest::of(b"elsewhere"));
        parsed["layers"][0]["urls"] = json!(["https://example.invalid/layer"]);
        parsed.to_string()
    });
    for (tag, says) in [
        ("garbage", "read the manifest"),
        ("long", "the limit is 4096"),
        ("schema1", "schema 1"),
        ("unknown", "application/x"),
        ("nolayers", "0 layers and 1 diff_ids"),
        ("nottar", "wasm"),
        ("sha512", "only sha256"),
        ("foreign", "https://example.invalid/layer"),
    ] {
        refused(&store, &place.reference(tag), says);
    }
}

fn tar_of(folder: &std::path::Path, file: &std::path::Path) {
    let tar = LayerBuilder::new().tree("", folder).unwrap().tar();
    std::fs::write(file, tar).unwrap();
}

#[test]
fn an_oci_archive_gives_the_same_image_as_its_layout() {
    let mut place = Place::new();
    let written = place.add("t", vec![layer("x")]);
    let file = place.path("image.tar");
    tar_of(&place.path("layout"), &file);
    let store = place.store();
    for text in [format!("oci-archive:{}:t", file.display()), file.display().to_string()] {
        let reference: Reference = text.parse().unwrap();
        assert_eq!(
            store.ingest(&reference, &RegistryAccess::anonymous(), &|_| {}).unwrap().digest(),
            written.manifest
        );
    }
    let docker: Reference = format!("docker-archive:{}", file.display()).parse().unwrap();
    refused(&store, &docker, "write oci-archive:");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2 + 100]).unwrap();
    refused(&store, &format!("oci-archive:{}", file.display()).parse().unwrap(), "read the archive");
    std::fs::write(&file, b"no tar at all").unwrap();
    refused(&store, &format!("oci-archive:{}", file.display()).parse().unwrap(), "read the archive");
}

/// As `docker save` of old writes: configuration by digest, layers in folders, equal layers as links.
fn docker_save(file: &std::path::Path, tags: &[&str]) -> (Digest, Vec<LayerBlob>) {
    let plain = |text: &str| LayerBuilder::new().file(text, 0o644, text).finish(Compression::None).unwrap();
    let layers = vec![plain("one"), plain("two"), plain("one")];
    let config = config_json(&ImageSpec::default(), &layers);
    let digest = Digest::of(&config);
    let list = json!([{
        "Config": format!("{}.json", digest.hex()),
        "RepoTags": tags,
        "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"],
    }]);
    let tar = LayerBuilder::new()
        .file(format!("{}.json", digest.hex()), 0o644, &config)
        .file("a/layer.tar", 0o644, &layers[0].bytes)
        .file("b/layer.tar", 0o644, &layers[1].bytes)
        .symlink("c/layer.tar", "../a/layer.tar")
        .file("manifest.json", 0o644, list.to_string())
        .tar();
    std::fs::write(file, tar).unwrap();
    (digest, layers)
}

#[test]
fn a_docker_archive_is_an_image_with_an_identity_of_its_own() {
    let place = Place::new();
    let file = place.path("saved.tar");
    let (config, _) = docker_save(&file, &["registry.invalid/library/thing:1"]);
    let store = place.store();
    let parse = |text: String| text.parse::<Reference>().unwrap();
    let found = store
        .preflight(&parse(format!("docker-archive:{}", file.display())), &RegistryAccess::anonymous())
        .unwrap();
    assert_eq!(found.config_digest, config);
    let image = store
        .ingest(
            &parse(format!("docker-archive:{}:thing:1", file.display())),
            &RegistryAccess::anonymous(),
            &|_| {},
        )
        .unwrap();
    assert_eq!(image, found.image);
    let names = store.image(&image).unwrap();
    assert_eq!(names.unpacked_bytes, 6);
    refused(
        &store,
        &parse(format!("docker-archive:{}:other:1", file.display())),
        "registry.invalid/library/thing:1",
    );
    refused(&store, &parse(format!("oci-archive:{}", file.display())), "write docker-archive:");
}

#[test]
fn what_other_tools_write_is_read() {
    let mut place = Place::new();
    let blob = layer("x");
    let written = place.add("t", vec![blob]);
    let store = place.store();
    let (oci, docker) = (place.path("skopeo.tar"), place.path("skopeo-docker.tar"));
    let source = format!("oci:{}:t", place.path("layout").display());
    for (form, file, tag) in [("oci-archive", &oci, ""), ("docker-archive", &docker, ":thing:1")] {
        let target = format!("{form}:{}{tag}", file.display());
        #[expect(clippy::disallowed_methods, reason = "the test compares with another tool and waits for it")]
        let run = Command::new("skopeo")
            .args(["copy", "--insecure-policy", &source, &target])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output();
        match run {
            Ok(output) if output.status.success() => {}
            Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => {
                return skipped("what_other_tools_write_is_read", &format!("skopeo: {error}"));
            }
        }
        let image = store.ingest(&target.parse().unwrap(), &RegistryAccess::anonymous(), &|_| {}).unwrap();
        if form == "oci-archive" {
            assert_eq!(image.digest(), written.manifest);
        }
        let root = store.materialise(&image, Attach::Copy, &place.path("local"), false).unwrap();
        let image_store::Root::Copy { tree } = root else { panic!("{root:?}") };
        assert_eq!(std::fs::read(tree.join("f")).unwrap(), b"x");
    }
}
