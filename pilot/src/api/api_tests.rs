//! A pilot's socket, spoken to as it should be and otherwise.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pilot_core::{ClaimId, Epoch, EventName, PhaseName, SlotId};
use tokio::sync::{mpsc, oneshot};
use wire::pilot::{ExecEnd, FromPilot, PROTOCOL, PilotExec, SlotPhase, StageRow, ToPilot};
use wire::slot::{FdRole, WaitStatus};
use wire::version::Version;

use super::client::{Client, ExecError};
use super::link::{Link, LinkError};
use super::{Beside, Companion, Control, Serving, VISITS_MAX, serve};
use crate::board::tests::payload;
use crate::board::{Going, Identity, LiveBoard};
use crate::payload::Payload;
use crate::progress::Progress;

/// Slot, payload and arguments.
type Asked = (SlotId, String, Vec<Vec<u8>>);
/// What a program that was started is told by, and what it holds.
type Under = (oneshot::Sender<Result<WaitStatus, i32>>, mpsc::Receiver<i32>, Vec<(FdRole, OwnedFd)>);

/// A runtime whose programs do what the test says.
#[derive(Debug, Default)]
struct Fake {
    asked: Mutex<Vec<Asked>>,
    /// What the next program's end is told with, and the signals that it was sent.
    running: Mutex<Vec<Under>>,
}

impl Control for Fake {
    fn exec(&self, slot: SlotId, payload: &Payload, program: Beside) -> Result<Companion, String> {
        if program.argv[0] == b"forbidden" {
            return Err("16 programs run beside it already".into());
        }
        self.asked.lock().expect("asked").push((slot, payload.name.to_string(), program.argv));
        let (end, ended) = oneshot::channel();
        let (signals, received) = mpsc::channel(4);
        self.running.lock().expect("running").push((end, received, program.fds));
        Ok(Companion { ended, signals: Some(signals) })
    }

    fn memory_bytes(&self, slot: SlotId) -> Option<u64> {
        Some(1000 + u64::from(slot.0))
    }

    fn stages(&self) -> Vec<StageRow> {
        vec![StageRow { stage: "stage://zpeak.7/simulate/hits".into(), bytes: 12, ..StageRow::default() }]
    }
}

struct Pilot {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    board: LiveBoard,
    fake: Arc<Fake>,
    serving: Option<Serving>,
}

fn pilot() -> Pilot {
    let folder = tempfile::tempdir().expect("tempdir");
    // Longer than a socket's address may be.
    let deep = folder.path().join("d".repeat(120));
    std::fs::create_dir(&deep).expect("folder");
    let socket = deep.join("api.sock");
    let board = LiveBoard::new(Identity { name: "gpu".into(), slots: 3, ..Identity::default() });
    let fake = Arc::new(Fake::default());
    let serving = serve(&socket, board.clone(), Arc::clone(&fake)).expect("serve");
    Pilot { _folder: folder, socket, board, fake, serving: Some(serving) }
}

impl Pilot {
    fn run(&self, name: &str) {
        for (from, to) in [(PhaseName::Idle, PhaseName::Bound), (PhaseName::Bound, PhaseName::Running)] {
            self.board.take(&Progress::Moved {
                slot: SlotId(1),
                epoch: Epoch(5),
                claim: ClaimId(1),
                from,
                to,
                event: EventName::Go,
                payload: Some((payload(name), 2)),
            });
        }
    }

    async fn client(&self) -> Client {
        Client::connect(&self.socket).await.expect("connect")
    }
}

fn exec(name: &str, program: &str) -> PilotExec {
    PilotExec {
        workflow: "zpeak.7".into(),
        payload: name.into(),
        argv: vec![program.into()],
        env: Vec::new(),
        cwd: None,
        fds: Vec::new(),
    }
}

const NOTHING: [OwnedFd; 0] = [];

/// A connection that has said nothing.
async fn stranger(socket: &Path) -> Link {
    Link::connect(socket).await.expect("connect")
}

#[tokio::test]
async fn a_status_tells_slots_images_stages_and_totals() {
    let pilot = pilot();
    pilot.board.take(&Progress::Prepared { image: "dir:/images/root".into(), bytes: 77 });
    pilot.run("fit");
    let client = pilot.client().await;
    let status = client.status().await.expect("status");
    assert_eq!((status.pilot.name.as_str(), status.pilot.slots, status.pilot.ready), ("gpu", 3, true));
    assert_eq!((status.pilot.warm_starts, status.pilot.image_bytes), (1, 77));
    let phases: Vec<SlotPhase> = status.slots.iter().map(|slot| slot.phase).collect();
    assert_eq!(phases, [SlotPhase::Idle, SlotPhase::Running, SlotPhase::Idle]);
    let fit = &status.slots[1];
    let of = fit.payload.as_ref().expect("payload");
    assert_eq!((of.workflow.as_str(), of.name.as_str(), of.attempt, fit.epoch), ("zpeak.7", "fit", 2, 5));
    assert_eq!((fit.memory_bytes, status.slots[0].memory_bytes), (Some(1001), None));
    assert_eq!(status.images[0].brought_bytes, 77);
    assert_eq!(status.stages[0].bytes, 12);
    // The same connection may ask again.
    pilot.board.take(&Progress::Stopping);
    assert!(!client.status().await.expect("status").pilot.ready);
}

#[tokio::test]
async fn nothing_is_told_and_nothing_started_before_it_is_known_what_goes_on() {
    let pilot = pilot();
    let _board = pilot.board.clone().looking_back();
    let client = pilot.client().await;
    let refused = client.status().await.expect_err("told");
    assert!(matches!(&refused, LinkError::Refused(why) if why.contains("ask once more")), "{refused}");
    let refused = pilot.client().await.exec(exec("fit", "ps"), &NOTHING).await.expect_err("started");
    assert!(matches!(&refused, ExecError::Refused(why) if why.contains("ask once more")), "{refused}");
    let going = Going { slot: SlotId(2), epoch: Epoch(3), payload: payload("fit"), attempt: 1 };
    pilot.board.found([going]);
    // On the same connection.
    let status = client.status().await.expect("status");
    assert_eq!((status.pilot.ready, status.slots[2].phase), (true, SlotPhase::Running));
}

#[tokio::test]
async fn a_program_gets_descriptors_and_signals_and_its_end_is_told() {
    let pilot = pilot();
    pilot.run("fit");
    let (mut reader, writer) = std::io::pipe().expect("pipe");
    let asked = PilotExec { fds: vec![FdRole::Stdout], ..exec("fit", "ps") };
    let session = pilot.client().await.exec(asked, &[writer.as_fd()]).await.expect("exec");
    drop(writer);
    session.signal(15).await.expect("signal");
    let (end, mut signals, fds) = pilot.fake.running.lock().expect("running").pop().expect("running");
    assert_eq!(signals.recv().await, Some(15));
    let (role, fd) = fds.into_iter().next().expect("descriptor");
    assert_eq!(role, FdRole::Stdout);
    std::fs::File::from(fd).write_all(b"out").expect("write");
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("read: the pilot keeps no copy");
    assert_eq!(text, "out");
    end.send(Ok(WaitStatus::Exited(3))).expect("end");
    assert_eq!(session.wait().await.expect("wait"), ExecEnd::Ran(WaitStatus::Exited(3)));
    assert_eq!(*pilot.fake.asked.lock().expect("asked"), [(SlotId(1), "fit".into(), vec![b"ps".to_vec()])]);
}

#[tokio::test]
async fn a_payload_that_ends_first_takes_the_program_with_it() {
    let pilot = pilot();
    pilot.run("fit");
    let session = pilot.client().await.exec(exec("fit", "ps"), &NOTHING).await.expect("exec");
    let running = pilot.fake.running.lock().expect("running").pop().expect("running");
    drop(running);
    assert_eq!(session.wait().await.expect("wait"), ExecEnd::PayloadEnded);
}

#[tokio::test]
async fn a_caller_that_goes_hangs_up_on_its_program() {
    let pilot = pilot();
    pilot.run("fit");
    let session = pilot.client().await.exec(exec("fit", "ps"), &NOTHING).await.expect("exec");
    let (_end, mut signals, _fds) = pilot.fake.running.lock().expect("running").pop().expect("running");
    drop(session);
    assert_eq!(signals.recv().await, Some(1));
}

#[tokio::test]
async fn what_does_not_run_is_refused_in_words() {
    let pilot = pilot();
    pilot.run("fit");
    for (name, program, words) in
        [("other", "ps", "other of zpeak.7 does not run here just now"), ("fit", "forbidden", "16 programs")]
    {
        let refused = pilot.client().await.exec(exec(name, program), &NOTHING).await;
        match refused {
            Err(ExecError::Refused(why)) => assert!(why.starts_with(words), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    // Roles without descriptors.
    let asked = PilotExec { fds: vec![FdRole::Stdin], ..exec("fit", "ps") };
    assert!(matches!(pilot.client().await.exec(asked, &NOTHING).await, Err(ExecError::Refused(_))));
    assert!(pilot.fake.asked.lock().expect("asked").is_empty());
}

#[tokio::test]
async fn whoever_breaks_the_protocol_is_cut_off_alone() {
    let pilot = pilot();
    let good = pilot.client().await;
    let link = stranger(&pilot.socket).await;
    link.send(&ToPilot::Status, &[]).await.expect("send");
    assert!(matches!(link.receive::<FromPilot>().await, Err(LinkError::Gone)));
    let link = stranger(&pilot.socket).await;
    let newer = Version { major: PROTOCOL.major + 1, minor: 0 };
    link.send(&ToPilot::Hello { protocol: newer }, &[]).await.expect("send");
    assert!(matches!(link.receive().await, Ok((FromPilot::Hello { protocol: PROTOCOL }, _))));
    assert!(matches!(link.receive::<FromPilot>().await, Err(LinkError::Gone)));
    let client = pilot.client().await;
    client.link().send(&ToPilot::Signal { signal: 9 }, &[]).await.expect("send");
    assert!(client.status().await.is_err());
    // Not a message at all.
    let raw = stranger(&pilot.socket).await;
    raw.send_raw(&[0xff; 64 * 1024]);
    assert!(matches!(raw.receive::<FromPilot>().await, Err(LinkError::Gone)));
    good.status().await.expect("status");
}

#[tokio::test]
async fn many_who_say_nothing_are_cut_off_and_the_next_is_answered() {
    let pilot = pilot();
    let mut silent = Vec::new();
    for _ in 0..VISITS_MAX {
        silent.push(stranger(&pilot.socket).await);
    }
    // Waits until the first of them is cut off.
    let client = tokio::time::timeout(Duration::from_secs(10), pilot.client()).await.expect("answered");
    client.status().await.expect("status");
    for link in silent {
        assert!(matches!(link.receive::<FromPilot>().await, Err(LinkError::Gone)));
    }
}

#[tokio::test]
async fn the_socket_replaces_a_dead_pilots_and_goes_with_its_pilot() {
    let mut pilot = pilot();
    // As if that pilot had died without removing its socket.
    std::mem::forget(pilot.serving.take());
    let next = serve(&pilot.socket, pilot.board.clone(), Arc::new(Fake::default())).expect("replace");
    let client = pilot.client().await;
    client.status().await.expect("status");
    next.close().await;
    assert!(!pilot.socket.exists());
    assert!(client.status().await.is_err());
    let error = Client::connect(&pilot.socket).await.expect_err("nobody listens");
    assert!(error.to_string().starts_with("reach the pilot at "), "{error}");
}
