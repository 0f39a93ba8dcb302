//! Registries that break off, fall silent, lose things or say no.

use pilot_tests::registry::{Entry, Fault, Locations};

use super::*;

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
