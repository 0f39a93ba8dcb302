//! Who may have an image of a registry: logins, tokens, certificates, and what is stored already.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use image_store::layout::{Compression, ImageSpec, LayerBlob, LayerBuilder, LayoutWriter};
use image_store::{
    ImageId, Logins, Options, Patience, Reference, Registries, RegistryAccess, RegistryRules, Store,
};
use pilot_tests::registry::{Authority, Debian, DebianSettings, Entry, Fault, Misbehaving, write_auth};

struct Place {
    dir: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let options = Options { lazy_sync: true, ..Options::default() };
        let store = Store::open_with(&dir.path().join("store"), options).expect("store");
        Self { dir, store }
    }

    /// Access with a login for a host.
    fn login(&self, host: &str, user: &str, password: &str) -> RegistryAccess {
        let file: PathBuf = self.dir.path().join(format!("{user}-{password}.json"));
        write_auth(&file, host, user, password);
        access(Logins::File(file), Registries::default())
    }
}

fn access(logins: Logins, registries: Registries) -> RegistryAccess {
    let mut access = RegistryAccess::new(registries, logins);
    access.patience = Patience { tries: 2, first_wait: Duration::from_millis(5), ..Patience::default() };
    access.certificate_folders.clear();
    access
}

fn anonymous() -> RegistryAccess {
    access(Logins::None, Registries::default())
}

fn layer(name: &str) -> LayerBlob {
    LayerBuilder::new().file(name, 0o644, name.repeat(1000)).finish(Compression::Gzip).expect("layer")
}

fn reference(host: &str, name: &str) -> Reference {
    format!("docker://{host}/{name}").parse().expect("reference")
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
fn a_token_that_expires_in_mid_pull_is_fetched_anew() {
    let place = Place::new();
    let registry = Misbehaving::start();
    let written = registry.add("1", &ImageSpec::default(), vec![layer("a"), layer("b"), layer("c")]);
    registry.let_in(Entry::Token(None, 2));
    let image = place.store.ingest(&reference(&registry.host(), "t:1"), &anonymous(), &|_| {}).expect("pull");
    assert_eq!(image, ImageId::new(written.manifest));
    let tokens = registry.seen().iter().filter(|seen| seen.path.starts_with("/token")).count();
    assert!((3..=5).contains(&tokens), "{tokens}");
}

#[test]
fn a_private_image_is_for_those_whom_the_registry_lets_in() {
    for entry in [Entry::Basic("user", "right"), Entry::Token(Some(("user", "right")), 1000)] {
        let place = Place::new();
        let registry = Misbehaving::start();
        let host = registry.host();
        registry.add("1", &ImageSpec::default(), vec![layer("secret")]);
        registry.let_in(entry.clone());
        let (right, wrong) = (place.login(&host, "user", "right"), place.login(&host, "user", "wrong"));
        let tagged = reference(&host, "t:1");
        let refuse = |reference: &Reference, access: &RegistryAccess, says: &str| {
            let text = chain(&place.store.preflight(reference, access).expect_err("let in"));
            assert!(text.contains(says) && text.contains("401") && !text.contains("wrong"), "{text}");
            assert!(place.store.ingest(reference, access, &|_| {}).is_err());
        };
        refuse(&tagged, &anonymous(), "--registry-auth");
        refuse(&tagged, &wrong, "does not do");
        let image = place.store.ingest(&tagged, &right, &|_| {}).expect("pull");
        // It is stored, and still for nobody else, also by digest.
        let pinned = reference(&host, &format!("t@{image}"));
        for reference in [&tagged, &pinned] {
            refuse(reference, &anonymous(), "--registry-auth");
            refuse(reference, &wrong, "does not do");
        }
        // Who was let in needs nobody's word for a while.
        registry.seen();
        let preflight = place.store.preflight(&pinned, &right).expect("preflight");
        assert!(preflight.lasts.is_some_and(|lasts| lasts > Duration::from_secs(23 * 3600)));
        assert_eq!(registry.seen(), []);
        // Not even when the registry is away; others then have no way in.
        registry.fault_any("", Fault::Gone, 999);
        assert!(place.store.preflight(&tagged, &right).expect("preflight").note.is_some());
        assert!(place.store.preflight(&tagged, &wrong).is_err());
        assert!(place.store.preflight(&pinned, &anonymous()).is_err());
        registry.behave();
        // Once everybody is let in, it is everybody's.
        registry.let_in(Entry::Open);
        place.store.ingest(&tagged, &anonymous(), &|_| {}).expect("open");
        assert_eq!(place.store.preflight(&pinned, &wrong).expect("preflight").lasts, None);
        assert_no_secret(&place, &["right", "wrong"]);
    }
}

/// Nothing in the store holds a word of a login.
fn assert_no_secret(place: &Place, words: &[&str]) {
    let mut open = vec![place.store.path().join("grants"), place.store.path().join("refs")];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).expect("folder").map(|entry| entry.expect("entry").path()));
            continue;
        }
        let text = String::from_utf8_lossy(&std::fs::read(&path).expect("file")).into_owned();
        assert!(!words.iter().any(|word| text.contains(word)), "{}: {text}", path.display());
    }
}

#[test]
fn layers_of_a_private_image_are_no_ones_because_they_are_stored() {
    let place = Place::new();
    let (private, own) = (Misbehaving::start(), Misbehaving::start());
    let secret = layer("secret");
    private.add("1", &ImageSpec::default(), vec![secret.clone()]);
    private.let_in(Entry::Basic("user", "right"));
    let login = place.login(&private.host(), "user", "right");
    place.store.ingest(&reference(&private.host(), "t:1"), &login, &|_| {}).expect("pull");
    // Another's image states the secret layer by its digests, and does not have it.
    for layers in [vec![secret.clone()], vec![layer("own"), secret.clone()]] {
        own.add("1", &ImageSpec::default(), layers);
        own.fault_any(format!("blobs/{}", secret.digest()), Fault::Status(404, vec![]), 99);
        let error =
            place.store.ingest(&reference(&own.host(), "t:1"), &anonymous(), &|_| {}).expect_err("taken");
        assert!(chain(&error).contains(&secret.digest().to_string()), "{}", chain(&error));
    }
    assert_eq!(place.store.list().expect("list").len(), 1);
}

#[test]
fn what_came_from_a_folder_is_free_and_a_registry_is_asked_for_it_all_the_same() {
    let place = Place::new();
    let registry = Misbehaving::start();
    let written = registry.add("1", &ImageSpec::default(), vec![layer("a")]);
    registry.let_in(Entry::Basic("user", "right"));
    let folder = place.dir.path().join("layout");
    let mut layout = LayoutWriter::create(&folder).expect("layout");
    layout.add_image("1", &ImageSpec::default(), vec![layer("a")]).expect("image");
    let local: Reference = format!("oci:{}:1", folder.display()).parse().expect("reference");
    assert_eq!(place.store.ingest(&local, &anonymous(), &|_| {}).expect("ingest").digest(), written.manifest);
    assert!(place.store.preflight(&reference(&registry.host(), "t:1"), &anonymous()).is_err());
    let pinned = reference(&registry.host(), &format!("t@{}", written.manifest));
    assert!(place.store.preflight(&pinned, &anonymous()).is_err());
    let right = place.login(&registry.host(), "user", "right");
    registry.seen();
    place.store.preflight(&pinned, &right).expect("preflight");
    assert!(registry.seen().iter().all(|seen| seen.method == "HEAD"));
    place.store.preflight(&local, &anonymous()).expect("preflight");
}

#[test]
fn a_certificate_of_a_private_authority_must_be_named() {
    let place = Place::new();
    let authority = Authority::new();
    let registry = Misbehaving::start_tls(&authority);
    let host = registry.host();
    registry.add("1", &ImageSpec::default(), vec![layer("a")]);
    registry.let_in(Entry::Token(Some(("user", "right")), 1000));
    let login = place.login(&host, "user", "right");
    let error = place.store.ingest(&reference(&host, "t:1"), &login, &|_| {}).expect_err("not trusted");
    let text = chain(&error);
    assert!(text.contains("trust") && text.contains("ca:") && text.contains(&host), "{text}");
    let rules = RegistryRules { ca: Some(authority.file("ca.pem")), ..RegistryRules::default() };
    let registries = Registries { registries: [(host.clone(), rules)].into() };
    let named = RegistryAccess { registries, ..login.clone() };
    place.store.ingest(&reference(&host, "t:1"), &named, &|_| {}).expect("pull");
    // The same by a folder as docker and podman have it.
    let place = Place::new();
    std::fs::create_dir_all(place.dir.path().join("certs").join(&host)).expect("folder");
    let file = place.dir.path().join("certs").join(&host).join("ca.crt");
    std::fs::copy(authority.file("ca.pem"), file).expect("copy");
    let folder = RegistryAccess { certificate_folders: vec![place.dir.path().join("certs")], ..login };
    place.store.ingest(&reference(&host, "t:1"), &folder, &|_| {}).expect("pull");
    // A file that is none is named.
    let rules = RegistryRules { ca: Some(place.dir.path().join("nothing")), ..RegistryRules::default() };
    let registries = Registries { registries: [(host.clone(), rules)].into() };
    let bad = access(Logins::None, registries);
    let text = chain(&Place::new().store.preflight(&reference(&host, "t:1"), &bad).expect_err("no file"));
    assert!(text.contains("nothing") && text.contains(&host), "{text}");
}

#[test]
fn debians_registry_gives_what_was_pushed() {
    let Some(registry) = Debian::start(DebianSettings::default()) else {
        return pilot_tests::skipped(
            "debians_registry_gives_what_was_pushed",
            "docker-registry is not installed",
        );
    };
    let place = Place::new();
    let written = registry.push("a/b", "1", &ImageSpec::default(), vec![layer("one"), layer("two")]);
    let image =
        place.store.ingest(&reference(&registry.host(), "a/b:1"), &anonymous(), &|_| {}).expect("pull");
    assert_eq!(image.digest(), written.manifest);
    assert!(place.store.verify(&image).expect("verify").damaged.is_empty());
    let text =
        chain(&place.store.preflight(&reference(&registry.host(), "a/b:2"), &anonymous()).expect_err("none"));
    assert!(text.contains("a/b:2"), "{text}");
}

#[test]
fn debians_registry_with_tls_and_passwords_lets_in_who_has_one() {
    let authority = Authority::new();
    for tls in [None, Some(&authority)] {
        let Some(registry) = Debian::start(DebianSettings { login: true, authority: tls }) else {
            let name = "debians_registry_with_tls_and_passwords_lets_in_who_has_one";
            return pilot_tests::skipped(name, "docker-registry is not installed");
        };
        let place = Place::new();
        let written = registry.push("private", "1", &ImageSpec::default(), vec![layer("one")]);
        let host = registry.host();
        let rules = RegistryRules { ca: tls.map(|tls| tls.file("ca.pem")), ..RegistryRules::default() };
        let registries = Registries { registries: [(host.clone(), rules)].into() };
        let nobody = access(Logins::None, registries.clone());
        let text =
            chain(&place.store.preflight(&reference(&host, "private:1"), &nobody).expect_err("let in"));
        assert!(text.contains("401") && text.contains(&format!("podman login {host}")), "{text}");
        let login = RegistryAccess { registries, ..place.login(&host, "user", "secret") };
        let image = place.store.ingest(&reference(&host, "private:1"), &login, &|_| {}).expect("pull");
        assert_eq!(image.digest(), written.manifest);
        assert!(place.store.preflight(&reference(&host, "private:1"), &nobody).is_err());
    }
}
