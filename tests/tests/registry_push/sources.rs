//! What is read to be pushed: layouts that lie, indexes, archives, and the limits.

use image_store::Limits;

use super::*;

#[test]
fn a_layout_that_lies_names_nothing() {
    let (source, registry) = (Source::new(), Misbehaving::start());
    let path = source.layout.blob_path(&source.layer);
    let mut bytes = std::fs::read(&path).expect("blob");
    let whole = bytes.clone();
    bytes[150_000] ^= 1;
    std::fs::write(&path, &bytes).expect("blob");
    let (transient, text) = source.refused(&registry);
    assert!(!transient && text.contains(&source.layer.to_string()), "{text}");
    assert!(text.contains(&Digest::of(&bytes).to_string()) && text.contains("make it anew"), "{text}");
    let seen = registry.seen();
    assert!(seen.iter().all(|seen| seen.method != "PUT"), "{seen:?}");
    assert_eq!(registry.open_uploads(), 0, "it is called off");
    // What is too short is not even begun.
    std::fs::write(&path, &whole[..1000]).expect("blob");
    let (_, text) = source.refused(&registry);
    assert!(text.contains("bytes are stated") && registry.seen().is_empty(), "{text}");
    std::fs::write(&path, &whole).expect("blob");
    source.push(&registry.host()).expect("push");
}

#[test]
fn the_image_for_the_platform_is_pushed_from_an_index() {
    let (mut source, registry) = (Source::new(), Misbehaving::start());
    let other = ImageSpec { architecture: "s390x".into(), ..ImageSpec::default() };
    let other = source.layout.add_image("other", &other, vec![layer(3, 10)]).expect("image");
    let entry = |image: &WrittenImage, architecture: &str| {
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image.manifest,
            "size": image.manifest_bytes, "platform": {"os": "linux", "architecture": architecture},
        })
    };
    let both = [entry(&other, "s390x"), entry(&source.written, &ImageSpec::default().architecture)];
    let index = serde_json::json!({"schemaVersion": 2, "manifests": both}).to_string();
    let (digest, size) = source.layout.add_blob(index.as_bytes()).expect("index");
    let descriptor = serde_json::json!({
        "mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": size,
    });
    source.layout.add_manifest("1", descriptor).expect("index");
    let pushed = source.push(&registry.host()).expect("push");
    assert_eq!(pushed.reference.digest(), Some(source.written.manifest));
    assert!(!registry.names(&other.manifest.to_string()));
}

#[test]
fn an_archive_is_pushed_as_what_it_is_to_a_store() {
    let (source, registry) = (Source::new(), Misbehaving::start());
    let read = |path| std::fs::read(path).expect("file");
    let layout = source.dir.path().join("layout");
    // A tar is a tar, whatever is meant by it.
    let mut oci = LayerBuilder::new().file("index.json", 0o644, read(layout.join("index.json")));
    for blob in std::fs::read_dir(layout.join("blobs/sha256")).expect("blobs").flatten() {
        let name = format!("blobs/sha256/{}", blob.file_name().to_string_lossy());
        oci = oci.file(name, 0o644, read(blob.path()));
    }
    let plain = LayerBuilder::new().file("a", 0o644, "a").finish(Compression::None).expect("layer");
    let config = image_store::layout::config_json(&ImageSpec::default(), std::slice::from_ref(&plain));
    let name = format!("{}.json", Digest::of(&config).hex());
    let list = serde_json::json!([{"Config": name, "RepoTags": ["fit:1"], "Layers": ["l/layer.tar"]}]);
    let saved = LayerBuilder::new()
        .file("manifest.json", 0o644, list.to_string())
        .file(name, 0o644, config)
        .file("l/layer.tar", 0o644, plain.bytes);
    let store = source.store();
    let access = access(Logins::None, Registries::default());
    for (transport, tar) in [("oci-archive", oci), ("docker-archive", saved)] {
        let file = source.dir.path().join(transport);
        std::fs::write(&file, tar.finish(Compression::None).expect("tar").bytes).expect("archive");
        let from: Reference = format!("{transport}:{}", file.display()).parse().expect("reference");
        let to: Repository = format!("{}/team/fit", registry.host()).parse().expect("repository");
        let pushed = push(&from, &to, &access, &options(), &|_| {}).expect(transport);
        let identity = store.preflight(&from, &access).expect("preflight").image;
        assert_eq!(pushed.reference.digest(), Some(identity.digest()), "{transport}");
        assert_eq!(store.ingest(&pushed.reference, &access, &|_| {}).expect("pull"), identity);
        let text = chain(&push(&pushed.reference, &to, &access, &options(), &|_| {}).expect_err("remote"));
        assert!(text.contains("in a registry already"), "{text}");
    }
}

#[test]
fn a_push_keeps_to_the_limits_and_to_the_folder() {
    let (source, registry) = (Source::new(), Misbehaving::start());
    let to: Repository = format!("{}/fit", registry.host()).parse().expect("repository");
    let access = access(Logins::None, Registries::default());
    let options = PushOptions { limits: Limits { layers: 1, ..Limits::default() }, ..options() };
    let text = chain(&push(&source.reference(), &to, &access, &options, &|_| {}).expect_err("layers"));
    assert!(text.contains("over the limit of 1"), "{text}");
    let nothing: Reference = "oci:/nothing/here".parse().expect("reference");
    let text = chain(&push(&nothing, &to, &access, &options, &|_| {}).expect_err("nothing"));
    assert!(text.contains("no such file"), "{text}");
    assert_eq!(registry.seen(), []);
}
