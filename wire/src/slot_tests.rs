//! Messages: round trips, limits and hostile bytes.

use std::os::fd::AsFd;

use proptest::prelude::*;

use super::*;
use crate::{DecodeError, LaunchMemoryError, decode, encode, read_launch_memory, write_launch_memory};

fn launch() -> Launch {
    Launch {
        id: LaunchId([3; 16]),
        argv: vec![b"/bin/true".to_vec(), vec![0xff, 0xfe]],
        env: vec![b"PATH=/bin".to_vec()],
        cwd: b"/work".to_vec(),
        umask: 0o022,
        rlimits: vec![Rlimit::Core(0), Rlimit::OpenFiles(1024)],
        fds: vec![FdRole::Stdout, FdRole::StageIn("hits".into())],
        links: vec![InputLink { name: "geometry".into(), target: b"/.latebind/in/geometry".to_vec() }],
    }
}

#[test]
fn messages_survive_a_round_trip() {
    let message = ToShim::Launch(launch());
    assert_eq!(decode::<ToShim>(&encode(&message).expect("encode")).expect("decode"), message);
    let report = ExitReport {
        launch: LaunchId([9; 16]),
        status: WaitStatus::Signaled { signal: 11, core: true },
        usage: Usage { wall_us: 1, user_us: 2, system_us: 3, max_rss_kib: 4 },
        cgroup: Some(CgroupFigures {
            version: 2,
            memory_peak_bytes: Some(5),
            oom_kills: None,
            cpu_us: Some(6),
        }),
        leftover_processes: 7,
        stopped: false,
    };
    let hello = FromShim::Hello {
        protocol: crate::version::PROTOCOL,
        nonce: Nonce([1; 16]),
        state: ShimState::Ended(report),
    };
    assert_eq!(decode::<FromShim>(&encode(&hello).expect("encode")).expect("decode"), hello);
}

#[test]
fn limits_are_checked_in_both_directions() {
    let broken: Vec<fn(&mut Launch)> = vec![
        |l| l.argv.clear(),
        |l| l.argv[0].push(0),
        |l| l.umask = 0o1000,
        |l| l.cwd = vec![b'/'; PATH_BYTES_MAX + 1],
        |l| l.fds = vec![FdRole::Stdin; FRAME_FDS_MAX + 1],
        |l| l.fds = vec![FdRole::StageOut("../up".into())],
        |l| l.links[0].name = ".hidden".into(),
        |l| l.links[0].name = "n".repeat(65),
        |l| l.env = vec![vec![b'x'; STRING_BYTES_MAX + 1]],
    ];
    for (index, spoil) in broken.into_iter().enumerate() {
        let mut bad = launch();
        spoil(&mut bad);
        assert!(encode(&ToShim::Launch(bad.clone())).is_err(), "case {index} was encoded");
        let bytes = postcard::to_allocvec(&ToShim::Launch(bad)).expect("raw encode");
        assert!(matches!(decode::<ToShim>(&bytes), Err(DecodeError::Limit(_))), "case {index} was decoded");
    }
}

#[test]
fn no_more_outputs_are_retained_or_collected_in_a_frame_than_descriptors_fit() {
    let launch = LaunchId([1; 16]);
    let names = |count: usize| vec!["x".to_owned(); count];
    let held = |count: usize| vec![Held { launch, output: "x".into() }; count];
    for (count, fits) in [(FRAME_FDS_MAX, true), (FRAME_FDS_MAX + 1, false)] {
        assert_eq!(encode(&ToShim::Retain { launch, outputs: names(count) }).is_ok(), fits);
        assert_eq!(encode(&ToShim::Forget { launch, outputs: names(count) }).is_ok(), fits);
        assert_eq!(encode(&FromShim::Collected { stages: held(count), more: true }).is_ok(), fits);
    }
    for (count, fits) in [(STAGES_MAX, true), (STAGES_MAX + 1, false)] {
        assert_eq!(encode(&ToShim::Inherit { inputs: names(count) }).is_ok(), fits);
    }
    let up = "../up".to_owned();
    assert!(encode(&ToShim::Inherit { inputs: vec![up.clone()] }).is_err());
    assert!(encode(&ToShim::Retain { launch, outputs: vec![up.clone()] }).is_err());
    assert!(encode(&FromShim::Collected { stages: vec![Held { launch, output: up }], more: false }).is_err());
}

#[test]
fn only_names_of_outputs_are_revealed_and_no_more_than_a_payload_has() {
    let reveal = |name: &str, count: usize| encode(&ToShim::Reveal { outputs: vec![name.to_owned(); count] });
    // The longest names, so that it fits a frame.
    assert!(reveal(&"x".repeat(64), STAGES_MAX).is_ok() && reveal("x", STAGES_MAX + 1).is_err());
    assert!(reveal("..", 1).is_err() && reveal("a/b", 1).is_err() && reveal("", 1).is_err());
}

#[test]
fn a_version_has_what_came_before_it() {
    use crate::version::{INHERITS, PROTOCOL, RETAINS, Version};
    assert!(PROTOCOL.has(RETAINS) && PROTOCOL.has(INHERITS) && !RETAINS.has(INHERITS));
    for (older, minor) in [(Version { major: 1, minor: 0 }, 0), (Version { major: 0, minor: 9 }, 9)] {
        assert!(!older.has(RETAINS), "{minor}");
    }
}

#[test]
fn bytes_left_over_are_an_error() {
    let mut bytes = encode(&ToShim::Clean).expect("encode");
    bytes.push(0);
    assert!(matches!(decode::<ToShim>(&bytes), Err(DecodeError::Trailing { bytes: 1 })));
}

#[test]
fn a_long_launch_travels_in_sealed_memory_and_unsealed_memory_is_refused() {
    let mut long = launch();
    long.argv = vec![vec![b'a'; 100_000]; 20];
    let (memory, bytes) = write_launch_memory(&long).expect("write");
    assert_eq!(read_launch_memory(memory.as_fd(), bytes).expect("read"), long);
    assert!(matches!(read_launch_memory(memory.as_fd(), bytes - 1), Err(LaunchMemoryError::Length { .. })));
    assert!(rustix::io::pwrite(&memory, b"x", 0).is_err(), "sealed memory was written");

    let loose = rustix::fs::memfd_create(c"t", rustix::fs::MemfdFlags::ALLOW_SEALING).expect("memfd");
    rustix::fs::ftruncate(&loose, u64::from(bytes)).expect("truncate");
    assert!(matches!(read_launch_memory(loose.as_fd(), bytes), Err(LaunchMemoryError::NotSealed)));

    let (reader, _writer) = rustix::pipe::pipe().expect("pipe");
    assert!(matches!(read_launch_memory(reader.as_fd(), bytes), Err(LaunchMemoryError::NotSealed)));
    long.argv = vec![vec![b'a'; 100_000]; 60];
    assert!(matches!(write_launch_memory(&long), Err(LaunchMemoryError::Length { .. })));
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let _ = decode::<ToShim>(&bytes);
        let _ = decode::<FromShim>(&bytes);
    }

    #[test]
    fn one_flipped_byte_never_panics_and_never_breaks_a_limit(at in 0usize..200, value in any::<u8>()) {
        let mut bytes = encode(&ToShim::Launch(launch())).expect("encode");
        let at = at % bytes.len();
        bytes[at] = value;
        if let Ok(message) = decode::<ToShim>(&bytes) {
            prop_assert!(message.check().is_ok());
        }
    }
}
