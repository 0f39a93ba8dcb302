//! Images into registries: what was pushed is pulled as the same image, what breaks is gone on with, and what is not
//! taken is one line.

use std::cell::RefCell;
use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use image_store::layout::{Compression, ImageSpec, LayerBlob, LayerBuilder, LayoutWriter, WrittenImage};
use image_store::{
    Digest, ImageId, Limits, Logins, Patience, PushError, PushOptions, PushProgress, Pushed, Reference,
    Registries, RegistryAccess, RegistryRules, Repository, Store, push,
};
use pilot_tests::registry::{
    Authority, Debian, DebianSettings, Entry, Fault, Locations, Misbehaving, write_auth,
};

/// Short, so that small layers take several.
const PIECE: u64 = 64 << 10;

/// A folder with an image `t:1` of two layers, of which one is several pieces long.
struct Source {
    dir: tempfile::TempDir,
    layout: LayoutWriter,
    written: WrittenImage,
    layer: Digest,
    layer_bytes: u64,
}

impl Source {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut layout = LayoutWriter::create(&dir.path().join("layout")).expect("layout");
        let blob = layer(1, 200_000);
        let (layer, layer_bytes) = (blob.digest(), blob.bytes.len() as u64);
        let written =
            layout.add_image("1", &ImageSpec::default(), vec![blob, self::layer(2, 100)]).expect("image");
        Self { dir, layout, written, layer, layer_bytes }
    }

    fn reference(&self) -> Reference {
        format!("oci:{}:1", self.dir.path().join("layout").display()).parse().expect("reference")
    }

    fn push(&self, to: &str) -> Result<Pushed, PushError> {
        self.push_with(to, &access(Logins::None, Registries::default()))
    }

    /// Pushes and checks what is told meanwhile.
    fn push_with(&self, to: &str, access: &RegistryAccess) -> Result<Pushed, PushError> {
        let to: Repository = format!("{to}/team/fit").parse().expect("repository");
        let last = RefCell::new(PushProgress { bytes_done: 0, bytes_total: 0 });
        let pushed = push(&self.reference(), &to, access, &options(), &|progress| {
            let before = last.replace(progress);
            assert!(before.bytes_done <= progress.bytes_done && progress.bytes_done <= progress.bytes_total);
        })?;
        let last = last.into_inner();
        assert_eq!(last.bytes_done, last.bytes_total);
        assert_eq!(last.bytes_total, pushed.bytes_sent + pushed.bytes_there);
        assert_eq!(pushed.reference.to_string(), format!("docker://{to}@{}", self.written.manifest));
        Ok(pushed)
    }

    /// The line of a push that fails; nothing is named then.
    fn refused(&self, registry: &Misbehaving) -> (bool, String) {
        let error = self.push(&registry.host()).expect_err("taken");
        assert!(!registry.names(&self.written.manifest.to_string()), "it is named");
        (error.is_transient(), chain(&error))
    }

    fn store(&self) -> Store {
        Store::open(&self.dir.path().join("store")).expect("store")
    }
}

fn options() -> PushOptions {
    PushOptions { piece_bytes: PIECE, ..PushOptions::default() }
}

/// Impatient, so that no test waits.
fn access(logins: Logins, registries: Registries) -> RegistryAccess {
    let mut access = RegistryAccess::new(registries, logins);
    access.patience = Patience {
        tries: 3,
        tries_of_blob: 20,
        first_wait: Duration::from_millis(5),
        longest_wait: Duration::from_secs(2),
        ..Patience::default()
    };
    access.certificate_folders.clear();
    access
}

fn login(source: &Source, host: &str, password: &str, registries: Registries) -> RegistryAccess {
    let file = source.dir.path().join(format!("{password}.json"));
    write_auth(&file, host, "user", password);
    access(Logins::File(file), registries)
}

/// The registries file with an authority for a host.
fn trusting(host: &str, authority: Option<&Authority>) -> Registries {
    let rules =
        RegistryRules { ca: authority.map(|authority| authority.file("ca.pem")), ..RegistryRules::default() };
    Registries { registries: [(host.to_owned(), rules)].into() }
}

/// A layer whose blob is about as long as its content, which no compressor makes shorter.
fn layer(seed: u64, bytes: usize) -> LayerBlob {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let noise = (0..bytes).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    });
    let noise: Vec<u8> = noise.collect();
    LayerBuilder::new().file(format!("data/{seed}"), 0o644, noise).finish(Compression::Gzip).expect("layer")
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

/// Requests of one kind, as `METHOD path`.
fn asked(registry: &Misbehaving, method: &str, part: &str) -> usize {
    registry.seen().iter().filter(|seen| seen.method == method && seen.path.contains(part)).count()
}

#[test]
fn debians_registry_takes_an_image_once_and_gives_the_same() {
    let Some(registry) = Debian::start(DebianSettings::default()) else {
        let name = "debians_registry_takes_an_image_once_and_gives_the_same";
        return pilot_tests::skipped(name, "docker-registry is not installed");
    };
    let source = Source::new();
    let store = source.store();
    let access = access(Logins::None, Registries::default());
    let identity = store.preflight(&source.reference(), &access).expect("preflight").image;
    let first = source.push(&registry.host()).expect("push");
    assert!(first.bytes_there == 0 && first.bytes_sent > source.layer_bytes, "{first:?}");
    assert_eq!(first.reference.digest().map(ImageId::new), Some(identity));
    let preflight = store.preflight(&first.reference, &access).expect("preflight");
    assert_eq!(preflight.image, identity);
    let pulled = store.ingest(&first.reference, &access, &|_| {}).expect("pull");
    assert_eq!(pulled, identity);
    assert!(store.verify(&pulled).expect("verify").damaged.is_empty());
    let second = source.push(&registry.host()).expect("push");
    assert_eq!((second.bytes_sent, second.bytes_there), (0, first.bytes_sent), "it is sent again");
    assert_eq!(second.reference, first.reference);
}

#[test]
fn debians_registry_gets_an_image_over_a_line_that_breaks() {
    let Some(registry) = Debian::start(DebianSettings::default()) else {
        let name = "debians_registry_gets_an_image_over_a_line_that_breaks";
        return pilot_tests::skipped(name, "docker-registry is not installed");
    };
    let source = Source::new();
    // In the second piece, and in the first of the next try: its 2.8 calls an upload off that broke within a piece.
    let proxy = cutting_proxy(registry.host().parse().expect("address"), &[100_000, 40_000]);
    let pushed = source.push(&proxy.to_string()).expect("push");
    assert!(pushed.bytes_sent > source.layer_bytes);
    let from: Reference =
        format!("docker://{}/team/fit@{}", registry.host(), source.written.manifest).parse().expect("name");
    let store = source.store();
    let access = access(Logins::None, Registries::default());
    let pulled = store.ingest(&from, &access, &|_| {}).expect("pull");
    assert!(store.verify(&pulled).expect("verify").damaged.is_empty());
}

/// Passes connections on; each of the first ends once so many bytes went through it to the server.
fn cutting_proxy(to: SocketAddr, cuts: &[usize]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("address");
    let cuts = cuts.to_vec();
    let next = Arc::new(AtomicUsize::new(0));
    // It waits for connections until the test's process ends.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(client), Ok(server)) = (stream, TcpStream::connect(to)) else { return };
            let (next, cuts) = (Arc::clone(&next), cuts.clone());
            let (mut back_in, mut back_out) =
                (server.try_clone().expect("clone"), client.try_clone().expect("clone"));
            std::thread::spawn(move || std::io::copy(&mut back_in, &mut back_out));
            std::thread::spawn(move || forward(client, server, &cuts, &next));
        }
    });
    address
}

fn forward(mut from: TcpStream, mut to: TcpStream, cuts: &[usize], next: &AtomicUsize) {
    let (mut buffer, mut passed) = (vec![0; 4096], 0);
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
        passed += read;
        let number = next.load(Ordering::SeqCst);
        if cuts.get(number).is_some_and(|cut| passed >= *cut) {
            next.store(number + 1, Ordering::SeqCst);
            break;
        }
    }
    let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
}

#[test]
fn debians_registry_lets_push_who_has_a_password() {
    let authority = Authority::new();
    for tls in [None, Some(&authority)] {
        let Some(registry) = Debian::start(DebianSettings { login: true, authority: tls }) else {
            let name = "debians_registry_lets_push_who_has_a_password";
            return pilot_tests::skipped(name, "docker-registry is not installed");
        };
        let source = Source::new();
        let host = registry.host();
        let registries = trusting(&host, tls);
        let nobody = access(Logins::None, registries.clone());
        let text = chain(&source.push_with(&host, &nobody).expect_err("let in"));
        assert!(text.contains("push layer sha256:") && text.contains("answered 401"), "{text}");
        assert!(text.contains(&format!("podman login {host}")), "{text}");
        let wrong = login(&source, &host, "mistaken", registries.clone());
        let error = source.push_with(&host, &wrong).expect_err("let in");
        let text = chain(&error);
        assert!(!error.is_transient() && text.contains("may not push there"), "{text}");
        assert!(text.contains(&format!("{host}/team/fit")) && !text.contains("mistaken"), "{text}");
        let right = login(&source, &host, "secret", registries);
        let pushed = source.push_with(&host, &right).expect("push");
        let store = source.store();
        let pulled = store.ingest(&pushed.reference, &right, &|_| {}).expect("pull");
        assert_eq!(pulled.digest(), source.written.manifest);
        assert_eq!(source.push_with(&host, &right).expect("push").bytes_sent, 0);
        if tls.is_some() {
            let text = chain(&source.push(&host).expect_err("not trusted"));
            assert!(text.contains("trust") && text.contains("ca:"), "{text}");
        }
    }
}

#[test]
fn an_upload_that_was_cut_goes_on_where_it_was_cut() {
    let (source, registry) = (Source::new(), Misbehaving::start());
    registry.fault_of("PATCH", "uploads", Fault::CutUpload(40_000), 1);
    source.push(&registry.host()).expect("push");
    let seen = registry.seen();
    let ranges: Vec<_> = seen.iter().filter_map(|seen| seen.content_range.as_deref()).collect();
    assert_eq!(ranges[..3], ["0-65535", "40000-105535", "105536-171071"]);
    assert!(registry.names(&source.written.manifest.to_string()));
    assert_eq!(registry.open_uploads(), 0);
    let store = source.store();
    let pulled: Reference =
        format!("docker://{}/team/fit@{}", registry.host(), source.written.manifest).parse().expect("name");
    let image = store.ingest(&pulled, &access(Logins::None, Registries::default()), &|_| {}).expect("pull");
    assert!(store.verify(&image).expect("verify").damaged.is_empty());
    // The next finds it all.
    registry.seen();
    assert_eq!(source.push(&registry.host()).expect("push").bytes_sent, 0);
    assert!(registry.seen().iter().all(|seen| seen.method == "HEAD"));
}

#[test]
fn a_connection_that_breaks_at_any_request_costs_another_try() {
    for (method, part) in [
        ("HEAD", "blobs/sha256"),
        ("POST", "uploads"),
        ("PATCH", "uploads"),
        ("PUT", "uploads"),
        ("HEAD", "manifests"),
        ("PUT", "manifests"),
    ] {
        for fault in [Fault::Gone, Fault::Status(503, vec![("Retry-After", "0".to_owned())])] {
            let (source, registry) = (Source::new(), Misbehaving::start());
            registry.fault_of(method, part, fault.clone(), 2);
            let pushed = source.push(&registry.host());
            let pushed = pushed.unwrap_or_else(|error| panic!("{method} {part}: {}", chain(&error)));
            assert_eq!(pushed.bytes_there, 0, "{method} {part} {fault:?}");
            assert!(registry.names(&source.written.manifest.to_string()));
        }
        // Once it has enough of it, it says so.
        let (source, registry) = (Source::new(), Misbehaving::start());
        registry.fault_of(method, part, Fault::Status(500, vec![]), 99);
        let (transient, text) = source.refused(&registry);
        assert!(transient && text.contains("answered 500; try again later"), "{method} {part}: {text}");
        assert_eq!(asked(&registry, method, part), 3, "{method} {part}");
    }
}

#[test]
fn a_registry_that_falls_silent_is_given_up_and_gone_on_with() {
    let (source, registry) = (Source::new(), Misbehaving::start());
    let mut access = access(Logins::None, Registries::default());
    access.patience.stall = Duration::from_millis(200);
    registry.fault_of("PATCH", "uploads", Fault::Silent, 1);
    registry.fault_of("HEAD", "manifests", Fault::Silent, 1);
    source.push_with(&registry.host(), &access).expect("push");
    registry.fault_of("POST", "uploads", Fault::Silent, 99);
    registry.fault_of("HEAD", "blobs", Fault::Status(404, vec![]), 99);
    let error = source.push_with(&registry.host(), &access).expect_err("silent");
    assert!(error.is_transient() && chain(&error).contains("within the time limit"), "{}", chain(&error));
}

#[test]
fn pieces_are_as_long_as_the_registry_wants_them() {
    let (source, registry) = (Source::new(), Misbehaving::start());
    let opened = |least: &str| {
        let location = "/v2/team/fit/blobs/uploads/own?_state=a%2Fb".to_owned();
        Fault::Status(202, vec![("Location", location), ("OCI-Chunk-Min-Length", least.to_owned())])
    };
    registry.fault_of("POST", "uploads", opened("150000"), 1);
    source.push(&registry.host()).expect("push");
    let seen = registry.seen();
    let ranges: Vec<_> = seen.iter().filter_map(|seen| seen.content_range.as_deref()).collect();
    assert!(ranges[0] == "0-149999" && ranges[1].starts_with("150000-"), "{ranges:?}");
    let registry = Misbehaving::start();
    registry.fault_of("POST", "uploads", opened("99999999999"), 1);
    let (_, text) = source.refused(&registry);
    assert!(text.contains("pieces of 99999999999 bytes"), "{text}");
}

#[test]
fn a_blob_whose_completion_was_not_heard_is_not_sent_again() {
    let (source, registry) = (Source::new(), Misbehaving::start());
    registry.fault_of("PUT", "uploads", Fault::CutUpload(0), 1);
    source.push(&registry.host()).expect("push");
    // Three blobs, one upload each.
    assert_eq!(asked(&registry, "POST", "uploads"), 3);
}

#[test]
fn an_upload_that_expired_or_got_mixed_up_is_begun_anew() {
    for (method, fault) in [("PATCH", Fault::Status(404, vec![])), ("PATCH", Fault::Status(416, vec![]))] {
        let (source, registry) = (Source::new(), Misbehaving::start());
        registry.fault_of(method, "uploads", fault.clone(), 1);
        source.push(&registry.host()).unwrap_or_else(|error| panic!("{fault:?}: {}", chain(&error)));
        assert_eq!(asked(&registry, "POST", "uploads"), 4, "{fault:?}");
    }
    // What was gone on with, and is not the blob in the end.
    let (source, registry) = (Source::new(), Misbehaving::start());
    registry.fault_of("PATCH", "uploads", Fault::CutUpload(40_000), 1);
    registry.fault_of("PUT", "uploads", Fault::Status(400, vec![]), 1);
    source.push(&registry.host()).expect("push");
    assert_eq!(asked(&registry, "POST", "uploads"), 4);
    // And one that expires again and again.
    let (source, registry) = (Source::new(), Misbehaving::start());
    registry.fault_of("PATCH", "uploads", Fault::Status(404, vec![]), 99);
    let (_, text) = source.refused(&registry);
    assert!(text.contains("answered 404"), "{text}");
    assert_eq!(asked(&registry, "POST", "uploads"), 3);
}

#[test]
fn a_location_may_be_a_path_an_address_or_left_out_later() {
    for locations in [Locations::Relative, Locations::Absolute, Locations::AtFirst] {
        let (source, registry) = (Source::new(), Misbehaving::start());
        registry.locate(locations.clone());
        source.push(&registry.host()).unwrap_or_else(|error| panic!("{locations:?}: {}", chain(&error)));
        let patched = asked(&registry, "PATCH", "_state=a%2Fb");
        assert!(patched >= 4, "{locations:?}: {patched}");
    }
    let (source, registry) = (Source::new(), Misbehaving::start());
    registry.locate(Locations::Never);
    let (transient, text) = source.refused(&registry);
    assert!(!transient && text.contains("no Location") && text.contains(&registry.host()), "{text}");
    assert_eq!(asked(&registry, "POST", ""), 1);
}

#[test]
fn an_upload_elsewhere_takes_no_authorization_along() {
    let (source, registry, elsewhere) = (Source::new(), Misbehaving::start(), Misbehaving::start());
    registry.let_in(Entry::Basic("user", "secret"));
    registry.locate(Locations::At(elsewhere.url()));
    elsewhere.locate(Locations::Absolute);
    elsewhere.fault_of("PATCH", "uploads", Fault::Status(403, vec![]), 1);
    let login = login(&source, &registry.host(), "secret", Registries::default());
    source.push_with(&registry.host(), &login).expect("push");
    assert!(registry.seen().iter().any(|seen| seen.authorization.is_some()));
    let seen = elsewhere.seen();
    assert!(seen.iter().filter(|seen| seen.method == "PUT").count() == 3, "{seen:?}");
    assert!(seen.iter().all(|seen| seen.authorization.is_none()), "{seen:?}");
}

#[test]
fn no_upload_leaves_https() {
    let authority = Authority::new();
    let (source, registry) = (Source::new(), Misbehaving::start_tls(&authority));
    registry.let_in(Entry::Basic("user", "secret"));
    let host = registry.host();
    let login = login(&source, &host, "secret", trusting(&host, Some(&authority)));
    registry.locate(Locations::At("http://registry.invalid".to_owned()));
    let text = chain(&source.push_with(&host, &login).expect_err("taken"));
    assert!(text.contains("not https"), "{text}");
    // A registry that does not know that a proxy speaks TLS for it.
    registry.locate(Locations::At(format!("http://{host}")));
    source.push_with(&host, &login).expect("push");
}

#[test]
fn a_token_to_push_is_asked_for_and_fetched_anew_when_it_expires() {
    let (source, registry) = (Source::new(), Misbehaving::start());
    registry.let_in(Entry::Token(Some(("user", "secret")), 3));
    // The first challenge does not say what for.
    let challenge = format!("Bearer realm=\"{}/token\",service=\"test\"", registry.url());
    registry.fault_any("blobs/sha256", Fault::Status(401, vec![("WWW-Authenticate", challenge)]), 1);
    let login = login(&source, &registry.host(), "secret", Registries::default());
    source.push_with(&registry.host(), &login).expect("push");
    let seen = registry.seen();
    let tokens: Vec<_> = seen.iter().filter(|seen| seen.path.starts_with("/token")).collect();
    assert!(tokens.len() >= 4, "{}", tokens.len());
    assert!(tokens[0].path.contains("scope=repository%3Ateam%2Ffit%3Apull%2Cpush"), "{}", tokens[0].path);
    assert!(tokens[1].path.contains("scope=repository%3Ax%3Apull&"), "{}", tokens[1].path);
}

#[test]
fn what_is_not_taken_is_one_line_that_says_what_to_do() {
    let (blob, manifest) = (("POST", "uploads", "push layer"), ("PUT", "manifests", "push manifest"));
    for ((method, part, starts), status, says, tries) in [
        (manifest, 400, "its log may say why", 1),
        (manifest, 413, "raise its limit", 1),
        (("PATCH", "uploads", "push layer"), 413, "send smaller pieces", 1),
        (blob, 403, "podman login", 1),
        (blob, 404, "made there first", 1),
        (blob, 405, "read-only", 1),
        (blob, 507, "no room left", 1),
        (blob, 429, "wait 3600 s", 1),
        (("HEAD", "blobs", "push layer"), 401, "podman login", 1),
    ] {
        let (source, registry) = (Source::new(), Misbehaving::start());
        let headers = vec![("Retry-After", "3600".to_owned())];
        registry.fault_of(method, part, Fault::Status(status, headers), 99);
        let (transient, text) = source.refused(&registry);
        assert_eq!(transient, status == 429, "{text}");
        assert!(text.starts_with(starts) && text.contains(&format!("answered {status}")), "{text}");
        assert!(text.contains(says) && text.contains(&format!("{}/team/fit", registry.host())), "{text}");
        assert_eq!(asked(&registry, method, part), tries, "{text}");
    }
}

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
