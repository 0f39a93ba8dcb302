use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{accept_with, bind, listen};

use super::*;

const HOUR_MS: u64 = 3_600_000;

fn control(folder: &tempfile::TempDir) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, folder.path(), flags, Mode::empty()).expect("open")
}

fn pilot(folder: &tempfile::TempDir) -> OwnedFd {
    let listener =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("socket");
    bind(&listener, &SocketAddrUnix::new(folder.path().join("sock")).expect("address")).expect("bind");
    listen(&listener, 8).expect("listen");
    listener
}

/// Lets the time come for which the link waits.
fn next(link: &mut Link) -> u64 {
    let now_ms = link.deadline_ms().expect("a line that is down waits for something");
    link.tick(now_ms, || ShimState::Idle);
    now_ms
}

/// Connects and is hung up on; how long it then waits.
fn pause_after_hang_up(link: &mut Link, listener: &OwnedFd, welcome: bool) -> u64 {
    let now_ms = next(link);
    let connection = accept_with(listener, SocketFlags::CLOEXEC).expect("accept");
    if welcome {
        let welcome = ToShim::Welcome { protocol: PROTOCOL, epoch: 1, orphan_grace_ms: 0 };
        send(connection.as_fd(), &wire::encode(&welcome).expect("encode"), &[]).expect("send");
        assert!(matches!(link.hear(now_ms), Heard::Nothing));
    }
    drop(connection);
    match link.hear(now_ms) {
        Heard::Nothing => link.deadline_ms().expect("a call") - now_ms,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_idle_shim_calls_for_hours_where_nobody_is_and_does_not_give_up() {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut link = Link::new(control(&folder), Nonce::IDLE, 0);
    let mut now_ms = 0;
    while now_ms < HOUR_MS {
        let then_ms = next(&mut link);
        assert!(!link.is_orphaned(then_ms) && then_ms - now_ms <= RETRY_MS_MAX);
        now_ms = then_ms;
    }
    assert!(!link.is_orphaned(u64::MAX));
    let _listener = pilot(&folder);
    next(&mut link);
    assert!(!link.is_down());
}

#[test]
fn any_other_shim_gives_up_after_half_a_minute() {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut link = Link::new(control(&folder), Nonce([1; 16]), 0);
    let given_up_at_ms = loop {
        let now_ms = next(&mut link);
        if link.is_orphaned(now_ms) {
            break now_ms;
        }
    };
    assert_eq!(given_up_at_ms, WELCOME_MS_MAX);
}

#[test]
fn an_idle_shim_that_is_hung_up_on_calls_again_after_growing_pauses() {
    let folder = tempfile::tempdir().expect("tempdir");
    let listener = pilot(&folder);
    let mut link = Link::new(control(&folder), Nonce::IDLE, 0);
    let pauses: Vec<u64> = (0..6).map(|_| pause_after_hang_up(&mut link, &listener, false)).collect();
    assert_eq!(pauses, [40, 80, 160, 250, 250, 250]);
    // A pilot that believed it and is started again is back soon.
    assert_eq!(pause_after_hang_up(&mut link, &listener, true), RETRY_MS_MIN);
    assert_eq!(pause_after_hang_up(&mut link, &listener, false), RETRY_MS_MIN);
    assert!(!link.is_orphaned(u64::MAX));
}

#[test]
fn an_idle_shim_that_is_never_answered_hangs_up_itself_and_calls_again() {
    let folder = tempfile::tempdir().expect("tempdir");
    let _listener = pilot(&folder);
    let mut link = Link::new(control(&folder), Nonce::IDLE, 0);
    next(&mut link);
    assert_eq!(link.deadline_ms(), Some(WELCOME_MS_MAX));
    next(&mut link);
    assert!(link.is_down() && !link.is_orphaned(u64::MAX));
    next(&mut link);
    assert!(!link.is_down());
}
