//! What goes wrong around a pilot: full and read-only disks, a spool that is held, two pilots on one spool, another
//! idea of the time, and signals at every phase.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pilot_tests::chaos::{Draw, Service, brief, inmates, out, row, rows, spool, stdout, submit, wait_text};
use pilot_tests::run::{Ran, SOON, Site, as_root, flow, good, sh, signal, within};
use rustix::process::Signal;
use spool::State;

/// Runs `script` in a mount namespace of its own, as root there; the pilot's arguments for this place are `$PILOT`. All
/// that is mounted is gone with it.
fn apart(site: &Site, options: &[&str], script: &str) -> Ran {
    let pilot = site.pilot(&[]);
    let mut words = vec![pilot.get_program().to_string_lossy().into_owned()];
    words.extend(pilot.get_args().map(|word| word.to_string_lossy().into_owned()));
    #[expect(clippy::disallowed_methods, reason = "a test's own namespace")]
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "90", "unshare", "-m", "--propagation", "private"]).args(options);
    command.args(["sh", "-c", script]).current_dir(site.path()).stdin(Stdio::null());
    command.env("PILOT", words.join(" ")).env("HOME", site.path());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start unshare(1)");
    Ran::of(child)
}

/// A place on whose folders file systems can be mounted.
fn place_with_mounts(test: &str) -> Option<Site> {
    let site = Site::new(test)?;
    if !as_root() {
        pilot_tests::skipped(test, "only root can mount a small file system");
        return None;
    }
    Some(site)
}

/// One line that says what is full, and no more.
fn one_line(ran: &Ran, words: &[&str]) {
    assert!(ran.stderr.lines().count() <= 2, "{}", ran.stderr);
    for word in words {
        assert!(ran.stderr.contains(word), "no {word:?} in {:?} ({})", ran.stderr, ran.code);
    }
}

const FULL: &str = "fill() { mount -t tmpfs -o size=\"$2\" none \"$1\"; }; stuff() { cat /dev/zero > \"$1/stuffed\" 2>/dev/null; };";

#[test]
fn a_full_store_fails_what_needs_it_and_can_be_used_again() {
    let Some(site) = place_with_mounts("a_full_store_fails_what_needs_it_and_can_be_used_again") else {
        return;
    };
    site.write("workflow.yaml", &flow(&[sh("a", "echo ran", "")]));
    let script = format!(
        "{FULL} fill store 1m; $PILOT images ls; stuff store; $PILOT run workflow.yaml --out full; echo code $?; rm store/stuffed; umount store
         $PILOT run workflow.yaml --out room; echo code $?"
    );
    let ran = apart(&site, &[], &script);
    let codes: Vec<&str> = ran.stdout.lines().filter(|line| line.starts_with("code ")).collect();
    assert_eq!(codes.len(), 2, "{}\n{}", ran.stdout, ran.stderr);
    assert_ne!(codes[0], "code 0", "{}", ran.stdout);
    assert_eq!(codes[1], "code 0", "{}\n{}", ran.stdout, ran.stderr);
    let told = format!("{}{}", ran.stdout, ran.stderr);
    assert!(told.contains("No space left") || told.contains("os error 28"), "{told}");
    site.assert_baseline();
}

#[test]
fn a_full_state_or_scratch_folder_is_named_and_nothing_is_left() {
    let test = "a_full_state_or_scratch_folder_is_named_and_nothing_is_left";
    let Some(site) = place_with_mounts(test) else { return };
    site.write("workflow.yaml", &flow(&[sh("a", "echo ran", "")]));
    // Folders take no blocks of a tmpfs.
    for (folder, inodes) in [("state", 1000), ("scratch", 8)] {
        let script = format!(
            "{FULL} fill {folder} 64k,nr_inodes={inodes}; stuff {folder}; $PILOT run workflow.yaml --out full-{folder}; code=$?
             rm {folder}/stuffed; ls -A {folder}/pilots 2>/dev/null; exit $code"
        );
        let ran = apart(&site, &[], &script);
        assert_ne!(ran.code, 0, "{folder}: {}", ran.stdout);
        assert!(ran.code < 124, "{folder} hangs or crashes: {} {}", ran.code, ran.stderr);
        let told = format!("{}{}", ran.stdout, ran.stderr);
        assert!(told.contains("No space left") || told.contains("os error 28"), "{folder}: {told}");
        assert!(!told.contains("panicked"), "{told}");
    }
    site.assert_baseline();
}

#[test]
fn a_disk_that_fills_up_fails_the_payload_that_filled_it_and_no_other() {
    let test = "a_disk_that_fills_up_fails_the_payload_that_filled_it_and_no_other";
    let Some(site) = place_with_mounts(test) else { return };
    let fills = sh("fills", "head -c 60000000 /dev/zero > /stage/out/x", "outputs: [{name: x, save: x.bin}]");
    site.write("workflow.yaml", &flow(&[fills, sh("after", "echo fine", "")]));
    let script = format!(
        "{FULL} fill scratch 24m; $PILOT run workflow.yaml --slots 1 --out out; code=$?; ls -A scratch/pilots; exit $code"
    );
    let ran = apart(&site, &[], &script);
    ran.assert_code(1);
    assert_eq!(site.log("after", "stdout"), "fine\n", "{}", ran.stderr);
    ran.assert_code(1);
    assert!(ran.stdout.contains("fills: exit code 1"), "{}\n{}", ran.stdout, ran.stderr);
    assert!(!site.path().join("out/x.bin").exists());
    site.assert_baseline();
}

#[test]
fn full_logs_cost_the_rest_of_the_log_and_not_the_payload() {
    let test = "full_logs_cost_the_rest_of_the_log_and_not_the_payload";
    let Some(site) = place_with_mounts(test) else { return };
    std::fs::create_dir(site.path().join("logs")).expect("mkdir");
    site.write("workflow.yaml", &flow(&[sh("a", "yes | head -c 3000000; echo end >&2", "")]));
    let script = format!(
        "{FULL} fill logs 1m; $PILOT run workflow.yaml --out logs; code=$?; wc -c < logs/logs/a.stdout; exit $code"
    );
    let ran = apart(&site, &[], &script);
    ran.assert_code(0);
    let kept: u64 = ran.stdout.lines().last().and_then(|line| line.trim().parse().ok()).unwrap_or_default();
    assert!((500_000..=1_048_576).contains(&kept), "{kept}: {}", ran.stdout);
    site.assert_baseline();
}

#[test]
fn a_read_only_store_serves_what_it_holds_or_says_what_is_wrong() {
    let test = "a_read_only_store_serves_what_it_holds_or_says_what_is_wrong";
    let Some(site) = place_with_mounts(test) else { return };
    let file = flow(&[sh("a", "echo ran", "")]);
    site.run(&file).assert_code(0);
    let script =
        "mount --bind store store; mount -o remount,bind,ro store; $PILOT run workflow.yaml --out again";
    let ran = apart(&site, &[], script);
    if ran.code != 0 {
        one_line(&ran, &["Read-only file system"]);
        assert!(ran.code < 124, "{}", ran.code);
    }
    site.assert_baseline();
}

#[test]
fn a_full_spool_refuses_submissions_and_loses_none_that_it_took() {
    let test = "a_full_spool_refuses_submissions_and_loses_none_that_it_took";
    let Some(site) = place_with_mounts(test) else { return };
    std::fs::create_dir(site.path().join("spool")).expect("mkdir");
    site.write("small.yaml", &flow(&[sh("a", "echo ran", "")]));
    site.write("large.yaml", &flow(&[sh("a", "echo ran", "count: 20000")]));
    // Not SPOOL's default mode: it must be its owner's alone.
    let script = format!(
        "{FULL} fill spool 2m; chmod 700 spool; $PILOT submit small.yaml --spool spool --out out; echo code $?
         $PILOT submit large.yaml --spool spool --out large; echo code $?
         $PILOT ls --spool spool --output json | grep -c run; $PILOT serve --spool spool --until-empty >/dev/null; echo code $?
         $PILOT ls 1/a --spool spool | grep -c succeeded"
    );
    let ran = apart(&site, &[], &script);
    let codes: Vec<&str> = ran.stdout.lines().filter(|line| line.starts_with("code ")).collect();
    assert_eq!(codes.first(), Some(&"code 0"), "{}\n{}", ran.stdout, ran.stderr);
    assert_ne!(codes.get(1), Some(&"code 0"), "{}", ran.stdout);
    assert_eq!(codes.get(2), Some(&"code 0"), "{}\n{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("full"), "{}", ran.stderr);
    assert_eq!(site.log("a", "stdout"), "ran\n", "{}\n{}", ran.stdout, ran.stderr);
    site.assert_baseline();
}

#[test]
fn two_pilots_on_one_spool_end_each_payload_once() {
    let Some(site) = Site::new("two_pilots_on_one_spool_end_each_payload_once") else { return };
    let more = ["--slots", "3"];
    let (mut one, mut two) = (Service::new(&site, "one", &more), Service::new(&site, "two", &more));
    one.start();
    two.start();
    let run = submit(
        &site,
        &flow(&[sh("each", "echo $LATEBIND_INDEX; echo x >&2", "count: 300, at_most_once: true")]),
    );
    let rows = one.wait(run);
    assert_eq!(rows.len(), 300);
    let odd: Vec<_> =
        rows.iter().filter(|row| row.state != State::Succeeded || row.attempt != 1).cloned().collect();
    assert!(odd.is_empty(), "{:?}", brief(&odd));
    let lacking: Vec<_> = (0..300)
        .flat_map(|index| {
            let text = |end: &str| out(&site, run, &format!("logs/each-{index}.{end}"));
            [
                (index, "stdout", text("stdout"), format!("{index}\n")),
                (index, "stderr", text("stderr"), "x\n".to_owned()),
            ]
        })
        .filter(|(_, _, text, wanted)| text != wanted)
        .collect();
    assert!(lacking.is_empty(), "{lacking:?}\n{}\n{}", one.said(), two.said());
    // Both worked: the events of each name payloads of its own.
    let ended = |ran: &Ran| ran.stdout.matches("payload_ended").count();
    let (first, second) = (one.stop(), two.stop());
    assert_eq!(ended(&first) + ended(&second), 300, "{} and {}", ended(&first), ended(&second));
    assert!(ended(&first) > 0 && ended(&second) > 0, "{} and {}", ended(&first), ended(&second));
    one.reap();
    site.assert_baseline();
}

#[test]
fn a_spool_that_a_stopped_process_holds_is_waited_for() {
    let Some(site) = Site::new("a_spool_that_a_stopped_process_holds_is_waited_for") else { return };
    let mut pilot = Service::new(&site, "p", &[]);
    pilot.start();
    let run = pilot.submit(&flow(&[sh("waits", "echo ready; sleep 1; echo done", "")]));
    wait_text(&site, run, "waits", "ready");
    // One that holds the write lock and does nothing more: for the others it makes no difference why.
    let mut holder = spool(&site);
    holder
        .transact(|_| -> Result<(), spool::SpoolError> {
            let refused = site.ask(&["submit", "workflow.yaml", "--spool", "spool", "--out", "o"]);
            refused.assert_code(70);
            assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
            // Looking is not writing.
            site.ask(&["ls", "--spool", "spool"]).assert_code(0);
            // The payload ends, and can't be reported.
            let done = within(SOON, || stdout(&site, run, "waits").ends_with("done\n"));
            assert!(done, "{:?}\n{}\n{:?}", stdout(&site, run, "waits"), pilot.said(), inmates());
            Ok(())
        })
        .expect("a transaction");
    drop(holder);
    pilot.wait(run);
    assert_eq!(row(&site, run, "waits").attempt, 1);
    pilot.stop().assert_code(0);
    pilot.reap();
    site.assert_baseline();
}

#[test]
fn a_damaged_spool_is_told_and_not_touched() {
    let Some(site) = Site::new("a_damaged_spool_is_told_and_not_touched") else { return };
    submit(&site, &flow(&[sh("a", "true", "")]));
    let database = site.path().join("spool/spool.db");
    let whole = std::fs::read(&database).expect("database");
    for bad in
        [whole[..whole.len() / 3].to_vec(), whole[..100].to_vec(), b"not a database at all, sorry".repeat(99)]
    {
        for log in ["spool.db-wal", "spool.db-shm"] {
            let _ = std::fs::remove_file(site.path().join("spool").join(log));
        }
        std::fs::write(&database, &bad).expect("write");
        for command in [&["ls"][..], &["submit", "workflow.yaml"], &["serve", "--until-empty"]] {
            let mut all = command.to_vec();
            all.extend(["--spool", "spool"]);
            let ran = site.ask(&all);
            ran.assert_code(64);
            assert!(ran.stderr.contains("spool.db") && ran.stderr.lines().count() == 1, "{}", ran.stderr);
        }
        assert_eq!(std::fs::read(&database).expect("database"), bad, "it was written to");
    }
    site.assert_baseline();
}

#[test]
fn a_pilot_with_another_idea_of_the_time_since_boot_runs_what_was_submitted() {
    let test = "a_pilot_with_another_idea_of_the_time_since_boot_runs_what_was_submitted";
    let Some(site) = place_with_mounts(test) else { return };
    submit(
        &site,
        &flow(&[sh("a", "exit $((1 - $(cat /proc/uptime | cut -d. -f1) / 1000000))", "retries: 2")]),
    );
    for offset in ["5000000", "-5"] {
        let script = "$PILOT serve --spool spool --until-empty";
        let ran = apart(&site, &["--fork", "--time", "--boottime", offset], script);
        if ran.stderr.contains("unshare:") {
            pilot_tests::skipped(test, ran.stderr.trim());
            break;
        }
        ran.assert_code(0);
        let run = submit(&site, &flow(&[sh("a", "true", "")]));
        assert!(run.0 >= 2);
    }
    let first = rows(&site, spool::RunId(1));
    assert!(first.iter().all(|row| row.state.is_final()), "{:?}", brief(&first));
    site.assert_baseline();
}

/// Ends; fails when it takes too long.
fn ended(mut child: Child) -> Ran {
    let came = within(SOON, || matches!(child.try_wait(), Ok(Some(_))));
    if !came {
        let _ = child.kill();
        panic!("it did not end");
    }
    Ran::of(child)
}

#[test]
fn an_interrupt_in_each_phase_ends_a_run_or_a_service_and_leaves_nothing() {
    let Some(site) = Site::new("an_interrupt_in_each_phase_ends_a_run_or_a_service_and_leaves_nothing")
    else {
        return;
    };
    let saves = "outputs: [{name: a, save: a.bin}, {name: b, save: b.bin}]";
    let script = "echo ready; sleep 0.05; for x in a b; do head -c 20000000 /dev/zero > /stage/out/$x; done; \
        for i in $(seq 1 20); do mkdir -p /work/$i/a; : > /work/$i/a/x; done";
    let work = flow(&[
        sh("works", script, &format!("{saves}, grace: 200ms")),
        sh("next", "sleep 5", "after: [works], grace: 100ms"),
    ]);
    let slot = |serves: bool, name: &str| {
        let pilots = site.path().join("state/pilots");
        let own = pilots.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
        own.into_iter()
            .filter(|path| serves == path.ends_with("p"))
            .any(|path| path.join("slots/0").join(name).exists())
    };
    let text = |folder: &Path, file: &str| std::fs::read_to_string(folder.join(file)).unwrap_or_default();
    for (at, serves) in (0..6).flat_map(|at| [(at, false), (at, true)]) {
        let _ = std::fs::remove_dir_all(site.path().join("out"));
        let mut service = Service::new(&site, "p", &[]);
        let (mut child, mut folder) = (None, site.path().join("out"));
        if serves {
            service.start();
            folder = site.path().join(format!("w-{}.out", submit(&site, &work)));
        } else {
            child = Some(site.start(&work));
        }
        let reached = within(SOON, || match at {
            // Anywhere in preparing.
            0 => true,
            1 => slot(serves, "control"),
            2 => text(&folder, "logs/works.stdout").contains("ready"),
            3 => folder.join("a.bin").exists(),
            4 => folder.join("b.bin").exists(),
            _ => inmates().iter().any(|inmate| inmate.name == "sleep"),
        });
        assert!(reached, "phase {at} never came");
        if let Some(child) = child {
            if at == 0 {
                std::thread::sleep(Duration::from_millis(Draw(9 + at).below(30)));
            }
            signal(&child, Signal::INT);
            let ran = ended(child);
            assert_eq!(ran.code, 130, "phase {at}: {}", ran.stderr);
        } else {
            service.signal(Signal::INT);
            service.ended().assert_code(0);
            site.ask(&["cancel", "--spool", "spool", "w"]).assert_code(0);
        }
        assert!(inmates().is_empty(), "phase {at}, serves {serves}: {:?}", inmates());
        for file in ["a.bin", "b.bin"] {
            let length = std::fs::metadata(folder.join(file)).map(|meta| meta.len());
            assert!(
                length.as_ref().map_or(true, |length| *length == 20_000_000),
                "half of {file}: {length:?}"
            );
        }
    }
    // What a stopped service kept for readers goes when its spool wants it no more.
    let mut last = Service::new(&site, "p", &["--until-empty"]);
    last.start();
    last.ended().assert_code(0);
    last.reap();
    let after = site.run(&flow(&[good()]));
    after.assert_code(0);
    after.assert_good(&site);
    site.assert_baseline();
}
