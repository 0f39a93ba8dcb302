//! Frames over real socket pairs.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{FdFlags, fcntl_getfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::pipe;

use super::{FRAME_BYTES_MAX, FRAME_FDS_MAX, ReceiveError, SendError, receive, send};

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("socketpair")
}

#[test]
fn a_frame_arrives_whole_with_its_descriptors_close_on_exec() {
    let (a, b) = pair();
    let (reader, writer) = pipe().expect("pipe");
    send(a.as_fd(), b"hello", &[reader.as_fd(), writer.as_fd()]).expect("send");
    let frame = receive(b.as_fd()).expect("receive").expect("frame");
    assert_eq!(frame.bytes, b"hello");
    assert_eq!(frame.fds.len(), 2);
    for fd in &frame.fds {
        assert!(fcntl_getfd(fd).expect("getfd").contains(FdFlags::CLOEXEC));
    }
}

#[test]
fn the_longest_frame_passes_and_a_longer_one_is_refused_on_both_sides() {
    let (a, b) = pair();
    send(a.as_fd(), &vec![7; FRAME_BYTES_MAX], &[]).expect("longest");
    assert_eq!(receive(b.as_fd()).expect("receive").expect("frame").bytes.len(), FRAME_BYTES_MAX);
    assert!(matches!(send(a.as_fd(), &vec![7; FRAME_BYTES_MAX + 1], &[]), Err(SendError::TooLong { .. })));
    rustix::net::send(&a, &vec![7; FRAME_BYTES_MAX + 1], rustix::net::SendFlags::empty()).expect("raw send");
    assert!(matches!(receive(b.as_fd()), Err(ReceiveError::TooLong)));
}

#[test]
fn too_many_descriptors_are_refused_on_both_sides_and_closed() {
    let (a, b) = pair();
    let (reader, writer) = pipe().expect("pipe");
    let many = vec![writer.as_fd(); FRAME_FDS_MAX + 1];
    assert!(matches!(send(a.as_fd(), b"x", &many), Err(SendError::TooManyFds { .. })));

    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX + 1))];
    let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&many)));
    let parts = [std::io::IoSlice::new(b"x")];
    rustix::net::sendmsg(&a, &parts, &mut ancillary, rustix::net::SendFlags::empty()).expect("raw send");
    assert!(matches!(receive(b.as_fd()), Err(ReceiveError::FdsCut)));

    // Every copy that travelled was closed: with our own writer gone the pipe is at its end.
    drop(writer);
    let mut byte = [0; 1];
    assert_eq!(rustix::io::read(&reader, &mut byte).expect("read"), 0);
}

#[test]
fn the_end_of_the_peer_is_none_and_sending_to_it_is_an_error_without_sigpipe() {
    let (a, b) = pair();
    drop(a);
    assert!(receive(b.as_fd()).expect("receive").is_none());
    assert!(matches!(send(b.as_fd(), b"x", &[]), Err(SendError::Io { .. })));
    assert!(matches!(send(b.as_fd(), b"", &[]), Err(SendError::Empty)));
}

#[test]
fn what_a_peer_said_before_it_closed_arrives_although_it_read_nothing() {
    let (a, b) = pair();
    send(a.as_fd(), b"unread", &[]).expect("send");
    send(b.as_fd(), b"last words", &[]).expect("send");
    drop(b);
    assert_eq!(receive(a.as_fd()).expect("receive").expect("frame").bytes, b"last words");
    assert!(receive(a.as_fd()).expect("receive").is_none());
}
