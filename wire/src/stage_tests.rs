//! Messages of the broker's socket: round trips, limits and hostile bytes.

use proptest::prelude::*;

use super::*;
use crate::frame::FRAME_BYTES_MAX;
use crate::{DecodeError, EncodeError, decode, encode};

fn ask(request: Request) -> ToBroker {
    ToBroker::Ask { id: 7, request }
}

fn tell(answer: Answer) -> FromBroker {
    FromBroker::Tell { id: 7, answer }
}

fn listing(rows: usize) -> Listing {
    let name = |n: usize| format!("{n:0>64}");
    Listing {
        inputs: (0..rows)
            .map(|n| InputRow { name: name(n), there: Some((Class::Value, u64::MAX)), live: true })
            .collect(),
        outputs: (0..rows)
            .map(|n| OutputRow {
                name: name(n),
                class: Class::File,
                max_bytes: u64::MAX,
                committed: Some(u64::MAX),
            })
            .collect(),
    }
}

#[test]
fn messages_survive_a_round_trip() {
    let output = || "masses".to_owned();
    for message in [
        ToBroker::Hello { protocol: PROTOCOL },
        ask(Request::Create { output: output(), bytes: 1 << 40, huge_pages: true }),
        ask(Request::Commit { output: output(), bytes: 0 }),
        ask(Request::Abandon { output: output() }),
        ask(Request::Open { input: output(), wait_ms: WAIT_MS_MAX }),
        ask(Request::Put { output: output(), value: vec![7; VALUE_BYTES_MAX] }),
        ask(Request::List),
    ] {
        assert_eq!(decode::<ToBroker>(&encode(&message).expect("encode")).expect("decode"), message);
    }
    let payload = "zpeak.7/fit".to_owned();
    for message in [
        FromBroker::Welcome { protocol: PROTOCOL, payload, listing: listing(ROWS_MAX) },
        tell(Answer::Lent { bytes: 9, note: Some("small pages".into()) }),
        tell(Answer::Committed { bytes: 9, seal_us: 3 }),
        tell(Answer::Abandoned),
        tell(Answer::Opened { class: Class::Mem, bytes: 9 }),
        tell(Answer::ByPath { bytes: u64::MAX }),
        tell(Answer::Value { value: vec![7; VALUE_BYTES_MAX] }),
        tell(Answer::Listed { listing: listing(ROWS_MAX) }),
        tell(Answer::Refused { code: Code::Io, text: "x".repeat(TEXT_BYTES_MAX) }),
    ] {
        let bytes = encode(&message).expect("encode");
        assert!(bytes.len() <= FRAME_BYTES_MAX);
        assert_eq!(decode::<FromBroker>(&bytes).expect("decode"), message);
    }
}

#[test]
fn the_encoding_is_what_the_clients_in_other_languages_write() {
    let bytes = |message: &ToBroker| encode(message).expect("encode");
    assert_eq!(bytes(&ToBroker::Hello { protocol: PROTOCOL }), [0, 1, 0]);
    let create = ask(Request::Create { output: "x".into(), bytes: 300, huge_pages: true });
    assert_eq!(bytes(&create), [1, 7, 0, 1, b'x', 0xac, 2, 1]);
    assert_eq!(bytes(&ask(Request::Put { output: "x".into(), value: vec![9] })), [1, 7, 4, 1, b'x', 1, 9]);
    assert_eq!(bytes(&ask(Request::List)), [1, 7, 5]);
    let answer = |message: &FromBroker| encode(message).expect("encode");
    assert_eq!(answer(&tell(Answer::Lent { bytes: 1, note: None })), [1, 7, 0, 1, 0]);
    assert_eq!(answer(&tell(Answer::Opened { class: Class::File, bytes: 2 })), [1, 7, 3, 1, 2]);
    let refused = Answer::Refused { code: Code::Busy, text: "b".into() };
    assert_eq!(answer(&tell(refused)), [1, 7, 6, 6, 1, b'b']);
}

#[test]
fn names_that_are_no_names_do_not_pass() {
    for bad in ["", "a/b", "..", ".", "a\0b", "-x", &"x".repeat(65), &"x".repeat(4096), "ü"] {
        let output = || bad.to_owned();
        for request in [
            Request::Create { output: output(), bytes: 1, huge_pages: false },
            Request::Commit { output: output(), bytes: 1 },
            Request::Abandon { output: output() },
            Request::Open { input: output(), wait_ms: 0 },
            Request::Put { output: output(), value: vec![] },
        ] {
            assert!(matches!(encode(&ask(request)), Err(EncodeError::Limit(_))), "{bad:?}");
        }
        // By hand, as one who does not use our encoder: Ask, id 7, Open, name, wait 0.
        let mut raw = postcard::to_allocvec(&(1_u8, 7_u32, 3_u8, bad)).expect("encode");
        raw.push(0);
        assert!(matches!(decode::<ToBroker>(&raw), Err(DecodeError::Limit(_))), "{bad:?}");
    }
}

#[test]
fn what_is_above_a_limit_does_not_pass() {
    let refused = |message: &ToBroker| assert!(matches!(encode(message), Err(EncodeError::Limit(_))));
    refused(&ask(Request::Put { output: "x".into(), value: vec![0; VALUE_BYTES_MAX + 1] }));
    refused(&ask(Request::Open { input: "x".into(), wait_ms: WAIT_MS_MAX + 1 }));
    refused(&ask(Request::Open { input: "x".into(), wait_ms: u64::MAX }));
    for answer in [
        Answer::Value { value: vec![0; VALUE_BYTES_MAX + 1] },
        Answer::Listed { listing: listing(ROWS_MAX + 1) },
        Answer::Refused { code: Code::Io, text: "x".repeat(TEXT_BYTES_MAX + 1) },
    ] {
        assert!(matches!(encode(&tell(answer)), Err(EncodeError::Limit(_))));
    }
}

#[test]
fn an_unknown_class_request_or_answer_is_an_error() {
    assert!(matches!(decode::<FromBroker>(&[1, 7, 3, 3, 2]), Err(DecodeError::Format { .. })));
    assert!(matches!(decode::<ToBroker>(&[1, 7, 6]), Err(DecodeError::Format { .. })));
    assert!(matches!(decode::<ToBroker>(&[2]), Err(DecodeError::Format { .. })));
}

#[test]
fn a_length_that_lies_costs_nothing() {
    // Put, its value said to be 2^60 bytes long.
    let raw = [1, 7, 4, 1, b'x', 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    assert!(matches!(decode::<ToBroker>(&raw), Err(DecodeError::Format { .. })));
}

proptest! {
    #[test]
    fn hostile_bytes_are_an_error_or_a_message(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(message) = decode::<ToBroker>(&bytes) {
            prop_assert!(message.check().is_ok());
        }
        if let Ok(message) = decode::<FromBroker>(&bytes) {
            prop_assert!(message.check().is_ok());
        }
    }

    #[test]
    fn a_message_that_was_cut_or_doubled_is_an_error(at in 0_usize..8, bytes in 128_u64..16000) {
        let whole = encode(&ask(Request::Create { output: "xyz".into(), bytes, huge_pages: false })).expect("encode");
        let cut = whole.get(..at.min(whole.len() - 1)).unwrap_or_default();
        prop_assert!(decode::<ToBroker>(cut).is_err());
        let doubled = [whole.clone(), whole].concat();
        let refused = matches!(decode::<ToBroker>(&doubled), Err(DecodeError::Trailing { .. }));
        prop_assert!(refused);
    }
}
