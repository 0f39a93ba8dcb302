//! Stages by path and by descriptor, and the process that holds them.

mod common;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use common::{Setup, in_greeted_slots, in_slots, memory, pipe, read_all, read_line};
use wire::slot::*;

fn content(fd: &OwnedFd) -> String {
    let mut text = vec![0; 4096];
    let length = rustix::io::pread(fd, &mut text, 0).expect("read");
    String::from_utf8_lossy(&text[..length]).into_owned()
}

#[test]
fn stages_are_reached_by_path_and_by_descriptor() {
    in_greeted_slots("by path", |slot| {
        let (hits, fit) = (memory(b"hits", 0o444), memory(b"", 0o666));
        let (reader, writer) = pipe();
        let mut launch = slot.shell(
            "cat /stage/in/hits.v1; cat /stage/in/table; echo $LATEBIND_FD_IN_HITS_V1 $LATEBIND_FD_OUT_FIT
             head -c 2 /proc/self/fd/$LATEBIND_FD_IN_HITS_V1; setsid -w sh -c 'cat /stage/in/hits.v1; echo result > /stage/out/fit'",
        );
        launch.env.push(b"LATEBIND_FD_OUT_FIT=99".to_vec());
        launch.links = vec![InputLink { name: "table".into(), target: b"/tmp/../work/table".to_vec() }];
        launch.fds = vec![
            FdRole::StageIn("hits.v1".into()),
            FdRole::Stdout,
            FdRole::Stderr,
            FdRole::StageOut("fit".into()),
        ];
        let exec = Exec {
            id: 1,
            argv: vec![b"sh".to_vec(), b"-c".to_vec(), b"echo path > /work/table".to_vec()],
            env: launch.env.clone(),
            cwd: b"/".to_vec(),
            fds: vec![],
        };
        slot.tell(&ToShim::Exec(exec), &[]);
        assert_eq!(slot.hear(), FromShim::ExecEnded { id: 1, status: Ok(WaitStatus::Exited(0)) });
        slot.begin(&launch, &[hits.as_fd(), writer.as_fd(), writer.as_fd(), fit.as_fd()]);
        drop(writer);
        let status = slot.exited().status;
        assert_eq!(read_all(reader), "hitspath\n10 11\nhihits");
        assert_eq!(status, WaitStatus::Exited(0));
        assert_eq!(content(&fit), "result\n");
    });
}

#[test]
fn an_input_that_is_a_file_is_inherited_where_it_is_asked_for_and_nothing_but_files_is() {
    in_greeted_slots("inherited", |slot| {
        let make =
            "mkdir -p /work/d; echo file > /work/f; echo other > /work/o; mkfifo /work/p; ln -s f /work/l";
        let exec = Exec {
            id: 1,
            argv: vec![b"sh".to_vec(), b"-c".to_vec(), make.into()],
            env: slot.shell("true").env,
            cwd: b"/".to_vec(),
            fds: vec![],
        };
        slot.tell(&ToShim::Exec(exec), &[]);
        assert_eq!(slot.hear(), FromShim::ExecEnded { id: 1, status: Ok(WaitStatus::Exited(0)) });
        let link = |name: &str| InputLink { name: name.into(), target: format!("/work/{name}").into() };
        for name in ["d", "p", "l", "none"] {
            slot.tell(&ToShim::Inherit { inputs: vec![name.into()] }, &[]);
            let mut launch = slot.shell("true");
            launch.links = vec![link(name)];
            let refusal = slot.refused(&launch, &[]);
            assert!(
                matches!(&refusal, LaunchRefusal::Failed { step, .. } if step == "input"),
                "{name}: {refusal:?}"
            );
        }
        slot.tell(&ToShim::Inherit { inputs: vec!["f".into(), "unknown".into()] }, &[]);
        let memory = memory(b"memory\n", 0o444);
        let mut launch = slot.shell(
            "echo $LATEBIND_FD_IN_M $LATEBIND_FD_IN_F ${LATEBIND_FD_IN_O:-none}; cat /proc/self/fd/$LATEBIND_FD_IN_M /proc/self/fd/$LATEBIND_FD_IN_F; cat /stage/in/f",
        );
        launch.links = vec![link("f"), link("o")];
        launch.fds = vec![FdRole::StageIn("m".into()), FdRole::Stdout];
        let (reader, writer) = pipe();
        slot.begin(&launch, &[memory.as_fd(), writer.as_fd()]);
        drop(writer);
        assert_eq!(slot.exited().status, WaitStatus::Exited(0));
        assert_eq!(read_all(reader), "10 11 none\nmemory\nfile\nfile\n");
        slot.clean();
        // It was for one launch.
        assert_eq!(slot.run_shell("echo ${LATEBIND_FD_IN_F:-none}"), "none\n");
    });
}

#[test]
fn as_many_stages_as_allowed_can_be_lent() {
    in_greeted_slots("many", |slot| {
        let stages: Vec<OwnedFd> = (0..400).map(|n| memory(format!("<{n}>").as_bytes(), 0o444)).collect();
        for (chunk, first) in stages.chunks(16).zip((0..).step_by(16)) {
            let fds: Vec<BorrowedFd<'_>> = chunk.iter().map(AsFd::as_fd).collect();
            let roles = (first..).take(fds.len()).map(|n| FdRole::StageIn(format!("s{n}"))).collect();
            slot.tell(&ToShim::Lend { fds: roles }, &fds);
        }
        let launch = slot.shell(
            "i=0; while [ $i -lt 400 ]; do eval fd=\\$LATEBIND_FD_IN_S$i; [ $fd = $((10+i)) ] || echo number $i $fd
             read x < /stage/in/s$i; read y < /proc/self/fd/$fd; [ \"$x$y\" = \"<$i><$i>\" ] || echo wrong $i \"$x\" \"$y\"; i=$((i+1)); done
             (ls /proc/$$/fd > /tmp/fds); wc -l < /tmp/fds",
        );
        let (report, output) = slot.run(&launch);
        assert_eq!((report.status, output.trim()), (WaitStatus::Exited(0), "403"));
        assert!(slot.clean().files >= 400);
    });
}

#[test]
fn a_refused_launch_takes_its_links_back_and_a_strange_file_is_not_replaced() {
    let setup = Setup {
        extra: "mkdir -p stage/in stage/out; echo mine > stage/out/taken; ln -s /old stage/in/stale",
        ..Setup::default()
    };
    in_slots("links", setup, |slot| {
        slot.greet(0);
        let stage = memory(b"new", 0o666);
        let mut launch = slot.launch(&["/no/such"]);
        launch.fds = vec![FdRole::StageIn("a".into())];
        assert!(
            matches!(slot.refused(&launch, &[stage.as_fd()]), LaunchRefusal::Failed { step, .. } if step == "exec")
        );
        let mut launch = slot.shell("true");
        launch.fds = vec![FdRole::StageIn("b".into()), FdRole::StageOut("taken".into())];
        let exists = LaunchRefusal::Failed { step: "link".into(), errno: 17 };
        assert_eq!(slot.refused(&launch, &[stage.as_fd(), stage.as_fd()]), exists);
        let mut launch = slot.shell("cat /stage/in/stale; cat /stage/out/taken; ls /stage/in >&2");
        let (reader, writer) = pipe();
        launch.fds = vec![FdRole::StageIn("stale".into()), FdRole::Stdout, FdRole::Stderr];
        slot.begin(&launch, &[stage.as_fd(), writer.as_fd(), writer.as_fd()]);
        drop(writer);
        assert_eq!(slot.exited().status, WaitStatus::Exited(0));
        assert_eq!(read_all(reader), "newmine\nstale\n");
        slot.clean();
        assert_eq!(slot.run_shell("ls /stage/in; cat /stage/out/taken"), "mine\n", "outputs are the pilot's");
    });
}

#[test]
fn a_payload_that_kills_the_holder_is_ended_and_the_slot_lives_on() {
    in_greeted_slots("holder", |slot| {
        for _ in 0..3 {
            let stage = memory(b"x", 0o444);
            let (reader, writer) = pipe();
            let mut launch = slot.shell(
                "trap '' TERM; holder=$(readlink /stage/in/x | cut -d/ -f3); kill -TERM $holder; cat /stage/in/x; echo; kill -KILL $holder; while :; do read y <> /idle; done",
            );
            launch.fds = vec![FdRole::StageIn("x".into()), FdRole::Stdout];
            slot.begin(&launch, &[stage.as_fd(), writer.as_fd()]);
            drop(writer);
            assert_eq!(read_line(&reader), "x", "SIGTERM ended the holder");
            assert_eq!(slot.hear(), FromShim::HolderLost);
            let report = slot.exited();
            assert_eq!(report.status, WaitStatus::Signaled { signal: 9, core: false });
            assert!(!report.stopped);
            assert_eq!(slot.clean().failures, 0);
        }
        assert_eq!(slot.run_shell("ls /stage/in"), "");
    });
}

#[test]
fn outputs_that_a_payload_kept_to_itself_are_revealed_once_it_has_ended() {
    in_greeted_slots("revealed", |slot| {
        let (reader, writer) = pipe();
        let mut launch = slot.shell(
            "umask 077; cd /stage/out; echo x > t; mv t f; mkdir -p d/e; echo y > d/e/g; echo z > other; echo made; read x <> /idle",
        );
        launch.fds = vec![FdRole::Stdout];
        slot.begin(&launch, &[writer.as_fd()]);
        drop(writer);
        assert_eq!(read_line(&reader), "made");
        let reveal = ToShim::Reveal { outputs: vec!["f".into(), "missing".into(), "d".into()] };
        let look = "cd /stage/out; stat -c '%n %a' f d d/e d/e/g other";
        slot.tell(&reveal, &[]);
        assert_eq!(slot.hear(), FromShim::Revealed);
        slot.tell(&ToShim::Stop { grace_ms: 0 }, &[]);
        slot.exited();
        slot.clean();
        assert_eq!(slot.run_shell(look), "f 600\nd 700\nd/e 700\nd/e/g 600\nother 600\n", "it ran yet");
        slot.tell(&reveal, &[]);
        assert_eq!(slot.hear(), FromShim::Revealed);
        slot.clean();
        assert_eq!(slot.run_shell(look), "f 644\nd 755\nd/e 755\nd/e/g 644\nother 600\n");
    });
}

/// All that the shim has of outputs in memory: launch, name and content.
fn collected(slot: &mut common::Slot) -> Vec<(LaunchId, String, String)> {
    slot.tell(&ToShim::Collect, &[]);
    let mut all = Vec::new();
    loop {
        let (message, fds) = slot.hear_with_fds();
        let FromShim::Collected { stages, more } = message else { panic!("not Collected: {message:?}") };
        assert_eq!(stages.len(), fds.len());
        all.extend(stages.into_iter().zip(&fds).map(|(held, fd)| (held.launch, held.output, content(fd))));
        if !more {
            return all;
        }
    }
}

#[test]
fn what_is_retained_outlives_clean_the_payloads_after_it_and_the_pilot_until_it_is_forgotten() {
    in_greeted_slots("retained", |slot| {
        assert_eq!(collected(slot), []);
        let (own, other) = (memory(b"", 0o666), memory(b"made by a client", 0o444));
        let mut first = slot.shell("echo by path > /stage/out/p");
        first.fds = vec![FdRole::StageOut("p".into())];
        slot.begin(&first, &[own.as_fd()]);
        slot.exited();
        let p = (first.id, "p".to_owned(), "by path\n".to_owned());
        assert_eq!(collected(slot), std::slice::from_ref(&p), "that of the payload which is there");
        let retain = |outputs: &[&str]| ToShim::Retain {
            launch: first.id,
            outputs: outputs.iter().map(|&output| output.to_owned()).collect(),
        };
        slot.tell(&retain(&["c"]), &[other.as_fd()]);
        slot.clean();
        let c = (first.id, "c".to_owned(), "made by a client".to_owned());
        assert_eq!(collected(slot), std::slice::from_ref(&c), "what was not retained went with Clean");
        slot.tell(&retain(&["p"]), &[own.as_fd()]);
        // The next payload has the same uid, and may take over the stage holder: neither has any of it.
        let seen = slot.run_shell("ls -l /proc/*/fd 2>/dev/null | grep -c memfd: || true");
        assert_eq!(seen, "0\n");
        slot.clean();
        slot.hang_up();
        assert_eq!(slot.accept(), ShimState::Idle);
        slot.welcome(10_000);
        assert_eq!(collected(slot), [c, p.clone()]);
        slot.tell(&ToShim::Forget { launch: first.id, outputs: vec!["c".into(), "unknown".into()] }, &[]);
        slot.tell(&ToShim::Forget { launch: LaunchId([99; 16]), outputs: vec!["p".into()] }, &[]);
        assert_eq!(collected(slot), [p]);
    });
}

#[test]
fn a_launch_that_failed_leaves_nothing_to_collect_and_many_outputs_come_in_many_frames() {
    in_greeted_slots("collected", |slot| {
        let mut bad = slot.launch(&["/no/such"]);
        bad.fds = vec![FdRole::StageOut("x".into())];
        slot.refused(&bad, &[memory(b"x", 0o666).as_fd()]);
        assert_eq!(collected(slot), []);
        let launch = slot.shell("true").id;
        let all: Vec<OwnedFd> = (0..40).map(|n| memory(format!("<{n}>").as_bytes(), 0o444)).collect();
        for (chunk, first) in all.chunks(16).zip((0..).step_by(16)) {
            let fds: Vec<BorrowedFd<'_>> = chunk.iter().map(AsFd::as_fd).collect();
            let outputs = (first..).take(fds.len()).map(|n: usize| format!("s{n}")).collect();
            slot.tell(&ToShim::Retain { launch, outputs }, &fds);
        }
        let found = collected(slot);
        assert_eq!(found.len(), 40);
        for (n, (of, name, text)) in found.into_iter().enumerate() {
            assert_eq!((of, name, text), (launch, format!("s{n}"), format!("<{n}>")));
        }
    });
}
