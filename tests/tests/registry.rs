//! A registry that misbehaves: what comes in the end is right, or the error says what is wrong, on which host.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use image_store::layout::{Compression, ImageSpec, LayerBlob, LayerBuilder};
use image_store::{
    Digest, ImageId, IngestError, Logins, Options, Patience, Reference, Registries, RegistryAccess,
    RegistryRules, Store,
};
use pilot_tests::registry::{Entry, Fault, Misbehaving};

/// Impatient, so that no test waits.
fn access() -> RegistryAccess {
    access_with(Registries::default())
}

fn access_with(registries: Registries) -> RegistryAccess {
    let mut access = RegistryAccess::new(registries, Logins::None);
    access.patience = Patience {
        connect: Duration::from_secs(5),
        stall: Duration::from_millis(400),
        tries: 3,
        tries_of_blob: 20,
        first_wait: Duration::from_millis(5),
        longest_wait: Duration::from_secs(2),
    };
    access.certificate_folders.clear();
    access
}

fn mirrored(origin: &str, mirrors: &[String]) -> RegistryAccess {
    let rules = RegistryRules { mirrors: mirrors.to_vec(), ..RegistryRules::default() };
    access_with(Registries { registries: [(origin.to_owned(), rules)].into() })
}

fn store(dir: &tempfile::TempDir) -> Store {
    Store::open_with(&dir.path().join("store"), Options { lazy_sync: true, ..Options::default() })
        .expect("store")
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

/// One image `t:1` of one layer, and the layer's blob.
fn with_image(bytes: usize) -> (Misbehaving, Digest, usize) {
    let registry = Misbehaving::start();
    let blob = layer(1, bytes);
    let (digest, length) = (blob.digest(), blob.bytes.len());
    registry.add("1", &ImageSpec::default(), vec![blob]);
    (registry, digest, length)
}

fn reference(registry: &Misbehaving) -> Reference {
    format!("docker://{}/t:1", registry.host()).parse().expect("reference")
}

fn pull(store: &Store, registry: &Misbehaving) -> Result<ImageId, IngestError> {
    store.ingest(&reference(registry), &access(), &|_| {})
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

fn assert_whole(store: &Store, image: &ImageId) {
    assert!(store.verify(image).expect("verify").damaged.is_empty());
    assert!(store.verify_all().expect("verify").damages.is_empty());
    let left = std::fs::read_dir(store.path().join("parts")).expect("parts").count();
    assert_eq!(left, 0, "parts are left");
}

#[test]
fn a_preflight_fetches_no_layer_and_a_second_pull_nothing_at_all() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (store, (registry, blob, length)) = (store(&dir), with_image(100_000));
    let preflight = store.preflight(&reference(&registry), &access()).expect("preflight");
    assert_eq!(preflight.bytes_missing, length as u64);
    assert_eq!(preflight.layers.len(), 1);
    assert!(registry.fetched(&blob).is_empty());
    let ingested = store.ingest_preflight(&reference(&registry), &preflight, &|_| {}).expect("ingest");
    assert_eq!(ingested.image, preflight.image);
    let seen = registry.seen();
    assert_eq!(seen.len(), 1, "documents are not fetched twice: {seen:?}");
    assert_whole(&store, &ingested.image);
    // A tag is looked up again, by its digest alone.
    assert_eq!(pull(&store, &registry).expect("pull"), ingested.image);
    let seen = registry.seen();
    assert!(seen.len() == 1 && seen[0].method == "HEAD", "{seen:?}");
    // A digest is what it is.
    let pinned: Reference =
        format!("docker://{}/t@{}", registry.host(), ingested.image).parse().expect("reference");
    assert_eq!(store.preflight(&pinned, &access()).expect("preflight").bytes_missing, 0);
    assert_eq!(registry.seen(), []);
}

#[test]
fn progress_ends_at_the_layers_bytes() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (store, (registry, _, length)) = (store(&dir), with_image(1_000_000));
    let last = std::sync::Mutex::new((0, 0));
    let progress = |progress: image_store::Progress| {
        let mut last = last.lock().expect("lock");
        assert!(progress.bytes_done >= last.0 && progress.bytes_done <= progress.bytes_total);
        *last = (progress.bytes_done, progress.bytes_total);
    };
    store.ingest(&reference(&registry), &access(), &progress).expect("pull");
    assert_eq!(*last.lock().expect("lock"), (length as u64, length as u64));
}

#[test]
fn what_was_cut_goes_on_where_it_was_cut() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (store, (registry, blob, _)) = (store(&dir), with_image(300_000));
    registry.fault(blob.to_string(), Fault::Cut(100_000), 1);
    let image = pull(&store, &registry).expect("pull");
    let ranges: Vec<_> = registry.fetched(&blob).into_iter().map(|seen| seen.range).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-".to_owned())]);
    assert_whole(&store, &image);
}

#[test]
fn what_stalls_is_given_up_and_goes_on() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (store, (registry, blob, _)) = (store(&dir), with_image(300_000));
    registry.fault(blob.to_string(), Fault::Stall(50_000), 1);
    let image = pull(&store, &registry).expect("pull");
    let ranges: Vec<_> = registry.fetched(&blob).into_iter().map(|seen| seen.range).collect();
    assert_eq!(ranges, [None, Some("bytes=50000-".to_owned())]);
    assert_whole(&store, &image);
}

#[test]
fn a_registry_without_ranges_or_with_false_ones_gives_the_whole_again() {
    for fault in [Fault::IgnoreRange, Fault::LieAboutRange, Fault::Status(416, vec![])] {
        let dir = tempfile::tempdir().expect("tempdir");
        let (store, (registry, blob, _)) = (store(&dir), with_image(300_000));
        registry.fault(blob.to_string(), Fault::Cut(100_000), 1);
        registry.fault(blob.to_string(), fault.clone(), 1);
        let image = pull(&store, &registry).unwrap_or_else(|error| panic!("{fault:?}: {}", chain(&error)));
        let asked = registry.fetched(&blob).len();
        assert_eq!(asked, if matches!(fault, Fault::IgnoreRange) { 2 } else { 3 }, "{fault:?}");
        assert_whole(&store, &image);
    }
}

#[test]
fn wrong_bytes_are_refused_with_both_digests_and_nothing_is_stored() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (store, (registry, blob, _)) = (store(&dir), with_image(100_000));
    registry.fault(blob.to_string(), Fault::WrongBytes, 9);
    let error = pull(&store, &registry).expect_err("wrong bytes");
    let text = chain(&error);
    assert!(!error.is_transient() && text.matches("sha256:").count() == 2, "{text}");
    assert!(text.contains(&blob.to_string()), "{text}");
    assert!(store.list().expect("list").is_empty());
    assert_eq!(std::fs::read_dir(store.path().join("parts")).expect("parts").count(), 1);
    assert_eq!(std::fs::read_dir(store.path().join("trees")).expect("trees").count(), 0);
    registry.behave();
    assert_whole(&store, &pull(&store, &registry).expect("pull"));
}

#[test]
fn wrong_bytes_of_a_mirror_are_fetched_from_the_origin() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (store, (origin, blob, _)) = (store(&dir), with_image(100_000));
    let (mirror, ..) = with_image(100_000);
    let access = mirrored(&origin.host(), &[format!("{}/cache", mirror.host())]);
    mirror.fault(blob.to_string(), Fault::WrongBytes, 9);
    let image = store.ingest(&reference(&origin), &access, &|_| {}).expect("pull");
    assert_whole(&store, &image);
    assert_eq!(origin.fetched(&blob).len(), 1);
    let seen = mirror.seen();
    assert!(seen.iter().all(|seen| seen.path.starts_with("/v2/cache/t/")), "{seen:?}");
    // And where the mirror is good, the origin is not asked at all.
    let dir = tempfile::tempdir().expect("tempdir");
    let store = self::store(&dir);
    mirror.behave();
    store.ingest(&reference(&origin), &access, &|_| {}).expect("pull");
    assert_eq!(origin.seen(), []);
}

#[test]
fn a_mirror_that_is_away_or_lacks_the_image_costs_a_detour() {
    let (origin, _, _) = with_image(10_000);
    let gone = Misbehaving::start().host();
    let empty = Misbehaving::start();
    let access = mirrored(&origin.host(), &[gone, empty.host()]);
    let dir = tempfile::tempdir().expect("tempdir");
    let store = store(&dir);
    let image = store.ingest(&reference(&origin), &access, &|_| {}).expect("pull");
    assert_whole(&store, &image);
    assert!(!empty.seen().is_empty());
}

#[test]
fn a_wrong_length_is_refused() {
    for fault in [Fault::Short(10), Fault::Long(10)] {
        let dir = tempfile::tempdir().expect("tempdir");
        let (store, (registry, blob, length)) = (store(&dir), with_image(100_000));
        registry.fault(blob.to_string(), fault, 9);
        let error = pull(&store, &registry).expect_err("wrong length");
        let text = chain(&error);
        assert!(!error.is_transient() && text.contains(&format!("{length} bytes are stated")), "{text}");
        assert!(text.contains(&registry.host()), "{text}");
        assert!(store.list().expect("list").is_empty());
    }
}

#[test]
fn a_busy_registry_is_given_the_time_that_it_asks_for() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (store, (registry, blob, _)) = (store(&dir), with_image(10_000));
    // One second after the date that the registry writes.
    let date = "Sun, 06 Nov 1994 08:49:38 GMT".to_owned();
    registry.fault("manifests/1", Fault::Status(429, vec![("Retry-After", "1".to_owned())]), 1);
    registry.fault(blob.to_string(), Fault::Status(503, vec![("Retry-After", date)]), 1);
    #[expect(clippy::disallowed_methods, reason = "what is measured is a wait")]
    let start = std::time::Instant::now();
    let image = pull(&store, &registry).expect("pull");
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    assert_whole(&store, &image);
    // One that asks for more than we wait is not waited for.
    registry.fault_any("manifests/1", Fault::Status(429, vec![("Retry-After", "3600".to_owned())]), 9);
    let dir = tempfile::tempdir().expect("tempdir");
    let error = pull(&self::store(&dir), &registry).expect_err("busy");
    let text = chain(&error);
    assert!(error.is_transient() && text.contains("429") && text.contains("wait 3600 s"), "{text}");
}

#[test]
fn a_failing_registry_is_asked_again_a_few_times() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (store, (registry, blob, _)) = (store(&dir), with_image(10_000));
    registry.fault("manifests/1", Fault::Status(500, vec![]), 2);
    registry.fault(blob.to_string(), Fault::Status(502, vec![]), 1);
    registry.fault(blob.to_string(), Fault::Gone, 1);
    assert_whole(&store, &pull(&store, &registry).expect("pull"));
    registry.fault_any("manifests/2", Fault::Status(500, vec![]), 99);
    let other: Reference = format!("docker://{}/t:2", registry.host()).parse().expect("reference");
    registry.seen();
    let error = store.ingest(&other, &access(), &|_| {}).expect_err("500");
    assert!(error.is_transient() && chain(&error).contains("500"), "{}", chain(&error));
    assert_eq!(registry.seen().len(), 3);
}

#[test]
fn a_registry_that_goes_in_the_middle_is_gone_on_with_later() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (store, (registry, blob, _)) = (store(&dir), with_image(300_000));
    registry.fault(blob.to_string(), Fault::Cut(200_000), 1);
    registry.fault_any(blob.to_string(), Fault::Gone, 99);
    let error = pull(&store, &registry).expect_err("gone");
    assert!(error.is_transient() && chain(&error).contains(&registry.host()), "{}", chain(&error));
    assert!(store.list().expect("list").is_empty());
    registry.behave();
    registry.seen();
    let image = pull(&self::store(&dir), &registry).expect("pull");
    let ranges: Vec<_> = registry.fetched(&blob).into_iter().map(|seen| seen.range).collect();
    assert_eq!(ranges, [Some("bytes=200000-".to_owned())], "only the rest is asked for");
    assert_whole(&store, &image);
}

#[test]
fn wrong_bytes_that_an_earlier_process_left_are_fetched_anew() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (store, (registry, blob, _)) = (store(&dir), with_image(100_000));
    std::fs::write(store.path().join("parts").join(blob.hex()), vec![7; 50_000]).expect("part");
    let image = pull(&store, &registry).expect("pull");
    assert_eq!(registry.fetched(&blob).len(), 2);
    assert_whole(&store, &image);
}

#[test]
fn a_document_without_end_is_cut_at_its_limit() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (store, (registry, _, _)) = (store(&dir), with_image(10_000));
    registry.fault("manifests/1", Fault::Endless, 9);
    let error = pull(&store, &registry).expect_err("endless");
    assert!(chain(&error).contains("limit of 4194304 bytes"), "{}", chain(&error));
}

#[test]
fn a_manifest_with_wrong_bytes_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (store, (registry, _, _)) = (store(&dir), with_image(10_000));
    registry.fault("manifests/1", Fault::WrongBytes, 9);
    let text = chain(&pull(&store, &registry).expect_err("wrong bytes"));
    assert_eq!(text.matches("sha256:").count(), 2, "{text}");
}

#[test]
fn what_is_not_there_is_said_with_a_way_out() {
    let dir = tempfile::tempdir().expect("tempdir");
    let registry = Misbehaving::start();
    let error = pull(&store(&dir), &registry).expect_err("nothing there");
    let text = chain(&error);
    assert!(text.contains(&format!("podman login {}", registry.host())), "{text}");
    assert!(!error.is_transient() && text.contains("t:1"), "{text}");
}

#[test]
fn a_redirect_to_another_host_takes_no_authorization_along() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (registry, blob, _) = with_image(100_000);
    let (elsewhere, ..) = with_image(100_000);
    registry.let_in(Entry::Basic("user", "secret"));
    registry.fault(blob.to_string(), Fault::Redirect(elsewhere.url()), 9);
    elsewhere.fault(blob.to_string(), Fault::Cut(30_000), 1);
    let auth = dir.path().join("auth.json");
    pilot_tests::registry::write_auth(&auth, &registry.host(), "user", "secret");
    let access = RegistryAccess { logins: Logins::File(auth), ..access() };
    let store = store(&dir);
    let image = store.ingest(&reference(&registry), &access, &|_| {}).expect("pull");
    assert_whole(&store, &image);
    assert!(registry.seen().iter().any(|seen| seen.authorization.is_some()));
    let seen = elsewhere.seen();
    assert_eq!(seen.iter().filter(|seen| seen.authorization.is_some()).count(), 0, "{seen:?}");
    assert_eq!(seen[1].range.as_deref(), Some("bytes=30000-"));
}

#[test]
fn the_image_for_this_machine_is_chosen_from_an_index() {
    let registry = Misbehaving::start();
    let own = registry.add("own", &ImageSpec::default(), vec![layer(1, 1000)]);
    let other = ImageSpec { architecture: "s390x".into(), ..ImageSpec::default() };
    let other = registry.add("other", &other, vec![layer(2, 1000)]);
    let spec = ImageSpec::default();
    let entry = |image: &image_store::layout::WrittenImage, os: &str, architecture: &str| {
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image.manifest,
            "size": image.manifest_bytes, "platform": {"os": os, "architecture": architecture},
        })
    };
    for kind in [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ] {
        let index = |entries: Vec<serde_json::Value>| {
            serde_json::json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).to_string()
        };
        let both = index(vec![entry(&other, "linux", "s390x"), entry(&own, &spec.os, &spec.architecture)]);
        let both = registry.add_manifest("1", kind, both.as_bytes());
        let foreign = index(vec![entry(&other, "linux", "s390x")]);
        registry.add_manifest("foreign", kind, foreign.as_bytes());
        let dir = tempfile::tempdir().expect("tempdir");
        let store = store(&dir);
        let image = pull(&store, &registry).expect("pull");
        assert_eq!(image.digest(), own.manifest);
        assert_whole(&store, &image);
        // The index is known by its digest from now on.
        registry.seen();
        let pinned: Reference = format!("docker://{}/t@{both}", registry.host()).parse().expect("reference");
        assert_eq!(store.preflight(&pinned, &access()).expect("preflight").image, image);
        assert_eq!(pull(&store, &registry).expect("pull"), image);
        let seen = registry.seen();
        assert!(seen.len() == 1 && seen[0].method == "HEAD", "{seen:?}");
        assert_eq!(store.list().expect("list")[0].references, [reference(&registry).to_string()]);
        let foreign: Reference =
            format!("docker://{}/t:foreign", registry.host()).parse().expect("reference");
        let text = chain(&store.preflight(&foreign, &access()).expect_err("not for this machine"));
        assert!(text.contains("s390x"), "{text}");
    }
}

#[test]
fn a_moved_tag_is_noticed_and_a_registry_that_is_away_is_not_needed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (store, (registry, _, _)) = (store(&dir), with_image(10_000));
    let first = pull(&store, &registry).expect("pull");
    registry.add("1", &ImageSpec::default(), vec![layer(2, 10_000)]);
    let second = pull(&store, &registry).expect("pull");
    assert_ne!(first, second);
    registry.fault_any("manifests", Fault::Gone, 99);
    let preflight = store.preflight(&reference(&registry), &access()).expect("preflight");
    assert_eq!(preflight.image, second);
    assert!(preflight.note.is_some_and(|note| note.contains("fetched last")));
    registry.behave();
    registry.fault_any("manifests", Fault::Status(404, vec![]), 99);
    assert!(store.preflight(&reference(&registry), &access()).is_err(), "what was removed is not there");
}

#[test]
fn a_store_has_nothing_to_do_with_a_host_that_does_not_exist() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Store::open(Path::new(&dir.path().join("store"))).expect("store");
    let reference: Reference = "docker://no-such-host.invalid/t:1".parse().expect("reference");
    let error = store.ingest(&reference, &access(), &|_| {}).expect_err("no host");
    assert!(
        error.is_transient() && chain(&error).contains("reach no-such-host.invalid"),
        "{}",
        chain(&error)
    );
}
