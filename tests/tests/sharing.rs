//! Two pilots of one tenant, each on a volume of its own, share an exchange and run one workflow: stages go from one to the
//! other without a copy, and whatever dies, the run ends right.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use pilot_tests::chaos::{
    Service, assert_done, brief, inmates, kill, out, outcome, place, row, rows, stdout, wait_state,
};
use pilot_tests::run::{SOON, Site, flow, sh, within};
use rustix::fs::{CWD, Mode, OFlags};
use spool::{RunId, State};
use stage::exchange::{Exchange, Gate, Quota};

const PLENTY: Quota = Quota { objects: 1000, bytes: 1 << 30 };

fn open_folder(path: &Path) -> OwnedFd {
    std::fs::create_dir_all(path).expect("a folder");
    rustix::fs::openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).expect("open a folder")
}

/// An exchange with a gate on each volume, all of one tenant.
fn exchange(site: &Site, volumes: &[&str], quota: Quota) -> Exchange {
    let exchange = Exchange::start().expect("exchange");
    let objects = Arc::new(open_folder(&site.path().join("tenant")));
    for volume in volumes {
        let root = site.path().join(volume);
        let gate = Gate {
            domain: "node-7".into(),
            root: open_folder(&root),
            socket_in: open_folder(&root.join("exchange")),
            socket: "sock".into(),
            objects: Arc::clone(&objects),
            quota,
        };
        exchange.open(gate).expect("a gate");
    }
    exchange
}

fn pilot<'a>(site: &'a Site, name: &str) -> Service<'a> {
    let folder = |part: &str| site.path().join(name).join(part).display().to_string();
    let (state, scratch, volume) = (folder("state"), folder("scratch"), folder(""));
    let volume = volume.trim_end_matches('/');
    Service::new(
        site,
        name,
        &[
            "--state-dir",
            &state,
            "--scratch-dir",
            &scratch,
            "--exchange",
            volume,
            "--slots",
            "1",
            "--bind-ahead",
            "0",
        ],
    )
}

/// A place without the exchange's own folders is as it was.
fn finish(site: &Site, exchange: Exchange, pilots: &mut [&mut Service<'_>]) {
    for pilot in pilots.iter_mut() {
        if pilot.pid().is_some() {
            pilot.stop().assert_code(0);
        }
        pilot.reap();
    }
    let left = |folder: &str| {
        let entries = std::fs::read_dir(site.path().join(folder)).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    assert!(within(SOON, || exchange.counts().objects == 0), "{:?}", exchange.counts());
    assert_eq!(left("tenant"), Vec::<std::path::PathBuf>::new());
    drop(exchange);
    site.assert_baseline();
}

const OUTPUTS: &str = "outputs: [{name: f}, {name: m, class: mem, max_size: 1Mi}, {name: v, class: value}, {name: d, class: folder}], retries: 2";
const MAKES: &str = "echo file > /stage/out/f; echo memory > /stage/out/m; echo value > /stage/out/v; \
    mkdir /stage/out/d/sub; echo folder > /stage/out/d/sub/g";
const ALL: [&str; 4] = ["f", "m", "v", "d"];

/// Reads all that `make` made, when it may.
fn reader(name: &str) -> String {
    let inputs = ALL.map(|output| format!("{{name: {output}, from: 'stage://make/{output}'}}")).join(", ");
    let script = "cat /stage/in/f /stage/in/m /stage/in/v /stage/in/d/sub/g; stat -L -c %i /stage/in/f /stage/in/m; \
        while [ ! -e /stage/in/go/now ]; do sleep 0.02; done";
    sh(name, script, &format!("inputs: [{inputs}, {{name: go, from: ./go}}], retries: 2"))
}

const TEXT: &str = "file\nmemory\nvalue\nfolder\n";

fn read(site: &Site, run: RunId, name: &str) -> Vec<String> {
    let text = stdout(site, run, name);
    let rest = text.strip_prefix(TEXT).unwrap_or_else(|| panic!("{name} read {text:?}"));
    rest.lines().map(str::to_owned).collect()
}

#[test]
fn a_run_goes_on_in_both_pilots_and_its_stages_are_not_copied() {
    let Some(site) = place("a_run_goes_on_in_both_pilots_and_its_stages_are_not_copied") else { return };
    let exchange = exchange(&site, &["a", "b"], PLENTY);
    let (mut a, mut b) = (pilot(&site, "a"), pilot(&site, "b"));
    a.start();
    let run = a.submit(&flow(&[sh("make", MAKES, OUTPUTS), reader("one"), reader("two")]));
    wait_state(&site, run, "one", State::Claimed);
    assert_eq!(exchange.counts().objects, ALL.len());
    b.start();
    wait_state(&site, run, "two", State::Claimed);
    assert!(within(SOON, || stdout(&site, run, "two").lines().count() == 6), "{}", stdout(&site, run, "two"));
    assert_eq!(exchange.counts().fetched, 4);
    site.write("go/now", "");
    a.wait(run);
    for name in ["make", "one", "two"] {
        assert_done(&site, run, name, 1);
    }
    // The same file and the same memory.
    assert_eq!(read(&site, run, "one"), read(&site, run, "two"));
    finish(&site, exchange, &mut [&mut a, &mut b]);
}

/// Occupies the one slot of a pilot until it is let go.
fn holds() -> String {
    let script = "while [ ! -e /stage/in/go/now ]; do sleep 0.02; done";
    sh("holds", script, "inputs: [{name: go, from: ./go}], retries: 5")
}

/// Has `make` done by a pilot that then has no room for `one`; gives the run.
fn made_by(site: &Site, a: &mut Service<'_>) -> RunId {
    a.start();
    let run = a.submit(&flow(&[sh("make", MAKES, OUTPUTS), holds(), reader("one")]));
    wait_state(site, run, "holds", State::Claimed);
    wait_state(site, run, "one", State::Ready);
    run
}

/// Kills a pilot and all that runs in its slots.
fn wipe_out(pilot: &mut Service<'_>) {
    pilot.kill();
    inmates().iter().for_each(|inmate| kill(inmate.pid));
    assert!(within(SOON, || {
        pilot.reap();
        inmates().is_empty()
    }));
}

#[test]
fn what_a_pilot_made_is_there_for_the_others_when_it_is_gone() {
    let Some(site) = place("what_a_pilot_made_is_there_for_the_others_when_it_is_gone") else { return };
    let exchange = exchange(&site, &["a", "b"], PLENTY);
    let (mut a, mut b) = (pilot(&site, "a"), pilot(&site, "b"));
    let run = made_by(&site, &mut a);
    wipe_out(&mut a);
    site.write("go/now", "");
    b.start();
    wait_state(&site, run, "one", State::Succeeded);
    read(&site, run, "one");
    // It comes back, loses what ran, and has nothing more to offer.
    a.start();
    a.wait(run);
    for name in ["make", "one"] {
        assert_done(&site, run, name, 1);
    }
    finish(&site, exchange, &mut [&mut a, &mut b]);
}

#[test]
fn a_driver_that_was_started_again_is_offered_everything_again() {
    let Some(site) = place("a_driver_that_was_started_again_is_offered_everything_again") else { return };
    let old = exchange(&site, &["a", "b"], PLENTY);
    let (mut a, mut b) = (pilot(&site, "a"), pilot(&site, "b"));
    let run = made_by(&site, &mut a);
    drop(old);
    let new = exchange(&site, &["a", "b"], PLENTY);
    assert_eq!(new.counts().objects, 0);
    b.start();
    wait_state(&site, run, "one", State::Claimed);
    site.write("go/now", "");
    a.wait(run);
    for name in ["make", "one"] {
        assert_done(&site, run, name, 1);
    }
    read(&site, run, "one");
    assert_eq!(new.counts().fetched, 4);
    finish(&site, new, &mut [&mut a, &mut b]);
}

#[test]
fn what_is_gone_with_its_pilot_and_the_exchange_is_made_again_by_another() {
    let Some(site) = place("what_is_gone_with_its_pilot_and_the_exchange_is_made_again_by_another") else {
        return;
    };
    let old = exchange(&site, &["a", "b"], PLENTY);
    let (mut a, mut b) = (pilot(&site, "a"), pilot(&site, "b"));
    let run = made_by(&site, &mut a);
    wipe_out(&mut a);
    drop(old);
    let new = exchange(&site, &["a", "b"], PLENTY);
    site.write("go/now", "");
    b.start();
    wait_state(&site, run, "one", State::Succeeded);
    read(&site, run, "one");
    assert_eq!(row(&site, run, "make").attempt, 2, "{:?}", brief(&rows(&site, run)));
    a.start();
    a.wait(run);
    assert_done(&site, run, "make", 2);
    finish(&site, new, &mut [&mut a, &mut b]);
}

#[test]
fn a_stage_beyond_the_tenants_quota_fails_its_payload_in_one_line() {
    let Some(site) = place("a_stage_beyond_the_tenants_quota_fails_its_payload_in_one_line") else { return };
    let exchange = exchange(&site, &["a"], Quota { objects: 10, bytes: 100 });
    let mut a = pilot(&site, "a");
    a.start();
    let large = sh("large", "head -c 101 /dev/zero > /stage/out/x", "outputs: [{name: x}]");
    let reads = sh("reads", "true", "inputs: [{name: x, from: 'stage://large/x'}]");
    // What nobody else reads is not shared.
    let alone = sh("alone", "head -c 1000 /dev/zero > /stage/out/y", "outputs: [{name: y, save: y}]");
    let run = a.submit(&flow(&[large, reads, alone]));
    a.wait(run);
    let large = row(&site, run, "large");
    assert_eq!(large.state, State::Failed, "{:?}", brief(&rows(&site, run)));
    let words = outcome(&large);
    assert!(words.contains("share output \"x\"") && words.contains("101 bytes"), "{words}");
    assert_eq!(out(&site, run, "y").len(), 1000);
    finish(&site, exchange, &mut [&mut a]);
}

#[test]
fn a_pilot_that_can_not_share_says_why_in_one_line_and_leaves_nothing() {
    let Some(site) = place("a_pilot_that_can_not_share_says_why_in_one_line_and_leaves_nothing") else {
        return;
    };
    let nobody = site.path().join("empty").display().to_string();
    std::fs::create_dir(&nobody).expect("mkdir");
    let elsewhere = site.ask(&["serve", "--spool", "spool", "--exchange", &nobody]);
    elsewhere.assert_code(64);
    assert!(
        elsewhere.stderr.contains("--state-dir") && elsewhere.stderr.lines().count() == 1,
        "{}",
        elsewhere.stderr
    );
    let state = site.path().join("empty/state").display().to_string();
    let scratch = site.path().join("empty/scratch").display().to_string();
    let unserved = site.ask(&[
        "serve",
        "--spool",
        "spool",
        "--exchange",
        &nobody,
        "--state-dir",
        &state,
        "--scratch-dir",
        &scratch,
    ]);
    unserved.assert_code(64);
    assert!(
        unserved.stderr.contains("exchange/sock") && unserved.stderr.lines().count() == 1,
        "{}",
        unserved.stderr
    );
    site.assert_baseline();
}
