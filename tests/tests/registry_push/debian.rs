//! Debian's own registry, over a good line and a bad one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use image_store::ImageId;
use pilot_tests::registry::{Debian, DebianSettings};

use super::*;

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
