//! Messages of a pilot's own socket: round trips, limits and hostile bytes.

use proptest::prelude::*;

use super::*;
use crate::{DecodeError, decode, encode};

fn exec() -> PilotExec {
    PilotExec {
        workflow: "zpeak.7".into(),
        payload: "fit-3".into(),
        argv: vec![b"/bin/ps".to_vec(), vec![0xff]],
        env: vec![b"A=".to_vec()],
        cwd: Some(b"/work".to_vec()),
        fds: vec![FdRole::Stdin, FdRole::Stdout, FdRole::Stderr],
    }
}

fn slot() -> SlotRow {
    SlotRow {
        slot: 3,
        phase: SlotPhase::Running,
        payload: Some(SlotPayload {
            workflow: "zpeak.7".into(),
            name: "fit".into(),
            ..SlotPayload::default()
        }),
        memory_bytes: Some(5),
        ..SlotRow::default()
    }
}

#[test]
fn messages_survive_a_round_trip() {
    for message in [
        ToPilot::Hello { protocol: PROTOCOL },
        ToPilot::Status,
        ToPilot::Exec(exec()),
        ToPilot::Signal { signal: 15 },
        ToPilot::OpenStage { stage: "stage://w/p/o".into() },
    ] {
        assert_eq!(decode::<ToPilot>(&encode(&message).expect("encode")).expect("decode"), message);
    }
    let ended = vec![EndingCount { conclusion: "stopped".into(), cause: "walltime".into(), count: 2 }];
    for message in [
        FromPilot::Hello { protocol: PROTOCOL },
        FromPilot::StageOpened { bytes: u64::MAX },
        FromPilot::Refused { why: "7/fit does not run".into() },
        FromPilot::Pilot(PilotRow { name: "pilot".into(), ended, ..PilotRow::default() }),
        FromPilot::Slot(slot()),
        FromPilot::Image(ImageRow { image: "dir:/i".into(), brought_bytes: 1, launches: 2 }),
        FromPilot::Stage(StageRow { stage: "stage://w/p/o".into(), bytes: 9, place: StagePlace::Object }),
        FromPilot::End,
        FromPilot::Started,
        FromPilot::Ended(ExecEnd::Ran(WaitStatus::Exited(3))),
        FromPilot::Ended(ExecEnd::NotStarted(2)),
        FromPilot::Ended(ExecEnd::PayloadEnded),
    ] {
        assert_eq!(decode::<FromPilot>(&encode(&message).expect("encode")).expect("decode"), message);
    }
}

#[test]
fn limits_of_commands_are_checked_in_both_directions() {
    let broken: Vec<fn(&mut PilotExec)> = vec![
        |e| e.workflow = "../up".into(),
        |e| e.payload = String::new(),
        |e| e.argv.clear(),
        |e| e.argv[0].push(0),
        |e| e.env = vec![b"=x".to_vec()],
        |e| e.env = vec![b"NAME".to_vec()],
        |e| e.cwd = Some(vec![b'/'; 5000]),
        |e| e.fds = vec![FdRole::Stdin; FRAME_FDS_MAX + 1],
        |e| e.fds = vec![FdRole::Launch],
        |e| e.fds = vec![FdRole::StageIn("hits".into())],
    ];
    for (index, spoil) in broken.into_iter().enumerate() {
        let mut bad = exec();
        spoil(&mut bad);
        assert!(encode(&ToPilot::Exec(bad.clone())).is_err(), "case {index} was encoded");
        let bytes = postcard::to_allocvec(&ToPilot::Exec(bad)).expect("raw encode");
        assert!(matches!(decode::<ToPilot>(&bytes), Err(DecodeError::Limit(_))), "case {index} was decoded");
    }
    for signal in [0, -1, 65] {
        assert!(encode(&ToPilot::Signal { signal }).is_err(), "{signal}");
    }
}

#[test]
fn rows_hold_short_text_only() {
    let long = "x".repeat(TEXT_BYTES_MAX + 1);
    let mut row = slot();
    if let Some(payload) = &mut row.payload {
        payload.image = long.clone();
    }
    for message in [
        FromPilot::Slot(row),
        FromPilot::Refused { why: long.clone() },
        FromPilot::Refused { why: "a\0b".into() },
        FromPilot::Image(ImageRow { image: long.clone(), ..ImageRow::default() }),
        FromPilot::Stage(StageRow { stage: long.clone(), ..StageRow::default() }),
        FromPilot::Pilot(PilotRow { name: long, ..PilotRow::default() }),
    ] {
        let bytes = postcard::to_allocvec(&message).expect("raw encode");
        assert!(matches!(decode::<FromPilot>(&bytes), Err(DecodeError::Limit(_))), "{message:?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let _ = decode::<ToPilot>(&bytes);
        let _ = decode::<FromPilot>(&bytes);
    }

    #[test]
    fn one_flipped_byte_never_breaks_a_limit(at in 0usize..200, value in any::<u8>()) {
        let mut bytes = encode(&ToPilot::Exec(exec())).expect("encode");
        let at = at % bytes.len();
        bytes[at] = value;
        if let Ok(message) = decode::<ToPilot>(&bytes) {
            prop_assert!(message.check().is_ok());
        }
    }
}
