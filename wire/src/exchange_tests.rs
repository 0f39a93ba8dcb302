//! Messages of the exchange's socket: round trips, limits and hostile bytes.

use proptest::prelude::*;

use super::*;
use crate::frame::FRAME_BYTES_MAX;
use crate::{DecodeError, EncodeError, decode, encode};

fn ask(request: Request) -> ToExchange {
    ToExchange::Ask { id: 7, request }
}

fn tell(answer: Answer) -> FromExchange {
    FromExchange::Tell { id: 7, answer }
}

fn stage(n: usize) -> String {
    format!("stage://{n:0>64}/{n:0>64}/{n:0>64}")
}

fn stages() -> Vec<String> {
    (0..NAMES_MAX).map(stage).collect()
}

fn all_questions() -> Vec<ToExchange> {
    let path = || "x/".repeat(PATH_BYTES_MAX / 2 - 1) + "y";
    let offer = |content| ask(Request::Offer { stage: stage(1), content });
    vec![
        ToExchange::Hello { protocol: PROTOCOL, scope: "s".repeat(DOMAIN_BYTES_MAX) },
        offer(Content::Memory),
        offer(Content::Value { value: vec![7; VALUE_BYTES_MAX] }),
        offer(Content::File { path: path() }),
        offer(Content::Folder { path: "stages".into() }),
        ask(Request::Fetch { stage: stage(1), into: path() }),
        ask(Request::Withdraw { stages: stages() }),
        ask(Request::Find { stages: stages() }),
        ask(Request::List { after: None }),
        ask(Request::List { after: Some(stage(1)) }),
    ]
}

fn all_answers() -> Vec<FromExchange> {
    let fetched = |what| tell(Answer::Fetched { bytes: u64::MAX, what });
    vec![
        FromExchange::Welcome { protocol: PROTOCOL, domain: "d".repeat(DOMAIN_BYTES_MAX), age_ms: 3 },
        tell(Answer::Offered),
        fetched(Fetched::Memory),
        fetched(Fetched::Value { value: vec![7; VALUE_BYTES_MAX] }),
        fetched(Fetched::File),
        fetched(Fetched::Folder),
        tell(Answer::Withdrawn),
        tell(Answer::Found { stages: stages() }),
        tell(Answer::Refused { code: Code::Io, text: "x".repeat(TEXT_BYTES_MAX) }),
    ]
}

#[test]
fn messages_survive_a_round_trip() {
    for message in all_questions() {
        let bytes = encode(&message).expect("encode");
        assert!(bytes.len() <= FRAME_BYTES_MAX);
        assert_eq!(decode::<ToExchange>(&bytes).expect("decode"), message);
    }
    for message in all_answers() {
        let bytes = encode(&message).expect("encode");
        assert!(bytes.len() <= FRAME_BYTES_MAX);
        assert_eq!(decode::<FromExchange>(&bytes).expect("decode"), message);
    }
}

#[test]
fn descriptors_travel_with_memory_alone() {
    assert_eq!(all_questions().iter().map(ToExchange::fds).sum::<usize>(), 1);
    assert_eq!(all_answers().iter().map(FromExchange::fds).sum::<usize>(), 1);
}

#[test]
fn names_and_paths_that_lead_elsewhere_are_no_messages() {
    for wrong in [
        "",
        "stage://",
        "stage://a/b",
        "stage://a/b/c/d",
        "stage://a/../c",
        "stage:///b/c",
        "a/b/c",
        "s3://a/b/c",
    ] {
        let message = ask(Request::Fetch { stage: wrong.into(), into: "x".into() });
        assert!(matches!(encode(&message), Err(EncodeError::Limit(_))), "{wrong}");
    }
    let long = "x".repeat(PATH_BYTES_MAX + 1);
    for wrong in ["", "/", "/x", "x/", "x//y", ".", "..", "x/../y", "./x", "x\0y", &long] {
        let path = || wrong.to_owned();
        for message in [
            ask(Request::Fetch { stage: stage(1), into: path() }),
            ask(Request::Offer { stage: stage(1), content: Content::File { path: path() } }),
            ask(Request::Offer { stage: stage(1), content: Content::Folder { path: path() } }),
        ] {
            assert!(matches!(encode(&message), Err(EncodeError::Limit(_))), "{wrong}");
            // Also from a peer that does not check itself.
            let bytes = postcard::to_allocvec(&message).expect("encode");
            assert!(matches!(decode::<ToExchange>(&bytes), Err(DecodeError::Limit(_))), "{wrong}");
        }
    }
    let many = ask(Request::Find { stages: (0..=NAMES_MAX).map(stage).collect() });
    assert!(matches!(encode(&many), Err(EncodeError::Limit(_))));
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode::<ToExchange>(&bytes);
        let _ = decode::<FromExchange>(&bytes);
    }

    #[test]
    fn a_message_that_was_cut_or_flipped_is_no_panic(which in 0..10_usize, at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let mut bytes = encode(&all_questions()[which]).expect("encode");
        let at = at.index(bytes.len());
        let _ = decode::<ToExchange>(&bytes[..at]);
        bytes[at] ^= 1 << bit;
        let _ = decode::<ToExchange>(&bytes);
    }
}
