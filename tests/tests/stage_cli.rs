//! `pilot stage`: what serving pilots hold, looked at from another terminal.

use pilot_tests::chaos::{Service, end, place, stdout, wait_state, wait_text};
use pilot_tests::run::{flow, sh};
use spool::State;

const WAITS: &str = "echo ready; while [ ! -e /stage/in/go/now ]; do sleep 0.02; done";

#[test]
fn stages_that_are_held_are_listed_counted_and_read() {
    let Some(site) = place("stages_that_are_held_are_listed_counted_and_read") else { return };
    let mut pilot = Service::new(&site, "p", &[]);
    pilot.start();
    let run = pilot.submit(&flow(&[
        sh(
            "make",
            "for x in f m v; do echo in $x > /stage/out/$x; done; echo x > /stage/out/d/x",
            "outputs: [{name: f}, {name: m, class: mem}, {name: v, class: value}, {name: d, class: folder}]",
        ),
        sh("waits", WAITS, "inputs: [{name: go, from: ./go}]"),
        sh(
            "reads",
            "cat /stage/in/f",
            "after: [waits], inputs: [{name: f, from: 'stage://make/f'}, {name: m, from: 'stage://make/m'}, \
             {name: v, from: 'stage://make/v'}, {name: d, from: 'stage://make/d'}]",
        ),
    ]));
    wait_text(&site, run, "waits", "ready");
    wait_state(&site, run, "make", State::Succeeded);
    let ask = |arguments: &[&str]| site.ask(&[&["stage"], arguments, &["--spool", "spool"]].concat());
    let listed = ask(&["ls", "--output", "json"]);
    listed.assert_code(0);
    let rows = listed.events();
    assert_eq!(rows.len(), 4, "{}", listed.stdout);
    assert!(rows.iter().all(|row| row["pilot"] == "p" && row["kind"] == "stage"), "{}", listed.stdout);
    let named = |output: &str| {
        let end = format!("/make/{output}");
        let row = rows.iter().find(|row| row["stage"].as_str().is_some_and(|stage| stage.ends_with(&end)));
        row.expect("it is listed")["stage"].as_str().expect("a name").to_owned()
    };
    for output in ["f", "m", "v"] {
        let got = ask(&["get", &named(output)]);
        got.assert_code(0);
        assert_eq!(got.stdout, format!("in {output}\n"));
    }
    ask(&["get", &named("m"), "copy"]).assert_code(0);
    assert_eq!(site.read("copy"), "in m\n");
    let summed = ask(&["df"]);
    assert!(summed.stdout.starts_with("p: 4 stages, 17 B; "), "{}", summed.stdout);
    for (arguments, words) in [
        (vec!["get".to_owned(), named("m"), "copy".to_owned()], "write copy"),
        (vec!["get".to_owned(), named("d")], "it is a folder"),
        (vec!["get".to_owned(), "stage://w/make/f".to_owned()], "no pilot of this spool holds it"),
        (vec!["ls".to_owned(), "--pilot".to_owned(), "q".to_owned()], "find pilot q"),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let refused = ask(&arguments);
        refused.assert_code(64);
        assert!(refused.stderr.contains(words) && refused.stderr.lines().count() == 1, "{}", refused.stderr);
    }
    assert_eq!(site.read("copy"), "in m\n", "a file that is there is not touched");
    site.write("go/now", "");
    let rows = pilot.wait(run);
    assert!(rows.iter().all(|row| row.state == State::Succeeded));
    let after = ask(&["ls"]);
    assert_eq!((after.code, after.stdout.as_str()), (0, ""), "they go with their last reader");
    std::fs::remove_file(site.path().join("copy")).expect("remove");
    end(&site, &mut pilot);
}

#[test]
fn a_stage_that_is_removed_is_made_again_and_nothing_else_is_touched() {
    let Some(site) = place("a_stage_that_is_removed_is_made_again_and_nothing_else_is_touched") else {
        return;
    };
    let mut pilot = Service::new(&site, "p", &["--slots", "3", "--cpu", "8"]);
    pilot.start();
    let go = "{name: go, from: ./go}";
    let make = "cat /stage/in/go/made > /stage/out/f; cp /stage/out/f /stage/out/m";
    let outputs = "outputs: [{name: f}, {name: m, class: mem, max_size: 1Mi}]";
    site.write("go/made", "first\n");
    let from = |name: &str, producer: &str| format!("{{name: {name}, from: 'stage://{producer}/{name}'}}");
    let run = pilot.submit(&flow(&[
        sh("make", make, &format!("inputs: [{go}], {outputs}")),
        sh("once", "echo once > /stage/out/o", "outputs: [{name: o}]"),
        sh("waits", WAITS, &format!("inputs: [{go}]")),
        sh("holds", WAITS, &format!("inputs: [{go}, {}]", from("o", "once"))),
        sh(
            "reads",
            "cat /stage/in/f /stage/in/m /stage/in/o",
            &format!(
                "after: [waits], inputs: [{}, {}, {}]",
                from("f", "make"),
                from("m", "make"),
                from("o", "once")
            ),
        ),
    ]));
    for name in ["waits", "holds"] {
        wait_text(&site, run, name, "ready");
    }
    wait_state(&site, run, "make", State::Succeeded);
    let ask = |arguments: &[&str]| site.ask(&[&["stage"], arguments, &["--spool", "spool"]].concat());
    let named = |output: &str| {
        let listed = ask(&["ls", "--output", "json"]);
        let rows = listed.events();
        let stages = rows.iter().filter_map(|row| row["stage"].as_str());
        stages.map(str::to_owned).find(|stage| stage.ends_with(output)).expect("it is listed")
    };
    for (stage, words) in [
        (named("/once/o"), "holds may be reading"),
        ("stage://w/make/f".to_owned(), "no pilot of this spool holds it"),
    ] {
        let refused = ask(&["rm", &stage]);
        refused.assert_code(64);
        assert!(refused.stderr.contains(words) && refused.stderr.lines().count() == 1, "{}", refused.stderr);
    }
    site.write("go/made", "second\n");
    let removed = ask(&["rm", &named("/make/m")]);
    removed.assert_code(0);
    assert!(removed.stdout.ends_with("/make/m: 1 payload runs again\n"), "{}", removed.stdout);
    wait_state(&site, run, "make", State::Succeeded);
    site.write("go/now", "");
    let rows = pilot.wait(run);
    assert!(rows.iter().all(|row| row.state == State::Succeeded));
    let attempts = |name: &str| rows.iter().find(|row| row.name == name).map(|row| row.attempt);
    assert_eq!(["make", "once", "reads"].map(attempts), [Some(2), Some(1), Some(1)]);
    assert_eq!(stdout(&site, run, "reads"), "second\nsecond\nonce\n");
    end(&site, &mut pilot);
}
