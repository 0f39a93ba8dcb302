//! Who is believed on a slot's socket.

use super::*;

const TRUE: Nonce = Nonce([7; 16]);

/// Says Hello as somebody in the slot may; the caller goes on to hold the line.
fn call(control: &Path, nonce: Nonce) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("socket");
    let address = SocketAddrUnix::new(control.join("sock")).expect("address");
    rustix::net::connect(&socket, &address).expect("connect");
    let hello = FromShim::Hello { protocol: PROTOCOL, nonce, state: ShimState::Idle };
    frame::send(socket.as_fd(), &wire::encode(&hello).expect("encode"), &[]).expect("send");
    socket
}

#[tokio::test]
async fn who_has_proof_is_preferred_to_one_that_called_as_idle_before() {
    let folder = tempfile::tempdir().expect("tempdir");
    let listener = SlotListener::bind(folder.path()).expect("bind");
    let _idle = call(folder.path(), Nonce::IDLE);
    let _true = call(folder.path(), TRUE);
    let caller = listener.accept_before_idle(TRUE, Duration::from_secs(60)).await.expect("accept");
    assert_eq!(caller.map(|caller| caller.nonce), Some(TRUE));
}

#[tokio::test]
async fn one_that_called_as_idle_is_taken_when_nobody_with_proof_has_come() {
    let folder = tempfile::tempdir().expect("tempdir");
    let listener = SlotListener::bind(folder.path()).expect("bind");
    let nobody = listener.accept_before_idle(TRUE, Duration::from_millis(1)).await.expect("accept");
    assert!(nobody.is_none());
    let idle = call(folder.path(), Nonce::IDLE);
    let _other = call(folder.path(), Nonce([8; 16]));
    let caller = listener.accept_before_idle(TRUE, Duration::from_millis(300)).await.expect("accept");
    let caller = caller.expect("the idle one");
    assert!(caller.nonce.is_idle());
    let welcome = ToShim::Welcome { protocol: PROTOCOL, epoch: 0, orphan_grace_ms: 0 };
    caller.connection.send(&welcome, &[]).await.expect("send");
    assert!(frame::receive(idle.as_fd()).expect("receive").is_some(), "it was hung up on");
}

#[tokio::test]
async fn what_a_shim_says_while_it_is_collected_from_is_heard_afterwards() {
    let folder = tempfile::tempdir().expect("tempdir");
    let listener = SlotListener::bind(folder.path()).expect("bind");
    let shim = call(folder.path(), TRUE);
    let (connection, _) = listener.accept_proven(TRUE).await.expect("accept");
    let memory = std::fs::File::open("/dev/null").expect("open");
    let launch = wire::slot::LaunchId([1; 16]);
    let held = Held { launch, output: "m".into() };
    let say = |message: FromShim, fds: &[BorrowedFd<'_>]| {
        frame::send(shim.as_fd(), &wire::encode(&message).expect("encode"), fds).expect("send");
    };
    say(FromShim::Launched { launch, pid: 7 }, &[]);
    say(FromShim::Collected { stages: vec![held.clone()], more: true }, &[memory.as_fd()]);
    say(FromShim::HolderLost, &[]);
    say(FromShim::Collected { stages: Vec::new(), more: false }, &[]);
    let collected = connection.collect().await.expect("collect");
    assert_eq!(collected.into_iter().map(|(held, _)| held).collect::<Vec<_>>(), [held]);
    let next = async || connection.receive().await.expect("receive");
    assert_eq!(next().await, Some(FromShim::Launched { launch, pid: 7 }));
    assert_eq!(next().await, Some(FromShim::HolderLost));
}

#[tokio::test]
async fn a_shim_of_before_is_not_asked_for_what_it_does_not_know() {
    let folder = tempfile::tempdir().expect("tempdir");
    let listener = SlotListener::bind(folder.path()).expect("bind");
    let shim = call(folder.path(), TRUE);
    let (mut connection, _) = listener.accept_proven(TRUE).await.expect("accept");
    connection.protocol = Version { major: 1, minor: 0 };
    assert!(!connection.retains());
    assert_eq!(connection.collect().await.expect("collect").len(), 0);
    drop(connection);
    assert!(frame::receive(shim.as_fd()).expect("receive").is_none(), "it was told something");
}
