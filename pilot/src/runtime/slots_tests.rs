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
