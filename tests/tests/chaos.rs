//! Kills at random moments while a mixed load runs: of the pilot, of shims, of payloads, of all at once.
//!
//! A round is one kill. Several come upon one run of the workflow; then the pilot is left alone, the run ends, and all of it
//! is looked at: each payload came to the end that its spec allows, what may run once ran once, what was saved is whole. The
//! last look is at the machine. `LATEBIND_CHAOS_ROUNDS` makes more of it (see `tests/long`), `LATEBIND_CHAOS_SEED` repeats
//! one; the seed is printed.

use std::collections::BTreeMap;
use std::time::Duration;

use pilot_tests::chaos::{Draw, Service, brief, files, inmates, kill, out, spool, stdout};
use pilot_tests::note;
use pilot_tests::rounds::{Notes, Rounds};
use pilot_tests::run::{SOON, Site, flow, sh, within};
use spool::{Detail, RunId, State};

const ROUNDS: u64 = 100;
/// Kills upon one run; fewer than the disruptions that a payload stands (five).
const KILLS_MAX: u64 = 5;
/// Disruptions after which a payload is given up.
const DISRUPTIONS: u32 = 5;

/// How often each payload has noted a start since the last look.
fn starts(notes: &Notes) -> BTreeMap<String, u32> {
    let mut starts = BTreeMap::new();
    for name in notes.take() {
        *starts.entry(name).or_insert(0) += 1;
    }
    starts
}

/// Short and long ones, such as fail, arrays that hand on files and memory, such as may run once, such as run together,
/// saved outputs.
fn load() -> String {
    const NOTE: &str = "inputs: [{name: notes, from: ./notes}";
    let noted = |name: &str, script: &str, inputs: &str, fields: &str| {
        let script = format!("echo $LATEBIND_PAYLOAD > /stage/in/notes/fifo; {script}");
        sh(name, &script, &format!("{NOTE}{inputs}], {fields}"))
    };
    flow(&[
        noted(
            "long",
            "echo begun; for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.1; done; echo ended",
            "",
            "retries: 20",
        ),
        noted("short", "echo $LATEBIND_INDEX", "", "count: 3, retries: 20"),
        noted("fails", "sleep 0.05; exit 3", "", ""),
        noted(
            "once",
            "sleep 0.3; seq 1 20000 > /stage/out/x",
            "",
            "at_most_once: true, outputs: [{name: x, save: once.txt}]",
        ),
        noted(
            "make",
            "sleep 0.1; echo file $LATEBIND_INDEX > /stage/out/f; echo memory $LATEBIND_INDEX > /stage/out/m",
            "",
            "count: 2, retries: 20, outputs: [{name: f}, {name: m, class: mem}]",
        ),
        noted(
            "take",
            "sleep 0.1; cat /stage/in/f /stage/in/m; seq 1 20000 > /stage/out/y",
            ", {name: f, from: 'stage://make/f', scatter: true}, {name: m, from: 'stage://make/m', scatter: true}",
            "count: 2, retries: 20, outputs: [{name: y, save: 'y-{index}.txt'}]",
        ),
        noted(
            "pours",
            "sleep 0.1; seq 1 20000 > /stage/out/p",
            "",
            "retries: 20, outputs: [{name: p, class: pipe}, {name: s, class: shared, max_size: 1Mi}]",
        ),
        noted(
            "drinks",
            "cat /stage/in/p > /stage/out/d",
            ", {name: p, from: 'stage://pours/p'}, {name: s, from: 'stage://pours/s'}",
            "retries: 20, outputs: [{name: d, save: drunk.txt}]",
        ),
        noted("never", "true", "", "after: [fails]"),
    ])
}

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Pilot,
    Shim,
    Payload,
    All,
}

const VICTIMS: [Victim; 6] =
    [Victim::Pilot, Victim::Pilot, Victim::Shim, Victim::Payload, Victim::All, Victim::Pilot];

/// One kill; the pilot runs again afterwards. Gives how many payloads were adopted.
fn strike(pilot: &mut Service<'_>, victim: Victim, draw: &mut Draw) -> u64 {
    let inmates = inmates();
    let one = |is_shim: bool, draw: &mut Draw| {
        let those: Vec<u32> = inmates
            .iter()
            .filter(|inmate| if is_shim { inmate.inner == 1 } else { !inmate.is_ours() })
            .map(|inmate| inmate.pid)
            .collect();
        let index = usize::try_from(draw.below(those.len() as u64)).unwrap_or(0);
        those.get(index).copied()
    };
    match victim {
        Victim::Pilot => pilot.kill(),
        Victim::Shim => one(true, draw).into_iter().for_each(kill),
        Victim::Payload => one(false, draw).into_iter().for_each(kill),
        Victim::All => {
            pilot.kill();
            inmates.iter().for_each(|inmate| kill(inmate.pid));
        }
    }
    if pilot.pid().is_some() {
        return 0;
    }
    // Sometimes at once, sometimes when what ran has ended.
    std::thread::sleep(Duration::from_millis(
        [0, 0, 20, 150, 600][usize::try_from(draw.below(5)).unwrap_or(0)],
    ));
    pilot.reap();
    // One in three is killed again before it has found its feet.
    if draw.below(3) == 0 {
        pilot.launch();
        std::thread::sleep(Duration::from_millis(draw.below(80)));
        pilot.kill();
    }
    pilot.start()
}

/// Looks at every payload of a run that has ended.
fn judge(site: &Site, run: RunId, starts: &BTreeMap<String, u32>, struck: &[Victim]) {
    let spool = spool(site);
    let rows = spool.payloads(run, &[], None, 1000).expect("payloads");
    let told = || format!("{struck:?}: {:?}, starts {starts:?}", brief(&rows));
    for row in &rows {
        let detail = spool.detail(row.id).expect("detail").expect("a payload");
        judge_one(&detail, starts, struck).unwrap_or_else(|why| panic!("{} {why}: {}", row.name, told()));
    }
    let whole: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    let of = |name: &str| rows.iter().find(|row| row.name == name).expect("a payload");
    for (payload, saved) in [("once", "once.txt"), ("take-0", "y-0.txt"), ("take-1", "y-1.txt")] {
        let text = out(site, run, saved);
        let done = of(payload).state == State::Succeeded;
        assert!(text == whole || (text.is_empty() && !done), "{saved} has {} bytes: {}", text.len(), told());
    }
    let gang = ["pours", "drinks"].map(|name| of(name).state == State::Succeeded);
    assert_eq!(gang[0], gang[1], "a part of a gang succeeded: {}", told());
    assert!(!gang[1] || out(site, run, "drunk.txt") == whole, "{}", told());
    for index in 0..2 {
        if of(&format!("take-{index}")).state == State::Succeeded {
            let text = stdout(site, run, &format!("take-{index}"));
            assert_eq!(text, format!("file {index}\nmemory {index}\n"), "{}", told());
        }
    }
    if of("long").state == State::Succeeded {
        assert_eq!(stdout(site, run, "long"), "begun\n1\n2\n3\n4\n5\n6\n7\n8\nended\n", "{}", told());
    }
    let saved = site.path().join(format!("w-{run}.out"));
    let others: Vec<_> =
        files(&saved).into_iter().filter(|path| !path.starts_with(saved.join("logs"))).collect();
    assert!(others.len() <= 4, "{others:?}");
}

fn judge_one(detail: &Detail, starts: &BTreeMap<String, u32>, struck: &[Victim]) -> Result<(), String> {
    let row = &detail.row;
    let end = row.outcome.as_ref().map(|outcome| outcome.conclusion.to_string()).unwrap_or_default();
    let started = starts.get(&row.name).copied().unwrap_or(0);
    let killed = struck.iter().any(|victim| matches!(victim, Victim::Payload | Victim::Shim | Victim::All));
    if started > row.attempt {
        return Err(format!("was started {started} times in {} tries", row.attempt));
    }
    let exhausted = detail.disrupted >= DISRUPTIONS;
    let fits = match row.name.as_str() {
        "never" => row.state == State::Skipped,
        "fails" => row.state == State::Failed && (end.contains("exit code 3") || killed),
        "once" => {
            if started > 1 {
                return Err("ran twice".to_owned());
            }
            let ended_by_us = matches!(row.state, State::Lost | State::Failed) && !struck.is_empty();
            row.state == State::Succeeded || ended_by_us
        }
        // One that was disrupted too often ends both.
        "pours" | "drinks" => row.state == State::Succeeded || exhausted || end.contains("its gang"),
        name if name.starts_with("take") => {
            row.state == State::Succeeded || exhausted || row.state == State::Skipped
        }
        _ => row.state == State::Succeeded || exhausted,
    };
    if !fits {
        return Err(format!("ended as {} ({end}), after {} disruptions", row.state, detail.disrupted));
    }
    if row.state == State::Succeeded && started == 0 {
        return Err("succeeded and never ran".to_owned());
    }
    Ok(())
}

#[test]
fn whatever_is_killed_each_payload_ends_once_and_nothing_is_left() {
    let test = "whatever_is_killed_each_payload_ends_once_and_nothing_is_left";
    let Some(site) = Site::new(test) else { return };
    let mut chance = Rounds::begin("chaos", ROUNDS);
    let notes = Notes::new(&site);
    let mut pilot = Service::new(&site, "p", &["--slots", "3", "-v"]);
    pilot.start();
    let work = load();
    let (mut done, mut runs, mut adopted) = (0, 0, 0);
    let mut of_each = BTreeMap::new();
    while done < chance.count {
        let _ = notes.take();
        let run = pilot.submit(&work);
        let mut struck = Vec::new();
        for _ in 0..(2 + chance.draw.below(KILLS_MAX - 1)).min(chance.count - done) {
            std::thread::sleep(Duration::from_millis(chance.draw.below(350)));
            let victim = VICTIMS[usize::try_from(chance.draw.below(VICTIMS.len() as u64)).unwrap_or(0)];
            adopted += strike(&mut pilot, victim, &mut chance.draw);
            struck.push(victim);
            *of_each.entry(format!("{victim:?}")).or_insert(0_u32) += 1;
        }
        pilot.wait(run);
        judge(&site, run, &starts(&notes), &struck);
        (done, runs) = (done + struck.len() as u64, runs + 1);
    }
    // Nothing is left of what was handed on.
    let stages = site.path().join("scratch/pilots/p/stages");
    let gone = within(SOON * 2, || files(&stages).is_empty());
    assert!(gone, "stages are left: {:?}", files(&stages));
    pilot.stop().assert_code(0);
    pilot.reap();
    drop(notes);
    site.assert_baseline();
    note(&format!(
        "chaos: seed {}, {done} rounds ({of_each:?}) upon {runs} runs, {adopted} adoptions, {} s",
        chance.seed,
        chance.seconds()
    ));
}
