//! `pilot stage`: what serving pilots hold, looked at from another terminal.

use pilot_tests::chaos::{Service, end, place, wait_state, wait_text};
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
